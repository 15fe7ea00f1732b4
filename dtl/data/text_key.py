"""Under which key the cache keeps the text of a source: a hash of everything that shapes it. Imports nothing heavy."""

import math
from dataclasses import asdict, fields

from dtl.data.cache import key_of
from dtl.data.cleaning import CLEANING_VERSION
from dtl.data.config import DataConfig

# Prose has fewer characters in a token than this with any tokenizer here (GPT-2 on Wikipedia: 4.6): so much
# text for each token wanted is enough, and reading can stop there.
CHARACTERS_PER_TOKEN = 6
LEAST_CHARACTERS = 2_000_000  # read at least: a small sample is then drawn from more than a file's beginning
# Settings that shape no text that is read; any other, also one that a later version adds, is part of its key.
_SHAPES_NO_TEXT = {
    "sources", "path", "qa", "wiki", "seq_len", "layout", "document_mask", "loss_on", "max_samples",
    "validation_fraction", "test_fraction", "commits", "cache_dir", "verify", "tasks", "recommended",
}  # fmt: skip


def entry_name(key: str) -> str:
    """The name of the cache's entry for that text; `*` as the key makes a pattern of it."""
    return f"text-{key}"


def characters_wanted(data: DataConfig, seq_len: int) -> float:
    """Characters of training text that `data.max_samples` rows need: infinite when all of a source is wanted."""
    return math.inf if data.max_samples is None else data.max_samples * seq_len * CHARACTERS_PER_TOKEN


def characters_read(wanted: float) -> float:
    """Characters after which reading stops."""
    return max(wanted, LEAST_CHARACTERS)


def text_key(
    fingerprint: str, source: object, name: str, data: DataConfig, budget: float, order_seed: int | None
) -> str:
    """Equal for equal texts of the source `name`: the `fingerprint` of its documents, and how they are read.

    `budget` is how many characters are read at most, `order_seed` draws the order where only a part is.
    """
    # Of DataConfig alone: what a command adds, such as where to export to, shapes nothing.
    names = [field.name for field in fields(DataConfig) if field.name not in _SHAPES_NO_TEXT]
    settings = {name: getattr(data, name) for name in names}
    of_source = asdict(data.resolved_sources()[name])
    # The commit stands in the fingerprint: how it was named (a tag, a branch, not at all) makes no other text.
    in_fingerprint = ("revision",) if of_source["kind"] in ("hub", "wiki") else ()
    return key_of(
        source=[fingerprint, type(source).__module__, type(source).__qualname__, getattr(source, "version", 0)],
        settings=[settings, {k: v for k, v in of_source.items() if k not in ("path", "weight", *in_fingerprint)}],
        cleaning=CLEANING_VERSION,
        held_out=(data.validation_fraction, data.test_fraction),
        read=[budget, order_seed],
    )
