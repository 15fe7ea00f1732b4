"""How fast a MediaWiki dump becomes prose, beside the loop that mwxml's and mwparserfromhell's pages show, and
beside gensim's `segment_wiki`, which is faster and rougher."""

import bz2
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dtl.benchmarks.inputs import MEGABYTE, dump
from dtl.benchmarks.measuring import MissingPeerError, Row, at_least, compared, in_turns, peer, skipped
from dtl.benchmarks.suite import Workplace
from dtl.errors import DTLError

N_CHARACTERS = 4 * MEGABYTE
PROCESSES = 2
# gensim starts its processes by forking, which can hang a process that has run torch: it gets a process of its own, and
# the time that this one takes to start is not counted.
SEGMENT_WIKI = """
import json, sys, time
from gensim.scripts.segment_wiki import segment_all_articles
began = time.perf_counter()
articles = segment_all_articles(sys.argv[1], min_article_character=0, workers=int(sys.argv[2]))
characters = [sum(len(text) for _, text in article[1]) for article in articles]
print(json.dumps([time.perf_counter() - began, len(characters), sum(characters)]))
"""


def dump_reading(place: Workplace) -> Iterator[Row]:
    """Two rows: beside one process with mwparserfromhell, and beside gensim."""
    tiny, rounds = place.settings.tiny, place.settings.rounds
    file = dump(place, 20_000 if tiny else N_CHARACTERS)
    which = "made dump" if place.settings.dump is None else file.name
    row = Row("dump", f"{which} to prose, {PROCESSES} processes", "articles/s", goal=at_least(1.8))
    row = replace(row, peer_name="mwxml and mwparserfromhell's strip_code, one process")
    n_articles, n_characters = read_with_dtl(file)
    _, n_theirs = read_in_a_loop(file)
    row = replace(row, note=f"{n_articles:,} articles; {n_characters:,} and {n_theirs:,} characters of text")
    yield compared(row, in_turns(lambda: read_with_dtl(file), lambda: read_in_a_loop(file), rounds), n_articles)

    row = replace(row, name="dump_gensim", peer_name=f"gensim's segment_wiki, {PROCESSES} processes", goal=None)
    try:
        peer("gensim", "pip install 'dtl[bench]'")
    except MissingPeerError as error:
        yield skipped(replace(row, note=""), str(error))
        return
    its: list[list[Any]] = []
    try:
        ours, _ = in_turns(lambda: read_with_dtl(file), lambda: its.append(segment_wiki(file)), rounds)
    except DTLError as error:
        yield skipped(replace(row, note=""), str(error))
        return
    note = f"{n_articles:,} and {its[0][1]:,} articles; {n_characters:,} and {its[0][2]:,} characters of text"
    yield compared(replace(row, note=note), (ours, [seconds for seconds, *_ in its]), n_articles)


def read_with_dtl(file: Path) -> tuple[int, int]:
    """Articles in a dump, and characters of their text."""
    from dtl.data.wikipedia.dump import read_dump

    sizes = [len(article.text) for article in read_dump(file, processes=PROCESSES)]
    return len(sizes), sum(sizes)


def read_in_a_loop(file: Path) -> tuple[int, int]:
    """The same with the two libraries alone: main namespace, no redirects, markup stripped."""
    import mwparserfromhell
    import mwxml

    sizes = []
    with file.open("rb") as raw:
        packed = raw.read(3) == b"BZh"
        raw.seek(0)
        for page in mwxml.Dump.from_file(bz2.BZ2File(raw) if packed else raw):
            if page.namespace == 0 and page.redirect is None:
                sizes += [len(mwparserfromhell.parse(revision.text or "").strip_code()) for revision in page]
    return len(sizes), sum(sizes)


def segment_wiki(file: Path) -> list[Any]:
    """Seconds, articles and characters of gensim's reading. Raises DTLError when it fails."""
    program = [sys.executable, "-c", SEGMENT_WIKI, str(file), str(PROCESSES)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DTLError(f"gensim fails ({last})")
    return json.loads(done.stdout.splitlines()[-1])
