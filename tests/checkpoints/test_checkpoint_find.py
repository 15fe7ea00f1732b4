"""Values of `ckpt=`: the checkpoints they resolve to, and the messages when there is none."""

import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from checkpoint_examples import imitate

from dtl.base.files import read_manifest, write_manifest
from dtl.checkpoints.find import find_checkpoint, list_runs
from dtl.checkpoints.listing import step_folder
from dtl.checkpoints.upkeep import publish_best
from dtl.errors import CheckpointError
from dtl.run_dir.provenance import write_result, write_run_record
from dtl.run_dir.record_checks import record_problems
from dtl.terminal.loading import read_facts


def run(outputs: Path, name: str, *steps: int, best: int | None = None, started: str | None = None) -> Path:
    folder = outputs / name
    folder.mkdir(parents=True)
    for step in steps:
        imitate(folder, step, name)
    if best is not None:
        publish_best(folder, step_folder(folder, best))
    if started is not None:
        (folder / "run.json").write_text(
            json.dumps({"sessions": [{"started": started}, {"started": "2999-01-01T00:00:00"}]})
        )
    return folder


def damage(folder: Path, file: str = "model.safetensors") -> None:
    path = folder / file
    text = path.read_bytes()
    path.unlink()  # best shares its files with a step folder: a new file leaves the other one whole
    path.write_bytes(text[:-1] + b"?")


def touch_in_order(*folders: Path) -> None:
    """Set file times in the opposite order."""
    for age, folder in enumerate(folders):
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (time.time() - 1000 * age, time.time() - 1000 * age))


@pytest.mark.fault("clock")
def test_latest_goes_by_the_start_and_not_by_the_times_of_files(tmp_path: Path) -> None:
    first = run(tmp_path, "2026-01-02/23-59-59-99_a", 5)
    second = run(tmp_path, "2026-01-03/00-00-01-10_b", 3)
    trial = run(tmp_path, "multirun/2026-01-03/00-00-02-7_grid/9", 2)
    later_trial = run(tmp_path, "multirun/2026-01-03/00-00-02-7_grid/10", 1)
    touch_in_order(first, second, trial, later_trial)
    assert list_runs(tmp_path) == [later_trial, trial, second, first]
    assert find_checkpoint("latest", tmp_path) == later_trial / "checkpoints/step-00000001"


def test_run_json_knows_better_than_a_name(tmp_path: Path) -> None:
    renamed = run(tmp_path, "my-favourite", 5, started="2026-05-01T10:00:00")
    aware = run(tmp_path, "elsewhere/deep/er", 5, started="2026-05-01T12:00:00+00:00")
    run(tmp_path, "2026-04-01/10-00-00-1_a", 5, started="not a date")
    run(tmp_path, "2026-99-99/99-99-99-1_a", 5)
    assert set(list_runs(tmp_path)[:2]) == {renamed, aware}


def test_a_renamed_run_stays_the_newest(tmp_path: Path) -> None:
    """With files written by a real run, not by an imitation."""
    run(tmp_path, "2026-01-02/10-00-00-1_a", 5)
    renamed = run(tmp_path, "my-favourite", 5)
    write_run_record(renamed, "name: a\n", [], {}, "cpu")
    assert list_runs(tmp_path)[0] == renamed


def test_latest_passes_over_what_holds_nothing_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = run(tmp_path, "2026-01-02/10-00-00-1_a", 5)
    broken = run(tmp_path, "2026-01-02/11-00-00-1_b", 6)
    damage(broken / "checkpoints/step-00000006")
    run(tmp_path, "2026-01-02/12-00-00-1_c", started="2026-01-02T12:00:00")
    (tmp_path / "2026-01-02/13-00-00-1_d/checkpoints").mkdir(parents=True)
    assert find_checkpoint("latest", tmp_path) == good / "checkpoints/step-00000005"
    assert "step-00000006/model.safetensors: damaged" in caplog.text
    assert "13-00-00" not in caplog.text


