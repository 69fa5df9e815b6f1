"""Comparisons of simulated runs whose true difference is known: how often they are wrong.

A regression of a true ratio r against a limit δ is the same as one of r/(1 + δ) against 0, since
latencies scale: equal distributions against 0 show both wrong answers, a false FAIL (the whole
interval above 0) and a false PASS (below), and +10 % against 0 shows the power.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from bounds import CONFIDENCE, Check, Part, judged, table, two_errors_above
from simulate import SCENARIOS, FloatArray, Scenario

from harness.stats import Windows
from harness.stats.dependence import dependence
from harness.stats.regression import Change, paired_quantile_change, quantile_change
from harness.stats.sizing import Size, measured_slope, regression_size

QUANTILES = (0.5, 0.95, 0.99)
SIZES = {1_000: (20, 50), 5_000: (50, 100), 20_000: (100, 200)}
REGRESSION = 1.1
SIZED = ("lognormal", "AR 0.9", "M/G/8 0.5")
PILOTS = 10
RUN_SIGMA = 0.05  # of the logarithm by which each run is slower or faster as a whole
HARDEST = ("M/G/1 0.8", "M/G/1 0.95", "M/G/8 0.8", "M/G/8 0.95", "16 slots 0.9")
SPELLS = 5  # runs must last as many times the slowest regime
POWER = 0.9  # that `harness plan-size` promises
DESIGNS = {  # runs on each side, or 0 for blocks; and whether its errors are bounded
    "3 runs against 3, run by run": (3, True),
    "5 runs against 5, run by run": (5, True),
    "one such run against one (what repeats are for)": (1, False),
    "30 pairs of blocks": (0, True),
    "the same blocks as two runs": (0, False),
}
_AT_ONCE = 2_000_000  # samples drawn together


@dataclass(slots=True)
class Cell:
    """What `pairs` of simulated runs came to."""

    pairs: int = 0
    failed: int = 0
    passed: int = 0
    unresolved: int = 0

    def count(self, change: Change | None) -> None:
        assert change is not None
        self.pairs += 1
        self.failed += change.beyond(0.0) is True
        self.passed += change.beyond(0.0) is False
        self.unresolved += change.lacking == "time"

    def share(self, count: int) -> float:
        return count / self.pairs


def most_allowed(pairs: int) -> float:
    """5 %, and two standard errors of a simulation of so many pairs."""
    return two_errors_above(1 - CONFIDENCE, pairs)


def seeded(*words: object) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(str(word).encode()) for word in words])


def drawn(
    scenario: Scenario, rng: np.random.Generator, runs: int, n: int, rate: float
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield ends and latencies of one run after another."""
    while runs:
        batch = min(runs, max(1, _AT_ONCE // n))
        runs -= batch
        yield from zip(*scenario.draw(rng, batch, n, rate), strict=True)


def windows_of(
    ends: FloatArray, latencies: FloatArray, duration_s: float, ratio: float = 1.0
) -> Windows:
    return Windows.of(ends, latencies * ratio * 1e9, 1.0, duration_s)


def in_system_s(windows: Windows) -> float:
    return windows.quantile(0.99) / 1e9


def compared(base: Windows, candidate: Windows, q: float) -> Change | None:
    stays = in_system_s(base), in_system_s(candidate)
    return quantile_change([base], [candidate], q, CONFIDENCE, in_system_s=stays)


# --- two runs -------------------------------------------------------------------------------------


def two_runs(
    scenario: Scenario,
    n: int,
    pairs: int,
    *,
    ratio: float = 1.0,
    size: tuple[float, float] | None = None,
    quantiles: Sequence[float] = QUANTILES,
    salt: int = 0,
) -> dict[float, Cell]:
    """Compare pairs of runs of one process; the candidate is slower by a ratio."""
    rate, duration_s = size or SIZES[n]
    rng = seeded("two runs", scenario.name, n, ratio, salt)
    cells = {q: Cell() for q in quantiles}
    runs = drawn(scenario, rng, 2 * pairs, n, rate)
    for one in runs:
        base = windows_of(*one, duration_s)
        candidate = windows_of(*next(runs), duration_s, ratio)
        for q, cell in cells.items():
            cell.count(compared(base, candidate, q))
    return cells


def promised(
    scenario: Scenario, q: float, pairs: int, *, rate: float = 50, again: bool = False
) -> tuple[float, float, Cell]:
    """Compare +10 % at the sizes that `harness plan-size` promises from pilots of ten minutes.

    Returns the mean size, in samples and seconds.
    """
    sizes, whole = [], Cell()
    rng = seeded("pilot", scenario.name, again)
    pilots = drawn(scenario, rng, PILOTS, int(600 * rate), rate)
    for i, pilot in enumerate(pilots):
        size = promised_size(windows_of(*pilot, 600.0), q, rate)
        assert size.seconds is not None
        sizes.append((size.samples, size.seconds))
        cell = two_runs(
            scenario,
            size.samples,
            pairs // PILOTS,
            ratio=REGRESSION,
            size=(rate, size.seconds),
            quantiles=(q,),
            salt=i + PILOTS * again,
        )[q]
        whole.pairs += cell.pairs
        whole.failed += cell.failed
    return *(float(mean) for mean in np.mean(sizes, axis=0)), whole


def promised_size(pilot: Windows, q: float, rate: float) -> Size:
    found = dependence(pilot, q, in_system_s=in_system_s(pilot))
    size = regression_size(
        q,
        CONFIDENCE,
        ratio=REGRESSION,
        slope=measured_slope(pilot, q),
        rate_per_s=rate,
        vif=max(1.0, *found.tail),
        e=min(1.0, found.effective_windows / found.windows),
    )
    assert size is not None
    return size


# --- repeated and interleaved runs ----------------------------------------------------------------


def repeated(
    runs: int, pairs: int, *, ratio: float = 1.0, n: int = 5_000, again: bool = False
) -> Cell:
    """Compare `runs` runs on each side, each slower or faster as a whole by some per cent."""
    rate, duration_s = SIZES[n]
    rng = seeded("repeated", runs, ratio, again)
    cell = Cell()
    every = drawn(SCENARIOS[0], rng, 2 * runs * pairs, n, rate)
    for _ in range(pairs):
        sides = [
            [
                windows_of(*next(every), duration_s, by * float(np.exp(RUN_SIGMA * z)))
                for z in rng.standard_normal(runs)
            ]
            for by in (1.0, ratio)
        ]
        cell.count(quantile_change(*sides, 0.95, CONFIDENCE))
    return cell


def interleaved(
    pairs: int,
    *,
    ratio: float = 1.0,
    blocks: int = 30,
    block_n: int = 100,
    noise: float = 0.3,
    again: bool = False,
) -> tuple[Cell, Cell]:
    """Compare two targets in alternating blocks under a slow noise common to neighbours.

    Returns what the pairs of blocks came to, and what two runs from the same blocks would.
    """
    rng = seeded("interleaved", ratio, blocks, noise, again)
    paired, apart = Cell(), Cell()
    for _ in range(pairs):
        slow = noise * slowly_varying(rng, 2 * blocks, 0.97)
        first = rng.integers(0, 2, blocks)
        sides = []
        for side, by in ((0, 1.0), (1, ratio)):
            block = 2 * np.arange(blocks) + (first ^ side)
            latency = by * np.exp(
                np.log(0.1) + slow[block, None] + 0.5 * rng.standard_normal((blocks, block_n))
            )
            at = np.repeat(np.arange(blocks) + 0.5, block_n)
            sides.append(Windows.of(at, latency.ravel() * 1e9, 1.0, blocks))
        paired.count(paired_quantile_change(*sides, 0.95, CONFIDENCE))
        apart.count(quantile_change(sides[:1], sides[1:], 0.95, CONFIDENCE))
    return paired, apart


def slowly_varying(rng: np.random.Generator, size: int, rho: float) -> FloatArray:
    """A stationary AR(1) series with variance 1."""
    values = np.empty(size)
    values[0] = rng.standard_normal()
    for i, step in enumerate(rng.standard_normal(size - 1) * np.sqrt(1 - rho**2), 1):
        values[i] = rho * values[i - 1] + step
    return values


# --- what is bounded ------------------------------------------------------------------------------


def assumed_away(scenario: Scenario, n: int) -> bool:
    return SIZES[n][1] < SPELLS * scenario.spell_s


def equal_runs(scenario: Scenario, n: int, pairs: int) -> Part:
    """Compare equal runs of one process and size."""

    def check(cells: dict[float, Cell]) -> Iterator[Check]:
        if assumed_away(scenario, n):
            return
        for q, cell in cells.items():
            place = f"two runs, {scenario.name}, n = {n:,}, p{100 * q:g}"
            most = most_allowed(cell.pairs) + (scenario.name in HARDEST) / 100
            yield Check(place, "false FAIL", cell.share(cell.failed), most, cell.pairs)
            yield Check(place, "false PASS", cell.share(cell.passed), most, cell.pairs)

    return judged(lambda r, again: two_runs(scenario, n, r, salt=int(again)), check, pairs)


def planned(name: str, q: float, pairs: int) -> Part:
    """Compare +10 % at the size that is promised."""
    scenario = next(one for one in SCENARIOS if one.name == name)

    def check(found: tuple[float, float, Cell]) -> Iterator[Check]:
        cell = found[2]
        missed, most = 1 - cell.share(cell.failed), two_errors_above(1 - POWER, cell.pairs)
        yield Check(f"+10 %, {name}, p{100 * q:g}", "not found", missed, most, cell.pairs)

    return judged(lambda r, again: promised(scenario, q, r, again=again), check, pairs)


def design(name: str, pairs: int) -> Part:
    """Compare by one of `DESIGNS`; the value is what equal sides came to, and slower candidates."""
    runs, bounded = DESIGNS[name]

    def judge(pairs: int, again: bool) -> tuple[Cell, Cell]:
        if runs:
            equal, slower = (
                repeated(runs, pairs, ratio=ratio, again=again) for ratio in (1.0, REGRESSION)
            )
            return equal, slower
        equal, slower = (
            interleaved(pairs, ratio=ratio, again=again)[not bounded] for ratio in (1.0, REGRESSION)
        )
        return equal, slower

    def check(found: tuple[Cell, Cell]) -> Iterator[Check]:
        if bounded:
            equal, most = found[0], most_allowed(found[0].pairs)
            yield Check(name, "false FAIL", equal.share(equal.failed), most, equal.pairs)
            yield Check(name, "false PASS", equal.share(equal.passed), most, equal.pairs)

    return judged(judge, check, pairs)


# --- the tables of docs/statistics.md -------------------------------------------------------------


def equal_runs_table(cells: dict[tuple[str, int], dict[float, Cell]]) -> str:
    """Return false FAIL / false PASS, and what could not be resolved."""

    def row(name: str, n: int, found: dict[float, Cell]) -> list[str]:
        rate, duration_s = SIZES[n]
        whole = found[QUANTILES[0]]
        scenario = next(one for one in SCENARIOS if one.name == name)
        return [
            name + " *" * assumed_away(scenario, n),
            f"{n:,} ({rate}/s, {duration_s} s)",
            *(
                f"{100 * one.share(one.failed):.1f} / {100 * one.share(one.passed):.1f}"
                for one in found.values()
            ),
            f"{100 * whole.share(whole.unresolved):.0f}",
        ]

    head = ["process", "n (rate, time)", *(f"p{100 * q:g}" for q in QUANTILES), "unresolved"]
    return table(head, (row(*key, found) for key, found in cells.items()))


def planned_table(cells: dict[tuple[str, float], tuple[float, float, Cell]]) -> str:
    """Return what is planned, and how often the regression is found."""
    rows = [
        [
            name,
            f"p{100 * q:g}",
            f"{n:,.0f}",
            f"{seconds:.0f} s",
            f"{100 * cell.share(cell.failed):.0f} %",
        ]
        for (name, q), (n, seconds, cell) in cells.items()
    ]
    return table(["process", "quantile", "planned n", "planned time", "found"], rows)


def designs_table(cells: dict[str, tuple[Cell, Cell]]) -> str:
    """Return errors and power of each design."""
    rows = []
    for name, (equal, slower) in cells.items():
        shares = (equal.share(equal.failed), equal.share(equal.passed), slower.share(slower.failed))
        rows.append([name, *(f"{100 * share:.1f} %" for share in shares)])
    return table(["design", "false FAIL", "false PASS", "+10 % found"], rows)
