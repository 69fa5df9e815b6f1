"""The reduced simulation of failures and of budgets for every window."""

from __future__ import annotations

import pytest
import shares
from bounds import two_errors_above

from harness.stats import failures

BY_NAME = {kind.name: kind for kind in shares.KINDS}
REDUCED = [
    ("independent", 60, 33, 0.01),
    ("shares vary by second, ρ 0.08", 300, 33, 0.01),
    ("shares vary by second, ρ 0.3", 300, 33, 0.01),
    ("storms of 1 s, 30 % fail", 300, 200, 0.01),
    ("storms of 5 s, 10 % fail", 300, 33, 0.01),
    ("storms of 1 s on average, 30 % fail", 300, 33, 0.01),
    ("half of it storms of 1 s, 30 % fail", 300, 33, 0.01),
]


def judged(name: str, seconds: int, rate: float, limit: float, runs: int) -> list[str]:
    cell = shares.judge_failures(BY_NAME[name], seconds, rate, limit, runs)
    cells = {(name, seconds, rate, limit): cell}
    return [str(check) for check in shares.checks(cells) if check.broken]


@pytest.mark.parametrize(("name", "seconds", "rate", "limit"), REDUCED)
def test_verdicts_of_simulated_failures_err_no_more_often_than_declared(
    name: str, seconds: int, rate: float, limit: float
) -> None:
    assert BY_NAME[name].due(seconds, limit) >= shares.STORMS_DUE
    assert not judged(name, seconds, rate, limit, 500)


def test_failures_taken_for_independent_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures._Storms, "inflated", lambda *_: 1.0)
    monkeypatch.setattr(failures, "_further", lambda *_: 1.0)
    broken = judged("shares vary by second, ρ 0.3", 300, 33, 0.01, 60)
    assert len(broken) == 2, "both PASS and FAIL"


def test_rare_independent_failures_pass_and_frequent_ones_fail() -> None:
    cell = shares.judge_failures(BY_NAME["independent"], 300, 33, 0.01, 60)
    assert cell.passed[shares.FACTORS[0]] == cell.failed[shares.FACTORS[-1]] == 60


def test_budgets_for_every_window_fail_by_chance_no_more_often_than_declared() -> None:
    wrong, holds, finds = shares.judge_windows(100)
    assert wrong <= two_errors_above(0.05, 100)
    assert holds > 0.9
    assert finds > 0.9
