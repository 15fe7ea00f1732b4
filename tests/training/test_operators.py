"""What a step costs in operators, counted as torch dispatches them: no clock, and the same on every machine."""

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dtl.model.presets import load_preset
from dtl.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


class Operators(TorchDispatchMode):
    """Counts operators, and those that only cast; a cast of several tensors by one operator counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.names: collections.Counter[str] = collections.Counter()
        self.casts = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names[func.overloadpacket.__name__] += 1
        if func is torch.ops.aten._to_copy.default:
            self.casts += result.dtype != args[0].dtype
        elif func is torch.ops.aten._foreach_copy_.default:
            self.casts += 1
        return result


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_step_of_large_casts_seldom(make_trainer: MakeTrainer, checkpointing: str) -> None:
    """12 blocks, narrow ones: once a block its two inputs and the two gradients behind them, and twice its matrices."""
    n_layers = load_preset("large").n_layers
    trainer = make_trainer(precision="bf16", n_layers=n_layers)
    trainer.model.activation_checkpointing = checkpointing
    steps = trainer.steps()
    next(steps)  # the optimizer makes its state
    with Operators() as operators:
        next(steps)
    assert operators.casts <= (120 if checkpointing == "none" else 120 + 2 * n_layers)
    assert operators.casts > n_layers  # the count sees them
