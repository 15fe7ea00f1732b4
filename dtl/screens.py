"""The two screens of a run: what is about to happen, and what came out."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from dtl.assemble import Parts, model_line
from dtl.checkpoints.listing import list_checkpoints
from dtl.data.prepare import PreparedData
from dtl.display import Display, in_time, in_units, shown
from dtl.evaluation.config import FIGURES
from dtl.evaluation.report import Report
from dtl.runtime import cpu_has_bf16, nvidia_without_cuda
from dtl.terminal.evaluation_report import show_main_figures
from dtl.tracking import State, Tracker

BYTES_PER_PARAMETER = 12  # in a checkpoint: the weight and Adam's two moments, four bytes each


def _data_lines(data: PreparedData) -> Iterator[str]:
    for source, splits in data.report.items():
        train = splits["train"]
        held_out = ", ".join(f"{name} {in_units(split.tokens)}" for name, split in splits.items() if name != "train")
        yield (
            f"{source}: {train.documents:,} documents, {in_units(train.tokens)} tokens ({in_units(train.targets)} with "
            f"a loss) in {train.rows:,} rows, {train.wasted:.0%} padding; {held_out} tokens"
        )


def show_start(display: Display, parts: Parts, run_dir: Path, tracker: Tracker) -> None:
    """One screen: what is about to happen, and what looks wrong."""
    config, data, length = parts.config, parts.data, parts.length
    warmup = f"warm-up {length.warmup} ({length.warmup / max(1, length.last_step):.0%})"
    rows = [
        ("model", model_line(config.model, parts.model)),
        ("tokenizer", f"{parts.tokenizer.kind}, {parts.tokenizer.vocab_size:,} entries"),
        *(("data", line) for line in _data_lines(data)),
        (
            "steps",
            f"{length.steps_per_epoch} an epoch, {length.last_step} in all, {warmup}; "
            f"{config.micro_batch_size} x {config.grad_accum_steps} rows of {config.seq_len} tokens a step",
        ),
        ("optimizer", f"{config.optimizer.name}, peak rate {config.optimizer.lr:g}, {config.schedule.name}"),
        ("device", f"{parts.device} ({parts.device_reason}); {parts.precision} ({parts.precision_reason})"),
        ("attention", f"{parts.attention.name} ({parts.attention.reason})"),
        ("tracker", tracker.status),
        ("folder", shown(run_dir)),
    ]
    display.screen(f"DTL {config.name}", rows)
    for note in parts.notes:
        display.note(note)
    looks_wrong = (nvidia_without_cuda(), _disk_warning(parts, run_dir), _slow_muon_warning(parts))
    for warning in [*length.warnings(config), *looks_wrong]:
        if warning:
            display.warn(warning)
    if parts.trainer.done:
        more = f"trainer.max_epochs={2 * (config.max_epochs or 1)} or trainer.total_steps={2 * length.last_step}"
        display.warn(f"this run has reached its last step, {length.last_step}. To train on: {more} beside resume=.")


def _disk_warning(parts: Parts, run_dir: Path) -> str | None:
    """Too little room for the checkpoints that a run keeps, one being written, and the best."""
    keep = parts.config.trainer.keep
    needed = (keep + 2) * BYTES_PER_PARAMETER * parts.model.n_parameters()
    free = shutil.disk_usage(run_dir).free
    if needed <= free:
        return None
    return (
        f"{run_dir} has {free / 1e9:.1f} GB free, the checkpoints may take {needed / 1e9:.1f} GB. "
        "Make room, or lower trainer.keep."
    )


def _slow_muon_warning(parts: Parts) -> str | None:
    """torch's Muon orthogonalises in bf16 whatever the precision: without units for it, some 50 times as slow."""
    if parts.config.optimizer.name != "muon" or parts.device.type != "cpu" or cpu_has_bf16():
        return None
    return (
        "optimizer=muon: computes in bf16, which this processor only emulates: a step may take seconds. "
        "Use optimizer=adamw."
    )


def seen_of_sources(parts: Parts) -> dict[str, dict[str, float]]:
    """Of each source the tokens that were trained on, and how many passes over it that is."""
    state, data = parts.trainer.state, parts.data.train
    tokens = data.seen_after(parts.config.seed, state.epoch, state.step_in_epoch * parts.config.rows_per_step)
    return {name: {"tokens": n, "passes": n / data.rows[name].n_tokens} for name, n in tokens.items()}


def show_end(
    display: Display,
    parts: Parts,
    ended: State,
    report: Report | None,
    seen: dict[str, dict[str, float]],
    run_dir: Path,
) -> None:
    """How it went, what the best checkpoint can do, where it lies, what to type next."""
    if report is not None:
        show_main_figures(display.console, report)
    state = parts.trainer.state
    best = "none yet" if state.best_loss is None else f"{state.best_loss:.4f} at step {state.best_step}"
    kept = list_checkpoints(run_dir, contents=False)
    folder = shown(run_dir)
    answers_questions = any(parts.data.pairs.values())
    talk = f"python -m dtl.{'chat' if answers_questions else 'generate'} ckpt={folder}"
    rows = [
        ("steps", f"{state.step}, {in_units(state.tokens)} tokens in {in_time(state.seconds)}"),
        ("best validation loss", best),
        *(
            ("seen", f"{name}: {in_units(of_source['tokens'])} tokens, {of_source['passes']:.2f} passes")
            for name, of_source in seen.items()
        ),
        *((name, f"{value:.4g}") for name, value in (report.tasks if report else {}).items()),
        ("checkpoints", ", ".join(f"{entry.path.name} (epoch {entry.epoch})" for entry in kept) or "none"),
        ("folder", folder),
        *([("figures", f"all of them: {FIGURES} there; more: python -m dtl.evaluate ckpt={folder}")] if report else []),
        ("next", f"python -m dtl.train resume={folder}" if ended == "stopped" else talk),
    ]
    display.screen(f"\n{ended.capitalize()}", rows)
