"""Terminal output of the commands: screens, tables, progress, notes and warnings.

In a terminal the progress line is updated in place and evaluations scroll above it; elsewhere there are plain lines.
"""

import errno
import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from dtl.base.safe_text import visible

OUTPUT_CLOSED = (errno.EPIPE, errno.EIO)  # the reader of the pipe has ended; the terminal was closed
WIDTH_OF_A_FILE = 160  # columns of a table outside a terminal


def shown(folder: Path) -> str:
    """The folder as typed on the command line: relative to the working directory when it is inside it."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def shell_line(words: Iterable[str]) -> str:
    """The words of a command as one line that can be pasted into a shell, quoted where necessary."""
    return (subprocess.list2cmdline if os.name == "nt" else shlex.join)(list(words))


def command_line(name: str, *words: str) -> str:
    """`python -m dtl.<name>` with these words, to be pasted: `command_line("chat", f"ckpt={shown(folder)}")`."""
    return visible(shell_line(["python", "-m", f"dtl.{name}", *words]))


def is_terminal(stream: IO[str]) -> bool:
    """True for a terminal. The streams of a notebook say that they are one, too, but cannot rewrite a line."""
    return stream.isatty() and not in_notebook(stream)


def in_notebook(stream: IO[str]) -> bool:
    """True for a stream whose text appears below the cell of a notebook."""
    return type(stream).__module__.partition(".")[0] == "ipykernel"


def plain_console(**options: Any) -> Console:
    """A console for plain text and tables on a terminal, in a file or below a cell.

    In a notebook plain lines: rich's own output there is a piece of HTML per line, and widgets for the progress bar.
    """
    plain = {"force_terminal": False} if in_notebook(options.get("file") or sys.stdout) else {}
    return Console(highlight=False, force_jupyter=False, **plain, **options)


def table_console(soft_wrap: bool = False, file: IO[str] | None = None, width: int | None = None) -> Console:
    """A console for tables on standard output or in `file`: as wide as the terminal, elsewhere 160 columns."""
    width = width or (None if is_terminal(sys.stdout) else WIDTH_OF_A_FILE)
    return plain_console(file=file, soft_wrap=soft_wrap, width=width)


def table(
    headers: Iterable[str],
    rows: Iterable[Iterable[RenderableType]],
    right: Collection[str] = (),
    every: Mapping[str, Any] = {},
    columns: Mapping[str, Mapping[str, Any]] = {},
    **look: Any,
) -> Table:
    """A table without lines; texts are shown as they are, rich's markup is not interpreted.

    `right` names the columns aligned to the right. `every` has rich's options of all columns, `columns` of single ones
    by name, `look` of the table.
    """
    result = Table(**{"box": None, "pad_edge": False, "padding": (0, 2, 0, 0), "header_style": "dim"} | look)
    for header in headers:
        options = {"justify": "right" if header in right else "left", **every, **columns.get(header, {})}
        result.add_column(Text(header), **options)
    for row in rows:
        result.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return result


def aligned(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines with aligned columns, of any length, for a file or a pipe, where a table would be cut to a width."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for *cells, last in rows:
        yield "  ".join([*(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)), last])


class Display:
    """The output of a command on the terminal; plain text on standard output outside one. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        # Outside a terminal rich would wrap lines at 80 columns.
        self.console = console or plain_console(soft_wrap=not is_terminal(sys.stdout))
        self.progress: Progress | None = None
        self._task = None

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_progress()

    def screen(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Print a title and a two-column table; without a terminal one line per row, of any length."""
        rows = list(rows)
        self.console.print(Text(title, style="bold"))
        if not self.console.is_terminal:
            for line in aligned(rows):
                self.print(line)
            return
        columns = {"name": {"style": "dim", "no_wrap": True}, "value": {"overflow": "fold"}}
        self.console.print(table(columns, rows, columns=columns, show_header=False))

    def note(self, message: str) -> None:
        """Print a line of information, dimmed."""
        self.console.print(Text(message, style="dim"))

    def warn(self, message: str) -> None:
        """Print a warning."""
        self.console.print(Text(f"Warning: {message}", style="yellow"))

    def print(self, message: str) -> None:
        """Print a plain line."""
        self.console.print(Text(message))

    def start_progress(self, total_steps: int, done: int) -> None:
        """Show the progress bar. Does nothing without a terminal."""
        if not self.console.is_terminal:
            return
        self.progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            refresh_per_second=4,
        )
        self._task = self.progress.add_task("", total=total_steps, completed=done, status="first steps ...")
        self.progress.start()

    def stop_progress(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def advance(self, step: int) -> None:
        """Move the progress bar; its text changes with `step`."""
        if self.progress is not None and self._task is not None:
            self.progress.update(self._task, completed=step)

    def step(self, step: int, total_steps: int, status: str) -> None:
        """Show the state of training at `step`."""
        if self.progress is not None and self._task is not None:
            self.progress.update(self._task, completed=step, status=status)
        else:
            self.console.print(Text(f"step {step}/{total_steps}  {status}"))


@contextmanager
def exit_when_output_closes() -> Iterator[None]:
    """End the program silently with exit code 1 once its output has no reader, as in `--help | head`."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in OUTPUT_CLOSED:
            raise
        # Python flushes its streams at exit and would print an error about the closed pipe.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
        raise SystemExit(1) from None
