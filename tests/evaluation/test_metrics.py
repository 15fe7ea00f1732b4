"""Figures from sums and scores, against counting by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl.evaluation.metrics import (
    Calibration,
    abstain,
    area_under_roc,
    balanced,
    bits_per_byte,
    calibration_error,
    perplexity,
)

SCORES = st.lists(st.sampled_from([-math.inf, -3.0, -1.5, -1.0, -0.25, 0.0]), min_size=1, max_size=13)


def test_bits_per_byte_of_a_fair_coin_a_byte():
    assert bits_per_byte(7 * math.log(2), 7) == pytest.approx(1)
    assert bits_per_byte(7 * math.log(2), 14) == pytest.approx(0.5)
    assert math.isnan(bits_per_byte(1.0, 0))


def test_perplexity_of_a_uniform_choice_is_the_number_of_choices():
    assert perplexity(math.log(23)) == pytest.approx(23)
    assert math.isfinite(perplexity(1e9))


@given(SCORES, SCORES)
def test_area_is_the_share_of_pairs_in_the_right_order(positives, negatives):
    won = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives)
    assert area_under_roc(positives, negatives) == pytest.approx(won / (len(positives) * len(negatives)))


def test_area_without_questions_is_no_number():
    assert math.isnan(area_under_roc([], [1.0])) and math.isnan(area_under_roc([1.0], []))


@given(SCORES, st.floats(0, 5), st.floats(-5, 5))
def test_a_calibration_never_falls(scores, slope, intercept):
    probabilities = [Calibration(slope, intercept).probability(score) for score in sorted(scores)]
    assert probabilities == sorted(probabilities) and 0 <= probabilities[0] <= probabilities[-1] <= 1


def test_a_calibration_that_changes_nothing_is_the_mean_probability():
    for p in (1e-9, 0.02, 0.5, 0.7, 0.999):
        assert Calibration(1.0, 0.0).probability(math.log(p)) == pytest.approx(p)


def test_answerable_and_unanswerable_questions_weigh_the_same():
    assert balanced(4, 1).tolist() == [0.125] * 4 + [0.5]
    assert balanced(2, 0).sum() == 0.5 and not balanced(0, 0).sum()


def test_the_calibration_error_by_hand():
    """Bins [0.2, 0.3), [0.9, 1]: predicted 0.25 and 0.95, measured 1/2 and 1; three quarters are in the first."""
    weights = np.array([1.0, 1.0, 1.0])
    error = calibration_error([0.24, 0.26, 0.95], [True, False, True], weights)
    assert error == pytest.approx((2 * 0.25 + 0.05) / 3)
    assert calibration_error([0.24, 0.26, 0.95], [True, False, True], weights / 7) == pytest.approx(error)
    assert calibration_error([1.0, 0.0], [True, False], np.ones(2)) == 0
    assert math.isnan(calibration_error([], [], np.ones(0)))


def test_abstaining_by_hand():
    made = abstain(-1.0, [-0.5, -1.0, -1.5, -2.0, -0.1], [True, False, True, False, True], [-0.2, -3.0, -4.0])
    assert (made.answerable, made.unanswerable) == (5, 3)
    assert made.coverage == pytest.approx(3 / 5)
    assert made.accuracy_answered == pytest.approx(2 / 3)
    assert made.accuracy_without == pytest.approx(3 / 5)
    assert made.refused == pytest.approx(2 / 3)
