"""Resolves `ckpt=`, `resume=` and `init=`: latest, a run, one of its checkpoints, or a Hugging Face folder."""

import difflib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from dtl.base.files import ASIDE, TEMPORARY, TRASH
from dtl.base.json_files import as_whole, read_json, read_json_or_empty, read_record_or_empty
from dtl.base.safe_text import safe_logger, visible
from dtl.base.units import number_of
from dtl.checkpoints.listing import (
    MODEL_FILES,
    TOKENIZER_FILES,
    best_checkpoint,
    best_problem,
    inspect,
    is_checkpoint,
    newest_valid,
    recorded_best_step,
    step_folder,
    verify,
)
from dtl.checkpoints.weights import ADAPTER, PICKLES, pickle_message, raise_if_adapter
from dtl.errors import CheckpointError

Preference = Literal["best", "newest"]
log = safe_logger(__name__)

RECORD = "run.json"

_FOR_USE = (*MODEL_FILES, *TOKENIZER_FILES)  # the files needed to use a model; resuming needs all files
_DEPTH = 5  # outputs/multirun/<date>/<time>/<job>
_NUMBERED = re.compile(r"-\d{1,18}$")
_STAMP = re.compile(r"(?P<date>\d{4}-\d\d-\d\d)[/\\](?P<time>\d\d-\d\d-\d\d)[^/\\]*(?:[/\\](?P<job>\d+)[^/\\]*)?$")


def find_checkpoint(spec: str, outputs: Path, prefer: Preference = "best") -> Path:
    """Return the folder to load for `latest`, or for the path of a run, a checkpoint or a Hugging Face directory.

    For a run it is `checkpoints/best` or the newest checkpoint, depending on `prefer`; where that is missing or
    damaged, the step that `best` is a copy of, else the other one, with a warning. `latest` is the run or trial under
    `outputs` that started last among those with a valid checkpoint. Raises CheckpointError with similar
    names, or with the damaged file.
    """
    if spec == "latest":
        return _resolve_latest(outputs, prefer)
    try:
        return _resolve_path(Path(os.path.expanduser(spec)), spec, outputs, prefer)
    except OSError as error:  # no permission, a name too long
        raise CheckpointError(f"{spec}: cannot be read ({error.strerror}).") from error


def _resolve_path(path: Path, spec: str, outputs: Path, prefer: Preference) -> Path:
    if path.name == "checkpoints" and path.is_dir():
        path = path.parent
    if (path / "checkpoints").is_dir():
        return _resolve_run(path, prefer)
    if path.name == "best" and path.parent.name == "checkpoints" and path.parent.is_dir():
        best = best_checkpoint(path.parent.parent)  # may be best.old
        if best is not None and best.problem is None:
            return best.path
    if is_checkpoint(path):
        verify(path)
        return path
    raise_if_adapter(path)
    if (path / "config.json").is_file():
        return path
    raise _not_found(spec, path, outputs)


def list_runs(outputs: Path, marks: Collection[str] = ("checkpoints",)) -> list[Path]:
    """All runs and trials of sweeps under `outputs`, last started first: the folders that contain one of `marks`."""
    return sorted(_runs(outputs, set(marks), _DEPTH), key=_start, reverse=True)


