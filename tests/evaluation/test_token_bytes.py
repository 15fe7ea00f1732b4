"""Bytes of text behind tokens: they add up to the text, with every tokenizer."""

import pytest
from checkpoint_examples import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from dtl.evaluation.text import count_token_bytes

TOKENIZERS = {kind: tiny_tokenizer(kind) for kind in ("byte", "bpe", "char")}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_of_any_text_add_up(text):
    for kind in ("byte", "bpe"):
        token_bytes = count_token_bytes(TOKENIZERS[kind])
        assert token_bytes[TOKENIZERS[kind].encode(text)].sum() == len(text.encode())


@given(st.text("QuestionAswrParc. é🙂ש\n"))
def test_bytes_of_known_characters_add_up(text):
    assert count_token_bytes(TOKENIZERS["char"])[TOKENIZERS["char"].encode(text)].sum() == len(text.encode())


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_tokens_have_no_text(kind):
    tokenizer = TOKENIZERS[kind]
    token_bytes = count_token_bytes(tokenizer)
    assert token_bytes.shape == (tokenizer.vocab_size,)
    assert token_bytes[[tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id]].tolist() == [0, 0, 0]


def test_an_unknown_character_had_at_least_a_byte():
    tokenizer = TOKENIZERS["char"]
    assert count_token_bytes(tokenizer)[tokenizer.encode("жж")].tolist() == [1, 1]
