"""One process at a time works on a sweep."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dtl.base.display import shown
from dtl.checkpoints.store import LOCK, SECONDS_OF_A_LOOK
from dtl.errors import ConfigError


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the sweep in `folder`, which is made. Raises ConfigError where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=SECONDS_OF_A_LOOK)
    except Timeout:
        raise ConfigError(
            f"{shown(folder)}: this sweep is running already. Look at it with python -m dtl.sweep "
            f"status={shown(folder)}, or start another one with sweep.new=true."
        ) from None
    try:
        yield
    finally:
        lock.release()
