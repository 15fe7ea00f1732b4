"""Laws of text in, text out: answers belong to their questions, and a prompt that is too long loses its beginning."""

from collections.abc import Callable

import pytest
import torch

from dtl.data.config import TokenizerConfig
from dtl.data.qa import prompt
from dtl.data.tokenizer import Tokenizer, build_tokenizer
from dtl.generation import conversation
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import answerer, continuations
from dtl.generation.engine import generate
from dtl.model.transformer import TransformerLM

GREEDY = SamplingConfig(temperature=0, top_k=None, max_new_tokens=11)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer(TokenizerConfig(kind="byte"), lambda: [])


@pytest.fixture
def model(random_model: Callable[..., TransformerLM], tokenizer: Tokenizer) -> TransformerLM:
    return random_model(vocab_size=tokenizer.vocab_size, max_seq_len=101)


def test_each_question_gets_its_own_answer(
    model: TransformerLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches sorted by length, and back in the order of asking."""
    monkeypatch.setattr(conversation, "BATCH_SIZE", 3)
    questions = ["Who?", "What is the longest of these?", "Why", "How many?", "Where to?", "Who?", "When is it?"]
    answers = answerer(model, tokenizer, 11)(questions)
    for question, answer in zip(questions, answers, strict=True):
        (ids,) = generate(model, [tokenizer.encode(prompt(question))], GREEDY, tokenizer.eos_id)
        assert answer == tokenizer.decode(ids).strip()
    assert answers[0] == answers[5]
    assert len(set(answers)) > 3


def test_no_questions_no_answers(model: TransformerLM, tokenizer: Tokenizer) -> None:
    assert answerer(model, tokenizer, 11)([]) == []


def test_continuations_follow_their_prompts(model: TransformerLM, tokenizer: Tokenizer) -> None:
    prompts = ["Once", "a", "Once upon a time"]
    expected = generate(model, [tokenizer.encode(text) for text in prompts], GREEDY, tokenizer.eos_id)
    assert continuations(model, tokenizer, prompts, GREEDY, seed=0) == [tokenizer.decode(ids) for ids in expected]


def test_a_seed_decides_a_continuation(model: TransformerLM, tokenizer: Tokenizer) -> None:
    warm = SamplingConfig(temperature=2.0, max_new_tokens=11)
    texts = [continuations(model, tokenizer, ["Once"], warm, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_empty_prompt_begins_a_text(model: TransformerLM, tokenizer: Tokenizer) -> None:
    (expected,) = generate(model, [[tokenizer.bos_id]], GREEDY, tokenizer.eos_id)
    assert continuations(model, tokenizer, [""], GREEDY, seed=0) == [tokenizer.decode(expected)]


def seen_prompts(
    monkeypatch: pytest.MonkeyPatch, model: TransformerLM, tokenizer: Tokenizer, text: str, max_new_tokens: int
) -> list[int]:
    """What the engine is given for a text."""
    seen: list[list[int]] = []

    def remembering(model: TransformerLM, prompts: list[list[int]], *rest: object) -> list[list[int]]:
        seen.extend(prompts)
        return [[] for _ in prompts]

    monkeypatch.setattr(conversation, "generate", remembering)
    sampling = SamplingConfig(temperature=0, max_new_tokens=max_new_tokens)
    continuations(model, tokenizer, [text], sampling, seed=0)
    (ids,) = seen
    return ids


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
