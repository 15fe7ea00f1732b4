"""Which kind of file is it? Found by what stands in it where that is unmistakable, and by its suffix otherwise."""

import codecs
import json
import re
from dataclasses import dataclass
from pathlib import Path

from dtl.data.local.unpacking import DAMAGE, MAGIC, open_unpacked
from dtl.errors import DataError

KINDS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
READ = ".txt, .jsonl, .json, .csv, .tsv (also packed: .gz, .bz2) or .parquet"  # for messages
PARQUET = b"PAR1"  # its first and its last four bytes
HEAD = 1 << 16  # bytes looked at

# Files that people take for text, or put beside it: named instead of being read as gibberish.
NOT_READ = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive (as .docx, .xlsx and .epub are)",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Word or Excel document",
    b"\xfd7zXZ\x00": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"\x89PNG\r\n": "an image",
    b"\xff\xd8\xff\xe0": "an image",
    b"SQLite format 3\x00": "an SQLite database",
    b"ARROW1\x00\x00": "an Arrow file",
}
BYTE_ORDER_MARKS = (  # the four-byte ones first: they begin with the two-byte ones
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),  # what Windows' Notepad calls Unicode
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Format:
    """How a file is to be read."""

    kind: str  # txt | jsonl | json | csv | parquet
    packing: str = ""  # gz | bz2 | nothing


def encoding_of(head: bytes) -> tuple[str, int]:
    """The encoding that a byte order mark says, and the mark's length. Without one it is UTF-8."""
    return next(((name, len(mark)) for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), ("utf-8", 0))


def suffixes_of(name: str) -> tuple[str, str]:
    """Suffix and packing of a file's name, in lower case: `Part-1.JSONL.gz` has `.jsonl` and `gz`."""
    path = Path(name.lower())
    packing = path.suffix[1:] if path.suffix[1:] in MAGIC else ""
    return (path.with_suffix("") if packing else path).suffix, packing


def has_known_suffix(file: Path) -> bool:
    suffix, packing = suffixes_of(file.name)
    return suffix in KINDS and not (packing and KINDS[suffix] == "parquet")


def recognise(file: Path) -> Format:
    """The format of a file. A file whose suffix says nothing is JSON when it begins so, and text when it can be.

    Raises DataError that says what the file is when it is none that is read; OSError when it cannot be opened.
    """
    suffix, said = suffixes_of(file.name)
    with file.open("rb") as stream:
        head = stream.read(HEAD)
        stream.seek(max(0, stream.seek(0, 2) - len(PARQUET)))
        tail = stream.read()
    packing = next((name for name, magic in MAGIC.items() if head.startswith(magic)), "")
    if said and not packing:
        if MAGIC[said].startswith(head):  # cut off within the first bytes
            packing = said
        elif not _is_text(head):
            raise DataError(f"{file}: neither a {said} file nor text. Copy or download it again.")
    if packing:
        head = _unpacked_head(file, packing)
    if head.startswith(PARQUET) and (packing or tail == PARQUET or suffix not in KINDS):
        if packing:
            raise DataError(f"{file}: a parquet file packed with {packing}. Unpack it first: parquet packs by itself.")
        return Format("parquet")
    for magic, what in NOT_READ.items():
        if head.startswith(magic):
            raise DataError(f"{file}: a file of kind '{suffix}' is not read; it is {what}. Give {READ}.")
    return Format(_kind_by_suffix(file, suffix, head), packing)


def _unpacked_head(file: Path, packing: str) -> bytes:
    try:
        with open_unpacked(file, packing) as stream:
            return stream.read(HEAD)
    except DAMAGE:
        return b""  # reading it will say so, with the place


def _kind_by_suffix(file: Path, suffix: str, head: bytes) -> str:
    encoding, mark = encoding_of(head)
    text = head[mark:].decode(encoding, "ignore").lstrip()
    kind = KINDS.get(suffix)
    if kind == "jsonl":  # some tools write one array, whatever the name says
        return "json" if re.match(r"\[\s*(\{|$)", text) else "jsonl"
    if kind == "json" or (kind is None and re.match(r"\{\s*\"|\[\s*\{", text)):
        return "jsonl" if _begins_with_a_line_of_json(text) else "json"
    if kind is not None:
        return kind
    if re.match(r"(<\?xml[^>]*>\s*)?<mediawiki\b", text):
        raise DataError(f"{file}: a MediaWiki dump is no file of text. Read it with data=wiki data.path={file}.")
    if suffix in (".xml", ".html", ".htm") or not _is_text(head):
        raise DataError(f"{file}: a file of kind '{suffix}' is not read. Give {READ}.")
    return "txt"


def _begins_with_a_line_of_json(text: str) -> bool:
    """Whether the first line is an object, and another follows: a .json that is JSON lines, as many are."""
    line, _, rest = text.partition("\n")
    if not line.startswith("{") or not rest.strip():
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_text(head: bytes) -> bool:
    encoding, mark = encoding_of(head)
    if encoding == "utf-8" and b"\x00" in head:
        return False
    try:
        codecs.getincrementaldecoder(encoding)().decode(head[mark:])  # not final: a character may be cut at its end
    except UnicodeDecodeError:
        return False
    return True
