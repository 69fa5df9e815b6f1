"""Verdicts on simulated runs whose true quantile is known: how often they are wrong, and decide."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
from bounds import CONFIDENCE, Check, Part, judged, percent, table, two_errors_above
from scipy.special import ndtri
from simulate import (
    MEDIAN_S,
    SCENARIOS,
    SERVICE_SIGMA,
    SIGMA,
    FloatArray,
    Law,
    Runs,
    Scenario,
    many_servers,
    pollaczek,
)

from harness import stats

QUANTILES = (0.5, 0.95, 0.99, 0.999)
OFFSETS = (-0.2, -0.05, 0.0, 0.05, 0.2)  # of the true quantile from the budget
SIZES = {200: (5, 40), 1_000: (20, 50), 5_000: (50, 100), 20_000: (100, 200), 100_000: (200, 500)}
RUNS = {200: 1_500, 1_000: 1_500, 5_000: 1_000, 20_000: 800, 100_000: 400}
WINDOW_S = 1.0
OVERLOADED = (200, 1_000, 5_000, 20_000)
REPEATS = (2, 3, 5, 10)
REPEATED_N = 8_000  # samples of each of several runs
_AT_ONCE = 4_000_000  # samples drawn together
_SPELLS = 5  # a run must last as many times the slowest regime
_LEAST_COVERAGE = 0.93  # of each end of an interval


@dataclass(slots=True)
class Cell:
    """What `runs` simulated runs came to, by offset of the true quantile from the budget.

    `low_above` and `high_below` count ends of the quantile's interval on the wrong side of the
    truth; `unresolved` the runs too short to tell how long their spells last.
    """

    runs: int = 0
    passed: dict[float, int] = field(default_factory=lambda: dict.fromkeys(OFFSETS, 0))
    failed: dict[float, int] = field(default_factory=lambda: dict.fromkeys(OFFSETS, 0))
    unresolved: int = 0
    low_above: int = 0
    high_below: int = 0

    @property
    def false_pass(self) -> float:
        return max(self.passed[offset] for offset in OFFSETS if offset >= 0) / self.runs

    @property
    def false_fail(self) -> float:
        return max(self.failed[offset] for offset in OFFSETS if offset <= 0) / self.runs


Key = tuple[str, int, float]
Cells = dict[Key, Cell]


def judge_size(scenario: Scenario, n: int, runs: int) -> Part:
    """Judge one process and size."""
    return judged(lambda r, again: judge_runs(scenario, n, r, again=again), checks, runs)


def judge_runs(
    scenario: Scenario,
    n: int,
    runs: int,
    quantiles: Sequence[float] = QUANTILES,
    *,
    again: bool = False,
) -> Cells:
    """Simulate runs of one process and size, and judge them against each budget."""
    rate, duration_s = SIZES[n]
    rng = np.random.default_rng([zlib.crc32(scenario.name.encode()), n, again])
    truths = {q: scenario.truth(q, rate) for q in quantiles}
    cells: Cells = {(scenario.name, n, q): Cell() for q in quantiles}
    left = runs
    while left:
        batch = min(left, max(1, _AT_ONCE // n))
        left -= batch
        for ends, latencies in zip(*scenario.draw(rng, batch, n, rate), strict=True):
            windows = stats.Windows.of(ends, latencies * 1e9, WINDOW_S, duration_s)
            for q, truth in truths.items():
                _judge(cells[scenario.name, n, q], windows, ends, latencies, q, truth)
    return cells


def _judge(
    cell: Cell,
    windows: stats.Windows,
    ends: FloatArray,
    latencies: FloatArray,
    q: float,
    truth: float,
) -> None:
    """Judge one run against every budget; counts over a limit are exact, as the recorder's are."""
    place = (ends / WINDOW_S).astype(np.int64)
    in_system_s = windows.quantile(0.99) / 1e9
    for offset in OFFSETS:
        over = np.bincount(place[latencies > truth / (1 + offset)], minlength=len(windows))
        found = stats.quantile_evidence(windows, over, q, CONFIDENCE, in_system_s=in_system_s)
        cell.passed[offset] += found.passes
        cell.failed[offset] += found.fails
    cell.runs += 1
    cell.unresolved += not found.resolved
    cell.low_above += found.low is not None and found.low > truth * 1e9
    cell.high_below += found.high is not None and found.high < truth * 1e9


