"""Steady state, arrivals and early ends on simulated runs of known truth: alarms, false and true."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from bounds import CONFIDENCE, Check, Part, judged, table, two_errors_above
from one_run import SIZES, WINDOW_S, overloaded
from simulate import SCENARIOS, FloatArray, Scenario

from harness import stats
from harness.recorder import Histogram
from harness.stats.abort import arrivals_at_most, doomed, doomed_quantile

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
STEADY_SIZES = (1_000, 5_000, 20_000)
NS = 1e9
_AT_ONCE = 2_000_000  # samples drawn together
Change = Callable[[FloatArray], FloatArray]  # the moment of a start, as a share of the run → factor


def seed(*parts: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(parts).encode()))


@dataclass(slots=True)
class Alarms:
    """In how many of `runs` something was said, and from when on, as shares of the run."""

    runs: int
    warm_up: int = 0
    trend: int = 0
    overload: int = 0
    lengths: tuple[float, ...] = ()
    starts: tuple[float, ...] = ()

    def share(self, count: int) -> float:
        return count / self.runs

    def look_at(self, ends: FloatArray, latencies: FloatArray, duration_s: float) -> None:
        """Look at one run as a report does: an overload, or else what else was not steady."""
        size = round(duration_s / WINDOW_S)
        windows = stats.Windows.of(ends, latencies * NS, WINDOW_S, duration_s)
        place, start = ends / WINDOW_S, (ends - latencies) / WINDOW_S
        arrived, ended = (
            np.bincount(np.clip(at, 0, size).astype(np.int64), minlength=size + 1)[:size]
            for at in (start, place)
        )
        inside = windows.window < size
        sums = np.bincount(
            windows.window[inside], (windows.value * windows.count)[inside], minlength=size
        ).astype(np.int64)
        overload = stats.find_overload(arrived, ended, windows.n[:size], sums, WINDOW_S)
        if overload:
            self.overload += 1
            self.starts += (overload.start_s / duration_s,)
            return
        steady, before_s = stats.steady_part(windows, windows, duration_s)
        found = stats.find_drift(steady, confidence=CONFIDENCE)
        if isinstance(found, stats.WarmUp):
            self.warm_up += 1
            self.lengths += ((before_s + found.length_s) / duration_s,)
        self.trend += isinstance(found, stats.Trend)


def drawn(
    scenario: Scenario, rng: np.random.Generator, runs: int, n: int, rate: float
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield ends and latencies of one run after another."""
    while runs:
        batch = min(runs, max(1, _AT_ONCE // n))
        runs -= batch
        yield from zip(*scenario.draw(rng, batch, n, rate), strict=True)


def unchanged(at: FloatArray) -> FloatArray:
    return np.ones_like(at)


def slow_start(share: float, factor: float) -> Change:
    return lambda at: np.where(at < share, factor, 1.0)


def rising(factor: float) -> Change:
    return lambda at: factor**at


def alarms(
    scenario: Scenario, n: int, runs: int, change: Change = unchanged, *, again: bool = False
) -> Alarms:
    """Count the alarms on a process whose latencies are multiplied by `change`."""
    rate, duration_s = SIZES[n]
    found = Alarms(runs)
    for ends, latencies in drawn(scenario, seed(scenario.name, n, again), runs, n, rate):
        begun = ends - latencies
        changed = latencies * change(begun / duration_s)
        found.look_at(begun + changed, changed, duration_s)
    return found


def overloads(n: int, runs: int, load: float, *, from_share: float = 0.0) -> Alarms:
    """M/G/1 that gets more work than it can do, from some time on; below that at a load of 0.7."""
    rate, duration_s = SIZES[n]
    found, rng = Alarms(runs), seed("overload", n, load, from_share)
    for _ in range(runs):
        if not from_share:
            ends, latencies = (rows[0] for rows in overloaded(rng, 1, n, rate, load))
        else:
            gaps, at = rng.exponential(1 / rate, n), np.arange(n) / n
            mean = np.where(at < from_share, 0.7, load) / rate
            service = mean * rng.lognormal(-0.32, 0.8, n)
            total = np.cumsum(np.append(0.0, service[:-1] - gaps[1:]))
            latencies = total - np.minimum.accumulate(total) + service
            ends = np.cumsum(gaps) + latencies
        found.look_at(ends, latencies, duration_s)
    return found


# --- arrivals -------------------------------------------------------------------------------------

RATE, TOLERANCE_NS = 50.0, 1e6


def bunched(gaps_ns: FloatArray, every_ns: float) -> FloatArray:
    """A generator that wakes up every so often and then offers all that is due."""
    return np.diff(np.ceil(np.append(0.0, np.cumsum(gaps_ns)) / every_ns) * every_ns)


GENERATORS: dict[str, Callable[[np.random.Generator, int], FloatArray]] = {
    "Poisson": lambda rng, n: rng.exponential(NS / RATE, n),
    "Poisson, up to 0.5 ms late": lambda rng, n: np.diff(
        np.cumsum(rng.exponential(NS / RATE, n + 1)) + rng.uniform(0, 5e5, n + 1)
    ),
    "woken every 20 ms": lambda rng, n: bunched(rng.exponential(NS / RATE, n), 2e7),
    "even spread from 0 to twice the mean": lambda rng, n: rng.uniform(0, 2 * NS / RATE, n),
    "constant rate": lambda _, n: np.full(n, NS / RATE),
}


def said_not_poisson(name: str, n: int, runs: int, *, again: bool = False) -> tuple[float, float]:
    """Shares of the runs with p < 5 %, and with a check broken: p < 0.1 % and over 5 % of gaps."""
    rng, below, broken = seed(name, n, again), 0, 0
    for _ in range(runs):
        gaps = np.maximum(GENERATORS[name](rng, n), 0).astype(np.int64)
        fit = stats.poisson_fit(Histogram.of(gaps), RATE, TOLERANCE_NS)
        assert fit is not None
        below += fit.p < 0.05
        broken += fit.p < 0.001 and fit.distance > 0.05
    return below / runs, broken / runs


# --- early ends -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Ends:
    """Of `runs`: how many FAIL when run to the end, how many are ended early, and both.

    `undone` are ended although they would have passed.
    """

    runs: int
    failed: int = 0
    ended: int = 0
    both: int = 0
    undone: int = 0
    spared: float = 0.0
    """Of the runs that were ended, the sum of the shares that were not run."""


def early_ends(
    scenario: Scenario, n: int, q: float, offset: float, runs: int, *, again: bool = False
) -> Ends:
    """Look 20 times at runs whose true quantile is over the budget by `offset` (0.2: 20 %)."""
    rate, duration_s = SIZES[n]
    limit = scenario.truth(q, rate) / (1 + offset)
    found, looks = Ends(runs), np.linspace(0.05, 0.95, 19) * duration_s
    for ends, latencies in drawn(scenario, seed(scenario.name, n, q, again), runs, n, rate):
        passed, failed = _outcome(ends, latencies, limit, q, duration_s)
        at = next((t for t in looks if _ended_at(ends, latencies, limit, q, t, n)), None)
        found.failed += failed
        found.ended += at is not None
        found.both += failed and at is not None
        found.undone += passed and at is not None
        found.spared += 0.0 if at is None else 1 - at / duration_s
    return found


def _windows(
    ends: FloatArray, latencies: FloatArray, limit: float, t_s: float
) -> tuple[stats.Windows, np.ndarray]:
    windows = stats.Windows.of(ends, latencies * NS, WINDOW_S, t_s)
    place = (ends / WINDOW_S).astype(np.int64)
    return windows, np.bincount(place[latencies > limit], minlength=len(windows))


def _outcome(
    ends: FloatArray, latencies: FloatArray, limit: float, q: float, duration_s: float
) -> tuple[bool, bool]:
    windows, over = _windows(ends, latencies, limit, duration_s)
    in_system_s = windows.quantile(0.99) / NS
    found = stats.quantile_evidence(windows, over, q, CONFIDENCE, in_system_s=in_system_s)
    return found.passes, found.fails


def _ended_at(
    ends: FloatArray, latencies: FloatArray, limit: float, q: float, t_s: float, n: int
) -> bool:
    rate, duration_s = SIZES[n]
    seen = ends < math.floor(t_s)
    k = int((latencies[seen] > limit).sum())
    begun = int((ends - latencies < t_s).sum())
    most = arrivals_at_most(begun, rate, duration_s - t_s)
    if not doomed(int(seen.sum()), k, most, 1 - q, CONFIDENCE):
        return False
    windows, over = _windows(ends[seen], latencies[seen], limit, math.floor(t_s))
    in_system_s = windows.quantile(0.99) / NS
    return doomed_quantile(windows, over, most, q, CONFIDENCE, in_system_s=in_system_s)


# --- what is bounded ------------------------------------------------------------------------------

UNSTEADY: dict[str, tuple[str, Change]] = {
    f"{name}: {what}": (name, change)
    for what, change in (
        ("the first tenth twice as slow", slow_start(0.1, 2)),
        ("slower by half from start to end", rising(1.5)),
    )
    for name in ("lognormal", "AR 0.9", "M/G/8 0.8")
}
OVERLOADS = {
    "M/G/1 at a load of 1.1": (1.1, 0.0),
    "M/G/1 at a load of 1.3": (1.3, 0.0),
    "M/G/1 at a load of 1.3, of 0.7 until half of the run": (1.3, 0.5),
}
HAPPENINGS = (*UNSTEADY, *OVERLOADS)
STEADY_SPELLS = 10  # a steady run lasts as many times the slowest regime
ARRIVALS_N = (100, 1_000, 20_000)
OFFSETS = {0.0: "at the limit", 0.25: "25 % over", 1.0: "twice"}


def too_slow(scenario: Scenario, n: int) -> bool:
    """Whether a change of regime lasts so long that it is a warm-up or a trend of the run."""
    return SIZES[n][1] < STEADY_SPELLS * scenario.spell_s


def steady(scenario: Scenario, n: int, runs: int) -> Part:
    """Look for alarms on runs in which nothing happens: each kind within 5 %."""

    def check(found: Alarms) -> Iterator[Check]:
        if too_slow(scenario, n):
            return
        place, most = f"steady, {scenario.name}, n = {n:,}", two_errors_above(0.05, found.runs)
        drift = found.share(found.warm_up + found.trend)
        yield Check(place, "warm-up or trend", drift, most, found.runs)
        yield Check(place, "overload", found.share(found.overload), most, found.runs)

    return judged(lambda r, again: alarms(scenario, n, r, again=again), check, runs)


def unsteady(what: str, n: int, runs: int) -> Part:
    """Look for what happens: its value is the share found, and the median of its beginnings."""
    if what in OVERLOADS:
        load, from_share = OVERLOADS[what]
        found = overloads(n, runs, load, from_share=from_share)
        begin = float(np.median(found.starts)) if found.starts else None
        return Part((found.share(found.overload), begin))
    name, change = UNSTEADY[what]
    found = alarms(BY_NAME[name], n, runs, change)
    return Part((found.share(found.warm_up if "tenth" in what else found.trend), None))


def arrivals(name: str, n: int, runs: int) -> Part:
    """Test gaps of one generator; those of a Poisson process are said not to be within 5 %."""

    def judge(runs: int, again: bool) -> tuple[int, float, float]:
        return runs, *said_not_poisson(name, n, runs, again=again)

    def check(found: tuple[int, float, float]) -> Iterator[Check]:
        if name == "Poisson":
            runs, below, _ = found
            most = two_errors_above(0.05, runs)
            yield Check(f"arrivals, Poisson, n = {n:,}", "p < 5 %", below, most, runs)

    return judged(judge, check, runs)


def early(scenario: Scenario, offset: float, runs: int) -> Part:
    """End runs early, p95 and p99 of all sizes: none of them would have passed."""

    def judge(runs: int, again: bool) -> Ends:
        whole = Ends(0)
        for n in STEADY_SIZES:
            for q in (0.95, 0.99):
                one = early_ends(scenario, n, q, offset, runs, again=again)
                for part in ("runs", "failed", "ended", "both", "undone", "spared"):
                    setattr(whole, part, getattr(whole, part) + getattr(one, part))
        return whole

    def check(found: Ends) -> Iterator[Check]:
        place = f"early end, {scenario.name}, {OFFSETS[offset]}"
        yield Check(place, "would have passed", found.undone / found.runs, 0.0, found.runs)

    return judged(judge, check, runs)


# --- the tables of docs/statistics.md -------------------------------------------------------------


def steady_table(cells: dict[tuple[str, int], Alarms]) -> str:
    """Return the alarms on steady runs: warm-up / trend / overload."""

    def cell(found: Alarms) -> str:
        counts = (found.warm_up, found.trend, found.overload)
        return " / ".join(f"{100 * found.share(count):.1f}" for count in counts)

    rows = [
        [
            scenario.name + " *" * any(too_slow(scenario, n) for n in STEADY_SIZES),
            *(cell(cells[scenario.name, n]) for n in STEADY_SIZES),
        ]
        for scenario in SCENARIOS
    ]
    return table(["process", *(f"n = {n:,}" for n in STEADY_SIZES)], rows)


def unsteady_table(cells: dict[tuple[str, int], tuple[float, float | None]]) -> str:
    """Return how often each happening is found, and where an overload is seen to begin."""

    def cell(share: float, begin: float | None) -> str:
        return f"{100 * share:.0f}" + ("" if begin is None else f" (at {100 * begin:.0f} %)")

    rows = [[what, *(cell(*cells[what, n]) for n in STEADY_SIZES)] for what in HAPPENINGS]
    return table(["what happens", *(f"n = {n:,}" for n in STEADY_SIZES)], rows)


def arrivals_table(cells: dict[tuple[str, int], tuple[int, float, float]]) -> str:
    """Return for each generator how often p < 5 %, and the check broken."""

    def cell(_: int, below: float, broken: float) -> str:
        return f"{100 * below:.1f} / {100 * broken:.1f}"

    rows = [[name, *(cell(*cells[name, n]) for n in ARRIVALS_N)] for name in GENERATORS]
    return table(["generator", *(f"n = {n:,}" for n in ARRIVALS_N)], rows)


def early_table(cells: dict[tuple[str, float], Ends]) -> str:
    """Return how often runs are ended early, and what they would have come to."""
    rows = []
    for (name, offset), found in cells.items():
        shares = (found.failed / found.runs, found.ended / found.runs)
        row = [name, OFFSETS[offset], *(f"{100 * share:.1f} %" for share in shares)]
        if found.ended:
            of_these = (found.both, found.undone)
            row += [f"{100 * count / found.ended:.1f} %" for count in of_these]
            row.append(f"{100 * found.spared / found.ended:.0f} %")
        else:
            row += ["–"] * 3
        rows.append(row)
    head = ["process", "true quantile", "FAIL to the end", "ended early"]
    return table([*head, "of these FAIL", "of these PASS", "spared"], rows)
