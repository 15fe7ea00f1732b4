"""Validation and test splits for text without its own: by hash, so that a document always stays in its split."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dtl.base.units import number_of
from dtl.data.config import SPLITS, HeldOut
from dtl.data.documents import Document

# With an automatic hold-out, of fewer questions none are held out: a tenth would be five, too few to say anything.
MIN_QUESTIONS = 50
# Of fewer questions than these, those with an answer that no training question has stay in the training text: each is a
# fact to learn, and a loss on facts that were never taught measures nothing that training could improve. (Early
# stopping by it ended runs before they knew the others.) More are a sample of a topic, of which some can be spared.
MAX_FACTS = 5000
# Of a few plain texts of this many characters on average, the end of each is held out where no text falls into a split:
# a whole one, taken instead, was more than half of somebody's five files.
LONG_TEXT = 2000


def split_hash(document: Document, by_context: bool = True) -> float:
    """Return a number in [0, 1) that depends only on the text; for a question and answer pair, on the question, or
    `by_context` on its context, if it has one.

    BLAKE2 of the UTF-8 text: the same on every machine and for every order of the documents.
    """
    key = (by_context and _context(document)) or document.text[: document.answer_start]
    # 6 bytes: the 48 bits are exact in a float, whose mantissa has 53.
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).digest()) / 2**48


@dataclass(frozen=True)
class SplitThresholds:
    """The range of hashes of each split: validation below one limit, test from another on, training between them.

    Test is at the upper end, so that its fraction never changes which documents are for validation.
    """

    validation_below: float
    test_from: float

    def split_for(self, number: float) -> str:
        return "validation" if number < self.validation_below else "test" if number >= self.test_from else "train"


class HoldOut:
    """Assigns documents to splits as they arrive; keeps none of them. Questions on one context go into one split."""

    def __init__(self, held_out: HeldOut, by_context: bool = True) -> None:
        self.held_out, self.by_context = held_out, by_context
        self._on_context: Counter[float] = Counter()  # hash of a context -> questions
        self.automatic = held_out.automatic
        self.validation_fraction = validation_fraction = held_out.validation
        self.test_fraction = test_fraction = held_out.test
        self.thresholds = SplitThresholds(validation_fraction, 1 - test_fraction if test_fraction else math.inf)
        self.lowest, self.highest = 1.0, 0.0
        self.n_documents = 0
        self._n_characters = 0.0  # of plain texts; infinitely few when something else is among them
        self._train_hashes: set[float] = set()  # up to three: so many can be needed to fill three splits

    def split_for(self, document: Document) -> str:
        """Return `validation` for a hash below its fraction, `test` for one in the uppermost, else `train`."""
        number = split_hash(document, self.by_context)
        self.n_documents += 1
        is_plain = document.answer_start is None and not document.turns
        self._n_characters += len(document.text) if is_plain else -math.inf
        if self.by_context and _context(document):
            self._on_context[number] += 1
        self.lowest, self.highest = min(self.lowest, number), max(self.highest, number)
        split = self.thresholds.split_for(number)
        if split == "train" and len(self._train_hashes) < 3:
            self._train_hashes.add(number)
        return split

    def finalize(
        self, splits: Mapping[str, Sequence[Document]]
    ) -> tuple[dict[str, Iterable[Document]] | None, str | None]:
        """Return the splits after the last document, or None where they stay, and a note on any exception.

        A single text is cut at line breaks: its end is for validation, the part before that for the test. Where no hash
        falls into a fraction, so is each of a few long texts; of others the document nearest to it is held out, and too
        few give no test split. With an automatic hold-out a question stays held out only if others teach its answer, or
        its context does, and none of a few does. Where most questions have one and the same context, they are split by
        themselves.
        """
        if 1 < self.n_documents < 2 * max(self._on_context.values(), default=0):
            return self._by_question(splits)
        if self.automatic and self.n_documents < MAX_FACTS and next(_all(splits)).pair:
            return self._taught_only(splits)
        if self.n_documents == 1:
            (document,) = _all(splits)
            emptied: dict[str, Iterable[Document]] = {split: [] for split in splits}
            if document.answer_start is not None:
                return emptied | {"train": [document]}, None
            parts, note = _split_text(document, self.validation_fraction, self.test_fraction)
            return emptied | parts, note
        thresholds, notes = self._enough_for_each()
        note = " ".join(notes) or None
        if thresholds != self.thresholds and self._n_characters >= LONG_TEXT * self.n_documents:
            return self._end_of_each(splits)
        if thresholds == self.thresholds:
            return None, note
        # A test split that was begun but gets nothing now is emptied.
        wanted = [split for split in SPLITS if split != "test" or "test" in splits or thresholds.test_from < math.inf]

        def side(document: Document) -> str:
            return thresholds.split_for(split_hash(document, self.by_context))

        def documents(split: str) -> Iterator[Document]:
            return (document for document in _all(splits) if split == side(document))

        return {split: documents(split) for split in wanted}, note

    def _end_of_each(self, splits: Mapping[str, Sequence[Document]]) -> tuple[dict[str, Iterable[Document]], str]:
        def parts(split: str) -> Iterator[Document]:
            for document in _all(splits):
                yield from _split_text(document, self.validation_fraction, self.test_fraction)[0].get(split, ())

        wanted = SPLITS if self.test_fraction else SPLITS[:-1]
        tested = f", the {100 * self.test_fraction:.3g} % before them for the test" if self.test_fraction else ""
        texts = number_of("texts", self.n_documents)
        note = f"{texts}: the last {100 * self.validation_fraction:.3g} % of each are for validation"
        return {split: parts(split) for split in wanted}, f"{note}{tested}."

    def _by_question(
        self, splits: Mapping[str, Sequence[Document]]
    ) -> tuple[dict[str, Iterable[Document]], str | None]:
        holder = HoldOut(self.held_out, by_context=False)
        parts: dict[str, list[Document]] = {split: [] for split in splits}
        for document in _all(splits):
            parts.setdefault(holder.split_for(document), []).append(document)
        changed, note = holder.finalize(parts)
        (_, most), n = self._on_context.most_common(1)[0], self.n_documents
        shared = f"{most:,} of {n:,} questions have the same context: those held out share it with training questions."
        return {**parts, **(changed or {})}, f"{shared} {note or ''}".strip()

    def _taught_only(
        self, splits: Mapping[str, Sequence[Document]]
    ) -> tuple[dict[str, Iterable[Document]], str | None]:
        """Hold out, of the questions drawn, those whose answer others teach; none where these are too few."""
        taught = {_answer(document) for document in splits["train"]}
        drawn = [(split, document) for split in SPLITS[1:] for document in splits.get(split, ())]
        kept: dict[str, list[Document]] = {split: [] for split in splits}
        for split, document in drawn:
            kept[split if _context(document) or _answer(document) in taught else "train"].append(document)
        n_facts = len(kept["train"])
        few = self.n_documents < MIN_QUESTIONS
        if few or 2 * n_facts > len(drawn):
            whole = "the only question is" if self.n_documents == 1 else f"all {self.n_documents:,} questions are"
            why = "too few to spare any" if few else "most have an answer of their own"
            to_hold_out = "; data.validation_fraction=0.1 holds some out" if self.n_documents > 1 else ""
            everything: dict[str, Iterable[Document]] = {split: [] for split in splits}
            return everything | {"train": list(_all(splits))}, (f"{whole} trained on ({why}){to_hold_out}.")
        be = "is" if n_facts == 1 else "are"
        note = (
            f"{n_facts} of the {len(drawn)} questions drawn to be held out {be} trained on: no other has their answer."
        )
        return {**kept, "train": [*splits["train"], *kept["train"]]}, note if n_facts else None

    def _enough_for_each(self) -> tuple[SplitThresholds, list[str]]:
        if self.n_documents < 2:
            return self.thresholds, []
        notes: list[str] = []
        few = "none of {} documents fell into the {:.3g} % for {}; the nearest was taken."
        below, test_from = self.thresholds.validation_below, self.thresholds.test_from
        if self.lowest >= below:
            below = math.nextafter(self.lowest, 1)
            notes.append(few.format(self.n_documents, 100 * self.validation_fraction, "validation"))
        if self.test_fraction:
            needed = 1 + (self.lowest >= self.validation_fraction) + (self.highest < test_from)
            if len(self._train_hashes) < needed:
                test_from = math.inf
                they = "one document is" if self.n_documents == 1 else f"{self.n_documents} documents are"
                notes.append(f"{they} too few to hold some out for a test split, too.")
            elif self.highest < test_from:
                test_from = self.highest
                notes.append(few.format(self.n_documents, 100 * self.test_fraction, "test"))
        return SplitThresholds(below, test_from), notes


def _context(document: Document) -> str:
    return " ".join(document.pair.context.split()) if document.pair else ""


def _answer(document: Document) -> str | None:
    return " ".join(document.pair.answer.casefold().split()) if document.pair else None


def _all(splits: Mapping[str, Sequence[Document]]) -> Iterator[Document]:
    for split in SPLITS:
        yield from splits.get(split, ())


def _split_text(
    document: Document, validation_fraction: float, test_fraction: float
) -> tuple[dict[str, Iterable[Document]], str | None]:
    """Split one text: its end for validation, the part before that for the test; cut at line breaks if possible."""
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
    """Return the place to cut a text in two: after the last line break before `wanted`; without one, before the last
    space; else right there. None when nothing would be left before it."""
    place = min(round(wanted), len(text) - 1)
    cut = text.rfind("\n", 0, place) + 1 or max(text.rfind(" ", 0, place), 0) or place
    return cut if cut > 0 and text[:cut].strip() else None
