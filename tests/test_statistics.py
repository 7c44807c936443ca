import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, binomtest, bootstrap, t

from library.verdict import statistics
from library.verdict.statistics import (
    adjust_holm,
    compare,
    compare_seeds,
    count_decisions,
    count_groups,
    decide,
    sign_test_power,
)

BEFORE = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
AFTER = [0.4, 0.1, 0.7, 0.6, 0.5, 0.9]
GROUPS = ["a", "a", "b", "c", "d", "d"]


def test_means_and_difference_by_hand():
    result = compare(BEFORE, AFTER, GROUPS, 1000, 0.95, 1)
    assert (result.baseline, result.candidate, result.n) == (
        pytest.approx(0.35),
        pytest.approx(3.2 / 6),
        6,
    )
    assert result.delta == pytest.approx(1.1 / 6)
    assert result.low < result.delta < result.high


def test_the_swap_test_is_the_exact_one_up_to_its_draws():
    sums = np.array([0.2, 0.4, 0.2, 0.3])  # differences summed by group
    exact = np.mean([abs(sum(sums * signs)) >= 1.1 - 1e-9 for signs in product((-1, 1), repeat=4)])
    assert exact == 2 / 16
    assert compare(BEFORE, AFTER, GROUPS, 20_000, 0.95, 1).p == pytest.approx(exact, abs=0.01)


def test_rows_of_one_group_are_one_draw():
    differences = np.random.default_rng(3).normal(size=30)
    repeated = np.repeat(differences, 4)
    alone = compare(np.zeros(30), differences, [f"{i:02}" for i in range(30)], 4000, 0.95, 1)
    together = compare(np.zeros(120), repeated, [f"{i // 4:02}" for i in range(120)], 4000, 0.95, 1)
    as_if_independent = compare(
        np.zeros(120), repeated, [f"{i:03}" for i in range(120)], 4000, 0.95, 1
    )
    assert (together.low, together.high, together.p) == pytest.approx(
        (alone.low, alone.high, alone.p)
    )
    assert as_if_independent.high - as_if_independent.low < 0.6 * (alone.high - alone.low)


def test_row_order_does_not_matter_and_seeds_repeat():
    order = [3, 0, 5, 1, 4, 2]
    shuffled = [[values[i] for i in order] for values in (BEFORE, AFTER, GROUPS)]
    one, other = compare(BEFORE, AFTER, GROUPS, 500, 0.95, 1), compare(*shuffled, 500, 0.95, 1)
    assert (one.low, one.high, one.p) == pytest.approx((other.low, other.high, other.p))
    assert compare(BEFORE, AFTER, GROUPS, 500, 0.95, 1) == one


def test_no_difference_at_all_is_no_evidence():
    result = compare(BEFORE, BEFORE, GROUPS, 500, 0.95, 1)
    assert (result.delta, result.low, result.high, result.p) == (0, 0, 0, 1)
    assert decide(result, lower_is_better=False, confidence=0.95) == 0


def test_the_interval_is_scipys_bootstrap_of_the_studentized_mean():
    values = np.random.default_rng(2).exponential(size=60)
    error = values.std(ddof=1) / math.sqrt(60)

    def studentized(sample, axis=-1):
        return (sample.mean(axis) - values.mean()) / (sample.std(axis, ddof=1) / math.sqrt(60))

    drawn = bootstrap(
        (values,), studentized, n_resamples=50_000, method="percentile", vectorized=True, rng=3
    ).bootstrap_distribution
    low_t, high_t = np.quantile(drawn, [0.025, 0.975])
    result = compare(np.zeros(60), values, [f"{i:02}" for i in range(60)], 50_000, 0.95, 1)
    assert (result.low, result.high) == pytest.approx(
        (values.mean() - high_t * error, values.mean() - low_t * error), abs=0.01
    )


