"""How much is asked at the end of a run: a share of its training, none of the small splits' room wasted."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl.evaluation.evaluate import MAX_QUESTIONS, MIN_QUESTIONS, SHARE_OF_TRAINING, most_questions, spread

NUMBERS = st.lists(st.integers(1, 9000), min_size=1, max_size=5)


@given(NUMBERS, st.floats(1, 500), st.integers(0, 10**9))
def test_the_questions_fit_into_a_share_of_the_training(numbers, tokens_each, trained):
    most = most_questions(numbers, tokens_each, trained)
    assert MIN_QUESTIONS <= most <= MAX_QUESTIONS

    def tokens(limit: int) -> float:
        return tokens_each * sum(min(number, limit) for number in numbers)

    room = SHARE_OF_TRAINING * trained
    assert tokens(most) <= room * 1.000001 or most == MIN_QUESTIONS
    if most < min(MAX_QUESTIONS, max(numbers)):  # it is the largest that fits
        assert tokens(most + 1) > room * 0.999999


@given(NUMBERS, st.integers(0, 10**8))
def test_more_training_never_asks_less(numbers, trained):
    assert most_questions(numbers, 37, trained) <= most_questions(numbers[::-1], 37, trained * 2)


def test_no_questions_at_all():
    assert most_questions([], 0.0, 0) >= 0


@pytest.mark.parametrize("most", [1, 7, 23, 300, 301])
def test_a_sample_comes_from_everywhere(most):
    whole = [str(n) for n in range(300)]
    chosen = spread(whole, most)
    assert len(chosen) == min(most, 300) and len(set(chosen)) == len(chosen) and chosen[0] == "0"
    steps = [int(b) - int(a) for a, b in itertools.pairwise(chosen)]
    assert not steps or max(steps) - min(steps) <= 1
