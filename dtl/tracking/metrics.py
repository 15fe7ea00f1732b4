"""Reading and truncating metrics.jsonl, the complete record of a run's metrics. Imports no torch."""

import copy
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtl.base.files import write_atomically
from dtl.base.json_files import as_number, as_whole, json_object_or_empty, read_bounded, read_lines
from dtl.base.safe_text import safe_logger
from dtl.base.units import number_of

log = safe_logger(__name__)

METRICS, LOST = "metrics.jsonl", "metrics.lost.jsonl"
TRAINING, VALIDATION = "train/loss", "val/loss"  # in each row of a step, of an evaluation
SPEED = "speed/tokens_per_second"  # in the row of each step at which is logged
UTILIZATION = "speed/mfu"  # beside it: model FLOP utilization, where the peak of the device is known
MAX_BYTES = 2**32  # 20 million steps


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl in the order of writing, `[]` without the file.

    A last line truncated by a kill is left out. Raises OSError when the file cannot be read.
    """
    path = run_dir / METRICS
    return [row for row in map(parse_row, read_lines(path)) if row is not None] if path.exists() else []


def truncate_metrics(run_dir: Path, step: int, evaluated_step: int | None = None) -> int:
    """Move the rows beyond `step` from metrics.jsonl to metrics.lost.jsonl; returns how many.

    For a run that resumes from an older checkpoint. Rows of evaluations beyond `evaluated_step`, by default `step`, are
    moved too: a checkpoint that precedes the evaluation of its own step repeats it. Only a truncated last line is
    dropped. A crash in between neither loses nor duplicates rows. A write error is logged as a warning, and
    the rows stay where they are.
    """
    path = run_dir / METRICS
    if not path.exists():
        return 0
    try:
        before = read_bounded(path, MAX_BYTES)
        rows = [(line, parse_row(line)) for line in before.splitlines()]
        if rows and rows[-1][1] is None:
            rows.pop()
        evaluated = step if evaluated_step is None else min(evaluated_step, step)
        lost, kept = [], []
        for line, row in rows:
            is_beyond = row is not None and row["step"] > (evaluated if VALIDATION in row else step)
            (lost if is_beyond else kept).append(line)
        if lost:
            _keep_lost(run_dir / LOST, _joined(lost))
        if _joined(kept) != before:
            write_atomically(path, _joined(kept))
    except OSError as error:
        log.warning("%s: rows beyond step %d could not be moved (%s).", path, step, error.strerror)
        return 0
    return len(lost)


def _keep_lost(path: Path, lost: bytes) -> None:
    before = path.read_bytes() if path.exists() else b""
    if not before.endswith(lost):  # they are already there when a crash preceded the replacement of metrics.jsonl
        write_atomically(path, before + lost)


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl; None when it is not a row with a step, or truncated."""
    row = json_object_or_empty(line)
    return row if as_whole(row.get("step")) is not None else None


class RowCheck:
    """Finds steps without a row and rows that are not numbers, in rows seen one by one in the order of the file.

    A training run appends a row with `train/loss` in every step. A number that was not finite is written as null.
    """

    def __init__(self, last_step: int | None = 0) -> None:
        """`last_step` is that of the row before the first; None for rows from the middle of a file."""
        self._last_step = last_step
        self._n_missing = 0
        self._first_gap = ""
        # Before the last row, where that left steps out: the next one tells whether it alone is wrong.
        self._before_gap: tuple[int, int, str] | None = None
        self._n_unreadable = self._n_unreadable_at_the_end = 0  # a kill may truncate the last row

    def see(self, row: Mapping[str, Any] | None) -> None:
        """Check the next row; None stands for a line that is no row."""
        if row is None:
            self._n_unreadable_at_the_end += 1
            return
        self._n_unreadable += self._n_unreadable_at_the_end
        self._n_unreadable_at_the_end = 0
        numbers = (row.get(key) for key in (*_NUMBERS, VALIDATION))
        self._n_unreadable += any(value is not None and as_number(value) is None for value in numbers)
        if (step := as_whole(row.get("step"))) is not None and TRAINING in row:
            self._step_to(step)

    def skip(self) -> None:
        """Go on in the middle of the file: the next row may be of any step."""
        self._last_step = self._before_gap = None

    def _step_to(self, step: int) -> None:
        if step < 1:
            self._n_unreadable += 1
            return
        if self._last_step is not None and step <= self._last_step:
            self._n_unreadable += 1
            if self._before_gap is None or step <= self._before_gap[0]:
                return
            self._last_step, self._n_missing, self._first_gap = self._before_gap  # the row before is out of order
        start = step if self._last_step is None else self._last_step + 1
        self._before_gap = (start - 1, self._n_missing, self._first_gap) if start < step else None
        missing = range(start, step)
        if missing and not self._first_gap:
            self._first_gap = str(missing[0]) if len(missing) == 1 else f"{missing[0]} to {missing[-1]}"
        elif missing and not self._first_gap.endswith("..."):
            self._first_gap += ", ..."
        self._n_missing += len(missing)
        self._last_step = step

    def problems(self, end: int | None = None) -> Iterable[str]:
        """Yield a line for each kind; `end` is the last step of a run that ended in order."""
        seen = copy.copy(self)
        if end is not None and seen._before_gap is not None and (seen._last_step or 0) > end:
            seen._n_unreadable += 1  # the last row, of a step far beyond the end
            seen._last_step, seen._n_missing, seen._first_gap = seen._before_gap
        if end is not None and seen._last_step is not None and end > seen._last_step:
            seen._step_to(end + 1)
        if seen._n_missing:
            yield f"{METRICS} has no row of {number_of('steps', seen._n_missing)} ({seen._first_gap})"
        if seen._n_unreadable:
            those = "that is not a number" if seen._n_unreadable == 1 else "that are not numbers"
            yield f"{METRICS} has {number_of('rows', seen._n_unreadable)} {those} or out of order"


_NUMBERS = (TRAINING, "tokens", "seconds")


def check_rows(run_dir: Path) -> RowCheck:
    """Return the check of all rows of a run's metrics.jsonl."""
    check = RowCheck()
    with suppress(OSError):
        for line in read_lines(run_dir / METRICS):
            check.see(parse_row(line))
    return check
