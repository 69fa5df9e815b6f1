"""The reduced simulation: verdicts on runs of known truth err no more often than declared."""

from __future__ import annotations

import numpy as np
import one_run
import pytest
from bounds import Check, judged, two_errors_above
from simulate import SCENARIOS, single_server

from harness import stats

QUANTILES = (0.5, 0.95, 0.99)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
REDUCED = [
    ("lognormal", 1_000, 500),
    ("bimodal", 5_000, 400),
    ("AR 0.9", 5_000, 400),
    ("AR 0.99", 20_000, 200),
    ("stalls of 0.3 s", 5_000, 400),
    ("regimes of 2 s", 5_000, 400),
    ("M/G/1 0.5", 1_000, 500),
    ("M/G/1 0.8", 5_000, 500),
    ("M/G/1 0.8", 20_000, 200),
    ("M/G/1 0.95", 20_000, 200),
]
POWER = {  # PASS 20 % under and FAIL 20 % over the budget, p99
    ("bimodal", 5_000): (0.9, 0.9),
    ("AR 0.9", 5_000): (0.15, 0.8),
    ("M/G/1 0.8", 20_000): (0.1, 0.25),
    ("AR 0.99", 20_000): (0.0, 0.35),
}


def broken(cells: one_run.Cells) -> list[str]:
    return [str(check) for check in one_run.checks(cells) if check.broken]


@pytest.mark.parametrize(("name", "n", "runs"), REDUCED)
def test_verdicts_of_simulated_runs_err_no_more_often_than_declared(
    name: str, n: int, runs: int
) -> None:
    cells = one_run.judge_runs(BY_NAME[name], n, runs, QUANTILES)
    assert not broken(cells)
    passes, fails = POWER.get((name, n), (0, 0))
    cell = cells[name, n, 0.99]
    assert cell.passed[-0.2] >= passes * cell.runs
    assert cell.failed[0.2] >= fails * cell.runs


def test_a_method_that_took_samples_for_independent_would_be_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stats.Dependence, "inflated", lambda *_: 1.0)
    cells = one_run.judge_runs(BY_NAME["M/G/1 0.8"], 5_000, 60, QUANTILES)
    lines = broken(cells)
    assert any("false PASS" in line for line in lines)
    assert any("false FAIL" in line for line in lines)


def test_a_method_that_saw_only_the_samples_over_the_limit_would_be_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stats.Dependence, "vif", lambda *_, **__: 1.0)
    cells = one_run.judge_runs(BY_NAME["M/G/1 0.8"], 5_000, 300, (0.99,))
    assert any("false PASS" in line for line in broken(cells))


@pytest.mark.parametrize("q", [0.95, 0.99])
def test_a_run_wholly_over_the_limit_fails_though_short_and_dependent(q: float) -> None:
    """Counts over the limit do not vary then: the thresholds' VIF alone would leave some open."""
    ends, latencies = BY_NAME["AR 0.99"].draw(np.random.default_rng(3), 40, 200, 5.0)
    for row, values in zip(ends, latencies, strict=True):
        windows = stats.Windows.of(row, values * 1e9, one_run.WINDOW_S, 40)
        found = stats.quantile_evidence(windows, windows.n, q, 0.95)
        assert found.k == found.n
        assert not found.resolved
        assert found.fails


@pytest.mark.parametrize(
    ("name", "n"), [("AR 0.99", 200), ("M/G/1 0.95", 200), ("M/G/1 0.95", 1_000)]
)
def test_a_spell_as_long_as_the_run_is_not_taken_for_a_slow_target(name: str, n: int) -> None:
    """One run in ten of these lies wholly over its true median."""
    cell = one_run.judge_runs(BY_NAME[name], n, 400, (0.5,))[name, n, 0.5]
    assert cell.false_fail <= 0.015


def test_a_bound_that_is_broken_is_simulated_again_by_more_runs_and_only_that_counts() -> None:
    asked = []

    def judge(runs: int, again: bool) -> int:
        asked.append((runs, again))
        return 4 if again else 7

    def check(wrong: int) -> list[Check]:
        return [Check("here", "wrong", wrong / 100, 0.05, 100)]

    part = judged(judge, check, 100)
    assert asked == [(100, False), (400, True)]
    assert [one.broken for one in part.checks] == [False]
    assert [(before.share, after.share) for before, after in part.redone] == [(0.07, 0.04)]


def test_overload_never_passes() -> None:
    for n, fails in ((1_000, 20), (20_000, 60)):
        passed, failed, _ = one_run.judge_overload(n, 60)
        assert not passed
        assert failed >= fails


def test_runs_that_differ_as_a_whole_are_not_taken_for_one_long_run() -> None:
    """Three runs with scales some per cent apart: a VIF from within the runs alone would not see it."""
    cell = one_run.judge_repeats(3, 400, n=8_000)
    allowed = two_errors_above(0.05, cell.runs)
    assert cell.false_pass <= allowed
    assert cell.false_fail <= allowed


def test_the_true_quantiles_of_the_queue_are_those_of_a_long_simulation() -> None:
    scenario = single_server(0.8)
    _, latencies = scenario.draw(np.random.default_rng(2), 1_000, 5_000, 50.0)
    for q in (0.5, 0.95, 0.99):
        shares = (latencies > scenario.truth(q, 50.0)).mean(axis=1)
        error = shares.std() / np.sqrt(len(shares))
        assert abs(shares.mean() - (1 - q)) < 3 * error
