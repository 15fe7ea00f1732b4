"""A decoder-only transformer from its smallest part up: norm, mlps, attention, block, language model.

`model.arch.block` chooses the block class. It builds one layer and the parts around a stack of its kind: the final
norm, the positions and the initial weights. Positions and attention kernels are in dtl/model/attention.py.
Letters: b batch, t time, s key time, d model width, f mlp width, h query heads, g key/value heads, k head width,
v vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from dtl.base.runtime import compute_dtype
from dtl.errors import ConfigError
from dtl.model.attention import (
    DOCUMENT_KERNELS,
    AttentionContext,
    KeyValueCache,
    LearnedPositions,
    RotaryEmbedding,
    dropout,
    kept_operators,
    reference_attention,
    sdpa_attention,
)
from dtl.model.config import BlockRules, ModelConfig, equal_ffn_dim, require_even_head_dim
from dtl.model.presets import load_preset, with_overrides
from dtl.registry import BLOCKS

# --- mixed precision ----------------------------------------------------------------------------------------------
# Inside autocast every operator casts what it gets, each time: one input of three matrices three times, each matrix by
# a kernel of its own. Here a tensor is cast once, where it is made, and the matrices of a layer together.


class _Stack(torch.autograd.Function):
    """Tensors stacked in groups along their first dimension, and cast to `dtype`; one operator for all of them."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, sizes: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        groups = [tensors[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
        ctx.lengths, ctx.dtype = [[len(tensor) for tensor in group] for group in groups], tensors[0].dtype
        stacked = [
            group[0].new_empty((sum(lengths), *group[0].shape[1:]), dtype=dtype)
            for group, lengths in zip(groups, ctx.lengths, strict=True)
        ]
        torch._foreach_copy_(_parts(stacked, ctx.lengths), list(tensors))  # pyright: ignore[reportPrivateImportUsage]
        return tuple(stacked)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        grads = list(grad_outputs)
        if grads[0].dtype != ctx.dtype:
            grads = [torch.empty_like(grad, dtype=ctx.dtype, memory_format=torch.contiguous_format) for grad in grads]
            torch._foreach_copy_(grads, list(grad_outputs))  # pyright: ignore[reportPrivateImportUsage]
        return None, None, *_parts(grads, ctx.lengths)


def _parts(stacked: list[Tensor], lengths: list[list[int]]) -> list[Tensor]:
    return [part for tensor, rows in zip(stacked, lengths, strict=True) for part in tensor.split(rows)]


def _is_plain(layer: nn.Module) -> bool:
    """Return True for a matrix whose weights may be used without calling it."""
    return type(layer).forward is nn.Linear.forward and not (layer._forward_hooks or layer._forward_pre_hooks)


def stacked_weights(x: Tensor, *groups: tuple[nn.Module, ...]) -> list[tuple[Tensor, Tensor | None]] | None:
    """Return weight and bias of matrices of one input, stacked along the output, for each group, in `compute_dtype`.

    None outside training and for modules that are no plain matrices: then each is called by itself. Stacking copies
    the weights, which a training step repays by fewer and larger products.
    """
    layers = [layer for group in groups for layer in group]
    if not (torch.is_grad_enabled() and all(layer.training and _is_plain(layer) for layer in layers)):
        return None
    dtype, first = compute_dtype(x), layers[0].weight
    assert isinstance(first, Tensor)
    names = ("weight", "bias") if layers[0].bias is not None else ("weight",)
    # A matrix by itself that keeps its dtype is used as it is.
    keys = [(group, name) for group in groups for name in names if len(group) > 1 or dtype != first.dtype]
    tensors = [getattr(layer, name) for group, name in keys for layer in group]
    made = _Stack.apply(dtype, tuple(len(group) for group, _ in keys), *tensors) if tensors else ()
    by_key = {(id(group), name): tensor for (group, name), tensor in zip(keys, made, strict=True)}
    return [
        tuple(by_key.get((id(group), name), getattr(group[0], name)) for name in ("weight", "bias"))  # pyright: ignore
        for group in groups
    ]


