"""Changes between two samples and the sizes they need: reference values and what must not happen."""

from itertools import combinations
from math import comb, hypot, log

import numpy as np
import pytest

from harness.stats import Windows, samples_to_pass
from harness.stats.regression import (
    difference,
    difference_curve,
    paired_quantile_change,
    quantile_change,
    ratio_change,
    repeated_change,
    shift_interval,
)
from harness.stats.sizing import (
    exceedance_under,
    mean_size,
    measured_slope,
    quantile_size,
    regression_size,
    share_size,
    tail_slope,
)

MS = 1_000_000


def windows(seed, n=6_000, *, seconds=100.0, ratio=1.0, sigma=0.5):
    rng = np.random.default_rng(seed)
    times = rng.uniform(0, seconds, n)
    return Windows.of(times, 200 * MS * ratio * np.exp(sigma * rng.normal(size=n)), 1.0, seconds)


def p_value(base, candidate, shift):
    """Share of all labellings whose difference of means is at least the one seen, by the book."""
    runs, size = np.concatenate([base, candidate - shift]), len(base)
    seen = (candidate - shift).mean() - base.mean()
    hits = 0
    for chosen in combinations(range(len(runs)), size):
        is_base = np.isin(np.arange(len(runs)), chosen)
        hits += runs[~is_base].mean() - runs[is_base].mean() >= seen - 1e-12
    return hits / comb(len(runs), size)


# --- two runs -------------------------------------------------------------------------------------


def test_a_ratio_combines_the_two_intervals_on_logs():
    change = ratio_change(100.0, 120.0, (90.0, 112.0), (105.0, 130.0))
    lowest = log(1.2) - hypot(log(120 / 105), log(112 / 100))
    highest = log(1.2) + hypot(log(130 / 120), log(100 / 90))
    assert (change.base, change.candidate) == (100, 120)
    assert change.change == pytest.approx(0.2)
    assert log(1 + change.low) == pytest.approx(lowest)
    assert log(1 + change.high) == pytest.approx(highest)


def test_newcombes_example_of_two_shares_is_covered_by_the_exact_limits():
    # 56 of 70 against 48 of 80: Newcombe 1998, table II, method 10: 0.0524 to 0.3339 at 95 %.
    wilson = difference(0.6, 0.8, (0.4905, 0.7004), (0.6914, 0.8772))
    assert wilson.low == pytest.approx(0.2 - hypot(0.1086, 0.1004), abs=1e-9)
    assert (wilson.low, wilson.high) == pytest.approx((0.0524, 0.3339), abs=2e-3)


@pytest.mark.parametrize(("margin", "answer"), [(0.05, True), (0.2, None), (0.4, False)])
def test_a_change_is_beyond_a_margin_only_when_its_whole_interval_is(margin, answer):
    change = ratio_change(100.0, 120.0, (95.0, 105.0), (112.0, 128.0))
    assert 0.05 < change.low < 0.2 < change.high < 0.4
    assert change.beyond(margin) is answer


def test_an_end_that_one_run_lacks_is_lacking_in_the_change():
    change = ratio_change(100.0, 120.0, (95.0, None), (112.0, 128.0))
    assert change.low is None
    assert change.beyond(0.0) is None
    assert change.beyond(0.5) is False


def test_a_slower_candidate_is_found_and_the_same_runs_in_reverse_are_faster():
    slow, base = windows(1, ratio=1.3), windows(2)
    change = quantile_change([base], [slow], 0.95, 0.95)
    back = quantile_change([slow], [base], 0.95, 0.95)
    assert 0.2 < change.low < change.change < change.high < 0.45
    assert 1 + back.low == pytest.approx(1 / (1 + change.high))
    assert 1 + back.high == pytest.approx(1 / (1 + change.low))


def test_a_run_against_itself_has_not_changed():
    run = windows(3)
    change = quantile_change([run], [run], 0.99, 0.95)
    assert change.change == 0
    assert change.low < 0 < change.high


def test_runs_shorter_than_twenty_stays_may_fail_but_never_pass():
    base, slow = windows(4), windows(5, ratio=3.0)
    stays = (6.0, 6.0)
    same = quantile_change([base], [windows(6)], 0.95, 0.95, in_system_s=stays)
    assert (same.lacking, same.high) == ("time", None)
    assert same.beyond(1.0) is None
    assert quantile_change([base], [slow], 0.95, 0.95, in_system_s=stays).beyond(0.05) is True


