"""Metrics as pure functions of sums and scores."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_NATS = 700.0  # e**709 is the largest power of e in fp64


def perplexity(loss: float) -> float:
    """Return e to the mean loss in nats per token. Comparable only between models with the same tokenizer."""
    return math.exp(min(loss, MAX_NATS))


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Return the total loss in bits over the UTF-8 bytes of the predicted text: comparable across tokenizers."""
    return nats / math.log(2) / n_bytes if n_bytes else math.nan


def area_under_roc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return the probability that a positive's score is above a negative's, ties count half (Hanley and McNeil 1982).

    nan when either is empty; a score may be -inf.
    """
    if not len(positives) or not len(negatives):
        return math.nan
    below = np.sort(np.asarray(negatives, np.float64))
    above = np.asarray(positives, np.float64)
    wins = np.searchsorted(below, above, "left").sum(dtype=np.int64)
    not_lost = np.searchsorted(below, above, "right").sum(dtype=np.int64)
    return float((wins + not_lost) / 2 / (len(above) * len(below)))


def best_threshold(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return the threshold with the highest Youden's J (1950): the fraction of positives minus that of negatives above.

    Of equally good ones the lowest, which answers most. Raises ValueError when either is empty.
    """
    if not len(positives) or not len(negatives):
        raise ValueError("A threshold needs answerable and unanswerable questions.")
    finite = sorted({score for score in (*positives, *negatives) if math.isfinite(score)})
    if not finite:
        return 0.0
    # Between two scores that occur, so that rounding does not decide about either.
    middles = [(low + high) / 2 for low, high in itertools.pairwise(finite)]
    candidates = np.array([finite[0] - 1, *middles, finite[-1] + 1])
    j = _fraction_at_or_above(positives, candidates) - _fraction_at_or_above(negatives, candidates)
    return float(candidates[int(np.argmax(j))])


def _fraction_at_or_above(scores: Sequence[float], thresholds: np.ndarray) -> np.ndarray:
    ordered = np.sort(np.asarray(scores, np.float64))
    return 1 - np.searchsorted(ordered, thresholds, "left") / len(ordered)


@dataclass(frozen=True)
class Abstention:
    """Effect of a threshold on the confidence. Field names are keys of evaluation.json."""

    answerable: int
    unanswerable: int
    coverage: float  # fraction of the answerable questions that are answered
    accuracy_answered: float  # accuracy on the answerable questions that are answered
    accuracy_without: float  # accuracy on all answerable questions: without a threshold
    refused: float  # fraction of the unanswerable questions that are not answered


def abstain(
    threshold: float, confidences: Sequence[float], right: Sequence[bool], unanswerable: Sequence[float]
) -> Abstention:
    """Apply the threshold to answerable questions, by confidence and correctness, and to unanswerable ones."""
    kept = [is_right for score, is_right in zip(confidences, right, strict=True) if score >= threshold]
    return Abstention(
        answerable=len(right),
        unanswerable=len(unanswerable),
        coverage=mean([score >= threshold for score in confidences]),
        accuracy_answered=mean(kept),
        accuracy_without=mean(right),
        refused=mean([score < threshold for score in unanswerable]),
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean; nan for no values."""
    return math.fsum(values) / len(values) if values else math.nan
