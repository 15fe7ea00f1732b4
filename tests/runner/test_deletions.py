"""Files of a run that somebody deletes or replaces while it trains: it goes on, or ends in a sentence; nothing else."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import go_on, outcome, result, start, steps_kept, tiny_config, write_pairs

import dtl.runner.session
from dtl.checkpoints.listing import list_checkpoints
from dtl.errors import DTLError

if sys.platform == "win32":
    pytest.skip("Windows deletes no open files", allow_module_level=True)

AT_SAVE = 3  # of six; step 6
WHAT = "files deleted or replaced while training: it goes on, or ends in a sentence"
FILES = ("metrics.jsonl", "run.json", "config.yaml", "packages.txt", ".lock", ".lock.json", "samples",
         "checkpoints", "checkpoints/best", "checkpoints/step-00000004",
         "checkpoints/step-00000004/model.safetensors",
         "checkpoints/best/manifest.json", "checkpoints/best/config.yaml", "../pairs.jsonl", "../cache",
         ".")  # fmt: skip


def deleted(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def a_file(path: Path) -> None:
    deleted(path)
    path.write_text("a file stands here")


def a_folder(path: Path) -> None:
    deleted(path)
    path.mkdir()


def a_dead_link(path: Path) -> None:
    deleted(path)
    path.symlink_to("/nowhere/at/all")


QUICK = ("metrics.jsonl", "checkpoints", "checkpoints/step-00000004/model.safetensors", ".")


@pytest.mark.quick_cases(5)
@pytest.mark.counted(WHAT)
@pytest.mark.fault("deletions")
@pytest.mark.parametrize("do", [deleted, a_file, a_folder, a_dead_link])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FILES]
)
def test_a_run_goes_on_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, do: Callable
) -> None:
    config = tiny_config(write_pairs(tmp_path / "pairs.jsonl"))
    config.data.cache_dir = str(tmp_path / "cache")
    run, saves = tmp_path / "run", 0
    save = dtl.runner.session.save_checkpoint

    def saved(*args: object, **kwargs: object) -> Path:
        nonlocal saves
        folder = save(*args, **kwargs)  # pyright: ignore
        saves += 1
        if saves == AT_SAVE:
            do(Path(os.path.normpath(run / name)))
        return folder

    monkeypatch.setattr(dtl.runner.session, "save_checkpoint", saved)
    try:
        start(config, run)
    except DTLError as error:
        assert str(run) in str(error) or "pairs.jsonl" in str(error), error
    else:
        assert steps_kept(run)[0] == 12 and result(run)["state"] == "finished"
    assert saves >= AT_SAVE and "Traceback" not in "".join(capsys.readouterr())


def test_a_run_without_its_records_still_resumes_exactly(
    pairs: Path, uninterrupted: dict[str, Any], paused: Path, tmp_path: Path
) -> None:
    """Whatever but the checkpoints is gone."""
    shutil.copytree(paused, tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        if path.name != "checkpoints":
            deleted(path)
    go_on(tiny_config(pairs), tmp_path / "run")
    expected, found = uninterrupted, outcome(tmp_path / "run")
    assert (found["files"], found["states"]) == (expected["files"], expected["states"])
    assert [entry.problem for entry in list_checkpoints(tmp_path / "run")] == [None] * len(steps_kept(tmp_path / "run"))
