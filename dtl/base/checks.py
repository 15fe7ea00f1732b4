"""Range checks of settings: each error names key, value and rule. Imports no torch.

`section` is the prefix of the key on the command line, "" for none. A setting that is null always passes: its type
decides whether null is allowed. `rest` is appended to the rule, such as ", or null for all".
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dtl.errors import ConfigError, did_you_mean

MANY = 1_000_000_000  # more than any run counts to; what torch, numpy and JSON take without overflow
LONGEST = 1 << 20  # tokens of a context: a million
BATCHES = {"micro_batch_size": (1, 65_536), "grad_accum_steps": (1, 1_000_000)}


def check_range(settings: object, section: str, rest: str = "", /, **ends: tuple[float, float]) -> None:
    """Raise ConfigError for the first of these settings that is below or above its range, or NaN."""
    for key, (low, high) in ends.items():
        _check(settings, section, [key], lambda value, low=low: value >= low, f"must be at least {low}{rest}.")
        _check(
            settings, section, [key], lambda value, high=high: value <= high, f"must be at most {_number(high)}{rest}."
        )


def check_positive(settings: object, section: str, *keys: str, rest: str = "", most: float = MANY) -> None:
    """Raise ConfigError for the first of these settings that is not above 0, or above `most`."""
    _check(settings, section, keys, lambda value: value > 0, f"must be above 0{rest}.")
    _check(settings, section, keys, lambda value: value <= most, f"must be at most {_number(most)}{rest}.")


def check_fractions(
    settings: object, section: str, *keys: str, interval: str = "[0, 1]", rule: str = "a fraction in", rest: str = ""
) -> None:
    """Raise ConfigError for the first of these settings outside 0 to 1; a round bracket excludes that end."""
    ends = [0] * interval.startswith("[") + [1] * interval.endswith("]")
    _check(settings, section, keys, lambda value: 0 < value < 1 or value in ends, f"{rule} {interval}{rest}.")


def check_choices(settings: object, section: str, rest: str = "", hint: bool = False, **known: Sequence[str]) -> None:
    """Raise ConfigError for the first of these settings that is none of its known values.

    With `hint` the message ends with the nearest one.
    """
    for key, names in known.items():
        nearest = did_you_mean(str(getattr(settings, key)), names) if hint else ""
        _check(settings, section, [key], names.__contains__, f"one of {', '.join(names)}{rest}.{nearest}")


def check_unique(names: Sequence[str], key: str) -> None:
    """Raise ConfigError for a name that is given twice."""
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise ConfigError(f"{key}=[{','.join(names)}]: names {twice} twice. Leave one out.")


def check_seed(seed: int) -> None:
    """Raise ConfigError for a seed that torch's generators do not take."""
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed}: must be an integer in [0, 2^63).")


def check_device(device: str) -> None:
    """Raise ConfigError for text that names no device. Only torch knows whether the device is available."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ConfigError(f"device={device}: one of auto, cpu, cuda, cuda:0, mps.")


def check_one_process() -> None:
    """Raise ConfigError for one of several processes that torchrun, mpirun or srun started: each would train the same
    run."""
    # Not SLURM_NTASKS: a script of sbatch has it too, which SLURM starts once, whatever number of tasks it asks for.
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        size = os.environ.get(name, "")
        if size.isdigit() and int(size) > 1:
            raise ConfigError(
                f"{name}={size}: DTL trains in one process, on one device, and torchrun, mpirun or srun has started "
                f"{size}, which would train the same run. Start it once: python -m dtl.train ..., under SLURM with "
                "srun -n 1. For several runs at a time: -m hydra.launcher.n_jobs=2"
            )


def _number(bound: float) -> str:
    return f"{bound:,}" if bound < 1e10 else f"{bound:g}"


def _check(settings: object, section: str, keys: Iterable[str], holds: Callable[[Any], bool], rule: str) -> None:
    for key in keys:
        value = getattr(settings, key)
        if value is not None and not holds(value):
            raise ConfigError(f"{section}{'.' if section else ''}{key}={value}: {rule}")
