"""The pages of a MediaWiki dump that are worth parsing, and what became of the others; flat in memory."""

import bz2
import io
import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dtl.data.documents import in_chunks
from dtl.data.wikipedia.names import is_disambiguation, is_redirect
from dtl.errors import DataError

EXAMPLES = 3  # articles of which the wikitext is kept, to show what became of it
BLOCK = 1 << 16  # bytes
CHUNK_CHARACTERS = 400_000  # wikitext that travels to a worker at a time: a tenth of a second of work
MAX_CHARACTERS = 4_000_000  # twice the longest page that MediaWiki stores; more is no article
FILE, CATEGORY, MAIN = 6, 14, 0  # keys of namespaces, the same in every language


class Page(NamedTuple):
    """A page of the main namespace as it was written."""

    title: str
    wikitext: str


@dataclass
class DumpCounts:
    """What has been read of a dump so far, and what became of it."""

    pages: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> pages
    unreadable: list[str] = field(default_factory=list)  # the first titles, with what the parser said
    bytes_read: int = 0  # of the file, compressed
    bytes_in_file: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)  # from the first articles: wikitext, its prose
    truncated: str = ""  # where and why what follows was not read, where that is allowed
    seconds: float = 0.0  # from the first page asked for, the reader's own time included

    @property
    def pages_per_second(self) -> float:
        """Pages read, kept or not, in a second."""
        return self.pages / self.seconds if self.seconds else 0.0

    def lines(self) -> list[str]:
        """The counts for people, a line each."""
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in self.dropped.most_common())
        lines = [
            f"{self.pages:,} pages read ({self.pages_per_second:,.0f}/s), {self.kept:,} kept, "
            f"{self.dropped.total():,} dropped{f' ({reasons})' if reasons else ''}."
        ]
        if self.truncated:
            lines.insert(0, f"{self.truncated}; data.allow_truncated=true keeps the articles before it.")
        return lines + [f"Unreadable: {title}" for title in self.unreadable]


class _Counting:
    """A file's decompressed bytes for the XML parser, which asks for a few kilobytes at a time."""

    def __init__(self, stream: bz2.BZ2File | io.BufferedReader) -> None:
        self._stream = stream
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        # A piece at a time: where the file is cut off, a longer read would lose what it had before.
        data = self._stream.read1(size)
        self.position += len(data)
        return data


class Pages:
    """Chunks of pages worth parsing. What stops it is kept in `failure`, so that earlier chunks are finished first."""

    def __init__(self, path: Path, counts: DumpCounts) -> None:
        self.path = path
        self.counts = counts
        self.names: frozenset[str] = frozenset()  # the wiki's own words for files and categories
        self.failure: str | None = None
        self.is_damaged = False  # the file ends too early, or from a place on its bytes are not what was written
        self.where = ""  # the same, without the file and the advice
        self.cause: BaseException | None = None
        self.beginnings: dict[str, str] = {}  # title -> wikitext of the first articles, for examples
        self._last_title: str | None = None

    def chunks(self) -> Iterator[list[Page]]:
        return in_chunks(self._articles(), lambda page: len(page.wikitext), CHUNK_CHARACTERS)

    def _articles(self) -> Iterator[Page]:
        from xml.etree.ElementTree import ParseError

        from mwxml.errors import MalformedXML

        source: _Counting | None = None
        try:
            with self.path.open("rb") as raw:
                self.counts.bytes_in_file = os.fstat(raw.fileno()).st_size
                compressed = raw.read(3) == b"BZh"
                raw.seek(0)
                source = _Counting(bz2.BZ2File(raw) if compressed else raw)
                for page, revision in self._pages(source):
                    self.counts.bytes_read = raw.tell()
                    self.counts.pages += 1
                    self._last_title = page.title
                    if (reason := _unwanted(page, revision)) is not None:
                        self.counts.dropped[reason] += 1
                    else:
                        if len(self.beginnings) + len(self.counts.examples) < EXAMPLES:
                            self.beginnings[page.title] = revision.text
                        yield Page(page.title, revision.text)
                while source.read(BLOCK):  # to the file's end: a sum that does not fit is damage, too
                    pass
                self.counts.bytes_read = raw.tell()
        except EOFError as error:  # BZ2File: the file ends inside a stream
            self._stop("the bz2 file is cut off", source, error, is_damaged=True)
        except ParseError as error:
            ended = "no element found" in str(error) or "unclosed" in str(error)
            # What is no XML from its beginning is no damaged dump.
            is_damaged = self._last_title is not None
            self._stop(f"the XML is {'cut off' if ended else 'damaged'} ({error})", source, error, is_damaged)
        except OSError as error:
            if error.errno is not None:  # the disk's trouble, not the content's
                raise DataError(f"{self.path}: cannot be read ({error.strerror}).") from error
            self._stop(f"the bz2 data is damaged ({error})", source, error, is_damaged=True)
        except (MalformedXML, AssertionError, AttributeError, TypeError, ValueError, KeyError) as error:
            # mwxml takes a record's fields for granted: whatever it stumbles on is a record that is no record
            self._stop(f"not MediaWiki's format ({type(error).__name__}: {error})", source, error)

    def _pages(self, source: _Counting) -> Iterator[tuple[Any, Any]]:
        """Every page with its last revision."""
        import mwxml
        from mwxml.element_iterator import ElementIterator

        root: Any = ElementIterator.from_file(source)
        if root.tag != "mediawiki":
            raise ValueError(f"<mediawiki> was expected at the beginning, not <{root.tag}>")
        dump = mwxml.Dump.from_element(root)
        spaces = dump.site_info.namespaces or ()
        self.names = frozenset(space.name.lower() for space in spaces if space.id in (FILE, CATEGORY) and space.name)
        for page in dump.pages:
            last = deque(page, maxlen=1)  # a dump of histories has them all, oldest first
            yield page, last[0] if last else None
            del root.element[:]  # mwxml empties a page that it has read but leaves it in the tree: 20 million of them

    def _stop(self, what: str, source: _Counting | None, error: BaseException, is_damaged: bool = False) -> None:
        place = f"byte {source.position:,} of the XML" if source else "the beginning"
        after = (
            f"after page {self.counts.pages:,} ({self._last_title!r})" if self._last_title else "before the first page"
        )
        self.where = (
            f"{what}, {after}, near {place} "
            f"(byte {self.counts.bytes_read:,} of {self.counts.bytes_in_file:,} in the file)"
        )
        self.failure = (
            f"{self.path}: {self.where}. "
            "Download or copy it again, and compare its checksum with the one published beside it"
            f"{', or keep what comes before with data.allow_truncated=true' if is_damaged else ''}."
        )
        self.is_damaged = is_damaged
        self.cause = error


def _unwanted(page: Any, revision: Any) -> str | None:
    """Why a page is no article, seen before it costs a parse."""
    if page.namespace != MAIN:
        return "other namespace"
    if page.redirect is not None:
        return "redirect"
    text = revision.text if revision is not None else None
    if revision is None or not text or not text.strip():
        return "empty"
    if revision.model not in (None, "wikitext"):
        return "not wikitext"
    if is_redirect(text):
        return "redirect"
    if is_disambiguation(page.title, text):
        return "disambiguation"
    return "too long" if len(text) > MAX_CHARACTERS else None
