"""The screen of dtl.runs: the table of runs, the list of deletions, and the questions before them."""

import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from dtl.base.display import NARROW, Display, aligned, command_line, table
from dtl.base.safe_text import in_one_line
from dtl.base.units import in_age, in_bytes, number_of
from dtl.housekeeping.config import DELETIONS, OUTPUTS, RunsConfig
from dtl.housekeeping.disk_runs import DiskRun
from dtl.housekeeping.removal import Removal
from dtl.run_dir.record_checks import record_problems, told_once
from dtl.run_dir.sweep_records import is_sweep

HEADERS = ("folder", "name", "state", "step", "best loss", "size", "age")
RIGHT = ("step", "best loss", "size", "age")
STYLES = {"running": "green", "failed": "red", "killed": "red", "finished": ""}
RESERVED_ROWS = 9  # of a terminal, beside the runs: the command, totals, two of headers, four of notes, the prompt
CLEANUP_HINTS = {
    "checkpoints": "Superseded checkpoints of finished runs",
    "empty": "Runs that ended without a checkpoint",
    "leftovers": "Left by an interrupted deletion",
}


def show_runs(display: Display, runs: list[DiskRun], n_all: int, settings: RunsConfig) -> None:
    """Show a line of totals, then a line for each run; without `limit=`, on a terminal, for as many as it has room."""
    outputs = Path(settings.outputs).expanduser()
    shown = number_of("runs", len(runs)) if len(runs) == n_all else f"{len(runs)} of {number_of('runs', n_all)}"
    size = in_bytes(sum(run.n_bytes for run in runs))
    free = in_bytes(shutil.disk_usage(outputs).free)
    display.console.print(Text(f"{in_one_line(str(outputs))}: {shown}, {size}; {free} free on this disk", "bold"))
    if not runs:
        return
    rows = [_row(run) for run in runs]
    if display.console.is_terminal:
        if settings.limit is None:
            rows = rows[: max(10, int(display.room) - RESERVED_ROWS)]
        _show_table(display.console, rows)
        if len(rows) < len(runs):
            display.note(f"And {number_of('more runs', len(runs) - len(rows))}; limit={len(runs)} shows all.")
    else:
        for line in aligned([HEADERS, *rows]):
            display.print(line.rstrip())
    for problem in told_once({in_one_line(run.label): record_problems(run.folder) for run in runs}):
        display.warn(problem)


def _row(run: DiskRun) -> tuple[str, ...]:
    state = run.state
    step = "" if state.step is None else str(state.step)
    return (
        in_one_line(run.label),
        in_one_line(state.name),
        state.state,
        f"{step}/{state.last_step}" if step and state.last_step is not None else step,
        "" if state.best_loss is None else f"{state.best_loss:.4f}",
        in_bytes(run.n_bytes),
        "now" if state.state == "running" else in_age(run.age),
    )


def _show_table(console: Console, rows: list[tuple[str, ...]]) -> None:
    """Show the table; a folder that does not fit its column has a line of its own, as a part of it cannot be pasted."""
    width = console.width
    complete = _table(rows, with_names=width >= 100)
    if _columns(console, complete) > width >= 100:
        complete = _table(rows, with_names=False)
    needed = _columns(console, complete)
    if needed <= width or width < NARROW:  # where it is narrow, each row is a paragraph
        console.print(complete, soft_wrap=False, crop=False)
        return
    room = width - (needed - max(len(folder) for folder, *_ in rows))
    fitting = _table([(folder if len(folder) <= room else "", *others) for folder, *others in rows], with_names=False)
    lines = console.render_lines(fitting, pad=False)
    n_head = len(lines) - len(rows)
    folders = ["" for _ in range(n_head)] + [folder if len(folder) > room else "" for folder, *_ in rows]
    for folder, line in zip(folders, lines, strict=True):
        if folder:
            console.print(Text(folder), soft_wrap=True)
        console.print(Segments([*line, Segment.line()]), end="")


def _columns(console: Console, table: Table) -> int:
    """Columns of the terminal that a table needs to show every cell in one line."""
    return Measurement.get(console, console.options.update(width=10**6), table).maximum


def _table(rows: list[tuple[str, ...]], with_names: bool) -> Table:
    """Return the table; a name is omitted where the folder ends with it, all of them unless `with_names`."""
    # The name of a run without a config is the folder's.
    names = ["" if folder.endswith((f"_{name}", f"/{name}")) else name for folder, name, *_ in rows]
    with_names = any(names) and with_names
    cells = (
        [folder, *([name] if with_names else []), Text(state, STYLES.get(state, "yellow")), *metrics]
        for name, (folder, _, state, *metrics) in zip(names, rows, strict=True)
    )
    headers = [header.replace("best loss", "best\nloss") for header in HEADERS if header != "name" or with_names]
    return table(headers, cells, (*RIGHT, "best\nloss"), every={"no_wrap": True, "overflow": "fold"})


def show_cleanup_hints(display: Display, settings: RunsConfig, n_bytes: dict[str, int]) -> None:
    """Show what could be deleted, with its command; `n_bytes` has the size of each kind in CLEANUP_HINTS."""
    where = [] if settings.outputs == OUTPUTS else [f"outputs={settings.outputs}"]
    for kind, description in CLEANUP_HINTS.items():
        if n_bytes[kind]:  # any deletion removes leftovers first
            command = command_line("runs", *where, f"delete={kind if kind in DELETIONS else 'checkpoints'}")
            display.note(f"{description}: {in_bytes(n_bytes[kind])} ({command})")


def show_removals(display: Display, items: list[Removal]) -> None:
    """Show a line for each run, and a warning about trials."""
    for item in items:
        what = "the run" if item.removes_run else ", ".join(sorted(path.name for path in item.folders))
        if item.takes_best:
            what += " with its best checkpoint"
        display.print(f"  {in_one_line(item.run.label)}  {what}  {in_bytes(item.n_bytes)}")
    n_trials = sum(item.removes_run and is_sweep(item.run.folder.parent) for item in items)
    if n_trials:
        display.warn(
            f"among these: {number_of('trials', n_trials)}. A sweep that is continued runs missing trials again."
        )


def in_sum(items: list[Removal]) -> str:
    """Return the total, such as `2 runs, 1.2 GB` or `7 checkpoints of 3 runs, 221 MB`."""
    n_runs = number_of("runs", len(items))
    n_folders = sum(len(item.folders) for item in items)
    what = n_runs if all(item.removes_run for item in items) else f"{number_of('checkpoints', n_folders)} of {n_runs}"
    return f"{what}, {in_bytes(sum(item.n_bytes for item in items))}"


def can_ask() -> bool:
    """Return True when standard input and output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def is_agreed(question: str) -> bool:
    """Ask, and return True for y or yes. The end of the input is a no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def confirm_by_typing(display: Display, items: list[Removal]) -> list[Removal]:
    """Return the items whose folders the user types, one a line, until an empty line."""
    display.print(f"{number_of('runs', len(items))} with a best checkpoint, kept unless you type the folder:")
    for item in items:
        display.print(f"  {in_one_line(item.run.label)}  {in_bytes(item.n_bytes)}")
    waiting = {item.run.label: item for item in items}
    named: list[Removal] = []
    while waiting:
        try:
            typed = input("Folder to delete, or Enter to continue: ").strip().rstrip("/")
        except EOFError:
            break
        if not typed:
            break
        if typed in waiting:
            named.append(waiting.pop(typed))
        else:
            display.print("Not one of these.")
    return named
