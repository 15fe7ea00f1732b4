"""Loss against the number of parameters: a floor plus a power law, E + A N^-alpha, carried on to larger models.

The form is that of Hoffmann et al. 2022 (arXiv:2203.15556) along one line, of equally many tokens a parameter or of
equally many tokens. Beside it the naive line: a power law without floor, straight on two logarithmic axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXPONENTS = np.geomspace(0.01, 2.0, 50)  # then as many between the neighbours of the best: steps of 0.4 %
N_DRAWS = 500
LEVEL = 0.95
MAX_NOISE = 0.5  # of a drawn loss: one degree of freedom draws noise without bound, whose losses overflow


@dataclass(frozen=True)
class PowerLaw:
    """Loss E + A (n / scale)^-alpha; E, A and alpha are numbers, or arrays (k,) of as many laws."""

    floor: np.ndarray
    factor: np.ndarray
    exponent: np.ndarray
    scale: float  # parameters

    def __call__(self, n: np.ndarray | float) -> np.ndarray:
        """Return the losses at sizes n (m,): (m, k), or (m,) of a single law."""
        sizes = np.asarray(n, dtype=float)[(..., *[None] * np.ndim(self.exponent))]
        return self.floor + self.factor * (sizes / self.scale) ** -self.exponent


def fit_power_law(n: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> PowerLaw:
    """Return the law of least squared relative errors: sizes n (m,), losses (m,) or (k, m), weights of squares (m,).

    Floor and factor are at least 0. For each exponent they follow from linear least squares, and the best exponent is
    taken from a grid, twice (variable projection, Golub and Pereyra 1973): without a start, and never a local minimum.
    """
    scale = float(np.exp(np.log(n).mean()))
    y = np.atleast_2d(losses)[:, None]  # (k, 1, m)
    exponents = EXPONENTS[None]
    for step in (EXPONENTS[1] / EXPONENTS[0], 1.0):
        x = (n / scale) ** -exponents[..., None]  # (k, e, m), first (1, e, m)
        floor, factor, errors = _least_squares(x, y, weights / y**2)
        laws, best = np.arange(len(y)), errors.argmin(axis=1)
        chosen = np.broadcast_to(exponents, errors.shape)[laws, best]
        exponents = chosen[:, None] * step ** np.linspace(-1, 1, len(EXPONENTS))  # between the two neighbours
    law = PowerLaw(floor[laws, best], factor[laws, best], chosen, scale)
    return law if np.ndim(losses) > 1 else PowerLaw(law.floor[0], law.factor[0], law.exponent[0], scale)


def _least_squares(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return floor >= 0 and factor >= 0 of y = floor + factor x with least squares weighted by w, and their sum."""
    s_w, s_y, s_x, s_xx, s_xy = ((w * each).sum(-1) for each in (1, y, x, x * x, x * y))
    floor = np.maximum((s_xx * s_y - s_x * s_xy) / (s_w * s_xx - s_x**2), 0.0)
    factor = (s_xy - floor * s_x) / s_xx  # the best for this floor
    floor, factor = np.where(factor < 0, s_y / s_w, floor), np.maximum(factor, 0.0)
    return floor, factor, (w * (floor[..., None] + factor[..., None] * x - y) ** 2).sum(-1)


def straight_line(n: np.ndarray, losses: np.ndarray, at: np.ndarray | float) -> np.ndarray:
    """Return the losses of a power law without floor through the points, at other sizes."""
    slope, start = np.polyfit(np.log(n), np.log(losses), 1)
    return np.exp(start + slope * np.log(at))


@dataclass(frozen=True)
class Scaling:
    """Law through the sizes of a sweep, with laws that the noise could have given as well."""

    n: np.ndarray  # (m,) parameters without embeddings, rising
    losses: np.ndarray  # (m,) means over the seeds
    law: PowerLaw
    noise: float  # relative standard deviation of one run
    from_seeds: bool  # where False: the noise is that of the residuals, which is larger or the only one known
    drawn: PowerLaw  # (k,) laws fitted to losses drawn with this noise
    drawn_noise: np.ndarray  # (k,) relative noise of one more run in each draw
    without_one: PowerLaw  # laws fitted without each size in turn, where enough are left

    def interval(self, n: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the interval for one run of each size: of the draws, widened to the laws without one."""
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(self.drawn(n) * np.exp(self.drawn_noise), (tail, 1 - tail), axis=-1)
        others = self.without_one(n)
        return np.minimum(low, others.min(axis=-1)), np.maximum(high, others.max(axis=-1))

    def naive(self, n: np.ndarray | float) -> np.ndarray:
        """Return the losses of the straight line through all sizes."""
        return straight_line(self.n, self.losses, n)

    def last_two(self, n: np.ndarray | float) -> np.ndarray:
        """Return the losses of the straight line through the two largest sizes."""
        return straight_line(self.n[-2:], self.losses[-2:], n)


def scaling_of(n: Sequence[float], losses: Sequence[Sequence[float]], min_sizes: int) -> Scaling:
    """Return the law through sizes `n`, rising, each with the losses of its seeds. Needs at least four sizes.

    The noise of a run is the larger one of the spread over the seeds and of the residuals of the law. It is drawn with
    the uncertainty of its own estimate (chi-square), so that few runs give a wide interval.
    """
    sizes, means = np.array(n, dtype=float), np.array([np.mean(each) for each in losses])
    counts = np.array([len(each) for each in losses], dtype=float)
    law = fit_power_law(sizes, means, counts)
    spreads = [np.var(np.log(each), ddof=1) * (len(each) - 1) for each in losses if len(each) > 1]
    freedom_seeds, freedom_law = int(counts.sum()) - len(losses), len(losses) - 3
    of_law = float(np.sqrt((counts * np.log(means / law(sizes)) ** 2).sum() / freedom_law))
    of_seeds = float(np.sqrt(sum(spreads) / freedom_seeds)) if freedom_seeds else 0.0
    noise, freedom = max(of_law, of_seeds), freedom_seeds or freedom_law
    generator = np.random.default_rng(0)  # the same interval each time
    scatter = np.minimum(noise * np.sqrt(freedom / generator.chisquare(freedom, N_DRAWS)), MAX_NOISE)
    errors = scatter[:, None] * generator.standard_normal((N_DRAWS, len(sizes))) / np.sqrt(counts)
    kept = [np.arange(len(sizes)) != i for i in range(len(sizes))] if len(sizes) > min_sizes else []
    laws = [fit_power_law(sizes[keep], means[keep], counts[keep]) for keep in kept] or [law]
    return Scaling(
        n=sizes,
        losses=means,
        law=law,
        noise=noise,
        from_seeds=of_seeds >= of_law,
        drawn=fit_power_law(sizes, law(sizes) * np.exp(errors), counts),
        drawn_noise=scatter * generator.standard_normal(N_DRAWS),
        without_one=_side_by_side(laws),
    )


def _side_by_side(laws: Sequence[PowerLaw]) -> PowerLaw:
    """Return single laws as one of arrays, with the scale of the first."""
    scale = laws[0].scale
    factors = [law.factor * (law.scale / scale) ** law.exponent for law in laws]
    return PowerLaw(np.array([x.floor for x in laws]), np.array(factors), np.array([x.exponent for x in laws]), scale)
