"""What the tests of checkpoints share: a tiny model, imitations of checkpoints, the damage that befalls them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtl.base.files import MANIFEST, write_manifest
from dtl.checkpoints.listing import FILES, FORMAT_VERSION, step_folder
from dtl.checkpoints.save import save_checkpoint
from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers.tokenizer import Tokenizer, build_tokenizer
from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.transformer import TransformerLM

TEXTS = ["Question: What is the capital of France?\nAnswer: Paris.", "a bc  12 345 é 🙂 שלום"] * 5


def tiny_tokenizer(kind: str = "byte") -> Tokenizer:
    return build_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), lambda: TEXTS)


def tiny_model(block: str = "modern", vocab_size: int = 258, seed: int = 0, **sizes: Any) -> TransformerLM:
    """Two layers, every parameter random: a fresh model has almost no logits."""
    config = ModelConfig(
        **{
            "arch": ArchConfig(block=block, norm_eps=1e-6 if block == "modern" else 1e-5),
            "dim": 24,
            "n_layers": 2,
            "n_heads": 3,
            "max_seq_len": 37,
            **sizes,
        }
    )
    torch.manual_seed(seed)
    model = TransformerLM(config, vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def moments(model: TransformerLM, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.{moment}": torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters()
        for moment in ("exp_avg", "exp_avg_sq")
    }


def save(run_dir: Path, step: int, seed: int | None = None, **more: Any) -> Path:
    """A real checkpoint of a tiny model whose weights follow from the step."""
    model = tiny_model(dim=16, n_heads=2, seed=step if seed is None else seed)
    state = {"step": step, "epoch": step // 10, "loss": 0.1 + step, "random": {"cpu": "AAEC"}, **more}
    return save_checkpoint(run_dir, model, tiny_tokenizer(), "seed: 0\n", state, moments(model, step))


def imitate(run_dir: Path, step: int, contents: str = "") -> Path:
    """A folder with the names and the manifest of a checkpoint, and next to nothing in it: quick to make."""
    folder = step_folder(run_dir, step)
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(f"{name} {step} {contents}")
    write_manifest(folder, format_version=FORMAT_VERSION, step=step, epoch=step // 10)
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


# --- damage -----------------------------------------------------------------------------------------------------
# Each takes a folder, another whole checkpoint, and a random generator; it returns the files that it touched.

Damage = Callable[[Path, Path, random.Random], list[str]]


def flip_a_bit(folder: Path, other: Path, rng: random.Random) -> list[str]:
    file = rng.choice(files_of(folder))
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return [file.name]


def cut_short(folder: Path, other: Path, rng: random.Random) -> list[str]:
    file = rng.choice(files_of(folder))
    os.truncate(file, rng.randrange(file.stat().st_size))
    return [file.name]


def zero_the_tail(folder: Path, other: Path, rng: random.Random) -> list[str]:
    file = rng.choice(files_of(folder))
    data = file.read_bytes()
    kept = rng.randrange(len(data))  # no file of a checkpoint ends in a zero byte for long
    file.write_bytes(data[:kept] + bytes(len(data) - kept))
    return [file.name] if file.read_bytes() != data else flip_a_bit(folder, other, rng)


def zero_a_range(folder: Path, other: Path, rng: random.Random) -> list[str]:
    file = rng.choice(files_of(folder))
    data = bytearray(file.read_bytes())
    start = rng.randrange(len(data))
    before = bytes(data)
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    file.write_bytes(data)
    return [file.name] if bytes(data) != before else flip_a_bit(folder, other, rng)


def append_bytes(folder: Path, other: Path, rng: random.Random) -> list[str]:
    file = rng.choice(files_of(folder))
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.randint(1, 9)))
    return [file.name]


def remove_a_file(folder: Path, other: Path, rng: random.Random) -> list[str]:
    file = rng.choice(files_of(folder))
    file.unlink()
    return [file.name]


def rename_a_file(folder: Path, other: Path, rng: random.Random) -> list[str]:
    file = rng.choice(files_of(folder))
    file.rename(folder / f"{file.name}.bak")
    return [file.name]


def swap_two_files(folder: Path, other: Path, rng: random.Random) -> list[str]:
    first, second = rng.sample(files_of(folder), 2)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    return [first.name, second.name]


def mix_with_another(folder: Path, other: Path, rng: random.Random) -> list[str]:
    different = [file.name for file in files_of(folder) if file.read_bytes() != (other / file.name).read_bytes()]
    names = rng.sample(different, rng.randint(1, len(different) - 1))  # all of them would be the other, whole
    for name in names:
        shutil.copyfile(other / name, folder / name)
    return different if MANIFEST in names else names


def link_a_file(folder: Path, other: Path, rng: random.Random) -> list[str]:
    file = rng.choice(files_of(folder))
    target = folder.parent / "elsewhere"
    file.rename(target)
    file.symlink_to(target)
    return [file.name]


def lie_about_the_step(folder: Path, other: Path, rng: random.Random) -> list[str]:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest[rng.choice(["step", "epoch", "format_version"])] += rng.randint(1, 9)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return [MANIFEST]


DAMAGES: list[Damage] = [
    flip_a_bit,
    cut_short,
    zero_the_tail,
    zero_a_range,
    append_bytes,
    remove_a_file,
    rename_a_file,
    swap_two_files,
    mix_with_another,
    link_a_file,
    lie_about_the_step,
]
