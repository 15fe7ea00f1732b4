"""The pages of a MediaWiki dump that are worth parsing, in constant memory, and counts of all pages."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dtl.data.documents import in_chunks
from dtl.data.local.unpacking import DAMAGE, Decompressed, compression_of, open_decompressed
from dtl.data.wikipedia.names import is_disambiguation, is_redirect
from dtl.errors import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

EXAMPLES = 3  # articles whose wikitext is kept, to show it next to the prose
BLOCK = 1 << 16  # bytes
CHUNK_CHARACTERS = 400_000  # wikitext sent to a worker at a time: a twentieth of a second of work
MAX_CHARACTERS = 4_000_000  # twice MediaWiki's limit for a page; a longer one is no article
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"  # the attribute xml:lang
FILE, CATEGORY, MAIN = 6, 14, 0  # keys of namespaces, the same in every language
# For exports without <siteinfo>: the names of namespaces that MediaWiki knows in every language.
_NAMES = {-2: "Media", -1: "Special", 0: "", 1: "Talk", 2: "User", 4: "Project", 6: "File", 8: "MediaWiki",
          10: "Template", 12: "Help", 14: "Category", 100: "Wikipedia", 828: "Module"}  # fmt: skip
_NAMES |= {key + 1: f"{name} talk" for key, name in _NAMES.items() if key > 0 and key % 2 == 0}
_OF_A_PAGE = ("title", "ns", "id", "redirect", "restrictions", "DiscussionThreading", "revision")


class Page(NamedTuple):
    """A page of the main namespace, as wikitext."""

    title: str
    wikitext: str


class _Record(NamedTuple):
    """A page of any namespace with its last revision, as the dump has it."""

    title: str
    namespace: int
    redirect: str | None
    model: str | None
    text: str | None


@dataclass
class DumpCounts:
    """Counts of the pages of a dump that have been read so far."""

    pages: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> pages
    unreadable: list[str] = field(default_factory=list)  # the first titles, with the parser's error
    bytes_read: int = 0  # of the file, compressed
    bytes_in_file: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)  # from the first articles: wikitext, its prose
    truncated: str = ""  # where and why reading ended early, where that is allowed
    seconds: float = 0.0  # since the first page was requested, the consumer's time included

    @property
    def pages_per_second(self) -> float:
        """Pages read per second, kept or not."""
        return self.pages / self.seconds if self.seconds else 0.0

    def lines(self) -> list[str]:
        """Return the counts as messages for the user, one line each."""
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in self.dropped.most_common())
        lines = [
            f"{self.pages:,} pages read ({self.pages_per_second:,.0f}/s), {self.kept:,} kept, "
            f"{self.dropped.total():,} dropped{f' ({reasons})' if reasons else ''}."
        ]
        if self.truncated:
            lines.insert(0, f"{self.truncated}; data.allow_truncated=true keeps the articles before it.")
        return lines + [f"Unreadable: {title}" for title in self.unreadable]


class _Counting:
    """A file's decompressed bytes and their position, for the XML parser, which reads a few kilobytes at a time."""

    def __init__(self, stream: Decompressed) -> None:
        self._stream = stream
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        # read1: where the file is truncated, a longer read would lose the bytes before.
        data = self._stream.read1(size)
        self.position += len(data)
        return data


