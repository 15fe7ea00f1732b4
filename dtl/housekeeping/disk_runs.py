"""The runs in a folder and the room that they take; which of them are meant. Changes nothing."""

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

from dtl.base.files import TRASH
from dtl.errors import ConfigError
from dtl.housekeeping.config import RunsConfig
from dtl.run_dir.provenance import RECORD, RESULT
from dtl.run_dir.state import RunState, find_runs, is_held, read_run_state
from dtl.run_dir.sweep_records import is_sweep
from dtl.tracking.metrics import METRICS

DAY = 86_400.0  # seconds
STARTING = 600.0  # seconds that a run may take from its folder to its lock, on a slow disk


@dataclass(frozen=True)
class DiskRun:
    """A run as it lies on the disk."""

    state: RunState
    label: str  # its folder, as seen from the folder of all runs
    n_bytes: int  # files that have several names in it are counted once
    age: float  # seconds since it last wrote

    @property
    def folder(self) -> Path:
        return self.state.folder


def read_runs(outputs: Path) -> list[DiskRun]:
    """Every run and every trial under `outputs`. Raises ConfigError when that folder is a run itself."""
    folders = find_runs(outputs)
    if outputs in folders:
        raise ConfigError(f"outputs={outputs}: is a run itself. Give the folder above it.")
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


def chosen(runs: list[DiskRun], settings: RunsConfig) -> list[DiskRun]:
    """Those that the settings mean, in the order that they ask for."""

    def is_meant(run: DiskRun) -> bool:
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
    return sorted(filter(is_meant, runs), key=orders[settings.sort])[: settings.limit]


def at_work(runs: list[DiskRun], outputs: Path) -> set[Path]:
    """Folders of the runs that must not be touched: a process works there, or in the sweep that they belong to."""
    running = {run.folder for run in runs if run.state.state == "running" or is_held(run.folder) or may_start(run)}
    above = {folder.parent for folder in running if is_sweep(folder.parent)}
    above |= {folder for run in runs for folder in sweeps_above(run.folder, outputs) if is_held(folder)}
    return running | {run.folder for run in runs if above.intersection(run.folder.parents)}


def may_start(run: DiskRun) -> bool:
    """Whether a process may be about to lock this folder: Hydra makes it some seconds before."""
    return run.state.state == "unfinished" and run.age < STARTING


def sweeps_above(run_dir: Path, outputs: Path) -> list[Path]:
    """The folders between a run and the folder of all runs that are a sweep's."""
    between = [folder for folder in run_dir.parents if folder != outputs and folder.is_relative_to(outputs)]
    return [folder for folder in between if is_sweep(folder)]


def leftovers(outputs: Path) -> list[Path]:
    """What an earlier deletion was killed at: folders that have lost their names already."""
    runs = set(find_runs(outputs))
    found = [path for depth in range(5) for path in outputs.glob("*/" * depth + f"{TRASH}*")]
    return [path for path in found if runs.isdisjoint(path.parents) and path.is_dir() and not path.is_symlink()]


def freed_by(folders: Iterable[Path]) -> int:
    """Bytes that come free when these folders go. A file that has another name elsewhere stays, and counts nothing."""
    names: Counter[tuple[int, int]] = Counter()
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for file in (file for folder in folders for file in _files(folder)):
        which = (file.st_dev, file.st_ino)
        names[which] += 1
        sizes[which] = (file.st_size, file.st_nlink)
    return sum(size for which, (size, n_links) in sizes.items() if names[which] >= n_links)


def _files(folder: Path) -> Iterator[os.stat_result]:
    for where, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):  # a run at work deletes what it no longer needs
                file = os.lstat(os.path.join(where, name))
                if stat.S_ISREG(file.st_mode):
                    yield file


def _last_written(folder: Path) -> float:
    times = []
    for file in (folder, *(folder / name for name in (RECORD, METRICS, RESULT))):
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times, default=0.0)
