"""Abstention: the model's confidence as a detector of questions without an answer in the data."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtl.data.config import DataConfig
from dtl.data.local.files import LocalFiles, field, text_of
from dtl.errors import DataError
from dtl.evaluation.answers import Asked
from dtl.evaluation.metrics import Abstention, abstain, area_under_roc, best_threshold
from dtl.generation.conversation import GreedyAnswer

QUESTION_NAMES = ("question", "instruction", "prompt")
SHIPPED = "unanswerable.jsonl"  # in dtl/data, with the facts that it belongs to


@dataclass(frozen=True)
class Detection:
    """Detection by a threshold on the mean log-probability of the greedy answer. Keys of evaluation.json."""

    area_under_roc: dict[str, float]  # by split of the answerable questions; against all unanswerable ones
    threshold: float  # minimum confidence of an answer; chosen on validation paraphrases and half the unanswerable ones
    validation: Abstention  # on those questions
    test: Abstention | None  # on the test paraphrases and the other half


def unanswerable_questions(path: str | None, data: DataConfig) -> list[str]:
    """Read the questions of `unanswerable=path`; None: those for DTL's facts, if these are the data, else none.

    Imports no torch. Raises DataError for a file that is missing or has fewer than two questions.
    """
    if path is not None:
        files = LocalFiles(path, "unanswerable")
        records = (record for split in files.by_split for record in files.records(split, ()))
        questions = [text_of(field(record, *QUESTION_NAMES), record.place).strip() for record in records]
        questions = [question for question in questions if question]
        if len(questions) < 2:
            raise DataError(
                f"unanswerable={path}: contains {len(questions)} questions; at least 2 are needed, half of them to set "
                "the threshold and half to test it."
            )
        return questions
    shipped = importlib.resources.files("dtl.data").joinpath(SHIPPED)
    are_the_facts = any(source.is_shipped for source in data.resolved_sources().values())
    if not are_the_facts or not shipped.is_file():
        return []
    lines = shipped.read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["question"] for line in lines if line.strip()]


def detect(asked: Mapping[str, Sequence[Asked]], unanswerable: Sequence[GreedyAnswer]) -> Detection | None:
    """Choose the threshold on validation and measure it on test; None without validation questions.

    Unanswerable questions alternate between the two, since they may be sorted by topic.
    """
    if not asked.get("validation") or len(unanswerable) < 2:
        return None
    confidences = {split: [q.answer.confidence for q in questions] for split, questions in asked.items()}
    right = {split: [q.right for q in questions] for split, questions in asked.items()}
    without = [answer.confidence for answer in unanswerable]
    to_set, to_test = without[::2], without[1::2]
    threshold = best_threshold(confidences["validation"], to_set)
    return Detection(
        area_under_roc={
            split: area_under_roc(scores, without) for split, scores in confidences.items() if split != "train"
        },
        threshold=threshold,
        validation=abstain(threshold, confidences["validation"], right["validation"], to_set),
        test=abstain(threshold, confidences["test"], right["test"], to_test) if asked.get("test") else None,
    )
