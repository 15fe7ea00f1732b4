"""Reading of one source: cleaned, without duplicates, split, written document by document."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from dtl.base.progress import Pace, Progress
from dtl.base.safe_text import in_one_line
from dtl.base.units import in_units, number_of
from dtl.data.chats import chats_in, markers_in
from dtl.data.cleaning import cleaned
from dtl.data.config import HeldOut, with_line_ends
from dtl.data.documents import AsRead, Document, QuestionAnswer
from dtl.data.sources import Source
from dtl.data.split import HoldOut
from dtl.data.stored import TextWriter
from dtl.errors import DataError

# Counts of a split, in documents or characters.
COUNTED: tuple[str, ...] = (
    "read", "kept", "empty", "duplicate", "duplicate_characters", "cleaned", "characters"
)  # fmt: skip
ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<|eos|>", "<eos>", "</s>")  # may separate documents
MARKERS_IN_NOTES = 4  # named, the most frequent
EXAMPLES = 3  # changes by cleaning that the report shows
EXCERPT = 40  # characters on either side of a change
MAX_COMPARED = 200_000  # questions whose answers are compared: some 50 MB


def read_source(
    source: Source,
    held_out: HeldOut,
    budget: float,
    writer: TextWriter,
    log: Progress,
    n_bytes: float = math.inf,
    remove: Sequence[str] = (),
) -> dict[str, Any]:
    """Read, clean and split a source's documents into a writer; return the facts of SourceTexts.

    `held_out` applies where the source has no validation split of its own; its own test split is kept. Training text
    is read up to the document that reaches `budget` characters. Exact duplicates within a split are dropped before
    anything is held out; splits that the source provides are kept as they are, and a note reports their overlap with
    the training text. `n_bytes` is the size of all text, where it is known, for the progress. `remove` lists texts to
    cut from documents without a question.
    """
    reader = _Reader(source.origin, log, n_bytes, remove)
    splits = source.splits()
    wanted = "validation" not in splits and held_out.validation > 0
    holder = HoldOut(replace(held_out, test=0.0) if "test" in splits else held_out) if wanted else None
    for split in ("train", "validation", *(["test"] if "test" in splits else [])):
        writer.begin(split)
    for document in reader.read("train", splits.get("train", ()), budget):
        split = "train" if holder is None else holder.split_for(document)
        if split == "test":
            writer.begin(split)  # only now: an empty test split must not exist
        writer.add(split, document)
    reader.require_training_text(source)
    how = None
    for split in ("validation", "test"):
        if split in splits:
            for document in reader.read(split, splits[split], math.inf):
                writer.add(split, document)
    if "validation" in splits and not reader.counts["validation"]["kept"]:
        read = reader.counts["validation"]["read"]
        raise DataError(
            f"{source.origin}: its own validation split has no text. Found: {number_of('documents', read)}"
            f"{', all empty' if read else ''}. Give it some, or remove it: then a part of the training text is held "
            "out. Nothing was kept."
        )
    if holder is not None:
        own = () if holder.test_fraction else ("test",)
        changed, how = holder.finalize({split: texts for split, texts in writer.texts().items() if split not in own})
        if changed is not None:
            writer.replace(changed)
    texts = {split: found for split, found in writer.texts().items() if len(found) or split in splits}
    all_trained = "validation" not in splits and (held_out.validation == 0 or held_out.automatic)
    for split in ("train", *([] if all_trained else ["validation"])):
        if not len(texts.get(split, ())):
            raise DataError(
                f"{source.origin}: no document is left for {split}, of {reader.counts['train']['read']} read. Give "
                "at least two different documents, or hold out less: data.validation_fraction=0 holds nothing out "
                f"(data.validation_fraction={held_out.validation}, data.test_fraction={held_out.test})."
            )
    # Empty held-out splits do not exist, so they have no counts.
    counts = {split: reader.counts.get(split, {}) | {"documents": len(texts[split])} for split in texts}
    facts = {"origin": source.origin, "counts": counts, **_notes(reader, source, how), "stopped": reader.stopped}
    source_examples = getattr(source, "examples", list)()
    return facts | {"has_pairs": reader.has_pairs, "examples": [*source_examples, *reader.examples]}


def _notes(reader: "_Reader", source: Source, how: str | None) -> dict[str, list[str]]:
    """Return how the source was read and split, and apart from it the notes on problems."""
    notes = source.notes()
    read = [note.removeprefix(f"{source.origin}: ") for note in notes if isinstance(note, AsRead)]
    problems = [note for note in notes if not isinstance(note, AsRead)]
    return {"read": [*read, how] if how else read, "notes": [*reader.notes(), *problems]}


class _Reader:
    """Yields the cleaned documents of each split, and counts those that it drops."""

    def __init__(self, origin: str, log: Progress, n_bytes: float, remove: Sequence[str]) -> None:
        self.origin = origin
        self._remove = re.compile("|".join(re.escape(with_line_ends(text)) for text in remove)) if remove else None
        self._markers: Counter[str] = Counter()  # of chats -> documents
        self._marked = 0  # documents with such markers
        self._is_chat = False  # True once one of them is a chat
        self.log = log
        self.n_bytes = n_bytes  # of all splits
        self.bytes_read = 0
        self.counts: dict[str, dict[str, int]] = {}
        self.has_pairs = False
        self.stopped = False  # True once the budget was reached: the rest was not read
        self.examples: list[tuple[str, str]] = []  # changed by cleaning: before and after
        self._train: set[bytes] = set()
        self._in_training = 0
        self._answers: dict[bytes, str] = {}  # of the training questions; of the first ones of very many
        self._contradicted: dict[bytes, str] = {}  # questions with another answer too -> how to say so

    def read(self, split: str, documents: Iterable[Document], budget: float) -> Iterator[Document]:
        """Yield documents, without empty ones and duplicates, up to the one that reaches the budget of characters."""
        counts = dict.fromkeys(COUNTED, 0)
        self.counts[split] = counts
        seen = self._train if split == "train" else set()
        pace = Pace(f"reading {self.origin}: {split}", self.log)
        for raw in documents:
            document = cleaned(self._without_removed(raw))
            counts["read"] += 1
            if document is not raw:
                counts["cleaned"] += 1
                excerpts = _excerpts(raw.text, document.text)
                if len(self.examples) < EXAMPLES and excerpts not in self.examples:
                    self.examples.append(excerpts)
            if not document.text.strip():
                counts["empty"] += 1
                continue
            # 16 bytes exclude collisions; the text of a pair holds question and answer.
            raw_text = document.text.encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(raw_text, digest_size=16).digest()
            self.bytes_read += len(raw_text)
            if digest in seen:
                counts["duplicate"] += 1
                counts["duplicate_characters"] += len(document.text)
                continue
            seen.add(digest)
            self._in_training += split != "train" and digest in self._train
            self.has_pairs |= document.pair is not None
            if document.pair is None:
                self._look_for_markers(document.text)
            elif split == "train" and not document.pair.accepted:
                self._look_for_another_answer(document.pair)
            counts["kept"] += 1
            counts["characters"] += len(document.text)
            yield document
            fraction = max(self.bytes_read / self.n_bytes, counts["characters"] / budget)  # 0 where neither is known
            read = f"{number_of('documents', counts['read'])}, {in_units(counts['characters'])} characters"
            pace.report(read, fraction or None)
            if counts["characters"] >= budget:
                self.stopped = True
                break

    def require_training_text(self, source: Source) -> None:
        """Raises DataError when no document for training was kept."""
        if not self.counts["train"]["kept"]:
            notes = "".join(f"\n{note.removeprefix(f'{self.origin}: ')}" for note in source.notes())
            read = self.counts["train"]["read"]
            found = f"{number_of('documents', read)}{', all empty' if read else ''}"
            raise DataError(f"{self.origin}: no training text. Found: {found}. Needed: at least one with text.{notes}")

    def _without_removed(self, document: Document) -> Document:
        if self._remove is None or document.answer_start is not None:
            return document
        text = self._remove.sub("", document.text)
        return document if text == document.text else Document(text.strip())

    def _look_for_markers(self, text: str) -> None:
        if found := markers_in(text):
            self._markers.update(found)
            self._marked += 1
            self._is_chat = self._is_chat or bool(chats_in(text))

    def _look_for_another_answer(self, pair: QuestionAnswer) -> None:
        """Two answers to one question in the same words: a model gives one of them."""
        asked = f"{pair.question}\n{pair.context}".encode("utf-8", "surrogatepass")
        question = hashlib.blake2b(asked, digest_size=16).digest()
        if len(self._answers) < MAX_COMPARED:
            before = self._answers.setdefault(question, pair.answer)
            if before != pair.answer:
                shown = (in_one_line(text, EXCERPT) for text in (pair.question, before, pair.answer))
                self._contradicted.setdefault(question, "'{}' has the answers '{}' and '{}'".format(*shown))

    def notes(self) -> list[str]:
        notes = []
        if self._contradicted:
            n, first = len(self._contradicted), next(iter(self._contradicted.values()))
            more = f", and {n - 1:,} more have several" if n > 1 else ""
            rule = "The model can give one of them, and the others count as wrong."
            notes.append(f"{self.origin}: {first}{more}. {rule}")
        if self._marked:
            kept = sum(counts["kept"] for counts in self.counts.values())
            markers = sorted(self._markers, key=lambda marker: (-self._markers[marker], marker))
            listed = ",".join(f'"{marker}"' for marker in markers)
            more = ", ..." if len(markers) > MARKERS_IN_NOTES else ""
            ways = ["data=qa data.qa.path=FILE reads such chats as questions with answers"] if self._is_chat else []
            end = next((marker for marker in markers if marker in ENDS_OF_TEXT), None)
            if end is not None and not ways:
                ways.append(f"'data.separator={end}' splits a text of data=text there")
            ways.append(f"'data.remove=[{listed}]' cuts them out")
            notes.append(
                f"{self.origin}: {self._marked:,} of {kept:,} documents have markers, "
                f"{', '.join(markers[:MARKERS_IN_NOTES])}{more}, which are letters to the model. {'; '.join(ways)}."
            )
        duplicates = sum(counts["duplicate"] for counts in self.counts.values())
        if duplicates:
            read = sum(counts["read"] for counts in self.counts.values())
            notes.append(f"{self.origin}: {duplicates:,} of {read:,} documents dropped, each a copy of another.")
        if self._in_training:
            notes.append(
                f"{self.origin}: {self._in_training:,} documents for validation or test are also in the training "
                "text: scores on them measure memorization."
            )
        return notes


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Return both texts around their first difference."""
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    here = slice(max(0, at - EXCERPT), at + EXCERPT)
    return before[here], after[here]
