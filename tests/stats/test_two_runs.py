"""Comparisons are wrong no more often than they say, and find what the planner promises."""

import pytest
from simulate import SCENARIOS
from two_runs import QUANTILES, interleaved, most_allowed, promised, repeated, two_runs

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
PAIRS = 200


@pytest.mark.parametrize(
    "name",
    ["lognormal", "Pareto 1.5", "AR 0.9", "stalls of 0.3 s", "M/G/1 0.8", "M/G/8 0.8"],
)
def test_equal_runs_are_called_different_no_more_often_than_declared(name):
    for q, cell in two_runs(BY_NAME[name], 5_000, PAIRS).items():
        assert cell.share(cell.failed) <= most_allowed(PAIRS), q
        assert cell.share(cell.passed) <= most_allowed(PAIRS), q


def test_spells_that_outlast_the_runs_never_show_that_nothing_got_worse():
    for cell in two_runs(BY_NAME["regimes of 20 s"], 5_000, 50).values():
        assert cell.unresolved > 0.9 * cell.pairs
        assert cell.passed == 0


@pytest.mark.parametrize("name", ["lognormal", "AR 0.9"])
@pytest.mark.parametrize("q", QUANTILES)
def test_ten_per_cent_is_found_at_the_size_that_is_promised(name, q):
    _, _, cell = promised(BY_NAME[name], q, 100, rate=50)
    assert cell.share(cell.failed) >= 0.84  # 90 % less two standard errors


@pytest.mark.parametrize("runs", [3, 5])
def test_repeated_runs_are_compared_run_by_run(runs):
    cell = repeated(runs, PAIRS)
    assert cell.share(cell.failed) <= most_allowed(PAIRS)
    assert cell.share(cell.passed) <= most_allowed(PAIRS)


def test_repeats_are_needed_where_each_run_is_faster_or_slower_as_a_whole():
    cell = repeated(1, PAIRS)
    assert cell.share(cell.failed) > 2 * most_allowed(PAIRS)


def test_interleaved_blocks_cancel_a_noise_that_neighbours_share():
    paired, _ = interleaved(PAIRS)
    assert paired.share(paired.failed) <= most_allowed(PAIRS)
    assert paired.share(paired.passed) <= most_allowed(PAIRS)
    paired, apart = interleaved(60, ratio=1.1)
    assert paired.share(paired.failed) > 0.7
    assert apart.share(apart.failed) < 0.1
