"""Batches: what a row shows the model, and an order of rows that depends on (seed, epoch, step) alone."""

from collections import Counter

import numpy as np
import pytest
import torch

from dtl.data.batches import IGNORE, PackedSequences, TrainingData, epoch_order
from dtl.data.pack import Packing, pack_documents, pack_stream, pad_documents

# Three documents of 4, 3 and 6 tokens, each ended by 0; the pad id is the end token's, as GPT-2's is.
TOKENS = np.array([11, 12, 13, 0, 21, 22, 0, 31, 32, 33, 34, 35, 0], np.uint16)
OFFSETS = np.array([0, 4, 7, 13])
N = IGNORE


def test_stream_rows_run_on_across_documents():
    rows = PackedSequences(TOKENS, pack_stream(13, 5), pad_id=0)
    batch = rows.batch([0, 2, 1])
    assert batch.inputs.tolist() == [[11, 12, 13, 0, 21], [34, 35, 0, 0, 0], [22, 0, 31, 32, 33]]
    assert batch.targets.tolist() == [[12, 13, 0, 21, 22], [35, 0, N, N, N], [0, 31, 32, 33, 34]]
    assert batch.positions is None and batch.documents is None
    assert batch.rows == (0, 2, 1)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert len(rows) == 3 and rows.n_tokens == rows.n_targets == batch.n_targets == 12


def test_packed_documents_restart_and_are_told_apart():
    rows = PackedSequences(TOKENS, pack_documents(OFFSETS, 7), pad_id=0, document_mask=True)
    batch = rows.batch([0, 1])  # the longest document and the shortest fill one
    assert batch.inputs.tolist() == [[21, 22, 31, 32, 33, 34, 35], [11, 12, 13, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[22, 0, 32, 33, 34, 35, 0], [12, 13, 0, N, N, N, N]]
    assert batch.positions is not None and batch.documents is not None
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 3, 4], [0, 1, 2, 0, 1, 2, 3]]
    assert batch.documents.tolist() == [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]


