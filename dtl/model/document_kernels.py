"""Attention over rows of packed documents: from their numbers to a kernel that keeps each inside its own.

A document kernel looks at the numbers once in a forward pass; what it returns attends in every layer. A
document's tokens lie next to each other in its row; padding is a document like any other.
Letters: b batch, t time, h query heads, g key/value heads, k head width, n documents of all rows together.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from dtl.model.attention import Attend, document_mask, reference_attention, sdpa_attention

DocumentKernel = Callable[[Tensor], Attend]  # int64 (b, t), a document's number at each of its tokens

FLEX_SHARED_BYTES = 99 * 1024  # of a block of threads on the RTX 30 and 40 series, the least of all cards with bf16


def sdpa_documents(documents_bt: Tensor) -> Attend:
    """torch's fused attention with a mask: everywhere, every dtype, with dropout. Computes hidden pairs, too."""
    return partial(sdpa_attention, mask_bts=document_mask(documents_bt))


def reference_documents(documents_bt: Tensor) -> Attend:
    """The formula written out, with the same mask."""
    return partial(reference_attention, mask_bts=document_mask(documents_bt))


def padded_documents(documents_bt: Tensor) -> Attend:
    """Each document in a row of its own, padded to the longest. As `sdpa_documents` but where weights are dropped.

    torch has no fused kernel with dropout for a CPU and computes every pair of a row. Short documents have few pairs;
    padding behind a document's end is hidden from it by causality. Where it would not halve the pairs, the mask stays.
    """
    masked = sdpa_documents(documents_bt)
    (n_rows, n_tokens), bounds = documents_bt.shape, document_bounds(documents_bt)
    lengths = bounds.diff()
    longest, n_documents = int(lengths.max()), len(lengths)
    if 2 * n_documents * longest**2 > n_rows * n_tokens**2:
        return masked
    document_of = torch.repeat_interleave(lengths)
    places = torch.arange(documents_bt.numel(), device=documents_bt.device)
    places = document_of * longest + places - bounds[document_of]

    def spread(x_bhtk: Tensor) -> Tensor:
        tokens = rearrange(x_bhtk, "b h t k -> (b t) (h k)")
        rows = tokens.new_zeros(n_documents * longest, tokens.shape[1]).index_copy(0, places, tokens)
        return rearrange(rows, "(n t) (h k) -> n h t k", n=n_documents, h=x_bhtk.shape[1])

    def attend(q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, *, dropout: float = 0.0) -> Tensor:
        if not dropout:
            return masked(q_bhtk, k_bgsk, v_bgsk)
        y_nhtk = sdpa_attention(spread(q_bhtk), spread(k_bgsk), spread(v_bgsk), None, dropout)
        tokens = rearrange(y_nhtk, "n h t k -> (n t) (h k)").index_select(0, places)
        return rearrange(tokens, "(b t) (h k) -> b h t k", b=n_rows, h=q_bhtk.shape[1])

    return attend


def varlen_documents(documents_bt: Tensor) -> Attend:
    """Flash attention over documents laid end to end: no pair of two documents is computed. CUDA, 16 bits."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = document_bounds(documents_bt)
    n_rows, n_tokens = documents_bt.shape

    def attend(q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, *, dropout: float = 0.0) -> Tensor:
        _refuse_dropout(dropout, "varlen")
        q, k, v = (rearrange(x, "b h t k -> (b t) h k") for x in (q_bhtk, k_bgsk, v_bgsk))
        grouped = q.shape[1] != k.shape[1]
        # The longest document may be as long as a row: to ask how long it is would wait for the GPU again.
        y = varlen_attn(q, k, v, bounds, bounds, n_tokens, n_tokens, window_size=(-1, 0), enable_gqa=grouped)
        assert isinstance(y, Tensor)  # a pair only where more was asked for
        return rearrange(y, "(b t) h k -> b h t k", b=n_rows)

    return attend


def document_bounds(documents_bt: Tensor) -> Tensor:
    """Where each document begins in the rows laid end to end, then where the last ends: int32 (n + 1).

    How many there are is the data's secret, so that a GPU is waited for: once in a forward pass.
    """
    first_bt = torch.ones_like(documents_bt, dtype=torch.bool)
    first_bt[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
    starts = rearrange(torch.nonzero(rearrange(first_bt, "b t -> (b t)")), "n 1 -> n")
    return torch.cat([starts, starts.new_tensor([documents_bt.numel()])]).int()


def flex_documents(documents_bt: Tensor) -> Attend:
    """FlexAttention (Dong et al. 2024): a kernel compiled for this mask, which leaves out blocks that are all hidden.

    CUDA; on a CPU uncompiled and forward alone, for tests.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, _h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (documents_bt[b, t] == documents_bt[b, s]) & (t >= s)

    n_rows, n_tokens = documents_bt.shape
    block_mask = create_block_mask(visible, n_rows, None, n_tokens, n_tokens, device=documents_bt.device)
    flex = _flex_attention(compiled=documents_bt.is_cuda)

    def attend(q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, *, dropout: float = 0.0) -> Tensor:
        _refuse_dropout(dropout, "flex")
        options = flex_blocks(q_bhtk.shape[-1], q_bhtk.element_size()) if q_bhtk.is_cuda else None
        grouped = q_bhtk.shape[1] != k_bgsk.shape[1]
        return flex(q_bhtk, k_bgsk, v_bgsk, block_mask=block_mask, enable_gqa=grouped, kernel_options=options)

    return attend


@cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def flex_blocks(head_dim: int, element_size: int) -> dict[str, int]:
    """FlexAttention's `kernel_options` for a head of `head_dim` numbers of `element_size` bytes.

    torch 2.13 gives an RTX 40 the blocks of an A100, which need 128 KB of shared memory and more from a head width
    of 128 on. These are sized by what the backward pass may hold at once: 8 blocks of `side` x `head_dim` (query,
    key, value, gradient, in two stages) and 2 of `side` x `side` (scores).
    """
    width = 1 << max(4, (head_dim - 1).bit_length())  # a block is padded to a power of two
    fits = (side for side in (64, 32) if element_size * (8 * side * width + 2 * side * side) <= FLEX_SHARED_BYTES)
    side = next(fits, 16)
    backward = dict.fromkeys(("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2"), side)
    stages = {"fwd_num_stages": 2, "bwd_num_stages": 2}
    return {"fwd_BLOCK_M": side, "fwd_BLOCK_N": side, **backward, **stages}


def _refuse_dropout(dropout: float, kernel: str) -> None:
    if dropout:
        raise ValueError(f"{kernel} drops no attention weights: dropout={dropout}.")


DOCUMENT_KERNELS: dict[str, DocumentKernel] = {
    "sdpa": sdpa_documents,
    "reference": reference_documents,
    "padded": padded_documents,
    "varlen": varlen_documents,
    "flex": flex_documents,
}
