"""The files of a sweep on disk, for reading from another terminal and for resuming after a kill.

outputs/multirun/<date>/<time>-<pid>/
  sweep.json        command line, start, state
  .lock             locked while the sweep runs
  <number>/         a trial: the folder of an ordinary run, and
    trial.json      its overrides, state and reason
    trial.log       its terminal output, of every attempt
    error.json      the error that ended it
    traceback.txt   the traceback of that error
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from dtl.base.files import discard_directory, leftover_of, write_record
from dtl.base.json_files import as_number, as_whole, read_record, read_record_or_empty
from dtl.errors import CheckpointError
from dtl.run_dir.provenance import RESULT, composition_flags
from dtl.sweeps.config import asks_for_more

SWEEP, TRIAL = "sweep.json", "trial.json"
MULTIRUN = "multirun.yaml"  # Hydra's own record of a sweep
LOG, ERROR, TRACEBACK = "trial.log", "error.json", "traceback.txt"

TrialState = Literal[
    "waiting", "running", "finished", "stopped", "failed", "refused", "timed out", "hung", "pruned",
    "interrupted", "killed",
]  # fmt: skip
# Completed: the loss counts.
SUCCEEDED: tuple[TrialState, ...] = ("finished", "stopped")
# Would fail again in the same way: done, unless sweep.retry_failed=true.
FAILED: tuple[TrialState, ...] = ("failed", "refused", "timed out", "hung")
DONE: tuple[TrialState, ...] = (*SUCCEEDED, "pruned", *FAILED)


@dataclass
class Trial:
    """One configuration of a sweep, and its state."""

    number: int
    overrides: list[str]
    hash: str  # of its complete configuration: equal for equal trials
    state: TrialState = "waiting"
    reason: str = ""  # why it is not finished, in one line
    value: float | None = None  # best validation loss
    attempts: int = 0
    started: str | None = None  # of the last attempt, ISO 8601
    ended: str | None = None
    exit_code: int | None = None
    role: str = "trial"  # confirm: the winner of a search with another seed
    # Of the configuration that this session composed, recipes included: a resumed run takes none from its own folder.
    plugins: list[str] = field(default_factory=list)
    # Settings that the sweep's first trials were trained with, of keys that did not exist then.
    pinned: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """True when nothing is left to run."""
        return self.state in DONE

    @property
    def has_failed(self) -> bool:
        """True when it ended neither successfully nor because it was stopped."""
        return self.state in (*FAILED, "killed")

    def is_pending(self, retry_failed: bool) -> bool:
        """Return True when a session with this `retry_failed` has to run this trial."""
        return not self.done or (retry_failed and self.state in FAILED)

    def seconds(self) -> float | None:
        """Duration of the last attempt so far, in seconds."""
        if self.started is None:
            return None
        ended = datetime.fromisoformat(self.ended) if self.ended else datetime.now().astimezone()
        return (ended - datetime.fromisoformat(self.started)).total_seconds()


@dataclass
class SweepRecord:
    """The contents of sweep.json: the command line of a sweep and its state."""

    arguments: list[str]  # flags, then overrides as typed, with their commas; the overrides identify the sweep
    kind: Literal["grid", "search"] = "grid"
    state: str = "running"  # running | finished | interrupted
    started: str = ""
    sessions: int = 0
    planned: int | None = None  # total number of trials, when known
    extra: dict[str, Any] = field(default_factory=dict)  # for a search: study, winner


NO_RESULT = f"ended before its training was finished, see {LOG}"


def _why_not(folder: Path) -> str:
    """Why a trial that is recorded as finished has no loss."""
    with suppress(FileNotFoundError):
        try:
            read_record(folder / RESULT)
        except CheckpointError:
            return f"its {RESULT} is damaged. Run it again with sweep.retry_failed=true"
    return NO_RESULT


def ended_well(folder: Path) -> tuple[TrialState, str, float | None] | None:
    """Return state, reason and loss of a trial whose result.json says that its training is finished or paused.

    None for any other: a program that ends early with exit code 0 has finished nothing.
    """
    result = read_record_or_empty(folder / RESULT)
    for state in SUCCEEDED:
        if state == result.get("state"):
            return state, "", as_number(result.get("value"))
    return None


def now() -> str:
    """The current time, ISO 8601 with the local offset."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


class SweepFolder:
    """The folder of a sweep: its record and its trials."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> SweepRecord | None:
        """Read sweep.json; None when it is missing or cannot be read."""
        return _read(self.path / SWEEP, SweepRecord)

    def has_damaged_record(self) -> bool:
        """Return True when there is a sweep.json that `read` cannot read."""
        return (self.path / SWEEP).exists() and self.read() is None

    def write(self, record: SweepRecord) -> None:
        _write(self.path / SWEEP, record)

    def trial_folder(self, number: int) -> Path:
        return self.path / str(number)

    def trials(self) -> list[Trial]:
        """Every trial that has a record, by number."""
        read = {file.parent: _read(file, Trial) for file in self.path.glob(f"*/{TRIAL}")}
        trials = [(trial, folder) for folder, trial in read.items() if trial and folder.name == str(trial.number)]
        for trial, folder in trials:
            if trial.state in SUCCEEDED:  # only the result of its training says so, and has its loss
                trial.state, trial.reason, trial.value = ended_well(folder) or ("failed", _why_not(folder), None)
        return sorted((trial for trial, _ in trials), key=lambda trial: trial.number)

    def next_number(self) -> int:
        """Return the number of a new trial, above that of every folder: one without a record may be the user's."""
        folders = [path for path in self.path.iterdir() if path.name.isascii() and path.name.isdecimal()]
        # A sweep that is killed while it writes the record of a trial leaves nothing else in its folder.
        used = [
            path for path in folders if not path.is_dir() or any(not leftover_of(each.name) for each in path.iterdir())
        ]
        return max((int(path.name) for path in used), default=-1) + 1

    def keep(self, trial: Trial) -> None:
        """Write the trial's record."""
        folder = self.trial_folder(trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / TRIAL, trial)

    def remove(self, trial: Trial) -> None:
        """Delete the trial's folder with its record."""
        discard_directory(self.trial_folder(trial.number))


