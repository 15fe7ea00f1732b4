"""Hugging Face twins of DTL's own blocks: Qwen3ForCausalLM of modern, GPT2LMHeadModel of classic.

A twin knows its config.json and the names and layout of its tensors. Imports no transformers.
Letters: o output width, i input width of a matrix, n matrices stacked into one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from einops import rearrange
from torch import Tensor

from dtl.errors import CheckpointError
from dtl.model.config import ModelConfig
from dtl.model.transformer import ClassicBlock, TransformerBlock
from dtl.registry import BLOCKS


@dataclass(frozen=True)
class Pair:
    """A tensor of the twin and DTL's: `own` stacked along the output, transposed where GPT-2 stores (in, out)."""

    twin: str
    own: tuple[str, ...]
    transposed: bool = False

    def join(self, tensors: list[Tensor]) -> Tensor:
        joined = rearrange(tensors, "n o ... -> (n o) ...") if len(tensors) > 1 else tensors[0]
        return rearrange(joined, "o i -> i o").contiguous() if self.transposed else joined

    def split(self, tensor: Tensor) -> Tensor:
        tensor = rearrange(tensor, "i o -> o i") if self.transposed else tensor
        return rearrange(tensor, "(n o) ... -> n o ...", n=len(self.own))


class Twin(ABC):
    """A Hugging Face model that computes the same function as a DTL block."""

    model_type: str  # in its config.json
    prefix: str  # of its tensors' names; missing in some files
    embedding: str  # the tensor that a tied head shares
    sizes: ClassVar[dict[str, str]]  # key of its config.json -> field of ModelConfig
    buffers: tuple[str, ...] = ()  # suffixes of tensors that files may contain and no model needs

    @abstractmethod
    def config(self, config: ModelConfig) -> dict[str, Any]:
        """Return the keys of config.json that are specific to this twin; settings that it lacks go under `dtl`."""

    @abstractmethod
    def settings(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields of ModelConfig from a config.json. Raises CheckpointError for what DTL does not compute."""

    @abstractmethod
    def pairs(self, config: ModelConfig) -> list[Pair]:
        """Return all tensors but the head's."""

    def written_sizes(self, config: ModelConfig) -> dict[str, int]:
        """Return the keys of `sizes` with their values, defaults resolved."""
        return {key: getattr(config, f"resolved_{name}", getattr(config, name)) for key, name in self.sizes.items()}


class Qwen3(Twin):
    """Twin of `modern`."""

    model_type = "qwen3"
    prefix = "model."
    embedding = "model.embed_tokens.weight"
    sizes: ClassVar[dict[str, str]] = {
        "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads", "head_dim": "head_dim", "intermediate_size": "ffn_dim",
        "max_position_embeddings": "max_seq_len",
    }  # fmt: skip

    def config(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": self.model_type,
            **self.written_sizes(config),
            "rms_norm_eps": config.arch.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.arch.rope_theta},
            "rope_theta": config.arch.rope_theta,  # transformers 4 reads this key
            "rope_scaling": None,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": config.resolved_attention_dropout,
            "use_sliding_window": False,
            "sliding_window": None,
            "dtl": {"dropout": config.dropout, **_own_settings(config)},
        }

    def settings(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        require(hf, "hidden_act", "silu")
        require(hf, "attention_bias", False)
        require(hf, "use_sliding_window", False)
        layer_types = hf.get("layer_types") or []
        for layer_type in layer_types if isinstance(layer_types, list) else [layer_types]:
            require({"layer_types": layer_type}, "layer_types", "full_attention")
        # transformers 5 writes rope_parameters; version 4 wrote rope_theta and rope_scaling, in older files with "type"
        # in place of "rope_type".
        rope = mapping(hf, "rope_scaling") | mapping(hf, "rope_parameters")
        for key, allowed in (("type", "default"), ("rope_type", "default"), ("partial_rotary_factor", 1.0)):
            require(rope, key, allowed, where="rope_parameters.")
        return {
            "arch": {
                "block": "modern",
                "norm_eps": setting(hf, "rms_norm_eps", 1e-6),
                "rope_theta": rope.get("rope_theta", setting(hf, "rope_theta", 10000.0)),
            },
            **{name: setting(hf, key) for key, name in self.sizes.items()},
            "dropout": 0.0,  # Qwen3 has none outside attention
            "attention_dropout": setting(hf, "attention_dropout", 0.0),
            "tie_embeddings": setting(hf, "tie_word_embeddings", False),
        }

    def pairs(self, config: ModelConfig) -> list[Pair]:
        in_block = {
            "input_layernorm": "attention_norm",
            "self_attn.q_proj": "attention.to_q",
            "self_attn.k_proj": "attention.to_k",
            "self_attn.v_proj": "attention.to_v",
            "self_attn.o_proj": "attention.to_out",
            "self_attn.q_norm": "attention.q_norm",
            "self_attn.k_norm": "attention.k_norm",
            "post_attention_layernorm": "mlp_norm",
            "mlp.gate_proj": "mlp.gate",
            "mlp.up_proj": "mlp.up",
            "mlp.down_proj": "mlp.down",
        }
        around = {"model.embed_tokens": "embedding", "model.norm": "norm"}
        names = around | {
            f"model.layers.{i}.{twin}": f"blocks.{i}.{own}"
            for i in range(config.n_layers)
            for twin, own in in_block.items()
        }
        return [Pair(f"{twin}.weight", (f"{own}.weight",)) for twin, own in names.items()]


class GPT2(Twin):
    """Twin of `classic`."""

    model_type = "gpt2"
    prefix = "transformer."
    embedding = "transformer.wte.weight"
    sizes: ClassVar[dict[str, str]] = {
        "n_embd": "dim", "n_layer": "n_layers", "n_head": "n_heads", "n_inner": "ffn_dim", "n_positions": "max_seq_len"
    }  # fmt: skip
    buffers = (".attn.bias", ".attn.masked_bias")  # causal masks in files of older transformers

    def config(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": self.model_type,
            **self.written_sizes(config),
            "n_ctx": config.max_seq_len,  # the name that llama.cpp's converter reads
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.arch.norm_eps,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.resolved_attention_dropout,
            "resid_pdrop": config.dropout,
            "dtl": _own_settings(config),
        }

    def settings(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        # gelu_pytorch_tanh is another name of the same function.
        require(hf, "activation_function", "gelu_new", "gelu_pytorch_tanh")
        require(hf, "scale_attn_weights", True)
        require(hf, "scale_attn_by_inverse_layer_idx", False)
        require(hf, "add_cross_attention", False)
        return {
            "arch": {"block": "classic", "norm_eps": setting(hf, "layer_norm_epsilon", 1e-5)},
            **{name: setting(hf, key) for key, name in self.sizes.items() if key != "n_inner"},
            "ffn_dim": hf.get("n_inner"),
            "dropout": setting(hf, "resid_pdrop", 0.1),
            "attention_dropout": setting(hf, "attn_pdrop", 0.1),
            "tie_embeddings": setting(hf, "tie_word_embeddings", True),
        }

    def pairs(self, config: ModelConfig) -> list[Pair]:
        pairs = [Pair("transformer.wte.weight", ("embedding.weight",))]
        pairs += [Pair("transformer.wpe.weight", ("positions.table.weight",))]
        pairs += [Pair(f"transformer.ln_f.{kind}", (f"norm.{kind}",)) for kind in ("weight", "bias")]
        in_block = {
            "ln_1": ("attention_norm",),
            "attn.c_attn": ("attention.to_q", "attention.to_k", "attention.to_v"),
            "attn.c_proj": ("attention.to_out",),
            "ln_2": ("mlp_norm",),
            "mlp.c_fc": ("mlp.up",),
            "mlp.c_proj": ("mlp.down",),
        }
        for i in range(config.n_layers):
            for twin, own in in_block.items():
                for kind in ("weight", "bias"):
                    names = tuple(f"blocks.{i}.{name}.{kind}" for name in own)
                    transposed = kind == "weight" and not twin.startswith("ln_")
                    pairs.append(Pair(f"transformer.h.{i}.{twin}.{kind}", names, transposed))
        return pairs


def _own_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that neither twin has, or that a twin writes resolved."""
    names = ("ffn_multiple_of", "attention_dropout", "token_dropout", "attention")
    return {name: getattr(config, name) for name in names}


TWINS: dict[type[TransformerBlock], Twin] = {TransformerBlock: Qwen3(), ClassicBlock: GPT2()}


def twin_of(config: ModelConfig) -> Twin | None:
    """Return the twin of a model's block; None for a user-defined block, even one that subclasses a DTL block."""
    return TWINS.get(BLOCKS.get(config.arch.block))


_REQUIRED = object()


def setting(hf: Mapping[str, Any], key: str, default: Any = _REQUIRED) -> Any:
    """Return a value of a config.json. Raises CheckpointError when it is missing and has no default."""
    if default is _REQUIRED and key not in hf:
        raise CheckpointError(f"config.json: {key} is missing; it is needed to build the model.")
    return hf.get(key, default)


def mapping(hf: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping in a config.json, empty when it is missing. Raises CheckpointError for any other value."""
    value = hf.get(key) or {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: {key}={value}: must be a mapping of names to values.")
    return dict(value)


def require(hf: Mapping[str, Any], key: str, *allowed: Any, where: str = "") -> None:
    """Raises CheckpointError for a value that makes the model compute another function than DTL; missing is fine."""
    if key in hf and hf[key] not in allowed:
        raise CheckpointError(
            f"config.json: {where}{key}={hf[key]}: DTL does not compute this, only "
            f"{' or '.join(map(str, allowed))}. Choose another checkpoint."
        )
