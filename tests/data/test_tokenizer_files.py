"""Tokenizers of other people's model directories, and what is said of damaged ones."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, normalizers, processors

from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers.gpt2 import OFFLINE_PACKAGE, byte_level_bpe, load_gpt2
from dtl.data.tokenizers.tokenizer import Tokenizer, build_tokenizer
from dtl.errors import CheckpointError

LETTERS = {letter: i for i, letter in enumerate("abcdeo\u0120")}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder such as a chat model's: special tokens in the middle, and silent traps in tokenizer.json."""
    backend = byte_level_bpe({**LETTERS, "ab": 7}, [("a", "b")])
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", AddedToken("<|im_end|>", lstrip=True)])
    backend.enable_truncation(3)
    backend.enable_padding(length=5)
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 9)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "tokenizer_config.json", {"eos_token": {"content": "<|im_end|>"}, "bos_token": None})
    return tmp_path


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def test_a_foreign_tokenizer_keeps_its_ids_and_loses_its_traps(foreign: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(foreign)
    assert tokenizer.encode("abcde <|im_end|>"[:9]) == [7, 2, 3, 4, 6]
    assert (tokenizer.kind, tokenizer.vocab_size) == ("huggingface", 11)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (10, 10, 10)
    assert tokenizer.decode([9, *tokenizer.encode("a bad deed"), 10]) == "a bad deed"
    tokenizer.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.kind, again.eos_id, again.encode("abcde")) == ("huggingface", 10, [7, 2, 3, 4])


def test_auto_tokenizer_agrees_on_a_foreign_tokenizer_saved_here(foreign: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.load(foreign)
    tokenizer.save(tmp_path / "again")
    write(tmp_path / "again", "config.json", {"model_type": "qwen3"})
    theirs = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert theirs("abcde abcde")["input_ids"] == tokenizer.encode("abcde abcde")
    assert theirs.eos_token_id == 10


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_special_ids_of_the_models_configs(foreign: Path, name: str) -> None:
    write(foreign, "tokenizer_config.json", {"pad_token": "<|endoftext|>"})
    write(foreign, name, {"eos_token_id": [10, 8], "bos_token_id": 9, "pad_token_id": 10})
    tokenizer = Tokenizer.load(foreign)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (10, 9, 8)


def test_a_published_gpt2_folder(tmp_path: Path) -> None:
    if importlib.util.find_spec(OFFLINE_PACKAGE) is None:
        pytest.skip("GPT-2's vocabulary comes with the `offline` extra")
    model = json.loads(load_gpt2().to_str())["model"]
    write(tmp_path, "vocab.json", model["vocab"])
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    write(tmp_path, "tokenizer_config.json", {"model_max_length": 1024})
    write(tmp_path, "config.json", {"model_type": "gpt2", "bos_token_id": 50256, "eos_token_id": 50256})
    tokenizer = Tokenizer.load(tmp_path)
    ours = build_tokenizer(TokenizerConfig(), list)
    assert (tokenizer.kind, tokenizer.fingerprint) == ("gpt2", ours.fingerprint)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (50256, 50256, 50256)


def test_vocab_json_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "vocab.json", {**LETTERS, "<|endoftext|>": 7})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    write(tmp_path, "config.json", {"model_type": "gpt2"})
    assert Tokenizer.load(tmp_path).encode("a bad deed<")[:3] == [0, 6, 1]
    write(tmp_path, "config.json", {"model_type": "qwen3"})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is needed"):
        Tokenizer.load(tmp_path)
    write(tmp_path, "config.json", {"model_type": "gpt2"})
    write(tmp_path, "added_tokens.json", {"<|user|>": 8})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is needed"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE"', "tokenizer.json: not a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: cannot be read as JSON"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json: cannot be read as JSON"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json: holds a list, expected an object"),
        ("tokenizer_config.json", '{"eos_token": "</s>"}', "eos_token='</s>' is not in the vocabulary"),
        ("tokenizer_config.json", '{"eos_token": 7}', "eos_token=7 is not in the vocabulary"),
        ("config.json", '{"pad_token_id": 11}', "config.json: pad_token_id=11 is not in the vocabulary"),
        ("config.json", '{"pad_token_id": -1}', "config.json: pad_token_id=-1 is not in the vocabulary"),
        ("config.json", '{"pad_token_id": "x"}', "config.json: pad_token_id='x' is not in the vocabulary"),
        ("config.json", '{"pad_token_id": true}', "config.json: pad_token_id=True is not in the vocabulary"),
    ],
)
def test_damage_is_named(foreign: Path, name: str, content: str, message: str) -> None:
    (foreign / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(foreign)
    assert message in str(caught.value) and str(foreign) in str(caught.value)


def test_a_tokenizer_that_fails_at_its_first_text_is_refused(tmp_path: Path) -> None:
    build_tokenizer(TokenizerConfig(kind="char"), lambda: ["abc"]).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"unk_token":"<|unk|>"', '"unk_token":"<|none|>"'))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer that can be read"):
        Tokenizer.load(tmp_path)


def test_missing_files_are_named(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        Tokenizer.load(tmp_path / "nowhere")
    shutil.copytree(foreign, tmp_path / "copy", ignore=lambda *_: ["copy"])
    (tmp_path / "copy" / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path / "copy").eos_id == 8  # <|endoftext|> is an end whatever the files say
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="copy: contains no tokenizer"):
        Tokenizer.load(tmp_path / "copy")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    byte_level_bpe(LETTERS, []).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="no end token"):
        Tokenizer.load(tmp_path)
