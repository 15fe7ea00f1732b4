"""Decoding of one file to text; anomalies (wrong encoding, NUL, ...) are counted, with the place of the first.

No anomaly stops a run. Undecodable bytes become U+FFFD; a note reports the counts and first places.
"""

import codecs
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtl.base.units import number_of
from dtl.data.local.formats import encoding_of
from dtl.data.local.unpacking import UpToDamage, open_decompressed
from dtl.errors import DataError

# Kinds of anomalies, and what is done about each.
NOT_UTF8 = "not UTF-8"
NUL = "NUL"
CRLF = "Windows line end"
SURROGATE = "half a surrogate pair"
MARK = "byte order mark"
UNENDED = "last row without a line end"
DONE = {
    NOT_UTF8: "read as the replacement character U+FFFD",
    NUL: "left out of texts, kept in questions and answers",
    CRLF: "read as \\n",
    SURROGATE: "read as U+FFFD",
    MARK: "left out",
    UNENDED: "kept, though its end may be missing",
}

CUT_OFF = "the file may have been cut off: copy or download it again"
KEEP_BEGINNING = ", or keep what comes before with data.allow_truncated=true"
LINES_IN_NOTES = 3  # listed of the rows that were left out; the others are only counted

# Binary data has some 10 % and more. Not counted: white space, and what terminals' logs (escape), Hive's tables and
# old Asian encodings (shift in and out) have between their words.
_CONTROL = re.compile("[\x00\x02-\x08\x10-\x1a\x1c-\x1d\x7f]")
MAX_CONTROL_FRACTION, MAX_CONTROLS = 0.05, 100  # at the beginning of a text: binary data has more than both
BYTES_JUDGED = 8192

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass
class Anomalies:
    """The anomalies of one file, or of one row group of a parquet file."""

    counts: dict[str, tuple[int, str]] = field(default_factory=dict)  # kind -> how often, place of the first
    rows_left_out: int = 0  # of CSV, with another number of fields than the header
    lines_left_out: list[int] = field(default_factory=list)  # where the first of them begin
    guess: str = ""  # the likely encoding of a file that is not UTF-8
    end: str = ""  # why the rest was not read, and how much is kept

    def leave_out_row(self, line: int) -> None:
        self.rows_left_out += 1
        if len(self.lines_left_out) < LINES_IN_NOTES:
            self.lines_left_out.append(line)

    def add(self, kind: str, count: int, place: str) -> None:
        if count:
            before, first = self.counts.get(kind, (0, place))
            self.counts[kind] = (before + count, first)

    def inspect(self, value: Any, place: str) -> None:
        """Count the anomalies in the strings of a value that was parsed from a file."""
        if isinstance(value, str):
            self.add(NUL, value.count("\x00"), place)
            self.add(CRLF, value.count("\r\n"), place)
            if not value.isascii():
                self.add(SURROGATE, len(_SURROGATES.findall(value)), place)
        elif isinstance(value, dict | list):
            for child in value.values() if isinstance(value, dict) else value:
                self.inspect(child, place)


def describe(file: Path, parts: list[Anomalies]) -> str | None:
    """Return one line about a file: `a.txt: 2 x not UTF-8 (first at byte 15), read as ...; 3 x NUL ...`."""
    total = Anomalies()
    for part in parts:
        for kind, (count, place) in part.counts.items():
            total.add(kind, count, place)
    notes = [f"{count:,} x {kind} (first at {place}), {_done(kind)}" for kind, (count, place) in total.counts.items()]
    guess = next((part.guess for part in parts if part.guess), "")
    if guess or NOT_UTF8 in total.counts:
        notes.append(
            f"probably {guess}: data.encoding={guess} reads it"
            if guess
            else "data.encoding=NAME reads it in its own encoding, such as cp1251, shift_jis or gb18030"
        )
    for part in parts:
        if part.rows_left_out:
            lines = ", ".join(map(str, part.lines_left_out)) + (", ..." if part.rows_left_out > LINES_IN_NOTES else "")
            notes.append(
                f"{part.rows_left_out:,} x row with another number of fields than the header (line {lines}), left out"
            )
        if part.end:
            notes.insert(0, part.end)
    return f"{file}: {'; '.join(notes)}." if notes else None


def read_before(n_records: int) -> str:
    """Return the end of an error message after so many records."""
    return f" Read before it: {number_of('records', n_records)}, of which none is kept." if n_records else ""


