"""Loading of models, tokenizers and training state from checkpoints and Hugging Face model directories.

Nothing in a folder is executed: only safetensors and JSON are read, after the manifest is verified.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtl.base.display import shell_line
from dtl.base.json_files import as_whole, read_json, read_json_or_empty
from dtl.base.runtime import choose_device
from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.listing import MODEL_FILES, RAW, STATE_FILES, TOKENIZER_FILES, is_checkpoint, verify
from dtl.checkpoints.weights import numel, read_shapes, read_tensors, weight_files
from dtl.data.tokenizers.prompt import read_prompt
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.errors import CheckpointError
from dtl.model.config import ModelConfig
from dtl.model.hf import from_hf, model_config
from dtl.model.transformer import TransformerLM


def load_model(path: Path | str, device: torch.device | str = "cpu") -> TransformerLM:
    """Load the model of a run (its best checkpoint), a checkpoint or a Hugging Face directory: token ids (b, t) to
    logits (b, t, v), fp32, in evaluation mode.

    Half-precision and sharded weights are supported; pickles are not. Torch's random state is not changed. `device` is
    what `device=` is on the command line, or torch's. Raises CheckpointError naming the file that is missing, damaged,
    or of an unsupported model; ConfigError for a device that is not available.
    """
    if isinstance(device, str):
        device, _ = choose_device(device)
    folder = _model_folder(path)  # once: while a run trains, its best checkpoint may change
    config, vocab_size = read_model_config(folder)
    with torch.random.fork_rng(devices=[]):  # the initial weights draw random numbers, on the CPU
        model = TransformerLM(config, vocab_size)
    load_weights(model, folder)
    return model.to(device).eval()


def read_model_config(path: Path | str) -> tuple[ModelConfig, int]:
    """The config and vocabulary size of the model that `load_model` would load, after verifying its files and that its
    weights match. Raises CheckpointError as `load_model` does."""
    folder = _model_folder(path)
    if is_checkpoint(folder):
        verify(folder, only=MODEL_FILES)
    config, vocab_size = _read_config(folder)
    _check_weights_match_config(folder, config, vocab_size, read_shapes(weight_files(folder)))
    return config, vocab_size


def load_weights(model: TransformerLM, path: Path | str) -> None:
    """Copy the weights at `path`, which `read_model_config` has verified, into a model of their size.

    Raises CheckpointError naming the tensors that do not match.
    """
    folder = _model_folder(path)
    try:
        from_hf(model, read_tensors(weight_files(folder)))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def load_trained_weights(model: TransformerLM, folder: Path, averaged: bool) -> None:
    """Copy the weights that training continues with into a model that has those of `load_weights`.

    They differ where the run publishes averaged weights. Raises CheckpointError for a checkpoint of the other kind.
    """
    if averaged != (folder / RAW).exists():
        raise CheckpointError(
            f"{folder}: saved {'without' if averaged else 'with'} averaged weights, and trainer.ema_decay in this "
            f"run's config.yaml says otherwise. Restore that file, or start a new run with "
            f"{shell_line([f'init={folder}'])}."
        )
    if averaged:
        verify(folder, only=(RAW,))
        from_hf(model, read_tensors([folder / RAW]))


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load the tokenizer of a run (of its best checkpoint), a checkpoint or a Hugging Face directory.

    It has the prompt of the questions that its model has learnt.
    Raises CheckpointError naming the file that is missing or damaged.
    """
    folder = _model_folder(path)
    if is_checkpoint(folder):
        verify(folder, only=(*TOKENIZER_FILES, "config.json"))
    tokenizer = Tokenizer.load(folder).with_prompt(read_prompt(folder))
    n_rows = as_whole(read_json_or_empty(folder / "config.json").get("vocab_size"))
    if n_rows is not None and tokenizer.vocab_size > n_rows:
        raise CheckpointError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} entries, its model {n_rows}. "
            "They do not belong together, or tokens were added and the model's embedding was not resized."
        )
    return tokenizer


def load_training_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Load exactly the `state` and `optimizer` that were passed to `save_checkpoint`. Tensors are on the CPU.

    Raises CheckpointError for a folder that is not a checkpoint of DTL, or is damaged.
    """
    if not is_checkpoint(folder):
        raise CheckpointError(
            f"{folder}: a model without training state, so it cannot be resumed. "
            f"Start a new run from its weights with {shell_line([f'init={folder}'])}"
        )
    verify(folder, only=STATE_FILES)
    state = read_json(folder / "state.json")
    tensors = read_tensors([folder / "optimizer.safetensors"])
    # Cloned, so that the file is not kept open: Windows could not delete it later.
    return state, {name: tensor.clone() for name, tensor in tensors.items()}


def _model_folder(path: Path | str) -> Path:
    """The folder of the model. A folder with a config.json is used as it is: its files are verified when loaded."""
    folder = Path(os.path.expanduser(path))
    return folder if os.path.isfile(folder / "config.json") else find_checkpoint(str(path), Path("outputs"))


def _read_config(folder: Path) -> tuple[ModelConfig, int]:
    try:
        hf = read_json(folder / "config.json")
    except FileNotFoundError:
        raise CheckpointError(f"{folder / 'config.json'}: missing, so the model's size is unknown.") from None
    if "${" in json.dumps(hf):  # data, never a template: OmegaConf would resolve it
        raise CheckpointError(f"{folder / 'config.json'}: contains an interpolation, ${{...}}, which no model needs.")
    try:
        return model_config(hf)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _check_weights_match_config(
    folder: Path, config: ModelConfig, vocab_size: int, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError when config.json describes a larger model than the weights, before memory is allocated.

    safetensors itself checks that the shapes in a header match the bytes in the file.
    """
    claimed = config.dim * vocab_size + config.block_rules.min_parameters(config)
    available = numel(shapes)
    if claimed > available or config.n_layers > len(shapes):
        raise CheckpointError(
            f"{folder}: config.json describes {config.n_layers:,} layers and at least {claimed:,} parameters; "
            f"the weights have {len(shapes):,} tensors with {available:,}. "
            "They are of different models: copy the folder again."
        )
