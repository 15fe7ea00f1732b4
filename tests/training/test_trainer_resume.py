"""Laws of going on: a trainer rebuilt from bytes and JSON ends, bit for bit, where one that was never stopped ends."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from trainer_states import snapshot

from dtl.base.runtime import random_state, restore_random_state
from dtl.training.config import OptimizerConfig, ScheduleConfig
from dtl.training.optimizer import load_optimizer_tensors, optimizer_tensors
from dtl.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def reborn(make_trainer: MakeTrainer) -> Callable[..., Trainer]:
    """The trainer that a new process would have: everything through bytes and JSON, other random numbers meanwhile."""

    def rebuild(trainer: Trainer, **settings: Any) -> Trainer:
        cpu = torch.device("cpu")
        weights = save({name: p.detach() for name, p in trainer.model.named_parameters()})
        moments = save(optimizer_tensors(trainer.model, trainer.optimizers))
        values = json.dumps([trainer.state_values(), random_state(cpu)], allow_nan=False)
        other = make_trainer(**(settings | {"model_seed": 999}))
        torch.rand(17)
        other.model.load_state_dict(load(weights), strict=False)
        state, random = json.loads(values)
        other.load_state_values(state)
        load_optimizer_tensors(other.model, other.optimizers, load(moments))
        restore_random_state(random, cpu)
        return other

    return rebuild


def final_state(trainer: Trainer) -> dict[str, Any]:
    """All that must be equal, bit for bit."""
    values = trainer.state_values()
    values["train"].pop("seconds")
    tensors = snapshot(trainer) | optimizer_tensors(trainer.model, trainer.optimizers)
    return {
        "tensors": {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in tensors.items()},
        "values": values,
        "random": random_state(torch.device("cpu")),
    }


N_STEPS = 7
STOPS = {
    "fp32": [(k,) for k in range(N_STEPS + 1)] + [(2, 5), (1, 2, 3), (3, 3)],
    "bf16": [(1,), (6,), (2, 5)],
    "fp16": [(0,), (3,), (7,), (1, 2)],
}


def interrupted(trainer: Trainer, stops: tuple[int, ...], rebuild: Callable[..., Trainer], **settings: Any) -> Trainer:
    for stop in stops:
        steps = trainer.steps()
        while trainer.state.step < stop:
            next(steps)
        trainer = rebuild(trainer, **settings)
    for _ in trainer.steps():
        pass
    return trainer


@pytest.mark.quick_cases(3)
@pytest.mark.fault("data-order", "kill")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("grad_accum_steps", [1, 3])  # 6 and 2 steps an epoch, the last of fewer rows
def test_resumed_at_any_step_is_never_stopped(
    make_trainer: MakeTrainer, reborn: Callable[..., Trainer], grad_accum_steps: int, precision: str
) -> None:
    settings: dict[str, Any] = {
        "grad_accum_steps": grad_accum_steps,
        "precision": precision,
        "dropout": 0.1,
        "last_step": N_STEPS,
        "schedule": ScheduleConfig(warmup_steps=2),
    }
    uninterrupted = final_state(interrupted(make_trainer(**settings), (), reborn))
    for stops in STOPS[precision]:
        found = final_state(interrupted(make_trainer(**settings), stops, reborn, **settings))
        assert found == uninterrupted, f"stopped at {stops}"


@pytest.mark.parametrize("name, block", [("muon", "modern"), ("adamw", "classic")])
def test_resume_is_exact_for_the_other_optimizer_and_architecture(
    make_trainer: MakeTrainer, reborn: Callable[..., Trainer], name: str, block: str
) -> None:
    settings = {"optimizer": OptimizerConfig(name=name), "block": block, "dropout": 0.1, "last_step": N_STEPS}
    uninterrupted = final_state(interrupted(make_trainer(**settings), (), reborn))
    for stops in ((3,), (6,), (2, 5)):
        assert final_state(interrupted(make_trainer(**settings), stops, reborn, **settings)) == uninterrupted


@pytest.mark.parametrize("forgotten", ["random", "moments", "epoch", "scale"])
def test_the_grid_above_would_notice(make_trainer: MakeTrainer, reborn: Callable[..., Trainer], forgotten: str) -> None:
    """Each part of the state matters: left out of a resume, the run ends elsewhere."""
    settings: dict[str, Any] = {"dropout": 0.1, "last_step": N_STEPS, "precision": "fp16"}
    uninterrupted = final_state(interrupted(make_trainer(**settings), (), reborn))
    trainer = make_trainer(**settings)
    steps = trainer.steps()
    while trainer.state.step < 4:
        next(steps)
    trainer = reborn(trainer, **settings)
    if forgotten == "random":
        torch.manual_seed(0)
    elif forgotten == "moments":
        trainer.optimizers[0].state.clear()
    elif forgotten == "epoch":
        trainer.state.step_in_epoch = 0
    else:
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for _ in trainer.steps():
        pass
    assert final_state(trainer) != uninterrupted
