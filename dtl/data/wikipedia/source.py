"""The source `wiki`: articles of Wikipedia, from a dump, from local files, or from the hub."""

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.base.units import number_of
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document, article
from dtl.data.hub.texts import HubTexts, hub_dataset_spec
from dtl.data.local.files import LocalFiles, in_turn, listed, raise_if_without_columns, text_of
from dtl.data.sources import order_seed, path_key
from dtl.errors import DataError
from dtl.registry import SOURCES

if TYPE_CHECKING:
    from dtl.data.wikipedia.pages import DumpCounts


DUMPS_AT_ONCE = 16  # read in turn where a sample is drawn


@SOURCES.register("wiki")
class WikiSource:
    """Wikipedia: a MediaWiki dump (.xml, also compressed), the files of WikiExtractor, files in the schema of
    `wikimedia/wikipedia` (title, text), or that dataset of the hub.

    A document is the title, an empty line, and the text: a small model then knows an article's subject
    from its first token, and writes an article when given `Title\\n\\n`.
    """

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        self._order_seed = order_seed(data, name, seed)
        self.dumps, self._unread = _dumps(source.path, f"{path_key(data, name)}={source.path}")
        self._dump_counts: list[tuple[Path, DumpCounts]] = []
        self._allow_truncated = data.allow_truncated
        self._column = source.column or "text"
        self._name = name
        self.files: LocalFiles | None = None
        self._hub: HubTexts | None = None
        self.commit: str | None = None  # of the hub: dataset@sha
        if source.path is not None:
            self.origin = f"{path_key(data, name)}={source.path}"
            if self.dumps and source.column:
                key = f"data.sources.{name}.column={source.column}"
                raise DataError(f"{key}: a MediaWiki dump has no columns. Leave it out.")
            if not self.dumps:
                self.files = LocalFiles(source.path, path_key(data, name), data.allow_truncated, data.encoding)
                raise_if_without_columns(self.files, name, source.column)
        else:
            alternatives = (
                f"Without the hub: {path_key(data, name)}=FOLDER with the dataset's parquet or jsonl files (columns "
                "title and text), or a MediaWiki dump"
            )
            articles = replace(source, rows=source.rows or "article")
            subset = source.subset or data.wiki_subset
            self._hub = HubTexts(
                hub_dataset_spec(type(self), name, articles, data.wiki_dataset, subset, data, seed, alternatives)
            )
            self.origin, self.commit = self._hub.origin, self._hub.commit

    def splits(self) -> dict[str, Iterator[Document]]:
        if self._hub is not None:
            return self._hub.splits()
        if self.files is None:
            return {"train": self._from_dumps()}
        return {split: self._from_files(self.files, split) for split in self.files.by_split}

    def _from_files(self, files: LocalFiles, split: str) -> Iterator[Document]:
        for record, text in files.texts(split, self._column, ("title",), self._order_seed, self._name):
            title = text_of(record.fields.get("title"), record.place)
            first, _, rest = text.partition("\n")
            # WikiExtractor repeats the title as the first line.
            yield article(title, rest.lstrip() if title and first.strip() == title.strip() else text)

    def _from_dumps(self) -> Iterator[Document]:
        """Yield articles in the order of the dumps; where a sample is drawn, of all dumps in turn. A sample of a single
        dump is its beginning."""
        if self._order_seed is None or len(self.dumps) == 1:
            yield from in_turn((self._from_dump(dump, None) for dump in self.dumps), 1)
            return
        dumps = random.Random(self._order_seed).sample(self.dumps, len(self.dumps))
        # In this process: each reader would start as many others as there are processors.
        yield from in_turn((self._from_dump(dump, 1) for dump in dumps), DUMPS_AT_ONCE)

    def _from_dump(self, dump: Path, processes: int | None) -> Iterator[Document]:
        from dtl.data.wikipedia.dump import read_dump
        from dtl.data.wikipedia.pages import DumpCounts

        counts = DumpCounts()
        self._dump_counts.append((dump, counts))
        for title, text in read_dump(dump, processes=processes, counts=counts, allow_truncated=self._allow_truncated):
            yield article(title, text)

    def require_hub(self) -> None:
        """Raises DataError when the articles are the hub's and it does not answer."""
        if self._hub is not None:
            self._hub.require_hub()

    def fingerprint(self) -> list[Path] | str:
        """Return the files that the articles are read from, or the hub's dataset and commit."""
        if self._hub is not None:
            return self._hub.fingerprint()
        return self.dumps or (self.files.paths() if self.files else [])

    def examples(self) -> list[tuple[str, str]]:
        """Return pairs of wikitext and the prose made from it."""
        return [example for _, counts in self._dump_counts for example in counts.examples]

    def notes(self) -> list[str]:
        unread = [f"{self.origin}: {number_of('files', len(self._unread))} not read: {listed(self._unread)}."]
        notes = [
            *(unread if self._unread else []),
            *(self.files.notes() if self.files else []),
            *(self._hub.notes() if self._hub else []),
        ]
        return notes + [f"{dump}: {line}" for dump, counts in self._dump_counts for line in counts.lines()]


def _dumps(path: str | None, origin: str) -> tuple[list[Path], list[str]]:
    """Return the dumps at a path and, if there are any, what else is there, each with the reason why it is not read.

    Raises DataError for a file whose name says that it is a dump, where it is none.
    """
    if path is None or not path.strip():
        return [], []
    from dtl.data.wikipedia.dump import dumps_at, unread_at  # imported here: its import takes a moment

    place = Path(os.path.expanduser(path))
    try:
        dumps = dumps_at(place, origin)
        if not dumps and place.is_file() and ".xml" in place.name.lower():
            (why,) = unread_at(place, origin, dumps)
            raise DataError(f"{origin}: not a dump of MediaWiki: {why}. Download or export it again.")
        return dumps, unread_at(place, origin, dumps) if dumps else []
    except OSError:
        return [], []  # `LocalFiles` raises the error for this path
