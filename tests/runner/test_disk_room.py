"""The warning before a run whose checkpoints the disk will not hold: it knows what they take, and only warns."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_runs import go_on, start, tiny_config

import dtl.runner.run
import dtl.runner.screens
from dtl.checkpoints import upkeep as store
from dtl.checkpoints.listing import best_checkpoint, list_checkpoints
from dtl.checkpoints.upkeep import storage_error
from dtl.errors import ConfigError
from dtl.housekeeping.disk_runs import freed_by
from dtl.runner.build import how_to_make_room
from dtl.runner.screens import checkpoint_bytes, disk_warning
from dtl.training.config import OptimizerConfig


def free_bytes(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=n_bytes))


@pytest.fixture
def foretold(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of a checkpoint that the runs of this test have foretold."""
    sizes: list[int] = []

    def measure(*arguments, **more) -> int:
        sizes.append(checkpoint_bytes(*arguments, **more))
        return sizes[-1]

    monkeypatch.setattr(dtl.runner.screens, "checkpoint_bytes", measure)
    return sizes


@pytest.mark.parametrize(("name", "ema_decay"), [("adamw", None), ("muon", None), ("adamw", 0.9)])
def test_a_checkpoint_takes_what_was_foretold(name, ema_decay, pairs, tmp_path, foretold):
    config = replace(tiny_config(pairs, total_steps=4, ema_decay=ema_decay), optimizer=OptimizerConfig(name=name))
    config = replace(config, model=replace(config.model, dim=64, ffn_dim=128))
    start(config, tmp_path / "run")
    best = best_checkpoint(tmp_path / "run")
    assert best is not None
    tensors = sum(file.stat().st_size for file in best.path.glob("*.safetensors"))
    assert foretold[0] == pytest.approx(tensors, rel=0.03)  # the names in the files
    go_on(replace(config, trainer=replace(config.trainer, total_steps=6)), tmp_path / "run")
    assert foretold[1] == pytest.approx(foretold[0], rel=0.01), "counted, when the state is there"


@pytest.mark.quick_cases(1)
@pytest.mark.fault("disk-foreseen")
@pytest.mark.parametrize("hard_links", [True, False])
def test_never_more_lies_on_the_disk_than_was_foretold(hard_links, pairs, tmp_path, monkeypatch):
    most, publish = [0], store.publish_directory

    def look_then_publish(temporary: Path, final: Path) -> None:
        most[0] = max(most[0], freed_by([tmp_path / "run" / "checkpoints"]))
        publish(temporary, final)

    for module in ("dtl.checkpoints.save", "dtl.checkpoints.upkeep"):
        monkeypatch.setattr(f"{module}.publish_directory", look_then_publish)
    if not hard_links:
        monkeypatch.setattr(store, "_link_or_copy", shutil.copyfile)
    start(tiny_config(pairs, keep=2, total_steps=11, save_every_steps=1), tmp_path / "run")
    one = sum(file.stat().st_size for file in list_checkpoints(tmp_path / "run")[0].path.iterdir())
    assert 3 * one < most[0] <= (2 + 3) * one * 1.02


@pytest.mark.fault("disk-foreseen")
def test_a_run_that_the_disk_will_not_hold_is_warned_and_goes_on(pairs, tmp_path, monkeypatch, capsys):
    free_bytes(monkeypatch, 200_003)
    monkeypatch.chdir(tmp_path)
    start(tiny_config(pairs, total_steps=2), tmp_path / "run")
    said = capsys.readouterr().out
    assert "the disk may not hold this run's checkpoints" in said and "free 200.0 kB" in said
    assert "trainer.keep=2" in said and "python -m dtl.runs delete=checkpoints" in said and "Finished" in said


@pytest.mark.fault("disk-foreseen")
@pytest.mark.parametrize(("n_bytes", "reads_data"), [(1009, False), (90_001, True)])
def test_a_run_of_which_not_one_checkpoint_fits_is_rejected(n_bytes, reads_data, pairs, tmp_path, monkeypatch):
    """Before the data is read where the blocks alone do not fit; nothing of it is left in its folder."""
    free_bytes(monkeypatch, n_bytes)
    read = []
    build = dtl.runner.run.build_run
    monkeypatch.setattr(dtl.runner.run, "build_run", lambda *given: read.append(1) or build(*given))
    with pytest.raises(
        ConfigError, match=r"model.dim=16 model.n_layers=2: one checkpoint.* needs \d+ kB.*free. Make"
    ) as error:
        start(tiny_config(pairs, total_steps=2), tmp_path / "run")
    assert bool(read) == reads_data and "hydra.run.dir=FOLDER" in str(error.value)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock"}


def test_with_room_nothing_is_said(pairs, tmp_path, capsys):
    start(tiny_config(pairs, total_steps=2), tmp_path / "run")
    assert "disk" not in capsys.readouterr().out


def test_what_is_there_already_counts(tmp_path, monkeypatch):
    free_bytes(monkeypatch, 500)
    assert disk_warning(tmp_path, keep=2, checkpoint_bytes=100) is None
    assert disk_warning(tmp_path, keep=2, checkpoint_bytes=101) is not None
    folder = tmp_path / "checkpoints" / "step-00000007"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(5))
    assert disk_warning(tmp_path, keep=2, checkpoint_bytes=101) is None


def test_only_what_frees_the_disk_of_the_run_is_advised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "small" / "r"
    run_dir.mkdir(parents=True)
    assert how_to_make_room(run_dir) == "python -m dtl.runs delete=checkpoints"
    monkeypatch.setattr("dtl.runner.build._disk_of", lambda folder: "small" in folder.parts)
    free_bytes(monkeypatch, 0)
    assert str(disk_warning(run_dir, keep=2, checkpoint_bytes=100)).endswith("Lower trainer.keep= or make room.")
    (tmp_path / "small" / "earlier" / "checkpoints").mkdir(parents=True)
    assert how_to_make_room(run_dir) == "python -m dtl.runs outputs=small delete=checkpoints"
    for error, remedy in (
        (OSError(errno.ENOSPC, "full"), "Free disk space (trainer.keep is the number of checkpoints kept)."),
        (OSError(errno.EFBIG, "large"), "Raise the limit (ulimit -f), or use a file system that takes larger files."),
        (OSError(errno.EACCES, "denied"), "Fix the permissions of the folder, or its disk."),
    ):
        assert str(storage_error(error, run_dir / "checkpoints" / "best", 0)).endswith(f"\n{remedy}")


def test_a_run_says_in_its_record_where_it_will_end(pairs, tmp_path):
    start(tiny_config(pairs, total_steps=None, max_epochs=2), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["last_step"] == 10
