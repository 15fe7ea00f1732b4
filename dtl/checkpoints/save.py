"""Saving of checkpoints: one Hugging Face model directory with everything to use the model and to resume the run.

Saved atomically with a manifest, as safetensors and JSON only, which are loaded without executing anything.
The checkpoints of a run are listed in checkpoints/listing.py and maintained in upkeep.py.
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
from dtl.checkpoints.listing import FORMAT_VERSION, RAW, inspect, step_folder
from dtl.checkpoints.upkeep import set_damaged_aside, storage_error
from dtl.data.tokenizers.prompt import KEY, prompt_entry
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
    raw: TransformerLM | None = None,
) -> Path:
    """Write `run_dir/checkpoints/step-<state["step"]>/`, complete and flushed to disk, and return its path.

    `state` is plain JSON with integers `step` and `epoch`; `optimizer` has its tensors under flat names. Where `model`
    has averaged weights, `raw` is the model that is trained: a resume needs both. An existing folder is kept when it
    has the same contents, replaced when it has another state of the same step, and renamed to `.damaged` when it is
    damaged.
    Raises CheckpointError, and leaves nothing half written, when weights or state are not finite, or when the disk
    is full or not writable.
    """
    _check_can_be_saved(raw or model, tokenizer, state)
    final = step_folder(run_dir, state["step"])
    temporary = final.with_name(f"{TEMPORARY}{state['step']}-{os.getpid()}-{secrets.token_hex(4)}")
    # The optimizer's tensors first, the largest file: hashed while the others are written.
    tensors = {"optimizer.safetensors": _on_cpu(optimizer), "model.safetensors": _on_cpu(to_hf(model))}
    if raw is not None:
        tensors[RAW] = _on_cpu(to_hf(raw))
    try:
        temporary.mkdir(parents=True)
        with ManifestWriter(temporary) as manifest_writer:
            for name, contents in tensors.items():
                _write_tensors(temporary / name, contents)
                manifest_writer.add(name)
            _write_texts(temporary, model, tokenizer, config_yaml, state)
            for name in tensors:
                # safetensors creates files that only their owner may read; the others follow the umask.
                shutil.copymode(temporary / "config.yaml", temporary / name)
            manifest = manifest_writer.write(format_version=FORMAT_VERSION, step=state["step"], epoch=state["epoch"])
        if final.exists():
            existing = inspect(final)
            if existing.digest == manifest.digest:
                shutil.rmtree(temporary)
                return final
            if existing.problem is not None:
                set_damaged_aside(final)
        publish_directory(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise storage_error(error, final, sum(map(_n_bytes, tensors.values()))) from error
        raise
    return final


def _write_texts(
    folder: Path, model: TransformerLM, tokenizer: Tokenizer, config_yaml: str, state: Mapping[str, Any]
) -> None:
    ids = {"eos_id": tokenizer.eos_id, "bos_id": tokenizer.bos_id, "pad_id": tokenizer.pad_id}
    config = hf_config(model.config, model.vocab_size, **ids)
    config["dtl"][KEY] = prompt_entry(tokenizer.prompt)
    generation = {key: config[key] for key in ("eos_token_id", "bos_token_id", "pad_token_id")} | {"do_sample": False}
    for name, contents in (("config.json", config), ("generation_config.json", generation), ("state.json", state)):
        # Sorted keys: equal contents give equal bytes and digests, so that the same step saved twice is recognised.
        text = json.dumps(contents, indent=2, sort_keys=True, allow_nan=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
    tokenizer.save(folder, max_seq_len=model.config.max_seq_len)


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    # One key only: several would be written in an order that differs between processes, and change the SHA-256.
    save_file(tensors, file, metadata={"format": "pt"})


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _n_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _check_can_be_saved(model: TransformerLM, tokenizer: Tokenizer, state: Mapping[str, Any]) -> None:
    for key in ("step", "epoch"):
        if type(state.get(key)) is not int or state[key] < 0:
            raise CheckpointError(f"state.{key}={state.get(key)!r}: must be an integer of at least 0.")
    _check_json_values("state", state)
    if tokenizer.vocab_size > model.vocab_size:
        raise CheckpointError(
            f"The tokenizer has {tokenizer.vocab_size} tokens and the model embeds {model.vocab_size}: "
            "they do not belong together."
        )
    # A sum propagates NaN and infinity, in a fifth of the time of checking each element.
    suspects = [(name, weight) for name, weight in model.named_parameters() if not bool(weight.sum().isfinite())]
    bad = [name for name, weight in suspects if not bool(weight.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"Not saved: {bad[0]} and {len(bad) - 1} others are not finite at step {state['step']}. "
            "Earlier checkpoints are untouched. Lower optimizer.lr, or resume from one of them."
        )


def _check_json_values(key: str, value: Any) -> None:
    """Raise CheckpointError for values that JSON does not round-trip: NaN, tuples (read as lists), keys not text."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise CheckpointError(f"{key}: the key {name!r} is not text, and JSON would change it.")
            _check_json_values(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_json_values(f"{key}[{index}]", inner)
    elif not (value is None or type(value) in (bool, int, str) or (type(value) is float and isfinite(value))):
        raise CheckpointError(f"{key}={value!r}: not a value that JSON can represent exactly.")
