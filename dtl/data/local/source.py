"""Sources: where documents come from. A source gives its documents by split; what has no validation split
of its own gets one in `dtl.data.prepare`, held out by a hash of the text.

A source of your own is a class with the three methods of `Source` under a name of its own:
`@SOURCES.register("poems")`, used by `data.sources.poems.kind=poems plugins=[my_module]`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.data.local.files import LocalFiles, field, text_of
from dtl.data.sources import is_sampled, path_key
from dtl.errors import DataError
from dtl.registry import SOURCES

if TYPE_CHECKING:
    pass


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
