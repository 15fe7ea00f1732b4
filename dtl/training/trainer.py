"""The training loop: learning rate, batches, loss, backward, check, clip, step. Yields one report per optimizer step.

Logging, evaluation and saving belong to the caller (dtl/runner/session.py). `TrainState` holds what exact resume needs
besides weights, optimizer and random states. Data order is a pure function of (seed, epoch, step in epoch), so the
position in the data is two integers.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dtl.base.runtime import (
    autocast,
    compiled_if_possible,
    copy_to_host,
    generator_states,
    is_out_of_memory,
    keep_freed_memory,
    restore_generators,
    within_memory,
)
from dtl.data.batches import Batch, TrainingData
from dtl.errors import TrainingError
from dtl.model.transformer import TransformerLM
from dtl.registry import LOSSES, STEP_FIELDS
from dtl.training.averaging import AveragedWeights
from dtl.training.config import ScheduleConfig, TrainerConfig
from dtl.training.loss import hidden_at_targets, targets_multiple
from dtl.training.optimizer import allocate_state
from dtl.training.schedule import learning_rate_factor

MAX_SKIPPED_IN_A_ROW = 50


@dataclass
class TrainState:
    """Progress of a run in plain numbers, as stored in state.json."""

    step: int = 0  # optimizer steps taken, fp16's skipped ones included
    epoch: int = 0  # epochs finished
    step_in_epoch: int = 0  # optimizer steps taken in the current epoch
    tokens: int = 0  # tokens trained on
    seconds: float = 0.0  # training time over all sessions, evaluation and saving excluded
    best_loss: float | None = None  # best validation loss so far
    best_step: int | None = None  # its step
    evaluations: int = 0  # so far
    evaluated_step: int | None = None  # step of the newest evaluation
    evaluations_since_best: int = 0  # for early stopping
    skipped_in_a_row: int = 0  # fp16 steps skipped since the last good one
    # Sequences of a forward pass, where memory was too little for the micro-batches of the config; None: those. Stored,
    # since a sum over other micro-batches rounds differently, and dropout draws other numbers.
    sequences_at_once: int | None = None
    evaluated_at_once: int | None = None  # the same of evaluations


@dataclass(frozen=True)
class StepReport:
    """Results of one optimizer step. Tensors stay on the device: the reader decides when to wait for it."""

    step: int
    loss: Tensor  # the trained loss, mean over target tokens, shape (); of the cross-entropy in nats
    grad_norm: Tensor  # before clipping, shape ()
    lr: float
    tokens: int
    seconds: float
    skipped: bool  # fp16 only: gradients overflowed, weights unchanged
    fields: Mapping[str, float | Tensor] = field(default_factory=dict)  # those of `trainer.step_fields`


@dataclass(frozen=True)
class StepCheck:
    """Whether a step is finite, known once it is read, and what an error reports of the step."""

    finite: Callable[[], Tensor]  # waits for the device; bool (2,): the loss, the gradient norm
    loss: Tensor
    grad_norm: Tensor
    grad_norms: Tensor  # of the parameters in `names`, (len(names),)
    names: list[str]
    rows: list[list[int]]
    lr: float
    before: TrainState  # a copy


class StepGradients(NamedTuple):
    """All of a step before its update. The gradient is in the parameters, unscaled and clipped."""

    batches: list[Batch]
    check: StepCheck
    overflowed: bool  # fp16 only
    fields: Mapping[str, float | Tensor]


class NonFiniteError(TrainingError):
    """Loss or gradient that is NaN or infinite; `record` has step, batch and norms, for the run folder."""

    def __init__(self, message: str, record: dict[str, Any]) -> None:
        super().__init__(message)
        self.record = record


@contextmanager
def whole_update(step: int) -> Iterator[None]:
    """Raise TrainingError for too little memory inside, which may leave some weights of optimizer step `step` and some
    of the step before: nothing may be computed from them, nor saved."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"Out of memory in step {step}, while the optimizer changed the weights. Some may be changed already, so "
            "that the run ends here. Smaller micro-batches need as much at this point: close other programs, or take "
            "a smaller model."
        ) from error


