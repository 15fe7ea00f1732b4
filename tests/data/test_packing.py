"""Packing: every token is learnt once, nothing crosses a border that it should not, and little is wasted."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.data.documents import Document
from dtl.data.encode import CHUNK_CHARACTERS, encode_documents
from dtl.data.pack import (
    Packing,
    answer_mask,
    best_fit,
    count_targets,
    fully_covered,
    pack_documents,
    pack_stream,
    pad_documents,
    with_targets,
)
from dtl.data.stored import TokenDocuments

documents_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)  # end token included


def offsets_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def targets_of(packing: Packing) -> list[int]:
    """The place of every target in the text, row by row."""
    return [int(start) + 1 + i for start, n in zip(packing.starts, packing.lengths, strict=True) for i in range(n)]


def tokens_in_rows(packing: Packing) -> list[int]:
    return [
        int(packing.lengths[a:b].sum())
        for a, b in zip(packing.sequence_offsets, packing.sequence_offsets[1:], strict=False)
    ]


@given(n_tokens=st.integers(0, 200), seq_len=st.integers(1, 23))
def test_a_stream_has_every_token_but_the_first_as_a_target_once(n_tokens, seq_len):
    packing = pack_stream(n_tokens, seq_len)
    assert targets_of(packing) == list(range(1, n_tokens))
    full = tokens_in_rows(packing)
    assert all(n == seq_len for n in full[:-1]) and all(0 < n <= seq_len for n in full)


@given(lengths=documents_lengths, seq_len=st.integers(1, 23))
def test_whole_documents_keep_every_target_and_cross_no_border(lengths, seq_len):
    offsets = offsets_of(lengths)
    packing = pack_documents(offsets, seq_len)
    # Each document's tokens but its first are targets, once; its first would be predicted from another document.
    assert sorted(targets_of(packing)) == sorted(set(range(1, offsets[-1])) - set(offsets.tolist()))
    assert all(0 < n <= seq_len for n in tokens_in_rows(packing))
    document_of = np.searchsorted(offsets, np.arange(offsets[-1]), side="right")
    for start, length in zip(packing.starts, packing.lengths, strict=True):
        assert len(set(document_of[start : start + length + 1])) == 1
    runs = {}
    for start, length in zip(packing.starts, packing.lengths, strict=True):
        runs.setdefault(int(document_of[start]) - 1, []).append(int(length))
    for document, of_document in runs.items():
        assert len(of_document) == -(-(lengths[document] - 1) // seq_len)  # cut only where it has to be


@given(lengths=documents_lengths, seq_len=st.integers(1, 23))
def test_padded_rows_are_the_beginnings_of_documents(lengths, seq_len):
    offsets = offsets_of(lengths)
    packing = pad_documents(offsets, seq_len)
    expected = [
        place
        for start, n in zip(offsets.tolist(), lengths, strict=False)
        for place in range(start + 1, start + min(n - 1, seq_len) + 1)
    ]
    assert targets_of(packing) == expected
    assert len(np.unique(np.diff(packing.sequence_offsets))) <= 1
    covered = [min(n - 1, seq_len) == n - 1 > 0 for n in lengths]
    assert fully_covered(packing, offsets).tolist() == covered


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(1, 11), max_size=60), capacity=st.integers(11, 29))
def test_best_fit_needs_few_rows(lengths, capacity):
    rows = best_fit(np.array(lengths, np.int32), capacity)
    filled = np.bincount(rows, weights=lengths) if lengths else np.zeros(0)
    assert (filled <= capacity).all() and (filled > 0).all()
    assert sum(sorted(filled)[:2]) > capacity or len(filled) < 2  # else two rows could have been one
    assert (rows == best_fit(np.array(lengths, np.int32), capacity)).all()


def test_best_fit_takes_the_tightest_space():
    # 7 and 6 open two rows with 3 and 4 left; the 4 belongs into the second, the 3 into the first.
    assert best_fit(np.array([7, 6, 4, 3]), 10).tolist() == [0, 1, 1, 0]


def test_select_keeps_whole_rows_in_the_order_given():
    packing = pack_documents(offsets_of([4, 3, 6, 2, 9, 5, 3]), 7)
    chosen = np.array([2, 0])
    selected = packing.select(chosen)
    assert selected.n_sequences == 2
    for row, original in enumerate(chosen):
        of_row = slice(*selected.sequence_offsets[row : row + 2])
        of_original = slice(*packing.sequence_offsets[original : original + 2])
        assert selected.starts[of_row].tolist() == packing.starts[of_original].tolist()
        assert selected.lengths[of_row].tolist() == packing.lengths[of_original].tolist()
    assert packing.select(np.arange(0)).n_sequences == 0


def answered(lengths: list[int], answer_starts: list[int]) -> TokenDocuments:
    return TokenDocuments(
        np.arange(sum(lengths), dtype=np.int32),
        offsets_of(lengths),
        offsets_of(lengths),
        np.array(answer_starts, np.int32),
    )


def test_answers_and_end_tokens_count_in_the_loss():
    documents = answered([5, 3, 4], [2, 0, 3])  # the second is plain text: all of it counts
    mask = answer_mask(documents)
    assert mask is not None
    assert mask.astype(int).tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1]
    assert answer_mask(answered([5, 3], [0, 0])) is None
    packing = pack_stream(12, 4)
    assert count_targets(packing.starts, packing.lengths, mask).tolist() == [3, 3, 1]


def test_runs_and_rows_without_a_target_are_left_out():
    documents = answered([12, 3], [10, 1])
    mask = answer_mask(documents)
    whole = pack_documents(documents.offsets, 4, mask)
    assert sorted(targets_of(whole)) == [9, 10, 11, 13, 14]  # of the long question only the end teaches
    stream = with_targets(pack_stream(15, 4), mask)
    assert stream.starts.tolist() == [8, 12]
    padded = with_targets(pad_documents(documents.offsets, 4), mask)
    assert padded.starts.tolist() == [12]
    assert with_targets(pack_stream(0, 4), mask).n_sequences == 0


def test_wasted_positions_are_counted():
    offsets = offsets_of([4, 3])
    assert pad_documents(offsets, 5).wasted == pytest.approx(0.5)
    assert pack_documents(offsets, 5).wasted == 0
    assert pack_stream(7, 5).wasted == pytest.approx(0.4)
    assert pack_stream(0, 5).wasted == 0


class Letters:
    """A tokenizer for tests: the letter's number in the alphabet; 0 ends a text."""

    eos_id = 0
    pad_id = 0

    def __init__(self, vocab_size: int = 27) -> None:
        self.vocab_size = vocab_size
        self.calls: list[int] = []

    def encode_batch(self, texts: list[str], encoded_characters: Callable[[int], None]) -> list[list[int]]:
        self.calls.append(sum(map(len, texts)))
        encoded_characters(self.calls[-1])
        return [[ord(letter) - ord("a") + 1 for letter in text] for text in texts]


