"""Laws of a step that runs out of memory: it is taken again with half the sequences at once, and nothing else changes.

No CPU runs out of memory here: the error is raised where an allocation could, at each point of a step.
"""

import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from trainer_states import assert_unchanged, snapshot

import dtl.training.optimizer
from dtl.base.runtime import random_state, restore_random_state
from dtl.errors import TrainingError
from dtl.training.config import OptimizerConfig, TrainerConfig
from dtl.training.loss import cross_entropy
from dtl.training.optimizer import load_optimizer_tensors, optimizer_tensors
from dtl.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]

CPU = torch.device("cpu")
ROWS, ACCUMULATION, LAST_STEP = 4, 2, 3  # two steps an epoch: 8 and 3 sequences
MUON = OptimizerConfig(name="muon", row_beta2=0.9)
BF16_STATE = OptimizerConfig(state_dtype="bf16")


def no_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Fault:
    """Raises the error once, in the optimizer step after `step` of them, at the n-th call there (from 0)."""

    def __init__(self, trainer: Trainer, step: int, call: int) -> None:
        self.trainer, self.step, self.calls_left, self.raised = trainer, step, call + 1, 0

    def __call__(self) -> None:
        if self.trainer.state.step == self.step and not self.raised:
            self.calls_left -= 1
            if self.calls_left == 0:
                self.raised += 1
                raise no_memory()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any, **named: Any) -> Any:
            self()
            return function(*arguments, **named)

        return faulty

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            self()
            return result

        return faulty


