"""Laws of text in, text out: answers belong to their questions, and a prompt that is too long loses its beginning."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import Tokenizer, build_tokenizer
from dtl.generation import conversation
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import Continuation, answer_greedily, before_stop, continuations, continue_text
from dtl.generation.engine import generate, stream
from dtl.model.transformer import TransformerLM

GREEDY = SamplingConfig(temperature=0, top_k=None, max_new_tokens=11)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer(TokenizerConfig(kind="byte"), lambda: [])


@pytest.fixture
def model(random_model: Callable[..., TransformerLM], tokenizer: Tokenizer) -> TransformerLM:
    return random_model(vocab_size=tokenizer.vocab_size, max_seq_len=101)


def test_each_question_gets_its_own_answer(model: TransformerLM, tokenizer: Tokenizer) -> None:
    """In batches sorted by length, and back in the order of asking."""
    questions = ["Who?", "What is the longest of these?", "Why", "How many?", "Where to?", "Who?", "When is it?"]
    said = answer_greedily(model, tokenizer, [Prompt().text(question) for question in questions], 11, 3)
    answers = [one.text for one in said]
    for question, answer in zip(questions, answers, strict=True):
        (ids,) = generate(model, [tokenizer.encode(Prompt().text(question))], GREEDY, tokenizer.eos_id)
        assert answer == tokenizer.decode(ids).strip()
    assert answers[0] == answers[5]
    assert len(set(answers)) > 3


def test_no_questions_no_answers(model: TransformerLM, tokenizer: Tokenizer) -> None:
    assert answer_greedily(model, tokenizer, [], 11, 3) == []


def test_continuations_follow_their_prompts(model: TransformerLM, tokenizer: Tokenizer) -> None:
    prompts = ["Once", "a", "Once upon a time"]
    expected = generate(model, [tokenizer.encode(text) for text in prompts], GREEDY, tokenizer.eos_id)
    assert continuations(model, tokenizer, prompts, GREEDY, seed=0) == [tokenizer.decode(ids) for ids in expected]


def test_a_seed_decides_a_continuation(model: TransformerLM, tokenizer: Tokenizer) -> None:
    warm = SamplingConfig(temperature=2.0, max_new_tokens=11)
    texts = [continuations(model, tokenizer, ["Once"], warm, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.fault("prompts")
def test_an_empty_prompt_begins_a_text(model: TransformerLM, tokenizer: Tokenizer) -> None:
    (expected,) = generate(model, [[tokenizer.bos_id]], GREEDY, tokenizer.eos_id)
    assert continuations(model, tokenizer, [""], GREEDY, seed=0) == [tokenizer.decode(expected)]


def seen_prompts(
    monkeypatch: pytest.MonkeyPatch, model: TransformerLM, tokenizer: Tokenizer, text: str, max_new_tokens: int
) -> list[int]:
    """Return what the engine gets for a text."""
    seen: list[list[int]] = []

    def remembering(model: TransformerLM, prompts: list[list[int]], *rest: object) -> list[list[int]]:
        seen.extend(prompts)
        return [[] for _ in prompts]

    monkeypatch.setattr(conversation, "generate", remembering)
    sampling = SamplingConfig(temperature=0, max_new_tokens=max_new_tokens)
    continuations(model, tokenizer, [text], sampling, seed=0)
    (ids,) = seen
    return ids


@pytest.mark.fault("prompts")
@pytest.mark.parametrize("max_new_tokens, kept", [(11, 90), (50, 51), (51, 50), (64, 50), (101, 50), (5000, 50)])
def test_a_prompt_too_long_loses_its_beginning(
    monkeypatch: pytest.MonkeyPatch, model: TransformerLM, tokenizer: Tokenizer, max_new_tokens: int, kept: int
) -> None:
    """Room is made for the new tokens, yet half of the context of 101 is the prompt's, however many are wanted."""
    text = "".join(chr(97 + i % 26) for i in range(300))
    assert seen_prompts(monkeypatch, model, tokenizer, text, max_new_tokens) == tokenizer.encode(text)[-kept:]


def test_a_prompt_that_fits_stays_whole(
    monkeypatch: pytest.MonkeyPatch, model: TransformerLM, tokenizer: Tokenizer
) -> None:
    text = "Question: What is the capital of France?\n"
    assert seen_prompts(monkeypatch, model, tokenizer, text, 5000) == tokenizer.encode(text)


def test_a_text_longer_than_the_context_is_continued(model: TransformerLM, tokenizer: Tokenizer) -> None:
    (text,) = continuations(model, tokenizer, ["a" * 1000], SamplingConfig(temperature=0, max_new_tokens=500), seed=0)
    assert isinstance(text, str)


def test_special_tokens_never_appear_as_text(model: TransformerLM, tokenizer: Tokenizer) -> None:
    """The end token ends a text; the padding token, should a model write it, is no text."""
    with torch.no_grad():
        model.head.weight.zero_()
        model.norm.weight.zero_()  # equal logits: the first id wins, whatever it is
    (text,) = continuations(model, tokenizer, ["Once"], GREEDY, seed=0)
    assert "<|" not in text


