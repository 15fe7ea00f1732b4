"""The state of a run, read from the files in its folder only, without changing them.

The single source for lists of runs, diagnoses, sweeps and reports. A missing, truncated or damaged file counts as
empty. Text from a file is made safe to print. Imports no torch.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dtl.base.display import command_line, shown
from dtl.base.json_files import (
    MAX_YAML_BYTES,
    as_list,
    as_number,
    as_object,
    as_whole,
    open_regular,
    read_bounded,
    read_json_or_empty,
    read_record_or_empty,
    read_yaml_or_empty,
)
from dtl.base.safe_text import in_one_line, visible
from dtl.checkpoints.find import list_runs, start_of
from dtl.checkpoints.listing import step_folders
from dtl.checkpoints.upkeep import LOCK, LOCK_OWNER
from dtl.run_dir.provenance import CONFIG, RECORD, RESULT, config_hash
from dtl.run_dir.sweep_records import ERROR, TRIAL
from dtl.tracking.metrics import METRICS, SPEED, VALIDATION, parse_row

DAMAGED_RESULT = f"{RESULT} was changed or is damaged"
RUN_FILES = (RECORD, METRICS, RESULT, "checkpoints", ".hydra")  # a folder with one of these is a run folder
# States for which the sweep's record overrides the trial's own files: the sweep ended the trial and knows why.
ENDED_BY_A_SWEEP = ("waiting", "failed", "refused", "timed out", "hung", "pruned")


@dataclass(frozen=True)
class RunState:
    """Everything known about a run; None or empty where its files do not contain it."""

    folder: Path
    name: str
    # running | finished | stopped (paused by stop_after_steps) | interrupted | failed | killed | unfinished (not
    # recorded), for a sweep's trial also ENDED_BY_A_SWEEP, or any other text in result.json
    state: str
    step: int | None = None  # the last optimizer step that was recorded
    last_step: int | None = None  # the last step of the whole run
    best_loss: float | None = None  # lowest validation loss so far, nats per target token
    right: float | None = None  # fraction of the training questions that the finished run answers right
    reason: str = ""  # first line of the error or other reason for ending early
    started: datetime | None = None  # of its first session, with a time zone
    seconds: float | None = None  # of training, without evaluation and saving
    tokens_per_second: float | None = None  # over the most recently logged steps
    overrides: list[str] = field(default_factory=list)
    seed: int | None = None
    config_hash: str | None = None
    rerun: str = ""  # the command that starts it again
    pid: int | None = None  # of the running process
    host: str = ""  # machine of that process


def find_runs(outputs: Path) -> list[Path]:
    """The folders of all runs and trials of sweeps under `outputs`, last started first, including those that ended
    before they saved anything."""
    return list_runs(outputs, RUN_FILES)


def read_run_state(folder: Path) -> RunState:
    """Read the current state of the run in `folder`. Never raises, whatever the folder contains."""
    record, config, rows = read_json_or_empty(folder / RECORD), read_config(folder), last_metrics(folder)
    owner = _lock_owner(folder)
    # With a lock owner, a result is one of an earlier session.
    state, outcome = ("running" if is_locked(folder) else "killed", {}) if owner else _outcome(folder)
    sessions, ended_at = sessions_of(folder), as_whole(outcome.get("step"))
    return RunState(
        folder=folder,
        name=in_one_line(str(config.get("name") or folder.name), 40),
        state=state,
        step=_last_step(folder, rows) if ended_at is None else ended_at,
        last_step=_end(record, config),
        best_loss=as_number(outcome.get("value")) if "value" in outcome else _best_loss(folder, rows),
        right=as_number(outcome.get("exact_match/train")),
        reason=in_one_line(str(outcome.get("error") or outcome.get("reason") or "").strip().partition("\n")[0]),
        started=sessions[0] if sessions else None,
        seconds=_last_number(rows, "seconds"),
        tokens_per_second=_last_number(rows, SPEED),
        overrides=[visible(word) for word in as_list(record.get("overrides")) if isinstance(word, str)],
        seed=as_whole(record.get("seed")) if record.get("seed") is not None else as_whole(config.get("seed")),
        config_hash=_hash(folder, outcome),
        rerun=visible(str(record.get("rerun") or "")),
        pid=as_whole(owner.get("pid")) if state == "running" else None,
        host=in_one_line(str(owner.get("host") or ""), 80) if state == "running" else "",
    )


def resume_command(folder: Path, *more: str) -> str:
    """The line that resumes the run in `folder`, with the config folders and plugins that it was given, and `more`."""
    flags = as_list(read_json_or_empty(folder / RECORD).get("flags"))
    plugins = as_list(read_config(folder).get("plugins"))
    words = [f"resume={shown(folder)}", *([f"plugins={','.join(map(str, plugins))}"] if plugins else []), *more]
    return command_line("train", *map(str, flags), *words)


def longer_run(folder: Path, steps: int, max_epochs: int | None) -> str:
    """The line that trains the run in `folder` up to `steps`; a limit of epochs would end it first, and is lifted."""
    without_limit = ["trainer.max_epochs=null"] if max_epochs is not None else []
    return resume_command(folder, *without_limit, f"trainer.total_steps={steps}")


def _lock_owner(folder: Path) -> dict[str, Any]:
    """The lock owner file of the process that runs here, or was killed; empty when there is none."""
    # The file is removed when a session ends. When it is older than the result, only that removal was interrupted.
    return {} if _mtime(folder / RESULT) >= _mtime(folder / LOCK_OWNER) else read_json_or_empty(folder / LOCK_OWNER)


def _outcome(folder: Path) -> tuple[str, dict[str, Any]]:
    """The final state of the last session, and its result."""
    result, trial = read_record_or_empty(folder / RESULT), read_record_or_empty(folder / TRIAL)
    error = read_json_or_empty(folder / ERROR)
    if trial.get("state") in ENDED_BY_A_SWEEP:
        return str(trial["state"]), {**result, "error": trial.get("reason") or result.get("error")}
    if error and not result:
        return "failed", {"error": error.get("message")}
    if not result and (folder / RESULT).exists():
        return "unfinished", {"error": f"{DAMAGED_RESULT}; a resume writes it again"}
    recorded = result.get("state")
    state = in_one_line(recorded, 20) if isinstance(recorded, str) and recorded else "unfinished"
    return ("unfinished" if state == "running" else state), result


def sessions_of(folder: Path) -> list[datetime]:
    """The start of each session of a run, with time zones: from its run.json, else from its folder's name, else the
    time of the folder. Empty only when there is no folder."""
    starts = []
    for session in as_list(read_json_or_empty(folder / RECORD).get("sessions")):
        with suppress(LookupError, TypeError, ValueError, OverflowError):
            starts.append(datetime.fromisoformat(session["started"]).astimezone())
    with suppress(OSError, ValueError, OverflowError):
        if not starts and (named := start_of(folder)) != datetime.min:
            starts = [named.astimezone()]
        return starts or [datetime.fromtimestamp(folder.stat().st_mtime).astimezone()]
    return starts


def is_locked(folder: Path) -> bool:
    """Return True when a process runs in the folder of a run or sweep, by trying to take its lock for a moment.

    Nothing is written, and a folder that this user may not write to counts as unlocked.
    """
    lock = folder / LOCK
    if not lock.exists() or not os.access(lock, os.W_OK):
        return False
    try:
        with FileLock(lock).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def last_metrics(folder: Path, n_bytes: int = 2**16) -> list[dict[str, Any]]:
    """The complete rows among the last `n_bytes` of metrics.jsonl, in the order of writing.

    Read from the end: the file of a long run has megabytes. Rows truncated at either end are left out.
    """
    with suppress(OSError), open_regular(folder / METRICS) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - n_bytes))
        return [row for row in map(parse_row, file.read(n_bytes).splitlines()) if row is not None]
    return []


def read_config(folder: Path) -> dict[str, Any]:
    """The config.yaml of a run or a checkpoint as plain values; empty when it is missing or invalid."""
    return read_yaml_or_empty(folder / CONFIG)


# --- what the files say -----------------------------------------------------------------------------------------------


def _hash(folder: Path, outcome: dict[str, Any]) -> str | None:
    if outcome.get("config_hash"):
        return in_one_line(str(outcome["config_hash"]), 64)
    with suppress(OSError, UnicodeDecodeError):
        return config_hash(read_bounded(folder / CONFIG, MAX_YAML_BYTES).decode("utf-8"))
    return None


def _end(record: dict[str, Any], config: dict[str, Any]) -> int | None:
    """The last step of the whole run as recorded at its start; for older runs from its config, where that sets it."""
    limits = config.get("trainer")
    if record.get("last_step") is not None or not isinstance(limits, dict):
        return as_whole(record.get("last_step"))
    return as_whole(limits.get("total_steps")) if limits.get("max_epochs") is None else None


def _last_step(folder: Path, rows: list[dict[str, Any]]) -> int | None:
    saved = [int(path.name.split("-")[1].partition(".")[0]) for path in step_folders(folder)]
    return rows[-1]["step"] if rows else max(saved, default=None)


def _best_loss(folder: Path, rows: list[dict[str, Any]]) -> float | None:
    """The best loss of a run without a result: from its best checkpoint, else from the last evaluations."""
    trained = read_json_or_empty(folder / "checkpoints" / "best" / "state.json").get("train")
    best = as_number(as_object(trained).get("best_loss"))
    losses = (as_number(row.get(VALIDATION)) for row in rows)
    return min((loss for loss in losses if loss is not None), default=None) if best is None else best


def _last_number(rows: list[dict[str, Any]], key: str) -> float | None:
    return next((as_number(row[key]) for row in reversed(rows) if key in row), None)


def _mtime(file: Path) -> float:
    with suppress(OSError):
        return file.stat().st_mtime
    return -1.0
