"""Ctrl-C and SIGTERM as a flag: what works between two steps ends in order. Imports no torch."""

import contextlib
import os
import signal
import threading
from typing import Any

_STOP = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """SIGINT or SIGTERM once sets `received`, which the loop reads between steps; twice stops at once.

    The warning of a batch system is taken as well: SIGUSR1 or SIGUSR2, where somebody handles it already (submitit puts
    the job into the queue again and exits). Whoever catches InterruptedRun raises it once more, for that handler.

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
            # None: a handler that was not set by Python, and that Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.received in _STOP and number in _STOP:
            raise KeyboardInterrupt
        if self.received is None or number not in _STOP:  # SLURM may send SIGTERM beside its warning: that counts
            self.received = number
        # Not print: a signal in the middle of a print would enter the stream twice, which Python refuses.
        with contextlib.suppress(OSError):
            os.write(2, b"\nStopping after this step and saving; once more to stop at once.\n")


def _warnings() -> list[signal.Signals]:
    numbers = [getattr(signal, name, None) for name in ("SIGUSR1", "SIGUSR2")]
    return [number for number in numbers if number is not None and callable(signal.getsignal(number))]
