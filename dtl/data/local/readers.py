"""Readers of files as records: a whole .txt, a line of JSON, a row of CSV or parquet.

A truncated or invalid record raises a DataError with file, line and byte, and the number of records before it.
Nothing is left out silently. With `data.allow_truncated` the last, unfinished record of a text is left out; a list in
a .json and a parquet file can only be read as a whole.
"""

import csv
import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dtl.data.local.reading import CUT_OFF, KEEP_BEGINNING, NOT_UTF8, UNENDED, Anomalies, OpenText, read_before
from dtl.errors import DataError

# --- CSV ----------------------------------------------------------------------------------------------------------
# A row with another number of fields than the header is left out, counted and reported; many such rows mean a wrong
# delimiter or file, which is an error.

DELIMITERS = ",\t;|"  # the most frequent in the header is used
_DECLARED = re.compile(r'"?sep=(.)"?\r?\n', re.I)  # the first line of many a CSV of Excel
MAX_MISMATCHED = 0.1  # fraction of rows of another length: more are no mere slips in the file
ROWS_BEFORE_JUDGING = 1000  # so that a wrong file is not read to its end


class CsvRows:
    """The rows of a CSV or TSV file as fields by name, each with its line. A quoted field may span lines (RFC 4180).

    The first row names the columns. Iterating raises DataError for invalid CSV, and for a file that ends inside a
    row, unless the text may be truncated.
    """

    def __init__(self, text: OpenText) -> None:
        csv.field_size_limit(2**31 - 1)  # the module's default of 128 KiB is too small for texts
        self._text = text
        self._lines = _Lines(text)
        header = next(self._lines, "")
        declared = _DECLARED.fullmatch(header)
        self._n_before = 1 if declared else 0  # lines before the header
        if declared:
            header = next(self._lines, "")
        self._lines.put_back(header)
        outside_quotes = re.sub(r'"[^"]*"', "", header)
        self._rows = csv.reader(
            self._lines, delimiter=declared[1] if declared else max(DELIMITERS, key=outside_quotes.count)
        )
        self._names: list[str] = []
        self._n_read = 0
        self._n_mismatched = 0
        self._first_mismatch = ""  # message on the first row that is left out

    def __iter__(self) -> Iterator[tuple[str, dict[str, str]]]:
        while True:
            number = self._n_before + self._rows.line_num + 1
            start = self._text.position if self._rows.line_num else 0
            place = f"{self._text.file}:{number}"
            try:
                row = next(self._rows, None)
            except csv.Error as error:
                raise DataError(f"{place}: not a row of CSV ({error}).{read_before(self._n_read)}") from error
            if row is None:
                break
            if (what := self._unfinished(row, start)) is not None:
                if not self._text.allow_truncated:
                    raise DataError(f"{place}: {what}; {CUT_OFF}{KEEP_BEGINNING}.{read_before(self._n_read)}")
                self._text.leave_out_end(start)
                break
            if not row:
                continue
            if not self._names:
                self._name_columns(row, place)
            elif len(row) != len(self._names):
                self._leave_out(row, start, number)
            else:
                if not self._lines.last.endswith(("\n", '"')):
                    self._text.anomalies.add(UNENDED, 1, self._text.at(start))
                if any("\r\n" in value for value in row):
                    values = [value.replace("\x00", "") for value in row]
                    self._text.anomalies.inspect(values, f"the row from {self._text.at(start)} on")
                self._n_read += 1
                yield place, dict(zip(self._names, row, strict=True))
        self._judge()

    def _name_columns(self, row: list[str], place: str) -> None:
        self._names = [name.strip() for name in row]
        twice = {name for name in self._names if self._names.count(name) > 1}
        if twice:
            raise DataError(f"{place}: two columns are named '{min(twice)}'. Found: {', '.join(self._names)}.")

    def _unfinished(self, row: list[str], start: int) -> str | None:
        """Return why the file seems to end inside this row, with advice; None where nothing suggests it."""
        if self._lines.at_end:  # the reader wanted more lines than there are
            return (
                f"a quoted field that never ends, in the row from {self._text.at(start)} on. Found: {_excerpt(row)!r}\n"
                "Quotes must be closed"
            )
        if not row or self._lines.last.endswith("\n"):
            return None
        if self._names and len(row) != len(self._names):
            return f'{self._another_length(row, start)}\nA field that holds the delimiter needs quotes: "one, two"'
        if not row[-1] or self._text.damage is not None:
            return (
                f"the file ends at {self._text.at(self._text.position)}, where the last field of the row should be. "
                f"Found: {_excerpt(row)!r}\n"
                "End the file with a line end if the field is empty"
            )
        return None

    def _another_length(self, row: list[str], start: int) -> str:
        return (
            f"{len(row)} fields in the row from {self._text.at(start)} on; the header has {len(self._names)} "
            f"({', '.join(self._names)}). Found: {_excerpt(row)!r}"
        )

    def _leave_out(self, row: list[str], start: int, number: int) -> None:
        self._text.anomalies.leave_out_row(number)
        self._n_mismatched += 1
        self._first_mismatch = self._first_mismatch or f"{self._text.file}:{number}: {self._another_length(row, start)}"
        if self._n_mismatched + self._n_read >= ROWS_BEFORE_JUDGING:
            self._judge()

    def _judge(self) -> None:
        n_rows = self._n_mismatched + self._n_read
        if self._n_mismatched > MAX_MISMATCHED * n_rows:
            raise DataError(
                f"{self._first_mismatch}\n{self._n_mismatched:,} of the first {n_rows:,} rows have another number of "
                'fields than the header. A field that holds the delimiter needs quotes: "one, two"; one delimiter '
                f"separates all fields.{read_before(self._n_read)}"
            )


