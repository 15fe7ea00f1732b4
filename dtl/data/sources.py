"""Sources: where documents come from. A source gives its documents by split; what has no validation split
of its own gets one in `dtl.data.prepare`, held out by a hash of the text.

A source of your own is a class with the three methods of `Source` under a name of its own:
`@SOURCES.register("poems")`, used by `data.sources.poems.kind=poems plugins=[my_module]`.
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


@dataclass(frozen=True)
class SourcePlan:
    """One source of a run, opened: everything about it that is decided before it is read."""

    name: str
    config: SourceConfig
    source: Source
    sampled: bool  # only a part of it is read
    order_seed: int | None  # draws the order then; None: as the source has it


def plan_sources(data: DataConfig, seed: int) -> list[SourcePlan]:
    """The sources of a configuration, in order, each checked to be there. Imports no torch.

    Raises DataError when a source is missing or empty.
    """
    plans = []
    for name, config in data.resolved_sources().items():
        sampled = data.max_samples is not None or bool(plans)
        source = SOURCES.get(config.kind)(name, config, data, seed)
        plans.append(SourcePlan(name, config, source, sampled, seed if sampled else None))
    return plans


def path_key(data: DataConfig, name: str) -> str:
    """The setting that gives a source its path, as a person types it."""
    if data.path is not None and name in data.sources:
        return "data.path"
    return f"data.{name}.path" if name in ("qa", "wiki") else f"data.sources.{name}.path"


def is_sampled(data: DataConfig, name: str) -> bool:
    """Whether only a part of a source is read: then it should come in a random order."""
    return data.max_samples is not None or name != next(iter(data.resolved_sources()))