def plant(trainer: Trainer, point: str, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an error happen at a point of a step."""
    if point == "backward":  # half-way: the head and the last block have their gradients already
        weight = trainer.model.blocks[0].mlp.up.weight

        def hook(gradient: Tensor) -> None:
            assert trainer.model.norm.weight.grad is not None
            fault()

        weight.register_hook(hook)  # pyright: ignore
    elif point == "state":  # of the optimizer, which appears in its first step
        monkeypatch.setattr(dtl.training.optimizer.torch, "zeros_like", fault.before(torch.zeros_like))
    else:
        name, place = {
            "batch": ("next_batches", fault.before),
            "forward": ("forward", fault.after),  # dropout has drawn
            "loss": ("loss", fault.before),
            "norm": ("check", fault.after),  # unscaled
            "fields": ("measure_fields", fault.before),
            "clip": ("clip_gradients", fault.after),
        }[point]
        monkeypatch.setattr(trainer, name, place(getattr(trainer, name)))


def final_state(trainer: Trainer) -> dict[str, Any]:
    """Everything that must be equal, bit for bit."""
    values = trainer.state_values()
    values["train"].pop("seconds")
    averaged = {f"averaged {name}": p for name, p in trainer.evaluated_model.named_parameters()}
    tensors = snapshot(trainer) | optimizer_tensors(trainer.model, trainer.optimizers) | averaged
    return {
        "tensors": {name: (x.dtype, x.detach().flatten().view(torch.uint8).tolist()) for name, x in tensors.items()},
        "values": values,
        "random": random_state(CPU),
    }


def trained(trainer: Trainer, at_once: int | None = None, from_step: int = 0) -> list[tuple[float, float]]:
    """Train to the end, with `at_once` sequences of a forward pass from a step on; return losses and norms."""
    found: list[tuple[float, float]] = []
    steps = trainer.steps()
    while not trainer.done:
        if at_once is not None and trainer.state.step == from_step:
            trainer.state.sequences_at_once = at_once
        report = next(steps)
        found.append((report.loss.item(), report.grad_norm.item()))
    return found


SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"dropout": 0.1},
    "fp16": {"dropout": 0.1, "precision": "fp16"},
    "averaged": {"dropout": 0.1, "config": TrainerConfig(ema_decay=0.9)},
    "muon": {"dropout": 0.1, "optimizer": MUON, "precision": "bf16"},
    "checkpointing": {"dropout": 0.1, "activation_checkpointing": "full"},
    "late": {"dropout": 0.1, "optimizer": MUON, "config": TrainerConfig(ema_decay=0.9), "late": True},
}
POINTS = ["batch", "forward", "loss", "backward", "norm", "fields", "clip"]


@pytest.fixture
def trainer_of(make_trainer: MakeTrainer) -> Callable[[dict[str, Any]], Trainer]:
    """A trainer of 4 x 2 sequences a step, two steps an epoch, that decides on the device with `late`."""

    def make(settings: dict[str, Any]) -> Trainer:
        settings = {"micro_batch_size": ROWS, "grad_accum_steps": ACCUMULATION, "last_step": LAST_STEP} | settings
        late, checkpointing = settings.pop("late", False), settings.pop("activation_checkpointing", None)
        trainer = make_trainer(randomised=True, **settings)
        if late:
            trainer.check_late()
        if checkpointing:
            trainer.model.activation_checkpointing = checkpointing
        return trainer

    return make


@pytest.mark.quick_cases(13)  # every setting and every point among them
@pytest.mark.fault("out-of-memory-step")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(("step", "call"), [(0, 0), (1, 0), (2, 1)])
def test_a_step_that_runs_out_of_memory_is_that_of_a_run_which_was_split_before_it(
    trainer_of: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    point: str,
    step: int,
    call: int,
) -> None:
    """Bit for bit, to the end of the run: weights, averages, moments, scale, random states, losses."""
    call = call if point in ("forward", "loss", "backward") else 0  # what happens in each micro-batch
    split = trainer_of(SETTINGS[setting])
    expected = trained(split, at_once=ROWS // 2, from_step=step), final_state(split)
    trainer = trainer_of(SETTINGS[setting])
    fault = Fault(trainer, step, call)
    plant(trainer, point, fault, monkeypatch)
    assert (trained(trainer), final_state(trainer)) == expected
    assert fault.raised == 1
    assert trainer.state.sequences_at_once == ROWS // 2


@pytest.mark.quick_cases(3)
@pytest.mark.fault("out-of-memory-step")
@pytest.mark.parametrize("optimizer", [OptimizerConfig(), BF16_STATE, MUON], ids=["adamw", "bf16-state", "muon"])
@pytest.mark.parametrize("call", [0, 1, 5, 20])
def test_the_optimizers_state_is_there_before_the_first_weight_changes(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, call: int, optimizer: OptimizerConfig
) -> None:
    """It is created in the first step, a tensor after the other."""
    split = trainer_of({"optimizer": optimizer, "dropout": 0.1})
    expected = trained(split, at_once=ROWS // 2), final_state(split)
    trainer = trainer_of({"optimizer": optimizer, "dropout": 0.1})
    fault = Fault(trainer, 0, call)
    plant(trainer, "state", fault, monkeypatch)
    assert (trained(trainer), final_state(trainer)) == expected
    assert fault.raised == 1


@pytest.mark.quick_cases(2)
@pytest.mark.fault("out-of-memory-step")
@pytest.mark.parametrize("n_faults", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_that_splits_in_its_first_step_is_one_with_smaller_micro_batches(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, precision: str, n_faults: int
) -> None:
    """With dropout, bit for bit: the same sequences a step, in smaller forward passes."""
    smaller = trainer_of(
        {
            "dropout": 0.1,
            "precision": precision,
            "micro_batch_size": ROWS // 2**n_faults,
            "grad_accum_steps": ACCUMULATION * 2**n_faults,
        }
    )
    losses, expected = trained(smaller), final_state(smaller)
    trainer = trainer_of({"dropout": 0.1, "precision": precision})
    for _ in range(n_faults):
        plant(trainer, "forward", Fault(trainer, 0, 1), monkeypatch)
    assert trained(trainer) == losses
    found = final_state(trainer)
    assert found["values"]["train"].pop("sequences_at_once") == ROWS // 2**n_faults
    assert expected["values"]["train"].pop("sequences_at_once") is None
    assert found == expected


@pytest.mark.fault("out-of-memory-step")
@pytest.mark.parametrize("block", ["modern", "classic"])
@pytest.mark.parametrize("at_once", [3, 2, 1])
def test_without_dropout_loss_and_gradient_are_those_of_the_whole_step(
    trainer_of: Callable[..., Trainer], at_once: int, block: str
) -> None:
    """Within 1e-6 in fp32, of sequences with uneven numbers of targets: a mean of means would be far off."""
    gradients: list[Tensor] = []
    losses: list[Tensor] = []
    for n in (None, at_once):
        trainer = trainer_of({"block": block})
        trainer.state.sequences_at_once = n
        batches = trainer.next_batches()
        assert max(len(batch.rows) for batch in batches) == (n or ROWS)
        loss = trainer.accumulate_gradients(batches)
        assert loss is not None
        losses.append(loss)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    assert (gradients[1] - gradients[0]).norm() <= 1e-6 * gradients[0].norm()


def test_the_sequences_of_a_step_stay_the_same_in_the_same_order(trainer_of: Callable[..., Trainer]) -> None:
    trainer = trainer_of({"micro_batch_size": 5})
    whole = [row for batch in trainer.next_batches() for row in batch.rows]
    for at_once in (3, 2, 1):
        trainer.state.sequences_at_once = at_once
        batches = trainer.next_batches()
        assert [row for batch in batches for row in batch.rows] == whole
        assert {len(batch.rows) for batch in batches[:-1]} == {at_once}


def cramped(trainer: Trainer, fits: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let memory be enough for `fits` sequences; return the list that gets the number of each forward pass."""
    tried: list[int] = []
    forward = trainer.forward

    def calling(inputs: Tensor, *rest: Any) -> Tensor:
        tried.append(len(inputs))
        x_btd = forward(inputs, *rest)
        if len(inputs) > fits:
            raise no_memory()
        return x_btd

    monkeypatch.setattr(trainer, "forward", calling)
    return tried


def test_it_is_split_until_it_fits_once_for_the_whole_run(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of({"micro_batch_size": 7, "grad_accum_steps": 1, "last_step": 3})
    tried = cramped(trainer, 2, monkeypatch)
    trained(trainer)
    assert trainer.state.sequences_at_once == 2
    assert tried == [7, 4, 2, 2, 2, 1, 2, 2, 2, 2, 2, 1]  # three steps, the second one of four sequences


def test_a_single_sequence_that_does_not_fit_is_an_error_and_nothing_has_changed(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of({"dropout": 0.1})
    steps: Iterator[Any] = trainer.steps()
    next(steps)
    before, state = snapshot(trainer), replace(trainer.state)
    tried = cramped(trainer, 0, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        next(steps)
    assert tried == [3, 2, 1]  # the second step of the epoch has three sequences left
    assert_unchanged(trainer, before)
    assert replace(trainer.state, sequences_at_once=None) == state


@pytest.mark.parametrize("error", [ValueError("shape"), RuntimeError("mat1 and mat2"), KeyboardInterrupt()])
def test_another_error_is_not_tried_again(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    trainer, n_calls = trainer_of({}), 0

    def fail(*_: Any) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        raise error

    monkeypatch.setattr(trainer, "forward", fail)
    with pytest.raises(type(error)):
        next(trainer.steps())
    assert n_calls == 1 and trainer.state.sequences_at_once is None


def test_what_the_failed_attempt_held_is_free_before_the_next(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error holds frames, and these hold tensors, as long as it is handled; some only in a cycle."""
    trainer = trainer_of({})
    held: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def loss(head: Any, x_nd: Tensor, *rest: Any) -> Tensor:
        alive.append(sum(reference() is not None for reference in held))
        held.append(weakref.ref(x_nd))
        if len(held) == 2:
            cycle: list[Any] = [x_nd]
            cycle.append(cycle)
            raise no_memory()
        return cross_entropy(head, x_nd, *rest)

    monkeypatch.setattr(trainer, "loss", loss)
    next(trainer.steps())
    assert alive[2] == 0, alive


# --- in the optimizer -------------------------------------------------------------------------------------------------


@pytest.mark.fault("out-of-memory-step")
@pytest.mark.parametrize("where", ["weights", "average"])
@pytest.mark.parametrize("optimizer", [OptimizerConfig(), BF16_STATE, MUON], ids=["adamw", "bf16-state", "muon"])
def test_an_update_that_runs_out_of_memory_is_never_repeated_or_continued(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, optimizer: OptimizerConfig, where: str
) -> None:
    """Some weights may be new and others old. Splitting would not help: what a forward pass takes is free by then."""
    trainer = trainer_of({"optimizer": optimizer, "config": TrainerConfig(ema_decay=0.9)})
    owner, name = (trainer.optimizers[-1], "step") if where == "weights" else (trainer.averaged, "update")
    fault = Fault(trainer, 2, 0)
    monkeypatch.setattr(owner, name, fault.before(getattr(owner, name)))
    steps = trainer.steps()
    next(steps), next(steps)
    with pytest.raises(TrainingError, match=r"^Out of memory in step 3, while the optimizer changed the weights"):
        next(steps)
    assert fault.raised == 1 and trainer.state.step == 2 and trainer.state.sequences_at_once is None
    assert next(steps, None) is None


# --- a resume after it ------------------------------------------------------------------------------------------------


@pytest.mark.quick_cases(2)
@pytest.mark.fault("out-of-memory-step")
@pytest.mark.parametrize("setting", ["fp32", "fp16", "muon"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_resume_begins_split(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, setting: str, stop: int
) -> None:
    """Before and after the step that was split, through bytes and JSON: it ends like the run that went on."""
    uninterrupted = trainer_of(SETTINGS[setting])
    plant(uninterrupted, "backward", Fault(uninterrupted, 1, 0), monkeypatch)
    trained(uninterrupted)
    expected = final_state(uninterrupted)

    trainer = trainer_of(SETTINGS[setting])
    plant(trainer, "backward", Fault(trainer, 1, 0), monkeypatch)
    steps = trainer.steps()
    while trainer.state.step < stop:
        next(steps)
    weights = save({name: p.detach() for name, p in trainer.model.named_parameters()})
    moments = save(optimizer_tensors(trainer.model, trainer.optimizers))
    values, random = json.loads(json.dumps([trainer.state_values(), random_state(CPU)], allow_nan=False))
    assert values["train"]["sequences_at_once"] == (ROWS // 2 if stop > 1 else None)

    resumed = trainer_of(SETTINGS[setting] | {"model_seed": 999})
    resumed.model.load_state_dict(load(weights), strict=False)
    resumed.load_state_values(values)
    load_optimizer_tensors(resumed.model, resumed.optimizers, load(moments))
    restore_random_state(random, CPU)
    if stop == 1:
        plant(resumed, "backward", Fault(resumed, 1, 0), monkeypatch)
    trained(resumed)
    assert final_state(resumed) == expected


def test_a_state_from_before_there_was_a_split_is_a_whole_one(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    values = trainer.state_values()
    del values["train"]["sequences_at_once"], values["train"]["evaluated_at_once"]
    trainer.load_state_values(values)
    assert trainer.sequences_at_once == trainer.micro_batch_size


@pytest.mark.fault("stop-in-step")
def test_a_stop_in_the_second_attempt_undoes_the_step(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of({"dropout": 0.1, "precision": "fp16"})
    fault = Fault(trainer, 0, 1)
    plant(trainer, "forward", fault, monkeypatch)
    before, random = snapshot(trainer), random_state(CPU)
    monkeypatch.setattr(trainer, "stop_requested", lambda: fault.raised > 0)
    assert next(trainer.steps(), None) is None
    assert_unchanged(trainer, before)
    assert fault.raised == 1 and random_state(CPU) == random
    assert all(p.grad is None for p in trainer.model.parameters())
