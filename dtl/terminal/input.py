"""Lines of input: the protocol, the lines of a pipe, and the terminal's keyboard while a model generates."""

import codecs
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import platformdirs

from dtl.base.signals import ending_by_exception

CHUNK = 2**20  # bytes per read of a line that is dropped


@dataclass(frozen=True)
class TooLong:
    """Stands for a line that was dropped because no text of `n_characters` fits."""

    n_characters: int


class InputLine(Protocol):
    """A source of lines of text."""

    is_terminal: bool  # typed lines: Ctrl-C at the prompt discards the line, not the program

    def read(self) -> str | TooLong:
        """Return the next line, without its line end. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""
        ...

    def take_note(self) -> str | None:
        """Return a message about the input itself, such as a history that cannot be written, once."""
        ...


def is_interactive() -> bool:
    """Return True when standard input and output are both a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def history_file(given: str | None, command: str) -> Path:
    """Return the history file of a command: the given one, or one in the user's state folder (platformdirs)."""
    if given is not None:
        return Path(os.path.expanduser(given))
    return platformdirs.user_state_path("dtl", appauthor=False) / f"{command}_history"


class PipedInput:
    """Lines of UTF-8 from a stream of bytes; invalid bytes become U+FFFD."""

    is_terminal = False

    def __init__(self, stream: BinaryIO, max_characters: int, before_each: Callable[[], None] | None = None) -> None:
        self._stream = stream
        self._max_characters = max_characters
        self._before_each = before_each or (lambda: None)

    def read(self) -> str | TooLong:
        """See `InputLine.read`."""
        self._before_each()
        max_bytes = 4 * self._max_characters + 2  # UTF-8 has up to four bytes a character; a line end has up to two
        raw = self._stream.readline(max_bytes)
        if not raw:
            raise EOFError
        if raw.endswith(b"\n") or len(raw) < max_bytes:
            # U+FEFF: the byte order mark with which Windows programs begin a text.
            line = raw.decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r\n")
            return line if len(line) <= self._max_characters else TooLong(len(line))
        return TooLong(self._drop_rest(raw))

    def _drop_rest(self, raw: bytes) -> int:
        """Read the rest of a line that begins with `raw`, and return its number of characters."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        n_characters = n_ends = 0  # carriage returns count only when more of the line follows them
        while raw:
            body = raw.rstrip(b"\r\n")
            if body:
                n_characters += n_ends + len(decoder.decode(body))
                n_ends = 0
            n_ends += raw.count(b"\r", len(body))
            raw = b"" if raw.endswith(b"\n") else self._stream.readline(CHUNK)
        return n_characters + len(decoder.decode(b"", final=True))

    def take_note(self) -> str | None:
        """See `InputLine.take_note`."""
        return None


# --- the keyboard while a model generates -------------------------------------------------------------------------


@contextlib.contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Context manager in which typed keys are neither echoed into an answer nor lost; Ctrl-C still signals.

    The terminal's mode is restored at the end, also after SIGTERM and SIGHUP, which raise SystemExit here. Does nothing
    without a terminal, and on Windows. In canonical mode the kernel would keep only 4,095 characters of what is typed
    ahead, and a Ctrl-D among them would arrive as a NUL.
    """
    if os.name == "nt" or not is_interactive():
        yield
        return
    import termios  # does not exist on Windows

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    # The exit code that a shell reports for a signal, and `finally` clauses still run.
    with ending_by_exception(lambda number: SystemExit(128 + number)):
        try:
            termios.tcsetattr(descriptor, termios.TCSANOW, quiet)  # TCSAFLUSH would discard what was typed ahead
            yield
        finally:
            with contextlib.suppress(termios.error):  # the terminal has been closed
                termios.tcsetattr(descriptor, termios.TCSANOW, before)
