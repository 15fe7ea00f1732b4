"""The screen of a conversation: answers on one stream, notes and warnings on another.

In a terminal both are standard output. In a pipe only the answers go to standard output.
"""

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import TextIO

from rich.cells import cell_len
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from dtl.base.display import Bar, SafeConsole, TerminalLog, print_lines, wrapped
from dtl.base.safe_text import visible


class Screen:
    """Two streams, made safe to print: control characters are shown, characters that cannot be encoded become `?`."""

    def __init__(self, answers: TextIO, notes: TextIO, labelled: bool) -> None:
        """With `labelled`, the speaker's name is written before each line."""
        for stream in (answers, notes):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
        self.answers = answers
        self.labelled = labelled
        self.console = SafeConsole(file=notes, soft_wrap=not notes.isatty())  # in a pipe a note is one line
        self._bar = Bar(self.console)
        self.log = TerminalLog(self.note, self._bar) if self.console.is_terminal else self.note

    @property
    def is_terminal(self) -> bool:
        """Return True when the stream of notes is a terminal."""
        return self.console.is_terminal

    def label(self, who: str, style: str) -> None:
        """Begin a line with its speaker."""
        if self.labelled:
            self.console.print(Text(f"{who}: ", style=style), end="")
            self.console.file.flush()

    def piece(self, text: str) -> None:
        """Write a piece of an answer, unbuffered."""
        self._bar.stop()
        # Not through rich, which would wrap each piece as if it began at the left margin.
        self.answers.write(visible(text))
        self.answers.flush()

    def line(self, text: str) -> None:
        """Write a line of an answer; on a terminal it is wrapped between words."""
        for line in wrapped(text, self.console.width) if self.answers.isatty() else [text]:
            self.piece(f"{line}\n")

    def note(self, text: str) -> None:
        """Write a dimmed line about progress."""
        self._line(text, "dim")

    def print(self, text: str, style: str = "") -> None:
        """Write a plain line, or several."""
        self._line(text, style)

    def warn(self, text: str) -> None:
        """Write a yellow line: what was not done, and why."""
        self._line(text, "yellow")

    def flow(self, column: int = 0) -> "Flow":
        """Return a text that is to be written in pieces, after `column` columns of its first line."""
        return Flow(self, column, self.console.width if self.answers.isatty() else None)

    def rows_of(self, text: str) -> int:
        """Rows of a terminal that an answer takes."""
        width = self.console.width
        return sum(max(1, math.ceil(len(line) / width)) for line in wrapped(text, width))

    def clear(self) -> None:
        """Clear the screen of a terminal."""
        self.console.clear()

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Context manager that shows a line while something takes long; only in a terminal."""
        if not self.is_terminal:
            yield
            return
        self.console.print(Text(text, style="dim"), end="")
        self.console.control(Control(ControlType.CARRIAGE_RETURN))
        try:
            yield
        finally:
            self.console.control(Control((ControlType.ERASE_IN_LINE, 2)))

    def can_show(self, text: str) -> bool:
        """Return True when the stream of notes can encode the text."""
        try:
            text.encode(getattr(self.console.file, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            return False
        return True

    def _line(self, text: str, style: str) -> None:
        self._bar.stop()
        print_lines(self.console, visible(text), style)


class Flow:
    """A text that is written while it is generated: on a terminal broken between words, elsewhere as it is.

    On a terminal the last word is held back until it is complete: whether it fits the line is only known then.
    """

    def __init__(self, screen: Screen, column: int, width: int | None) -> None:
        self._screen = screen
        self._column = column
        self._width = width
        self._space = self._word = ""  # held back

    def write(self, piece: str) -> None:
        """Write a piece of the text."""
        if self._width is None:
            self._screen.piece(piece)
        elif text := "".join(map(self._take, visible(piece))):
            self._screen.piece(text)

    def end(self) -> None:
        """Write what is held back, and end the line."""
        self._screen.piece(f"{self._release()}\n")

    def _take(self, character: str) -> str:
        """Return what can be written now that this character follows."""
        if character == "\n":
            text, self._column = f"{self._release()}\n", 0
            return text
        if character.isspace():
            text = self._release() if self._word else ""
            self._space += character
            return text
        # Chinese and Japanese have no spaces: a line may end after each character, which is two columns wide.
        before = self._release() if self._word and cell_len(character) > 1 else ""
        self._word += character
        is_complete = cell_len(character) > 1 or cell_len(self._word) >= (self._width or 0)
        return before + (self._release() if is_complete else "")

    def _release(self) -> str:
        space, word, self._space, self._word = self._space, self._word, "", ""
        columns = cell_len(space.expandtabs()) + cell_len(word)
        if word and self._column and self._column + columns > (self._width or 0):
            self._column = cell_len(word)
            return f"\n{word}"
        self._column += columns
        return space + word


class BlankLines:
    """Shortens several blank lines in a row to one, in a text that comes in pieces: a model may write nothing else."""

    def __init__(self, at_start: bool = False) -> None:
        """With `at_start` there is none at the start of the text either."""
        self._line_ends = 2 if at_start else 0  # in the white space at the end of the text so far

    def __call__(self, piece: str) -> str:
        kept = ""
        for character in piece:
            if character == "\n":
                self._line_ends += 1
            elif not character.isspace():
                self._line_ends = 0
            if character != "\n" or self._line_ends <= 2:
                kept += character
        return kept


def open_screen(all_in_one: bool) -> Screen:
    """Return a screen on standard output, or (in a pipe) with the notes on standard error."""
    return Screen(sys.stdout, sys.stdout if all_in_one else sys.stderr, labelled=all_in_one)
