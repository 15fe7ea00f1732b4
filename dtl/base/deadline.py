"""Work with a deadline, in a daemon thread: DNS, drivers, servers and dead disks have no timeout of their own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


def begin(work: Callable[[], Result]) -> Future[Result]:
    """Run `work` in a daemon thread, which does not delay the end of the process; return its Future."""
    outcome: Future[Result] = Future()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # a plugin may call sys.exit; an exception would end in the thread
            outcome.set_exception(error)

    threading.Thread(target=do, name="deadline", daemon=True).start()
    return outcome


def within(seconds: float, work: Callable[[], Result], too_late: Callable[[Result], Any] | None = None) -> Result:
    """Run `work` in a daemon thread and return its result, or raise what it raised.

    Raises TimeoutError after `seconds`; a later result is passed to `too_late`, in that thread.
    """
    outcome = begin(work)
    try:
        return outcome.result(timeout=seconds)
    except BaseException:  # Ctrl-C as well: nothing else would close what `work` opens after it
        if too_late is not None:
            outcome.add_done_callback(lambda late: None if late.exception() else too_late(late.result()))
        raise
