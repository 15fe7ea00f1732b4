"""The state of a run, read from the files in its folder only, without changing them.

The single source for lists of runs, diagnoses, sweeps and reports. A missing, truncated or damaged file counts as
empty. Text from a file is made safe to print. Imports no torch.
"""

import copy
import filecmp
import os
import re
from collections.abc import Iterator, Mapping, Sequence
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
    read_yaml_or_empty,
)
from dtl.base.redaction import redact_all
from dtl.base.safe_text import in_one_line, visible
from dtl.base.units import number_of
from dtl.checkpoints.find import list_runs, start_of
from dtl.checkpoints.listing import step_folders
from dtl.checkpoints.upkeep import LOCK, LOCK_OWNER
from dtl.data.config import PLACE_OF_DATA, SourceConfig, replaces
from dtl.errors import ConfigError, DataError
from dtl.model.config import KEPT_WITH_INIT
from dtl.run_dir.provenance import CONFIG, RECORD, RESULT, config_hash
from dtl.run_dir.sweep_records import ERROR, TRIAL
from dtl.tracking.metrics import METRICS, parse_row

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
        reason=in_one_line(str(outcome.get("error") or "").strip().partition("\n")[0]),
        started=sessions[0] if sessions else None,
        seconds=_last_number(rows, "seconds"),
        tokens_per_second=_last_number(rows, "speed/tokens_per_second"),
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
    result, error, trial = (read_json_or_empty(folder / name) for name in (RESULT, ERROR, TRIAL))
    if trial.get("state") in ENDED_BY_A_SWEEP:
        return str(trial["state"]), {**result, "error": trial.get("reason") or result.get("error")}
    if error and not result:
        return "failed", {"error": error.get("message")}
    if not result and (folder / RESULT).exists():
        return "unfinished", {"error": f"its {RESULT} is damaged; a resume writes it again"}
    state = in_one_line(str(result.get("state") or "unfinished"), 20)
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


def with_data_found(config: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """The config of a run with the relative paths of its data as they are seen from the working directory.

    They are looked for in the folder in which the run was started (run.json), then in the one that holds its outputs/;
    a path that is in neither stays as it is.
    """
    started = read_json_or_empty(run_dir / RECORD).get("cwd")
    holding_outputs = [folder.parent for folder in run_dir.absolute().parents if folder.name == "outputs"]
    folders = [*([Path(started)] if isinstance(started, str) else []), *holding_outputs[:1]]

    def located(path: Any) -> Any:
        if not isinstance(path, str) or not path.strip() or Path(os.path.expanduser(path)).is_absolute():
            return path
        folder = next((folder for folder in folders if (folder / path).exists()), Path.cwd())
        return path if folder == Path.cwd() else str(folder / path)

    changed = copy.deepcopy(dict(config))
    data = as_object(changed.get("data"))
    sources = [as_object(source) for source in as_object(data.get("sources")).values()]
    of_files = [source for source in sources if SourceConfig(str(source.get("kind"))).traits.hub != "always"]
    for holder in (*of_files, as_object(data.get("qa")), as_object(data.get("wiki")), *([data] if of_files else [])):
        if "path" in holder:
            holder["path"] = located(holder["path"])
    if "cache_dir" in data:
        data["cache_dir"] = located(data["cache_dir"])
    return changed


def where_to_add_its_place(error: DataError) -> str:
    """Return the remedy for data of a run that cannot be opened where it was."""
    key = str(error).partition("=")[0]
    place = key if PLACE_OF_DATA.fullmatch(key) else "data.path"
    return f"If the same data is elsewhere now, add its place: {place}=NEW"


def clear_other_places(data: dict[str, Any], key: str) -> None:
    """Clear the other places of a source's path, one of which would take precedence over `key`, such as data.path."""
    names = key.split(".")[1:-1]  # of qa, wiki, or sources and a name; none of data.path
    sources = as_object(data.get("sources"))
    aliases = names[1:] if names else list(sources)  # data.qa.path is an alias of data.sources.qa.path
    for other in (*(data.get(alias) for alias in aliases), data if names[:1] == ["sources"] else None):
        if isinstance(other, dict) and "path" in other:
            other["path"] = None


# --- the config of a resumed run --------------------------------------------------------------------------------------

# Keys that may be given together with resume=: length, device and tracker, and where the same data is now
# (PLACE_OF_DATA). All others are the run's own.
ALLOWED_WITH_RESUME = (
    "resume",
    "trainer.total_steps",
    "trainer.max_epochs",
    "trainer.hours",
    "trainer.stop_after_steps",
    "trainer.stop_criteria",
    "device",
    "tracker",
    "debug",
    "plugins",
)
# Keys in which a run's config.yaml may differ from that of its checkpoints: set by each session, or where its data is
# now, which the data's fingerprint checks.
_OF_THE_SESSION = re.compile(rf"plugins|debug|trainer\.stop_after_steps|data\.cache_dir|{PLACE_OF_DATA.pattern}")
_MISSING = object()


def own_config(run_dir: Path, checkpoint: Path, given: Mapping[str, str]) -> tuple[dict[str, Any], str | None]:
    """Return the config of a run, and a warning where its config.yaml is not what it was trained with.

    It is that of its checkpoint, which the manifest vouches for, with what earlier sessions were `given` together with
    resume=, the values by key: until the next checkpoint only config.yaml has that.
    """
    own, recorded = read_config(checkpoint), read_config(run_dir)
    if not all(isinstance(own.get(section), dict) for section in ("data", "trainer", "tracker")):
        raise ConfigError(f"{checkpoint / CONFIG}: is not the config of a run. To use its weights: init={checkpoint}")
    ignored = []
    for key, holder, name, other in list(_differences(own, recorded)):
        if other is not _MISSING and (_OF_THE_SESSION.fullmatch(key) or _was_given(key, other, given)):
            holder[name] = other
        else:
            ignored.append((key, other, holder[name]))
    if not ignored:
        return own, None
    key, other, value = ignored[0]
    said = f"{key} is missing" if other is _MISSING else f"{key}={in_one_line(str(other), 60)}"
    more = f", and {number_of('more keys', len(ignored) - 1)}" if len(ignored) > 1 else ""
    differs = f"{said} instead of {in_one_line(str(value), 60)}{more}" if recorded else "cannot be read"
    return own, (
        f"{run_dir / CONFIG}: {differs}. It was changed or damaged since {checkpoint.name} was saved, whose config is "
        "used and written there again. To train with other settings, start a new run from the weights with init=."
    )


def _differences(
    own: dict[str, Any], recorded: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any], str, Any]]:
    """Yield the keys of `own` with another value in `recorded`: as on the command line, their place in `own`, the other
    value. Secrets are hidden in the folder of a run."""
    for name, value in own.items():
        other = recorded.get(name, _MISSING)
        if isinstance(value, dict) and value and isinstance(other, dict):
            yield from _differences(value, other, f"{prefix}{name}.")
        elif other not in (value, redact_all(value)):
            yield f"{prefix}{name}", own, name, other


