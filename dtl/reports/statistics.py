"""Statistical comparisons: whether two configurations differ by more than the noise of their seeds.

Student's paired t test over equal seeds; Welch's test where the seeds do not pair; Holm's step-down correction over
all pairs of a table, which keeps the chance of even one false winner at most 5 % (Holm 1979).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

ALPHA = 0.05
POWER = 0.8
MIN_SEEDS = 5  # to name a winner: with fewer, a t test rests on its assumption of normal noise alone
_NO_SPREAD = 1e-12  # a standard error below this fraction of the values is rounding, not noise


@dataclass(frozen=True)
class Comparison:
    """Difference first minus second, with its test. Values that could not be computed are None."""

    first: str
    second: str
    n: int  # pairs of equal seeds; of an unpaired test, runs of the smaller side
    paired: bool
    higher_is_better: bool
    difference: float  # of the means, first - second, in units of the metric
    interval: tuple[float, float] | None = None  # of the difference, 95 %, for this comparison alone
    p: float | None = None  # two-sided
    corrected: float | None = None  # `p` after Holm's correction over the table
    detectable: float | None = None  # the smallest true difference that this n shows with a power of 0.8

    @property
    def better(self) -> str | None:
        """The configuration that may be called better; None if noise could explain the difference."""
        if self.n < MIN_SEEDS or self.corrected is None or self.corrected >= ALPHA:
            return None
        return self.first if (self.difference > 0) == self.higher_is_better else self.second


def compare_all(values: Mapping[str, Mapping[Hashable, float]], higher_is_better: bool) -> list[Comparison]:
    """Compare every pair of configurations, Holm-corrected over the returned comparisons.

    `values` holds for each configuration the metric by seed. A pair needs two values on either side.
    """
    comparisons = [
        compare(first, values[first], second, values[second], higher_is_better)
        for first, second in combinations(values, 2)
        if min(len(values[first]), len(values[second])) >= 2
    ]
    corrected = holm([np.nan if each.p is None else each.p for each in comparisons])
    pairs = zip(comparisons, corrected, strict=True)
    return [replace(each, corrected=None if each.p is None else float(p)) for each, p in pairs]


def compare(
    first: str, of_first: Mapping[Hashable, float], second: str, of_second: Mapping[Hashable, float], higher: bool
) -> Comparison:
    """Compare two configurations with at least two values each, without correction."""
    common = [seed for seed in of_first if seed in of_second]
    # The test is chosen by the seeds alone, never by their scores: a choice by result would bias p.
    if len(common) >= MIN_SEEDS or (len(common) >= 2 and len(common) == min(len(of_first), len(of_second))):
        differences = np.array([of_first[seed] - of_second[seed] for seed in common])
        scale = max(abs(of_first[seed]) for seed in common)
        error, freedom = standard_error(differences), len(common) - 1
        comparison = Comparison(first, second, len(common), True, higher, float(differences.mean()))
    else:
        a, b = np.array(list(of_first.values())), np.array(list(of_second.values()))
        scale = float(np.abs(a).max())
        error, freedom = welch(a, b)
        comparison = Comparison(first, second, min(len(a), len(b)), False, higher, float(a.mean() - b.mean()))
    if not error > _NO_SPREAD * scale:
        return comparison
    half = error * _t_quantile(1 - ALPHA / 2, freedom)
    return replace(
        comparison,
        interval=(comparison.difference - half, comparison.difference + half),
        p=float(two_sided_p(comparison.difference / error, freedom)),
        detectable=error * detectable_in_errors(freedom),
    )


def standard_error(samples: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over the last axis: (..., n) to (...)."""
    return samples.std(axis=-1, ddof=1) / np.sqrt(samples.shape[-1])


def welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the standard error of the difference of two means, and Welch-Satterthwaite's degrees of freedom."""
    of_a, of_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if of_a + of_b == 0:
        return 0.0, float(len(a) + len(b) - 2)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return float(np.sqrt(of_a + of_b)), float(freedom)


def two_sided_p(t: np.ndarray | float, freedom: float) -> np.ndarray | float:
    """Return the probability of a t statistic at least as far from 0 if there is no difference."""
    from scipy import stats

    return 2 * stats.t.sf(np.abs(t), freedom)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return corrected p-values, (..., m) to (..., m): the k-th smallest times m - k + 1, non-decreasing, at most 1.

    NaN stands for a comparison that could not be made: it stays NaN and is not counted in m.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, axis=-1)  # NaN last
    ranked = np.take_along_axis(p, order, axis=-1)
    factors = np.isfinite(p).sum(axis=-1, keepdims=True) - np.arange(p.shape[-1])
    stepped = np.minimum(np.maximum.accumulate(ranked * factors, axis=-1), 1.0)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, stepped, axis=-1)
    return corrected


def detectable_in_errors(freedom: float) -> float:
    """Return the smallest true difference, in standard errors, that a two-sided t test at 5 % finds with power 0.8."""
    from scipy import optimize

    critical = _t_quantile(1 - ALPHA / 2, freedom)

    def missing_power(effect: float) -> float:
        return power(effect, critical, freedom) - POWER

    largest = critical
    while missing_power(largest) < 0:
        largest *= 2
    return float(optimize.root_scalar(missing_power, bracket=(0.0, largest)).root)


def power(effect: float, critical: float, freedom: float) -> float:
    """Return the probability that |t| exceeds `critical` if the true difference is `effect` standard errors."""
    from scipy import stats

    other_side = stats.nct.cdf(-critical, freedom, effect)  # scipy returns NaN for some tiny values
    return float(stats.nct.sf(critical, freedom, effect) + np.nan_to_num(other_side))


def _t_quantile(probability: float, freedom: float) -> float:
    from scipy import stats

    return float(stats.t.ppf(probability, freedom))
