"""A search from its first trial to its announcement, the trials played: confirmation, kills in it, what is kept."""

import statistics
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dtl.commandline.cli import JobFailedError
from dtl.sweeps import search_launch
from dtl.sweeps.config import LauncherConfig

sys.path.insert(0, str(Path(__file__).parent))
from searching import Killed, Stage, loss_of


def seeded(overrides, evaluation):
    """As `loss_of`, a little different for each seed; other seeds are worse on average, as for any winner."""
    seed = next((int(one.partition("=")[2]) for one in overrides if one.startswith("seed=")), None)
    return loss_of(overrides, evaluation) + (0 if seed is None else 0.01 * (seed % 5))


def launched(monkeypatch, folder, confirm=3, ticks=float("inf"), seed=11, **stage_settings):
    """Run a session; the stage that played it."""
    stage = Stage(folder, curve=seeded, **{"n_trials": 5, **stage_settings})
    folder.mkdir(exist_ok=True)

    def play(sweep, source, launcher, shared_arguments, started, idle):
        assert shared_arguments == ["--config-dir=/my_conf"]  # the search's own trials and the confirming runs
        start = stage._start

        def tell_and_start(trial):
            start(trial)
            (sweep.trial_folder(trial.number) / "config.yaml").write_text(f"seed: {seed}\n")
            started(trial)

        with monkeypatch.context() as patch:
            patch.setattr(stage, "_start", tell_and_start)
            stage.play(source, ticks=ticks)

    monkeypatch.setattr(search_launch, "run_trials", play)
    source = {"provider": "command-line", "path": "/my_conf", "schema": "file"}
    hydra = {
        "overrides": {"hydra": ["hydra/sweeper=dtl_optuna", "hydra.mode=MULTIRUN"], "task": ["lr=..."]},
        "runtime": {"config_sources": [source]},
        "job": {"config_name": "train"},
    }
    config = OmegaConf.create({"sweep": {"confirm": confirm, "retry_failed": False}, "hydra": hydra})
    session = search_launch._Launch(stage.sweep, stage.settings, LauncherConfig(), config, stage.composer, stage.space)
    stage.returned = session.run()
    return stage


def confirmed(stage):
    return [trial for trial in stage.sweep.trials() if trial.role == "confirm"]


def test_the_winner_is_announced_with_the_mean_of_fresh_seeds(tmp_path, monkeypatch, capsys):
    stage = launched(monkeypatch, tmp_path)
    own = [trial for trial in stage.sweep.trials() if trial.role == "trial"]
    best = min(own, key=lambda trial: trial.value)
    runs = confirmed(stage)
    assert [run.overrides for run in runs] == [[*best.overrides, f"seed={seed}"] for seed in (12, 13, 14)]
    values = [run.value for run in runs]
    record = stage.sweep.read()
    assert record.state == "finished" and record.kind == "search" and record.planned == 8
    assert record.arguments == ["--config-dir=/my_conf", "hydra/sweeper=dtl_optuna", "lr=..."]
    assert record.extra["winner"]["values"] == values and stage.returned == statistics.mean(values)
    assert f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" in capsys.readouterr().out

    again = launched(monkeypatch, tmp_path)
    assert again.started == [] and again.returned == stage.returned
    more = launched(monkeypatch, tmp_path, confirm=5)
    assert more.started == [8, 9] and len(confirmed(more)) == 5


def test_without_confirmation_it_says_so(tmp_path, monkeypatch, capsys):
    stage = launched(monkeypatch, tmp_path, confirm=0)
    assert confirmed(stage) == [] and "not confirmed" in capsys.readouterr().out


def test_a_kill_in_the_confirmation_costs_no_run_twice(tmp_path, monkeypatch):
    whole = launched(monkeypatch, tmp_path / "whole")
    for tick in range(24, whole.ticks, 3):
        folder = tmp_path / str(tick)
        with pytest.raises(Killed):
            launched(monkeypatch, folder, ticks=tick)
        launched(monkeypatch, folder)
        on = launched(monkeypatch, folder)
        assert on.table() == whole.table() and on.started == []


def test_no_winner_is_a_failure(tmp_path, monkeypatch):
    with pytest.raises(JobFailedError, match="none of its 5 trials"):
        launched(monkeypatch, tmp_path, outcome=lambda trial: ("failed", "the loss is nan"))


def test_a_winner_that_cannot_be_confirmed_is_a_failure(tmp_path, monkeypatch, capsys):
    def outcome(trial):
        return ("failed", "the loss is nan") if trial.role == "confirm" else ("finished", "")

    with pytest.raises(JobFailedError, match="could not be confirmed"):
        launched(monkeypatch, tmp_path, outcome=outcome)
    assert "none of its 3 runs" in capsys.readouterr().out
