"""Screens of a run: the settings before the first step, the results after the last."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import chain
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEventAvg

from dtl.base.display import Display, aligned, command_line, shown
from dtl.base.json_files import open_to_append
from dtl.base.redaction import redact
from dtl.base.runtime import cpu_has_bf16, device_name, nvidia_without_cuda
from dtl.base.safe_text import visible
from dtl.base.system import thread_warning
from dtl.base.units import in_epochs, in_percent, in_time, in_unit, in_units, number_of
from dtl.checkpoints.listing import list_checkpoints
from dtl.config import RunConfig
from dtl.data.prepare import PreparedData
from dtl.data.text_report import PREVIEW, with_short_origins
from dtl.evaluation.measure import Report
from dtl.evaluation.tables import show_main_metrics
from dtl.model.config import ModelConfig
from dtl.model.twins import twin_of
from dtl.run_dir.state import longer_run, resume_command
from dtl.runner.budget import budget_of, ends_sooner
from dtl.runner.build import Parts, checkpoint_bytes, how_to_make_room
from dtl.tracking.tracker import State, Tracker
from dtl.training.config import LOSS_TERMS, LossConfig, TrainerConfig

SAMPLE_LENGTH, SAMPLE_LINES = 160, 4  # of the training text on the start screen
DETAILS = "details.txt"  # in a run folder: every choice that was made for it, and why
RESERVED_ROWS = 5  # of a terminal, beside the start screen: the command, the first sign of life, progress, cursor


def _sizes(data: PreparedData, name: str) -> str:
    """Line of the start screen about the size of a source."""
    splits = data.report[name]
    train, questions = splits["train"], data.pairs.get("train", [])
    what = "questions" if len(data.report) == 1 and len(questions) == train.documents else "documents"
    with_loss = "" if train.targets >= train.tokens - train.rows else f" ({in_units(train.targets)} with a loss)"
    held_out = [f"{split} {in_units(report.tokens)}" for split, report in splits.items() if split != "train"]
    others = f"; held out: {', '.join(held_out)}" if held_out else "; nothing held out"
    return f"{number_of(what, train.documents)}, {in_units(train.tokens)} tokens{with_loss}{others}"


def _data_rows(data: PreparedData) -> Iterator[tuple[str, str]]:
    """Rows of the start screen: each source, its size, how it was read and split."""
    for name, (origin, *how) in data.read.items():
        yield "data", origin
        yield from (("", line) for line in (_sizes(data, name), *how))


def _sample_rows(data: PreparedData) -> Iterator[tuple[str, str]]:
    for text in data.samples(next(iter(data.rows)), 1, SAMPLE_LENGTH):
        yield "sample", PREVIEW.partition(" ")[2]
        lines = visible(text).split("\n")
        yield from (("", f"  {line}") for line in [*lines[:SAMPLE_LINES], *["..."][: len(lines) > SAMPLE_LINES]])


def _start_rows(
    parts: Parts, run_dir: Path, tracker: Tracker, foreseen: Sequence[tuple[str, str]], sample: bool
) -> Iterator[tuple[str, str]]:
    """Rows of the start screen: what a person looks for before a run; `_details` has the rest."""
    config, length, model = parts.config, parts.length, parts.config.model
    yield from _data_rows(parts.data)
    if sample:
        yield from _sample_rows(parts.data)
    layers, n_parameters = number_of("layers", model.n_layers), in_units(parts.model.n_parameters())
    yield (
        "model",
        f"{n_parameters} parameters, {layers} of width {model.dim}, context {model.max_seq_len}, vocabulary "
        f"{parts.tokenizer.vocab_size:,}",
    )
    yield from _block_rows(model)
    epochs = in_epochs(length.last_step / length.steps_per_epoch)
    per_step = number_of("sequences", min(config.global_batch_size, sum(map(len, parts.data.train.rows.values()))))
    steps = f"{length.last_step:,} ({epochs}), each of {per_step} of {config.seq_len} tokens"
    yield "steps", steps + ends_sooner(config.trainer)
    yield "budget", "\n".join(budget_of(parts.data, parts.length, parts.model).lines())
    warmup = f"warm-up of {number_of('steps', length.warmup)}"
    scaled = f" (at width {config.optimizer.base_width}; scaled)" if _is_transferred(config) else ""
    optimizer = f"{config.optimizer.name}, learning rate {config.optimizer.lr:g}{scaled}"
    yield "optimizer", f"{optimizer}, {config.schedule.name}, {warmup}"
    yield from objective_rows(config.trainer)
    precision = precision_name(parts.precision, parts.device, config.trainer)
    profile = f", profile {config.trainer.machine}" if parts.machine_reason else ""
    yield "device", f"{device_name(parts.device)}, {precision}{profile}"
    yield from foreseen
    yield "tracker", tracker.status
    yield "folder", shown(run_dir)
    yield "", f"{DETAILS} there has every choice, and why"


def _block_rows(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Row of a block without a Hugging Face twin."""
    if twin_of(model) is None:
        yield "", f"block {model.arch.block}: DTL alone reads its checkpoints, transformers does not"


