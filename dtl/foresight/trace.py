"""Memory of a training step, counted before it is taken: live storages of two fake steps with a run's own parts.

Under FakeTensorMode a tensor has a shape and no numbers. Model, loss and optimizers are built by the functions that a
run uses, so that a registered block or optimizer is counted like DTL's own. A trace takes time for each operator,
whatever the sizes: of a deep model two and three layers are traced, and each point of them is extrapolated in depth.
"""

import itertools
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, takewhile
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dtl.base.runtime import autocast
from dtl.data.batches import Batch, TrainingData
from dtl.foresight.process import has_mallinfo
from dtl.model.attention import DOCUMENT_KERNELS, AttentionFn, DocumentKernel, attend_padded, sdpa_attention
from dtl.model.config import ModelConfig
from dtl.model.transformer import TransformerLM
from dtl.training.config import OptimizerConfig, ScheduleConfig, TrainerConfig
from dtl.training.evaluate import summed_metrics
from dtl.training.loss import hidden_at_targets
from dtl.training.optimizer import build_optimizers
from dtl.training.trainer import Trainer

PARTS: tuple[str, ...] = ("weights", "gradients", "optimizer", "activations", "head", "backward", "evaluation")
ALIGNMENT = 64  # bytes: c10's allocator for CPUs
WITH_A_STORAGE = (96, 176, 24)  # bytes of small blocks: c10's StorageImpl and TensorImpl, and sizes
WITH_A_NODE = 16  # of the autograd graph
TRACED_LAYERS = (2, 3)  # of a deeper model
FORWARD, HEAD, BACKWARD, STEP, EVALUATION = "activations", "head", "backward", "optimizer", "evaluation"
END = "end"  # everything is freed, in an order that says nothing


