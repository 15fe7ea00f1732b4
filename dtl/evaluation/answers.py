"""How right answers are, by split and by topic: the model's, and those of the baselines beside them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtl.data.documents import QuestionAnswer
from dtl.data.tasks import Answer, is_right, token_f1
from dtl.evaluation.metrics import bits_per_byte, mean
from dtl.evaluation.questions import Likelihood
from dtl.generation.conversation import GreedyAnswer

ALL_TOPICS = ""


@dataclass(frozen=True)
class Asked:
    """A question, what the model said, and what the baselines say."""

    pair: QuestionAnswer
    answer: GreedyAnswer
    gold: Likelihood
    look_up: str
    majority: str

    @property
    def right(self) -> bool:
        """Whether the model's answer is exact, after normalisation."""
        return is_right(self.answer.text, self.pair)


@dataclass(frozen=True)
class Scores:
    """Means over questions, in [0, 1]."""

    exact_match: float
    f1: float


@dataclass(frozen=True)
class AnswerScores:
    """Questions of one split and one topic."""

    split: str
    topic: str  # empty: all topics
    questions: int
    model: Scores
    look_up: Scores
    majority: Scores
    gold_bits_per_byte: float  # of the expected answers, by the model


@dataclass(frozen=True)
class WrongAnswer:
    """A question that was answered wrongly."""

    split: str
    topic: str
    question: str
    said: str
    expected: str
    probability: float  # of a token of the answer, the geometric mean


def with_baselines(
    pairs: Sequence[QuestionAnswer],
    answers: Sequence[GreedyAnswer],
    gold: Sequence[Likelihood],
    baselines: tuple[Answer, Answer],
) -> list[Asked]:
    """The answers of one split beside those of the look-up and of the majority (`dtl.data.baselines`)."""
    found, commonest = (baseline(pairs) for baseline in baselines)
    return [Asked(*of_one) for of_one in zip(pairs, answers, gold, found, commonest, strict=True)]


def answer_scores(asked: Mapping[str, Sequence[Asked]]) -> list[AnswerScores]:
    """Of each split: all questions together, then topic by topic where there are several."""
    found: list[AnswerScores] = []
    for split, of_split in asked.items():
        found.append(_scores(split, ALL_TOPICS, of_split))
        topics = sorted({one.pair.topic for one in of_split})
        if len(topics) > 1:
            found += [_scores(split, topic, [one for one in of_split if one.pair.topic == topic]) for topic in topics]
    return found


def _scores(split: str, topic: str, asked: Sequence[Asked]) -> AnswerScores:
    def of(said: Sequence[str]) -> Scores:
        given = list(zip(said, asked, strict=True))
        return Scores(
            exact_match=mean([is_right(text, one.pair) for text, one in given]),
            f1=mean([token_f1(text, one.pair) for text, one in given]),
        )

    return AnswerScores(
        split=split,
        topic=topic,
        questions=len(asked),
        model=of([one.answer.text for one in asked]),
        look_up=of([one.look_up for one in asked]),
        majority=of([one.majority for one in asked]),
        gold_bits_per_byte=bits_per_byte(
            math.fsum(one.gold.nats for one in asked), sum(one.gold.n_bytes for one in asked)
        ),
    )


def worst_cases(split: str, asked: Sequence[Asked], most: int) -> list[WrongAnswer]:
    """The wrong answers of which the model is surest, the surest first."""
    wrong = sorted((one for one in asked if not one.right), key=lambda one: -one.answer.confidence)
    return [
        WrongAnswer(
            split,
            one.pair.topic,
            one.pair.question,
            one.answer.text,
            one.pair.answer,
            math.exp(one.answer.confidence),
        )
        for one in wrong[:most]
    ]
