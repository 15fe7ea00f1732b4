"""Figures from sums and scores: pure functions of numbers."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_NATS = 700.0  # beyond it e**loss is no number any more


def perplexity(loss: float) -> float:
    """e to the mean loss in nats a token. Depends on the tokenizer: compare models of the same one only."""
    return math.exp(min(loss, MAX_NATS))


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """The loss in total, in bits, over the UTF-8 bytes of the text predicted: comparable across tokenizers."""
    return nats / math.log(2) / n_bytes if n_bytes else math.nan


def area_under_roc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Probability that a positive's score is above a negative's, ties counting half (Hanley and McNeil 1982).

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
    """The score from which on to answer: the most of (share of positives at or above it) minus (share of negatives
    at or above it), Youden's J (1950). Of equally good ones the lowest, which answers most.

    It lies half-way between two scores that occur, so that neither decides by rounding. Raises ValueError when
    either is empty.
    """
    if not len(positives) or not len(negatives):
        raise ValueError("A threshold needs answerable and unanswerable questions.")
    finite = sorted({score for score in (*positives, *negatives) if math.isfinite(score)})
    if not finite:
        return 0.0
    middles = [(low + high) / 2 for low, high in itertools.pairwise(finite)]
    candidates = np.array([finite[0] - 1, *middles, finite[-1] + 1])
    j = _share_at_or_above(positives, candidates) - _share_at_or_above(negatives, candidates)
    return float(candidates[int(np.argmax(j))])


def _share_at_or_above(scores: Sequence[float], thresholds: np.ndarray) -> np.ndarray:
    ordered = np.sort(np.asarray(scores, np.float64))
    return 1 - np.searchsorted(ordered, thresholds, "left") / len(ordered)


@dataclass(frozen=True)
class Abstention:
    """What a threshold on the confidence does to questions, answerable and not."""

    answerable: int
    unanswerable: int
    coverage: float  # share of the answerable questions that are answered
    accuracy_answered: float  # share that is right, of the answerable questions that are answered
    accuracy_without: float  # share that is right, of all answerable questions: without a threshold
    refused: float  # share of the unanswerable questions that are not answered


def abstain(
    threshold: float, confidences: Sequence[float], right: Sequence[bool], unanswerable: Sequence[float]
) -> Abstention:
    """The answerable questions by confidence and whether the answer is right; the others by confidence alone."""
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
    """nan of nothing."""
    return math.fsum(values) / len(values) if values else math.nan
