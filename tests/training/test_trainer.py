"""Laws of the training loop: it learns, it counts, and it stops before a spoilt number reaches the weights."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from dtl.data.batches import Rows, TrainingData
from dtl.errors import TrainingError
from dtl.model.transformer import TransformerLM
from dtl.runtime import random_state, restore_random_state
from dtl.training.config import OptimizerConfig, ScheduleConfig, TrainerConfig
from dtl.training.loss import summed_cross_entropy
from dtl.training.schedule import learning_rate_factor
from dtl.training.trainer import MAX_SKIPPED_IN_A_ROW, NonFiniteError, Trainer

MakeTrainer = Callable[..., Trainer]


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_unchanged(trainer: Trainer, before: dict[str, Tensor]) -> None:
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]), name


# --- it learns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("block", ["modern", "classic"])
def test_overfits_one_batch(
    make_trainer: MakeTrainer, random_rows: Callable[..., Rows], block: str, precision: str
) -> None:
    data = TrainingData({"random": random_rows(n_rows=2, answers=False)}, {"random": 1.0})
    trainer = make_trainer(
        data=data,
        optimizer=OptimizerConfig(lr=0.03, weight_decay=0.0),
        last_step=60,
        precision=precision,
        block=block,
    )
    losses = [report.loss.item() for report in trainer.steps()]
    assert losses[0] > 2.5
    assert losses[-1] < 0.1


def test_muon_learns_too(make_trainer: MakeTrainer, random_rows: Callable[..., Rows]) -> None:
    data = TrainingData({"random": random_rows(n_rows=2, answers=False)}, {"random": 1.0})
    trainer = make_trainer(data=data, optimizer=OptimizerConfig(name="muon", lr=0.03), last_step=60)
    losses = [report.loss.item() for report in trainer.steps()]
    assert losses[-1] < 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_seed_one_run(make_trainer: MakeTrainer, precision: str) -> None:
    def losses(**changes: Any) -> list[float]:
        trainer = make_trainer(precision=precision, dropout=0.1, **changes)
        return [report.loss.item() for report in trainer.steps()]

    first = losses()
    assert losses() == first
    assert losses(seed=4) != first
    assert losses(model_seed=8) != first


def test_activation_checkpointing_changes_no_bit(make_trainer: MakeTrainer) -> None:
    def trained(activation_checkpointing: bool) -> dict[str, Tensor]:
        trainer = make_trainer(dropout=0.1, last_step=3)
        trainer.model.activation_checkpointing = activation_checkpointing
        for _ in trainer.steps():
            pass
        return snapshot(trainer)

    plain, checkpointed = trained(False), trained(True)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it compiles
def test_compiled_steps_run_and_learn(make_trainer: MakeTrainer) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    losses = {
        compiled: [report.loss.item() for report in make_trainer(config=TrainerConfig(compile=compiled)).steps()]
        for compiled in (False, True)
    }
    assert len(losses[True]) == 7  # the sixth step of an epoch has fewer rows: another shape
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


# --- it counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_the_rate_of_each_step_is_the_schedules(make_trainer: MakeTrainer, name: str) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=3)
    trainer = make_trainer(schedule=schedule, optimizer=OptimizerConfig(lr=0.02), last_step=13)
    for step, report in enumerate(trainer.steps()):
        expected = 0.02 * learning_rate_factor(schedule, step, 13)
        assert report.lr == pytest.approx(expected)
        for group in trainer.optimizers[0].param_groups:
            assert group["lr"] == pytest.approx(expected)


def test_muon_scales_both_peaks(make_trainer: MakeTrainer) -> None:
    schedule = ScheduleConfig(warmup_steps=3)
    trainer = make_trainer(optimizer=OptimizerConfig(name="muon", lr=0.02, matrix_lr=0.3), schedule=schedule)
    report = next(trainer.steps())
    assert report.lr == pytest.approx(0.02 / 3)  # the rate that `optimizer.lr` sets
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.3 / 3)


def test_counts_steps_tokens_and_epochs(make_trainer: MakeTrainer) -> None:
    """11 rows of 7 tokens, 4 a step: 3 steps an epoch, the last of which takes the 3 rows that are left."""
    trainer = make_trainer(micro_batch_size=2, grad_accum_steps=2, last_step=7)
    assert trainer.steps_per_epoch == 3
    seen: list[tuple[int, int, int, int]] = []
    rows: list[list[int]] = []
    next_batches = trainer.next_batches

    def remembering() -> list[Any]:
        batches = next_batches()
        rows.append([row for batch in batches for row in batch.rows])
        return batches

    trainer.next_batches = remembering
    for report in trainer.steps():
        state = trainer.state
        assert (report.step, report.tokens) == (state.step, state.tokens)
        seen.append((state.step, state.epoch, state.step_in_epoch, state.tokens))
    assert seen == [
        (1, 0, 1, 28),
        (2, 0, 2, 56),
        (3, 1, 0, 77),
        (4, 1, 1, 105),
        (5, 1, 2, 133),
        (6, 2, 0, 154),
        (7, 2, 1, 182),
    ]
    assert [len(step) for step in rows] == [4, 4, 3, 4, 4, 3, 4]
    first, second = chain.from_iterable(rows[:3]), chain.from_iterable(rows[3:6])
    assert sorted(first) == sorted(second) == list(range(11))
    assert rows[:3] != rows[3:6]
    assert trainer.done


def test_seconds_only_grow(make_trainer: MakeTrainer) -> None:
    seconds = [report.seconds for report in make_trainer().steps()]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_clipping_limits_the_step_and_null_does_not(make_trainer: MakeTrainer) -> None:
    norms = {}
    for limit in (1e-3, None):
        trainer = make_trainer(config=TrainerConfig(max_grad_norm=limit), last_step=1, randomised=True)
        loss = trainer.accumulate_gradients(trainer.next_batches())
        unclipped = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
        reported = trainer.gradient_norm()
        assert reported.item() == pytest.approx(unclipped.item(), rel=1e-5)
        trainer.clip_gradients(reported)
        norms[limit] = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
        assert torch.isfinite(loss)
    assert norms[1e-3].item() == pytest.approx(1e-3, rel=1e-3)
    assert norms[None].item() == pytest.approx(unclipped.item(), rel=1e-6)


# --- it stops before a number that is not finite ------------------------------------------------------------------


@pytest.fixture
def spoil_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """Multiply the loss of the n-th forward pass (from 0) by a number."""

    def spoil(at: int, factor: float) -> None:
        n_calls = 0

        def spoilt(*arguments: Any) -> Tensor:
            nonlocal n_calls
            n_calls += 1
            return summed_cross_entropy(*arguments) * (factor if n_calls == at + 1 else 1.0)

        monkeypatch.setattr("dtl.training.trainer.summed_cross_entropy", spoilt)

    return spoil


def run_until_error(trainer: Trainer) -> tuple[NonFiniteError, dict[str, Tensor], dict[str, Any]]:
    """The error, and weights and state before its step."""
    steps = trainer.steps()
    while True:
        before, state = snapshot(trainer), json.loads(json.dumps(trainer.state_values()))
        try:
            next(steps)
        except NonFiniteError as error:
            return error, before, state


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("at_step", [0, 4])
def test_a_loss_that_is_not_finite_stops_before_the_weights(
    make_trainer: MakeTrainer,
    spoil_loss: Callable[[int, float], None],
    at_step: int,
    precision: str,
    factor: float,
) -> None:
    trainer = make_trainer(grad_accum_steps=2, precision=precision)
    spoil_loss(2 * at_step + 1, factor)  # in the second micro-batch
    error, before, state = run_until_error(trainer)
    assert_unchanged(trainer, before)
    assert json.loads(json.dumps(trainer.state_values())) == state
    record = json.loads(json.dumps(error.record, allow_nan=False))
    assert record["step"] == at_step + 1 == trainer.state.step + 1
    assert str(at_step + 1) in str(error) and "optimizer.lr" in str(error)
    expected_rows = trainer.data.micro_batches(3, trainer.state.epoch, trainer.state.step_in_epoch, 2, 2)
    assert record["rows"] == [list(batch.rows) for batch in expected_rows]
    assert record["loss"] == repr(factor)
    assert record["grad_norms"].keys() == dict(trainer.model.named_parameters()).keys()
    assert record["scale"] == (trainer.scaler.get_scale() if precision == "fp16" else 1.0)
    assert record["precision"] == precision


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_stops_and_is_named(
    make_trainer: MakeTrainer, precision: str, factor: float
) -> None:
    """The loss is fine; one parameter's gradient is not. The record tells which, for the others stay as they were."""
    trainer = make_trainer(grad_accum_steps=3, precision=precision, randomised=True)
    trainer.model.blocks[1].mlp.up.weight.register_hook(lambda gradient: gradient * factor)  # pyright: ignore
    error, before, _ = run_until_error(trainer)
    assert_unchanged(trainer, before)
    norms = {name: float(norm) for name, norm in error.record["grad_norms"].items()}
    bad = [name for name, norm in norms.items() if norm != norm or norm == float("inf")]
    assert bad == ["blocks.1.mlp.up.weight"]
    assert [name for name, norm in norms.items() if norm == 0] == []


