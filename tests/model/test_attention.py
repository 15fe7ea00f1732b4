"""Both kernels give the same numbers, in every precision, under every mask, and never an overflow."""

import pytest
import torch

from dtl.model import attention
from dtl.model.attention import causal_mask, document_mask, dropout, reference_attention, sdpa_attention

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def random_qkv(dtype: torch.dtype, n_queries: int = 7, n_keys: int = 7, scale: float = 1.0):
    q_bhtk = torch.randn(2, 6, n_queries, 10) * scale
    k_bgsk, v_bgsk = torch.randn(2, 3, n_keys, 10) * scale, torch.randn(2, 3, n_keys, 10)
    return q_bhtk.to(dtype), k_bgsk.to(dtype), v_bgsk.to(dtype)


def some_mask(kind: str) -> torch.Tensor | None:
    mask_bts = causal_mask(7, 7, torch.device("cpu")).expand(2, 7, 7).clone()
    if kind == "causal":
        return None
    if kind == "padded on the left":
        mask_bts[1, :, :3] = False
        mask_bts[1, :3, 0] = True
    if kind == "holes":
        mask_bts &= (torch.rand(2, 7, 7) < 0.5) | torch.eye(7, dtype=torch.bool)
    if kind == "rows that see nothing":
        mask_bts[0, 2:4] = False
    return mask_bts


@pytest.mark.parametrize("kind", ["causal", "padded on the left", "holes", "rows that see nothing"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_kernels_give_the_same_numbers(dtype, kind):
    q_bhtk, k_bgsk, v_bgsk = random_qkv(dtype)
    mask_bts = some_mask(kind)
    fused = sdpa_attention(q_bhtk, k_bgsk, v_bgsk, mask_bts)
    written_out = reference_attention(q_bhtk, k_bgsk, v_bgsk, mask_bts)
    assert fused.dtype == written_out.dtype == dtype
    torch.testing.assert_close(fused, written_out, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_the_kernels_give_the_same_gradients():
    inputs = [tensor.requires_grad_() for tensor in random_qkv(torch.float32)]
    mask_bts, weights = some_mask("holes"), torch.randn(2, 6, 7, 10)
    fused = torch.autograd.grad((sdpa_attention(*inputs, mask_bts) * weights).sum(), inputs)
    written_out = torch.autograd.grad((reference_attention(*inputs, mask_bts) * weights).sum(), inputs)
    for one, other in zip(fused, written_out, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attend", [sdpa_attention, reference_attention])
def test_one_query_after_cached_keys_sees_them_all(attend):
    q_bhtk, k_bgsk, v_bgsk = random_qkv(torch.float32)
    whole = attend(q_bhtk, k_bgsk, v_bgsk, None)
    torch.testing.assert_close(attend(q_bhtk[:, :, -1:], k_bgsk, v_bgsk, None), whole[:, :, -1:])


def test_the_reference_attends_uniformly_when_all_keys_are_equal():
    q_bhtk, k_bgsk, v_bgsk = random_qkv(torch.float32)
    y_bhtk = reference_attention(q_bhtk, torch.zeros_like(k_bgsk), v_bgsk, None)
    for t in range(7):
        torch.testing.assert_close(y_bhtk[:, 5, t], v_bgsk[:, 2, : t + 1].mean(dim=1))


@pytest.mark.parametrize("kind", ["causal", "holes", "rows that see nothing"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_half_precision_stays_finite_forward_and_backward(kind, scale):
    inputs = [tensor.requires_grad_() for tensor in random_qkv(torch.float16, scale=scale)]
    y_bhtk = reference_attention(*inputs, some_mask(kind))
    assert y_bhtk.isfinite().all()
    y_bhtk.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in inputs)


@pytest.mark.parametrize("attend", [sdpa_attention, reference_attention])
def test_dropout_drops_weights_and_keeps_their_mean(attend):
    q_bhtk, k_bgsk, _ = random_qkv(torch.float32, n_queries=200, n_keys=200)
    ones = torch.ones_like(k_bgsk)
    y_bhtk = attend(q_bhtk, k_bgsk, ones, None, 0.5)
    assert (y_bhtk - 1).abs().max() > 0.3
    assert abs(y_bhtk.mean() - 1) < 0.05


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_attention_with_dropout_on_a_cpu_is_the_reference_where_nothing_is_dropped(dtype, monkeypatch):
    """Values and gradients, with keys shared by two heads each."""
    monkeypatch.setattr(attention, "dropout", lambda x, p: x)
    inputs = random_qkv(dtype)
    results = []
    for attend, p in ((sdpa_attention, 0.5), (reference_attention, 0.0)):
        copies = [tensor.clone().requires_grad_() for tensor in inputs]
        y_bhtk = attend(*copies, None, p)
        results.append((y_bhtk, *torch.autograd.grad(y_bhtk.square().sum(), copies)))
    torch.testing.assert_close(*results, atol=4 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_with_dropout_rounds_no_more_than_torch(dtype, monkeypatch):
    """Large scores, whose rounding to 16 bits would change their weights."""
    monkeypatch.setattr(attention, "dropout", lambda x, p: x)
    q, k, v = (tensor.to(dtype) for tensor in random_qkv(torch.float32, 33, 33, scale=2.0))
    exact = reference_attention(q.double(), k.double(), v.double(), None)
    ours, theirs = sdpa_attention(q, k, v, None, 0.5), sdpa_attention(q, k, v, None, 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sdpa_attention(q, k, v, None, 0.5)
    errors = [(y.double() - exact).square().mean().sqrt() for y in (ours, inside, theirs)]
    assert max(errors[:2]) <= 1.1 * errors[2] and inside.dtype == dtype


@pytest.mark.parametrize("shape", [(3, 7, 11), (1,), (2, 2), (0, 5), (101, 103)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0, 1e-9])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dropout_zeroes_a_share_and_scales_the_rest(shape, p, dtype):
    x = (1 + torch.rand(shape)).to(dtype).requires_grad_()
    y = dropout(x, p)
    kept = y != 0
    assert (y.dtype, y.shape) == (dtype, x.shape)
    if x.numel() > 10_000:  # three standard deviations
        assert abs(kept.float().mean() - (1 - p)) <= 3 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16
    if p < 1:
        torch.testing.assert_close(y[kept], x[kept] / (1 - p), atol=0, rtol=2**-7 if dtype != torch.float32 else 1e-3)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad * x, y)
    torch.manual_seed(7)
    first, other = dropout(x, p), dropout(x, p)
    torch.manual_seed(7)
    assert torch.equal(dropout(x, p), first)
    assert x.numel() < 100 or p in (1.0, 1e-9) or not torch.equal(first, other)


def test_dropped_values_are_independent_of_their_neighbours():
    """Four values share one draw of the generator: no two of them may go together."""
    kept = (dropout(torch.ones(50_000, 8), 0.5) != 0).float() - 0.5
    correlations = 4 * (kept.T @ kept) / len(kept) - torch.eye(8)
    assert correlations.abs().max() < 0.02  # more than four standard deviations


def test_documents_see_themselves_and_the_past():
    mask = document_mask(torch.tensor([[4, 4, 9, 9, 9], [1, 1, 1, 1, 1]]))
    seen = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert mask[0].tolist() == torch.tensor(seen).bool().tolist()
    assert torch.equal(mask[1], torch.ones(5, 5).tril().bool())
