"""What imitated systems say of themselves."""

import os
import subprocess
import sys

import pytest
from imitated_machines import BOARD, LAPTOP, MEMINFO, lay_out

from dtl.base.system import (
    available_memory,
    container_left,
    container_limit,
    installed_memory,
    peak_process_memory,
    processor,
    processor_name,
    resident_memory,
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
