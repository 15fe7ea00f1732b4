"""Both kernels give the same numbers, in every precision, under every mask, and never an overflow."""

import pytest
import torch

from dtl.model.attention import causal_mask, document_mask, reference_attention, sdpa_attention

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


def test_documents_see_themselves_and_the_past():
    mask = document_mask(torch.tensor([[4, 4, 9, 9, 9], [1, 1, 1, 1, 1]]))
    seen = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert mask[0].tolist() == torch.tensor(seen).bool().tolist()
    assert torch.equal(mask[1], torch.ones(5, 5).tril().bool())
