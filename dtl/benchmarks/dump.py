"""Measurements of suite=text on a MediaWiki dump: the speed of its conversion to prose, and its memory.

The peers are the loop that the documentation of mwxml and mwparserfromhell shows, and gensim's `segment_wiki`, which
is faster and less exact. Seconds are those of the processor, of all processes of a side together.
"""

import bz2
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dtl.benchmarks.made_text import write_made_dump
from dtl.benchmarks.measuring import MissingPeerError, Row, at_least, at_most, compared, in_turns, peer, skipped
from dtl.benchmarks.suite import MEGABYTE, Workplace, dump
from dtl.errors import DTLError

N_CHARACTERS = 4 * MEGABYTE
BENCH_EXTRA = "pip install 'dtl[bench]'"
# gensim forks, which can hang a process whose torch has started threads: both sides run in processes of their own. The
# start of these is not counted. gensim has one worker at least, DTL none.
READING = """
import json, os, sys, time
from pathlib import Path
{imports}
def seconds():
    return time.process_time() + sum(os.times()[2:4])  # of this process and, in hundredths, of its children
def main():
    began = seconds()
    characters = [{characters}]
    print(json.dumps([seconds() - began, len(characters), sum(characters)]))
if __name__ == "__main__":
    main()
"""
READ_DUMP = READING.format(
    imports="from dtl.data.wikipedia.dump import read_dump",
    characters="len(article.text) for article in read_dump(Path(sys.argv[1]), processes=1)",
)
SEGMENT_WIKI = READING.format(
    imports="from gensim.scripts.segment_wiki import segment_all_articles",
    characters="sum(len(text) for _, text in article[1])"
    " for article in segment_all_articles(sys.argv[1], min_article_character=0, workers=1)",
)


def dump_reading(place: Workplace) -> Iterator[Row]:
    """Yield two rows: articles per second of processor time compared with mwparserfromhell, and with gensim."""
    tiny, rounds = place.settings.tiny, place.settings.rounds
    file = dump(place, 20_000 if tiny else N_CHARACTERS)
    source = "synthetic dump" if place.settings.dump is None else file.name
    row = Row("dump", f"{source} to prose, processor time", "articles/s", goal=at_least(1.8))
    row = replace(row, peer_name="mwxml and mwparserfromhell's strip_code")
    n_articles, n_characters = read_with_dtl(file)
    try:
        _, n_theirs = read_in_a_loop(file)
    except MissingPeerError as error:
        yield skipped(row, str(error))
    else:
        seconds = in_turns(lambda: read_with_dtl(file), lambda: read_in_a_loop(file), rounds, time.process_time)
        note = f"{n_articles:,} articles; {n_characters:,} and {n_theirs:,} characters of text"
        yield compared(replace(row, note=note), seconds, n_articles)

    row = replace(row, name="dump_gensim", peer_name="gensim's segment_wiki", goal=at_least(1.8))
    ours: list[list[Any]] = []
    theirs: list[list[Any]] = []
    try:
        peer("gensim", BENCH_EXTRA)
        in_turns(
            lambda: ours.append(reading(READ_DUMP, file)), lambda: theirs.append(reading(SEGMENT_WIKI, file)), rounds
        )
    except DTLError as error:  # not installed, or it failed
        yield skipped(row, str(error))
        return
    note = f"{n_articles:,} and {theirs[0][1]:,} articles; {n_characters:,} and {theirs[0][2]:,} characters of text"
    seconds = [report[0] for report in ours], [report[0] for report in theirs]
    yield compared(replace(row, note=note), seconds, n_articles)


def read_with_dtl(file: Path) -> tuple[int, int]:
    """Read a dump with DTL, and return its numbers of articles and of characters of text."""
    from dtl.data.wikipedia.dump import read_dump

    sizes = [len(article.text) for article in read_dump(file, processes=1)]
    return len(sizes), sum(sizes)


def read_in_a_loop(file: Path) -> tuple[int, int]:
    """Return the same numbers with only the two libraries: main namespace, no redirects, markup stripped.

    Raises MissingPeerError without mwxml, which DTL itself does not need.
    """
    import mwparserfromhell

    mwxml = peer("mwxml", BENCH_EXTRA)
    sizes = []
    with file.open("rb") as raw:
        packed = raw.read(3) == b"BZh"
        raw.seek(0)
        for page in mwxml.Dump.from_file(bz2.BZ2File(raw) if packed else raw):
            if page.namespace == 0 and page.redirect is None:
                sizes += [len(mwparserfromhell.parse(revision.text or "").strip_code()) for revision in page]
    return len(sizes), sum(sizes)


def reading(program: str, file: Path) -> list[Any]:
    """Return seconds, articles and characters of READ_DUMP or SEGMENT_WIKI. Raises DTLError when it fails."""
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DTLError(f"{'gensim' if program is SEGMENT_WIKI else 'reading the dump'} fails ({last})")
    return json.loads(done.stdout.splitlines()[-1])


# --- memory -------------------------------------------------------------------------------------------------------
# A process of its own streams a large dump: memory is that of this process and of its parsers, nothing else's.

REPEATED_CHARACTERS = 4 * MEGABYTE
REPEATS = 75  # some 300 MB of XML, including the tags around each page
WARM_UP = 0.2  # fraction of the articles after which memory should be constant
PARSERS = 2
PAUSE_S = 0.05  # seconds between two readings of memory


def dump_memory(place: Workplace) -> Iterator[Row]:
    """Yield one row: the growth of memory after a fifth of the dump."""
    tiny = place.settings.tiny
    file = place.folder / "large.xml.bz2"
    repeats = 3 if tiny else REPEATS
    n_articles = write_made_dump(file, 20_000 if tiny else REPEATED_CHARACTERS, place.settings.seed, repeats)
    row = Row("dump_memory", f"growth of memory while a synthetic dump is read, repeated {repeats} times", "MB")
    row = replace(row, goal=at_most(50, "MB"))
    if not Path("/proc/self/statm").exists():
        yield skipped(row, "memory is read from /proc, which this system does not have")
        return
    program = [sys.executable, "-m", __name__, str(file), str(n_articles)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DTLError(f"dump_memory: the process that reads the dump failed.\n{done.stderr.strip()[-400:]}")
    report = json.loads(done.stdout)
    note = f"{report['articles']:,} articles in {report['seconds']:.0f} s; {report['settled']:.0f} MB after a fifth"
    yield replace(row, ours=report["peak"] - report["settled"], note=note, rounds=1)


def resident_mb(process: int | str = "self") -> float:
    """Return the resident memory of a process in MB, shared pages included; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    import resource

    return pages * resource.getpagesize() / 1e6


def main(file: Path, n_articles: int) -> dict[str, float]:
    """Read a dump and measure memory: the maximum of the warm-up and that of all, in MB."""
    import multiprocessing

    from dtl.data.wikipedia.dump import read_dump

    began = looked = time.perf_counter()
    settled = peak = 0.0
    n_read = 0
    for _ in read_dump(file, processes=PARSERS):
        n_read += 1
        warm = n_read <= WARM_UP * n_articles
        if time.perf_counter() - looked > PAUSE_S or n_read == n_articles:
            looked = time.perf_counter()
            children = multiprocessing.active_children()
            now = resident_mb() + sum(resident_mb(child.pid) for child in children if child.pid)
            settled, peak = (max(settled, now), peak) if warm else (settled or now, max(peak, now))
    return {"articles": n_read, "settled": settled, "peak": max(peak, settled), "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
