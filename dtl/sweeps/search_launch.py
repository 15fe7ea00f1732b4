"""The launch of a search: runs or resumes its trials in the sweep's folder, then its winner with fresh seeds."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig

from dtl.base.display import Display
from dtl.base.units import number_of
from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.upkeep import LOCK
from dtl.commandline.cli import JobFailedError, remove_empty_run_dir
from dtl.commandline.command import Command
from dtl.commandline.compose import typed_run
from dtl.commandline.overrides import as_shown
from dtl.data.collect import has_validation, open_sources
from dtl.data.tokenizers.prompt import read_prompt
from dtl.errors import ConfigError, InterruptedRun
from dtl.run_dir.provenance import composition_flags
from dtl.run_dir.state import read_run_state
from dtl.run_dir.sweep_records import SUCCEEDED, SWEEP, SweepFolder, SweepRecord, Trial, as_typed, now
from dtl.run_dir.trial import NO_LOSS_TO_SEARCH
from dtl.sweeps.config import LauncherConfig, SearchConfig
from dtl.sweeps.grid import Composer, NoTrialError, compose_all, create_trials, trial_overrides
from dtl.sweeps.launch import locked_sweep
from dtl.sweeps.live import SearchScreen
from dtl.sweeps.pool import Budget, ListSource, run_trials
from dtl.sweeps.search import Search
from dtl.sweeps.search_space import Space, parse_space
from dtl.sweeps.search_study import JOURNAL, Study

# --- the winner ---------------------------------------------------------------------------------------------------


@dataclass
class Winner:
    """Best trial of a search and the losses of its runs with fresh seeds. The search chose the trial for its own loss,
    which is therefore too low on average; the losses of the confirming runs are not."""

    number: int
    overrides: list[str]
    value: float  # best validation loss of the search's own run
    asked: int = 0  # requested runs with fresh seeds
    values: list[float] = field(default_factory=list)  # best validation losses of those that finished

    @property
    def mean(self) -> float | None:
        """Mean loss of the runs with fresh seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def standard_deviation(self) -> float | None:
        """Sample standard deviation of the runs with fresh seeds (n - 1 degrees of freedom)."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def record(self) -> dict[str, Any]:
        """Return the object that sweep.json stores."""
        return {**asdict(self), "mean": self.mean, "standard_deviation": self.standard_deviation}

    def lines(self, searched: Iterable[str], n_tried: int) -> list[str]:
        """Return the lines that announce the winner, with the keys that were searched."""
        keys = set(searched)
        own = [as_shown(override) for override in self.overrides if override.partition("=")[0] in keys]
        best = f"best of the search: trial {self.number}  {' '.join(own)}  validation loss {self.value:.4f}"
        if not self.asked:
            return [f"{best}, not confirmed", f"  the best of {n_tried}, with one seed: sweep.confirm=5 runs it again"]
        if self.mean is None:
            return [
                f"{best}, not confirmed",
                f"  none of its {number_of('runs', self.asked)} with fresh seeds finished",
            ]
        n = len(self.values)
        spread = "" if self.standard_deviation is None else f" ± {self.standard_deviation:.4f} (standard deviation)"
        short = "" if n == self.asked else f" of {self.asked}"
        return [
            best,
            f"  with fresh seeds: validation loss {self.mean:.4f}{spread}, n={n}{short}; this is the result to quote, "
            f"the search's own {self.value:.4f} was chosen as the lowest of {n_tried}",
        ]


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """Return the search's own finished trial with the lowest loss; of equals the first."""
    own = (trial for trial in trials if trial.role == "trial" and trial.state in SUCCEEDED)
    finished = [trial for trial in own if trial.value is not None]
    return min(finished, key=lambda trial: (trial.value, trial.number), default=None)


def with_seeds(overrides: Sequence[str], seeds: Iterable[int]) -> list[list[str]]:
    """Return the overrides once per seed."""
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
    """Search the space that the overrides `arguments` span; return the winner's validation loss.

    Raises ConfigError for a space that cannot be searched, before a folder is created; InterruptedRun after Ctrl-C;
    JobFailedError if no trial or no confirming run finished; NoTrialError if every trial of a new search is rejected
    (its folder is removed).
    """
    space = parse_space(trial_overrides(arguments), context.config_loader)
    _raise_if_nothing_is_held_out(config, space)
    sweep = SweepFolder(Path(config.hydra.sweep.dir))
    try:
        with locked_sweep(sweep.path):
            composer = Composer(context, config, command, sweep)
            return _Launch(sweep, settings, launcher, config, composer, space).run()
    except NoTrialError:
        remove_empty_run_dir(sweep.path, (SWEEP, LOCK, JOURNAL, *(str(trial.number) for trial in sweep.trials())))
        raise


