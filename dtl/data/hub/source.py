"""The source `hub`: any dataset of the Hugging Face hub with a column of text."""

import re

from dtl.data.cache import cache_folder
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.hub.texts import HubDatasetSpec, HubTexts
from dtl.data.sources import order_seed, path_key
from dtl.errors import DataError
from dtl.registry import SOURCES


@SOURCES.register("hub")
class HubSource(HubTexts):
    """Documents of a dataset of the hub; `path` is its name, owner/name."""

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        key = path_key(data, name)
        if source.path is None or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source.path):
            raise DataError(
                f"{key}={source.path}: kind=hub needs the name of a dataset of the Hugging Face hub, for example "
                f"{key}=roneneldan/TinyStories. Files of your own: data=text data.path=FILE_OR_FOLDER."
            )
        alternatives = "Without the hub: the dataset's files from elsewhere, read with data=text data.path=FOLDER"
        spec = hub_dataset_spec(type(self), name, source, source.path, source.subset, data, seed, alternatives)
        super().__init__(spec)


def hub_dataset_spec(
    reader: type,
    name: str,
    source: SourceConfig,
    dataset: str,
    subset: str | None,
    data: DataConfig,
    seed: int,
    alternatives: str,
) -> HubDatasetSpec:
    """Return the spec of a source's dataset of the hub; for the arguments see `HubDatasetSpec`."""
    return HubDatasetSpec(
        dataset=dataset,
        subset=subset,
        source=source,
        reader=reader,
        key=path_key(data, name),
        settings=f"data.sources.{name}",
        alternatives=alternatives,
        cache=cache_folder(data.cache_dir),
        commit=data.commits.get(name),
        order_seed=order_seed(data, name, seed),
    )
