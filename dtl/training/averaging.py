"""Averaged weights, which are evaluated and published in place of those that are trained."""

import copy

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dtl.model.transformer import TransformerLM


class AveragedWeights:
    """A model whose weights are an exponential moving average of another one's (Polyak and Juditsky, 1992).

    After step n the average moves to the weights by 1 - min(decay, (1 + n) / (10 + n)): the first steps, whose weights
    are still random, are forgotten at once. A pure function of the step, so that a resume needs only the weights.
    """

    def __init__(self, model: TransformerLM, decay: float) -> None:
        """Begin with the weights of `model`, on its device. Draws no random number."""
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    def update(self, model: TransformerLM, step: int, found_inf: Tensor | None = None) -> None:
        """Move the average towards the weights of `model` after step `step`, counted from 1.

        It stays where it is when `found_inf`, shape (), is 1 (see `Trainer.check_late`).
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = tuple(self.model.parameters()), tuple(model.parameters())
        if found_inf is None:
            get_ema_multi_avg_fn(decay)(averages, weights, step)
            return
        with torch.no_grad():
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, (1 - decay) * (1 - found_inf))
