"""A model laid out for decoding: one token per text and step, on weights merged and packed once.

`Decoder` computes what `TransformerLM` does with a cache, for models of DTL's own blocks. Its matrices hold numbers as
`generation.weights` says; activations, sums, norms and the cache are in fp32.
Letters: b texts, d model width, f mlp width, h query heads, g key/value heads, n query heads of one key/value head
(h = g n), k head width, s slots of the cache, v vocabulary, i inputs and o outputs of a matrix.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtl.errors import ConfigError
from dtl.model.attention import KeyValueCache
from dtl.model.transformer import (
    Dropout,
    GeluMLP,
    LearnedPositions,
    MultiHeadAttention,
    OutputProjection,
    RMSNorm,
    RotaryEmbedding,
    SwiGLU,
    TransformerBlock,
    TransformerLM,
)

Map = Callable[[Tensor], Tensor]  # (b, i) to (b, o)

# --- matrices -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def transpose_for_decoding(model: TransformerLM) -> None:
    """Store the matrices in column-major order: in place, the same values and shapes.

    For models that only generate: call it once after loading; on a GPU it does nothing. Logits change by rounding only.
    """
    # Measured with MKL: for one or two tokens an AMD processor reads matrices with more outputs than inputs 1.5 to 2.5
    # times as fast so, and the others as fast; an Intel one reads all of them 1.3 to 2.4 times as fast for 8 tokens.
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.device.type == "cpu" and module.weight.is_contiguous():
            module.weight.data = module.weight.data.t().contiguous().t()


def fp32_matrix(weight_oi: Tensor, bias_o: Tensor | None) -> Map:
    return partial(F.linear, weight=weight_oi, bias=bias_o)


def fp16_matrix(weight_oi: Tensor, bias_o: Tensor | None) -> Map:
    """FBGEMM's kernel: fp16 weights are widened in registers, products and sums are fp32."""
    with _deprecated():
        packed = torch.ops.quantized.linear_prepack_fp16.default(weight_oi.contiguous(), bias_o)
    return partial(torch.ops.quantized.linear_dynamic_fp16.default, W_prepack=packed)


def bf16_matrix(weight_oi: Tensor, bias_o: Tensor | None) -> Map:
    """Weights and inputs in bf16, sums in fp32, the result rounded to bf16."""
    weight_oi, bias_o = weight_oi.bfloat16(), None if bias_o is None else bias_o.bfloat16()
    if weight_oi.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_oi)
        linear = torch.ops.mkldnn._linear_pointwise.default
        return lambda x_bi: linear(x_bi.bfloat16(), packed, bias_o, "none", [], "").float()
    return lambda x_bi: F.linear(x_bi.bfloat16(), weight_oi, bias_o).float()


def int8_matrix(weight_oi: Tensor, bias_o: Tensor | None) -> Map:
    """8-bit weights with a scale per output, and inputs rounded to 8 bits with one scale for all texts of a step."""
    return partial(_int8_product(weight_oi, bias_o), reduce_range=_int8_sums_overflow())


