"""The bounds reproduce published reference values and keep their error rates in simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from harness import stats
from harness.recorder import Histogram
from harness.stats import (
    MeanEvidence,
    QuantileEvidence,
    ShareEvidence,
    Undecided,
    WindowEvidence,
    Windows,
)
from harness.stats.dependence import Frame, student_factor

US = 1_000


def ends_of(
    histogram: Histogram, q: float, confidence: float, vif: float = 1.0
) -> tuple[int | None, int | None]:
    """The samples that bound the true q-quantile."""
    low, high = stats.quantile_ranks(histogram.n, q, confidence, vif=vif)
    return (
        None if low is None else histogram.at_rank(low),
        None if high is None else histogram.at_rank(high),
    )


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
    low, high = ends_of(histogram, q, confidence, vif)
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


# --- windows ---------------------------------------------------------------------------------------


def drawn(seed: int, n: int = 4_000, seconds: int = 100) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, seconds, n)), rng.lognormal(18, 0.7, n).astype(np.int64)


@given(st.integers(0, 99), st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.999, 1.0]))
def test_windows_have_the_quantiles_of_a_histogram_of_the_same_samples(seed: int, q: float) -> None:
    times, values = drawn(seed)
    windows, histogram = Windows.of(times, values, 1.0, 100.0), Histogram.of(values)
    expected = histogram.quantile(q)
    assert expected is not None
    assert expected <= windows.quantile(q) < expected * 1.001


@given(st.integers(0, 99), st.floats(0.01, 0.99), st.integers(1, 30))
def test_windows_count_what_is_over_a_value_also_when_they_are_joined(
    seed: int, q: float, k: int
) -> None:
    times, values = drawn(seed)
    windows = Windows.of(times, values, 1.0, 100.0, exact=True)
    limit = np.quantile(values, q)
    expected = np.bincount(times[values > limit].astype(int), minlength=100)
    assert windows.over(limit).tolist() == expected.tolist()
    joined = windows.joined(k)
    assert len(joined) == 100 // k
    assert joined.over(limit)[0] == expected[:k].sum()
    assert joined.total == windows.total
    assert joined.over(limit).sum() == expected.sum()
    assert joined.log_sums().sum() == pytest.approx(np.log(values).sum())


@given(st.integers(0, 99), st.floats(1e-5, 0.5), st.booleans())
def test_a_threshold_cuts_off_as_many_as_wanted_and_one_at_least(
    seed: int, share: float, upper: bool
) -> None:
    _, values = drawn(seed, n=500)
    windows = Windows.of(np.zeros(500), values // 10**7, 1.0, 1.0, exact=True)
    edge = windows.threshold(share, upper=upper)
    assert edge is not None
    cut = windows.over(edge).sum() if upper else 500 - windows.over(edge).sum()
    assert cut >= 1
    if cut > share * 500:
        beyond = values // 10**7 == (values // 10**7).max() if upper else values // 10**7 == edge
        assert cut == beyond.sum(), "the least that an edge can cut off"


def test_one_bucket_has_no_threshold_and_no_sample_no_quantile() -> None:
    alike = Windows.of([0.5, 1.5], [7, 7], 1.0, 2.0, exact=True)
    assert alike.threshold(0.5) is None
    assert alike.quantile_ends(1, None) == (7, None)
    assert alike.at_rank(3) is None
    with pytest.raises(ValueError, match="no samples"):
        Windows.of([], [], 1.0, 2.0).quantile(0.5)


def test_concatenated_windows_are_the_runs_one_after_another() -> None:
    one, other = (Windows.of(*drawn(seed), 1.0, 100.0) for seed in (1, 2))
    both = Windows.concatenated([one, other])
    assert both.over(10**8).tolist() == [*one.over(10**8), *other.over(10**8)]
    assert both.duration_s == 200


# --- dependence ------------------------------------------------------------------------------------

SECONDS = np.arange(60)


@pytest.mark.parametrize(
    ("counts", "vifs", "effective"),
    [
        (2 * (SECONDS >= 30), (11.431983, 7.273015, 4.935827), 8.418034),
        (3 * (SECONDS // 6 % 2 == 0), (1.417304, 1.633141, 6.353668), 56.812907),
    ],
)
def test_the_variance_inflation_is_the_reference_one(
    counts: np.ndarray, vifs: tuple[float, ...], effective: float
) -> None:
    nothing = np.zeros(0, dtype=np.int64)
    windows = Windows(length_s=1.0, n=np.full(60, 50), window=nothing, value=nothing, count=nothing)
    power = Frame.of(windows, None).power(counts)
    k, n = int(counts.sum()), 3_000
    assert [power.vif(k, n, degrees) for degrees in (5, 8, 12)] == pytest.approx(vifs, abs=1e-6)
    assert power.effective_windows == pytest.approx(effective, abs=1e-6)


@pytest.mark.parametrize(
    ("degrees", "factor"), [(5, 1.500778), (8, 1.278087), (12, 1.174089), (24, 1.081896)]
)
def test_the_allowance_for_an_estimated_variance_is_the_reference_one(
    degrees: int, factor: float
) -> None:
    assert student_factor(degrees, 0.95) == pytest.approx(factor, abs=1e-6)


def judged(
    seed: int, q: float, ratio: float, *, confidence: float = 0.95, n: int = 4_000, **options: Any
) -> QuantileEvidence:
    """Evidence of independent samples against a limit `ratio` times their true quantile."""
    times, values = drawn(seed, n)
    limit = ratio * math.exp(18 + 0.7 * norm.ppf(q))
    upper = options.get("upper", True)
    beyond = times[values > limit] if upper else times[values <= limit]
    over = np.bincount(beyond.astype(int), minlength=100)
    windows = Windows.of(times, values, 1.0, 100.0)
    return stats.quantile_evidence(windows, over, q, confidence, **options)


@given(
    st.integers(0, 99),
    st.sampled_from([0.05, 0.5, 0.9, 0.99]),
    st.floats(0.8, 1.25),
    st.sampled_from([0.9, 0.95, 0.99]),
    st.booleans(),
)
def test_the_bounds_of_a_share_beyond_a_limit_are_the_verdicts(
    seed: int, q: float, ratio: float, confidence: float, upper: bool
) -> None:
    found = judged(seed, q, ratio, confidence=confidence, upper=upper)
    assert found.passes == (found.upper <= found.allowed)
    assert found.fails == (found.lower > found.allowed)
    assert not (found.passes and found.fails)
    assert (found.undecided is None) == (found.passes or found.fails)


@pytest.mark.parametrize("q", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("upper", [True, False])
def test_upper_and_lower_limits_pass_on_their_own_good_side(q: float, upper: bool) -> None:
    good, bad = (1.3, 0.7) if upper else (0.7, 1.3)
    assert judged(1, q, good, upper=upper).passes
    assert judged(1, q, bad, upper=upper).fails


@given(st.integers(0, 99), st.sampled_from([0.5, 0.9, 0.99]), st.booleans())
def test_the_interval_of_a_quantile_is_where_a_verdict_could_turn(
    seed: int, q: float, upper: bool
) -> None:
    found = judged(seed, q, 1.0, upper=upper)
    truth = math.exp(18 + 0.7 * norm.ppf(q))
    assert found.low is not None
    assert found.high is not None
    if found.passes:
        assert found.high <= truth * 1.001 if upper else found.low >= truth * 0.999
    if found.fails:
        assert found.low >= truth * 0.999 if upper else found.high <= truth * 1.001


def test_a_run_that_could_not_pass_without_a_single_sample_over_says_so() -> None:
    assert judged(1, 0.999, 5.0).undecided is Undecided.SAMPLES
    assert judged(1, 0.99, 1.0).undecided is Undecided.CLOSE


def test_a_run_shorter_than_twenty_stays_in_the_system_does_not_pass() -> None:
    assert judged(1, 0.9, 2.0).passes
    found = judged(1, 0.9, 2.0, in_system_s=6.0)
    assert not found.passes
    assert found.undecided is Undecided.SHORT
    assert found.effective_windows == pytest.approx(100 / 6)
    assert judged(1, 0.9, 0.5, in_system_s=6.0).fails, "a gross failure still fails"


def test_spells_that_outlast_the_run_leave_it_undecided_though_no_sample_is_over() -> None:
    times, values = drawn(1)
    slow = np.where((times > 30) & (times < 80), 3, 1)
    windows = Windows.of(times, values * slow, 1.0, 100.0)
    none = np.zeros(len(windows), dtype=np.int64)
    found = stats.quantile_evidence(windows, none, 0.9, 0.95)
    assert not found.passes
    assert found.undecided is Undecided.DEPENDENCE


def test_bursts_inside_the_sample_inflate_the_variance_of_a_run_without_any_over() -> None:
    times, values = drawn(3, n=10_000)
    bursty = np.where(times.astype(int) % 7 == 0, values * 3, values)
    none = np.zeros(100, dtype=np.int64)

    def vif(sample: np.ndarray) -> float:
        windows = Windows.of(times, sample, 1.0, 100.0)
        return stats.quantile_evidence(windows, none, 0.99, 0.95).vif_pass

    assert vif(np.sort(bursty)[np.argsort(np.argsort(values))]) < 4
    assert vif(np.where(times.astype(int) // 4 % 3 == 0, values * 3, values)) > 4


def test_dependence_between_the_quantile_and_the_median_counts_for_passing_alone() -> None:
    """Values of 4 come in spells of 8 s, those of 5, as many as the limit allows, at any time."""
    rng = np.random.default_rng(1)
    times = np.repeat(np.arange(100), 100) + 0.5
    spell = times // 8 % 2
    values = np.where(rng.random(10_000) < 0.05 * spell, 4, 1)
    values[rng.random(10_000) < 0.01] = 5
    windows = Windows.of(times, values, 1.0, 100.0, exact=True)
    found = stats.quantile_evidence(windows, windows.over(4), 0.99, 0.95)
    assert found.resolved
    assert found.vif_fail < 1.6
    assert found.vif_pass > 2.5


def test_an_unresolved_run_fails_only_where_four_times_the_variance_would() -> None:
    plain, doubtful = judged(1, 0.9, 0.8), judged(1, 0.9, 0.8, in_system_s=6.0)
    assert plain.fails
    assert doubtful.vif_fail > 4
    assert doubtful.lower < plain.lower


def test_sparse_and_fine_windows_are_joined_to_five_samples_but_forty_windows() -> None:
    times, values = drawn(1, n=200)
    none = np.zeros(1_000, dtype=np.int64)
    fine = Windows.of(times, values, 0.1, 100.0)
    assert stats.quantile_evidence(fine, none, 0.5, 0.95).windows == 40
    times, values = drawn(1, n=2_000)
    fine = Windows.of(times, values, 0.1, 100.0)
    assert stats.quantile_evidence(fine, none, 0.5, 0.95).windows == 100
    short = Windows.of(times / 5, values, 0.1, 20.0)
    assert stats.quantile_evidence(short, none[:200], 0.5, 0.95).windows == 40


def test_runs_that_differ_are_judged_by_how_much_they_differ() -> None:
    parts, counts = [], []
    for seed, scale in enumerate((0.9, 1.0, 1.2)):
        times, values = drawn(seed, n=10_000)
        values = (values * scale).astype(np.int64)
        parts.append(Windows.of(times, values, 1.0, 100.0))
        over = times[values > math.exp(18 + 0.7 * norm.ppf(0.9)) * 0.97]
        counts.append(np.bincount(over.astype(int), minlength=100))
    windows, over = Windows.concatenated(parts), np.concatenate(counts)
    runs = stats.quantile_evidence(windows, over, 0.9, 0.95, runs=(100, 100, 100))
    assert not runs.fails
    assert runs.vif_fail > 30
    assert runs.effective_windows > 100, "within the runs nothing depends"


# --- several claims at once ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_values", "stands"),
    [
        ((0.01, 0.04, 0.03), (True, False, False)),
        ((0.01, 0.02, 0.03), (True, True, True)),
        ((0.02, 0.001), (True, True)),
        ((0.04, 0.04), (False, False)),
        ((0.05,), (True,)),
        ((), ()),
    ],
)
def test_holm_lets_stand_what_all_claims_together_allow(
    p_values: tuple[float, ...], stands: tuple[bool, ...]
) -> None:
    assert stats.holm(p_values, 0.95) == stands


# --- shares ----------------------------------------------------------------------------------------


def failing(per_window: np.ndarray, n: int, limit: float = 0.01) -> ShareEvidence:
    requests = np.full(len(per_window), n // len(per_window))
    return stats.share_evidence(requests, per_window, limit, 0.95)


@pytest.mark.parametrize(("n", "seconds"), [(1_980, 60), (800, 40)])
def test_a_run_without_failures_passes(n: int, seconds: int) -> None:
    found = failing(np.zeros(seconds, dtype=np.int64), n)
    assert found.passes
    assert found.upper == pytest.approx(stats.share_bounds(n, 0, 0.95)[1])


def test_failures_in_one_storm_say_less_than_as_many_that_come_alone() -> None:
    spread, storm = np.zeros(60, dtype=np.int64), np.zeros(60, dtype=np.int64)
    spread[:], storm[30] = 1, 60
    assert failing(spread, 3_000).fails
    assert not failing(storm, 3_000).fails
    few, gust = np.zeros(60, dtype=np.int64), np.zeros(60, dtype=np.int64)
    few[::6], gust[30] = 1, 10
    assert failing(few, 3_000).passes
    assert not failing(gust, 3_000).passes, "another such gust would break the limit"
    assert failing(gust, 3_000).storm > 9


def test_a_run_of_nothing_but_failures_fails() -> None:
    found = failing(np.full(60, 20), 1_200)
    assert found.fails
    assert found.upper == 1


@given(st.integers(0, 200), st.sampled_from([0.005, 0.02, 0.05]), st.sampled_from([0.9, 0.95]))
def test_the_bounds_of_a_share_of_failures_are_the_verdicts(
    seed: int, limit: float, confidence: float
) -> None:
    rng = np.random.default_rng(seed)
    n = rng.poisson(50, 80)
    k = rng.binomial(n, rng.beta(0.02 * 20, 0.98 * 20, 80))
    found = stats.share_evidence(n, k, limit, confidence)
    assert found.passes == (found.resolved and found.upper <= limit)
    assert found.fails == (found.lower > limit)
    assert found.lower <= found.k / found.n <= found.upper


# --- every window ----------------------------------------------------------------------------------


def spans(slow: float, n: int = 20_000, q: float = 0.95) -> WindowEvidence:
    times, values = drawn(5, n)
    values = np.where((times >= 40) & (times < 50), values * slow, values)
    limit = 1.3 * math.exp(18 + 0.7 * norm.ppf(q))
    over = np.bincount(times[values > limit].astype(int), minlength=100)
    windows = Windows.of(times, values, 1.0, 100.0)
    return stats.window_evidence(windows, over, q, 0.95, span_s=10)


def test_one_slow_window_fails_a_budget_for_every_window_though_the_whole_run_keeps_it() -> None:
    found = spans(1.6)
    assert found.whole.k < found.whole.allowed * found.whole.n
    assert found.fails
    assert found.surely == found.broke == (4,)
    assert found.worst == 4
    assert len(found.broke) / found.spans == 0.1


def test_a_steady_run_passes_a_budget_for_every_window() -> None:
    found = spans(1.0)
    assert found.passes
    assert found.spans == 10
    assert not found.broke


def test_the_worst_of_many_windows_breaks_a_limit_by_chance_and_does_not_fail() -> None:
    times, values = drawn(2, n=30_000, seconds=600)
    limit = math.exp(18 + 0.7 * norm.ppf(0.9))
    over = np.bincount(times[values > limit].astype(int), minlength=600)
    windows = Windows.of(times, values, 1.0, 600.0)
    found = stats.window_evidence(windows, over, 0.9, 0.95, span_s=10)
    assert len(found.broke) > 20
    assert not found.surely
    assert not found.fails
    assert found.p_fail / 60 < 0.05 < found.p_fail, "alone, the worst of the 60 would fail"


def test_no_window_of_a_budget_reaches_from_one_run_into_the_next() -> None:
    """Of 95 s each, the slow last 5 s of one are in no window with the other's first 5 s."""
    n, over = np.full(190, 20), np.zeros(190, dtype=np.int64)
    over[90:95] = 4
    values = np.repeat([1, 9], [190, 5])
    windows = Windows(
        length_s=1.0,
        n=n,
        window=np.concatenate([np.arange(190), np.arange(90, 95)]),
        value=values,
        count=np.concatenate([n - over, over[90:95]]),
    )
    found = stats.window_evidence(windows, over, 0.95, 0.95, span_s=10, runs=(95, 95))
    assert found.spans == 18
    assert (found.windows_of(8), found.windows_of(9)) == ((80, 95), (95, 105))
    assert (found.worst, found.worst_share) == (8, 20 / 300)
    assert found.whole == stats.quantile_evidence(windows, over, 0.95, 0.95, runs=(95, 95))


