"""Packing of documents into sequences of equal length, as pure functions of their lengths; and its fingerprint.

No token is copied: a sequence is one or more spans of consecutive tokens. A span that starts at token s and is n long
has the inputs tokens[s : s + n] and the targets tokens[s + 1 : s + n + 1], so that neighbouring spans of one text share
a token and no target is lost between them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtl.data.cache import key_of
from dtl.data.code_key import code_of
from dtl.data.stored import TokenDocuments


@dataclass(frozen=True)
class Packing:
    """Sequences ("rows" in code) of `seq_len` positions, made of spans.

    starts       (n_spans,) int64: the span's first token
    lengths      (n_spans,) int32: its positions
    sequence_offsets  (n_sequences + 1,) int64: sequence i has the spans sequence_offsets[i] : sequence_offsets[i + 1]
    """

    seq_len: int
    starts: np.ndarray
    lengths: np.ndarray
    sequence_offsets: np.ndarray

    @property
    def n_sequences(self) -> int:
        return len(self.sequence_offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Positions that hold a token; the others are padding."""
        return int(self.lengths.sum())

    @property
    def wasted(self) -> float:
        """Fraction of positions that hold padding."""
        return 1 - self.n_tokens / (self.n_sequences * self.seq_len) if self.n_sequences else 0.0

    def select(self, rows: np.ndarray) -> "Packing":
        """Return the packing of some rows only, in the given order."""
        counts = np.diff(self.sequence_offsets)[rows]
        sequence_offsets = _offsets(counts)
        # Runs of these rows: each row's first span, plus 0, 1, 2, ... within the row.
        within = np.arange(sequence_offsets[-1]) - np.repeat(sequence_offsets[:-1], counts)
        spans = np.repeat(self.sequence_offsets[:-1][rows], counts) + within
        return Packing(self.seq_len, self.starts[spans], self.lengths[spans], sequence_offsets)


def pack_stream(n_tokens: int, seq_len: int) -> Packing:
    """Cut the whole text into sequences, across documents: every token but the first is a target once.

    Only the last sequence may be short; it is kept, padded.
    """
    starts = np.arange(0, max(n_tokens - 1, 0), seq_len, dtype=np.int64)
    return _one_span_each(seq_len, starts, np.minimum(seq_len, n_tokens - 1 - starts))


def pack_documents(offsets: np.ndarray, seq_len: int, loss_mask: np.ndarray | None = None) -> Packing:
    """Pack complete documents into sequences by best fit, so that little is padding.

    Only a document longer than a sequence is cut, into spans of `seq_len` and a rest. A span without any target under
    `loss_mask` (the beginning of a very long question) has no loss and is left out.
    """
    positions = np.diff(offsets) - 1  # the end token is only a target: nothing follows it
    n_spans = -(-positions // seq_len)
    first_span = _offsets(n_spans)
    within = np.arange(first_span[-1]) - np.repeat(first_span[:-1], n_spans)
    starts = np.repeat(offsets[:-1], n_spans) + within * seq_len
    lengths = np.minimum(seq_len, np.repeat(positions, n_spans) - within * seq_len)
    if loss_mask is not None:
        useful = count_targets(starts, lengths, loss_mask) > 0
        starts, lengths = starts[useful], lengths[useful]
    rows = best_fit(lengths, seq_len)
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows)
    return Packing(seq_len, starts[order], lengths[order].astype(np.int32), _offsets(counts))