def test_a_poisoned_weight_stops_in_the_first_step(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError):
        next(trainer.steps())


# --- fp16 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fp16_trainer(make_trainer: MakeTrainer) -> Callable[..., Trainer]:
    """A trainer whose gradients of one matrix overflow from `first` to before `last` (optimizer steps)."""

    def make(first: int, last: int, value: float = float("inf"), scale: float = 4096.0, **changes: Any) -> Trainer:
        trainer = make_trainer(precision="fp16", **changes)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

        def overflow(gradient: Tensor) -> Tensor:
            return torch.full_like(gradient, value) if first <= trainer.state.step < last else gradient

        trainer.model.blocks[0].mlp.up.weight.register_hook(overflow)  # pyright: ignore
        return trainer

    return make


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("limit", [1.0, None])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_overflowing_gradients_are_skipped_and_counted(
    fp16_trainer: Callable[..., Trainer], value: float, limit: float | None, name: str
) -> None:
    """Whole steps: with two optimizers, the one whose gradients are fine must not step alone."""
    trainer = fp16_trainer(
        2, 5, value, config=TrainerConfig(max_grad_norm=limit), optimizer=OptimizerConfig(name=name), last_step=8
    )
    steps, skipped, in_a_row, scales = trainer.steps(), [], [], []
    for _ in range(8):
        before = snapshot(trainer)
        report = next(steps)
        skipped.append(report.skipped)
        in_a_row.append(trainer.state.skipped_in_a_row)
        scales.append(trainer.scaler.get_scale())
        if report.skipped:
            assert_unchanged(trainer, before)
        else:
            assert any(not torch.equal(p, before[key]) for key, p in trainer.model.named_parameters())
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert skipped == [False, False, True, True, True, False, False, False]
    assert in_a_row == [0, 0, 1, 2, 3, 0, 0, 0]
    assert scales == [4096.0, 4096.0, 2048.0, 1024.0, 512.0, 512.0, 512.0, 512.0]
    assert trainer.state.step == 8


