"""Saving and loading: lossless, safe for untrusted files, and readable by Hugging Face."""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_examples import TEXTS, flip_a_bit, moments, save, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

from dtl.base.files import MANIFEST, write_manifest
from dtl.checkpoints import save as checkpoint
from dtl.checkpoints import weights
from dtl.checkpoints.listing import FILES, list_checkpoints, verify
from dtl.checkpoints.load import load_model, load_tokenizer, load_training_state
from dtl.checkpoints.save import save_checkpoint
from dtl.checkpoints.upkeep import publish_best
from dtl.errors import CheckpointError

ids_bt = torch.tensor([[3, 1, 4, 1, 5, 92, 65], [3, 5, 89, 79, 32, 38, 46]])


def logits(model: torch.nn.Module, ids: torch.Tensor = ids_bt) -> torch.Tensor:
    with torch.no_grad():
        out = model(ids)
    return out if isinstance(out, torch.Tensor) else out.logits.float()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# --- what is saved comes back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["modern", "classic"])
@pytest.mark.parametrize("tied", [True, False])
def test_everything_comes_back_exactly(tmp_path: Path, block: str, tied: bool) -> None:
    model, tokenizer = tiny_model(block, tie_embeddings=tied), tiny_tokenizer()
    state = {
        "step": 12,
        "epoch": 3,
        "best": {"value": 0.1 + 0.2, "step": 9},
        "seconds": 1e-300,
        "tokens": 2**53 + 1,
        "random": {"cpu": "AAEC/w=="},
        "none": None,
        "flags": [True, False, []],
    }
    folder = save_checkpoint(tmp_path, model, tokenizer, "name: grüße\n", state, moments(model))
    assert folder == tmp_path / "checkpoints" / "step-00000012"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, MANIFEST])
    verify(folder)

    loaded = load_model(folder)
    assert loaded.config == model.config
    assert not loaded.training
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert torch.equal(logits(loaded), logits(model))
    assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint
    values, tensors = load_training_state(folder)
    assert values == state
    assert tensors.keys() == moments(model).keys()
    assert all(torch.equal(tensor, moments(model)[name]) for name, tensor in tensors.items())
    assert (folder / "config.yaml").read_text(encoding="utf-8") == "name: grüße\n"


def test_the_model_file_has_no_other_metadata_and_is_readable_by_the_group(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    raw = (folder / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert header["__metadata__"] == {"format": "pt"}
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert len(set(modes.values())) == 1, modes


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; import checkpoint_examples\n"
        "checkpoint_examples.save(Path(sys.argv[2]), 30)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(tmp_path / "theirs")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    save(tmp_path / "ours", 30)
    (theirs,), (ours,) = list_checkpoints(tmp_path / "theirs"), list_checkpoints(tmp_path / "ours")
    assert theirs.digest == ours.digest != ""


def test_the_order_of_keys_makes_no_difference(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for name, state in (("a", {"step": 1, "epoch": 0}), ("b", {"epoch": 0, "step": 1})):
        save_checkpoint(tmp_path / name, model, tokenizer, "", state, {})
    assert list_checkpoints(tmp_path / "a")[0].digest == list_checkpoints(tmp_path / "b")[0].digest


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_gives_its_best_and_best_gives_itself(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    publish_best(tmp_path, first)
    second = save(tmp_path, 2)
    for path in (tmp_path, str(tmp_path), tmp_path / "checkpoints" / "best"):
        assert torch.equal(logits(load_model(path)), logits(load_model(first)))
    assert not torch.equal(logits(load_model(second)), logits(load_model(first)))
    assert load_training_state(tmp_path / "checkpoints" / "best")[0]["step"] == 1


# --- saving again, and what is not saved ------------------------------------------------------------------------


def test_saving_the_same_again_changes_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert save(tmp_path, 1) == folder
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_another_state_of_the_same_step_replaces_it(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    save(tmp_path, 1, best=0.25)
    assert load_training_state(folder)[0]["best"] == 0.25
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_damaged_one_of_the_same_step_moves_aside(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "state.json").write_text("{}")
    save(tmp_path, 1)
    verify(folder)
    assert (folder.parent / "step-00000001.damaged" / "state.json").read_text() == "{}"
    assert [entry.step for entry in list_checkpoints(tmp_path)] == [1]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"a": {"b": [1, float("nan")]}}, r"state\.a\.b\[1\]=nan"),
        ({"loss": float("inf")}, r"state\.loss=inf"),
        ({"pair": (1, 2)}, r"state\.pair="),
        ({"x": {1: 2}}, r"state\.x: the key 1"),
        ({"path": Path("x")}, r"state\.path="),
        ({"epoch": 1.0}, r"state\.epoch=1\.0"),
        ({"epoch": -1}, r"state\.epoch=-1"),
    ],
)
def test_a_state_that_json_would_change_is_refused(tmp_path: Path, more: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        save(tmp_path, 1, **more)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, bad: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].mlp_norm.weight[3] = bad  # pyright: ignore
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp_norm\.weight and 0 others are not finite at step 4"):
        save_checkpoint(tmp_path, model, tiny_tokenizer(), "", {"step": 4, "epoch": 0}, {})
    assert not (tmp_path / "checkpoints").exists()


def test_a_tokenizer_that_the_model_has_no_rows_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="258 tokens and the model embeds 257"):
        save_checkpoint(tmp_path, tiny_model(vocab_size=257), tiny_tokenizer(), "", {"step": 4, "epoch": 0}, {})


