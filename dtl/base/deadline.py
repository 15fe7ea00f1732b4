"""Work that must not hold its caller up: a name look-up, a driver, a server or a dead disk knows no timeout."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


def begin(work: Callable[[], Result]) -> Future[Result]:
    """Run `work` in a daemon thread, which does not hold the process back at its end; its outcome, to be waited for."""
    outcome: Future[Result] = Future()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # a plugin may call sys.exit; a thread has nobody to raise to
            outcome.set_exception(error)

    threading.Thread(target=do, name="deadline", daemon=True).start()
    return outcome


def within(seconds: float, work: Callable[[], Result], too_late: Callable[[Result], Any] | None = None) -> Result:
    """Run `work` in a daemon thread and return its result, or raise what it raised.

    Raises TimeoutError after `seconds`; a later result is given to `too_late`, in that thread.
    """
    outcome = begin(work)
    try:
        return outcome.result(timeout=seconds)
    except BaseException:  # Ctrl-C as well: what is opened afterwards has nobody else to close it
        if too_late is not None:
            outcome.add_done_callback(lambda late: None if late.exception() else too_late(late.result()))
        raise
