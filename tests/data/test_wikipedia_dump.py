"""MediaWiki dumps: every article once, in order, whoever wrote the dump; a cut one says where it was cut."""

import bz2
import gzip
import lzma
import random
import re
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow
import pytest

from dtl.base.units import number_of
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.wikipedia import dump as dump_module
from dtl.data.wikipedia.dump import Article, dumps_at, is_dump, read_dump
from dtl.data.wikipedia.pages import DumpCounts
from dtl.data.wikipedia.source import WikiSource
from dtl.errors import DataError

PACK = {
    "bz2": bz2.compress,
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": lambda raw: pyarrow.Codec("zstd").compress(raw, asbytes=True),
}
NAMESPACES = {
    "en": ("File", "Category", "Talk"),
    "de": ("Datei", "Kategorie", "Diskussion"),
    "lt": ("Vaizdas", "Rūšis", "Aptarimas"),
}


def page(title: str, text: str, ns: int | None = 0, extra: str = "", model: str = "wikitext") -> str:
    space = "" if ns is None else f"<ns>{ns}</ns>"
    return (
        f"<page><title>{escape(title)}</title>{space}<id>7</id>{extra}<revision><id>11</id>"
        "<timestamp>2021-03-04T05:06:07Z</timestamp><contributor><username>A</username><id>3</id></contributor>"
        f"<model>{model}</model><format>text/x-wiki</format><text xml:space='preserve'>{escape(text)}</text>"
        "<sha1>x</sha1></revision></page>\n"
    )


def head(version: str | None = "0.11", language: str = "en") -> str:
    space = f' xmlns="http://www.mediawiki.org/xml/export-{version}/" version="{version}"' if version else ""
    file, category, talk = NAMESPACES[language]
    names = {-1: "Special", 0: "", 1: talk, 6: file, 14: category}
    listed = "".join(f'<namespace key="{key}" case="first-letter">{name}</namespace>' for key, name in names.items())
    return (
        f'<mediawiki{space} xml:lang="{language}"><siteinfo><sitename>W</sitename><dbname>w</dbname>'
        f"<namespaces>{listed}</namespaces></siteinfo>\n"
    )


def dump(*pages: str, **options: str | None) -> bytes:
    return (head(**options) + "".join(pages) + "</mediawiki>").encode()


def written(folder: Path, content: bytes, name: str = "dump.xml") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def articles(number: int, words: int = 11) -> list[str]:
    return [page(f"Page {index}", f"'''Page {index}''' is [[word|one]]. " * words) for index in range(number)]


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("version", ["0.10", "0.11", None])
@pytest.mark.parametrize("kind", ["xml", *PACK, "multistream"])
def test_every_form_of_dump_gives_the_same_articles(tmp_path, version, kind):
    pages = articles(13)
    content = dump(*pages, version=version)
    if kind in PACK:
        content = PACK[kind](content)
    if kind == "multistream":
        parts = [head(version), "".join(pages[:5]), "".join(pages[5:]), "</mediawiki>"]
        content = b"".join(bz2.compress(part.encode()) for part in parts)
    path = written(tmp_path, content, "dump.of.no.suffix")
    assert is_dump(path)
    counts = DumpCounts()
    got = list(read_dump(path, counts=counts))
    assert got == [
        Article(f"Page {index}", f"Page {index} is one. " * 10 + f"Page {index} is one.") for index in range(13)
    ]
    assert (counts.pages, counts.kept, counts.dropped.total()) == (13, 13, 0)
    assert counts.bytes_read == counts.bytes_in_file == path.stat().st_size
    assert "13 pages read" in counts.lines()[0]


@pytest.mark.parametrize("language", NAMESPACES)
@pytest.mark.parametrize("numbered", [True, False])
def test_only_articles_are_kept_in_any_language(tmp_path, language, numbered):
    file, category, talk = NAMESPACES[language]

    def in_space(key: int) -> int | None:
        return key if numbered else None

    pages = [
        page("Lake", f"[[{file}:Boat|thumb|A boat]]Deep.[[{category}:Lakes]]", in_space(0)),
        page(f"{talk}:Lake", "Is it deep?", in_space(1)),
        page(f"{category}:Lakes", "Lakes.", in_space(14)),
        page("2001: A lake", "A film.", in_space(0)),
        page("Loch", "#REDIRECT [[Lake]]", in_space(0), "<redirect title='Lake'/>"),
        page("See", "#WEITERLEITUNG [[Lake]]", in_space(0)),
        page("Lake (name)", "Lake may be:\n* [[Lake]]\n{{disambig}}", in_space(0)),
        page("Nothing", "", in_space(0)),
        page("Box", "{{box}}", in_space(0)),
        page("Style", "a {color: red}", in_space(0), model="css"),
    ]
    counts = DumpCounts()
    got = list(read_dump(written(tmp_path, dump(*pages, language=language)), counts=counts))
    assert got == [("Lake", "Deep."), ("2001: A lake", "A film.")]
    assert counts.dropped == {
        "other namespace": 2,
        "redirect": 2,
        "disambiguation": 1,
        "empty": 1,
        "no prose": 1,
        "not wikitext": 1,
    }
    assert counts.pages == counts.kept + counts.dropped.total() == len(pages)


