"""Checkpoints: everything that a model needs to be used, and a run to go on, in one Hugging Face model directory.

Saved whole or not at all, proved by a manifest, loaded without running anything that lies in them: safetensors
and JSON only. What a run's folder of checkpoints holds is in checkpoints/listing.py, its upkeep in store.py.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dtl.base.files import TEMPORARY, ManifestWriter, publish_directory
from dtl.checkpoints.listing import (
    FORMAT_VERSION,
    inspect,
    step_folder,
)
from dtl.checkpoints.store import set_damaged_aside, storage_error
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.errors import CheckpointError
from dtl.model.hf import hf_config, to_hf
from dtl.model.transformer import TransformerLM


def save_checkpoint(
    run_dir: Path,
    model: TransformerLM,
    tokenizer: Tokenizer,
    config_yaml: str,
    state: Mapping[str, Any],
    optimizer: Mapping[str, Tensor],
) -> Path:
    """Write `run_dir/checkpoints/step-<state["step"]>/`, whole and on the disk when this returns; its path.

    `state` is plain JSON with integers `step` and `epoch`; `optimizer` holds its tensors under flat names. A folder
    that is there already stays when it holds the same, is replaced when it holds another state of the same step,
    and moves to `.damaged` when it is.
    Raises CheckpointError, and leaves nothing half written, when weights or state are not finite, or when the disk
    is full or may not be written.
    """
    _refuse_what_cannot_be_kept(model, tokenizer, state)
    final = step_folder(run_dir, state["step"])
    temporary = final.with_name(f"{TEMPORARY}{state['step']}-{os.getpid()}-{secrets.token_hex(4)}")
    weights, moments = _on_cpu(to_hf(model)), _on_cpu(optimizer)
    try:
        temporary.mkdir(parents=True)
        with ManifestWriter(temporary) as manifest_writer:
            _write_tensors(temporary / "optimizer.safetensors", moments)  # the largest: hashed during all the rest
            manifest_writer.add("optimizer.safetensors")
            _write_tensors(temporary / "model.safetensors", weights)
            manifest_writer.add("model.safetensors")
            _write_texts(temporary, model, tokenizer, config_yaml, state)
            for name in ("optimizer.safetensors", "model.safetensors"):
                # safetensors makes files that only their owner may read; the others follow the umask.
                shutil.copymode(temporary / "config.yaml", temporary / name)
            manifest = manifest_writer.write(format_version=FORMAT_VERSION, step=state["step"], epoch=state["epoch"])
        if final.exists():
            there = inspect(final)
            if there.digest == manifest.digest:
                shutil.rmtree(temporary)
                return final
            if there.problem is not None:
                set_damaged_aside(final)
        publish_directory(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise storage_error(error, final, _n_bytes(weights) + _n_bytes(moments)) from error
        raise
    return final


def _write_texts(
    folder: Path, model: TransformerLM, tokenizer: Tokenizer, config_yaml: str, state: Mapping[str, Any]
) -> None:
    ids = {"eos_id": tokenizer.eos_id, "bos_id": tokenizer.bos_id, "pad_id": tokenizer.pad_id}
    config = hf_config(model.config, model.vocab_size, **ids)
    generation = {key: config[key] for key in ("eos_token_id", "bos_token_id", "pad_token_id")} | {"do_sample": False}
    for name, contents in (("config.json", config), ("generation_config.json", generation), ("state.json", state)):
        text = json.dumps(contents, indent=2, sort_keys=True, allow_nan=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
    tokenizer.save(folder, max_seq_len=model.config.max_seq_len)


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    # More keys in the metadata would be written in an order that differs from process to process.
    save_file(tensors, file, metadata={"format": "pt"})


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _n_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _refuse_what_cannot_be_kept(model: TransformerLM, tokenizer: Tokenizer, state: Mapping[str, Any]) -> None:
    for key in ("step", "epoch"):
        if type(state.get(key)) is not int or state[key] < 0:
            raise CheckpointError(f"state.{key}={state.get(key)!r}: must be a whole number from 0.")
    _refuse_odd_values("state", state)
    if tokenizer.vocab_size > model.vocab_size:
        raise CheckpointError(
            f"The tokenizer has {tokenizer.vocab_size} tokens and the model rows for {model.vocab_size}: "
            "they do not belong together."
        )
    # A sum passes on what is not finite, at a fifth of the time of looking at each number.
    suspects = [(name, weight) for name, weight in model.named_parameters() if not bool(weight.sum().isfinite())]
    bad = [name for name, weight in suspects if not bool(weight.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"Not saved: {bad[0]} and {len(bad) - 1} others are not finite at step {state['step']}. "
            "Earlier checkpoints are untouched. Lower optimizer.lr, or resume from one of them."
        )


def _refuse_odd_values(key: str, value: Any) -> None:
    """Only what JSON gives back exactly: no NaN, no tuples (they return as lists), no keys that are not text."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise CheckpointError(f"{key}: the key {name!r} is not text, and JSON would change it.")
            _refuse_odd_values(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_odd_values(f"{key}[{index}]", inner)
    elif not (value is None or type(value) in (bool, int, str) or (type(value) is float and isfinite(value))):
        raise CheckpointError(f"{key}={value!r}: not a value that JSON gives back as it was.")
