"""Peak memory of a run before it starts: from config and data to parts, their sum, and the first setting that fits."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtl.base.runtime import DTYPES, choose_device, choose_precision, cpu_has_bf16
from dtl.base.system import resident_memory
from dtl.base.units import in_gib
from dtl.checkpoints.load import load_tokenizer, read_model_config
from dtl.config import RunConfig
from dtl.data.batches import PackedSequences, TrainingData
from dtl.data.cache import Cache, cache_folder, key_of
from dtl.data.config import TokenizerConfig
from dtl.data.pack import count_targets
from dtl.data.prepare import PreparedData, encode_and_pack
from dtl.data.sources import SourcePlan
from dtl.data.tokenizers.tokenizer import LARGE_VOCABULARY, Tokenizer
from dtl.errors import DoesNotFitError
from dtl.foresight.machine import Machine, this_machine
from dtl.foresight.process import (
    GAPS_UNKNOWN,
    NotCachedError,
    OnlyCached,
    ProcessMemory,
    ReplayFailedError,
    heap_growth,
    not_prepared,
    process_memory,
)
from dtl.foresight.trace import PARTS, Peak, StepShape, traced_peak
from dtl.model.kernel_choice import KernelContext, choose_kernel
from dtl.run_dir.trial import current_trial
from dtl.runner.build import Parts, on_meta, with_init
from dtl.runner.length import with_total_steps
from dtl.runner.run import next_smaller, with_batch

CHECKED_EPOCHS = 3  # whose micro-batches are looked at
REFUSED = 1.15  # times what is there: beyond, a run is not started
# CUDA: context and cuBLAS' workspace, and what the caching allocator rounds and leaves between. Not measured: no GPU.
CUDA_CONTEXT, CUDA_FACTOR = 500 * 2**20, 1.06
NOT_VALIDATED = "not validated on a GPU"


# --- data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataFacts:
    """What the memory of a step depends on in the data."""

    vocab_size: int
    n_targets: int  # of the micro-batch with the most
    padded: tuple[int, int] | None = None  # documents and the longest one's tokens, of the largest micro-batch
    n_bytes: int = 0  # of tokens and tokenizer in the process
    is_read: bool = True  # False: from the configuration alone


def facts_of_data(config: RunConfig, data: PreparedData, vocab_size: int) -> DataFacts:
    """Return the facts of prepared data: those of the largest micro-batches in the first epochs' order."""
    return DataFacts(vocab_size, *largest_micro_batch(config, data.train))


def facts_of_config(config: RunConfig, vocab_size: int) -> DataFacts:
    """Return the facts of data that is not there yet: every position has a target."""
    return DataFacts(vocab_size, config.micro_batch_size * config.seq_len, is_read=False)


def largest_micro_batch(config: RunConfig, train: TrainingData) -> tuple[int, tuple[int, int] | None]:
    """Return the most targets of a micro-batch; and documents and longest document of the one that pads most."""
    full = config.micro_batch_size * config.seq_len
    if all(not rows.document_mask and rows.n_targets == len(rows) * rows.seq_len for rows in train.rows.values()):
        return full, None
    targets, documents, longest = (
        np.concatenate(column) for column in zip(*map(_per_sequence, train.rows.values()), strict=True)
    )
    n_targets, padded, masked = 0, None, False
    for epoch in range(min(CHECKED_EPOCHS, config.max_epochs or 1)):
        order = train.epoch_sequences(config.seed, epoch)
        starts = np.arange(0, len(order), config.micro_batch_size)
        n_targets = max(n_targets, int(np.add.reduceat(targets[order], starts).max()))
        if not config.data.document_mask:
            continue
        n_documents, most = np.add.reduceat(documents[order], starts), np.maximum.reduceat(longest[order], starts)
        rows = np.diff(starts, append=len(order))
        pads = 2 * n_documents * most**2 <= rows * config.seq_len**2  # see `padded_documents`
        masked = masked or not pads.all()
        size = np.where(pads, n_documents * most, 0)
        at = int(size.argmax())
        if size[at] and (padded is None or size[at] > padded[0] * padded[1]):
            padded = int(n_documents[at]), int(most[at])
    # With dropout every pair of a sequence is kept where the mask is used.
    return n_targets, None if masked and config.model.resolved_attention_dropout else padded


