"""The validation losses of a run while it writes them, from metrics.jsonl alone."""

from pathlib import Path

from dtl.tracking.metrics import METRICS, parse_row


class Losses:
    """Follows metrics.jsonl of a run: each call of `new` gives what was written since the last one.

    A run that goes on from a checkpoint writes its file anew, without the rows beyond it: then all come again, with
    the same numbers.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / METRICS
        self._identity: tuple[int, int] | None = None
        self._read = self._evaluations = 0

    def new(self) -> list[tuple[int, float | None]]:
        """(number of the evaluation, counted from 1; validation loss, None for one that is not finite), in order."""
        try:
            with self._file.open("rb") as file:
                state = self._file.stat()
                if (state.st_dev, state.st_ino) != self._identity or state.st_size < self._read:
                    self._identity, self._read, self._evaluations = (state.st_dev, state.st_ino), 0, 0
                if state.st_size == self._read:
                    return []
                file.seek(self._read)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]  # the rest of the last line is still to come
        self._read += len(whole)
        found: list[tuple[int, float | None]] = []
        for row in map(parse_row, whole.splitlines()):
            if row is not None and "val/loss" in row:
                self._evaluations += 1
                loss = row["val/loss"]
                found.append((self._evaluations, float(loss) if isinstance(loss, int | float) else None))
        return found
