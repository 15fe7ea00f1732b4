"""Laws of texts that outgrow the context: what a naive loop by the same rule writes, row by row."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from naive_loop import NEVER, naive_steps, random_prompts, written_naively

from dtl.generation.config import SamplingConfig
from dtl.generation.decoder import Decoder
from dtl.generation.engine import generate, stream
from dtl.model.transformer import TransformerLM

KINDS = ("modern", "grouped", "value_embeddings", "classic")
CONTEXT = 17
PENALTY = 10.0  # without it random models soon say the same few tokens for ever
LONG = SamplingConfig(temperature=0, top_k=None, repetition_penalty=PENALTY, max_new_tokens=59)  # slides several times


@pytest.fixture
def small_model(random_model: Callable[..., TransformerLM]) -> Callable[..., TransformerLM]:
    # Tied, a random model repeats its last token.
    return lambda kind="modern", context=CONTEXT: random_model(
        kind, vocab_size=211, max_seq_len=context, tie_embeddings=False
    )


def written(model: TransformerLM, prompt: list[int], n_new: int = 59, stop_id: int = NEVER) -> list[int]:
    return written_naively(model, prompt, n_new, stop_id, PENALTY)


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("lengths", [(5,), (16,), (1,), (16, 3, 11, 1), (5, 5, 5), (9, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_slide_as_a_naive_loop_does(
    small_model: Callable[..., TransformerLM], kind: str, lengths: tuple[int, ...]
) -> None:
    """Tokens, log-probabilities and the flag, at every step; rows slide at different times, and each on its own."""
    model = small_model(kind)
    prompts = random_prompts(*lengths)
    steps = list(stream(model, prompts, LONG, NEVER))
    for row, prompt in enumerate(prompts):
        expected = list(naive_steps(model, prompt, 59, penalty=PENALTY))
        assert [step.ids[row] for step in steps] == [token for token, _, _ in expected]
        assert [step.context_shifted[row] for step in steps] == [context_shifted for _, _, context_shifted in expected]
        assert [step.logprobs[row] for step in steps] == pytest.approx([p for _, p, _ in expected], abs=1e-3)
    assert len({token for step in steps for token in step.ids}) > 23


@pytest.mark.parametrize("length", [1, 5, 16])
def test_the_flag_comes_with_the_first_token_that_is_drawn_without_the_beginning(
    small_model: Callable[..., TransformerLM], length: int
) -> None:
    """The whole context is used: 17 tokens are seen before the 18th is written."""
    flags = [step.context_shifted[0] for step in stream(small_model(), random_prompts(length), LONG, NEVER)]
    n_whole = CONTEXT - length + 1
    assert flags == [False] * n_whole + [True] * (59 - n_whole)


@pytest.mark.parametrize("context", [2, 3, 4, 17, 18])
def test_even_odd_and_smallest_contexts(small_model: Callable[..., TransformerLM], context: int) -> None:
    model = small_model(context=context)
    prompts = random_prompts(1, context - 1)
    assert generate(model, prompts, LONG, NEVER) == [written(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("max_new_tokens", [1, 2, 6, 7, 13, 14, 15, 23])
def test_any_number_of_tokens(small_model: Callable[..., TransformerLM], max_new_tokens: int) -> None:
    """Ending just before, at and just after a slide."""
    model = small_model()
    prompts = random_prompts(11, 12)
    found = generate(model, prompts, replace(LONG, max_new_tokens=max_new_tokens), NEVER)
    assert found == [written(model, prompt, max_new_tokens) for prompt in prompts]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_has_ended_does_not_make_the_others_slide(
    small_model: Callable[..., TransformerLM], kind: str
) -> None:
    model = small_model(kind)
    prompts = random_prompts(2, 13, 7)
    free = [written(model, prompt, 23) for prompt in prompts]
    # The first row ends before it would slide, the others after.
    stop_id = next(token for token in free[0][1:13] if token not in free[1][:7] + free[2][:14])
    steps = list(stream(model, prompts, replace(LONG, max_new_tokens=23), stop_id))
    for row, prompt in enumerate(prompts):
        expected = list(naive_steps(model, prompt, 23, stop_id, PENALTY))
        found = [(step.ids[row], step.context_shifted[row]) for step in steps if step.ids[row] is not None]
        assert found == [(token, context_shifted) for token, _, context_shifted in expected]
    assert steps[-1].ids[0] is None
    assert steps[-1].context_shifted == [False, True, True]


@pytest.mark.parametrize("lengths", [(5,), (16, 3)])
def test_without_a_penalty_too(small_model: Callable[..., TransformerLM], lengths: tuple[int, ...]) -> None:
    model = small_model("grouped")
    prompts = random_prompts(*lengths)
    found = generate(model, prompts, replace(LONG, repetition_penalty=1.0), NEVER)
    assert found == [written_naively(model, prompt, 59) for prompt in prompts]


def test_drawn_texts_slide_and_repeat_by_their_seed(small_model: Callable[..., TransformerLM]) -> None:
    model = small_model()
    prompts = random_prompts(5, 11)
    warm = SamplingConfig(temperature=1.5, top_k=None, max_new_tokens=59)
    texts = [generate(model, prompts, warm, NEVER, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert [len(text) for text in texts[0]] == [59, 59]


def test_never_more_tokens_than_the_context_holds(
    small_model: Callable[..., TransformerLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slide costs one pass over half the context, and the next comes half a context later."""
    model = small_model()
    widths: list[int] = []
    hidden, logits = model.hidden, Decoder.logits
    monkeypatch.setattr(
        model, "hidden", lambda ids_bt, **kwargs: widths.append(ids_bt.shape[1]) or hidden(ids_bt, **kwargs)
    )
    monkeypatch.setattr(Decoder, "logits", lambda self, ids_b, cache: widths.append(1) or logits(self, ids_b, cache))
    generate(model, random_prompts(5), LONG, NEVER)
    assert len(widths) == 59
    assert widths[0] == 5
    assert [width for width in widths[1:] if width != 1] == [8] * 5
    assert [i for i, width in enumerate(widths) if width == 8] == [13, 23, 33, 43, 53]
