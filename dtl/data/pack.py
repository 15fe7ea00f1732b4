"""How documents become rows of equal length: pure functions from document lengths to places.

Nothing is copied: a row is one or more runs of consecutive tokens. A run that starts at token s and is n
long has the inputs tokens[s : s + n] and the targets tokens[s + 1 : s + n + 1], so that neighbouring runs
of one text share a token and no target is lost between them.
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
    """Rows of `seq_len` positions, made of runs.

    starts       (n_runs,) int64: the run's first token
    lengths      (n_runs,) int32: its positions
    row_offsets  (n_rows + 1,) int64: row r holds the runs row_offsets[r] : row_offsets[r + 1], side by side
    """

    seq_len: int
    starts: np.ndarray
    lengths: np.ndarray
    row_offsets: np.ndarray

    @property
    def n_rows(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Positions that hold a token; the others are padding."""
        return int(self.lengths.sum())

    @property
    def wasted(self) -> float:
        """Share of positions that hold padding."""
        return 1 - self.n_tokens / (self.n_rows * self.seq_len) if self.n_rows else 0.0

    def select(self, rows: np.ndarray) -> "Packing":
        """The packing of some rows alone, in the order given."""
        counts = np.diff(self.row_offsets)[rows]
        row_offsets = _offsets(counts)
        # Runs of the chosen rows: each row's first run, plus 0, 1, 2, ... within the row.
        within = np.arange(row_offsets[-1]) - np.repeat(row_offsets[:-1], counts)
        runs = np.repeat(self.row_offsets[:-1][rows], counts) + within
        return Packing(self.seq_len, self.starts[runs], self.lengths[runs], row_offsets)


def pack_stream(n_tokens: int, seq_len: int) -> Packing:
    """Cut the whole text into rows, across documents: every token but the first is a target once.

    Only the last row may be short; it is kept, padded.
    """
    starts = np.arange(0, max(n_tokens - 1, 0), seq_len, dtype=np.int64)
    return _one_run_a_row(seq_len, starts, np.minimum(seq_len, n_tokens - 1 - starts))


def pack_documents(offsets: np.ndarray, seq_len: int, loss_mask: np.ndarray | None = None) -> Packing:
    """Lay whole documents side by side into rows, with as little padding as best fit finds.

    Only a document longer than a row is cut, into runs of `seq_len` and a rest. A run without any target
    under `loss_mask` (the beginning of a very long question) teaches nothing and is left out.
    """
    positions = np.diff(offsets) - 1  # the end token is a target and no input: it predicts nothing here
    n_runs = -(-positions // seq_len)
    first_run = _offsets(n_runs)
    within = np.arange(first_run[-1]) - np.repeat(first_run[:-1], n_runs)
    starts = np.repeat(offsets[:-1], n_runs) + within * seq_len
    lengths = np.minimum(seq_len, np.repeat(positions, n_runs) - within * seq_len)
    if loss_mask is not None:
        useful = count_targets(starts, lengths, loss_mask) > 0
        starts, lengths = starts[useful], lengths[useful]
    rows = best_fit(lengths, seq_len)
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows)
    return Packing(seq_len, starts[order], lengths[order].astype(np.int32), _offsets(counts))


