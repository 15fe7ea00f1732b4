"""The weights of a trainer, kept aside to compare with."""

import torch
from torch import Tensor

from dtl.training.trainer import Trainer


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_unchanged(trainer: Trainer, before: dict[str, Tensor]) -> None:
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]), name
