"""How a sweep stands, from the files in its folder alone."""

import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from dtl.base.display import shown
from dtl.base.safe_text import in_one_line
from dtl.errors import ConfigError
from dtl.run_dir.state import RUN_FILES, is_held
from dtl.run_dir.sweep_records import SWEEP, SweepFolder, SweepRecord, find_sweeps, is_sweep
from dtl.sweeps.table import comparing, counted, failures, rows_of, trial_table


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
    folder = Path(os.path.expanduser(spec))
    if (folder / SWEEP).is_file():
        return SweepFolder(folder)
    known = "".join(f"\n  {_listed(sweep)}" for sweep in find_sweeps(outputs)[:5])
    raise ConfigError(
        f"status={spec}: {_what_it_is(folder)}"
        + (f" The last sweeps:{known}" if known else f" There is no sweep under {outputs} yet.")
    )


def _what_it_is(folder: Path) -> str:
    """What a folder that no sweep of DTL's was run in is instead."""
    if not folder.exists():
        return "there is no such folder."
    if (folder.parent / SWEEP).is_file():
        return f"is inside a sweep. How that one stands: status={shown(folder.parent)}."
    if is_sweep(folder):
        return f"its trials had a launcher of Hydra's own. What came out: python -m dtl.report runs={shown(folder)}."
    if any((folder / name).exists() for name in RUN_FILES):
        return "is a run, not a sweep. How it stands: python -m dtl.runs."
    return f"no folder of a sweep (it would hold a {SWEEP})."


def _listed(sweep: SweepFolder) -> str:
    record, state, _ = _read(sweep)
    arguments = in_one_line(" ".join(record.arguments), 100) if record else ""
    return f"{shown(sweep.path)}  {state}  {arguments}"


def _read(sweep: SweepFolder) -> tuple[SweepRecord | None, str, bool]:
    """The record, the state, and whether somebody holds the sweep: one that says `running` was killed otherwise."""
    alive = is_held(sweep.path)  # asked first: a sweep that ends just now has written its state before it lets go
    record = sweep.read()
    state = record.state if record else "unknown"
    return record, "killed" if state == "running" and not alive else state, alive


def status_of(sweep: SweepFolder) -> Status:
    """The table of its trials, with what a person does next."""
    record, state, alive = _read(sweep)
    rows = rows_of(sweep)
    trials = [row.trial for row in rows]
    planned = record.planned if record and record.planned else len(trials)
    lines: list[RenderableType] = [
        Text(f"{shown(sweep.path)}: {state}; {counted(trials) or 'no trial yet'}, of {planned}", style="bold"),
        Text(f"python -m dtl.train -m {in_one_line(' '.join(record.arguments))}" if record else "", style="dim"),
        trial_table(rows),
    ]
    lines += [Text(line, style="dim") for line in failures(sweep, trials)]
    lines += [Text(line, style="dim") for line in comparing(sweep, trials)]
    if state in ("killed", "interrupted"):
        lines.append(Text("The same command goes on with what is left.", style="yellow"))
    return Status(alive, Group(*lines))