def test_padding_is_documents_as_long_as_others():
    """A kernel that pads documents to the longest computes all pairs of a sequence whose padding is one, and pads many
    to the longest of the batch where those of a short document's row are as short."""
    lengths = np.array([*np.random.default_rng(5).integers(3, 12, 31), 2])
    offsets = np.cumsum([0, *lengths])
    spans = np.array([0, 9, 20, 31, 32])  # the last row has the shortest document alone
    packing = Packing(101, offsets[:-1], (lengths - 1).astype(np.int32), spans)
    rows = PackedSequences(np.arange(offsets[-1], dtype=np.uint16), packing, pad_id=0, document_mask=True)
    batch = rows.batch(range(4))
    assert batch.documents is not None and batch.positions is not None
    mean = -(-int((lengths - 1).sum()) // 32)
    for index, documents in enumerate(batch.documents):
        own = (lengths - 1)[spans[index] : spans[index + 1]]
        assert sum(own) < 101 - 12  # much padding
        counts = documents.unique_consecutive(return_counts=True)[1].tolist()
        assert counts[: len(own)] == own.tolist()
        padding = counts[len(own) :]
        assert set(padding[:-1]) == {max(mean, *own)} if len(own) > 1 else {mean}
        starts = batch.positions[index] == 0
        assert torch.equal(starts[1:], documents.diff() != 0) and starts[0]


def test_padded_rows_learn_the_end_token_though_it_is_the_pad_token():
    rows = PackedSequences(TOKENS, pad_documents(OFFSETS, 4), pad_id=0)
    batch = rows.batch([0, 1, 2])
    assert batch.inputs.tolist() == [[11, 12, 13, 0], [21, 22, 0, 0], [31, 32, 33, 34]]
    assert batch.targets.tolist() == [[12, 13, 0, N], [22, 0, N, N], [32, 33, 34, 35]]
    assert rows.n_targets == 9 and rows.packing.wasted == 0.25


def test_a_loss_mask_leaves_the_inputs_alone():
    mask = np.array([0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1], bool)
    plain = PackedSequences(TOKENS, pack_stream(13, 5), pad_id=0).batch([0, 1, 2])
    rows = PackedSequences(TOKENS, pack_stream(13, 5), pad_id=0, loss_mask=mask)
    batch = rows.batch([0, 1, 2])
    assert batch.inputs.equal(plain.inputs)
    assert batch.targets.tolist() == [[N, 13, 0, N, 22], [0, 31, 32, 33, 34], [35, 0, N, N, N]]
    assert rows.n_targets == batch.n_targets == 10


def test_a_row_that_is_not_there_is_an_error():
    rows = PackedSequences(TOKENS, pack_stream(13, 5), pad_id=0)
    for index in (3, -1):
        with pytest.raises(IndexError, match="of 3"):
            rows.batch([index])
    data = TrainingData({"a": rows}, {"a": 1.0})
    for index in (3, -1):
        with pytest.raises(IndexError, match="of 3"):
            data.batch([index])


def test_a_batch_goes_to_a_device_whole():
    batch = PackedSequences(TOKENS, pack_documents(OFFSETS, 7), pad_id=0, document_mask=True).batch([1]).to("meta")
    for tensor in (batch.inputs, batch.targets, batch.positions, batch.documents):
        assert tensor is not None and tensor.device.type == "meta"
    assert batch.rows == (1,)


@pytest.mark.parametrize(("lengths", "most"), [([4, 3, 9], 16), ([2] * 29, 48), ([8], 16)])
def test_documents_are_counted_in_sixteens(lengths, most):
    """Padding is documents, too; two neighbours of different rows are two."""
    offsets = np.cumsum([0, *lengths])
    packing = pack_documents(offsets, 7)
    rows = PackedSequences(np.arange(offsets[-1], dtype=np.uint16), packing, pad_id=0, document_mask=True)
    batch = rows.batch(range(len(rows)))
    assert batch.documents is not None
    n_documents = sum(len(numbers.unique()) for numbers in batch.documents)
    assert n_documents <= batch.max_documents == most < n_documents + 16
    assert PackedSequences(rows.tokens, packing, pad_id=0).batch([0]).max_documents is None


def test_a_gpu_copies_from_pinned_memory(monkeypatch):
    """And nothing waits for it. A CPU needs neither."""
    rows = PackedSequences(np.arange(11, dtype=np.uint16), pack_documents(np.array([0, 5, 11]), 5), pad_id=0)
    pinned: list[int] = []
    copied: list[tuple[int, bool]] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: (pinned.append(id(x)), x)[1])
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, device, non_blocking: (copied.append((id(x), non_blocking)), x)[1]
    )
    batch = rows.batch([0])
    batch.to("cpu")
    assert not pinned and len(copied) == 2
    del copied[:]
    batch.to("cuda:0")
    assert copied == [(tensor, True) for tensor in pinned] and len(pinned) == 2


def test_the_order_of_an_epoch_never_changes():
    # Pinned: another order would make every old run impossible to resume.
    assert epoch_order(0, 0, 7).tolist() == [0, 3, 5, 1, 2, 6, 4]
    assert epoch_order(1337, 3, 11).tolist() == [8, 7, 0, 2, 6, 3, 9, 5, 4, 1, 10]
    assert epoch_order(1337, 3, 11, stream=2).tolist() == [6, 10, 5, 8, 7, 2, 1, 0, 9, 4, 3]


