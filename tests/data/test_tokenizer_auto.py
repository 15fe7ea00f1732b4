"""A checkpoint's tokenizer means the same to `AutoTokenizer`, under both architectures."""

import importlib.util
import json
from pathlib import Path

import pytest

from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers.gpt2 import OFFLINE_PACKAGE
from dtl.data.tokenizers.tokenizer import Tokenizer, build_tokenizer

KINDS = ("gpt2", "bpe", "byte", "char")
ARCHITECTURES = ("qwen3", "gpt2")
TEXTS = {
    "digits": "In 1999 there were 1234567890 of 3.14",
    "double spaces": "two  spaces   and    more",
    "combining accents": "De\u0301ja\u0300 vu, d\u00e9j\u00e0 vu",
    "emoji": "\U0001f642 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0627\u0644\u0639\u0631\u0628\u064a\u0629 1, 2",
    "end token as text": "one<|endoftext|>two <|endoftext|> <|pad|><|unk|>",
    "newline runs": "a\n\n\nb\n\n c\r\n\r\nd\n",
    "trailing spaces": "  trailing   \n  ",
    "contractions": "I'm, you're, IT'S",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, tuple[Tokenizer, Path]]:
    if importlib.util.find_spec(OFFLINE_PACKAGE) is None:
        pytest.skip("GPT-2's vocabulary comes with the `offline` extra")
    root = tmp_path_factory.mktemp("tokenizers")
    # One text stays out of training, so that `char` meets unknown characters too.
    training = [text for name, text in TEXTS.items() if name != "right to left"]
    result = {}
    for kind in KINDS:
        tokenizer = build_tokenizer(TokenizerConfig(kind=kind, vocab_size=290), lambda: training)
        tokenizer.save(root / kind, max_seq_len=1024)
        result[kind] = (tokenizer, root / kind)
    return result


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_auto_tokenizer_gives_equal_ids(saved: dict[str, tuple[Tokenizer, Path]], kind: str, architecture: str) -> None:
    from transformers import AutoTokenizer

    ours, folder = saved[kind]
    (folder / "config.json").write_text(json.dumps({"model_type": architecture}))
    theirs = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    assert len(theirs) == ours.vocab_size
    assert theirs.model_max_length == 1024
    for name, text in TEXTS.items():
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids, name
        assert theirs.encode(text) == ids, name
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids), name
    assert theirs(list(TEXTS.values()))["input_ids"] == ours.encode_batch(list(TEXTS.values()))
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (ours.eos_id, ours.bos_id, ours.pad_id)
    assert theirs.unk_token_id == ours.backend.token_to_id("<|unk|>")
    ends = [ours.bos_id, *ours.encode("1999"), ours.eos_id, ours.pad_id]
    assert theirs.decode(ends, skip_special_tokens=True) == ours.decode(ends) == "1999"


@pytest.mark.parametrize("kind", KINDS)
def test_end_tokens_are_tokens_to_others_and_text_to_dtl(saved: dict[str, tuple[Tokenizer, Path]], kind: str) -> None:
    """Trainers append the end token as text, TRL for one: a model would learn to spell it, and never stop."""
    from transformers import AutoTokenizer

    ours, folder = saved[kind]
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs("1999" + theirs.eos_token)["input_ids"] == [*ours.encode("1999"), ours.eos_id]
    for tokenizer in (ours, Tokenizer.load(folder)):
        assert ours.eos_id not in tokenizer.encode("1999" + theirs.eos_token)
    assert theirs(["1999", "1"], padding=True)["attention_mask"][1][-1] == 1  # padded on the left


@pytest.mark.parametrize("kind", KINDS)
def test_saved_again_by_transformers_it_still_loads(
    saved: dict[str, tuple[Tokenizer, Path]], kind: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    ours, folder = saved[kind]
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode_batch(list(TEXTS.values())) == ours.encode_batch(list(TEXTS.values()))
    assert (again.eos_id, again.bos_id, again.pad_id) == (ours.eos_id, ours.bos_id, ours.pad_id)
