"""Losses by name: what training minimises. Validation measures the plain cross-entropy (dtl/training/evaluate.py).

A loss is a sum over target tokens; the caller divides by their number in the whole optimizer step.

Letters: b batch, t time, d model width, n positions with a target, v vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dtl.data.batches import IGNORE, Batch
from dtl.model.transformer import TransformerLM
from dtl.registry import LOSSES
from dtl.training.config import LossConfig

# From the model's head, its inputs (n, d) and the targets (n,) to the sum over the targets, fp32, shape (). It gets the
# head and not the logits: these are the largest tensor of a small model, and a loss need not hold all of them at once.
Loss = Callable[[nn.Module, Tensor, Tensor, LossConfig], Tensor]


def at_targets(x_btd: Tensor, targets_bt: Tensor, n_targets: int) -> tuple[Tensor, Tensor]:
    """Return the positions that have a target, (n, d), and their targets, (n,).

    `n_targets` is the number of targets, counted on the CPU beforehand.
    """
    x_nd = rearrange(x_btd, "b t d -> (b t) d")
    targets_n = rearrange(targets_bt, "b t -> (b t)")
    if n_targets < len(targets_n):
        # The head is the largest part of a small model (with GPT-2's vocabulary three quarters of the arithmetic of
        # model=small), so positions without a target (questions, padding) skip it: same loss, same gradient.
        # nonzero_static gets its size as an argument: `nonzero` would wait for the GPU to know it.
        with_target = torch.nonzero_static(targets_n != IGNORE, size=n_targets)
        at_n = rearrange(with_target, "n 1 -> n")
        x_nd, targets_n = x_nd[at_n], targets_n[at_n]
    return x_nd, targets_n


@LOSSES.register("cross_entropy")
def cross_entropy(head: nn.Module, x_nd: Tensor, targets_n: Tensor, config: LossConfig) -> Tensor:
    """Next-token cross-entropy with label smoothing and z-loss, both off by default.

    Label smoothing (Szegedy et al., 2016, arXiv:1512.00567) takes `label_smoothing` of each target's probability and
    shares it among all tokens. The z-loss (Chowdhery et al., 2022, arXiv:2204.02311, section 5) adds
    `z_loss` * log(Z)^2, where Z is the sum of exp(logits): it keeps the logits from drifting.
    """
    logits_nv = head(x_nd).float()
    loss = F.cross_entropy(logits_nv, targets_n, reduction="sum", label_smoothing=config.label_smoothing)
    if config.z_loss == 0:
        return loss
    return loss + config.z_loss * logits_nv.logsumexp(dim=-1).square().sum()


def mean_cross_entropy(model: TransformerLM, batch: Batch) -> Tensor:
    """Return the mean of -log p(target) over the targets of a batch, in nats, fp32, shape (), with its gradient.

    The batch may have any layout and be on any device; it is copied to the model's. 0 for a batch without targets.
    """
    n_targets = batch.n_targets  # before the copy: counting them on a GPU would wait for it
    here = batch.to(next(model.parameters()).device)
    x_btd = model.hidden(**here.model_inputs())
    return cross_entropy(model.head, *at_targets(x_btd, here.targets, n_targets), LossConfig()) / max(1, n_targets)
