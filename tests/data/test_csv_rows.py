"""Rows of CSV with a wrong number of fields: few are left out, counted and told with their lines; many are an error."""

import re

import pytest

from dtl.data.local.files import LocalFiles
from dtl.data.local.readers import MAX_MISMATCHED, ROWS_BEFORE_JUDGING
from dtl.errors import DataError


def read(path) -> tuple[list[str], list[str]]:
    files = LocalFiles(str(path), "data.path")
    return [record.fields["text"] for record in files.records("train")], files.notes()


def write(path, n_rows: int, odd: set[int]) -> list[str]:
    """Rows with the odd ones, by number from 0; the texts of the others."""
    rows = [f"{n},text {n}" + (", and more" if n in odd else "") for n in range(n_rows)]
    path.write_text("id,text\n" + "".join(f"{row}\n" for row in rows))
    return [f"text {n}" for n in range(n_rows) if n not in odd]


@pytest.mark.counted("broken inputs of data, read right or told")
def test_a_few_are_left_out_and_told_with_their_lines(tmp_path):
    good = write(tmp_path / "a.csv", 97, {3, 29, 31, 60, 89})
    texts, (note,) = read(tmp_path / "a.csv")
    assert texts == good
    said = "5 x row with another number of fields than the header (line 5, 31, 33, ...), left out"
    assert note == f"{tmp_path / 'a.csv'}: {said}."


@pytest.mark.counted("broken inputs of data, read right or told")
def test_too_short_ones_too_and_beside_other_oddities(tmp_path):
    rows = [b"id,text\r\n"] + [b"%d,caf\xe9 %d\r\n" % (n, n) for n in range(23)]
    rows[7] = b"6\r\n"
    (tmp_path / "a.csv").write_bytes(b"".join(rows))
    texts, (note,) = read(tmp_path / "a.csv")
    assert len(texts) == 22 and "22 x not UTF-8" in note and "1 x row with another number" in note and "line 8" in note


def test_line_numbers_count_lines_inside_quotes(tmp_path):
    rows = "".join(f'{n},"one\ntwo"\n' for n in range(11))
    (tmp_path / "a.csv").write_text(f"id,text\n{rows}x\n")
    _, (note,) = read(tmp_path / "a.csv")
    assert "(line 24)" in note


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("n_rows", [29, ROWS_BEFORE_JUDGING * 3])
def test_more_than_a_share_of_them_is_the_wrong_file(tmp_path, n_rows):
    """Just up to the share is none; one more is, with the first place, the count and what to do."""
    most = int(n_rows * MAX_MISMATCHED)
    odd = {n_rows - 1 - n for n in range(most)}
    assert read_of(tmp_path, n_rows, odd) == n_rows - most
    with pytest.raises(DataError) as refused:
        read_of(tmp_path, n_rows, odd | {1})
    message = str(refused.value)
    assert message.startswith(
        f"{tmp_path / 'a.csv'}:3: 3 fields in the row from byte 17 on; the header has 2 (id, text)"
    )
    assert re.search(r"\d+ of the first [\d,]+ rows", message) and "needs quotes" in message
    assert len(message.splitlines()) <= 4


def read_of(tmp_path, n_rows: int, odd: set[int]) -> int:
    write(tmp_path / "a.csv", n_rows, odd)
    return len(read(tmp_path / "a.csv")[0])


def test_a_wrong_file_is_not_read_to_its_end(tmp_path):
    write(tmp_path / "a.csv", ROWS_BEFORE_JUDGING * 5, set(range(0, ROWS_BEFORE_JUDGING * 5, 2)))
    n_read = 0
    with pytest.raises(DataError, match="of the first 1,00"):
        for _ in LocalFiles(str(tmp_path), "data.path").records("train"):
            n_read += 1
    assert n_read < ROWS_BEFORE_JUDGING


@pytest.mark.counted("broken inputs of data, read right or told")
def test_a_row_that_the_files_end_cuts_off_is_no_slip(tmp_path):
    write(tmp_path / "a.csv", 97, set())
    with (tmp_path / "a.csv").open("a") as file:
        file.write("97")
    with pytest.raises(DataError, match=r"a\.csv:99: 1 fields.*\n.*cut off"):
        read(tmp_path / "a.csv")
