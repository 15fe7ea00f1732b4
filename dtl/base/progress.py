"""One source, read, cleaned, freed of duplicates and split, document by document into a writer."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


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
            seconds = round((now - self._began) * (1 - share) / share)
            left = f", {share:.0%}, {seconds // 60}:{seconds % 60:02d} left"
        self.say(f"{self.what}, {how_far}{left}")
