"""The errors that DTL shows to users: what was found, why it is wrong, what to do next.

`DTLError` derives from Hydra's `CompactHydraException`, so that a multirun prints the message of a failed job
without a traceback and continues with the other jobs.
"""

import difflib
from collections.abc import Iterable

from hydra.errors import CompactHydraException


class DTLError(CompactHydraException):
    """An error with a message for the user; shown without a traceback unless `debug=true`."""

    exit_code = 1

    def __init__(self, *message: object) -> None:
        # It quotes names and values from files of others, and where DTL is a library, Python prints it as it is.
        super().__init__(*("".join(map(_shown, part)) if isinstance(part, str) else part for part in message))


class ConfigError(DTLError, ValueError):
    """An invalid setting: the message names the key, the value, the rule and the remedy."""

    exit_code = 2


class DataError(DTLError):
    """Training text that is missing, unreadable or too little."""


class CheckpointError(DTLError):
    """A checkpoint that is missing, damaged or incompatible."""


class TrainingError(DTLError):
    """A run that cannot continue: a loss that is not finite, too little memory."""


class DoesNotFitError(DTLError):
    """A run that needs more memory than there is."""

    exit_code = 3


class InterruptedRun(DTLError):
    """A run that a signal ended after it had saved its state."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def _shown(character: str) -> str:
    """A character that is not seen, or that controls a terminal, as its escape; joiners belong to words."""
    return character if character.isprintable() or character in "\n\t\u200c\u200d" else ascii(character)[1:-1]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A hint such as ` Did you mean 'small'?`, or an empty string when nothing is similar."""
    name = nearest(given, known)
    return "" if name is None else f" Did you mean '{name}'?"


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The name that is most likely meant, None when nothing is similar."""
    known = list(known)
    begun = [name for name in known if len(given) > 2 and name.startswith(given)]  # `temp` for temperature
    similar = begun if len(begun) == 1 else difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return similar[0] if similar else None
