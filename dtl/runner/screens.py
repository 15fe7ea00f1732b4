"""Screens of a run: the settings before the first step, the results after the last."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from dtl.base.display import Display, command_line, shown
from dtl.base.runtime import cpu_has_bf16, nvidia_without_cuda
from dtl.base.safe_text import visible
from dtl.base.units import in_epochs, in_percent, in_time, in_units, number_of
from dtl.checkpoints.listing import list_checkpoints
from dtl.data.prepare import PreparedData
from dtl.data.text_report import PREVIEW
from dtl.evaluation.answers import ALL_TOPICS
from dtl.evaluation.config import EVALUATION_FILE
from dtl.evaluation.measure import Report
from dtl.evaluation.tables import show_main_metrics
from dtl.model.config import ModelConfig
from dtl.model.transformer import TransformerLM
from dtl.run_dir.state import longer_run, resume_command
from dtl.runner.build import Parts, checkpoint_bytes
from dtl.tracking.tracker import State, Tracker
from dtl.training.config import LOSS_TERMS, LossConfig, TrainerConfig

SAMPLE_LENGTH, SAMPLE_LINES = 160, 4  # of the training text on the start screen


def _data_lines(data: PreparedData) -> Iterator[str]:
    for source, splits in data.report.items():
        train = splits["train"]
        held_out = [f"{name} {in_units(split.tokens)}" for name, split in splits.items() if name != "train"]
        others = f"{', '.join(held_out)} tokens" if held_out else "nothing held out"
        documents, sequences = number_of("documents", train.documents), number_of("sequences", train.rows)
        yield (
            f"{source}: {documents}, {in_units(train.tokens)} tokens ({in_units(train.targets)} with a loss) in "
            f"{sequences}, {in_percent(train.wasted)} % padding; {others}"
        )


def _model_line(config: ModelConfig, model: TransformerLM) -> str:
    """Line of the start screen about the model."""
    total, without = model.n_parameters(), model.n_parameters(embeddings=False)
    heads, layers = number_of("heads", config.n_heads), number_of("layers", config.n_layers)
    return (
        f"{config.arch.block}, width {config.dim}, {heads}, {layers}, "
        f"context {config.max_seq_len}: {in_units(total)} parameters, {in_units(without)} without embeddings"
    )


def objective_rows(trainer: TrainerConfig) -> Iterator[tuple[str, str]]:
    """Rows of the start screen about a loss that is not the plain cross-entropy, and about averaged weights."""
    loss = trainer.loss
    if loss != LossConfig():
        terms = [f"{name} {getattr(loss, name):g}" for name in LOSS_TERMS if getattr(loss, name)]
        settings = [f"{name} {value}" for name, value in loss.options.items()]
        yield "loss", f"{', '.join([loss.name, *terms, *settings])}; validation measures the plain cross-entropy"
    if trainer.ema_decay is not None:
        yield "averages", f"of the weights, decay {trainer.ema_decay:g} per step: these are evaluated and saved as best"


def show_start(display: Display, parts: Parts, run_dir: Path, tracker: Tracker) -> None:
    """Show the start screen: the settings of the run, and warnings about them."""
    config, data, length = parts.config, parts.data, parts.length
    warmup = f"warm-up {length.warmup} ({in_percent(length.warmup / max(1, length.last_step))} %)"
    rows = [
        ("model", _model_line(config.model, parts.model)),
        ("tokenizer", f"{parts.tokenizer.kind}, {parts.tokenizer.vocab_size:,} entries"),
        *(("data", line) for line in _data_lines(data)),
        (
            "steps",
            f"{length.steps_per_epoch} per epoch, {length.last_step} in total, {warmup}; "
            f"{config.micro_batch_size} x {config.grad_accum_steps} sequences of {config.seq_len} tokens per step",
        ),
        ("optimizer", f"{config.optimizer.name}, peak learning rate {config.optimizer.lr:g}, {config.schedule.name}"),
        *objective_rows(config.trainer),
        *([("profile", f"{config.trainer.machine} ({parts.machine_reason})")] if parts.machine_reason else []),
        ("device", f"{parts.device} ({parts.device_reason}); {parts.precision} ({parts.precision_reason})"),
        ("attention", f"{parts.attention.name} ({parts.attention.reason})"),
        ("tracker", tracker.status),
        ("folder", shown(run_dir)),
    ]
    display.screen(f"DTL {config.name}", rows)
    for note in parts.notes:
        display.note(note)
    if parts.resumed_from is None:
        for text in data.samples(next(iter(data.rows)), 1, SAMPLE_LENGTH):
            display.note(PREVIEW[0].upper() + PREVIEW[1:])
            lines = visible(text).split("\n")
            for line in [*lines[:SAMPLE_LINES], *(["..."] if len(lines) > SAMPLE_LINES else [])]:
                display.note(f"  {line}")
    saved = checkpoint_bytes(parts.model, parts.trainer.optimizers, averaged=parts.trainer.averaged is not None)
    no_room = disk_warning(run_dir, config.trainer.keep, saved)
    looks_wrong = (nvidia_without_cuda(), no_room, _emulation_warning(parts))
    for warning in [*length.warnings(config), *looks_wrong]:
        if warning:
            display.warn(warning)
    if parts.trainer.done:
        step = parts.trainer.state.step
        further = longer_run(run_dir, 2 * step, config.trainer.max_epochs)
        display.warn(f"this run is at step {step}, and its last is {length.last_step}. To train further: {further}")


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
        "Lower trainer.keep= or make room: python -m dtl.runs delete=checkpoints"
    )


def _emulation_warning(parts: Parts) -> str | None:
    if not parts.config.optimizer.traits.needs_bf16 or parts.device.type != "cpu" or cpu_has_bf16():
        return None
    return (
        f"optimizer={parts.config.optimizer.name}: computes in bf16, which this processor only emulates: a step may "
        "take seconds. Use optimizer=adamw."
    )


# Recipes for a CPU: the minutes that they took on two cores (experiments/README.md).
TEXT_RECIPE, QUESTIONS_RECIPE, QUESTIONS_WITHOUT_BF16 = ("text_cpu", 10), ("qa_full", 5), ("demo", 2)
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
        name, minutes = QUESTIONS_RECIPE if cpu_has_bf16() else QUESTIONS_WITHOUT_BF16  # qa_full uses muon
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


def right_answers(report: Report) -> str:
    """The number of right answers to the questions of each split, those of the training first."""
    every_topic = [scores for scores in report.answers if scores.topic == ALL_TOPICS]
    counts = [(s.split, round(s.questions * s.model.exact_match), s.questions) for s in every_topic]
    return ", ".join(f"{split} {right:,} of {asked:,}" for split, right, asked in counts)


def show_end(
    display: Display,
    parts: Parts,
    ended: State,
    report: Report | None,
    seen: dict[str, dict[str, float]],
    run_dir: Path,
) -> None:
    """Show the end screen: steps, metrics and folder of the best checkpoint, the next command."""
    if report is not None:
        show_main_metrics(display.console, report)
    state = parts.trainer.state
    if parts.data.validation is None:
        validation = ("validation", "nothing is held out: the last step counts as the best")
    elif state.best_loss is None:
        validation = (
            "validation",
            "its loss was never finite" if state.evaluations else "its loss is not measured yet",
        )
    else:
        validation = ("best validation loss", f"{state.best_loss:.4f} at step {state.best_step}")
    kept = list_checkpoints(run_dir, contents=False)
    folder = shown(run_dir)
    answers_questions = any(parts.data.pairs.values())
    use_it = command_line("chat" if answers_questions else "generate", f"ckpt={folder}")
    evaluate_it = command_line("evaluate", f"ckpt={folder}")
    rows = [
        *([("right answers", right_answers(report))] if report and report.answers else []),
        ("steps", f"{state.step}, {in_units(state.tokens)} tokens in {in_time(state.seconds)}"),
        validation,
        *(
            ("seen", f"{name}: {in_units(source['tokens'])} tokens, {in_epochs(source['passes'])}")
            for name, source in seen.items()
        ),
        *((name, f"{value:.4g}") for name, value in (report.tasks if report else {}).items()),
        ("checkpoints", ", ".join(f"{entry.path.name} (epoch {entry.epoch})" for entry in kept) or "none"),
        ("folder", folder),
        *([("metrics", f"all: {EVALUATION_FILE} there; more: {evaluate_it}")] if report else []),
        ("next", resume_command(run_dir) if ended == "stopped" else use_it),
    ]
    display.screen(f"\n{ended.capitalize()}", rows)
