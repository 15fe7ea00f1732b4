"""The progress of long work, told now and then."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


from dtl.base.units import in_minutes

SECONDS_BETWEEN_REPORTS = 5.0

Progress = Callable[[str], None]


class Pace:
    """Says how far something is, now and then."""

    def __init__(self, what: str, say: Progress) -> None:
        self.what = what
        self.say = say
        self._began = self._told = time.monotonic()

    def tell(self, how_far: str, share: float | None = None) -> None:
        """`share` of it is done: then the time that is left is told too."""
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_REPORTS:
            return
        self._told = now
        left = ""
        if share:
            left = f", {share:.0%}, {in_minutes((now - self._began) * (1 - share) / share)} left"
        self.say(f"{self.what}, {how_far}{left}")
