"""What a step costs in operators, counted as torch dispatches them: no clock, and the same on every machine."""

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dtl.data.batches import IGNORE, Batch
from dtl.model.presets import load_preset
from dtl.model.transformer import TransformerLM
from dtl.training import optimizer as optimizer_module
from dtl.training.config import OptimizerConfig
from dtl.training.optimizer import build_optimizers
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


@pytest.mark.parametrize("preset", ["small", "large"])
@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_muon_steps_few_batches(monkeypatch: pytest.MonkeyPatch, preset: str, arch: str) -> None:
    """All matrices of the blocks in at most four; without memory for their numbers."""
    with torch.device("meta"):
        model = TransformerLM(load_preset(preset, arch=arch), 97)
    (muon, _), batches = build_optimizers(model, OptimizerConfig(name="muon")), []
    monkeypatch.setattr(
        optimizer_module, "orthogonalised", lambda x_nio, *settings: (batches.append(len(x_nio)), x_nio)[1]
    )
    matrices = muon.param_groups[0]["params"]
    for p in matrices:
        p.grad = torch.empty_like(p)
    muon.step()
    assert len(batches) <= 4 and sum(batches) == len(matrices) >= 4 * model.config.n_layers


class Order(TorchDispatchMode):
    """Names of operators, in order. Lists and numbers are read without an operator: `also` them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


WAITS = {"_local_scalar_dense", "nonzero", "equal", "tolist", "numpy"}  # on CUDA for the device


@pytest.mark.parametrize(("optimizer", "update"), [("adamw", "_fused_adamw_"), ("muon", "_foreach_lerp_")])
@pytest.mark.parametrize("late", [True, False])
def test_nothing_is_read_before_the_update(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, optimizer: str, update: str, late: bool
) -> None:
    """As on CUDA: a step reads one thing, whether the step before it was finite, and that once its own is queued."""
    trainer = make_trainer(optimizer=OptimizerConfig(name=optimizer), precision="bf16", last_step=3)
    if late:
        trainer.check_late()
    counted = property(lambda batch: sum(target != IGNORE for row in batch.rows_of_targets for target in row))
    batches = [trainer.data.micro_batches(3, 0, step, 2, 1) for step in range(3)]
    for batch in sum(batches, []):  # noqa: RUF017 (three lists)
        object.__setattr__(batch, "rows_of_targets", batch.targets.tolist())  # counted on the CPU, before the copy
    monkeypatch.setattr(Batch, "n_targets", counted)
    monkeypatch.setattr(trainer, "next_batches", iter(batches).__next__)
    with Order() as order:
        for method in ("tolist", "numpy"):
            read = getattr(torch.Tensor, method)
            monkeypatch.setattr(
                torch.Tensor, method, lambda x, read=read, method=method: (order.names.append(method), read(x))[1]
            )
        steps = trainer.steps()
        next(steps)
        del order.names[:]
        next(steps)
    at = order.names.index(update)
    assert len([name for name in order.names if name in WAITS]) == 1
    assert any(name in WAITS for name in order.names[:at]) is not late
