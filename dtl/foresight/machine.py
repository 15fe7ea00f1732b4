"""The memory that a run can have: of this machine, or of one that is named. Imports no torch."""

import re
from dataclasses import dataclass

from dtl.base.system import available_memory, container_left
from dtl.errors import ConfigError, did_you_mean

GIB = 2**30
# GiB of cards' memory, from NVIDIA's data sheets.
CARDS = {
    "rtx3060": 12,
    "rtx3070": 8,
    "rtx3080": 10,
    "rtx3090": 24,
    "rtx4060": 8,
    "rtx4060ti16": 16,
    "rtx4070": 12,
    "rtx4080": 16,
    "rtx4090": 24,
    "rtx5060": 8,
    "rtx5070": 12,
    "rtx5080": 16,
    "rtx5090": 32,
    "t4": 16,
    "l4": 24,
    "v100": 16,
    "a10": 24,
    "a100": 80,
    "h100": 80,
    "h200": 141,
}
# Taken before a run begins: by a system without a desktop; on a card by the desktop and the driver's context.
SYSTEM_BYTES, CARD_BYTES = 1 * GIB, 1 * GIB
UNITS = {"": GIB, "G": GIB, "GB": GIB, "GIB": GIB, "M": 2**20, "MB": 2**20, "MIB": 2**20}


@dataclass(frozen=True)
class Machine:
    """Memory for a run: what is free, and where that number is from."""

    name: str  # empty for this machine
    device_type: str  # cpu | cuda | mps
    free: int | None  # bytes; None: unknown
    why: str


def named_machine(name: str) -> Machine:
    """Return a machine from `8GB`, a number of GiB, or the name of a card.

    Raises ConfigError, with the nearest card, for anything else, and for less memory than a process needs.
    """
    card, word = re.sub(r"[\s_-]", "", name.lower()), name.lower().replace(" ", "")
    if card in CARDS:
        free = CARDS[card] * GIB - CARD_BYTES
        return Machine(card, "cuda", free, f"{CARDS[card]} GiB, less 1 GiB for context and desktop")
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", word)) or match[2].upper() not in UNITS:
        raise ConfigError(
            f"machine={name}: neither memory nor a card. Give memory, such as machine=8GB, or one of "
            f"{', '.join(CARDS)}.{did_you_mean(word, CARDS)}"
        )
    total = float(match[1]) * UNITS[match[2].upper()]
    if not SYSTEM_BYTES < total <= 2**50:
        raise ConfigError(
            f"machine={name}: must be above 1 GiB, which the system takes, and at most {2**20:,} GiB. "
            "For example machine=8GB."
        )
    return Machine(name, "cpu", round(total) - SYSTEM_BYTES, f"{total / GIB:g} GiB, less 1 GiB for the system")


def this_machine(device_type: str) -> Machine:
    """Return what is free here: of the card for CUDA, elsewhere of the machine or of its container."""
    if device_type == "cuda":
        import torch

        return Machine("", "cuda", torch.cuda.mem_get_info()[0], "free on the card")
    bounds = {"available on this machine": available_memory(), "left in this container": container_left()}
    known = {why: n_bytes for why, n_bytes in bounds.items() if n_bytes is not None}
    if not known:
        return Machine("", device_type, None, "not reported by this system")
    why = min(known, key=known.__getitem__)
    return Machine("", device_type, known[why], why)
