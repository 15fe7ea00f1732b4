"""The parts of a run, built from its config: device, data, model, optimizers, trainer. Takes no step."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dtl.base.display import command_line, shown
from dtl.base.runtime import (
    DTYPES,
    choose_device,
    choose_precision,
    device_memory,
    fingerprint,
    fingerprint_difference,
    restore_random_state,
    seed_everything,
)
from dtl.base.units import in_bytes, in_gib
from dtl.checkpoints.load import (
    load_tokenizer,
    load_trained_weights,
    load_training_state,
    load_weights,
    read_model_config,
)
from dtl.config import RunConfig, to_dict
from dtl.data.batches import TrainingData
from dtl.data.prepare import PreparedData, prepare_data
from dtl.data.sources import SourcePlan
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.errors import CheckpointError, ConfigError
from dtl.model.config import KEPT_WITH_INIT, ModelConfig
from dtl.model.kernel_choice import KernelChoice, KernelContext, choose_kernel
from dtl.model.transformer import TransformerLM
from dtl.run_dir.own_config import new_run, other_places, with_data_found
from dtl.run_dir.state import read_config
from dtl.runner.length import RunLength, with_total_steps
from dtl.runner.memory import FittingSequences
from dtl.runner.remaining import EVALUATION
from dtl.training.optimizer import build_optimizers, load_optimizer_tensors, numbers_per_weight
from dtl.training.schedule import learning_rate_factor
from dtl.training.trainer import Trainer
from dtl.training.transfer import scale_initial_weights

OUTPUTS = Path("outputs")


@dataclass
class Parts:
    """All parts of a run."""

    config: RunConfig
    device: torch.device
    device_reason: str
    precision: str
    precision_reason: str
    machine_reason: str  # why trainer.machine=auto chose its profile; empty where nothing was chosen
    tokenizer: Tokenizer
    data: PreparedData
    model: TransformerLM
    attention: KernelChoice
    trainer: Trainer
    length: RunLength
    fingerprint: dict[str, Any]
    fitting: FittingSequences
    notes: list[str]
    resumed_from: Path | None = None
    tracker_run_id: str | None = None


def raise_if_resume(config: RunConfig) -> None:
    """Raise ConfigError for a config that resumes a run: in Python it would silently start a new one."""
    if config.resume is not None:
        raise ConfigError(
            f"resume={config.resume}: a run is resumed by the command, "
            f"{command_line('train', f'resume={config.resume}')}. "
            "From Python, start a new run from its weights with init=."
        )


def build_run(
    config: RunConfig,
    plans: Sequence[SourcePlan],
    resume_from: Path | None,
    init_from: Path | None,
    progress: Callable[[str], None],
) -> Parts:
    """Build all parts. `resume_from` is a checkpoint of this run, `init_from` one to start a new run from.

    Raises ConfigError, DataError or CheckpointError for parts that cannot be built.
    """
    device, device_reason = choose_device(config.device)
    precision, precision_reason = choose_precision(config.trainer.precision, device)
    machine_reason = _machine_reason(config, device) if resume_from is None else ""
    seed_everything(config.seed)
    tokenizer = load_tokenizer(start_from) if (start_from := resume_from or init_from) else config.tokenizer
    saved_model, vocab_size = read_model_config(start_from) if start_from else (config.model, 0)
    if init_from:
        config = with_init(config, init_from, saved_model)
    # A resumed run keeps its batches, on whatever machine. Of init= the context is known only now, and with it beta2.
    config = config if resume_from else config.on(device.type)
    data = prepare_data(config.data, tokenizer, config.seq_len, config.seed, progress, plans, check_later=True)
    _raise_if_too_large(config, vocab_size or data.tokenizer.vocab_size, device)
    seed_everything(config.seed)  # again: the initial weights must not depend on what preparing the data drew
    model = _build_model(config, data.tokenizer, start_from, vocab_size).to(device)
    model.activation_checkpointing = config.trainer.activation_checkpointing
    saved = load_training_state(resume_from) if resume_from else None
    attention = choose_attention(config, model, data.train, precision, saved[0] if saved else {})
    model.document_kernel = attention.name
    asked, config = config.trainer, with_total_steps(config, data.train, model)
    length = RunLength.of(config, data.train.steps_per_epoch(config.global_batch_size))
    if asked.total_steps is None:
        length = replace(length, by_tokens=next(iter(asked.lengths.items()), None))
    trainer = build_trainer(config, model, data.train, length, precision)
    machine = (device, precision, config.trainer.compile, config.trainer.deterministic)
    parts = Parts(
        config=config,
        device=device,
        device_reason=device_reason,
        precision=precision,
        precision_reason=precision_reason,
        machine_reason=machine_reason,
        tokenizer=data.tokenizer,
        data=data,
        model=model,
        attention=attention,
        trainer=trainer,
        length=length,
        fingerprint=fingerprint(*machine, attention.name),
        fitting=FittingSequences(config, model.vocab_size, device, precision, attention.name),
        notes=list(data.notes),
        resumed_from=resume_from,
    )
    if resume_from and saved:
        _restore(parts, resume_from, *saved)
    _begin_split(parts)
    return parts


def build_trainer(
    config: RunConfig, model: TransformerLM, train: TrainingData, length: RunLength, precision: str
) -> Trainer:
    """Return the trainer of a model, with new optimizers."""
    return Trainer(
        model,
        build_optimizers(model, config.optimizer),
        train,
        config.trainer,
        config.schedule,
        seed=config.seed,
        micro_batch_size=config.micro_batch_size,
        grad_accum_steps=config.grad_accum_steps,
        horizon=length.horizon,
        last_step=length.last_step,
        precision=precision,
    )


def _machine_reason(config: RunConfig, device: torch.device) -> str:
    is_auto = config.trainer.machine == "auto"
    return f"auto: the device is a {'CPU' if device.type == 'cpu' else 'GPU'}" if is_auto else ""


def checkpoint_bytes(model: nn.Module, optimizers: Sequence[Optimizer], averaged: bool = False) -> int:
    """Bytes of weights (two of each with averaged ones) and optimizer state in a checkpoint after the first step."""
    n_bytes = sum(parameter.nbytes for parameter in model.parameters()) * (2 if averaged else 1)
    for optimizer in optimizers:
        for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
            state = [value.nbytes for value in optimizer.state.get(parameter, {}).values() if isinstance(value, Tensor)]
            n_bytes += sum(state) or numbers_per_weight(optimizer) * parameter.nbytes
    return n_bytes


def training_bytes(model: nn.Module, optimizers: Sequence[Optimizer], averaged: bool) -> int:
    """Bytes that every step needs: those of a checkpoint, and the gradients."""
    return checkpoint_bytes(model, optimizers, averaged) + sum(parameter.nbytes for parameter in model.parameters())


def too_large(config: RunConfig, needed: int, available: int, device: torch.device) -> str:
    """Return the message on a model whose weights alone leave the device no memory."""
    return (
        f"model.dim={config.model.dim} model.n_layers={config.model.n_layers}: the weights, their gradients and the "
        f"state of optimizer={config.optimizer.name} need {in_gib(needed)}, and this {device.type} has "
        f"{in_gib(available)}. Only a smaller model helps, such as model=small, or less of model.dim and "
        "model.n_layers; a smaller micro-batch or a shorter sequence does not."
    )


def _raise_if_too_large(config: RunConfig, vocab_size: int, device: torch.device) -> None:
    """Raise ConfigError for a model that cannot fit: without it the system may kill the process, without a word."""
    available = device_memory(device)
    if available is None or _roughly(config, vocab_size) < available / 8:
        return
    needed = training_bytes(*on_meta(config, vocab_size), config.trainer.ema_decay is not None)
    if needed > available:
        raise ConfigError(too_large(config, needed, available, device))


def _roughly(config: RunConfig, vocab_size: int) -> int:
    """Bytes that training needs, from sizes alone: whether it is worth building the model to count them."""
    model = config.model
    blocks = max(12 * model.n_layers * model.dim**2, model.block_rules.min_parameters(model))
    return 16 * (model.dim * vocab_size + blocks)


def on_meta(config: RunConfig, vocab_size: int) -> tuple[TransformerLM, list[Optimizer]]:
    """Return the model and its optimizers without memory for their numbers; also of a config that is not `on` a device,
    whose beta2 may be None, as sizes do not depend on it."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        built = TransformerLM(config.model, vocab_size)
        return built, build_optimizers(built, config.optimizer.with_beta2(config.global_batch_size * config.seq_len))


