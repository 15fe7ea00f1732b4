"""Learning-rate schedules: pure functions of the step, so that a checkpoint needs no state of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from dtl.registry import SCHEDULES
from dtl.training.config import ScheduleConfig


@dataclass(frozen=True)
class SchedulePoint:
    """A point of a run after its warm-up, in optimizer steps."""

    step: int  # steps taken, from `warmup` to `horizon`
    warmup: int  # steps of warm-up
    horizon: int  # step at which the schedule ends

    @property
    def progress(self) -> float:
        """Fraction of the steps after warm-up that have been taken, in [0, 1]."""
        return (self.step - self.warmup) / max(1, self.horizon - self.warmup)


# The factor of the peak learning rate, in [0, 1], before `min_lr_fraction` raises its lower end.
Schedule = Callable[[SchedulePoint, ScheduleConfig], float]


def warmup_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Optimizer steps of warm-up as the config says, at most `total_steps`."""
    steps = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_fraction * total_steps)
    return min(steps, total_steps)


def learning_rate_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Fraction of the peak learning rate at optimizer step `step` (counted from 0), in [0, 1].

    Rises linearly during warm-up, then follows the named schedule, squeezed into [min_lr_fraction, 1]. After
    `total_steps` it keeps its last value.
    """
    warmup = warmup_steps(config, total_steps)
    if step < warmup:
        return (step + 1) / warmup  # + 1: a first step with a learning rate of 0 would be wasted
    schedule = SCHEDULES.get(config.name)
    floor = config.min_lr_fraction
    return floor + (1 - floor) * schedule(SchedulePoint(min(step, total_steps), warmup, total_steps), config)


@SCHEDULES.register("cosine")
def cosine(at: SchedulePoint, config: ScheduleConfig) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter, 2017, arXiv:1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * at.progress))


@SCHEDULES.register("linear")
def linear(at: SchedulePoint, config: ScheduleConfig) -> float:
    """Linear decay from 1 to 0."""
    return 1 - at.progress


@SCHEDULES.register("wsd")
def warmup_stable_decay(at: SchedulePoint, config: ScheduleConfig) -> float:
    """1, then linear to 0 over the last `decay_fraction` of these steps (Hu et al., 2024, arXiv:2404.06395)."""
    if config.decay_fraction == 0:
        return 1.0
    return min(1.0, (1 - at.progress) / config.decay_fraction)
