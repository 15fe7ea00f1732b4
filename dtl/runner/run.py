"""One training run from a typed config: checks, assembles, trains, records how it ended.

The layer just below the commands; `dtl.train.train` is its public name.
"""

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from dtl.base.display import Display, shown
from dtl.base.files import write_atomically
from dtl.base.json_files import read_json_or_empty
from dtl.base.redaction import redact
from dtl.base.runtime import deterministic_algorithms, is_out_of_memory
from dtl.base.signals import StopSignals
from dtl.checkpoints.listing import best_checkpoint, list_checkpoints, step_folders
from dtl.checkpoints.store import lock_run, publish_best, set_aside_later, sweep_leftovers
from dtl.config import RunConfig, to_dict, to_yaml
from dtl.data.collect import pinned
from dtl.data.sources import SourcePlan, plan_sources
from dtl.errors import ConfigError, DTLError, InterruptedRun, TrainingError
from dtl.evaluation.report import Report
from dtl.run_dir.provenance import RECORD, add_session, config_hash, update_run_record, write_result, write_run_record
from dtl.runner.build import Parts, assemble
from dtl.runner.screens import seen_of_sources, show_end, show_start
from dtl.runner.session import Session
from dtl.tracking.metrics import truncate_metrics
from dtl.tracking.tracker import State, Tracker, open_tracker
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
    plans: list[SourcePlan] | None = None  # the opened sources of a config that is validated; None: neither is done


def train(config: RunConfig, out_dir: Path | str, origin: Origin | None = None) -> float:
    """Train as `config` says, in the folder `out_dir`; returns the best validation loss (nan: none was measured).

    Raises ConfigError, DataError, CheckpointError before the first step; TrainingError for a loss that is not
    finite or memory that is not enough; InterruptedRun after a signal. Whatever was saved before stays.
    """
    origin = origin or Origin()
    run_dir = Path(out_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if origin.plans is None:
        config.validate()
        origin.plans = plan_sources(config.data, config.seed)
        config = replace(config, data=pinned(config.data, origin.plans))
    if origin.resume_from is None and step_folders(run_dir):
        raise ConfigError(f"{run_dir}: holds a run. Go on with it (resume={run_dir}) or take another folder.")
    with lock_run(run_dir), Display() as display, deterministic_algorithms(config.trainer.deterministic):
        for warning in [*sweep_leftovers(run_dir), *([origin.damage] if origin.damage else [])]:
            display.warn(warning)
        with _memory_advice(config):
            parts = assemble(config, origin.plans, origin.resume_from, origin.init_from, display.note)
        _record_start(parts, run_dir, origin)
        with _open_tracker(parts, run_dir, origin) as tracker:
            update_run_record(run_dir, wandb_id=tracker.run_id, last_step=parts.length.last_step)
            show_start(display, parts, run_dir, tracker)
            session = Session(parts, run_dir, tracker, display)
            state = _drain(session)
            report = _evaluate_best(session) if state == "finished" else None
            return _conclude(session, state, report)


def _drain(session: Session) -> State:
    """Train until something ends it; when that is an error, write down which."""
    parts, run_dir, display = session.parts, session.run_dir, session.display
    try:
        with _memory_advice(parts.config), StopSignals() as signals:
            display.start_progress(parts.length.last_step, parts.trainer.state.step)
            return session.drain(signals)
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


def _evaluate_best(session: Session) -> Report | None:
    """The figures of the best checkpoint. Whatever goes wrong here, the run is finished, and its result says so."""
    _record_end(session, "finished")
    by_hand = f"python -m dtl.evaluate ckpt={shown(session.run_dir)}"
    try:
        return session.final_report()
    except KeyboardInterrupt:
        _finish_tracking(session, "finished", {})
        raise InterruptedRun(
            f"The run is finished and saved; its evaluation was stopped. To do it: {by_hand}", signal.SIGINT
        ) from None
    except Exception as error:
        what = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        session.display.warn(f"the run is finished and saved, but its evaluation failed ({what}). By hand: {by_hand}")
        return None


def _conclude(session: Session, state: State, report: Report | None) -> float:
    """Write the result, show the summary; returns the best validation loss."""
    figures = report.figures() if report else {}
    seen = seen_of_sources(session.parts)
    _record_end(session, state, **figures, seen=seen)
    _finish_tracking(session, state, figures)
    show_end(session.display, session.parts, state, report, seen, session.run_dir)
    loss = session.trainer.state.best_loss
    return math.nan if loss is None else loss


def _finish_tracking(session: Session, state: State, figures: dict[str, float]) -> None:
    best = {"best/loss": session.trainer.state.best_loss, "best/step": session.trainer.state.best_step}
    session.tracker.finish(state, {**best, **figures})


# --- what a run was, in its folder ---------------------------------------------------------------------------------


def _record_start(parts: Parts, run_dir: Path, origin: Origin) -> None:
    """config.yaml and run.json for a new run, one more session in run.json for a resumed one."""
    config_yaml = to_yaml(parts.config)
    if origin.resume_from is None:
        truncate_metrics(run_dir, -1)  # of an attempt that saved nothing: its rows would stand twice
        write_run_record(
            run_dir,
            config_yaml,
            origin.overrides,
            origin.choices,
            parts.device.type,
            seed=parts.config.seed,
            data_fingerprint=parts.data.fingerprint,
            computed_with=parts.fingerprint,
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
        resumed_step=parts.trainer.state.step if parts.resumed_from else None,
        overrides=_first_overrides(run_dir) if origin.resume_from else origin.overrides,
        group=origin.group,
        job_number=origin.job_number,
    )


def _first_overrides(run_dir: Path) -> list[str]:
    """What the run was started with: it is named after that, however often it is resumed."""
    return list(read_json_or_empty(run_dir / RECORD).get("overrides", []))


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
