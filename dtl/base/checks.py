"""Range checks of settings: each error names key, value and rule. Imports no torch."""

import re

from dtl.errors import ConfigError


def check_device(device: str) -> None:
    """Raises ConfigError for what names no device. Whether it is there, only torch knows."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ConfigError(f"device={device}: one of auto, cpu, cuda, cuda:0, mps.")