def pad_documents(offsets: np.ndarray, seq_len: int) -> Packing:
    """Put one document into each sequence, cut at `seq_len` and padded to it (the classic layout)."""
    positions = np.diff(offsets) - 1
    kept = positions > 0
    return _one_span_each(seq_len, offsets[:-1][kept], np.minimum(seq_len, positions[kept]))


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Return the row of each item, for items of at most `capacity`, by best fit in decreasing order of length
    (Johnson 1973: never more than 11/9 of the fewest rows possible, plus 6/9 of a row).

    The same lengths always give the same rows. Items of equal length are placed together: a row takes as many of them
    as fit, since the space one leaves is the tightest for the next. A million items take 0.2 s.
    """
    rows = np.zeros(len(lengths), np.int64)
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the space left in them
    spaces = 0  # bit s is set while open_rows[s] is not empty: the tightest fit is the lowest set bit from `length` up
    n_rows = 0
    items = np.argsort(-lengths.astype(np.int64), kind="stable")
    unique_lengths, counts = np.unique(lengths, return_counts=True)
    for length, left in zip(unique_lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            fitting = spaces >> length
            space = length + (fitting & -fitting).bit_length() - 1 if fitting else capacity
            in_a_row = space // length if length else left
            n_taken = -(-left // in_a_row)
            if fitting:
                taken = open_rows[space][: -n_taken - 1 : -1]  # the last opened comes first
                del open_rows[space][-len(taken) :]
                if not open_rows[space]:
                    spaces ^= 1 << space
            else:
                taken = list(range(n_rows, n_rows + n_taken))
                n_rows += n_taken
            placed = np.repeat(taken, in_a_row)[:left]
            rows[items[: len(placed)]] = placed
            items, left = items[len(placed) :], left - len(placed)
            in_the_last = in_a_row - (len(taken) * in_a_row - len(placed))
            for filled, n in ((taken[:-1], in_a_row), (taken[-1:], in_the_last)):
                if filled and space > n * length:
                    open_rows[space - n * length] += filled
                    spaces |= 1 << (space - n * length)
    return rows


def answer_mask(documents: TokenDocuments) -> np.ndarray | None:
    """Return a mask of the tokens that count as targets, (n_tokens,) bool; None when all do.

    In each question and answer pair the answer and the end token count, in other documents everything.
    """
    if not documents.answer_starts.any():
        return None
    lengths = np.diff(documents.turns)
    within = np.arange(len(documents.tokens)) - np.repeat(documents.turns[:-1], lengths)
    return within >= np.repeat(documents.answer_starts, lengths)


def count_targets(starts: np.ndarray, lengths: np.ndarray, loss_mask: np.ndarray) -> np.ndarray:
    """Return the number of targets in each span under the mask, (n_spans,)."""
    before = _offsets(loss_mask)
    return before[starts + lengths + 1] - before[starts + 1]


def with_targets(packing: Packing, loss_mask: np.ndarray | None) -> Packing:
    """Return only the rows with a target: a batch without any would have no loss to average."""
    if loss_mask is None or not packing.n_sequences:
        return packing
    counts = count_targets(packing.starts, packing.lengths, loss_mask)
    return packing.select(np.flatnonzero(np.add.reduceat(counts, packing.sequence_offsets[:-1])))


def fully_covered(packing: Packing, offsets: np.ndarray) -> np.ndarray:
    """Return a mask of the documents whose end token is a target, (n_documents,) bool; the others were cut."""
    if not packing.n_sequences:
        return np.zeros(len(offsets) - 1, bool)
    order = np.argsort(packing.starts, kind="stable")
    starts, ends = packing.starts[order], (packing.starts + packing.lengths)[order]
    end_tokens = offsets[1:] - 1
    span = np.searchsorted(starts, end_tokens) - 1  # the last span that starts before the end token
    return (span >= 0) & (end_tokens <= ends[span])


def _one_span_each(seq_len: int, starts: np.ndarray, lengths: np.ndarray) -> Packing:
    return Packing(seq_len, starts, lengths.astype(np.int32), np.arange(len(starts) + 1, dtype=np.int64))


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


# --- the fingerprint of data --------------------------------------------------------------------------------------


def data_fingerprint(layout: object, made: Sequence[tuple[str, TokenDocuments, Packing]]) -> str:
    """Return SHA-256 over the settings of the layout, and over each split's title, tokens and rows."""
    digest = hashlib.sha256(repr(layout).encode())
    for title, encoded, packing in made:
        has_dialogues = len(encoded.turns) > len(encoded.offsets)
        arrays = (encoded.tokens, encoded.offsets, encoded.answer_starts, *([encoded.turns] if has_dialogues else []))
        _update(digest, title, *arrays, packing.starts, packing.lengths, packing.sequence_offsets)
    return digest.hexdigest()


def fingerprint_key(tokens: Sequence[str], layout: object, made: Sequence[tuple[str, object, Packing]]) -> str:
    """Return a cache key of `data_fingerprint`, from the keys of the tokens instead of the tokens."""
    return key_of(code=code_of(data_fingerprint), **fingerprint_settings(tokens, layout, made))


def fingerprint_settings(
    tokens: Sequence[str], layout: object, made: Sequence[tuple[str, object, Packing]]
) -> dict[str, Any]:
    """Return the settings that shape a fingerprint in addition to the code."""
    digest = hashlib.sha256(repr(layout).encode())
    for title, _, packing in made:
        _update(digest, title, packing.starts, packing.lengths, packing.sequence_offsets)
    return {"tokens": list(tokens), "layout": digest.hexdigest()}


def _update(digest: Any, title: str, *arrays: np.ndarray) -> None:
    digest.update(title.encode())
    for array in arrays:
        portable = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{portable.dtype.str} {len(portable)}".encode())
        digest.update(portable.data)
