"""What a run measures, kept: metrics.jsonl always, W&B on top when it can be had.

metrics.jsonl is the truth. W&B lives in a thread of its own (dtl/tracking/wandb_sink.py), so that training
never waits for it nor dies of it. Imports no torch, and wandb only when a run uses it.
"""

import logging
from pathlib import Path
from typing import Any

from dtl.base.files import write_atomically
from dtl.base.json_files import as_whole, json_object_or_empty

log = logging.getLogger(__name__)

METRICS, LOST = "metrics.jsonl", "metrics.lost.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl in the order of writing, `[]` without the file.

    A last line that a kill cut short is left out. Raises OSError when the file cannot be read.
    """
    path = run_dir / METRICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [row for row in map(parse_row, lines) if row is not None]


def truncate_metrics(run_dir: Path, step: int) -> int:
    """Move the rows beyond `step` from metrics.jsonl to metrics.lost.jsonl; returns how many.

    For a run that goes on from an older checkpoint. Rows of evaluations follow the same rule. A last line
    that was cut short goes; nothing else does. A crash in between loses nothing and doubles nothing.
    A disk that refuses costs a warning: the rows then stay where they are.
    """
    path = run_dir / METRICS
    if not path.exists():
        return 0
    try:
        before = path.read_bytes()
        rows = [(line, parse_row(line)) for line in before.splitlines()]
        if rows and rows[-1][1] is None:
            rows.pop()
        lost = [line for line, row in rows if row is not None and row["step"] > step]
        kept = [line for line, row in rows if row is None or row["step"] <= step]
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
    if not before.endswith(lost):  # they are there already when a crash came before metrics.jsonl was replaced
        write_atomically(path, before + lost)


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row in a line of metrics.jsonl, or None when the line is no row: cut short, or anybody's."""
    row = json_object_or_empty(line)
    return row if as_whole(row.get("step")) is not None else None