def is_sweep(folder: Path) -> bool:
    """Return True when the folder holds the trials of a sweep, whichever launcher runs them."""
    return any((folder / name).is_file() for name in (SWEEP, MULTIRUN))


def find_sweeps(outputs: Path) -> list[SweepFolder]:
    """The sweeps under `outputs`, whichever launcher runs their trials, last started first."""
    folders = [SweepFolder(folder) for folder in outputs.glob("multirun/*/*") if is_sweep(folder)]
    return sorted(folders, key=lambda folder: (_started(folder), folder.path), reverse=True)


def _started(folder: SweepFolder) -> float:
    """Seconds since the epoch; of a sweep without a record the time of Hydra's."""
    with suppress(ValueError, OSError):
        record = folder.read()
        started = record.started if record else ""
        return datetime.fromisoformat(started).timestamp() if started else (folder.path / MULTIRUN).stat().st_mtime
    return 0.0


def _write(file: Path, record: Any) -> None:
    write_record(file, asdict(record))


def _read(file: Path, kind: type) -> Any:
    """Return the record; None when it is missing, or when a value in it cannot have been written there."""
    types = get_type_hints(kind)
    values = {key: value for key, value in read_record_or_empty(file).items() if key in types}
    times = [values[key] for key in ("started", "ended") if values.get(key)]
    with suppress(TypeError, ValueError):  # a required key is missing, a time is none
        if not all(_fits(value, types[key]) for key, value in values.items()):
            return None
        return kind(**values) if all(datetime.fromisoformat(time).tzinfo for time in times) else None
    return None


def _fits(value: object, kind: Any) -> bool:
    """Return True when a value of a JSON file has this type of a field."""
    options = get_args(kind)
    if get_origin(kind) is Literal:
        return value in options
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, options[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if options:  # one type or another
        return any(_fits(value, option) for option in options)
    if kind in (int, float):
        return (as_whole(value) if kind is int else as_number(value)) is not None
    return isinstance(value, kind)


# --- resuming a sweep ---------------------------------------------------------------------------------------------


def sweep_to_continue(arguments: Sequence[str], outputs: Path) -> Path | None:
    """The newest sweep under `outputs` that has the same overrides and something left to run.

    None when there is none, when the command line names a folder, and with sweep.new=true.
    """
    if _is_set(arguments, "sweep.new") or any(word.startswith("hydra.sweep.dir=") for word in arguments):
        return None
    identity, retry_failed = sweep_identity(arguments), _is_set(arguments, "sweep.retry_failed")
    for sweep in find_sweeps(outputs):
        record = sweep.read()
        if record is None or sweep_identity(record.arguments) != identity:
            continue
        # A sweep that was killed still has the state `running`, so it has more to do.
        has_more = record.state != "finished" or any(trial.is_pending(retry_failed) for trial in sweep.trials())
        if has_more or (record.kind == "search" and asks_for_more(arguments, record.extra)):
            return sweep.path
    return None


def damaged_sweep(arguments: Sequence[str], outputs: Path) -> Path | None:
    """The newest sweep with a sweep.json that cannot be read, newer than those that can; None with sweep.new=true.

    Nothing tells whether it is the one that the command line would resume.
    """
    newest = next(iter(find_sweeps(outputs)), None)
    if newest is None or _is_set(arguments, "sweep.new") or not newest.has_damaged_record():
        return None
    return newest.path


def with_its_flags(arguments: Sequence[str], folder: Path) -> list[str]:
    """`arguments` with the flags of the sweep in `folder`, as far as they name none: its config groups may be where
    the sweep was started and not here."""
    record = SweepFolder(folder).read()
    kept = dict(word.split("=", 1) for word in (record.arguments if record else ()) if word.startswith("--"))
    words = []
    for word in arguments:
        flag, _, value = word.partition("=")
        own = kept.pop(flag, value)
        moved = own != value and not Path(value).exists() and Path(value).name == Path(own).name
        words.append(f"{flag}={own}" if moved else word)
    return [*(f"{flag}={value}" for flag, value in kept.items()), *words]


def as_typed(config: DictConfig) -> list[str]:
    """The flags and overrides of a command line including Hydra's own, as recorded in sweep.json."""
    given = OmegaConf.to_container(config.hydra.overrides, resolve=False)  # `${...}` stays as it was typed
    assert isinstance(given, dict)
    own = [override for override in given["hydra"] if not override.startswith("hydra.mode=")]
    return [*composition_flags(config.hydra), *own, *given["task"]]


def sweep_identity(arguments: Sequence[str]) -> list[str]:
    """The overrides that identify a sweep, sorted, without those of how it is run."""
    overrides = (word for word in arguments if ("=" in word and not word.startswith("-")) or word.startswith("~"))
    own = ("sweep.", "hydra.launcher.", "hydra.sweep.", "hydra.sweeper.n_trials", "hydra.sweeper.hours")
    return sorted(word.lstrip("+") for word in overrides if not word.lstrip("+").startswith(own))


def _is_set(arguments: Sequence[str], key: str) -> bool:
    return any(word.partition("=")[0] == key and word.partition("=")[2].lower() == "true" for word in arguments)
