"""Ctrl-C, SIGTERM and SIGHUP: as a flag, read between two micro-batches, or as an exception. Imports no torch."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

HANG_UP = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has no such signal
STOP = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANG_UP) if number is not None)


class Stopped(KeyboardInterrupt):
    """A signal that ends the program where it is, SIGTERM as well as Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def signal_of(stop: KeyboardInterrupt) -> int:
    """Return the signal that raised this."""
    return stop.number if isinstance(stop, Stopped) else signal.SIGINT


@contextmanager
def ending_by_exception(error: Callable[[int], BaseException] = Stopped) -> Iterator[None]:
    """Context manager in which SIGTERM and SIGHUP raise an `error` made of their number, as Ctrl-C raises
    KeyboardInterrupt: what has begun is cleaned up. A handler of somebody else stays, and so does an ignored SIGHUP
    (nohup)."""

    def end(number: int, _frame: object) -> None:
        raise error(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in STOP if main and signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Context manager in which further signals do nothing: for what is cleaned up after the first."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP if main}
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: Mapping[Any, Any]) -> None:
    for number, handler in handlers.items():
        # None: a handler that was not installed from Python, which Python cannot restore.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopSignals:
    """Signal handlers: the first SIGINT, SIGTERM or SIGHUP sets `received`, which the loop reads between micro-batches;
    a second SIGINT or SIGTERM raises `Stopped`. SIGHUP comes twice from many terminals, and is ignored under nohup.

    A batch system's warning counts as well: SIGUSR1 or SIGUSR2, where a handler is already installed (submitit requeues
    the job and exits). The code that catches InterruptedRun raises the signal again for that handler.

    Handlers only set a flag: an exception raised inside a save surfaces as whatever the library makes of it.
    Outside the main thread Python allows no handlers, and none are set.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (*STOP, *_warnings()):
                if number == HANG_UP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self._before)

    def _handle(self, number: int, _frame: object) -> None:
        if self.received in STOP and number in STOP:
            if number == HANG_UP:
                return
            raise Stopped(number)
        # SLURM may send SIGTERM in addition to its warning: the warning counts.
        if self.received is None or number not in STOP:
            self.received = number
        # Not print: a signal during a print would enter the stream a second time, which raises RuntimeError.
        with contextlib.suppress(OSError):
            os.write(2, b"\nStopping after the running micro-batch and saving; press again to stop at once.\n")


def _warnings() -> list[signal.Signals]:
    numbers = [getattr(signal, name, None) for name in ("SIGUSR1", "SIGUSR2")]
    return [number for number in numbers if number is not None and callable(signal.getsignal(number))]


def end_with_parent(parent: int, every: float = 1.0) -> None:
    """Let this process, a child that keeps nothing, end within a second or so of its parent, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(1)

    if os.name == "posix":  # elsewhere a process keeps the number of a parent that has gone
        threading.Thread(target=watch, daemon=True).start()
