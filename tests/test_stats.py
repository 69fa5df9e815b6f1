"""The bounds reproduce published reference values and keep their error rates in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from harness import stats
from harness.recorder import Histogram

US = 1_000

# --- reference values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "k", "q", "confidence", "vif", "lower", "upper", "outcome"),
    [
        (459, 0, 0.99, 0.99, 1, 0, 0.00998289, "PASS"),
        (458, 0, 0.99, 0.99, 1, 0, 0.01000457, "INCONCLUSIVE"),
        (1000, 4, 0.99, 0.95, 1, 0.00136744, 0.00912995, "PASS"),
        (1000, 5, 0.99, 0.95, 1, 0.00197215, 0.01048408, "INCONCLUSIVE"),
        (1000, 16, 0.99, 0.95, 1, 0.01006101, 0.02420023, "FAIL"),
        (5000, 30, 0.99, 0.95, 2.5, 0.00346564, 0.00970319, "PASS"),
        (5000, 30, 0.99, 0.95, 4, 0.00290772, 0.01100707, "INCONCLUSIVE"),
        (20000, 260, 0.99, 0.95, 6.3, 0.00987389, 0.01682046, "INCONCLUSIVE"),
        (6000, 0, 0.999, 0.95, 2, 0, 0.00099808, "PASS"),
        (200, 86, 0.5, 0.95, 1.5, 0.35745578, 0.50491607, "INCONCLUSIVE"),
        (100000, 5600, 0.95, 0.95, 40, 0.04862530, 0.06415863, "INCONCLUSIVE"),
        (100, 100, 0.99, 0.95, 3, 0.91404821, 1, "FAIL"),
    ],
)
def test_share_bounds_reproduce_the_reference_table(
    n: int,
    k: int,
    q: float,
    confidence: float,
    vif: float,
    lower: float,
    upper: float,
    outcome: str,
) -> None:
    low, high = stats.share_bounds(n, k, confidence, vif=vif)
    assert (low, high) == (pytest.approx(lower, abs=6e-9), pytest.approx(upper, abs=6e-9))
    judged = "PASS" if high <= 1 - q else "FAIL" if low > 1 - q else "INCONCLUSIVE"
    assert judged == outcome


@given(st.integers(1, 3000), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_a_share_bound_is_where_the_binomial_tail_is_the_error_allowed(
    n: int, data: st.DataObject, confidence: float
) -> None:
    """Clopper and Pearson's own definition, computed the other way round."""
    k = data.draw(st.integers(0, n))
    low, high = stats.share_bounds(n, k, confidence)
    assert 0 <= low <= k / n <= high <= 1
    if k:
        assert binom.sf(k - 1, n, low) == pytest.approx(1 - confidence, rel=1e-6)
    if k < n:
        assert binom.cdf(k, n, high) == pytest.approx(1 - confidence, rel=1e-6)


def test_without_samples_any_share_is_possible() -> None:
    assert stats.share_bounds(0, 0, 0.95) == (0, 1)
    assert stats.quantile_ranks(0, 0.99, 0.95) == (None, None)
    assert stats.quantile_interval(Histogram.empty(), 0.99, 0.95) == (None, None)


@pytest.mark.parametrize(("over", "n"), [(0, 459), (1, 662), (2, 838), (5, 1307), (10, 2010)])
def test_samples_to_pass_is_mlperf_loadgens_table(over: int, n: int) -> None:
    assert stats.samples_to_pass(0.99, 0.99, over=over) == n


@pytest.mark.parametrize(("q", "n"), [(0.5, 5), (0.9, 29), (0.95, 59), (0.99, 299), (0.999, 2995)])
def test_samples_to_pass_without_any_over_is_the_table_of_smallest_runs(q: float, n: int) -> None:
    assert stats.samples_to_pass(q, 0.95) == n
    assert stats.share_bounds(n, 0, 0.95)[1] <= 1 - q < stats.share_bounds(n - 1, 0, 0.95)[1]


@pytest.mark.parametrize(
    ("vif", "fails_from", "passes_to"), [(1, 62.3367, 38.2216), (4, 76.1487, 26.0986)]
)
def test_the_counts_where_a_verdict_turns_are_the_reference_ones(
    vif: float, fails_from: float, passes_to: float
) -> None:
    counts = stats.exceedance_counts(5000, 0.99, 0.95, vif=vif)
    assert counts == (pytest.approx(fails_from, abs=6e-5), pytest.approx(passes_to, abs=6e-5))
    low, high = stats.quantile_ranks(5000, 0.99, 0.95, vif=vif)
    assert low == 5000 - math.ceil(fails_from) + 1
    assert high == 5000 - math.floor(passes_to)


