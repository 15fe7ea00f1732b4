"""Comparisons with error bars: against scipy, by hand, and on noise, where no winner may be announced."""

import numpy as np
import pytest
from scipy import stats

from dtl.reports.metric import Metric
from dtl.reports.statistics import (
    ALPHA,
    MIN_SEEDS,
    compare,
    compare_all,
    detectable_in_errors,
    holm,
    power,
    standard_error,
    two_sided_p,
    welch,
)

LOSS = Metric()


def table(*columns: np.ndarray) -> dict[str, dict[int, float]]:
    """Configurations c0, c1, ... with values for the seeds 0, 1, ..."""
    return {f"c{k}": dict(enumerate(map(float, column))) for k, column in enumerate(columns)}


def paired_p(differences: np.ndarray) -> np.ndarray:
    """Return p of the paired t test over the last axis, as in `compare`, for many tables: (..., n) to (...)."""
    return np.asarray(two_sided_p(differences.mean(axis=-1) / standard_error(differences), differences.shape[-1] - 1))


@pytest.mark.parametrize("n", [2, 3, 7, 13])
def test_equal_seeds_are_a_paired_t_test(n):
    noise = np.random.default_rng(n)
    a, b = noise.normal(2.0, 0.1, n), noise.normal(2.1, 0.1, n)
    one = compare_all(table(a, b), higher_is_better=False)[0]
    known = stats.ttest_rel(a, b)
    assert (one.n, one.paired, one.p) == (n, True, pytest.approx(known.pvalue))
    assert one.interval == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert one.difference == pytest.approx(a.mean() - b.mean())
    assert paired_p(a - b) == pytest.approx(known.pvalue)


def test_the_order_of_seeds_does_not_matter_and_strangers_are_left_out():
    a = {3: 1.0, 1: 1.2, 2: 1.1, 11: 1.4, 5: 1.3, 99: 7.0}
    b = {1: 1.5, 2: 1.2, 3: 1.4, 5: 1.5, 11: 1.9, 98: 0.0}
    common = [1, 2, 3, 5, 11]
    known = stats.ttest_rel([a[seed] for seed in common], [b[seed] for seed in common])
    one = compare("a", a, "b", b, False)
    assert (one.n, one.paired, one.p) == (5, True, pytest.approx(known.pvalue))


@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 11), (3, 7)])
def test_other_seeds_are_welchs_test(n, m):
    noise = np.random.default_rng(n * m)
    a, b = noise.normal(2.0, 0.1, n), noise.normal(2.1, 0.4, m)
    one = compare("a", dict(enumerate(a)), "b", dict(enumerate(b, 100)), False)
    known = stats.ttest_ind(a, b, equal_var=False)
    assert (one.n, one.paired, one.p) == (min(n, m), False, pytest.approx(known.pvalue))
    assert one.interval == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert welch(a, b)[1] == pytest.approx(known.df)


def test_few_common_seeds_of_many_do_not_pair():
    """Two pairs would throw away most of what was measured."""
    a, b = dict(enumerate([1.0, 1.1, 1.2, 1.3, 1.4])), dict(enumerate([2.0, 2.1, 2.2, 2.3, 2.5], 3))
    assert not compare("a", a, "b", b, False).paired


def test_holm_by_hand():
    # Four p-values: 0.01 * 4, 0.02 * 3, 0.03 * 2 = 0.06 (not below the one before), 0.5 * 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.7, 0.6, 0.8]) == pytest.approx([1.0, 1.0, 1.0])
    assert holm([]).shape == (0,)