# --- one text while it is written ----------------------------------------------------------------------------------

WARM = SamplingConfig(temperature=2.0, top_k=None, max_new_tokens=37)


def read(continuation: Continuation) -> str:
    return "".join(continuation)


def test_a_continuation_is_what_generate_writes(model: TransformerLM, tokenizer: Tokenizer) -> None:
    """Random bytes: many a character is broken, and special tokens are among them."""
    for seed in range(7):
        (ids,) = generate(model, [tokenizer.encode("Once")], WARM, tokenizer.eos_id, seed)
        continuation = continue_text(model, tokenizer, "Once", WARM, seed)
        pieces = list(continuation)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert len(pieces) >= len(ids)  # one a token: a reader can leave after each
        assert continuation.ids == ids
        assert continuation.ended == ("length" if len(ids) == 37 else "end")
        assert [*continuations(model, tokenizer, ["Once"], WARM, seed)] == ["".join(pieces)]


def test_a_seed_decides_what_is_streamed(model: TransformerLM, tokenizer: Tokenizer) -> None:
    texts = [read(continue_text(model, tokenizer, "Once", WARM, seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_its_fields_grow_with_its_pieces(model: TransformerLM, tokenizer: Tokenizer) -> None:
    steps = list(stream(model, [tokenizer.encode("Once")], WARM, tokenizer.eos_id, seed=1))
    continuation = continue_text(model, tokenizer, "Once", WARM, seed=1)
    assert (continuation.ids, continuation.logprobs, continuation.ended) == ([], [], None)
    assert (continuation.context_shifted, continuation.prompt_cut) == (False, 0)
    assert math.isnan(continuation.mean_logprob)
    for _ in continuation:
        n = len(continuation.ids)
        assert continuation.ids == [step.ids[0] for step in steps[:n]]
        assert continuation.logprobs == [step.logprobs[0] for step in steps[:n]]
        assert continuation.mean_logprob == pytest.approx(sum(continuation.logprobs) / n)
    assert len(continuation.ids) == len(steps)


def test_mean_logprob_is_that_of_the_uncached_model(model: TransformerLM, tokenizer: Tokenizer) -> None:
    continuation = continue_text(model, tokenizer, "Once", replace(WARM, min_p=0.1, repetition_penalty=1.3), seed=1)
    read(continuation)
    prompt = tokenizer.encode("Once")
    with torch.no_grad():
        logits_tv = model(torch.tensor([[*prompt, *continuation.ids]]))[0, len(prompt) - 1 : -1]
    chosen_t = logits_tv.log_softmax(dim=-1)[torch.arange(len(continuation.ids)), torch.tensor(continuation.ids)]
    assert continuation.mean_logprob == pytest.approx(float(chosen_t.mean()), abs=1e-4)


def test_it_ends_at_the_end_token(model: TransformerLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    free = continue_text(model, tokenizer, "Once", WARM, seed=1)
    read(free)
    end_id = next(token for i, token in enumerate(free.ids) if i > 2 and token not in free.ids[:i])
    n = free.ids.index(end_id)
    monkeypatch.setattr(tokenizer, "eos_id", end_id)
    ended = continue_text(model, tokenizer, "Once", WARM, seed=1)
    assert read(ended) == tokenizer.decode(free.ids[:n])
    assert ended.ended == "end"
    assert ended.ids == free.ids[:n]


def test_an_answer_of_nothing(model: TransformerLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = continue_text(model, tokenizer, "Once", GREEDY, seed=0)
    read(first)
    monkeypatch.setattr(tokenizer, "eos_id", first.ids[0])
    nothing = continue_text(model, tokenizer, "Once", GREEDY, seed=0)
    assert list(nothing) == []
    assert nothing.ended == "end"
    assert math.isnan(nothing.mean_logprob)


def test_it_ends_at_a_stop_text(model: TransformerLM, tokenizer: Tokenizer) -> None:
    """And writes no token after it; what is shown is the whole text up to the first stop text."""
    for seed in range(5):
        free = continue_text(model, tokenizer, "Once", WARM, seed)
        text = read(free)
        stop = [text[11:13], text[7:10], "never said"]
        stopped = continue_text(model, tokenizer, "Once", replace(WARM, stop=stop), seed)
        pieces = list(stopped)
        assert "".join(pieces) == before_stop(text, stop)
        assert stopped.ended == "stop"
        assert stopped.ids == free.ids[: len(stopped.ids)]
        assert len(stopped.ids) < len(free.ids)
        written, before = tokenizer.decode(stopped.ids), tokenizer.decode(stopped.ids[:-1])
        assert any(each in written for each in stop)
        assert not any(each in before.rstrip("\ufffd") for each in stop)
        assert [*continuations(model, tokenizer, ["Once"], replace(WARM, stop=stop), seed)] == ["".join(pieces)]


def test_it_ends_at_max_new_tokens(model: TransformerLM, tokenizer: Tokenizer) -> None:
    """Text held back as the possible beginning of a stop text is shown at the end."""
    free = continue_text(model, tokenizer, "Once", WARM, seed=1)
    text = read(free)
    assert free.ended == "length"
    assert len(free.ids) == 37
    longer = [text[-4:] + "and more"]
    held = continue_text(model, tokenizer, "Once", replace(WARM, stop=longer), seed=1)
    pieces = list(held)
    assert "".join(pieces) == text
    assert len(pieces[-1]) >= 4
    assert held.ended == "length"


def test_a_stop_text_that_is_complete_when_nothing_follows(model: TransformerLM, tokenizer: Tokenizer) -> None:
    """A replacement character is held back by the decoder to the very end, and then is a stop text after all."""
    for seed in range(99):
        sampling = replace(WARM, max_new_tokens=1)
        free = continue_text(model, tokenizer, "Once", sampling, seed)
        if read(free) == "\ufffd":
            break
    else:
        pytest.fail("no seed begins with half a character")
    stopped = continue_text(model, tokenizer, "Once", replace(sampling, stop=["\ufffd"]), seed)
    assert read(stopped) == ""
    assert stopped.ended == "stop"


def test_stop_texts_hold_for_all_prompts_together(model: TransformerLM, tokenizer: Tokenizer) -> None:
    prompts = ["Once", "a", "Once upon a time"]
    free = continuations(model, tokenizer, prompts, WARM, seed=3)
    stop = [free[0][5:7], free[2][3:5]]
    assert continuations(model, tokenizer, prompts, replace(WARM, stop=stop), seed=3) == [
        before_stop(text, stop) for text in free
    ]


@pytest.mark.parametrize("max_new_tokens, kept", [(11, 90), (50, 51), (64, 50), (5000, 50)])
def test_it_says_how_much_of_the_prompt_was_cut(
    model: TransformerLM, tokenizer: Tokenizer, max_new_tokens: int, kept: int
) -> None:
    sampling = replace(GREEDY, max_new_tokens=max_new_tokens)
    text = "".join(chr(97 + i % 26) for i in range(300))
    assert continue_text(model, tokenizer, text, sampling, seed=0).prompt_cut == 300 - kept
    assert continue_text(model, tokenizer, text[:kept], sampling, seed=0).prompt_cut == 0
    assert continue_text(model, tokenizer, text[: kept + 1], sampling, seed=0).prompt_cut == 1
    assert continue_text(model, tokenizer, "", sampling, seed=0).prompt_cut == 0


def test_a_cut_prompt_is_continued_from_its_end(model: TransformerLM, tokenizer: Tokenizer) -> None:
    text = "".join(chr(97 + i % 26) for i in range(300))
    whole = continue_text(model, tokenizer, text, GREEDY, seed=0)
    end_alone = continue_text(model, tokenizer, text[-90:], GREEDY, seed=0)
    assert read(whole) == read(end_alone)
    assert whole.logprobs == end_alone.logprobs


def test_an_empty_prompt_is_streamed_from_the_beginning_token(model: TransformerLM, tokenizer: Tokenizer) -> None:
    (expected,) = generate(model, [[tokenizer.bos_id]], GREEDY, tokenizer.eos_id)
    continuation = continue_text(model, tokenizer, "", GREEDY, seed=0)
    assert read(continuation) == tokenizer.decode(expected)
    assert continuation.prompt_cut == 0


def test_it_says_when_it_slides(model: TransformerLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context of 101, a prompt of 50: 51 new tokens fill it, and the next is drawn from all of it."""
    monkeypatch.setattr(tokenizer, "eos_id", -1)
    continuation = continue_text(model, tokenizer, "a" * 50, replace(WARM, max_new_tokens=131), seed=0)
    for _ in continuation:
        assert continuation.context_shifted == (len(continuation.ids) > 52)
    assert continuation.context_shifted
    assert len(continuation.ids) == 131
    short = continue_text(model, tokenizer, "a" * 50, replace(WARM, max_new_tokens=51), seed=0)
    read(short)
    assert not short.context_shifted


@pytest.mark.parametrize("n_read", [1, 3])
def test_a_reader_who_leaves_finds_everything_as_it_was(
    model: TransformerLM, tokenizer: Tokenizer, n_read: int
) -> None:
    model.train()
    before = torch.get_rng_state()
    continuation = continue_text(model, tokenizer, "Once", WARM, seed=1)
    pieces = []
    for piece in continuation:
        pieces.append(piece)
        if len(pieces) == n_read:
            break
    assert continuation.ended is None
    assert len(continuation.ids) == len(continuation.logprobs) >= n_read
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    whole = read(continue_text(model, tokenizer, "Once", WARM, seed=1))
    assert whole.startswith("".join(pieces))
    assert whole != "".join(pieces)
