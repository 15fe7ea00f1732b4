"""Runs from Python: the data of a config, a whole run, and its steps one by one."""

import math
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf.errors import OmegaConfBaseException

from dtl.base.json_files import dotted
from dtl.base.runtime import arithmetic, random_state, random_state_kept, restore_random_state
from dtl.base.safe_text import safe_logger
from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.listing import step_folders
from dtl.checkpoints.load import load_model, load_tokenizer
from dtl.checkpoints.upkeep import LOCK
from dtl.commandline.cli import to_dtl_error
from dtl.commandline.compose import COMMAND
from dtl.commandline.overrides import rerun_words
from dtl.commandline.translate import translate_error
from dtl.config import RunConfig, typed
from dtl.data.collect import open_sources
from dtl.data.prepare import PreparedData, prepare_data
from dtl.data.sources import SourcePlan
from dtl.data.tokenizers.prompt import read_prompt
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.errors import ConfigError, did_you_mean
from dtl.foresight.choose import sized
from dtl.model.transformer import TransformerLM
from dtl.run_dir.provenance import RECORD
from dtl.run_dir.state import resume_command
from dtl.runner.build import build_run, raise_if_resume
from dtl.runner.run import Origin, train
from dtl.tracking.metrics import read_metrics
from dtl.training.trainer import StepReport

log = safe_logger(__name__)

# Torch, NumPy and Python have one random state per process, and torch one switch for deterministic algorithms: runs in
# several threads take turns. Reentrant, for a part of the user's own that trains a model itself.
_one_at_a_time = threading.RLock()


# --- data ---------------------------------------------------------------------------------------------------------


def open_data(config: RunConfig) -> PreparedData:
    """Return the data that a run of this config trains on, prepared or from the cache.

    `data.train[0]` is one sequence as a batch of (1, seq_len), `data.decode(data.train[0])` its text with the loss
    marked; `data.validation`, `data.test` (None without), `data.tokenizer`, `data.pairs` are those of the run. With
    `config.init` the tokenizer is that checkpoint's.

    Raises ConfigError for an invalid config, DataError for data that is missing or too little.
    """
    with _as_dtl_errors(), _one_at_a_time, random_state_kept("cpu"):
        config = _checked(config)
        config, init_from, plans = _opened(config)
        tokenizer = load_tokenizer(init_from) if init_from else config.tokenizer
        return prepare_data(config.data, tokenizer, config.seq_len, config.seed, plans=plans)


# --- a whole run --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitResult:
    """A finished or paused run."""

    run_dir: Path
    best_loss: float | None  # best validation loss, nats per target token; None: none was measured
    history: list[dict[str, Any]] = field(repr=False)  # rows of metrics.jsonl: `train/loss` by `step`, `val/loss`, ...

    def model(self, device: torch.device | str = "cpu") -> TransformerLM:
        """Load the best model, or without a validation loss the last one, in evaluation mode."""
        return load_model(self.run_dir, device)

    def tokenizer(self) -> Tokenizer:
        """Load the run's tokenizer."""
        return load_tokenizer(self.run_dir)


def fit(config: RunConfig, out_dir: Path | str) -> FitResult:
    """Train as `python -m dtl.train` does, in a new folder, and return the result.

    `dtl.fit(dtl.compose("model=small", "data=qa"), "outputs/mine")`. The folder has everything that a run of the
    command has, its command line included (run.json), so that every command works on it. `config.init` starts from the
    weights, the size and the tokenizer of another run. The caller's random states are unchanged afterwards. Runs in
    several threads take turns; Ctrl-C saves and stops in the main thread only.

    Raises ConfigError, DataError, CheckpointError before the first step, and for `config.resume`; TrainingError for a
    loss that is not finite or too little memory; InterruptedRun after a signal. Saved checkpoints are always kept.
    """
    run_dir = Path(out_dir).expanduser().absolute()  # the result holds after a change of the working directory
    with _as_dtl_errors(), _one_at_a_time:
        config = _checked(config)
        _check_folder(out_dir, run_dir)
        if config.model.auto:
            opened, _, plans = _opened(config)
            chosen = sized(opened, plans, lambda message: None).config
            config = replace(config, model=chosen.model, trainer=chosen.trainer)
        with random_state_kept(config.device), _removed_if_empty(run_dir):
            best_loss = train(config, run_dir, Origin(overrides=rerun_words(config)))
        return FitResult(run_dir, None if math.isnan(best_loss) else best_loss, read_metrics(run_dir))


@contextmanager
def _removed_if_empty(run_dir: Path) -> Iterator[None]:
    """Remove the folder of a run that fails before it has written anything, if it did not exist before."""
    existed = run_dir.exists()
    try:
        yield
    except BaseException:  # Ctrl-C too
        if not existed and run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= {LOCK}:
            shutil.rmtree(run_dir)
        raise


# --- step by step -------------------------------------------------------------------------------------------------


