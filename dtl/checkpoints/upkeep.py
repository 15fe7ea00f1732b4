"""Maintenance of a run's checkpoints: best, rotation, clean-up after a killed process, the lock of a run.

A valid checkpoint always has its name, and damaged ones are never deleted. Imports no torch.
"""

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from dtl.base.files import (
    ASIDE,
    MANIFEST,
    discard_directory,
    leftover_of,
    no_room,
    publish_directory,
    sync_directory,
    unfinished,
    write_atomically,
)
from dtl.base.json_files import read_json
from dtl.base.units import in_mib
from dtl.checkpoints.listing import (
    Checkpoint,
    best_checkpoint,
    inspect,
    list_checkpoints,
    step_folders,
    step_of,
    verify,
)
from dtl.errors import CheckpointError, TrainingError

LOCK, LOCK_OWNER = ".lock", ".lock.json"  # the lock of `lock_run`, and its owner
LOCK_PROBE_SECONDS = 0.5  # testing whether a lock is free takes it for a moment


def publish_best(run_dir: Path, checkpoint: Path) -> Path:
    """Make `checkpoints/best` a copy of this checkpoint; the old best is kept until the new one is complete.

    Files are hard links where the file system has them: files are never changed in place, so a copy needs no space.
    Raises CheckpointError when the checkpoint is damaged or cannot be written.
    """
    manifest = verify(checkpoint, contents=False)
    best = run_dir / "checkpoints" / "best"
    temporary = unfinished(best)
    try:
        if best.exists():
            current = inspect(best)
            if current.digest == manifest.digest:
                return best
            if current.problem is not None:
                set_damaged_aside(best)  # so that a valid best.old is kept meanwhile
        temporary.mkdir()
        for name in (*manifest.files, MANIFEST):
            _link_or_copy(checkpoint / name, temporary / name)
        publish_directory(temporary, best)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise storage_error(error, best, sum(file["size"] for file in manifest.files.values())) from error
        raise
    return best


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, such as exFAT
        shutil.copyfile(source, target)


def set_damaged_aside(folder: Path) -> Path:
    """Rename a damaged folder to `<name>.damaged`, where it can still be inspected."""
    return _rename_with(folder, ".damaged")


def _rename_with(folder: Path, suffix: str) -> Path:
    names = [folder.name + suffix, *(f"{folder.name}{suffix}-{n}" for n in range(2, 1000))]
    new = next(path for path in map(folder.with_name, names) if not path.exists())
    os.replace(folder, new)
    sync_directory(folder.parent)
    return new


def rotate(run_dir: Path, keep: int, protect: Collection[Path] = (), written: Path | None = None) -> list[str]:
    """Delete the oldest checkpoints beyond the `keep` newest. Returns warnings; a failed delete does not raise.

    Kept without counting are the newest valid one (its contents are verified first, unless it is `written`, which this
    process has just saved: its manifest was made from what was read back), the one that `best` was copied from, those
    in `protect`, and all damaged ones.
    """
    entries = [entry for entry in list_checkpoints(run_dir, contents=False) if entry.problem is None]
    if len(entries) <= max(keep, 1):
        return []  # nothing to delete, and nothing to read
    while entries and entries[0].path != written and inspect(entries[0].path).problem is not None:
        entries.pop(0)
    surplus = entries[max(keep, 1) :]
    best = best_checkpoint(run_dir, contents=False)
    if surplus and best is not None and best.problem is not None:
        return [f"{best.problem} Until there is a new best, no checkpoint is deleted: best is a copy of one."]
    protected = {path.resolve() for path in protect}
    warnings: list[str] = []
    for entry in _without(best, surplus):
        if entry.path.resolve() in protected:
            continue
        try:
            discard_directory(entry.path)
        except OSError as error:
            warnings.append(f"{entry.path}: could not be deleted ({error.strerror}). Delete it when it is not in use.")
    return warnings


def superseded(run_dir: Path) -> list[Path]:
    """The checkpoints that `rotate` with keep=1 would delete: all but the newest, the best, and the damaged ones.

    Checked by manifests, names and sizes only; `rotate` reads the newest one before it deletes another.
    """
    valid = [entry for entry in list_checkpoints(run_dir, contents=False) if entry.problem is None]
    best = best_checkpoint(run_dir, contents=False)
    if best is not None and best.problem is not None:
        return []
    return [entry.path for entry in _without(best, valid[1:])]