def test_a_handful_of_windows_has_no_interval():
    change = quantile_change(
        [windows(7, 500, seconds=10)], [windows(8, 500, seconds=10)], 0.5, 0.95
    )
    assert (change.low, change.high, change.lacking) == (None, None, "time")


def test_times_of_zero_are_compared_as_one_nanosecond():
    zero = Windows.of(np.arange(0, 100, 0.1), np.zeros(1_000), 1.0, 100.0, exact=True)
    change = quantile_change([zero], [zero], 0.5, 0.95)
    assert change.change == 0


def test_no_samples_are_no_change():
    nothing = Windows.of([], [], 1.0, 100.0)
    assert quantile_change([nothing], [windows(1)], 0.5, 0.95) is None
    assert quantile_change([], [windows(1)], 0.5, 0.95) is None


# --- several runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4, 5), (5, 4), (3, 6)])
def test_the_interval_of_a_shift_inverts_the_permutation_test(sizes):
    rng = np.random.default_rng(sizes)
    base, candidate = rng.normal(size=sizes[0]), rng.normal(1.0, 1.0, sizes[1])
    low, high = shift_interval(base, candidate, 0.95)
    assert p_value(base, candidate, low - 1e-6) <= 0.05 < p_value(base, candidate, low + 1e-6)
    assert p_value(candidate, base, -high - 1e-6) <= 0.05 < p_value(candidate, base, -high + 1e-6)


def test_three_runs_against_three_show_five_per_cent_and_no_less():
    base, candidate = np.array([1.0, 2.0, 3.0]), np.array([5.0, 6.0, 9.0])
    assert shift_interval(base, candidate, 0.95) == (2.0, 8.0)  # 5 − 3 and 9 − 1
    assert shift_interval(base, candidate, 0.96) == (None, None)
    change = repeated_change([1.0, 2.0], [5.0, 6.0, 9.0], 0.95)
    assert (change.lacking, change.smallest_p) == ("runs", 1 / 10)


def test_many_runs_are_compared_by_a_random_part_of_all_labellings():
    rng = np.random.default_rng(1)
    base, candidate = rng.normal(size=20), rng.normal(1.0, 1.0, 20)
    low, high = shift_interval(base, candidate, 0.95)
    assert 0 < low < candidate.mean() - base.mean() < high < 2
    assert shift_interval(base, candidate, 0.95) == (low, high)


def test_repeated_runs_give_the_ratio_of_their_geometric_means():
    change = quantile_change(
        [windows(i) for i in range(4)], [windows(i, ratio=1.2) for i in range(10, 14)], 0.5, 0.95
    )
    assert change.runs == (4, 4)
    assert change.change == pytest.approx(0.2, abs=0.04)
    assert change.low > 0.1


def test_several_runs_against_one_are_compared_with_what_they_differ_by():
    alike = [windows(seed) for seed in (2, 3, 4, 5)]
    change = quantile_change([windows(1)], alike, 0.5, 0.95)
    assert change.runs == (1, 4)
    assert change.smallest_p is None
    assert change.low < 0 < change.high
    unlike = [
        windows(seed, ratio=ratio) for seed, ratio in ((2, 1.0), (3, 1.1), (4, 1.0), (5, 1.1))
    ]
    apart = quantile_change([windows(1)], unlike, 0.5, 0.95)
    assert apart.high - apart.low > 2 * (change.high - change.low)


# --- interleaved blocks ---------------------------------------------------------------------------


def blocks(pairs, n, ratio, seed, *, noise=0.0):
    rng = np.random.default_rng(seed)
    slow = noise * np.cumsum(rng.normal(size=pairs))
    at = np.repeat(np.arange(pairs) + 0.5, n)
    return [
        Windows.of(
            at,
            200 * MS * by * np.exp(np.repeat(slow, n) + 0.4 * rng.normal(size=at.size)),
            1.0,
            pairs,
        )
        for by in (1.0, ratio)
    ]


def test_a_noise_that_both_blocks_of_a_pair_share_cancels():
    quiet = paired_quantile_change(*blocks(30, 200, 1.1, 1), 0.5, 0.95)
    noisy = paired_quantile_change(*blocks(30, 200, 1.1, 1, noise=0.2), 0.5, 0.95)
    assert 0 < quiet.low < 0.1 < quiet.high
    assert noisy.low > 0
    assert noisy.high - noisy.low < 4 * (quiet.high - quiet.low)


