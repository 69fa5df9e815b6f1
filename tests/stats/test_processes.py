"""The reduced simulation: steady runs raise no alarm, unsteady ones do, and no early end misleads."""

from __future__ import annotations

import processes
import pytest
from bounds import two_errors_above

STEADY = [
    ("lognormal", 1_000),
    ("Pareto 1.5", 5_000),
    ("AR 0.99", 5_000),
    ("stalls of 0.3 s", 5_000),
    ("M/G/1 0.8", 5_000),
    ("M/G/1 0.95", 1_000),
    ("M/G/1 0.95", 5_000),
    ("M/G/1 0.95", 20_000),
    ("M/G/8 0.95", 1_000),
]


@pytest.mark.parametrize(("name", "n"), STEADY)
def test_a_steady_run_raises_an_alarm_no_more_often_than_declared(name: str, n: int) -> None:
    found = processes.alarms(processes.BY_NAME[name], n, 200)
    most = two_errors_above(0.05, 200)
    assert found.share(found.warm_up + found.trend) <= most
    assert found.share(found.overload) <= most


def test_a_server_with_more_work_than_it_can_do_is_seen_to_be_overloaded() -> None:
    assert processes.overloads(20_000, 40, 1.1).overload >= 36
    assert processes.overloads(5_000, 40, 1.1).overload >= 24


def test_the_beginning_of_an_overload_is_found() -> None:
    found = processes.overloads(5_000, 40, 1.3, from_share=0.5)
    assert found.overload >= 36
    assert sum(0.45 <= start <= 0.6 for start in found.starts) >= 0.9 * found.overload


def test_a_slow_start_is_found_and_its_length() -> None:
    slow = processes.slow_start(0.1, 2)
    found = processes.alarms(processes.BY_NAME["AR 0.9"], 5_000, 40, slow)
    assert found.warm_up >= 24
    assert sum(0.08 <= length <= 0.15 for length in found.lengths) >= 0.8 * found.warm_up


def test_what_grows_all_along_is_found() -> None:
    found = processes.alarms(processes.BY_NAME["AR 0.9"], 5_000, 40, processes.rising(1.5))
    assert found.trend >= 24


@pytest.mark.parametrize("name", ["lognormal", "AR 0.9", "M/G/1 0.8"])
def test_a_run_that_was_ended_early_would_have_failed(name: str) -> None:
    cells = [
        processes.early_ends(processes.BY_NAME[name], 5_000, 0.99, offset, 40)
        for offset in (0.0, 0.25, 1.0)
    ]
    assert sum(cell.ended - cell.both for cell in cells) <= 1
    assert cells[0].ended <= 3
    assert cells[2].ended >= (36 if name == "lognormal" else 8)