def _was_given(key: str, value: Any, given: Mapping[str, str]) -> bool:
    section = key.partition(".")[0]
    if section == "tracker":  # a group of settings
        return any(name.partition(".")[0] == section for name in given)
    if key.startswith("trainer.stop_"):  # the criteria, and their options
        return "trainer.stop_criteria" in given
    return key in ALLOWED_WITH_RESUME and key in given and _is_value(given[key], value)


def _is_value(word: str, value: Any) -> bool:
    """Return True when a word of the command line stands for this value of a config.yaml."""
    if (number := as_number(value)) is not None:
        with suppress(ValueError):
            return float(word) == number
    return word == ("null" if value is None else str(value))


# --- a new run with other settings --------------------------------------------------------------------------------


def new_run(run_dir: Path, changes: Sequence[str]) -> str:
    """The line of a new run as the one in `run_dir` was started, with `changes`, as key=value words.

    It begins with the weights of that run, unless a change needs others: of another size, or those of init=.
    """
    record = read_json_or_empty(run_dir / RECORD)
    keys = [_key(word) for word in changes]
    own_weights = "init" in keys or any(map(_is_brought, keys))
    started = Path(str(record.get("cwd") or "."))
    words = []
    for word in map(str, as_list(record.get("overrides"))):
        key, equals, value = word.partition("=")
        name = _key(key)
        if name in _OF_ONE_SESSION or any(replaces(new, name) for new in keys):
            continue
        if not own_weights and (name == "init" or _is_brought(name)):
            continue
        if PLACE_OF_DATA.fullmatch(name) and started != Path.cwd() and (started / value).exists():
            value = str(started / value)
        words.append(f"{key}{equals}{value}")
    weights = [] if own_weights else [f"init={shown(run_dir)}"]
    return command_line("train", *map(str, as_list(record.get("flags"))), *weights, *words, *changes)


_OF_ONE_SESSION = ("resume", "trainer.stop_after_steps")


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _is_brought(key: str) -> bool:
    """True for what the checkpoint of init= brings."""
    return key.partition("/")[0].partition(".")[0] in ("model", "tokenizer") and key not in KEPT_WITH_INIT


def other_places(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the sources of the config `now` that are elsewhere than in `before`: the key, the place then and now."""
    then = _places(before)
    for name, place in _places(now).items():
        if place is not None and (old := then.get(name)) != place and _absolute(old) != _absolute(place):
            known = [f"data.{name}.path"] if name in ("qa", "wiki") else []
            key = (known or [f"data.sources.{name}.path"])[0] if len(then) > 1 or known else "data.path"
            yield key, shown(_absolute(old)) if old else "the data that it comes with", shown(_absolute(place))


def _absolute(place: str | None) -> Path:
    return Path(os.path.abspath(os.path.expanduser(place or "")))


def _places(config: Mapping[str, Any]) -> dict[str, str | None]:
    """The path of each source, the short forms folded in."""
    data = as_object(config.get("data"))
    places = {name: as_object(source).get("path") for name, source in as_object(data.get("sources")).items()}
    if data.get("path") is not None:
        places |= dict.fromkeys([*places][:1], data["path"])
    for alias in ("qa", "wiki"):
        if (path := as_object(data.get(alias)).get("path")) is not None:
            places[alias] = path
    return {name: None if path is None else str(path) for name, path in places.items()}


def hold_the_same(then: Path, now: Path) -> bool:
    """True for files of equal content, for folders of equal files by name and size, and where `then` is gone, so that
    nothing can tell."""
    if not then.exists() or not now.exists():
        return now.exists()
    if then.is_file() and now.is_file():
        return filecmp.cmp(then, now, shallow=False)
    return then.is_dir() and now.is_dir() and _listing(then) == _listing(now)


def _listing(folder: Path) -> set[tuple[str, int]]:
    return {(entry.name, entry.stat().st_size if entry.is_file() else 0) for entry in os.scandir(folder)}


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
    losses = (as_number(row.get("val/loss")) for row in rows)
    return min((loss for loss in losses if loss is not None), default=None) if best is None else best


def _last_number(rows: list[dict[str, Any]], key: str) -> float | None:
    return next((as_number(row[key]) for row in reversed(rows) if key in row), None)


def _mtime(file: Path) -> float:
    with suppress(OSError):
        return file.stat().st_mtime
    return -1.0