def checks(cells: Cells) -> Iterator[Check]:
    """Yield what is bounded of each cell: wrong verdicts, and each end of the interval.

    Allowed are 5 %, two standard errors, and one point more for a queue at a load of 0.8 or more;
    7 % of an end. Not judged are runs shorter than five times their slowest regime.
    """
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    for (name, n, q), cell in cells.items():
        if assumed_away(scenarios[name], n):
            continue
        place = f"{name}, n = {n:,}, p{100 * q:g}"
        wrong = two_errors_above(1 - CONFIDENCE, cell.runs) + hard(name) / 100
        missed = two_errors_above(1 - _LEAST_COVERAGE, cell.runs)
        yield Check(place, "false PASS", cell.false_pass, wrong, cell.runs)
        yield Check(place, "false FAIL", cell.false_fail, wrong, cell.runs)
        yield Check(place, "lower end wrong", cell.low_above / cell.runs, missed, cell.runs)
        yield Check(place, "upper end wrong", cell.high_below / cell.runs, missed, cell.runs)


def hard(name: str) -> bool:
    """Whether a process is a queue that is rarely empty."""
    return name.rsplit(maxsplit=1)[-1] in ("0.8", "0.9", "0.95") and not name.startswith("AR")


def assumed_away(scenario: Scenario, n: int) -> bool:
    return SIZES[n][1] < _SPELLS * scenario.spell_s


# --- overload -------------------------------------------------------------------------------------


def overloaded(rng: np.random.Generator, runs: int, n: int, rate: float, load: float) -> Runs:
    """M/G/1 from an empty start, with more work than it can do."""
    mean = load / rate
    gaps = rng.exponential(1 / rate, (runs, n))
    service = rng.lognormal(np.log(mean) - SERVICE_SIGMA**2 / 2, SERVICE_SIGMA, (runs, n))
    steps = np.concatenate([np.zeros((runs, 1)), service[:, :-1] - gaps[:, 1:]], axis=1)
    total = np.cumsum(steps, axis=1)
    latency = total - np.minimum.accumulate(total, axis=1) + service
    return np.cumsum(gaps, axis=1) + latency, latency


def judge_overload(
    n: int, runs: int, load: float = 1.1, *, again: bool = False
) -> tuple[int, int, int]:
    """Count PASS, FAIL and neither of a p99 budget that the server just keeps at a load of 0.5."""
    rate, duration_s = SIZES[n]
    rng = np.random.default_rng([n, again])
    limit = 0.5 / rate * pollaczek(0.5, 0.99)
    passed = failed = 0
    for ends, latencies in zip(*overloaded(rng, runs, n, rate, load), strict=True):
        windows = stats.Windows.of(ends, latencies * 1e9, WINDOW_S, duration_s)
        place = (ends / WINDOW_S).astype(np.int64)
        over = np.bincount(place[latencies > limit], minlength=len(windows))
        found = stats.quantile_evidence(
            windows, over, 0.99, CONFIDENCE, in_system_s=windows.quantile(0.99) / 1e9
        )
        passed += found.passes
        failed += found.fails
    return passed, failed, runs - passed - failed


def overload(n: int, runs: int) -> Part:
    """Judge overload of one size: it must never pass."""

    def check(counts: tuple[int, int, int]) -> Iterator[Check]:
        total = sum(counts)
        yield Check(f"overload, n = {n:,}", "PASS", counts[0] / total, 0.0, total)

    return judged(lambda r, again: judge_overload(n, r, again=again), check, runs)


# --- several runs ---------------------------------------------------------------------------------


