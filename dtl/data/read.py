"""One source, read, cleaned, freed of duplicates and split, document by document into a writer."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

from dtl.base.progress import Pace, Progress
from dtl.data.cleaning import cleaned
from dtl.data.documents import Document
from dtl.data.sources import Source
from dtl.data.split import HoldOut
from dtl.data.stored import TextWriter
from dtl.errors import DataError

# What is counted of a split as it is read, in documents or characters.
COUNTED: tuple[str, ...] = (
    "read", "kept", "empty", "duplicate", "duplicate_characters", "cleaned", "characters"
)  # fmt: skip
EXAMPLES = 3  # of what cleaning changed, kept for the report
EXCERPT = 40  # characters on either side of a change


def read_source(
    source: Source, held_out: tuple[float, float], budget: float, writer: TextWriter, say: Progress
) -> dict[str, Any]:
    """Read, clean and split a source's documents into a writer; returns the facts of SourceTexts.

    `held_out` are the shares of the documents for validation and for test where the source has no validation split
    of its own; a test split of its own is kept. Training text is read up to the document that reaches `budget`
    characters. Exact duplicates are dropped where they share a split, before anything is held out; splits that the
    source itself makes are kept as they are, and told when they overlap.
    """
    splits = source.splits()
    for_validation, for_test = held_out
    holder = None if "validation" in splits else HoldOut(for_validation, 0.0 if "test" in splits else for_test)
    for split in ("train", "validation", *(["test"] if "test" in splits else [])):
        writer.begin(split)
    reader = _Reader(source.origin, say)
    for document in reader.read("train", splits.get("train", ()), budget):
        side = "train" if holder is None else holder.side(document)
        if side == "test":
            writer.begin(side)  # not before: a split that gets nothing is no split
        writer.add(side, document)
    if not reader.counts["train"]["kept"]:
        noticed = "".join(f"\n{note}" for note in source.notes())
        read = reader.counts["train"]["read"]
        raise DataError(
            f"{source.origin}: no training text. Found: {read:,} documents{', all empty' if read else ''}. Needed: at "
            f"least one with text.{noticed}"
        )
    notes: list[str] = []
    for split in ("validation", "test"):
        if split in splits:
            for document in reader.read(split, splits[split], math.inf):
                writer.add(split, document)
    if "validation" in splits and not reader.counts["validation"]["kept"]:
        read = reader.counts["validation"]["read"]
        raise DataError(
            f"{source.origin}: its own validation split has no text. Found: {read:,} documents"
            f"{', all empty' if read else ''}. Give it some, or take it away: then a part of the training text is held "
            "out. Nothing was kept."
        )
    if holder is not None:
        own = () if holder.test_fraction else ("test",)
        changed, note = holder.settle({split: found for split, found in writer.texts().items() if split not in own})
        if changed is not None:
            writer.replace(changed)
        notes += [f"{source.origin}: {note}"] if note else []
    texts = {
        split: found for split, found in writer.texts().items() if len(found) or split in splits or split != "test"
    }
    for split in ("train", "validation"):
        if not len(texts[split]):
            raise DataError(
                f"{source.origin}: no document is left for {split}, of {reader.counts['train']['read']} read. Give "
                f"at least two different documents, or hold out less (data.validation_fraction={for_validation}, "
                f"data.test_fraction={for_test})."
            )
    notes += [*reader.notes(), *source.notes()]
    # Held-out splits that got nothing are none: they have no counts.
    counts = {split: reader.counts.get(split, {}) | {"documents": len(texts[split])} for split in texts}
    facts = {"origin": source.origin, "counts": counts, "notes": notes}
    by_source = getattr(source, "examples", list)()
    return facts | {"has_pairs": reader.has_pairs, "examples": [*by_source, *reader.examples]}


class _Reader:
    """Passes on the cleaned documents of split after split, and counts what it does not pass on."""

    def __init__(self, origin: str, say: Progress) -> None:
        self.origin = origin
        self.say = say
        self.counts: dict[str, dict[str, int]] = {}
        self.has_pairs = False
        self.examples: list[tuple[str, str]] = []  # what cleaning changed: before and after
        self._train: set[bytes] = set()
        self._in_training = 0

    def read(self, split: str, documents: Iterable[Document], budget: float) -> Iterator[Document]:
        """Documents that are neither empty nor a duplicate, up to the one that reaches the budget of characters."""
        counts = dict.fromkeys(COUNTED, 0)
        self.counts[split] = counts
        seen = self._train if split == "train" else set()
        pace = Pace(f"reading {self.origin}: {split}", self.say)
        for raw in documents:
            document = cleaned(raw)
            counts["read"] += 1
            if document is not raw:
                counts["cleaned"] += 1
                excerpts = _excerpts(raw.text, document.text)
                if len(self.examples) < EXAMPLES and excerpts not in self.examples:
                    self.examples.append(excerpts)
            if not document.text.strip():
                counts["empty"] += 1
                continue
            digest = _digest(document)
            if digest in seen:
                counts["duplicate"] += 1
                counts["duplicate_characters"] += len(document.text)
                continue
            seen.add(digest)
            self._in_training += split != "train" and digest in self._train
            self.has_pairs |= document.pair is not None
            counts["kept"] += 1
            counts["characters"] += len(document.text)
            yield document
            pace.tell(f"{counts['read']:,} documents, {counts['characters'] / 1e6:.1f} M characters")
            if counts["characters"] >= budget:
                break

    def notes(self) -> list[str]:
        notes = []
        duplicates = sum(counts["duplicate"] for counts in self.counts.values())
        if duplicates:
            read = sum(counts["read"] for counts in self.counts.values())
            notes.append(f"{self.origin}: {duplicates:,} of {read:,} documents dropped, each a copy of another.")
        if self._in_training:
            notes.append(
                f"{self.origin}: {self._in_training:,} documents for validation or test stand in the training text "
                "too: what is measured on them is memory."
            )
        return notes


def _digest(document: Document) -> bytes:
    """16 bytes of BLAKE2 over the text, of a pair over question and answer: two texts never share them by chance."""
    return hashlib.blake2b(document.text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """The place of the first difference in both texts."""
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    here = slice(max(0, at - EXCERPT), at + EXCERPT)
    return before[here], after[here]
