"""Reading of local files as records: the files of a path, their splits, and their contents.

Reads .txt (one record per file), .jsonl (one per line), .json (one per element of its list), .csv, .tsv and .parquet
(one per row), and WikiExtractor's files (one per article); all but parquet may be compressed. A wrong encoding never
stops a run: undecodable bytes become U+FFFD, are counted, and reported in a note.
"""

import itertools
import os
import random
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dtl.base.display import say, shell_line
from dtl.base.progress import Pace
from dtl.base.safe_text import in_one_line
from dtl.base.units import number_of
from dtl.data.local.formats import KINDS, READ, Format, encoding_of, has_known_name, recognise, suffixes_of
from dtl.data.local.readers import TEXT_READERS, Record, open_parquet, read_parquet
from dtl.data.local.reading import EXAMPLE, Anomalies, OpenText, describe
from dtl.data.local.unpacking import DAMAGE
from dtl.errors import DataError, nearest

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Files that the Hugging Face hub, `datasets`, Kaggle and repositories store beside the data, about it. In lower case.
METADATA = frozenset({
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json", "metadata.json",
    "dataset-metadata.json", "datapackage.json", "config.json", "manifest.json", "stats.json", "schema.json",
    "package.json", "citation.json", "readme.txt", "license.txt", "licence.txt", "notice.txt", "copying.txt",
    "changelog.txt", "requirements.txt", "sha256sums.txt", "md5sums.txt", "checksums.txt",
})  # fmt: skip
# So many files of other kinds in a folder, and ten times as many as there are with text: the wrong folder. Listing them
# takes a part of a second.
MAX_OTHERS = 20_000
MAX_AT_HOME = 2_000  # files in a home folder, or above it, before it counts as the wrong folder
AT_ONCE = 64  # files, or row groups, read in turn where a sample is drawn
PART_BYTES = 2**20  # of a large file of JSON lines, of which a sample is drawn
FILES_IN_NOTES = 5  # whose anomalies are listed; the others are only counted


Item = TypeVar("Item")


class _Unit(NamedTuple):
    """A part of a file that is read at once: the whole file, a row group of a parquet file, or a range of lines."""

    file: Path
    format: Format
    row_group: int = 0
    part: tuple[int, int] | None = None  # bytes in which its lines begin, of a large file of JSON lines