def _done(kind: str) -> str:
    return DONE[kind] if kind in DONE else DONE[NOT_UTF8] if kind.startswith("not ") else "converted"


def likely_encoding(raw: bytes) -> str:
    """Return the likely encoding of bytes that are not UTF-8; empty where none is likely.

    Two guesses that are rarely wrong: UTF-16 without a mark by its zeros, and Western letters by their being few.
    """
    zeros = [raw[start::2].count(0) for start in (0, 1)]
    if max(zeros) > len(raw) / 8:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    high = bytes(byte for byte in raw if byte > 127)
    letters = len(re.findall(rb"[A-Za-z\x80-\xff]", raw))
    # Of German, French or Spanish letters 2 to 8 % are beyond ASCII, of Czech or Turkish in their encodings up to 15 %,
    # of Russian or Greek nearly all.
    if len(high) > max(2, letters / 4):
        return ""
    try:
        text = high.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return (
        "cp1252"
        if sum(c.isalpha() or c in "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\xab\xbb\xb0\u20ac\xa3" for c in text) * 2
        > len(text)
        else ""
    )


def _wide_encoding(head: bytes) -> str:
    """Return the encoding of the beginning of a text in UTF-16 without a mark; empty for any other."""
    guess = likely_encoding(head)
    wide = head[: len(head) // 2 * 2].decode(guess, "replace") if guess.startswith("utf-16") else ""
    return guess if wide and len(_CONTROL.findall(wide)) <= MAX_CONTROL_FRACTION * len(wide) else ""


def _raise_if_binary(file: Path, head: bytes, encoding: str, compressed: bool) -> None:
    """Raise DataError for the beginning of a file that is no text in its encoding: an image or a program with another
    name. A few control characters are an anomaly like others."""
    text = head.decode(encoding, "replace")
    count = len(_CONTROL.findall(text))
    if count <= MAX_CONTROLS or count <= MAX_CONTROL_FRACTION * len(text):
        return
    clean = f"tr -d '\\000-\\010\\020-\\032' < {shlex.quote(str(file))} > cleaned{file.suffix}"
    raise DataError(
        f"{file}: {count / len(text):.0%} of its first {len(text):,} characters are control characters, such as NUL; "
        f"of a text at most {MAX_CONTROL_FRACTION:.0%} are. It is binary data, such as an image, an archive or a "
        "program with the name of a text: leave it out. A text in another encoding is read with data.encoding=NAME, "
        f"such as utf-32-le{'' if compressed else f'; a damaged text after {clean}'}."
    )


EXAMPLE = '{"text": "..."}'


class OpenText:
    """A text file that is being read. `position` counts the bytes read, decompressed ones of a compressed file.

    Raises OSError, EOFError or zlib.error when it cannot be read to its end; with `allow_truncated` a compressed file
    ends where its damage begins. Raises DataError for a file that begins with binary data.
    """

    def __init__(
        self,
        file: Path,
        compression: str,
        anomalies: Anomalies,
        allow_truncated: bool = False,
        encoding: str | None = None,
        example: str = EXAMPLE,
        part: tuple[int, int] | None = None,
    ) -> None:
        """`example`: of a JSON record, for messages. `part`: the range of bytes in which the lines to read begin, of a
        file that is not compressed."""
        self._given = encoding
        self.example = example
        self.part = part
        self.file = file
        self.anomalies = anomalies
        self.allow_truncated = allow_truncated
        self._end_left_out_at: int | None = None
        self._unit = "decompressed byte" if compression else "byte"
        self._readable = UpToDamage(file, compression) if compression and allow_truncated else None
        self._stream = io.BufferedReader(self._readable) if self._readable else open_decompressed(file, compression)
        self.encoding, self.position = "utf-8", 0
        self.wide = ""  # the likely encoding of a text in UTF-16 that does not begin with its mark

    def __enter__(self) -> "OpenText":
        try:
            self.encoding, mark = encoding_of(self._stream.peek(4)[:4])
            if self._given is not None:
                wide = self._given.lower().replace("_", "-") in ("utf-16", "utf-32")
                given = self.encoding if wide and mark else f"{self._given}-le" if wide else self._given
                mark = mark if codecs.lookup(given) == codecs.lookup(self.encoding) else 0
                self.encoding = given
            head = self._stream.peek(BYTES_JUDGED)[mark:BYTES_JUDGED]
            wide_encoding = "" if self._given else _wide_encoding(head)
            if not wide_encoding:  # every second byte of UTF-16 is a zero
                _raise_if_binary(self.file, head, self.encoding, compressed=self._unit != "byte")
            # No name of a column or field would be found.
            self.wide = "" if mark else wide_encoding
            self._stream.read(mark)
        except BaseException:
            self._stream.close()
            raise
        if mark:
            kind = MARK if self.encoding == "utf-8" else f"byte order mark of {self.encoding.upper()}"
            self.anomalies.add(kind, 1, self.at(0))
        self.position = mark
        if self.part is not None and self.part[0] > mark:
            self._stream.seek(self.part[0] - 1)
            self.position = self.part[0] - 1 + len(self._stream.readline())  # the line before belongs to another part
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def damage(self) -> BaseException | None:
        """The error that ended a compressed file early, where that is allowed."""
        return self._readable.damage if self._readable else None

    def leave_out_end(self, start: int) -> None:
        """Note that the record that begins at byte `start` is incomplete and left out."""
        self._end_left_out_at = start

    def end(self, n_read: int) -> str:
        """Return why and where reading ended early, and how much is kept; empty for a complete file."""
        if self._end_left_out_at is None and self.damage is None:
            return ""
        kept = self.position if self._end_left_out_at is None else self._end_left_out_at
        why = f"cut off or damaged ({self.damage})" if self.damage is not None else "cut off within its last record"
        return (
            f"{why}; data.allow_truncated=true keeps what comes before {self.at(kept)}: {number_of('records', n_read)}"
        )

    def at(self, byte: int) -> str:
        return f"{self._unit} {byte:,}"

    def read(self, note_line_ends: bool = False) -> str:
        """Return the rest of the file."""
        start, raw = self.position, self._stream.read()
        text = self._decode(raw)
        if note_line_ends:
            self._note(CRLF, "\r\n", text, raw, start)
        return text

    def raise_if_wide(self) -> None:
        """Raise DataError for records in UTF-16 without its mark, with the setting that reads them."""
        if self.wide:
            raise DataError(
                f"{self.file}: is in {self.wide.upper()} without the byte order mark that would tell so. Read it with "
                f"data.encoding={self.wide}, or save it as UTF-8."
            )

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield each line with the byte it starts at, its `\\n` included. Lines of any length are read into memory.
        Raises DataError as `raise_if_wide`."""
        self.raise_if_wide()
        for raw in self._stream if "\n".encode(self.encoding) == b"\n" else self._wide_lines():
            start = self.position
            if self.part is not None and start >= self.part[1]:
                return
            yield start, self._decode(raw)

    def _wide_lines(self) -> Iterator[bytes]:
        """Yield lines of UTF-16 or UTF-32, read into memory: they come from spreadsheets and editors, so are small."""
        raw = self._stream.read()
        newline = "\n".encode(self.encoding)
        start = at = 0
        while (at := raw.find(newline, at)) >= 0:
            if at % len(newline):  # the end of one character and the beginning of the next
                at += 1
                continue
            at += len(newline)
            yield raw[start:at]
            start = at
        if start < len(raw):
            yield raw[start:]

    def _decode(self, raw: bytes) -> str:
        start = self.position
        self.position += len(raw)
        try:
            text = raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            text = raw.decode(self.encoding, "replace")
            meant = raw.decode(self.encoding, "ignore").count("\ufffd")  # U+FFFD that the file itself contains
            self.anomalies.guess = self.anomalies.guess or likely_encoding(raw)
            kind = NOT_UTF8 if self.encoding == "utf-8" else f"not {self.encoding.upper()}"
            self.anomalies.add(kind, text.count("\ufffd") - meant, self.at(start + error.start))
        if text.count("\0") > len(text) / 8:
            self.anomalies.guess = self.anomalies.guess or likely_encoding(raw)
        self._note(NUL, "\x00", text, raw, start)
        return text

    def _note(self, kind: str, what: str, text: str, raw: bytes, start: int) -> None:
        if what in text:
            if self.encoding == "utf-8":
                first = raw.index(what.encode())
            else:
                first = len(text[: text.index(what)].encode(self.encoding, "surrogatepass"))
            self.anomalies.add(kind, text.count(what), self.at(start + first))
