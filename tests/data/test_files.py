"""Local files: every kind, packed or not; odd bytes are counted, cut-off files are refused, empty ones are named."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtl.data.cleaning import cleaned
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.documents import Document
from dtl.data.local.files import LocalFiles, text_of
from dtl.data.local.formats import BYTE_ORDER_MARKS, NOT_READ
from dtl.data.local.unpacking import MAGIC
from dtl.data.prepare import prepare_data
from dtl.data.sources import plan_sources
from dtl.errors import ConfigError, DataError

TEXTS = [f"Record {number}: {'naïve, café; ' * (number % 5)}end" for number in range(23)]
PACK = {
    "gz": lambda raw: gzip.compress(raw, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda raw: pyarrow.Codec("zstd").compress(raw, asbytes=True),
}


def jsonl(texts: list[str]) -> bytes:
    return "".join(
        json.dumps({"id": n, "text": text}, ensure_ascii=False) + "\n" for n, text in enumerate(texts)
    ).encode()


def table(texts: list[str], delimiter: str = ",") -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text"], *enumerate(texts)])
    return stream.getvalue().encode()


def parquet(texts: list[str]) -> bytes:
    stream = io.BytesIO()
    rows = [{"id": n, "text": text} for n, text in enumerate(texts)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream, row_group_size=7)
    return stream.getvalue()


def listed(texts: list[str]) -> bytes:
    return json.dumps([{"id": n, "text": text} for n, text in enumerate(texts)], indent=2).encode()


WRITE = {".jsonl": jsonl, ".json": listed, ".csv": table, ".tsv": lambda texts: table(texts, "\t"), ".parquet": parquet}


def read(path: Path) -> tuple[list[str], list[str]]:
    files = LocalFiles(str(path), "data.path")
    texts = [text_of(record.fields.get("text"), record.place) for record in files.records("train")]
    return texts, files.notes()


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as refused:
        read(path)
    return str(refused.value)


@pytest.mark.parametrize("suffix", WRITE)
@pytest.mark.parametrize("packing", ["", *PACK])
def test_every_kind_says_the_same_packed_or_not(tmp_path, suffix, packing):
    raw = WRITE[suffix](TEXTS)
    file = tmp_path / f"a{suffix}{packing and '.'}{packing}"
    file.write_bytes(PACK[packing](raw) if packing else raw)
    if suffix == ".parquet" and packing:
        assert "compressed with" in refusal(file) and file.name in refusal(file)
    else:
        assert read(file) == (TEXTS, [])


def test_what_stands_in_a_file_counts_more_than_its_name(tmp_path):
    """Names lie: servers unpack silently, tools write lines into .json, people rename."""
    contents = {
        "unpacked.jsonl.gz": jsonl(TEXTS),
        "lines.json": jsonl(TEXTS),
        "line.json": jsonl(TEXTS).replace(b"\n", b" "),
        "list.jsonl": listed(TEXTS),
        "packed.csv": gzip.compress(table(TEXTS)),
        "rows.txt": parquet(TEXTS),
        "no_suffix": jsonl(TEXTS),
        "LIST.DATA": listed(TEXTS),
        "semicolons.csv": table(TEXTS, ";"),
    }
    for name, raw in contents.items():
        (tmp_path / name).write_bytes(raw)
        assert read(tmp_path / name) == (TEXTS, []), name
    (tmp_path / "notes.md").write_text("# A title")
    assert read(tmp_path / "notes.md") == (["# A title"], [])
    (tmp_path / "json.txt").write_text('{"text": "a .txt is one text, whatever it looks like"}')
    assert read(tmp_path / "json.txt")[0][0].startswith("{")


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.txt", b"PK\x03\x04\x14\x00", ["zip archive"]),
        ("a.jsonl.7z", b"7z\xbc\xaf\x27\x1c\x00", ["7z archive", "7z x FILE", ".zst"]),
        ("a.tar", b"a.txt".ljust(257, b"\0") + b"ustar\x00", ["tar archive", "tar xf FILE"]),
        ("a.jsonl.Z", b"\x1f\x9d\x90", ["compressed with compress", "gunzip FILE"]),
        ("a.jsonl.lzma", b"\x5d\x00\x00\x80", ["compressed with lzma", "xz -d FILE"]),
        ("a.tgz", gzip.compress(b"a.txt".ljust(257, b"\0") + b"ustar\x00", mtime=0), ["tar archive"]),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\x00", ["zst file that is cut off"]),
        ("wiki_00", b'<doc id="1" title="A">\nA\n', ["wiki_00:1", "no </doc>", "byte 0"]),
        ("wiki_00", b'<doc id="1" title="A">\nA\n\nB\n</doc>\nC\n', ["wiki_00:6", "outside", "Read before it: 1"]),
        ("a.xml", b'<mediawiki xmlns="x">', ["MediaWiki dump", "data=wiki"]),
        ("a.html", b"<html>", ["'.html' is not supported"]),
        ("a.bin", b"\x00\x01\x02", ["'.bin' is not supported"]),
        ("a.txt.gz", b"\x00\x01\x02", ["neither a gz file nor text"]),
        ("a.csv", b"id,text,text\n1,2,3\n", ["a.csv:1", "two columns", "'text'"]),
        ("a.csv", b"id,text\n1,b\n2,c, d\n", ["a.csv:3", "3 fields", "byte 12", "id, text", "Read before it: 1"]),
        ("a.csv", b'id,text\n1,b\n2,"c\nd\n', ["a.csv:3", "never ends", "byte 12"]),
        ("a.json", b'[{"text": "a"},\n{"text": ]', ["a.json:2", "not JSON", "byte 25 of 26"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b', ["a.jsonl:2", "not JSON", "byte 14", "Read before it: 1 record,"]),
        (
            "a.jsonl",
            b'{"question": "a", "answer": "b"}\n{"question": "c", "answ',
            ["the last line is cut off", "allow_trun"],
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, raw, words):
    (tmp_path / name).write_bytes(raw)
    message = refusal(tmp_path / name)
    for word in [name, *words]:
        assert word in message
    assert len(message.splitlines()) <= 4


def test_a_user_without_a_home_is_a_path_like_any_other():
    assert "no such file" in refusal(Path("~nobody-of-this-name/x"))


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_something_that_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")  # opening it would wait for ever
    assert "neither a file nor a folder" in refusal(tmp_path / "pipe.txt")


# Odd bytes (row 18 of the reliability notes): read all the same, counted, the first named.

WHOLE = [piece.encode() for piece in ("a", "é", "😀", "\ufffd", "\x00", "\r\n")]
PIECES = [*WHOLE, b"\xff", b"\xe2\x82", b"\xf0\x9f", b"\xc3"]
odd_bytes = st.lists(st.sampled_from(PIECES) | st.binary(max_size=7), max_size=13).map(b"".join)
KNOWN_BY_THEIR_BEGINNING = (*NOT_READ, *MAGIC.values(), *(mark for mark, kind in BYTE_ORDER_MARKS if kind != "utf-8"))
SAME_FOLDER = [HealthCheck.function_scoped_fixture]


def undecodable(raw: bytes) -> Iterator[int]:
    """Offsets at which `raw` is not UTF-8, found by decoding the rest again and again."""
    position = 0
    while True:
        try:
            raw[position:].decode()
            return
        except UnicodeDecodeError as error:
            yield position + error.start
            position += error.end


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.fault("bad-text")
@settings(max_examples=100, suppress_health_check=SAME_FOLDER)
@given(mark=st.sampled_from([b"", b"\xef\xbb\xbf"]), raw=odd_bytes.filter(bool))
def test_odd_bytes_of_a_text_are_counted_and_the_first_is_named(tmp_path, mark, raw):
    raw = mark + raw
    if raw.startswith(KNOWN_BY_THEIR_BEGINNING):
        return
    (tmp_path / "a.txt").write_bytes(raw)
    (text,), notes = read(tmp_path / "a.txt")
    start = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    assert text == raw[start:].decode(errors="replace").replace("\r\n", "\n")
    places = {
        "byte order mark": [0] if start else [],
        "not UTF-8": [start + place for place in undecodable(raw[start:])],
        "NUL": [place for place, byte in enumerate(raw) if byte == 0],
        "Windows line end": [found.start() for found in re.finditer(b"\r\n", raw)],
    }
    expected = {(kind, len(found), found[0]) for kind, found in places.items() if found}
    told = re.findall(r"([\d,]+) x ([\w -]+) \(first at byte ([\d,]+)\)", " ".join(notes))
    assert {(kind, int(count), int(first)) for count, kind, first in told} == expected


@pytest.mark.counted("broken inputs of data, read right or told")
def test_what_becomes_of_a_nul_is_told_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\x00two\n")
    (text,), notes = read(tmp_path / "a.txt")
    assert "left out of texts, kept in questions and answers" in notes[0]
    assert cleaned(Document(text)).text == "onetwo\n"
    pair = Document("q\x00? a", answer_start=4)
    assert cleaned(pair) is pair


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("name", "raw", "share"),
    [
        ("a.txt", random.Random(3).randbytes(7919), "8"),  # as of an image, an archive
        ("a.txt.gz", gzip.compress(b"GIF89a" + bytes(range(256)) * 31), "9"),
        ("a.csv", struct.pack("<997i", *range(997)), "71"),
        ("a.txt", b"a few words, " * 29 + bytes(101), "21"),
    ],
)
def test_binary_data_with_the_name_of_a_text_is_rejected(tmp_path, name, raw, share):
    (tmp_path / name).write_bytes(raw)
    message = refusal(tmp_path / name)
    assert re.search(rf"{name}: {share}% of its first [\d,]+ characters are control characters", message)
    assert "of a text at most 5% are" in message and "leave it out" in message
    assert ("after tr -d '\\000-" in message) == (not name.endswith(".gz"))


@pytest.mark.parametrize(
    "raw",
    [
        b"a few words, " * 29 + bytes(100),  # of a disk that was full
        b"a few words, " * 199 + bytes(101),
        b"1\x012\x013\n" * 101,
        b"\x1b[31mred\x1b[0m\n" * 101,
        ("a few words, " * 97).encode("utf-16-le"),
    ],
)
def test_a_text_with_control_characters_is_read(tmp_path, raw):
    (tmp_path / "a.txt").write_bytes(raw)
    assert read(tmp_path / "a.txt")[0] == [raw.decode()]


@settings(max_examples=100, suppress_health_check=SAME_FOLDER)
@given(raw=odd_bytes, suffix=st.sampled_from([*WRITE, ".txt", ".txt.gz", ".jsonl.bz2", "", ".data"]))
def test_no_bytes_in_any_file_are_more_than_an_error_for_people(tmp_path, raw, suffix):
    read_or_refused(tmp_path / f"a{suffix}", raw)


@pytest.mark.fault("bad-text")
@pytest.mark.torture
@pytest.mark.slow
def test_ten_thousand_random_files(tmp_path, figure):
    draw = random.Random(17)
    for number in range(10_007):
        raw = draw.choice([draw.randbytes(draw.randrange(200)), b"".join(draw.choices([*PIECES, b'{"', b'",'], k=23))])
        packing = draw.choice(["", "", ".gz", ".bz2"])
        suffix = draw.choice([*WRITE, ".txt"])
        if packing and number % 2:
            raw = PACK[packing[1:]](raw)[: -draw.randrange(1, 9)]
        read_or_refused(tmp_path / f"a{suffix}{packing}", raw)
    figure("random files as data, read or refused in a sentence", 10_007)


def read_or_refused(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    try:
        texts, _ = read(file)
    except DataError as error:
        assert str(file) in str(error)
    else:
        for text in texts:
            text.encode()  # what no encoding can write would stop a run later


@pytest.mark.counted("broken inputs of data, read right or told")
@settings(max_examples=50, suppress_health_check=SAME_FOLDER)
@given(raw=odd_bytes.filter(lambda raw: not set(raw) & set(b'"\\\n\r')))
def test_odd_bytes_inside_a_line_of_json_are_counted(tmp_path, raw):
    first_line = b'{"text": "whole"}\n'
    (tmp_path / "a.jsonl").write_bytes(first_line + b'{"text": "' + raw + b'"}')
    texts, notes = read(tmp_path / "a.jsonl")
    assert texts == ["whole", raw.decode(errors="replace")]
    bad = list(undecodable(raw))
    wanted = f"{len(bad)} x not UTF-8 (first at byte {len(first_line) + 10 + bad[0]})" if bad else ""
    assert wanted in " ".join(notes)
    assert bool(bad) == ("not UTF-8" in " ".join(notes))


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.fault("bad-text")
def test_half_a_surrogate_pair_and_line_ends_in_json_are_counted(tmp_path):
    lines = [r'{"text": "\ud83d\ude00 fine"}', r'{"text": "\ud800 \udfff", "more": ["a\r\nb", "\u0000"]}']
    (tmp_path / "a.jsonl").write_text("\r\n".join(lines))
    texts, (note,) = read(tmp_path / "a.jsonl")
    assert texts == ["😀 fine", "\ufffd \ufffd"]
    for odd in ("2 x half a surrogate pair", "1 x Windows line end", "1 x NUL"):
        assert f"{odd} (first at the line from byte 31 on)" in note
    (tmp_path / "a.json").write_text(f"[{','.join(lines)}]")
    assert "2 x half a surrogate pair (first at record 2)" in read(tmp_path / "a.json")[1][0]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_encodings_are_known_by_their_mark(tmp_path, encoding):
    texts = [*TEXTS, "ਅĀਅ Ċ"]  # the bytes of a line end, across two characters and in one
    for suffix in (".jsonl", ".csv", ".json"):
        file = tmp_path / f"a{suffix}"
        file.write_text("\ufeff" + WRITE[suffix](texts).decode(), encoding=encoding, newline="")
        read_texts, (note,) = read(file)
        assert read_texts == texts and f"1 x byte order mark of {encoding.upper()}" in note
    (tmp_path / "a.txt").write_bytes("\ufeffab".encode(encoding) + "c".encode(encoding)[:1])
    (text,), (note,) = read(tmp_path / "a.txt")
    width = len("a".encode(encoding))
    assert text == "ab\ufffd" and f"1 x not {encoding.upper()} (first at byte {3 * width})" in note


@pytest.mark.counted("broken inputs of data, read right or told")
def test_bad_strings_of_parquet_are_counted(tmp_path):
    raw = pyarrow.array([b"fine", b"caf\xe9 \xff", None])
    texts = pyarrow.Array.from_buffers(pyarrow.string(), len(raw), raw.buffers())
    rows = pyarrow.table({"id": [1, 2, 3], "text": texts})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet", row_group_size=3)
    texts, notes = read(tmp_path / "a.parquet")
    assert texts == ["fine", "caf\ufffd \ufffd", ""]
    assert "2 x not UTF-8 (first at row 2 or later)" in notes[0]


def test_reading_twice_does_not_count_twice(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    files = LocalFiles(str(tmp_path), "data.path")
    for _ in range(3):
        list(files.records("train"))
    assert "1 x not UTF-8" in files.notes()[0]


@pytest.mark.counted("broken inputs of data, read right or told")
def test_many_odd_files_are_told_in_few_lines(tmp_path):
    for number in range(11):
        (tmp_path / f"{number}.txt").write_bytes(b"\xff")
    _, notes = read(tmp_path)
    assert len(notes) == 6 and "6 more files" in notes[-1]


def test_a_field_of_csv_may_be_long_and_hold_line_ends(tmp_path):
    texts = ["x" * 1_000_003, 'a "word", and\r\nanother line', "a\x00b"]
    (tmp_path / "a.csv").write_bytes(table(texts))
    read_texts, (note,) = read(tmp_path / "a.csv")
    assert read_texts == [text.replace("\r\n", "\n") for text in texts]
    assert "1 x Windows line end" in note and "1 x NUL" in note


@pytest.mark.counted("broken inputs of data, read right or told")
def test_a_row_of_csv_without_a_line_end_is_told(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,whole\n2,hal")
    texts, (note,) = read(tmp_path / "a.csv")
    assert texts == ["whole", "hal"] and "1 x last row without a line end (first at byte 16)" in note
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,whole\n2,")
    assert "a.csv:3: the file ends" in refusal(tmp_path / "a.csv")


def test_xz_may_pad_its_streams(tmp_path):
    parts = [lzma.compress(jsonl([text])) + b"\0" * 4 for text in TEXTS]
    (tmp_path / "a.jsonl.xz").write_bytes(b"".join(parts))
    assert read(tmp_path / "a.jsonl.xz") == (TEXTS, [])


@pytest.mark.parametrize("declared", ["sep=;", '"sep=;"', "SEP=;"])
def test_a_line_of_excel_names_the_delimiter(tmp_path, declared):
    """Here commas are the more frequent in the header; line numbers count the line."""
    raw = f"{declared}\r\nid;text, or, words\r\n1;a, b\r\n2\r\n".encode()
    (tmp_path / "a.csv").write_bytes(raw)
    (tmp_path / "b.csv").write_bytes(codecs.BOM_UTF16_LE + raw.replace(b"2\r\n", b"").decode().encode("utf-16-le"))
    (record,) = LocalFiles(str(tmp_path / "b.csv"), "data.path").records("train")
    assert record.fields == {"id": "1", "text, or, words": "a, b"} and record.place.endswith("b.csv:3")
    with pytest.raises(DataError, match=r"a\.csv:4: 1 fields"):
        list(LocalFiles(str(tmp_path / "a.csv"), "data.path").records("train"))


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.fault("bad-text")
@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".jsonl.gz"])
def test_a_line_of_a_hundred_megabytes(tmp_path, suffix):
    text = "0123456789" * 10_000_000
    raw = {".txt": text.encode(), ".csv": b"text\n" + text.encode() + b"\n"}.get(suffix) or json.dumps(
        {"text": text}
    ).encode()
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(raw, 1) if suffix.endswith("gz") else raw)
    assert read(tmp_path / f"a{suffix}") == ([text], [])


# Cut-off files (row 19): an error that names the file and what was read before, or a whole prefix.


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.fault("cut-data")
@pytest.mark.parametrize("suffix", WRITE)
@pytest.mark.parametrize("packing", ["", *PACK])
def test_a_cut_off_file_is_never_half_read(tmp_path, suffix, packing):
    if suffix == ".parquet" and packing:
        pytest.skip("not read")
    raw = WRITE[suffix](TEXTS)
    raw = PACK[packing](raw) if packing else raw
    file = tmp_path / f"a{suffix}{packing and '.'}{packing}"
    draw = random.Random(19)
    n_refused = 0
    for cut in [0, 1, 2, 3, len(raw) - 1, *draw.sample(range(4, len(raw) - 1), 95)]:
        file.write_bytes(raw[:cut])
        try:
            texts, _ = read(file)
        except DataError as error:
            assert str(file) in str(error)
            n_refused += 1
        else:  # cut between two records: whole as far as it goes, and nobody can know
            assert not packing and texts == TEXTS[: len(texts)]
            assert raw[:cut].rstrip(b"\r\n") == WRITE[suffix](texts).rstrip(b"\r\n")
    assert n_refused >= (100 if packing or suffix in (".json", ".parquet") else 85)


@pytest.mark.parametrize("packing", PACK)
def test_what_was_read_before_the_cut_is_told(tmp_path, packing):
    texts = [f"{number} {random.Random(number).randbytes(500).hex()}" for number in range(997)]
    raw = bz2.compress(jsonl(texts), 1) if packing == "bz2" else PACK[packing](jsonl(texts))
    (tmp_path / f"a.jsonl.{packing}").write_bytes(raw[: len(raw) * 2 // 3])
    message = refusal(tmp_path / f"a.jsonl.{packing}")
    found = re.search(r"after decompressed byte ([\d,]+) .* Read before it: (\d+) records", message)
    assert found, message
    n_read = int(found[2])
    assert n_read > 300 and int(found[1].replace(",", "")) == len(jsonl(texts[:n_read]))


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("packing", PACK)
def test_packed_files_may_have_several_parts_but_no_damage(tmp_path, packing):
    parts = [PACK[packing](jsonl([text])) for text in TEXTS]
    file = tmp_path / f"a.jsonl.{packing}"
    file.write_bytes(b"".join(parts))
    assert read(file) == (TEXTS, [])
    for damaged in ([*parts[:5], b"\x01\x02\x03\x04", *parts[6:]], [*parts, b"garbage"]):
        file.write_bytes(b"".join(damaged))
        assert "cut off or damaged" in refusal(file)


# Too little (row 17): said before a model is built.


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.fault("no-data")
@pytest.mark.parametrize(
    ("kind", "files", "words"),
    [
        ("text", {"a.txt": b""}, ["a.txt", "0 bytes"]),
        ("text", {"a.jsonl.gz": gzip.compress(b"")}, ["a.jsonl.gz", "no training text"]),
        ("text", {"a.csv": b"text\n"}, ["a.csv", "no training text"]),
        ("text", {"a.json": b"[]"}, ["a.json", "no training text"]),
        ("text", {"a.parquet": parquet(["  "])}, ["a.parquet", "no training text"]),
        ("text", {"a.txt": b" \n\r\n "}, ["a.txt", "no training text"]),
        ("text", {"a.txt": b"", "b.jsonl": b""}, ["empty files", "a.txt, b.jsonl"]),
        ("text", {"train.txt": b"", "test.txt": b""}, ["empty files", "test.txt, train.txt"]),
        ("text", {".hidden.txt": b"a", "LICENSE": b"b"}, ["no .txt", "LICENSE"]),
        ("text", {".git": b""}, ["no file at all"]),
        ("text", {"train.jsonl": b'{"text": "a b c"}\n', "validation.jsonl": b'{"text": ""}\n'}, ["validation", "0"]),
        ("qa", {"a.jsonl": b'{"question": "a?", "answer": "b"}\n'}, ["a.jsonl", "two different documents"]),
        ("qa", {"a.csv": b"question,answer\n"}, ["a.csv", "no training text"]),
        ("qa", {"a.csv": b"q,a\n1,2\n3,4\n"}, ["line 2: no field", "q, a", "2 records"]),
    ],
)
def test_too_little_to_train_on_is_said_with_path_and_need(tmp_path, kind, files, words):
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    path = tmp_path / next(iter(files)) if len(files) == 1 and "a." in next(iter(files)) else tmp_path
    config = DataConfig(sources={kind: SourceConfig(kind)}, path=str(path))
    with pytest.raises(DataError) as refused:
        prepare_data(config, TokenizerConfig(kind="byte"), seq_len=17, seed=0)
    for word in [str(path), *words]:
        assert word in str(refused.value)


@pytest.mark.counted("broken inputs of data, read right or told")
def test_files_of_other_kinds_in_a_folder_are_counted_and_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for name in ("b.docx", "c.pdf", "d\x1b.doc", "e.odt", "f.rtf"):
        (tmp_path / name).write_bytes(b"PK")
    (note,) = (note for note in LocalFiles(str(tmp_path), "data.path").notes() if "not read" in note)
    assert "5 files of other kinds not read: b.docx, c.pdf, d␛.doc and 2 more." in note


@pytest.mark.counted("broken inputs of data, read right or told")
def test_numbers_in_a_column_of_text_are_counted_and_a_column_of_numbers_is_an_error(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one", "label": 3}\n{"text": 2, "label": 4}\n{"text": 3.5, "label": null}\n')
    for kind in ("text", "wiki"):
        config = DataConfig(sources={kind: SourceConfig(kind, str(file))})
        (source,) = (plan.source for plan in plan_sources(config, 0))
        assert [document.text for document in source.splits()["train"]] == ["one", "2", "3.5"]
        assert any("2 numbers in the column of text" in note for note in source.notes())
    file.write_text('{"text": 1}\n{"text": 2}\n')
    with pytest.raises(DataError, match=r"column 'text' holds numbers only.*data\.sources\.wiki\.column=NAME"):
        (source,) = (plan.source for plan in plan_sources(config, 0))
        list(source.splits()["train"])


GERMAN = "Größe und Schönheit „sind“ für Bären äußerst wichtig.\nÜber Öl: 5 €."


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize(
    ("encoding", "guessed"),
    [("cp1252", "cp1252"), ("latin-1", "cp1252"), ("utf-16-le", ""), ("utf-16", ""), ("cp1251", "")],
)
def test_another_encoding_is_named_and_can_be_given(tmp_path, name, encoding, guessed):
    """A fifth of the characters was replaced, and the note named no way to read them."""
    text = {
        "cp1251": "Съешь же ещё этих мягких французских булок.",
        "latin-1": "Die Größe der Bären ist für alle wichtig.",
    }.get(encoding, GERMAN)
    content = {
        "a.txt": text,
        "a.jsonl": json.dumps({"text": text}, ensure_ascii=False) + "\n",
        "a.csv": 'text\n"' + text.replace("“", "").replace("„", "") + '"\n',
    }[name]
    (tmp_path / name).write_bytes(content.encode(encoding))
    files = LocalFiles(str(tmp_path / name), "data.path", encoding=encoding)
    (record,) = files.records("train")
    assert record.fields["text"] == (text.replace("“", "").replace("„", "") if name == "a.csv" else text)
    assert not any("not UTF" in note for note in files.notes())
    if name != "a.txt" and encoding == "utf-16-le":  # without a mark
        for other in (name, "a.json"):
            (tmp_path / other).write_bytes(content.encode(encoding))
            with pytest.raises(DataError, match=r"UTF-16-LE without .* Read it with data\.encoding=utf-16-le, or"):
                list(LocalFiles(str(tmp_path / other), "data.qa.path").records("train"))
    if name == "a.txt" and encoding == "utf-16-le":
        files = LocalFiles(str(tmp_path / name), "data.path")
        list(files.records("train"))
        assert any("probably utf-16-le: data.encoding=utf-16-le reads it" in note for note in files.notes())
    if encoding in ("cp1252", "latin-1", "cp1251"):
        files = LocalFiles(str(tmp_path / name), "data.path")
        list(files.records("train"))
        expected = f"probably {guessed}: data.encoding={guessed} reads it" if guessed else "data.encoding=NAME"
        assert any(expected in note for note in files.notes())


@pytest.mark.parametrize("encoding", ["utf-99", "hex", ""])
def test_an_unknown_encoding_is_rejected(encoding):
    with pytest.raises(ConfigError, match=f"data.encoding={encoding}: not an encoding of text"):
        DataConfig(sources={"qa": SourceConfig("qa")}, encoding=encoding).validate()


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    "record", [{"question": "a?", "answer": "b"}, {"messages": []}, {"Prompt": "a", "Response": "b"}]
)
def test_questions_given_as_texts_are_sent_to_the_kind_that_reads_them(tmp_path, record):
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    for kind in ("text", "wiki"):
        config = DataConfig(sources={kind: SourceConfig(kind, str(tmp_path / "a.jsonl"))})
        (source,) = (plan.source for plan in plan_sources(config, 0))
        with pytest.raises(DataError, match=r"data=qa data\.qa\.path="):
            list(source.splits()["train"])
