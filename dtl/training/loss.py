"""Next-token cross-entropy, summed over target tokens; the trainer divides by their number in the whole step.

Letters: b batch, t time, d model width, n positions with a target, v vocabulary.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dtl.data.batches import IGNORE


def summed_cross_entropy(head: nn.Module, x_btd: Tensor, targets_bt: Tensor, n_targets: int) -> Tensor:
    """Sum over target tokens of -log p(target), in nats, fp32, shape ().

    The head is the largest part of a small model, so that positions without a target (questions, padding)
    never reach it: same loss, same gradient. `n_targets` is the number of targets, known without asking the
    device.
    """
    x_nd = rearrange(x_btd, "b t d -> (b t) d")
    targets_n = rearrange(targets_bt, "b t -> (b t)")
    if n_targets < len(targets_n):
        # nonzero_static knows its size beforehand, so that a GPU is not made to wait.
        with_target = torch.nonzero_static(targets_n != IGNORE, size=n_targets)
        at_n = rearrange(with_target, "n 1 -> n")
        x_nd, targets_n = x_nd[at_n], targets_n[at_n]
    logits_nv = head(x_nd).float()
    return F.cross_entropy(logits_nv, targets_n, reduction="sum")
