"""Arrivals are held against the process that was declared: what differs is measured, chance is not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from conftest import stage
from scipy.stats import expon, kstest

from harness import stats
from harness.arrivals import schedule
from harness.budget import parse_budget
from harness.health import Check, assess
from harness.recorder import RUN, Histogram, Recorder, Recording
from harness.stats.process import anderson_darling_cdf

S, MS = 1_000_000_000, 1_000_000
SaveRun = Callable[..., Recording]


def gaps(values_ns: np.ndarray) -> Histogram:
    return Histogram.of(values_ns.astype(np.int64))


def poisson(n: int, rate: float, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).exponential(S / rate, n)


@pytest.mark.parametrize(
    ("statistic", "p"),
    [(1.248, 0.25), (1.610, 0.15), (1.933, 0.1), (2.492, 0.05), (3.070, 0.025), (3.857, 0.01)],
)
def test_the_law_of_anderson_and_darling_has_the_published_critical_values(
    statistic: float, p: float
) -> None:
    """Of a fully specified law: Stephens, JASA 69 (1974), table 1 (case 0)."""
    assert 1 - anderson_darling_cdf(statistic) == pytest.approx(p, rel=0.03)


def test_the_statistic_is_that_of_its_definition() -> None:
    values = np.sort(poisson(200, 1))
    u = 1 - np.exp(-values / S)
    i = np.arange(1, 201)
    defined = -200 - np.mean((2 * i - 1) * (np.log(u) + np.log(1 - u[::-1])))
    fit = stats.poisson_fit(gaps(values), 1, MS)
    assert fit is not None
    assert fit.statistic == pytest.approx(defined, rel=1e-3)


def test_without_a_tolerance_to_speak_of_the_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    values = np.random.default_rng(3).uniform(0, 2 * S, 5_000)
    fit = stats.poisson_fit(gaps(values), 1, MS)
    assert fit is not None
    exact = kstest(values, expon(scale=S).cdf).statistic
    assert exact - 0.05 <= fit.distance <= exact  # at most 5 % of the mean gap moves 5 % of gaps


@pytest.mark.parametrize("n", [100, 1_000, 20_000])
def test_a_poisson_process_is_taken_for_another_in_no_more_runs_than_allowed(n: int) -> None:
    fits = [stats.poisson_fit(gaps(poisson(n, 50, seed)), 50, MS) for seed in range(200)]
    below = sum(fit.p < 0.05 for fit in fits if fit)
    assert below <= 10 + 2 * math.sqrt(200 * 0.05 * 0.95)


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("a constant rate", np.full(500, S / 50)),
        ("an even spread", np.random.default_rng(1).uniform(0, 2 * S / 50, 500)),
        ("half the rate", poisson(500, 25)),
        ("arrivals in bunches", np.where(np.arange(500) % 5, 0, poisson(500, 10))),
    ],
)
def test_another_process_than_poisson_is_seen(what: str, values: np.ndarray) -> None:
    fit = stats.poisson_fit(gaps(values), 50, MS)
    assert fit is not None, what
    assert fit.p < 1e-3, what
    assert fit.distance > 0.05, what


def test_a_large_sample_makes_a_small_flaw_sure_but_not_large() -> None:
    """Every gap is 2 % too long: beyond doubt, and of no consequence."""
    fit = stats.poisson_fit(gaps(1.02 * poisson(200_000, 50)), 50, MS)
    assert fit is not None
    assert fit.p < 1e-3
    assert fit.distance < 0.01


def test_a_constant_rate_may_be_late_by_less_than_the_tolerance() -> None:
    late = np.random.default_rng(1).uniform(0, 0.4 * MS, 2_001)
    planned = np.full(2_000, 10 * MS)
    fit = stats.planned_fit(gaps(planned + np.diff(late)), gaps(planned), MS)
    assert fit is not None
    assert (fit.distance, fit.p) == (0, 1)


def test_arrivals_that_stand_still_and_then_bunch_differ_from_their_plan() -> None:
    due = np.arange(2_001) * 10.0 * MS
    seen = np.ceil(due / (50 * MS)) * 50 * MS
    fit = stats.planned_fit(gaps(np.diff(seen)), gaps(np.diff(due)), MS)
    assert fit is not None
    assert fit.distance == pytest.approx(0.8, abs=0.01)  # four of five come with the one before
    assert fit.p < 1e-6


def test_without_gaps_there_is_nothing_to_say() -> None:
    assert stats.poisson_fit(Histogram.empty(), 5, MS) is None
    assert stats.planned_fit(gaps(poisson(5, 1)), Histogram.empty(), MS) is None


# --- in the measurement's health --------------------------------------------------------------------


def arriving(offsets_ns: list[list[int]], shift: Callable[[int], int]) -> Callable[..., None]:
    """A second of a run at a time, in which workers offer arrivals at `shift(planned)`."""

    def fill(recorder: Recorder, second: int) -> None:
        for worker in offsets_ns:
            for before, after in itertools.pairwise(worker):
                if second <= after / S < second + 1:
                    recorder.add("steady", RUN, "planned_gap", after - before)
                    recorder.add("steady", RUN, "arrival_gap", shift(after) - shift(before))
                    recorder.request("steady", "chat", {"ttft": MS, "send_lag": 0})

    return fill


def arrivals_check(recording: Recording, *budgets: str) -> Check:
    checks = assess(recording, map(parse_budget, budgets)).checks
    (found,) = (check for check in checks if check.name == "Arrivals as planned")
    return found


@pytest.mark.parametrize("kind", ["poisson", "constant"])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_schedules_of_all_workers_are_as_planned(
    save_run: SaveRun, kind: str, workers: int
) -> None:
    offsets = [
        list(schedule(kind, 40, 20 * S, seed=4, worker=w, workers=workers))  # type: ignore[arg-type]
        for w in range(workers)
    ]
    where = stage(load=f"{kind} 40/s", planned_rate_per_s=40.0)
    recording = save_run(arriving(offsets, lambda t: t), stages=[where], workers=workers)
    check = arrivals_check(recording)
    assert check.ok, check.measured


@pytest.mark.parametrize("kind", ["poisson", "constant"])
def test_a_generator_that_stands_still_now_and_then_is_unfit(save_run: SaveRun, kind: str) -> None:
    offsets = list(schedule(kind, 40, 20 * S, seed=4))  # type: ignore[arg-type]
    bunched = arriving([offsets], lambda t: -(-t // (200 * MS)) * 200 * MS)
    where = stage(load=f"{kind} 40/s", planned_rate_per_s=40.0)
    check = arrivals_check(save_run(bunched, stages=[where]))
    assert not check.ok
    assert "of gaps off by over 10" in check.measured
    assert check.remedy


def test_a_gap_may_be_off_by_as_much_as_a_send_may_be_late(save_run: SaveRun) -> None:
    """At 20 ms, one of five arrivals comes 80 ms late, and the next ones with it."""
    offsets = list(schedule("constant", 50, 20 * S, seed=4))
    bunched = arriving([offsets], lambda t: -(-t // (100 * MS)) * 100 * MS)
    where = stage(load="constant 50/s", planned_rate_per_s=50.0)
    recording = save_run(bunched, stages=[where])
    strict, generous = (
        arrivals_check(recording, f"chat.ttft p99 < {limit}") for limit in ("400ms", "2s")
    )
    assert (strict.ok, generous.ok) == (False, True)
