"""How the last run ended, and the command that resumes it; the proof that a resume is exact on this machine.

No torch: the runs of the proof are processes of their own, and their checkpoints are compared as files.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dtl.base.display import Display, shown
from dtl.base.files import sha256_of
from dtl.base.json_files import dotted, read_json, read_record_or_empty
from dtl.checkpoints.listing import Checkpoint, best_checkpoint, list_checkpoints
from dtl.diagnostics.findings import Finding
from dtl.errors import ConfigError, DTLError
from dtl.run_dir.provenance import RESULT
from dtl.run_dir.state import RunState, find_runs, read_run_state, resume_command, sessions_of
from dtl.tracking.metrics import read_metrics


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


# --- the proof ----------------------------------------------------------------------------------------------------

STOP_AFTER, STEPS = 4, 8  # steps of the run: where it is stopped, and where it is compared
# What a proof sets in the run: it evaluates, logs and samples before the stop and after it, and ends without a report.
SHORT = (
    "trainer.eval_every_steps=3",
    "trainer.eval_max_batches=2",
    "trainer.early_stopping_patience=null",
    "trainer.log_every_steps=1",
    "trainer.save_every_steps=null",
    "trainer.save_every_epochs=null",
    "tracker=local",
)
TIMES = re.compile(r"seconds?$|^memory/")  # the metrics that differ from run to run
TENSORS = {
    "model.safetensors": "weights",
    "raw.safetensors": "weights before averaging",
    "optimizer.safetensors": "optimizer",
}


def prove_resume(words: Sequence[str], outputs: Path) -> None:
    """Train as the words of dtl.train say, once in one go and once with a stop and a resume; compare and show all.

    Raises ConfigError for a run that fails or is too short, DTLError where the two differ.
    """
    if "model=auto" in words and "model.auto=false" not in words:
        raise ConfigError("model=auto: each run would choose for itself. Give the words that dtl.plan prints with it.")
    display = Display()
    with _folder(outputs) as folder:
        whole, parts = folder / "whole", folder / "parts"
        display.note(f"{STEPS} steps in one go ...")
        _run(words, whole, STEPS)
        display.note(f"{STOP_AFTER} steps, a stop, a resume in a new process ...")
        _run(words, parts, STOP_AFTER)
        if read_record_or_empty(parts / RESULT).get("state") != "stopped":
            raise ConfigError(f"resume=true: the run ends by itself within {STOP_AFTER} steps. Give it more of them.")
        kept = [word for word in words if word.startswith(("plugins=", "--config"))]
        _run([f"resume={parts}", *kept], parts, STEPS)
        found = differences(whole, parts)
        display.screen("A resumed run, compared with one in one go", [(part, why or "equal") for part, why in found])
        different = [part for part, why in found if why]
        if not different:
            display.print("Exact: on this machine a run of these settings resumes bit for bit.")
            return
        display.note(f"{STEPS} steps in one go, once more ...")
        _run(words, folder / "again", STEPS)
        repeats = not any(why for _, why in differences(whole, folder / "again"))
    raise DTLError(
        f"Not exact: {', '.join(different)}. "
        + (
            "Two runs in one go are equal, so that the resume lost something: please report it."
            if repeats
            else "Two runs in one go differ as well: this device, or torch.compile, computes differently each time. "
            "trainer.deterministic=true makes it repeatable where torch can."
        )
    )


def differences(one: Path, other: Path) -> list[tuple[str, str]]:
    """Return the parts of two runs, each with what differs in it; empty for equal ones."""
    a, b = (list_checkpoints(run_dir)[0].path for run_dir in (one, other))
    found = [
        (part, "" if sha256_of(a / name) == sha256_of(b / name) else _different_tensors(a / name, b / name))
        for name, part in TENSORS.items()
        if (a / name).exists()
    ]
    states = [read_json(checkpoint / "state.json") for checkpoint in (a, b)]
    for state in states:
        state["train"].pop("seconds", None)
    random = [state.pop("random", None) for state in states]
    found.append(("random states", "" if random[0] == random[1] else _different_keys(*random)))
    found.append(("position, best loss", _different_keys(*states)))
    rows = [[_untimed(row) for row in read_metrics(run_dir)] for run_dir in (one, other)]
    first = next((x or y for x, y in zip_longest(*rows, fillvalue={}) if x != y), None)
    found.append(("rows of metrics.jsonl", "" if first is None else f"from step {first.get('step')} on"))
    samples = [{file.name: file.read_bytes() for file in (run / "samples").glob("*")} for run in (one, other)]
    return [*found, ("samples", "" if samples[0] == samples[1] else "other texts")]


def _untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not TIMES.search(key)}


def _different_keys(one: Any, other: Any) -> str:
    a, b = (dict(dotted(values or {})) for values in (one, other))
    return ", ".join(sorted(key for key in {*a, *b} if a.get(key) != b.get(key)))


def _different_tensors(one: Path, other: Path) -> str:
    from safetensors.numpy import load_file

    a, b = load_file(one), load_file(other)
    differ = [name for name in a if name not in b or a[name].tobytes() != b[name].tobytes()]
    return f"{len(differ)} of {len(a)} tensors, the first is {differ[0]}" if differ else "other tensors"


def _run(words: Sequence[str], folder: Path, steps: int) -> None:
    """Train in a process of its own. Raises ConfigError with its message."""
    limits = [] if words and words[0].startswith("resume=") else [*SHORT, f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "dtl.train", *words, *limits, f"trainer.stop_after_steps={steps}"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if ended.returncode:
        said = ended.stderr.strip() or ended.stdout.strip() or f"exit code {ended.returncode}"
        raise ConfigError(f"resume=true: the run fails. {said.removeprefix('Error: ')[-2000:]}")


@contextmanager
def _folder(outputs: Path) -> Iterator[Path]:
    """A folder for the runs beside the user's own, where there is room for checkpoints; deleted at the end."""
    existed = outputs.exists()
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".resume-", dir=outputs) as folder:
            yield Path(folder).absolute()
    finally:
        if not existed:
            with suppress(OSError):
                outputs.rmdir()