def _int8_product(weight_oi: Tensor, bias_o: Tensor | None) -> Callable[..., Tensor]:
    """FBGEMM's kernel; its `reduce_range` rounds inputs to 7 bits."""
    scales_o = (weight_oi.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny).double()
    zeros_o = torch.zeros(len(scales_o), dtype=torch.long)
    with _deprecated():
        quantized_oi = torch.quantize_per_channel(weight_oi.contiguous(), scales_o, zeros_o, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack.default(quantized_oi, bias_o)
    return partial(torch.ops.quantized.linear_dynamic.default, W_prepack=packed)


@cache
def _int8_sums_overflow() -> bool:
    """Return True on a processor whose int8 kernel sums two products of 8 bits in 16: on x86 without VNNI instructions.

    With inputs of 7 bits such a sum cannot overflow.
    """
    ones_1i = torch.ones(1, 64)
    return bool((_int8_product(ones_1i, None)(ones_1i) - ones_1i.sum()).abs() > 1)


MATRICES: dict[str, Callable[[Tensor, Tensor | None], Map]] = {
    "fp32": fp32_matrix,
    "fp16": fp16_matrix,
    "bf16": bf16_matrix,
    "int8": int8_matrix,
}
FP16_MAX = torch.finfo(torch.float16).max


@contextmanager
def _deprecated() -> Iterator[None]:
    """Hide the warnings of torch's quantized kernels: they will be removed, and have no successor in torch itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _merged(linears: Sequence[nn.Linear], share: bool) -> tuple[Tensor, Tensor | None]:
    """Return several matrices of the same input as one, in their memory order, and their biases.

    `share` makes the parameters views of it, so that no weight is stored twice.
    """
    column_major = linears[0].weight.stride(0) == 1
    if column_major:
        weight_oi = torch.cat([linear.weight.data.t() for linear in linears], dim=1).t()
    else:
        weight_oi = torch.cat([linear.weight.data for linear in linears])
    if share:
        for linear, rows in zip(linears, weight_oi.split([linear.out_features for linear in linears]), strict=True):
            linear.weight.data = rows
    if linears[0].bias is None:
        return weight_oi, None
    return weight_oi, torch.cat([linear.bias.data for linear in linears])


# --- choice of the weights ----------------------------------------------------------------------------------------


class Weights(NamedTuple):
    """Numbers that the matrices hold for decoding, and why `auto` chose no others."""

    form: str  # a key of MATRICES
    reason: str = ""

    def __str__(self) -> str:
        return "fp32" if self.form == "fp32" else f"fp32 with {self.form} weights"


FP32 = Weights("fp32")
MIN_ELEMENTS = 2_000_000  # of all matrices; smaller ones stay in the processor's cache, where fp16 gains nothing


def choose_weights(model: TransformerLM, wanted: str) -> Weights:
    """Return the weights to decode with; `auto` is fp16 on a CPU where that is faster, else fp32.

    Raises ConfigError for weights that this machine, or this model, cannot have.
    """
    if wanted == "fp32" or (wanted == "auto" and not _gains_from_fp16(model)):
        return FP32
    kind = "fp16" if wanted == "auto" else wanted
    reason = unsupported_reason(model) or _impossible(model, kind)
    if wanted != "auto":
        if reason:
            raise ConfigError(f"generation.weights={wanted}: {reason}. Use generation.weights=fp32.")
        return Weights(kind)
    if reason is None:
        fp16, fp32 = _seconds(("fp16", "fp32"), model.head.weight)
        reason = "" if fp16 < fp32 else f"the head takes {1e3 * fp16:.1f} ms with them, and {1e3 * fp32:.1f} ms in fp32"
    return Weights("fp32", reason) if reason else Weights("fp16")


def _gains_from_fp16(model: TransformerLM) -> bool:
    """Return whether fp16 may be faster: on a CPU, from a size on, for a model that can be laid out."""
    size = sum(weight.numel() for weight in _matrices(model))
    return model.head.weight.device.type == "cpu" and size >= MIN_ELEMENTS and unsupported_reason(model) is None


def unsupported_reason(model: TransformerLM) -> str | None:
    """Return why a model cannot be laid out for decoding, in a few words; None = it can."""
    if model.config.attention == "reference":
        return "model.attention=reference is computed as it is written"
    if type(model).hidden is not TransformerLM.hidden or not all(map(_is_standard, model.blocks)):
        return f"model.arch.block={model.config.arch.block} has no layout for decoding"
    if type(model.value_embedding) not in (type(None), nn.Embedding):
        return "its value embedding has no layout for decoding"
    if type(model.positions) not in (RotaryEmbedding, LearnedPositions):
        return "its positions have no layout for decoding"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "hooks are registered on its modules"
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        return "its parameters are not in fp32"
    return None


def _is_standard(block: nn.Module) -> bool:
    if not isinstance(block, TransformerBlock) or type(block).forward is not TransformerBlock.forward:
        return False
    attention = block.attention
    return (
        type(block.dropout) in (Dropout, nn.Dropout)
        and type(attention) is MultiHeadAttention
        and all(type(linear) is nn.Linear for linear in (attention.to_q, attention.to_k, attention.to_v))
        and type(attention.to_out) is OutputProjection
        and {type(attention.q_norm), type(attention.k_norm)} in ({RMSNorm}, {nn.Identity})
    )


def _impossible(model: TransformerLM, kind: str) -> str | None:
    """Return why the matrices cannot have numbers of this kind here; None = they can."""
    device = model.head.weight.device.type
    if device != "cpu":
        return f"{kind} weights are for a processor, and the model is on {device}"
    try:
        MATRICES[kind](torch.ones(16, 16), None)(torch.ones(1, 16))
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        return f"torch {torch.__version__} has no {kind} kernel for this processor ({str(error).splitlines()[0]:.80})"
    if kind == "fp16" and any(w.abs().max() > FP16_MAX for w in _matrices(model)):
        return f"a weight is beyond the range of fp16, {FP16_MAX:,.0f}"
    return None


def _matrices(model: TransformerLM) -> list[Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear)]


@torch.inference_mode()
def _seconds(kinds: Sequence[str], weight_oi: Tensor) -> list[float]:
    """Return the least processor time of a product with one vector, by kind; in turns, since other programs disturb."""
    products, x_bi = [MATRICES[kind](weight_oi, None) for kind in kinds], torch.ones(1, weight_oi.shape[1])
    seconds: list[list[float]] = [[] for _ in kinds]
    for _ in range(9):
        for product, times in zip(products, seconds, strict=True):
            began = time.process_time()
            product(x_bi)
            times.append(time.process_time() - began)
    return [min(times) for times in seconds]


# --- decoder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layer:
    """Maps of one block; `qk_norm` is for the heads of queries and keys together, (b, h + g, k)."""

    attention_norm: Map
    to_qkv: Map
    qk_norm: Map | None
    value_mix: tuple[float, float] | None  # parts of the projection and of the value embedding
    to_out: Map
    mlp_norm: Map
    mlp: Map


class Decoder:
    """Laid-out copy of a model of which `unsupported_reason` is None; later changes of the model are not seen.

    `share` makes parameters of the model views of the merged fp32 matrices: half the memory, the same values.
    """

    @torch.no_grad()
    def __init__(self, model: TransformerLM, weights: Weights = FP32, *, share: bool = False) -> None:
        config = model.config
        self.weights = weights
        self._n_kv_heads, self._head_dim = config.resolved_n_kv_heads, config.resolved_head_dim
        self._share = share and weights.form == "fp32"
        self._matrix = MATRICES[weights.form]
        self._embedding_vd = model.embedding.weight.data
        table = model.value_embedding
        self._values_vd = table.weight.data if isinstance(table, nn.Embedding) else None
        self._positions_sd, self._cos_sk, self._sin_sk = _tables(model)
        self._layers = [self._layer(block) for block in model.blocks]
        self._norm = self._map(model.norm)
        self._head = self._map(model.head)

    def logits(self, ids_b: Tensor, cache: KeyValueCache) -> Tensor:
        """Run the model over one more token per text; logits (b, v) of the token after it."""
        (n_texts,), g, k = ids_b.shape, self._n_kv_heads, self._head_dim
        positions_b1, mask_bts = cache.extend(1)
        mask_bgts = None if mask_bts is None else mask_bts.unsqueeze(1)
        x_bd = F.embedding(ids_b, self._embedding_vd)
        values_bgk = None if self._values_vd is None else F.embedding(ids_b, self._values_vd).view(n_texts, g, k)
        if self._positions_sd is not None:
            x_bd = x_bd + self._positions_sd[positions_b1[:, 0]]
        cos_b1k, sin_b1k = (None if table is None else table[positions_b1] for table in (self._cos_sk, self._sin_sk))
        for number, layer in enumerate(self._layers):
            heads_bhk = layer.to_qkv(layer.attention_norm(x_bd)).view(n_texts, -1, k)
            qk_bhk, v_bgk = heads_bhk[:, :-g], heads_bhk[:, -g:]
            if values_bgk is not None and layer.value_mix is not None:
                own, embedded = layer.value_mix
                v_bgk = torch.add(v_bgk * own, values_bgk, alpha=embedded)
            if layer.qk_norm is not None:
                qk_bhk = layer.qk_norm(qk_bhk)
            if cos_b1k is not None and sin_b1k is not None:  # `Rotation.apply`; signs are in the sines
                qk_bhk = torch.addcmul(qk_bhk * cos_b1k, qk_bhk.roll(k // 2, -1), sin_b1k)
            q_bgnk, k_bgk = qk_bhk[:, :-g].reshape(n_texts, g, -1, k), qk_bhk[:, -g:]
            k_bgsk, v_bgsk = cache.update(number, k_bgk.unsqueeze(2), v_bgk.unsqueeze(2))
            # One token sees all keys, so that the query heads of a group take the place of the time: no key is copied.
            y_bgnk = F.scaled_dot_product_attention(q_bgnk, k_bgsk, v_bgsk, attn_mask=mask_bgts)
            x_bd = x_bd + layer.to_out(y_bgnk.reshape(n_texts, -1))
            x_bd = x_bd + layer.mlp(layer.mlp_norm(x_bd))
        return self._head(self._norm(x_bd))

    def _layer(self, block: Any) -> Layer:
        attention: MultiHeadAttention = block.attention
        to_qkv = self._matrix(*_merged([attention.to_q, attention.to_k, attention.to_v], self._share))
        qk_norm = None
        if isinstance(attention.q_norm, RMSNorm) and isinstance(attention.k_norm, RMSNorm):
            q_hk = attention.q_norm.weight.expand(attention.n_heads, -1)
            k_gk = attention.k_norm.weight.expand(attention.n_kv_heads, -1)
            qk_norm = rms_norm(torch.cat([q_hk, k_gk]), attention.q_norm.eps)
        mix = attention.value_mix
        return Layer(
            self._map(block.attention_norm), to_qkv, qk_norm, None if mix is None else (mix[0].item(), mix[1].item()),
            self._map(attention.to_out), self._map(block.mlp_norm), self._map(block.mlp),
        )  # fmt: skip

    def _map(self, module: Any) -> Map:
        """Return a module as a map; one of a user's own stays as it is."""
        if type(module) in (nn.Linear, OutputProjection):
            return self._matrix(module.weight.data, None if module.bias is None else module.bias.data)
        if type(module) is SwiGLU:
            return self._swiglu(module)
        if type(module) is GeluMLP:
            up, down = self._map(module.up), self._map(module.down)
            return lambda x_bd: down(F.gelu(up(x_bd), approximate="tanh"))
        if type(module) is RMSNorm:
            return rms_norm(module.weight.data, module.eps)
        if type(module) is nn.LayerNorm:
            shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
            return lambda x_bd: F.layer_norm(x_bd, shape, weight, bias, eps)
        return lambda x_bd: module(x_bd.unsqueeze(1)).squeeze(1)

    def _swiglu(self, mlp: SwiGLU) -> Map:
        gate_up, down = self._matrix(*_merged([mlp.gate, mlp.up], self._share)), self._map(mlp.down)
        n_hidden = mlp.gate.out_features

        def swiglu(x_bd: Tensor) -> Tensor:
            both_bf = gate_up(x_bd)
            return down(F.silu(both_bf[:, :n_hidden]).mul_(both_bf[:, n_hidden:]))

        return swiglu


def rms_norm(weight: Tensor, eps: float) -> Map:
    """Return RMSNorm over the last dimension. `F.rms_norm` is seven operators on a CPU; these take half as long."""
    n = weight.shape[-1]
    scale, floor = weight * math.sqrt(n), torch.tensor(math.sqrt(eps * n), device=weight.device)
    # sqrt(mean(x^2) + eps) = hypot(|x|, sqrt(n eps)) / sqrt(n)
    return lambda x: x.div(torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(floor)).mul_(scale)


def _tables(model: TransformerLM) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return what the positions add, (s, d), or cosines and signed sines of the rotation, (s, k) each."""
    if isinstance(model.positions, LearnedPositions):
        return model.positions.table.weight.data, None, None
    device = model.embedding.weight.device
    positions_1s = torch.arange(model.config.max_seq_len, device=device).unsqueeze(0)
    _, rotation = model.positions(torch.zeros(1, 1, 1, device=device), positions_1s)
    return None, rotation.cos_btk[0], rotation.signed_sin_btk[0]
