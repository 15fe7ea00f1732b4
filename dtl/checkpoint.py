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

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.listing import (
    FORMAT_VERSION,
    MODEL_FILES,
    STATE_FILES,
    TOKENIZER_FILES,
    inspect,
    is_checkpoint,
    step_folder,
    verify,
)
from dtl.checkpoints.store import set_damaged_aside, storage_error
from dtl.checkpoints.weights import n_numbers, read_shapes, read_tensors, weight_files
from dtl.data.tokenizer import Tokenizer
from dtl.durable import TEMPORARY, ManifestWriter, publish_directory, read_json
from dtl.errors import CheckpointError
from dtl.model.config import ModelConfig
from dtl.model.hf import from_hf, hf_config, model_config, to_hf
from dtl.model.transformer import TransformerLM

# --- saving -----------------------------------------------------------------------------------------------------


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


# --- loading ----------------------------------------------------------------------------------------------------


def load_model(path: Path | str, device: torch.device | str = "cpu") -> TransformerLM:
    """The model of a run (its best), of a checkpoint, or of a Hugging Face directory: token ids (b, t) to logits
    (b, t, v), fp32, in evaluation mode.

    Half-precision and sharded weights are read; pickles are not. Leaves torch's random state as it was.
    Raises CheckpointError naming the file that is missing, damaged, or of a model that DTL does not compute.
    """
    folder = _model_folder(path)
    if is_checkpoint(folder):
        verify(folder, only=MODEL_FILES)
    config, vocab_size = _read_config(folder)
    files = weight_files(folder)
    _refuse_more_than_is_there(folder, config, vocab_size, read_shapes(files))
    with torch.random.fork_rng(devices=[]):
        model = TransformerLM(config, vocab_size)
    try:
        from_hf(model, read_tensors(files))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return model.to(device).eval()


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a run (of its best checkpoint), of a checkpoint, or of a Hugging Face directory.

    Raises CheckpointError naming the file that is missing or damaged.
    """
    folder = _model_folder(path)
    if is_checkpoint(folder):
        verify(folder, only=TOKENIZER_FILES)
    return Tokenizer.load(folder)


def load_training_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_checkpoint` was given as `state` and `optimizer`, exactly. Tensors are on the CPU.

    Raises CheckpointError for a folder that is no checkpoint of DTL, or is damaged.
    """
    if not is_checkpoint(folder):
        raise CheckpointError(
            f"{folder}: a model without the state of a run, so that it cannot be resumed. "
            f"Start a new run from its weights with init={folder}"
        )
    verify(folder, only=STATE_FILES)
    state = read_json(folder / "state.json")
    tensors = read_tensors([folder / "optimizer.safetensors"])
    # Cloned, so that the file is not held open: Windows could not delete it later.
    return state, {name: tensor.clone() for name, tensor in tensors.items()}


def _model_folder(path: Path | str) -> Path:
    """A folder with a config.json is taken as it is: what is needed of it is verified when it is loaded."""
    folder = Path(os.path.expanduser(path))
    return folder if os.path.isfile(folder / "config.json") else find_checkpoint(str(path), Path("outputs"))


def _read_config(folder: Path) -> tuple[ModelConfig, int]:
    try:
        hf = read_json(folder / "config.json")
    except FileNotFoundError:
        raise CheckpointError(f"{folder / 'config.json'}: missing, so the model's size is not known.") from None
    if "${" in json.dumps(hf):  # data, never a template: OmegaConf would look up what stands there
        raise CheckpointError(f"{folder / 'config.json'}: holds an interpolation, ${{...}}, which no model needs.")
    try:
        return model_config(hf)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _refuse_more_than_is_there(
    folder: Path, config: ModelConfig, vocab_size: int, shapes: dict[str, tuple[int, ...]]
) -> None:
    """A config.json may claim any size: allocate nothing that the weights beside it do not fill.

    safetensors itself sees to it that the shapes in a header fit the bytes in the file.
    """
    claimed = config.dim * vocab_size + config.block_rules.least_parameters(config)
    available = n_numbers(shapes)
    if claimed > available or config.n_layers > len(shapes):
        raise CheckpointError(
            f"{folder}: config.json describes {config.n_layers:,} layers and at least {claimed:,} numbers; "
            f"the weights hold {len(shapes):,} tensors with {available:,}. "
            "They are not of the same model: copy the folder again."
        )
