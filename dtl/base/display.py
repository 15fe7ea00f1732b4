"""Terminal output of the commands: screens, tables, progress, notes and warnings.

In a terminal the progress line is updated in place and evaluations scroll above it; elsewhere there are plain lines.
"""

import errno
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderHook, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from dtl.base.redaction import redact
from dtl.base.safe_text import guard_streams, unguarded, visible

OUTPUT_CLOSED = (errno.EPIPE, errno.EIO)  # the reader of the pipe has ended; the terminal was closed
NARROW = 72  # columns of a terminal; in fewer, a table of many columns cuts its cells
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


class SafeConsole(Console):
    """rich's console without markup, whose texts cannot control the terminal: only rich's own sequences do."""

    def __init__(self, **options: Any) -> None:
        plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
        super().__init__(**plain | options)

    @property
    def file(self) -> IO[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return unguarded(super().file)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def push_render_hook(self, hook: RenderHook) -> None:
        super().push_render_hook(hook)
        if self.is_terminal:  # a live display has put streams in place that obey escape sequences in what is printed
            guard_streams()


def plain_console(**options: Any) -> Console:
    """A console for plain text and tables on a terminal, in a file or below a cell.

    In a notebook plain lines: rich's own output there is a piece of HTML per line, and widgets for the progress bar.
    """
    plain = {"force_terminal": False} if in_notebook(options.get("file") or sys.stdout) else {}
    return SafeConsole(force_jupyter=False, **plain, **options)


def table_console(soft_wrap: bool = False, file: Any = None, width: int | None = None) -> Console:
    """A console for tables on standard output or in `file`: as wide as the terminal, elsewhere 160 columns."""
    width = width or (None if is_terminal(sys.stdout) else WIDTH_OF_A_FILE)
    return plain_console(file=file, soft_wrap=soft_wrap, width=width)


class FittingTable(Table):
    """A table that hides nothing: in a terminal that is too narrow for it, a paragraph for each row."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fits = options.max_width >= NARROW or not self.show_header or not any(c.no_wrap for c in self.columns)
        if fits or Measurement.get(console, options.update(width=10**6), self).maximum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        names = [str(column.header) for column in self.columns]
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            texts = [" ".join(str(cell).split()) for cell in cells]
            first, *facts = (f"{name} {text}" for name, text in zip(names, texts, strict=True) if text)
            yield Text(first, no_wrap=True, overflow="ignore")  # often a name that is to be pasted
            yield Text(f"  {', '.join(facts)}", style="dim")


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
    result = FittingTable(**{"box": None, "pad_edge": False, "padding": (0, 2, 0, 0), "header_style": "dim"} | look)
    for header in headers:
        options = {"justify": "right" if header in right else "left", **every, **columns.get(header, {})}
        result.add_column(Text(visible(header)), **options)
    for row in rows:
        result.add_row(*(Text(visible(cell)) if isinstance(cell, str) else cell for cell in row))
    return result


def aligned(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines with aligned columns, of any length, for a file or a pipe, where a table would be cut to a width."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for *cells, last in rows:
        yield "  ".join([*(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)), last])


# A command or a setting to paste, or any other word: `wandb sync FOLDER`; python -m dtl.train with its key=value words
# and flags; 'data.path=my texts'.
_SHELL_WORD = r"""(?:'[^']*'|"[^"]*"|[^\s'"])+"""
_UNBROKEN = re.compile(rf"`[^`]*`\S*|\(?python -m dtl\.\w+(?: (?=\S*=|-|'){_SHELL_WORD})*|'[\w.]+=[^']*'\S*|\S+")


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken between words; a command to paste stays in one line, however long."""
    lines = []
    for paragraph in text.split("\n"):
        if len(paragraph) <= width:
            lines.append(paragraph)
            continue
        indent = paragraph[: len(paragraph) - len(paragraph.lstrip())]
        line = indent
        for word in _UNBROKEN.findall(paragraph):
            if line.strip() and len(line) + 1 + len(word) > width:
                lines.append(line)
                line = indent + word
            else:
                line = f"{line} {word}" if line.strip() else line + word
        lines.append(line)
    return lines


def print_lines(console: Console, text: str, style: str = "") -> None:
    """Print a text; on a terminal in lines broken between words, with each command to paste in one of them."""
    text = redact(text)
    # Not wrapped by rich, which breaks commands as well: a line with a line end in it cannot be pasted.
    for line in wrapped(text, console.width) if console.is_terminal else [text]:
        console.print(Text(line, style=style), soft_wrap=True)


class Bar:
    """A line of progress below everything else on a terminal, which disappears at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def update(self, what: str, how_far: str, fraction: float | None) -> None:
        """Show how far a piece of work is; with `fraction` None the end is not known."""
        if self._progress is None:
            cut = Column(no_wrap=True, overflow="ellipsis", max_width=28)
            columns = TextColumn("{task.description}", markup=False, table_column=cut), BarColumn(12)
            status = TextColumn("{task.fields[status]}", markup=False, table_column=Column(no_wrap=True))
            self._progress = Progress(*columns, status, console=self._console, transient=True)
            self._progress.add_task("", status="")
        total = None if fraction is None else 1.0
        self._progress.update(TaskID(0), description=what, status=how_far, total=total, completed=fraction or 0.0)
        self._progress.start()  # does nothing the next time

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class TerminalLog:
    """A log of lines (`Progress`) that also has a bar for `Pace`; the next line ends the bar."""

    def __init__(self, note: Callable[[str], None], bar: Bar) -> None:
        self._note = note
        self.bar = bar.update

    def __call__(self, message: str) -> None:
        self._note(message)


class BarLog:
    """A log of lines (`Progress`), each shown next to a bar until the next: for the steps on the way to a screen."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self.bar = bar.update

    def __call__(self, message: str) -> None:
        self._bar.stop()  # at its last state, which a refresh may not have shown yet
        self._bar.update(message, "", None)


class LastingStream:
    """A stream for work that outlives it: once it cannot be written (a closed terminal, a pipe without a reader, a log
    on a full disk), `lost` says why, and what is printed goes nowhere."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.lost = ""

    def write(self, text: str) -> int:
        return self._attempt(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, work: Callable[[], int | None]) -> int | None:
        with suppress(ValueError):  # closed
            try:
                return work()
            except OSError as error:
                self.lost = self.lost or os.strerror(error.errno or errno.EIO)
                to_nowhere(self._stream)
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def to_nowhere(stream: IO[str]) -> None:
    """Redirect a stream that cannot be written: Python would print an error as it flushes it at exit."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def say(text: str) -> None:
    """Print to standard error, if there is anybody who reads it; on a terminal in lines broken between words."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError, AttributeError):  # no terminal, closed, or no file at all
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            text = "\n".join(wrapped(text, columns)) if columns and is_terminal(sys.stderr) else text
        print(text, file=LastingStream(sys.stderr), flush=True)


def lasting_output() -> LastingStream | None:
    """Standard output for work that goes on when nobody can see it any more; None in a notebook, which has its own."""
    return None if in_notebook(sys.stdout) else LastingStream(unguarded(sys.stdout))  # of a console: `SafeConsole`


def lasting_display() -> "Display":
    """A display on `lasting_output`."""
    return Display(plain_console(file=lasting_output(), soft_wrap=not is_terminal(sys.stdout)))


class Display:
    """The output of a command on the terminal; plain text on standard output outside one. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        # Outside a terminal rich would wrap lines at 80 columns.
        self.console = console or plain_console(soft_wrap=not is_terminal(sys.stdout))
        self.progress: Progress | None = None
        self._task = TaskID(0)
        self._rows = 0  # printed
        self._status: Sequence[str] = ()  # of the newest step that was logged
        self._bar = Bar(self.console)
        self.log = BarLog(self._bar) if self.console.is_terminal else self.note

    @property
    def lost(self) -> str:
        """Why nobody can see the output of a lasting display any more; empty while somebody can."""
        return getattr(self.console.file, "lost", "")

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self.stop_progress()

    @property
    def room(self) -> float:
        """Rows of the terminal that are not printed on yet; infinite elsewhere."""
        return self.console.height - self._rows if self.console.is_terminal else math.inf

    def rows_of(self, text: str, indent: int = 0) -> int:
        """Rows of the terminal that a text takes, each of its lines after `indent` columns."""
        lines = wrapped(text, self.console.width - indent)
        return sum(max(1, math.ceil((indent + len(line)) / self.console.width)) for line in lines)

    def screen(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Print a title and a two-column table, a line of a value per row; without a terminal of any length."""
        rows = [(name * (n == 0), line) for name, value in rows for n, line in enumerate(value.split("\n"))]
        self._lines(title, "bold")
        if not self.console.is_terminal:
            for line in aligned(rows):
                self.print(line)
            return
        indent = max((len(name) for name, _ in rows), default=0) + 2
        for name, value in rows:
            for n, line in enumerate(wrapped(value, self.console.width - indent)):
                name_cell = f"{name if n == 0 else '':<{indent}}"
                self._rows += self.rows_of(line, indent)
                self.console.print(Text.assemble((name_cell, "dim"), line), soft_wrap=True)

    def note(self, message: str) -> None:
        """Print a line of information, dimmed."""
        self._lines(message, "dim")

    def warn(self, message: str) -> None:
        """Print a warning."""
        self._lines(f"Warning: {message}", "yellow")

    def print(self, message: str) -> None:
        """Print a plain line."""
        self._lines(message, "")

    def _lines(self, text: str, style: str) -> None:
        self._bar.stop()
        self._rows += self.rows_of(text)
        print_lines(self.console, text, style)

    def start_progress(self, total_steps: int, done: int) -> None:
        """Show the progress bar. Does nothing without a terminal."""
        self._bar.stop()
        if not self.console.is_terminal:
            return
        counted = len(f"{total_steps}/{total_steps}")
        self.progress = Progress(
            # The widest half of a status has 58 columns: `123.4 k tok/s  ends by Wed 14:32, in 31 to 39 h  139.0 GiB`.
            BarColumn(max(4, min(24, self.console.width - counted - 60))),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self.console,
            refresh_per_second=4,
        )
        self._task = self.progress.add_task("", total=total_steps, completed=done, status="first steps ...")
        self.progress.start()

    def stop_progress(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def advance(self, step: int, epoch: str) -> None:
        """Move the progress bar and the first part of its text, `epoch 1.25`, to the same step; what else it shows is
        of the newest step that was logged, and changes with `step` and `status`."""
        if self.progress is not None:
            self.progress.update(self._task, completed=step)
            if self._status:
                self._status = [epoch, *self._status[1:]]
                self.status(None)

    @property
    def has_status(self) -> bool:
        """True once a step was shown."""
        return bool(self._status)

    def status(self, text: str | None) -> None:
        """Replace the text next to the progress bar, with None by that of the newest step; shown nowhere else."""
        if self.progress is not None:
            self.progress.update(self._task, status=self._in_rows() if text is None else text)

    def _in_rows(self) -> str:
        half = len(self._status) if self.console.width >= 150 else (len(self._status) + 1) // 2
        rows = [row for row in (self._status[:half], self._status[half:]) if row]
        return "\n".join("  ".join(row) for row in rows)

    def step(self, step: int, total_steps: int, status: Sequence[str]) -> None:
        """Show the state of training at `step`, the epoch first: in a line, or in two next to a bar."""
        if self.progress is not None:
            self._status = status
            self.progress.update(self._task, completed=step, status=self._in_rows())
        else:
            self._lines(f"step {step}/{total_steps}  {'  '.join(status)}", "")


def open_missing_streams() -> None:
    """Open the null device for each standard stream that the process was started without (`>&-`, pythonw).

    Otherwise the next file that is opened gets the stream's number, and with it what other processes print.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


@contextmanager
def exit_when_output_closes() -> Iterator[None]:
    """End the program silently with exit code 1 once its output has no reader, as in `--help | head`."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in OUTPUT_CLOSED:
            raise
        to_nowhere(sys.stdout)
        to_nowhere(sys.stderr)
        raise SystemExit(1) from None
