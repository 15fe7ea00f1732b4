"""Progress messages of long work, at most one every few seconds."""

import time
from collections.abc import Callable

from dtl.base.units import in_minutes

SECONDS_BETWEEN_REPORTS = 5.0

Progress = Callable[[str], None]


class Pace:
    """Logs how far a piece of work is, at most every `SECONDS_BETWEEN_REPORTS`."""

    def __init__(self, what: str, log: Progress) -> None:
        self.what = what
        self.log = log
        self._began = self._last_report = time.monotonic()

    def report(self, how_far: str, fraction: float | None = None) -> None:
        """Log the progress if a message is due; with the `fraction` that is done, the time left too."""
        now = time.monotonic()
        if now - self._last_report < SECONDS_BETWEEN_REPORTS:
            return
        self._last_report = now
        left = ""
        if fraction:
            left = f", {fraction:.0%}, {in_minutes((now - self._began) * (1 - fraction) / fraction)} left"
        self.log(f"{self.what}, {how_far}{left}")
