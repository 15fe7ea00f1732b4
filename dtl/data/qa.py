"""Questions and answers: how a pair is written, the facts that ship with DTL, and files of one's own.

A pair is one document, `Question: ...\\nAnswer: ...`. Its prompt and its answer become tokens apart from
each other, so that the prompt's ids in training are the prompt's ids in chat.
"""

import importlib.resources
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.files import LocalFiles, Record, field, text_of
from dtl.data.sources import Document, is_sampled, path_key
from dtl.errors import DataError
from dtl.registry import SOURCES

SPLITS = ("train", "validation", "test")
QUESTION_NAMES = ("question", "instruction", "prompt")
ANSWER_NAMES = ("answer", "output", "response", "completion")


@dataclass(frozen=True)
class QuestionAnswer:
    """A question in one wording, and its answer."""

    question: str
    answer: str
    topic: str = ""
    fact: str | None = None  # id of the fact that several wordings ask for: "geography-001"


def prompt(question: str) -> str:
    """The text after which the model writes its answer. It ends without a space: the answer brings its own,
    since byte-level tokenizers join a space to the word that follows it."""
    return f"Question: {question.strip()}\nAnswer:"


def document(pair: QuestionAnswer) -> Document:
    """The pair as a text to learn, with the place where its answer begins."""
    asked = prompt(pair.question)
    return Document(f"{asked} {pair.answer.strip()}", answer_start=len(asked), pair=pair)


@SOURCES.register("qa")
class QuestionSource:
    """Pairs from the facts that ship with DTL (path=None), or from one's own .jsonl or .parquet.

    A record is a pair under one of the common names (question/answer, instruction/output, ...), or a fact
    in several wordings as DTL's own are: an answer, and questions under train, validation and test.
    """

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        self.files = LocalFiles(source.path, path_key(data, name)) if source.path is not None else None
        self.origin = self.files.origin if self.files else "the facts that ship with DTL"
        self._order_seed = seed if is_sampled(data, name) else None
        self._skipped = 0

    def splits(self) -> Mapping[str, Iterable[Document]]:
        if self.files is None:
            return self._by_split(shipped_facts())
        if set(self.files.by_split) == {"train"}:
            return self._by_split(self.files.records("train", (), self._order_seed))
        return {split: self._from_named_file(self.files, split) for split in self.files.by_split}

    def _from_named_file(self, files: LocalFiles, split: str) -> Iterator[Document]:
        """Files whose names say the split: every wording in them belongs to it."""
        for record in files.records(split, (), self._order_seed):
            yield from itertools.chain.from_iterable(self._documents(record).values())

    def _by_split(self, records: Iterable[Record]) -> dict[str, list[Document]]:
        """Records that say their splits themselves. Read at once: pairs are short."""
        by_split: dict[str, list[Document]] = {"train": []}
        for record in records:
            for split, documents in self._documents(record).items():
                by_split.setdefault(split, []).extend(documents)
        return by_split

    def _documents(self, record: Record) -> dict[str, list[Document]]:
        answer = text_of(field(record, *ANSWER_NAMES), record.place)
        if any(isinstance(record.fields.get(split), str | list) for split in SPLITS):
            wordings = {split: _wordings(record, split) for split in SPLITS if record.fields.get(split)}
        else:
            wordings = {"train": [text_of(field(record, *QUESTION_NAMES), record.place)]}
        topic = text_of(record.fields.get("topic"), record.place)
        fact = text_of(record.fields.get("id"), record.place) or None
        by_split: dict[str, list[Document]] = {}
        for split, questions in wordings.items():
            for question in questions:
                if question.strip() and answer.strip():
                    pair = QuestionAnswer(question.strip(), answer.strip(), topic, fact)
                    by_split.setdefault(split, []).append(document(pair))
                else:
                    self._skipped += 1
        return by_split

    def notes(self) -> list[str]:
        notes = self.files.notes() if self.files else []
        if self._skipped:
            notes.append(f"{self.origin}: {self._skipped:,} pairs skipped, their question or answer being empty.")
        return notes


def _wordings(record: Record, split: str) -> list[str]:
    value = record.fields[split]
    return [text_of(wording, record.place) for wording in (value if isinstance(value, list) else [value])]


def shipped_facts() -> list[Record]:
    """The facts in dtl/data/facts, a file a topic. Raises DataError when the package lacks them."""
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