def pad_documents(offsets: np.ndarray, seq_len: int) -> Packing:
    """The classic layout: one document a row, cut at `seq_len`, padded to it."""
    positions = np.diff(offsets) - 1
    kept = positions > 0
    return _one_run_a_row(seq_len, offsets[:-1][kept], np.minimum(seq_len, positions[kept]))


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Row of each item, for items of at most `capacity`, by best fit in decreasing order of length
    (Johnson 1973: never more than 11/9 of the fewest rows possible, and 6/9 of a row).

    The same lengths always give the same rows. Items of one length are laid at once: of these a row takes as many
    as fit, since what one of them leaves is the tightest space for the next. A million items take 0.2 s.
    """
    rows = np.zeros(len(lengths), np.int64)
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the space left in them
    spaces = 0  # bit s is set while open_rows[s] is not empty: the tightest fit is the lowest bit from n up
    n_rows = 0
    items = np.argsort(-lengths.astype(np.int64), kind="stable")
    different, counts = np.unique(lengths, return_counts=True)
    for length, left in zip(different[::-1].tolist(), counts[::-1].tolist(), strict=True):
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
            laid = np.repeat(taken, in_a_row)[:left]
            rows[items[: len(laid)]] = laid
            items, left = items[len(laid) :], left - len(laid)
            in_the_last = in_a_row - (len(taken) * in_a_row - len(laid))
            for of_rows, n in ((taken[:-1], in_a_row), (taken[-1:], in_the_last)):
                if of_rows and space > n * length:
                    open_rows[space - n * length] += of_rows
                    spaces |= 1 << (space - n * length)
    return rows


def answer_mask(documents: TokenDocuments) -> np.ndarray | None:
    """Whether each token counts as a target: (n_tokens,) bool; None when all do.

    Of a question and answer pair the answer and the end token count, of other documents everything.
    """
    if not documents.answer_starts.any():
        return None
    lengths = np.diff(documents.offsets)
    within = np.arange(len(documents.tokens)) - np.repeat(documents.offsets[:-1], lengths)
    return within >= np.repeat(documents.answer_starts, lengths)


def count_targets(starts: np.ndarray, lengths: np.ndarray, loss_mask: np.ndarray) -> np.ndarray:
    """Targets in each run under the mask."""
    before = _offsets(loss_mask)
    return before[starts + lengths + 1] - before[starts + 1]


def with_targets(packing: Packing, loss_mask: np.ndarray | None) -> Packing:
    """The rows that have a target: a batch of rows without any would have no loss to take a mean of."""
    if loss_mask is None or not packing.n_rows:
        return packing
    counts = count_targets(packing.starts, packing.lengths, loss_mask)
    return packing.select(np.flatnonzero(np.add.reduceat(counts, packing.row_offsets[:-1])))


def fully_covered(packing: Packing, offsets: np.ndarray) -> np.ndarray:
    """Whether each document's end token is a target somewhere: (n_documents,) bool."""
    if not packing.n_rows:
        return np.zeros(len(offsets) - 1, bool)
    order = np.argsort(packing.starts, kind="stable")
    starts, ends = packing.starts[order], (packing.starts + packing.lengths)[order]
    end_tokens = offsets[1:] - 1
    run = np.searchsorted(starts, end_tokens) - 1  # the last run that starts before the end token
    return (run >= 0) & (end_tokens <= ends[run])


def _one_run_a_row(seq_len: int, starts: np.ndarray, lengths: np.ndarray) -> Packing:
    return Packing(seq_len, starts, lengths.astype(np.int32), np.arange(len(starts) + 1, dtype=np.int64))


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


# --- the fingerprint of data ------------------------------------------------------------------------------------------
# SHA-256 over its tokens, their layout and the tokenizer.


def data_fingerprint(layout: object, made: Sequence[tuple[str, TokenDocuments, Packing]]) -> str:
    """Equal for equal data: the settings of the layout, and the tokens and rows of each split by its title."""
    digest = hashlib.sha256(repr(layout).encode())
    for title, encoded, packing in made:
        arrays = (encoded.tokens, encoded.offsets, encoded.answer_starts)
        _update(digest, title, *arrays, packing.starts, packing.lengths, packing.row_offsets)
    return digest.hexdigest()


def fingerprint_key(tokens: Sequence[str], layout: object, made: Sequence[tuple[str, object, Packing]]) -> str:
    """Equal for equal fingerprints of what these keys of tokens stand for, and of their rows."""
    return key_of(code=code_of(data_fingerprint), **fingerprint_settings(tokens, layout, made))


def fingerprint_settings(
    tokens: Sequence[str], layout: object, made: Sequence[tuple[str, object, Packing]]
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
