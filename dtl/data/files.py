"""Local files as records: which files a path holds, to which split each belongs, and what stands in them.

Reads .txt (the file is one record), .jsonl (a line is one) and .parquet (a row is one). A wrong encoding
never stops a run: what cannot be read is replaced by U+FFFD, counted, and told in a note.
"""

import codecs
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dtl.errors import DataError

SUFFIXES = (".txt", ".jsonl", ".parquet")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ROWS_AT_ONCE = 256  # parquet rows turned into Python objects at a time


class Record(NamedTuple):
    """The fields of one record, and its place (`file` or `file:line`) for messages."""

    place: str
    fields: dict[str, Any]


class _Unit(NamedTuple):
    """A stretch of a file that is read in one go: the whole file, or one row group of a parquet file."""

    file: Path
    row_group: int | None = None


def split_of(relative: Path) -> str | None:
    """The split that a file's place says, much as the Hugging Face hub reads it.

    First a folder of exactly such a name (`test/a.txt`), then a word in the file's name that stands alone:
    `train.txt`, `train-00000-of-00008.parquet`, `wiki.valid.txt`, but not `trainers.txt`.
    """
    words = [part.lower() for part in relative.parts[:-1]] + re.split(r"[^a-z]+", relative.name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


class LocalFiles:
    """The readable files under a path, by split, and what was noticed while they were read.

    `key` is the setting that gave the path, for messages. A folder is searched with its subfolders, in
    sorted order, without hidden files. Names count as splits when at least one of them says `train`
    (then files that name no split are left out); otherwise every file is training text.

    Raises DataError when there is nothing to read at the path.
    """

    def __init__(self, path: str, key: str) -> None:
        self.origin = f"{key}={path}"
        self.root = Path(path).expanduser()
        if not path.strip():
            raise DataError(f"{key}='': an empty path. Give a file or a folder.")
        self._replaced: dict[Path, tuple[int, int]] = {}  # file -> characters replaced, byte of the first
        self._left_out: list[Path] = []
        self.by_split = self._find()

    def _find(self) -> dict[str, list[Path]]:
        try:
            if self.root.is_dir():
                return self._find_in_folder()
            if not self.root.exists():
                raise DataError(self._missing())
        except OSError as error:
            raise DataError(
                f"{self.origin}: cannot be read ({error.strerror}). Check the path's permissions."
            ) from error
        if self.root.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{self.origin}: a file of kind '{self.root.suffix}' is not read. "
                f"Give a {', '.join(SUFFIXES)} file, or a folder of them."
            )
        return {"train": [self.root]}

    def _missing(self) -> str:
        nearest = next((parent for parent in self.root.absolute().parents if parent.is_dir()), Path("/"))
        names = sorted(child.name for child in nearest.iterdir() if not child.name.startswith("."))
        found = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"
        return f"{self.origin}: there is no such file or folder. Found in {nearest}: {found}."

    def _find_in_folder(self) -> dict[str, list[Path]]:
        visible = [
            file
            for file in sorted(self.root.rglob("*"))
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(self.root).parts)
        ]
        files = [file for file in visible if file.suffix.lower() in SUFFIXES]
        if not files:
            others = ", ".join(file.name for file in visible[:4]) or "no file at all"
            raise DataError(f"{self.origin}: no {', '.join(SUFFIXES)} file in this folder. Found: {others}.")
        by_split: dict[str, list[Path]] = {}
        for file in files:
            by_split.setdefault(split_of(file.relative_to(self.root)) or "", []).append(file)
        if "train" not in by_split:
            return {"train": files}
        self._left_out = by_split.pop("", [])
        return by_split

    def records(self, split: str, columns: Sequence[str] = (), order_seed: int | None = None) -> Iterator[Record]:
        """Every record of a split. Raises DataError that names the file and the place of what is unreadable.

        `columns` are all that a parquet file is asked for, where it has them. With `order_seed`, files and
        the row groups of parquet files come in a random order, so that whoever stops early has read a
        sample and not the beginning.
        """
        units = [unit for file in self.by_split[split] for unit in self._units(file)]
        if order_seed is not None:
            random.Random(order_seed).shuffle(units)
        for unit in units:
            readers = {".txt": self._read_txt, ".jsonl": self._read_jsonl}
            read = readers.get(unit.file.suffix.lower())
            try:
                yield from read(unit.file) if read else self._read_parquet(unit, columns)
            except OSError as error:
                raise DataError(f"{unit.file}: cannot be read ({error}).") from error

    def _units(self, file: Path) -> list[_Unit]:
        if file.suffix.lower() != ".parquet":
            return [_Unit(file)]
        return [_Unit(file, group) for group in range(_open_parquet(file).num_row_groups)]

    def _read_txt(self, file: Path) -> Iterator[Record]:
        raw = file.read_bytes()
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # what Windows' Notepad calls Unicode
            yield Record(str(file), {"text": raw.decode("utf-16", errors="replace")})
        else:
            yield Record(str(file), {"text": self._decode(raw, file, 0)})

    def _read_jsonl(self, file: Path) -> Iterator[Record]:
        with file.open("rb") as stream:
            start = 0
            for number, raw in enumerate(stream, 1):
                if raw.strip():
                    yield self._json_record(self._decode(raw, file, start), f"{file}:{number}")
                start += len(raw)

    def _json_record(self, line: str, place: str) -> Record:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{place}: not JSON ({error}). Found: {line.strip()[:60]!r}\n"
                'Each line must be one JSON object, such as {"text": "..."}; a last line may have been cut off.'
            ) from error
        if isinstance(value, str):
            value = {"text": value}
        if not isinstance(value, dict):
            raise DataError(f'{place}: {line.strip()[:60]!r} is not a JSON object, such as {{"text": "..."}}.')
        return Record(place, value)

    def _read_parquet(self, unit: _Unit, columns: Sequence[str]) -> Iterator[Record]:
        parquet = _open_parquet(unit.file)
        asked = [column for column in columns if column in parquet.schema_arrow.names]
        try:
            # When a column is missing, all are read: the complaint about it can then name what was found.
            batches = parquet.iter_batches(
                ROWS_AT_ONCE, row_groups=[unit.row_group], columns=asked if len(asked) == len(columns) else None
            )
            row = 0
            for batch in batches:
                for fields in batch.to_pylist():
                    row += 1
                    yield Record(f"{unit.file} (row {row} of row group {unit.row_group})", fields)
        except ValueError as error:  # pyarrow's own errors derive from it, and so do undecodable strings
            raise DataError(f"{unit.file}: damaged parquet file ({error}). Copy or download it again.") from error

    def _decode(self, raw: bytes, file: Path, start: int) -> str:
        """UTF-8 without its byte order mark; `start` is the place of `raw` in the file."""
        if start == 0 and raw.startswith(codecs.BOM_UTF8):
            start = len(codecs.BOM_UTF8)
            raw = raw[start:]
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            text = raw.decode(errors="replace")
            replaced = text.count("\ufffd") - raw.count("\ufffd".encode())
            count, first = self._replaced.get(file, (0, start + error.start))
            self._replaced[file] = (count + replaced, first)
            return text

    def notes(self) -> list[str]:
        """One line for each thing worth knowing about what has been read so far."""
        notes = [
            f"{file}: {count:,} x not UTF-8 (first at byte {first:,}), read as the replacement character U+FFFD."
            for file, (count, first) in sorted(self._replaced.items())[:5]
        ]
        if len(self._replaced) > 5:
            notes.append(f"{self.origin}: {len(self._replaced) - 5} more files hold characters that are not UTF-8.")
        if self._left_out:
            names = ", ".join(file.name for file in self._left_out[:3])
            names += f" and {len(self._left_out) - 3} more" if len(self._left_out) > 3 else ""
            notes.append(f"{self.origin}: not used, since the name says no split and others' names do: {names}.")
        return notes


def _open_parquet(file: Path) -> Any:
    import pyarrow.parquet  # here, since its import takes a tenth of a second and .txt needs none of it

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a readable parquet file ({error}). Copy or download it again.") from error


def field(record: Record, *names: str) -> Any:
    """The value of the first of `names` that the record has.

    Raises DataError that names the fields found, when the record has none of them.
    """
    for name in names:
        if name in record.fields:
            return record.fields[name]
    found = ", ".join(record.fields) or "none"
    raise DataError(f"{record.place}: no field '{' or '.join(names)}'. Found: {found}.")


def text_of(value: Any, place: str) -> str:
    """The value as text with line ends as `\\n`; a missing value is empty, and a number is its digits.

    Line ends of Windows (`\\r\\n`) are normalised, since a model would otherwise learn two kinds; half
    surrogate pairs, which JSON can spell but no encoding can write, become U+FFFD.

    Raises DataError for a list, an object or a truth value.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{place}: a text is needed. Found: {str(value)[:60]!r} ({type(value).__name__}).")
    text = str(value).replace("\r\n", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
