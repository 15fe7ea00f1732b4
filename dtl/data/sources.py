"""Sources: where documents come from. A source gives its documents by split; what has no validation split
of its own gets one in `dtl.data.prepare`, held out by a hash of the text.

A source of your own is a class with the three methods of `Source` under a name of its own:
`@SOURCES.register("poems")`, used by `data.sources.poems.kind=poems plugins=[my_module]`.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dtl.data.cache import cache_folder
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document, article
from dtl.data.hub_texts import HubTexts, HubWish
from dtl.data.local.files import LocalFiles, field, text_of
from dtl.data.text_key import characters_read, characters_wanted, entry_name, text_key
from dtl.errors import DataError
from dtl.registry import SOURCES

if TYPE_CHECKING:
    from dtl.data.wikipedia.pages import DumpCounts


class Source(Protocol):
    """Documents of one origin.

    What is read of a source is kept in the cache when it has a method `fingerprint() -> str | list[Path] | None` too:
    a text that changes whenever its documents do, or the files that are all it reads. A method
    `examples() -> list[tuple[str, str]]` shows what reading itself changed: before and after.

    The code of the class, and of what its module imports, is part of the key there: edited, it reads anew. What shapes
    the documents and stands in neither (a program that is called, a model that is loaded) is said by an attribute
    `version`, to be changed with it.

    What else is asked of a kind of source is said when it is registered: see `SourceTraits`.
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


def pinned(data: DataConfig, seed: int) -> DataConfig:
    """The configuration with the commit of each dataset of the hub: read again, anywhere, it gives the same texts.

    Every source is opened for it, so what is not there is refused here. Raises DataError. Imports no torch.
    """
    sources, commits = dict(data.sources), dict(data.commits)
    for name, source in open_sources(data, seed).items():
        if isinstance(source, HubSource | WikiSource) and source.commit is not None:
            commits[name] = source.commit
            if name in sources:  # a revision that is asked for later goes before the commit
                sources[name] = replace(sources[name], revision=None)
            if not _may_be_cached(name, source, data, seed):
                source.require_hub()
    return replace(data, sources=sources, commits=commits)


def _may_be_cached(name: str, source: "HubSource | WikiSource", data: DataConfig, seed: int) -> bool:
    """Whether the cache has the text that will be asked for, as far as it can be said before anything is read."""
    if name != next(iter(data.resolved_sources())):
        return True  # how much of it is wanted, the text of the first source will say
    if data.max_samples is not None and data.seq_len is None:
        return True  # how long a row is, the model will say
    budget = characters_read(characters_wanted(data, data.seq_len or 0))
    order_seed = seed if is_sampled(data, name) else None
    fingerprint = source.fingerprint()
    assert isinstance(fingerprint, str)  # the hub's, no files
    key = text_key(fingerprint, source, name, data, budget, order_seed)
    return key is not None and (cache_folder(data.cache_dir) / entry_name(key)).exists()


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
        self.files = LocalFiles(source.path, path_key(data, name), data.allow_truncated)
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


@SOURCES.register("hub")
class HubSource:
    """Any dataset of the Hugging Face hub with a column of text: `path` is its name, owner/name."""

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        key = path_key(data, name)
        if source.path is None or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source.path):
            raise DataError(
                f"{key}={source.path}: kind=hub needs the name of a dataset of the Hugging Face hub, for example "
                f"{key}=roneneldan/TinyStories. Files of your own: data=text data.path=FILE_OR_FOLDER."
            )
        ways_on = "Without the hub: the dataset's files from elsewhere, read with data=text data.path=FOLDER"
        self._texts = HubTexts(_wish(type(self), name, source, source.path, source.subset, data, seed, ways_on))
        self.origin = self._texts.origin
        self.commit = self._texts.commit

    def splits(self) -> dict[str, Iterator[Document]]:
        return self._texts.splits()

    def require_hub(self) -> None:
        """Raises DataError when the hub does not answer."""
        self._texts.require_hub()

    def fingerprint(self) -> str:
        """Dataset, commit, and what is taken of it."""
        return self._texts.fingerprint()

    def notes(self) -> list[str]:
        return self._texts.notes()


