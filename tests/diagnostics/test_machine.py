"""Processor, memory and disks of imitated machines."""

import errno
import os
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from imitated_machines import BOARD, LAPTOP, MEMINFO, lay_out

from dtl.diagnostics import machine
from dtl.diagnostics.machine import look_at_disk, look_at_memory, look_at_processor

Usage = namedtuple("Usage", "total used free")


# --- processor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpuinfo", "features"),
    [(LAPTOP, "avx2, avx512f, avx512_bf16"), (BOARD, "neon, sve, bf16"), ("", "features unknown")],
)
def test_the_row_of_the_processor(tmp_path, monkeypatch, cpuinfo, features):
    monkeypatch.setattr(os, "cpu_count", lambda: 17)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    ((_, row),) = look_at_processor(lay_out(tmp_path, {"proc/cpuinfo": cpuinfo})).rows
    assert row.endswith(f"5 of 17 cores usable; {features}")
    assert row.partition(",")[0]


# --- memory -------------------------------------------------------------------------------------------------------


def test_memory_of_a_machine_and_of_a_container(tmp_path):
    lay_out(tmp_path, {"proc/meminfo": MEMINFO})
    assert look_at_memory(tmp_path).rows == [("memory", "16.0 GiB, 8.0 GiB free")]
    assert not look_at_memory(tmp_path).warnings
    lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2**30}\n"})
    finding = look_at_memory(tmp_path)
    assert finding.rows == [("memory", "16.0 GiB, 8.0 GiB free, at most 1.0 GiB in this container")]
    assert "only 1.0 GiB of memory are free" in finding.warnings[0] and not finding.problems


def test_a_container_without_a_limit(tmp_path):
    files = {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}
    assert look_at_memory(lay_out(tmp_path, {"proc/meminfo": MEMINFO, **files})).rows[0][1].endswith("8.0 GiB free")


def test_memory_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda root: None)
    monkeypatch.setattr(machine, "installed_memory", lambda root: 7 * 2**30)
    assert look_at_memory(tmp_path).rows == [("memory", "7.0 GiB")]
    monkeypatch.setattr(machine, "installed_memory", lambda root: None)
    assert look_at_memory(tmp_path).rows == [("memory", "size unknown")]


# --- disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch):
    """Set how many bytes each folder's disk has free; the longest folder name that fits decides."""

    def set_free(sizes: dict[Path, float]) -> None:
        def usage(path: os.PathLike[str]) -> Usage:
            fitting = [folder for folder in sizes if Path(path).is_relative_to(folder)]
            return Usage(10**13, 0, sizes[max(fitting, key=lambda folder: len(str(folder)))])

        monkeypatch.setattr(shutil, "disk_usage", usage)

    return set_free


@pytest.mark.parametrize(
    ("n_bytes", "warnings", "problems"), [(4.1e9, 0, 0), (3.9e9, 1, 0), (1.1e9, 1, 0), (0.9e9, 0, 1), (0, 0, 1)]
)
def test_room_for_checkpoints(elsewhere, free, n_bytes, warnings, problems):
    free({Path("/"): n_bytes})
    finding = look_at_disk(Path("outputs"), elsewhere / "cache")
    assert (len(finding.warnings), len(finding.problems)) == (warnings, problems)
    assert finding.rows == [("disk", f"{n_bytes / 1e9:.1f} GB free at outputs/")]
    assert list(elsewhere.iterdir()) == [], "looking leaves nothing behind"


def test_a_cache_on_another_disk(elsewhere, free, monkeypatch):
    cache = elsewhere / "disk" / "hub"
    cache.mkdir(parents=True)
    stat = os.stat
    other = namedtuple("Stat", "st_dev")(-1)
    monkeypatch.setattr(machine.os, "stat", lambda path, **k: other if Path(path) == cache else stat(path, **k))
    free({Path("/"): 71e9, cache: 2e9})
    finding = look_at_disk(Path("outputs"), cache)
    assert finding.rows == [("disk", f"71.0 GB free at outputs/, 2.0 GB at {cache}")]
    assert "where downloads are stored" in finding.warnings[0]


@pytest.mark.parametrize(("number", "reason"), [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only")])
def test_a_folder_that_cannot_be_written(elsewhere, monkeypatch, number, reason):
    def fail(dir: Path) -> None:
        assert dir == elsewhere
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    (problem,) = look_at_disk(Path("outputs"), elsewhere).problems
    assert problem.startswith("outputs/: runs cannot be written there") and reason in problem


def test_outputs_that_is_no_folder(elsewhere):
    Path("outputs").write_text("a file")
    assert "outputs is a file" in look_at_disk(Path("outputs"), elsewhere).problems[0]
    Path("outputs").unlink()
    Path("outputs").symlink_to("nowhere")
    assert "a link to nowhere" in look_at_disk(Path("outputs"), elsewhere).problems[0]