def _is_transferred(config: RunConfig) -> bool:
    """Return True for a model of another width than that of its learning rates."""
    return config.optimizer.base_width not in (None, config.model.dim)


def precision_name(precision: str, device: torch.device, trainer: TrainerConfig) -> str:
    """Return the precision of a run; fp32 whose products are not exact is called so."""
    rounded = trainer.tf32 and precision == "fp32" and device.type == "cuda"
    return "fp32 with TF32 products" if rounded else precision


def _details(parts: Parts, run_dir: Path, tracker: Tracker) -> Iterator[tuple[str, str]]:
    """Rows of details.txt: the choices that were made for the run, each with its reason, and all notes."""
    config, data, length, model = parts.config, parts.data, parts.length, parts.config.model
    total, without = parts.model.n_parameters(), parts.model.n_parameters(embeddings=False)
    yield "data", f"SHA-256 {data.fingerprint}"
    yield from _data_rows(data)
    for name, splits in data.report.items():
        for split, report in splits.items():
            sequences = number_of("sequences", report.rows)
            yield (
                "",
                f"{name} {split}: {number_of('documents', report.documents)}, {report.tokens:,} tokens, "
                f"{report.targets:,} of them with a loss, in {sequences} with {in_percent(report.wasted)} % padding",
            )
    yield from _sample_rows(data)
    yield (
        "model",
        f"{model.arch.block}, width {model.dim}, {number_of('heads', model.n_heads)}, "
        f"{number_of('layers', model.n_layers)}, context {model.max_seq_len}: {total:,} parameters, {without:,} "
        "without embeddings",
    )
    yield from _block_rows(model)
    yield "tokenizer", f"{parts.tokenizer.kind}, {parts.tokenizer.vocab_size:,} entries"
    yield (
        "steps",
        f"{length.steps_per_epoch} per epoch, {length.last_step} in total, warm-up {length.warmup} "
        f"({in_percent(length.warmup / max(1, length.last_step))} %); {config.micro_batch_size} x "
        f"{config.grad_accum_steps} sequences of {config.seq_len} tokens per step",
    )
    yield from (("budget", line) for line in budget_of(parts.data, parts.length, parts.model).lines())
    yield "optimizer", f"{config.optimizer.name}, peak learning rate {config.optimizer.lr:g}, {config.schedule.name}"
    if _is_transferred(config):
        groups = (group for optimizer in parts.trainer.optimizers for group in optimizer.param_groups)
        rates = ", ".join(f"{rate:.3g}" for rate in sorted({group["peak_lr"] for group in groups}))
        yield "", f"rates of width {config.optimizer.base_width}, at width {model.dim} (docs/training.md): {rates}"
    yield from objective_rows(config.trainer)
    precision = precision_name(parts.precision, parts.device, config.trainer)
    yield "profile", f"{config.trainer.machine} ({parts.machine_reason or 'as requested'})"
    yield "device", f"{parts.device} ({parts.device_reason}); {precision} ({parts.precision_reason})"
    yield "attention", f"{parts.attention.name} ({parts.attention.reason})"
    yield "tracker", tracker.status
    yield from [("", f"To upload it: {tracker.upload}")] if tracker.upload else []
    yield "folder", str(run_dir.absolute())
    yield from (("note", note) for note in (*parts.notes, *data.hints))