def _per_sequence(rows: PackedSequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return targets, documents (those of the padding, too) and tokens of the longest document of each sequence."""
    packing, starts = rows.packing, rows.packing.sequence_offsets[:-1]
    lengths = packing.lengths.astype(np.int64)
    targets = lengths if rows.loss_mask is None else count_targets(packing.starts, packing.lengths, rows.loss_mask)
    padding, longest = packing.seq_len - np.add.reduceat(lengths, starts), np.maximum.reduceat(lengths, starts)
    of_padding = rows.padding_length(longest)
    documents = np.diff(packing.sequence_offsets) + -(-padding // of_padding)
    return np.add.reduceat(targets, starts), documents, np.maximum(longest, np.minimum(padding, of_padding))


# --- shape and trace ----------------------------------------------------------------------------------------------


def shape_of(config: RunConfig, facts: DataFacts, precision: str, kernel: str | None, device_type: str) -> StepShape:
    """Return what a step's memory depends on; `config` is the run's own on its device (`RunConfig.on`)."""
    model = config.model
    if device_type == "cuda":  # its fused kernels keep no scores for dropout, which a CPU's do
        model = replace(model, attention_dropout=0.0)
    return StepShape(
        model=model,
        vocab_size=facts.vocab_size,
        optimizer=config.optimizer,
        trainer=config.trainer,
        precision=precision,
        rows=config.micro_batch_size,
        n_micro_batches=config.grad_accum_steps,
        seq_len=config.seq_len,
        n_targets=facts.n_targets,
        kernel=kernel if config.data.document_mask and config.data.layout == "packed" else None,
        padded=facts.padded if kernel == "padded" else None,
    )


def peak_of(shape: StepShape, cache: Cache) -> Peak:
    """Return the traced peak of a shape, kept in the cache unless a replay of its heap failed."""
    made: list[Peak] = []

    def build(_: Path) -> dict[str, Any]:
        made.append(traced_peak(shape, heap_growth))
        if made[0].heap_failed:
            raise ReplayFailedError
        return asdict(made[0])

    with suppress(ReplayFailedError):
        if (entry := cache.get(trace_name(shape), build)) is not None:
            return Peak(**entry.facts)
    return made[0] if made else traced_peak(shape, heap_growth)


def trace_name(shape: StepShape) -> str:
    """Return the name of a shape's trace in the cache: other code, torch or shape has another one."""
    import dtl.foresight.process
    import dtl.foresight.trace
    import dtl.model.attention
    import dtl.model.transformer
    import dtl.training.averaging
    import dtl.training.loss
    import dtl.training.optimizer
    import dtl.training.trainer

    modules = (
        dtl.foresight.process, dtl.foresight.trace, dtl.model.attention, dtl.model.transformer, dtl.training.averaging,
        dtl.training.loss, dtl.training.optimizer, dtl.training.trainer,
    )  # fmt: skip
    code = [Path(module.__file__ or "").read_text() for module in modules]
    parts = {"torch": str(torch.__version__), "shape": json.dumps(shape.facts(), default=str)}
    return f"memory-{key_of(code=code, **parts)}"


# --- prediction ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """Peak memory of a run on a device, by part, in bytes."""

    parts: dict[str, float]
    moment: str  # phase of the step in which it is reached
    facts: DataFacts = field(repr=False)

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def fits(self, machine: Machine) -> bool:
        """Return True when it is within what the machine has free, or that is not known."""
        return machine.free is None or self.total <= machine.free


SHOWN = {"backward": "gradients of activations", "optimizer": "optimizer state"}


def predicted(peak: Peak, facts: DataFacts, process: ProcessMemory | None, device_type: str) -> Prediction:
    """Return the peak of the whole process (of the card for CUDA) from that of a step.

    `process` is what the process takes besides; None: not known here, nothing is added.
    """
    parts = {SHOWN.get(name, name): n_bytes for name, n_bytes in peak.parts.items() if n_bytes}
    if device_type == "cuda":
        parts["gaps between tensors"] = (CUDA_FACTOR - 1) * peak.total
        parts["context and libraries"] = CUDA_CONTEXT
        return Prediction(parts, peak.moment, facts)
    parts["gaps between tensors"] = (peak.heap - 1) * (peak.total - peak.parts["weights"])
    if process is not None:
        parts["data and tokenizer"] = max(0, facts.n_bytes - process.preparing)
        parts["Python, torch, libraries"] = process.total
    return Prediction({name: n_bytes for name, n_bytes in parts.items() if n_bytes}, peak.moment, facts)


@dataclass
class Setting:
    """A run as it would be on a machine, and what its memory depends on besides its config."""

    config: RunConfig  # on its device
    machine: Machine
    device_type: str
    precision: str
    has_bf16: bool
    kernel: str | None
    facts: DataFacts
    train: TrainingData | None  # None: not read
    process: ProcessMemory | None
    cache: Cache
    notes: list[str]
    data: PreparedData | None = None  # None: not read

    def predict(self, config: RunConfig) -> Prediction:
        """Return the prediction for this config, or for one with a smaller step of the same data."""
        facts = self.facts
        if config.tokenizer != self.config.tokenizer:
            facts = replace(facts_of_config(config, vocabulary_of(config)), n_bytes=facts.n_bytes)
        elif config.micro_batch_size != self.config.micro_batch_size:
            n_targets, padded = config.micro_batch_size * config.seq_len, None
            if self.train is not None:
                n_targets, padded = largest_micro_batch(config, self.train)
            facts = replace(facts, n_targets=n_targets, padded=padded)
        asked = config.trainer.precision
        precision = self.precision if asked == self.config.trainer.precision else asked
        peak = peak_of(shape_of(config, facts, precision, self.kernel, self.device_type), self.cache)
        if peak.heap_failed and self.device_type == "cpu" and GAPS_UNKNOWN not in self.notes:
            self.notes.append(GAPS_UNKNOWN)
        return predicted(peak, facts, self.process, self.device_type)

    def held(self, prediction: Prediction) -> float:
        """Return the bytes that the run needs with any micro-batch: the optimizer has weights, gradients and states."""
        weights = prediction.parts["weights"]
        gradients = weights if self.config.trainer.ema_decay is None else weights / 2
        others = ("optimizer state", "data and tokenizer", "Python, torch, libraries", "context and libraries")
        return weights + gradients + sum(prediction.parts.get(name, 0) for name in others)


def setting_of(
    config: RunConfig,
    plans: Sequence[SourcePlan],
    init_from: Path | None,
    machine: Machine | None,
    log: Callable[[str], None],
) -> Setting:
    """Return the setting of a run on a machine, None for this one. Data is read where the cache has it."""
    cache = Cache(cache_folder(config.data.cache_dir))
    if machine is not None and machine.device_type == "cuda":
        device_type, has_bf16, process = "cuda", not machine.name.startswith(WITHOUT_BF16), None
        asked = config.trainer.precision
        precision = asked if asked != "auto" else "bf16" if has_bf16 else "fp32"
    else:
        device = torch.device("cpu") if machine else choose_device(config.device)[0]
        device_type, has_bf16 = device.type, device.type == "cuda" or cpu_has_bf16()
        precision = choose_precision(config.trainer.precision, device)[0]
    calibration = None if device_type == "cuda" else process_memory(config.tracker.kind, precision, cache, log)
    found = with_data(config, plans, init_from, device_type)
    config, data = found.config, found.data
    notes = [f"CUDA: {NOT_VALIDATED}."] if device_type == "cuda" else []
    if data is None:
        facts = facts_of_config(config, found.vocab_size)
        notes.append(not_prepared(config.data.cache_dir))
    else:
        facts = replace(facts_of_data(config, data, found.vocab_size), n_bytes=found.n_bytes)
    kernel = _kernel(config, data, precision, device_type)
    process = calibration() if calibration else None
    if device_type == "cpu" and process is None:
        notes.append("What Python and the libraries need is not known on this system, and is not in the sum.")
    train = None if data is None else data.train
    machine = machine or this_machine(device_type)
    return Setting(
        config, machine, device_type, precision, has_bf16, kernel, facts, train, process, cache, notes, data
    )  # fmt: skip


@dataclass(frozen=True)
class WithData:
    """A run's config as `build_run` would have it, with its data where that is prepared."""

    config: RunConfig  # on its device, with its length in steps
    vocab_size: int
    data: PreparedData | None
    n_bytes: int  # of tokens and tokenizer in this process


def with_data(config: RunConfig, plans: Sequence[SourcePlan], init_from: Path | None, device_type: str) -> WithData:
    """Return a run on a type of device with what is known of it before its data is prepared, or after."""
    tokenizer: TokenizerConfig | Tokenizer = config.tokenizer
    vocab_size = 0
    if init_from is not None:
        saved, vocab_size = read_model_config(init_from)
        config, tokenizer = with_init(config, init_from, saved), load_tokenizer(init_from)
    config = config.on(device_type)
    data, n_bytes = _cached_data(config, plans, tokenizer)
    vocab_size = vocab_size or (vocabulary_of(config) if data is None else data.tokenizer.vocab_size)
    return WithData(planned_length(config, data, vocab_size), vocab_size, data, n_bytes)


def planned_length(config: RunConfig, data: PreparedData | None, vocab_size: int) -> RunConfig:
    """Return the config with its length in steps, as `build_run` would have it."""
    if not {"tokens", "tokens_per_parameter"} & {*config.trainer.lengths}:
        return config
    return with_total_steps(config, None if data is None else data.train, on_meta(config, vocab_size)[0])


WITHOUT_BF16 = ("t4", "v100")
GPT2_VOCABULARY, BYTE_VOCABULARY, CHARACTERS = 50_257, 258, 100


def vocabulary_of(config: RunConfig) -> int:
    """Return the entries of a tokenizer that is not built yet: of characters a guess for English, else at most."""
    known = {"gpt2": GPT2_VOCABULARY, "byte": BYTE_VOCABULARY, "char": CHARACTERS}
    return known.get(config.tokenizer.kind) or config.tokenizer.vocab_size or LARGE_VOCABULARY


def _cached_data(
    config: RunConfig, plans: Sequence[SourcePlan], tokenizer: "TokenizerConfig | Tokenizer"
) -> tuple[PreparedData | None, int]:
    """Return the data where nothing has to be downloaded, read or trained for it, and its bytes in this process."""
    before = resident_memory() or 0
    cache = OnlyCached(cache_folder(config.data.cache_dir))
    try:
        data = encode_and_pack(config.data, plans, tokenizer, config.seq_len, config.seed, cache, lambda message: None)
    except NotCachedError:
        return None, 0
    return data, max(0, (resident_memory() or 0) - before)


def _kernel(config: RunConfig, data: PreparedData | None, precision: str, device_type: str) -> str | None:
    """Return the kernel of packed documents that the run will choose; None without documents."""
    if not config.data.document_mask or config.data.layout != "packed":
        return None
    if device_type == "cuda":
        return "varlen" if config.model.attention == "auto" else config.model.attention
    if data is None:
        return "sdpa"
    rows = data.train.batch_sequences(config.seed, 0, 0, config.micro_batch_size)
    given = KernelContext(
        documents_bt=data.train.batch(rows).documents,
        dtype=DTYPES[precision],
        deterministic=config.trainer.deterministic,
        compiled=config.trainer.compile,
    )
    return choose_kernel(config.model, given).name


# --- the start of a run -------------------------------------------------------------------------------------------


def at_most(shape: StepShape, n_parameters: int) -> float:
    """Return bytes that a step does not need in all likelihood, without tracing it: twice what a transformer keeps.

    Of weights, gradients, two moments and a copy for an average; of each layer 20 tensors of its width and six of its
    mlp's, and three of attention scores; of the logits four.
    """
    model, tokens = shape.model, shape.rows * shape.seq_len
    layer = tokens * (20 * model.dim + 6 * model.resolved_ffn_dim) + 3 * model.n_heads * tokens * shape.seq_len
    return 2 * 4 * (5 * n_parameters + model.n_layers * layer + 4 * shape.n_targets * shape.vocab_size)


LIBRARIES = 20 * 2**20  # where `ProcessMemory` is not measured yet: two processors had 18 MiB


def foresee(parts: Parts) -> list[tuple[str, str]]:
    """Return the start screen's row about the memory of a run that is built: where dtl.plan has traced its shape.

    A trace takes some seconds, which nobody waits for before a run; a trial of a sweep, which nobody watches, is traced
    where it is not certain to fit. Raises DoesNotFitError for a new run that needs more than `REFUSED` times what is
    there, unless `trainer.check_memory` is false. On a GPU, whose steps are split where memory runs out, that is a run
    of which a single sequence needs more.
    """
    config, device, at_once = parts.config, parts.device, parts.trainer.sequences_at_once
    machine, checks = this_machine(device.type), parts.config.trainer.check_memory and parts.resumed_from is None
    if at_once < config.micro_batch_size:
        config = with_batch(config, at_once, -(-config.global_batch_size // at_once))
    shape = _shape_of(parts, config)
    traces = current_trial() is not None and checks
    traces = traces and machine.free is not None and at_most(shape, parts.model.n_parameters()) > machine.free
    folder = cache_folder(config.data.cache_dir)
    try:
        peak = peak_of(shape, Cache(folder) if traces else OnlyCached(folder))
    except NotCachedError:
        return []
    if machine.free is None:
        return []
    total, there = _total(parts, peak), _held(parts, peak) + machine.free
    split = ""
    if total > REFUSED * there and checks:
        smallest = with_batch(config, 1, config.global_batch_size)
        if device.type == "cpu" or config.micro_batch_size == 1:
            raise DoesNotFitError(_refusal(config, total, there, machine))
        needed = _total(parts, peak_of(_shape_of(parts, smallest), Cache(folder)))
        if needed > REFUSED * there:
            raise DoesNotFitError(_refusal(smallest, needed, there, machine))
        split = f"; it fits split: {in_gib(needed)} with one sequence at once"
    largest = max((name for name in peak.parts if name != "weights"), key=peak.parts.__getitem__)
    what = f"about {in_gib(total)} at the peak, of {in_gib(there)}; most of a step are {SHOWN.get(largest, largest)}"
    return [("memory", f"{what}{split}{f' ({NOT_VALIDATED})' if device.type == 'cuda' else ''}")]


def _shape_of(parts: Parts, config: RunConfig) -> StepShape:
    """Return the shape of a built run's step with this config's micro-batch."""
    facts = facts_of_data(config, parts.data, parts.tokenizer.vocab_size)
    return shape_of(config, facts, parts.precision, parts.attention.name, parts.device.type)


def _held(parts: Parts, peak: Peak) -> float:
    """Return the bytes that a built run has before its first step."""
    now = resident_memory()
    return peak.parts["weights"] if now is None or parts.device.type != "cpu" else now


def _total(parts: Parts, peak: Peak) -> float:
    """Return the bytes that a built run has at its peak."""
    held, weights = _held(parts, peak), peak.parts["weights"]
    if parts.device.type != "cpu" or resident_memory() is None:
        # The weights are on the card already, which shows less of it as free.
        return held + predicted(peak, DataFacts(0, 0), None, parts.device.type).total - weights
    return held + LIBRARIES + peak.heap * (peak.total - weights)


def _refusal(config: RunConfig, total: float, there: float, machine: Machine) -> str:
    return (
        f"This run needs about {in_gib(total)} at its peak, and {in_gib(there)} are there ({machine.why}). "
        f"Try next: {next_smaller(config)}. What needs it, and the first setting that fits: "
        "python -m dtl.plan with the same words. To start it all the same: trainer.check_memory=false"
    )


def ordered(parts: dict[str, float]) -> Sequence[tuple[str, float]]:
    """Return the parts in the order of a step."""
    order = [*(SHOWN.get(name, name) for name in PARTS)]
    return sorted(parts.items(), key=lambda part: order.index(part[0]) if part[0] in order else len(order))
