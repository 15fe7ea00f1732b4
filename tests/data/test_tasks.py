"""Tasks: what counts as the right answer."""

import pytest

from dtl.data.qa import QuestionAnswer
from dtl.data.tasks import exact_match, normalise
from dtl.registry import TASKS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", " paris. "),
        ("The Beatles", "beatles"),
        ("an apple a day", "Apple,  day!"),
        ("U.S.A.", "usa"),
        ("rock'n'roll", "RocknRoll"),
    ],
)
def test_equal_after_normalisation(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("Paris", "Parisian"), ("theatre", "atre"), ("A", ""), ("A", "the"), ("+", "-"), ("10", "1 0")]
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

    def answer(questions: list[str]) -> list[str]:
        asked.append(questions)
        return [{"a?": " one\n", "b?": "Two.", "c?": "four", "d?": "", "e?": "5"}[question] for question in questions]

    task = TASKS.get("exact_match")
    assert task is exact_match
    assert task(answer, pairs) == {"exact_match/train": pytest.approx(2 / 5), "exact_match/validation": 0.0}
    assert asked == [["a?", "b?", "c?", "e?", "e?"], ["d?"]]


def test_a_missing_answer_is_an_error():
    with pytest.raises(ValueError):
        exact_match(lambda questions: [], {"train": [QuestionAnswer("a?", "b")]})