def _runs(folder: Path, marks: set[str], depth: int) -> Iterator[Path]:
    try:
        inside = list(os.scandir(folder))
        if any(entry.name in marks for entry in inside):
            yield folder
            return
        hidden = (TEMPORARY, TRASH)  # folders that are being written or deleted
        folders = [entry.path for entry in inside if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for path in map(Path, folders if depth > 0 else []):
        if not path.name.startswith(hidden):
            yield from _runs(path, marks, depth - 1)


def runs_named(name: str, outputs: Path) -> list[Path]:
    """The runs under `outputs` whose folder is called so, after its time: 10-00-00-1_demo for `demo`. Newest first."""
    called = re.compile(rf"(?:[\d-]+_)?{re.escape(name)}")
    return [run for run in list_runs(outputs) if called.fullmatch(run.name)]


def start_of(run_dir: Path) -> datetime:
    """The start of a run as a naive local time, from its run.json, else from its folder's name; `datetime.min` when
    neither has one. Not from file times, which change when a folder is copied."""
    return _start(run_dir)[0]


def _start(run_dir: Path) -> tuple[datetime, int, str]:
    stamp = _STAMP.search(str(run_dir))
    started = datetime.min
    with suppress(ValueError):
        if stamp:
            started = datetime.strptime(f"{stamp['date']} {stamp['time']}", "%Y-%m-%d %H-%M-%S")
    with suppress(OSError, LookupError, TypeError, ValueError, OverflowError, CheckpointError):
        written = datetime.fromisoformat(read_json(run_dir / RECORD)["sessions"][0]["started"])
        started = written if written.tzinfo is None else written.astimezone().replace(tzinfo=None)
    return started, int(stamp["job"] or 0) if stamp else 0, str(run_dir)


def _resolve_latest(outputs: Path, prefer: Preference) -> Path:
    runs = list_runs(outputs)
    for run_dir in runs:
        if not any((run_dir / "checkpoints").iterdir()):
            continue  # just started, or ended before its first save
        try:
            return _resolve_run(run_dir, prefer)
        except CheckpointError as error:
            log.warning("latest: skipping %s", error)
    if not runs:
        raise CheckpointError(
            f"latest: no run with checkpoints under {outputs.resolve()}. Give the path of a run, or "
            "train one: python -m dtl.train experiment=demo"
        )
    raise CheckpointError(
        f"latest: none of the {number_of('runs', len(runs))} under {outputs.resolve()} has a valid checkpoint."
    )


def _resolve_run(run_dir: Path, prefer: Preference) -> Path:
    if prefer == "best":
        best = best_checkpoint(run_dir, only=_FOR_USE)
        if best is not None and best.problem is None:
            return best.path
        problem = best.problem if best is not None else best_problem(run_dir)
        if problem is not None:
            return _instead_of_best(run_dir, problem)
    if not any((run_dir / "checkpoints").iterdir()) and (run_dir / RECORD).is_file():
        raise _no_checkpoint(run_dir)
    newest, note = newest_valid(run_dir)
    if note:
        log.warning("%s", note)
    return newest.path


def _instead_of_best(run_dir: Path, problem: str) -> Path:
    """The step that `best` is a copy of, else the newest checkpoint, with a warning that names its step."""
    step = recorded_best_step(run_dir)
    if step is not None and inspect(folder := step_folder(run_dir, step), only=_FOR_USE).problem is None:
        log.warning("%s Using %s instead, of which it is a copy.", problem, folder.name)
        return folder
    newest, note = newest_valid(run_dir)
    was = "" if step is None or step == newest.step else f", and the best is step {step}, which is not there"
    log.warning("%s Using the newest checkpoint instead: its step is %d%s.", problem, newest.step, was)
    if note:
        log.warning("%s", note)
    return newest.path


def _not_found(spec: str, path: Path, outputs: Path) -> CheckpointError:
    """The error for a `path` that cannot be loaded, with similar names."""
    if path.is_file():
        if path.suffix in PICKLES:
            return CheckpointError(pickle_message(path))
        if is_checkpoint(path.parent) or (path.parent / "config.json").is_file():
            return CheckpointError(f"{path}: a file. Give its folder: {path.parent}")
        return CheckpointError(
            f"{path}: a file, and a model is a folder. Give latest, the folder of a run or of a checkpoint, or a "
            "Hugging Face model directory on this disk."
        )
    if path.is_dir():
        inside = [str(run) for run in list_runs(path)[:3]]
        if inside:
            return CheckpointError(f"{path}: contains runs, but is not a run. Give one of them:\n" + "\n".join(inside))
        models = [str(model) for model in _models_below(path)[:3]]
        if models:
            return CheckpointError(f"{path}: contains models, but is not one. Give one of them:\n" + "\n".join(models))
        pickles = [file for file in sorted(path.iterdir()) if file.suffix in PICKLES]
        if pickles:
            return CheckpointError(pickle_message(pickles[0]))
        if (path / RECORD).is_file():
            return _no_checkpoint(path)
        return CheckpointError(
            f"{path}: neither a run (checkpoints/) nor a model directory (config.json and model.safetensors)."
        )
    near = (
        [str(run) for run in runs_named(path.name, outputs)[:3]]
        or _near(path)
        or [str(run) for run in list_runs(outputs)[:3]]
    )
    return CheckpointError(
        f"{spec}: no such folder."
        + ("\nSimilar: " + ", ".join(near) if near else "")
        + "\nGive latest, the folder of a run or of a checkpoint, or a Hugging Face model directory on this disk."
    )


def _no_checkpoint(run_dir: Path) -> CheckpointError:
    """The error for a run without any checkpoint, with the line that starts it again."""
    result = read_record_or_empty(run_dir / "result.json")
    step = as_whole(result.get("step"))
    if result.get("state") in ("finished", "stopped") and step:
        why = f"it {result['state']} at step {step:,}, and its checkpoints were deleted since. Copy them back, or start"
    else:
        why = "it ended before its first save. Start"
    again = visible(str(read_json_or_empty(run_dir / RECORD).get("rerun") or ""))
    return CheckpointError(
        f"{run_dir}: this run has no checkpoint: {why} it again" + (f":\n  {again}" if again else ".")
    )


def _models_below(folder: Path) -> list[Path]:
    """Model directories in a folder, such as checkpoint-80 of another trainer or a snapshot in the hub's cache; those
    of most steps first."""
    names = (f"{below}/{name}" for below in ("*", "*/*") for name in ("config.json", ADAPTER))
    found = {file.parent for name in names for file in folder.glob(name)}
    steps = {model: int(model.name.rpartition("-")[2]) if _NUMBERED.search(model.name) else 0 for model in found}
    return sorted(found, key=lambda model: (-steps[model], model))


def _near(path: Path) -> list[str]:
    """Existing names next to a path that does not exist, the most similar first."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return []
    names = [name for name in names if not name.endswith(ASIDE)]
    similar = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if not similar and path.parent.name == "checkpoints":
        similar = sorted(names)[-3:]
    return [str(path.with_name(name)) for name in similar]
