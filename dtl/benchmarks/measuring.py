"""A row of a benchmark: two sides measured in turns, their ratio, and its goal."""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from dtl.errors import DTLError

PERCENT = "%"


class MissingPeerError(DTLError):
    """Raised for a peer that is not installed; the message has the command that installs it."""


@dataclass(frozen=True)
class Goal:
    """A bound on one value of a row: `ratio` or `ours`."""

    figure: str  # ratio | ours
    bound: float
    at_least: bool
    words: str  # as shown: ">= 3 x"

    def reached_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float) -> Goal:
    """Goal that ours is at least `bound` times as fast as the peer."""
    return Goal("ratio", bound, True, f">= {bound:g} x")


def at_most(bound: float, unit: str, figure: str = "ours") -> Goal:
    """Goal that a value in `unit` is at most `bound`."""
    shown = f"{100 * bound:g} %" if unit == PERCENT else f"{bound:g} {unit}"
    return Goal(figure, bound, False, f"<= {shown}")


@dataclass(frozen=True)
class Ratio:
    """Median, minimum and maximum of the ratios of the rounds. `unit`: x (times as fast) or %."""

    median: float
    least: float
    most: float
    unit: str = "x"


@dataclass(frozen=True)
class Row:
    """One measurement: the values of ours and the peer (medians of the rounds, in `unit`), their ratio, its goal."""

    name: str
    what: str
    unit: str = ""
    ours: float | None = None
    peer: float | None = None
    peer_name: str = ""
    ratio: Ratio | None = None
    rounds: int = 0
    goal: Goal | None = None
    note: str = ""
    skipped: str | None = None  # why nothing was measured, with the remedy

    @property
    def reached(self) -> bool | None:
        """Return True when the goal is reached; None without a goal, or when nothing was measured."""
        if self.goal is None or self.skipped is not None:
            return None
        value = self.ours if self.goal.figure == "ours" else self.ratio and self.ratio.median
        assert value is not None
        return self.goal.reached_by(value)


def skipped(row: Row, why: str) -> Row:
    """Return the row as skipped, with the reason."""
    return replace(row, skipped=why)


Side = Callable[[], Any]


def in_turns(
    ours: Side, theirs: Side, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[list[float], list[float]]:
    """Return the seconds of each round of both sides: A B, B A, A B, ... so that other load slows both alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        turns = [(ours, seconds[0]), (theirs, seconds[1])]
        for side, times in turns if number % 2 == 0 else reversed(turns):
            began = clock()
            side()
            times.append(clock() - began)
    return seconds


def compared(row: Row, seconds: tuple[Sequence[float], Sequence[float]], amount: float | None = None) -> Row:
    """Return the row with the medians of both sides, and the ratio of their speeds.

    `amount` is the work done in those seconds, for a row of speeds; without it the row is of seconds. A row whose work
    ended before the clock has moved is skipped: processor time is counted in hundredths of a second on some systems.
    """
    if min(chain(*seconds)) <= 0:
        return skipped(row, "too short for the clock of this system")
    ours, theirs = (statistics.median(side) if amount is None else amount / statistics.median(side) for side in seconds)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    return replace(row, ours=ours, peer=theirs, ratio=ratio_of(ratios), rounds=len(ratios))


def ratio_of(ratios: Sequence[float], unit: str = "x") -> Ratio:
    """Return median and range of the ratios of the rounds."""
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), unit)


def peer(module: str, install: str) -> Any:
    """Import a module that DTL itself does not need. Raises MissingPeerError when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeerError(f"install {module.partition('.')[0]}: {install}") from error