def test_the_newest_revision_of_a_history_is_read(tmp_path):
    old, new = page("Lake", "Old."), page("Lake", "New.")
    revision = re.search("<revision>.*</revision>", new)
    assert revision is not None
    history = old.replace("</page>", revision[0] + "</page>")
    assert list(read_dump(written(tmp_path, dump(history)))) == [("Lake", "New.")]


def test_a_long_history_is_not_kept(tmp_path):
    import tracemalloc

    def peak(revisions: int) -> int:
        one = page("Lake", "Deep. " * 1009)
        revision = re.search("<revision>.*</revision>", one)
        assert revision is not None
        path = written(tmp_path, dump(one.replace("</page>", revision[0] * revisions + "</page>")))
        tracemalloc.start()
        assert [article.title for article in read_dump(path)] == ["Lake"]
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(2)
    assert peak(211) < peak(23) + 100_000  # a revision is 6,054 bytes


def test_the_log_of_a_wiki_is_skipped(tmp_path):
    log = "<logitem><id>3</id><type>delete</type></logitem>"
    assert list(read_dump(written(tmp_path, dump(log, page("Lake", "Deep."), log)))) == [("Lake", "Deep.")]


def test_the_language_of_a_dump_is_heeded(tmp_path):
    text = "{{citation|Oui}}, dit-elle."
    path = written(tmp_path, dump(page("A", text)).replace(b'xml:lang="en"', b'xml:lang="fr"'))
    assert [article.text for article in read_dump(path)] == ["« Oui », dit-elle."]


def test_processes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("dtl.data.wikipedia.pages.CHUNK_CHARACTERS", 4001)
    monkeypatch.setattr(dump_module, "BEFORE_PROCESSES", 9001)  # of some 26,000
    path = written(tmp_path, bz2.compress(dump(*articles(97))))
    alone, together = DumpCounts(), DumpCounts()
    expected = list(read_dump(path, processes=1, counts=alone))
    assert list(read_dump(path, processes=2, counts=together)) == expected
    assert [article.title for article in expected] == [f"Page {index}" for index in range(97)]
    assert (alone.pages, alone.kept, alone.dropped) == (together.pages, together.kept, together.dropped)


def test_whoever_stops_early_waits_for_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr("dtl.data.wikipedia.pages.CHUNK_CHARACTERS", 1)
    monkeypatch.setattr(dump_module, "BEFORE_PROCESSES", 0)
    counts = DumpCounts()
    reader = read_dump(written(tmp_path, dump(*articles(997, words=1))), processes=2, counts=counts)
    assert next(reader).title == "Page 0"
    reader.close()
    assert counts.pages < 19  # no more is read ahead than a few chunks a worker


@pytest.mark.counted("broken inputs of data, read right or told")
def test_a_page_that_cannot_be_parsed_is_counted_and_the_others_are_kept(tmp_path, monkeypatch):
    def fails_on_five(text: str, names: object, language: str) -> str:
        if "Page 5" in text:
            raise RecursionError("too deep")
        return text

    monkeypatch.setattr(dump_module, "to_prose", fails_on_five)
    counts = DumpCounts()
    got = list(read_dump(written(tmp_path, dump(*articles(11))), counts=counts))
    assert [article.title for article in got] == [f"Page {index}" for index in range(11) if index != 5]
    assert counts.dropped == {"unreadable": 1}
    assert counts.lines()[1] == "Unreadable: 'Page 5' (RecursionError: too deep)"


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("kind", ["xml", *PACK, "multistream"])
@pytest.mark.parametrize("share", [0.01, 0.13, 0.37, 0.51, 0.73, 0.97, 0.999])
def test_a_cut_dump_names_the_place_and_keeps_what_came_before(tmp_path, kind, share):
    pages = articles(53)
    whole = dump(*pages)
    if kind == "multistream":
        parts = [head(), *("".join(pages[at : at + 5]) for at in range(0, 53, 5)), "</mediawiki>"]
        whole = b"".join(bz2.compress(part.encode()) for part in parts)
    elif kind in PACK:
        whole = PACK[kind](whole)
    path = written(tmp_path, whole[: int(len(whole) * share)], "cut.xml.bz2")
    kept = []
    with pytest.raises(DataError) as error:
        kept.extend(_each(read_dump(path), kept))
    assert [article.title for article in kept] == [f"Page {index}" for index in range(len(kept))]
    assert all(article.text.count("is one.") == 11 for article in kept)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "byte" in message
    assert f"Read before this place: {number_of('complete articles', len(kept))}, of which none is kept" in message
    if kept:
        assert f"after page {len(kept)} ('Page {len(kept) - 1}')" in message
    if kind == "xml" and share > 0.5:
        assert len(kept) > 20


