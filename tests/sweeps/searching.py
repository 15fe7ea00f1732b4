"""A sweep without processes: trials that write losses by a formula, at the pace of a test."""

import json
import math
from datetime import datetime, timedelta
from pathlib import Path

from dtl.base.json_files import sealed
from dtl.run_dir.provenance import RESULT
from dtl.run_dir.sweep_records import SweepFolder, Trial
from dtl.sweeps.config import SearchConfig
from dtl.sweeps.grid import compose_all, create_trials
from dtl.sweeps.pool import Budget
from dtl.sweeps.search import Search
from dtl.sweeps.search_space import parse_space
from dtl.sweeps.search_study import Study
from dtl.tracking.metrics import METRICS

SPACE = ["fixed=1", "lr=tag(log,interval(1e-4,1))", "model=choice(small,medium)"]
EVALUATIONS = 5
BEGIN = datetime.fromisoformat("2026-11-23T01:00:00+00:00")


class Killed(BaseException):
    """SIGKILL of the whole sweep."""


class Overrides:
    """Stands for Hydra's composing: rejects the overrides that `refused` names."""

    def __init__(self, refused=lambda overrides: False):
        self.refused = refused

    def compose(self, overrides):
        if self.refused(overrides):
            raise ValueError("no such key")
        return " ".join(sorted(overrides)), []

    def recorded(self):
        return {}

    def explain(self, error, overrides):
        return str(error)


def loss_of(overrides: list[str], evaluation: int) -> float:
    """Falls from evaluation to evaluation; best at a rate of 0.01 and the larger model."""
    given = dict(override.split("=", 1) for override in overrides)
    distance = abs(math.log10(float(given.get("lr", 1e-2))) + 2)
    return 1 + distance + 0.1 * (given.get("model") == "small") + 2 / evaluation


class Stage:
    """Plays a search in `folder`, one evaluation per running trial at a time; a trial takes `seconds`."""

    def __init__(self, folder: Path, space=SPACE, composer=None, curve=loss_of, outcome=None, seconds=60.0, **settings):
        self.sweep, self.curve, self.seconds = SweepFolder(folder), curve, seconds
        self.settings = SearchConfig(**{"n_trials": 11, "pruner": "none", **settings})
        self.settings.validate()
        self.space = parse_space(space)
        self.composer = composer or Overrides()
        self.outcome = outcome or (lambda trial: ("finished", ""))
        self.ticks, self.time, self.used = 0, 0.0, 0.0
        self.started: list[int] = []
        self.told: list[Trial] = []
        self.looks_at_every = 1  # evaluations between two looks

    def open(self, **more) -> Search:
        self.folder.mkdir(exist_ok=True)
        self.study = Study(self.folder, self.settings, self.space)
        self.budget = Budget(self.settings.hours, self.used, self.sweep.trials(), clock=lambda: self.time)
        create = lambda overrides: create_trials(self.sweep, compose_all([overrides], self.composer))[0]  # noqa: E731
        self.search = Search(self.sweep, self.study, self.settings, self.budget, create, self.told.append, **more)
        return self.search

    @property
    def folder(self) -> Path:
        return self.sweep.path

    def play(self, source=None, n_jobs: int = 1, ticks: float = math.inf) -> None:
        """As `run_trials` does. Raises Killed at the tick `ticks`."""
        source = source or self.open()
        running: list[Trial] = []
        while True:
            while len(running) < n_jobs and (trial := source.next(len(running))) is not None:
                self._start(trial)
                running.append(trial)
            if not running:
                return
            for trial in list(running):
                self.ticks += 1
                if self.ticks >= ticks:
                    raise Killed
                if self._advance(trial, source):
                    running.remove(trial)
                    source.ended(trial)

    def _start(self, trial: Trial) -> None:
        self.started.append(trial.number)
        if self.evaluations(trial) >= EVALUATIONS:  # starts from scratch
            (self.sweep.trial_folder(trial.number) / METRICS).unlink()
        trial.state, trial.attempts = "running", trial.attempts + 1
        trial.started = self._stamp()
        self.sweep.keep(trial)

    def _advance(self, trial: Trial, source) -> bool:
        """Write one more evaluation; return True if the trial has ended."""
        for _ in range(self.looks_at_every):
            n = self.evaluations(trial) + 1
            self.time += self.seconds / EVALUATIONS
            write_rows(self.sweep.trial_folder(trial.number), [n], lambda n: self.curve(trial.overrides, n))
            if n == EVALUATIONS:
                trial.state, trial.reason = self.outcome(trial)
                well = trial.state in ("finished", "stopped")
                trial.value = self.curve(trial.overrides, n) if well else None
                return self._ended(trial)
        if why := source.look(trial):
            trial.state, trial.reason, trial.value = "pruned", why, self.curve(trial.overrides, n)
            return self._ended(trial)
        return False

    def _ended(self, trial: Trial) -> bool:
        trial.ended = self._stamp()
        result = {"state": trial.state, "value": trial.value}
        (self.sweep.trial_folder(trial.number) / RESULT).write_text(json.dumps(sealed(result)))
        self.sweep.keep(trial)
        return True

    def _stamp(self) -> str:
        return (BEGIN + timedelta(seconds=self.time)).isoformat(timespec="seconds")

    def evaluations(self, trial: Trial) -> int:
        file = self.sweep.trial_folder(trial.number) / METRICS
        return file.read_text().count("val/loss") if file.exists() else 0

    def table(self) -> list[tuple]:
        """Return the trials as the final table shows them."""
        return [(t.number, t.overrides, t.state, t.value, t.reason) for t in self.sweep.trials()]


def write_rows(folder: Path, evaluations, loss) -> None:
    """Two steps of training and one evaluation each."""
    folder.mkdir(exist_ok=True)
    with (folder / METRICS).open("a") as file:
        for n in evaluations:
            file.writelines(json.dumps({"step": step, "train/loss": 3.0}) + "\n" for step in (2 * n - 1, 2 * n))
            file.write(json.dumps({"step": 2 * n, "val/loss": loss(n)}) + "\n")