def judge_repeats(
    repeats: int, runs: int, *, n: int = REPEATED_N, sigma: float = 0.05, again: bool = False
) -> Cell:
    """Judge groups of runs, each of which is faster or slower than the others by some per cent."""
    duration_s = 40
    rng = np.random.default_rng([repeats, n, again])
    q = 0.95
    truth = MEDIAN_S * np.exp(np.hypot(SIGMA, sigma) * ndtri(q))
    cell = Cell()
    for _ in range(runs):
        scales = np.exp(sigma * rng.standard_normal(repeats))
        parts, beyond = [], {offset: [] for offset in OFFSETS}
        for scale in scales:
            latencies = scale * rng.lognormal(np.log(MEDIAN_S), SIGMA, n)
            ends = np.sort(rng.random(n)) * duration_s
            parts.append(stats.Windows.of(ends, latencies * 1e9, WINDOW_S, duration_s))
            for offset, counts in beyond.items():
                over = ends[latencies > truth / (1 + offset)]
                counts.append(np.bincount(over.astype(np.int64), minlength=len(parts[-1])))
        windows = stats.Windows.concatenated(parts)
        sizes = tuple(len(part) for part in parts)
        for offset, counts in beyond.items():
            found = stats.quantile_evidence(
                windows, np.concatenate(counts), q, CONFIDENCE, runs=sizes
            )
            cell.passed[offset] += found.passes
            cell.failed[offset] += found.fails
        cell.runs += 1
        cell.unresolved += not found.resolved
        cell.low_above += found.low is not None and found.low > truth * 1e9
        cell.high_below += found.high is not None and found.high < truth * 1e9
    return cell


def several_runs(repeats: int, runs: int) -> Part:
    """Judge groups of so many runs."""

    def check(cell: Cell) -> Iterator[Check]:
        place, most = f"{repeats} runs, p95", two_errors_above(1 - CONFIDENCE, cell.runs)
        yield Check(place, "false PASS", cell.false_pass, most, cell.runs)
        yield Check(place, "false FAIL", cell.false_fail, most, cell.runs)

    return judged(lambda r, again: judge_repeats(repeats, r, again=again), check, runs)


# --- how much the law of service decides ----------------------------------------------------------


class Queue(NamedTuple):
    """A queue whose budget is decided more or less often, by its servers and their times."""

    law: Law
    n: int
    q: float

    @property
    def name(self) -> str:
        servers, load, _ = self.law
        return f"M/G/{servers} {load:g}"

    @property
    def service(self) -> str:
        sigma = self.law[2]
        return "exponential" if sigma is None else f"lognormal, σ {sigma:g}"


QUEUES = (
    *(Queue((servers, 0.8, s), 20_000, 0.99) for servers in (1, 8) for s in (None, 0.5, 0.8, 1.0)),
    *(Queue((16, load, s), 100_000, 0.999) for load in (0.8, 0.9) for s in (None, 0.6)),
    Queue((32, 0.9, 0.6), 100_000, 0.999),
)


def queue(queue: Queue, runs: int) -> Part:
    """Judge one quantile of a queue."""
    scenario = many_servers(queue.name, *queue.law)

    def judge(runs: int, again: bool) -> Cell:
        cells = judge_runs(scenario, queue.n, runs, (queue.q,), again=again)
        return cells[queue.name, queue.n, queue.q]

    def check(cell: Cell) -> Iterator[Check]:
        place = f"{queue.name}, {queue.service}, n = {queue.n:,}, p{100 * queue.q:g}"
        most = two_errors_above(1 - CONFIDENCE, cell.runs) + 0.01
        yield Check(place, "false PASS", cell.false_pass, most, cell.runs)
        yield Check(place, "false FAIL", cell.false_fail, most, cell.runs)

    return judged(judge, check, runs)


# --- the tables of docs/statistics.md -------------------------------------------------------------


