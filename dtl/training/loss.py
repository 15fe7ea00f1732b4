"""Next-token cross-entropy, summed over target tokens, for training and validation alike.

The caller divides by the number of target tokens: in training by that of the whole optimizer step.

Letters: b batch, t time, d model width, n positions with a target, v vocabulary.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dtl.data.batches import IGNORE, Batch
from dtl.model.transformer import TransformerLM


def summed_cross_entropy(head: nn.Module, x_btd: Tensor, targets_bt: Tensor, n_targets: int) -> Tensor:
    """Return the sum over target tokens of -log p(target), in nats, fp32, shape ().

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
    logits_nv = head(x_nd).float()
    return F.cross_entropy(logits_nv, targets_n, reduction="sum")


def mean_cross_entropy(model: TransformerLM, batch: Batch) -> Tensor:
    """Return the mean of -log p(target) over the targets of a batch, in nats, fp32, shape (), with its gradient.

    The batch may have any layout and be on any device; it is copied to the model's. 0 for a batch without targets.
    """
    n_targets = batch.n_targets  # before the copy: counting them on a GPU would wait for it
    here = batch.to(next(model.parameters()).device)
    x_btd = model.hidden(**here.model_inputs())
    return summed_cross_entropy(model.head, x_btd, here.targets, n_targets) / max(1, n_targets)
