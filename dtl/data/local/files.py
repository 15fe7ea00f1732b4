"""Reading of local files as records: the files of a path, their splits, and their contents.

Reads .txt (one record per file), .jsonl (one per line), .json (one per element of its list), .csv, .tsv and .parquet
(one per row); all but parquet may be compressed (.gz, .bz2). A wrong encoding never stops a run: undecodable bytes
become U+FFFD, are counted, and reported in a note.
"""

import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dtl.data.local.formats import READ, Format, has_known_suffix, recognise
from dtl.data.local.readers import TEXT_READERS, Record, open_parquet, read_parquet
from dtl.data.local.reading import Anomalies, OpenText, describe
from dtl.data.local.unpacking import DAMAGE
from dtl.errors import DataError

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FILES_IN_NOTES = 5  # whose anomalies are listed; the others are only counted


class _Unit(NamedTuple):
    """A part of a file that is read at once: the whole file, or one row group of a parquet file."""

    file: Path
    format: Format
    row_group: int = 0


def split_of(relative: Path) -> str | None:
    """Return the split that a file's path names, by rules much like those of the Hugging Face hub.

    First a folder of exactly such a name (`test/a.txt`), then a separate word in the file's name:
    `train.txt`, `train-00000-of-00008.parquet`, `wiki.valid.txt`, but not `trainers.txt`.
    """
    words = [part.lower() for part in relative.parts[:-1]] + re.split(r"[^a-z]+", relative.name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


class LocalFiles:
    """The readable files under a path, by split, and the anomalies found while reading them.

    `key` is the setting that gave the path, for messages. With `allow_truncated` the readable part of a truncated or
    damaged file is kept, and a note reports it. A folder is searched with its subfolders, in sorted order, without
    hidden and empty files, for files of a known suffix; a single file may have any. Names count as splits when at
    least one of them is `train` (then files that name no split are left out); otherwise every file is training text.

    Raises DataError when there is nothing to read at the path.
    """

    def __init__(self, path: str, key: str, allow_truncated: bool = False) -> None:
        self.origin = f"{key}={path}"
        self._allow_truncated = allow_truncated
        self.root = Path(os.path.expanduser(path))  # Path.expanduser raises for ~nobody
        if not path.strip():
            raise DataError(f"{key}='': an empty path. Give a file or a folder.")
        self._anomalies: dict[_Unit, Anomalies] = {}
        self._left_out: list[Path] = []
        self._empty: list[Path] = []
        self.by_split = self._find()

    def paths(self) -> list[Path]:
        """Return the files of all splits."""
        return [file for files in self.by_split.values() for file in files]

    def _find(self) -> dict[str, list[Path]]:
        try:
            if self.root.is_dir():
                return self._find_in_folder()
            if not self.root.exists():
                raise DataError(self._missing())
            if not self.root.is_file():
                raise DataError(f"{self.origin}: neither a file nor a folder. Give {READ}, or a folder of them.")
            if not self.root.stat().st_size:
                raise DataError(f"{self.origin}: an empty file (0 bytes). Needed: at least one record with text.")
            recognise(self.root)
        except OSError as error:
            raise DataError(
                f"{self.origin}: cannot be read ({error.strerror}). Check the path's permissions."
            ) from error
        return {"train": [self.root]}

    def _missing(self) -> str:
        nearest = next((parent for parent in self.root.absolute().parents if parent.is_dir()), Path("/"))
        names = sorted(child.name for child in nearest.iterdir() if not child.name.startswith("."))
        listing = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"
        return f"{self.origin}: there is no such file or folder. Found in {nearest}: {listing}."

    def _find_in_folder(self) -> dict[str, list[Path]]:
        visible = [
            file
            for file in sorted(self.root.rglob("*"))
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(self.root).parts)
        ]
        files = [file for file in visible if has_known_suffix(file)]
        if not files:
            others = ", ".join(file.name for file in visible[:4]) or "no file at all"
            raise DataError(f"{self.origin}: no {READ} file in this folder. Found: {others}.")
        self._empty = [file for file in files if not file.stat().st_size]
        files = [file for file in files if file not in set(self._empty)]
        if not files:
            raise DataError(
                f"{self.origin}: nothing but empty files in this folder. Found: {_listed(self._empty)} (0 bytes each). "
                "Needed: at least one record with text."
            )
        by_split: dict[str, list[Path]] = {}
        for file in files:
            by_split.setdefault(split_of(file.relative_to(self.root)) or "", []).append(file)
        if "train" not in by_split:
            return {"train": files}
        self._left_out = by_split.pop("", [])
        return by_split

    def records(self, split: str, columns: Sequence[str] = (), order_seed: int | None = None) -> Iterator[Record]:
        """Yield every record of a split. Raises DataError with the file and place of unreadable data.

        Of a parquet file only `columns` (lower case) are read, where it has them; none means all. With `order_seed`,
        files and the row groups of parquet files come in a random order, so that a reader that stops early has a
        sample and not the beginning.
        """
        units = [unit for file in self.by_split[split] for unit in _units(file)]
        if order_seed is not None:
            random.Random(order_seed).shuffle(units)
        for unit in units:
            anomalies = self._anomalies[unit] = Anomalies()  # replaced: a second read must not count twice
            if unit.format.kind == "parquet":
                yield from read_parquet(unit.file, unit.row_group, columns, anomalies)
            else:
                yield from _text_records(unit, anomalies, self._allow_truncated)

    def notes(self) -> list[str]:
        """Return messages for the user on what has been read so far, one line each."""
        by_file: dict[Path, list[Anomalies]] = {}
        for unit in sorted(self._anomalies):
            by_file.setdefault(unit.file, []).append(self._anomalies[unit])
        # Truncated files first.
        by_weight = sorted(by_file.items(), key=lambda item: not any(part.end for part in item[1]))
        lines = [line for file, parts in by_weight if (line := describe(file, parts))]
        notes = lines[:FILES_IN_NOTES]
        if len(lines) > FILES_IN_NOTES:
            notes.append(f"{self.origin}: {len(lines) - FILES_IN_NOTES} more files have such anomalies.")
        if self._empty:
            notes.append(f"{self.origin}: empty files (0 bytes) left out: {_listed(self._empty)}.")
        if self._left_out:
            names = _listed(self._left_out)
            notes.append(f"{self.origin}: not used, since only other files' names name a split: {names}.")
        return notes


