"""Held-out text that training saw: runs of 13 words, equal questions."""

import random

import numpy as np
import pytest
from checkpoint_examples import tiny_tokenizer

from dtl.data.documents import QuestionAnswer
from dtl.evaluation import leakage
from dtl.evaluation.leakage import question_leakage, text_leakage

TOKENIZER = tiny_tokenizer()


def tokens(*texts: str) -> np.ndarray:
    return np.array([i for text in texts for i in [*TOKENIZER.encode(text), TOKENIZER.eos_id]], np.int32)


def numbered(first: int, last: int) -> str:
    return " ".join(f"word{n}" for n in range(first, last))


@pytest.fixture(params=[7, 101, 200_000], autouse=True)
def chunks(request, monkeypatch):
    """However little is decoded at a time."""
    monkeypatch.setattr(leakage, "CHUNK_TOKENS", request.param)


def test_counts_runs_of_13_words_whatever_stands_around_them():
    training = tokens(numbered(0, 200), numbered(300, 317))
    held_out = {"validation": tokens("Elsewhere " + numbered(50, 67).upper() + ", so."), "test": tokens("a b c")}
    validation, test = text_leakage("mine", held_out, training, TOKENIZER, None)
    assert (validation.ngrams, validation.found) == (19 - 12, 17 - 12)
    assert (test.ngrams, test.found, test.fraction) == (0, 0, 0.0)


def test_agrees_with_python_sets():
    draw = random.Random(3)
    texts = [" ".join(draw.choice(("one", "two")) for _ in range(n)) for n in (1511, 409)]
    runs = [[tuple(text.split()[i : i + 13]) for i in range(len(text.split()) - 12)] for text in texts]
    (found,) = text_leakage("mine", {"test": tokens(texts[1])}, tokens(texts[0]), TOKENIZER, None)
    assert found.ngrams == len(runs[1])
    assert 0 < found.found == sum(run in set(runs[0]) for run in runs[1]) < found.ngrams


def test_compares_no_more_training_text_than_asked():
    splits = {"test": tokens(numbered(0, 20))}, tokens("x" * 100, numbered(0, 20))
    assert text_leakage("mine", *splits, TOKENIZER, None)[0].fraction == 1
    limited = text_leakage("mine", *splits, TOKENIZER, 101)[0]
    assert (limited.fraction, limited.training_tokens) == (0, 101)


def test_the_end_token_joins_no_words():
    splits = {"test": tokens(numbered(0, 13))}, tokens(numbered(0, 7), numbered(7, 13))
    assert text_leakage("mine", *splits, TOKENIZER, None)[0].found == 1


def test_equal_questions_across_splits():
    def pairs(*questions):
        return [QuestionAnswer(question, "x") for question in questions]

    found = question_leakage(
        {"validation": pairs("what is a sea", "Why?"), "test": []}, pairs("What is the sea?", "Who?")
    )
    assert [(one.split, one.questions, one.found, one.examples) for one in found] == [
        ("validation", 2, 1, ("what is a sea",))
    ]


def test_text_without_spaces_is_compared_by_characters(monkeypatch):
    monkeypatch.setattr(leakage, "CHUNK_TOKENS", 200_000)  # less cuts a character of three bytes
    sentence = "天地玄黄宇宙洪荒日月盈昃辰宿列张"
    splits = {"test": tokens("千字文" + sentence)}, tokens(sentence + "寒来暑往")
    assert text_leakage("mine", *splits, TOKENIZER, None)[0].found == len(sentence) - 12


def test_shared_contexts_are_counted_and_the_same_question_on_another_one_is_another():
    def pairs(*contexts):
        return [QuestionAnswer("Who is it?", "x", context=context) for context in contexts]

    (found,) = question_leakage({"test": pairs("a b", "c", "c")}, pairs("a  b", "d"))
    assert (found.questions, found.found, found.contexts, found.contexts_found) == (3, 1, 2, 1)
