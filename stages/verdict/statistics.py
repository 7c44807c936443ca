"""How sure a difference is: intervals and tests that treat a group of rows as one draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Means of two systems on the same units, the paired difference with its interval, and the p-value of the swap test."""

    zeroshot: float
    sft: float
    delta: float
    low: float
    high: float
    p: float
    n: int


def _sums(values: Values, groups: Sequence[str]) -> tuple[Values, Values]:
    """Sum and count of the values in each group, groups in order of name so that row order can't matter."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(index, weights=values, minlength=len(names)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(names)).astype(np.float64)


def compare(
    zeroshot: Sequence[float], sft: Sequence[float], groups: Sequence[str], draws: int, confidence: float, seed: int
) -> Comparison:
    """Compare two systems unit by unit.

    The interval is a percentile bootstrap of the mean difference, whole groups drawn with replacement. The p-value is two-sided:
    the share of random swaps of the two systems, group by group, whose difference is at least as large, the observed one
    counted among them. Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 15.
    """
    before, after = np.asarray(zeroshot, dtype=np.float64), np.asarray(sft, dtype=np.float64)
    sums, counts = _sums(after - before, groups)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    signs = rng.choice([-1.0, 1.0], size=(draws, len(sums)))
    # sums of the same numbers in another order differ in their last bits: they count as equal
    observed = abs(sums.sum()) * (1 - 1e-9) - 1e-12
    p = (1 + np.count_nonzero(np.abs(signs @ sums) >= observed)) / (1 + draws)
    return Comparison(
        zeroshot=float(before.mean()),
        sft=float(after.mean()),
        delta=float(sums.sum() / counts.sum()),
        low=float(low),
        high=float(high),
        p=float(p),
        n=len(before),
    )


def adjust_holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment of several p-values: each is to be read as if it were the only one. Holm, 1979."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def decide(comparison: Comparison, lower_is_better: bool, confidence: float) -> int:
    """1 for better, −1 for worse, 0 for no evidence: interval and test must both exclude no difference."""
    if comparison.p > 1 - confidence or comparison.low <= 0 <= comparison.high:
        return 0
    return 1 if (comparison.delta < 0) == lower_is_better else -1
