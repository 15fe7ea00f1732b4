"""Progress of long work: a bar where the log is a terminal, else a message every few seconds."""

import time
from collections.abc import Callable

from dtl.base.units import in_minutes

SECONDS_BETWEEN_REPORTS = 5.0
SECONDS_BETWEEN_UPDATES = 0.1  # of a bar

Progress = Callable[[str], None]  # with a method `bar` in a terminal: see `dtl.base.display.TerminalLog`


class Pace:
    """Logs how far a piece of work is, at most every `SECONDS_BETWEEN_REPORTS`; in a terminal as a bar."""

    def __init__(self, what: str, log: Progress) -> None:
        self.what = what
        self.log = log
        self._bar: Callable[[str, str, float | None], None] | None = getattr(log, "bar", None)
        self._began = self._last_report = time.monotonic()

    def report(self, how_far: str, fraction: float | None = None) -> None:
        """Log the progress if a message is due; with the `fraction` that is done, the time left too."""
        if fraction is not None and fraction >= 1:
            return
        now = time.monotonic()
        if now - self._last_report < (SECONDS_BETWEEN_UPDATES if self._bar else SECONDS_BETWEEN_REPORTS):
            return
        self._last_report = now
        left = ""
        if fraction:
            left = f", {fraction:.0%}, {in_minutes((now - self._began) * (1 - fraction) / fraction)} left"
        if self._bar:
            self._bar(self.what, f"{how_far}{left}", fraction)
        else:
            self.log(f"{self.what}, {how_far}{left}")

    def count(self, done: int, total: int) -> None:
        """Log that `done` of `total` are done, if a message is due."""
        self.report(f"{done:,} of {total:,}", done / max(total, 1))