def _raise_if_nothing_is_held_out(config: DictConfig, space: Space) -> None:
    """Raise ConfigError for data without a validation split, DataError for data that cannot be read.

    Where each trial has its own fraction or recipe, each is rejected for itself.
    """
    if space.searched.keys() & {"data.validation_fraction", "experiment"} or config.data.validation_fraction:
        return
    try:
        run = typed_run(config)
    except Exception:  # as in `compose_all`, which then rejects every trial, with the reason
        return
    init_from = find_checkpoint(run.init, Path("outputs")) if run.init is not None else None
    data, plans = open_sources(run.data, run.seed, init_from and read_prompt(init_from))
    with Display() as display:
        if not has_validation(data, plans, run.seq_len, run.seed, display.log):
            raise ConfigError(NO_LOSS_TO_SEARCH)


class _Launch:
    """One session of a search: its trials, the confirmation of the winner, and the record in sweep.json."""

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
        self.space, self.sweep_settings = space, config.sweep
        self.shared_arguments = [*composition_flags(config.hydra), *trial_overrides(config.hydra.overrides.hydra)]
        self.record = sweep.read() or SweepRecord(as_typed(config), kind="search", started=now())
        self.record.state, self.record.sessions = "running", self.record.sessions + 1
        self.record.planned = settings.n_trials + config.sweep.confirm
        self.record.extra |= {"n_trials": settings.n_trials, "hours": settings.hours, **composer.recorded()}
        self.budget = Budget(settings.hours, self.record.extra.get("seconds", 0.0), sweep.trials())
        self.screen = SearchScreen(sweep, space)

    def run(self) -> float:
        self._keep()
        with self.screen:
            try:
                search = self._search()
                self._raise_if_all_rejected(list(search.tried.values()))
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
                self.screen.log(f"the search ended early: {search.why_ended}", "yellow")
            return self._announced(winner, len(search.tried))

    def _search(self) -> Search:
        study = Study(self.sweep.path, self.settings, self.space)
        search = Search(
            self.sweep,
            study,
            self.settings,
            self.budget,
            create_trial=lambda overrides: self._create_trials([overrides])[0],
            on_end=self._ended,
            retry_failed=self.sweep_settings.retry_failed,
            rounds_after=math.ceil(self.sweep_settings.confirm / self.launcher.n_jobs),
        )
        tried = list(search.tried.values())
        self.screen.begin_search(self.settings, tried, search.left(), self.record.sessions > 1)
        run_trials(self.sweep, search, self.launcher, self.shared_arguments, self._started, self.screen.idle)
        return search

    def _raise_if_all_rejected(self, tried: list[Trial]) -> None:
        if self.record.sessions == 1 and tried and all(trial.state == "refused" for trial in tried):
            raise NoTrialError((trial.overrides, trial.reason) for trial in tried)

    def _create_trials(self, wanted: Sequence[Sequence[str]]) -> list[Trial]:
        return create_trials(self.sweep, compose_all(wanted, self.composer))

    def _confirmed(self) -> Winner | None:
        """Run the winner with fresh seeds; return it with all these losses, those of earlier sessions included."""
        best = best_of(self.sweep.trials())
        if best is None or best.value is None:
            return None
        winner = Winner(best.number, best.overrides, best.value, asked=self.sweep_settings.confirm)
        if not winner.asked:
            return winner
        seed = read_run_state(self.sweep.trial_folder(best.number)).seed or 0
        wanted = with_seeds(best.overrides, range(seed + 1, seed + 1 + winner.asked))
        runs = self._create_trials(wanted)
        for run in runs:
            run.role = "confirm"
            self.sweep.keep(run)
        left = [run for run in runs if run.is_pending(self.sweep_settings.retry_failed)]
        if left:
            runs_left = number_of("runs", len(left))
            self.screen.log(f"trial {best.number} is the best; {runs_left} of it with fresh seeds", "bold")
        source = ListSource(left, self._ended, self.budget)
        run_trials(self.sweep, source, self.launcher, self.shared_arguments, self._started, self.screen.idle)
        winner.values = [run.value for run in runs if run.state in SUCCEEDED and run.value is not None]
        return winner

    def _announced(self, winner: Winner | None, n_tried: int) -> float:
        if winner is None:
            raise JobFailedError(f"none of its {number_of('trials', n_tried)} finished: there is no winner")
        first, *rest = winner.lines(self.space.searched, n_tried)
        self.screen.log(first, "bold")
        for line in rest:
            self.screen.log(line)
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
