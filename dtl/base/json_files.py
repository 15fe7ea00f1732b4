"""Safe reading of untrusted JSON and YAML, and append-only files of JSON lines. Imports no torch.

A file may be truncated, edited or hostile: the readers return an object or raise an error of a known kind. They open
regular files only (a FIFO would block, a device has no end), and are bounded in size, depth and thereby in time.
"""

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from dtl.base.safe_text import safe_logger
from dtl.errors import CheckpointError, ConfigError, DTLError

log = safe_logger(__name__)

# Texts of a model are read with `cat` and `less`: characters that control a terminal are written as \u escapes, and
# so are lone surrogates, which UTF-8 cannot hold. JSON itself escapes what is below 0x20.
UNSAFE = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MAX_WAITING = 100_000  # rows kept in memory while the disk cannot be written, some 20 MB
MAX_JSON_BYTES = 8 * 2**20  # a state.json has some kilobytes; `[],[],...` takes twenty times its size in memory
MAX_DIGITS = 100  # of a whole number; the state of a random generator has 39
DIGEST = "dtl_sha256"  # key of the SHA-256 of the other values in a record that decides something
MAX_LINE_BYTES = 2**20  # of metrics.jsonl
MAX_YAML_BYTES = 2**18
MAX_YAML_PARTS = 10_000  # a config has some hundred; libyaml's time grows with their square
MAX_YAML_DEPTH = 50  # its recursion overflows the stack
# Without O_NONBLOCK a FIFO would wait for its other end; without O_BINARY Windows would translate line ends.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML has it: ten times as fast


# --- reading ----------------------------------------------------------------------------------------------------


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes. Raises OSError, also for a FIFO, a device or a folder, without opening it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise _irregular(path)
    return os.fdopen(os.open(path, os.O_RDONLY | _AT_ONCE), "rb")  # it may have been replaced in between


def open_to_append(path: Path) -> BinaryIO:
    """Open a file, or make it, to append bytes to it. Raises OSError, also for a FIFO, a device or a folder."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _AT_ONCE, 0o666), "ab")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _irregular(path)
    return file


def _irregular(path: Path) -> OSError:
    return OSError(errno.EINVAL, "not a regular file", str(path))


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most `max_bytes`. Raises OSError for any other."""
    with open_regular(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        if n_bytes > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes / 2**20:g} MiB", str(path))
        return file.read(n_bytes)


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a regular file, without one that is longer than a line of DTL can be. Raises OSError."""
    with open_regular(path) as file:
        while line := file.readline(MAX_LINE_BYTES):
            if len(line) == MAX_LINE_BYTES:
                return
            yield line.rstrip(b"\r\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file written by DTL: bounded in size, without NaN; of a sealed one, as it was written.

    Raises FileNotFoundError, and CheckpointError for a file with other contents.
    """
    return _read_json(path)[0]


def read_record(path: Path) -> dict[str, Any]:
    """As `read_json`, of a file of `write_record`. Raises CheckpointError for one without its digest, too: an editor
    that removes a line hides what it changed in the others."""
    contents, has_digest = _read_json(path)
    if not has_digest:
        raise CheckpointError(f"{path}: was changed, it has no {DIGEST}.")
    return contents


