"""A search, run or continued in its folder: its trials, then the winner once more with fresh seeds."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig

from dtl.checkpoints.store import LOCK
from dtl.commandline.cli import JobFailedError, take_back
from dtl.commandline.command import Command
from dtl.errors import InterruptedRun
from dtl.run_dir.state import read_run_state
from dtl.run_dir.sweep_records import SWEEP, WELL, SweepFolder, SweepRecord, Trial, as_typed, now
from dtl.sweeps.config import LauncherConfig, SearchConfig
from dtl.sweeps.grid import Composer, NoTrialError, combined, for_a_trial, lay_out
from dtl.sweeps.launch import held
from dtl.sweeps.pool import Budget, ListSource, run_trials
from dtl.sweeps.screen import SearchScreen
from dtl.sweeps.search import Search
from dtl.sweeps.search_space import Space, parse_space
from dtl.sweeps.search_study import JOURNAL, Study

# --- the winner ---------------------------------------------------------------------------------------------------
# The best trial of a search, and what it is worth: its runs with fresh seeds.


@dataclass
class Winner:
    """The best trial and the losses of its confirmations. The search chose it for its loss: that one is too good on
    average, the others are not."""

    number: int
    overrides: list[str]
    value: float  # best validation loss of the search's own run
    asked: int = 0  # runs with fresh seeds that were to be made
    values: list[float] = field(default_factory=list)  # best validation losses of those that went through

    @property
    def mean(self) -> float | None:
        """Of the runs with fresh seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def standard_deviation(self) -> float | None:
        """Of one run with a fresh seed (n - 1 degrees of freedom)."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def record(self) -> dict[str, Any]:
        """As it is kept in sweep.json."""
        return {**asdict(self), "mean": self.mean, "standard_deviation": self.standard_deviation}

    def lines(self, searched: Iterable[str], n_tried: int) -> list[str]:
        """What is announced."""
        keys = set(searched)
        own = [override for override in self.overrides if override.partition("=")[0] in keys]
        best = f"best of the search: trial {self.number}  {' '.join(own)}  validation loss {self.value:.4f}"
        if not self.asked:
            return [f"{best}, not confirmed", f"  the best of {n_tried}, by one seed: sweep.confirm=5 runs it again"]
        if self.mean is None:
            return [f"{best}, not confirmed", f"  none of its {self.asked} runs with fresh seeds went through"]
        n = len(self.values)
        spread = "" if self.standard_deviation is None else f" ± {self.standard_deviation:.4f} (standard deviation)"
        short = "" if n == self.asked else f" of {self.asked}"
        return [
            best,
            f"  with fresh seeds: validation loss {self.mean:.4f}{spread}, n={n}{short}; this is the figure to quote, "
            f"the search's own {self.value:.4f} was chosen as the lowest of {n_tried}",
        ]


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The search's own trial with the lowest loss, of those that went through; of equals the first."""
    through = [trial for trial in trials if trial.role == "trial" and trial.state in WELL and trial.value is not None]
    return min(through, key=lambda trial: (trial.value, trial.number), default=None)


def with_seeds(overrides: Sequence[str], seeds: Iterable[int]) -> list[list[str]]:
    """The same overrides, each time with another seed."""
    others = [override for override in overrides if override.lstrip("+").partition("=")[0] != "seed"]
    return [[*others, f"seed={seed}"] for seed in seeds]


# --- the launch ---------------------------------------------------------------------------------------------------


def launch_search(
    arguments: Sequence[str],
    settings: SearchConfig,
    launcher: LauncherConfig,
    context: HydraContext,
    config: DictConfig,
    command: Command,
) -> float:
    """Search what the overrides `arguments` leave open; the winner's validation loss.

    Raises ConfigError for what cannot be searched, before a folder is made; InterruptedRun after Ctrl-C;
    JobFailedError when no trial went through, or no confirmation; NoTrialError when every trial of a new search was
    refused: its folder is gone then.
    """
    space = parse_space(for_a_trial(arguments), context.config_loader)
    sweep = SweepFolder(Path(config.hydra.sweep.dir))
    try:
        with held(sweep.path):
            return _Launch(sweep, settings, launcher, config, Composer(context, config, command), space).run()
    except NoTrialError:
        take_back(sweep.path, (SWEEP, LOCK, JOURNAL, *(str(trial.number) for trial in sweep.trials())))
        raise