def _listed(files: Sequence[Path]) -> str:
    names = ", ".join(file.name for file in files[:3])
    return f"{names} and {len(files) - 3} more" if len(files) > 3 else names


def _units(file: Path) -> list[_Unit]:
    try:
        format = recognise(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}).") from error
    if format.kind != "parquet":
        return [_Unit(file, format)]
    return [_Unit(file, format, group) for group in range(open_parquet(file).num_row_groups)]


def _text_records(unit: _Unit, anomalies: Anomalies, allow_truncated: bool) -> Iterator[Record]:
    n_read = position = 0
    compression = unit.format.compression
    try:
        with OpenText(unit.file, compression, anomalies, allow_truncated) as text:
            for record in TEXT_READERS[unit.format.kind](text):
                yield record
                n_read += 1
                position = text.position
            anomalies.end = text.end(n_read)
    except DAMAGE as error:
        if not compression:
            raise DataError(f"{unit.file}: cannot be read ({error}).") from error
        raise DataError(
            f"{unit.file}: a {compression} file that is cut off or damaged after decompressed byte {position:,} "
            f"({error}); {unit.file.stat().st_size:,} bytes compressed. Read before it: {n_read:,} records, of which "
            "none is kept. Copy or download it again, or keep what comes before with data.allow_truncated=true."
        ) from error


def field(record: Record, *names: str, remedy: str = "") -> Any:
    """Return the value of the first of `names` that the record has, ignoring case and surrounding space.

    Raises DataError with the names of its fields, and the `remedy`, when the record has none of them.
    """
    for name in names:
        if name in record.fields:
            return record.fields[name]
    named = {str(key).strip().casefold(): value for key, value in record.fields.items()}
    for name in names:
        if (plain := name.strip().casefold()) in named:
            return named[plain]
    present = ", ".join(map(str, record.fields)) or "none"
    raise DataError(f"{record.place}: no field '{' or '.join(names)}'. Found: {present}.{remedy}")


def other_column(name: str) -> str:
    """Return the remedy for a file of the source `name` that has its text in another column."""
    return f" To read another one: data.sources.{name}.column=NAME."


def text_of(value: Any, place: str) -> str:
    """Return the value as text with line ends as `\\n`; a missing value is empty, and a number is its digits.

    Line ends of Windows (`\\r\\n`) are normalised, since a model would otherwise learn two kinds; half
    surrogate pairs, which JSON can spell but no encoding can write, become U+FFFD.

    Raises DataError for a list, an object or a boolean.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{place}: text is needed. Found: {str(value)[:60]!r} ({type(value).__name__}).")
    text = str(value).replace("\r\n", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
