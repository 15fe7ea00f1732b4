"""Settings of a search, hydra/sweeper=dtl_optuna. Imports no torch and no optuna."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtl.errors import ConfigError, did_you_mean
from dtl.sweeps.config import SweepConfig

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
        for key, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            value = getattr(self, key)
            if value not in allowed:
                hint = did_you_mean(value, allowed)
                raise ConfigError(f"hydra.sweeper.{key}={value}: one of {', '.join(allowed)}.{hint}")
        least = {"n_trials": 1, "seed": 0, "startup_trials": 0, "warmup": 0, "min_resource": 1, "reduction_factor": 2}
        for key, lowest in least.items():
            if getattr(self, key) < lowest:
                raise ConfigError(f"hydra.sweeper.{key}={getattr(self, key)}: must be at least {lowest}.")
        if self.hours is not None and not self.hours > 0:
            raise ConfigError(f"hydra.sweeper.hours={self.hours}: must be above 0, or null.")


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
