"""A sweep that an earlier version began, without keys that the config has today: it goes on as the same sweep."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from composing import composed as composed_slowly
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dtl.config import RunConfig, to_dict, to_yaml
from dtl.run_dir.provenance import config_hash
from dtl.run_dir.sweep_records import SweepFolder, SweepRecord, Trial
from dtl.sweeps.config import LauncherConfig
from dtl.sweeps.grid import Composer, as_before, compose_all, create_trials
from dtl.sweeps.process import TrialProcess
from dtl.train import COMMAND

composed = cache(composed_slowly)
KEY = "model.ffn_multiple_of"
WANTED = [["seed=2"], ["seed=3"], ["seed=5"]]


def yaml_before(config: RunConfig) -> str:
    values = to_dict(config)
    del values["model"]["ffn_multiple_of"]
    return OmegaConf.to_yaml(OmegaConf.create(values))


@pytest.fixture(autouse=True)
def typed_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtl.sweeps.grid.typed_run", lambda config: config)


def composer(sweep: SweepFolder) -> Composer:
    loader = SimpleNamespace(load_sweep_config=lambda _, overrides: composed(*overrides))
    return Composer(SimpleNamespace(config_loader=loader), OmegaConf.create(), COMMAND, sweep)  # pyright: ignore


def session(sweep: SweepFolder, wanted: list[list[str]] = WANTED) -> list[Trial]:
    """What a launch does before it runs trials."""
    record = sweep.read() or SweepRecord(["seed=2,3,5"], started="2026-01-02T03:04:05+00:00")
    composing = composer(sweep)
    record.extra |= composing.recorded()
    sweep.write(record)
    combinations = compose_all(wanted, composing)
    assert not any(combination.refused for combination in combinations), combinations
    return create_trials(sweep, combinations)


def begun_before(folder: Path) -> SweepFolder:
    """Trial 0 was interrupted and has its config, the others never began."""
    sweep = SweepFolder(folder)
    for number, overrides in enumerate(WANTED):
        written = yaml_before(composed(*overrides))
        trial = Trial(number, overrides, config_hash(written), state="waiting" if number else "interrupted")
        sweep.keep(trial)
        if not number:
            (folder / "0" / "config.yaml").write_text(written)
    sweep.write(SweepRecord(["seed=2,3,5"], started="2026-01-02T03:04:05+00:00"))
    return sweep


def test_its_trials_are_known_and_those_to_come_are_alike(tmp_path: Path) -> None:
    sweep = begun_before(tmp_path)
    before = {trial.number: trial.hash for trial in sweep.trials()}
    trials = session(sweep)
    assert {trial.number: trial.hash for trial in trials} == before
    assert [trial.pinned for trial in trials] == [[f"{KEY}=16"]] * 3
    assert composed("seed=3", *trials[1].pinned).model.resolved_ffn_dim == 688
    assert composed("seed=3").model.resolved_ffn_dim == 704


def test_so_they_are_after_a_resume_has_written_the_key(tmp_path: Path) -> None:
    """Also those that a search proposes later."""
    sweep = begun_before(tmp_path)
    first = session(sweep)
    (tmp_path / "0" / "config.yaml").write_text(to_yaml(composed("seed=2", f"{KEY}=16")))
    assert session(sweep) == first == sweep.trials()
    [new] = session(sweep, [["seed=7"]])
    assert (new.number, new.pinned) == (3, [f"{KEY}=16"])


def test_a_value_that_is_given_is_not_replaced(tmp_path: Path) -> None:
    sweep = begun_before(tmp_path)
    [known, new] = session(sweep, [["seed=2"], ["seed=2", f"{KEY}=128"]])
    assert (known.number, new.number) == (0, 3) and (known.pinned, new.pinned) == ([f"{KEY}=16"], [])


def test_a_sweep_of_today_pins_nothing(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    trials = session(sweep)
    (tmp_path / "0" / "config.yaml").write_text(to_yaml(composed("seed=2")))
    assert [trial.pinned for trial in trials] == [[]] * 3 and session(sweep) == trials
    assert trials[0].hash == config_hash(to_yaml(composed("seed=2"))) and composer(sweep).recorded() == {}


@pytest.mark.parametrize("value", [None, True, "a b", 0.5, [], {}])
def test_any_default_is_written_as_hydra_reads_it(value: Any) -> None:
    values, [word] = as_before({"model.key": value}, {"model": {"key": 3, "other": 1}, "seed": 1})
    assert values == {"model": {"other": 1}, "seed": 1}
    assert OverridesParser.create().parse_override(word).value() == value


def test_a_trial_is_started_with_what_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("dtl.sweeps.process.subprocess.Popen", lambda words, **_: started.append(words))
    trial = Trial(0, ["seed=2"], "h", pinned=[f"{KEY}=16"])
    TrialProcess(SweepFolder(tmp_path), trial, LauncherConfig(), ["--config-dir=/c"])
    assert started[0][3:6] == ["--config-dir=/c", "seed=2", f"{KEY}=16"]
