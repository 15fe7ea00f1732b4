"""Sources: where documents come from. A source gives its documents by split; what has no validation split
of its own gets one in `dtl.data.prepare`, held out by a hash of the text.

A source of your own is a class with the three methods of `Source` under a name of its own:
`@SOURCES.register("poems")`, used by `data.sources.poems.kind=poems plugins=[my_module]`.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.data.hub import require_hub
from dtl.data.local.files import LocalFiles, field, text_of
from dtl.errors import DataError
from dtl.registry import SOURCES

if TYPE_CHECKING:
    from dtl.data.wikipedia.pages import DumpCounts

SHUFFLE_BUFFER = 1000  # articles among which the hub's stream is shuffled


class Source(Protocol):
    """Documents of one origin.

    What is read of a source is kept in the cache when it has a method `fingerprint() -> str | list[Path] | None` too:
    a text that changes whenever its documents do, or the files that are all it reads.
    """

    origin: str  # where they come from, for messages: "data.path=books/"

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        """Look at the origin without reading it. Raises DataError when there is nothing."""
        ...

    def splits(self) -> Mapping[str, Iterable[Document]]:
        """Documents by split: always `train`, and `validation` and `test` where the source has its own.

        They are read as they are asked for: an endless or a huge source is fine where `data.max_samples`
        or a weight in a mixture says how much of it is needed.
        """
        ...

    def notes(self) -> list[str]:
        """What a person should know of what has been read, a line each."""
        ...


def open_sources(data: DataConfig, seed: int) -> dict[str, Source]:
    """The sources of a configuration, in order, each checked to be there. Imports no torch.

    Raises DataError when a source is missing or empty.
    """
    return {
        name: SOURCES.get(source.kind)(name, source, data, seed) for name, source in data.resolved_sources().items()
    }


def path_key(data: DataConfig, name: str) -> str:
    """The setting that gives a source its path, as a person types it."""
    if data.path is not None and name in data.sources:
        return "data.path"
    return f"data.{name}.path" if name in ("qa", "wiki") else f"data.sources.{name}.path"


def is_sampled(data: DataConfig, name: str) -> bool:
    """Whether only a part of a source is read: then it should come in a random order."""
    return data.max_samples is not None or name != next(iter(data.resolved_sources()))


@SOURCES.register("text")
class TextSource:
    """Files with text: a .txt is one document; a line of .jsonl and a row of .parquet with a `text` are one."""

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        if source.path is None:
            raise DataError(f"{path_key(data, name)}=null: kind=text needs a file or folder.")
        self.files = LocalFiles(source.path, path_key(data, name))
        self.origin = self.files.origin
        self._order_seed = seed if is_sampled(data, name) else None

    def splits(self) -> dict[str, Iterator[Document]]:
        return {split: self._documents(split) for split in self.files.by_split}

    def _documents(self, split: str) -> Iterator[Document]:
        for record in self.files.records(split, ("text",), self._order_seed):
            yield Document(text_of(field(record, "text"), record.place))

    def fingerprint(self) -> list[Path]:
        """The files that the text is read from."""
        return self.files.paths()

    def notes(self) -> list[str]:
        return self.files.notes()


@SOURCES.register("wiki")
class WikiSource:
    """Wikipedia: a MediaWiki dump (.xml, .xml.bz2), files in the schema of `wikimedia/wikipedia` (title, text), or
    that dataset of the hub.

    A document is the title, an empty line, and the text: a small model then knows what an article is
    about from its first token, and writes one when given `Title\\n\\n`.
    """

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        self._data = data
        self._seed = seed
        self._order_seed = seed if is_sampled(data, name) else None
        self.dumps = _dumps(source.path)
        self._dump_counts: list[tuple[Path, DumpCounts]] = []
        local = source.path is not None and not self.dumps
        self.files = LocalFiles(source.path or "", path_key(data, name)) if local else None
        if source.path is not None:
            self.origin = f"{path_key(data, name)}={source.path}"
        else:
            self.origin = f"{data.wiki_dataset} {data.wiki_subset} (hub)"
            require_hub(
                f"{data.wiki_dataset} ({data.wiki_subset})",
                f"{path_key(data, name)}=FOLDER with the dataset's parquet or jsonl files (columns title and text)",
            )

    def splits(self) -> dict[str, Iterator[Document]]:
        if self.dumps:
            return {"train": self._from_dumps()}
        if self.files is None:
            return {"train": self._from_hub()}
        return {split: self._from_files(self.files, split) for split in self.files.by_split}

    def _from_files(self, files: LocalFiles, split: str) -> Iterator[Document]:
        for record in files.records(split, ("title", "text"), self._order_seed):
            text = text_of(field(record, "text"), record.place)
            yield _article(text_of(record.fields.get("title"), record.place), text)

    def _from_dumps(self) -> Iterator[Document]:
        """Articles in the order of the dump: a sample of it is its beginning."""
        from dtl.data.wikipedia.dump import read_dump
        from dtl.data.wikipedia.pages import DumpCounts

        for dump in self.dumps:
            counts = DumpCounts()
            self._dump_counts.append((dump, counts))
            for title, text in read_dump(dump, counts=counts):
                yield _article(title, text)

    def fingerprint(self) -> list[Path] | None:
        """The files that the articles are read from; None for the hub's, whose revision is not pinned."""
        return self.dumps or (self.files.paths() if self.files else None)

    def _from_hub(self) -> Iterator[Document]:
        """Articles as they arrive: whoever stops asking stops the download."""
        import datasets  # takes a second, and only this path needs it

        data = self._data
        try:
            stream = datasets.load_dataset(data.wiki_dataset, data.wiki_subset, split="train", streaming=True)
            for article in stream.shuffle(seed=self._seed, buffer_size=SHUFFLE_BUFFER):
                yield _article(text_of(article.get("title"), self.origin), text_of(article["text"], self.origin))
        except DataError:
            raise
        except Exception as error:  # the library raises whatever its network, cache and parsers raise
            raise DataError(
                f"{self.origin}: reading failed ({type(error).__name__}: {str(error)[:200]}). Try again, "
                "or give data.wiki.path=FOLDER with the dataset's files."
            ) from error

    def notes(self) -> list[str]:
        of_dumps = [f"{dump}: {line}" for dump, counts in self._dump_counts for line in counts.lines()]
        return [*(self.files.notes() if self.files else []), *of_dumps]


def _dumps(path: str | None) -> list[Path]:
    if path is None or not path.strip():
        return []
    from dtl.data.wikipedia.dump import dumps_at  # reads what lies there, and needs a moment to be imported

    try:
        return dumps_at(Path(os.path.expanduser(path)))
    except OSError:
        return []  # what is wrong with the path is said where files are looked for


def _article(title: str, text: str) -> Document:
    title = title.strip()
    return Document(f"{title}\n\n{text}" if title and text.strip() else text)