def _wish(
    reader: type,
    name: str,
    source: SourceConfig,
    dataset: str,
    subset: str | None,
    data: DataConfig,
    seed: int,
    ways_on: str,
) -> HubWish:
    return HubWish(
        dataset=dataset,
        subset=subset,
        source=source,
        reader=reader,
        key=path_key(data, name),
        settings=f"data.sources.{name}",
        ways_on=ways_on,
        cache=cache_folder(data.cache_dir),
        commit=data.commits.get(name),
        order_seed=seed if is_sampled(data, name) else None,
    )


@SOURCES.register("wiki")
class WikiSource:
    """Wikipedia: a MediaWiki dump (.xml, .xml.bz2), files in the schema of `wikimedia/wikipedia` (title, text), or
    that dataset of the hub.

    A document is the title, an empty line, and the text: a small model then knows what an article is
    about from its first token, and writes one when given `Title\\n\\n`.
    """

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        self._order_seed = seed if is_sampled(data, name) else None
        self.dumps = _dumps(source.path)
        self._dump_counts: list[tuple[Path, DumpCounts]] = []
        self._allow_truncated = data.allow_truncated
        self.files: LocalFiles | None = None
        self._hub: HubTexts | None = None
        self.commit: str | None = None  # of the hub: dataset@sha
        if source.path is not None:
            self.origin = f"{path_key(data, name)}={source.path}"
            if not self.dumps:
                self.files = LocalFiles(source.path, path_key(data, name), data.allow_truncated)
        else:
            ways_on = (
                f"Without the hub: {path_key(data, name)}=FOLDER with the dataset's parquet or jsonl files (columns "
                "title and text), or a MediaWiki dump"
            )
            articles = replace(source, rows=source.rows or "article")
            subset = source.subset or data.wiki_subset
            self._hub = HubTexts(_wish(type(self), name, articles, data.wiki_dataset, subset, data, seed, ways_on))
            self.origin = self._hub.origin
            self.commit = self._hub.commit

    def splits(self) -> dict[str, Iterator[Document]]:
        if self._hub is not None:
            return self._hub.splits()
        if self.files is None:
            return {"train": self._from_dumps()}
        return {split: self._from_files(self.files, split) for split in self.files.by_split}

    def _from_files(self, files: LocalFiles, split: str) -> Iterator[Document]:
        for record in files.records(split, ("title", "text"), self._order_seed):
            text = text_of(field(record, "text"), record.place)
            yield article(text_of(record.fields.get("title"), record.place), text)

    def _from_dumps(self) -> Iterator[Document]:
        """Articles in the order of the dump: a sample of it is its beginning."""
        from dtl.data.wikipedia.dump import read_dump
        from dtl.data.wikipedia.pages import DumpCounts

        for dump in self.dumps:
            counts = DumpCounts()
            self._dump_counts.append((dump, counts))
            for title, text in read_dump(dump, counts=counts, allow_truncated=self._allow_truncated):
                yield article(title, text)

    def require_hub(self) -> None:
        """Raises DataError when the articles are the hub's and it does not answer."""
        if self._hub is not None:
            self._hub.require_hub()

    def fingerprint(self) -> list[Path] | str:
        """The files that the articles are read from, or the hub's dataset and commit."""
        if self._hub is not None:
            return self._hub.fingerprint()
        return self.dumps or (self.files.paths() if self.files else [])

    def examples(self) -> list[tuple[str, str]]:
        """Wikitext and the prose that became of it."""
        return [example for _, counts in self._dump_counts for example in counts.examples]

    def notes(self) -> list[str]:
        of_dumps = [f"{dump}: {line}" for dump, counts in self._dump_counts for line in counts.lines()]
        of_others = [*(self.files.notes() if self.files else []), *(self._hub.notes() if self._hub else [])]
        return [*of_others, *of_dumps]


def _dumps(path: str | None) -> list[Path]:
    if path is None or not path.strip():
        return []
    from dtl.data.wikipedia.dump import dumps_at  # reads what lies there, and needs a moment to be imported

    try:
        return dumps_at(Path(os.path.expanduser(path)))
    except OSError:
        return []  # what is wrong with the path is said where files are looked for
