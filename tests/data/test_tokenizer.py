"""Laws of the tokenizers: exact round trips, untrusted text, the same bytes every time."""

import hashlib
import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers import tokenizer as module
from dtl.data.tokenizers.gpt2 import END, OFFLINE_PACKAGE
from dtl.data.tokenizers.tokenizer import MAX_TOKEN, PAD, Tokenizer, build_tokenizer
from dtl.errors import ConfigError, DataError
from dtl.registry import TOKENIZERS

KINDS = ("gpt2", "bpe", "byte", "char")
TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog; the dog does not mind.\nIt's 1999, and the fox is 7 years old.",
    "Question: Who minds the dog?\nAnswer: The fox  does.\t\r\n\n\n",
    "De\u0301ja\u0300 vu, d\u00e9j\u00e0 vu \U0001f642 \u05e9\u05dc\u05d5\u05dd",
    "<|endoftext|> is text here, and so is <|pad|>.",
]
HARD_TEXTS = [
    "",
    " ",
    "1999 and 7",
    "the  quick   dog",
    "De\u0301ja\u0300 vu",
    "the dog \U0001f642\U0001f642",
    "\u05e9\u05dc\u05d5\u05dd the dog",
    "the dog<|endoftext|>the fox<|pad|>",
    "the dog\n\n\n\nthe fox\r\n",
    "the dog   \n  ",
]
any_text = st.text(st.characters(codec="utf-8"))


@pytest.fixture(scope="module")
def built() -> dict[str, Tokenizer]:
    if importlib.util.find_spec(OFFLINE_PACKAGE) is None:
        pytest.skip("GPT-2's vocabulary comes with the `offline` extra")
    return {kind: build(kind) for kind in KINDS}