def how_to_make_room(run_dir: Path) -> str:
    """Return the command that frees the disk of a run from other runs' superseded checkpoints; empty where there are
    none: those in outputs/ may be on another disk."""
    if _disk_of(OUTPUTS) == _disk_of(run_dir):
        return command_line("runs", "delete=checkpoints")
    others = (
        folder for folder in run_dir.absolute().parent.glob("*/checkpoints") if folder.parent.name != run_dir.name
    )
    if not any(others):
        return ""
    return command_line("runs", f"outputs={shown(run_dir.absolute().parent)}", "delete=checkpoints")


def _disk_of(folder: Path) -> int:
    """Return the number of the file system on which a folder is, or will be."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.stat().st_dev


def raise_if_no_room(config: RunConfig, run_dir: Path, parts: Parts | None = None) -> None:
    """Raise ConfigError where not even one checkpoint fits on the disk: the run would train to its end for nothing.

    Without its `parts`, before the data is read, the embedding of a vocabulary that is not known yet is left out.
    """
    with suppress(OSError):  # a file system that does not tell
        free = shutil.disk_usage(run_dir).free
        if parts is not None:
            built = parts.model, parts.trainer.optimizers
        elif _roughly(config, 1) < free / 8:
            return
        else:
            built = on_meta(config, 1)
        needed = checkpoint_bytes(*built, averaged=config.trainer.ema_decay is not None)
        if needed > free:
            by_deleting = f" ({command})" if (command := how_to_make_room(run_dir)) else ""
            raise ConfigError(
                f"model.dim={config.model.dim} model.n_layers={config.model.n_layers}: one checkpoint, of the weights "
                f"and the state of optimizer={config.optimizer.name}, needs {in_bytes(needed)}, and the disk of "
                f"{shown(run_dir)} has {in_bytes(free)} free. Make room{by_deleting}, train "
                "on another disk with hydra.run.dir=FOLDER, or take a smaller model."
            )


def with_init(config: RunConfig, init_from: Path, saved: ModelConfig) -> RunConfig:
    """Return the config with the saved model's size and architecture, and its own dropouts and kernel; where
    `data.seq_len` is null, sequences are as long as the saved model's context."""
    asked = config.model
    own = [key.removeprefix("model.") for key in KEPT_WITH_INIT]
    model = replace(saved, **{name: getattr(asked, name) for name in own})
    if config.data.seq_len is not None and config.data.seq_len > model.max_seq_len:
        raise ConfigError(
            f"data.seq_len={config.data.seq_len}: init={init_from} has a context of {model.max_seq_len} tokens. "
            "Lower data.seq_len."
        )
    return replace(config, model=model)