def _excerpt(row: list[str]) -> str:
    return ", ".join(row)[:60]


class _Lines:
    """Lines for `csv.reader`, which accepts an unclosed quoted field at the end of a file: `at_end` detects that."""

    def __init__(self, text: OpenText) -> None:
        self._lines = text.lines()
        self._again: list[str] = []
        self.at_end = False
        self.last = ""

    def __iter__(self) -> "_Lines":
        return self

    def put_back(self, line: str) -> None:
        self._again = [line] if line else []

    def __next__(self) -> str:
        if self._again:
            return self._again.pop()
        for _, line in self._lines:
            self.last = line
            return line
        self.at_end = True
        raise StopIteration


# --- every kind of file -------------------------------------------------------------------------------------------

ROWS_AT_ONCE = 256  # parquet rows turned into Python objects at a time
_JSON = json.JSONDecoder(strict=False)  # accepts a NUL or a tab inside a string
# A string in a line of JSON can only have an anomaly if one of these escapes is present.
_ANOMALOUS_ESCAPE = re.compile(r"\\(u[dD][89a-fA-F]|u0000|u000[dD]|r)")


_DOC = re.compile(r"<doc\b(.*)>\s*$")
_ATTRIBUTE = re.compile(r'(\w+)="(.*?)"(?=\s+\w+="|\s*$)')


class Record(NamedTuple):
    """The fields of one record, and its place (`file` or `file:line`) for messages."""

    place: str
    fields: dict[str, Any]


def read_txt(text: OpenText) -> Iterator[Record]:
    yield Record(str(text.file), {"text": text.read(note_line_ends=True)})


def read_jsonl(text: OpenText) -> Iterator[Record]:
    n_read = 0
    for number, (start, line) in enumerate(text.lines(), 1):
        if line.strip():
            # Without the lines before it, a line of a part has no number.
            place = f"{text.file} ({text.at(start)})" if text.part and text.part[0] else f"{text.file}:{number}"
            try:
                value = _JSON.decode(line)
            except (ValueError, RecursionError) as error:
                if text.allow_truncated and not line.endswith("\n"):  # the last one
                    text.leave_out_end(start)
                    return
                hint = CUT_OFF if line.endswith("\n") else CUT_OFF + KEEP_BEGINNING
                why = f"not JSON ({error}) in the line from {text.at(start)} on"
                if not line.endswith(("\n", "}", "]")):
                    raise DataError(
                        f"{place}: the last line is cut off: {why}. It ends in {line[-40:]!r}.\nCopy or download the "
                        f"file again, or keep what comes before with data.allow_truncated=true.{read_before(n_read)}"
                    ) from error
                raise DataError(
                    f"{place}: {why}. Found: {line.strip()[:60]!r}\n"
                    f"Each line must be one JSON object, such as {text.example}; {hint}.{read_before(n_read)}"
                ) from error
            if _ANOMALOUS_ESCAPE.search(line):
                text.anomalies.inspect(value, f"the line from {text.at(start)} on")
            yield _json_record(value, place, text.example)
            n_read += 1


def read_json(text: OpenText) -> Iterator[Record]:
    """Read one JSON value, or several one after the other; of a list its elements. The file is read into memory."""
    text.raise_if_wide()
    content = text.read()
    position = _end_of_space(content, 0)
    number = 0
    while position < len(content):
        try:
            value, position = _JSON.raw_decode(content, position)
        except (ValueError, RecursionError) as error:
            at = getattr(error, "pos", position)
            line = content.count("\n", 0, at) + 1
            byte = len(content[:at].encode(errors="surrogatepass"))
            raise DataError(
                f"{text.file}:{line}: not JSON ({error}) at {text.at(byte)} of "
                f"{text.position:,}. Found: {content[at : at + 60]!r}\n"
                f"The file must be a list of JSON objects, such as {text.example}; {CUT_OFF}.{read_before(number)}"
            ) from error
        for element in value if isinstance(value, list) and not _is_chat(value) else [value]:
            number += 1
            text.anomalies.inspect(element, f"record {number}")
            yield _json_record(element, f"{text.file} (record {number})", text.example)
        position = _end_of_space(content, position)


