"""What the system says of the machine: processor, cores, memory, the limits of a container. Imports no torch.

Linux tells it in /proc and /sys, which are read below `root`, so that a test can provide its own files.
"""

import ctypes
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dtl.base.units import number_of

SYSTEM = Path("/")


def text_of(path: Path) -> str:
    """Return what a file of the system says; an empty text where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- processor ----------------------------------------------------------------------------------------------------


def processor(cpuinfo: str) -> tuple[str, frozenset[str]]:
    """Parse name and feature flags from /proc/cpuinfo; the name is empty where there is none, as on ARM."""
    fields = dict(reversed(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", cpuinfo, re.MULTILINE)))
    return fields.get("model name", ""), frozenset((fields.get("flags") or fields.get("Features") or "").split())


def processor_name(root: Path = SYSTEM) -> str:
    """Return the model of the processor, as far as the system reports it."""
    name = processor(text_of(root / "proc/cpuinfo"))[0]
    return name or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def processor_features(root: Path = SYSTEM) -> frozenset[str]:
    """Return the feature flags of the processor; empty where /proc/cpuinfo does not list them."""
    return processor(text_of(root / "proc/cpuinfo"))[1]


def usable_cores(root: Path = SYSTEM) -> int:
    """Return the cores that this process may use: its affinity, at most the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups(root, "cpu"):
        quota, _, period = text_of(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us")
        if quota.strip().isdigit() and period.strip().isdigit() and int(period):
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def busy_elsewhere(root: Path = SYSTEM) -> float | None:
    """Return how many cores of the machine other programs take; None where the system does not tell.

    The load of the last minute, at most the threads that run or wait for a core now: a program that has just ended, as
    the trial before this one, is still in the load.
    """
    known = re.match(r"(\d+\.\d+) \S+ \S+ (\d+)/", text_of(root / "proc/loadavg"))
    if known is None:
        return None
    own = (text_of(stat).rpartition(")")[2].split() for stat in root.glob("proc/self/task/*/stat"))
    return min(float(known[1]), max(0, int(known[2]) - sum(fields[:1] == ["R"] for fields in own)))


def thread_warning(threads: int, root: Path = SYSTEM) -> str | None:
    """Return a warning with a fix where other programs leave several threads fewer cores than they are; None: they do
    not, or that is not known.

    The threads of a step wait for each other after every operation, so that one without a core holds up all of them:
    slower than one thread, which just gets its part of a core.
    """
    others, cores = busy_elsewhere(root), os.cpu_count() or 1
    if threads < 2 or others is None or others < max(0.75, cores / 4) or others + threads < cores + 0.75:
        return None
    left = max(1, int(cores - others))
    return (
        f"other programs keep {min(others, cores):.0f} of {cores} cores busy. {threads} threads, which wait for each "
        f"other, may then be several times slower; OMP_NUM_THREADS={left} before the command takes "
        f"{number_of('threads', left)}."
    )


def _sysctl(key: str) -> str:
    """Return a value of sysctl on macOS, an empty text elsewhere."""
    if sys.platform != "darwin":
        return ""
    done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=2, check=False)
    return done.stdout.strip()


# --- memory -------------------------------------------------------------------------------------------------------


def installed_memory(root: Path = SYSTEM) -> int | None:
    """Return the memory of the machine in bytes; None: unknown."""
    if (n_bytes := _kib(root / "proc/meminfo", "MemTotal")) is not None:
        return n_bytes
    if sys.platform == "win32":
        kib = ctypes.c_ulonglong(0)
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kib))
        return kib.value * 1024 or None
    return _pages("SC_PHYS_PAGES")


def available_memory(root: Path = SYSTEM) -> int | None:
    """Return the bytes that new programs can have: MemAvailable of Linux. Elsewhere what is free, which leaves out what
    the system could give back. None: unknown."""
    n_bytes = _kib(root / "proc/meminfo", "MemAvailable")
    return _pages("SC_AVPHYS_PAGES") if n_bytes is None else n_bytes


def container_limit(root: Path = SYSTEM) -> int | None:
    """Return the bytes that the control groups of this process allow; None without a limit."""
    return min((limit for _, limit in _memory_limits(root)), default=None)


def container_left(root: Path = SYSTEM) -> int | None:
    """Return what the limits of the control groups leave; None without a limit.

    Pages of files that were not used lately do not count: the kernel gives these back first.
    """
    left = []
    for folder, limit in _memory_limits(root):
        used = text_of(folder / "memory.current") or text_of(folder / "memory.usage_in_bytes")
        counts = dict(re.findall(r"^(inactive_file|total_inactive_file) (\d+)$", text_of(folder / "memory.stat"), re.M))
        files = counts.get("total_inactive_file", counts.get("inactive_file", "0"))
        if used.strip().isdigit():
            left.append(max(0, limit - int(used) + int(files)))
    return min(left, default=None)


def resident_memory(field: str = "VmRSS", root: Path = SYSTEM) -> int | None:
    """Return VmRSS (now) or VmHWM (the peak since the process began) of this process, bytes; None without /proc."""
    return _kib(root / "proc/self/status", field)


def peak_process_memory() -> int | None:
    """Return the peak memory of this process so far, bytes; None where the system does not report it."""
    if (peak := resident_memory("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Not on Linux: there it begins at the peak of the process that started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_freed_memory() -> None:
    """Let glibc's malloc give what it keeps of freed memory back to the kernel. With another C library nothing happens.

    It keeps what a library's threads have freed for each of them, in one run nothing and in the next 50 MiB.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))


def _kib(file: Path, field: str) -> int | None:
    match = re.search(rf"^{field}:\s*(\d+) kB$", text_of(file), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _pages(name: str) -> int | None:
    with suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf, macOS not every name
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    return None


def _memory_limits(root: Path) -> Iterator[tuple[Path, int]]:
    """Yield the control groups that limit the memory of this process, with their bytes."""
    for folder in _control_groups(root, "memory"):
        limit = text_of(folder / "memory.max") or text_of(folder / "memory.limit_in_bytes")
        if limit.strip().isdigit():  # else "max", or no such file
            yield folder, int(limit)


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of this process's control group and those above it, of cgroup v2 and v1."""
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = top / path.strip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))
