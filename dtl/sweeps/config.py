"""Settings of sweeps: how trials are run, and what `-m` does with a sweep that was not finished. Imports no torch."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dtl.base.checks import check_at_least, check_choices, check_positive
from dtl.errors import ConfigError


@dataclass
class SweepConfig:
    """What `python -m dtl.train -m` does around its trials."""

    new: bool = False  # with -m: start another sweep, although one with the same overrides is unfinished
    retry_failed: bool = False  # with -m: run failed trials of the sweep again; they count as done otherwise
    confirm: int = 5  # after a search: runs of the winner with fresh seeds; 0 = none, and no winner is announced

    def validate(self) -> None:
        if self.confirm < 0:
            raise ConfigError(f"sweep.confirm={self.confirm}: a number of runs, at least 0.")


@dataclass
class LauncherConfig:
    """hydra/launcher=dtl_process, the default: each trial in a process of its own, so that it frees its memory."""

    _target_: str = "hydra_plugins.dtl.process_launcher.ProcessLauncher"
    n_jobs: int = 1  # trials at a time
    timeout_minutes: float | None = None  # a trial that takes longer is stopped; null = never
    hang_minutes: float | None = 30.0  # a trial that writes nothing for so long is stopped; null = never

    def validate(self) -> None:
        """Raises ConfigError for what cannot be."""
        check_at_least(self, "hydra.launcher", n_jobs=1)
        check_positive(self, "hydra.launcher", "timeout_minutes", "hang_minutes", rest=", or null")


@dataclass
class StatusConfig:
    """Everything that `python -m dtl.sweep` can be told."""

    status: str = "latest"  # latest | the folder of a sweep
    watch: bool | None = None  # look again until the sweep ends; null = in a terminal
    plugins: list[str] = field(default_factory=list)  # modules that register parts of your own
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Every value can be; whether the folder is there, the command finds out."""


# --- searches -----------------------------------------------------------------------------------------------------
# Settings of a search, hydra/sweeper=dtl_optuna. Imports no torch and no optuna.


SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "asha", "none")


@dataclass
class SearchConfig:
    """hydra/sweeper=dtl_optuna: a search instead of all combinations; what it tries, and for how long."""

    _target_: str = "hydra_plugins.dtl.optuna_sweeper.OptunaSweeper"
    n_trials: int = 30  # configurations in all: a search that goes on runs those that are missing
    hours: float | None = None  # for the whole sweep, all its sessions and the confirmation; null = no limit
    sampler: str = "tpe"  # tpe (learns from the trials so far) | random
    seed: int = 1337  # of what is proposed; the seed of training is `seed`
    pruner: str = "median"  # stops bad trials early, by their validation losses: median | asha | none
    startup_trials: int = 5  # median: finished trials before any is pruned
    warmup: int = 1  # median: evaluations of a trial before it may be pruned
    min_resource: int = 1  # asha: evaluations before a trial may be pruned for the first time
    reduction_factor: int = 2  # asha: one of so many goes on at each rung; rungs lie so many times further apart

    def validate(self) -> None:
        """Raises ConfigError, naming key, value, rule and remedy, for values that cannot be."""
        check_choices(self, "hydra.sweeper", hint=True, sampler=SAMPLERS, pruner=PRUNERS)
        check_at_least(self, "hydra.sweeper", n_trials=1, seed=0, startup_trials=0, warmup=0, min_resource=1)
        check_at_least(self, "hydra.sweeper", reduction_factor=2)
        check_positive(self, "hydra.sweeper", "hours", rest=", or null")


def require_optuna() -> None:
    """Raises ConfigError, with the line that installs it, where Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "hydra/sweeper=dtl_optuna: needs Optuna, which is not installed. For it: pip install 'dtl[sweep]', in a "
            "checkout pip install -e '.[sweep]'. A grid needs nothing more: leave hydra/sweeper out."
        )


def asks_for_more(arguments: Sequence[str], before: Mapping[str, Any]) -> bool:
    """Whether a command line asks a search that is finished for more: more trials, more hours where those ended it,
    more runs of its winner. `before` is what sweep.json keeps of it (`extra`)."""
    given = {key.lstrip("+"): value for key, _, value in (argument.partition("=") for argument in arguments)}

    def asked(key: str, default: float) -> float:
        try:
            return float(given.get(key, default))
        except ValueError:  # null; what is no number at all is refused later
            return math.inf

    winner = before.get("winner") or {}
    return (
        asked("hydra.sweeper.n_trials", SearchConfig.n_trials) > before.get("n_trials", 0)
        or (before.get("left", 0) > 0 and asked("hydra.sweeper.hours", math.inf) > (before.get("hours") or math.inf))
        or asked("sweep.confirm", SweepConfig.confirm) > winner.get("asked", math.inf)
    )