def _end_of_space(text: str, start: int) -> int:
    match = re.compile(r"\S").search(text, start)
    return match.start() if match else len(text)


def _is_chat(value: Any) -> bool:
    """Return True for a list of messages, which is one record."""
    return (
        bool(value)
        and isinstance(value, list)
        and all(
            isinstance(message, dict) and ({"role", "content"} <= {*message} or {"from", "value"} <= {*message})
            for message in value
        )
    )


def _json_record(value: Any, place: str, example: str) -> Record:
    if isinstance(value, str):
        value = {"text": value}
    if _is_chat(value):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise DataError(f"{place}: {json.dumps(value)[:60]!r} is not a JSON object, such as {example}.")
    return Record(place, value)


def read_docs(text: OpenText) -> Iterator[Record]:
    """Read WikiExtractor's files: articles as `<doc id="..." url="..." title="...">`, title and text, `</doc>`."""
    n_read = start = 0
    number = line_number = 0
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line_number, (at, line) in enumerate(text.lines(), 1):
        if opened is not None and line.strip() == "</doc>":
            yield _doc_record(opened[1], lines, f"{text.file}:{number}")
            n_read, opened = n_read + 1, None
        elif opened is not None:
            lines.append(line)
        elif opened := _DOC.match(line):
            start, number, lines = at, line_number, []
        elif line.strip():
            raise DataError(
                f"{text.file}:{line_number}: a line outside of <doc ...> and </doc>. Found: {line.strip()[:60]!r}\n"
                f"A file of WikiExtractor has none; {CUT_OFF}.{read_before(n_read)}"
            )
    if opened is not None:
        if not text.allow_truncated:
            raise DataError(
                f"{text.file}:{number}: the article from {text.at(start)} on has no </doc>; {CUT_OFF}{KEEP_BEGINNING}."
                f"{read_before(n_read)}"
            )
        text.leave_out_end(start)


def _doc_record(attributes: str, lines: list[str], place: str) -> Record:
    fields: dict[str, Any] = {name: html.unescape(value) for name, value in _ATTRIBUTE.findall(attributes)}
    title, _, body = html.unescape("".join(lines)).strip().partition("\n")
    # The first line repeats the title. An article that has nothing else is an empty one.
    repeats = title.strip() == fields.get("title", "").strip()
    return Record(place, fields | {"text": "" if repeats and not body.strip() else f"{title}\n{body}".strip()})


def read_csv(text: OpenText) -> Iterator[Record]:
    """Read the rows of a CSV or TSV, whose first line names the columns."""
    for place, fields in CsvRows(text):
        yield Record(place, fields)


TEXT_READERS: dict[str, Callable[[OpenText], Iterator[Record]]] = {
    "txt": read_txt,
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "docs": read_docs,
}


def open_parquet(file: Path) -> Any:
    import pyarrow.parquet  # imported here: it takes a tenth of a second, and .txt does not need it

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a readable parquet file ({error}). Copy or download it again.") from error


def read_parquet(file: Path, row_group: int, columns: Sequence[str], anomalies: Anomalies) -> Iterator[Record]:
    """Yield the rows of a row group, with only `columns` (case ignored) when the file has them all."""
    parquet = open_parquet(file)
    wanted = {column.strip().casefold() for column in columns}
    selected = [name for name in parquet.schema_arrow.names if name.strip().casefold() in wanted]
    row = 0
    try:
        # When a column is missing, all are read, so that the error can list the columns that exist.
        enough = wanted and len(selected) == len(wanted)
        for batch in parquet.iter_batches(ROWS_AT_ONCE, row_groups=[row_group], columns=selected if enough else None):
            for fields in _rows(batch, row, anomalies):
                row += 1
                place = f"row {row} of row group {row_group}"
                anomalies.inspect(fields, place)
                yield Record(f"{file} ({place})", fields)
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise DataError(
            f"{file}: damaged parquet file ({error}) after row {row} of row group {row_group}. "
            f"Copy or download it again."
        ) from error


def _rows(batch: Any, row: int, anomalies: Anomalies) -> list[dict[str, Any]]:
    """Return a batch as dictionaries. Strings that are not UTF-8, which parquet does not check, are counted."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        pass
    import pyarrow

    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            raw = column.cast(pyarrow.large_binary()).to_pylist()
            columns[name] = [_decoded(value, f"row {row + n} or later", anomalies) for n, value in enumerate(raw, 1)]
        else:
            columns[name] = column.to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _decoded(raw: bytes | None, place: str, anomalies: Anomalies) -> str | None:
    if raw is None:
        return None
    text = raw.decode("utf-8", "replace")
    anomalies.add(NOT_UTF8, text.count("\ufffd") - raw.decode("utf-8", "ignore").count("\ufffd"), place)
    return text
