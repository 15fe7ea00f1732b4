"""Multi-head attention with grouped key/value heads, its two kernels, and what a key/value cache must offer.

Kernels for rows of packed documents are in dtl/model/document_kernels.py.

Letters: b batch, t query time, s key time, d model width, h query heads, g key/value heads, k head width,
n query heads that share one key/value head (h = g n).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from dtl.model.config import ModelConfig
from dtl.model.layers import OutputProjection
from dtl.model.positions import Rotation


class KeyValueCache(Protocol):
    """Keys and values of the tokens that a model has seen, kept by whoever generates.

    One forward pass calls `extend` once and then `update` once in each layer. The first pass takes the whole
    prompts, each later one a single token a row; rows may hold prompts of different lengths, padded on
    either side: only the cache knows where, and says so by positions and mask.
    """

    def extend(self, n_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Make room for the next `n_tokens` of every row.

        Returns their positions, int64 (b, t), and the mask, bool (b, t, s), True where a query may look. None
        as mask means plain causal: allowed when the keys are the queries' own (t = s) or for one query (t = 1)
        that sees every key.
        """
        ...

    def update(self, layer: int, k_bgtk: Tensor, v_bgtk: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values of one layer; returns all of that layer, (b, g, s, k) each."""
        ...


class Attend(Protocol):
    """A kernel that knows already who may look where: it was told once, for all layers of a forward pass."""

    def __call__(self, q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Queries (b, h, t, k) with keys and values (b, g, s, k) to (b, h, t, k); h is a multiple of g."""
        ...


@dataclass(frozen=True)
class AttentionContext:
    """What every layer's attention needs to know besides its input; made once in a forward pass."""

    attend: Attend
    rotation: Rotation | None = None  # turns queries and keys; None = positions are in the input already
    cache: KeyValueCache | None = None


def sdpa_attention(
    q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, mask_bts: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Attention by torch's fused kernels. Same arguments and result as `reference_attention`."""
    n_queries, grouped = q_bhtk.shape[2], q_bhtk.shape[1] != k_bgsk.shape[1]
    mask_bhts = None if mask_bts is None else rearrange(mask_bts, "b t s -> b 1 t s")
    # torch counts the causal diagonal from the first key, which is wrong for one query after cached keys.
    causal = mask_bts is None and n_queries > 1
    return F.scaled_dot_product_attention(
        q_bhtk, k_bgsk, v_bgsk, attn_mask=mask_bhts, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


def reference_attention(
    q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, mask_bts: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k / sqrt(k)) v, written out (Vaswani et al. 2017): to read, and to hold the fused kernels against.

    Queries (b, h, t, k) with keys and values (b, g, s, k) to (b, h, t, k); h is a multiple of g. `mask_bts` is
    True where a query may look, None for causal. A query that may look nowhere gets zeros.
    """
    n_queries, n_keys = q_bhtk.shape[2], k_bgsk.shape[2]
    if mask_bts is None:
        mask_bts = rearrange(causal_mask(n_queries, n_keys, q_bhtk.device), "t s -> 1 t s")
    hidden = ~rearrange(mask_bts, "b t s -> b 1 1 t s")
    q_bgntk = rearrange(q_bhtk, "b (g n) t k -> b g n t k", g=k_bgsk.shape[1])
    # Scaled before the product, which could leave fp16's range.
    scores = einsum(q_bgntk * q_bhtk.shape[-1] ** -0.5, k_bgsk, "b g n t k, b g s k -> b g n t s")
    # The smallest finite value of the dtype, not -1e9 (infinite in fp16) and not -inf (NaN where a row is all hidden).
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).masked_fill(hidden, 0.0).to(v_bgsk.dtype)
    weights = F.dropout(weights, dropout)
    y_bgntk = einsum(weights, v_bgsk, "b g n t s, b g s k -> b g n t k")
    return rearrange(y_bgntk, "b g n t k -> b (g n) t k")


def causal_mask(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """Bool (t, s), True where a query may look: the queries are the last of the keys, and see no later one."""
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(diagonal=n_keys - n_queries)


def document_mask(documents_bt: Tensor) -> Tensor:
    """Bool (b, t, t): causal, and inside tokens of the same document number only."""
    same = rearrange(documents_bt, "b t -> b t 1") == rearrange(documents_bt, "b s -> b 1 s")
    n_tokens = documents_bt.shape[1]
    return same & causal_mask(n_tokens, n_tokens, documents_bt.device)


class MultiHeadAttention(nn.Module):
    """Attention of one layer: project, rotate, attend, project back.

    `qk_norm` makes the norm over each head's queries and keys from the head's width: RMSNorm in Qwen3, nothing
    in GPT-2. `bias` gives all four projections one, as in GPT-2.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        bias: bool = False,
        qk_norm: Callable[[int], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads = config.n_heads, config.resolved_n_kv_heads
        self.dropout = config.dropout
        head_dim = config.resolved_head_dim
        self.to_q = nn.Linear(config.dim, self.n_heads * head_dim, bias=bias)
        self.to_k = nn.Linear(config.dim, self.n_kv_heads * head_dim, bias=bias)
        self.to_v = nn.Linear(config.dim, self.n_kv_heads * head_dim, bias=bias)
        self.to_out = OutputProjection(self.n_heads * head_dim, config.dim, bias=bias)
        self.q_norm, self.k_norm = qk_norm(head_dim), qk_norm(head_dim)

    def forward(self, x_btd: Tensor, context: AttentionContext) -> Tensor:
        q_bhtk = self.q_norm(rearrange(self.to_q(x_btd), "b t (h k) -> b h t k", h=self.n_heads))
        k_bgtk = self.k_norm(rearrange(self.to_k(x_btd), "b t (g k) -> b g t k", g=self.n_kv_heads))
        v_bgtk = rearrange(self.to_v(x_btd), "b t (g k) -> b g t k", g=self.n_kv_heads)
        if context.rotation is not None:
            q_bhtk, k_bgtk = context.rotation.apply(q_bhtk), context.rotation.apply(k_bgtk)
        # Under autocast the fp32 norm weights have lifted queries and keys to fp32; kernel and cache want one dtype.
        q_bhtk, k_bgtk = q_bhtk.to(v_bgtk.dtype), k_bgtk.to(v_bgtk.dtype)
        if context.cache is not None:
            k_bgtk, v_bgtk = context.cache.update(self.layer, k_bgtk, v_bgtk)
        y_bhtk = context.attend(q_bhtk, k_bgtk, v_bgtk, dropout=self.dropout if self.training else 0.0)
        return self.to_out(rearrange(y_bhtk, "b h t k -> b t (h k)"))