def test_holm_does_not_count_what_could_not_be_compared():
    corrected = holm([0.01, np.nan, 0.04])
    assert corrected[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(corrected[1])


def test_holm_takes_many_tables_at_once():
    p = np.random.default_rng(7).uniform(size=(11, 5))
    assert holm(p) == pytest.approx(np.array([holm(row) for row in p]))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("spread", [(1.0, 1.0, 1.0, 1.0), (0.2, 5.0, 1.0, 1.0)])
def test_noise_makes_no_winner(spread):
    """Of tables of noise alone at most 5 % may name any winner; seeds are shared, so that pairs depend."""
    n_tables, n_configurations = 4000, len(spread)
    noise = np.random.default_rng(13)
    values = noise.normal(size=(n_tables, n_configurations, MIN_SEEDS)) * np.array(spread)[:, None]
    values += 3 * noise.normal(size=(n_tables, 1, MIN_SEEDS))  # what a seed does to all of them
    firsts, seconds = np.triu_indices(n_configurations, 1)
    corrected = holm(paired_p(values[:, firsts] - values[:, seconds]))
    announced = (corrected < ALPHA).any(axis=1)
    assert announced.mean() <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / n_tables)
    assert announced.mean() > 0.005, "a test that never finds anything is no test"
    uncorrected = (paired_p(values[:, firsts] - values[:, seconds]) < ALPHA).any(axis=1)
    assert uncorrected.mean() > 2 * ALPHA, "without the correction there would be many"
    for number in range(0, 100):  # what is announced is what the page announces
        found = compare_all(table(*values[number]), higher_is_better=False)
        assert any(one.better for one in found) == announced[number]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_fewer_than_five_seeds_never_name_a_winner(n):
    noise = np.random.default_rng(n)
    a = noise.normal(1.0, 1e-3, n)
    for other in (
        table(a, a + 5 + noise.normal(0, 1e-3, n)),
        {"a": dict(enumerate(a)), "b": dict(enumerate(9 + a**2, 50))},
    ):
        one = compare_all(other, higher_is_better=False)[0]
        assert one.corrected is not None and one.corrected < 0.02 and one.better is None


@pytest.mark.parametrize("higher", [False, True])
@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_the_better_one_is_on_the_right_side(higher, shift):
    a = np.random.default_rng(3).normal(2.0, 0.05, 5)
    one = compare_all(table(a + shift, np.random.default_rng(4).normal(2.0, 0.05, 5)), higher)[0]
    assert np.sign(one.difference) == shift and one.interval and np.sign(one.interval).tolist() == [shift, shift]
    assert one.better == ("c0" if (shift > 0) == higher else "c1")


def test_without_spread_nothing_is_announced():
    """Five seeds that always differ by the same are one measurement, five times; rounding is no spread."""
    tenths = 0.1 * np.arange(1, 8)
    assert (tenths + 0.3 - tenths).std() > 0
    for a, b in ((np.full(5, 0.25), np.full(5, 0.5)), (np.full(5, 0.1), np.full(5, 0.1)), (tenths + 0.3, tenths)):
        one = compare_all(table(a, b), higher_is_better=True)[0]
        assert (one.p, one.corrected, one.interval, one.better) == (None, None, None, None)


def test_one_value_is_not_compared():
    assert compare_all({"a": {1: 1.0}, "b": {1: 2.0, 2: 2.1}}, higher_is_better=False) == []


@pytest.mark.parametrize("n", [3, 5, 11])
def test_the_smallest_difference_is_found_in_four_of_five_repetitions(n):
    noise = np.random.default_rng(n)
    spread, n_repetitions = 0.3, 20_000
    smallest = detectable_in_errors(n - 1) * spread / np.sqrt(n)
    found = paired_p(noise.normal(smallest, spread, (n_repetitions, n))) < ALPHA
    assert found.mean() == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 4, 17.5, 300])
def test_power_rises_from_alpha_to_one(freedom):
    critical = float(stats.t.ppf(0.975, freedom))
    assert power(0.0, critical, freedom) == pytest.approx(ALPHA)
    powers = [power(effect * critical, critical, freedom) for effect in (0.5, 1.0, 2.0, 4.0)]
    assert powers == sorted(powers) and powers[-1] > 0.99
    assert power(detectable_in_errors(freedom), critical, freedom) == pytest.approx(0.8)