@dataclass(frozen=True)
class StepShape:
    """Everything that the memory of a training step depends on."""

    model: ModelConfig
    vocab_size: int
    optimizer: OptimizerConfig
    trainer: TrainerConfig  # of it: loss, activation_checkpointing, ema_decay, max_grad_norm
    precision: str  # fp32 | bf16 | fp16
    rows: int  # sequences of a micro-batch
    n_micro_batches: int  # of a step
    seq_len: int
    n_targets: int  # of the micro-batch with the most
    kernel: str | None = None  # of packed documents; None: no document mask
    padded: tuple[int, int] | None = None  # kernel=padded: documents, and tokens of the longest; None: it uses the mask

    def with_layers(self, n_layers: int) -> "StepShape":
        """Return the shape with another depth."""
        return replace(self, model=replace(self.model, n_layers=n_layers))

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain values, for a cache key: of accumulation only whether there is any."""
        trainer = {name: getattr(self.trainer, name) for name in ("activation_checkpointing", "ema_decay")}
        rest = {"loss": asdict(self.trainer.loss), "clips": self.trainer.max_grad_norm is not None}
        plain = {name: value for name, value in vars(self).items() if name not in ("model", "optimizer", "trainer")}
        accumulates = min(2, self.n_micro_batches)
        parts = {"model": asdict(self.model), "optimizer": asdict(self.optimizer), "trainer": trainer | rest}
        return plain | parts | {"n_micro_batches": accumulates}


@dataclass(frozen=True)
class Peak:
    """Live bytes at the moment when a step, or an evaluation between steps, needs most, by part of `PARTS`."""

    parts: dict[str, float]
    moment: str  # phase in which it is reached
    heap: float  # times what is not weights: the heap of a C library that keeps freed pages; 1 where not known
    heap_failed: bool = False  # not known, or of one depth only, because a replay failed

    @property
    def total(self) -> float:
        return sum(self.parts.values())


class LiveStorages(TorchDispatchMode):
    """Records each storage that is created inside the mode, and when it is freed.

    `events` has for each the number of the storage, its bytes (-1 when freed) and the operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int, Any]] = []
        self.phases: list[tuple[str, int]] = []  # with the index of the first event
        self.phase_of: list[str] = []  # of each storage, in which it was created
        self.part_of: dict[int, str] = {}  # of storages that are known by what they hold
        self._numbers: dict[int, tuple[int, Any]] = {}  # by address: number, weak reference

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # A number of a tensor without numbers, such as whether any target of a chunk has no loss.
            return False if args[0].dtype == torch.bool else 1
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.see(x, func)
        return out

    def see(self, x: Tensor, operator: Any = None) -> int:
        """Count the storage of a tensor unless it is counted; return its number."""
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._numbers:
            return self._numbers[key][0]
        number = len(self.phase_of)
        n_bytes = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT if x.device.type != "meta" else 0

        def freed(_: Any) -> None:
            self._numbers.pop(key, None)
            self.events.append((number, -1, operator))

        self._numbers[key] = number, weakref.ref(storage, freed)
        self.events.append((number, n_bytes, operator))
        self.phase_of.append(self.phases[-1][0] if self.phases else FORWARD)
        return number

    def begin(self, phase: str) -> None:
        """Begin a phase: what is created from here on belongs to it, unless `hold` says otherwise."""
        self.phases.append((phase, len(self.events)))

    def hold(self, part: str, tensors: Sequence[Tensor | None]) -> None:
        """Count the storages of these tensors to a part, from their creation on."""
        for x in tensors:
            if x is not None:
                self.part_of[self.see(x)] = part

    def allocations(self) -> Iterator[tuple[int, int, bool]]:
        """Yield what the C library is asked for: a number, its bytes (-1 when freed), and whether it is a tensor's.

        With each storage a few small blocks are allocated, and some of them live until the backward pass has freed the
        graph: they keep the holes between freed tensors apart. Their sizes are the most frequent ones of real steps.
        """
        ends = {start for name, start in self.phases if name == STEP}
        numbers, nodes = itertools.count(), list[int]()
        blocks: dict[int, list[int]] = {}
        for at, (storage, n_bytes, _) in enumerate(self.events):
            if at in ends:
                yield from ((number, -1, False) for number in nodes)
                nodes.clear()
            if n_bytes < 0:
                yield from ((number, -1, False) for number in reversed(blocks.pop(storage)))
                continue
            sizes = [(n_bytes, True), *((size, False) for size in WITH_A_STORAGE), (WITH_A_NODE, False)]
            made = [(next(numbers), size, is_tensor) for size, is_tensor in sizes]
            yield from made
            *own, node = (number for number, _, _ in made)
            blocks[storage] = own
            nodes.append(node)

    def timeline(self) -> "Timeline":
        """Return live bytes by part after each event."""
        names = {name: column for column, name in enumerate(PARTS)}
        live = np.zeros((len(self.events) + 1, len(PARTS)))
        sizes: dict[int, int] = {}
        for at, (number, n_bytes, _) in enumerate(self.events):
            column = names[self.part_of.get(number, self.phase_of[number])]
            live[at + 1] = live[at]
            if n_bytes >= 0:
                sizes[number] = n_bytes
                live[at + 1, column] += n_bytes
            else:
                live[at + 1, column] -= sizes[number]
        ends = [*(start for _, start in self.phases[1:]), len(self.events)]
        bounds = [(name, start, end) for (name, start), end in zip(self.phases, ends, strict=True)]
        # By its size, too, where a tensor belongs to a parameter: an optimizer makes its states by one operator.
        labels = [
            (operator, n_bytes if number in self.part_of else n_bytes >= 0) for number, n_bytes, operator in self.events
        ]
        return Timeline(live[1:], bounds, labels)


