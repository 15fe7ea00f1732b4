"""Rotation, best, leftovers and the lock: the newest valid checkpoint and the best one always survive."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoint_examples import DAMAGES, imitate

from dtl.base import files as durable
from dtl.checkpoints.listing import best_checkpoint, inspect, list_checkpoints, newest_valid, step_folder
from dtl.checkpoints.upkeep import lock_run, publish_best, remove_leftovers, rotate, set_damaged_aside
from dtl.errors import CheckpointError, TrainingError


def steps(run_dir: Path) -> list[int]:
    return [entry.step for entry in list_checkpoints(run_dir) if entry.problem is None]


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def write_anew(file: Path, data: bytes) -> None:
    """Not in place: `best` shares its files with a step folder."""
    file.unlink()
    file.write_bytes(data)


# --- rotation ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("clock", "rotation")
def test_the_newest_stay_by_step_and_not_by_time(tmp_path: Path) -> None:
    for step in (9, 10, 100, 11):
        imitate(tmp_path, step)
    os.utime(step_folder(tmp_path, 9), (time.time() + 10**6,) * 2)
    assert rotate(tmp_path, keep=2) == []
    assert steps(tmp_path) == [100, 11]


@pytest.mark.parametrize(("keep", "read"), [(3, []), (2, ["step-00000003"])])
def test_what_was_just_written_or_stays_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, read: list[str]
) -> None:
    """Hundreds of megabytes after each evaluation, of which the manifest was made a moment before."""
    seen: list[str] = []
    hashed = durable.sha256_of
    monkeypatch.setattr(durable, "sha256_of", lambda path: seen.append(path.parent.name) or hashed(path))
    for step in (1, 2, 3):
        imitate(tmp_path, step)
    seen.clear()
    rotate(tmp_path, keep)
    assert sorted(set(seen)) == read
    newest = imitate(tmp_path, 4)
    seen.clear()
    rotate(tmp_path, keep, written=newest)
    assert seen == [] and steps(tmp_path) == [4, 3, 2][:keep]


@pytest.mark.parametrize("keep", [1, 0, -3])
def test_the_newest_is_never_deleted(tmp_path: Path, keep: int) -> None:
    for step in (1, 2):
        imitate(tmp_path, step)
    rotate(tmp_path, keep)
    assert steps(tmp_path) == [2]


def test_where_best_came_from_and_what_is_protected_stay_and_do_not_count(tmp_path: Path) -> None:
    folders = {step: imitate(tmp_path, step) for step in range(1, 8)}
    publish_best(tmp_path, folders[2])
    rotate(tmp_path, keep=2, protect=[folders[4]])
    assert steps(tmp_path) == [7, 6, 4, 2]
    assert best_checkpoint(tmp_path) == inspect(tmp_path / "checkpoints/best")


@pytest.mark.fault("rotation")
def test_damaged_ones_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    folders = {step: imitate(tmp_path, step) for step in range(1, 7)}
    for step in (6, 5):
        text = (folders[step] / "model.safetensors").read_bytes()
        (folders[step] / "model.safetensors").write_bytes(text[:-1] + b"?")  # the same size
    (folders[2] / "manifest.json").unlink()
    rotate(tmp_path, keep=1)
    assert names(tmp_path) == [f"step-0000000{step}" for step in (2, 4, 5, 6)]


@pytest.mark.fault("rotation")
def test_nothing_is_deleted_while_best_is_damaged(tmp_path: Path) -> None:
    folders = {step: imitate(tmp_path, step) for step in range(1, 5)}
    best = publish_best(tmp_path, folders[1])
    (best / "manifest.json").unlink()
    (warning,) = rotate(tmp_path, keep=1)
    assert "best/manifest.json: missing" in warning
    assert steps(tmp_path) == [4, 3, 2, 1]
    publish_best(tmp_path, folders[3])
    assert rotate(tmp_path, keep=1) == []
    assert steps(tmp_path) == [4, 3]


def test_a_delete_that_fails_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        imitate(tmp_path, step)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(durable.shutil, "rmtree", refuse)
    warnings = rotate(tmp_path, keep=1)
    assert len(warnings) == 2 and "step-00000002: could not be deleted (Permission denied)" in warnings[0]
    monkeypatch.undo()
    assert steps(tmp_path) == [3]
    assert remove_leftovers(tmp_path) == []
    assert names(tmp_path) == ["step-00000003"]


@pytest.mark.quick_cases(7)
@pytest.mark.fault("rotation")
@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_newest_and_the_best_survive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Random histories of a run: saves, new bests, damage, kills during a delete, restarts."""
    rng = random.Random(seed)
    step = 0

    def killed(path: Path) -> None:
        next(Path(path).iterdir()).unlink()
        raise KeyboardInterrupt

    for _ in range(25):
        event = rng.choice(["save", "save", "best", "rotate", "rotate", "kill", "damage", "sweep"])
        whole = steps(tmp_path) if (tmp_path / "checkpoints").exists() else []
        best = best_checkpoint(tmp_path)
        if event == "save":
            step += rng.randint(1, 5)
            imitate(tmp_path, step, contents=str(rng.random()))
        elif event == "best" and whole:
            publish_best(tmp_path, step_folder(tmp_path, rng.choice(whole)))
        elif event == "rotate":
            rotate(tmp_path, keep=rng.randint(0, 3))
        elif event == "kill":
            with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
                patched.setattr(durable.shutil, "rmtree", killed)
                rotate(tmp_path, keep=1)
        elif event == "damage" and len(whole) > 1:
            hit, other = rng.sample(whole, 2)
            victim = step_folder(tmp_path, hit)
            spare = tmp_path / "spare"
            shutil.copytree(victim, spare)  # unshared with best: damage in place hits one copy, as it should here
            shutil.rmtree(victim)
            spare.rename(victim)
            rng.choice(DAMAGES)(victim, step_folder(tmp_path, other), rng)
            whole = steps(tmp_path)
        elif event == "sweep":
            remove_leftovers(tmp_path)
        if whole:
            assert max(whole) in steps(tmp_path), f"{event} lost the newest"
            assert newest_valid(tmp_path)[0].step >= max(whole)
        if best is not None and event != "best":
            assert best_checkpoint(tmp_path) == best, f"{event} lost the best"
            if best.step in whole:
                assert best.step in steps(tmp_path), f"{event} deleted the checkpoint that best came from"