# --- norm ---------------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """Division by the root mean square over the last dimension, then a learned scale (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (..., dim) to the same shape."""
        dtype = compute_dtype(x)
        by_hand = not (x.is_cuda or torch.compiler.is_compiling())  # a compiler fuses the formula itself
        if by_hand and torch.is_grad_enabled() and self.weight.dtype == torch.float32:
            return _RMSNorm.apply(x, self.weight, self.eps, dtype)
        # Queries and keys inside autocast: the fused kernel has one dtype.
        if x.is_cuda and x.dtype != self.weight.dtype:
            return F.rms_norm(x, (self.dim,), self.weight.to(x.dtype), self.eps)
        # As in Qwen3, low precision is normalised in fp32 and rounded before the weight is applied. `F.rms_norm` with
        # the weight would round once, after it.
        return (self.weight * F.rms_norm(x, (self.dim,), eps=self.eps)).to(dtype)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm in fp32 to any dtype where torch has no fused kernel: half of the operators, none that only casts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = rms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normed = x * scale
        if dtype == torch.float32:
            return normed.mul_(weight)
        return torch.mul(normed, weight, out=torch.empty_like(x, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,), (x, weight, scale) = grad_outputs, ctx.saved_tensors
        dim = x.shape[-1]
        normed = x * scale
        by_weight = grad * normed
        along = rearrange((by_weight @ weight).div_(dim), "... -> ... 1")
        by_x = (grad * weight).addcmul_(normed, along, value=-1)
        by_x = by_x.mul_(scale) if x.dtype == torch.float32 else torch.mul(by_x, scale, out=torch.empty_like(x))
        return by_x, by_weight.sum(dim=tuple(range(x.ndim - 1))), None, None


# --- dropout and mlp ----------------------------------------------------------------------------------------------


class Dropout(nn.Dropout):
    """torch's dropout, with a cheaper mask on a CPU (`dtl.model.attention.dropout`)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return dropout(input, self.p) if self.training and self.p else input


class OutputProjection(nn.Linear):
    """Last matrix of an attention or an mlp, whose result is added to the residual stream.

    A type of its own because `initialise` treats it differently from other matrices.
    """


class SwiGLU(nn.Module):
    """Gated mlp, down(silu(gate(x)) * up(x)), without biases (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, ffn_dim, bias=False)
        self.up = nn.Linear(dim, ffn_dim, bias=False)
        self.down = OutputProjection(ffn_dim, dim, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        weights = stacked_weights(x_btd, (self.gate, self.up), (self.down,))
        if weights is None:
            return self.down(F.silu(self.gate(x_btd)) * self.up(x_btd))
        gate_btf, up_btf = F.linear(x_btd, *weights[0]).chunk(2, dim=-1)
        return F.linear(F.silu(gate_btf) * up_btf, *weights[1])


class GeluMLP(nn.Module):
    """GPT-2's mlp: down(gelu(up(x))) with biases, and the tanh form of GELU that GPT-2 calls `gelu_new`."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, ffn_dim)
        self.down = OutputProjection(ffn_dim, dim)

    def forward(self, x_btd: Tensor) -> Tensor:
        weights = stacked_weights(x_btd, (self.up,), (self.down,))
        if weights is None:
            return self.down(F.gelu(self.up(x_btd), approximate="tanh"))
        return F.linear(F.gelu(F.linear(x_btd, *weights[0]), approximate="tanh"), *weights[1])


# --- attention ----------------------------------------------------------------------------------------------------


class MultiHeadAttention(nn.Module):
    """Attention of one layer: project, rotate, attend, project back.

    `qk_norm` builds the norm of each head's queries and keys from the head width: RMSNorm in Qwen3, none in GPT-2.
    `bias` adds a bias to all four projections, as in GPT-2. With `value_embedding` the values are a learned mixture of
    their own projection and of what the context has.
    """

    def __init__(
        self, config: ModelConfig, layer: int, *, bias: bool = False,
        qk_norm: Callable[[int], nn.Module] = nn.Identity, value_embedding: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads = config.n_heads, config.resolved_n_kv_heads
        self.dropout = config.resolved_attention_dropout
        self.head_dim = head_dim = config.resolved_head_dim
        self.to_q = nn.Linear(config.dim, self.n_heads * head_dim, bias=bias)
        self.to_k = nn.Linear(config.dim, self.n_kv_heads * head_dim, bias=bias)
        self.to_v = nn.Linear(config.dim, self.n_kv_heads * head_dim, bias=bias)
        self.to_out = OutputProjection(self.n_heads * head_dim, config.dim, bias=bias)
        self.q_norm, self.k_norm = qk_norm(head_dim), qk_norm(head_dim)
        # Of the projection and of the embedding: both begin alike, as in modded-nanogpt.
        self.value_mix = nn.Parameter(torch.tensor([0.5, 0.5])) if value_embedding else None

    def forward(self, x_btd: Tensor, context: AttentionContext) -> Tensor:
        weights = stacked_weights(x_btd, (self.to_q, self.to_k, self.to_v), (self.to_out,))
        if weights is None:
            q_btd, k_btd, v_btd = self.to_q(x_btd), self.to_k(x_btd), self.to_v(x_btd)
        else:
            sizes = [self.n_heads * self.head_dim, *2 * [self.n_kv_heads * self.head_dim]]
            q_btd, k_btd, v_btd = F.linear(x_btd, *weights[0]).split(sizes, dim=-1)
        if self.value_mix is not None:
            assert context.values_btd is not None
            v_btd = self.value_mix[0] * v_btd + self.value_mix[1] * context.values_btd
        q_bhtk = self.q_norm(rearrange(q_btd, "b t (h k) -> b h t k", h=self.n_heads))
        k_bgtk = self.k_norm(rearrange(k_btd, "b t (g k) -> b g t k", g=self.n_kv_heads))
        v_bgtk = rearrange(v_btd, "b t (g k) -> b g t k", g=self.n_kv_heads)
        if context.rotation is not None:
            q_bhtk, k_bgtk = context.rotation.apply(q_bhtk), context.rotation.apply(k_bgtk)
        # A norm of your own may return fp32 inside autocast; kernel and cache need one dtype.
        q_bhtk, k_bgtk = q_bhtk.to(v_bgtk.dtype), k_bgtk.to(v_bgtk.dtype)
        if context.cache is not None:
            k_bgtk, v_bgtk = context.cache.update(self.layer, k_bgtk, v_bgtk)
        y_bhtk = context.attend(q_bhtk, k_bgtk, v_bgtk, dropout=self.dropout if self.training else 0.0)
        y_btd = context.needed(rearrange(y_bhtk, "b h t k -> b t (h k)"))
        return self.to_out(y_btd) if weights is None else F.linear(y_btd, *weights[1])


# --- block --------------------------------------------------------------------------------------------------------


@BLOCKS.register("modern")
class TransformerBlock(BlockRules, nn.Module):
    """Pre-norm layer, x + attention(norm(x)) and then x + mlp(norm(x)), with the parts of Qwen3.

    A user-defined block subclasses this one and overrides what differs: one of the `make_...` methods for another norm,
    attention, mlp, position or value embedding, `forward` for other residual connections, `initialise` for other first
    weights. `BlockRules` has the rest: by default its mlp gets the width that makes it as large as this one's.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = self.make_norm(config)
        self.attention = self.make_attention(config, layer)
        self.mlp_norm = self.make_norm(config)
        self.mlp = self.make_mlp(config)
        # As in GPT-2. Qwen3 has dropout on attention weights only, but outside training the two compute the same.
        self.dropout = Dropout(config.dropout)

    def forward(self, x_btd: Tensor, context: AttentionContext) -> Tensor:
        x_btd = context.needed(x_btd) + self.dropout(self.attention(self.attention_norm(x_btd), context))
        return x_btd + self.dropout(self.mlp(self.mlp_norm(x_btd)))

    def computes_positions_apart(self, next_norm: nn.Module) -> bool:
        """Return whether only the attention mixes positions, so that `AttentionContext.at_n` may leave some out.

        A block, attention, mlp, norm or dropout of one's own computes all of them; so does one before a norm of one's
        own, the model's last.
        """
        norms = self.attention_norm, self.mlp_norm, next_norm
        return (
            type(self).forward is TransformerBlock.forward
            and type(self.attention) is MultiHeadAttention
            and type(self.mlp) in (SwiGLU, GeluMLP)
            and type(self.dropout) in (Dropout, nn.Dropout)
            and all(type(norm) in (RMSNorm, nn.LayerNorm) for norm in norms)
        )

    @classmethod
    def validate(cls, config: ModelConfig) -> None:
        """Raises ConfigError for a model that cannot be built of such blocks. Builds none."""
        # Only inherited rotary positions need an even head width; a block with its own positions does not.
        if getattr(cls.make_positions, "__func__", None) is TransformerBlock.make_positions.__func__:
            require_even_head_dim(config)

    @classmethod
    def default_ffn_dim(cls, config: ModelConfig) -> int:
        """Hidden width of the mlp when model.ffn_dim is null: the more matrices of that width, the narrower.

        Counts them from two mlps on the meta device, and leaves torch's random state unchanged.
        """
        widths = 4 * config.dim, 8 * config.dim
        # Written as a plain method, as a block of your own may do, it is called without a block: there is none yet.
        make_mlp: Any = cls.make_mlp
        make_mlp = make_mlp if isinstance(make_mlp, MethodType) else partial(make_mlp, None)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            narrow, wide = (make_mlp(replace(config, ffn_dim=width)) for width in widths)
        in_matrices = [sum(p.numel() for p in mlp.parameters() if p.ndim > 1) for mlp in (narrow, wide)]
        n_matrices = (in_matrices[1] - in_matrices[0]) / (widths[1] - widths[0]) / config.dim
        return equal_ffn_dim(n_matrices, config.dim, config.ffn_multiple_of)

    @classmethod
    def make_norm(cls, config: ModelConfig) -> nn.Module:
        """Build the norm before attention, before the mlp, and after the last block."""
        return RMSNorm(config.dim, config.arch.norm_eps)

    @classmethod
    def make_attention(cls, config: ModelConfig, layer: int) -> nn.Module:
        """Build the attention of one layer: (x_btd, AttentionContext) to (b, t, d)."""
        return MultiHeadAttention(config, layer, qk_norm=lambda head_dim: RMSNorm(head_dim, config.arch.norm_eps))

    @classmethod
    def make_mlp(cls, config: ModelConfig) -> nn.Module:
        """Build the mlp: x_btd to (b, t, d)."""
        return SwiGLU(config.dim, config.resolved_ffn_dim)

    @classmethod
    def make_positions(cls, config: ModelConfig) -> nn.Module:
        """Build the model's position embedding: (x_btd, positions_bt) to (x_btd, Rotation or None)."""
        return RotaryEmbedding(config.resolved_head_dim, config.arch.rope_theta)

    @classmethod
    def make_value_embedding(cls, config: ModelConfig, vocab_size: int) -> nn.Module | None:
        """Build what makes `AttentionContext.values_btd`: ids_bt to (b, t, g k); None where no layer mixes in any."""
        return None

    @classmethod
    def initialise(cls, model: "TransformerLM") -> None:
        """Set the initial weights: small normals, sharp attention, each block the identity, and logits near zero."""
        # Zero output projections and query/key norms at 1.2 learned fastest in small experiments. An untied head starts
        # at zero; a tied one cannot (`embedding_std`).
        for module in model.modules():
            if isinstance(module, OutputProjection):
                nn.init.zeros_(module.weight)
            elif isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, MultiHeadAttention):
                for norm in (module.q_norm, module.k_norm):
                    if isinstance(norm, RMSNorm):
                        nn.init.constant_(norm.weight, 1.2)
        if model.config.tie_embeddings:
            std = cls.embedding_std(model.config, model.vocab_size)
            nn.init.normal_(model.embedding.weight, std=std)
        else:
            nn.init.zeros_(model.head.weight)

    @classmethod
    def embedding_std(cls, config: ModelConfig, vocab_size: int) -> float:
        """Return the standard deviation of the embedding that `initialise` draws: override both together."""
        # After the final norm a token's logit for itself is dim x std, which at std = 0.02 grows with the width;
        # limited to ln(v) / 2, the token's own probability stays near 1/sqrt(v).
        return min(0.02, math.log(vocab_size) / (2 * config.dim)) if config.tie_embeddings else 0.02


@BLOCKS.register("value_embeddings")
class ValueEmbeddingBlock(TransformerBlock):
    """`modern` with a second embedding of each token, which every layer mixes into its values.

    What a token says to those that attend to it need not pass through the residual stream: the layers learn what the
    context adds. As in the speed runs of nanoGPT (modded-nanogpt), after the value residuals of Zhou et al., 2024
    (arXiv:2410.17897); here one table serves all layers. Measured in experiments/experiment/shakespeare_char.md.
    """

    @classmethod
    def make_attention(cls, config: ModelConfig, layer: int) -> nn.Module:
        norm = partial(RMSNorm, eps=config.arch.norm_eps)
        return MultiHeadAttention(config, layer, qk_norm=norm, value_embedding=True)

    @classmethod
    def make_value_embedding(cls, config: ModelConfig, vocab_size: int) -> nn.Module:
        return nn.Embedding(vocab_size, config.resolved_n_kv_heads * config.resolved_head_dim)

    @classmethod
    def initialise(cls, model: "TransformerLM") -> None:
        """Set the initial weights of `modern`, and values of the size of normalised activations."""
        super().initialise(model)
        assert isinstance(model.value_embedding, nn.Embedding)
        nn.init.normal_(model.value_embedding.weight)


@BLOCKS.register("classic")
class ClassicBlock(TransformerBlock):
    """GPT-2's layer: LayerNorm, biases everywhere, GELU, learned positions (Radford et al. 2019)."""

    @classmethod
    def make_norm(cls, config: ModelConfig) -> nn.Module:
        return nn.LayerNorm(config.dim, eps=config.arch.norm_eps)

    @classmethod
    def make_attention(cls, config: ModelConfig, layer: int) -> nn.Module:
        return MultiHeadAttention(config, layer, bias=True)

    @classmethod
    def make_mlp(cls, config: ModelConfig) -> nn.Module:
        return GeluMLP(config.dim, config.resolved_ffn_dim)

    @classmethod
    def make_positions(cls, config: ModelConfig) -> nn.Module:
        return LearnedPositions(config.max_seq_len, config.dim)

    @classmethod
    def initialise(cls, model: "TransformerLM") -> None:
        """Set GPT-2's initial weights: N(0, 0.02), zero biases, and output projections scaled by 1/sqrt(2 layers)."""
        # Each layer adds two outputs to the residual stream: scaled so, its variance does not grow with depth.
        residual_std = 0.02 / math.sqrt(2 * model.config.n_layers)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=residual_std if isinstance(module, OutputProjection) else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @classmethod
    def embedding_std(cls, config: ModelConfig, vocab_size: int) -> float:
        return 0.02


# --- language model -----------------------------------------------------------------------------------------------


class TransformerLM(nn.Module):
    """Decoder-only language model: token ids (b, t) to logits (b, t, v) of the token that follows each.

    Raises ConfigError for a config that cannot be built. Weights are drawn from torch's global generator.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        config.validate()
        if config.auto:
            raise ConfigError(
                "model=auto: has a size in a run only, with trainer.hours=. Take another, such as 'small'."
            )
        block_class = BLOCKS.get(config.arch.block)
        self.config = config
        self.vocab_size = vocab_size
        self.activation_checkpointing = "none"  # trainer.activation_checkpointing: see `_apply_block`
        # Kernel for packed documents, a key of DOCUMENT_KERNELS. The caller sets the others after a probe of the device
        # (dtl/model/kernel_choice.py).
        self.document_kernel = "reference" if config.attention == "reference" else "sdpa"
        self.embedding = nn.Embedding(vocab_size, config.dim)
        # Word dropout (Iyyer et al., 2015): a word that may be missing teaches the model to attend to the others.
        self.token_dropout = nn.Dropout1d(config.token_dropout) if config.token_dropout else nn.Identity()
        self.positions = block_class.make_positions(config)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(block_class(config, layer) for layer in range(config.n_layers))
        self.norm = block_class.make_norm(config)
        self.value_embedding = block_class.make_value_embedding(config, vocab_size)
        # On the meta device no memory is allocated for a weight that the next lines replace.
        tied = config.tie_embeddings
        self.head = nn.Linear(config.dim, vocab_size, bias=False, device="meta" if tied else None)
        if tied:
            self.head.weight = self.embedding.weight
        block_class.initialise(self)

    def forward(
        self,
        ids_bt: Tensor,
        positions_bt: Tensor | None = None,
        documents_bt: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Logits (b, t, v). For the arguments see `hidden`."""
        return self.head(self.hidden(ids_bt, positions_bt, documents_bt, cache))

    def hidden(
        self,
        ids_bt: Tensor,
        positions_bt: Tensor | None = None,
        documents_bt: Tensor | None = None,
        cache: KeyValueCache | None = None,
        max_documents: int | None = None,
        at_n: Tensor | None = None,
    ) -> Tensor:
        """Return the input of the head: (b, t, d) after the final norm, or (n, d) at the positions `at_n`.

        `positions_bt` counts from 0 to max_seq_len - 1; None = 0, 1, 2, ... in every sequence. `documents_bt` numbers
        the documents packed into a sequence, whose tokens then see their own document only; it needs positions, which
        restart with each document. `max_documents`, no fewer than all sequences have together, saves a GPU from being
        waited for. A `cache` gives the positions itself. `at_n`, int64, are places in the concatenated sequences, such
        as those of the targets: after its attention the last block computes no others.
        Raises ValueError for more tokens than max_seq_len, or arguments that exclude each other.
        """
        n_tokens = ids_bt.shape[1]
        if n_tokens > self.config.max_seq_len:
            raise ValueError(f"{n_tokens} tokens are more than the model's context of {self.config.max_seq_len}.")
        if documents_bt is not None and positions_bt is None:
            raise ValueError("documents_bt needs positions_bt, which restart with each document.")
        if cache is not None and positions_bt is not None:
            raise ValueError("A cache gives the positions itself: leave out positions_bt and documents_bt.")
        mask_bts = None
        if cache is not None:
            positions_bt, mask_bts = cache.extend(n_tokens)
        elif positions_bt is None:
            positions_bt = rearrange(torch.arange(n_tokens, device=ids_bt.device), "t -> 1 t")
        if documents_bt is None:
            kernel = reference_attention if self.config.attention == "reference" else sdpa_attention
            attend = partial(kernel, mask_bts=mask_bts)
        else:
            attend = DOCUMENT_KERNELS[self.document_kernel](documents_bt, max_documents)

        x_btd, values_btd = self._embed(ids_bt)
        x_btd, rotation = self.positions(x_btd, positions_bt)
        x_btd = self.dropout(x_btd)
        context = AttentionContext(attend, rotation, cache, values_btd)
        *blocks, last = self.blocks
        for block in blocks:
            x_btd = self._apply_block(block, x_btd, context)
        # Of questions a quarter of the positions has a target. Nothing reads the others once the last attention has.
        early = at_n is not None and isinstance(last, TransformerBlock) and last.computes_positions_apart(self.norm)
        x_btd = self._apply_block(last, x_btd, replace(context, at_n=at_n) if early else context)
        if at_n is None or early:
            return self.norm(x_btd)
        return rearrange(self.norm(x_btd), "b t d -> (b t) d")[at_n]

    def _embed(self, ids_bt: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return tokens (b, t, d), and their values (b, t, g k) where the blocks mix some in."""
        x_btd = self.embedding(ids_bt)
        if self.value_embedding is None:
            return self.token_dropout(x_btd), None
        values_btd = self.value_embedding(ids_bt)
        if self.training and self.config.token_dropout:
            kept_bt1 = self.token_dropout(x_btd.new_ones(*ids_bt.shape, 1))  # a missing word has no value either
            x_btd, values_btd = x_btd * kept_bt1, values_btd * kept_bt1
        return x_btd, values_btd.to(compute_dtype(x_btd))

    def _apply_block(self, block: nn.Module, x_btd: Tensor, context: AttentionContext) -> Tensor:
        """Return a block's output; in training with as many of its activations stored as activation_checkpointing says.

        `none` stores all of them. `full` stores the block's input and computes everything again in the backward pass.
        `selective` also stores what is expensive, products with weights and fused attention, and computes norms,
        rotations, activations and dropout again (Korthikanti et al. 2022, arXiv:2205.05198, section 5).
        """
        if self.activation_checkpointing == "none" or not self.training:
            return block(x_btd, context)
        options: dict[str, Any] = {}
        if self.activation_checkpointing == "selective":
            kept = kept_operators(self.config.resolved_attention_dropout > 0)
            options["context_fn"] = partial(create_selective_checkpoint_contexts, kept)
        # The random state is preserved so that dropout drops the same values in both passes.
        return checkpoint(block, x_btd, context, use_reentrant=False, preserve_rng_state=True, **options)

    def n_parameters(self, embeddings: bool = True) -> int:
        """Return the number of trainable parameters; a matrix shared by embedding and head counts once.

        `embeddings=False` excludes the tables of tokens, values and learned positions: the size in papers on scaling
        laws. A tied head is excluded with its table, an untied one counts.
        """
        total = sum(parameter.numel() for parameter in self.parameters())
        if embeddings:
            return total
        tables = [module for module in self.modules() if isinstance(module, nn.Embedding)]
        return total - sum(table.weight.numel() for table in tables)

    def flops_per_token(self, seq_len: int) -> float:
        """Return the FLOP of forward and backward pass, 6 N + 12 L d t (Chowdhery et al., 2022, arXiv:2204.02311, B).

        N are the weights of all matrix products, the head's among them; recomputed activations do not count.
        """
        weights = sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Linear))
        return 6.0 * weights + 12.0 * self.config.n_layers * self.config.dim * seq_len


def create_model(preset_or_config: str | ModelConfig, vocab_size: int = 50257, **overrides: Any) -> TransformerLM:
    """Return a model with initial weights: `create_model("small")`, `create_model("qa", vocab_size=4096, n_layers=3)`.

    Takes a preset of conf/model or a ModelConfig; `overrides` are fields of ModelConfig, and `arch` may be a name
    under conf/model/arch. Raises ConfigError for an unknown preset or field and for a model that cannot be built.
    """
    if isinstance(preset_or_config, str):
        config = load_preset(preset_or_config, **overrides)
    elif isinstance(preset_or_config, ModelConfig):
        config = with_overrides(preset_or_config, overrides)
    else:
        raise ConfigError(f"create_model({preset_or_config!r}): give the name of a preset, such as 'small'.")
    return TransformerLM(config, vocab_size)
