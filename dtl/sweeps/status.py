"""How a sweep stands, from the files in its folder alone."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from dtl.display import shown
from dtl.errors import ConfigError
from dtl.records.run_state import is_held
from dtl.sweeps.records import SWEEP, SweepFolder, find_sweeps
from dtl.sweeps.table import counted, failures, rows_of, trial_table
from dtl.terminal.safe_text import in_one_line


@dataclass(frozen=True)
class Status:
    """The picture of a moment."""

    is_running: bool
    renderable: RenderableType


def find_sweep(spec: str, outputs: Path) -> SweepFolder:
    """The sweep that `status=spec` means: a folder, or the one begun last. Raises ConfigError where there is none."""
    if spec == "latest":
        found = find_sweeps(outputs)
        if not found:
            raise ConfigError(
                f"status=latest: there is no sweep under {outputs} yet. Start one: "
                "python -m dtl.train -m optimizer.lr=1e-3,3e-3"
            )
        return found[0]
    folder = Path(spec)
    if (folder / SWEEP).is_file():
        return SweepFolder(folder)
    known = "".join(f"\n  {shown(sweep.path)}" for sweep in find_sweeps(outputs)[:5])
    raise ConfigError(
        f"status={spec}: no folder of a sweep (it would hold a {SWEEP})."
        + (f" The last ones:{known}" if known else " For the newest: status=latest.")
    )


def status_of(sweep: SweepFolder) -> Status:
    """The table of its trials, with what a person does next."""
    record, alive = sweep.read(), is_held(sweep.path)
    rows = rows_of(sweep)
    trials = [row.trial for row in rows]
    state = record.state if record else "unknown"
    if state == "running" and not alive:
        state = "killed"
    planned = record.planned if record and record.planned else len(trials)
    lines: list[RenderableType] = [
        Text(f"{shown(sweep.path)}: {state}; {counted(trials) or 'no trial yet'}, of {planned}", style="bold"),
        Text(f"python -m dtl.train -m {in_one_line(' '.join(record.arguments))}" if record else "", style="dim"),
        trial_table(rows),
    ]
    lines += [
        Text(f"trial {trial.number} {trial.state}: {shown(traceback)}", style="dim")
        for trial, traceback in failures(sweep.path, trials)
        if traceback is not None
    ]
    if state in ("killed", "interrupted"):
        lines.append(Text("The same command goes on with what is left.", style="yellow"))
    return Status(alive, Group(*lines))
