"""The terminal's keyboard while a program has it: nothing that is typed ahead is echoed into an answer, or lost."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from dtl.terminal.input_line import is_interactive


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