def test_documents_are_encoded_end_to_end():
    encoded = encode_documents([Document("ab"), Document("cde", answer_start=1), Document("z")], Letters())
    assert encoded.tokens.tolist() == [1, 2, 0, 3, 4, 5, 0, 26, 0]
    assert encoded.tokens.dtype == np.uint16
    assert encoded.offsets.tolist() == [0, 3, 7, 9]
    assert encoded.answer_starts.tolist() == [0, 1, 0]
    assert encode_documents([Document("a")], Letters(2**16 + 1)).tokens.dtype == np.int32
    assert encode_documents([], Letters()).n_documents == 0


def test_encoding_goes_in_chunks_and_stops_when_there_is_enough():
    letters = Letters()
    text = "a" * (CHUNK_CHARACTERS // 4)
    encoded = encode_documents((Document(text) for _ in range(10)), letters)
    assert letters.calls == [4 * len(text), 4 * len(text), 2 * len(text)]
    assert encoded.n_documents == 10
    few = encode_documents((Document(text) for _ in range(50)), letters, max_tokens=5 * len(text))
    assert few.n_documents == 8


def test_big_text_is_packed_with_little_padding():
    lengths = np.random.default_rng(0).integers(2, 120, 200_000)  # 12 M tokens
    offsets = offsets_of(lengths.tolist())
    packing = pack_documents(offsets, 256)
    assert packing.wasted < 0.005
