"""Packed rows are exact: whatever a document shares its row with, its logits and gradients are those it has alone."""

import importlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from dtl.data.batches import IGNORE, Batch, PackedSequences
from dtl.data.pack import pack_documents
from dtl.model.attention import (
    FLEX_SHARED_BYTES,
    document_bounds,
    flex_blocks,
    flex_documents,
    padded_documents,
    reference_attention,
    reference_documents,
    varlen_documents,
)
from dtl.model.transformer import TransformerLM, kept_operators

VOCAB_SIZE, SEQ_LEN, PAD = 23, 13, 22  # of the tiny models in conftest.py
LENGTHS = [11, 5, 3, 2, 14, 7, 3, 5, 2, 8]  # tokens, one more than a row gets of each
each_block = pytest.mark.parametrize("block", ["modern", "value_embeddings", "classic"])
no_fused_flex = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def varlen_by_hand(q, k, v, bounds_q, bounds_k, max_q, max_k, *, window_size, enable_gqa):
    """Stand-in for torch's varlen_attn, document by document: it has no kernel for a CPU."""
    assert window_size == (-1, 0) and enable_gqa == (q.shape[1] != k.shape[1])
    assert bounds_q.dtype == torch.int32 and torch.equal(bounds_q, bounds_k)
    lengths = bounds_q.diff().tolist()
    assert sum(lengths) == len(q) and max(lengths) <= min(max_q, max_k)
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    alone = [reference_attention(*(rearrange(x, "t h k -> 1 h t k") for x in qkv), None) for qkv in parts]
    return torch.cat([rearrange(y, "1 h t k -> t h k") for y in alone])


@pytest.fixture(autouse=True)
def varlen_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_by_hand)
    return


def documents() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, VOCAB_SIZE - 1, n) for n in LENGTHS]


def packed() -> Batch:
    """Ten documents of one to thirteen positions in rows of thirteen."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    rows = PackedSequences(
        np.concatenate(documents()), pack_documents(offsets, SEQ_LEN), pad_id=PAD, document_mask=True
    )
    batch = rows.batch(range(len(rows)))
    assert batch.documents is not None
    counts = {int(numbers.max()) + 1 for numbers in batch.documents}
    assert len(counts) > 1 and (batch.targets[:, -1] == IGNORE).any(), "rows should differ, and some be padded"
    return batch


def summed_loss(logits_btv: torch.Tensor, targets_bt: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_btv.flatten(0, 1), targets_bt.flatten(), ignore_index=IGNORE, reduction="sum")


def alone(model: TransformerLM, batch: Batch) -> torch.Tensor:
    """Logits of the batch, each document of each row (and each row's padding) computed by itself, from position 0."""
    rows = []
    assert batch.documents is not None
    for ids, numbers in zip(batch.inputs, batch.documents, strict=True):
        parts = [model(rearrange(ids[numbers == number], "t -> 1 t")) for number in numbers.unique()]
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows)


@each_block
@pytest.mark.parametrize(
    ("kernel", "counted"), [("sdpa", True), ("reference", True), ("varlen", True), ("varlen", False)]
)
def test_packed_documents_have_the_logits_and_gradients_they_have_alone(tiny_model, block, kernel, counted):
    model, batch = tiny_model(block), packed()
    model.document_kernel = kernel
    most = batch.max_documents if counted else None
    x_btd = model.hidden(batch.inputs, batch.positions, batch.documents, max_documents=most)
    together, apart = model.head(x_btd), alone(model, batch)
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=1e-5)
    parameters = list(model.parameters())
    packed_gradients = torch.autograd.grad(summed_loss(together, batch.targets), parameters)
    gradients = torch.autograd.grad(summed_loss(apart, batch.targets), parameters)
    largest = max(float(gradient.abs().max()) for gradient in gradients)  # that of a key bias is 0, but for rounding
    for one, other in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * largest, rtol=1e-4)
    # Without borders it is another model.
    assert (model(batch.inputs) - apart).abs().max() > 1e-2


@each_block
@pytest.mark.parametrize("dropout", [0.0, 1e-12])  # the second drops nothing, but takes torch's kernel with dropout
def test_packed_documents_have_the_logits_and_gradients_they_have_alone_side_by_side(tiny_model, block, dropout):
    batch = packed()
    model, plain = tiny_model(block, dropout=dropout), tiny_model(block)
    plain.load_state_dict(model.state_dict())
    model.document_kernel = "padded"
    together, apart = model.train()(batch.inputs, batch.positions, batch.documents), alone(plain, batch)
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=1e-5)
    packed_gradients = torch.autograd.grad(summed_loss(together, batch.targets), list(model.parameters()))
    gradients = torch.autograd.grad(summed_loss(apart, batch.targets), list(plain.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for one, other in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * largest, rtol=1e-4)


def test_side_by_side_is_given_up_where_it_would_not_halve_the_pairs(monkeypatch):
    widths = []

    def keep(q, k, v, mask_bts, dropout=0.0):
        widths.append((len(q), q.shape[2]))
        return q

    monkeypatch.setattr("dtl.model.attention.sdpa_attention", keep)
    q_bhtk = torch.randn(2, 3, 12, 10)
    short = torch.arange(12).div(3, rounding_mode="floor").expand(2, 12)  # 8 documents of 3: 72 pairs of 288
    long = (torch.arange(12) >= 7).long().expand(2, 12)  # 4 documents of up to 7: 196 pairs
    halves = (torch.arange(12) >= 6).long().expand(2, 12)  # 4 documents of 6: 144 pairs, just half
    for documents in (short, long, halves):
        assert torch.equal(padded_documents(documents)(q_bhtk, q_bhtk, q_bhtk, dropout=0.1), q_bhtk)
    assert widths == [(8, 3), (2, 12), (4, 6)]


def test_side_by_side_drops_weights_and_keeps_their_mean():
    documents = torch.arange(200).div(20, rounding_mode="floor").expand(2, 200)
    q_bhtk, ones = torch.randn(2, 6, 200, 10), torch.ones(2, 3, 200, 10)
    y_bhtk = padded_documents(documents)(q_bhtk, torch.randn(2, 3, 200, 10), ones, dropout=0.5)
    assert (y_bhtk - 1).abs().max() > 0.3 and abs(y_bhtk.mean() - 1) < 0.05


@no_fused_flex
@each_block
def test_packed_documents_have_the_logits_they_have_alone_by_flex(tiny_model, block):
    model, batch = tiny_model(block), packed()
    model.document_kernel = "flex"
    with torch.no_grad():  # on a CPU it has no backward pass
        together = model(batch.inputs, batch.positions, batch.documents)
        torch.testing.assert_close(together, alone(model, batch), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "reference", "varlen"])
