"""Table and status of a sweep, read from its files alone: the same in another terminal, also after a crash."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dtl.base.display import command_line, shell_line, shown, table
from dtl.base.json_files import as_number, as_object
from dtl.base.safe_text import in_one_line, visible
from dtl.base.units import in_percent, in_time, in_units, number_of
from dtl.commandline.overrides import as_shown
from dtl.errors import ConfigError
from dtl.run_dir.record_checks import MAX_NAMED, record_problems, told_once
from dtl.run_dir.state import RUN_FILES, RunState, is_locked, last_metrics, read_config, read_run_state
from dtl.run_dir.sweep_records import (
    LOG,
    SWEEP,
    TRACEBACK,
    TRIAL,
    SweepFolder,
    SweepRecord,
    Trial,
    TrialState,
    find_sweeps,
    is_sweep,
)
from dtl.runner.remaining import Span, left_of_steps
from dtl.tracking.metrics import SPEED

LOSS, TAUGHT = "best loss", "train right"
ON_THE_RIGHT = ("trial", "step", LOSS, TAUGHT, "tokens/s", "time")
STYLES = {
    "finished": "green", "running": "cyan", "failed": "red", "refused": "red", "killed": "red", "hung": "red",
    "timed out": "red", "interrupted": "yellow", "pruned": "dim", "waiting": "dim", "stopped": "yellow",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A trial and the state of its run."""

    trial: Trial
    run: RunState

    @property
    def best_loss(self) -> float | None:
        return self.run.best_loss if self.trial.value is None else self.trial.value

    def left(self) -> Span | None:
        """Return how long a running trial still takes, from its files; None if unknown."""
        run = self.run
        if self.trial.state != "running" or not run.last_step:
            return None
        logged = ((row["step"], as_number(row.get("seconds"))) for row in last_metrics(run.folder))
        seconds = {step: value for step, value in logged if value is not None and step > 0}
        hours = as_number(as_object(read_config(run.folder).get("trainer")).get("hours"))
        # A later attempt began with the steps of the one before, whose time besides training is not known.
        elapsed = self.trial.seconds() if self.trial.attempts <= 1 else None
        return left_of_steps(seconds, run.last_step, elapsed, hours)


def rows_of(sweep: SweepFolder, trials: Iterable[Trial] | None = None) -> list[Row]:
    """Return the trials of a sweep (None: all) with the state of their runs.

    A trial recorded as running in a sweep that no process has locked was killed with it, or noticed that and saved.
    """
    if trials is None and not (sweep.path / SWEEP).is_file():
        return _rows_of_hydra(sweep)
    alive = is_locked(sweep.path)
    rows = []
    for trial in sweep.trials() if trials is None else trials:
        run = read_run_state(sweep.trial_folder(trial.number))
        if trial.state == "running" and not alive:
            saved = run.state == "interrupted"
            trial.state, trial.reason = (
                ("interrupted", "its sweep was killed") if saved else ("killed", "with its sweep")
            )
        rows.append(Row(trial, run))
    return rows


def _rows_of_hydra(sweep: SweepFolder) -> list[Row]:
    """Return the trials that ran under one of Hydra's own launchers, which records none, from the runs themselves."""
    numbers = sorted(int(folder.name) for folder in sweep.path.iterdir() if folder.name.isdecimal())
    rows = []
    for number in numbers:
        run = read_run_state(sweep.trial_folder(number))
        state = cast(TrialState, run.state)  # "unfinished" is one as well: shown as it is
        trial = Trial(number, run.overrides, run.config_hash or "", state, run.reason, run.best_loss)
        rows.append(Row(trial, run))
    return rows


