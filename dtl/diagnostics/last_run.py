"""The state of the last run, and the command that continues it. Imports no torch."""

from pathlib import Path

from dtl.base.display import shown
from dtl.checkpoints.listing import Checkpoint, best_checkpoint, list_checkpoints
from dtl.diagnostics.findings import Finding
from dtl.run_dir.state import RunState, find_runs, read_run_state, resume_command, sessions_of


def look_at_last_run(outputs: Path) -> Finding:
    """Return the row of the last run under `outputs`, with the command that continues it."""
    run_dir = last_run(outputs)
    if run_dir is None:
        return Finding([("last run", f"none under {outputs}/ yet")])
    best = best_checkpoint(run_dir, contents=False)
    checkpoints = list_checkpoints(run_dir, contents=False) or ([best] if best else [])
    state, next_command = describe_state(read_run_state(run_dir), checkpoints)
    return Finding([("last run", f"{shown(run_dir)}: {state}"), *([("", next_command)] if next_command else [])])


def last_run(outputs: Path) -> Path | None:
    """Return the run or trial whose last session started last, also one without any checkpoint."""
    return max(find_runs(outputs), key=lambda run_dir: (sessions_of(run_dir)[-1:], str(run_dir)), default=None)


def describe_state(run: RunState, checkpoints: list[Checkpoint]) -> tuple[str, str]:
    """Describe the state of a run, and return the command that continues it (empty: nothing to do).

    `checkpoints` are its own, newest first.
    """
    valid = [entry for entry in checkpoints if entry.problem is None]
    saved = f"newest checkpoint: step {valid[0].step}" if valid else "nothing saved"
    if len(valid) < len(checkpoints):
        saved += f", {len(checkpoints) - len(valid)} damaged"
    again = f"start again: {run.rerun}" if run.rerun else ""
    next_command = f"resume: {resume_command(run.folder)}" if valid else again
    step = run.step or 0
    if run.state == "running":  # a second process must not resume it
        return f"running at step {step} (process {run.pid} on {run.host}); {saved}", ""
    if run.state == "killed":
        return f"was killed at about step {step}; {saved}", next_command
    if run.state == "unfinished":
        return f"ended without a recorded result; {saved}", next_command
    if run.state == "finished":
        loss = "" if run.best_loss is None else f", best validation loss {run.best_loss:.4f}"
        return f"finished at step {step}{loss}; {saved}", ""
    words = {"stopped": "paused", "interrupted": "interrupted by Ctrl-C or SIGTERM"}.get(run.state, run.state)
    because = f" ({run.reason})" if run.reason and run.state == "failed" else ""
    return f"{words} at step {step}{because}; {saved}", next_command