def _each(reader, kept):
    """Articles into `kept` one by one, so that they are there when the reader raises."""
    for article in reader:
        kept.append(article)
    return []


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "before the first page"),
        (b"<html><body/></html>", "<mediawiki> was expected"),
        (b"<mediawiki><page></page></mediawiki>", "before the first page"),
        (b"BZh91AY&SY garbage that is no bz2 at all, and goes on for a while", "bz2"),
        (dump(page("A", "B.")).replace(b"B.", b"\xff\xfe"), "damaged"),
        (dump(page("A", "B."), "<page><title>C</title><id>x</id></page>"), "after page 1 ('A')"),
        (dump(page("A", "B."), "<page><title/><ns>0</ns><id>1</id></page>"), "after page 1 ('A')"),
        (dump(page("A", "B."), "<page><title>C</title><ns/><id>1</id></page>"), "after page 1 ('A')"),
        (dump(page("A", "B."), page("C", "D.", extra="<upload/>")), "unexpected <upload> in a page"),
        (dump(page("A", "B."), page("C", "D.").replace("</page>", "<id>1</id></page>")), "unexpected <id> in a page"),
        (dump(page("A", "B."), "<note/>"), "unexpected <note> between the pages), after page 1 ('A')"),
    ],
)
def test_what_is_no_dump_is_named(tmp_path, content, said):
    with pytest.raises(DataError, match=re.escape(said)) as error:
        list(read_dump(written(tmp_path, content)))
    assert "dump.xml" in str(error.value)


def test_a_dump_is_known_by_its_content_then_by_its_name(tmp_path):
    assert is_dump(written(tmp_path, dump(), "anything.txt"))
    for pack in PACK.values():
        assert is_dump(written(tmp_path, pack(dump()), "pages.xml-p1p41242.bz2"))
    assert all(is_dump(written(tmp_path, b"", f"empty.xml.{kind}")) for kind in PACK)
    noise = random.Random(7).randbytes(600_011).hex()  # a first block of bz2 that is nearly as long as they get
    assert is_dump(written(tmp_path, bz2.compress(dump(page("A", noise))), "noise.dat"))
    assert is_dump(written(tmp_path, b"", "empty.xml"))
    assert not is_dump(written(tmp_path, b"text", "text.txt"))
    assert not is_dump(written(tmp_path, b"PK\x03\x04a.xml" + dump(), "a.xml.zip"))
    assert not is_dump(written(tmp_path, b"<html></html>", "page.xml"))
    assert not is_dump(written(tmp_path, bz2.compress(b"text"), "text.xml.bz2"))
    assert not is_dump(written(tmp_path, bz2.compress(b"text")[:3], "text.bz2"))


def test_the_dumps_of_a_folder_come_in_order(tmp_path):
    second = written(tmp_path, dump(), "b.xml-p17p23.bz2")
    first = written(tmp_path, dump(), "a.xml")
    written(tmp_path, b"text", "c.txt")
    written(tmp_path, dump(), ".hidden.xml")
    assert dumps_at(tmp_path) == [first, second]
    assert dumps_at(first) == [first]
    assert dumps_at(tmp_path / "c.txt") == dumps_at(tmp_path / "missing") == []


HTML = b"<!DOCTYPE html><html><body>404</body></html>"


def notes_of(folder: Path, **settings) -> tuple[list[str], list[str]]:
    """The titles that a run with this folder learns, and what it is told."""
    config = DataConfig(sources={"wiki": SourceConfig("wiki", str(folder))}, **settings)
    source = WikiSource("wiki", config.sources["wiki"], config, 0)
    titles = [document.text.partition("\n")[0] for document in source.splits()["train"]]
    return titles, source.notes()


