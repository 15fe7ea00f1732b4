"""Row 19: what is cut off or damaged is an error with file and place; `data.allow_truncated` keeps what can be read,
says how much, and is another entry of the cache."""

import bz2
import gzip
import json
import random
import re

import pytest

from dtl.data.cache import Cache
from dtl.data.collect import collect_texts
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.local.files import LocalFiles, text_of
from dtl.data.prepare import prepare_data
from dtl.data.sources import plan_sources
from dtl.data.wikipedia.dump import DumpCounts, read_dump
from dtl.errors import DataError

TEXTS = [f"Record {number}: {random.Random(number).randbytes(40).hex()} naïve" for number in range(211)]
PACK = {"": bytes, "gz": lambda raw: gzip.compress(raw, mtime=0), "bz2": lambda raw: bz2.compress(raw, 1)}


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def csv(texts: list[str]) -> bytes:
    return b"id,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)).encode()


WRITE = {".jsonl": jsonl, ".csv": csv}


def read(path, allow_truncated: bool) -> tuple[list[str], list[str]]:
    files = LocalFiles(str(path), "data.path", allow_truncated)
    return [text_of(record.fields["text"], record.place) for record in files.records("train")], files.notes()


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("suffix", WRITE)
@pytest.mark.parametrize("packing", PACK)
def test_what_comes_before_the_cut_is_kept_and_counted(tmp_path, suffix, packing):
    raw = PACK[packing](WRITE[suffix](TEXTS))
    file = tmp_path / f"a{suffix}{packing and '.'}{packing}"
    draw = random.Random(5)
    kept_of = []
    for cut in sorted(draw.sample(range(20, len(raw) - 2), 37)):
        file.write_bytes(raw[:cut])
        texts, notes = read(file, allow_truncated=True)
        assert texts == TEXTS[: len(texts)]
        kept_of.append(len(texts))
        try:
            assert read(file, allow_truncated=False)[0] == texts and not packing  # cut between two records
        except DataError as refused:
            assert str(file) in str(refused) and "byte" in str(refused)
            assert "none is kept" in str(refused) or "Read before" not in str(refused)
            assert "keep what comes before with data.allow_truncated=true" in str(refused)
            said = re.search(r"keeps what comes before (?:decompressed )?byte [\d,]+: (\d+) record", notes[0])
            assert said and int(said[1]) == len(texts) and str(file) in notes[0]
    assert kept_of == sorted(kept_of)
    if packing != "bz2":  # which gives nothing of a block before the whole of it
        assert kept_of[-1] > 150 and len(set(kept_of)) > 25


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("packing", ["gz", "bz2"])
def test_damage_in_the_middle_ends_the_file_there(tmp_path, packing):
    parts = [PACK[packing](jsonl([text])) for text in TEXTS[:23]]
    file = tmp_path / f"a.jsonl.{packing}"
    file.write_bytes(b"".join([*parts[:11], b"\x01\x02\x03\x04garbage", *parts[12:]]))
    with pytest.raises(DataError, match=r"data\.allow_truncated=true"):
        read(file, allow_truncated=False)
    texts, (note,) = read(file, allow_truncated=True)
    assert texts == TEXTS[:11] and "cut off or damaged" in note and "11 records" in note


@pytest.mark.parametrize("packing", ["gz", "bz2"])
def test_a_whole_file_says_nothing_and_is_read_whole(tmp_path, packing):
    file = tmp_path / f"a.jsonl.{packing}"
    file.write_bytes(PACK[packing](jsonl(TEXTS)))
    assert read(file, allow_truncated=True) == read(file, allow_truncated=False) == (TEXTS, [])


def test_the_beginning_of_a_text_is_kept(tmp_path):
    text = random.Random(3).randbytes(9000).hex()
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode())[:-3000])
    (kept,), (note,) = read(tmp_path / "a.txt.gz", allow_truncated=True)
    assert 5000 < len(kept) < len(text) and text.startswith(kept) and f"byte {len(kept):,}: 1 record" in note


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("raw", [b'[{"text": "a"}, {"te', b'{"text": "a"\n{"text": "b"}\n'])
def test_what_is_damaged_in_other_ways_stays_an_error(tmp_path, raw):
    """A list in JSON is whole or nothing; a bad line in the middle is no end that is missing."""
    file = tmp_path / ("a.json" if raw.startswith(b"[") else "a.jsonl")
    file.write_bytes(raw)
    with pytest.raises(DataError, match="not JSON"):
        read(file, allow_truncated=True)