@pytest.mark.parametrize("n", [20, 298, 299, 5000])
def test_a_p99_has_an_upper_end_from_299_samples_on(n: int) -> None:
    assert (stats.quantile_ranks(n, 0.99, 0.95)[1] is not None) == (n >= 299)
    assert stats.quantile_ranks(299, 0.99, 0.95)[1] == 299, "and it is the largest sample then"


def test_samples_to_decide_finds_a_size_that_decides() -> None:
    for n, k, q in ((1000, 5, 0.99), (1000, 13, 0.99), (300, 12, 0.95), (100, 0, 0.99)):
        size = stats.samples_to_decide(n, k, q, 0.95)
        assert size is not None
        assert size > n
        low, high = stats.share_bounds(size, k / n * size, 0.95)
        assert high <= 1 - q or low > 1 - q


def test_no_number_of_samples_decides_a_share_that_is_exactly_the_allowed_one() -> None:
    assert stats.samples_to_decide(1000, 10, 0.99, 0.95) is None


# --- the interval and the verdict are one ----------------------------------------------------------


@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=400),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
    st.sampled_from([0.9, 0.95, 0.99]),
    st.sampled_from([1.0, 2.5]),
)
def test_a_limit_at_the_upper_end_passes_and_one_below_the_lower_end_fails(
    micros: list[int], q: float, confidence: float, vif: float
) -> None:
    """Values below 2 ms stand alone in their bucket, so the ends are exact up to 1 µs."""
    histogram = Histogram.of([value * US for value in micros])
    low, high = stats.quantile_interval(histogram, q, confidence, vif=vif)
    n = len(micros)

    def bounds(limit: float) -> tuple[float, float]:
        over = sum(value * US > limit for value in micros)
        return stats.share_bounds(n, over, confidence, vif=vif)

    if high is None:
        assert bounds(max(micros) * US)[1] > 1 - q, "no end: not even the largest sample passes"
    else:
        assert bounds(high)[1] <= 1 - q
        assert bounds(high // US * US - 1)[1] > 1 - q, "and nothing lower would"
    if low is None:
        assert bounds(min(micros) * US - 1)[0] <= 1 - q
    else:
        tie = 1e-12  # one sample at q = confidence lands on the limit to the last bit
        assert bounds(low // US * US - 1)[0] >= 1 - q - tie
        assert bounds(low)[0] <= 1 - q + tie


@given(st.integers(1, 5000), st.sampled_from([0.01, 0.5, 0.9, 0.99, 0.999]))
def test_the_ends_of_an_interval_enclose_the_observed_quantile(n: int, q: float) -> None:
    low, high = stats.quantile_ranks(n, q, 0.95)
    rank = max(1, math.ceil(round(q * n, 6)))
    assert low is None or 1 <= low <= rank
    assert high is None or rank <= high <= n


# --- error rates in simulation ---------------------------------------------------------------------

SIZES, QUANTILES = (300, 1000, 5000), (0.5, 0.95, 0.99)


def two_errors_above(share: float, runs: int) -> float:
    return share + 2 * math.sqrt(share * (1 - share) / runs)


@pytest.mark.parametrize("q", QUANTILES)
@pytest.mark.parametrize("n", SIZES)
def test_with_the_true_quantile_at_the_limit_a_false_verdict_has_at_most_its_declared_chance(
    n: int, q: float
) -> None:
    """The count over the limit is binomial, so the chance is a sum and needs no simulation."""
    chances = binom.pmf(np.arange(n + 1), n, 1 - q)
    bounds = np.array([stats.share_bounds(n, k, 0.95) for k in range(n + 1)])
    false_fail = chances[bounds[:, 0] > 1 - q].sum()
    false_pass = chances[bounds[:, 1] <= 1 - q].sum()
    assert 0.025 < false_fail <= 0.05, "above, it errs too often; far below, it is of little use"
    assert 0.025 < false_pass <= 0.05


@pytest.mark.parametrize("n", SIZES)
def test_simulated_lognormal_latencies_get_false_verdicts_no_more_often_than_declared(
    n: int,
) -> None:
    """From samples to counts to verdicts, 10,000 runs; the standard error is 0.22 points."""
    rng = np.random.default_rng(n)
    limits = [math.exp(math.log(150e6) + 0.5 * norm.ppf(q)) for q in QUANTILES]
    over = np.concatenate(
        [(rng.lognormal(math.log(150e6), 0.5, (500, n, 1)) > limits).sum(axis=1) for _ in range(20)]
    )
    for q, counts in zip(QUANTILES, over.T, strict=True):
        seen, runs = np.unique(counts, return_counts=True)
        bounds = np.array([stats.share_bounds(n, int(k), 0.95) for k in seen])
        allowed = two_errors_above(0.05, len(counts))
        assert runs[bounds[:, 0] > 1 - q].sum() / len(counts) <= allowed, f"false FAIL of {q}"
        assert runs[bounds[:, 1] <= 1 - q].sum() / len(counts) <= allowed, f"false PASS of {q}"


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_the_interval_of_a_quantile_misses_the_truth_as_seldom_as_it_says(q: float) -> None:
    runs, n = 400, 1000
    rng = np.random.default_rng(3)
    truth = math.exp(math.log(150e6) + 0.5 * norm.ppf(q))
    missed_low = missed_high = 0
    for _ in range(runs):
        histogram = Histogram.of(rng.lognormal(math.log(150e6), 0.5, n).astype(np.int64))
        low, high = stats.quantile_interval(histogram, q, 0.95)
        assert low is not None
        assert high is not None
        missed_low += low > truth
        missed_high += high < truth
    allowed = two_errors_above(0.05, runs)
    assert missed_low / runs <= allowed
    assert missed_high / runs <= allowed


def mean_interval_misses(rho: float, *, runs: int, intervals: int) -> tuple[float, float]:
    """Share of runs in which the low end, and the high end, is beyond the true mean.

    Log-latencies are AR(1) from sample to sample, ten samples in each interval.
    """
    rng, sigma = np.random.default_rng([runs, intervals, round(100 * rho)]), 0.4
    counts = np.full(intervals, 10.0)
    sums = np.zeros((intervals, runs))
    log = rng.normal(0, sigma, runs)
    for i in range(intervals * 10):
        sums[i // 10] += np.exp(log)
        log = rho * log + rng.normal(0, sigma * math.sqrt(1 - rho**2), runs)
    truth = math.exp(sigma**2 / 2)
    ends = [stats.mean_interval(row, counts, 0.95) or (math.nan, math.nan) for row in sums.T]
    low, high = np.array(ends).T
    return float(np.mean(low > truth)), float(np.mean(high < truth))


@pytest.mark.parametrize("rho", [0, 0.5])
def test_each_end_of_a_mean_interval_is_wrong_as_seldom_as_it_says_on_ar1_data(rho: float) -> None:
    runs = 4000
    low, high = mean_interval_misses(rho, runs=runs, intervals=400)
    assert max(low, high) <= two_errors_above(0.05, runs)
    assert 1 - low - high >= 1 - two_errors_above(0.10, runs), "together they hold nine in ten"


@pytest.mark.xfail(
    strict=True,
    reason="known: dependence that outlasts a batch (a twentieth of the run) makes it too narrow",
)
def test_each_end_of_a_mean_interval_is_as_seldom_wrong_when_dependence_outlasts_a_batch() -> None:
    runs = 1000
    low, high = mean_interval_misses(0.99, runs=runs, intervals=100)
    assert max(low, high) <= two_errors_above(0.05, runs)


def test_a_mean_interval_needs_twenty_intervals_with_samples() -> None:
    assert stats.mean_interval(np.ones(19), np.ones(19), 0.95) is None
    assert stats.mean_interval(np.zeros(30), np.zeros(30), 0.95) is None
    assert stats.mean_interval(np.ones(20), np.ones(20), 0.95) == (1, 1)


def test_a_mean_interval_weighs_intervals_by_their_samples() -> None:
    """Every batch has the same mean, however many samples it has: nothing is left to doubt."""
    counts = np.arange(1.0, 41)
    ends = stats.mean_interval(11 * counts, counts, 0.95)
    assert ends == (pytest.approx(11), pytest.approx(11))