def can_check_late(device: torch.device, precision: str, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Return True where `Trainer.check_late` gains time, and every optimizer heeds `found_inf`."""
    # fp16 is read in time: whether a step was skipped is a number in its report and in the state.
    if device.type != "cuda" or precision == "fp16":
        return False
    return all(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in optimizers)


class Trainer:
    """Training of one model. `steps()` is the algorithm; the methods below it are its parts, in order."""

    def __init__(
        self,
        model: TransformerLM,
        optimizers: list[torch.optim.Optimizer],
        data: TrainingData,
        config: TrainerConfig,
        schedule: ScheduleConfig,
        *,
        seed: int,
        micro_batch_size: int,
        grad_accum_steps: int,
        horizon: int,
        last_step: int,
        precision: str,
    ) -> None:
        self.model = model
        self.optimizers = optimizers
        self.data = data
        self.config = config
        self.schedule = schedule
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.grad_accum_steps = grad_accum_steps
        self.horizon = horizon  # optimizer step where the schedule ends
        self.last_step = last_step  # optimizer step where the run ends
        self.precision = precision
        self.device = next(model.parameters()).device
        keep_freed_memory(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.state = TrainState()
        self.averaged = None if config.ema_decay is None else AveragedWeights(model, config.ema_decay)
        self.forward = compiled_if_possible(model.hidden) if config.compile else model.hidden
        self.loss = LOSSES.get(config.loss.name)
        self.targets_multiple = targets_multiple(self.loss, self.device, precision)
        self.step_fields = [STEP_FIELDS.get(name) for name in config.step_fields]
        self.steps_per_epoch = data.steps_per_epoch(micro_batch_size * grad_accum_steps)
        self.stop_requested: Callable[[], bool] = lambda: False  # asked between two micro-batches
        self.found_inf: Tensor | None = None  # 1 after a step that was not finite; None: read before each update
        self.unread: StepCheck | None = None  # of the last step, with `check_late`
        if can_check_late(self.device, precision, optimizers):
            self.check_late()

    @property
    def done(self) -> bool:
        """True after the last step."""
        return self.state.step >= self.last_step

    @property
    def sequences_at_once(self) -> int:
        """Sequences of a forward pass: `micro_batch_size`, or fewer once the memory was too little for them."""
        return self.state.sequences_at_once or self.micro_batch_size

    @property
    def evaluated_model(self) -> TransformerLM:
        """The model to evaluate, to sample from and to publish: with averaged weights where the run keeps them."""
        return self.model if self.averaged is None else self.averaged.model

    def check_late(self) -> None:
        """Let the device decide whether a step is finite, and read that while it computes the next one.

        The CPU then queues work without waiting. After a step that was not finite no update changes weights or
        optimizer states, however late that is read: the optimizers get the flag as `found_inf`, as GradScaler gives it.
        """
        self.found_inf = torch.zeros((), device=self.device)
        for optimizer in self.optimizers:
            optimizer.found_inf = self.found_inf  # pyright: ignore[reportAttributeAccessIssue]

    def steps(self) -> Iterator[StepReport]:
        """Train until the last step, one report per optimizer step. A caller pauses by not asking for the next.

        Ends in the middle of a step when `stop_requested`: everything is then as it was before that step. Raises
        NonFiniteError; on CUDA (`check_late`) after the report of that step, when the next is asked for or `confirm` is
        called, with weights and `state` as they were before it.
        """
        while not self.done:
            began = time.monotonic()
            lr = self.set_learning_rate()
            step = self.gradients_within_memory()
            if step is None:
                return
            batches, check, overflowed, fields = step
            with whole_update(self.state.step + 1):
                self.update_weights(overflowed)
                self.average_weights()
            if self.found_inf is not None:
                self.confirm()  # the step before: the device has this one to compute while the CPU waits
                self.unread = check
            # After the step, so that a checkpoint saved at the yield counts exactly the steps that are in its weights.
            # And after the wait, without which a step's seconds would be those of queueing it.
            self.advance(batches, time.monotonic() - began)
            state = self.state
            yield StepReport(
                state.step, check.loss, check.grad_norm, lr, state.tokens, state.seconds, overflowed, fields
            )
        self.confirm()

    @property
    def learning_rate(self) -> float:
        """Current value of what `optimizer.lr` sets; matrices (muon) and embeddings may have another one."""
        return self.optimizers[-1].param_groups[0]["lr"]

    def set_learning_rate(self) -> float:
        """Scale every group's peak by the schedule; return the current value of what `optimizer.lr` sets.

        A momentum that warms up is set as well.
        """
        factor = learning_rate_factor(self.schedule, self.state.step, self.horizon)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = group["peak_lr"] * factor
            if "momentum_at" in group:
                group["momentum"] = group["momentum_at"](self.state.step)
        return self.learning_rate

    def gradients_within_memory(self) -> StepGradients | None:
        """Return what `compute_gradients` does, of as many `sequences_at_once` as the device has memory for.

        Where it has not, they are halved for good, down to one, and the step is taken again: the same sequences, the
        same loss and gradient up to rounding. From this step on the run is, bit for bit, one whose state said so before
        it. Raises the device's error where one sequence is too many.
        """
        before = generator_states(self.device)

        def compute(at_once: int) -> StepGradients | None:
            if at_once < self.sequences_at_once:
                self.state.sequences_at_once = at_once
            return self.compute_gradients()

        step, _ = within_memory(compute, self.sequences_at_once, self.device, undo=lambda: self.undo(before))
        if step is None:
            self.undo(before)
        return step

    def compute_gradients(self) -> StepGradients | None:
        """Compute all of a step that changes no weight; None when a stop was requested between two micro-batches."""
        batches = self.next_batches()
        loss = self.accumulate_gradients(batches)
        if loss is None:
            return None
        # Before clipping and step: a NaN norm as clipping factor spreads to every gradient, and one such step spoils
        # all weights. fp16's gradients are unscaled here: the check and the clipping need true ones.
        check = self.check(loss, batches)
        overflowed = self.raise_if_non_finite(check) if self.found_inf is None else False
        fields = self.measure_fields()
        self.clip_gradients(check.grad_norm)
        allocate_state(self.optimizers)  # what their first step would do after it has changed the first weights
        return StepGradients(batches, check, overflowed, fields)

    def next_batches(self) -> list[Batch]:
        """Return the micro-batches of this step, on the CPU, where their targets are counted without a sync."""
        state, rows_per_step = self.state, self.micro_batch_size * self.grad_accum_steps
        rows = self.data.batch_sequences(self.seed, state.epoch, state.step_in_epoch, rows_per_step)
        return self.data.in_batches(rows, self.sequences_at_once)

    def accumulate_gradients(self, batches: list[Batch]) -> Tensor | None:
        """Accumulate the gradient of the mean loss over all target tokens of the step; return that loss, shape ().

        None when a stop was requested between two micro-batches.
        """
        self.model.train()
        # Divided by the targets of the step and not of a micro-batch: 1 x 8 and 4 x 2 sequences have the same gradient.
        n_targets = max(1, sum(batch.n_targets for batch in batches))
        total = torch.zeros((), device=self.device)
        for n, batch in enumerate(batches):
            if n > 0 and self.stop_requested():
                return None
            here = batch.to(self.device)
            with autocast(self.device, self.precision):
                x_nd, targets_n = hidden_at_targets(
                    self.forward, here, batch.n_targets, batch.max_documents, self.targets_multiple
                )
                loss = self.loss(self.model.head, x_nd, targets_n, self.config.loss) / n_targets
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def undo(self, random: dict[str, Tensor]) -> None:
        """Return to the beginning of a step whose update has not begun, where the generators' states were `random`."""
        # A backward pass that failed has added to some of the gradients, a forward pass has drawn for its dropout.
        self.clear_gradients()
        restore_generators(random, self.device)
        # The scale stays. But a scaler unscales once a step, and only its update, or a new one, forgets that it did.
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.scaler.is_enabled())
        scaler.load_state_dict(self.scaler.state_dict())
        self.scaler = scaler

    def clear_gradients(self) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def check(self, loss: Tensor, batches: list[Batch]) -> StepCheck:
        """Compute, after removing fp16's scale from the gradients, whether this step is finite. Does not wait for it.

        With `check_late`, a step that is not finite stops this and all later updates.
        """
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        norms = torch._foreach_norm(list(gradients.values())) if gradients else [loss.new_zeros(())]  # pyright: ignore
        grad_norms = torch.stack(norms)
        grad_norm = torch.linalg.vector_norm(grad_norms)
        finite = torch.isfinite(torch.stack([loss, grad_norm]))
        if self.found_inf is not None:
            torch.maximum(self.found_inf, (~finite.all()).float(), out=self.found_inf)
        rows = [list(batch.rows) for batch in batches]
        before = replace(self.state)
        return StepCheck(
            copy_to_host(finite), loss, grad_norm, grad_norms, [*gradients], rows, self.learning_rate, before
        )

    def confirm(self) -> None:
        """Read the check of the last step, where that is still to do: before its results are logged, saved or judged.

        Raises NonFiniteError, with weights and `state` as they were before that step.
        """
        check, self.unread = self.unread, None
        if check is not None:
            self.raise_if_non_finite(check)

    def raise_if_non_finite(self, check: StepCheck) -> bool:
        """Wait for the check; return True when fp16's gradients overflowed, which its scaler answers with a skip.

        Raises NonFiniteError before a NaN or an infinity reaches the weights.
        """
        loss_is_finite, gradients_are_finite = check.finite().tolist()
        if loss_is_finite and (gradients_are_finite or self.precision == "fp16"):
            return not gradients_are_finite
        state = self.state = check.before
        loss, grad_norm = check.loss.item(), check.grad_norm.item()
        raise NonFiniteError(
            f"Step {state.step + 1}: the loss is {loss} and the gradient norm {grad_norm}. Stopped "
            "before they reached the weights. Lower optimizer.lr, or lengthen schedule.warmup_fraction.",
            {
                "step": state.step + 1,
                "epoch": state.epoch,
                "loss": repr(loss),
                "grad_norm": repr(grad_norm),
                "grad_norms": dict(zip(check.names, map(repr, check.grad_norms.tolist()), strict=True)),
                "rows": check.rows,
                "lr": check.lr,
                "scale": self.scaler.get_scale(),
                "precision": self.precision,
            },
        )

    def measure_fields(self) -> dict[str, float | Tensor]:
        """Return the fields of `trainer.step_fields`, while the gradients are there, unscaled and not yet clipped.

        Raises TrainingError for a key that is neither the field's name nor begins with it, as `power/gpu`.
        """
        fields: dict[str, float | Tensor] = {}
        for name, measure in zip(self.config.step_fields, self.step_fields, strict=True):
            new = measure(self)
            if wrong := [key for key in new if key != name and not key.startswith(f"{name}/")]:
                raise TrainingError(
                    f"trainer.step_fields={name}: gives {wrong[0]}. A field is called {name}, or {name}/... if there "
                    "are several."
                )
            if vectors := [key for key, value in new.items() if isinstance(value, Tensor) and value.ndim]:
                raise TrainingError(
                    f"trainer.step_fields={name}: {vectors[0]} must be a number or a tensor of shape ()."
                )
            fields |= new
        return fields

    def clip_gradients(self, grad_norm: Tensor) -> None:
        """Scale gradients down to a norm of `max_grad_norm`, if it is set."""
        if self.config.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.max_grad_norm, grad_norm)

    def update_weights(self, overflowed: bool) -> None:
        """Take the optimizers' step; none of them where fp16's gradients overflowed, and the scale falls instead.

        Raises TrainingError after 50 skips in a row or when the scale falls below 1, which does not recover.
        """
        # The scaler decides for each optimizer from its own gradients; of two optimizers both must step, or none.
        for optimizer in self.optimizers:
            if not overflowed:
                self.scaler.step(optimizer)
        self.clear_gradients()
        self.scaler.update()
        self.state.skipped_in_a_row = self.state.skipped_in_a_row + 1 if overflowed else 0
        if not overflowed:
            return
        scale = self.scaler.get_scale()
        if self.state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW or scale < 1:
            raise TrainingError(
                f"Step {self.state.step + 1}: fp16 gradients overflowed {self.state.skipped_in_a_row} times in a row "
                f"(scale {scale:g}). Use trainer.precision=bf16 or fp32, or lower optimizer.lr."
            )

    def average_weights(self) -> None:
        """Move the averaged weights, if the run keeps them, towards those of this step."""
        if self.averaged is not None:
            self.averaged.update(self.model, self.state.step + 1, self.found_inf)

    def advance(self, batches: list[Batch], seconds: float) -> None:
        """Count the step in `state`."""
        state = self.state
        state.step += 1
        state.step_in_epoch += 1
        state.tokens += sum(batch.inputs.numel() for batch in batches)
        state.seconds += seconds
        if state.step_in_epoch == self.steps_per_epoch:
            state.epoch, state.step_in_epoch = state.epoch + 1, 0

    def state_values(self) -> dict[str, Any]:
        """Return everything that resume needs except tensors, as plain JSON. Raises as `confirm` does."""
        self.confirm()
        return {"train": asdict(self.state), "scaler": self.scaler.state_dict()}

    def load_state_values(self, values: dict[str, Any]) -> None:
        """Restore what `state_values` returned."""
        self.state = TrainState(**values["train"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(values["scaler"])