class Pages:
    """Chunks of pages worth parsing. An error is stored in `failure`, so that earlier chunks are finished first."""

    def __init__(self, path: Path, counts: DumpCounts) -> None:
        self.path = path
        self.counts = counts
        self.names: frozenset[str] = frozenset()  # the wiki's own namespaces of files and categories
        self.language = ""  # the wiki's, such as `fr`
        self.failure: str | None = None
        self.is_damaged = False  # the file is truncated, or its bytes are damaged
        self.where = ""  # the same, without the file and the advice
        self.cause: BaseException | None = None
        self.beginnings: dict[str, str] = {}  # title -> wikitext of the first articles, for examples
        self._last_title: str | None = None

    def chunks(self) -> Iterator[list[Page]]:
        return in_chunks(self._articles(), lambda page: len(page.wikitext), CHUNK_CHARACTERS)

    def _articles(self) -> Iterator[Page]:
        from xml.etree.ElementTree import ParseError

        source: _Counting | None = None
        compression = ""
        try:
            with self.path.open("rb") as raw:
                self.counts.bytes_in_file = os.fstat(raw.fileno()).st_size
                compression = compression_of(raw.read(8))
                raw.seek(0)
                source = _Counting(open_decompressed(raw, compression))
                for page in self._pages(source):
                    self.counts.bytes_read = raw.tell()
                    self.counts.pages += 1
                    self._last_title = page.title
                    if (reason := _unwanted(page)) is not None:
                        self.counts.dropped[reason] += 1
                    elif page.text:
                        if len(self.beginnings) + len(self.counts.examples) < EXAMPLES:
                            self.beginnings[page.title] = page.text
                        yield Page(page.title, page.text)
                while source.read(BLOCK):  # to the file's end: a wrong checksum is damage, too
                    pass
                self.counts.bytes_read = raw.tell()
        except EOFError as error:  # the file ends inside a stream
            self._stop(f"the {compression} file is cut off", source, error, is_damaged=True)
        except ParseError as error:
            ended = "no element found" in str(error) or "unclosed" in str(error)
            # A file that is no XML from the start is not a damaged dump.
            is_damaged = self._last_title is not None
            self._stop(f"the XML is {'cut off' if ended else 'damaged'} ({error})", source, error, is_damaged)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno is not None:  # a fault of the disk, not of the contents
                raise DataError(f"{self.path}: cannot be read ({error.strerror}).") from error
            self._stop(f"the {compression} data is damaged ({error})", source, error, is_damaged=True)
        except ValueError as error:  # a malformed record
            self._stop(f"not MediaWiki's format ({error})", source, error)

    def _pages(self, source: _Counting) -> Iterator[_Record]:
        """Yield every page with its last revision. Raises ValueError where a page or the file is malformed.

        Only what the reader needs is taken from the tree: mwxml, which makes an object of every field, takes ten times
        as long for a page, the time of a short article's conversion to prose.
        """
        from xml.etree.ElementTree import iterparse

        events = iterparse(source, ("start", "end"))
        root: Element = next(events)[1]
        space, name = _split_name(root.tag)
        if name != "mediawiki":
            raise ValueError(f"<mediawiki> was expected at the beginning, not <{name}>")
        self.language = root.get(_LANGUAGE, "").partition("-")[0]
        page, revision, site_info = (f"{space}{tag}" for tag in ("page", "revision", "siteinfo"))
        keys: dict[str, int] | None = None  # of the wiki's namespaces, by name
        top, depth = root, 0  # `top`: the element between the root and the current one
        for event, element in events:  # the tree may be ahead of the events
            if event == "start":
                depth += 1
                top = element if depth == 1 else top
                continue
            depth -= 1
            if element.tag == revision:  # a dump with histories has all of them, oldest first
                for older in top.findall(revision)[:-1]:
                    top.remove(older)
            if depth != 0:
                continue
            if top.tag == site_info:
                names = top.iterfind(f"{space}namespaces/{space}namespace")
                keys = self._take_names({name.text or "": int(name.get("key", "")) for name in names})
            elif top.tag == page:
                if keys is None:  # an export may lack them
                    keys = self._take_names({name: key for key, name in _NAMES.items()})
                yield _record(top, space, keys)
            elif _split_name(top.tag)[1] != "logitem":
                raise ValueError(f"unexpected <{_split_name(top.tag)[1]}> between the pages")
            del root[:]  # else the tree would keep every page, up to 60 million of them

    def _take_names(self, keys: dict[str, int]) -> dict[str, int]:
        self.names = frozenset(name.lower() for name, key in keys.items() if key in (FILE, CATEGORY) and name)
        return keys

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
            "Download or copy it again, and compare its checksum with the published one"
            f"{', or keep what comes before with data.allow_truncated=true' if is_damaged else ''}."
        )
        self.is_damaged = is_damaged
        self.cause = error


def _split_name(tag: str) -> tuple[str, str]:
    """Return the XML namespace of a tag, in its braces and empty for none, and the name."""
    end = tag.find("}") + 1
    return tag[:end], tag[end:]


def _record(page: "Element", space: str, keys: dict[str, int]) -> _Record:
    """Return a page's record; `space` is the XML namespace, `keys` has the wiki's namespaces by name.

    Raises ValueError where a page lacks a title, or has a number that is none or an element that no page has.
    """
    revisions, number = [], None
    title = redirect = None
    for element in page:
        if (name := _split_name(element.tag)[1]) not in _OF_A_PAGE or (revisions and name != "revision"):
            raise ValueError(f"unexpected <{name}> in a page")
        if name == "revision":
            revisions.append(element)
        elif name == "title":
            title = element.text
        elif name == "redirect":
            redirect = element.get("title")
        elif name in ("ns", "id"):
            value = int(element.text or "")
            number = value if name == "ns" else number
    if not title:
        raise ValueError("a page without a title")
    if number is None:
        prefix, colon, rest = title.partition(":")
        in_space = colon and prefix in keys and not rest.startswith(" ")
        number, title = (keys[prefix], rest) if in_space else (MAIN, title)
    last = revisions[-1] if revisions else None
    model, text = (None, None) if last is None else (last.findtext(f"{space}model"), last.findtext(f"{space}text"))
    return _Record(title.replace("_", " "), number, redirect, model, text)


def _unwanted(page: _Record) -> str | None:
    """Return why a page is no article, before the cost of parsing it; None for an article."""
    if page.namespace != MAIN:
        return "other namespace"
    if page.redirect is not None:
        return "redirect"
    if not page.text or not page.text.strip():
        return "empty"
    if page.model not in (None, "wikitext"):
        return "not wikitext"
    if is_redirect(page.text):
        return "redirect"
    if is_disambiguation(page.title, page.text):
        return "disambiguation"
    return "too long" if len(page.text) > MAX_CHARACTERS else None