def build(kind: str, texts: list[str] = TRAINING_TEXT, vocab_size: int = 280) -> Tokenizer:
    return build_tokenizer(TokenizerConfig(kind=kind, vocab_size=vocab_size), lambda: texts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_text_round_trips(built: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = built[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert not {tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id} & set(ids)


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "byte"])
@given(text=any_text)
@settings(max_examples=150)
def test_any_string_round_trips(built: dict[str, Tokenizer], kind: str, text: str) -> None:
    assert built[kind].decode(built[kind].encode(text)) == text


@given(text=st.text(st.sampled_from(sorted(set("".join(TRAINING_TEXT))))))
@settings(max_examples=150)
def test_known_characters_round_trip(built: dict[str, Tokenizer], text: str) -> None:
    ids = built["char"].encode(text)
    assert len(ids) == len(text)
    assert built["char"].decode(ids) == text


def test_byte_ids_are_the_bytes(built: dict[str, Tokenizer]) -> None:
    text = "".join(HARD_TEXTS) + "\x00\x7f\x80\u00ad\u00ff"
    assert built["byte"].encode(text) == list(text.encode())
    assert [built["byte"].decode([b]) for b in range(128)] == [chr(b) for b in range(128)]


def test_unknown_characters_are_one_token_each_and_dropped(built: dict[str, Tokenizer]) -> None:
    char = built["char"]
    unknown = char.backend.token_to_id("<|unk|>")
    assert char.encode("\u00df\u00dfthe\u03a9") == [unknown, unknown, *char.encode("the"), unknown]
    assert char.decode(char.encode("\u00df\u00dfthe\u03a9")) == "the"


def test_special_tokens_come_last_and_decode_drops_them(built: dict[str, Tokenizer]) -> None:
    assert (built["gpt2"].eos_id, built["gpt2"].bos_id, built["gpt2"].pad_id) == (50256, 50256, 50256)
    assert [built[kind].vocab_size for kind in ("gpt2", "byte")] == [50257, 258]
    for kind, n_special in (("bpe", 2), ("byte", 2), ("char", 3)):
        tokenizer = built[kind]
        assert tokenizer.eos_id == tokenizer.bos_id == tokenizer.vocab_size - n_special
        assert tokenizer.pad_id == tokenizer.eos_id + 1
    for tokenizer in built.values():
        ids = [tokenizer.bos_id, *tokenizer.encode("the dog"), tokenizer.eos_id, tokenizer.pad_id]
        assert tokenizer.decode(ids) == "the dog"


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_texts(built: dict[str, Tokenizer], kind: str) -> None:
    batch = built[kind].encode_batch(HARD_TEXTS)
    assert batch == [built[kind].encode(text) for text in HARD_TEXTS]
    assert type(batch) is list and {type(ids) for ids in batch} == {list}
    assert built[kind].encode_batch([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_lone_surrogates_become_replacement_characters(built: dict[str, Tokenizer], kind: str) -> None:
    broken, mended = "the \ud800dog\udfff", "the \ufffddog\ufffd"
    assert built[kind].encode_batch(["fox", broken]) == [built[kind].encode("fox"), built[kind].encode(mended)]
    build(kind, [*TRAINING_TEXT, broken])  # neither does training stumble


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
@given(
    text=st.text(st.sampled_from("aZ9.' \n\t\r\u00a0\u00e9\u0301\u4e2d\x1c\u2028"), max_size=40),
    size=st.integers(1, 5),
)
@settings(max_examples=300)
def test_pieces_give_the_ids_of_the_whole(built: dict[str, Tokenizer], kind: str, text: str, size: int) -> None:
    pieces = list(module.pieces(text, size))
    assert "".join(pieces) == text
    whole = built[kind].backend.encode(text, add_special_tokens=False).ids
    assert [i for piece in pieces for i in built[kind].encode(piece)] == whole


def test_a_long_text_is_encoded_in_groups_of_pieces(built: dict[str, Tokenizer], monkeypatch) -> None:
    texts = ["the quick dog " * 50, "", "the fox\n" * 80, "x" * 500]
    expected = [built["gpt2"].backend.encode(text, add_special_tokens=False).ids for text in texts]
    groups: list[int] = []
    encode = Tokenizer._encode

    def counting(self: Tokenizer, pieces: list[str]) -> Iterator[list[int]]:
        groups.append(len(pieces))
        return encode(self, pieces)

    monkeypatch.setattr(Tokenizer, "_encode", counting)
    monkeypatch.setattr(module, "GROUP_CHARS", 300)
    monkeypatch.setattr(module, "pieces", lambda text, pieces=module.pieces: pieces(text, 31))
    assert built["gpt2"].encode_batch(texts) == expected
    assert len(groups) > 4 and max(groups) > 1


def test_bpe_has_the_size_asked_for_and_merges(built: dict[str, Tokenizer]) -> None:
    assert built["bpe"].vocab_size == 280 and built["bpe"].notes == ()
    assert len(built["bpe"].encode(" the the the")) == 3


def test_bpe_of_little_text_is_smaller_and_says_so() -> None:
    little = build("bpe", ["abab"], vocab_size=1000)
    assert little.vocab_size == 256 + 1 + 2  # "ab" occurs twice, "abab" once
    assert "tokenizer.vocab_size=1000" in little.notes[0] and "259" in little.notes[0]
    assert little.decode(little.encode("caf\u00e9")) == "caf\u00e9"


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_training_gives_the_same_bytes_in_another_process(built: dict[str, Tokenizer], kind: str) -> None:
    program = (
        "import json, sys; from dtl.data.config import TokenizerConfig; from dtl.data.tokenizers.tokenizer import *; "
        f"print(build_tokenizer(TokenizerConfig({kind!r}, 280), lambda: json.load(sys.stdin)).fingerprint)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=json.dumps(TRAINING_TEXT), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == build(kind).fingerprint == built[kind].fingerprint


def test_char_needs_text() -> None:
    with pytest.raises(DataError, match="tokenizer=char: there is no training text"):
        build("char", ["", ""])


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_an_error_in_the_training_text_comes_through(kind: str) -> None:
    def texts() -> Iterator[str]:
        yield "the dog"
        raise DataError("page 2 is damaged")

    with pytest.raises(DataError, match="page 2 is damaged"):
        build_tokenizer(TokenizerConfig(kind=kind), texts)


@pytest.mark.parametrize("kind", ["gpt2", "byte"])
def test_kinds_that_learn_nothing_read_no_text(built: dict[str, Tokenizer], kind: str) -> None:
    build_tokenizer(TokenizerConfig(kind=kind), lambda: pytest.fail("the training text was read"))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(built: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer = built[kind]
    tokenizer.save(tmp_path / "a", max_seq_len=64)
    loaded = Tokenizer.load(tmp_path / "a")
    loaded.save(tmp_path / "b", max_seq_len=64)
    keys = list(json.loads((tmp_path / "a" / "tokenizer_config.json").read_text()))
    assert keys == sorted(keys)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert hashlib.sha256((tmp_path / "a" / "tokenizer.json").read_bytes()).hexdigest() == tokenizer.fingerprint
    for name in ("kind", "vocab_size", "eos_id", "bos_id", "pad_id", "fingerprint"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert loaded.encode_batch(HARD_TEXTS) == tokenizer.encode_batch(HARD_TEXTS)
    assert loaded.decode([loaded.eos_id, *loaded.encode("the dog"), loaded.pad_id]) == "the dog"


def test_fingerprints_differ_with_the_vocabulary(built: dict[str, Tokenizer]) -> None:
    prints = {tokenizer.fingerprint for tokenizer in built.values()}
    assert len(prints | {build("bpe", vocab_size=279).fingerprint, build("char", ["other"]).fingerprint}) == 6


def test_a_kind_of_ones_own(monkeypatch) -> None:
    monkeypatch.setattr(TOKENIZERS, "_parts", dict(TOKENIZERS._parts))

    @TOKENIZERS.register("words")
    def words(config: TokenizerConfig, training_texts) -> tokenizers.Tokenizer:
        vocab = {word: i for i, word in enumerate(sorted({w for text in training_texts() for w in text.split()}))}
        backend = tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token="a"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return backend

    tokenizer = build("words", ["a bird", "a fish"])
    assert tokenizer.kind == "words" and tokenizer.vocab_size == 4
    assert tokenizer.encode("fish bird") == [2, 1]
    assert tokenizer.eos_id == tokenizer.bos_id == tokenizer.pad_id == 3
    with pytest.raises(ConfigError, match=r"tokenizer.kind=wrds.*Did you mean 'words'"):
        build("wrds")


def test_importing_the_module_loads_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub'}"
    program = f"import sys, dtl.data.tokenizers.tokenizer; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("word", ["".join(random.Random(3).choices("ab", k=5000)), " " * 5000, "天地玄黄" * 1250])
def test_a_text_without_spaces_gives_no_endless_tokens(word):
    """Each of its words was one token of thousands of bytes, after a time that grew with the square of its length."""
    tokenizer = build_tokenizer(TokenizerConfig("bpe", vocab_size=4096), lambda: [f"{word} one", f"{word} two"])
    assert 2 < max(map(len, set(tokenizer.backend.get_vocab()) - {END, PAD})) <= MAX_TOKEN
    assert tokenizer.decode(tokenizer.encode(word)) == word


def _words(n: int, seed: int) -> list[str]:
    """Texts of syllables, so that entries are made of entries in several ways."""
    choose = random.Random(seed)
    syllables = [a + b for a in "bdkmnst" for b in "aeiou"]
    words = ["".join(choose.choices(syllables, k=choose.randint(1, 5))) for _ in range(503)]
    return [" ".join(choose.choices(words, k=31)) for _ in range(n)]


@pytest.mark.parametrize(("much_text", "entries"), [(10**9, 311), (0, 487)])
def test_the_number_of_entries_follows_from_the_length_of_the_text(monkeypatch, much_text, entries) -> None:
    """Cut from the larger or not, the tokenizer is the one that this vocab_size gives."""
    monkeypatch.setattr(module, "SMALL_VOCABULARY", 311)
    monkeypatch.setattr(module, "LARGE_VOCABULARY", 487)
    monkeypatch.setattr(module, "MUCH_TEXT", much_text)
    texts = _words(211, seed=5)
    by_itself, asked = (build_tokenizer(TokenizerConfig("bpe", vocab_size=n), lambda: texts) for n in (None, entries))
    assert by_itself.vocab_size == entries
    assert by_itself.backend.to_str() == asked.backend.to_str()
    assert not by_itself.notes


def test_the_length_that_counts_is_that_of_the_training_text(monkeypatch) -> None:
    texts = _words(53, seed=7)
    monkeypatch.setattr(module, "SMALL_VOCABULARY", 311)
    monkeypatch.setattr(module, "LARGE_VOCABULARY", 487)
    for much_text, entries in ((len("".join(texts)), 487), (len("".join(texts)) + 1, 311)):
        monkeypatch.setattr(module, "MUCH_TEXT", much_text)
        assert build_tokenizer(TokenizerConfig("bpe"), lambda: texts).vocab_size == entries


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_a_path_that_nothing_would_read_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"tokenizer\.path=x\.json: tokenizer\.kind={kind} reads no file"):
        TokenizerConfig(kind=kind, path="x.json").validate()
    TokenizerConfig(kind="gpt2", path="x.json").validate()
