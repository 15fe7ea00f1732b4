"""Abstention: the calibrated confidence as a detector of questions without an answer in the data."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dtl.base.units import number_of
from dtl.data.config import DataConfig
from dtl.data.documents import QuestionAnswer
from dtl.data.local.files import LocalFiles, field, text_of
from dtl.errors import DataError
from dtl.evaluation.answers import Asked
from dtl.evaluation.config import MIN_PROBABILITY
from dtl.evaluation.metrics import (
    Abstention,
    Calibration,
    abstain,
    area_under_roc,
    balanced,
    calibration_error,
    logit,
)
from dtl.generation.conversation import GreedyAnswer

QUESTION_NAMES = ("question", "instruction", "prompt")
# In dtl/data, with the facts that they belong to.
UNANSWERABLE, NATURAL_WORDINGS, NEAR_MISSES = "unanswerable.jsonl", "natural.jsonl", "near_misses.jsonl"
NATURAL = "natural"  # these wordings among the splits of an evaluation


@dataclass(frozen=True)
class Detection:
    """Confidence of the greedy answers as a probability, and abstention by it. Keys of evaluation.json."""

    area_under_roc: dict[str, float]  # by split: answerable against all unanswerable questions, natural: near misses
    calibration: Calibration  # fitted on validation paraphrases and half the unanswerable questions
    calibration_error: dict[str, float]  # by split: expected calibration error, with as many unanswerable questions
    validation: Abstention  # on the questions that the calibration was fitted on
    test: Abstention | None  # on the test paraphrases and the other half
    natural: Abstention | None  # on natural wordings and near misses

    def by_split(self) -> dict[str, Abstention]:
        """Return what was measured, by split."""
        measured = {"validation": self.validation, "test": self.test, NATURAL: self.natural}
        return {split: abstention for split, abstention in measured.items() if abstention is not None}


# --- questions ----------------------------------------------------------------------------------------------------


def unanswerable_questions(path: str | None, data: DataConfig) -> list[str]:
    """Read the questions of `unanswerable=path`; None: those for DTL's facts, if these are the data, else none.

    Raises DataError for a file that is missing or has fewer than two questions.
    """
    if path is None:
        return [record["question"] for record in _shipped(UNANSWERABLE, data)]
    files = LocalFiles(path, "unanswerable", example='{"question": "..."}')
    records = (record for split in files.by_split for record in files.records(split, ()))
    questions = [text_of(field(record, *QUESTION_NAMES), record.place).strip() for record in records]
    questions = [question for question in questions if question]
    if len(questions) < 2:
        raise DataError(
            f"unanswerable={path}: contains {number_of('questions', len(questions))}; at least 2 are needed, half of "
            "them to calibrate the confidence and half to test it."
        )
    return questions


def natural_questions(data: DataConfig, taught: Sequence[QuestionAnswer]) -> tuple[list[QuestionAnswer], list[str]]:
    """Return wordings of DTL's facts as people type them, for those facts that are `taught`, and near misses.

    A near miss has the form of a taught question and asks for what was never taught. Both are for evaluation alone:
    nothing is trained, tuned or chosen with them. None of either where the facts are not in the data.
    """
    facts = {pair.fact for pair in taught}
    records = [record for record in _shipped(NATURAL_WORDINGS, data) if record["id"] in facts]
    wordings = [
        QuestionAnswer(r["question"], r["answers"][0], r["topic"], r["id"], accepted=tuple(r["answers"]))
        for r in records
    ]
    return wordings, [record["question"] for record in _shipped(NEAR_MISSES, data)] if wordings else []


def _shipped(name: str, data: DataConfig) -> list[dict[str, Any]]:
    if not any(source.is_shipped for source in data.resolved_sources().values()):
        return []
    lines = importlib.resources.files("dtl.data").joinpath(name).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


# --- calibration and abstention -----------------------------------------------------------------------------------


def detect(
    asked: Mapping[str, Sequence[Asked]], unanswerable: Sequence[GreedyAnswer], near_misses: Sequence[GreedyAnswer] = ()
) -> Detection | None:
    """Calibrate the confidence on validation and measure it on the other questions; None without validation questions.

    Unanswerable questions alternate between validation and test, since they may be sorted by topic.
    """
    if not asked.get("validation") or len(unanswerable) < 2:
        return None
    confidences = {split: [q.answer.confidence for q in questions] for split, questions in asked.items()}
    right = {split: [q.right for q in questions] for split, questions in asked.items()}
    without = [answer.confidence for answer in unanswerable]
    near = [answer.confidence for answer in near_misses]
    unanswered = {"validation": without[::2], "test": without[1::2], NATURAL: near}
    calibration = calibrate(confidences["validation"], right["validation"], unanswered["validation"])
    measured = {
        split: _measure(calibration, confidences[split], right[split], scores)
        for split, scores in unanswered.items()
        if asked.get(split)
    }
    effects = {split: effect for split, (_, effect) in measured.items()}
    return Detection(
        area_under_roc={
            split: area_under_roc(scores, near if split == NATURAL else without)
            for split, scores in confidences.items()
            if split != "train"
        },
        calibration=calibration,
        calibration_error={split: error for split, (error, _) in measured.items()},
        validation=effects["validation"],
        test=effects.get("test"),
        natural=effects.get(NATURAL),
    )


def calibrate(confidences: Sequence[float], right: Sequence[bool], unanswerable: Sequence[float]) -> Calibration:
    """Fit a `Calibration` by logistic regression with Platt's targets, which keep it finite (Platt 1999, 2.2).

    Answerable and unanswerable questions weigh the same, however many there are: it is not known how many of the
    questions of a chat have an answer in the data.
    """
    hits = torch.tensor([*right, *(False for _ in unanswerable)])
    n_right = int(hits.sum())
    targets = torch.where(hits, (n_right + 1) / (n_right + 2), 1 / (len(hits) - n_right + 2)).double()
    x = torch.tensor([logit(score) for score in (*confidences, *unanswerable)], dtype=torch.float64)
    weights = torch.from_numpy(balanced(len(confidences), len(unanswerable)))
    fitted = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([fitted], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = fitted[0].clamp(min=0) * x + fitted[1]  # never falling: a higher confidence is no worse
        value = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets, weights, reduction="sum")
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    slope, intercept = fitted.tolist()
    return Calibration(max(0.0, slope), intercept)


def _measure(
    calibration: Calibration, confidences: Sequence[float], right: Sequence[bool], unanswerable: Sequence[float]
) -> tuple[float, Abstention]:
    """Return the expected calibration error, and the effect of answering from `MIN_PROBABILITY` on."""
    answerable = [calibration.probability(score) for score in confidences]
    without = [calibration.probability(score) for score in unanswerable]
    weights = balanced(len(answerable), len(without))
    error = calibration_error([*answerable, *without], [*right, *(False for _ in without)], weights)
    return error, abstain(MIN_PROBABILITY, answerable, right, without)
