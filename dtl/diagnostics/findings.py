"""What a look at this machine finds, and how a look that hangs or breaks spoils no other. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from dtl.base.deadline import begin
from dtl.base.redaction import redact

Result = TypeVar("Result")


@dataclass
class Finding:
    """Rows (name, value) of the screen, and what they mean for a run on this machine."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # worth knowing; a run goes well all the same
    problems: list[str] = field(default_factory=list)  # stops a run or slows it badly, with the remedy

    def add(self, other: "Finding") -> None:
        """Append what `other` holds."""
        self.rows += other.rows
        self.warnings += other.warnings
        self.problems += other.problems


class Later(Generic[Result]):
    """Work that has begun, and is waited for later."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._outcome = begin(work)

    def result(self, seconds: float) -> Result:
        """What came out, waiting at most so long. Raises what the work raised, TimeoutError when it is not done."""
        try:
            return self._outcome.result(timeout=seconds)
        except TimeoutError:
            if self._outcome.done():
                raise
            raise TimeoutError(f"no answer within {seconds:g} seconds") from None


def look(name: str, work: Callable[[], Finding], seconds: float) -> Finding:
    """The finding of `work`, which may take so long; a row that says what failed when it does."""
    return looked(name, Later(work), seconds)


def looked(name: str, later: Later[Finding], seconds: float) -> Finding:
    """The finding of a look that has begun, or a row that says what failed."""
    try:
        return later.result(seconds)
    except (Exception, SystemExit) as error:
        return Finding([(name, f"cannot be found out: {in_short(error)}")])


def in_short(error: BaseException) -> str:
    """An error as one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:200] if words else type(error).__name__


def fit_to_show(text: str) -> str:
    """Text of files, drivers and servers without secrets and without what could steer a terminal."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in redact(text))
