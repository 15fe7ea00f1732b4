"""Laws of averaged weights: the average by its definition, and a training that does not notice it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from trainer_states import snapshot

from dtl.errors import ConfigError
from dtl.training.config import TrainerConfig
from dtl.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


@pytest.mark.parametrize("block", ["modern", "value_embeddings", "classic"])
@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_follows_its_definition(make_trainer: MakeTrainer, decay: float, block: str) -> None:
    trainer = make_trainer(config=TrainerConfig(ema_decay=decay), block=block)
    assert trainer.averaged is not None
    by_hand = {name: weight.double() for name, weight in snapshot(trainer).items()}
    for n, _ in enumerate(trainer.steps(), 1):
        here = min(decay, (1 + n) / (10 + n))
        by_hand = {name: here * by_hand[name] + (1 - here) * w.double() for name, w in snapshot(trainer).items()}
    for name, average in trainer.averaged.model.named_parameters():
        torch.testing.assert_close(average.double(), by_hand[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(average, trainer.model.get_parameter(name))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_training_does_not_notice_the_average(make_trainer: MakeTrainer, precision: str) -> None:
    def final(decay: float | None) -> tuple[dict[str, Tensor], Tensor]:
        trainer = make_trainer(config=TrainerConfig(ema_decay=decay), dropout=0.1, precision=precision)
        for _ in trainer.steps():
            pass
        return snapshot(trainer), torch.get_rng_state()

    (plain, plain_random), (averaged, averaged_random) = final(None), final(0.9)
    assert all(torch.equal(plain[name], averaged[name]) for name in plain)
    assert torch.equal(plain_random, averaged_random)


def test_the_average_is_what_is_evaluated(make_trainer: MakeTrainer) -> None:
    without, trainer = make_trainer(), make_trainer(config=TrainerConfig(ema_decay=0.5))
    assert without.evaluated_model is without.model
    assert trainer.averaged is not None and trainer.evaluated_model is trainer.averaged.model
    tied = trainer.evaluated_model
    assert (tied.head.weight is tied.embedding.weight) == tied.config.tie_embeddings
    assert not any(parameter.requires_grad for parameter in tied.parameters())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 1.5])
def test_a_decay_outside_0_to_1_is_rejected(decay: float) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.ema_decay={decay}: must lie in \(0, 1\), or null"):
        TrainerConfig(ema_decay=decay).validate()
