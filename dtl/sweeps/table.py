"""The trials of a sweep as a table, from files alone: another terminal sees the same, also after a crash."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dtl.base.display import shown, table
from dtl.base.safe_text import in_one_line
from dtl.base.units import in_time, in_units
from dtl.errors import ConfigError
from dtl.run_dir.state import RUN_FILES, RunState, is_held, read_run_state
from dtl.run_dir.sweep_records import LOG, SWEEP, TRACEBACK, SweepFolder, SweepRecord, Trial, find_sweeps, is_sweep

RIGHT = ("trial", "step", "best loss", "tokens/s", "time")
HEADERS = ("trial", "overrides", "state", *RIGHT[1:], "why")
STYLES = {
    "finished": "green", "running": "cyan", "failed": "red", "refused": "red", "killed": "red", "hung": "red",
    "timed out": "red", "interrupted": "yellow", "pruned": "dim", "waiting": "dim", "stopped": "yellow",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A trial and how its run stands."""

    trial: Trial
    run: RunState

    @property
    def best_loss(self) -> float | None:
        return self.run.best_loss if self.trial.value is None else self.trial.value

    def seconds_left(self) -> float | None:
        """Of training, by the speed so far; None where it is not known."""
        step, last, seconds = self.run.step, self.run.last_step, self.run.seconds
        if self.trial.state != "running" or not step or not last or not seconds:
            return None
        return seconds / step * max(0, last - step)


def rows_of(sweep: SweepFolder, trials: Iterable[Trial] | None = None) -> list[Row]:
    """The trials of a sweep (None: all) with what the files of their runs say.

    A trial that says that it is running although nobody holds the sweep was killed with it.
    """
    alive = is_held(sweep.path)
    rows = []
    for trial in sweep.trials() if trials is None else trials:
        if trial.state == "running" and not alive:
            trial.state, trial.reason = "killed", "with its sweep"
        rows.append(Row(trial, read_run_state(sweep.trial_folder(trial.number))))
    return rows


def varied(overrides: Sequence[Sequence[str]]) -> list[list[str]]:
    """The overrides of each trial without those that all of them share, and without Hydra's marks of new keys."""
    common = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    return [[one.lstrip("+") for one in of_trial if one not in common] for of_trial in overrides]


def trial_table(rows: Sequence[Row]) -> Table:
    """Number, overrides, state, step, best loss, speed, time, reason: a line for each trial."""
    wide = {name: {"no_wrap": False, "overflow": "fold", "ratio": n} for name, n in (("overrides", 3), ("why", 2))}
    cells = map(_cells, rows, varied([row.trial.overrides for row in rows]))
    look = {"header_style": "bold", "padding": (0, 1), "pad_edge": True}
    return table(HEADERS, cells, RIGHT, every={"no_wrap": True}, columns=wide, **look)


def _cells(row: Row, overrides: list[str]) -> list[str | Text]:
    trial, run = row.trial, row.run
    return [
        str(trial.number),
        in_one_line(" ".join(overrides)) or "(defaults)",
        Text(trial.state, style=STYLES.get(trial.state, "")),
        _of(run.step, run.last_step),
        "" if row.best_loss is None else f"{row.best_loss:.4f}",
        "" if run.tokens_per_second is None or trial.state != "running" else in_units(run.tokens_per_second),
        _time(row),
        Text(in_one_line(trial.reason), style="dim"),
    ]


def _of(step: int | None, last: int | None) -> str:
    if step is None:
        return ""
    return f"{step:,}" if last is None else f"{step:,}/{last:,}"


def _time(row: Row) -> str:
    seconds, left = row.trial.seconds(), row.seconds_left()
    if left is not None:
        return f"{in_time(left)} left"
    return "" if seconds is None else in_time(seconds)


def counted(trials: Iterable[Trial]) -> str:
    """`3 finished, 1 failed`: the commonest first."""
    counts = Counter(trial.state for trial in trials)
    return ", ".join(f"{number} {state}" for state, number in counts.most_common())


def failures(sweep: SweepFolder, trials: Iterable[Trial]) -> list[str]:
    """A line for each trial that went wrong: the file to look into, or why where it has left none."""
    lines = []
    for trial in trials:
        if trial.went_wrong:
            files = [sweep.trial_folder(trial.number) / name for name in (TRACEBACK, LOG)]
            where = next((shown(file) for file in files if file.exists()), in_one_line(trial.reason))
            lines.append(f"trial {trial.number} {trial.state}: {where}")
    return lines


def comparing(sweep: SweepFolder, trials: Iterable[Trial]) -> list[str]:
    """How to compare what went through, in one line; none where there are not two of them."""
    through = sum(trial.value is not None for trial in trials)
    return [f"compare them: python -m dtl.report runs={shown(sweep.path)}"] if through > 1 else []


# --- the status of a sweep ----------------------------------------------------------------------------------------
# How a sweep stands, from the files in its folder alone.


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
