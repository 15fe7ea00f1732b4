"""What imitated systems say of themselves."""

import os
import re
import subprocess
import sys

import pytest
from imitated_machines import BOARD, LAPTOP, MEMINFO, lay_out

from dtl.base.system import (
    available_memory,
    busy_elsewhere,
    container_left,
    container_limit,
    installed_memory,
    peak_process_memory,
    processor,
    processor_name,
    resident_memory,
    thread_warning,
    usable_cores,
)

# --- processor ----------------------------------------------------------------------------------------------------


def test_a_processor_by_its_first_core():
    assert processor(LAPTOP) == ("AMD Ryzen 7 7840HS", {"fpu", "sse2", "avx2", "avx512f", "avx512_bf16"})
    assert processor(BOARD) == ("", {"fp", "asimd", "bf16", "sve"})
    assert processor("") == ("", frozenset())


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 13),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 13),
        ({"proc/self/cgroup": "0::/user/one\n", "sys/fs/cgroup/user/cpu.max": "700000 100000\n"}, 7),
        ({"proc/self/cgroup": "0::/user/one\n", "sys/fs/cgroup/user/one/cpu.max": "5000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "3:memory:/x\n2:cpu,cpuacct:/x\n0::/\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        ({"proc/self/cgroup": "2:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, 13),
        ({"proc/self/cgroup": "nonsense\n\n::\n"}, 13),
    ],
)
def test_cores_that_a_container_is_given(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "cpu_count", lambda: 13)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(13)), raising=False)
    assert usable_cores(lay_out(tmp_path, files)) == cores


OWN_THREADS = {
    "proc/self/task/7/stat": "7 (python (a) R) R 1 7 7 0 -1",
    "proc/self/task/8/stat": "8 (python (a) R) S 1 7 7 0 -1",
    "proc/self/task/9/stat": "9 (python (a) R) R 1 7 7 0 -1",
}


@pytest.mark.parametrize(
    ("load", "running", "busy"),
    [("1.50", 6, 1.5), ("9.00", 5, 3), ("9.00", 1, 0), ("0.00", 9, 0), ("12345.67", 2, 0)],
)
def test_cores_that_other_programs_take(tmp_path, load, running, busy):
    """The load, and no more than want a core now without this process' own two threads."""
    root = lay_out(tmp_path, {"proc/loadavg": f"{load} 3.00 4.00 {running}/431 1234\n"} | OWN_THREADS)
    assert busy_elsewhere(root) == busy


@pytest.mark.parametrize("text", [None, "", "nonsense\n", "nan 1 1 1/1 1"])
def test_a_system_that_does_not_tell_its_load_gives_no_warning(tmp_path, text):
    root = lay_out(tmp_path, {} if text is None else {"proc/loadavg": text})
    assert busy_elsewhere(root) is None and thread_warning(2, root) is None


@pytest.mark.parametrize(
    ("cores", "threads", "load", "fewer"),
    [
        (2, 2, 2.0, "1 thread"),
        (2, 2, 8.0, "1 thread"),
        (2, 2, 1.0, "1 thread"),
        (2, 2, 0.5, None),  # an editor and a browser
        (2, 1, 8.0, None),  # gets its part of a core
        (16, 16, 5.0, "11 threads"),
        (16, 8, 5.0, None),
        (16, 8, 12.0, "4 threads"),
        (16, 16, 0.7, None),
    ],
)
def test_threads_that_have_no_cores_are_too_many(tmp_path, monkeypatch, cores, threads, load, fewer):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    root = lay_out(tmp_path, {"proc/loadavg": f"{load:.2f} 1.00 1.00 40/431 1234\n"})
    found = thread_warning(threads, root)
    assert (found is None) == (fewer is None)
    if fewer is not None:
        assert found is not None and f"OMP_NUM_THREADS={fewer.split()[0]} before" in found
        assert found.startswith(f"other programs keep {min(load, cores):.0f} of {cores} cores busy")
        assert found.endswith(f" takes {fewer}.")


# --- memory -------------------------------------------------------------------------------------------------------

V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/memory/"


def test_memory_of_the_machine(tmp_path):
    lay_out(tmp_path, {"proc/meminfo": MEMINFO})
    assert (installed_memory(tmp_path), available_memory(tmp_path)) == (2**34, 2**33)
    assert (container_limit(tmp_path), container_left(tmp_path)) == (None, None)


@pytest.mark.parametrize(
    ("files", "limit", "left"),
    [
        (
            {
                "proc/self/cgroup": "0::/user/one\n",
                V2 + "user/one/memory.max": "max\n",
                V2 + "user/memory.max": "7000\n",
                V2 + "user/memory.current": "5000\n",
                V2 + "user/memory.stat": "anon 11\ninactive_file 300\nactive_file 13\n",
            },
            7000,
            2300,
        ),
        (
            {
                "proc/self/cgroup": "0::/user/one\n",
                V2 + "user/one/memory.max": "6000\n",
                V2 + "user/one/memory.current": "1000\n",
                V2 + "user/memory.max": "7000\n",  # the outer group has less left, because of others in it
                V2 + "user/memory.current": "6900\n",
            },
            6000,
            100,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n0::/\n",
                V1 + "x/memory.limit_in_bytes": "7000\n",
                V1 + "x/memory.usage_in_bytes": "6000\n",
                V1 + "x/memory.stat": "inactive_file 100\ntotal_inactive_file 500\n",
            },
            7000,
            1500,
        ),
        ({"proc/self/cgroup": "0::/\n", V2 + "memory.max": "7000\n"}, 7000, None),
        ({"proc/self/cgroup": "0::/\n", V2 + "memory.max": "5\n", V2 + "memory.current": "7\n"}, 5, 0),
    ],
)
def test_what_the_control_groups_leave(tmp_path, files, limit, left):
    lay_out(tmp_path, files)
    assert (container_limit(tmp_path), container_left(tmp_path)) == (limit, left)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_a_process_is_its_own():
    ballast = bytearray(os.urandom(1)) * 300_000_000
    assert (resident_memory() or 0) > len(ballast)
    program = "from dtl.base.system import peak_process_memory; print(peak_process_memory())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000_000, "it began at its parent's"
    assert (peak_process_memory() or 0) > len(ballast)


def test_a_processor_without_proc_has_a_name(tmp_path):
    assert processor_name(tmp_path)


# --- waiting threads ----------------------------------------------------------------------------------------------


SPIN, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def with_waiting(program: str, **given: str) -> subprocess.CompletedProcess[str]:
    unset = {name: value for name, value in os.environ.items() if name not in (SPIN, POLICY)}
    return subprocess.run(
        [sys.executable, "-c", program], env={**unset, **given}, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize(("given", "count"), [({}, "4000"), ({SPIN: "57"}, "57"), ({POLICY: "passive"}, "None")])
def test_threads_wait_briefly_unless_the_user_has_said_how(given, count):
    """Beside four other programs a step of two threads took 1.7 times as long."""
    assert with_waiting(f"import dtl, os; print(os.environ.get({SPIN!r}))", **given).stdout.strip() == count


@pytest.mark.skipif(sys.platform != "linux", reason="torch has libgomp on Linux")
def test_torchs_openmp_waits_as_it_was_told():
    done = with_waiting("import dtl, torch", OMP_DISPLAY_ENV="verbose")
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == ["4000"]
