"""The source `qa`: questions with answers, from the facts that ship with DTL or from local files.

A pair is one document in the form of `data.qa.prompt`. Prompt and answer are encoded separately, so that the prompt's
ids in training are its ids in chat.
"""

import importlib.resources
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document, dialogue
from dtl.data.local.files import LocalFiles
from dtl.data.local.readers import Record
from dtl.data.qa.records import EXAMPLE, PairReader
from dtl.data.sources import order_seed, path_key
from dtl.data.tokenizers.prompt import Prompt
from dtl.errors import DataError
from dtl.registry import SOURCES


@SOURCES.register("qa")
class QuestionSource:
    """Pairs from the facts that ship with DTL (path=None), or from local files.

    A record is a pair under one of the common names (question/answer, instruction/input/output, ...) or those of
    `data.qa.columns`, an article of SQuAD, a fact with several paraphrases, like DTL's own, or a chat:
    `dtl.data.qa.records`.
    """

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        self.files = (
            LocalFiles(source.path, path_key(data, name), data.allow_truncated, data.encoding, EXAMPLE)
            if source.path is not None
            else None
        )
        self.origin = self.files.origin if self.files else "the facts that ship with DTL"
        self._order_seed = order_seed(data, name, seed)
        self._document = partial(dialogue, prompt=Prompt.of(data))
        self._columns = data.qa.columns if self.files else {}
        self._reader = PairReader(self._columns)

    def splits(self) -> Mapping[str, Iterable[Document]]:
        """Return documents by split. Raises DataError, here or while they are read, when there is no pair in a file."""
        self._reader = PairReader(self._columns)
        if self.files is None:
            return self._by_split(shipped_facts())
        if set(self.files.by_split) == {"train"}:
            return self._by_split(self.files.records("train", (), self._order_seed))
        return {split: self._from_named_file(self.files, split) for split in self.files.by_split}

    def fingerprint(self) -> list[Path] | None:
        """Return the files that the pairs are read from; None for DTL's own facts, which are not cached."""
        return self.files.paths() if self.files else None

    def _from_named_file(self, files: LocalFiles, split: str) -> Iterator[Document]:
        """Yield the documents of files whose names give the split: every question in them belongs to it."""
        for record in files.records(split, (), self._order_seed):
            for pairs in self._reader.pairs(record).values():
                yield from map(self._document, pairs)
        self._reader.require_some(self.origin)

    def _by_split(self, records: Iterable[Record]) -> dict[str, list[Document]]:
        """Return documents of records that name their splits; read into memory, since pairs are short."""
        by_split: dict[str, list[Document]] = {"train": []}
        for record in records:
            for split, pairs in self._reader.pairs(record).items():
                by_split.setdefault(split, []).extend(map(self._document, pairs))
        self._reader.require_some(self.origin)
        return by_split

    def notes(self) -> list[str]:
        return [*self.files.notes(), *self._reader.notes(self.origin)] if self.files else []


def shipped_facts() -> list[Record]:
    """Return the facts in dtl/data/facts, one file per topic. Raises DataError when the package lacks them."""
    folder = importlib.resources.files("dtl.data").joinpath("facts")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".jsonl")), key=lambda file: file.name)
    if not files:
        raise DataError(f"{folder}: the facts that ship with DTL are missing. Install DTL again.")
    return [
        Record(f"{file.name}:{number}", json.loads(line))
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1)
        if line.strip()
    ]
