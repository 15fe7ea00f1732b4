"""A validation split for text that comes without one: by hash, so that a document stays on its side."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

from dtl.data.sources import Document


def split_hash(document: Document) -> float:
    """A number in [0, 1) that depends on the text alone; of a question and answer pair, on the question.

    BLAKE2 of the UTF-8 text: the same on every machine, whatever the order of the documents, for ever.
    """
    key = document.text[: document.answer_start]
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).digest()) / 2**48


def hold_out(documents: Sequence[Document], fraction: float) -> tuple[list[Document], list[Document], str | None]:
    """Training and validation documents, and a note where the split is not the plain one.

    Held out is what hashes below `fraction`; when nothing does, the document with the lowest hash. Of a
    single text the last `fraction` is held out, from a line break on.
    """
    if len(documents) == 1 and documents[0].answer_start is None:
        return _hold_out_end(documents[0], fraction)
    if len(documents) < 2:
        return list(documents), [], None
    hashes = [split_hash(document) for document in documents]
    note = None
    limit = fraction
    if min(hashes) >= fraction:
        limit = math.nextafter(min(hashes), 1)
        note = f"no document of {len(documents)} fell into the {fraction:.0%} for validation; one was taken."
    train = [document for document, number in zip(documents, hashes, strict=True) if number >= limit]
    validation = [document for document, number in zip(documents, hashes, strict=True) if number < limit]
    return train, validation, note


def _hold_out_end(document: Document, fraction: float) -> tuple[list[Document], list[Document], str | None]:
    text = document.text.rstrip()
    wanted = min(round(len(text) * (1 - fraction)), len(text) - 1)
    # After the last line break before that place; without one, before the last space; else right there.
    cut = text.rfind("\n", 0, wanted) + 1 or max(text.rfind(" ", 0, wanted), 0) or wanted
    if not text[:cut].strip():
        return [document], [], None
    note = f"one text: its last {len(text) - cut:,} of {len(text):,} characters are held out for validation"
    return [replace(document, text=text[:cut])], [replace(document, text=document.text[cut:])], f"{note}."
