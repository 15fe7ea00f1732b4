"""Texts of all sources, by split: read as far as they are needed, cleaned, without duplicates, a part held out.

Read once: what was read is kept in the cache, under a hash of everything that shaped it.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.base.progress import Pace, Progress
from dtl.data.cache import Cache, key_of
from dtl.data.cache_keys import (
    CHARACTERS_PER_TOKEN,
    characters_read,
    characters_wanted,
    entry_name,
    sample_settings,
    text_code,
    text_key,
)
from dtl.data.cleaning import cleaned
from dtl.data.config import SPLITS, DataConfig
from dtl.data.documents import Document
from dtl.data.sources import Source, is_sampled, open_sources
from dtl.data.split import HoldOut
from dtl.data.stored import DiskWriter, MemoryWriter, Texts, TextWriter, read_texts, sample
from dtl.errors import DataError

if TYPE_CHECKING:
    from dtl.data.sources import Source


# --- one source ---------------------------------------------------------------------------------------------------
# One source, read, cleaned, freed of duplicates and split, document by document into a writer.


# What is counted of a split as it is read, in documents or characters.
COUNTED: tuple[str, ...] = (
    "read", "kept", "empty", "duplicate", "duplicate_characters", "cleaned", "characters"
)  # fmt: skip
EXAMPLES = 3  # of what cleaning changed, kept for the report
EXCERPT = 40  # characters on either side of a change


def read_source(
    source: "Source", held_out: tuple[float, float], budget: float, writer: TextWriter, say: Progress
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


# --- all sources --------------------------------------------------------------------------------------------------


# Files of less than this are prepared in about a second: a cache entry would cost more to look after than it saves.
SMALL_BYTES = 2**20


@dataclass(frozen=True)
class SourceTexts:
    """The documents of one source that a run learns from and is measured on."""

    origin: str
    splits: dict[str, Texts]
    key: str | None  # equal for equal texts; None: nobody knows what they are made of
    facts: dict[str, Any]  # notes; `counts`: split -> documents read, kept, dropped by reason; has_pairs


def collect_texts(config: DataConfig, seq_len: int, seed: int, cache: Cache, say: Progress) -> dict[str, SourceTexts]:
    """The texts of every source, in order.

    Of a source that is sampled (`data.max_samples`, or any but the first of a mixture) only about as much
    training text is taken as is wanted of it, drawn by the seed.

    Raises DataError when a source is missing, or has no text for training or for validation.
    """
    collected: dict[str, SourceTexts] = {}
    for name, source in open_sources(config, seed).items():
        wanted = _characters_wanted(config, name, collected, seq_len)
        sampled = is_sampled(config, name)
        texts = _read(source, name, config, characters_read(wanted), seed if sampled else None, cache, say)
        if sampled:
            chosen = sample(texts.splits["train"], wanted, seed)
            key = texts.key and key_of(**sample_settings(texts.key, wanted, seed))
            texts = SourceTexts(texts.origin, texts.splits | {"train": chosen}, key, texts.facts)
        collected[name] = texts
    return collected


def _characters_wanted(config: DataConfig, name: str, read_before: dict[str, SourceTexts], seq_len: int) -> float:
    """Characters of training text wanted of a source: infinite when all of it is."""
    wanted = characters_wanted(config, seq_len)
    if not read_before:
        return wanted
    sources = config.resolved_sources()
    first = next(iter(read_before))
    of_first = int(read_before[first].splits["train"].characters.sum())
    share = sources[name].weight / sources[first].weight
    return min(wanted, max(seq_len * CHARACTERS_PER_TOKEN, of_first * share * config.recommended.max_epochs))


def _read(
    source: Source, name: str, config: DataConfig, budget: float, order_seed: int | None, cache: Cache, say: Progress
) -> SourceTexts:
    """The texts of a source out of the cache, or into it, or into memory where they are not to be kept."""
    held_out = config.validation_fraction, config.test_fraction
    fingerprint = _fingerprint(source, cache)
    key = None if fingerprint is None else text_key(fingerprint, source, name, config, budget, order_seed)
    if key is not None:
        code = text_code(config.resolved_sources()[name].kind, type(source))

        def build(folder: Path) -> dict[str, Any]:
            writer = DiskWriter(folder)
            try:
                facts = read_source(source, held_out, budget, writer, say)
                writer.close()
            finally:
                writer.abandon()
            return facts | {"code": code}

        entry = cache.get(entry_name(key), build)
        if entry is not None:
            # A manifest sorts its keys; rows and fingerprint depend on the order of the splits.
            splits = [split for split in SPLITS if split in entry.facts["counts"]]
            texts = read_texts(entry.folder, splits)
            return SourceTexts(source.origin, texts, key, entry.facts)
    writer = MemoryWriter()
    facts = read_source(source, held_out, budget, writer, say)
    texts = {split: found for split, found in writer.texts().items() if split in facts["counts"]}
    return SourceTexts(source.origin, dict(texts), None, facts)


def _fingerprint(source: Source, cache: Cache) -> str | None:
    """What the source says that its documents are made of; None: it does not say, or it is little.

    The optional method `fingerprint()` returns a text, or the files that are all it reads.
    """
    method = getattr(source, "fingerprint", None)
    made_of = method() if method is not None else None
    if made_of is None or isinstance(made_of, str):
        return made_of
    if sum(file.stat().st_size for file in made_of) < SMALL_BYTES:
        return None
    return cache.files_fingerprint(made_of)


def all_notes(collected: Mapping[str, SourceTexts]) -> list[str]:
    """What people should know of the texts, a line each."""
    return [note for texts in collected.values() for note in texts.facts["notes"]]