def _build_model(config: RunConfig, tokenizer: Tokenizer, start_from: Path | None, vocab_size: int) -> TransformerLM:
    """Build the model with initial weights, or with those of `start_from`, whose embedding has `vocab_size` rows."""
    if start_from is None:
        model = TransformerLM(config.model, tokenizer.vocab_size)
        scale_initial_weights(model, config.optimizer.base_width)
        return model
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{start_from}: its tokenizer has {tokenizer.vocab_size} entries, its model {vocab_size}. "
            "They do not belong together."
        )
    model = TransformerLM(config.model, vocab_size)
    load_weights(model, start_from)
    return model


def choose_attention(
    config: RunConfig, model: TransformerLM, train: TrainingData, precision: str, saved: dict[str, Any]
) -> KernelChoice:
    """Choose the kernel for the documents of the run's first batch; a resumed run keeps its own, if still available."""
    device = next(model.parameters()).device
    first_rows = train.batch_sequences(config.seed, 0, 0, config.micro_batch_size)
    given = KernelContext(
        documents_bt=train.batch(first_rows).to(device).documents,
        dtype=DTYPES[precision],
        deterministic=config.trainer.deterministic,
        compiled=config.trainer.compile,
        earlier=saved.get("fingerprint", {}).get("attention"),
    )
    return choose_kernel(model.config, given)


