"""Figures from sums and scores, against counting by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl.evaluation.metrics import abstain, area_under_roc, best_threshold, bits_per_byte, perplexity

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


@given(SCORES, SCORES)
def test_no_threshold_separates_better_than_the_chosen_one(positives, negatives):
    def j(threshold):
        return sum(p >= threshold for p in positives) / len(positives) - sum(n >= threshold for n in negatives) / len(
            negatives
        )

    chosen = best_threshold(positives, negatives)
    assert math.isfinite(chosen)
    assert j(chosen) == pytest.approx(max(j(threshold) for threshold in (-10, -2.9, -1.4, -0.9, -0.2, 1)))


def test_of_equally_good_thresholds_the_one_that_answers_most():
    assert best_threshold([-1.0, -0.5], [-4.0]) == -2.5
    assert best_threshold([-1.0], [-1.0]) < -1.0


def test_a_threshold_needs_both_kinds():
    with pytest.raises(ValueError):
        best_threshold([], [1.0])


def test_abstaining_by_hand():
    made = abstain(-1.0, [-0.5, -1.0, -1.5, -2.0, -0.1], [True, False, True, False, True], [-0.2, -3.0, -4.0])
    assert (made.answerable, made.unanswerable) == (5, 3)
    assert made.coverage == pytest.approx(3 / 5)
    assert made.accuracy_answered == pytest.approx(2 / 3)
    assert made.accuracy_without == pytest.approx(3 / 5)
    assert made.refused == pytest.approx(2 / 3)
