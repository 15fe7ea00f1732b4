"""Criteria that end a run early: each a pure function of what the run has reached."""

import pytest

from dtl.errors import ConfigError
from dtl.registry import STOP_CRITERIA
from dtl.training.config import TrainerConfig
from dtl.training.stopping import Reached, reason_to_end
from dtl.training.trainer import TrainState


@pytest.fixture(autouse=True)
def target_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A criterion of one's own: the validation loss is low enough."""

    def reached(run: Reached) -> str | None:
        target = run.options["target_loss"]
        below = [row["step"] for row in run.evaluations if row["val/loss"] <= target]
        return f"The loss reached {target:g} at step {below[0]}." if below else None

    monkeypatch.setattr(STOP_CRITERIA, "_parts", dict(STOP_CRITERIA._parts))
    STOP_CRITERIA.register("target_loss")(reached)


def reason(config: TrainerConfig, losses: tuple[float, ...] = (), **state: float) -> str | None:
    config.validate()
    rows = [{"step": 3 * (n + 1), "val/loss": loss} for n, loss in enumerate(losses)]
    return reason_to_end(Reached(TrainState(**state), rows, config))  # type: ignore[arg-type]


def test_hours_and_patience_are_always_checked_unless_they_are_off() -> None:
    limits = TrainerConfig(hours=0.5, early_stopping_patience=3)
    assert reason(limits, seconds=1799.9, evaluations_since_best=2) is None
    assert reason(limits, seconds=1800) == "Stopped by trainer.hours=0.5."
    stopped = "Stopped early: 3 evaluations without improvement (trainer.early_stopping_patience=3)."
    assert reason(limits, evaluations_since_best=3) == stopped
    one = reason(TrainerConfig(early_stopping_patience=1), evaluations_since_best=1)
    assert one == "Stopped early: 1 evaluation without improvement (trainer.early_stopping_patience=1)."
    off = TrainerConfig(hours=None, early_stopping_patience=None)
    assert reason(off, seconds=1e9, evaluations_since_best=1000) is None


def test_a_criterion_of_ones_own_sees_the_evaluations_and_its_options() -> None:
    config = TrainerConfig(stop_criteria=["target_loss"], stop_options={"target_loss": 2.5})
    assert reason(config, ()) is None
    assert reason(config, (3.0, 2.6)) is None
    assert reason(config, (3.0, 2.5, 2.7)) == "The loss reached 2.5 at step 6."


def test_one_that_is_not_named_is_not_checked() -> None:
    assert reason(TrainerConfig(), (0.0,)) is None


def test_options_without_a_criterion_are_rejected_and_not_ignored() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.stop_options=.*: nothing reads them without"):
        TrainerConfig(stop_options={"target_loss": 2}).validate()
