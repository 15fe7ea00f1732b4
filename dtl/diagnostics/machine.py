"""Processor, memory and disks. Files of /proc and /sys are read below `root`, so that a test can lay out its own."""

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
# What torch's kernels are chosen by; asimd is ARM's own word for NEON.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
SPOKEN = {"asimd": "neon"}
LITTLE_MEMORY = 2 * 2**30  # model=qa: 57 M weights with gradients and Adam's moments take 0.9 GiB, torch 0.5
LITTLE_DISK = 4e9  # what a run of model=qa keeps: five checkpoints of 0.7 GB
NO_DISK = 1e9  # not even one of them, whole, beside the one being written


# --- processor and memory -----------------------------------------------------------------------------------------


def look_at_processor(root: Path = SYSTEM) -> Finding:
    """Model, cores that this process may use, and features that matter to torch."""
    name, flags = processor(_text(root / "proc/cpuinfo"))
    name = name or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()
    features = [SPOKEN.get(feature, feature) for feature in FEATURES if feature in flags]
    total, usable = os.cpu_count() or 1, usable_cores(root)
    cores = f"{total} cores" if usable >= total else f"{usable} of {total} cores usable"
    return Finding([("processor", f"{name}, {cores}; {', '.join(features) or 'features unknown'}")])


def processor(cpuinfo: str) -> tuple[str, frozenset[str]]:
    """Name and feature flags in the text of /proc/cpuinfo; an empty name where it has none, as on ARM."""
    found = dict(reversed(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", cpuinfo, re.MULTILINE)))
    return found.get("model name", ""), frozenset((found.get("flags") or found.get("Features") or "").split())


def processor_features(root: Path = SYSTEM) -> frozenset[str]:
    """The processor's own list of what it can do; empty where it is not told."""
    return processor(_text(root / "proc/cpuinfo"))[1]


def usable_cores(root: Path = SYSTEM) -> int:
    """Cores that this process may keep busy: those of its affinity, no more than its container is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.strip().isdigit() and period.strip().isdigit() and int(period):
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def look_at_memory(root: Path = SYSTEM) -> Finding:
    """Memory of the machine, what is free of it, and what the container is given."""
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
            f"only {in_gib(free)} of memory are free. Close other programs, or take a small model: model=small "
            "tokenizer=bpe trainer.micro_batch_size=1."
        )
    return finding


def _memory_limit(root: Path) -> float:
    """Bytes that the container may take; inf without a limit."""
    limits = []
    for folder in _control_groups(root, "memory"):
        text = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        if text.strip().isdigit():
            limits.append(int(text))
    return min(limits, default=math.inf)


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """The folder of this process's control group and those above it, of version 2 and of the older one."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = top / path.strip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _installed_memory() -> int:
    """Bytes of memory where there is no /proc: macOS and Windows; 0 where nobody tells."""
    if sys.platform == "win32":
        import ctypes

        kib = ctypes.c_ulonglong(0)
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kib))
        return kib.value * 1024
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _sysctl(key: str) -> str:
    """A fact of macOS; an empty text elsewhere."""
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
    """Room at `outputs` and, when it lies on another disk, at the cache of downloads; whether runs can be written."""
    place = _nearest(outputs)
    free = shutil.disk_usage(place).free
    finding = Finding([("disk", f"{in_gb(free)} free at {outputs}/")])
    if refusal := _refuses(outputs, place):
        finding.problems.append(
            f"{outputs}/: runs cannot be written there ({refusal}). Mend its permissions, or work in another folder."
        )
    if free < NO_DISK:
        finding.problems.append(
            f"{outputs}/: only {in_gb(free)} are free, and one checkpoint of model=qa takes 0.7 GB. Make room: "
            "delete old runs."
        )
    elif free < LITTLE_DISK:
        finding.warnings.append(
            f"only {in_gb(free)} are free at {outputs}/; a run of model=qa keeps up to {LITTLE_DISK / 1e9:.0f} "
            "GB of checkpoints. Make room, or lower trainer.keep."
        )
    beside = _nearest(cache)
    if os.stat(beside).st_dev != os.stat(place).st_dev:
        room = shutil.disk_usage(beside).free
        finding.rows = [("disk", f"{in_gb(free)} free at {outputs}/, {in_gb(room)} at {cache}")]
        if room < LITTLE_DISK:
            finding.warnings.append(
                f"only {in_gb(room)} are free at {cache}, where downloads go. Make room, or set HF_HOME."
            )
    return finding


def _nearest(folder: Path) -> Path:
    """The folder itself, or the one in which it would be made."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _refuses(folder: Path, place: Path) -> str:
    """Why nothing can be written into `folder`, which is `place` or would be made there."""
    if not place.is_dir():
        return f"{place} is a file"
    if folder.is_symlink() and not folder.exists():
        return "a link to nowhere"
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""
