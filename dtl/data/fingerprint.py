"""The fingerprint of data: SHA-256 over its tokens, their layout and the tokenizer."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dtl.data.cache import key_of
from dtl.data.cache_keys import code_of

if TYPE_CHECKING:  # what makes them shapes their values, which count here, and not how they are counted
    from dtl.data.pack import Packing
    from dtl.data.stored import TokenDocuments


def data_fingerprint(layout: object, made: Sequence[tuple[str, "TokenDocuments", "Packing"]]) -> str:
    """Equal for equal data: the settings of the layout, and the tokens and rows of each split by its title."""
    digest = hashlib.sha256(repr(layout).encode())
    for title, encoded, packing in made:
        arrays = (encoded.tokens, encoded.offsets, encoded.answer_starts)
        _update(digest, title, *arrays, packing.starts, packing.lengths, packing.row_offsets)
    return digest.hexdigest()


def fingerprint_key(tokens: Sequence[str], layout: object, made: Sequence[tuple[str, object, "Packing"]]) -> str:
    """Equal for equal fingerprints of what these keys of tokens stand for, and of their rows."""
    return key_of(code=code_of(data_fingerprint), **fingerprint_settings(tokens, layout, made))


def fingerprint_settings(
    tokens: Sequence[str], layout: object, made: Sequence[tuple[str, object, "Packing"]]
) -> dict[str, Any]:
    """The values that shape a fingerprint, beside the code."""
    digest = hashlib.sha256(repr(layout).encode())
    for title, _, packing in made:
        _update(digest, title, packing.starts, packing.lengths, packing.row_offsets)
    return {"tokens": list(tokens), "layout": digest.hexdigest()}


def _update(digest: Any, title: str, *arrays: np.ndarray) -> None:
    digest.update(title.encode())
    for array in arrays:
        portable = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{portable.dtype.str} {len(portable)}".encode())
        digest.update(portable.data)