def test_windows_with_too_few_samples_for_the_quantile_pass_nothing() -> None:
    found = spans(1.0, n=500, q=0.99)
    assert not found.passes
    assert found.needed == 100
    assert len(found.thin) == 10
    assert found.undecided is Undecided.SAMPLES


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
        low, high = ends_of(histogram, q, 0.95)
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
    found = [mean_of(row, counts) for row in sums.T]
    low, high = np.array([(one.low, one.high) for one in found]).T
    return float(np.mean(low > truth)), float(np.mean(high < truth))


def mean_of(sums: np.ndarray, counts: np.ndarray) -> MeanEvidence:
    found = stats.mean_evidence(sums, counts, 0.95)
    assert found is not None
    return found


@pytest.mark.parametrize("rho", [0, 0.5])
def test_each_end_of_a_mean_interval_is_wrong_as_seldom_as_it_says_on_ar1_data(rho: float) -> None:
    runs = 4000
    low, high = mean_interval_misses(rho, runs=runs, intervals=400)
    assert max(low, high) <= two_errors_above(0.05, runs)
    assert 1 - low - high >= 1 - two_errors_above(0.10, runs), "together they hold nine in ten"


@pytest.mark.parametrize(("rho", "intervals"), [(0.9, 100), (0.99, 100), (0.99, 400)])
def test_each_end_of_a_mean_interval_is_as_seldom_wrong_when_dependence_lasts_for_intervals(
    rho: float, intervals: int
) -> None:
    runs = 1000
    low, high = mean_interval_misses(rho, runs=runs, intervals=intervals)
    assert max(low, high) <= two_errors_above(0.05, runs)


