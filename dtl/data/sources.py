"""Sources: where documents come from. A source gives its documents by split; what has no validation split
of its own gets one in `dtl.data.prepare`, held out by a hash of the text.

A source of your own is a class with the three methods of `Source` under a name of its own:
`@SOURCES.register("poems")`, used by `data.sources.poems.kind=poems plugins=[my_module]`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dtl.data.cache import cache_folder
from dtl.data.cache_keys import characters_read, characters_wanted, entry_name, text_key
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.registry import SOURCES

if TYPE_CHECKING:
    pass


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


@runtime_checkable
class HubReader(Protocol):
    """A source that may read a dataset of the Hugging Face hub, in addition to `Source`."""

    commit: str | None  # dataset@sha; None where it reads something else

    def require_hub(self) -> None:
        """Raises DataError when the hub is needed and does not answer."""
        ...

    def fingerprint(self) -> list[Path] | str: ...


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
        if isinstance(source, HubReader) and source.commit is not None:
            commits[name] = source.commit
            if name in sources:  # a revision that is asked for later goes before the commit
                sources[name] = replace(sources[name], revision=None)
            if not _may_be_cached(name, source, data, seed):
                source.require_hub()
    return replace(data, sources=sources, commits=commits)


def _may_be_cached(name: str, source: HubReader, data: DataConfig, seed: int) -> bool:
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
