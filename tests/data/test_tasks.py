"""Tasks: what counts as the right answer."""

from collections.abc import Sequence

import pytest

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import QuestionAnswer
from dtl.data.tasks import asked_once, exact_match, f1, is_right, normalise, token_f1
from dtl.errors import ConfigError
from dtl.registry import TASKS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", " paris. "),
        ("The Beatles", "beatles"),
        ("an apple a day", "Apple,  day!"),
        ("U.S.A.", "usa"),
        ("rock'n'roll", "RocknRoll"),
        ("\u201cDon\u2019t\u201d", "don't"),
        ("1914\u20131918", "1914-1918"),
        ("北京。", "北京"),
        ("「東京」、", "東京"),
        ("القاهرة؟", "القاهرة"),
        ("Cafe\u0301", "café"),
        ("\uff21\uff22\uff23\uff11\uff12\uff13", "abc123"),
        ("\u200fthe sea\u200e", "sea"),
    ],
)
def test_equal_after_normalisation(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", "Parisian"),
        ("theatre", "atre"),
        ("A", ""),
        ("A", "the"),
        ("+", "-"),
        ("10", "1 0"),
        ("。", "\uff0c"),
        ("5 €", "5 £"),
    ],
)
def test_different_after_normalisation(one, other):
    assert normalise(one) != normalise(other)


def test_exact_match_is_a_share_by_split():
    pairs = {
        "train": [QuestionAnswer("a?", "The One"), QuestionAnswer("b?", "two"), QuestionAnswer("c?", "three")]
        + [QuestionAnswer("e?", "five")] * 2,
        "validation": [QuestionAnswer("d?", "four")],
        "test": [],
    }
    asked: list[list[str]] = []

    def answer(of_split: Sequence[QuestionAnswer]) -> list[str]:
        questions = [pair.question for pair in of_split]
        asked.append(questions)
        return [{"a?": " one\n", "b?": "Two.", "c?": "four", "d?": "", "e?": "5"}[question] for question in questions]

    task = TASKS.get("exact_match")
    assert task is exact_match
    assert task(answer, pairs) == {"exact_match/train": pytest.approx(2 / 5), "exact_match/validation": 0.0}
    assert asked == [["a?", "b?", "c?", "e?", "e?"], ["d?"]]


def test_a_missing_answer_is_an_error():
    with pytest.raises(ValueError):
        exact_match(lambda questions: [], {"train": [QuestionAnswer("a?", "b")]})


@pytest.mark.parametrize(
    ("said", "expected", "score"),
    [
        ("the blue whale", "The Blue Whale.", 1),
        ("whale", "the blue whale", 2 * 1 * 0.5 / 1.5),  # precision 1, recall 1/2
        ("the big blue whale shark", "blue whale", 2 * 0.5 * 1 / 1.5),  # precision 2/4, recall 1
        ("one one two", "one one", 2 * (2 / 3) / (5 / 3)),  # a word counts as often as both have it
        ("one one one", "one", 2 * (1 / 3) / (4 / 3)),
        ("red", "blue", 0),
        ("", "blue", 0),
        ("the", "The", 1),
        ("北京市", "北京", 2 * (2 / 3) / (5 / 3)),  # scripts without spaces: characters
        ("在 iPhone 上", "iphone", 2 * (1 / 3) / (4 / 3)),
        ("กรุงเทพ", "กรุง", 2 * (4 / 7) / (11 / 7)),
    ],
)
def test_token_f1_by_hand(said, expected, score):
    assert token_f1(said, QuestionAnswer("?", expected)) == pytest.approx(score)


def test_any_accepted_answer_is_right():
    pair = QuestionAnswer("?", "Mary Shelley", accepted=("Mary Shelley", "Shelley", "M. Shelley"))
    assert is_right("shelley.", pair) and token_f1("Shelley", pair) == 1
    assert not is_right("Percy Shelley", pair) and token_f1("Percy Shelley", pair) == pytest.approx(2 / 3)


def test_f1_is_a_mean_by_split():
    pairs = {"train": [QuestionAnswer("a?", "x y"), QuestionAnswer("b?", "x"), QuestionAnswer("c?", "z")], "test": []}
    assert TASKS.get("exact_match") and f1(lambda questions: ["x", "x", "y"], pairs) == {
        "f1/train": pytest.approx((2 / 3 + 1 + 0) / 3)
    }


def test_each_question_is_asked_once():
    """With its context: the same words about another text are another question."""
    asked: list[list[str]] = []

    def answer(pairs: Sequence[QuestionAnswer]) -> list[str]:
        asked.append([pair.context + pair.question for pair in pairs])
        return [said.upper() for said in asked[-1]]

    a, b, c, d = (QuestionAnswer(question, "") for question in "abcd")
    b_of_x = QuestionAnswer("b", "", context="x")
    remembered = asked_once(answer, [(d, "known")])
    assert remembered([a, b, a]) == ["A", "B", "A"]
    assert remembered([b, c, b_of_x, d]) == ["B", "C", "XB", "known"]
    assert remembered([c]) == ["C"]
    assert asked == [["a", "b"], ["c", "xb"]]


def test_a_task_on_data_without_questions_is_refused_before_anything_is_read():
    text = {"book": SourceConfig(kind="text", path="no such file")}
    data = DataConfig(sources=text, tasks=["f1"])
    with pytest.raises(ConfigError, match=r"data\.tasks=\[f1\]: tasks ask questions.*data\.qa\.weight=0\.5"):
        data.validate()
    data.qa.weight = 0.5
    data.validate()
