"""A validation split for text that comes without one: by hash, so that a document stays on its side."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dtl.data.documents import Document


def split_hash(document: Document) -> float:
    """A number in [0, 1) that depends on the text alone; of a question and answer pair, on the question.

    BLAKE2 of the UTF-8 text: the same on every machine, whatever the order of the documents, for ever.
    """
    key = document.text[: document.answer_start]
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).digest()) / 2**48


class HoldOut:
    """Sides of documents that arrive one after the other; none of them is kept here."""

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction
        self.lowest = 1.0
        self.n_documents = 0

    def side(self, document: Document) -> str:
        """`validation` for what hashes below the fraction, else `train`."""
        number = split_hash(document)
        self.n_documents += 1
        self.lowest = min(self.lowest, number)
        return "validation" if number < self.fraction else "train"

    def settle(
        self, sides: Mapping[str, Sequence[Document]]
    ) -> tuple[dict[str, Iterable[Document]] | None, str | None]:
        """The sides when all have come: None where they stay, else new ones; and a note where the split is not plain.

        When nothing hashes below the fraction, the document with the lowest hash is held out. Of a single
        text it is the last `fraction`, from a line break on.
        """
        if self.n_documents == 1:
            (document,) = [*sides["train"], *sides["validation"]]
            if document.answer_start is not None:
                return {"train": [document], "validation": []}, None
            train, validation, note = _hold_out_end(document, self.fraction)
            return {"train": train, "validation": validation}, note
        if self.n_documents < 2 or self.lowest < self.fraction:
            return None, None
        note = f"no document of {self.n_documents} fell into the {self.fraction:.0%} for validation; one was taken."
        limit = math.nextafter(self.lowest, 1)
        return {
            "train": (document for document in sides["train"] if split_hash(document) >= limit),
            "validation": (document for document in sides["train"] if split_hash(document) < limit),
        }, note


def _hold_out_end(document: Document, fraction: float) -> tuple[list[Document], list[Document], str | None]:
    text = document.text.rstrip()
    wanted = min(round(len(text) * (1 - fraction)), len(text) - 1)
    # After the last line break before that place; without one, before the last space; else right there.
    cut = text.rfind("\n", 0, wanted) + 1 or max(text.rfind(" ", 0, wanted), 0) or wanted
    if not text[:cut].strip():
        return [document], [], None
    note = f"one text: its last {len(text) - cut:,} of {len(text):,} characters are held out for validation"
    return [replace(document, text=text[:cut])], [replace(document, text=document.text[cut:])], f"{note}."
