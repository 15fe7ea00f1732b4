"""Adding runs to the notebook: a line each in experiments/experiment/<page>.results.jsonl, and the page anew.

Nothing does this by itself: who tries a recipe out wants no change in a checkout. It is asked for with
`python -m dtl.report runs=... record=true`. Imports no torch.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

import dtl
from dtl.base.files import write_atomically
from dtl.base.json_files import json_line
from dtl.base.paths import experiments_dir
from dtl.checkpoints.store import LOCK
from dtl.errors import ConfigError, DataError, DTLError
from dtl.notebook.page import PAGE, notebook_page, page_of, read_records, results_file
from dtl.notebook.records import record_of


def own_notebook() -> Path:
    """experiments/ of the checkout. Raises ConfigError in an installed package, which is no place for records."""
    notebook = experiments_dir()
    if notebook.is_relative_to(Path(dtl.__file__).resolve().parent):
        raise ConfigError(
            f"record=true: {notebook} belongs to an installed package, and an update would take the records away. "
            "Record from a checkout: git clone, make install."
        )
    return notebook


def record(folders: Sequence[Path], notebook: Path | None = None) -> list[str]:
    """Write a record for every finished run of a recipe among `folders`, and the notebook's page anew.

    A run that is recorded keeps its one line; was it resumed since, the line is brought up to date. Safe beside
    other processes that record. Returns what to tell: how many where, and who was left out why. Raises DTLError
    when a file of the notebook is damaged or cannot be written; the lines that were there are kept.
    """
    notebook = notebook or own_notebook()
    found, left_out = _records(folders, notebook)
    told: list[str] = []
    with _changing(notebook):
        for page in sorted({page_of(one["recipe"]) for one in found}):
            file = results_file(notebook, page)
            before = _lines(file)
            lines = before | {one["run"]: json_line(one) for one in found if page_of(one["recipe"]) == page}
            if lines != before:
                write_atomically(file, "".join(lines.values()))
            told.append(f"{file.name}: {len(lines) - len(before)} new, {len(lines)} records in all.")
        write_atomically(notebook / PAGE, notebook_page(notebook))
    return [*told, *(f"{count} left out: {reason}." for reason, count in left_out.items())]


def write_page(notebook: Path | None = None) -> Path:
    """Write the notebook's page from what lies there now. Raises DTLError when it cannot be."""
    notebook = notebook or own_notebook()
    with _changing(notebook):
        write_atomically(notebook / PAGE, notebook_page(notebook))
    return notebook / PAGE


def _records(folders: Sequence[Path], notebook: Path) -> tuple[list[dict[str, Any]], Counter[str]]:
    recipes = {file.stem for file in (notebook / "experiment").glob("*.yaml")}
    found, left_out = [], Counter[str]()
    for folder in folders:
        try:
            one = record_of(folder)
            if one["recipe"] not in recipes:
                raise DataError(f"experiment={one['recipe']} is no recipe of experiments/")
            found.append(one)
        except DataError as error:
            left_out[str(error)] += 1
    return found, left_out


def _lines(file: Path) -> dict[str, str]:
    """The lines of a file as they stand, by the run that each is of; what has no run, by its place."""
    records = read_records(file)
    lines = file.read_text(encoding="utf-8").splitlines() if records else []
    runs = [str(record.get("run", place)) for place, record in enumerate(records)]
    return {run: f"{line}\n" for run, line in zip(runs, lines, strict=True)}


@contextmanager
def _changing(notebook: Path) -> Iterator[None]:
    """Alone at the notebook."""
    try:
        with FileLock(notebook / LOCK):
            yield
    except OSError as error:
        raise DTLError(f"{notebook}: cannot be changed ({error.strerror}). Nothing was recorded there.") from error