@dataclass(frozen=True)
class Timeline:
    """Live bytes (events, parts) of a trace, its phases, and the operator of each event."""

    live: np.ndarray
    phases: list[tuple[str, int, int]]  # name, first event, end
    labels: list[tuple[Any, int]]

    def peak(self) -> tuple[np.ndarray, str]:
        """Return the live bytes by part where they are most, and the name of the phase."""
        at = int(self.live.sum(axis=1).argmax())
        return self.live[at], next(name for name, start, end in self.phases if start <= at < end)

    def extrapolated(self, other: "Timeline", steps: int) -> tuple[np.ndarray, str]:
        """Return the peak of a model that is `steps` layers deeper than `other`, which has one layer more than this.

        All layers are alike. Inside a layer a point lies higher by the same number of bytes in each further layer, so
        that each phase peaks in its first or in its last ones: these are compared, operator by operator, from the
        beginning and from the end of the phase, where both traces have the same operators.
        """
        best: tuple[np.ndarray, str] | None = None
        for (name, start, end), (_, other_start, other_end) in zip(self.phases, other.phases, strict=True):
            if name == END:
                continue
            labels, others = self.labels[start:end], other.labels[other_start:other_end]
            n_first = _n_equal(labels, others)
            n_last = _n_equal(labels[::-1], others[::-1])
            pairs = [(start + n, other_start + n) for n in range(n_first)]
            pairs += [(end - 1 - n, other_end - 1 - n) for n in range(n_last)]
            if not pairs:
                continue
            here, there = (np.array(column) for column in zip(*pairs, strict=True))
            points = other.live[there] + steps * (other.live[there] - self.live[here])
            highest = points[points.sum(axis=1).argmax()]
            if best is None or highest.sum() > best[0].sum():
                best = highest, name
        assert best is not None
        return best