def test_what_stands_in_the_padding_changes_nothing(tiny_model, kernel):
    model, batch = tiny_model(), packed()
    model.document_kernel = kernel
    is_padding = batch.targets == IGNORE
    other = batch.inputs.masked_fill(is_padding, 5)
    assert not torch.equal(other, batch.inputs)
    before, after = (model(ids, batch.positions, batch.documents)[~is_padding] for ids in (batch.inputs, other))
    assert torch.equal(before, after)


@each_block
def test_without_documents_every_choice_takes_the_same_path(tiny_model, block):
    model, ids = tiny_model(block), torch.randint(VOCAB_SIZE, (3, 7))
    plain = model(ids)
    for kernel in ("sdpa", "padded", "varlen", "flex"):
        model.document_kernel = kernel
        assert torch.equal(model(ids), plain)


def test_documents_are_found_where_their_numbers_change_and_where_rows_begin():
    numbers = torch.tensor([[0, 0, 1, 1, 1], [1, 2, 2, 2, 2], [2, 2, 2, 2, 2]])
    assert document_bounds(numbers).tolist() == [0, 2, 5, 6, 10, 15]
    assert document_bounds(torch.tensor([[4], [4]])).tolist() == [0, 1, 2]
    assert document_bounds(numbers, 5).tolist() == [0, 2, 5, 6, 10, 15]
    assert document_bounds(numbers, 7).tolist() == [0, 2, 5, 6, 10, 15, 15, 15]


def test_bounds_of_counted_documents_wait_for_nothing():
    """A GPU is waited for where a shape depends on the data."""
    batch, names = packed(), []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    for most in (batch.max_documents, None):
        with Names():
            document_bounds(batch.documents, most)
        assert ("_local_scalar_dense" in names) is (most is None) and "nonzero" not in names


@pytest.mark.parametrize("kernel", [varlen_documents, flex_documents])
def test_a_kernel_that_cannot_drop_weights_says_so(kernel):
    q_bhtk = torch.randn(1, 2, 7, 10)
    with pytest.raises(ValueError, match=r"supports no attention dropout: dropout=0\.1"):
        kernel(torch.zeros(1, 7, dtype=torch.int64))(q_bhtk, q_bhtk, q_bhtk, dropout=0.1)


@pytest.mark.parametrize("head_dim", [10, 32, 64, 80, 128, 256])
@pytest.mark.parametrize("element_size", [2, 4])
def test_flex_blocks_fit_a_small_card(head_dim, element_size):
    options = flex_blocks(head_dim, element_size)
    side = options["fwd_BLOCK_M"]
    assert 128 % side == 0 and side >= 16 and set(options.values()) == {side, 2}
    # Forward: queries, and keys and values in each stage.
    stages = options["fwd_num_stages"]
    assert (1 + 2 * stages) * side * head_dim * element_size <= FLEX_SHARED_BYTES
    assert flex_blocks(64, 2)["bwd_BLOCK_M1"] == 64  # no smaller than it has to be


def test_selective_checkpointing_keeps_what_varlen_computed_but_not_with_dropout():
    importlib.import_module("torch.nn.attention.varlen")
    varlen = torch.ops.torch_attn._varlen_attn.default
    assert varlen in kept_operators(attention_dropout=False)
    assert varlen not in kept_operators(attention_dropout=True)
    create_selective_checkpoint_contexts(kept_operators(attention_dropout=False))  # torch takes all of them


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["varlen", "flex"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernels_of_a_card_are_exact(monkeypatch, tiny_config, name, dtype):
    from dtl.model.attention import DOCUMENT_KERNELS
    from dtl.model.kernel_choice import KernelProbe

    monkeypatch.undo()  # torch's own varlen_attn
    numbers = torch.randint(0, 2, (3, 257), device="cuda").cumsum(dim=1)
    trial = KernelProbe.of(tiny_config(head_dim=32), numbers, dtype)
    assert trial.problem(reference_documents) is None
    assert trial.problem(DOCUMENT_KERNELS[name]) is None