def test_where_few_groups_differ_the_interval_is_students():
    values = np.array([0.0] * 57 + [1.0] * 3)
    expected = t.interval(0.95, 59, loc=0.05, scale=values.std(ddof=1) / math.sqrt(60))
    result = compare(np.zeros(60), values, [f"{i:02}" for i in range(60)], 500, 0.95, 1)
    assert (result.low, result.high) == pytest.approx(expected)
    # t of one degree of freedom: 12.71
    two = compare(np.zeros(2), [0.1, 0.3], ["a", "b"], 500, 0.95, 1)
    assert (two.low, two.high) == pytest.approx((0.2 - 12.706 * 0.1, 0.2 + 12.706 * 0.1), abs=1e-3)
    one = compare(np.zeros(2), [0.1, 0.3], ["a", "a"], 500, 0.95, 1)
    assert (one.low, one.high, one.detectable, one.p) == (-math.inf, math.inf, math.inf, 1)
    assert decide(one, lower_is_better=False, confidence=0.95) == 0


def test_portions_change_nothing(monkeypatch):
    whole = compare(BEFORE, AFTER, GROUPS, 500, 0.95, 1)
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", 40)
    assert compare(BEFORE, AFTER, GROUPS, 500, 0.95, 1) == whole


def test_the_detectable_difference_by_hand():
    # 40 groups of one row: d = t·sqrt(e² + d²/40) + z·e
    differences = np.random.default_rng(4).normal(size=40)
    result = compare(np.zeros(40), differences, [f"{i:02}" for i in range(40)], 500, 0.95, 1)
    error, d = differences.std(ddof=1) / math.sqrt(40), result.detectable
    assert d == pytest.approx(
        t.ppf(0.975, 39) * math.sqrt(error**2 + d**2 / 40) + 0.8416 * error, rel=1e-4
    )
    # of four groups two of sixteen swaps are as large as any difference
    assert compare(BEFORE, AFTER, GROUPS, 500, 0.95, 1).detectable == math.inf


def test_intervals_cover_and_tests_keep_their_level_without_an_effect():
    rng = np.random.default_rng(5)
    groups = [f"{i // 2:02}" for i in range(60)]
    covered = false_alarms = 0
    for seed in range(300):
        differences = np.repeat(rng.normal(size=30), 2) + rng.normal(size=60)
        result = compare(np.zeros(60), differences, groups, 400, 0.95, seed)
        covered += result.low <= 0 <= result.high
        false_alarms += decide(result, lower_is_better=False, confidence=0.95) != 0
    assert 0.90 <= covered / 300 <= 0.98
    assert false_alarms / 300 <= 0.08


def seeds_table(of_groups, of_seeds):
    """What each seed scores on four groups of one row, with nothing but the two effects."""
    return [[1 + group + seed for group in of_groups] for seed in of_seeds]


def test_the_interval_over_groups_and_seeds_by_hand():
    table = seeds_table([-1, 0, 0, 1], [-0.3, 0, 0.3])
    result = compare_seeds([np.zeros(4)], table, list("abcd"), 500, 0.95, 1)
    # squared errors: of groups 2/3/4, of seeds 0.18/2/3; nothing is left over
    of_groups, of_seeds = 1 / 6, 0.03
    half = math.sqrt(3.1824**2 * of_groups + 4.3027**2 * of_seeds)
    assert (result.delta, result.seeds, result.groups) == (pytest.approx(1), 3, 4)
    assert (result.low, result.high) == (
        pytest.approx(1 - half, abs=1e-3),
        pytest.approx(1 + half, abs=1e-3),
    )
    assert result.half_width == pytest.approx(half, abs=1e-3)
    assert result.training_share == pytest.approx(of_seeds / (of_groups + of_seeds))
    assert result.rows_share == pytest.approx(of_groups / (of_groups + of_seeds))
    # a fourth seed leaves three quarters of the seeds' squared error, with Student's 3 for 2
    assert result.half_width_next_seed == pytest.approx(
        math.sqrt(3.1824**2 * (of_groups + of_seeds * 3 / 4)), abs=1e-3
    )
    assert result.half_width_twice_groups == pytest.approx(
        math.sqrt(2.3646**2 * of_groups / 2 + 4.3027**2 * of_seeds), abs=1e-3
    )