# --- best and leftovers -----------------------------------------------------------------------------------------


def test_best_is_a_copy_that_outlives_its_source(tmp_path: Path) -> None:
    folder = imitate(tmp_path, 1)
    best = publish_best(tmp_path, folder)
    assert inspect(best).digest == inspect(folder).digest
    assert (best / "model.safetensors").samefile(folder / "model.safetensors")  # no room taken
    shutil.rmtree(folder)
    assert newest_valid(tmp_path)[0].path == best


def test_without_hard_links_best_is_a_plain_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = imitate(tmp_path, 1)
    best = publish_best(tmp_path, folder)
    assert inspect(best).digest == inspect(folder).digest
    assert not (best / "model.safetensors").samefile(folder / "model.safetensors")


def test_a_damaged_checkpoint_does_not_become_the_best(tmp_path: Path) -> None:
    best = publish_best(tmp_path, imitate(tmp_path, 1))
    damaged = imitate(tmp_path, 2)
    (damaged / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00000002/model\.safetensors: has 0 bytes"):
        publish_best(tmp_path, damaged)
    assert inspect(best).step == 1


def test_a_damaged_best_moves_aside_for_a_new_one(tmp_path: Path) -> None:
    best = publish_best(tmp_path, imitate(tmp_path, 1))
    write_anew(best / "state.json", b"")
    publish_best(tmp_path, step_folder(tmp_path, 1))
    assert inspect(best).problem is None
    assert names(tmp_path) == ["best", "best.damaged", "step-00000001"]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["best", "best.old"], {"best": "new"}),
        (["best.old"], {"best": "old"}),
        (["best damaged", "best.old"], {"best": "old", "best.damaged": "?"}),
        (["best damaged", "best.old damaged"], {"best": "?", "best.old": "?"}),
        (["best", "best.old damaged"], {"best": "new"}),
    ],
)
def test_a_cut_off_replacement_is_ended(tmp_path: Path, there: list[str], expected: dict[str, str]) -> None:
    for entry in there:
        name, _, damaged = entry.partition(" ")
        folder = imitate(tmp_path, 5, "old" if name == "best.old" else "new")
        if damaged:
            (folder / "model.safetensors").write_bytes(b"?")
        folder.rename(folder.with_name(name))
    found = best_checkpoint(tmp_path)
    assert found is not None and (found.problem is None) == (expected["best"] != "?")
    assert remove_leftovers(tmp_path) == []
    after = {path.name: path.joinpath("model.safetensors").read_text().split()[-1] for path in list_folders(tmp_path)}
    assert after == expected


def list_folders(run_dir: Path) -> list[Path]:
    return list((run_dir / "checkpoints").iterdir())


def test_the_sweep_takes_what_is_unfinished_and_nothing_else(tmp_path: Path) -> None:
    imitate(tmp_path, 1)
    imitate(tmp_path, 7).rename(tmp_path / "checkpoints" / "copy")
    others = ("mine", ".tidy", ".tmp-mine", ".trash-7", "copy.old")
    for name in (".tmp-5-1-0123abcd", ".trash-step-00000001-1-0123abcd", *others):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "a").touch()
    for name in (".tmp-run.json-1-0123abcd", "notes.txt", ".tmp-notes.txt"):
        (tmp_path / name).touch()
    set_damaged_aside(imitate(tmp_path, 3))
    assert remove_leftovers(tmp_path) == []
    assert names(tmp_path) == sorted([*others, "copy", "step-00000001", "step-00000003.damaged"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-notes.txt", "checkpoints", "notes.txt"]
    assert remove_leftovers(tmp_path / "nowhere") == []


# --- one writer -------------------------------------------------------------------------------------------------


@pytest.mark.fault("two-in-one")
def test_a_second_process_is_refused_by_name_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom dtl.checkpoints.upkeep import lock_run\n"
        "with lock_run(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        by = rf"in use by process {holder.pid} on \S+ since 20\d\d-"
        with pytest.raises(TrainingError, match=by), lock_run(tmp_path):
            pass
        assert (tmp_path / ".lock.json").exists()
    finally:
        holder.kill()
        holder.communicate()
    with lock_run(tmp_path), pytest.raises(TrainingError, match=f"process {os.getpid()} "), lock_run(tmp_path):
        pass
    assert not (tmp_path / ".lock.json").exists()


def test_a_sample_that_was_never_finished_is_swept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "samples").mkdir()
    whole, unfinished_one = (
        tmp_path / "samples" / name for name in ("step-00000007.jsonl", ".tmp-step-7.jsonl-1-0123abcd")
    )
    whole.write_text("{}")
    unfinished_one.write_text("{")
    assert remove_leftovers(tmp_path) == []
    assert list((tmp_path / "samples").iterdir()) == [whole]
