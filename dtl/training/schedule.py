"""Learning-rate schedules: pure functions of the step, so that a checkpoint needs no state of them."""

import math
from collections.abc import Callable

from dtl.registry import SCHEDULES
from dtl.training.config import ScheduleConfig

Shape = Callable[[float, ScheduleConfig], float]  # fraction of the steps after warm-up -> factor, 1 to 0


def warmup_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Optimizer steps of warm-up as the config says, at most `total_steps`."""
    steps = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_fraction * total_steps)
    return min(steps, total_steps)


def learning_rate_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Fraction of the peak learning rate at optimizer step `step` (counted from 0), in [0, 1].

    Rises linearly during warm-up, then follows the named shape. After `total_steps` it keeps its last value.
    """
    warmup = warmup_steps(config, total_steps)
    if step < warmup:
        return (step + 1) / warmup  # + 1: a first step with a learning rate of 0 would be wasted
    progress = (min(step, total_steps) - warmup) / max(1, total_steps - warmup)
    shape = SCHEDULES.get(config.name)
    floor = config.min_lr_fraction
    return floor + (1 - floor) * shape(progress, config)


@SCHEDULES.register("cosine")
def cosine(progress: float, config: ScheduleConfig) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter, 2017, arXiv:1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


@SCHEDULES.register("linear")
def linear(progress: float, config: ScheduleConfig) -> float:
    """Linear decay from 1 to 0."""
    return 1 - progress


@SCHEDULES.register("wsd")
def warmup_stable_decay(progress: float, config: ScheduleConfig) -> float:
    """1, then linear to 0 over the last `decay_fraction` of these steps (Hu et al., 2024, arXiv:2404.06395)."""
    if config.decay_fraction == 0:
        return 1.0
    return min(1.0, (1 - progress) / config.decay_fraction)
