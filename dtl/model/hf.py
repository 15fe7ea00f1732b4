"""The Hugging Face twins: modern is Qwen3ForCausalLM, classic is GPT2LMHeadModel.

Configs go to and from the dict of config.json, weights to and from the tensors of model.safetensors. Imports no
transformers. A block of your own has no twin: it is written as model_type "dtl-<block>" under our own names.
"""

from collections.abc import Mapping, Set
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from dtl.errors import CheckpointError, ConfigError
from dtl.model.config import ModelConfig
from dtl.model.hf_names import name_pairs
from dtl.model.presets import with_overrides
from dtl.model.transformer import TransformerLM

_OWN_TYPE = "dtl-"
_PREFIXES = {"modern": "model.", "classic": "transformer."}  # some files leave their architecture's prefix out
_GPT2_BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks that old files carry


def hf_config(config: ModelConfig, vocab_size: int, *, eos_id: int, bos_id: int, pad_id: int) -> dict[str, Any]:
    """The content of config.json. What Hugging Face has no key for stands under `dtl`, which it ignores."""
    if config.arch.block == "modern":
        twin = _qwen3_config(config)
    elif config.arch.block == "classic":
        twin = _gpt2_config(config)
    else:
        twin = {
            "architectures": ["TransformerLM"],
            "model_type": _OWN_TYPE + config.arch.block,
            "dtl": asdict(config),
        }
    return twin | {
        "vocab_size": vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "dtype": "float32",
    }


def _qwen3_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.resolved_n_kv_heads,
        "head_dim": config.resolved_head_dim,
        "intermediate_size": config.resolved_ffn_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.arch.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.arch.rope_theta},
        "rope_theta": config.arch.rope_theta,  # what transformers 4 reads
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": config.dropout,
        "use_sliding_window": False,
        "sliding_window": None,
        "dtl": {"dropout": config.dropout, "token_dropout": config.token_dropout, "attention": config.attention},
    }


def _gpt2_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.dim,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.resolved_ffn_dim,
        "n_positions": config.max_seq_len,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.arch.norm_eps,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "dtl": {"token_dropout": config.token_dropout, "attention": config.attention},
    }


