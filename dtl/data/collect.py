"""Texts of all sources, by split: read as far as they are needed, cleaned, without duplicates, a part held out.

Read once: what was read is kept in the cache, under a hash of everything that shaped it, code included.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dtl.base.progress import Progress
from dtl.data.cache import Cache, cache_folder, key_of
from dtl.data.code_key import code_of
from dtl.data.config import SPLITS, DataConfig
from dtl.data.read import read_source
from dtl.data.sources import HubReader, Source, SourcePlan
from dtl.data.stored import DiskWriter, MemoryWriter, Texts, read_texts, sample
from dtl.registry import SOURCES

# Prose has fewer characters in a token than this with any tokenizer here (GPT-2 on Wikipedia: 4.6): so much
# text for each token wanted is enough, and reading can stop there.
CHARACTERS_PER_TOKEN = 6
MIN_CHARACTERS = 2_000_000  # read at least: a small sample is then drawn from more than a file's beginning
# Settings that shape no text that is read; any other, also one that a later version adds, is part of its key.
_SHAPES_NO_TEXT = {
    "sources", "path", "qa", "wiki", "seq_len", "layout", "document_mask", "loss_on", "max_samples",
    "validation_fraction", "test_fraction", "commits", "cache_dir", "verify", "tasks", "recommended",
}  # fmt: skip
# Files of less than this are prepared in about a second: a cache entry would cost more to look after than it saves.
SMALL_BYTES = 2**20


@dataclass(frozen=True)
class SourceTexts:
    """The documents of one source that a run learns from and is measured on."""

    origin: str
    splits: dict[str, Texts]
    key: str | None  # equal for equal texts; None: nobody knows what they are made of
    facts: dict[str, Any]  # notes; `counts`: split -> documents read, kept, dropped by reason; has_pairs


def collect_texts(
    config: DataConfig, plans: Sequence[SourcePlan], seq_len: int, seed: int, cache: Cache, say: Progress
) -> dict[str, SourceTexts]:
    """The texts of every source, in order.

    Of a source that is sampled (`data.max_samples`, or any but the first of a mixture) only about as much
    training text is taken as is wanted of it, drawn by the seed.

    Raises DataError when a source has no text for training or for validation.
    """
    collected: dict[str, SourceTexts] = {}
    for plan in plans:
        wanted = _characters_wanted(config, plan, plans[0], collected, seq_len)
        texts = _read(plan, config, characters_read(wanted), cache, say)
        if plan.sampled:
            chosen = sample(texts.splits["train"], wanted, seed)
            key = texts.key and key_of(**sample_settings(texts.key, wanted, seed))
            texts = SourceTexts(texts.origin, texts.splits | {"train": chosen}, key, texts.facts)
        collected[plan.name] = texts
    return collected


def _characters_wanted(
    config: DataConfig, plan: SourcePlan, first: SourcePlan, collected: Mapping[str, SourceTexts], seq_len: int
) -> float:
    """Characters of training text wanted of a source: infinite when all of it is."""
    wanted = characters_wanted(config, seq_len)
    if not collected:
        return wanted
    of_first = int(collected[first.name].splits["train"].characters.sum())
    share = plan.config.weight / first.config.weight
    return min(wanted, max(seq_len * CHARACTERS_PER_TOKEN, of_first * share * config.recommended.max_epochs))


def _read(plan: SourcePlan, config: DataConfig, budget: float, cache: Cache, say: Progress) -> SourceTexts:
    """The texts of a source out of the cache, or into it, or into memory where they are not to be kept."""
    source, held_out = plan.source, (config.validation_fraction, config.test_fraction)
    fingerprint = _fingerprint(source, cache)
    key = None if fingerprint is None else text_key(plan, config, fingerprint, budget)
    if key is not None:

        def build(folder: Path) -> dict[str, Any]:
            writer = DiskWriter(folder)
            try:
                facts = read_source(source, held_out, budget, writer, say)
                writer.close()
            finally:
                writer.abandon()
            return facts | {"code": text_code(plan.config.kind, type(source))}

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


def pinned(data: DataConfig, plans: Sequence[SourcePlan]) -> DataConfig:
    """The configuration with the commit of each dataset of the hub: read again, anywhere, it gives the same texts.

    Raises DataError where the hub is needed and does not answer. Imports no torch.
    """
    sources, commits = dict(data.sources), dict(data.commits)
    for plan in plans:
        if isinstance(plan.source, HubReader) and plan.source.commit is not None:
            commits[plan.name] = plan.source.commit
            if plan.name in sources:  # a revision that is asked for later goes before the commit
                sources[plan.name] = replace(sources[plan.name], revision=None)
            if not _may_be_cached(plan, plans[0], data):
                plan.source.require_hub()
    return replace(data, sources=sources, commits=commits)


def _may_be_cached(plan: SourcePlan, first: SourcePlan, data: DataConfig) -> bool:
    """Whether the cache has the text that will be asked for, as far as it can be said before anything is read."""
    if plan is not first:
        return True  # how much of it is wanted, the text of the first source will say
    if data.max_samples is not None and data.seq_len is None:
        return True  # how long a row is, the model will say
    fingerprint = plan.source.fingerprint()  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(fingerprint, str)  # the hub's, no files
    key = text_key(plan, data, fingerprint, characters_read(characters_wanted(data, data.seq_len or 0)))
    return key is not None and (cache_folder(data.cache_dir) / entry_name(key)).exists()


# --- keys of the cache ----------------------------------------------------------------------------------------------


def entry_name(key: str) -> str:
    """The name of the cache's entry for that text; `*` as the key makes a pattern of it."""
    return f"text-{key}"


