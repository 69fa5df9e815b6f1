"""Planned arrivals are the process that was declared, however many workers share it."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.arrivals import schedule

SECOND = 1_000_000_000


def merged(kind: str, rate: float, duration_ns: int, *, workers: int, **options: int) -> list[int]:
    parts = (
        schedule(kind, rate, duration_ns, worker=worker, workers=workers, **options)
        for worker in range(workers)
    )
    return sorted(itertools.chain.from_iterable(parts))


def test_a_constant_grid_is_exact_to_the_nanosecond_after_a_day() -> None:
    day = 86_400 * SECOND
    last = 3 * 86_400 - 1
    offsets = list(schedule("constant", 3.0, day, seed=1))
    assert len(offsets) == last + 1
    assert offsets[last] == last * SECOND // 3


def test_a_rate_per_minute_has_no_drift_although_no_float_is_five_thirds() -> None:
    offsets = list(schedule("constant", 100 / 60, 3600 * SECOND, seed=1))
    assert len(offsets) == 6000
    assert offsets[::100] == [minute * 60 * SECOND for minute in range(60)]


def test_a_rate_with_decimals_meets_its_grid_again_and_again() -> None:
    offsets = list(schedule("constant", 12.345, 2000 * SECOND, seed=1))
    assert offsets[12_345] == 1000 * SECOND


@given(
    st.sampled_from([0.5, 1, 3, 7.3, 100 / 60, 250, 1000]),
    st.integers(1, 4 * SECOND),
    st.integers(1, 7),
)
def test_workers_deal_the_constant_grid_out_among_them(
    rate: float, duration_ns: int, workers: int
) -> None:
    whole = list(schedule("constant", rate, duration_ns, seed=1))
    assert merged("constant", rate, duration_ns, workers=workers, seed=1) == whole


@given(
    st.sampled_from(["constant", "poisson"]),
    st.floats(0.01, 2000),
    st.integers(1, 2 * SECOND),
    st.integers(0, 2**63 - 1),
)
def test_offsets_ascend_within_the_stage(
    kind: str, rate: float, duration_ns: int, seed: int
) -> None:
    offsets = list(schedule(kind, rate, duration_ns, seed=seed))
    assert offsets == sorted(offsets)
    assert all(0 <= offset < duration_ns for offset in offsets)


@pytest.mark.parametrize("workers", [1, 3])
def test_poisson_gaps_are_exponential_at_the_plans_rate(workers: int) -> None:
    offsets = merged("poisson", 200.0, 100 * SECOND, workers=workers, seed=7)
    gaps_s = np.diff(offsets) / SECOND
    assert stats.kstest(gaps_s, stats.expon(scale=1 / 200).cdf).pvalue > 0.05
    assert abs(np.corrcoef(gaps_s[1:], gaps_s[:-1])[0, 1]) < 3 / np.sqrt(len(gaps_s))


@pytest.mark.parametrize("workers", [1, 4])
def test_poisson_counts_have_the_mean_and_the_variance_of_the_rate(workers: int) -> None:
    counts = [
        len(merged("poisson", 20.0, 10 * SECOND, workers=workers, seed=seed)) for seed in range(400)
    ]
    # 400 counts of mean 200: the mean's standard error is 0.71, the variance's is 14.
    assert abs(np.mean(counts) - 200) < 3 * 0.71
    assert abs(np.var(counts) - 200) < 3 * 14.2


def test_the_same_seed_gives_the_same_arrivals() -> None:
    first, second = (list(schedule("poisson", 50.0, SECOND, seed=3)) for _ in range(2))
    assert first == second


def test_seeds_stages_and_workers_have_arrivals_of_their_own() -> None:
    options = ({"seed": 3}, {"seed": 4}, {"seed": 3, "stage": 1})
    firsts = [next(schedule("poisson", 50.0, SECOND, **option)) for option in options]
    firsts += [
        next(schedule("poisson", 100.0, SECOND, seed=3, worker=worker, workers=2))
        for worker in (0, 1)
    ]
    # Worker 0 of 2 at twice the rate has the gaps of the only worker: the same generator.
    assert len(set(firsts)) == 4
    assert firsts[3] == firsts[0]


def test_a_long_stage_at_a_thousand_a_second_is_generated_in_flat_memory() -> None:
    tracemalloc.start()
    arrivals = sum(1 for _ in schedule("poisson", 1000.0, 300 * SECOND, seed=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert abs(arrivals - 300_000) < 3 * 548
    assert peak < 500_000


@pytest.mark.parametrize(
    ("rate", "worker", "workers"), [(0.0, 0, 1), (float("nan"), 0, 1), (1.0, 2, 2), (1.0, -1, 1)]
)
def test_an_impossible_rate_or_worker_is_refused_at_once(
    rate: float, worker: int, workers: int
) -> None:
    with pytest.raises(ValueError, match="found"):
        schedule("poisson", rate, SECOND, seed=1, worker=worker, workers=workers)
