"""Conversion to and from Hugging Face: configs as the dict of config.json, weights as tensors of model.safetensors.

`value_embeddings` and user-defined blocks have no Hugging Face twin: they are written as model_type "dtl-<block>" under
DTL's own names.
"""

from collections.abc import Mapping, Set
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from dtl.errors import CheckpointError, ConfigError
from dtl.model.config import ModelConfig
from dtl.model.presets import with_overrides
from dtl.model.transformer import TransformerLM
from dtl.model.twins import TWINS, Pair, mapping, require, setting, twin_of

_OWN_TYPE = "dtl-"


def hf_config(config: ModelConfig, vocab_size: int, *, eos_id: int, bos_id: int, pad_id: int) -> dict[str, Any]:
    """Return the content of config.json. Settings without a Hugging Face key are under `dtl`, which it ignores."""
    twin = twin_of(config)
    own = {"architectures": ["TransformerLM"], "model_type": _OWN_TYPE + config.arch.block, "dtl": asdict(config)}
    return (own if twin is None else twin.config(config)) | {
        "vocab_size": vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "dtype": "float32",
    }


def model_config(hf: Mapping[str, Any]) -> tuple[ModelConfig, int]:
    """Return the model config and the vocabulary size that a config.json describes.

    Raises CheckpointError, naming the key, for a model that DTL does not compute exactly.
    """
    model_type = str(hf.get("model_type"))
    require(hf, "quantization_config", None)
    twins = {twin.model_type: twin for twin in TWINS.values()}
    if model_type in twins:
        settings = twins[model_type].settings(hf)
    elif model_type.startswith(_OWN_TYPE):
        settings = {}
    else:
        raise CheckpointError(
            f"config.json: model_type={model_type}: DTL computes qwen3 (model/arch=modern) and gpt2 "
            "(model/arch=classic) only. Choose a checkpoint of one of these."
        )
    own = mapping(hf, "dtl")
    own.pop("prompt", None)  # the tokenizer's, see dtl/data/tokenizers/prompt.py
    # OmegaConf would replace ${oc.env:NAME} in a downloaded file by a secret from the user's environment.
    if "${" in str((settings, own)):
        raise CheckpointError("config.json: a value contains '${', which no model setting does. Remove it.")
    try:
        config = with_overrides(ModelConfig(), settings, own)
        config.validate()
    except ConfigError as error:
        raise CheckpointError(f"config.json of a {model_type} model: {error}") from error
    vocab_size = setting(hf, "vocab_size")
    if type(vocab_size) is not int or vocab_size < 1:  # true is an int
        raise CheckpointError(f"config.json: vocab_size={vocab_size}: must be a whole number above 0.")
    return (_with_defaults_as_none(config) if model_type in twins else config), vocab_size


def _with_defaults_as_none(config: ModelConfig) -> ModelConfig:
    """Set sizes that equal their default to None, so that a config survives the round trip unchanged."""
    if config.n_kv_heads == config.n_heads:
        config = replace(config, n_kv_heads=None)
    if config.resolved_head_dim * config.n_heads == config.dim:
        config = replace(config, head_dim=None)
    if config.ffn_dim == replace(config, ffn_dim=None).resolved_ffn_dim:
        config = replace(config, ffn_dim=None)
    return config


def _pairs(model: TransformerLM) -> list[Pair]:
    """Return every tensor of the model's file: the twin's names if there is a twin, else DTL's own.

    A tied head has no tensor: the twin ties it again when it loads.
    """
    twin, tied = twin_of(model.config), model.config.tie_embeddings
    if twin is None:
        return [Pair(name, (name,)) for name in model.state_dict() if not (tied and name == "head.weight")]
    pairs = twin.pairs(model.config)
    return pairs if tied else [*pairs, Pair("lm_head.weight", ("head.weight",))]


def to_hf(model: TransformerLM) -> dict[str, Tensor]:
    """Return the model's tensors under the twin's names and in its layout, ready for safetensors.

    Omits a tied head. Tensors that need no new layout share the model's storage.
    """
    state = model.state_dict()
    return {pair.twin: pair.join([state[name] for name in pair.own]) for pair in _pairs(model)}


def from_hf(model: TransformerLM, tensors: Mapping[str, Tensor]) -> None:
    """Copy a twin's tensors into the model, converted to the model's dtype.

    GPT-2's names may lack `transformer.` (Qwen3's `model.`), and a tied head may be present. Changes nothing and
    raises CheckpointError, naming the tensors, when one is missing, unexpected or of another shape or kind.
    """
    pairs, state = _pairs(model), model.state_dict()
    shapes = {pair.twin: pair.join([state[name].to("meta") for name in pair.own]).shape for pair in pairs}
    tensors = _under_full_names(model.config, tensors, known=shapes.keys())
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    problems += [f"{name} is not expected" for name in tensors if name not in shapes]
    for name, shape in shapes.items():
        given = tensors.get(name)
        if given is not None and given.shape != shape:
            problems.append(f"{name} has shape {tuple(given.shape)}, not {tuple(shape)}")
        elif given is not None and not given.is_floating_point():
            problems.append(f"{name} has {given.dtype}, not floating-point numbers")
    _raise_if_any(problems)
    if spoilt := [name for name in shapes if not _is_finite(tensors[name])]:
        raise CheckpointError(
            f"{spoilt[0]} has values that are nan or infinite, one of {len(spoilt)} such tensors: this model cannot "
            "compute anything. Choose another checkpoint."
        )
    for pair in pairs:
        for name, part in zip(pair.own, pair.split(tensors[pair.twin]), strict=True):
            state[name].copy_(part)


def _is_finite(tensor: Tensor) -> bool:
    # A sum propagates nan and infinity, in a fifth of the time of checking each element.
    tensor = tensor if tensor.itemsize >= 2 else tensor.float()
    return bool(tensor.sum().isfinite() or tensor.isfinite().all())


def _under_full_names(config: ModelConfig, tensors: Mapping[str, Tensor], known: Set[str]) -> dict[str, Tensor]:
    """Return the tensors under the names that `to_hf` uses, without buffers and without the copy of a tied head."""
    twin = twin_of(config)
    if twin is None:
        return dict(tensors)
    full = {twin.prefix + name if twin.prefix + name in known else name: tensor for name, tensor in tensors.items()}
    if len(full) < len(tensors):
        _raise_if_any([f"some tensors occur twice, with and without the prefix {twin.prefix}"])
    full = {name: tensor for name, tensor in full.items() if not name.endswith(twin.buffers)}
    if config.tie_embeddings and "lm_head.weight" in full:
        head = full.pop("lm_head.weight")
        embedding = full.get(twin.embedding)
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
