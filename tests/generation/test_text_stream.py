"""Laws of text that comes in pieces: joined they are the whole, and nothing that was shown is ever taken back."""

import importlib.util
from collections.abc import Sequence
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers.gpt2 import OFFLINE_PACKAGE
from dtl.data.tokenizers.tokenizer import Tokenizer, build_tokenizer
from dtl.generation.conversation import UNDECIDED, StopTexts, TokenDecoder, before_stop

TRAINING_TEXT = ["De\u0301ja\u0300 vu \U0001f642 the quick brown fox; the dog \u05e9\u05dc\u05d5\u05dd \ufffd\n" * 3]
# Letters of one to four bytes, combining, joined, right to left, and the replacement character itself.
LETTERS = ["a", " ", "\n", "\u00e9", "\u0301", "\u05e9", "\u20ac", "\ufffd", "\U0001f642"]
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f3fd"  # one picture, 5 code points, 18 bytes
BYTE_LEVEL = ("byte", "bpe", "gpt2")
KINDS = (*BYTE_LEVEL, "char", "metaspace", "wordpiece", "byte_fallback")


def build(kind: str) -> Tokenizer:
    if kind == "gpt2" and importlib.util.find_spec(OFFLINE_PACKAGE) is None:
        pytest.skip("GPT-2's vocabulary comes with the `offline` extra")
    if kind in (*BYTE_LEVEL, "char"):
        return build_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), lambda: TRAINING_TEXT)
    words = {
        # SentencePiece's: a space is part of the word, and the first one of a text is none.
        "metaspace": [
            "\u2581",
            "\u2581\u2581",
            "\u2581a",
            "\u2581the",
            "a",
            "\u00e9",
            "\U0001f642",
            "\u2581.",
            "\ufffd",
        ],
        # BERT's: words are apart, unless they begin with ##.
        "wordpiece": ["a", "##a", "the", "##\u00e9", ".", ",", "n't", "'s", "\U0001f642", "do", "not", "\ufffd"],
        # Llama's: SentencePiece's with a token for each byte of what is not in the vocabulary.
        "byte_fallback": ["\u2581", "\u2581a", "\u2581the", "a", "\u00e9", *[f"<0x{byte:02X}>" for byte in range(256)]],
    }[kind]
    decoder = {
        "metaspace": decoders.Metaspace(),
        "wordpiece": decoders.WordPiece(),
        "byte_fallback": decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    }[kind]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    backend.decoder = decoder  # pyright: ignore
    return Tokenizer("huggingface", backend)


@pytest.fixture(scope="module")
def built() -> dict[str, Tokenizer]:
    return {}


def of_kind(built: dict[str, Tokenizer], kind: str) -> Tokenizer:
    if kind not in built:
        built[kind] = build(kind)
    return built[kind]


def assert_pieces_are_the_text(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """At every token: what was shown, with what is held back, is the text so far. So nothing shown ever changes."""
    decoder = TokenDecoder(tokenizer)
    pieces: list[str] = []
    for i, token in enumerate(ids):
        pieces.append(decoder.feed(token))
        assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids[: i + 1])
    return pieces


def held_back(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    decoder = TokenDecoder(tokenizer)
    for token in ids:
        decoder.feed(token)
    return decoder.flush()


def random_ids(data: st.DataObject, tokenizer: Tokenizer) -> list[int]:
    """Special tokens are among them, and of bytes in a row few are UTF-8."""
    return data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))


@pytest.mark.fault("broken-utf8")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "byte_fallback"])
@given(data=st.data())
@settings(max_examples=150)
def test_pieces_of_random_tokens_are_the_text(built: dict[str, Tokenizer], kind: str, data: st.DataObject) -> None:
    tokenizer = of_kind(built, kind)
    assert_pieces_are_the_text(tokenizer, random_ids(data, tokenizer))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150)