def write_details(run_dir: Path, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Append the details of a session to details.txt. Without room for them the run goes on without."""
    text = "\n".join([f"{title}, {datetime.now():%Y-%m-%d %H:%M:%S}", *aligned(rows)])
    with suppress(OSError), open_to_append(run_dir / DETAILS) as file:
        file.write(f"{visible(redact(text))}\n\n".encode(errors="replace"))


def objective_rows(trainer: TrainerConfig) -> Iterator[tuple[str, str]]:
    """Rows of the start screen about a loss that is not the plain cross-entropy, and about averaged weights."""
    loss = trainer.loss
    if loss != LossConfig():
        terms = [f"{name} {getattr(loss, name):g}" for name in LOSS_TERMS if getattr(loss, name)]
        settings = [f"{name} {value}" for name, value in loss.options.items()]
        yield "loss", f"{', '.join([loss.name, *terms, *settings])}; validation measures the plain cross-entropy"
    if trainer.ema_decay is not None:
        yield "averages", f"of the weights, decay {trainer.ema_decay:g} per step: these are evaluated and saved as best"


def show_start(
    display: Display, parts: Parts, run_dir: Path, tracker: Tracker, foreseen: Sequence[tuple[str, str]] = ()
) -> None:
    """Show the start screen, which fits a terminal of 80 x 24 with the progress below it; details.txt has the rest.

    Where the notes need the room, the sample is left out, and then the last notes are; a warning never is.
    """
    warnings = list(_warnings(parts, run_dir))
    title = f"DTL {parts.config.name}"
    warned = (("warning", warning) for warning in warnings)
    write_details(run_dir, title, chain(_details(parts, run_dir, tracker), foreseen, warned))
    room = display.room - RESERVED_ROWS - sum(display.rows_of(f"Warning: {warning}") for warning in warnings)
    rows = list(_start_rows(parts, run_dir, tracker, foreseen, sample=parts.resumed_from is None))
    notes = with_short_origins(parts.notes, parts.data.read.values())
    if sum(map(display.rows_of, notes)) > room - _n_rows(display, rows):
        rows = list(_start_rows(parts, run_dir, tracker, foreseen, sample=False))
    left = room - _n_rows(display, rows)
    display.screen(f"{title}   (Ctrl-C saves, and shows how to resume)", rows)
    for number, note in enumerate(notes, start=1):
        others = len(notes) - number
        left -= display.rows_of(note)
        if number > 1 and left < (others > 0):  # a row for the line that replaces them
            display.note(f"{number_of('more notes', others + 1)}: {shown(run_dir / DETAILS)}")
            break
        display.note(note)
    for warning in warnings:
        display.warn(warning)


def _n_rows(display: Display, rows: Sequence[tuple[str, str]]) -> int:
    """Rows of the terminal that a screen takes, with its title."""
    indent = max(len(name) for name, _ in rows) + 2
    return 1 + sum(display.rows_of(value, indent) for _, value in rows)


def _warnings(parts: Parts, run_dir: Path) -> Iterator[str]:
    config, length = parts.config, parts.length
    saved = checkpoint_bytes(parts.model, parts.trainer.optimizers, averaged=parts.trainer.averaged is not None)
    no_room = disk_warning(run_dir, config.trainer.keep, saved)
    busy = thread_warning(torch.get_num_threads()) if parts.device.type == "cpu" else None
    looks_wrong = (nvidia_without_cuda(), no_room, busy)
    of_length = length.warnings(config) if parts.resumed_from is None else []  # its length was chosen before
    yield from (warning for warning in [*of_length, *looks_wrong] if warning)
    if parts.trainer.done:
        step = parts.trainer.state.step
        further = longer_run(run_dir, 2 * step, config.trainer.max_epochs)
        total, epochs = config.trainer.total_steps, config.trainer.max_epochs
        both = total is not None and epochs is not None and total < epochs * length.steps_per_epoch
        why = f": trainer.total_steps={total} ends it before trainer.max_epochs={epochs} does" if both else ""
        yield f"this run is at step {step}, and its last is {length.last_step}{why}. To train further: {further}"


def disk_warning(run_dir: Path, keep: int, checkpoint_bytes: int) -> str | None:
    """Return a warning with a fix when the disk is too small for the run's checkpoints; None = there is room.

    These are at most `keep`, the best, the last, and one being written. On disks with hard links the best one shares
    its files with a step and takes no room.
    """
    checkpoint_files = (file for file in run_dir.glob("checkpoints/*/*") if file.is_file())
    present = {(file.stat().st_dev, file.stat().st_ino): file.stat().st_size for file in checkpoint_files}
    needed = (keep + 3) * checkpoint_bytes - sum(present.values())  # a resumed run has some already
    free = shutil.disk_usage(run_dir).free
    if needed <= free:
        return None
    return (
        f"the disk may not hold this run's checkpoints: needed up to {in_units(needed)}B (each "
        f"{in_units(checkpoint_bytes)}B: trainer.keep={keep}, the best, the last, one being written), free "
        f"{in_units(free)}B. "
        f"Lower trainer.keep= or make room{f': {command}' if (command := how_to_make_room(run_dir)) else '.'}"
    )


# Recipes for a CPU: the minutes that they took on two cores (experiments/README.md), with bf16 units. Without them
# Muon computes in fp32: a step of qa_full takes 0.56 processor seconds, 1,500 steps 7 minutes.
TEXT_RECIPE, QUESTIONS_RECIPE, QUESTIONS_WITHOUT_BF16 = ("text_cpu", 10), ("qa_full", 5), ("qa_full", 8)
OWN_PAIRS_RECIPE, OWN_PAIRS_A_MINUTE = "my_pairs", 250  # with answers of a sentence; at least 2 minutes
# What the recipe sets itself.
SET_BY_RECIPE = {"model", "tokenizer", "optimizer", "schedule", "trainer", "experiment", "data.seq_len"}


def quicker_run(parts: Parts, overrides: Sequence[str], flags: Sequence[str], recipe: str | None) -> str | None:
    """Return a sentence with the command that trains on the same data within minutes on a CPU; for a run of that recipe
    itself, which is long on this machine, with the setting that ends it.

    `overrides` and `flags` are the words of this run's command line, `recipe` its experiment. None on a GPU, and for a
    run that starts from other weights.
    """
    if parts.device.type != "cpu" or parts.resumed_from is not None or parts.config.init is not None:
        return None
    sources = parts.config.data.resolved_sources()
    limit: list[str] = []
    if not any(parts.data.pairs.values()):
        name, minutes = TEXT_RECIPE
    elif all(source.is_shipped or source.traits.questions == "none" for source in sources.values()):
        name, minutes = QUESTIONS_RECIPE if cpu_has_bf16() else QUESTIONS_WITHOUT_BF16
    else:
        name, minutes = OWN_PAIRS_RECIPE, max(2, len(parts.data.pairs["train"]) // OWN_PAIRS_A_MINUTE)
        if minutes > 10:  # the recipe's 30 epochs would take longer
            minutes, limit = 10, ["trainer.total_steps=4000"]
    if recipe == name:
        ended = command_line("train", *flags, *overrides, "trainer.hours=0.5")
        return f"There is no quicker recipe. To end it after half an hour: {ended}"
    keys = [word.lstrip("+~").partition("=")[0].replace("/", ".") for word in overrides]
    kept = [word for key, word in zip(keys, overrides, strict=True) if not {key, key.partition(".")[0]} & SET_BY_RECIPE]
    return f"About {minutes} minutes on two cores: {command_line('train', *flags, f'experiment={name}', *kept, *limit)}"


def tokens_seen(parts: Parts) -> dict[str, dict[str, float]]:
    """Tokens of each source that were trained on, and the number of epochs over it (`passes`, as in result.json)."""
    state, data = parts.trainer.state, parts.data.train
    tokens = data.seen_after(parts.config.seed, state.epoch, state.step_in_epoch * parts.config.global_batch_size)
    return {name: {"tokens": n, "passes": n / data.rows[name].n_tokens} for name, n in tokens.items()}


def show_end(
    display: Display,
    parts: Parts,
    ended: State,
    report: Report | None,
    seen: dict[str, dict[str, float]],
    run_dir: Path,
    tracker: Tracker,
) -> None:
    """Show the end screen: the main metrics, steps, the best checkpoint, the folder, the next commands."""
    if report is not None:
        show_main_metrics(display.console, report)
    state, folder = parts.trainer.state, shown(run_dir)
    if parts.data.validation is None:
        best = "the last step, as nothing is held out"
    elif state.best_loss is None:
        best = f"none: the validation loss {'was never finite' if state.evaluations else 'is not measured yet'}"
    else:
        best = f"step {state.best_step:,}, validation loss {state.best_loss:.4f}"
    seen_rows = [f"{name}: {in_units(s['tokens'])} tokens, {in_epochs(s['passes'])}" for name, s in seen.items()]
    # As the start screen counts them: `passes` leaves out the padding, which is not alike in all batches.
    epochs = f", {in_epochs(state.step / parts.length.steps_per_epoch)}" if len(seen) == 1 else ""
    use = "chat" if any(parts.data.pairs.values()) else "generate"
    rows = [
        ("steps", f"{state.step:,} in {in_time(state.seconds)}, {in_units(state.tokens)} tokens{epochs}"),
        *([("seen", "\n".join(seen_rows))] if len(seen) > 1 else []),
        ("best", best),
        *((name, f"{value:.4g}") for name, value in (report.tasks if report else {}).items()),
        ("folder", folder),
        *([("upload", tracker.upload)] if tracker.upload and tracker.has_key else []),
    ]
    if ended == "stopped":
        rows.append(("resume", resume_command(run_dir)))
    elif list_checkpoints(run_dir, contents=False):
        rows.append((use, command_line(use, f"ckpt={folder}")))
        rows += [("evaluate", command_line("evaluate", f"ckpt={folder}"))] if report else []
    display.screen(f"\n{ended.capitalize()}", rows)


PROFILED_OPERATORS = 15


def show_profile(display: Display, averages: Iterable[FunctionEventAvg], trace: Path) -> None:
    """Show where the profiled steps spent their time: operators by their own time, without those that they call."""
    operators = [event for event in averages if not str(event.key).startswith("ProfilerStep")]
    on_device = any(event.self_device_time_total for event in operators)

    def seconds(event: FunctionEventAvg) -> float:
        return (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e6

    total = sum(map(seconds, operators))
    operators.sort(key=seconds, reverse=True)
    where = "the device" if on_device else "the processor"
    display.print(f"Steps 3 to 5 spent {total:.2f} s on {where}; the trace: {shown(trace)}")
    rows = [
        (in_unit(seconds(event), "s"), f"{in_percent(seconds(event) / total)} %", f"{event.count:,}", str(event.key))
        for event in operators[:PROFILED_OPERATORS]
        if seconds(event)  # then there is a total
    ]
    for line in aligned([("self", "fraction", "calls", "operator"), *rows]):
        display.print(line)