def test_the_p_value_over_seeds_is_the_level_at_which_the_interval_ends_at_no_difference():
    rng = np.random.default_rng(3)
    groups = [f"{i:02}" for i in range(30)]
    table = 0.5 + rng.normal(size=30) + np.array([[-0.1], [0], [0.15]])
    result = compare_seeds([np.zeros(30)], table, groups, 2000, 0.95, 1)
    level = 1 - result.p
    errors = table.mean(axis=0).var(ddof=1) / 30, table.mean(axis=1).var(ddof=1) / 3
    half = math.sqrt(
        sum(
            t.ppf((1 + level) / 2, freedom) ** 2 * error
            for freedom, error in zip((29, 2), errors, strict=True)
        )
    )
    assert half == pytest.approx(result.delta, rel=1e-6)
    assert result.p > compare(np.zeros(30), table.mean(axis=0), groups, 2000, 0.95, 1).p


def test_seeds_that_differ_no_more_than_rows_do_leave_the_interval_of_their_mean():
    # what a group gains under one seed it loses under another: all seeds have one mean
    base = np.random.default_rng(2).normal(size=40)
    wiggle = np.tile([0.2, -0.2], 20)
    table = [base + wiggle, base - wiggle, base]
    groups = [f"{i:02}" for i in range(40)]
    result = compare_seeds([np.zeros(40)], table, groups, 500, 0.95, 1)
    alone = compare(np.zeros(40), base, groups, 500, 0.95, 1)
    assert (result.low, result.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert result.detectable == pytest.approx(alone.detectable)
    assert result.training_share == 0
    assert 0.9 < result.rows_share < 1  # what is left over falls with more seeds
    assert result.half_width_next_seed < result.half_width


@pytest.mark.parametrize("spread", [0, 1])
def test_the_interval_covers_training_with_other_seeds_too(spread):
    """Of the variance of a row's difference a half is its own, a quarter by seed; `spread` is what
    seeds do to all rows, in units of the error of a single seed's mean.
    """
    rng = np.random.default_rng(6)
    groups = [f"{i:02}" for i in range(40)]
    covered, naive = 0, 0
    for study in range(300):
        rows = rng.normal(size=40) + rng.normal(size=(3, 40)) / 2
        table = rows + spread * rng.normal(size=(3, 1)) / math.sqrt(40)
        result = compare_seeds([np.zeros(40)], table, groups, 300, 0.95, study)
        covered += result.low <= 0 <= result.high
        one = compare(np.zeros(40), table[0], groups, 300, 0.95, study)
        naive += one.low <= 0 <= one.high
    assert covered / 300 >= 0.92
    if spread:
        assert naive / 300 < 0.9  # one seed's interval does not


def test_the_interval_over_the_seeds_of_two_runs_by_hand():
    first = seeds_table([0, 0, 0, 0], [-0.1, 0.1])
    second = seeds_table([0, 1, 1, 2], [-0.3, 0, 0.3])
    result = compare_seeds(first, second, list("abcd"), 500, 0.95, 1)
    # squared errors: of groups 2/3/4, of the seeds of the first 0.02/1/2, of the second 0.18/2/3
    of_groups, of_first, of_second = 1 / 6, 0.01, 0.03
    half = math.sqrt(3.1824**2 * of_groups + 12.7062**2 * of_first + 4.3027**2 * of_second)
    assert (result.baseline, result.candidate, result.delta) == pytest.approx((1, 2, 1))
    assert (result.low, result.high) == pytest.approx((1 - half, 1 + half), abs=1e-3)
    assert result.training_share == pytest.approx(0.04 / (0.04 + of_groups))
    # one more seed of each: Student's 4.3 with two degrees of freedom, 3.18 with three
    assert result.half_width_next_seed == pytest.approx(
        math.sqrt(
            3.1824**2 * (of_groups + of_second * 3 / 4) + 4.3027**2 * of_first * 2 / 3,
        ),
        abs=1e-3,
    )
    other = compare_seeds(second, first, list("abcd"), 500, 0.95, 1)
    assert (other.low, other.high, other.p) == pytest.approx((-result.high, -result.low, result.p))


def test_what_seeds_and_groups_do_together_counts_once_for_each_run():
    rng = np.random.default_rng(8)
    first, second = rng.normal(size=(2, 1, 40)) + rng.normal(size=(2, 3, 40)) / 2
    second += 0.5 + np.array([[-0.3], [0], [0.3]])
    groups = [f"{i:02}" for i in range(40)]
    result = compare_seeds(first, second, groups, 500, 0.95, 1)
    rests = []
    for table in (first, second):
        left = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        rests.append((left**2).sum() / (39 * 2) / (40 * 3))
    between = (second.mean(axis=0) - first.mean(axis=0)).var(ddof=1) / 40
    beyond = [
        max(table.mean(axis=1).var(ddof=1) / 3 - rest, 0)
        for table, rest in zip((first, second), rests, strict=True)
    ]
    total = between + sum(beyond)
    assert result.training_share == pytest.approx(sum(beyond) / total)
    assert result.rows_share == pytest.approx((between - sum(rests)) / total)
    # the p-value is the level at which the interval ends at no difference
    at = 1 - result.p / 2
    half = math.sqrt(t.ppf(at, 39) ** 2 * between + t.ppf(at, 2) ** 2 * sum(beyond))
    assert half == pytest.approx(result.delta, rel=1e-6)


@pytest.mark.parametrize("seeds", [(2, 2), (2, 4)])
@pytest.mark.parametrize("effect", [0, 0.5])
def test_the_interval_covers_training_both_runs_with_other_seeds_too(seeds, effect):
    rng = np.random.default_rng(9)
    groups = [f"{i:02}" for i in range(40)]
    covered, naive = 0, 0
    for study in range(200):
        rows = rng.normal(size=40)
        first, second = (
            rows * side
            + effect * side
            + rng.normal(size=(count, 40)) / 2
            + rng.normal(size=(count, 1)) * spread
            for side, count, spread in zip((0, 1), seeds, (0.1, 0.4), strict=True)
        )
        result = compare_seeds(first, second, groups, 300, 0.95, study)
        covered += result.low <= effect <= result.high
        one = compare(first[0], second[0], groups, 300, 0.95, study)
        naive += one.low <= effect <= one.high
    assert covered / 200 >= 0.92
    assert naive / 200 < 0.75  # one seed of each does not


def test_one_group_has_no_interval_over_seeds():
    result = compare_seeds([[0, 0]], [[1, 1], [2, 2]], ["a", "a"], 500, 0.95, 1)
    assert (result.low, result.high) == (-math.inf, math.inf)
    assert math.isnan(result.training_share)
    # nor where rounding makes a difference between its rows
    rounded = compare_seeds(
        [[0.1, 0.2, 0.3]], [[0.4, 0.6, 0.9], [0.5, 0.7, 1.1]], ["a"] * 3, 500, 0.95, 1
    )
    assert math.isnan(rounded.training_share)
    assert math.isnan(rounded.half_width_next_seed)


def test_better_and_worse_follow_the_metrics_direction():
    up = compare(np.zeros(40), np.ones(40), [str(i) for i in range(40)], 500, 0.95, 1)
    assert decide(up, lower_is_better=False, confidence=0.95) == 1
    assert decide(up, lower_is_better=True, confidence=0.95) == -1


def test_holm_by_hand():
    # 0.01·3, then max(0.03, 0.02·2), then max(0.04, 0.03·1)
    assert adjust_holm({"x": 0.02, "y": 0.01, "z": 0.03}) == pytest.approx(
        {"y": 0.03, "x": 0.04, "z": 0.04}
    )
    assert adjust_holm({"x": 0.9, "y": 0.8}) == {"x": 1.0, "y": 1.0}
    assert adjust_holm({}) == {}


def test_as_many_groups_as_are_said_find_a_difference_four_times_of_five():
    rng = np.random.default_rng(5)
    groups = [f"g{row // 2}" for row in range(200)]
    noise = np.repeat(rng.normal(0, 0.2, 100), 2) + rng.normal(0, 0.1, 200)
    needed = count_groups([0.0] * 200, list(noise), groups, 0.05, 0.95)
    # by hand: a group's mean has a standard deviation of sqrt(0.2² + 0.1²/2); (1.96 + 0.84)² of it
    assert needed == pytest.approx((1.96 + 0.84) ** 2 * (0.04 + 0.005) / 0.05**2, rel=0.2)
    found = 0
    for seed in range(100):
        own = np.random.default_rng(seed)
        after = 0.05 + np.repeat(own.normal(0, 0.2, needed), 2) + own.normal(0, 0.1, 2 * needed)
        names = [f"g{row // 2}" for row in range(2 * needed)]
        result = compare([0.0] * (2 * needed), list(after), names, 500, 0.95, seed)
        found += decide(result, False, 0.95) == 1
    assert 68 <= found <= 92
    assert count_groups([0.0, 0.0], [0.1, 0.1], ["a", "b"], 0.05, 0.95) is None
    detectable = compare([0.0] * 200, list(noise), groups, 500, 0.95, 1).detectable
    assert count_groups([0.0] * 200, list(noise), groups, detectable + 1e-9, 0.95) == 100


def test_the_sign_tests_power_by_hand():
    # 5 decisions: even 5 of 5 has p = 2/32 > 0.05; 6: only 0 and 6 of 6, p = 2/64; 9: also 1 and 8,
    # p = 2·(1 + 9)/512 = 0.039; 12: also 2 and 10, p = 2·(1 + 12 + 66)/4096 = 0.039
    by_hand = {
        5: 0,
        6: 0.9**6 + 0.1**6,
        9: 0.9**9 + 9 * 0.9**8 * 0.1 + 0.1**9 + 9 * 0.1**8 * 0.9,
        12: sum(math.comb(12, k) * (0.9**k * 0.1 ** (12 - k)) for k in (0, 1, 2, 10, 11, 12)),
    }
    for n, power in by_hand.items():
        assert float(sign_test_power(0.9, n, 0.95)) == pytest.approx(power)
    # 0.775, 0.736 and 0.697 with 9, 10 and 11; 0.889, 0.866 and 0.842 with 12, 13 and 14
    assert count_decisions(0.9, 0.95) == count_decisions(0.1, 0.95) == 12
    # one tail of 1/32 each is just allowed
    assert float(sign_test_power(0.9, 5, 1 - 2 / 32)) == pytest.approx(0.9**5 + 0.1**5)


@pytest.mark.parametrize("share", [0.6, 0.7])
def test_so_many_decisions_are_found_by_the_test_that_votes_are_given(share):
    needed = count_decisions(share, 0.95)
    wins = np.arange(needed + 1)
    found = np.array([binomtest(int(k), needed).pvalue <= 0.05 for k in wins])
    assert binom.pmf(wins, needed, share)[found].sum() >= 0.8
    z, power = 1.959964, 0.841621  # the normal estimate, 194 for 0.6 and 47 for 0.7, is too small
    normal = ((z / 2 + power * math.sqrt(share * (1 - share))) / (share - 0.5)) ** 2
    assert normal < needed < 1.2 * normal