def test_fifty_skips_in_a_row_end_the_run(fp16_trainer: Callable[..., Trainer]) -> None:
    trainer = fp16_trainer(0, 10**9, scale=2.0**100, last_step=200)
    before = snapshot(trainer)
    with pytest.raises(TrainingError, match=r"(?s)Step 50: .*overflowed 50 times in a row.*trainer\.precision=bf16"):
        for _ in trainer.steps():
            pass
    assert trainer.state.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW == 50
    assert_unchanged(trainer, before)


def test_a_scale_below_one_ends_the_run(fp16_trainer: Callable[..., Trainer]) -> None:
    """Left alone, the scaler would go on to a scale of 0 and never say a word."""
    trainer = fp16_trainer(0, 10**9, scale=4.0, last_step=200)
    before = snapshot(trainer)
    with pytest.raises(TrainingError, match=r"overflowed 3 times in a row \(scale 0\.5\)"):
        for _ in trainer.steps():
            pass
    assert_unchanged(trainer, before)


def test_the_scale_is_in_the_state_and_comes_back(
    fp16_trainer: Callable[..., Trainer], make_trainer: MakeTrainer
) -> None:
    trainer = fp16_trainer(1, 3, last_step=4)
    for _ in trainer.steps():
        pass
    values = json.loads(json.dumps(trainer.state_values(), allow_nan=False))
    other = make_trainer(precision="fp16")
    other.load_state_values(values)
    assert other.scaler.get_scale() == trainer.scaler.get_scale() == 1024.0
    assert other.scaler.state_dict() == trainer.scaler.state_dict()
    assert other.state == trainer.state


# --- resume, bit for bit ------------------------------------------------------------------------------------------


@pytest.fixture
def reborn(make_trainer: MakeTrainer) -> Callable[..., Trainer]:
    """The trainer that a new process would have: everything through bytes and JSON, other random numbers meanwhile."""
    from safetensors.torch import load, save

    from dtl.training.optimizer import load_optimizer_tensors, optimizer_tensors

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
    from dtl.training.optimizer import optimizer_tensors

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


def test_a_model_whose_memory_is_not_enough_says_so_unchanged(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half step: the error passes, and weights and counters are those of the step before."""
    trainer = make_trainer(grad_accum_steps=3)
    hidden, n_calls = trainer.forward, 0

    def cramped(*arguments: Any) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return hidden(*arguments)

    monkeypatch.setattr(trainer, "forward", cramped)
    steps: Iterator[Any] = trainer.steps()
    next(steps)
    before = snapshot(trainer)
    with pytest.raises(torch.OutOfMemoryError):
        next(steps)
    assert_unchanged(trainer, before)
    assert trainer.state.step == 1


def test_model_is_the_type_that_others_expect(make_trainer: MakeTrainer) -> None:
    assert isinstance(make_trainer().model, TransformerLM)
