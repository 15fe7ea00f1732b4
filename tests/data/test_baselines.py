"""Answers without a model: looked up, and always the same."""

from dtl.data.documents import QuestionAnswer
from dtl.data.tasks import bm25_baseline, lookup, majority
from dtl.registry import TASKS


def asked(*questions: str) -> list[QuestionAnswer]:
    return [QuestionAnswer(question, "") for question in questions]


TRAINING = [
    QuestionAnswer("What is the capital of Peru?", "Lima"),
    QuestionAnswer("What is the capital of Chad?", "N'Djamena"),
    QuestionAnswer("Who painted the Potato Eaters?", "Van Gogh"),
    QuestionAnswer("Who painted Starry Night?", "van gogh."),
    QuestionAnswer("How many legs has a spider?", "Eight"),
]


def test_look_up_knows_every_training_question():
    assert bm25_baseline(TRAINING)(TRAINING) == [pair.answer for pair in TRAINING]


def test_look_up_takes_the_nearest_question():
    nearest = bm25_baseline(TRAINING)
    assert nearest(asked("PERU'S capital? the capital of peru!", "spider legs", "starry night")) == [
        "Lima",
        "Eight",
        "van gogh.",
    ]


def test_a_rare_word_counts_more_than_common_ones():
    common = [QuestionAnswer(f"What is the capital of country{n}?", f"city{n}") for n in range(7)]
    assert bm25_baseline([*common, *TRAINING])(asked("What is the spider")) == ["Eight"]


def test_look_up_of_words_never_seen_says_nothing():
    assert bm25_baseline(TRAINING)(asked("Zebra?", "", "the")) == ["", "", ""]
    assert bm25_baseline([])(asked("Peru")) == [""]
    assert bm25_baseline([QuestionAnswer("the", "x")])(asked("Peru")) == [""]


def test_majority_counts_after_normalisation():
    assert majority(TRAINING)(asked("a", "b")) == ["Van Gogh", "Van Gogh"]
    assert majority([])(asked("a")) == [""]


def test_the_task_scores_what_is_held_out_and_needs_no_model():
    def never(questions):
        raise AssertionError("the model was asked")

    pairs = {"train": TRAINING, "validation": [QuestionAnswer("capital of Chad", "Lima")], "test": TRAINING[:3]}
    scores = lookup(never, pairs)
    assert scores == {"lookup/exact_match/validation": 0.0, "lookup/exact_match/test": 1.0}
    assert "lookup" not in TASKS.names() or TASKS.get("lookup") is lookup


def test_questions_without_spaces_are_looked_up_too():
    training = [QuestionAnswer("中国的首都是哪里\uff1f", "北京"), QuestionAnswer("谁画了星夜\uff1f", "梵高")]
    assert bm25_baseline(training)(asked("首都在哪", "星夜是谁画的")) == ["北京", "梵高"]
