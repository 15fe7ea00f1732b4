"""Selects the run folders that `runs=` names, and the folder of their report. Imports no torch."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dtl.errors import ConfigError, DataError
from dtl.run_dir.state import RUN_FILES, find_runs
from dtl.run_dir.sweep_records import TRIAL, is_sweep


@dataclass(frozen=True)
class Selection:
    """Run folders in the order shown, and the one folder of a run or sweep that named them, if any."""

    folders: list[Path]
    home: Path | None

    def report_folder(self, outputs: Path) -> Path:
        """Return report/ inside the one run or sweep, else a new folder under outputs/reports."""
        return self.home / "report" if self.home else outputs / "reports" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def select(wanted: Sequence[str], outputs: Path) -> Selection:
    """Return every run that `wanted` names: folders, globs, `latest`.

    Raises ConfigError for a folder that does not exist, DataError if the folders have no run.
    """
    named = [folder for word in wanted for folder in _folders(word, outputs)]
    runs: dict[Path, Path] = {}
    for folder in named:
        for run in runs_in(folder):
            runs.setdefault(run.resolve(), run)
    if not runs:
        looked = ", ".join(map(str, named[:5]))
        raise DataError(f"{looked}: no run in it (a folder with run.json, metrics.jsonl or result.json).")
    home = named[0] if len(named) == 1 and (is_run(named[0]) or is_sweep(named[0])) else None
    return Selection(list(runs.values()), home)


def is_run(folder: Path) -> bool:
    """Return True for the folder of a run, or of a trial that never started one."""
    return any((folder / name).exists() for name in (TRIAL, *RUN_FILES))


def runs_in(folder: Path) -> list[Path]:
    """Return the run itself, or all runs and trials below the folder, numbered ones by number."""
    # Hydra keeps a .hydra folder in a sweep whose sub-folders are its trials: a sweep is never a run.
    if is_run(folder) and not is_sweep(folder):
        return [folder]
    trials = [file.parent for file in folder.glob(f"**/{TRIAL}")]
    return sorted({*trials, *find_runs(folder)}, key=_by_number)


def _by_number(folder: Path) -> tuple[str, bool, int, str]:
    number = folder.name
    return (str(folder.parent), not number.isdigit(), int(number) if number.isdigit() else 0, number)


def _folders(word: str, outputs: Path) -> list[Path]:
    if word == "latest":
        return [_latest(outputs)]
    path = Path(os.path.expanduser(word))
    if path.is_dir():
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_dir()]
    if matches:
        return matches
    newest = "".join(f"\n  {run}" for run in find_runs(outputs)[:3])
    raise ConfigError(
        f"runs={word}: no such folder. Give a run, a sweep (outputs/multirun/<date>/<time>), a glob, or latest."
        + (f" The newest runs:{newest}" if newest else "")
    )


def _latest(outputs: Path) -> Path:
    """Return the newest run, or its sweep if it is a trial."""
    runs = find_runs(outputs)
    if not runs:
        raise DataError(
            f"runs=latest: there is no run under {outputs}/ yet. Train one: python -m dtl.train experiment=demo"
        )
    return runs[0].parent if is_sweep(runs[0].parent) else runs[0]
