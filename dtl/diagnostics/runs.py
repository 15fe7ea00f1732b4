"""How the last run stands, and how to go on with it. Imports no torch."""

from pathlib import Path

from dtl.base.display import shown
from dtl.checkpoints.listing import Checkpoint, best_checkpoint, list_checkpoints
from dtl.diagnostics.findings import Finding
from dtl.run_dir.state import RunState, find_runs, read_run_state, sessions_of


def look_at_last_run(outputs: Path) -> Finding:
    """The state of the run under `outputs` that was worked on last."""
    run_dir = last_run(outputs)
    if run_dir is None:
        return Finding([("last run", f"none under {outputs}/ yet")])
    best = best_checkpoint(run_dir, contents=False)
    checkpoints = list_checkpoints(run_dir, contents=False) or ([best] if best else [])
    state, way_on = state_of(read_run_state(run_dir), checkpoints)
    return Finding([("last run", f"{shown(run_dir)}: {state}"), *([("", way_on)] if way_on else [])])


def last_run(outputs: Path) -> Path | None:
    """The run or trial whose last session began last; one that never saved anything counts, too."""
    return max(find_runs(outputs), key=lambda run_dir: (sessions_of(run_dir)[-1:], str(run_dir)), default=None)


def state_of(run: RunState, checkpoints: list[Checkpoint]) -> tuple[str, str]:
    """How a run stands, and the command that goes on with it (empty: there is nothing to do).

    `checkpoints` are those that it has, newest first.
    """
    whole = [entry for entry in checkpoints if entry.problem is None]
    saved = f"newest checkpoint: step {whole[0].step}" if whole else "nothing saved"
    if len(whole) < len(checkpoints):
        saved += f", {len(checkpoints) - len(whole)} damaged"
    again = f"start it anew: {run.rerun}" if run.rerun else ""
    way_on = f"go on with: python -m dtl.train resume={shown(run.folder)}" if whole else again
    step = run.step or 0
    if run.state == "running":
        return f"running at step {step} (process {run.pid} on {run.host}); {saved}", ""
    if run.state == "killed":
        return f"was killed at about step {step}; {saved}", way_on
    if run.state == "unfinished":
        return f"ended without saying how; {saved}", way_on
    if run.state == "finished":
        loss = "" if run.best_loss is None else f", best validation loss {run.best_loss:.4f}"
        return f"finished at step {step}{loss}; {saved}", ""
    words = {"stopped": "paused", "interrupted": "interrupted by Ctrl-C or SIGTERM"}.get(run.state, run.state)
    because = f" ({run.reason})" if run.reason and run.state == "failed" else ""
    return f"{words} at step {step}{because}; {saved}", way_on
