"""Metrics as pure functions of sums and scores."""

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


# --- confidence as a probability ----------------------------------------------------------------------------------

# Mean log-probabilities are limited to these, where the logit is finite: fp32 cannot tell probabilities above from 1.
LOWEST, HIGHEST = -50.0, -1e-6
BINS = 10


def logit(mean_logprob: float) -> float:
    """Return log(p / (1 - p)) of the mean token probability p, from its natural logarithm."""
    log_p = min(max(mean_logprob, LOWEST), HIGHEST)
    return log_p - math.log(-math.expm1(log_p))


@dataclass(frozen=True)
class Calibration:
    """Monotone map from an answer's mean log-probability to the probability that it is right (Platt 1999).

    Field names are keys of evaluation.json.
    """

    slope: float  # at least 0, per unit of `logit`
    intercept: float

    def probability(self, mean_logprob: float) -> float:
        """Return the probability, in [0, 1]; `mean_logprob` is the natural logarithm, -inf for an empty answer."""
        return (1 + math.tanh((self.slope * logit(mean_logprob) + self.intercept) / 2)) / 2


def balanced(n_answerable: int, n_unanswerable: int) -> np.ndarray:
    """Return weights of answerable questions, then of unanswerable ones, that give each kind half of the total, 1."""
    return np.repeat([0.5 / max(1, n_answerable), 0.5 / max(1, n_unanswerable)], [n_answerable, n_unanswerable])


def calibration_error(probabilities: Sequence[float], right: Sequence[bool], weights: np.ndarray) -> float:
    """Return the mean distance of the predicted from the measured fraction of right answers over ten equal bins.

    Expected calibration error (Guo et al. 2017), in [0, 1]; nan for no answers.
    """
    p, hits = np.asarray(probabilities, np.float64), np.asarray(right, np.float64)
    if not weights.sum():
        return math.nan
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, weights * (p - hits), BINS)).sum() / weights.sum())


@dataclass(frozen=True)
class Abstention:
    """Effect of not answering below a threshold of the confidence. Field names are keys of evaluation.json."""

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