def test_only_what_is_no_character_yet_is_held_back(
    built: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    """And nothing else: text comes as soon as it is certain."""
    tokenizer = of_kind(built, kind)
    decoder = TokenDecoder(tokenizer)
    for token in random_ids(data, tokenizer):
        piece = decoder.feed(token)
        assert not piece.endswith(UNDECIDED)
        assert set(decoder.flush()) <= {UNDECIDED}


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@given(text=st.text(st.sampled_from(LETTERS), max_size=20))
@example(text=FAMILY * 2)
@settings(max_examples=100)
def test_whole_characters_only(built: dict[str, Tokenizer], kind: str, text: str) -> None:
    """Of well-formed text no piece holds a replacement character that is not the text's own."""
    tokenizer = of_kind(built, kind)
    pieces = assert_pieces_are_the_text(tokenizer, tokenizer.encode(text))
    assert "".join(pieces).rstrip(UNDECIDED) == text.rstrip(UNDECIDED)


def test_a_character_comes_with_its_last_byte(built: dict[str, Tokenizer]) -> None:
    tokenizer = of_kind(built, "byte")
    for letter in ("\u00e9", "\u20ac", "\U0001f642"):
        n_bytes = len(letter.encode())
        assert assert_pieces_are_the_text(tokenizer, tokenizer.encode(f"a{letter}b")) == [
            "a",
            *[""] * (n_bytes - 1),
            letter,
            "b",
        ]


def test_a_family_comes_person_by_person(built: dict[str, Tokenizer]) -> None:
    """Code points, not pictures: which of them melt into one only the terminal knows."""
    tokenizer = of_kind(built, "byte")
    pieces = assert_pieces_are_the_text(tokenizer, tokenizer.encode(FAMILY + "e\u0301"))
    assert [piece for piece in pieces if piece] == [*FAMILY, "e", "\u0301"]


@pytest.mark.fault("broken-utf8")
@pytest.mark.parametrize(
    "broken",
    [
        b"\xff",
        b"\x80\x80",  # the ends of characters without their beginnings
        b"\xf0\x9f\x99",  # a beginning without its end
        b"\xf0\x9fa\xf0\x9f\x99\x82",
        b"\xc3\xc3\xa9",
        b"\xe2\x82\xe2\x82\xac",
        b"\xed\xa0\x80",  # a surrogate
        b"\xf4\x90\x80\x80",  # beyond Unicode
        b"\xc0\x80",  # overlong
        b"\xef\xbf\xbd\xf0\x9f",  # the replacement character itself, then half a character
    ],
)
@pytest.mark.parametrize("kind", ["byte", "gpt2"])
def test_broken_characters(built: dict[str, Tokenizer], kind: str, broken: bytes) -> None:
    tokenizer = of_kind(built, kind)
    letters = [tokenizer.encode(chr(byte))[0] if byte < 0x80 else _byte_id(tokenizer, byte) for byte in broken]
    pieces = assert_pieces_are_the_text(tokenizer, letters)
    assert "".join(pieces) + held_back(tokenizer, letters) == broken.decode(errors="replace")


def _byte_id(tokenizer: Tokenizer, byte: int) -> int:
    """Of a byte from 0x80 on; the letters that stand for bytes are those of GPT-2."""
    from dtl.data.tokenizers.tokenizer import _byte_letters

    found = tokenizer.backend.token_to_id(_byte_letters()[byte])
    assert found is not None
    return found


def test_a_special_token_inside_a_text_leaves_its_neighbours_as_they_are(built: dict[str, Tokenizer]) -> None:
    """The first space of a text is none; the first after a token that is not shown is one."""
    tokenizer = of_kind(built, "metaspace")
    a, end = tokenizer.backend.token_to_id("\u2581a"), tokenizer.eos_id
    assert a is not None
    assert assert_pieces_are_the_text(tokenizer, [end, a, end, a, end, end, a]) == ["", "a", "", " a", "", "", " a"]


def fallback_ids(tokenizer: Tokenizer, tokens: Sequence[str | int]) -> list[int]:
    """Words as they are, numbers as bytes."""
    found = [tokenizer.backend.token_to_id(token if isinstance(token, str) else f"<0x{token:02X}>") for token in tokens]
    return [i for i in found if i is not None]


@given(st.lists(st.sampled_from(["\u2581", "\u2581a", "a", "\u00e9", *LETTERS]), max_size=12))
def test_byte_tokens_of_whole_characters_are_the_text(built: dict[str, Tokenizer], words: list[str]) -> None:
    """SentencePiece writes a character that it does not know as its bytes."""
    tokenizer = of_kind(built, "byte_fallback")
    tokens = [t for word in words for t in ([word] if tokenizer.backend.token_to_id(word) else list(word.encode()))]
    ids = fallback_ids(tokenizer, tokens)
    decoder = TokenDecoder(tokenizer)
    pieces = [decoder.feed(token) for token in ids]
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids)
    assert sum(map(bool, pieces)) >= sum(word not in ("\u2581", " ", UNDECIDED) for word in words)


