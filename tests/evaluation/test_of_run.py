"""The questions at the end of a run: a fraction of its training, no room of the small splits wasted."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl.evaluation.evaluator import (
    MAX_FRACTION_OF_TRAINING,
    MAX_QUESTIONS,
    MIN_QUESTIONS,
    evenly_spaced,
    max_questions,
)

NUMBERS = st.lists(st.integers(1, 9000), min_size=1, max_size=5)


@given(NUMBERS, st.floats(1, 500), st.integers(0, 10**9))
def test_the_questions_fit_into_a_share_of_the_training(numbers, tokens_each, trained):
    most = max_questions(numbers, tokens_each, trained)
    assert MIN_QUESTIONS <= most <= MAX_QUESTIONS

    def tokens(limit: int) -> float:
        return tokens_each * sum(min(number, limit) for number in numbers)

    room = MAX_FRACTION_OF_TRAINING * trained
    assert tokens(most) <= room * 1.000001 or most == MIN_QUESTIONS
    if most < min(MAX_QUESTIONS, max(numbers)):  # it is the largest that fits
        assert tokens(most + 1) > room * 0.999999


@given(NUMBERS, st.integers(0, 10**8))
def test_more_training_never_asks_less(numbers, trained):
    assert max_questions(numbers, 37, trained) <= max_questions(numbers[::-1], 37, trained * 2)


def test_no_questions_at_all():
    assert max_questions([], 0.0, 0) >= 0


@pytest.mark.parametrize("most", [1, 7, 23, 300, 301])
def test_a_sample_comes_from_everywhere(most):
    whole = [str(n) for n in range(300)]
    chosen = evenly_spaced(whole, most)
    assert len(chosen) == min(most, 300) and len(set(chosen)) == len(chosen) and chosen[0] == "0"
    steps = [int(b) - int(a) for a, b in itertools.pairwise(chosen)]
    assert not steps or max(steps) - min(steps) <= 1
