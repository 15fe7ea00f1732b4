"""Additional fields of a step in metrics.jsonl and in the tracker, by name (`trainer.step_fields`)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dtl.registry import STEP_FIELDS
from dtl.training.trainer import Trainer

# Called in every step before the weights change: `trainer.model` has its gradients, unscaled and not yet clipped. A
# tensor of shape () is copied from the device with the next progress line; `.item()` would make each step wait for it.
StepField = Callable[[Trainer], Mapping[str, float | Tensor]]


@STEP_FIELDS.register("block_grad_norms")
def block_grad_norms(trainer: Trainer) -> dict[str, Tensor]:
    """Gradient norm of each block: `{"block_grad_norms/0": ..., "block_grad_norms/1": ...}`."""
    return {
        f"block_grad_norms/{index}": torch.nn.utils.get_total_norm(
            [p.grad for p in block.parameters() if p.grad is not None]
        )
        for index, block in enumerate(trainer.model.blocks)
    }
