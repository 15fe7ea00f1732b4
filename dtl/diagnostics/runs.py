"""How the last run stands: finished, failed, paused, running, killed; and how to go on with it. Imports no torch."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dtl.checkpoints.find import list_runs
from dtl.checkpoints.listing import Checkpoint, best_checkpoint, list_checkpoints
from dtl.diagnostics.findings import Finding
from dtl.display import shown
from dtl.durable import read_json
from dtl.errors import CheckpointError
from dtl.records.provenance import RECORD
from dtl.tracking import METRICS, RESULT


@dataclass(frozen=True)
class RunFacts:
    """What the folder of a run holds about its state."""

    folder: str  # as a person types it
    result: dict[str, Any] | None = None  # result.json
    rerun: str = ""  # the command that starts it anew
    checkpoints: list[Checkpoint] = field(default_factory=list)  # newest first
    last_step: int = 0  # of metrics.jsonl
    holder: dict[str, Any] | None = None  # the process that last said it works here, and has not said that it left
    is_held: bool = False  # that process is at work


def look_at_last_run(outputs: Path) -> Finding:
    """The state of the run under `outputs` that was worked on last."""
    run_dir = last_run(outputs)
    if run_dir is None:
        return Finding([("last run", f"none under {outputs}/ yet")])
    state, way_on = state_of(read_run(run_dir))
    return Finding([("last run", f"{shown(run_dir)}: {state}"), *([("", way_on)] if way_on else [])])


def last_run(outputs: Path) -> Path | None:
    """The run or trial whose last session began last; one that never saved anything counts, too."""
    begun = chain(outputs.glob(f"*/*/{RECORD}"), outputs.glob(f"multirun/*/*/*/{RECORD}"))
    return max({*list_runs(outputs), *(file.parent for file in begun)}, key=_began, default=None)


def _began(run_dir: Path) -> tuple[float, str]:
    began = 0.0
    with suppress(OSError, LookupError, TypeError, ValueError, CheckpointError):
        began = datetime.fromisoformat(read_json(run_dir / RECORD)["sessions"][-1]["started"]).timestamp()
    with suppress(OSError):
        began = began or run_dir.stat().st_mtime
    return began, str(run_dir)


def read_run(run_dir: Path) -> RunFacts:
    """Look into the folder, changing nothing. A file that is missing or damaged is as one that says nothing."""
    result, lock = run_dir / RESULT, run_dir / ".lock.json"
    holder = _json(lock)
    # The lock's owner is removed when a session ends. Is it older than the result, only that removal was cut off.
    if holder is not None and result.exists() and result.stat().st_mtime >= lock.stat().st_mtime:
        holder = None
    best = best_checkpoint(run_dir, contents=False)
    return RunFacts(
        folder=shown(run_dir),
        result=_json(result),
        rerun=str((_json(run_dir / RECORD) or {}).get("rerun", "")),
        checkpoints=list_checkpoints(run_dir, contents=False) or ([best] if best else []),
        last_step=_last_step(run_dir / METRICS),
        holder=holder,
        is_held=holder is not None and _is_held(run_dir / ".lock"),
    )


def state_of(run: RunFacts) -> tuple[str, str]:
    """How a run stands, and the command that goes on with it (empty: there is nothing to do)."""
    whole = [entry for entry in run.checkpoints if entry.problem is None]
    saved = f"newest checkpoint: step {whole[0].step}" if whole else "nothing saved"
    if len(whole) < len(run.checkpoints):
        saved += f", {len(run.checkpoints) - len(whole)} damaged"
    again = f"start it anew: {run.rerun}" if run.rerun else ""
    way_on = f"go on with: python -m dtl.train resume={run.folder}" if whole else again
    if run.is_held:
        holder = run.holder or {}
        return f"running at step {run.last_step} (process {holder.get('pid')} on {holder.get('host')}); {saved}", ""
    if run.holder is not None:
        return f"was killed at about step {run.last_step}; {saved}", way_on
    if run.result is None:
        return f"ended without saying how; {saved}", way_on
    state, step = run.result.get("state"), run.result.get("step")
    if state == "finished":
        value = run.result.get("value")
        loss = f", best validation loss {value:.4f}" if isinstance(value, float) else ""
        return f"finished at step {step}{loss}; {saved}", ""
    words = {"stopped": "paused", "interrupted": "interrupted by Ctrl-C or SIGTERM"}.get(str(state), str(state))
    reason = str(run.result.get("error") or "").strip().partition("\n")[0]
    because = f" ({reason})" if reason and state == "failed" else ""
    return f"{words} at step {step}{because}; {saved}", way_on


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (OSError, CheckpointError):
        return None


def _is_held(lock: Path) -> bool:
    """Whether a process holds the run, asked by taking its lock for a moment; nothing is written."""
    if not lock.exists() or not os.access(lock, os.W_OK):
        return False
    try:
        with FileLock(lock).acquire(blocking=False):
            return False
    except Timeout:
        return True


def _last_step(metrics: Path) -> int:
    """The step of the last whole row, read from the end: the file of a long run has megabytes."""
    with suppress(OSError), metrics.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2**16))
        steps = list(_steps(file.read()))
        return steps[-1] if steps else 0
    return 0


def _steps(rows: bytes) -> Iterator[int]:
    return (int(step) for step in re.findall(rb'"step": ?(\d{1,18})\D.*\n', rows))