def model_config(hf: Mapping[str, Any]) -> tuple[ModelConfig, int]:
    """The model and the vocabulary size that a config.json describes.

    Raises CheckpointError, naming the key, for a model that DTL does not compute exactly.
    """
    model_type = str(hf.get("model_type"))
    _require(hf, "quantization_config", None)
    if model_type == "qwen3":
        settings = _read_qwen3(hf)
    elif model_type == "gpt2":
        settings = _read_gpt2(hf)
    elif model_type.startswith(_OWN_TYPE):
        settings = {}
    else:
        raise CheckpointError(
            f"config.json: model_type={model_type}: DTL computes qwen3 (model/arch=modern) and gpt2 "
            "(model/arch=classic) only. Choose a checkpoint of one of these."
        )
    own = _mapping(hf, "dtl")
    # OmegaConf would replace ${oc.env:NAME} by a secret of whoever reads a stranger's file.
    if "${" in str((settings, own)):
        raise CheckpointError("config.json: a value holds '${', which no setting of a model does. Remove it.")
    try:
        config = with_overrides(ModelConfig(), settings, own)
        config.validate()
    except ConfigError as error:
        raise CheckpointError(f"config.json of a {model_type} model: {error}") from error
    vocab_size = _get(hf, "vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise CheckpointError(f"config.json: vocab_size={vocab_size}: must be a whole number above 0.")
    return _with_defaults_as_none(config), vocab_size


def _read_qwen3(hf: Mapping[str, Any]) -> dict[str, Any]:
    _require(hf, "hidden_act", "silu")
    _require(hf, "attention_bias", False)
    _require(hf, "use_sliding_window", False)
    for layer_type in hf.get("layer_types") or []:
        _require({"layer_types": layer_type}, "layer_types", "full_attention")
    # transformers 5 writes rope_parameters; 4 wrote rope_theta beside it, and rope_scaling, whose kind was "type" once.
    rope = _mapping(hf, "rope_scaling") | _mapping(hf, "rope_parameters")
    for key, allowed in (("type", "default"), ("rope_type", "default"), ("partial_rotary_factor", 1.0)):
        _require(rope, key, allowed, where="rope_parameters.")
    return {
        "arch": {
            "block": "modern",
            "norm_eps": _get(hf, "rms_norm_eps", 1e-6),
            "rope_theta": rope.get("rope_theta", _get(hf, "rope_theta", 10000.0)),
        },
        "dim": _get(hf, "hidden_size"),
        "n_layers": _get(hf, "num_hidden_layers"),
        "n_heads": _get(hf, "num_attention_heads"),
        "n_kv_heads": _get(hf, "num_key_value_heads"),
        "head_dim": _get(hf, "head_dim"),
        "ffn_dim": _get(hf, "intermediate_size"),
        "max_seq_len": _get(hf, "max_position_embeddings"),
        "dropout": _get(hf, "attention_dropout", 0.0),
        "tie_embeddings": _get(hf, "tie_word_embeddings", False),
    }


def _read_gpt2(hf: Mapping[str, Any]) -> dict[str, Any]:
    # gelu_pytorch_tanh is the same function under another name.
    _require(hf, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    _require(hf, "scale_attn_weights", True)
    _require(hf, "scale_attn_by_inverse_layer_idx", False)
    _require(hf, "add_cross_attention", False)
    return {
        "arch": {"block": "classic", "norm_eps": _get(hf, "layer_norm_epsilon", 1e-5)},
        "dim": _get(hf, "n_embd"),
        "n_layers": _get(hf, "n_layer"),
        "n_heads": _get(hf, "n_head"),
        "ffn_dim": hf.get("n_inner"),
        "max_seq_len": _get(hf, "n_positions"),
        "dropout": _get(hf, "resid_pdrop", 0.1),
        "tie_embeddings": _get(hf, "tie_word_embeddings", True),
    }


_REQUIRED = object()


def _get(hf: Mapping[str, Any], key: str, default: Any = _REQUIRED) -> Any:
    if default is _REQUIRED and key not in hf:
        raise CheckpointError(f"config.json: {key} is missing; it is needed to build the model.")
    return hf.get(key, default)


def _mapping(hf: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = hf.get(key) or {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: {key}={value}: must be a mapping of names to values.")
    return dict(value)


def _require(hf: Mapping[str, Any], key: str, *allowed: Any, where: str = "") -> None:
    """Refuse a value that changes what is computed in a way that DTL does not; an absent key is fine."""
    if key in hf and hf[key] not in allowed:
        raise CheckpointError(
            f"config.json: {where}{key}={hf[key]}: DTL does not compute this, only "
            f"{' or '.join(map(str, allowed))}. Choose another checkpoint."
        )


def _with_defaults_as_none(config: ModelConfig) -> ModelConfig:
    """Sizes that are what they would be anyway become None, so that a config survives the way there and back."""
    if config.n_kv_heads == config.n_heads:
        config = replace(config, n_kv_heads=None)
    if config.resolved_head_dim * config.n_heads == config.dim:
        config = replace(config, head_dim=None)
    if config.ffn_dim == replace(config, ffn_dim=None).resolved_ffn_dim:
        config = replace(config, ffn_dim=None)
    return config


def to_hf(model: TransformerLM) -> dict[str, Tensor]:
    """The model's tensors under the twin's names and in its layout, ready for safetensors.

    A tied head is left out: the twin ties it again. Tensors that need no new layout share the model's storage.
    """
    state = model.state_dict()
    return {pair.twin: pair.join([state[name] for name in pair.own]) for pair in name_pairs(model)}


def from_hf(model: TransformerLM, tensors: Mapping[str, Tensor]) -> None:
    """Copy a twin's tensors into the model; half precision becomes the model's own.

    GPT-2's names may lack `transformer.` (Qwen3's `model.`), and a tied head may be there. Changes nothing
    and raises CheckpointError, naming the tensors, when one is missing, unexpected or of another shape or kind.
    """
    pairs, state = name_pairs(model), model.state_dict()
    shapes = {pair.twin: pair.join([state[name].to("meta") for name in pair.own]).shape for pair in pairs}
    tensors = _under_full_names(model.config, tensors, known=shapes.keys())
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    problems += [f"{name} is not expected" for name in tensors if name not in shapes]
    for name, shape in shapes.items():
        given = tensors.get(name)
        if given is not None and given.shape != shape:
            problems.append(f"{name} has shape {tuple(given.shape)}, not {tuple(shape)}")
        elif given is not None and not given.is_floating_point():
            problems.append(f"{name} holds {given.dtype}, not floating-point numbers")
    _raise_if_any(problems)
    for pair in pairs:
        for name, part in zip(pair.own, pair.split(tensors[pair.twin]), strict=True):
            state[name].copy_(part)


def _under_full_names(config: ModelConfig, tensors: Mapping[str, Tensor], known: Set[str]) -> dict[str, Tensor]:
    """The tensors under the names that `to_hf` gives them, without GPT-2's mask buffers and a tied head's copy."""
    prefix = _PREFIXES.get(config.arch.block, "")
    full = {prefix + name if prefix + name in known else name: tensor for name, tensor in tensors.items()}
    if len(full) < len(tensors):
        _raise_if_any([f"some tensors are there twice, with and without the prefix {prefix}"])
    if config.arch.block == "classic":
        full = {name: tensor for name, tensor in full.items() if not name.endswith(_GPT2_BUFFERS)}
    if config.tie_embeddings and "lm_head.weight" in full:
        head = full.pop("lm_head.weight")
        embedding = full.get("model.embed_tokens.weight", full.get("transformer.wte.weight"))
        if embedding is not None and not torch.equal(head.float(), embedding.float()):
            _raise_if_any(["lm_head.weight differs from the token embedding, yet config.json ties the two"])
    return full


def _raise_if_any(problems: list[str]) -> None:
    if not problems:
        return
    shown = "\n".join(f"  {problem}" for problem in problems[:3])
    more = f"\n  and {len(problems) - 3} more" if len(problems) > 3 else ""
    raise CheckpointError(
        f"The weights do not fit their config.json:\n{shown}{more}\n"
        "Both files must come from one model: copy the folder again, or choose another checkpoint."
    )