class _Launch:
    """One session of a search."""

    def __init__(
        self,
        sweep: SweepFolder,
        settings: SearchConfig,
        launcher: LauncherConfig,
        config: DictConfig,
        composer: Composer,
        space: Space,
    ) -> None:
        self.sweep, self.settings, self.launcher, self.composer = sweep, settings, launcher, composer
        self.space, self.asked_of_sweep = space, config.sweep
        self.beside = for_a_trial(config.hydra.overrides.hydra)
        self.record = sweep.read() or SweepRecord(as_typed(config), kind="search", started=now())
        self.record.state, self.record.sessions = "running", self.record.sessions + 1
        self.record.planned = settings.n_trials + config.sweep.confirm
        self.record.extra |= {"n_trials": settings.n_trials, "hours": settings.hours}
        self.budget = Budget(settings.hours, self.record.extra.get("seconds", 0.0), sweep.trials())
        self.screen = SearchScreen(sweep, space)

    def run(self) -> float:
        self._keep()
        with self.screen:
            try:
                search = self._search()
                self._stop_if_all_are_refused(list(search.tried.values()))
                self.record.extra["left"] = search.left()
                winner = self._confirmed()
            except (InterruptedRun, KeyboardInterrupt):
                self._keep("interrupted")
                self.screen.interrupted(self.sweep.trials())
                raise
            if winner is not None:
                self.record.extra["winner"] = winner.record()
            self._keep("finished")
            self.screen.end(self.sweep.trials())
            if search.why_ended:
                self.screen.say(f"the search ended early: {search.why_ended}", "yellow")
            return self._announced(winner, len(search.tried))

    def _search(self) -> Search:
        study = Study(self.sweep.path, self.settings, self.space)
        search = Search(
            self.sweep,
            study,
            self.settings,
            self.budget,
            lay=lambda overrides: self._laid_out([overrides])[0],
            tell=self._ended,
            retry_failed=self.asked_of_sweep.retry_failed,
            rounds_after=math.ceil(self.asked_of_sweep.confirm / self.launcher.n_jobs),
        )
        tried = list(search.tried.values())
        self.screen.begin_search(self.settings, tried, search.left(), self.record.sessions > 1)
        run_trials(self.sweep, search, self.launcher, self.beside, self._started, self.screen.idle)
        return search

    def _stop_if_all_are_refused(self, tried: list[Trial]) -> None:
        if self.record.sessions == 1 and tried and all(trial.state == "refused" for trial in tried):
            raise NoTrialError((trial.overrides, trial.reason) for trial in tried)

    def _laid_out(self, wanted: Sequence[Sequence[str]]) -> list[Trial]:
        return lay_out(self.sweep, combined(wanted, self.composer))

    def _confirmed(self) -> Winner | None:
        """The winner with its runs of fresh seeds, those of earlier sessions included."""
        best = best_of(self.sweep.trials())
        if best is None or best.value is None:
            return None
        winner = Winner(best.number, best.overrides, best.value, asked=self.asked_of_sweep.confirm)
        if not winner.asked:
            return winner
        seed = read_run_state(self.sweep.trial_folder(best.number)).seed or 0
        wanted = with_seeds(best.overrides, range(seed + 1, seed + 1 + winner.asked))
        runs = self._laid_out(wanted)
        for run in runs:
            run.role = "confirm"
            self.sweep.keep(run)
        left = [run for run in runs if run.is_left(self.asked_of_sweep.retry_failed)]
        if left:
            runs_left = "one run" if len(left) == 1 else f"{len(left)} runs"
            self.screen.say(f"trial {best.number} is the best; {runs_left} of it with fresh seeds", "bold")
        source = ListSource(left, self._ended, self.budget)
        run_trials(self.sweep, source, self.launcher, self.beside, self._started, self.screen.idle)
        winner.values = [run.value for run in runs if run.state in WELL and run.value is not None]
        return winner

    def _announced(self, winner: Winner | None, n_tried: int) -> float:
        if winner is None:
            raise JobFailedError(f"none of its {n_tried} trials went through: there is no winner")
        first, *rest = winner.lines(self.space.searched, n_tried)
        self.screen.say(first, "bold")
        for line in rest:
            self.screen.say(line)
        if winner.asked and winner.mean is None:
            raise JobFailedError("its winner could not be confirmed")
        return winner.value if winner.mean is None else winner.mean

    def _started(self, trial: Trial) -> None:
        self._keep()
        self.screen.started(trial)

    def _ended(self, trial: Trial) -> None:
        self._keep()
        self.screen.ended(trial)

    def _keep(self, state: str | None = None) -> None:
        self.record.state = state or self.record.state
        self.record.extra["seconds"] = self.budget.used
        self.sweep.write(self.record)
