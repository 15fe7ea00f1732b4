"""Kills, damage and full disks: a valid checkpoint always exists, and nothing damaged loads silently."""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_examples import DAMAGES, Damage, moments, save, tiny_model, tiny_tokenizer
from safetensors import SafetensorError

from dtl.checkpoints import upkeep as checkpoint_store
from dtl.checkpoints.listing import list_checkpoints, newest_valid, verify
from dtl.checkpoints.load import load_model, load_tokenizer, load_training_state
from dtl.checkpoints.save import save_checkpoint
from dtl.checkpoints.upkeep import publish_best, remove_leftovers, set_aside_later
from dtl.errors import CheckpointError


@pytest.mark.fault("kill-in-save")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(
    ("calls", "scenario", "at_least"),
    [
        pytest.param("changing", "advance", 55, marks=pytest.mark.slow),
        pytest.param("changing", "replace", 33, marks=pytest.mark.slow),
        ("changing", "rewind", 2),
        pytest.param("all", "advance", 250, marks=[pytest.mark.slow, pytest.mark.torture]),
        pytest.param("all", "replace", 130, marks=[pytest.mark.slow, pytest.mark.torture]),
    ],
)
def test_a_crash_at_every_file_system_call_leaves_a_whole_state(
    tmp_path: Path, figure: Any, calls: str, scenario: str, at_least: int
) -> None:
    command = [sys.executable, str(Path(__file__).parents[1] / "crash_points.py"), calls, scenario, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(f"{scenario}: {report['points']} points, {len(report['failures'])} failures, {report['calls']}")
    figure("crashes at file system calls of a save", report["points"], len(report["failures"]))
    assert report["failures"] == []
    assert report["points"] >= at_least  # fewer would mean that calls are no longer seen


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    save(run_dir, 10)
    save(run_dir, 20)
    return run_dir


@pytest.mark.fault("bit-flip", "truncated")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("n_damages", [200, pytest.param(2000, marks=pytest.mark.torture)])  # of all kinds together
def test_no_damage_loads_without_a_word(
    two_checkpoints: Path, tmp_path: Path, figure: Any, damage: Damage, n_damages: int
) -> None:
    """Everything that reads the damaged part raises and names it, and the older checkpoint is used."""
    names_read: dict[Callable[[Path], Any], set[str]] = {
        load_model: {"config.json", "model.safetensors"},
        load_tokenizer: {"tokenizer.json", "tokenizer_config.json"},
        load_training_state: {"state.json", "optimizer.safetensors"},
    }
    n_tries = -(-n_damages // len(DAMAGES))
    for seed in range(n_tries):
        run_dir = tmp_path / str(seed)
        shutil.copytree(two_checkpoints, run_dir)
        older, newer = (run_dir / "checkpoints" / f"step-000000{step}" for step in (10, 20))
        touched = damage(newer, older, random.Random(f"{damage.__name__} {seed}"))
        with pytest.raises(CheckpointError) as caught:
            verify(newer)
        assert any(name in str(caught.value) for name in touched), f"{seed}: {touched} not in {caught.value}"
        for load, names in names_read.items():
            if names & set(touched) or "manifest.json" in touched:
                with pytest.raises(CheckpointError):
                    load(newer)
        found, note = newest_valid(run_dir)
        assert found.path == older
        assert note is not None and "10 steps are lost" in note and newer.exists()
        shutil.rmtree(run_dir)
    figure("damages of checkpoint files, none loaded", n_tries)


@pytest.mark.fault("bit-flip")
def test_damage_is_named_when_best_holds_the_same_step(two_checkpoints: Path) -> None:
    """Nothing is lost then, and yet a file on this disk is not what was written."""
    newer = two_checkpoints / "checkpoints" / "step-00000020"
    shutil.copytree(newer, two_checkpoints / "checkpoints" / "best")
    (newer / "model.safetensors").write_bytes(b"")
    found, note = newest_valid(two_checkpoints)
    assert found.path.name == "best" and note is not None
    assert "step-00000020/model.safetensors" in note and "Using best (step 20) instead: no step is lost" in note


@pytest.mark.fault("truncated", "rotation")
def test_a_run_without_a_whole_checkpoint_says_so_and_deletes_nothing(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (10, 20)]
    for folder in folders:
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of its 2 checkpoints is valid[\s\S]*20/model\.safetensors"):
        newest_valid(tmp_path)
    assert all(folder.exists() for folder in folders)
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        newest_valid(tmp_path / "elsewhere")


def test_an_abandoned_branch_does_not_count_as_the_newest(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    lost = set_aside_later(tmp_path, 10)
    assert [path.name for path in lost] == ["step-00000020.lost", "step-00000030.lost"]
    assert newest_valid(tmp_path)[0].step == 10
    save(tmp_path, 20, seed=7)
    assert set_aside_later(tmp_path, 10)[0].name == "step-00000020.lost-2"


# --- disks that refuse ------------------------------------------------------------------------------------------


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fault("disk-full")
@pytest.mark.parametrize("n_bytes", [0, 100, 1500, 20_000, 60_000])
def test_a_file_that_may_not_grow_leaves_the_older_checkpoint_alone(
    tmp_path: Path, file_size_limit: Callable[[int], None], n_bytes: int
) -> None:
    save(tmp_path, 10)
    file_size_limit(n_bytes)
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path, 20)
    file_size_limit(resource.RLIM_INFINITY)
    message = str(caught.value)
    assert "step-00000020: larger than the maximum file size here. Needed: 0.1 MiB, free: " in message
    assert "Kept: 1 earlier, the newest of step 10." in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
    save(tmp_path, 20)
    assert newest_valid(tmp_path)[0].step == 20


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.fault("disk-full")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (SafetensorError("Error: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the quota of the disk is used up"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written .*Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "cannot be written .*Input/output error"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot be written .*Read-only"),
    ],
)
@pytest.mark.parametrize("call", ["save_file", "publish_directory", "ManifestWriter.write"])
def test_an_error_of_the_disk_is_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, call: str
) -> None:
    monkeypatch.setattr(f"dtl.checkpoints.save.{call}", raising(error))
    with pytest.raises(CheckpointError, match=rf"step-00000010: {message}[\s\S]*No earlier one exists"):
        save(tmp_path, 10)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.fault("signal")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory")])
def test_other_errors_pass_and_leave_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr("dtl.checkpoints.save.publish_directory", raising(error))
    with pytest.raises(type(error)):
        save(tmp_path, 10)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.fault("read-only")
def test_a_place_that_cannot_be_written_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file stands here")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path, tiny_model(), tiny_tokenizer(), "", {"step": 1, "epoch": 0}, moments(tiny_model()))


@pytest.mark.fault("disk-full")
def test_a_disk_that_refuses_best_keeps_the_old_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = publish_best(tmp_path, save(tmp_path, 10))
    newer = save(tmp_path, 20)
    monkeypatch.setattr(os, "link", raising(OSError(errno.EPERM, "no hard links here")))
    monkeypatch.setattr(checkpoint_store.shutil, "copyfile", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(CheckpointError, match="best: the disk is full"):
        publish_best(tmp_path, newer)
    monkeypatch.undo()
    assert load_training_state(best)[0]["step"] == 10
    assert remove_leftovers(tmp_path) == []
    assert sorted(path.name for path in best.parent.iterdir()) == ["best", "step-00000010", "step-00000020"]
    assert [entry.step for entry in list_checkpoints(tmp_path)] == [20, 10]
