"""Makes text of a model, a checkpoint or a user safe to print: it cannot control the terminal.

Each character is mapped by itself, so that an escape sequence that arrives in pieces is as harmless as a complete one.
`guard_streams` applies it to all that a command prints, and hides secrets: the output of a trial is a file. Only the
consoles of dtl/base/display.py send sequences of their own past it.
"""

import io
import logging
import re
import sys
from itertools import chain
from typing import Any

from dtl.base.redaction import redact

_REPLACEMENT = "\ufffd"
_C0 = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}  # control pictures: ESC as U+241B
_REORDERING = (
    0x061C,  # Arabic letter mark
    0x200E,  # left-to-right mark, right-to-left mark
    0x200F,
    *range(0x202A, 0x202F),  # embeddings, overrides and their end
    *range(0x2066, 0x206A),  # isolates and their end
    *range(0x206A, 0x2070),  # deprecated: mirrored characters, shapes of Arabic letters
)
_C1 = range(0x80, 0xA0)
_HALF_PAIRS = range(0xD800, 0xE000)  # lone surrogates: no encoding can write them
_TABLE = {**_C0, 0x7F: "\u2421", **dict.fromkeys(chain(_C1, _REORDERING, _HALF_PAIRS), _REPLACEMENT)}
_HOSTILE = re.compile("[" + "".join(re.escape(chr(code)) for code in _TABLE) + "]")


def visible(text: str) -> str:
    """Replace control characters (C0 but line feed and tab, DEL, C1) and marks that reorder text by visible
    characters."""
    return text.translate(_TABLE)


def in_one_line(text: str, max_length: int = 200) -> str:
    """`visible(text)` for the middle of a line: without line feeds and tabs, at most `max_length` characters long."""
    plain = " ".join(visible(text).split())
    return plain if len(plain) <= max_length else f"{plain[: max_length - 3]}..."


def escaped(json_text: str) -> str:
    """Escape the same characters inside JSON: it reads back unchanged and is safe to show in any program."""
    return _HOSTILE.sub(lambda match: f"\\u{ord(match[0]):04x}", json_text)


# --- all that is printed ------------------------------------------------------------------------------------------


class SafeStream:
    """A text stream that writes `visible` text without secrets to another one; in all else it is that stream."""

    def __init__(self, stream: Any) -> None:
        self.guarded = stream
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # what this terminal cannot encode must not be an error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guarded, name)

    def __iter__(self) -> Any:
        return iter(self.guarded)

    def write(self, text: str) -> int:
        self.guarded.write(visible(redact(text)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))


def guard_streams() -> None:
    """Make `print`, logs, warnings and tracebacks, libraries' too, safe from here on: both standard streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))


def unguarded(stream: Any) -> Any:
    """The stream below the guard, for a writer whose own text is `visible` and whose escape sequences must arrive."""
    while isinstance(stream, SafeStream):
        stream = stream.guarded
    return stream


def safe_logger(name: str) -> logging.Logger:
    """`logging.getLogger(name)` whose messages are `visible` for every handler, also where DTL is a library."""
    logger = logging.getLogger(name)
    if _make_visible not in logger.filters:
        logger.addFilter(_make_visible)
    return logger


def _make_visible(record: logging.LogRecord) -> bool:
    record.msg, record.args = visible(redact(record.getMessage())), None
    return True
