"""suite=text: each measurement yields its rows, of what their names say. No test requires a speed."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dtl.benchmarks import dump as dump_reading
from dtl.benchmarks import text as tokenising
from dtl.benchmarks import text as waste_rows
from dtl.benchmarks.config import SUITES, BenchConfig
from dtl.benchmarks.dump import dump_memory
from dtl.benchmarks.made_text import made_articles, write_made_dump
from dtl.benchmarks.measuring import MissingPeerError, Row
from dtl.benchmarks.suite import Workplace
from dtl.benchmarks.text import loading, made_sequences, waste
from dtl.data.wikipedia.dump import read_dump
from dtl.data.wikipedia.pages import DumpCounts
from dtl.errors import DataError, DTLError


def place(folder: Path, **settings) -> Workplace:
    return Workplace(BenchConfig(tiny=True, rounds=2, **settings), folder)


def by_name(rows) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_the_suite_is_found_by_its_name():
    suite = SUITES.get("text")
    assert list(suite.chosen(BenchConfig())) == ["tokenising", "encode_bpe", "dump", "loader", "waste"]
    assert "dump_memory" in suite.chosen(BenchConfig(full=True))


# --- synthetic text -------------------------------------------------------------------------------------------------


def test_made_text_is_the_same_for_the_same_seed_and_looks_like_prose():
    articles = list(made_articles(100_003, seed=5))
    assert articles == list(made_articles(100_003, seed=5)) != list(made_articles(100_003, seed=6))
    assert 100_003 <= sum(len(text) for _, text in articles) < 150_000
    assert len({title for title, _ in articles}) == len(articles)
    words = Counter(" ".join(text for _, text in articles).lower().split())
    total, (_, commonest) = words.total(), words.most_common(1)[0]
    assert 0.02 < commonest / total < 0.1  # "the" is 6 % of English
    assert sum(n == 1 for n in words.values()) > len(words) / 3  # about half of the words of any text occur once
    assert all(sign in words for sign in ("the", "of")) and any(word.isdigit() for word in words)


def test_a_made_dump_is_read_whole_and_leaves_no_markup(tmp_path):
    n_articles = write_made_dump(tmp_path / "d.xml.bz2", 200_003, seed=5, repeats=2)
    counts = DumpCounts()
    articles = list(read_dump(tmp_path / "d.xml.bz2", processes=1, counts=counts))
    assert counts.kept == len(articles) == n_articles
    assert counts.dropped.keys() == {"redirect", "other namespace"} and not counts.unreadable
    text = "\n".join(article.text for article in articles)
    assert not [mark for mark in ("{{", "}}", "[[", "]]", "<ref", "{|", "|-", "'''", "Category:") if mark in text]
    assert "http" not in text and len(text) > 50_000


# --- rows ---------------------------------------------------------------------------------------------------------


def test_other_ids_are_refused():
    tokenising.check_same_ids(np.array([3, 5, 7]), np.array([3, 5, 7]))
    for theirs, first in (([3, 5, 8], 3), ([3, 5], 3), ([4, 5, 7], 1), ([3, 5, 7, 9], 4)):
        with pytest.raises(DTLError, match=f"different ids from token {first} on"):
            tokenising.check_same_ids(np.array([3, 5, 7]), np.array(theirs))


@pytest.mark.slow  # imports transformers
def test_tokenising_is_compared_on_the_same_ids(tmp_path):
    (row,) = tokenising.tokenising(place(tmp_path))
    assert row.skipped is None and row.ratio is not None and row.rounds == 2
    assert row.note.startswith("the same ") and row.reached is not None


def test_a_tokenizer_that_is_not_there_is_a_skipped_row(tmp_path, monkeypatch):
    def missing(module: str, install: str):
        raise MissingPeerError(f"install {module}: {install}")

    monkeypatch.setattr(tokenising, "peer", missing)
    (row,) = tokenising.tokenising(place(tmp_path))
    assert row.skipped == "install transformers: pip install transformers" and row.reached is None


def test_both_sides_encode_in_turns_and_give_the_same_ids(tmp_path, monkeypatch):
    sides = []

    def run(work: tokenising.Encoding) -> tokenising.Encoded:
        sides.append(work.side)
        return tokenising.encoded_by(work)

    monkeypatch.setattr(tokenising, "_run_encoding", run)
    (row,) = tokenising.encoding(place(tmp_path))
    assert sides == ["dtl", "tokenizers", "tokenizers", "dtl"]
    assert (row.name, row.rounds, row.unit) == ("encode_bpe", 2, "MB/s") and row.note.startswith("the same ")
    assert row.ratio is not None and row.ratio.least > 0

    monkeypatch.setattr(tokenising, "_run_encoding", lambda work: tokenising.Encoded(1.0, 7, work.side))
    with pytest.raises(DTLError, match="encode_bpe: DTL and tokenizers give different ids, 7 and 7"):
        list(tokenising.encoding(place(tmp_path)))


@pytest.mark.slow  # starts processes
def test_dumps_are_compared_and_a_missing_gensim_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim", None)
    rows = by_name(dump_reading.dump_reading(place(tmp_path)))
    assert list(rows) == ["dump", "dump_gensim"]
    assert rows["dump"].ratio is not None and rows["dump"].skipped is None
    assert rows["dump_gensim"].skipped == "install gensim: pip install 'dtl[bench]'"


def test_both_sides_read_the_same_articles(tmp_path):
    file = tmp_path / "d.xml.bz2"
    n_articles = write_made_dump(file, 30_011, seed=5)
    assert dump_reading.read_in_a_loop(file)[0] == n_articles
    assert dump_reading.read_with_dtl(file)[0] == n_articles


@pytest.mark.slow  # a process of its own
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_watched_in_a_process_of_its_own(tmp_path):
    (row,) = dump_memory(place(tmp_path))
    assert row.skipped is None and row.ours is not None and row.ours >= 0


def test_the_loader_is_timed_within_its_step(tmp_path):
    rows = by_name(loading(place(tmp_path)))
    assert list(rows) == ["loader_wiki", "loader_qa"]
    for row in rows.values():
        assert row.ours is not None and row.peer is not None and row.ratio is not None
        assert row.rounds == 2 and 0 < row.ours < row.peer and 0 < row.ratio.median < 1


def test_rows_of_the_loader_are_what_the_row_says():
    articles, questions = made_sequences(701, False, 257, 5), made_sequences(23, True, 257, 5)
    assert len(articles) > 500 and len(questions) > 500
    assert articles.batch([0, 1]).documents is None
    documents = questions.batch([len(questions) - 1]).documents
    assert documents is not None and len(documents.unique()) > 5


def test_waste_is_measured_packed_and_padded(tmp_path):
    rows = by_name(waste(place(tmp_path)))
    assert list(rows) == ["waste_wiki", "waste_qa"]
    questions = rows["waste_qa"]
    assert questions.ours is not None and questions.peer is not None
    assert questions.reached is True and questions.peer > 0.5  # a question is short, a row is long
    assert rows["waste_wiki"].ours is not None and rows["waste_wiki"].ours < 0.005


def test_a_row_that_was_measured_stands_though_the_next_cannot_be(tmp_path, monkeypatch):
    def missing(row: Row, place: Workplace) -> Row:
        raise DataError("no vocabulary")

    monkeypatch.setattr(waste_rows, "_articles", lambda row, place: replace(row, ours=0.0))
    monkeypatch.setattr(waste_rows, "_questions", missing)
    assert [(row.name, row.skipped) for row in waste(place(tmp_path))] == [
        ("waste_wiki", None),
        ("waste_qa", "no vocabulary"),
    ]


@pytest.mark.slow  # the whole command
def test_the_command_shows_and_writes_every_row(tmp_path):
    out = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "dtl.bench", "tiny=true", "rounds=1", f"out={out}"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "120"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    names = [row["name"] for row in json.loads(out.read_text())["rows"]]
    assert names == [
        "tokenising", "encode_bpe", "dump", "dump_gensim", "loader_wiki", "loader_qa", "waste_wiki",
        "waste_qa",
    ]  # fmt: skip
    assert "cores usable" in done.stdout and "too little input" in done.stdout
    assert list(tmp_path.iterdir()) == [out]
