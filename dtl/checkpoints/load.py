"""Checkpoints: everything that a model needs to be used, and a run to go on, in one Hugging Face model directory.

Saved whole or not at all, proved by a manifest, loaded without running anything that lies in them: safetensors
and JSON only. What a run's folder of checkpoints holds is in checkpoints/listing.py, its upkeep in store.py.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtl.base.json_files import read_json
from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.listing import MODEL_FILES, STATE_FILES, TOKENIZER_FILES, is_checkpoint, verify
from dtl.checkpoints.weights import n_numbers, read_shapes, read_tensors, weight_files
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.errors import CheckpointError
from dtl.model.config import ModelConfig
from dtl.model.hf import from_hf, model_config
from dtl.model.transformer import TransformerLM


def load_model(path: Path | str, device: torch.device | str = "cpu") -> TransformerLM:
    """The model of a run (its best), of a checkpoint, or of a Hugging Face directory: token ids (b, t) to logits
    (b, t, v), fp32, in evaluation mode.

    Half-precision and sharded weights are read; pickles are not. Leaves torch's random state as it was.
    Raises CheckpointError naming the file that is missing, damaged, or of a model that DTL does not compute.
    """
    config, vocab_size = read_model_config(path)
    with torch.random.fork_rng(devices=[]):
        model = TransformerLM(config, vocab_size)
    load_weights(model, path)
    return model.to(device).eval()


def read_model_config(path: Path | str) -> tuple[ModelConfig, int]:
    """Size, architecture and vocabulary size of the model that `load_model` would load, once its files are verified
    and its weights are known to be of that size. Raises CheckpointError as `load_model` does."""
    folder = _model_folder(path)
    if is_checkpoint(folder):
        verify(folder, only=MODEL_FILES)
    config, vocab_size = _read_config(folder)
    _refuse_more_than_is_there(folder, config, vocab_size, read_shapes(weight_files(folder)))
    return config, vocab_size


def load_weights(model: TransformerLM, path: Path | str) -> None:
    """Copy the weights at `path`, which `read_model_config` has verified, into a model of their size.

    Raises CheckpointError naming the tensors that do not fit.
    """
    folder = _model_folder(path)
    try:
        from_hf(model, read_tensors(weight_files(folder)))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


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
