"""Range checks of settings: each error names key, value and rule. Imports no torch.

`section` is what stands before the key on the command line, "" for nothing. A setting that is null always passes:
its type says whether it may be. `rest` is what the rule goes on with, such as ", or null for all".
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dtl.errors import ConfigError, did_you_mean


def check_at_least(settings: object, section: str, rest: str = "", **minimums: float) -> None:
    """Raises ConfigError for the first of these settings that is below its minimum, or NaN."""
    for key, least in minimums.items():
        _check(settings, section, [key], lambda value, least=least: value >= least, f"must be at least {least}{rest}.")


def check_positive(settings: object, section: str, *keys: str, rest: str = "", finite: bool = False) -> None:
    """Raises ConfigError for the first of these settings that is not above 0; with `finite` for infinity too."""
    excluded = math.inf if finite else None
    _check(settings, section, keys, lambda value: value > 0 and value != excluded, f"must be above 0{rest}.")


def check_fractions(
    settings: object, section: str, *keys: str, interval: str = "[0, 1]", rule: str = "a share in", rest: str = ""
) -> None:
    """Raises ConfigError for the first of these settings outside 0 to 1; a round bracket leaves out that end."""
    ends = [0] * interval.startswith("[") + [1] * interval.endswith("]")
    _check(settings, section, keys, lambda value: 0 < value < 1 or value in ends, f"{rule} {interval}{rest}.")


def check_choices(settings: object, section: str, rest: str = "", hint: bool = False, **known: Sequence[str]) -> None:
    """Raises ConfigError for the first of these settings that is none of its known values.

    With `hint` it ends with the nearest of them.
    """
    for key, names in known.items():
        nearest = did_you_mean(str(getattr(settings, key)), names) if hint else ""
        _check(settings, section, [key], names.__contains__, f"one of {', '.join(names)}{rest}.{nearest}")


def check_seed(seed: int) -> None:
    """Raises ConfigError for a seed that torch's generators do not take."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed}: must lie in [0, 2^63).")


def check_device(device: str) -> None:
    """Raises ConfigError for what names no device. Whether it is there, only torch knows."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ConfigError(f"device={device}: one of auto, cpu, cuda, cuda:0, mps.")


def _check(settings: object, section: str, keys: Iterable[str], holds: Callable[[Any], bool], rule: str) -> None:
    for key in keys:
        value = getattr(settings, key)
        if value is not None and not holds(value):
            raise ConfigError(f"{section}{'.' if section else ''}{key}={value}: {rule}")
