"""What chat and generate do alike: introduce the model, then take line after line. Imports no torch."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from dtl.terminal.input import InputLine, PipedInput, TooLong, is_interactive
from dtl.terminal.screen import Screen

if TYPE_CHECKING:
    from dtl.terminal.loading import LoadedModel

# --- Ctrl-C -------------------------------------------------------------------------------------------------------
# Ctrl-C while a model writes: stops the text, not the program.


class Leaving(KeyboardInterrupt):
    """Ctrl-C for the second time within one text."""


class StopOnInterrupt:
    """A context manager around one text: Ctrl-C sets `asked`, which the loop over its pieces reads.

    An exception would surface somewhere inside torch. The second Ctrl-C is one all the same, `Leaving`: it is for
    a model that takes too long to come to its next piece. Outside the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self.asked = False
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._is_main:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_main:
            # None: a handler that was not set by Python, and that Python cannot set again.
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._before is None else self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise Leaving
        self.asked = True


# --- lines of a terminal or a pipe --------------------------------------------------------------------------------


def open_input(label: str, most_characters: int, history: Path | None = None) -> InputLine:
    """Lines of a terminal, shown after `label` and remembered in the file `history` (None: nowhere), or of a pipe.

    `most_characters` bounds a line: more of it is never kept in memory.
    """
    if is_interactive():
        from dtl.terminal.typed_input import TerminalInput  # prompt_toolkit: a pipe needs none of it

        return TerminalInput(label, most_characters, history)
    if sys.stdin is None:  # closed, as some services start programs
        raise EOFError
    is_typed = sys.stdin.isatty() and sys.stderr.isatty()  # and standard output goes to a file
    return PipedInput(sys.stdin.buffer, most_characters, (lambda: _show(label)) if is_typed else None)


def _show(label: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{label}: ")
        sys.stderr.flush()


# --- the dialogue -------------------------------------------------------------------------------------------------


def introduce(model: "LoadedModel", screen: Screen) -> None:
    """The model's name and run."""
    name, *more = model.lines()
    screen.say(f"DTL {name}", "bold")
    for text in more:
        screen.note(text)


def take_lines(line: InputLine, screen: Screen, take: Callable[[str | TooLong], None]) -> None:
    """Give each line to `take`, until the input ends or `take` raises EOFError. Ctrl-C where somebody types is for
    the line alone; elsewhere, and twice within one answer (`Leaving`), it is KeyboardInterrupt."""
    while True:
        try:
            if note := line.take_note():
                screen.note(note)
            take(line.read())
        except EOFError:
            return
        except Leaving:
            raise
        except KeyboardInterrupt:
            if not line.is_terminal:
                raise
            screen.note("Ctrl-D or quit leaves.")