def _read_json(path: Path) -> tuple[dict[str, Any], bool]:
    """The contents without the digest, and whether there is one."""
    try:
        contents = json_object(read_bounded(path, MAX_JSON_BYTES), strict=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    except TypeError as error:
        raise CheckpointError(f"{path}: damaged, not a JSON object.") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged, not JSON ({error}).") from error
    digest = contents.pop(DIGEST, None)
    if digest is not None and digest != _digest(contents):
        raise CheckpointError(f"{path}: damaged, its values are not those that were written.")
    return contents, digest is not None


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """As `read_json`; an empty object for a file that is missing, damaged or unreadable."""
    with suppress(OSError, CheckpointError):
        return read_json(path)
    return {}


def read_record_or_empty(path: Path) -> dict[str, Any]:
    """As `read_record`; an empty object for a file that is missing, changed, damaged or unreadable."""
    with suppress(OSError, CheckpointError):
        return read_record(path)
    return {}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file written by DTL, as plain values. Raises CheckpointError for anything else."""
    try:
        text = read_bounded(path, MAX_YAML_BYTES).decode("utf-8")
        _check_yaml(text)
        contents = yaml.load(text, Loader=_LOADER)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged, not the YAML of a config ({error}).") from error
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path}: damaged, holds no settings.")
    return contents


def read_yaml_or_empty(path: Path) -> dict[str, Any]:
    """As `read_yaml`; an empty mapping for a file that is missing, damaged or unreadable."""
    with suppress(CheckpointError):
        return read_yaml(path)
    return {}


def read_users_yaml(path: Path) -> str:
    """The text of a config file that a user wrote, which a YAML reader without bounds may parse: it may have aliases.

    Raises ConfigError for one that would take the stack, the memory or minutes, or that is no regular file.
    """
    try:
        text = read_bounded(path, MAX_YAML_BYTES).decode("utf-8", "replace")
        with suppress(yaml.YAMLError):  # the reader's own message names the line
            _check_yaml(text, aliases=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Put a text file of settings in its place, or remove it."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: is no config: {error}. Remove it, or give another folder.") from error
    return text


def _check_yaml(text: str, aliases: bool = False) -> None:
    """Raise ValueError for a document whose loading would take the stack, the memory or minutes."""
    n_parts, opened, sizes = 0, [], dict[str | None, int]()  # with what the aliases stand for
    for event in yaml.parse(text, Loader=_LOADER):
        n_parts += 1
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, n_parts))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = opened.pop()
            sizes[anchor] = n_parts - start
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):  # of aliases of aliases, 400 bytes are terabytes of values
            if not aliases:
                raise ValueError("has an alias, *name; DTL writes none")
            if event.anchor in (anchor for anchor, _ in opened):
                raise ValueError(f"*{event.anchor} is a part of itself")
            n_parts += sizes.get(event.anchor, 0)
        if len(opened) > MAX_YAML_DEPTH or n_parts > MAX_YAML_PARTS:
            raise ValueError(f"more than {MAX_YAML_DEPTH} levels or {MAX_YAML_PARTS:,} parts")


def read_foreign_json(path: Path, error: type[DTLError]) -> dict[str, Any]:
    """Read the object in another program's JSON file, in UTF-8. Raises `error` for anything else."""
    try:
        return json_object(read_bounded(path, MAX_JSON_BYTES).decode("utf-8"))
    except TypeError as reason:
        raise error(f"{path}: {reason}.") from reason
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror}).") from reason
    except ValueError as reason:
        raise error(f"{path}: cannot be read as JSON ({reason}).") from reason


def json_object(text: str | bytes, strict: bool = False) -> dict[str, Any]:
    """Parse a JSON object, with `strict` one without NaN and infinity.

    Raises ValueError for invalid JSON, TypeError for JSON that is not an object.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig", "surrogatepass")
        contents = (_STRICT_DECODER if strict else _DECODER).decode(text)
    except RecursionError as error:  # thousands of nested brackets
        raise ValueError(str(error)) from error
    if not isinstance(contents, dict):
        raise TypeError(f"holds a {type(contents).__name__}, expected an object")
    return contents


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with their digest, which `read_json` checks: a changed digit is a loss or a threshold like any other.

    They must be as JSON gives them back.
    """
    return {**values, DIGEST: _digest(values)}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def json_object_or_empty(text: str | bytes) -> dict[str, Any]:
    """As `json_object`; an empty object for anything else."""
    with suppress(ValueError, TypeError):
        return json_object(text)
    return {}


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:  # neither a float nor text can hold it: it would fail wherever it is used
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_int=_whole)
_STRICT_DECODER = json.JSONDecoder(parse_int=_whole, parse_constant=_reject_constant)


def as_object(value: object) -> dict[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def as_whole(value: object) -> int | None:
    """`value` if it is an integer of 64 bits, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def as_number(value: object) -> float | None:
    """`value` as a float if it is a finite number, else None."""
    number = float(value) if isinstance(value, float) else as_whole(value)
    return float(number) if number is not None and math.isfinite(number) else None


# --- lines ------------------------------------------------------------------------------------------------------


class LineFile:
    """An append-only file of complete lines. A write error is logged once and never ends the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._warned = False

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add a line per row in one write. Rows that could not be written are tried again by the next call."""
        self._waiting.extend(json_line(row).encode() for row in rows)
        if not self._waiting:
            return
        try:
            _append(self.path, b"".join(self._waiting))
        except OSError as error:
            if not self._warned:
                log.warning(
                    "%s: cannot be written (%s). The run continues; its rows are kept in memory and tried again.",
                    self.path,
                    error.strerror,
                )
            self._warned = True
        else:
            self._waiting.clear()


def _append(path: Path, data: bytes) -> None:
    """Append in one write, or restore the file. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a kill truncated the last line: the next one must not be joined to it
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
    return escaped(json.dumps(plain(row), ensure_ascii=False, allow_nan=False)) + "\n"


def escaped(text: str) -> str:
    """The text of a JSON value, safe to show in a terminal."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def plain(value: Any) -> Any:
    """`value` in JSON's own types. A number that is not finite becomes None: JSON has no NaN or infinity."""
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


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a nested config as on the command line, `optimizer.lr`, each with its value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