def error_table(cells: Cells, n: int) -> str:
    """Return false PASS / false FAIL, and what could not be resolved, of each process."""

    def row(scenario: Scenario) -> list[str]:
        found = [cells[scenario.name, n, q] for q in QUANTILES]
        mark = " *" if assumed_away(scenario, n) else ""
        return [
            scenario.name + mark,
            *(f"{percent(cell.false_pass)} / {percent(cell.false_fail)}" for cell in found),
            percent(found[0].unresolved / found[0].runs),
        ]

    head = ["process", *(f"p{100 * q:g}" for q in QUANTILES), "unresolved"]
    return table(head, (row(scenario) for scenario in SCENARIOS))


def power_table(cells: Cells, n: int) -> str:
    """Return the share that PASSes 20 % and 5 % under the budget / that FAILs as much over it."""

    def row(scenario: Scenario) -> list[str]:
        row = [scenario.name]
        for q, offset in product(QUANTILES, (0.2, 0.05)):
            cell = cells[scenario.name, n, q]
            passed, failed = cell.passed[-offset] / cell.runs, cell.failed[offset] / cell.runs
            row.append(f"{100 * passed:.0f} / {100 * failed:.0f}")
        return row

    head = ["process", *(f"p{100 * q:g} ±{o}" for q in QUANTILES for o in ("20 %", "5 %"))]
    return table(head, (row(scenario) for scenario in SCENARIOS))


def coverage_table(cells: Cells) -> str:
    """Return the coverage of each end of the interval, and of both: the worst process, the mean."""

    def held(found: Sequence[Cell], *ends: str) -> str:
        shares = [1 - sum(getattr(cell, end) for end in ends) / cell.runs for cell in found]
        return f"{100 * min(shares):.1f} ({100 * sum(shares) / len(shares):.1f})"

    def row(n: int) -> list[str]:
        row = [f"{n:,}"]
        for q in QUANTILES:
            found = [cells[one.name, n, q] for one in SCENARIOS if not assumed_away(one, n)]
            row += [held(found, "low_above"), held(found, "high_below")]
            row.append(held(found, "low_above", "high_below"))
        return row

    head = ["n", *(f"p{100 * q:g} {end}" for q in QUANTILES for end in ("lower", "upper", "both"))]
    return table(head, (row(n) for n in SIZES))


def overload_table(counts: dict[int, tuple[int, int, int]]) -> str:
    """Return the verdicts on overload of each size."""
    return table(
        ["n", "PASS", "FAIL", "INCONCLUSIVE"],
        (
            [f"{n:,}", *(f"{100 * one / sum(found):.0f}" for one in found)]
            for n, found in counts.items()
        ),
    )


def repeats_table(cells: dict[int, Cell]) -> str:
    """Return errors and power of several runs."""

    def row(repeats: int, cell: Cell) -> list[str]:
        passed, failed = cell.passed[-0.2] / cell.runs, cell.failed[0.2] / cell.runs
        return [
            str(repeats),
            f"{percent(cell.false_pass)} / {percent(cell.false_fail)}",
            f"{100 * passed:.0f} / {100 * failed:.0f}",
        ]

    head = ["R", "false PASS / FAIL", "PASS 20 % under / FAIL 20 % over"]
    return table(head, (row(*item) for item in cells.items()))


def queues_table(cells: dict[Queue, Cell]) -> str:
    """Return errors and power of queues by their service times."""

    def row(queue: Queue, cell: Cell) -> list[str]:
        passed, failed = cell.passed[-0.2] / cell.runs, cell.failed[0.2] / cell.runs
        return [
            queue.name,
            queue.service,
            f"p{100 * queue.q:g}, {queue.n:,}",
            f"{percent(cell.false_pass)} / {percent(cell.false_fail)}",
            f"{100 * passed:.0f} / {100 * failed:.0f}",
        ]

    head = ["queue", "service", "quantile, n", "false PASS / FAIL"]
    return table([*head, "PASS 20 % under / FAIL 20 % over"], (row(*one) for one in cells.items()))