def test_the_disks_own_trouble_is_never_taken_for_an_end(tmp_path, monkeypatch):
    def fail(self, buffer):
        raise OSError(5, "Input/output error")

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS)))
    monkeypatch.setattr("gzip.GzipFile.readinto1", fail, raising=False)
    with pytest.raises(DataError, match="Input/output error"):
        read(tmp_path / "a.jsonl.gz", allow_truncated=True)


# --- dumps ----------------------------------------------------------------------------------------------------------


def dump(n_pages: int) -> bytes:
    pages = "".join(
        f"<page><title>Page {n}</title><ns>0</ns><id>{n}</id><revision><id>{n}</id><timestamp>2020-01-02T03:04:05Z"
        f"</timestamp><model>wikitext</model><text>{TEXTS[n]}, it is said.</text></revision></page>\n"
        for n in range(n_pages)
    )
    info = '<siteinfo><namespaces><namespace key="0" case="first-letter" /></namespaces></siteinfo>'
    return f'<mediawiki version="0.11">{info}{pages}</mediawiki>'.encode()


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("packed", [True, False])
def test_a_cut_dump_gives_its_whole_articles(tmp_path, packed):
    whole = b"".join(bz2.compress(line + b"\n") for line in dump(53).split(b"\n")) if packed else dump(53)
    path = tmp_path / ("wiki.xml.bz2" if packed else "wiki.xml")
    for share in (0.31, 0.66, 0.97):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"data\.allow_truncated=true"):
            list(read_dump(path, processes=1))
        counts = DumpCounts()
        titles = [article.title for article in read_dump(path, processes=1, counts=counts, allow_truncated=True)]
        assert titles == [f"Page {n}" for n in range(len(titles))] and 0.2 < len(titles) / 53 < 0.99
        assert "data.allow_truncated=true keeps the articles" in counts.lines()[0]
        assert f"{len(titles)} kept" in counts.lines()[1]


@pytest.mark.counted("broken inputs of data, read right or told")
def test_what_is_no_dump_stays_an_error(tmp_path):
    (tmp_path / "a.xml").write_bytes(b"<html><body/></html>")
    with pytest.raises(DataError, match="<mediawiki> was expected"):
        list(read_dump(tmp_path / "a.xml", allow_truncated=True))


# --- the setting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "wiki", "qa"])
def test_each_source_takes_the_setting_tells_it_and_caches_apart(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("dtl.data.collect.SMALL_BYTES", 0)
    if kind == "qa":
        rows = [{"question": f"What is {text}?", "answer": text[:9]} for text in TEXTS]
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        raw = dump(101) if kind == "wiki" else jsonl(TEXTS)
    file = tmp_path / ("a.xml" if kind == "wiki" else "a.jsonl")
    file.write_bytes(raw[: len(raw) * 2 // 3 - 17])
    cache = tmp_path / "cache"

    def documents(allow: bool) -> tuple[int, list[str]]:
        sources = {kind: SourceConfig(kind, str(file))}
        config = DataConfig(sources=sources, allow_truncated=allow, validation_fraction=0.1, cache_dir=str(cache))
        (texts,) = collect_texts(config, plan_sources(config, 0), 17, 0, Cache(cache), lambda line: None).values()
        return sum(map(len, texts.splits.values())), texts.facts["notes"]

    for _ in range(2):  # made, then from the cache
        n_documents, notes = documents(True)
        assert n_documents > 50 and any("data.allow_truncated=true keeps" in note for note in notes)
        with pytest.raises(DataError, match="cut off"):
            documents(False)


def test_what_was_lost_is_told_by_the_preparation(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS)[:-20])
    data = DataConfig(sources={"text": SourceConfig("text", str(tmp_path))}, allow_truncated=True)
    prepared = prepare_data(data, TokenizerConfig("byte"), 17, 0)
    assert any("210 records" in note and "a.jsonl" in note for note in prepared.notes)
