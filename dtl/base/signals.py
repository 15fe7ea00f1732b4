"""Ctrl-C and SIGTERM as a flag, read between two micro-batches. Imports no torch."""

import contextlib
import os
import signal
import threading
from typing import Any

_STOP = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Signal handlers: the first SIGINT or SIGTERM sets `received`, which the loop reads between micro-batches; the
    second raises KeyboardInterrupt.

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
            for number in (*_STOP, *_warnings()):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not installed from Python, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.received in _STOP and number in _STOP:
            raise KeyboardInterrupt
        # SLURM may send SIGTERM in addition to its warning: the warning counts.
        if self.received is None or number not in _STOP:
            self.received = number
        # Not print: a signal during a print would enter the stream a second time, which raises RuntimeError.
        with contextlib.suppress(OSError):
            os.write(2, b"\nStopping after the running micro-batch and saving; press again to stop at once.\n")


def _warnings() -> list[signal.Signals]:
    numbers = [getattr(signal, name, None) for name in ("SIGUSR1", "SIGUSR2")]
    return [number for number in numbers if number is not None and callable(signal.getsignal(number))]
