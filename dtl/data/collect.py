"""Texts of all sources, by split: read as far as they are needed, cleaned, without duplicates, a part held out.

Read once: what was read is kept in the cache, under a hash of everything that shaped it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.data.cache import Cache, key_of
from dtl.data.config import SPLITS, DataConfig
from dtl.data.intake import Progress, read_source
from dtl.data.sources import Source, is_sampled, open_sources
from dtl.data.stored import DiskWriter, MemoryWriter, Texts, read_texts, sample
from dtl.data.text_key import (
    CHARACTERS_PER_TOKEN,
    characters_read,
    characters_wanted,
    entry_name,
    sample_settings,
    text_code,
    text_key,
)

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