def test_a_run_gives_its_best_or_its_newest(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", 5, 6, 7, best=6)
    assert find_checkpoint(str(folder), tmp_path).name == "best"
    assert find_checkpoint(str(folder / "checkpoints"), tmp_path).name == "best"
    assert find_checkpoint(str(folder), tmp_path, prefer="newest").name == "step-00000007"
    assert find_checkpoint(str(folder / "checkpoints/step-00000005"), tmp_path).name == "step-00000005"
    assert find_checkpoint(str(run(tmp_path, "b", 5, 6)), tmp_path).name == "step-00000006"


def test_a_damaged_best_gives_way_to_the_old_best_and_then_to_the_newest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run(tmp_path, "a", 5, 6, best=5)
    best = folder / "checkpoints/best"
    best.rename(best.with_name("best.old"))
    assert find_checkpoint(str(folder), tmp_path).name == "best.old"
    assert find_checkpoint(str(best), tmp_path).name == "best.old"
    best.with_name("best.old").rename(best)
    damage(best)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(str(folder), tmp_path).name == "step-00000006"
    assert "best/model.safetensors: damaged" in caplog.text
    with pytest.raises(CheckpointError, match=r"best/model\.safetensors: damaged"):
        find_checkpoint(str(best), tmp_path)


def with_state(folder: Path, best_step: int, best_loss: float = 1.25) -> None:
    manifest = read_manifest(folder)
    state = {"step": manifest.facts["step"], "train": {"best_step": best_step, "best_loss": best_loss}}
    (folder / "state.json").write_text(json.dumps(state))
    write_manifest(folder, **manifest.facts)


@pytest.mark.parametrize("kind", ["missing", "damaged"])
def test_without_its_best_a_run_gives_the_step_that_it_was_a_copy_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    folder = run(tmp_path, "a", 5, 7, 13)
    for step, best in ((5, 5), (7, 7), (13, 7)):
        with_state(step_folder(folder, step), best)
    best = publish_best(folder, step_folder(folder, 7))
    assert record_problems(folder) == [] and read_facts(best).best_loss == 1.25
    assert read_facts(step_folder(folder, 13)).best_loss is None  # it is that of step 7
    if kind == "missing":
        shutil.rmtree(best)
    else:
        damage(best)
        (best / "config.json").unlink()
    assert find_checkpoint(str(folder), tmp_path) == step_folder(folder, 7)
    assert "checkpoints/best" in caplog.text and "Using step-00000007 instead, of which it is a copy." in caplog.text
    write_run_record(folder, "name: a\n", [], {}, "cpu")
    assert f"checkpoints/best, the copy of step 7, is {kind}" in record_problems(folder)
    shutil.rmtree(step_folder(folder, 7))
    assert find_checkpoint(str(folder), tmp_path) == step_folder(folder, 13)
    assert "newest checkpoint instead: its step is 13, and the best is step 7, which is not there" in caplog.text


def test_damage_of_the_optimizer_matters_for_resuming_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run(tmp_path, "a", 5, 9, best=9)
    for name in ("best", "step-00000009"):
        damage(folder / "checkpoints" / name, "optimizer.safetensors")
    assert find_checkpoint(str(folder), tmp_path, prefer="best").name == "best"
    assert caplog.text == ""
    assert find_checkpoint(str(folder), tmp_path, prefer="newest").name == "step-00000005"
    assert "4 steps are lost" in caplog.text


def test_any_model_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    assert find_checkpoint(str(tmp_path / "hf"), tmp_path) == tmp_path / "hf"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("latest", "no run with checkpoints under .*/empty"),
        ("{0}/a/checkpoints/step-00000008", "no such folder.\nSimilar: .*step-00000007"),
        ("{0}/a/checkpoints/newest", "Similar: .*step-00000005, .*step-00000007"),
        ("{0}/aa", "no such folder.\nSimilar: .*/a"),
        ("gpt2", "no such folder.*\n.*on this disk"),
        ("{0}/a/checkpoints/step-00000007/model.safetensors", "a file. Give its folder"),
        ("{0}/pairs.jsonl", "a file, and a model is a folder. Give latest, "),
        ("{0}/model.pt", "pickled weights"),
        ("{0}/pickles", "pytorch_model.bin: pickled weights"),
        ("{0}", "contains runs, but is not a run.*\n.*/ended\n.*/a"),
        ("{0}/begun", "/begun: this run has no checkpoint: .* Start it again:\n  python -m dtl.train seed=5"),
        (
            "{0}/ended",
            "/ended: this run has no checkpoint: it finished at step 13, and its checkpoints were deleted since",
        ),
        ("{0}/nothing", "neither a run .* nor a model directory"),
        ("", "contains runs|neither a run"),
        ("{0}/a\0b", "no such folder"),
        ("{0}/" + "a" * 5000, "cannot be read"),
    ],
)
def test_a_miss_says_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    run(tmp_path, "a", 5, 7)
    for name in ("empty", "nothing", "pickles", "begun", "ended"):
        (tmp_path / name).mkdir()
    (tmp_path / "begun/run.json").write_text('{"rerun": "python -m dtl.train seed=5"}')
    (tmp_path / "ended/run.json").write_text('{"rerun": "python -m dtl.train seed=5"}')
    (tmp_path / "ended/checkpoints").mkdir()
    write_result(tmp_path / "ended", "finished", 1.25, 13, "h")
    for name in ("model.pt", "pairs.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "pickles/pytorch_model.bin").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(spec.replace("{0}", str(tmp_path)), Path("empty"))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6
