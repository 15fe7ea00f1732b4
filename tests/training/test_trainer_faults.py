"""Laws of the loop in trouble: it stops before a spoilt number reaches the weights; fp16 skips what overflows."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_states import assert_unchanged, snapshot

from dtl.errors import TrainingError
from dtl.registry import LOSSES
from dtl.training.config import OptimizerConfig, TrainerConfig
from dtl.training.loss import cross_entropy
from dtl.training.optimizer import optimizer_tensors
from dtl.training.trainer import MAX_SKIPPED_IN_A_ROW, NonFiniteError, Trainer, can_check_late

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def spoil_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """Multiply the loss of the n-th forward pass (from 0) by a number."""

    def spoil(at: int, factor: float) -> None:
        n_calls = 0

        def spoilt(*arguments: Any) -> Tensor:
            nonlocal n_calls
            n_calls += 1
            return cross_entropy(*arguments) * (factor if n_calls == at + 1 else 1.0)

        monkeypatch.setitem(LOSSES._parts, "cross_entropy", spoilt)

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


@pytest.mark.fault("nan")
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
    spoil_loss(2 * at_step + 1, factor)  # in the second micro-batch
    trainer = make_trainer(grad_accum_steps=2, precision=precision)
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


@pytest.mark.fault("nan")
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


@pytest.mark.fault("nan")
def test_a_poisoned_weight_stops_in_the_first_step(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError):
        next(trainer.steps())


# --- read late, as on CUDA --------------------------------------------------------------------------------------------

ADAMW, MUON = OptimizerConfig(), OptimizerConfig(name="muon")
MUON_OPTIONS = OptimizerConfig(name="muon", row_beta2=0.9, cautious_decay=True)
BF16_STATE = OptimizerConfig(state_dtype="bf16")


def all_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of weights, averaged weights and optimizer states; a state that is all zeros is one that is not there."""
    averaged = dict(trainer.evaluated_model.named_parameters())
    tensors = optimizer_tensors(trainer.model, trainer.optimizers) | {
        f"averaged {key}": averaged[key] for key in averaged
    }
    return snapshot(trainer) | {key: value.clone() for key, value in tensors.items() if value.any()}


def assert_same_tensors(trainer: Trainer, before: dict[str, Tensor]) -> None:
    now = all_tensors(trainer)
    assert now.keys() == before.keys()
    for key, value in now.items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    "optimizer", [ADAMW, BF16_STATE, MUON, MUON_OPTIONS], ids=["adamw", "bf16-state", "muon", "normuon"]
)
@pytest.mark.parametrize(("precision", "ema_decay"), [("fp32", None), ("bf16", 0.9)])
def test_a_check_that_is_read_late_changes_no_bit(
    make_trainer: MakeTrainer, optimizer: OptimizerConfig, precision: str, ema_decay: float | None
) -> None:
    def trained(late: bool) -> tuple[list[list[float]], dict[str, Tensor], Trainer]:
        config = TrainerConfig(ema_decay=ema_decay)
        trainer = make_trainer(optimizer=optimizer, precision=precision, config=config, dropout=0.1, randomised=True)
        if late:
            trainer.check_late()
        reports = [[r.step, r.loss.item(), r.grad_norm.item(), r.lr, r.tokens] for r in trainer.steps()]
        return reports, all_tensors(trainer), trainer

    (reports, tensors, _), (late_reports, _, late) = trained(False), trained(True)
    assert late_reports == reports
    assert_same_tensors(late, tensors)


@pytest.mark.fault("nan")
@pytest.mark.parametrize(
    "optimizer", [ADAMW, BF16_STATE, MUON, MUON_OPTIONS], ids=["adamw", "bf16-state", "muon", "normuon"]
)
@pytest.mark.parametrize(("at_step", "factor"), [(0, float("nan")), (4, float("inf")), (6, float("nan"))])
def test_a_step_that_is_read_late_has_changed_nothing(
    make_trainer: MakeTrainer,
    spoil_loss: Callable[[int, float], None],
    optimizer: OptimizerConfig,
    at_step: int,
    factor: float,
) -> None:
    """Neither has the step after it; the last step of a run is read, too. The error is that of a check in time."""

    def until_error(late: bool) -> tuple[Trainer, NonFiniteError, list[int], dict[str, Tensor]]:
        spoil_loss(2 * at_step + 1, factor)
        trainer = make_trainer(grad_accum_steps=2, optimizer=optimizer, config=TrainerConfig(ema_decay=0.9))
        if late:
            trainer.check_late()
        steps, reported, before = trainer.steps(), [], {}
        with pytest.raises(NonFiniteError) as caught:
            while True:
                if trainer.state.step == at_step:
                    before = all_tensors(trainer)
                reported.append(next(steps).step)
        return trainer, caught.value, reported, before

    in_time, error, reported, _ = until_error(False)
    late, late_error, late_reported, before = until_error(True)
    assert reported == list(range(1, at_step + 1)) and late_reported == [*reported, at_step + 1]
    assert_same_tensors(late, before)
    assert replace(late.state, seconds=0) == replace(in_time.state, seconds=0)
    assert str(late_error) == str(error)
    assert repr(late_error.record) == repr(error.record)


