"""The loop of a sweep: trials into processes, as many at a time as asked, until none is left or somebody says stop."""

import signal
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from dtl.base.signals import StopSignals
from dtl.errors import InterruptedRun
from dtl.run_dir.sweep_records import WELL, SweepFolder, Trial
from dtl.sweeps.config import LauncherConfig
from dtl.sweeps.process import TrialProcess

# --- the hours of a sweep -----------------------------------------------------------------------------------------
# The hours of a sweep: whether one more trial can end in time, by how long the slowest one took so far.


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


# --- the pool -----------------------------------------------------------------------------------------------------


SECONDS_BETWEEN_LOOKS = 0.1


class Source(Protocol):
    """Where trials come from: a list, or a search that learns from those that ended."""

    def next(self, running: int) -> Trial | None:
        """The next trial to run, given how many are running; None: none now, and none at all if none is running."""
        ...

    def look(self, trial: Trial) -> str | None:
        """Asked again and again while a trial runs: why it should be pruned, or None."""
        ...

    def ended(self, trial: Trial) -> None:
        """A trial has ended; its record says how."""
        ...


class ListSource:
    """Trials that are known beforehand, in their order, as many as fit the hours; each runs to its own end."""

    def __init__(self, trials: list[Trial], tell: Callable[[Trial], None], budget: Budget | None = None) -> None:
        """`tell` is told of each trial that has ended. Without a `budget` there is time for all of them."""
        self._waiting, self._tell = list(trials), tell
        self._budget = budget or Budget(None, 0.0, [])

    def next(self, running: int) -> Trial | None:
        """See `Source`."""
        return self._waiting.pop(0) if self._waiting and self._budget.allows() else None

    def look(self, trial: Trial) -> str | None:
        """None is pruned."""
        return None

    def ended(self, trial: Trial) -> None:
        """See `Source`."""
        self._budget.learn(trial)
        self._tell(trial)


def run_trials(
    sweep: SweepFolder,
    source: Source,
    settings: LauncherConfig,
    beside: list[str],
    started: Callable[[Trial], None],
    idle: Callable[[list[Trial]], None],
) -> None:
    """Run what `source` gives. `started` is told of each start; `idle` is called between looks with what runs.

    Raises InterruptedRun after Ctrl-C or SIGTERM, when every running trial has saved and ended.
    """
    running: list[TrialProcess] = []
    with StopSignals() as signals:
        try:
            while True:
                while signals.received is None and len(running) < settings.n_jobs:
                    trial = source.next(len(running))
                    if trial is None:
                        break
                    running.append(TrialProcess(sweep, trial, settings, beside))
                    started(trial)
                if not running:
                    break
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for process in list(running):
                    if process.poll():
                        running.remove(process)
                        source.ended(process.trial)
                    elif signals.received is not None:
                        process.stop("interrupted", f"the sweep was stopped ({signal.Signals(signals.received).name})")
                    elif why := source.look(process.trial):
                        process.stop("pruned", why)
                idle([process.trial for process in running])
        except BaseException:
            # A second Ctrl-C, or an error of the sweep itself: nothing may be left running.
            for process in running:
                process.kill()
            raise
    if signals.received is not None:
        raise InterruptedRun("The sweep was stopped; its trials saved their state.", signals.received)