def varying_overrides(overrides: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the overrides of each trial without those that all trials share, as a user would
    type them."""
    common = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    return [[as_shown(word) for word in words if word not in common] for words in overrides]


def without_losses(rows: Sequence[Row]) -> bool:
    """True for finished trials that no validation loss compares: nothing was held out of their questions."""
    return any(row.run.right is not None for row in rows) and all(row.best_loss is None for row in rows)


def trial_table(rows: Sequence[Row], among: Sequence[Trial] | None = None) -> Table:
    """Return a table with a row per trial: number, overrides, state, step, best loss, speed, time, reason.

    Overrides that all trials `among` which these are (None: the rows' own) share are left out.
    Where nothing was held out, how many of the training questions are answered right stands in place of the loss.
    """
    taught = without_losses(rows)
    headers = ("trial", "overrides", "state", "step", TAUGHT if taught else LOSS, "tokens/s", "time", "why")
    wide = {name: {"no_wrap": False, "overflow": "fold", "ratio": n} for name, n in (("overrides", 3), ("why", 2))}
    trials = [row.trial for row in rows] if among is None else among
    varying = varying_overrides([trial.overrides for trial in trials])
    words = {trial.number: own for trial, own in zip(trials, varying, strict=True)}
    cells = (_cells(row, words[row.trial.number], taught) for row in rows)
    look = {"header_style": "bold", "padding": (0, 1), "pad_edge": True}
    return table(headers, cells, ON_THE_RIGHT, every={"no_wrap": True}, columns=wide, **look)


def _cells(row: Row, overrides: list[str], taught: bool) -> list[str | Text]:
    trial, run = row.trial, row.run
    if taught:
        score = "" if run.right is None else f"{in_percent(run.right)} %"
    else:
        score = "" if row.best_loss is None else f"{row.best_loss:.4f}"
    return [
        str(trial.number),
        in_one_line(" ".join(overrides)) or "(defaults)",
        Text(trial.state, style=STYLES.get(trial.state, "")),
        _of(run.step, run.last_step),
        score,
        "" if (speed := _speed(row)) is None else in_units(speed),
        _time(row),
        Text(in_one_line(trial.reason), style="dim"),
    ]


def _of(step: int | None, last: int | None) -> str:
    if step is None:
        return ""
    return f"{step:,}" if last is None else f"{step:,}/{last:,}"


def _speed(row: Row) -> float | None:
    """Tokens per second: now, and of a trial that has ended the median that a report shows."""
    if row.trial.state == "running":
        return row.run.tokens_per_second
    speeds = [as_number(each.get(SPEED)) for each in last_metrics(row.run.folder)]
    return median(known) if (known := [speed for speed in speeds if speed is not None]) else None


def _time(row: Row) -> str:
    """The time that a trial took; of a running one its end, as on a run's screen, in two lines."""
    if (left := row.left()) is not None:
        return left.text(datetime.now()).replace(", in ", "\nin ").replace("ends in ", "ends in\n")
    seconds = row.trial.seconds()
    return "" if seconds is None else in_time(seconds)


def counted(trials: Iterable[Trial]) -> str:
    """Return the counts by state, the most frequent first: `3 finished, 1 failed`."""
    counts = Counter(trial.state for trial in trials)
    return ", ".join(f"{number} {state}" for state, number in counts.most_common())


def failures(sweep: SweepFolder, trials: Iterable[Trial]) -> list[str]:
    """Return a line for each trial that went wrong: the file with its traceback or log, else the reason."""
    lines = []
    for trial in trials:
        if trial.has_failed:
            files = [sweep.trial_folder(trial.number) / name for name in (TRACEBACK, LOG)]
            where = next((shown(file) for file in files if file.exists()), in_one_line(trial.reason))
            lines.append(f"trial {trial.number} {trial.state}: {where}")
    return lines


def comparing(sweep: SweepFolder, rows: Sequence[Row]) -> list[str]:
    """Return the line with the command that compares the finished trials, or why none does; none if fewer than two."""
    if len(rows) > 1 and without_losses(rows):
        return [
            "Nothing was held out, so no loss ranks the trials: compared is what they answer of what was taught. "
            "data.validation_fraction=0.1 holds some out."
        ]
    finished = sum(row.trial.value is not None for row in rows)
    return [f"compare them: {command_line('report', f'runs={shown(sweep.path)}')}"] if finished > 1 else []


# --- the status of a sweep ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """Status of a sweep at one moment."""

    is_running: bool
    renderable: RenderableType
    how_to_resume: str = ""  # for a sweep that ended early: how to resume it, a line to be printed without wrapping


def find_sweep(spec: str, outputs: Path) -> SweepFolder:
    """Return the sweep of `status=spec`: a folder, or the newest for `latest`. Raises ConfigError if there is none."""
    if spec == "latest":
        sweeps = find_sweeps(outputs)
        if not sweeps:
            raise ConfigError(
                f"status=latest: there is no sweep under {outputs} yet. Start one: "
                "python -m dtl.train -m optimizer.lr=1e-3,3e-3"
            )
        return sweeps[0]
    folder = Path(os.path.expanduser(spec))
    if is_sweep(folder):
        return SweepFolder(folder)
    known = "".join(f"\n  {_listed(sweep)}" for sweep in find_sweeps(outputs)[:5])
    raise ConfigError(
        f"status={spec}: {_describe(folder)}"
        + (f" The last sweeps:{known}" if known else f" There is no sweep under {outputs} yet.")
    )


def _describe(folder: Path) -> str:
    """Describe a folder that is no sweep of DTL's, with the command that shows it."""
    if not folder.exists():
        return "there is no such folder."
    if is_sweep(folder.parent):
        return f"is inside a sweep. Show it with {shell_line([f'status={shown(folder.parent)}'])}."
    if any((folder / name).exists() for name in RUN_FILES):
        return "is a run, not a sweep. Show it with python -m dtl.runs."
    return f"is not the folder of a sweep (it has no {SWEEP})."


def _listed(sweep: SweepFolder) -> str:
    record, state, _ = _read(sweep)
    # Whole, to be pasted.
    arguments = in_one_line(shell_line(map(as_shown, record.arguments)), 10_000) if record else ""
    return f"{shown(sweep.path)}  {state}  {arguments}"


def _read(sweep: SweepFolder) -> tuple[SweepRecord | None, str, bool]:
    """Return record, state and whether the sweep runs. One recorded as `running` but not locked was killed."""
    if not (sweep.path / SWEEP).is_file():  # of one of Hydra's own launchers: known are the runs alone
        alive = any(row.run.state == "running" for row in _rows_of_hydra(sweep))
        return None, "running" if alive else "ended", alive
    alive = is_locked(sweep.path)  # checked first: a sweep writes its last state before it releases its lock
    record = sweep.read()
    state = record.state if record else "unknown"
    return record, "killed" if state == "running" and not alive else state, alive


def status_of(sweep: SweepFolder) -> Status:
    """Return the table of the trials, with the failures and the command to run next."""
    record, state, alive = _read(sweep)
    command = sweep_command(record) if record else ""
    rows = rows_of(sweep)
    trials = [row.trial for row in rows]
    planned = record.planned if record and record.planned else len(trials)
    lines: list[RenderableType] = [
        Text(f"{shown(sweep.path)}: {state}; {counted(trials) or 'no trial yet'}, of {planned}", style="bold"),
        *([_in_one_line(visible(command))] if command else []),
        trial_table(rows),
    ]
    lines += [Text(line, style="dim") for line in failures(sweep, trials)]
    lines += [Text(f"Warning: {line}", style="yellow") for line in _lost(sweep, record)]
    lines += [Text(f"Warning: trial {line}", style="yellow") for line in told_once(_problems(sweep))]
    lines += [_in_one_line(line) for line in comparing(sweep, rows)]
    resume = f"The same command resumes it: {command}" if state in ("killed", "interrupted") else ""
    return Status(alive, Group(*lines), resume)


def _lost(sweep: SweepFolder, record: SweepRecord | None) -> Iterator[str]:
    """Yield what is lost of the sweep's own record, and the trials whose folder or record is gone."""
    folder = f"hydra.sweep.dir={shown(sweep.path)}"
    if record is None and (sweep.path / SWEEP).is_file():
        add = shell_line([folder])
        yield f"{SWEEP} was changed or is damaged: its command is lost. To resume it, add {add} to that command."
    recorded = {int(file.parent.name) for file in sweep.path.glob(f"*/{TRIAL}") if file.parent.name.isdecimal()}
    planned = record.planned or 0 if record and record.kind == "grid" else 0
    if record and record.kind == "grid" and len(recorded) >= planned:
        return  # one that was gone has been run again, under another number
    gone = [
        n for n in range(max(planned, *recorded, 0)) if n not in recorded and not _is_foreign(sweep.trial_folder(n))
    ]
    if gone and (sweep.path / SWEEP).is_file():
        numbers = ", ".join(map(str, gone[:MAX_NAMED])) + (", ..." if len(gone) > MAX_NAMED else "")
        again = f" To run it again: {sweep_command(record, folder)}" if record and record.kind == "grid" else ""
        yield f"{number_of('trials', len(gone))} missing, of which the folder or {TRIAL} is gone: {numbers}.{again}"


def _is_foreign(folder: Path) -> bool:
    """Return True for a folder without the files of a run, which a user has put there."""
    return folder.exists() and not any((folder / name).exists() for name in RUN_FILES)


def sweep_command(record: SweepRecord, *more: str) -> str:
    """Return the line that started a sweep, with `more` words in the place of its own for their keys."""
    replaced = tuple(f"{word.partition('=')[0]}=" for word in more)
    own = (word for word in record.arguments if not replaced or not word.startswith(replaced))
    return command_line("train", "-m", *map(as_shown, own), *more)


def _problems(sweep: SweepFolder) -> dict[str, list[str]]:
    """Return what is damaged in the records of each trial, those included whose own record cannot be read."""
    numbers = sorted(int(folder.name) for folder in sweep.path.iterdir() if folder.name.isdecimal())
    return {str(number): record_problems(sweep.trial_folder(number)) for number in numbers}


def _in_one_line(command: str) -> Text:
    """A command to paste, in one line however long (with `crop=False`)."""
    return Text(command, style="dim", no_wrap=True, overflow="ignore")
