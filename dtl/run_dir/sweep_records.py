"""What a sweep keeps on the disk, so that it can be read by another terminal and continued after a kill.

outputs/multirun/<date>/<time>-<pid>/
  sweep.json        what was asked, since when, how it stands
  .lock             held while the sweep runs
  <number>/         a trial: the folder of an ordinary run, and
    trial.json      its overrides, how it stands and why
    trial.log       what it wrote to the terminal, of every attempt
    error.json      what ended it, when that was an error
    traceback.txt   where in the code
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from dtl.base.files import discard_directory, write_atomically
from dtl.base.json_files import read_json_or_empty
from dtl.sweeps.config import asks_for_more

SWEEP, TRIAL = "sweep.json", "trial.json"
MULTIRUN = "multirun.yaml"  # what Hydra itself keeps of a sweep
LOG, ERROR, TRACEBACK = "trial.log", "error.json", "traceback.txt"

TrialState = Literal[
    "waiting", "running", "finished", "stopped", "failed", "refused", "timed out", "hung", "pruned",
    "interrupted", "killed",
]  # fmt: skip
# Went through: the loss counts.
WELL: tuple[TrialState, ...] = ("finished", "stopped")
# Would end in the same way once more: done, unless somebody wants failures again.
FAILED: tuple[TrialState, ...] = ("failed", "refused", "timed out", "hung")
DONE: tuple[TrialState, ...] = (*WELL, "pruned", *FAILED)


@dataclass
class Trial:
    """One configuration of a sweep, and how it stands."""

    number: int
    overrides: list[str]
    hash: str  # of its whole configuration: equal for equal trials
    state: TrialState = "waiting"
    reason: str = ""  # why it is not finished, in one line
    value: float | None = None  # best validation loss
    attempts: int = 0
    started: str | None = None  # of the last attempt, ISO 8601
    ended: str | None = None
    exit_code: int | None = None
    role: str = "trial"  # confirm: the winner of a search with another seed

    @property
    def done(self) -> bool:
        """Nothing is left to run."""
        return self.state in DONE

    @property
    def went_wrong(self) -> bool:
        """It ended, and neither well nor because somebody stopped it."""
        return self.state in (*FAILED, "killed")

    def is_left(self, retry_failed: bool) -> bool:
        """Whether a session that runs failures again, or one that does not, has this trial to run."""
        return not self.done or (retry_failed and self.state in FAILED)

    def seconds(self) -> float | None:
        """How long the last attempt took or takes."""
        if self.started is None:
            return None
        ended = datetime.fromisoformat(self.ended) if self.ended else datetime.now().astimezone()
        return (ended - datetime.fromisoformat(self.started)).total_seconds()


@dataclass
class SweepRecord:
    """sweep.json: what the command line asked for."""

    arguments: list[str]  # overrides as they were typed, with their commas; what decides whether a sweep is the same
    kind: str = "grid"  # grid | search
    state: str = "running"  # running | finished | interrupted
    started: str = ""
    sessions: int = 0
    planned: int | None = None  # trials in all, as far as it is known
    extra: dict[str, Any] = field(default_factory=dict)  # of a search: study, winner


def now() -> str:
    """This moment, ISO 8601 with the offset of the local clock."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


class SweepFolder:
    """The folder of a sweep: its record and its trials."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> SweepRecord | None:
        """The record; None where there is none that can be read."""
        return _read(self.path / SWEEP, SweepRecord)

    def write(self, record: SweepRecord) -> None:
        _write(self.path / SWEEP, record)

    def trial_folder(self, number: int) -> Path:
        return self.path / str(number)

    def trials(self) -> list[Trial]:
        """Every trial that has a record, by number."""
        return sorted(self._trials(), key=lambda trial: trial.number)

    def _trials(self) -> Iterator[Trial]:
        for file in self.path.glob(f"*/{TRIAL}"):
            trial = _read(file, Trial)
            if trial is not None and file.parent.name == str(trial.number):
                yield trial

    def keep(self, trial: Trial) -> None:
        """Write the trial's record."""
        folder = self.trial_folder(trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / TRIAL, trial)

    def remove(self, trial: Trial) -> None:
        """Delete the trial's folder with its record."""
        discard_directory(self.trial_folder(trial.number))


def is_sweep(folder: Path) -> bool:
    """Whether the folder holds the trials of a sweep, whichever launcher runs them."""
    return any((folder / name).is_file() for name in (SWEEP, MULTIRUN))


def find_sweeps(outputs: Path) -> list[SweepFolder]:
    """The sweeps under `outputs`, the one begun last first."""
    folders = [SweepFolder(file.parent) for file in outputs.glob(f"multirun/*/*/{SWEEP}")]
    return sorted(folders, key=lambda folder: (_began(folder), folder.path), reverse=True)


def _began(folder: SweepFolder) -> str:
    record = folder.read()
    return record.started if record else ""


def _write(file: Path, record: Any) -> None:
    write_atomically(file, json.dumps(asdict(record), indent=2) + "\n")


def _read(file: Path, kind: type) -> Any:
    known = {one.name for one in fields(kind)}
    with suppress(TypeError):  # no record where one of its keys is missing
        return kind(**{key: value for key, value in read_json_or_empty(file).items() if key in known})
    return None


# --- going on with a sweep ----------------------------------------------------------------------------------------


def sweep_to_continue(arguments: Sequence[str], outputs: Path) -> Path | None:
    """The newest sweep under `outputs` that was asked for with the same overrides and has something left to run.

    None where there is none, where the command line names a folder, and with sweep.new=true.
    """
    if _is_set(arguments, "sweep.new") or any(one.startswith("hydra.sweep.dir=") for one in arguments):
        return None
    asked, again = asked_for(arguments), _is_set(arguments, "sweep.retry_failed")
    for sweep in find_sweeps(outputs):
        record = sweep.read()
        if record is None or asked_for(record.arguments) != asked:
            continue
        if _has_more(sweep, record, again) or (record.kind == "search" and asks_for_more(arguments, record.extra)):
            return sweep.path
    return None


def as_typed(config: DictConfig) -> list[str]:
    """The overrides of a command line, Hydra's own among them: what sweep.json keeps."""
    own = [one for one in config.hydra.overrides.hydra if not one.startswith("hydra.mode=")]
    return [*own, *config.hydra.overrides.task]


def asked_for(arguments: Sequence[str]) -> list[str]:
    """What makes two sweeps the same: their overrides in any order, but not how they are run."""
    words = (one.lstrip("+") for one in arguments if ("=" in one and not one.startswith("-")) or one.startswith("~"))
    own = ("sweep.", "hydra.launcher.", "hydra.sweep.", "hydra.sweeper.n_trials", "hydra.sweeper.hours")
    return sorted(word for word in words if not word.startswith(own))


def _has_more(sweep: SweepFolder, record: SweepRecord, again: bool) -> bool:
    """Whether something is left. A sweep that was killed while it said `running` has more to do."""
    if record.state != "finished":
        return True
    return any(trial.is_left(again) for trial in sweep.trials())


def _is_set(arguments: Sequence[str], key: str) -> bool:
    return any(one.partition("=")[0] == key and one.partition("=")[2].lower() == "true" for one in arguments)
