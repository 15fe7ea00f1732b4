"""The dialogue that chat and generate share: Ctrl-C, the source of lines, the loop over them. Imports no torch."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Self

from dtl.terminal.input import InputLine, PipedInput, TooLong, is_interactive
from dtl.terminal.streams import Screen

if TYPE_CHECKING:
    from dtl.terminal.loading import LoadedModel

# --- Ctrl-C -------------------------------------------------------------------------------------------------------


class Leaving(KeyboardInterrupt):
    """Raised by the second Ctrl-C within one text: the program ends."""


class StopOnInterrupt:
    """Context manager around one text: Ctrl-C sets `asked`, which the loop over the text's pieces reads.

    An exception at the first Ctrl-C would surface inside a call of torch. The second raises `Leaving`, for a model
    that takes too long to reach its next piece. Outside the main thread Python allows no signal handler.
    """

    def __init__(self) -> None:
        self.asked = False
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._is_main:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_main:
            # None: the former handler was not set by Python, which cannot restore it.
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._before is None else self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise Leaving
        self.asked = True


# --- lines of a terminal or a pipe --------------------------------------------------------------------------------


def open_input(label: str, max_characters: int, history: Path | None = None) -> InputLine:
    """Return the lines of a terminal, after the prompt `label` and with the history file `history`, or of a pipe.

    `max_characters` bounds a line: no more of it is held in memory. Raises EOFError when standard input is closed.
    """
    if is_interactive():
        from dtl.terminal.typed_input import TerminalInput  # imports prompt_toolkit, which a pipe does not need

        return TerminalInput(label, max_characters, history)
    if sys.stdin is None:  # closed, as when some service managers start a program
        raise EOFError
    is_typed = sys.stdin.isatty() and sys.stderr.isatty()  # standard output is a file: prompts go to stderr
    return PipedInput(sys.stdin.buffer, max_characters, (lambda: _show(label)) if is_typed else None)


def _show(label: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{label}: ")
        sys.stderr.flush()


# --- the dialogue -------------------------------------------------------------------------------------------------


def introduce(model: "LoadedModel", screen: Screen) -> None:
    """Show the model's name and run."""
    name, *more = model.lines()
    screen.print(f"DTL {name}", "bold")
    for text in more:
        screen.note(text)


def take_lines(line: InputLine, screen: Screen, take: Callable[[str | TooLong], None]) -> None:
    """Pass each line to `take`, until the input ends or `take` raises EOFError.

    Ctrl-C at the prompt of a terminal discards the line. Raises KeyboardInterrupt for Ctrl-C elsewhere, `Leaving` for
    the second Ctrl-C within one answer.
    """
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
            screen.note("To quit: Ctrl-D or quit.")
