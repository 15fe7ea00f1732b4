"""Reading of untrusted safetensors files: nothing in them is executed, and everything is checked before use.

A single file or shards with their index, as Hugging Face writes them. Imports torch only to make tensors.
"""

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from dtl.base.files import PLAIN_NAME
from dtl.base.json_files import as_whole, json_object, read_json, read_json_or_empty
from dtl.base.safe_text import in_one_line
from dtl.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"  # of PEFT
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER_BYTES = 4 * 2**20  # about 40,000 tensors; no model has more, and parsing takes seconds
MAX_DIMENSIONS = 8


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model directory. Raises CheckpointError when there are none, or only pickles."""
    raise_if_adapter(folder)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
        raise CheckpointError(
            pickle_message(pickles[0]) if pickles else f"{folder / SINGLE}: missing, so there are no weights to load."
        )
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX}: has no weight_map with the file of each tensor.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not PLAIN_NAME.fullmatch(name) or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder / INDEX}: names {name!r}, which is not a safetensors file next to it.")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing; {INDEX} names it. Download the complete folder again.")
    return [folder / name for name in names]


def read_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, from the headers only.

    Raises CheckpointError for a file that is truncated, not safetensors, or has too large a header.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, shape in _read_header(file).items():
            if name in shapes:
                raise CheckpointError(f"{file}: {name} is also in another shard. Download the folder again.")
            shapes[name] = shape
    return shapes


def read_tensors(files: list[Path]) -> "dict[str, Tensor]":
    """Load all tensors of these files on the CPU, memory-mapped: their bytes are read when they are used.

    Raises CheckpointError for a file that is damaged or not safetensors.
    """
    read_shapes(files)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{file}: damaged, not readable as safetensors ({error}).") from error
    return tensors


def numel(shapes: dict[str, tuple[int, ...]]) -> int:
    """The total number of elements of tensors of these shapes."""
    return sum(prod(shape) for shape in shapes.values())


def _read_header(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with file.open("rb") as opened:
            n_bytes = int.from_bytes(opened.read(8), "little")
            if n_bytes > MAX_HEADER_BYTES or n_bytes + 8 > file.stat().st_size:
                raise CheckpointError(
                    f"{file}: damaged or hostile, its header claims {n_bytes:,} bytes (at most {MAX_HEADER_BYTES:,})."
                )
            header = json_object(opened.read(n_bytes))
        header.pop("__metadata__", None)
        return {name: _shape(tensor["shape"]) for name, tensor in header.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged, not readable as safetensors ({error}).") from error


def _shape(sizes: Any) -> tuple[int, ...]:
    whole = [as_whole(size) for size in sizes[: MAX_DIMENSIONS + 1]]
    if len(whole) > MAX_DIMENSIONS or not all(size is not None and size >= 0 for size in whole):
        raise ValueError(f"a shape is not of at most {MAX_DIMENSIONS} whole numbers")
    return tuple(size for size in whole if size is not None)


def raise_if_adapter(folder: Path) -> None:
    """Raise CheckpointError, with the lines that merge it, for a folder that has an adapter of PEFT and no model."""
    if not (folder / ADAPTER).is_file() or (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return
    config = read_json_or_empty(folder / ADAPTER)
    kind = "LoRA" if config.get("peft_type") == "LORA" else f"PEFT ({in_one_line(str(config.get('peft_type')), 40)})"
    base, merged = str(config.get("base_model_name_or_path") or "FOLDER OF ITS MODEL"), f"{folder}-merged"
    tokenizer = folder if (folder / "tokenizer.json").is_file() else base
    # repr: the name of the model comes from the file, and must stay one string in these lines.
    raise CheckpointError(
        f"{folder}: an adapter of {kind}, which changes another model and is none itself. Merge the two once, with the "
        "package peft:\n"
        "    from peft import PeftModel\n"
        "    from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"    model = AutoModelForCausalLM.from_pretrained({base!r})\n"
        f"    PeftModel.from_pretrained(model, {str(folder)!r}).merge_and_unload().save_pretrained({merged!r})\n"
        f"    AutoTokenizer.from_pretrained({str(tokenizer)!r}).save_pretrained({merged!r})\n"
        f"Then give that folder, {merged}."
    )


def pickle_message(path: Path) -> str:
    """The message that pickled weights are rejected, with the command that converts them."""
    return (
        f"{path}: pickled weights. Loading a pickle can run any code in it, so DTL reads safetensors only.\n"
        "If you trust its source, convert it once with transformers: "
        f'AutoModelForCausalLM.from_pretrained("{path.parent}").save_pretrained("a-new-folder")'
    )
