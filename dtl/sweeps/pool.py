"""The loop of a sweep: runs trials in processes, n_jobs at a time, until none is left or a signal stops it."""

import signal
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from dtl.base.signals import StopSignals
from dtl.errors import InterruptedRun
from dtl.run_dir.sweep_records import SUCCEEDED, SweepFolder, Trial
from dtl.sweeps.config import LauncherConfig
from dtl.sweeps.process import TrialProcess

# --- the hours of a sweep -----------------------------------------------------------------------------------------


class Budget:
    """Time limit of `hours` for all sessions of a sweep, of which `used` seconds are spent already; None = no limit.

    One more trial is allowed if it would end in time even if it took as long as the slowest one so far.
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
        """Learn from a trial that has ended how long a trial takes."""
        if trial.state in SUCCEEDED:  # a pruned or failed trial is too short to go by
            self._slowest = max(self._slowest, trial.seconds() or 0.0)

    @property
    def used(self) -> float:
        """Seconds used by all sessions."""
        return self._before + self._clock() - self._began

    def allows(self, after: int = 0) -> bool:
        """Return True if a trial that starts now, followed by `after` rounds of trials, would end in time. Until the
        first trial has finished its duration is unknown: then True as long as any time is left."""
        if self._limit is None:
            return True
        left = self._limit - self.used
        return left > 0 and self._slowest * (1 + after) <= left


# --- the pool -----------------------------------------------------------------------------------------------------

SECONDS_BETWEEN_POLLS = 0.1


class Source(Protocol):
    """Source of trials: a list, or a search that learns from the trials that ended."""

    def next(self, running: int) -> Trial | None:
        """Return the next trial, given how many are running; None: none now, and none at all if none is running."""
        ...

    def look(self, trial: Trial) -> str | None:
        """Return why a running trial should be pruned, or None. Called at each poll."""
        ...

    def ended(self, trial: Trial) -> None:
        """Take note of a trial that has ended; its record has the outcome."""
        ...


class ListSource:
    """Trials that are known beforehand, in order, as many as fit the budget; none is pruned."""

    def __init__(self, trials: list[Trial], on_end: Callable[[Trial], None], budget: Budget | None = None) -> None:
        """`on_end` is called with each trial that has ended. Without a `budget` there is no time limit."""
        self._waiting, self._on_end = list(trials), on_end
        self._budget = budget or Budget(None, 0.0, [])

    def next(self, running: int) -> Trial | None:
        """See `Source`."""
        return self._waiting.pop(0) if self._waiting and self._budget.allows() else None

    def look(self, trial: Trial) -> str | None:
        """Return None: no trial of a list is pruned."""
        return None

    def ended(self, trial: Trial) -> None:
        """See `Source`."""
        self._budget.learn(trial)
        self._on_end(trial)


def run_trials(
    sweep: SweepFolder,
    source: Source,
    settings: LauncherConfig,
    shared_arguments: list[str],
    started: Callable[[Trial], None],
    idle: Callable[[list[Trial]], None],
) -> None:
    """Run the trials of `source`. `started` is called at each start, `idle` with the running trials after each poll.

    Raises InterruptedRun after Ctrl-C or SIGTERM, once every running trial has saved and ended.
    """
    running: list[TrialProcess] = []
    with StopSignals() as signals:
        try:
            while True:
                while signals.received is None and len(running) < settings.n_jobs:
                    trial = source.next(len(running))
                    if trial is None:
                        break
                    running.append(TrialProcess(sweep, trial, settings, shared_arguments))
                    started(trial)
                if not running:
                    break
                time.sleep(SECONDS_BETWEEN_POLLS)
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
            # A second Ctrl-C, or an error of the sweep itself: no process may be left running.
            for process in running:
                process.kill()
            raise
    if signals.received is not None:
        raise InterruptedRun("The sweep was stopped; its trials saved their state.", signals.received)
