"""The hours of a sweep: whether one more trial can end in time, by how long the slowest one took so far."""

import time
from collections.abc import Callable, Iterable

from dtl.run_dir.sweep_records import WELL, Trial


class Budget:
    """`hours` for all sessions of a sweep, of which `used` seconds are gone already; None = no limit.

    `after` is how many trials, one after the other, must still fit behind the next one.
    """

    def __init__(
        self, hours: float | None, used: float, trials: Iterable[Trial], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = None if hours is None else 3600 * hours
        self._before, self._clock, self._began = used, clock, clock()
        self._slowest = 0.0
        for trial in trials:
            self.learn(trial)

    def learn(self, trial: Trial) -> None:
        """A trial has ended: one that went through says how long a trial takes."""
        if trial.state in WELL:
            self._slowest = max(self._slowest, trial.seconds() or 0.0)

    @property
    def used(self) -> float:
        """Seconds, of all sessions."""
        return self._before + self._clock() - self._began

    def allows(self, after: int = 0) -> bool:
        """Whether a trial that starts now, and `after` rounds of others behind it, end in time. Before the first
        trial is through nobody knows how long one takes: then as long as there is time at all."""
        if self._limit is None:
            return True
        left = self._limit - self.used
        return left > 0 and self._slowest * (1 + after) <= left