def test_blocks_that_are_too_few_or_too_small_give_no_interval():
    few = paired_quantile_change(*blocks(7, 200, 1.0, 2), 0.5, 0.95)
    assert (few.lacking, few.low, few.high) == ("blocks", None, None)
    small = paired_quantile_change(*blocks(20, 20, 1.0, 2), 0.99, 0.95)
    assert (small.lacking, small.low, small.high) == ("samples", None, None)
    nothing = Windows.of([], [], 1.0, 20.0)
    assert paired_quantile_change(nothing, nothing, 0.5, 0.95) is None


def test_identical_blocks_have_not_changed():
    one, _ = blocks(30, 200, 1.0, 3)
    change = paired_quantile_change(one, one, 0.9, 0.95)
    assert change.change == 0
    assert change.low <= 0 <= change.high


# --- the curve ------------------------------------------------------------------------------------


def test_the_curve_reaches_from_the_median_as_far_as_ten_samples_lie_above():
    curve = difference_curve(windows(1, 5_000), windows(2, 2_000, ratio=1.3), 0.95)
    assert curve.nines[0] == pytest.approx(log(2) / log(10))
    assert curve.nines[-1] == pytest.approx(log(200) / log(10))
    assert (curve.difference > 0).all()
    inside = ~np.isnan(curve.low)
    assert (curve.low[inside] <= curve.difference[inside]).all()
    assert curve.base[0] == windows(1, 5_000).quantile(0.5)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "fewest"), [(0.5, 5), (0.9, 29), (0.95, 59), (0.99, 299), (0.999, 2995)]
)
def test_no_claim_needs_less_than_what_no_sample_over_the_limit_needs(q, fewest):
    assert samples_to_pass(q, 0.95) == fewest
    assert quantile_size(q, 0.95, over=0.0).samples >= fewest


def test_the_size_of_a_share_is_the_textbooks():
    # Fleiss 2.1: 10 % against 5 %, 95 % one-sided, power 90 %: 239.9 samples, here 1.2 times that.
    assert share_size(0.1, 0.95, true=0.05).samples == pytest.approx(1.2 * 239.9, rel=0.01)


def test_a_truth_at_its_limit_needs_more_than_any_size():
    assert share_size(0.01, 0.95, true=0.01) is None
    assert quantile_size(0.99, 0.95, over=0.02) is None
    assert regression_size(0.99, 0.95, ratio=1.05, margin=0.05) is None


def test_dependence_multiplies_what_is_needed():
    independent, dependent = (quantile_size(0.99, 0.95, vif=vif).samples for vif in (1, 8))
    assert dependent == pytest.approx(8 * independent, rel=0.001)


def test_a_rate_turns_samples_into_seconds_and_never_into_too_few():
    slow = quantile_size(0.99, 0.95, rate_per_s=2)
    assert slow.seconds == pytest.approx(slow.samples / 2, abs=1)
    assert quantile_size(0.5, 0.95, rate_per_s=1_000).seconds == 100
    assert quantile_size(0.5, 0.95, rate_per_s=1_000, e=0.1).seconds == 500


def test_a_steeper_tail_leaves_fewer_samples_above_a_limit():
    assert tail_slope(0.99) == pytest.approx(5.33, abs=0.01)
    assert exceedance_under(0.99, slope=2) == pytest.approx(0.0064)
    assert exceedance_under(0.99, slope=8) < exceedance_under(0.99, slope=4)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_a_pilot_tells_how_steep_its_tail_is(q):
    assert measured_slope(windows(1, 50_000, sigma=0.5), q) == pytest.approx(tail_slope(q), rel=0.1)
    assert measured_slope(windows(1, 50_000, sigma=0.25), q) == pytest.approx(
        tail_slope(q, sigma=0.25), rel=0.1
    )
    constant = Windows.of(np.arange(100), np.full(100, MS), 1.0, 100.0)
    assert measured_slope(constant, q) is None


def test_smaller_differences_need_larger_runs():
    sizes = [
        regression_size(0.99, 0.95, ratio=ratio, margin=0.05).samples for ratio in (1.5, 1.2, 1.1)
    ]
    assert sizes == sorted(sizes)
    assert mean_size(0.95, distance=0.1).samples > mean_size(0.95, distance=0.2).samples
