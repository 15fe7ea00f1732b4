"""A sweep of which no trial can be: refused as a whole, as a single run is."""

from collections.abc import Iterable, Sequence

from dtl.errors import ConfigError
from dtl.sweeps.table import varied

MOST_REASONS = 3


class NoTrialError(ConfigError):
    """Every trial of a sweep is refused."""

    def __init__(self, refused: Iterable[tuple[Sequence[str], str]]) -> None:
        """`refused`: the overrides of each trial, and why it cannot be."""
        overrides, reasons = zip(*refused, strict=True)
        if len(reasons) == 1:
            super().__init__(reasons[0])
            return
        trials: dict[str, list[str]] = {}
        for words, reason in zip(varied(overrides), reasons, strict=True):
            trials.setdefault(reason, []).append(" ".join(words))
        lines = [_line(reason, names) for reason, names in trials.items()]
        if len(lines) > MOST_REASONS:
            rest = len(lines) - MOST_REASONS
            lines[MOST_REASONS:] = [f"... and {rest} other reason{'s' if rest > 1 else ''}"]
        super().__init__("\n  ".join([f"none of the {len(reasons)} trials can be run:", *lines]))


def _line(reason: str, names: Sequence[str]) -> str:
    name = "" if reason.startswith(f"{names[0]}:") or not names[0] else f"{names[0]}: "
    return f"{name}{reason}" + (f" (the same for {len(names) - 1} more)" if len(names) > 1 else "")
