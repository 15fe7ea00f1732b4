"""Where a conversation is shown: answers on one stream, all that is said about them on another.

In a terminal both are the same. In a pipe the answers alone go to standard output.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from dtl.base.safe_text import visible


class Screen:
    """Everything that is written here is made safe first. A character that a stream cannot encode becomes `?`."""

    def __init__(self, answers: TextIO, notes: TextIO, labelled: bool) -> None:
        """`labelled` writes who speaks before each answer."""
        for stream in (answers, notes):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
        self.answers = answers
        self.labelled = labelled
        self.console = Console(file=notes, highlight=False, markup=False, emoji=False, soft_wrap=not notes.isatty())

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it."""
        return self.console.is_terminal

    def label(self, who: str, style: str) -> None:
        """The beginning of a line that somebody says."""
        if self.labelled:
            self.console.print(Text(f"{visible(who)}: ", style=style), end="")
            self.console.file.flush()

    def piece(self, text: str) -> None:
        """More of an answer, at once."""
        # Not by rich: it would fill each piece into lines as if it stood alone.
        self.answers.write(visible(text))
        self.answers.flush()

    def note(self, text: str) -> None:
        """A line about what happens, not to be noticed much."""
        self._line(text, "dim")

    def say(self, text: str, style: str = "") -> None:
        """A plain line, or several."""
        self._line(text, style)

    def complain(self, text: str) -> None:
        """A line about what was not done, and why."""
        self._line(text, "yellow")

    def clear(self) -> None:
        """An empty screen, if it is one."""
        self.console.clear()

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """A line that is there while something takes long; only in a terminal."""
        if not self.is_terminal:
            yield
            return
        self.console.print(Text(visible(text), style="dim"), end="\r")
        try:
            yield
        finally:
            self.console.control(Control((ControlType.ERASE_IN_LINE, 2)))

    def can_show(self, text: str) -> bool:
        """Whether the stream of notes can encode it."""
        try:
            text.encode(getattr(self.console.file, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            return False
        return True

    def _line(self, text: str, style: str) -> None:
        self.console.print(Text(visible(text), style=style))


def open_screen(all_in_one: bool) -> Screen:
    """All of a conversation on standard output, or (in a pipe) the answers there and the rest on standard error."""
    return Screen(sys.stdout, sys.stdout if all_in_one else sys.stderr, labelled=all_in_one)
