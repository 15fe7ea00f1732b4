"""Additional fields of a step: measured on the gradients of that step, before they are clipped."""

from collections.abc import Callable

import pytest
import torch

from dtl.data.config import DataConfig, SourceConfig
from dtl.errors import ConfigError, TrainingError
from dtl.registry import STEP_FIELDS
from dtl.training.config import TrainerConfig
from dtl.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def own_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    def power(trainer: Trainer) -> dict[str, float]:
        return {"power": 17.0 + trainer.state.step}

    monkeypatch.setattr(STEP_FIELDS, "_parts", dict(STEP_FIELDS._parts))
    STEP_FIELDS.register("power")(power)
    STEP_FIELDS.register("wrong")(lambda trainer: {"train/loss": 0.0})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_norms_of_the_blocks_are_those_before_clipping(make_trainer: MakeTrainer, precision: str) -> None:
    """Together with the other weights they are the norm of all gradients, which is measured before clipping too."""
    config = TrainerConfig(step_fields=["block_grad_norms"], max_grad_norm=1e-3)
    trainer = make_trainer(config=config, precision=precision)
    outside = torch.zeros(())
    measure = trainer.measure_fields

    def measure_rest_too() -> dict[str, float | torch.Tensor]:
        nonlocal outside
        rest = [p.grad for name, p in trainer.model.named_parameters() if "blocks." not in name and p.grad is not None]
        outside = torch.nn.utils.get_total_norm(rest)
        return measure()

    trainer.measure_fields = measure_rest_too  # type: ignore[method-assign]
    for report in trainer.steps():
        assert set(report.fields) == {"block_grad_norms/0", "block_grad_norms/1"}
        squares = [torch.as_tensor(norm) ** 2 for norm in (*report.fields.values(), outside)]
        torch.testing.assert_close(torch.stack(squares).sum().sqrt(), report.grad_norm, equal_nan=True)
        assert report.skipped or report.grad_norm > 1e-3


@pytest.mark.usefixtures("own_fields")
def test_a_field_of_ones_own_is_in_each_report(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(config=TrainerConfig(step_fields=["power"]), last_step=3)
    assert [report.fields for report in trainer.steps()] == [{"power": 17.0}, {"power": 18.0}, {"power": 19.0}]


@pytest.mark.usefixtures("own_fields")
def test_a_field_cannot_take_the_place_of_dtls_own(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(config=TrainerConfig(step_fields=["wrong"]))
    with pytest.raises(TrainingError, match=r"trainer\.step_fields=wrong: gives train/loss\. A field is called"):
        next(trainer.steps())


def test_a_field_is_a_number(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEP_FIELDS._parts, "vector", lambda trainer: {"vector": torch.zeros(3)})
    trainer = make_trainer(config=TrainerConfig(step_fields=["vector"]))
    with pytest.raises(TrainingError, match=r"trainer\.step_fields=vector: vector must be a number"):
        next(trainer.steps())


@pytest.mark.parametrize(
    "settings",
    [
        lambda: TrainerConfig(step_fields=["block_grad_norms"] * 2),
        lambda: TrainerConfig(stop_criteria=["hours"] * 2),
        lambda: DataConfig(sources={"qa": SourceConfig("qa")}, metrics=["accuracy"] * 2),
    ],
)
def test_a_name_given_twice_is_rejected(settings: Callable[[], TrainerConfig | DataConfig]) -> None:
    with pytest.raises(ConfigError, match=r"names \w+ twice\. Leave one out"):
        settings().validate()


@pytest.mark.parametrize("setting", ["step_fields", "stop_criteria"])
def test_an_unknown_name_is_rejected_before_the_run(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.{setting}=plateua: there is no part of this name"):
        TrainerConfig(**{setting: ["plateua"]}).validate()
