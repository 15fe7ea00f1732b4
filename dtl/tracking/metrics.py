"""Reading and truncating metrics.jsonl, the complete record of a run's metrics. Imports no torch."""

from pathlib import Path
from typing import Any

from dtl.base.files import write_atomically
from dtl.base.json_files import as_whole, json_object_or_empty, read_bounded, read_lines
from dtl.base.safe_text import safe_logger

log = safe_logger(__name__)

METRICS, LOST = "metrics.jsonl", "metrics.lost.jsonl"
VALIDATION = "val/loss"  # in each row of an evaluation
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