def _restore(parts: Parts, checkpoint: Path, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Restore trainer, optimizers and random states; note the reasons why the resume may not be exact."""
    if values["data_fingerprint"] != parts.data.fingerprint:
        raise CheckpointError(_other_data(parts, checkpoint, values["data_fingerprint"]))
    # The averages have been copied from the model, which holds them until here.
    load_trained_weights(parts.model, checkpoint, averaged=parts.trainer.averaged is not None)
    parts.trainer.load_state_values(values)
    load_optimizer_tensors(parts.model, parts.trainer.optimizers, tensors)
    restore_random_state(values["random"], parts.device)
    parts.tracker_run_id = values.get("tracker_run_id")
    step = parts.trainer.state.step
    differences = fingerprint_difference(values["fingerprint"], parts.fingerprint)
    schedule = _new_schedule(parts, checkpoint)
    if differences:
        resumed = f"Resumed at step {step}, not bit for bit: " + "; ".join(differences)
    elif parts.device.type != "cpu" or parts.config.trainer.compile:
        resumed = f"Resumed at step {step}; bit-exactness is untested on this device or with compile."
    elif schedule:
        resumed = (
            f"Resumed at step {step}: weights, optimizer state, order of the data and random numbers continue exactly."
        )
    else:
        resumed = f"Resumed at step {step}, bit for bit."
    parts.notes.insert(0, f"{resumed}{schedule}")


def _begin_split(parts: Parts) -> None:
    """Begin a new run with as many sequences at once as had room in this device's memory before, in steps and in
    evaluations; a resumed one has its own numbers."""
    if parts.resumed_from is not None:
        return
    asked, state = parts.config.micro_batch_size, parts.trainer.state
    earlier = "An earlier run like this had no memory for"
    if (at_once := parts.fitting.recall(EVALUATION)) is not None and at_once < asked:
        state.evaluated_at_once = at_once
        parts.notes.insert(0, f"{earlier} {asked} sequences at once in validation: begins with {at_once} there.")
    if (at_once := parts.fitting.recall()) is not None and at_once < asked:
        state.sequences_at_once = at_once
        parts.notes.insert(0, f"{earlier} {asked} sequences at once: begins with {at_once}.")


def _new_schedule(parts: Parts, checkpoint: Path) -> str:
    """Return a sentence on the learning rate where the run got another length, from which its schedule follows."""
    config, step, horizon = parts.config, parts.trainer.state.step, parts.length.horizon
    saved = read_config(checkpoint).get("trainer") or {}
    limits = {key: saved[key] for key in ("total_steps", "max_epochs") if isinstance(saved.get(key, 0.0), int | None)}
    before = RunLength.of(replace(config, trainer=replace(config.trainer, **limits)), parts.length.steps_per_epoch)
    if before.horizon == horizon:
        return ""
    then, now = (
        config.optimizer.lr * learning_rate_factor(config.schedule, step, n_steps)
        for n_steps in (before.horizon, horizon)
    )
    return (
        f" New is the schedule of the learning rate: it ends at step {horizon:,}, not {before.horizon:,}; at this step "
        f"{now:.2e} instead of {then:.2e}."
    )


def _other_data(parts: Parts, checkpoint: Path, fingerprint: str) -> str:
    """What differs from the data that the run began with, and the line that trains on this data from its weights."""
    run_dir = checkpoint.parent.parent
    before = with_data_found(read_config(checkpoint), run_dir)
    others = list(other_places(before, to_dict(parts.config)))
    to_train = new_run(run_dir, [f"{key}={now}" for key, _, now in others])
    if others:
        key, then, now = others[0]
        return (
            f"{key}={now}: not the data that this run began with, {then}. The run was not changed: it goes on with its "
            f"own data. To train on {now} from its weights, in a run of its own:\n  {to_train}"
        )
    sources = parts.config.data.resolved_sources().items()
    read = ", ".join(f"{name} ({source.path or 'as it comes'})" for name, source in sources)
    return (
        f"{checkpoint}: the data has changed since this run began: {read}.\n"
        f"  then {fingerprint}\n  now  {parts.data.fingerprint}\n"
        "The run was not changed. Restore the data, or train on it as it is now, in a new run from these weights:\n"
        f"  {to_train}"
    )
