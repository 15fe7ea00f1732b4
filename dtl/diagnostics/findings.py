"""The findings of a check, and checks with a deadline: one that hangs or fails affects no other. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from dtl.base.deadline import begin
from dtl.base.redaction import redact

Result = TypeVar("Result")


@dataclass
class Finding:
    """Rows (name, value) of the screen, with the warnings and problems that follow from them."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # worth knowing; a run works nevertheless
    problems: list[str] = field(default_factory=list)  # prevents a run or makes it much slower; each with its remedy

    def add(self, other: "Finding") -> None:
        """Append the rows, warnings and problems of `other`."""
        self.rows += other.rows
        self.warnings += other.warnings
        self.problems += other.problems


class Later(Generic[Result]):
    """Work that runs in the background from now on, awaited by `result`."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._outcome = begin(work)

    def result(self, seconds: float) -> Result:
        """Wait for the result, at most `seconds`. Raises what the work raised, TimeoutError when it is not done."""
        try:
            return self._outcome.result(timeout=seconds)
        except TimeoutError:
            if self._outcome.done():  # the work itself raised it
                raise
            raise TimeoutError(f"no answer within {seconds:g} seconds") from None


def look(name: str, work: Callable[[], Finding], seconds: float) -> Finding:
    """Run `work` for at most `seconds` and return its finding, or a row with the error."""
    return looked(name, Later(work), seconds)


def looked(name: str, later: Later[Finding], seconds: float) -> Finding:
    """Return the finding of a check that runs already, or a row with the error."""
    try:
        return later.result(seconds)
    except (Exception, SystemExit) as error:  # an imported module may call sys.exit
        return Finding([(name, f"unknown: {in_short(error)}")])


def in_short(error: BaseException) -> str:
    """Return an error as one line of at most 200 characters."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:200] if words else type(error).__name__


def fit_to_show(text: str) -> str:
    """Return text of files, drivers and servers without secrets and without control characters."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in redact(text))