def test_orders_are_permutations_that_differ():
    orders = [epoch_order(seed, epoch, 101, stream) for seed in range(3) for epoch in range(3) for stream in range(3)]
    assert all(sorted(order.tolist()) == list(range(101)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 27
    assert epoch_order(5, 0, 0).tolist() == [] and epoch_order(5, 0, 1).tolist() == [0]


def training_data(n_rows: dict[str, int], weights: dict[str, float], seq_len: int = 3) -> TrainingData:
    """Sources whose tokens say where they are from: 1000 times the source's number, plus the token's place."""
    rows = {
        name: PackedSequences(
            np.arange(n * seq_len + 1, dtype=np.int32) + 1000 * k, pack_stream(n * seq_len + 1, seq_len), pad_id=0
        )
        for k, (name, n) in enumerate(n_rows.items())
    }
    return TrainingData(rows, weights)


def test_an_epoch_shows_every_row_once():
    data = training_data({"a": 23}, {"a": 0.7})
    assert data.sequences_per_epoch == 23 and data.n_tokens == data.n_targets == 69
    assert data.steps_per_epoch(5) == 5 and data.steps_per_epoch(23) == 1 and data.steps_per_epoch(24) == 1
    for epoch in range(3):
        seen = [row for step in range(5) for row in data.batch_sequences(3, epoch, step, 5)]
        assert sorted(seen) == list(range(23)) and seen != sorted(seen)
    assert data.batch_sequences(3, 0, 0, 5) != data.batch_sequences(3, 1, 0, 5) != data.batch_sequences(4, 1, 0, 5)
    for step in (5, -1):
        with pytest.raises(IndexError):
            data.batch_sequences(3, 0, step, 5)


def test_the_last_step_of_an_epoch_takes_what_is_left():
    data = training_data({"a": 23}, {"a": 1.0})
    sizes = [[len(batch.rows) for batch in data.micro_batches(3, 0, step, 2, 3)] for step in range(4)]
    assert sizes == [[2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 1]]
    sizes = [[len(batch.rows) for batch in data.micro_batches(3, 0, step, 3, 4)] for step in range(2)]
    assert sizes == [[3, 3, 3, 3], [3, 3, 3, 2]]
    data = training_data({"a": 7}, {"a": 1.0})
    assert [[len(b.rows) for b in data.micro_batches(3, 0, step, 2, 2)] for step in range(2)] == [[2, 2], [2, 1]]
    data = training_data({"a": 5}, {"a": 1.0})
    assert [[len(b.rows) for b in data.micro_batches(3, 0, step, 2, 2)] for step in range(2)] == [[2, 2], [1]]


@pytest.mark.fault("data-order")
def test_rows_do_not_depend_on_how_a_step_is_cut_or_on_what_came_before():
    data = training_data({"a": 23, "b": 11}, {"a": 1.0, "b": 0.5})
    one = torch.cat([batch.inputs for batch in data.micro_batches(3, 1, 2, 8, 1)])
    four = torch.cat([batch.inputs for batch in data.micro_batches(3, 1, 2, 2, 4)])
    assert one.equal(four)
    for epoch in (0, 4, 1, 0):  # jumping about, as resuming does
        fresh = training_data({"a": 23, "b": 11}, {"a": 1.0, "b": 0.5})
        assert fresh.batch_sequences(3, epoch, 1, 8) == data.batch_sequences(3, epoch, 1, 8)


@pytest.mark.parametrize(("weight", "per_epoch"), [(0.5, 10), (1.0, 20), (2.0, 40), (1e-6, 1)])
def test_a_further_source_comes_by_its_weight_and_in_turn(weight, per_epoch):
    data = training_data({"a": 20, "b": 13}, {"a": 2.0, "b": 2 * weight})
    assert data.sequences_per_source == {"a": 20, "b": per_epoch} and data.sequences_per_epoch == 20 + per_epoch
    seen = Counter()
    for epoch in range(13):
        rows = data.epoch_sequences(7, epoch).tolist()
        of_first, of_second = [row for row in rows if row < 20], [row - 20 for row in rows if row >= 20]
        assert sorted(of_first) == list(range(20)) and len(of_second) == per_epoch
        assert rows != of_first + [row + 20 for row in of_second]  # shuffled together
        seen.update(of_second)
    assert set(seen) == set(range(13))
    assert max(seen.values()) - min(seen.values()) == 0  # 13 epochs are so many whole passes over 13 rows
    assert data.seen_per_source(7, range(13)) == {"a": 13 * 60, "b": 13 * 3 * per_epoch}


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 23, 24, 59])
def test_what_was_seen_counts_the_rows_of_whole_epochs_and_of_the_one_begun(steps):
    data = training_data({"a": 20, "b": 7, "c": 5}, {"a": 2.0, "b": 0.6, "c": 1.0})
    per_epoch = data.steps_per_epoch(6)
    counted = Counter()
    for step in range(steps):
        for row in data.batch_sequences(3, step // per_epoch, step % per_epoch, 6):
            counted["a" if row < 20 else "b" if row < 27 else "c"] += 3
    seen = data.seen_after(3, steps // per_epoch, steps % per_epoch * 6)
    assert seen == {name: counted[name] for name in "abc"}


def test_batches_mix_sources():
    data = training_data({"a": 3, "b": 2}, {"a": 1.0, "b": 1.0})
    assert data.batch([4, 0]).inputs.tolist() == [[1003, 1004, 1005], [0, 1, 2]]
    assert data.batch([4, 0]).rows == (4, 0)
    assert data.n_tokens == 18
