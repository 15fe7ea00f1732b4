"""Validation and test splits for text that comes without them: by hash, so that a document stays on its side."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dtl.data.config import SPLITS
from dtl.data.documents import Document


def split_hash(document: Document) -> float:
    """A number in [0, 1) that depends on the text alone; of a question and answer pair, on the question.

    BLAKE2 of the UTF-8 text: the same on every machine, whatever the order of the documents, for ever.
    """
    key = document.text[: document.answer_start]
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).digest()) / 2**48


@dataclass(frozen=True)
class Sides:
    """Which hashes belong to which split: validation below one limit, test from another on, training between them.

    Test lies at the other end, so that its share never changes which documents validate.
    """

    validation_below: float
    test_from: float

    def of(self, number: float) -> str:
        return "validation" if number < self.validation_below else "test" if number >= self.test_from else "train"


class HoldOut:
    """Sides of documents that arrive one after the other; none of them is kept here."""

    def __init__(self, validation_fraction: float, test_fraction: float = 0.0) -> None:
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.sides = Sides(validation_fraction, 1 - test_fraction if test_fraction else math.inf)
        self.lowest, self.highest = 1.0, 0.0
        self.n_documents = 0
        self._some_of_train: set[float] = set()  # up to three hashes: so many can be needed to fill three splits

    def side(self, document: Document) -> str:
        """`validation` for what hashes below its fraction, `test` for what hashes into the uppermost, else `train`."""
        number = split_hash(document)
        self.n_documents += 1
        self.lowest, self.highest = min(self.lowest, number), max(self.highest, number)
        side = self.sides.of(number)
        if side == "train" and len(self._some_of_train) < 3:
            self._some_of_train.add(number)
        return side

    def settle(
        self, splits: Mapping[str, Sequence[Document]]
    ) -> tuple[dict[str, Iterable[Document]] | None, str | None]:
        """The splits when all have come: None where they stay, else new ones; and a note where the split is not plain.

        When nothing hashes into a share, the document nearest to it is held out; too few documents give no test
        split. Of a single text it is the end, from a line break on: last the validation text, before it the test
        text.
        """
        if self.n_documents == 1:
            (document,) = _all(splits)
            emptied: dict[str, Iterable[Document]] = {split: [] for split in splits}
            if document.answer_start is not None:
                return emptied | {"train": [document]}, None
            found, note = _split_text(document, self.validation_fraction, self.test_fraction)
            return emptied | found, note
        sides, notes = self._enough_for_each()
        note = " ".join(notes) or None
        if sides == self.sides:
            return None, note
        # What has begun and gets nothing is emptied.
        wanted = [split for split in SPLITS if split != "test" or "test" in splits or sides.test_from < math.inf]
        return {split: _on_side(split, sides, splits) for split in wanted}, note

    def _enough_for_each(self) -> tuple[Sides, list[str]]:
        if self.n_documents < 2:
            return self.sides, []
        notes: list[str] = []
        few = "no document of {} fell into the {:.3g} % for {}; one was taken."
        below, test_from = self.sides.validation_below, self.sides.test_from
        if self.lowest >= below:
            below = math.nextafter(self.lowest, 1)
            notes.append(few.format(self.n_documents, 100 * self.validation_fraction, "validation"))
        if self.test_fraction:
            needed = 1 + (self.lowest >= self.validation_fraction) + (self.highest < test_from)
            if len(self._some_of_train) < needed:
                test_from = math.inf
                notes.append(f"{self.n_documents} documents are too few to hold some out for a test, too.")
            elif self.highest < test_from:
                test_from = self.highest
                notes.append(few.format(self.n_documents, 100 * self.test_fraction, "test"))
        return Sides(below, test_from), notes


def _all(splits: Mapping[str, Sequence[Document]]) -> Iterator[Document]:
    for split in SPLITS:
        yield from splits.get(split, ())


def _on_side(side: str, sides: Sides, splits: Mapping[str, Sequence[Document]]) -> Iterator[Document]:
    return (document for document in _all(splits) if sides.of(split_hash(document)) == side)


def _split_text(
    document: Document, validation_fraction: float, test_fraction: float
) -> tuple[dict[str, Iterable[Document]], str | None]:
    """The end of a text for validation, and before it for the test, from a line break on where there is one."""
    text = document.text.rstrip()
    validation_at = _cut(text, len(text) * (1 - validation_fraction))
    if validation_at is None:
        return {"train": [document], "validation": []}, None
    held_out = f"one text: its last {len(text) - validation_at:,} of {len(text):,} characters are held out for "
    validation = replace(document, text=document.text[validation_at:])
    test_at = None
    if test_fraction:
        test_at = _cut(text[:validation_at].rstrip(), len(text) * (1 - validation_fraction - test_fraction))
    if test_at is None:
        train = replace(document, text=text[:validation_at])
        return {"train": [train], "validation": [validation]}, f"{held_out}validation."
    train, test = replace(document, text=text[:test_at]), replace(document, text=text[test_at:validation_at])
    note = f"{held_out}validation, the {validation_at - test_at:,} before them for the test."
    return {"train": [train], "validation": [validation], "test": [test]}, note


def _cut(text: str, wanted: float) -> int | None:
    """Where to cut a text in two: after the last line break before the place wanted; without one, before the last
    space; else right there. None when nothing would be left before it."""
    place = min(round(wanted), len(text) - 1)
    cut = text.rfind("\n", 0, place) + 1 or max(text.rfind(" ", 0, place), 0) or place
    return cut if cut > 0 and text[:cut].strip() else None
