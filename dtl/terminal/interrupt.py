"""Ctrl-C while a model writes: stops the text, not the program."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


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
