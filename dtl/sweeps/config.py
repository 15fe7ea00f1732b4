"""Settings of sweeps and searches: how trials run, what is searched and for how long. Imports no torch, no optuna."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dtl.base.checks import MANY, check_choices, check_positive, check_range
from dtl.errors import ConfigError


@dataclass
class SweepConfig:
    """Settings of `python -m dtl.train -m` around its trials."""

    new: bool = False  # with -m: start another sweep even if one with the same overrides is unfinished
    retry_failed: bool = False  # with -m: run failed trials of the sweep again; otherwise they count as done
    confirm: int = 5  # after a search: runs of the winner with fresh seeds; 0 = none, and the winner stays unconfirmed

    def validate(self) -> None:
        check_range(self, "sweep", confirm=(0, MANY))


@dataclass
class LauncherConfig:
    """hydra/launcher=dtl_process, the default: each trial runs in its own process, which frees its memory."""

    _target_: str = "hydra_plugins.dtl.process_launcher.ProcessLauncher"
    n_jobs: int = 1  # trials that run at the same time
    timeout_minutes: float | None = None  # a trial that runs longer is stopped; null = never
    hang_minutes: float | None = 30.0  # a trial that writes nothing for this long is stopped; null = never

    def validate(self) -> None:
        """Raises ConfigError for values out of range."""
        check_range(self, "hydra.launcher", n_jobs=(1, 10_000))
        check_positive(self, "hydra.launcher", "timeout_minutes", "hang_minutes", rest=", or null")


@dataclass
class StatusConfig:
    """Settings of `python -m dtl.sweep`."""

    status: str = "latest"  # latest | the folder of a sweep
    watch: bool | None = None  # refresh until the sweep ends; null = only in a terminal
    plugins: list[str] = field(default_factory=list)  # modules that register your own parts
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Accept every value: the command itself checks whether the folder exists."""


# --- searches -----------------------------------------------------------------------------------------------------


SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "asha", "none")


@dataclass
class SearchConfig:
    """hydra/sweeper=dtl_optuna: a search instead of all combinations, its sampler, its pruner and its limits."""

    _target_: str = "hydra_plugins.dtl.optuna_sweeper.OptunaSweeper"
    n_trials: int = 30  # configurations in total: a search that resumes runs the missing ones
    hours: float | None = None  # for all sessions of the sweep and the confirmation; null = no limit
    sampler: str = "tpe"  # tpe (learns from the trials so far) | random
    seed: int = 1337  # of the sampler; the seed of training is `seed`
    pruner: str = "median"  # stops bad trials early by validation loss: median | asha | none
    startup_trials: int = 5  # median: finished trials before any is pruned
    warmup: int = 1  # median: evaluations of a trial before it may be pruned
    min_resource: int = 1  # asha: evaluations before a trial may be pruned for the first time
    reduction_factor: int = 2  # asha: 1 of this many continues at each rung; rungs are this factor apart

    def validate(self) -> None:
        """Raises ConfigError, naming key, value, rule and remedy, for values out of range."""
        check_choices(self, "hydra.sweeper", hint=True, sampler=SAMPLERS, pruner=PRUNERS)
        counts = {"n_trials": (1, MANY), "startup_trials": (0, MANY), "warmup": (0, MANY), "min_resource": (1, MANY)}
        check_range(self, "hydra.sweeper", seed=(0, 2**32 - 1), **counts)
        check_range(self, "hydra.sweeper", reduction_factor=(2, MANY))
        check_positive(self, "hydra.sweeper", "hours", rest=", or null")


def require_optuna() -> None:
    """Raises ConfigError, with the command that installs it, if Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "hydra/sweeper=dtl_optuna: needs Optuna, which is not installed: pip install 'dtl[sweep]', in a "
            "checkout pip install -e '.[sweep]'. A grid does not need it: leave hydra/sweeper out."
        )


def asks_for_more(arguments: Sequence[str], before: Mapping[str, Any]) -> bool:
    """Return True when a command line asks a finished search for more: more trials, more hours if the hours ended it,
    or more runs of its winner. `before` is the `extra` object of its sweep.json."""
    given = {key.lstrip("+"): value for key, _, value in (argument.partition("=") for argument in arguments)}

    def asked(key: str, default: float) -> float:
        try:
            return float(given.get(key, default))
        except ValueError:  # null; other text is rejected when the settings are built
            return math.inf

    winner = before.get("winner") or {}
    return (
        asked("hydra.sweeper.n_trials", SearchConfig.n_trials) > before.get("n_trials", 0)
        or (before.get("left", 0) > 0 and asked("hydra.sweeper.hours", math.inf) > (before.get("hours") or math.inf))
        or asked("sweep.confirm", SweepConfig.confirm) > winner.get("asked", math.inf)
    )