# --- Hugging Face reads it, and is read -------------------------------------------------------------------------


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("block", "kinds"),
    [
        ("modern", ["bpe", "char"]),
        ("classic", ["gpt2"]),
        pytest.param("modern", ["byte", "gpt2"], marks=pytest.mark.slow),
        pytest.param("classic", ["byte", "char", "bpe"], marks=pytest.mark.slow),
    ],
)
def test_transformers_loads_every_checkpoint(tmp_path: Path, block: str, kinds: list[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for kind in kinds:
        tokenizer = tiny_tokenizer(kind)
        model = tiny_model(block, vocab_size=tokenizer.vocab_size)
        folder = save_checkpoint(tmp_path / kind, model, tokenizer, "", {"step": 1, "epoch": 0}, {})
        twin = AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = ids_bt % tokenizer.vocab_size
        assert relative_error(logits(twin, ids), logits(model, ids)) <= 1e-4
        assert twin.generation_config.eos_token_id == tokenizer.eos_id
        assert twin.generation_config.pad_token_id == tokenizer.pad_id
        theirs = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
        for text in [*TEXTS, "<|endoftext|>", "e\u0301  12"]:
            assert theirs(text)["input_ids"] == load_tokenizer(folder).encode(text) == tokenizer.encode(text)


def save_twin(folder: Path, block: str, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> torch.nn.Module:
    """A Hugging Face directory as transformers writes it; returns the model."""
    import transformers

    if block == "modern":
        config: Any = transformers.Qwen3Config(
            vocab_size=101, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=6, max_position_embeddings=37,
        )  # fmt: skip
        twin: Any = transformers.Qwen3ForCausalLM(config)
    else:
        config = transformers.GPT2Config(vocab_size=101, n_embd=24, n_layer=2, n_head=4, n_positions=37)
        twin = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_(std=0.3)
    twin = twin.to(dtype).eval()
    twin.save_pretrained(folder, max_shard_size=shard)
    return twin.float()


@pytest.mark.parametrize("block", ["modern", "classic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard", ["5GB", "15KB"])
def test_what_transformers_writes_is_loaded(tmp_path: Path, block: str, dtype: torch.dtype, shard: str) -> None:
    twin = save_twin(tmp_path, block, dtype, shard)
    assert (tmp_path / weights.INDEX).exists() == (shard != "5GB")
    model = load_model(tmp_path)
    assert next(model.parameters()).dtype == torch.float32
    assert relative_error(logits(model), logits(twin)) <= 1e-4


def test_gpt2_without_its_prefix_is_loaded(tmp_path: Path) -> None:
    twin: Any = save_twin(tmp_path, "classic")
    shutil.rmtree(tmp_path)
    twin.transformer.save_pretrained(tmp_path)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    assert relative_error(logits(load_model(tmp_path)), logits(twin)) <= 1e-4


def test_a_model_directory_has_no_state_to_resume(tmp_path: Path) -> None:
    save_twin(tmp_path, "classic")
    with pytest.raises(CheckpointError, match=f"init={tmp_path}"):
        load_training_state(tmp_path)


# --- nothing is believed ----------------------------------------------------------------------------------------


def model_directory(folder: Path) -> Path:
    """The Hugging Face files of a checkpoint, without the manifest that would detect any change."""
    source = save(folder.parent / "run", 1)
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    load_model(folder)
    return folder


def set_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_checkpoint_without_its_manifest_is_not_taken_for_a_model_directory(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / MANIFEST).unlink()
    for load in (load_model, load_tokenizer, load_training_state):
        with pytest.raises(CheckpointError, match=r"manifest\.json: missing, so this folder was never finished"):
            load(folder)


@pytest.mark.fault("hostile-model")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickles_are_refused_by_name_with_the_remedy(tmp_path: Path, name: str) -> None:
    folder, canary = model_directory(tmp_path / "hf"), tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(canary).encode())
    with pytest.raises(CheckpointError, match=rf"{name}: pickled weights[\s\S]*save_pretrained"):
        load_model(folder)
    assert not canary.exists()


@pytest.mark.fault("wrong-shape", "hostile-model")
@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**15},
        {"hidden_size": 10**9},
        {"intermediate_size": 10**12},
        {"num_hidden_layers": 10**9},
        {"head_dim": 10**12},
        {"intermediate_size": 10**6, "num_hidden_layers": 1000},
    ],
)
def test_a_config_that_claims_more_than_the_weights_hold_allocates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    folder = model_directory(tmp_path / "hf")
    set_config(folder, **changes)
    monkeypatch.setattr(checkpoint, "TransformerLM", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(CheckpointError, match=r"of different models|must be at most"):
        load_model(folder)


@pytest.mark.fault("wrong-shape")
def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    folder = model_directory(tmp_path / "hf")
    set_config(folder, intermediate_size=16)
    with pytest.raises(CheckpointError, match=r"mlp\.\w+\.weight has shape"):
        load_model(folder)


@pytest.mark.fault("hostile-config")
def test_a_config_is_data_and_never_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTL_CANARY", "sesame")
    folder = model_directory(tmp_path / "hf")
    set_config(folder, dtl={"arch": {"block": "${oc.env:DTL_CANARY}"}})
    with pytest.raises(CheckpointError, match="interpolation") as caught:
        load_model(folder)
    assert "sesame" not in str(caught.value)


def write_header(file: Path, header: bytes, data: bytes = b"", claimed: int | None = None) -> None:
    file.write_bytes(struct.pack("<Q", len(header) if claimed is None else claimed) + header + data)


TENSOR = b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,%d]}}'