@pytest.mark.counted("broken inputs of data, read right or told")
def test_every_file_in_a_folder_of_dumps_is_read_or_named_with_the_reason(tmp_path):
    """They were dropped without a word, and the exit code was 0."""
    written(tmp_path, dump(page("A", "Text of A.")), "a.xml")
    written(tmp_path, dump(page("B", "Text of B.")).decode().encode("utf-16"), "b.xml")
    written(tmp_path, gzip.compress(dump(page("C", "Text of C."))), "c.gz")
    written(tmp_path, bz2.compress(HTML), "d.xml.bz2")
    written(tmp_path, b'{"title": "E", "text": "e"}', "e.jsonl")
    written(tmp_path, b"00 a.xml", "md5sums")
    titles, notes = notes_of(tmp_path)
    assert titles == ["A", "B", "C"]
    (note,) = (note for note in notes if "not read" in note)
    assert "3 files not read: d.xml.bz2 (HTML, perhaps of a failed download), e.jsonl (no dump), md5sums" in note


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("content", "name"),
    [(b"\x00" * 9 + bz2.compress(dump())[9:], "b.xml.bz2"), (b"BZh9" + b"\x00" * 99, "b.xml-p1p2.bz2")],
)
def test_a_damaged_dump_among_others_is_an_error(tmp_path, content, name):
    written(tmp_path, dump(page("A", "Text of A.")), "a.xml")
    written(tmp_path, content, name)
    with pytest.raises(DataError, match=re.escape(name)):
        notes_of(tmp_path)


@pytest.mark.counted("broken inputs of data, read right or told")
def test_a_single_file_that_is_no_dump_is_told_so_and_not_to_use_what_was_used(tmp_path):
    file = written(tmp_path, bz2.compress(HTML), "d.xml.bz2")
    with pytest.raises(DataError, match="not a dump of MediaWiki: HTML") as error:
        notes_of(file)
    assert "data=wiki" not in str(error.value)


@pytest.mark.counted("broken inputs of data, read right or told")
def test_an_export_without_siteinfo_is_read(tmp_path):
    pages = [page("A", "Text."), page("B: c", "Text.", ns=None), page("File:D.jpg", "Text.", ns=None)]
    pages += [page("User talk:E", "Text.", ns=None), page("F", "Text.", ns=1)]
    text = f"<mediawiki xml:lang='en'>{''.join(pages)}</mediawiki>"
    counts = DumpCounts()
    titles = [article.title for article in read_dump(written(tmp_path, text.encode()), counts=counts)]
    assert titles == ["A", "B: c"] and counts.dropped == {"other namespace": 3}


@pytest.mark.counted("broken inputs of data, read right or told")
def test_a_sample_is_drawn_from_all_dumps_in_turn(tmp_path):
    for name in "abc":
        written(tmp_path, dump(*(page(f"{name}{n}", "Text.") for n in range(9))), f"{name}.xml")
    titles, _ = notes_of(tmp_path, max_samples=5)
    assert {title[0] for title in titles[:3]} == {"a", "b", "c"} and len(set(titles)) == 27
    assert titles == notes_of(tmp_path, max_samples=5)[0] and sorted(titles) == notes_of(tmp_path)[0]


@pytest.mark.slow
def test_a_long_dump_needs_no_more_memory_than_a_short_one(tmp_path):
    """The XML tree is the danger: it grows by every page that is not taken out of it."""
    import tracemalloc

    def peak(pages: int) -> int:
        path = tmp_path / f"{pages}.xml"
        with path.open("wb") as file:
            file.write(head().encode())
            for _ in range(pages):
                file.write(page("A", "#REDIRECT [[B]]").encode())
            file.write(b"</mediawiki>")
        tracemalloc.start()
        assert list(read_dump(path, processes=1)) == []
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(101)
    assert peak(2503) < peak(503) + 100_000


def test_the_first_articles_show_what_became_of_their_wikitext(tmp_path, monkeypatch):
    """Whatever the number of processes, and without keeping the wikitext of the others."""
    monkeypatch.setattr("dtl.data.wikipedia.pages.CHUNK_CHARACTERS", 50)  # each page a chunk of its own
    monkeypatch.setattr(dump_module, "BEFORE_PROCESSES", 100)
    pages = [page(f"Page {n}", f"{{{{Box|a=b}}}}'''Page {n}''' is [[word|one]]. " * 3) for n in range(7)]
    for processes in (1, 2):
        counts = DumpCounts()
        list(read_dump(written(tmp_path, dump(*pages)), processes=processes, counts=counts))
        assert [before[:16] for before, _ in counts.examples] == [
            "'''Page 0''' is ",
            "'''Page 1''' is ",
            "'''Page 2''' is ",
        ]
        assert [after[:14] for _, after in counts.examples] == ["Page 0 is one.", "Page 1 is one.", "Page 2 is one."]