def _n_equal(left: Sequence[Any], right: Sequence[Any]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


# --- two steps --------------------------------------------------------------------------------------------------------


class _NoData:
    """The training data of a trace: only the trainer's length depends on it."""

    def steps_per_epoch(self, _: int) -> int:
        return 1


class _KnownBatch(Batch):
    """A micro-batch whose number of targets and of documents is known without reading it."""

    known = (0, 0)

    @property
    def n_targets(self) -> int:
        return self.known[0]

    @property
    def max_documents(self) -> int | None:
        return self.known[1]


def _batch(shape: StepShape) -> Batch:
    has_documents = shape.kernel is not None
    numbers = [torch.zeros(shape.rows, shape.seq_len, dtype=torch.int64) for _ in range(4 if has_documents else 2)]
    inputs, targets, positions, documents = (*numbers, None, None)[:4]
    assert inputs is not None and targets is not None
    own = type("_KnownBatch", (_KnownBatch,), {"known": (shape.n_targets, shape.rows)})
    return own(inputs, targets, positions, documents, rows=())


@contextmanager
def _kernel(shape: StepShape) -> Iterator[str]:
    """Name a kernel of packed documents that reads no number: that of the shape, with its sizes."""

    def padded(documents_bt: Tensor, max_documents: int | None = None) -> AttentionFn:
        assert shape.padded is not None
        return attend_padded(documents_bt, rearrange(documents_bt, "b t -> (b t)"), *shape.padded)

    def fused(documents_bt: Tensor, max_documents: int | None = None) -> AttentionFn:
        """varlen and flex keep what a causal kernel keeps: the output and a number for each query."""
        return partial(sdpa_attention, mask_bts=None)

    kernels: dict[str, DocumentKernel] = {"varlen": fused, "flex": fused}
    if shape.padded is not None:
        kernels["padded"] = padded
    if shape.kernel not in kernels:
        yield "sdpa" if shape.kernel in (None, "padded") else shape.kernel
        return
    DOCUMENT_KERNELS["traced"] = kernels[shape.kernel]
    try:
        yield "traced"
    finally:
        del DOCUMENT_KERNELS["traced"]


def recorded(shape: StepShape) -> LiveStorages:
    """Trace two optimizer steps, since the optimizers' state appears at the end of the first, and an evaluation."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # with what it imports a second, for this alone

    class Mode(FakeTensorMode):
        """A mode that a copy of a model does not copy, too: its tensors could not meet the model's."""

        def __deepcopy__(self, memo: Any) -> "Mode":
            return self

    live = LiveStorages()
    with warnings.catch_warnings(), Mode(), _kernel(shape) as kernel, live:
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by a copy of the weights
        live.begin("weights")
        model = TransformerLM(shape.model, shape.vocab_size)
        model.activation_checkpointing = shape.trainer.activation_checkpointing
        model.document_kernel = kernel
        live.hold("weights", list(model.parameters()))
        trainer = Trainer(
            model,
            build_optimizers(model, shape.optimizer),
            cast(TrainingData, _NoData()),
            replace(shape.trainer, compile=False, step_fields=[]),
            ScheduleConfig(),
            seed=0,
            micro_batch_size=shape.rows,
            grad_accum_steps=shape.n_micro_batches,
            horizon=2,
            last_step=2,
            precision=shape.precision,
        )
        if trainer.averaged is not None:
            live.hold("weights", list(trainer.averaged.model.parameters()))
        _in_phases(trainer, live)
        for _ in range(2):
            _step(trainer, shape, live)
            # Its update would read a number, without which it refuses the next step.
            trainer.scaler = torch.amp.GradScaler(trainer.device.type, enabled=shape.precision == "fp16")
        live.begin(EVALUATION)
        _evaluate(trainer, shape)
        live.begin(END)
    return live


def _in_phases(trainer: Trainer, live: LiveStorages) -> None:
    """Let the parts of a forward pass announce their phases."""
    forward, loss = trainer.forward, trainer.loss

    def phased(phase: str, function: Callable[..., Any], after: str | None = None) -> Callable[..., Any]:
        def calling(*arguments: Any) -> Any:
            live.begin(phase)
            result = function(*arguments)
            if after is not None:
                live.begin(after)
            return result

        return calling

    trainer.forward, trainer.loss = phased(FORWARD, forward), phased(HEAD, loss, after=BACKWARD)


def _step(trainer: Trainer, shape: StepShape, live: LiveStorages) -> None:
    """The verbs of `Trainer.steps` without those that read a number."""
    trainer.set_learning_rate()
    loss = None
    for _ in range(min(2, shape.n_micro_batches)):
        loss = trainer.accumulate_gradients([_batch(shape)])
        live.hold("gradients", [p.grad for p in trainer.model.parameters()])
    assert loss is not None
    live.begin(STEP)
    check = trainer.check(loss, [])
    trainer.clip_gradients(check.grad_norm)
    for optimizer in trainer.optimizers:
        optimizer.step()
    states = chain.from_iterable(state.values() for o in trainer.optimizers for state in o.state.values())
    live.hold("optimizer", [value for value in states if isinstance(value, Tensor)])
    trainer.clear_gradients()
    trainer.average_weights()


@torch.inference_mode()
def _evaluate(trainer: Trainer, shape: StepShape) -> None:
    model, batch = trainer.evaluated_model.eval(), _batch(shape)
    with autocast(trainer.device, shape.precision):
        x_nd, targets_n = hidden_at_targets(model.hidden, batch, batch.n_targets, batch.max_documents)
        summed_metrics(model.head, x_nd, targets_n, ())


# --- the peak -----------------------------------------------------------------------------------------------------


def traced_peak(shape: StepShape, heap_growth: Callable[[Iterable[tuple[int, int, bool]]], float | None]) -> Peak:
    """Return the peak of a training step of this shape, or of an evaluation after it.

    `heap_growth` returns the bytes that the C library's heap needs for allocations; None where it is not known.
    """
    depth = shape.model.n_layers
    if depth <= TRACED_LAYERS[-1]:
        traces = [recorded(shape)]
        live, moment = traces[0].timeline().peak()
    else:
        traces = [recorded(shape.with_layers(n)) for n in TRACED_LAYERS]
        few, more = (trace.timeline() for trace in traces)
        live, moment = few.extrapolated(more, depth - TRACED_LAYERS[-1])
    # Which hole a tensor falls into is a matter of luck: the mean of two depths is nearer to a deep model's.
    factors = [factor for trace in traces if (factor := _heap_factor(trace, heap_growth)) is not None]
    heap = max(1.0, sum(factors) / len(factors)) if factors else 1.0
    failed = len(factors) < len(traces) and has_mallinfo()
    return Peak(dict(zip(PARTS, live.tolist(), strict=True)), moment, heap, failed)


def _heap_factor(
    trace: LiveStorages, heap_growth: Callable[[Iterable[tuple[int, int, bool]]], float | None]
) -> float | None:
    """Return how many times as much as what is not weights the heap needs for it; None where that is not known."""
    heap, live = heap_growth(trace.allocations()), trace.timeline().peak()[0]
    weights = live[PARTS.index("weights")]
    return None if heap is None else (heap - weights) / (live.sum() - weights)