def split_of(relative: Path) -> str | None:
    """Return the split that a file's path names, by rules much like those of the Hugging Face hub.

    First a folder of exactly such a name (`test/a.txt`), then a separate word in the file's name:
    `train.txt`, `train-00000-of-00008.parquet`, `wiki.valid.txt`, but not `trainers.txt`.
    """
    words = [part.lower() for part in relative.parts[:-1]] + re.split(r"[^a-z]+", relative.name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def files_in(folder: Path, origin: str, wanted: Callable[[str], bool]) -> tuple[list[Path], list[str], int]:
    """Return the wanted files in a folder and its subfolders, sorted, the names of a few others, and their number.

    Hidden files and folders are left out, and links to folders. Raises DataError soon for what is no folder of data: a
    home folder or one above it, and one where few of many files are wanted. Raises OSError.
    """
    home = Path(os.path.expanduser("~")).resolve()
    is_home = folder.resolve() in (home, *home.parents)
    pace = Pace(f"looking through {origin}", say)
    found: list[Path] = []
    others: list[str] = []
    n_others = 0
    folders = [str(folder)]
    while folders:
        at = folders.pop()
        try:
            entries = os.scandir(at)
        except PermissionError:
            if at == str(folder):
                raise
            continue
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file() and wanted(entry.name):
                    found.append(Path(entry.path))
                elif entry.is_file():
                    n_others += 1
                    others = sorted([*others, entry.name])[:4]
                if is_home and len(found) + n_others > MAX_AT_HOME:
                    raise DataError(
                        f"{origin}: a home folder, or one above it, with more than {MAX_AT_HOME:,} files. Give the "
                        "folder in it that holds the texts."
                    )
                if n_others > max(MAX_OTHERS, 10 * len(found)):
                    raise DataError(
                        f"{origin}: more than {n_others - 1:,} files, and {len(found):,} of them are of a kind that "
                        f"holds text. Give the folder in it that holds the texts ({READ})."
                    )
            pace.report(f"{len(found) + n_others:,} files")
    return sorted(found), others, n_others


class LocalFiles:
    """The readable files under a path, by split, and the anomalies found while reading them.

    `key` is the setting that gave the path, for messages. With `allow_truncated` the readable part of a truncated or
    damaged file is kept, and a note reports it. A folder is searched with its subfolders, in sorted order, without
    hidden and empty files, and those that only describe the data, for files of a known suffix; a single file may have
    any. Names count as splits when at
    least one of them is `train` (then files that name no split are left out); otherwise every file is training text.

    Raises DataError when there is nothing to read at the path.
    """

    def __init__(
        self,
        path: str,
        key: str,
        allow_truncated: bool = False,
        encoding: str | None = None,
        example: str = EXAMPLE,
    ) -> None:
        """`example`: of a JSON record, for messages."""
        self._encoding = encoding  # of all files; None: each file's own
        self._example = example
        self.origin = f"{key}={path}"
        self._allow_truncated = allow_truncated
        self.root = Path(os.path.expanduser(path))  # Path.expanduser raises for ~nobody
        if not path.strip():
            raise DataError(f"{key}='': an empty path. Give a file or a folder.")
        self._anomalies: dict[_Unit, Anomalies] = {}
        self._left_out: list[Path] = []
        self._empty: list[Path] = []
        self._metadata: list[Path] = []
        self._others: list[str] = []  # a few names of files of other kinds
        self._n_others = 0
        self._n_numbers = 0  # read as texts
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
        key, _, typed = self.origin.partition("=")
        there = next((parent for parent in Path(typed).parents if os.path.isdir(os.path.expanduser(parent))), Path())
        children = Path(os.path.expanduser(there)).iterdir()
        names = sorted(child.name for child in children if not child.name.startswith("."))
        # First those that may be what was meant: the working directory is often a checkout, with documents in it.
        names.sort(key=lambda name: not has_known_name(name) or name.lower() in METADATA)
        listing = ", ".join(names[:6]) + (", ..." if len(names) > 6 else ".") if names else "nothing."
        lacking, *below = Path(typed).relative_to(there).parts
        # As it is to be typed: a name alone, without its folder, would not be found either.
        near = nearest(lacking, names)
        whole = [] if near is None else [there / near, (there / near).joinpath(*below)]
        meant = next((path for path in reversed(whole) if os.path.exists(os.path.expanduser(path))), None)
        hint = f" Did you mean {shell_line([f'{key}={meant}'])}?" if meant else ""
        if os.name != "nt" and re.match(r"[A-Za-z]:|[^/]*\\", typed):
            hint = " It is a path of Windows; here folders are separated by /, as in my_data/pairs.csv"
            hint += f" (in WSL {typed[:2]} is /mnt/{typed[0].lower()})." if typed[1:2] == ":" else "."
        where = "this folder" if there == Path() else there
        return f"{self.origin}: there is no such file or folder. Found in {where}: {listing}{hint}"

    def _find_in_folder(self) -> dict[str, list[Path]]:
        files, others, self._n_others = files_in(self.root, self.origin, has_known_name)
        self._others = others
        self._metadata = [file for file in files if file.name.lower() in METADATA]
        if len(self._metadata) < len(files) or others:  # where it is the only file, it is the data
            files = [file for file in files if file not in set(self._metadata)]
        else:
            self._metadata = []
        if not files:
            found = ", ".join(others) or "no file at all"
            arrow = " An .arrow file of `datasets` becomes one of these with its to_json() or to_parquet()."
            raise DataError(
                f"{self.origin}: no {READ} file in this folder. Found: {found}.{arrow if '.arrow' in found else ''}"
            )
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
        files, the row groups of parquet files and parts of large files of JSON lines come in a random order, a record
        of each in turn, so that a reader that stops early has a sample of all files and not the beginning of one. Other
        files, whose records begin nowhere else for certain, are read from their beginning.
        """
        units = [unit for file in self.by_split[split] for unit in _units(file)]
        if order_seed is not None:
            units = [part for unit in units for part in _parts(unit, self._encoding)]
            random.Random(order_seed).shuffle(units)
        yield from in_turn((self._read(unit, columns) for unit in units), AT_ONCE if order_seed is not None else 1)

    def _read(self, unit: _Unit, columns: Sequence[str]) -> Iterator[Record]:
        anomalies = self._anomalies[unit] = Anomalies()  # replaced: a second read must not count twice
        if unit.format.kind == "parquet":
            return read_parquet(unit.file, unit.row_group, columns, anomalies)
        return _text_records(unit, anomalies, self._allow_truncated, self._encoding, self._example)

    def texts(
        self, split: str, column: str, others: Sequence[str], order_seed: int | None, name: str
    ) -> Iterator[tuple[Record, str]]:
        """Yield every record of a split with its text: the field `column`; `others` are read too. `name` is the
        source's. Raises DataError for a column with numbers only, which is another one than was meant."""
        n_texts = n_numbers = 0
        for record in self.records(split, (*others, column), order_seed):
            value = field(record, column, remedy=other_column(name))
            n_texts += 1
            if isinstance(value, int | float | Decimal) and value == value:  # no missing number
                n_numbers += 1
                self._n_numbers += 1
            yield record, text_of(value, record.place)
        if n_numbers == n_texts > 0:
            raise DataError(f"{self.origin}: column {column!r} holds numbers only, no text.{other_column(name)}NAME")

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
        if self._n_numbers:
            notes.append(
                f"{self.origin}: {number_of('numbers', self._n_numbers)} in the column of text, read as digits."
            )
        if self._empty:
            notes.append(f"{self.origin}: empty files (0 bytes) left out: {_listed(self._empty)}.")
        n_extracted = len({unit.file for unit in self._anomalies if unit.format.kind == "docs"})
        if n_extracted:
            notes.append(f"{self.origin}: {number_of('files', n_extracted)} of WikiExtractor, each <doc> an article.")
        if self._metadata:
            notes.append(f"{self.origin}: files about the data, not read: {_listed(self._metadata)}.")
        if self._others:
            names = listed(self._others, self._n_others)
            notes.append(f"{self.origin}: {number_of('files', self._n_others)} of other kinds not read: {names}.")
        if self._left_out:
            names = _listed(self._left_out)
            notes.append(f"{self.origin}: not used, since only other files' names name a split: {names}.")
        return notes


def in_turn(parts: Iterator[Iterator[Item]], at_once: int) -> Iterator[Item]:
    """Yield an item of each part in turn, of at most `at_once` at a time: the next begins where one ends."""
    opened = deque(itertools.islice(parts, at_once))
    while opened:
        part = opened.popleft()
        for item in part:
            yield item
            opened.append(part)
            break
        else:
            opened.extend(itertools.islice(parts, 1))


def listed(names: Sequence[str], n: int | None = None) -> str:
    """Return the first three names, and how many more there are; `n`: of how many, where these are only some."""
    first, n = [in_one_line(name) for name in names[:3]], len(names) if n is None else n
    return f"{', '.join(first)} and {n - len(first)} more" if n > len(first) else ", ".join(first)


def _listed(files: Sequence[Path]) -> str:
    return listed([file.name for file in files])


def _units(file: Path) -> list[_Unit]:
    try:
        format = recognise(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}).") from error
    if format.kind != "parquet":
        return [_Unit(file, format)]
    return [_Unit(file, format, group) for group in range(open_parquet(file).num_row_groups)]


