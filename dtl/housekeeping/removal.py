"""What is to be deleted of which run, and deleting it: one run at a time, each under its lock.

A folder loses its name before its files go, so that a kill leaves nothing that looks whole; what it leaves is
swept away by the next deletion.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dtl.base.files import TEMPORARY, TRASH, discard_directory
from dtl.checkpoints.listing import best_checkpoint
from dtl.checkpoints.store import LOCK, rotate, superseded, sweep_leftovers
from dtl.errors import ConfigError, did_you_mean
from dtl.housekeeping.config import RunsConfig
from dtl.housekeeping.disk_runs import DiskRun, freed_by, sweeps_above


@dataclass(frozen=True)
class Removal:
    """What goes of one run."""

    run: DiskRun
    folders: tuple[Path, ...]  # checkpoints, or the folder of the run alone
    n_bytes: int  # that come free

    @property
    def is_whole(self) -> bool:
        """Whether the run goes, with all that it has."""
        return self.folders == (self.run.folder,)

    @property
    def takes_best(self) -> bool:
        """Whether a best checkpoint goes with it, or what is left of one."""
        return self.is_whole and best_checkpoint(self.run.folder, contents=False) is not None


def removals(runs: list[DiskRun], settings: RunsConfig) -> list[Removal]:
    """What `delete=` means among these runs, of which none is at work. Nothing is deleted yet.

    Raises ConfigError when `best_of` names none of them.
    """
    if settings.delete == "checkpoints":
        # A run that is not finished goes on from its newest checkpoint; the older ones are its reserve.
        ended = [run for run in runs if settings.states or run.state.state == "finished"]
        found = [Removal(run, tuple(gone), freed_by(gone)) for run in ended if (gone := superseded(run.folder))]
        return found
    if settings.delete == "empty":
        runs = [run for run in runs if run.state.state != "finished" and saved_nothing(run.folder)]
    if settings.best_of and not settings.chooses:
        runs = [run for run in runs if is_named(run, settings)]
    return [Removal(run, (run.folder,), run.n_bytes) for run in runs]


def saved_nothing(run_dir: Path) -> bool:
    """Whether a run has no checkpoint at all, not even a damaged one."""
    with suppress(OSError):
        return all(path.name.startswith((TEMPORARY, TRASH)) for path in (run_dir / "checkpoints").iterdir())
    return True


def is_named(run: DiskRun, settings: RunsConfig) -> bool:
    """Whether `best_of` names this run, as it is listed or as a path from here."""
    return any(
        name.rstrip("/") == run.label or Path(name).resolve() == run.folder.resolve() for name in settings.best_of
    )


def check_names(runs: list[DiskRun], settings: RunsConfig) -> None:
    """Raises ConfigError for a name in `best_of` that is none of these runs."""
    for name in settings.best_of:
        if not any(is_named(run, RunsConfig(best_of=[name])) for run in runs):
            near = did_you_mean(name, [run.label for run in runs])
            raise ConfigError(f"best_of=[{name}]: is none of the runs to delete, or it is at work.{near}")


def carry_out(removal: Removal, outputs: Path) -> list[str]:
    """Delete. Returns what to tell of what stayed; a run that is at work by now stays as it is."""
    run_dir = removal.run.folder
    try:
        with _locked(run_dir, outputs) as lock:
            if not removal.is_whole:
                return [*sweep_leftovers(run_dir), *rotate(run_dir, keep=1)]
            if os.name == "nt":
                lock.release()  # Windows renames no folder with an open file in it
            discard_directory(run_dir)
    except Timeout:
        return [f"{run_dir}: is at work by now, and stays as it is."]
    except OSError as error:
        return [f"{run_dir}: could not be deleted ({error.strerror})."]
    _drop_empty_folders(run_dir.parent, outputs)
    return []


def clear_leftover(leftover: Path, outputs: Path) -> list[str]:
    """Delete what an earlier deletion was killed at. Returns what to tell when it could not be."""
    try:
        shutil.rmtree(leftover)
    except OSError as error:
        return [f"{leftover}: a leftover that could not be deleted ({error.strerror})."]
    _drop_empty_folders(leftover.parent, outputs)
    return []


@contextmanager
def _locked(run_dir: Path, outputs: Path) -> Iterator[FileLock]:
    """Hold the locks of a run and of the sweep that it belongs to. Raises Timeout when somebody else does."""
    with ExitStack() as held:
        # Not `lock_run`: a kill would leave its note of the holder, by which the run would count as killed.
        locks = [FileLock(folder / LOCK) for folder in (run_dir, *sweeps_above(run_dir, outputs))]
        for lock in locks:
            held.enter_context(lock.acquire(blocking=False))
        yield locks[0]


def _drop_empty_folders(folder: Path, outputs: Path) -> None:
    """The folder of a day, or of a sweep, with nothing in it."""
    with suppress(OSError):
        while folder != outputs and folder.is_relative_to(outputs):
            folder.rmdir()
            folder = folder.parent
