"""The fast encoder gives the ids of the other one, for GPT-2's vocabulary and learnt ones, or is not used."""

import json
import random
from itertools import product

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers import gpt2
from dtl.data.tokenizers.gpt2 import fast_encoder
from dtl.data.tokenizers.tokenizer import FAST_CHARS, Tokenizer, _byte_letters, build_tokenizer

if gpt2.carried() is None:
    pytest.skip("GPT-2's vocabulary comes with the `offline` extra", allow_module_level=True)

BACKEND = gpt2.load_gpt2()
FAST = fast_encoder(BACKEND, _byte_letters())
assert FAST is not None


def same_ids(texts: list[str]) -> None:
    assert FAST is not None
    expected = [encoding.ids for encoding in BACKEND.encode_batch(texts, add_special_tokens=False)]
    given = FAST(texts)
    different = [text for text, a, b in zip(texts, given, expected, strict=True) if a != b]
    assert not different, f"{len(different)} texts, the first: {different[0]!r}"


def test_every_entry_of_the_vocabulary():
    texts = [BACKEND.decode([number]) for number in range(BACKEND.get_vocab_size() - 1)]
    same_ids([text for text in texts if "\ufffd" not in text])


def test_every_character_below_u3000_in_each_kind_of_place():
    same_ids([f"a{c}b 1{c}2 .{c}! {c} {c}{c}\n {c}\tx" for c in map(chr, range(0x3000))])


@pytest.mark.slow
def test_every_character():
    points = [*range(0x3000, 0xD800), *range(0xE000, 0x110000)]
    for begin in range(0, len(points), 100_003):
        same_ids([f"a{c}b 1{c}2 .{c}! {c}{c}\n {c}x" for c in map(chr, points[begin : begin + 100_003])])


def test_several_blanks():
    """The last one before something else stands apart: of all kinds, and of what is one in Python alone or looks so."""
    blanks = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
    others = "\x1c\x1d\x1e\x1f\u180e\u200b\u2060\ufeff"
    runs = ["".join(run) for n in (2, 3) for run in product(blanks + others, repeat=n)]
    same_ids([f"a{run}b{run}.{run}" for run in runs])
    same_ids(["\n\n".join(runs), *runs])


def test_repetitions():
    """Overlapping merges show the order in which they are made."""
    odd = ["ab", "aab", "- ", "=-", "..,", "\n ", "  \n", " '", "ha", "é", "漢", "\u00a0"]
    counts = (*range(1, 40), 64, 127, 128, 129, 257)
    same_ids([part * n for part in (*odd, *map(chr, range(33, 127))) for n in counts])


@settings(max_examples=300)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_text(texts):
    same_ids(texts)


def test_entries_side_by_side():
    chooser = random.Random(5)
    entries = [BACKEND.decode([number]) for number in range(0, 50_000, 7)]
    same_ids(["".join(chooser.choices(entries, k=7)) for _ in range(3001)])


def test_a_long_text_gives_the_ids_of_its_parts():
    """Also a special token's text, which is text, and a lone surrogate, which is U+FFFD."""
    tokenizer = Tokenizer("gpt2", gpt2.load_gpt2())
    parts = ["Don't  stop,\n\n<|endoftext|> said 42 ", "caf\ud800é ", "\u00a0x\u2028 ", "\n   "]
    long = [part * (FAST_CHARS // len(part)) for part in parts]
    one_by_one = []
    for text in long:
        by_backend = tokenizer.backend.encode(text.replace("\ud800", "\ufffd"), add_special_tokens=False).ids
        one_by_one.append(by_backend)
    assert tokenizer.encode_batch(long) == one_by_one
    assert "_fast" in vars(tokenizer)  # it was used


def test_a_short_text_does_not_pay_for_it():
    tokenizer = Tokenizer("gpt2", gpt2.load_gpt2())
    tokenizer.encode("Hello")
    assert "_fast" not in vars(tokenizer)


# --- vocabularies of one's own --------------------------------------------------------------------------------------

WORDS = "the then there other ether either hello hollow low lowest slow slower ha haha hahaha über naïve 漢字 42 4,242"


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.sampled_from([300, 700, 2000]), st.lists(st.text(), min_size=1, max_size=3))
def test_a_learnt_vocabulary_too(seed, vocab_size, more):
    chooser = random.Random(seed)
    learnt_from = [
        " ".join(chooser.choices(WORDS.split(), k=211)) + text.encode("utf-8", "ignore").decode() for text in more
    ]
    tokenizer = build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=vocab_size), lambda: learnt_from)
    fast = fast_encoder(tokenizer.backend, _byte_letters())
    assert fast is not None
    texts = [*learnt_from, "".join(chooser.choices([*WORDS, *"\n\t  "], k=997)), "ha" * 131, "\u00a0é漢" * 17]
    assert fast(texts) == [encoding.ids for encoding in tokenizer.backend.encode_batch(texts, add_special_tokens=False)]


def vocabulary(*merges: tuple[str, str]) -> tokenizers.Tokenizer:
    letters = {letter: i for i, letter in enumerate(_byte_letters())}
    return gpt2.byte_level_bpe(letters | {a + b: 256 + i for i, (a, b) in enumerate(merges)}, list(merges))


def test_a_vocabulary_whose_tokens_can_be_made_in_two_ways_is_left_to_the_library():
    """Of "abc" `tokenizers` makes a + bc, which no entry joins; tiktoken would join them to abc."""
    ambiguous = vocabulary(("b", "c"), ("a", "b"), ("ab", "c"))
    assert ambiguous.encode("abc", add_special_tokens=False).tokens == ["a", "bc"]
    assert fast_encoder(ambiguous, _byte_letters()) is None
    assert fast_encoder(vocabulary(("a", "b"), ("b", "c"), ("ab", "c")), _byte_letters()) is not None


def test_without_merges_every_byte_is_itself():
    assert fast_encoder(vocabulary(), _byte_letters()) is not None


@pytest.mark.parametrize("change", ["merges", "ids", "normalizer", "pre_tokenizer", "added"])
def test_what_changes_the_ids_leaves_it_to_the_library(change):
    parts = json.loads(BACKEND.to_str())
    if change == "merges":
        parts["model"]["merges"][-1], parts["model"]["merges"][-2] = parts["model"]["merges"][-2:]
    elif change == "ids":
        vocabulary = parts["model"]["vocab"]
        vocabulary["the"], vocabulary["and"] = vocabulary["and"], vocabulary["the"]
    elif change == "added":
        added = {"id": 50_257, "content": "[new]", "special": False}
        keys = ("single_word", "lstrip", "rstrip", "normalized")
        parts["added_tokens"].append(added | dict.fromkeys(keys, False))
    elif change == "normalizer":
        parts["normalizer"] = {"type": "Lowercase"}
    else:
        parts["pre_tokenizer"]["add_prefix_space"] = True
    assert fast_encoder(tokenizers.Tokenizer.from_str(json.dumps(parts)), _byte_letters()) is None
    assert fast_encoder(gpt2.byte_level_bpe({}, []), _byte_letters()) is None
