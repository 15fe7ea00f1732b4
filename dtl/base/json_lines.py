"""Files of JSON lines that grow while a program runs, whole line by whole line. Imports no torch."""

import errno
import json
import logging
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# Texts of a model are read with `cat` and `less`: what could steer a terminal is written as a \u escape, and so
# are lone surrogates, which UTF-8 cannot hold. JSON itself escapes what is below 0x20.
UNSAFE = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MOST_WAITING = 100_000  # rows kept in memory while the disk refuses them, some 20 MB


class LineFile:
    """A file that only grows by whole lines. A disk that refuses costs one warning, never the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._warned = False

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add a line per row in one write. Rows that could not be written go with the next call."""
        self._waiting.extend(json_line(row).encode() for row in rows)
        if not self._waiting:
            return
        try:
            _append(self.path, b"".join(self._waiting))
        except OSError as error:
            if not self._warned:
                log.warning(
                    "%s: cannot be written (%s). The run goes on; its rows wait in memory and are tried again.",
                    self.path,
                    error.strerror,
                )
            self._warned = True
        else:
            self._waiting.clear()


def _append(path: Path, data: bytes) -> None:
    """Append in one write, or leave the file as it was. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a kill cut the last line short: it must not swallow the next
                data = b"\n" + data
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def json_line(row: Mapping[str, Any]) -> str:
    """`row` as one line of strict JSON with its newline, safe to show in a terminal."""
    text = json.dumps(plain(row), ensure_ascii=False, allow_nan=False)
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def plain(value: Any) -> Any:
    """`value` in JSON's own types. A number that is not finite becomes None: JSON has no word for it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    try:
        return plain(value.item())  # the one number of a tensor or an array
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return str(value)
