"""What a run still has to do, and how long that takes: from the seconds of what it has done. Reads no clock.

Imports no torch, which the table of a sweep does without.
"""

import itertools
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from dtl.config import RunConfig
from dtl.training.config import TrainerConfig

if TYPE_CHECKING:
    from dtl.data.prepare import PreparedData
    from dtl.runner.length import RunLength
    from dtl.training.trainer import TrainState

STEP, EVALUATION, SAMPLES, SAVE, REPORT = "step", "evaluation", "samples", "save", "report"
WARM_UP = 2  # steps of a session that are slower: memory is taken, kernels are chosen or compiled
RECENT = 256  # steps whose mean counts
QUARTERS, MIN_FOR_QUARTERS = 4, 16
PAUSE = 3.0  # times the median: a longer step counts as one of this length, a laptop that slept as no more
UNKNOWN = 2.0  # how far a guess may be off, as a factor
FORWARD = 1 / 3  # of a step's time, which has a backward pass of twice that
ASKED = 0.5  # of training on as many tokens: see dtl/evaluation/evaluator.py
GENERATED = 32  # a forward pass that adds one token to a few texts takes about as long as a step on so many tokens


# --- what is due ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Intervals:
    """Steps between what a run does besides its steps; None = never."""

    evaluate: int
    save: tuple[int, ...]
    sample_every_evals: int
    has_validation: bool

    @classmethod
    def of(cls, config: TrainerConfig, length: "RunLength", has_validation: bool) -> "Intervals":
        """Return the intervals of a run."""
        per_epoch = length.steps_per_epoch
        if not has_validation:  # small data: an epoch may be a single step
            per_epoch = max(per_epoch, math.ceil(length.last_step / 10))
        by_epochs = config.save_every_epochs and config.save_every_epochs * per_epoch
        saves = tuple(every for every in (config.save_every_steps, by_epochs) if every)
        return cls(config.eval_every_steps or per_epoch, saves, config.sample_every_evals, has_validation)

    def due(self, start: int, end: int, better: float = 1.0, is_last: bool = True) -> dict[str, float]:
        """Return how often each piece of work is due after step `start`, until step `end`.

        `better` is the fraction of evaluations that find a better model, which is saved at once. `is_last`: the run
        ends there, with an evaluation and its report; it does not pause. Saves of two intervals at one step count
        twice.
        """

        def times(every: int, last: int) -> int:
            return max(0, last // every - start // every)

        if end <= start:
            return {STEP: 0, EVALUATION: 0, SAMPLES: 0.0, SAVE: 0.0, REPORT: float(is_last)}
        before = end - 1  # what is due at the end itself is saved once, whatever else is due there
        evaluations = times(self.evaluate, end) + (is_last and end % self.evaluate > 0)
        at_evaluations = better if self.has_validation else 0.0
        saves = 1 + times(self.evaluate, before) * at_evaluations
        for every in self.save:
            saves += times(every, before) - at_evaluations * times(math.lcm(every, self.evaluate), before)
        return {
            STEP: end - start,
            EVALUATION: evaluations * self.has_validation,
            SAMPLES: evaluations / self.sample_every_evals if self.sample_every_evals else 0.0,
            SAVE: saves,
            REPORT: float(is_last),
        }


def guesses_in_steps(config: RunConfig, data: "PreparedData", asked_tokens: float) -> dict[str, float]:
    """Return how many steps each piece of work takes, until one was measured.

    `asked_tokens` are those of all questions of the report at the end, their answers included.
    """
    held_out = [rows for splits in data.rows.values() for split, rows in splits.items() if split != "train"]
    most, step = config.trainer.eval_max_batches, config.global_batch_size
    n_rows = [len(rows) if most is None else min(len(rows), most * config.micro_batch_size) for rows in held_out]
    validation = 0 if data.validation is None else min(len(data.validation), max(n_rows, default=0))
    return {
        EVALUATION: FORWARD * validation / step,
        SAMPLES: config.sampling.max_new_tokens * GENERATED / (step * config.seq_len),
        SAVE: 1.0,
        REPORT: FORWARD * sum(n_rows) / step + ASKED * asked_tokens / (step * config.seq_len),
    }


# --- seconds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """Seconds until something ends, within bounds."""

    low: float
    middle: float
    high: float
    may_end_early: bool = False  # `low` is when early stopping may end it

    def text(self, now: datetime) -> str:
        """Return `ends 14:32, in 12 to 15 min`: in the units of its end, with the day where that is another one."""
        within = in_range(self.low, self.high)
        if self.high < 60 or self.middle > MAX_DATED:
            return f"ends in {within}"
        end = now + timedelta(seconds=self.middle)
        day = "" if end.date() == now.date() else f"{end:%a} " if self.middle < 6 * 86_400 else f"{end:%d %b} "
        return f"ends {'by ' * self.may_end_early}{day}{end:%H:%M}, in {within}"


def in_range(low: float, high: float) -> str:
    """Return a range of seconds in one unit: `40 to 50 s`, `12 to 15 min`, `3.1 to 3.4 h`, `9 to 11 days`.

    A beginning that is 0 in this unit is left out: `under 3 min`, and never less than the end.
    """
    scale, unit = next((scale, unit) for limit, scale, unit in UNITS if high < limit)
    digits = 1 if scale >= 3600 and high < 10 * scale else 0
    first, last = (f"{seconds / scale:,.{digits}f}" for seconds in (low, high))
    if not float(first.replace(",", "")):
        return f"under {max(1, math.ceil(high / scale))} {unit}"
    return f"{last} {unit}" if first == last else f"{first} to {last} {unit}"


DAY, YEAR = 86_400, 365.25 * 86_400
UNITS = ((120, 1, "s"), (7200, 60, "min"), (2 * DAY, 3600, "h"), (2 * YEAR, DAY, "days"), (math.inf, YEAR, "years"))
MAX_DATED = 300 * DAY  # seconds to an end whose day and month say which one


@dataclass
class Seconds:
    """Seconds that one kind of work has taken in this session."""

    n: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def saw(self, seconds: float) -> None:
        self.n += 1
        self.recent.append(seconds)

    def mean(self, n_warm_up: int = 0) -> tuple[float, float]:
        """Return the mean, and by which fraction it may be off. The first `n_warm_up` count only where all others are
        missing.

        The fraction falls with the number of measurements, but not below how far the mean of a quarter of them was
        from that of all: a machine that others use, or that gets hot, changes its speed.
        """
        skipped = max(0, n_warm_up - (self.n - len(self.recent)))
        seen = list(self.recent)[skipped:] or list(self.recent)[-1:]
        limit = PAUSE * sorted(seen)[len(seen) // 2]
        seen = [min(seconds, limit) for seconds in seen]
        mean, off = sum(seen) / len(seen), 0.03 + 0.3 / len(seen)
        if len(seen) >= MIN_FOR_QUARTERS and mean > 0:
            size = len(seen) // QUARTERS
            quarters = [sum(seen[at : at + size]) / size for at in range(0, size * QUARTERS, size)]
            off = max(off, *(abs(quarter / mean - 1) for quarter in quarters))
        return mean, off


def left_of_steps(
    seconds: Mapping[int, float], last_step: int, elapsed: float | None = None, hours: float | None = None
) -> Span | None:
    """Return how long a run takes from its last logged step to its end, as far as its files tell; None without steps.

    `seconds` are those of training at each logged step, `elapsed` those since it began. What is due besides steps is
    not in the files as it is in `Remaining`: at least nothing more, at most as much a step as there was until now, the
    run's start included. Early stopping may end it before; `trainer.hours` does.
    """
    seen = Seconds()
    for before, after in itertools.pairwise(sorted(seconds)):
        seen.saw(max(0.0, seconds[after] - seconds[before]) / (after - before))
    if not seen.n:
        return None
    now = max(seconds)
    mean, off = seen.mean(WARM_UP if min(seconds) <= WARM_UP else 0)
    steps = max(0, last_step - now)
    if hours is not None and mean > 0:
        steps = min(steps, math.ceil(max(0.0, hours * 3600 - seconds[now]) / mean))
    besides = 0.0 if elapsed is None else max(0.0, elapsed - seconds[now]) / now
    low, high = (steps * mean * (1 - min(off, 0.9)), steps * (mean * (1 + off) + besides))
    return Span(low, steps * (mean + besides / 2), high) if math.isfinite(high) else None


class Remaining:
    """How long a run still takes. `saw` is told what was done; `left` answers from that alone."""

    def __init__(
        self, config: TrainerConfig, intervals: Intervals, last_step: int, guesses: Mapping[str, float]
    ) -> None:
        """`guesses`: steps that each piece of work takes, until one was measured (`guesses_in_steps`)."""
        self.config = config
        self.intervals = intervals
        self.last_step = last_step
        self.guesses = guesses
        self.seen: dict[str, Seconds] = {kind: Seconds() for kind in (STEP, EVALUATION, SAMPLES, SAVE)}

    def saw(self, kind: str, seconds: float) -> None:
        """Count one more piece of work that has taken so many seconds."""
        self.seen[kind].saw(seconds)

    @property
    def n_steps(self) -> int:
        """Steps that were seen."""
        return self.seen[STEP].n

    def left(self, state: "TrainState") -> Span | None:
        """Return how long the run takes from this state until it ends or pauses; None before its first step."""
        if not self.n_steps:
            return None
        step, _ = self.seen[STEP].mean(WARM_UP)
        config, end, is_last = self.config, self.last_step, True
        if config.stop_after_steps is not None and config.stop_after_steps < end:
            end, is_last = config.stop_after_steps, False
        if config.hours is not None and step > 0:
            by_hours = state.step + math.ceil(max(0.0, config.hours * 3600 - state.seconds) / step)
            end, is_last = min(end, by_hours), is_last or by_hours <= end
        better = 1 - state.evaluations_since_best / state.evaluations if state.evaluations else 1.0
        due = self.intervals.due(state.step, end, better, is_last)
        low, middle, high = self._sum(due)
        patience, failed = config.early_stopping_patience, state.evaluations_since_best
        if patience is not None and failed:
            every = self.intervals.evaluate
            earliest = (state.step // every + max(1, patience - failed)) * every
            if earliest < end:
                low, *_ = self._sum(self.intervals.due(state.step, earliest, 0.0))
                return Span(low, middle, high, may_end_early=True)
        return Span(low, middle, high)

    def _sum(self, due: Mapping[str, float]) -> tuple[float, float, float]:
        step, step_off = self.seen[STEP].mean(WARM_UP)
        low = middle = high = 0.0
        for kind, count in due.items():
            if kind in self.seen and self.seen[kind].n:
                mean, off = (step, step_off) if kind == STEP else self.seen[kind].mean()
                bounds = mean * (1 - min(off, 0.9)), mean, mean * (1 + off)
            else:
                mean = step * self.guesses.get(kind, 0.0)
                bounds = mean / UNKNOWN, mean, mean * UNKNOWN
            low, middle, high = (total + count * each for total, each in zip((low, middle, high), bounds, strict=True))
        return low, middle, high
