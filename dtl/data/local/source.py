"""The source `text`: local files of text."""

from collections.abc import Iterator
from pathlib import Path

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.data.local.files import LocalFiles, field, other_column, raise_if_without_columns, text_of
from dtl.data.sources import order_seed, path_key
from dtl.errors import DataError
from dtl.registry import SOURCES


@SOURCES.register("text")
class TextSource:
    """Documents of local files: a whole .txt, or the field `column` (default: text) of each record of other formats."""

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        if source.path is None:
            raise DataError(f"{path_key(data, name)}=null: kind=text needs a file or folder.")
        self.files = LocalFiles(source.path, path_key(data, name), data.allow_truncated)
        self.origin = self.files.origin
        raise_if_without_columns(self.files, name, source.column)
        self._column = source.column or "text"
        self._remedy = other_column(name)
        self._order_seed = order_seed(data, name, seed)

    def splits(self) -> dict[str, Iterator[Document]]:
        return {split: self._documents(split) for split in self.files.by_split}

    def _documents(self, split: str) -> Iterator[Document]:
        for record in self.files.records(split, (self._column,), self._order_seed):
            yield Document(text_of(field(record, self._column, remedy=self._remedy), record.place))

    def fingerprint(self) -> list[Path]:
        """Return the files that the text is read from."""
        return self.files.paths()

    def notes(self) -> list[str]:
        return self.files.notes()
