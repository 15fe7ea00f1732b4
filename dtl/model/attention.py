"""Positions and attention kernels: rotation, interfaces of kernel and cache, plain and over packed documents.

The layer that projects to queries, keys and values is `MultiHeadAttention` in dtl/model/transformer.py.
Letters: b batch, t query time, s key time, h query heads, g key/value heads, k head width; n is the query heads that
share one key/value head (h = g n), and in the kernels of packed documents the documents of the whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from dtl.base.runtime import compute_dtype, random_int16

# --- rotation and interfaces --------------------------------------------------------------------------------------


class Rotation(NamedTuple):
    """Cosine and sine of each token's angles, (b, t, k); b is 1 when all sequences have the same positions.

    The sines of the first half of a head are negative: see `apply`.
    """

    cos_btk: Tensor
    signed_sin_btk: Tensor

    def apply(self, x_bhtk: Tensor) -> Tensor:
        """Rotate each pair (i, i + k/2) of a head by its angle; (b, h, t, k) to the same shape."""
        # Pairs are half a head apart, as in Hugging Face: the paper's interleaved pairs (arXiv:2104.09864) are another
        # function of the same weights, so that checkpoints could not be exchanged.
        cos_bhtk = rearrange(self.cos_btk, "b t k -> b 1 t k")
        sin_bhtk = rearrange(self.signed_sin_btk, "b t k -> b 1 t k")
        return _Rotate.apply(x_bhtk, cos_bhtk, sin_bhtk)


class _Rotate(torch.autograd.Function):
    """x cos + (second half, first half) sin, where the first half's sines are negative; the gradient is rotated back.

    Whole heads and not their halves: in bf16 torch's kernels take four times as long for rows of half a head.
    """

    @staticmethod
    def forward(ctx: Any, x_bhtk: Tensor, cos_bhtk: Tensor, sin_bhtk: Tensor) -> Tensor:
        ctx.save_for_backward(cos_bhtk, sin_bhtk)
        return _rotated(x_bhtk, cos_bhtk, sin_bhtk, 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_bhtk,), (cos_bhtk, sin_bhtk) = grad_outputs, ctx.saved_tensors
        return _rotated(grad_bhtk, cos_bhtk, sin_bhtk, -1), None, None


def _rotated(x_bhtk: Tensor, cos_bhtk: Tensor, sin_bhtk: Tensor, sign: int) -> Tensor:
    swapped_bhtk = x_bhtk.roll(x_bhtk.shape[-1] // 2, dims=-1)
    return (x_bhtk * cos_bhtk).addcmul_(swapped_bhtk, sin_bhtk, value=sign)


class KeyValueCache(Protocol):
    """Keys and values of the tokens that a model has seen; generation provides it (dtl/generation/engine.py).

    One forward pass calls `extend` once, then `update` once in each layer. The first pass takes the complete prompts,
    each later one a single token per sequence. Prompts may have different lengths and be padded on either side: only
    the cache knows where, so it returns the positions and the mask.
    """

    def extend(self, n_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Make room for the next `n_tokens` of every sequence.

        Returns their positions, int64 (b, t), and the mask, bool (b, t, s), True where a query may attend. None as
        mask means causal: only when the keys are the queries' own (t = s), or for one query that sees every key.
        """
        ...

    def update(self, layer: int, k_bgtk: Tensor, v_bgtk: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values of one layer; return all of that layer, (b, g, s, k) each."""
        ...


class AttentionFn(Protocol):
    """A kernel with its mask already bound, once for all layers of a forward pass."""

    def __call__(self, q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Attend from queries (b, h, t, k) to keys and values (b, g, s, k): (b, h, t, k); h is a multiple of g."""
        ...


@dataclass(frozen=True)
class AttentionContext:
    """Arguments of every layer's attention besides its input; made once in a forward pass."""

    attend: AttentionFn
    rotation: Rotation | None = None  # of queries and keys; None = the input already contains the positions
    cache: KeyValueCache | None = None
    values_btd: Tensor | None = None  # of the tokens, (b, t, g k): what a layer may mix into its values
    at_n: Tensor | None = None  # of the last layer, its only outputs that are needed: see `TransformerLM.hidden`

    def needed(self, x_btd: Tensor) -> Tensor:
        """Return the positions whose output is needed, (n, d); all of them, (b, t, d), where `at_n` is None."""
        return x_btd if self.at_n is None else rearrange(x_btd, "b t d -> (b t) d")[self.at_n]


# --- positions ----------------------------------------------------------------------------------------------------
# Both classes map embedded tokens and their positions to tokens and the rotation of queries and keys, if any.


class RotaryEmbedding(nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer): attention then depends on distances only.

    Angles are computed in fp32 in each forward pass, once for all layers: bf16 represents integers exactly only up to
    256. A table of them would be rounded by `model.to(torch.bfloat16)`, left empty by a meta device, and saved.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta

    def forward(self, x_btd: Tensor, positions_bt: Tensor) -> tuple[Tensor, Rotation | None]:
        """Tokens (b, t, d), unchanged, and the rotation for their positions (b or 1, t), in `compute_dtype`."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions_bt.device) / self.head_dim
        frequencies = 1.0 / self.theta**exponents
        angles = rearrange(positions_bt.float(), "b t -> b t 1") * frequencies
        cos, sin, dtype = angles.cos(), angles.sin(), compute_dtype(x_btd)
        return x_btd, Rotation(torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype))


class LearnedPositions(nn.Module):
    """Learned vectors, one for each position, added to the tokens as in GPT-2."""

    def __init__(self, max_seq_len: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_seq_len, dim)

    def forward(self, x_btd: Tensor, positions_bt: Tensor) -> tuple[Tensor, Rotation | None]:
        """Tokens (b, t, d) plus the vectors of their positions (b or 1, t); no rotation."""
        return x_btd + self.table(positions_bt), None


# --- dropout ------------------------------------------------------------------------------------------------------


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each value with probability `p`, and divide the others by 1 - p (Srivastava et al. 2014).

    On a CPU p is rounded to a multiple of 2^-16. torch draws a number of its own for each value, which takes six times
    as long, a twelfth of a step on questions.
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    kept = round((1 - p) * 65536)  # of 65,536
    if kept in (0, 65536):
        return x * (kept // 65536)
    return x * (random_int16(x.shape) < kept - 32768).to(x.dtype).mul_(65536 / kept)


# --- plain attention ----------------------------------------------------------------------------------------------


def sdpa_attention(
    q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, mask_bts: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Attention by torch's fused kernels. Same arguments and result as `reference_attention`."""
    n_queries, grouped = q_bhtk.shape[2], q_bhtk.shape[1] != k_bgsk.shape[1]
    if dropout and mask_bts is None and q_bhtk.device.type == "cpu":
        return _causal_attention_with_dropout(q_bhtk, k_bgsk, v_bgsk, dropout)
    mask_bhts = None if mask_bts is None else rearrange(mask_bts, "b t s -> b 1 t s")
    # torch counts the causal diagonal from the first key, which is wrong for one query after cached keys.
    causal = mask_bts is None and n_queries > 1
    return F.scaled_dot_product_attention(
        q_bhtk, k_bgsk, v_bgsk, attn_mask=mask_bhts, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


def _causal_attention_with_dropout(q_bhtk: Tensor, k_bgtk: Tensor, v_bgtk: Tensor, p: float) -> Tensor:
    """On a CPU, where no fused kernel has dropout: torch's own formula also looks for queries that see no key.

    Scores and weights are at least fp32, as there.
    """
    n_shared, n_tokens = q_bhtk.shape[1] // k_bgtk.shape[1], q_bhtk.shape[2]
    k_bhtk, v_bhtk = (x if n_shared == 1 else x.repeat_interleave(n_shared, dim=1) for x in (k_bgtk, v_bgtk))
    dtype = torch.promote_types(q_bhtk.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        scores_bhts = (q_bhtk.to(dtype) * q_bhtk.shape[-1] ** -0.5) @ rearrange(k_bhtk.to(dtype), "b h s k -> b h k s")
        scores_bhts += scores_bhts.new_full((n_tokens, n_tokens), -torch.inf).triu(1)
        return (dropout(scores_bhts.softmax(dim=-1), p) @ v_bhtk.to(dtype)).to(v_bhtk.dtype)


def reference_attention(
    q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, mask_bts: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k / sqrt(k)) v, written out (Vaswani et al. 2017): to read, and to check the fused kernels against.

    Queries (b, h, t, k), keys and values (b, g, s, k) to (b, h, t, k); h is a multiple of g. `mask_bts` is True where
    a query may attend, None for causal. A query that may attend to no key gets zeros.
    """
    n_queries, n_keys = q_bhtk.shape[2], k_bgsk.shape[2]
    if mask_bts is None:
        mask_bts = rearrange(causal_mask(n_queries, n_keys, q_bhtk.device), "t s -> 1 t s")
    hidden = ~rearrange(mask_bts, "b t s -> b 1 1 t s")
    q_bgntk = rearrange(q_bhtk, "b (g n) t k -> b g n t k", g=k_bgsk.shape[1])
    # Scaled before the product, which could exceed fp16's range (65,504).
    scores = einsum(q_bgntk * q_bhtk.shape[-1] ** -0.5, k_bgsk, "b g n t k, b g s k -> b g n t s")
    # The smallest finite value of the dtype, not -1e9 (infinite in fp16) and not -inf (NaN where all keys are hidden).
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).masked_fill(hidden, 0.0).to(v_bgsk.dtype)
    weights = F.dropout(weights, dropout)  # torch's: the same law, of other numbers
    y_bgntk = einsum(weights, v_bgsk, "b g n t s, b g s k -> b g n t k")
    return rearrange(y_bgntk, "b g n t k -> b (g n) t k")


def causal_mask(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """Bool (t, s), True where a query may attend: the queries are the last of the keys, and see no later one."""
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(diagonal=n_keys - n_queries)


def document_mask(documents_bt: Tensor) -> Tensor:
    """Bool (b, t, t), True where a query may attend: to earlier tokens with the same document number."""
    same = rearrange(documents_bt, "b t -> b t 1") == rearrange(documents_bt, "b s -> b 1 s")
    n_tokens = documents_bt.shape[1]
    return same & causal_mask(n_tokens, n_tokens, documents_bt.device)


# --- attention over packed documents ------------------------------------------------------------------------------
# A document kernel reads the document numbers once in a forward pass; the function that it returns attends in every
# layer, each token within its own document. A document's tokens are contiguous; padding is documents like any other.


class DocumentKernel(Protocol):
    """A kernel of packed documents."""

    def __call__(self, documents_bt: Tensor, max_documents: int | None = None) -> AttentionFn:
        """Return the attention within documents; `documents_bt`, int64, has the document number of each token.

        All sequences together have at most `max_documents`; where it is None a kernel may have to count them, which
        waits for the GPU.
        """
        ...


FLEX_SHARED_BYTES = 99 * 1024  # shared memory per thread block on RTX 30 and 40, the least of all GPUs with bf16


def sdpa_documents(documents_bt: Tensor, max_documents: int | None = None) -> AttentionFn:
    """torch's fused attention with a mask: any device and dtype, with dropout. Computes hidden pairs too."""
    return partial(sdpa_attention, mask_bts=document_mask(documents_bt))


def reference_documents(documents_bt: Tensor, max_documents: int | None = None) -> AttentionFn:
    """The formula written out, with the same mask."""
    return partial(reference_attention, mask_bts=document_mask(documents_bt))


def padded_documents(documents_bt: Tensor, max_documents: int | None = None) -> AttentionFn:
    """Each document as a sequence of its own, padded to the longest.

    On a CPU a mask saves no work: every pair of a sequence is computed, and short documents have few.
    Causality hides the padding after a document's end. Where padding would not halve the pairs, the mask is used.
    """
    (n_rows, n_tokens), bounds = documents_bt.shape, document_bounds(documents_bt)
    lengths = bounds.diff()
    longest, n_documents = int(lengths.max()), len(lengths)
    if 2 * n_documents * longest**2 > n_rows * n_tokens**2:
        return sdpa_documents(documents_bt)
    document_of = torch.repeat_interleave(lengths)
    indices = torch.arange(documents_bt.numel(), device=documents_bt.device)
    return attend_padded(documents_bt, document_of * longest + indices - bounds[document_of], n_documents, longest)


def attend_padded(documents_bt: Tensor, places: Tensor, n_documents: int, longest: int) -> AttentionFn:
    """Return the attention of documents that are padded to the longest; `places`, (b t), are their tokens' there."""
    n_rows = len(documents_bt)

    def pad(x_bhtk: Tensor) -> Tensor:
        tokens = rearrange(x_bhtk, "b h t k -> (b t) (h k)")
        padded = tokens.new_zeros(n_documents * longest, tokens.shape[1]).index_copy(0, places, tokens)
        return rearrange(padded, "(n t) (h k) -> n h t k", n=n_documents, h=x_bhtk.shape[1])

    def attend(q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, *, dropout: float = 0.0) -> Tensor:
        y_nhtk = sdpa_attention(pad(q_bhtk), pad(k_bgsk), pad(v_bgsk), None, dropout)
        tokens = rearrange(y_nhtk, "n h t k -> (n t) (h k)").index_select(0, places)
        return rearrange(tokens, "(b t) (h k) -> b h t k", b=n_rows, h=q_bhtk.shape[1])

    return attend


def varlen_documents(documents_bt: Tensor, max_documents: int | None = None) -> AttentionFn:
    """Flash attention over concatenated documents: no pair across two documents is computed. CUDA, 16 bits.

    Bounds beyond the last document are documents of no token.
    """
    from torch.nn.attention.varlen import varlen_attn

    # Counted here in the probe alone, which has to see documents of no token, too.
    bounds = document_bounds(documents_bt, max_documents or 1 + int(_first_tokens(documents_bt).sum()))
    n_rows, n_tokens = documents_bt.shape

    def attend(q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, *, dropout: float = 0.0) -> Tensor:
        _raise_if_dropout(dropout, "varlen")
        q, k, v = (rearrange(x, "b h t k -> (b t) h k") for x in (q_bhtk, k_bgsk, v_bgsk))
        grouped = q.shape[1] != k.shape[1]
        # The bound on the longest document is the sequence length: its true length would need another GPU sync.
        y = varlen_attn(q, k, v, bounds, bounds, n_tokens, n_tokens, window_size=(-1, 0), enable_gqa=grouped)
        assert isinstance(y, Tensor)  # a tuple only with return_aux
        return rearrange(y, "(b t) h k -> b h t k", b=n_rows)

    return attend


def document_bounds(documents_bt: Tensor, max_documents: int | None = None) -> Tensor:
    """Start of each document in the concatenated sequences, then the end of the last: int32 (n + 1).

    With `max_documents` n is that number, and the end fills what is left; without, n depends on the data, and
    the count waits for the GPU.
    """
    first_n = rearrange(_first_tokens(documents_bt), "b t -> (b t)")
    end = len(first_n)
    size = (int(first_n.sum()) if max_documents is None else max_documents) + 1
    return rearrange(torch.nonzero_static(first_n, size=size, fill_value=end), "n 1 -> n").int()


def _first_tokens(documents_bt: Tensor) -> Tensor:
    """Bool (b, t), True where a document begins."""
    first_bt = torch.ones_like(documents_bt, dtype=torch.bool)
    first_bt[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
    return first_bt


def flex_documents(documents_bt: Tensor, max_documents: int | None = None) -> AttentionFn:
    """FlexAttention (Dong et al. 2024): a kernel compiled for this mask, which skips blocks that are all hidden.

    CUDA; on a CPU uncompiled and without a backward pass, for tests.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, _h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (documents_bt[b, t] == documents_bt[b, s]) & (t >= s)

    n_rows, n_tokens = documents_bt.shape
    block_mask = create_block_mask(visible, n_rows, None, n_tokens, n_tokens, device=documents_bt.device)
    flex = _flex_attention(compiled=documents_bt.is_cuda)

    def attend(q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, *, dropout: float = 0.0) -> Tensor:
        _raise_if_dropout(dropout, "flex")
        options = flex_blocks(q_bhtk.shape[-1], q_bhtk.element_size()) if q_bhtk.is_cuda else None
        grouped = q_bhtk.shape[1] != k_bgsk.shape[1]
        return flex(q_bhtk, k_bgsk, v_bgsk, block_mask=block_mask, enable_gqa=grouped, kernel_options=options)

    return attend


@cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def flex_blocks(head_dim: int, element_size: int) -> dict[str, int]:
    """FlexAttention's `kernel_options` for a head of `head_dim` elements of `element_size` bytes.

    torch 2.13 gives an RTX 40 the block sizes of an A100, which need 128 KB of shared memory or more from a head width
    of 128 on. These are sized by what the backward pass may keep there at once: 8 blocks of `side` x `head_dim`
    (query, key, value, gradient, in two stages) and 2 of `side` x `side` (scores).
    """
    width = 1 << max(4, (head_dim - 1).bit_length())  # a block is padded to a power of two
    fits = (side for side in (64, 32) if element_size * (8 * side * width + 2 * side * side) <= FLEX_SHARED_BYTES)
    side = next(fits, 16)
    backward = dict.fromkeys(("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2"), side)
    stages = {"fwd_num_stages": 2, "bwd_num_stages": 2}
    return {"fwd_BLOCK_M": side, "fwd_BLOCK_N": side, **backward, **stages}


def _raise_if_dropout(dropout: float, kernel: str) -> None:
    if dropout:
        raise ValueError(f"{kernel} supports no attention dropout: dropout={dropout}.")


DOCUMENT_KERNELS: dict[str, DocumentKernel] = {
    "sdpa": sdpa_documents,
    "reference": reference_documents,
    "padded": padded_documents,
    "varlen": varlen_documents,
    "flex": flex_documents,
}


# --- operators kept by selective activation checkpointing ---------------------------------------------------------

PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
FUSED_ATTENTION = [
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]


def kept_operators(attention_dropout: bool) -> list[Any]:
    """Return the operators whose results are stored; flex is none, a compiled graph of its own."""
    if attention_dropout:  # such a kernel advances the random state, which skipping it in the second pass would not
        return PRODUCTS
    varlen = getattr(torch.ops.torch_attn, "_varlen_attn", None)  # there once the kernel was imported
    return [*PRODUCTS, *FUSED_ATTENTION, *([] if varlen is None else [varlen.default])]
