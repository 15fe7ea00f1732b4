"""CSV and TSV as rows. A row with another number of fields than the header is left out, counted and told; where many
rows are so, it is the delimiter or the file that is wrong, and that is an error."""

import csv
import re
from collections.abc import Iterator

from dtl.data.local.reading import CUT_OFF, KEEP_BEGINNING, UNENDED, OpenText, read_before
from dtl.errors import DataError

DELIMITERS = ",\t;|"  # the commonest in the header is taken
MOST_ODD_ROWS = 0.1  # share of rows of another length: more are not slips of whoever wrote the file
ROWS_BEFORE_JUDGING = 1000  # a wrong file is not read to its end


class CsvRows:
    """The rows of a file, each with its line, as fields by name. A quoted field may hold line ends (RFC 4180).

    The first row names the columns. Iterating raises DataError for what is no CSV, and for a file that ends inside a
    row, unless the text may be cut off.
    """

    def __init__(self, text: OpenText) -> None:
        csv.field_size_limit(2**31 - 1)  # the module's own limit of 128 KiB is none of a text's
        self._text = text
        self._lines = _Lines(text)
        header = next(self._lines, "")
        self._lines.put_back(header)
        outside_quotes = re.sub(r'"[^"]*"', "", header)
        self._rows = csv.reader(self._lines, delimiter=max(DELIMITERS, key=outside_quotes.count))
        self._names: list[str] = []
        self._n_read = 0
        self._n_odd = 0
        self._first_odd = ""  # place of the first row that is left out, and what is wrong with it

    def __iter__(self) -> Iterator[tuple[str, dict[str, str]]]:
        while True:
            start, number = self._text.position if self._rows.line_num else 0, self._rows.line_num + 1
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
                    self._text.oddities.add(UNENDED, 1, self._text.at(start))
                if any("\r\n" in value for value in row):
                    values = [value.replace("\x00", "") for value in row]
                    self._text.oddities.inspect(values, f"the row from {self._text.at(start)} on")
                self._n_read += 1
                yield place, dict(zip(self._names, row, strict=True))
        self._judge()

    def _name_columns(self, row: list[str], place: str) -> None:
        self._names = [name.strip() for name in row]
        twice = {name for name in self._names if self._names.count(name) > 1}
        if twice:
            raise DataError(f"{place}: two columns are named '{min(twice)}'. Found: {', '.join(self._names)}.")

    def _unfinished(self, row: list[str], start: int) -> str | None:
        """What shows that the file ends inside this row, with the advice for it; None where nothing does."""
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
        self._text.oddities.leave_out_row(number)
        self._n_odd += 1
        self._first_odd = self._first_odd or f"{self._text.file}:{number}: {self._another_length(row, start)}"
        if self._n_odd + self._n_read >= ROWS_BEFORE_JUDGING:
            self._judge()

    def _judge(self) -> None:
        n_rows = self._n_odd + self._n_read
        if self._n_odd > MOST_ODD_ROWS * n_rows:
            raise DataError(
                f"{self._first_odd}\n{self._n_odd:,} of the first {n_rows:,} rows have another number of fields than "
                'the header. A field that holds the delimiter needs quotes: "one, two"; one delimiter separates all '
                f"fields.{read_before(self._n_read)}"
            )


def _excerpt(row: list[str]) -> str:
    return ", ".join(row)[:60]


class _Lines:
    """Lines for `csv.reader`, which takes what a cut-off file left of a quoted field for a field: `at_end` tells."""

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
