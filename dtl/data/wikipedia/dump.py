"""Articles from MediaWiki's XML dumps: read page by page in constant memory, converted to prose by several processes.

    counts = DumpCounts()
    for article in read_dump(Path("enwiki-latest-pages-articles-multistream.xml.bz2"), counts=counts):
        print(article.title, len(article.text))
    print(*counts.lines(), sep="\\n")

Reads export-0.10 and 0.11, with and without their XML namespace, plain or compressed (.bz2, .gz, .xz, .zst), in one
stream or many.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dtl.base.units import number_of
from dtl.data.local.files import files_in
from dtl.data.local.formats import NOT_READ, decompressed_head, has_known_name, suffixes_of
from dtl.data.local.unpacking import compression_of
from dtl.data.wikipedia.pages import DumpCounts, Page, Pages
from dtl.data.wikipedia.wikitext import to_prose
from dtl.errors import DataError

EXAMPLE_CHARACTERS = 100  # of prose, and twice as many of wikitext, which has markup and links
UNREADABLE_KEPT = 5  # titles of unreadable pages in the report
# Characters of wikitext converted in this process before others are started: a few seconds. The start of each takes one
# of a processor, and reading the file is the larger part of the work, which only this process does.
BEFORE_PROCESSES = 8_000_000


class Article(NamedTuple):
    """An article as prose."""

    title: str
    text: str


def is_dump(path: Path) -> bool:
    """Return True for a MediaWiki dump, by its first bytes, or by its name where these cannot be decompressed.

    Raises OSError when the file cannot be opened.
    """
    head = _head(path)
    if head is None or not head.strip():  # damaged, or cut off at once: reading it reports the place
        return _is_named_xml(path.name)
    return b"<mediawiki" in head and not head.startswith(tuple(NOT_READ))  # a zip archive may store a dump as is


def _head(path: Path) -> bytes | None:
    """Return the first bytes of a file, decompressed and without the zeros of UTF-16; None where they are damaged."""
    with path.open("rb") as raw:
        head = raw.read(4096)
    if compression := compression_of(head):
        return decompressed_head(path, compression)[:4096].replace(b"\0", b"")
    named, is_text = suffixes_of(path.name)[1], head.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith(b"<")
    return None if named and head and not is_text else head.replace(b"\0", b"")


def _is_named_xml(name: str) -> bool:
    return ".xml" in name.lower()


def dumps_at(path: Path, origin: str | None = None) -> list[Path]:
    """Return the dumps at a path: the file itself, or those in a folder and its subfolders, by name.

    `origin` names the path in messages. Empty when there is no dump. Raises DataError for a folder that is too large
    to be one of data, OSError when the path cannot be read.
    """
    if path.is_dir():
        named = _named(path, origin or str(path))[0]
        return [file for file in named if is_dump(file)]
    return [path] if path.is_file() and is_dump(path) else []


def _named(folder: Path, origin: str) -> tuple[list[Path], list[Path], list[str]]:
    """Return the files in a folder that may be dumps by name, those that have other text, and names of a few others."""
    files, others, _ = files_in(folder, origin, lambda name: _may_be_dump(name) or has_known_name(name))
    return [f for f in files if _may_be_dump(f.name)], [f for f in files if not _may_be_dump(f.name)], others


def _may_be_dump(name: str) -> bool:
    suffix, compression = suffixes_of(name)
    return _is_named_xml(name) or (bool(compression) and not has_known_name(f"x{suffix}"))


def unread_at(path: Path, origin: str, dumps: Sequence[Path]) -> list[str]:
    """Return what is not read at a path with these dumps: names of files, each with the reason."""
    if not path.is_dir():
        return [] if dumps else [_why_not(path)]
    named, others, more = _named(path, origin)
    unread = [f"{file.relative_to(path)} ({_why_not(file)})" for file in named if file not in set(dumps)]
    return unread + [f"{file.relative_to(path)} (no dump)" for file in others] + [f"{name} (no dump)" for name in more]


def _why_not(path: Path) -> str:
    head = (_head(path) or b"").lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "HTML, perhaps of a failed download"
    return "XML without <mediawiki> at its beginning" if head.startswith(b"<") else "no dump"


def read_dump(
    path: Path, *, processes: int | None = None, counts: DumpCounts | None = None, allow_truncated: bool = False
) -> Iterator[Article]:
    """Yield the articles of a dump in its order: main namespace only, no redirects, no disambiguation pages.

    `processes` convert wikitext to prose (None: one per processor); the result does not depend on their number.
    The beginning of a dump is converted in this process, so that a small one starts no others. `counts` is filled while
    articles are read. A script that calls this needs `if __name__ == "__main__":`, since the processes import it again.

    Raises DataError, after the last complete article, where a dump is truncated or damaged; with `allow_truncated` it
    ends there, and `counts` record it.
    """
    counts = DumpCounts() if counts is None else counts
    workers = _processors() if processes is None else processes
    if workers < 1:
        raise DataError(f"processes={processes}: give 1 or more.")
    began = time.perf_counter()
    reader = Pages(path, counts)
    for results in _in_order(reader, workers):
        for title, text, failure in results:
            counts.seconds = time.perf_counter() - began
            if failure:
                counts.dropped["unreadable"] += 1
                if len(counts.unreadable) < UNREADABLE_KEPT:
                    counts.unreadable.append(f"{title!r} ({failure})")
            elif not text:
                counts.dropped["no prose"] += 1
            else:
                counts.kept += 1
                if wikitext := reader.beginnings.pop(title, None):
                    counts.examples.append((_lead(wikitext), text[:EXAMPLE_CHARACTERS]))
                yield Article(title, text)
    counts.seconds = time.perf_counter() - began
    if reader.failure is not None and allow_truncated and reader.is_damaged:
        counts.truncated = reader.where
    elif reader.failure is not None:
        read = f"Read before this place: {number_of('complete articles', counts.kept)}, of which none is kept."
        raise DataError(f"{reader.failure} {read}") from reader.cause


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # what this process may use; not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lead(wikitext: str) -> str:
    """Return the first words of an article's wikitext: its subject, in bold, after the boxes."""
    begins = max(0, wikitext.find("'''"))
    return wikitext[begins : begins + 2 * EXAMPLE_CHARACTERS]


