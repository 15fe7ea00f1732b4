"""Sources: where documents come from. A source gives its documents by split; what has no validation split
of its own gets one in `dtl.data.prepare`, held out by a hash of the text.

A source of your own is a class with the three methods of `Source` under a name of its own:
`@SOURCES.register("poems")`, used by `data.sources.poems.kind=poems plugins=[my_module]`.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dtl.data.cache import cache_folder
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.data.hub.texts import HubTexts, HubWish
from dtl.data.sources import is_sampled, path_key
from dtl.errors import DataError
from dtl.registry import SOURCES

if TYPE_CHECKING:
    pass


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
