"""What a person asks, line by line: typed in a terminal with history and editing, or piped in."""

import codecs
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Protocol

import platformdirs

CHUNK = 2**20  # bytes read at once of a line that is dropped


@dataclass(frozen=True)
class TooLong:
    """A line of so many characters was dropped: more than can be of use."""

    n_characters: int


class InputLine(Protocol):
    """Lines of text, as long as there are any."""

    is_terminal: bool  # whether it is typed: Ctrl-C at the prompt is for the line, not for the program

    def read(self) -> str | TooLong:
        """The next line, without its end. Raises EOFError at the end of input, KeyboardInterrupt for Ctrl-C."""
        ...

    def take_note(self) -> str | None:
        """What is to be told about the input itself, once."""
        ...


def is_interactive() -> bool:
    """Whether a person types and looks."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def history_file(given: str | None, command: str) -> Path:
    """Where a command remembers what was typed: the file given, or one in the user's own folder for such things."""
    if given is not None:
        return Path(os.path.expanduser(given))
    return platformdirs.user_state_path("dtl", appauthor=False) / f"{command}_history"


class PipedInput:
    """Lines of UTF-8 from a stream of bytes; what is no UTF-8 becomes U+FFFD."""

    is_terminal = False

    def __init__(self, stream: BinaryIO, most_characters: int, before_each: Callable[[], None] | None = None) -> None:
        self._stream = stream
        self._most = most_characters
        self._before_each = before_each or (lambda: None)

    def read(self) -> str | TooLong:
        """See `InputLine.read`."""
        self._before_each()
        most_bytes = 4 * self._most + 2  # a character takes up to four, the line's end up to two
        raw = self._stream.readline(most_bytes)
        if not raw:
            raise EOFError
        if raw.endswith(b"\n") or len(raw) < most_bytes:
            line = raw.decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r\n")
            return line if len(line) <= self._most else TooLong(len(line))
        return TooLong(self._drop_rest(raw))

    def _drop_rest(self, raw: bytes) -> int:
        """Characters in a line that begins with `raw`, and goes on."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        n_characters = n_ends = 0  # carriage returns count when more of the line follows them
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


# --- the keyboard while a model writes ----------------------------------------------------------------------------
# The terminal's keyboard while a program has it: nothing that is typed ahead is echoed into an answer, or lost.


@contextlib.contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Keys wait, unseen, until somebody reads them; Ctrl-C still signals. The terminal is left as it was found, also
    when the program is told to end (SIGTERM, SIGHUP: SystemExit). Does nothing where nobody types and looks, and on
    Windows.

    In the usual mode the kernel would keep 4,095 characters of what is typed, and turn Ctrl-D into a NUL.
    """
    if os.name == "nt" or not is_interactive():
        yield
        return
    import termios  # Windows has none

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    with _ending_by_exception():
        try:
            termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
            yield
        finally:
            with contextlib.suppress(termios.error):  # the terminal was closed
                termios.tcsetattr(descriptor, termios.TCSANOW, before)


@contextlib.contextmanager
def _ending_by_exception() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, where they would end the process on the spot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
