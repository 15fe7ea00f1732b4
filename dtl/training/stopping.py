"""Criteria that end a run before its last step, by name.

A criterion is a function of what a run has reached. It returns the reason to stop in one line, or None to go on. It
must depend on nothing else: a resumed run then stops where one that was never interrupted stops.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtl.base.units import number_of
from dtl.registry import STOP_CRITERIA
from dtl.training.config import TrainerConfig
from dtl.training.trainer import TrainState

# Active in every run; their own settings switch them off. `trainer.stop_criteria` names additional ones.
ALWAYS_CHECKED = ("hours", "patience")


@dataclass(frozen=True)
class Reached:
    """What a run has reached."""

    state: TrainState
    evaluations: Sequence[Mapping[str, float]]  # rows of metrics.jsonl with `step`, `val/loss`, `val/<metric>`
    config: TrainerConfig

    @property
    def options(self) -> Mapping[str, Any]:
        """Settings of user-defined criteria."""
        return self.config.stop_options


StopCriterion = Callable[[Reached], str | None]


def reason_to_end(run: Reached) -> str | None:
    """Return the reason of the first criterion that ends the run now, else None."""
    for name in (*ALWAYS_CHECKED, *run.config.stop_criteria):
        if reason := STOP_CRITERIA.get(name)(run):
            return reason
    return None


@STOP_CRITERIA.register("hours")
def hours(run: Reached) -> str | None:
    """End after `trainer.hours` of training."""
    limit = run.config.hours
    if limit is None or run.state.seconds < limit * 3600:
        return None
    return f"Stopped by trainer.hours={limit:g}."


@STOP_CRITERIA.register("patience")
def patience(run: Reached) -> str | None:
    """End after `trainer.early_stopping_patience` evaluations without a better validation loss."""
    limit = run.config.early_stopping_patience
    if limit is None or run.state.evaluations_since_best < limit:
        return None
    evaluations = number_of("evaluations", limit)
    return f"Stopped early: {evaluations} without improvement (trainer.early_stopping_patience={limit})."
