"""The key under which the cache keeps the text of a source: a hash of everything that shapes it, code included."""

import math
from dataclasses import asdict, fields
from typing import Any

from dtl.data.cache import key_of
from dtl.data.code_key import code_of
from dtl.data.config import SPLITS, DataConfig
from dtl.registry import SOURCES

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
) -> str | None:
    """Equal for equal texts of the source `name`, read by equal code; None where nobody knows the code.

    For the arguments see `text_settings`.
    """
    code = text_code(data.resolved_sources()[name].kind, type(source))
    settings = text_settings(fingerprint, source, name, data, budget, order_seed)
    return key_of(code=code, **settings) if code is not None else None


def text_code(kind: str, source: type) -> str | None:
    """The hash of the code that makes texts of a source of this kind and class; None where it cannot be had."""
    from dtl.data.intake import read_source  # numpy comes with it, which `--help` can do without

    # What is registered for the kind may be a function that makes sources of a class of somewhere else.
    return code_of(source, SOURCES.get(kind), read_source)


def text_settings(
    fingerprint: str, source: object, name: str, data: DataConfig, budget: float, order_seed: int | None
) -> dict[str, Any]:
    """The values that shape a text, beside the code: the `fingerprint` of its documents, and how they are read.

    `budget` is how many characters are read at most, `order_seed` draws the order where only a part is.
    """
    # Of DataConfig alone: what a command adds, such as where to export to, shapes nothing.
    names = [field.name for field in fields(DataConfig) if field.name not in _SHAPES_NO_TEXT]
    of_source = asdict(data.resolved_sources()[name])
    # The commit stands in the fingerprint: how it was named (a tag, a branch, not at all) makes no other text.
    in_fingerprint = ("revision",) if of_source["kind"] in ("hub", "wiki") else ()
    return {
        "source": [fingerprint, type(source).__qualname__, getattr(source, "version", 0)],
        "data": {name: getattr(data, name) for name in names},
        "settings": {k: v for k, v in of_source.items() if k not in ("path", "weight", *in_fingerprint)},
        "splits": list(SPLITS),
        "held_out": [data.validation_fraction, data.test_fraction],
        "read": [None if budget == math.inf else budget, order_seed],
    }


def sample_settings(text: str, wanted: float, seed: int) -> dict[str, Any]:
    """The values that shape a sample of the text of this key; the code that draws it is part of that key."""
    return {"text": text, "wanted": wanted, "seed": seed}
