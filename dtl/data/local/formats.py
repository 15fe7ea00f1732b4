"""Recognition of file formats: by their contents where these are unmistakable, by the suffix otherwise."""

import codecs
import json
import re
from dataclasses import dataclass
from pathlib import Path

from dtl.data.local.unpacking import DAMAGE, MAGIC, compression_of, open_decompressed
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
READ = ".txt, .jsonl, .json, .csv, .tsv (also compressed: .gz, .bz2, .xz, .zst) or .parquet"  # for messages
PARQUET = b"PAR1"  # its first and its last four bytes
HEAD = 1 << 16  # bytes inspected

# Files that users take for text, or keep next to it: rejected by name instead of being read as gibberish.
NOT_READ = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive, as .docx, .xlsx and .epub are (unpack an archive, save a table as .csv)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive (unpack it first: 7z x FILE)",
    b"Rar!\x1a\x07": "a rar archive (unpack it first)",
    b"\x04\x22\x4d\x18": "compressed with lz4 (decompress it first: lz4 -d FILE)",
    b"\x1f\x9d": "compressed with compress (decompress it first: gunzip FILE)",
    b"\x5d\x00\x00": "compressed with lzma (decompress it first: xz -d FILE)",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Word or Excel document",
    b"\x89PNG\r\n": "an image",
    b"\xff\xd8\xff\xe0": "an image",
    b"SQLite format 3\x00": "an SQLite database",
    b"ARROW1\x00\x00": "an Arrow file (write it as parquet or JSON lines)",
}
TAR = slice(257, 262), b"ustar"  # its mark, and where it is
# Files of WikiExtractor: wiki_00, wiki_01, ... without a suffix, in folders AA, AB, ...
_OF_WIKI_EXTRACTOR = re.compile(r"wiki_\d+")
_DOC = re.compile(r"<doc\b[^\n]*\btitle=")  # how they begin, where they are not JSON
BYTE_ORDER_MARKS = (  # the four-byte ones first: they begin with the two-byte ones
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),  # what Windows' Notepad calls Unicode
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Format:
    """The format of a file."""

    kind: str  # txt | docs (WikiExtractor's) | jsonl | json | csv | parquet
    compression: str = ""  # gz | bz2 | xz | zst | nothing


def encoding_of(head: bytes) -> tuple[str, int]:
    """Return the encoding by its byte order mark, and the mark's length; UTF-8 without a mark."""
    return next(((name, len(mark)) for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), ("utf-8", 0))


def suffixes_of(name: str) -> tuple[str, str]:
    """Return suffix and compression of a file's name, in lower case: `.jsonl` and `gz` for `Part-1.JSONL.gz`."""
    path = Path(name.lower())
    compression = {"zstd": "zst"}.get(path.suffix[1:], path.suffix[1:])
    compression = compression if compression in MAGIC else ""
    return (path.with_suffix("") if compression else path).suffix, compression


def has_known_name(name: str) -> bool:
    """Return True for a name that files with text have."""
    suffix, compression = suffixes_of(name)
    if not suffix:
        return _OF_WIKI_EXTRACTOR.match(name) is not None
    return suffix in KINDS and not (compression and KINDS[suffix] == "parquet")


def recognise(file: Path) -> Format:
    """Return the format of a file. Without a known suffix it is JSON if it begins like JSON, and text if it decodes.

    Raises DataError that names the kind of a file that is not supported; OSError when it cannot be opened.
    """
    suffix, named_compression = suffixes_of(file.name)
    with file.open("rb") as stream:
        head = stream.read(HEAD)
        stream.seek(max(0, stream.seek(0, 2) - len(PARQUET)))
        tail = stream.read()
    compression = compression_of(head)
    if named_compression and not compression:
        if MAGIC[named_compression].startswith(head):  # truncated within the first bytes
            compression = named_compression
        elif not _is_text(head):
            raise DataError(f"{file}: neither a {named_compression} file nor text. Copy or download it again.")
    if compression:
        head = decompressed_head(file, compression)
    # Between its marks a parquet file has at least the length of its footer: the text "PAR1" is none.
    if (
        head.startswith(PARQUET)
        and len(head) > 2 * len(PARQUET)
        and (compression or tail == PARQUET or suffix not in KINDS)
    ):
        if compression:
            raise DataError(
                f"{file}: parquet compressed with {compression}. Decompress it: parquet compresses by itself."
            )
        return Format("parquet")
    archive = {b"": "a tar archive (unpack it first: tar xf FILE)"} if head[TAR[0]] == TAR[1] else {}
    for magic, what in (NOT_READ | archive).items():
        if head.startswith(magic):
            named = f", though its name ends in {suffix}" if suffix in KINDS else ""
            raise DataError(f"{file}: is {what}, which is not supported{named}. Give {READ}.")
    return Format(_kind_by_suffix(file, suffix, head), compression)


def decompressed_head(file: Path, compression: str) -> bytes:
    """Return the beginning of a compressed file; empty where it cannot be decompressed."""
    try:
        with open_decompressed(file, compression) as stream:
            return stream.read(HEAD)
    except DAMAGE:
        return b""  # reading it will report the place


def _kind_by_suffix(file: Path, suffix: str, head: bytes) -> str:
    encoding, mark = encoding_of(head)
    text = head[mark:].decode(encoding, "ignore").lstrip()
    kind = KINDS.get(suffix)
    if kind == "jsonl":  # some tools write one array into a .jsonl
        return "json" if re.match(r"\[\s*(\{|$)", text) else "jsonl"
    if kind == "json" or (kind is None and re.match(r"\{\s*\"|\[\s*\{", text)):
        return "jsonl" if _begins_with_a_line_of_json(text) else "json"
    if kind in (None, "txt") and _DOC.match(text):
        return "docs"
    if kind is not None:
        return kind
    if re.match(r"(<\?xml[^>]*>\s*)?<mediawiki\b", text):
        raise DataError(f"{file}: a MediaWiki dump is not a text file. Read it with data=wiki data.path={file}.")
    if suffix in (".xml", ".html", ".htm") or not _is_text(head):
        raise DataError(f"{file}: a file of kind '{suffix}' is not supported. Give {READ}.")
    return "txt"


def _begins_with_a_line_of_json(text: str) -> bool:
    """Return True when the first line is an object and another follows: many a .json is JSON lines."""
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
        codecs.getincrementaldecoder(encoding)().decode(head[mark:])  # not final: the last character may be incomplete
    except UnicodeDecodeError:
        return False
    return True
