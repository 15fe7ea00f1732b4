"""Selection and deletion of runs and checkpoints: one run at a time, each under its lock.

A folder is renamed before its files are deleted, so that a kill leaves nothing that looks complete; the next deletion
removes what is left.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dtl.base.files import discard_directory, leftover_of
from dtl.checkpoints.listing import best_checkpoint
from dtl.checkpoints.upkeep import LOCK, remove_leftovers, rotate, superseded
from dtl.errors import ConfigError, did_you_mean
from dtl.housekeeping.config import RunsConfig
from dtl.housekeeping.disk_runs import DiskRun, freed_by, sweeps_above


@dataclass(frozen=True)
class Removal:
    """The folders to delete of one run."""

    run: DiskRun
    folders: tuple[Path, ...]  # checkpoints, or only the folder of the run
    n_bytes: int  # freed by it

    @property
    def removes_run(self) -> bool:
        """Return True when the whole run is deleted, not only checkpoints."""
        return self.folders == (self.run.folder,)

    @property
    def takes_best(self) -> bool:
        """Return True when a best checkpoint, valid or damaged, is deleted with the run."""
        return self.removes_run and best_checkpoint(self.run.folder, contents=False) is not None


def removals(runs: list[DiskRun], settings: RunsConfig) -> list[Removal]:
    """Return what `delete=` selects among these runs, none of which is running. Deletes nothing."""
    if settings.delete == "checkpoints":
        # An unfinished run resumes from its newest checkpoint, and from an older one if that is damaged.
        ended = [run for run in runs if settings.states or run.state.state == "finished"]
        return [Removal(run, tuple(folders), freed_by(folders)) for run in ended if (folders := superseded(run.folder))]
    if settings.delete == "empty":
        runs = [run for run in runs if run.state.state != "finished" and saved_nothing(run.folder)]
    if settings.best_of and not settings.chooses:
        runs = [run for run in runs if is_named(run, settings)]
    return [Removal(run, (run.folder,), run.n_bytes) for run in runs]


def saved_nothing(run_dir: Path) -> bool:
    """Return True when a run has no checkpoint, not even a damaged one."""
    with suppress(OSError):
        return all(leftover_of(path.name) for path in (run_dir / "checkpoints").iterdir())
    return True


def is_named(run: DiskRun, settings: RunsConfig) -> bool:
    """Return True when `best_of` lists this run, as its label or as a path."""
    return any(
        name.rstrip("/") == run.label or Path(name).resolve() == run.folder.resolve() for name in settings.best_of
    )


def check_names(runs: list[DiskRun], settings: RunsConfig) -> None:
    """Raise ConfigError for a name in `best_of` that is none of these runs."""
    for name in settings.best_of:
        if not any(is_named(run, RunsConfig(best_of=[name])) for run in runs):
            near = did_you_mean(name, [run.label for run in runs])
            raise ConfigError(f"best_of=[{name}]: is none of the runs to delete, or it is running.{near}")


def delete_removal(removal: Removal, outputs: Path) -> list[str]:
    """Delete the folders, and return messages about what could not be deleted, such as a run that has started."""
    run_dir = removal.run.folder
    try:
        with _locked(run_dir, outputs) as lock:
            if not removal.removes_run:
                return [*remove_leftovers(run_dir), *rotate(run_dir, keep=1)]
            if os.name == "nt":
                lock.release()  # Windows renames no folder that contains an open file
            discard_directory(run_dir)
    except Timeout:
        return [f"{run_dir}: has started running meanwhile and was not deleted."]
    except OSError as error:
        return [f"{run_dir}: could not be deleted ({error.strerror})."]
    _drop_empty_folders(run_dir.parent, outputs)
    return []


def clear_leftover(leftover: Path, outputs: Path) -> list[str]:
    """Delete a leftover of a deletion that was killed, and return messages about failures."""
    try:
        shutil.rmtree(leftover)
    except OSError as error:
        return [f"{leftover}: the leftover could not be deleted ({error.strerror})."]
    _drop_empty_folders(leftover.parent, outputs)
    return []


@contextmanager
def _locked(run_dir: Path, outputs: Path) -> Iterator[FileLock]:
    """Lock a run and the sweep that it belongs to. Raises Timeout when another process holds a lock."""
    with ExitStack() as stack:
        # Not `lock_run`: after a kill its record of the holder would make this run count as killed.
        locks = [FileLock(folder / LOCK) for folder in (run_dir, *sweeps_above(run_dir, outputs))]
        for lock in locks:
            stack.enter_context(lock.acquire(blocking=False))
        yield locks[0]


def _drop_empty_folders(folder: Path, outputs: Path) -> None:
    """Remove the folder and its parents below `outputs` while they are empty, such as that of a day."""
    with suppress(OSError):
        while folder != outputs and folder.is_relative_to(outputs):
            folder.rmdir()
            folder = folder.parent