def test_a_mean_whose_dependence_outlasts_the_run_is_not_resolved() -> None:
    counts = np.full(60, 10.0)
    level = np.repeat([1.0, 2.0, 1.0], 20)
    found = mean_of(level * counts, counts)
    assert not found.resolved
    assert found.low < found.mean < found.high
    steady = mean_of(np.tile([1.0, 2.0, 1.0], 20) * counts, counts)
    assert steady.resolved
    assert steady.high - steady.low < (found.high - found.low) / 10


def test_the_upper_bound_of_a_skewed_mean_is_raised_and_the_lower_one_is_not() -> None:
    rng, counts = np.random.default_rng(4), np.full(400, 10)
    even = rng.normal(10, 1, 400)
    skewed = rng.permutation(np.where(np.arange(400) < 4, 90.0, 10.0) + even - even.mean())
    found, mirrored = mean_of(skewed, counts), mean_of(-skewed, counts)
    below, above = found.mean - found.low, found.high - found.mean
    assert below < 0.9 * above
    assert (mirrored.mean - mirrored.low) / (mirrored.high - mirrored.mean) > 1
    straight = mean_of(even, counts)
    sides = (straight.high - straight.mean) / (straight.mean - straight.low)
    assert sides < 1.4, "the upper bound of few effective windows is wider anyhow"


