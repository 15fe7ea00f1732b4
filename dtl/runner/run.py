"""A training run from a typed config: check, build, train, evaluate, record the result.

The layer below the commands; `dtl.train.train` is its public name.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from dtl.base.checks import check_one_process
from dtl.base.display import command_line, lasting_display, shown
from dtl.base.files import write_atomically
from dtl.base.json_files import as_list, read_json_or_empty
from dtl.base.runtime import arithmetic, device_memory, is_out_of_memory
from dtl.base.signals import StopSignals, signal_of
from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.listing import best_checkpoint, list_checkpoints, newest_valid, step_folders
from dtl.checkpoints.upkeep import lock_run, publish_best, remove_leftovers, rotate, set_aside_later
from dtl.config import RunConfig, to_dict, to_yaml
from dtl.data.collect import open_sources
from dtl.data.sources import SourcePlan
from dtl.data.tokenizers.prompt import read_prompt
from dtl.errors import CheckpointError, ConfigError, DTLError, InterruptedRun, TrainingError
from dtl.evaluation.measure import Report
from dtl.run_dir.provenance import RECORD, add_session, config_hash, update_run_record, write_result, write_run_record
from dtl.run_dir.state import resume_command
from dtl.run_dir.trial import NO_LOSS_TO_SEARCH, in_search
from dtl.runner.build import Parts, build_run, raise_if_no_room, raise_if_resume, too_large, training_bytes
from dtl.runner.screens import quicker_run, show_end, show_start, tokens_seen, write_details
from dtl.runner.session import Session
from dtl.tracking.metrics import truncate_metrics
from dtl.tracking.tracker import State, Tracker, open_tracker
from dtl.training.config import TrainerConfig
from dtl.training.trainer import NonFiniteError

MAX_FIXED = 0.9  # of the device's memory for weights, gradients and state: more leaves a step nothing to compute in


@dataclass
class Origin:
    """Command line of a run, and the checkpoint that it starts from."""

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)  # Hydra's, such as --config-dir=FOLDER
    choices: dict[str, str] = field(default_factory=dict)
    resume_from: Path | None = None  # a checkpoint of this run
    warnings: list[str] = field(default_factory=list)  # about damage: newer checkpoints, the run's config.yaml
    init_from: Path | None = None  # a checkpoint or Hugging Face folder to take weights and tokenizer from
    group: str | None = None  # the sweep that this job belongs to
    job_number: int | None = None
    plans: list[SourcePlan] | None = None  # opened sources of a validated config; None: `train` does both
    # Looks at the run that is built, before its folder has a record: raises for one that does not fit into memory, and
    # returns rows of the start screen.
    foresee: Callable[[Parts], list[tuple[str, str]]] = lambda parts: []


def train(config: RunConfig, out_dir: Path | str, origin: Origin | None = None) -> float:
    """Train as `config` says, in the folder `out_dir`; return the best validation loss (nan: none was measured).

    Raises ConfigError, DataError, CheckpointError before the first step; TrainingError for a loss that is not finite
    or too little memory; InterruptedRun after a signal. Saved checkpoints are kept in every case.
    """
    check_one_process()
    origin = origin or Origin()
    run_dir = Path(out_dir)
    if origin.resume_from is None:
        raise_if_resume(config)
    if config.init is not None and origin.init_from is None:
        origin.init_from = find_checkpoint(config.init, Path("outputs"))
    if origin.plans is None:
        config.validate()
        start_from = origin.resume_from or origin.init_from
        data, origin.plans = open_sources(config.data, config.seed, start_from and read_prompt(start_from))
        config = replace(config, data=data)
    if origin.resume_from is None and step_folders(run_dir):
        raise ConfigError(f"{run_dir}: contains a run. Choose another folder, or resume it: {resume_command(run_dir)}")
    run_dir.mkdir(parents=True, exist_ok=True)
    computing = arithmetic(deterministic=config.trainer.deterministic, tf32=config.trainer.tf32)
    with lock_run(run_dir), lasting_display() as display, computing:
        for warning in [*remove_leftovers(run_dir), *origin.warnings]:
            display.warn(warning)
        if origin.resume_from is not None and not origin.resume_from.is_dir():
            origin.resume_from = newest_valid(run_dir)[0].path  # a killed save had renamed it, and it is back now
        if origin.resume_from is None and origin.init_from is None:
            raise_if_no_room(config, run_dir)
        with _memory_advice(lambda: BEFORE_TRAINING):
            parts = build_run(config, origin.plans, origin.resume_from, origin.init_from, display.log)
        if parts.data.validation is None:
            _raise_if_validation_is_needed(config, origin)
        keep = config.trainer.keep
        if not parts.trainer.done and len(step_folders(run_dir)) <= keep:  # else the rotation makes room
            raise_if_no_room(parts.config, run_dir, parts)
        foreseen = origin.foresee(parts)
        _record_start(parts, run_dir, origin)
        # A kill between the last save and the rotation leaves one too many.
        if origin.resume_from is not None and len(step_folders(run_dir)) > keep:
            for warning in rotate(run_dir, keep):
                display.warn(warning)
        with _open_tracker(parts, run_dir, origin) as tracker:
            last_step = max(parts.length.last_step, parts.trainer.state.step)  # a resume may give one that is past
            update_run_record(run_dir, wandb_id=tracker.run_id, last_step=last_step)
            show_start(display, parts, run_dir, tracker, foreseen)
            session = Session(parts, run_dir, tracker, display)
            if origin.group is None and origin.choices:  # neither a trial nor from Python
                recipe = origin.choices.get("experiment")
                session.quicker = quicker_run(parts, origin.overrides, origin.flags, recipe)
            state = _drain(session)
            report = _evaluate_best(session) if state == "finished" else None
            return _conclude(session, state, report)


def _raise_if_validation_is_needed(config: RunConfig, origin: Origin) -> None:
    """Raise ConfigError for what needs a validation split, where nothing is held out: given with the command or in a
    recipe. The default patience was chosen by nobody; a resumed run keeps the settings that it began with."""
    given = {word.partition("=")[0].lstrip("+"): word for word in origin.overrides}
    patience, metrics = config.trainer.early_stopping_patience, config.data.metrics
    needed = {
        "trainer.early_stopping_patience": (patience, TrainerConfig.early_stopping_patience, "loss to stop by"),
        "data.metrics": (f"[{','.join(metrics)}]" if metrics else None, None, "text to measure"),
    }
    for key, (value, default, purpose) in needed.items():
        is_chosen = key in given or (value != default and origin.resume_from is None)
        if value is not None and is_chosen:
            raise ConfigError(
                f"{given.get(key, f'{key}={value}')}: there is no validation {purpose}, because nothing is held out of "
                "this data. Leave it out, or hold some out: data.validation_fraction=0.1"
            )
    if in_search():
        raise ConfigError(NO_LOSS_TO_SEARCH)


def _drain(session: Session) -> State:
    """Train until the session ends; record the error if it ends with one."""
    parts, run_dir, display = session.parts, session.run_dir, session.display
    try:
        advice = _memory_advice(lambda: _advice_in_training(parts))
        with advice, parts.data.cache.explaining(), StopSignals() as signals:
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
        if isinstance(error, CheckpointError) and step_folders(run_dir):  # no room for another one
            error.args = (f"{error} Then resume: {resume_command(run_dir)}",)
        raise
    finally:
        display.stop_progress()


def _evaluate_best(session: Session) -> Report | None:
    """Evaluate the best checkpoint; None after an error, which only warns."""
    _record_end(session, "finished")  # first: the run is finished, whatever happens to its evaluation
    by_hand = command_line("evaluate", f"ckpt={shown(session.run_dir)}")
    try:
        return session.final_report()
    except KeyboardInterrupt as stop:
        _finish_tracking(session, "finished", {})
        raise InterruptedRun(
            f"The run is finished and saved; its evaluation was interrupted. To evaluate it: {by_hand}", signal_of(stop)
        ) from None
    except Exception as error:
        what = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        session.display.warn(f"the run is finished and saved; its evaluation failed ({what}). To repeat it: {by_hand}")
        return None


def _conclude(session: Session, state: State, report: Report | None) -> float:
    """Write the result and show the summary; return the best validation loss."""
    metrics = report.metrics() if report else {}
    seen = tokens_seen(session.parts)
    _record_end(session, state, **metrics, seen=seen)
    _finish_tracking(session, state, metrics)
    if session.ended_early:
        write_details(
            session.run_dir, "Ended", [("steps", f"{session.trainer.state.step:,}"), ("why", session.ended_early)]
        )
    show_end(session.display, session.parts, state, report, seen, session.run_dir, session.tracker)
    loss = session.trainer.state.best_loss
    return math.nan if loss is None else loss


def _finish_tracking(session: Session, state: State, metrics: dict[str, float]) -> None:
    best = {"best/loss": session.trainer.state.best_loss, "best/step": session.trainer.state.best_step}
    session.tracker.finish(state, {key: value for key, value in best.items() if value is not None} | metrics)


def _open_tracker(parts: Parts, run_dir: Path, origin: Origin) -> Tracker:
    return open_tracker(
        parts.config.tracker,
        run_dir,
        to_dict(parts.config),
        name=parts.config.name,
        run_id=parts.tracker_run_id,
        resumed_step=parts.trainer.state.step if parts.resumed_from else None,
        evaluated_step=parts.trainer.state.evaluated_step or 0,
        # The first session's overrides name the run in the tracker, however often it is resumed.
        overrides=[str(word) for word in as_list(read_json_or_empty(run_dir / RECORD).get("overrides"))]
        if origin.resume_from
        else origin.overrides,
        group=origin.group,
        job_number=origin.job_number,
    )


BEFORE_TRAINING = (
    "Out of memory while the data were read and the model was built, before the first step. A smaller model "
    "(model=small, model.dim, model.n_layers) or smaller files help, and closing other programs; a smaller micro-batch "
    "does not."
)


@contextmanager
def _memory_advice(advice: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error into a TrainingError with this advice."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(advice()) from error


def _advice_in_training(parts: Parts) -> str:
    """Return the setting to try next, or why none helps."""
    trainer, available = parts.trainer, device_memory(parts.device)
    if available is not None:
        needed = training_bytes(parts.model, trainer.optimizers, trainer.averaged is not None)
        if needed > MAX_FIXED * available:
            return f"Out of memory. {too_large(parts.config, needed, available, parts.device)}"
    # Steps and evaluations have been tried with a single sequence at once.
    return smaller_step(with_batch(parts.config, 1, parts.config.global_batch_size))


def smaller_step(config: RunConfig) -> str:
    """Return the advice to try the next smaller forward pass."""
    tried = f"{config.micro_batch_size} x {config.seq_len} tokens"
    return f"Out of memory with micro-batches of {tried}. Try next: {next_smaller(config)}"


def next_smaller(config: RunConfig) -> str:
    """Return the settings of the next smaller forward pass."""
    # Smaller micro-batches first: they give the same optimizer steps. A shorter seq_len, which does not, last.
    if config.micro_batch_size > 1:
        micro, accumulated = smaller_micro_batch(config)
        return f"trainer.micro_batch_size={micro} trainer.grad_accum_steps={accumulated}"
    if config.trainer.activation_checkpointing != "full":
        more = {"none": "selective", "selective": "full"}[config.trainer.activation_checkpointing]
        return f"trainer.activation_checkpointing={more}"
    return f"data.seq_len={config.seq_len // 2}"


def smaller_micro_batch(config: RunConfig) -> tuple[int, int]:
    """Return at most half the micro-batch, rounded up, and the accumulation that leaves a step its sequences."""
    rows = config.global_batch_size
    micro = max(m for m in range(1, (config.micro_batch_size + 1) // 2 + 1) if rows % m == 0)
    return micro, rows // micro


def with_batch(config: RunConfig, micro: int, accumulated: int) -> RunConfig:
    """Return the config with this micro-batch and accumulation."""
    return replace(config, trainer=replace(config.trainer, micro_batch_size=micro, grad_accum_steps=accumulated))


# --- records in the run folder ------------------------------------------------------------------------------------


def _record_start(parts: Parts, run_dir: Path, origin: Origin) -> None:
    """Write config.yaml and run.json of a new run, or add a session to the run.json of a resumed one."""
    config_yaml = to_yaml(parts.config)
    if origin.resume_from is None:
        truncate_metrics(run_dir, -1)  # of an attempt that saved nothing: its steps would occur twice
        write_run_record(
            run_dir,
            config_yaml,
            origin.overrides,
            origin.choices,
            parts.device.type,
            seed=parts.config.seed,
            flags=origin.flags,
            init_from=origin.init_from,
            data_fingerprint=parts.data.fingerprint,
            taught=parts.data.taught(),
            n_parameters={
                "all": parts.model.n_parameters(),
                "without_embeddings": parts.model.n_parameters(embeddings=False),
            },
            computed_with=parts.fingerprint,
            lineage={"init": parts.config.init, "checkpoint": str(origin.init_from)} if origin.init_from else None,
        )
        return
    try:  # a length given together with resume= then applies to later resumes too
        write_atomically(run_dir / "config.yaml", config_yaml)
    except OSError as error:
        raise TrainingError(f"{run_dir}: cannot be written ({error.strerror}). Make room, then resume.") from error
    # A checkpoint after the resumed step must not be mistaken for this run's newest.
    set_aside_later(run_dir, parts.trainer.state.step)
    _republish_best(run_dir, parts.trainer.state.best_step)
    add_session(run_dir, origin.overrides, parts.device.type)


def _republish_best(run_dir: Path, best_step: int | None) -> None:
    """Publish the best checkpoint again, for a run killed between saving it and publishing it."""
    best = best_checkpoint(run_dir, contents=False)
    if best_step is None or (best is not None and best.problem is None and best.step == best_step):
        return
    for entry in list_checkpoints(run_dir):
        if entry.step == best_step and entry.problem is None:
            publish_best(run_dir, entry.path)


def _record_end(session: Session, state: State, **extra: object) -> None:
    train_state = session.trainer.state
    resolved = config_hash(session.config_yaml)
    if session.ended_early:
        extra["reason"] = session.ended_early
    write_result(session.run_dir, state, train_state.best_loss, train_state.step, resolved, **extra)