class Steps(Iterator[StepReport]):
    """The optimizer steps of a run, taken one by one as they are asked for; writes nothing.

    `for report in dtl.steps(config): print(report.step, report.loss.item())` takes the steps that `fit` takes, with the
    same losses, up to `trainer.total_steps` or `trainer.max_epochs`. Evaluation, saving, early stopping and
    `trainer.hours` are the caller's. Leave the loop at any time: another one continues. What happens between two steps
    changes no random number of the run, nor a step those of the caller.

    Raises the errors of `fit`, from the constructor on.
    """

    def __init__(self, config: RunConfig) -> None:
        with _as_dtl_errors(), _one_at_a_time:
            config = _checked(config)
            with random_state_kept(config.device):
                config, init_from, plans = _opened(config)
                config = sized(config, plans, lambda message: None).config if config.model.auto else config
                self._parts = build_run(config, plans, None, init_from, lambda message: None)
                self._random = random_state(self._parts.device)
                self._parts.data.cache.check()
        self.config = self._parts.config  # with `init` of the size of its model
        self.data = self._parts.data
        self.tokenizer = self._parts.tokenizer
        self.model = self._parts.model
        self.trainer = self._parts.trainer
        self.optimizers = self.trainer.optimizers
        self._reports = self.trainer.steps()

    def __next__(self) -> StepReport:
        trainer, at_once = self.config.trainer, self.trainer.sequences_at_once
        computing = arithmetic(deterministic=trainer.deterministic, tf32=trainer.tf32)
        with _one_at_a_time, random_state_kept(self._parts.device.type), computing:
            restore_random_state(self._random, self._parts.device)
            report = next(self._reports, None)
            self._random = random_state(self._parts.device)
        if report is None:
            raise StopIteration
        if (now := self.trainer.sequences_at_once) < at_once:
            log.warning(
                "Step %d: no memory for %d sequences at once. From here on %d: the same steps.",
                report.step,
                at_once,
                now,
            )
        return report


# --- configs and errors -------------------------------------------------------------------------------------------


def _checked(config: RunConfig) -> RunConfig:
    """Return a validated copy of the config, its plugins imported; later changes of the original have no effect."""
    if not isinstance(config, RunConfig):
        raise ConfigError(f"{type(config).__name__}: not a config. Compose one: dtl.compose('model=small', 'data=qa').")
    _check_attributes(config)
    values = _plain(asdict(config))
    try:
        config = typed(values)
    except OmegaConfBaseException as error:
        words = [f"{key}={value}" for key, value in dotted(values)]
        raise translate_error(error, words, COMMAND) or error from None
    raise_if_resume(config)
    return config


def _check_attributes(section: Any, prefix: str = "") -> None:
    """Raise ConfigError for an attribute that is no setting, and for a section that was replaced by something else:
    `config.optimizer.lrr = 3`, `config.model = "small"`."""
    defaults = type(section)()
    known = {item.name for item in fields(section)}
    for name, value in vars(section).items():
        if name not in known:
            raise ConfigError(f"{prefix}{name}={value!r}: there is no such key.{did_you_mean(name, known)}")
        if is_dataclass(getattr(defaults, name)):
            if not isinstance(value, type(getattr(defaults, name))):
                raise ConfigError(
                    f"{prefix}{name}={value!r}: is a section. Set its fields, or choose it by name when you compose: "
                    f"dtl.compose('{prefix}{name}={value}')."
                )
            _check_attributes(value, f"{prefix}{name}.")


def _plain(value: Any) -> Any:
    """Return the values with NumPy's numbers as Python's, as of a loop over np.logspace."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def _check_folder(out_dir: Path | str, run_dir: Path) -> None:
    """Raise ConfigError for a folder that a run would share with other files: `dtl.runs` deletes a run with it."""
    if not str(out_dir).strip() or run_dir.name == "checkpoints":
        raise ConfigError(f"out_dir={str(out_dir)!r}: give a folder for the run, such as outputs/mine.")
    if step_folders(run_dir):
        raise ConfigError(
            f"{run_dir}: contains a run. Choose another folder, or continue that run from a terminal: "
            f"{resume_command(run_dir)}"
        )
    if run_dir.is_dir() and any(run_dir.iterdir()) and not (run_dir / RECORD).exists():
        raise ConfigError(f"{run_dir}: contains other files. Choose a folder of its own for the run.")


def _opened(config: RunConfig) -> tuple[RunConfig, Path | None, list[SourcePlan]]:
    """Return the config with its sources opened, the checkpoint that it starts from, and the sources."""
    init_from = find_checkpoint(config.init, Path("outputs")) if config.init else None
    data, plans = open_sources(config.data, config.seed, init_from and read_prompt(init_from))
    return replace(config, data=data), init_from, plans


@contextmanager
def _as_dtl_errors() -> Iterator[None]:
    """Turn the errors of files into DTL's, as the command does."""
    try:
        yield
    except Exception as error:
        known = to_dtl_error(error, [], COMMAND)
        if known is None or known is error:
            raise
        raise known from error
