"""Intervals and tests of a difference that treat a group of rows as one draw."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm
from scipy.stats import t as student

Values = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)
DRAWN_AT_ONCE = 2_000_000  # groups: bounds the memory however many there are
# groups off the most common difference; with fewer, many draws would have no spread
LEAST_VARIED = 20
POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """Means of a baseline and a candidate on the same units, and how sure their difference is.

    `delta` is candidate minus baseline, paired by unit, between `low` and `high`; `p` is the swap
    test's. `detectable` is the smallest true difference that would have been found with a chance of
    80%; it is infinite if groups are too few or do not differ at all. The interval of a single
    group is infinite, too. `n` counts the units, `groups` the groups that were drawn.
    """

    baseline: float
    candidate: float
    delta: float
    low: float
    high: float
    p: float
    detectable: float
    n: int
    groups: int


@dataclass(frozen=True)
class SeedsComparison(Comparison):
    """The comparison of a baseline with a candidate that was trained with several seeds.

    `candidate` and `delta` are means over the `seeds`, and the interval covers other test rows and
    other seeds; those of the baseline, too, if it was trained with several. `training_share` and
    `rows_share` are the shares of the squared standard error that are due to training and to the
    choice of test rows; the rest is due to both together, and falls with more of either.
    `half_width` is that of an interval with Student's quantiles throughout, `half_width_next_seed`
    the same with one more seed of each, `half_width_twice_groups` with twice the groups.
    """

    seeds: int
    training_share: float
    rows_share: float
    half_width: float
    half_width_next_seed: float
    half_width_twice_groups: float


@dataclass(frozen=True)
class _Trained:
    """A system that was trained with several `seeds`, and what adds to the squared standard error
    of its mean over them: `rest`, which is due to group and seed together, and `beyond` that, the
    seeds alone.
    """

    seeds: int
    beyond: float
    rest: float


def _sums(values: Values, groups: Sequence[str]) -> tuple[Values, Values]:
    """Sum and count of the values in each group, groups sorted by name so that the order of rows
    does not matter.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(index, weights=values, minlength=len(names)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(names)).astype(np.float64)