@pytest.mark.fault("nan")
def test_a_gradient_that_is_read_late_is_named(make_trainer: MakeTrainer) -> None:
    """Its own gradients are gone by then, and those of the step after it are there."""
    trainer = make_trainer(optimizer=MUON, randomised=True)
    trainer.check_late()
    trainer.model.blocks[1].mlp.up.weight.register_hook(  # pyright: ignore
        lambda gradient: gradient * (float("nan") if trainer.state.step == 3 else 1.0)
    )
    with pytest.raises(NonFiniteError, match="Step 4: ") as caught:
        for _ in trainer.steps():
            pass
    norms = {name: float(norm) for name, norm in caught.value.record["grad_norms"].items()}
    assert [name for name, norm in norms.items() if norm != norm] == ["blocks.1.mlp.up.weight"]


@pytest.mark.fault("nan")
def test_no_state_is_given_out_before_its_step_is_read(
    make_trainer: MakeTrainer, spoil_loss: Callable[[int, float], None]
) -> None:
    spoil_loss(1, float("nan"))
    trainer = make_trainer()
    trainer.check_late()
    steps = trainer.steps()
    next(steps)
    trainer.confirm()
    next(steps)
    with pytest.raises(NonFiniteError, match="Step 2: "):
        trainer.state_values()
    assert trainer.state_values()["train"]["step"] == 1


def test_only_optimizers_that_heed_the_flag_are_checked_late(make_trainer: MakeTrainer) -> None:
    cuda, trainer = torch.device("cuda"), make_trainer(optimizer=MUON)
    assert trainer.found_inf is None  # on a CPU, where reading costs nothing
    assert can_check_late(cuda, "bf16", trainer.optimizers) and can_check_late(cuda, "fp32", trainer.optimizers)
    assert not can_check_late(cuda, "fp16", trainer.optimizers)
    plain = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    assert not can_check_late(cuda, "bf16", [*trainer.optimizers, plain])


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


@pytest.mark.fault("fp16-overflow")
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


@pytest.mark.fault("fp16-overflow")
def test_fifty_skips_in_a_row_end_the_run(fp16_trainer: Callable[..., Trainer]) -> None:
    trainer = fp16_trainer(0, 10**9, scale=2.0**100, last_step=200)
    before = snapshot(trainer)
    with pytest.raises(TrainingError, match=r"(?s)Step 50: .*overflowed 50 times in a row.*trainer\.precision=bf16"):
        for _ in trainer.steps():
            pass
    assert trainer.state.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW == 50
    assert_unchanged(trainer, before)


@pytest.mark.fault("fp16-overflow")
def test_a_scale_below_one_ends_the_run(fp16_trainer: Callable[..., Trainer]) -> None:
    """Left alone, the scaler would go on to a scale of 0 and never say a word."""
    trainer = fp16_trainer(0, 10**9, scale=4.0, last_step=200)
    before = snapshot(trainer)
    with pytest.raises(TrainingError, match=r"overflowed 3 times in a row \(scale 0\.5\)"):
        for _ in trainer.steps():
            pass
    assert_unchanged(trainer, before)


@pytest.mark.fault("fp16-overflow")
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


def test_a_model_whose_memory_is_not_enough_says_so_unchanged(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half step: the error passes, and weights and counters are those of the step before."""
    trainer = make_trainer(grad_accum_steps=3)
    hidden, n_calls = trainer.forward, 0

    def cramped(*arguments: Any) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        if n_calls >= 5:
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


def test_the_wait_for_the_device_is_part_of_a_steps_seconds(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, clock = make_trainer(last_step=3), [5.0]
    trainer.check_late()

    def wait() -> None:
        clock[0] += 7.0

    monkeypatch.setattr("dtl.training.trainer.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(trainer, "confirm", wait)
    assert [report.seconds for report in trainer.steps()] == [7.0, 14.0, 21.0]
