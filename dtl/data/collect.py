"""Texts of all sources, by split: read as far as they are needed, cleaned, without duplicates, a part held out.

Read once: what was read is kept in the cache, under a hash of everything that shaped it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dtl.data.cache import Cache, key_of
from dtl.data.cleaning import CLEANING_VERSION
from dtl.data.config import SPLITS, DataConfig
from dtl.data.intake import Progress, read_source
from dtl.data.sources import Source, is_sampled, open_sources
from dtl.data.stored import DiskWriter, MemoryWriter, Texts, read_texts, sample

# Prose has fewer characters in a token than this with any tokenizer here (GPT-2 on Wikipedia: 4.6): so much
# text for each token wanted is enough, and reading can stop there.
CHARACTERS_PER_TOKEN = 6
LEAST_CHARACTERS = 2_000_000  # read at least: a small sample is then drawn from more than a file's beginning
# Files of less than this are prepared in about a second: a cache entry would cost more to look after than it saves.
SMALL_BYTES = 2**20
# Settings that shape no text that is read; any other, also one that a later version adds, is part of its key.
_SHAPES_NO_TEXT = {
    "sources", "path", "qa", "wiki", "seq_len", "layout", "document_mask", "loss_on", "max_samples",
    "validation_fraction", "test_fraction", "commits", "cache_dir", "verify", "tasks", "recommended",
}  # fmt: skip


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
        texts = _read(source, name, config, max(wanted, LEAST_CHARACTERS), seed if sampled else None, cache, say)
        if sampled:
            chosen = sample(texts.splits["train"], wanted, seed)
            key = texts.key and key_of(text=texts.key, wanted=wanted, seed=seed)
            texts = SourceTexts(texts.origin, texts.splits | {"train": chosen}, key, texts.facts)
        collected[name] = texts
    return collected


def _characters_wanted(config: DataConfig, name: str, read_before: dict[str, SourceTexts], seq_len: int) -> float:
    """Characters of training text wanted of a source: infinite when all of it is."""
    one_row = seq_len * CHARACTERS_PER_TOKEN
    wanted = config.max_samples * one_row if config.max_samples is not None else math.inf
    if not read_before:
        return wanted
    sources = config.resolved_sources()
    first = next(iter(read_before))
    of_first = int(read_before[first].splits["train"].characters.sum())
    share = sources[name].weight / sources[first].weight
    return min(wanted, max(one_row, of_first * share * config.recommended.max_epochs))


def _read(
    source: Source, name: str, config: DataConfig, budget: float, order_seed: int | None, cache: Cache, say: Progress
) -> SourceTexts:
    """The texts of a source out of the cache, or into it, or into memory where they are not to be kept."""
    held_out = config.validation_fraction, config.test_fraction
    fingerprint = _fingerprint(source, cache)
    if fingerprint is not None:
        # Of DataConfig alone: what a command adds, such as where to export to, shapes nothing.
        names = [field.name for field in fields(DataConfig) if field.name not in _SHAPES_NO_TEXT]
        settings = {name: getattr(config, name) for name in names}
        of_source = asdict(config.resolved_sources()[name])
        # The commit stands in the fingerprint: how it was named (a tag, a branch, not at all) makes no other text.
        in_fingerprint = ("revision",) if of_source["kind"] in ("hub", "wiki") else ()
        key = key_of(
            source=[fingerprint, type(source).__module__, type(source).__qualname__, getattr(source, "version", 0)],
            settings=[settings, {k: v for k, v in of_source.items() if k not in ("path", "weight", *in_fingerprint)}],
            cleaning=CLEANING_VERSION,
            held_out=held_out,
            read=[budget, order_seed],
        )

        def build(folder: Path) -> dict[str, Any]:
            writer = DiskWriter(folder)
            try:
                facts = read_source(source, held_out, budget, writer, say)
                writer.close()
            finally:
                writer.abandon()
            return facts

        entry = cache.get(f"text-{key}", build)
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
