"""Local files as records: which files a path holds, to which split each belongs, and what stands in them.

Reads .txt (the file is one record), .jsonl (a line is one), .json (an element of its list is one), .csv, .tsv and
.parquet (a row is one); all but parquet may be packed (.gz, .bz2). A wrong encoding never stops a run: what cannot
be read is replaced by U+FFFD, counted, and told in a note.
"""

import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dtl.data.local.formats import READ, Format, has_known_suffix, recognise
from dtl.data.local.readers import TEXT_READERS, Record, open_parquet, read_parquet
from dtl.data.local.reading import Oddities, OpenText, describe
from dtl.data.local.unpacking import DAMAGE
from dtl.errors import DataError

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FILES_IN_NOTES = 5  # of which oddities are told; of the others only how many they are


class _Unit(NamedTuple):
    """A stretch of a file that is read in one go: the whole file, or one row group of a parquet file."""

    file: Path
    format: Format
    row_group: int = 0


def split_of(relative: Path) -> str | None:
    """The split that a file's place says, much as the Hugging Face hub reads it.

    First a folder of exactly such a name (`test/a.txt`), then a word in the file's name that stands alone:
    `train.txt`, `train-00000-of-00008.parquet`, `wiki.valid.txt`, but not `trainers.txt`.
    """
    words = [part.lower() for part in relative.parts[:-1]] + re.split(r"[^a-z]+", relative.name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


class LocalFiles:
    """The readable files under a path, by split, and what was noticed while they were read.

    `key` is the setting that gave the path, for messages. With `allow_truncated` what can be read of a file that is
    cut off or damaged is kept, and told. A folder is searched with its subfolders, in
    sorted order, without hidden and empty files, for files of a known suffix; a single file may have any.
    Names count as splits when at least one of them says `train` (then files that name no split are left
    out); otherwise every file is training text.

    Raises DataError when there is nothing to read at the path.
    """

    def __init__(self, path: str, key: str, allow_truncated: bool = False) -> None:
        self.origin = f"{key}={path}"
        self._allow_truncated = allow_truncated
        self.root = Path(os.path.expanduser(path))  # Path.expanduser raises for ~nobody
        if not path.strip():
            raise DataError(f"{key}='': an empty path. Give a file or a folder.")
        self._oddities: dict[_Unit, Oddities] = {}
        self._left_out: list[Path] = []
        self._empty: list[Path] = []
        self.by_split = self._find()

    def paths(self) -> list[Path]:
        """All files, whatever their split."""
        return [file for of_split in self.by_split.values() for file in of_split]

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
        found = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"
        return f"{self.origin}: there is no such file or folder. Found in {nearest}: {found}."

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
        """Every record of a split. Raises DataError that names the file and the place of what is unreadable.

        `columns` (lower case) are all that a parquet file is asked for, where it has them; none means all. With
        `order_seed`, files and the row groups of parquet files come in a random order, so that whoever stops
        early has read a sample and not the beginning.
        """
        units = [unit for file in self.by_split[split] for unit in _units(file)]
        if order_seed is not None:
            random.Random(order_seed).shuffle(units)
        for unit in units:
            oddities = self._oddities[unit] = Oddities()  # anew: who reads twice has not seen twice as many
            if unit.format.kind == "parquet":
                yield from read_parquet(unit.file, unit.row_group, columns, oddities)
            else:
                yield from _text_records(unit, oddities, self._allow_truncated)

    def notes(self) -> list[str]:
        """One line for each thing worth knowing about what has been read so far."""
        by_file: dict[Path, list[Oddities]] = {}
        for unit in sorted(self._oddities):
            by_file.setdefault(unit.file, []).append(self._oddities[unit])
        # What is missing is said first.
        by_weight = sorted(by_file.items(), key=lambda item: not any(part.end for part in item[1]))
        odd = [line for file, parts in by_weight if (line := describe(file, parts))]
        notes = odd[:FILES_IN_NOTES]
        if len(odd) > FILES_IN_NOTES:
            notes.append(f"{self.origin}: {len(odd) - FILES_IN_NOTES} more files are odd in such ways.")
        if self._empty:
            notes.append(f"{self.origin}: empty files (0 bytes) left out: {_listed(self._empty)}.")
        if self._left_out:
            names = _listed(self._left_out)
            notes.append(f"{self.origin}: not used, since the name says no split and others' names do: {names}.")
        return notes


def _listed(files: Sequence[Path]) -> str:
    names = ", ".join(file.name for file in files[:3])
    return f"{names} and {len(files) - 3} more" if len(files) > 3 else names


def _units(file: Path) -> list[_Unit]:
    try:
        found = recognise(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}).") from error
    if found.kind != "parquet":
        return [_Unit(file, found)]
    return [_Unit(file, found, group) for group in range(open_parquet(file).num_row_groups)]


def _text_records(unit: _Unit, oddities: Oddities, allow_truncated: bool) -> Iterator[Record]:
    n_read = position = 0
    packing = unit.format.packing
    try:
        with OpenText(unit.file, packing, oddities, allow_truncated) as text:
            for record in TEXT_READERS[unit.format.kind](text):
                yield record
                n_read += 1
                position = text.position
            oddities.end = text.end(n_read)
    except DAMAGE as error:
        if not packing:
            raise DataError(f"{unit.file}: cannot be read ({error}).") from error
        raise DataError(
            f"{unit.file}: a {packing} file that is cut off or damaged after unpacked byte {position:,} "
            f"({error}); {unit.file.stat().st_size:,} bytes packed. Read before it: {n_read:,} records, of which "
            "none is kept. Copy or download it again, or keep what comes before with data.allow_truncated=true."
        ) from error


def field(record: Record, *names: str) -> Any:
    """The value of the first of `names` (lower case) that the record has, in any case and with any space around it.

    Raises DataError that names the fields found, when the record has none of them.
    """
    for name in names:
        if name in record.fields:
            return record.fields[name]
    named = {str(key).strip().casefold(): value for key, value in record.fields.items()}
    for name in names:
        if name in named:
            return named[name]
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
