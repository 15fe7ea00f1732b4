"""One row of a benchmark: two sides that take turns, their ratio, and whether a goal is reached."""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dtl.errors import DTLError

PERCENT = "%"


class MissingPeerError(DTLError):
    """What a row is measured with is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Goal:
    """A bound on one figure of a row: its `ratio`, or `ours` alone."""

    figure: str
    bound: float
    at_least: bool
    words: str  # for people: ">= 3 x"

    def reached_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float) -> Goal:
    """Ours must be so many times as fast as the peer."""
    return Goal("ratio", bound, True, f">= {bound:g} x")


def at_most(bound: float, unit: str, figure: str = "ours") -> Goal:
    """A figure in its unit must not exceed the bound."""
    shown = f"{100 * bound:g} %" if unit == PERCENT else f"{bound:g} {unit}"
    return Goal(figure, bound, False, f"<= {shown}")


@dataclass(frozen=True)
class Ratio:
    """The ratio of the rounds: their median, the smallest and the largest. `unit`: x (times as fast) or %."""

    median: float
    least: float
    most: float
    unit: str = "x"


@dataclass(frozen=True)
class Row:
    """What was measured, ours and the peer's (medians of the rounds, in `unit`), and what came of it."""

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
    skipped: str | None = None  # why nothing was measured, and what to do about it

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without a goal, or when nothing was measured."""
        if self.goal is None or self.skipped is not None:
            return None
        value = self.ours if self.goal.figure == "ours" else self.ratio and self.ratio.median
        assert value is not None
        return self.goal.reached_by(value)


def skipped(row: Row, why: str) -> Row:
    """The same row, with nothing measured."""
    return replace(row, skipped=why)


Side = Callable[[], Any]


def in_turns(
    ours: Side, theirs: Side, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[list[float], list[float]]:
    """Seconds of each round, of both: A B, B A, A B, ... What slows the machine slows both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        turns = [(ours, seconds[0]), (theirs, seconds[1])]
        for side, kept in turns if number % 2 == 0 else reversed(turns):
            began = clock()
            side()
            kept.append(clock() - began)
    return seconds


def compared(row: Row, seconds: tuple[Sequence[float], Sequence[float]], amount: float | None = None) -> Row:
    """The row with both sides' medians, and how many times as fast ours is.

    `amount`: how much of the row's unit was done in those seconds, for a speed; without it the row is of the seconds.
    """
    ours, theirs = (statistics.median(side) if amount is None else amount / statistics.median(side) for side in seconds)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    return replace(row, ours=ours, peer=theirs, ratio=ratio_of(ratios), rounds=len(ratios))


def ratio_of(ratios: Sequence[float], unit: str = "x") -> Ratio:
    """Median and range of the rounds' ratios."""
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), unit)


def peer(module: str, install: str) -> Any:
    """A module that DTL itself does not need. Raises MissingPeerError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeerError(f"install {module.partition('.')[0]}: {install}") from error
