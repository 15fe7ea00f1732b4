"""The two screens of a run: what is about to happen, and what came out."""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from dtl.base.display import Display, shown
from dtl.base.runtime import cpu_has_bf16, nvidia_without_cuda
from dtl.base.units import in_time, in_units
from dtl.checkpoints.listing import list_checkpoints
from dtl.data.prepare import PreparedData
from dtl.evaluation.config import FIGURES
from dtl.evaluation.report import Report
from dtl.evaluation.tables import show_main_figures
from dtl.runner.build import Parts, model_line
from dtl.tracking.tracker import State, Tracker
from dtl.training.optimizer import numbers_per_weight


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
    no_room = disk_warning(run_dir, config.trainer.keep, checkpoint_bytes(parts.model, parts.trainer.optimizers))
    looks_wrong = (nvidia_without_cuda(), no_room, _emulation_warning(parts))
    for warning in [*length.warnings(config), *looks_wrong]:
        if warning:
            display.warn(warning)
    if parts.trainer.done:
        more = f"trainer.max_epochs={2 * (config.max_epochs or 1)} or trainer.total_steps={2 * length.last_step}"
        display.warn(f"this run has reached its last step, {length.last_step}. To train on: {more} beside resume=.")


def disk_warning(run_dir: Path, keep: int, checkpoint_bytes: int) -> str | None:
    """What to do when the disk will not hold the checkpoints of a run; None where there is room.

    At most there are `keep` of them, the best, the last, and one being written. On disks with hard links the best one
    shares its files with a step, so that a little less is taken.
    """
    present = {(file.stat().st_dev, file.stat().st_ino): file.stat().st_size for file in _files_of_checkpoints(run_dir)}
    needed = (keep + 3) * checkpoint_bytes - sum(present.values())  # what is there counts when a run goes on
    free = shutil.disk_usage(run_dir).free
    if needed <= free:
        return None
    return (
        f"the disk may not hold this run's checkpoints: needed up to {in_units(needed)}B (each "
        f"{in_units(checkpoint_bytes)}B: trainer.keep={keep}, the best, the last, one being written), free "
        f"{in_units(free)}B. "
        "Lower trainer.keep= or make room: python -m dtl.runs delete=checkpoints"
    )


def checkpoint_bytes(model: nn.Module, optimizers: list[Optimizer]) -> int:
    """Bytes of the weights and of the optimizers' state, as a checkpoint will hold them after the first step."""
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    for optimizer in optimizers:
        for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
            state = [value.nbytes for value in optimizer.state.get(parameter, {}).values() if isinstance(value, Tensor)]
            n_bytes += sum(state) or numbers_per_weight(optimizer) * parameter.nbytes
    return n_bytes


def _files_of_checkpoints(run_dir: Path) -> Iterator[Path]:
    return (file for file in run_dir.glob("checkpoints/*/*") if file.is_file())


def _emulation_warning(parts: Parts) -> str | None:
    if not parts.config.optimizer.traits.needs_bf16 or parts.device.type != "cpu" or cpu_has_bf16():
        return None
    return (
        f"optimizer={parts.config.optimizer.name}: computes in bf16, which this processor only emulates: a step may "
        "take seconds. Use optimizer=adamw."
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
