"""The protocol of sources, which yield documents by split. A source without its own validation split gets one in
`dtl.data.read`, held out by a hash of the text.

A source of your own is a class with the three methods of `Source`, registered under a name:
`@SOURCES.register("poems")`, used by `data.sources.poems.kind=poems plugins=my_module`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.registry import SOURCES


class Source(Protocol):
    """Documents of one origin.

    The documents are cached if the source also has a method `fingerprint() -> str | list[Path] | None`: a text that
    changes whenever its documents do, or all the files that it reads. An optional method
    `examples() -> list[tuple[str, str]]` returns texts before and after reading, for the report.

    The code of the class, and of what its module imports, is part of the cache key: after an edit the source is read
    again. Anything else that shapes the documents (a program that is called, a model that is loaded) needs an
    attribute `version`, changed with it.

    Further properties of a kind of source are given when it is registered: see `SourceTraits`.
    """

    origin: str  # the origin of the documents, for messages: "data.path=books/"

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        """Look at the origin without reading it. Raises DataError when there is nothing."""
        ...

    def splits(self) -> Mapping[str, Iterable[Document]]:
        """Return documents by split: always `train`, and `validation` and `test` where the source has its own.

        They are read lazily: an endless or huge source works where `data.max_samples` or a weight in a mixture
        limits what is needed of it.
        """
        ...

    def notes(self) -> list[str]:
        """Return messages for the user on what has been read, one line each: its problems, and as
        `AsRead` how it was read."""
        ...


@runtime_checkable
class HubReader(Protocol):
    """A source that may read a dataset of the Hugging Face hub, in addition to `Source`."""

    commit: str | None  # dataset@sha; None where it does not read the hub

    def require_hub(self) -> None:
        """Raises DataError when the hub is needed and does not answer."""
        ...

    def fingerprint(self) -> list[Path] | str: ...


@dataclass(frozen=True)
class SourcePlan:
    """One opened source of a run, with all that is decided before it is read."""

    name: str
    config: SourceConfig
    source: Source
    order_seed: int | None  # draws the order where only a part of it is read; None: all, in the source's own order


def plan_sources(data: DataConfig, seed: int) -> list[SourcePlan]:
    """Open the sources of a configuration, in order. Imports no torch.

    Raises DataError when a source is missing or empty.
    """
    plans = []
    for name, config in data.resolved_sources().items():
        source = SOURCES.get(config.kind)(name, config, data, seed)
        plans.append(SourcePlan(name, config, source, _order_seed(data, not plans, seed)))
    return plans


def path_key(data: DataConfig, name: str) -> str:
    """Return the setting that gives a source its path, as the user types it."""
    if data.path is not None and name in data.sources:
        return "data.path"
    return f"data.{name}.path" if name in ("qa", "wiki") else f"data.sources.{name}.path"


def order_seed(data: DataConfig, name: str, seed: int) -> int | None:
    """Return the seed of the random order in which a source is read; None for its own order.

    The order is random where only a part is read: with `data.max_samples`, and in all but the first of a mixture.
    """
    return _order_seed(data, name == next(iter(data.resolved_sources())), seed)


def _order_seed(data: DataConfig, is_first: bool, seed: int) -> int | None:
    return None if is_first and data.max_samples is None else seed