def test_runs_with_different_means_widen_the_interval_of_the_mean() -> None:
    counts = np.full(120, 10)
    rng = np.random.default_rng(1)
    sums = np.repeat([10.0, 11.0, 12.0], 40) + 0.1 * rng.standard_normal(120)
    together = stats.mean_evidence(sums, counts, 0.95, runs=(40, 40, 40))
    alike = stats.mean_evidence(rng.permutation(sums), counts, 0.95, runs=(40, 40, 40))
    assert together is not None
    assert alike is not None
    assert together.degrees == 2
    assert together.high - together.low > 3 * (alike.high - alike.low)


def test_a_mean_interval_needs_twenty_intervals_with_samples() -> None:
    assert stats.mean_evidence(np.ones(19), np.ones(19), 0.95) is None
    assert stats.mean_evidence(np.zeros(30), np.zeros(30), 0.95) is None
    found = mean_of(np.ones(20), np.ones(20))
    assert (found.low, found.mean, found.high) == (1, 1, 1)
    assert not found.resolved, "a budget takes forty to pass"


def test_a_mean_interval_weighs_intervals_by_their_samples() -> None:
    """Every batch has the same mean, however many samples it has: nothing is left to doubt."""
    counts = np.arange(1.0, 41)
    found = mean_of(11 * counts, counts)
    assert (found.low, found.high) == (pytest.approx(11), pytest.approx(11))