@pytest.mark.fault("hostile-model")
@pytest.mark.parametrize(
    ("header", "claimed"),
    [
        (b"", 2**63),
        (b"", 100),
        (b"{}", 2),
        (b"[]", None),
        (b"\xff" * 20, None),
        (b"[" * 100_000, None),
        (b'{"a":' * 10_000, None),
        (TENSOR % (b"[1000000,1000000]", 4), None),
        (TENSOR % (b"[1]", 4 * 10**12), None),
        (TENSOR % (b"[-1]", 4), None),
        (TENSOR % (b'"x"', 4), None),
        (TENSOR % (b"null", 4), None),
        (b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', None),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: bytes, claimed: int | None) -> None:
    folder = model_directory(tmp_path / "hf")
    write_header(folder / "model.safetensors", header, b"\0" * 4, claimed)
    with pytest.raises(CheckpointError, match="hf"):
        load_model(folder)
    if header != b"{}":  # no tensors at all is an optimizer that has not begun
        with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
            weights.read_tensors([folder / "model.safetensors"])


@pytest.mark.fault("hostile-model")
def test_a_header_beyond_all_reason_is_refused(tmp_path: Path) -> None:
    folder = model_directory(tmp_path / "hf")
    raw = (folder / "model.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    for padding, fits in ((2**20, True), (weights.MAX_HEADER_BYTES, False)):  # spaces change nothing else
        write_header(folder / "model.safetensors", raw[8:end] + b" " * padding, raw[end:])
        if fits:
            load_model(folder)
        else:
            with pytest.raises(CheckpointError, match="header claims"):
                load_model(folder)


@pytest.mark.parametrize("name", ["../part.safetensors", "{0}/part.safetensors", "part.bin", "", "gone.safetensors"])
def test_an_index_names_safetensors_files_beside_it(tmp_path: Path, name: str) -> None:
    folder = model_directory(tmp_path / "hf")
    for outside in (tmp_path, folder):
        shutil.copyfile(folder / "model.safetensors", outside / "part.safetensors")
    (folder / "part.bin").touch()
    (folder / "model.safetensors").unlink()
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": {"a": name.replace("{0}", str(tmp_path))}}))
    message = "gone.safetensors: missing" if name.startswith("gone") else "not a safetensors file next to it"
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = model_directory(tmp_path / "hf")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"model.norm.weight": torch.zeros(16)}, folder / "b.safetensors")
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is also in another shard"):
        load_model(folder)


@pytest.mark.fault("formats")
def test_a_checkpoint_of_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / MANIFEST).unlink()
    write_manifest(folder, format_version=99, step=1, epoch=0)
    with pytest.raises(CheckpointError, match=r"format 99 by a newer DTL.*Upgrade DTL"):
        load_model(folder)


def test_a_manifest_that_leaves_files_out_is_not_a_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    for name in (MANIFEST, "state.json"):
        (folder / name).unlink()
    write_manifest(folder, format_version=1, step=1, epoch=0)
    with pytest.raises(CheckpointError, match="not the manifest of a checkpoint"):
        verify(folder)


@pytest.mark.fault("hostile-model", "hostile-config")
def test_nothing_runs_or_connects_while_a_checkpoint_loads(tmp_path: Path) -> None:
    """An audit hook, in its own process: it cannot be removed."""
    folder = save(tmp_path, 1)
    code = (
        "import sys\nfrom dtl.checkpoints.load import load_model, load_tokenizer, load_training_state\n"
        "from pathlib import Path\nimport tokenizers\nevents = []\n"
        "bad = ('os.system', 'os.exec', 'os.posix_spawn', 'subprocess.Popen', 'socket.connect', 'pickle.find_class')\n"
        "folder = Path(sys.argv[1])\n"
        "load_model(folder)\n"  # what is imported late is imported now
        "sys.addaudithook(lambda event, args: events.append(event) if event in bad else None)\n"
        "load_model(folder); load_tokenizer(folder); load_training_state(folder)\nprint(events)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_damage_is_told_with_the_way_on(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (name,) = flip_a_bit(folder, folder, random.Random(0))
    with pytest.raises(CheckpointError) as caught:
        verify(folder)
    message = str(caught.value)
    assert name in message
    assert f"{tmp_path}: its newest valid checkpoint is used" in message
    assert len(message.splitlines()) <= 6
