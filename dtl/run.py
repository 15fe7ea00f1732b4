"""One training run from a typed config: checks, assembles, trains, records how it ended.

The layer just below the commands; `dtl.train.train` is its public name.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dtl.assemble import Parts, assemble, model_line
from dtl.checkpoint_list import best_checkpoint, list_checkpoints, step_folders
from dtl.checkpoint_store import lock_run, publish_best, set_aside_later, sweep_leftovers
from dtl.config import RunConfig, to_dict, to_yaml
from dtl.data.prepare import PreparedData
from dtl.display import Display, in_time, in_units
from dtl.durable import write_atomically
from dtl.errors import ConfigError, DTLError, InterruptedRun, TrainingError
from dtl.provenance import add_session, config_hash, update_run_record, write_run_record
from dtl.redaction import redact
from dtl.runtime import StopSignals, deterministic_algorithms, is_out_of_memory, nvidia_without_cuda
from dtl.session import Session
from dtl.tracking import State, Tracker, open_tracker, write_result
from dtl.training.trainer import NonFiniteError


@dataclass
class Origin:
    """How a run was started: what the command line said, and what it starts from."""

    overrides: list[str] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)
    resume_from: Path | None = None  # a checkpoint of this very run
    damage: str | None = None  # what to tell about newer checkpoints that are damaged
    init_from: Path | None = None  # a checkpoint or Hugging Face folder to take weights and tokenizer from
    group: str | None = None  # the sweep that this job belongs to
    job_number: int | None = None


def train(config: RunConfig, out_dir: Path | str, origin: Origin | None = None) -> float:
    """Train as `config` says, in the folder `out_dir`; returns the best validation loss (nan: none was measured).

    Raises ConfigError, DataError, CheckpointError before the first step; TrainingError for a loss that is not
    finite or memory that is not enough; InterruptedRun after a signal. Whatever was saved before stays.
    """
    origin = origin or Origin()
    run_dir = Path(out_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    config.validate()
    if origin.resume_from is None and step_folders(run_dir):
        raise ConfigError(f"{run_dir}: holds a run. Go on with it (resume={run_dir}) or take another folder.")
    with lock_run(run_dir), Display() as display, deterministic_algorithms(config.trainer.deterministic):
        for warning in [*sweep_leftovers(run_dir), *([origin.damage] if origin.damage else [])]:
            display.warn(warning)
        with _memory_advice(config):
            parts = assemble(config, origin.resume_from, origin.init_from, display.note)
        _record_start(parts, run_dir, origin)
        with _open_tracker(parts, run_dir, origin) as tracker:
            update_run_record(run_dir, wandb_id=tracker.run_id)
            _show_start(display, parts, run_dir, tracker)
            session = Session(parts, run_dir, tracker, display)
            return _conclude(session, *_drain(session))


def _drain(session: Session) -> tuple[State, dict[str, float]]:
    """Train until something ends it, and score what came out; when it is an error, write down which."""
    parts, run_dir, display = session.parts, session.run_dir, session.display
    try:
        with _memory_advice(parts.config):
            with StopSignals() as signals:
                display.start_progress(parts.length.last_step, parts.trainer.state.step)
                state = session.drain(signals)
            return state, session.final_scores() if state == "finished" else {}
    except BaseException as error:
        with suppress(Exception):  # the device may be what failed
            session.log()
        if isinstance(error, NonFiniteError):
            write_atomically(run_dir / "non_finite.json", json.dumps(error.record, indent=2) + "\n")
        stopped = isinstance(error, (InterruptedRun, KeyboardInterrupt))
        message = str(error) if isinstance(error, DTLError) else f"{type(error).__name__}: {error}"
        _record_end(session, "interrupted" if stopped else "failed", error=message)
        if isinstance(error, TrainingError):
            kept = [entry.path.name for entry in list_checkpoints(run_dir, contents=False)]
            error.args = (f"{error}\nKept: {', '.join(kept) or 'no checkpoint yet'}, in {run_dir / 'checkpoints'}",)
        raise
    finally:
        display.stop_progress()


def _conclude(session: Session, state: State, scores: dict[str, float]) -> float:
    """Write the result, show the summary; returns the best validation loss."""
    train_state, display, run_dir = session.trainer.state, session.display, session.run_dir
    loss = train_state.best_loss
    _record_end(session, state, **scores)
    session.tracker.finish(state, {"best/loss": loss, "best/step": train_state.best_step, **scores})
    best = "none yet" if loss is None else f"{loss:.4f} at step {train_state.best_step}"
    kept = list_checkpoints(run_dir, contents=False)
    rows = [
        ("steps", f"{train_state.step}, {in_units(train_state.tokens)} tokens in {in_time(train_state.seconds)}"),
        ("best validation loss", best),
        *((name, f"{value:.1%}") for name, value in scores.items()),
        ("checkpoints", ", ".join(f"{entry.path.name} (epoch {entry.epoch})" for entry in kept) or "none"),
        ("folder", _shown(run_dir)),
        ("next", f"python -m dtl.train resume={_shown(run_dir)}" if state == "stopped" else _next_command(run_dir)),
    ]
    display.screen(f"\n{state.capitalize()}", rows)
    return math.nan if loss is None else loss


def _next_command(run_dir: Path) -> str:
    return f"python -m dtl.train init={_shown(run_dir)} data=...   (go on from these weights)"


def _shown(run_dir: Path) -> str:
    """The folder as a person types it from here."""
    return os.path.relpath(run_dir) if run_dir.is_relative_to(Path.cwd()) else str(run_dir)


# --- what a run was, in its folder ---------------------------------------------------------------------------------


def _record_start(parts: Parts, run_dir: Path, origin: Origin) -> None:
    """config.yaml and run.json for a new run, one more session in run.json for a resumed one."""
    config_yaml = to_yaml(parts.config)
    if origin.resume_from is None:
        write_run_record(
            run_dir,
            config_yaml,
            origin.overrides,
            origin.choices,
            parts.device.type,
            seed=parts.config.seed,
            lineage={"init": parts.config.init, "checkpoint": str(origin.init_from)} if origin.init_from else None,
        )
        return
    _keep_config(run_dir, config_yaml)
    # A checkpoint of a future that is now left behind must not be taken for this run's newest.
    set_aside_later(run_dir, parts.trainer.state.step)
    _republish_best(run_dir, parts.trainer.state.best_step)
    add_session(run_dir, origin.overrides, parts.device.type)


def _keep_config(run_dir: Path, config_yaml: str) -> None:
    """A length that was given beside resume= holds for later resumes too."""
    try:
        write_atomically(run_dir / "config.yaml", redact(config_yaml))
    except OSError as error:
        raise TrainingError(f"{run_dir}: cannot be written ({error.strerror}). Make room, then resume.") from error


def _republish_best(run_dir: Path, best_step: int | None) -> None:
    """A kill between saving a checkpoint and naming it the best is made good."""
    best = best_checkpoint(run_dir, contents=False)
    if best_step is None or (best is not None and best.problem is None and best.step == best_step):
        return
    for entry in list_checkpoints(run_dir):
        if entry.step == best_step and entry.problem is None:
            publish_best(run_dir, entry.path)


def _record_end(session: Session, state: State, **extra: object) -> None:
    train_state = session.trainer.state
    write_result(
        session.run_dir,
        state,
        train_state.best_loss,
        train_state.step,
        config_hash(session.config_yaml),
        **extra,
    )


def _open_tracker(parts: Parts, run_dir: Path, origin: Origin) -> Tracker:
    return open_tracker(
        parts.config.tracker,
        run_dir,
        to_dict(parts.config),
        name=parts.config.name,
        run_id=parts.tracker_run_id,
        resumed_step=parts.trainer.state.step,
        overrides=origin.overrides,
        group=origin.group,
        job_number=origin.job_number,
    )


@contextmanager
def _memory_advice(config: RunConfig) -> Iterator[None]:
    """Out of memory, said with the setting that fits next and gives the same steps."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        micro, rows = config.micro_batch_size, config.rows_per_step
        if micro > 1:
            smaller = max(m for m in range(1, (micro + 1) // 2 + 1) if rows % m == 0)
            advice = f"trainer.micro_batch_size={smaller} trainer.grad_accum_steps={rows // smaller}"
        elif not config.trainer.activation_checkpointing:
            advice = "trainer.activation_checkpointing=true"
        else:
            advice = f"data.seq_len={config.seq_len // 2}"
        raise TrainingError(
            f"Out of memory with micro-batches of {micro} x {config.seq_len} tokens. Next to try: {advice}"
        ) from error


def _data_lines(data: PreparedData) -> Iterator[str]:
    for source, splits in data.report.items():
        train = splits["train"]
        held_out = ", ".join(f"{name} {in_units(split.tokens)}" for name, split in splits.items() if name != "train")
        yield (
            f"{source}: {train.documents:,} documents, {in_units(train.tokens)} tokens ({in_units(train.targets)} with "
            f"a loss) in {train.rows:,} rows, {train.wasted:.0%} padding; {held_out} tokens"
        )


def _show_start(display: Display, parts: Parts, run_dir: Path, tracker: Tracker) -> None:
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
        ("tracker", tracker.status),
        ("folder", _shown(run_dir)),
    ]
    display.screen(f"DTL {config.name}", rows)
    for note in parts.notes:
        display.note(note)
    mend = nvidia_without_cuda()
    for warning in [*length.warnings(config), *([mend] if mend else [])]:
        display.warn(warning)