def _portions(draws: int, groups: int) -> Iterator[tuple[int, int]]:
    at_once = max(1, DRAWN_AT_ONCE // groups)
    for start in range(0, draws, at_once):
        yield min(at_once, draws - start), groups


def _mean_and_error(moments: Sequence[Values], groups: int) -> tuple[Values, Values]:
    """Mean over units and its standard error over drawn groups, by the linearized ratio of sums.
    Cochran, 1977, chapter 6.

    `moments` are totals over the groups of: sums, counts, squared sums, sums times counts, and
    squared counts.
    """
    total, count, squared, product, count_squared = moments
    mean = total / count
    residuals = np.maximum(squared - 2 * mean * product + mean**2 * count_squared, 0)
    return mean, np.sqrt(residuals * groups / max(groups - 1, 1)) / count


def _detectable(
    error: float,
    counts: Values,
    confidence: float,
    times: float = 1.0,
    trained: Sequence[_Trained] = (),
) -> float:
    """The true difference d that is found with the chance POWER in `times` as many similar groups:
    d = sqrt(t²·(error² + k·d²) + Σ u²·s²) + z·sqrt(error² + Σ s²).

    t is Student's, for the confidence and the groups, u the same for the seeds of a trained system,
    s their standard error, and z the normal quantile of the power. A difference widens the
    distribution of swaps by k·d², where k is the sum of the squared group sizes over the square of
    their sum.
    """
    if error == 0:
        return math.inf
    freedom = max(times * len(counts) - 1, 1)
    t, z = _quantile(confidence, freedom), float(norm.ppf(POWER))
    left = 1 - t**2 * float((counts**2).sum() / counts.sum() ** 2) / times
    if left <= 0:
        return math.inf
    error /= math.sqrt(times)
    # in units of the groups' error, so that seeds that add nothing cause no rounding
    power = z**2 * (1 + sum(one.beyond / error**2 for one in trained))
    half = t**2 + sum(
        _quantile(confidence, one.seeds - 1) ** 2 * one.beyond / error**2 for one in trained
    )
    return error * (math.sqrt(power) + math.sqrt(power + left * (half - power))) / left


def _quantile(confidence: float, freedom: float) -> float:
    """Student's quantile for a two-sided interval."""
    return float(student.ppf((1 + confidence) / 2, freedom))


def count_groups(
    baseline: Sequence[float],
    candidate: Sequence[float],
    groups: Sequence[str],
    difference: float,
    confidence: float,
) -> int | None:
    """How many groups like these would show a true difference with the chance POWER; None if these
    do not differ at all, since that says nothing about others.
    """
    before, after = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    sums, counts = _sums(after - before, groups)
    moments = np.stack([sums, counts, sums**2, sums * counts, counts**2])
    _, error = _mean_and_error(moments.sum(axis=1), len(sums))
    if error == 0:
        return None
    few, many = 2, 4
    while _detectable(float(error), counts, confidence, many / len(sums)) > difference:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        if _detectable(float(error), counts, confidence, middle / len(sums)) > difference:
            few = middle
        else:
            many = middle
    return many


def compare(
    baseline: Sequence[float],
    candidate: Sequence[float],
    groups: Sequence[str],
    draws: int,
    confidence: float,
    seed: int,
) -> Comparison:
    """Compare two systems unit by unit.

    The interval is a studentized bootstrap of the mean difference, whole groups drawn with
    replacement: a percentile bootstrap is too narrow for some seventy groups, the more so if
    differences are skewed. If fewer than LEAST_VARIED groups differ from the most common difference
    (few groups, or a metric that rarely changes), the interval is Student's, with one degree of
    freedom less than groups. The p-value is two-sided: the share of random swaps of the two
    systems, group by group, whose difference is at least as large, counting the observed one.
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8, 12 and 15.
    """
    before, after = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    sums, counts = _sums(after - before, groups)
    moments = np.stack([sums, counts, sums**2, sums * counts, counts**2])
    mean, error = _mean_and_error(moments.sum(axis=1), len(sums))
    rng = np.random.default_rng(seed)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    _, alike = np.unique(np.round(sums / counts, 12), return_counts=True)
    if len(sums) - alike.max() >= LEAST_VARIED:
        ratios = []
        for shape in _portions(draws, len(sums)):
            drawn = rng.integers(len(sums), size=shape)
            means, errors = _mean_and_error(
                [moment[drawn].sum(axis=1) for moment in moments], len(sums)
            )
            ratios.append(
                np.divide(means - mean, errors, out=np.zeros_like(means), where=errors > 0)
            )
        high, low = mean - np.quantile(np.concatenate(ratios), tails) * error
    else:
        wide = _quantile(confidence, len(sums) - 1) * error if len(sums) > 1 else math.inf
        low, high = mean - wide, mean + wide
    # sums of the same numbers in another order can differ in their last bits: count them as equal
    observed = abs(sums.sum()) * (1 - 1e-9) - 1e-12
    as_large = 0
    for shape in _portions(draws, len(sums)):
        swapped = rng.integers(2, size=shape, dtype=np.int8).astype(np.float64)
        as_large += int(np.count_nonzero(np.abs(sums.sum() - 2 * (swapped @ sums)) >= observed))
    return Comparison(
        baseline=float(before.mean()),
        candidate=float(after.mean()),
        delta=float(mean),
        low=float(low),
        high=float(high),
        p=float((1 + as_large) / (1 + draws)),
        detectable=_detectable(float(error), counts, confidence),
        n=len(before),
        groups=len(sums),
    )


def _measure_training(scores: Values, groups: Sequence[str]) -> _Trained:
    """Split the variance of a system's `scores`, (seeds, units), by the mean squares of the two-way
    table of seeds and groups.
    """
    seeds = len(scores)
    sums, sizes = np.stack([_sums(one, groups)[0] for one in scores]), _sums(scores[0], groups)[1]
    # what each group and seed adds to the ratio of sums, linearized as in _mean_and_error
    table = (sums - scores.mean() * sizes) * len(sizes) / sizes.sum()
    of_groups, of_seeds = table.mean(axis=0), table.mean(axis=1, keepdims=True)
    trained = float((of_seeds**2).sum()) / (seeds - 1) / seeds
    freedom = max(len(sizes) - 1, 1) * (seeds - 1)
    rest = float(((table - of_groups - of_seeds) ** 2).sum()) / freedom / len(sizes) / seeds
    return _Trained(seeds, max(trained - rest, 0.0), rest)


def compare_seeds(
    baselines: Sequence[Sequence[float]],
    candidates: Sequence[Sequence[float]],
    groups: Sequence[str],
    draws: int,
    confidence: float,
    seed: int,
) -> SeedsComparison:
    """Compare a baseline unit by unit with a candidate that was trained with several seeds.
    `candidates` has the values of each seed, `baselines` one sequence if nothing was trained, or
    one for each of its seeds.

    The model: a difference is the true one plus an effect of its group, an effect of its seed for
    each trained system, and a residual. `compare`'s interval of the mean over seeds covers groups
    and residuals. Student's interval, with one degree of freedom less than seeds, covers the
    variance of a trained system's means beyond the residuals, from the mean squares of the two-way
    table. Each end of the combined interval lies off the mean by the root of all squared distances:
    Zou and Donner, Statistics in Medicine 27, 2008. Two trained systems have a variance each, since
    what differs between them may change how much training varies. Of normal effects, distances so
    combined hold the truth at least as often as promised: Banerjee, Sankhya 22, 1960. The seeds of
    one are taken as independent of the other's, even if the numbers are the same: an equal start
    may move both results together, and then the interval is too wide. The p-value is the larger of
    the swap test's and of the level at which the interval, with Student's quantiles, ends at no
    difference. benchmarks/seeds_calibration.py and benchmarks/runs_calibration.py measure the
    coverage.
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (baselines, candidates))
    over = compare(
        before.mean(axis=0).tolist(),
        after.mean(axis=0).tolist(),
        groups,
        draws,
        confidence,
        seed,
    )
    trained = [_measure_training(scores, groups) for scores in (before, after) if len(scores) > 1]
    sums, sizes = _sums(after.mean(axis=0) - before.mean(axis=0), groups)
    # squared standard errors: of groups and rest together, and of the seeds alone
    spread = float((((sums - over.delta * sizes) / sizes.sum()) ** 2).sum())
    between = spread * over.groups / max(over.groups - 1, 1)
    beyond, rest = sum(one.beyond for one in trained), sum(one.rest for one in trained)
    total, known = between + beyond, over.groups > 1 and between > 0

    def half_width(level: float, times: int = 1, more: int = 0) -> float:
        t = _quantile(level, max(times * over.groups - 1, 1))
        rows, seeds = max(between - rest, 0.0), 0.0
        for one in trained:
            share = one.seeds / (one.seeds + more)
            rows += share * one.rest * min(1.0, between / rest if rest else 1.0)
            seeds += _quantile(level, one.seeds + more - 1) ** 2 * share * one.beyond
        return math.sqrt(t**2 * rows / times + seeds)

    p, surest = over.p, 1 - 1e-12
    if 0 < abs(over.delta) < half_width(surest):
        p = max(p, 1 - brentq(lambda level: half_width(level) - abs(over.delta), 0.0, surest))
    width = math.sqrt(
        sum(_quantile(confidence, one.seeds - 1) ** 2 * one.beyond for one in trained)
    )
    return SeedsComparison(
        **{
            **asdict(over),
            "low": over.delta - math.hypot(over.delta - over.low, width),
            "high": over.delta + math.hypot(over.high - over.delta, width),
            "p": p,
            "detectable": _detectable(math.sqrt(between), sizes, confidence, 1.0, trained),
        },
        seeds=len(after),
        training_share=beyond / total if known else math.nan,
        rows_share=max(between - rest, 0.0) / total if known else math.nan,
        half_width=half_width(confidence) if known else math.nan,
        half_width_next_seed=half_width(confidence, more=1) if known else math.nan,
        half_width_twice_groups=half_width(confidence, times=2) if known else math.nan,
    )


def sign_test_power(share: float, n: int | NDArray[np.int64], confidence: float) -> Values:
    """The chance that the exact two-sided sign test of `n` decisions finds that a true `share` is
    not one half, in either direction; an array if `n` is one.
    """
    least = (1 - confidence) / 2
    below = binom.ppf(least, n, 0.5)  # the smallest count whose tail holds at least that
    below = np.where(binom.cdf(below, n, 0.5) <= least * (1 + 1e-12), below, below - 1)
    found = binom.cdf(below, n, share) + binom.sf(n - below - 1, n, share)
    return np.where(below < 0, 0.0, found)


def count_decisions(share: float, confidence: float) -> int:
    """The smallest number of independent decisions from which on every number shows a true `share`
    with the chance POWER. The power of an exact test does not rise steadily.
    """
    z = float(norm.ppf((1 + confidence) / 2)) / 2 + float(norm.ppf(POWER)) * math.sqrt(
        share * (1 - share)
    )
    many = np.arange(1, 50 + 2 * math.ceil((z / (share - 0.5)) ** 2))  # twice the normal estimate
    return int(many[sign_test_power(share, many, confidence) < POWER].max()) + 1


def adjust_holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Holm's step-down adjustment of several p-values: read each as if it were the only one. Holm,
    1979.
    """
    adjusted: dict[K, float] = {}
    largest = 0.0
    ordered = sorted(p_values, key=lambda name: (p_values[name], str(name)))
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def decide(comparison: Comparison, lower_is_better: bool, confidence: float) -> int:
    """1 for better, −1 for worse, 0 for no evidence. Interval and test must both rule out that
    there is no difference.
    """
    if comparison.p > 1 - confidence or comparison.low <= 0 <= comparison.high:
        return 0
    return 1 if (comparison.delta < 0) == lower_is_better else -1
