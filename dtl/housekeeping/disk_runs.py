"""The runs in a folder, their sizes, and the selection by settings. Changes nothing."""

import math
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from dtl.base.files import TRASH, leftover_of
from dtl.base.json_files import read_json_or_empty, read_yaml_or_empty
from dtl.checkpoints.listing import is_checkpoint, step_folders
from dtl.errors import ConfigError
from dtl.housekeeping.config import RunsConfig
from dtl.run_dir.provenance import RECORD, RESULT
from dtl.run_dir.state import RunState, find_runs, is_locked, read_run_state
from dtl.run_dir.sweep_records import is_sweep
from dtl.tracking.metrics import METRICS

DAY = 86_400.0  # seconds
STARTING = 600.0  # seconds from the folder of a run to its lock; ten minutes allow for a slow disk


@dataclass(frozen=True)
class DiskRun:
    """A run on disk."""

    state: RunState
    label: str  # its folder, relative to the folder of all runs
    n_bytes: int  # hard links within it are counted once
    age: float  # seconds since it last wrote

    @property
    def folder(self) -> Path:
        return self.state.folder


def read_runs(outputs: Path) -> list[DiskRun]:
    """Return every run and trial under `outputs`. Raises ConfigError when that folder is itself a run."""
    folders = find_runs(outputs)
    if outputs in folders:
        raise ConfigError(f"outputs={outputs}: is itself a run. Give its parent folder.")
    now = time.time()
    return [
        DiskRun(
            read_run_state(folder),
            folder.relative_to(outputs).as_posix(),
            freed_by([folder]),
            max(0.0, now - _last_written(folder)),
        )
        for folder in folders
    ]


def is_of_dtl(folder: Path) -> bool:
    """Return True for a run folder that DTL has written, rather than another program's with files of the same names.

    Hydra gives every program's runs a `.hydra`, and others have folders named checkpoints.
    """
    composed = read_yaml_or_empty(folder / ".hydra" / "config.yaml")
    return (
        "dtl" in read_json_or_empty(folder / RECORD)
        or "config_hash" in read_json_or_empty(folder / RESULT)
        or {"trainer", "tracker", "sampling"} <= composed.keys()
        or any(is_checkpoint(path) for path in step_folders(folder))
    )


def chosen(runs: list[DiskRun], settings: RunsConfig) -> list[DiskRun]:
    """Return the runs that the settings select, sorted by `sort=`, at most `limit=`."""

    def is_selected(run: DiskRun) -> bool:
        names = (run.state.name, run.label)
        return (
            (not settings.states or run.state.state in settings.states)
            and (settings.name is None or any(fnmatchcase(name, settings.name) for name in names))
            and (settings.older_than_days is None or run.age >= settings.older_than_days * DAY)
        )

    orders = {
        "age": lambda run: (run.age, run.label),
        "size": lambda run: (-run.n_bytes, run.label),
        "loss": lambda run: (math.inf if run.state.best_loss is None else run.state.best_loss, run.label),
        "name": lambda run: (run.state.name, run.label),
    }
    return sorted(filter(is_selected, runs), key=orders[settings.sort])[: settings.limit]


def running_folders(runs: list[DiskRun], outputs: Path) -> set[Path]:
    """Return the folders that must not be changed: a process is running there, or in the sweep they belong to."""
    running = {run.folder for run in runs if run.state.state == "running" or is_locked(run.folder) or may_start(run)}
    above = {folder.parent for folder in running if is_sweep(folder.parent)}
    above |= {folder for run in runs for folder in sweeps_above(run.folder, outputs) if is_locked(folder)}
    return running | {run.folder for run in runs if above.intersection(run.folder.parents)}


def may_start(run: DiskRun) -> bool:
    """Return True when a process may be about to lock this folder, which Hydra creates seconds earlier."""
    return run.state.state == "unfinished" and run.age < STARTING


def sweeps_above(run_dir: Path, outputs: Path) -> list[Path]:
    """Return the folders of sweeps between a run and the folder of all runs."""
    between = [folder for folder in run_dir.parents if folder != outputs and folder.is_relative_to(outputs)]
    return [folder for folder in between if is_sweep(folder)]


def leftovers(outputs: Path) -> list[Path]:
    """Return the renamed folders of an earlier deletion that was killed."""
    runs = set(find_runs(outputs))
    folders = (path for depth in range(5) for path in outputs.glob("*/" * depth + f"{TRASH}*"))
    found = [path for path in folders if leftover_of(path.name) and runs.isdisjoint(path.parents)]
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def freed_by(folders: Iterable[Path]) -> int:
    """Return the bytes freed by deleting these folders; files with a hard link elsewhere count nothing."""
    # The best checkpoint shares its files with that of its step, as hard links (checkpoints/upkeep.py).
    names: Counter[tuple[int, int]] = Counter()
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for file in (file for folder in folders for file in _files(folder)):
        inode = (file.st_dev, file.st_ino)
        names[inode] += 1
        sizes[inode] = (file.st_size, file.st_nlink)
    return sum(size for inode, (size, n_links) in sizes.items() if names[inode] >= n_links)


def _files(folder: Path) -> Iterator[os.stat_result]:
    for where, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):  # a running process deletes its older checkpoints
                file = os.lstat(os.path.join(where, name))
                if stat.S_ISREG(file.st_mode):
                    yield file


def _last_written(folder: Path) -> float:
    times = []
    for file in (folder, *(folder / name for name in (RECORD, METRICS, RESULT))):
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times, default=0.0)