def characters_wanted(data: DataConfig, seq_len: int) -> float:
    """Characters of training text that `data.max_samples` rows need: infinite when all of a source is wanted."""
    return math.inf if data.max_samples is None else data.max_samples * seq_len * CHARACTERS_PER_TOKEN


def characters_read(wanted: float) -> float:
    """Characters after which reading stops."""
    return max(wanted, MIN_CHARACTERS)


def text_key(plan: SourcePlan, data: DataConfig, fingerprint: str, budget: float) -> str | None:
    """Equal for equal texts of a source, read by equal code; None where nobody knows the code.

    For the arguments see `text_settings`.
    """
    code = text_code(plan.config.kind, type(plan.source))
    return key_of(code=code, **text_settings(plan, data, fingerprint, budget)) if code is not None else None


def text_code(kind: str, source: type) -> str | None:
    """The hash of the code that makes texts of a source of this kind and class; None where it cannot be had."""
    # What is registered for the kind may be a function that makes sources of a class of somewhere else.
    return code_of(source, SOURCES.get(kind), read_source)


def text_settings(plan: SourcePlan, data: DataConfig, fingerprint: str, budget: float) -> dict[str, Any]:
    """The values that shape a text, beside the code: the `fingerprint` of its documents, and how they are read.

    `budget` is how many characters are read at most; where only a part is, `plan.order_seed` draws the order.
    """
    # Of DataConfig alone: what a command adds, such as where to export to, shapes nothing.
    names = [field.name for field in fields(DataConfig) if field.name not in _SHAPES_NO_TEXT]
    # The commit stands in the fingerprint: how it was named (a tag, a branch, not at all) makes no other text.
    left_out = {"path", "weight", *(["revision"] if isinstance(plan.source, HubReader) else [])}
    return {
        "source": [fingerprint, type(plan.source).__qualname__, getattr(plan.source, "version", 0)],
        "data": {name: getattr(data, name) for name in names},
        "settings": {key: value for key, value in asdict(plan.config).items() if key not in left_out},
        "splits": list(SPLITS),
        "held_out": [data.validation_fraction, data.test_fraction],
        "read": [None if budget == math.inf else budget, plan.order_seed],
    }


def sample_settings(text: str, wanted: float, seed: int) -> dict[str, Any]:
    """The values that shape a sample of the text of this key; the code that draws it is part of that key."""
    return {"text": text, "wanted": wanted, "seed": seed}