def _parts(unit: _Unit, encoding: str | None) -> list[_Unit]:
    """Return the parts of a large file of JSON lines, of about PART_BYTES each; any other unit as it is."""
    with unit.file.open("rb") as stream:
        is_utf8 = encoding_of(stream.read(4))[0] == "utf-8" and encoding is None
        n_bytes = stream.seek(0, os.SEEK_END)
    if unit.format != Format("jsonl") or not is_utf8 or n_bytes < 2 * PART_BYTES:
        return [unit]
    ends = [number * PART_BYTES for number in range(n_bytes // PART_BYTES)] + [n_bytes]
    return [unit._replace(part=part) for part in itertools.pairwise(ends)]


def _text_records(
    unit: _Unit, anomalies: Anomalies, allow_truncated: bool, encoding: str | None, example: str
) -> Iterator[Record]:
    n_read = position = 0
    compression = unit.format.compression
    try:
        with OpenText(unit.file, compression, anomalies, allow_truncated, encoding, example, unit.part) as text:
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
            f"({error}); {unit.file.stat().st_size:,} bytes compressed. Read before it: "
            f"{number_of('records', n_read)}, of which none is kept. "
            "Copy or download it again, or keep what comes before with data.allow_truncated=true."
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
    if remedy and is_question({*named}):
        remedy = " Questions with answers are read with data=qa data.qa.path=PATH."
    elif remedy:  # ready to paste: the column with the longest text
        by_length = {name: len(value) for name, value in record.fields.items() if isinstance(value, str)}
        longest = str(max(by_length, key=by_length.__getitem__, default="NAME"))
        remedy = f"{remedy}{quoted_name(longest)}."
    raise DataError(f"{record.place}: no field {either(names)}. Found: {present}.{remedy}")


def either(names: Sequence[str]) -> str:
    """Return names of which one is needed: `'a', 'b' or 'c'`."""
    *others, last = (f"'{name}'" for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def is_question(names: Set[str]) -> bool:
    """Return True for the fields of a question with its answer, or of a chat."""
    asked, answered = {"question", "instruction", "prompt"}, {"answer", "answers", "output", "response", "completion"}
    return bool({"messages", "conversations"} & names or (asked & names and answered & names))


def quoted_name(name: str) -> str:
    """Return a column's name as it is written in a setting: in quotes unless it is a plain word."""
    return name if re.fullmatch(r"[\w.-]+", name) else f'"{name}"'


def other_column(name: str) -> str:
    """Return the remedy for a file of the source `name` that has its text in another column, up to its name."""
    return f" To read another one: data.sources.{name}.column="


def raise_if_without_columns(files: LocalFiles, name: str, column: str | None) -> None:
    """Raise DataError for the `column` of a source `name` among whose files is a plain text, which has none."""
    if column is None:
        return
    for file in files.paths():
        if KINDS.get(suffixes_of(file.name)[0], "txt") == "txt" and recognise(file).kind == "txt":
            alone = len(files.paths()) == 1
            raise DataError(
                f"data.sources.{name}.column={column}: {file} is a plain text, which has no columns. Leave the "
                f"setting out{'' if alone else ', or give a folder without such files'}."
            )


def text_of(value: Any, place: str) -> str:
    """Return the value as text with line ends as `\\n`; a missing value is empty, a number its digits, a date ISO.

    Line ends of Windows (`\\r\\n`) are normalised, since a model would otherwise learn two kinds; half
    surrogate pairs, which JSON can spell but no encoding can write, become U+FFFD.

    Raises DataError for a list, an object or a boolean.
    """
    if value is None or value != value:  # NaN, a missing number
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal | date):
        raise DataError(f"{place}: text is needed. Found: {str(value)[:60]!r} ({type(value).__name__}).")
    text = str(value).replace("\r\n", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