def _without(best: Checkpoint | None, entries: list[Checkpoint]) -> list[Checkpoint]:
    """The entries that `best` was not copied from."""
    return [entry for entry in entries if best is None or entry.digest != best.digest]


def set_aside_later(run_dir: Path, step: int) -> list[Path]:
    """Rename the checkpoints beyond `step` to `step-*.lost`, when a run resumes from an earlier one.

    Otherwise they would count as the newest until the run reaches their step again. Returns the new names.
    """
    later = [folder for folder in step_folders(run_dir) if step_of(folder) > step]
    return [_rename_with(folder, ".lost") for folder in sorted(later)]


def remove_leftovers(run_dir: Path) -> list[str]:
    """Remove leftovers of a killed process. Returns warnings. Only for the owner of `lock_run`.

    Process ids are not checked: the lock proves that no other process writes here, and in containers ids repeat.
    """
    warnings: list[str] = []
    folders = (run_dir, run_dir / "samples", run_dir / "checkpoints")
    for leftover in [path for folder in folders for path in folder.glob(".t*")]:
        if leftover_of(leftover.name):
            try:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            except OSError as error:
                warnings.append(f"{leftover}: leftover that could not be deleted ({error.strerror}).")
    asides = [folder for folder in step_folders(run_dir) if folder.name.endswith(ASIDE)]
    for aside in (*asides, run_dir / "checkpoints" / f"best{ASIDE}"):
        if not aside.is_dir():
            continue
        try:
            _finish_replacement(aside)
        except OSError as error:
            warnings.append(f"{aside}: could not be restored ({error.strerror}).")
    return warnings


def _finish_replacement(aside: Path) -> None:
    """Finish an interrupted replacement: delete the old folder when the new one is valid, else restore it."""
    final = aside.with_name(aside.name.removesuffix(ASIDE))
    if final.exists() and inspect(final).problem is None:
        discard_directory(aside)
    elif inspect(aside).problem is None:
        if final.exists():
            set_damaged_aside(final)
        os.replace(aside, final)
        sync_directory(final.parent)


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Lock a run's folder for this process; the operating system releases the lock even when the process is killed.

    Raises TrainingError within half a second, naming the process that has the lock.
    """
    lock, owner = FileLock(run_dir / LOCK), run_dir / LOCK_OWNER
    try:
        lock.acquire(timeout=LOCK_PROBE_SECONDS)
    except Timeout:
        raise TrainingError(f"{run_dir}: in use by {_owner_name(owner)}. Wait for it, or stop it first.") from None
    try:
        started = datetime.now().isoformat(" ", "seconds")
        write_atomically(owner, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}))
        yield
    finally:
        with suppress(OSError):  # a folder has been put in its place: nothing is lost, and the run has ended well
            owner.unlink()
        lock.release()


def _owner_name(owner: Path) -> str:
    with suppress(OSError, KeyError, CheckpointError):
        return "process {pid} on {host} since {started}".format_map(read_json(owner))
    return "another process"


def storage_error(error: Exception, target: Path, needed_bytes: int) -> CheckpointError:
    """The error for a checkpoint that could not be written: needed and free bytes, kept checkpoints, alternatives."""
    run_dir = target.parent.parent
    free_bytes = _free_bytes(target.parent)
    # safetensors has the number in its text only. EFBIG is a limit on the size of files, of the shell or the disk.
    number = getattr(error, "errno", None) or int((re.search(r"os error (\d+)", str(error)) or [0, 0])[1])
    reason = no_room(number, target.parent)
    remedy = "Free disk space (trainer.keep is the number of checkpoints kept)."
    if number == errno.EFBIG:
        reason = "larger than the maximum file size here"
        remedy = "Raise the limit (ulimit -f), or use a file system that takes larger files."
    elif free_bytes < needed_bytes:  # what torch reports of a full disk has no number
        reason = "the disk is full"
    elif reason is None:
        reason, remedy = f"cannot be written ({error})", "Fix the permissions of the folder, or its disk."
    kept = [entry for entry in list_checkpoints(run_dir, contents=False) if entry.problem is None]
    return CheckpointError(
        f"{target}: {reason}. Needed: {in_mib(needed_bytes, ',')}, free: {in_mib(free_bytes, ',')}.\n"
        + (f"Kept: {len(kept)} earlier, the newest of step {kept[0].step}.\n" if kept else "No earlier one exists.\n")
        + remedy
    )


def _free_bytes(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