def test_byte_tokens_make_characters(built: dict[str, Tokenizer]) -> None:
    tokenizer = of_kind(built, "byte_fallback")
    decoder = TokenDecoder(tokenizer)
    ids = fallback_ids(tokenizer, ["\u2581a", *"\u00e9\U0001f642".encode(), "\u2581a"])
    assert [decoder.feed(i) for i in ids] == ["a", "", "\u00e9", "", "", "", "\U0001f642", " a"]


def test_what_was_shown_stays_when_a_byte_token_breaks_it(built: dict[str, Tokenizer]) -> None:
    """`decode` takes back the whole letter before a broken byte; nobody can take back what was shown."""
    tokenizer = of_kind(built, "byte_fallback")
    ids = fallback_ids(tokenizer, ["a", *"\u00e9".encode(), 0xFF, "\u2581a"])
    assert tokenizer.decode(ids) == "a\ufffd\ufffd\ufffd a"
    decoder = TokenDecoder(tokenizer)
    assert [decoder.feed(i) for i in ids] == ["a", "", "\u00e9", "", "\ufffd\ufffd a"]


# --- stop texts ---------------------------------------------------------------------------------------------------

few_letters = st.text(st.sampled_from("ab\n"), max_size=12)
stop_texts = st.lists(st.text(st.sampled_from("ab\n"), min_size=1, max_size=5), max_size=4)


def fed(pieces: Sequence[str], texts: Sequence[str]) -> tuple[str, StopTexts]:
    stops = StopTexts(texts)
    shown = "".join([stops.feed(piece) for piece in pieces])
    return shown + stops.flush(), stops


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(few_letters, stop_texts, st.lists(st.integers(0, 12), max_size=12))
@example("aab", ["ab", "aab"], [0, 1, 2, 2])
@example("abab\n", ["bab", "b\n"], [1, 2, 3, 4])
@settings(max_examples=500)
def test_pieces_stop_where_the_whole_text_does(text: str, texts: list[str], places: list[int]) -> None:
    found, stops = fed(cut(text, places), texts)
    assert found == before_stop(text, texts)
    assert stops.found == any(stop in text for stop in texts)


@given(few_letters, stop_texts)
@settings(max_examples=500)
def test_the_text_up_to_the_first_stop_that_is_complete(text: str, texts: list[str]) -> None:
    """Against the plain words of it: the shortest beginning of the text that ends with a stop text, without the
    longest that it ends with."""
    ended = next((text[:n] for n in range(1, len(text) + 1) if any(text[:n].endswith(stop) for stop in texts)), None)
    if ended is None:
        assert before_stop(text, texts) == text
    else:
        longest = max((stop for stop in texts if ended.endswith(stop)), key=len)
        assert before_stop(text, texts) == ended.removesuffix(longest)


@given(few_letters, stop_texts)
def test_no_stop_text_is_ever_shown(text: str, texts: list[str]) -> None:
    stops = StopTexts(texts)
    shown = ""
    for letter in text:
        shown += stops.feed(letter)
        assert not any(stop in shown for stop in texts)
        # Nor the beginning of one that is then completed: what is shown is certain.
        assert before_stop(text, texts).startswith(shown)


@given(few_letters, stop_texts)
def test_only_what_may_begin_a_stop_text_is_held_back(text: str, texts: list[str]) -> None:
    stops = StopTexts(texts)
    shown = stops.feed(text)
    held = text.removeprefix(shown)
    if not stops.found and held:
        assert any(stop.startswith(held) for stop in texts)


def test_nothing_follows_a_stop_text() -> None:
    stops = StopTexts(["\n\n"])
    assert [stops.feed(piece) for piece in ("one\n", "two\n", "\nthree", "four", "")] == ["one", "\ntwo", "", "", ""]
    assert stops.flush() == ""
    assert stops.found


def test_without_stop_texts_everything_passes_at_once() -> None:
    stops = StopTexts([])
    assert [stops.feed(piece) for piece in ("one\n", "", "two")] == ["one\n", "", "two"]
    assert not stops.found