_Result = tuple[str, str, str]  # title, prose, error


def _parse_chunk(chunk: list[Page], names: frozenset[str], language: str) -> list[_Result]:
    results = []
    for title, wikitext in chunk:
        try:
            results.append((title, to_prose(wikitext, names, language), ""))
        except Exception as error:  # one bad page must not lose the others
            results.append((title, "", f"{type(error).__name__}: {str(error)[:80]}"))
    return results


def _in_order(reader: Pages, workers: int) -> Iterator[list[_Result]]:
    """Yield the results of chunks in the dump's order, with at most a few pending chunks per worker."""
    chunks = reader.chunks()
    n_characters = 0
    while workers == 1 or n_characters < BEFORE_PROCESSES:
        if (chunk := next(chunks, None)) is None:
            return
        yield _parse_chunk(chunk, reader.names, reader.language)
        n_characters += sum(len(page.wikitext) for page in chunk)
    with _pool(workers) as pool:
        pending: deque[Future[list[_Result]]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_parse_chunk, chunk, reader.names, reader.language))
                if len(pending) > 2 * workers:  # one chunk in work and one waiting per worker: bounded memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{reader.path}: a process that parses pages has died, near page {reader.counts.pages:,}. "
                "The most frequent cause is too little memory: close other programs, or use fewer processes. "
                f"Read before: {number_of('complete articles', reader.counts.kept)}, of which none is kept."
            ) from error


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start fresh processes (spawn): a fork of a process with threads, as every one with torch has, can hang."""
    import multiprocessing

    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        yield pool
    finally:  # also when the caller stops early
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and exit when the parent is killed."""
    import multiprocessing
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
