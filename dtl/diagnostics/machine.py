"""Processor, memory and disks. /proc and /sys are read below `root`, so that a test can provide its own files."""

import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dtl.base.units import in_gb, in_gib
from dtl.diagnostics.findings import Finding

SYSTEM = Path("/")
# The features by which torch chooses its kernels; asimd is ARM's flag for NEON.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
DISPLAY_NAMES = {"asimd": "neon"}
LITTLE_MEMORY = 2 * 2**30  # model=qa: 57 M weights with gradients and Adam's moments take 0.9 GiB, torch 0.5
LITTLE_DISK = 4e9  # what a run of model=qa keeps: five checkpoints of 0.7 GB
NO_DISK = 1e9  # less than two of them: a new one is complete before the old one is deleted


# --- processor and memory -----------------------------------------------------------------------------------------


def look_at_processor(root: Path = SYSTEM) -> Finding:
    """Return the row of the processor: model, usable cores, features that matter to torch."""
    name, flags = processor(_text(root / "proc/cpuinfo"))
    name = name or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()
    features = [DISPLAY_NAMES.get(feature, feature) for feature in FEATURES if feature in flags]
    total, usable = os.cpu_count() or 1, usable_cores(root)
    cores = f"{total} cores" if usable >= total else f"{usable} of {total} cores usable"
    return Finding([("processor", f"{name}, {cores}; {', '.join(features) or 'features unknown'}")])


def processor(cpuinfo: str) -> tuple[str, frozenset[str]]:
    """Parse name and feature flags from /proc/cpuinfo; the name is empty where there is none, as on ARM."""
    fields = dict(reversed(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", cpuinfo, re.MULTILINE)))
    return fields.get("model name", ""), frozenset((fields.get("flags") or fields.get("Features") or "").split())


def processor_features(root: Path = SYSTEM) -> frozenset[str]:
    """Return the feature flags of the processor; empty where /proc/cpuinfo does not list them."""
    return processor(_text(root / "proc/cpuinfo"))[1]


def usable_cores(root: Path = SYSTEM) -> int:
    """Return the cores that this process may use: its affinity, at most the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.strip().isdigit() and period.strip().isdigit() and int(period):
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def look_at_memory(root: Path = SYSTEM) -> Finding:
    """Return the row of memory: total, free, and the limit of the container."""
    table = re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    kib = {name: int(size) * 1024 for name, size in table}
    total = kib.get("MemTotal") or _installed_memory()
    limit = _memory_limit(root)
    free = min(size for size in (kib.get("MemAvailable", math.inf), limit) if size)
    words = in_gib(total) if total else "size unknown"
    if "MemAvailable" in kib:
        words += f", {in_gib(kib['MemAvailable'])} free"
    if limit < (total or math.inf):
        words += f", at most {in_gib(limit)} in this container"
    finding = Finding([("memory", words)])
    if free < LITTLE_MEMORY:
        finding.warnings.append(
            f"only {in_gib(free)} of memory are free. Close other programs, or use a small model: model=small "
            "tokenizer=bpe trainer.micro_batch_size=1."
        )
    return finding


def _memory_limit(root: Path) -> float:
    """Return the memory limit of the container in bytes; inf without one."""
    folders = _control_groups(root, "memory")
    texts = (_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes") for folder in folders)
    return min((int(text) for text in texts if text.strip().isdigit()), default=math.inf)


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of this process's control group and those above it, of cgroup v2 and v1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = top / path.strip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _installed_memory() -> int:
    """Return the memory in bytes where there is no /proc (macOS, Windows); 0 when unknown."""
    if sys.platform == "win32":
        import ctypes

        kib = ctypes.c_ulonglong(0)
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kib))
        return kib.value * 1024
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _sysctl(key: str) -> str:
    """Return a value of sysctl on macOS, an empty text elsewhere."""
    if sys.platform != "darwin":
        return ""
    done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=2, check=False)
    return done.stdout.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- disks --------------------------------------------------------------------------------------------------------


def look_at_disk(outputs: Path, cache: Path) -> Finding:
    """Check free space and write access at `outputs`, and free space at the download cache if on another disk."""
    place = _nearest(outputs)
    free = shutil.disk_usage(place).free
    finding = Finding([("disk", f"{in_gb(free)} free at {outputs}/")])
    if error := _write_error(outputs, place):
        finding.problems.append(
            f"{outputs}/: runs cannot be written there ({error}). Fix its permissions, or work in another folder."
        )
    if free < NO_DISK:
        finding.problems.append(
            f"{outputs}/: only {in_gb(free)} are free, and one checkpoint of model=qa takes 0.7 GB. Free some "
            "space: delete old runs."
        )
    elif free < LITTLE_DISK:
        finding.warnings.append(
            f"only {in_gb(free)} are free at {outputs}/; a run of model=qa keeps up to {LITTLE_DISK / 1e9:.0f} "
            "GB of checkpoints. Free some space, or lower trainer.keep."
        )
    cache_place = _nearest(cache)
    if os.stat(cache_place).st_dev != os.stat(place).st_dev:
        room = shutil.disk_usage(cache_place).free
        finding.rows = [("disk", f"{in_gb(free)} free at {outputs}/, {in_gb(room)} at {cache}")]
        if room < LITTLE_DISK:
            finding.warnings.append(
                f"only {in_gb(room)} are free at {cache}, where downloads are stored. Free some space, or set HF_HOME."
            )
    return finding


def _nearest(folder: Path) -> Path:
    """Return the folder itself, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _write_error(folder: Path, place: Path) -> str:
    """Return why `folder`, whose nearest existing parent is `place`, is not writable; empty when it is."""
    if not place.is_dir():
        return f"{place} is a file"
    if folder.is_symlink() and not folder.exists():
        return "a link to nowhere"
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""
