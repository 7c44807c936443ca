"""Forecast the score with more train rows, by a power law through the scores at several sizes.

The law is score = a - b · rows^-c, as learning curves commonly follow (Viering and Loog, The Shape
of Learning Curves: A Review, 2023). It counts only if it would have predicted the last point from
those before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
EXPONENTS = np.linspace(0.05, 2.0, 40)


@dataclass(frozen=True)
class Forecast:
    """The score at `rows` train rows, between `low` and `high`, and its change from the last point,
    between `change_low` and `change_high`. The intervals cover the choice of test rows and the fit
    of the law, not the randomness of training. `fitted` is the law's value at the last point.
    """

    rows: float
    score: float
    low: float
    high: float
    change: float
    change_low: float
    change_high: float
    fitted: float


def draw_means(scores: Values, groups: Sequence[str], draws: int, seed: int) -> Values:
    """Bootstrap means at each size, (draws, sizes), from `scores`, (rows, sizes). Whole groups of
    test rows are drawn with replacement, the same ones for all sizes.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.stack(
        [np.bincount(index, weights=column, minlength=len(names)) for column in scores.T]
    )
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    times = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=draws
    )
    means: Values = (times @ sums.T) / (times @ counts)[:, None]
    return means


def extrapolate(sizes: Values, means: Values, rows: float, most: float) -> Values:
    """The value at `rows` of the least-squares power law through each draw's means, (draws, sizes).
    Its limit is kept between 0 and `most`, as all scores are.
    """
    best = np.full(len(means), np.inf)
    found = np.zeros(len(means))
    for exponent in EXPONENTS:
        falling = sizes**-exponent
        table = np.stack([np.ones_like(sizes), -falling], axis=1)
        limit = np.clip(np.linalg.lstsq(table, means.T, rcond=None)[0][0], 0, most)
        slope = ((limit[:, None] - means) @ falling) / (falling @ falling)
        errors = ((limit[:, None] - slope[:, None] * falling - means) ** 2).sum(axis=1)
        better = errors < best
        best[better] = errors[better]
        found[better] = (limit - slope * rows**-exponent)[better]
    return found


def forecast(
    sizes: Sequence[int],
    scores: Values,
    groups: Sequence[str],
    rows: float,
    most: float,
    draws: int,
    confidence: float,
    seed: int,
) -> Forecast:
    """Forecast the score at `rows` train rows by a law through all `sizes`. `scores` is (test rows,
    sizes), each at most `most`.

    The interval is a percentile bootstrap over test groups; each draw is fitted anew.
    """
    known = np.asarray(sizes, dtype=np.float64)
    means = draw_means(scores, groups, draws, seed)
    drawn = extrapolate(known, means, rows, most)
    observed = scores.mean(axis=0)
    score, fitted = (
        float(extrapolate(known, observed[None, :], at, most)[0]) for at in (rows, known[-1])
    )
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(drawn, tails)
    change_low, change_high = np.quantile(drawn - means[:, -1], tails)
    return Forecast(
        rows=rows,
        score=score,
        low=float(low),
        high=float(high),
        change=score - float(observed[-1]),
        change_low=float(change_low),
        change_high=float(change_high),
        fitted=fitted,
    )
