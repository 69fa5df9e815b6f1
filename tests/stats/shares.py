"""Verdicts on simulated failures and means whose truth is known: how often they are wrong."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from bounds import CONFIDENCE, Check, Part, judged, percent, table, two_errors_above
from simulate import alternating

from harness import stats

IntArray = npt.NDArray[np.int64]
FACTORS = (1 / 3, 1.0, 3.0)  # of the true share of failures, to the limit
STORMS_DUE = 5  # below this, what a run sees of storms is luck
_PARTS = 10  # of a second, in which storms begin and end


@dataclass(frozen=True)
class Failures:
    """How failures come. `size_s` is the time that the failures of a storm make up.

    It is that of the storm in which an average failure finds itself: twice the mean of storms whose
    lengths are exponential. A limit p allows T·p / size_s storms in T seconds; 0 where there are
    none.
    """

    name: str
    size_s: float
    kind: str
    setting: tuple[float, ...] = ()

    def due(self, seconds: float, limit: float) -> float:
        return seconds * limit / self.size_s if self.size_s else math.inf


KINDS = (
    Failures("independent", 0, "independent"),
    Failures("shares vary by second, ρ 0.02", 0.02, "beta", (0.02,)),
    Failures("shares vary by second, ρ 0.08", 0.08, "beta", (0.08,)),
    Failures("shares vary by second, ρ 0.3", 0.3, "beta", (0.3,)),
    Failures("storms of 1 s, 10 % fail", 0.1, "storm", (1, 0.1, 0)),
    Failures("storms of 1 s, 30 % fail", 0.3, "storm", (1, 0.3, 0)),
    Failures("storms of 1 s, all fail", 1.0, "storm", (1, 1.0, 0)),
    Failures("storms of 5 s, 10 % fail", 0.5, "storm", (5, 0.1, 0)),
    Failures("storms of 5 s, 30 % fail", 1.5, "storm", (5, 0.3, 0)),
    Failures("storms of 0.3 s on average, all fail", 0.6, "varied", (0.3, 1.0, 0)),
    Failures("storms of 1 s on average, 30 % fail", 0.6, "varied", (1, 0.3, 0)),
    Failures("half of it storms of 1 s, 30 % fail", 0.6, "storm", (1, 0.3, 0.5)),
)
CELLS = (  # seconds, requests per second, limit
    (60, 33, 0.01),
    (60, 33, 0.05),
    (300, 33, 0.01),
    (300, 200, 0.01),
    (900, 200, 0.001),
    (1_800, 50, 0.005),
)


def draw(
    rng: np.random.Generator, failures: Failures, runs: int, seconds: int, rate: float, share: float
) -> tuple[IntArray, IntArray]:
    """Draw requests and failures of each second, one run in each row."""
    if failures.kind in ("storm", "varied"):
        length, strength, background = failures.setting
        share_of_time = share * (1 - background) / strength
        at = np.tile((np.arange(seconds * _PARTS) + 0.5) / _PARTS, (runs, 1))
        between = length * (1 - share_of_time) / share_of_time
        inside, _ = alternating(rng, at, length, between, fixed_on=failures.kind == "storm")
        n = rng.poisson(rate / _PARTS, inside.shape)
        k = rng.binomial(n, np.where(inside, strength, 0.0))
        k = np.minimum(n, k + rng.binomial(n, share * background))
        whole = (runs, seconds, _PARTS)
        return n.reshape(whole).sum(axis=2), k.reshape(whole).sum(axis=2)
    n = rng.poisson(rate, (runs, seconds))
    chance: float | npt.NDArray[np.float64] = share
    if failures.kind == "beta":
        size = 1 / failures.setting[0] - 1
        chance = rng.beta(share * size, (1 - share) * size, n.shape)
    return n, rng.binomial(n, chance)


@dataclass(slots=True)
class Cell:
    """What `runs` runs came to, by the factor of the true share to the limit."""

    runs: int
    passed: dict[float, int] = field(default_factory=dict)
    failed: dict[float, int] = field(default_factory=dict)
    without: int = 0


def judge_failures(
    failures: Failures, seconds: int, rate: float, limit: float, runs: int, *, again: bool = False
) -> Cell:
    rng = np.random.default_rng([zlib.crc32(failures.name.encode()), seconds, round(rate), again])
    cell = Cell(runs)
    for factor in FACTORS:
        n, k = draw(rng, failures, runs, seconds, rate, factor * limit)
        found = [stats.share_evidence(*row, limit, CONFIDENCE) for row in zip(n, k, strict=True)]
        cell.passed[factor] = sum(one.passes for one in found)
        cell.failed[factor] = sum(one.fails for one in found)
        if factor == 1:
            cell.without = sum(one.k == 0 for one in found)
    return cell


def possible(failures: Failures, limit: float) -> bool:
    """Whether a true share three times the limit exists."""
    return len(failures.setting) < 3 or max(FACTORS) * limit < failures.setting[1] / 2


Key = tuple[str, int, float, float]


def every_key() -> list[Key]:
    """Return all cells in the order of their table."""
    return [
        (failures.name, *cell)
        for cell in CELLS
        for failures in KINDS
        if possible(failures, cell[2])
    ]


def judge_key(key: Key, runs: int) -> Part:
    """Judge one cell."""
    failures = next(one for one in KINDS if one.name == key[0])
    return judged(
        lambda r, again: judge_failures(failures, *key[1:], r, again=again),
        lambda cell: checks({key: cell}),
        runs,
    )


def checks(cells: dict[Key, Cell]) -> Iterator[Check]:
    """Yield what may err in 5 % and two standard errors; one point more of mixtures."""
    kinds = {failures.name: failures for failures in KINDS}
    for (name, seconds, rate, limit), cell in cells.items():
        if kinds[name].due(seconds, limit) < STORMS_DUE:
            continue
        place = f"{name}, {seconds} s of {rate}/s, limit {limit:.1%}"
        most = two_errors_above(1 - CONFIDENCE, cell.runs) + 0.01 * (kinds[name].size_s > 0.1)
        yield Check(place, "false PASS", cell.passed[1.0] / cell.runs, most, cell.runs)
        yield Check(place, "false FAIL", cell.failed[1.0] / cell.runs, most, cell.runs)


def failures_table(cells: dict[Key, Cell]) -> str:
    kinds = {failures.name: failures for failures in KINDS}

    def row(key: Key, cell: Cell) -> list[str]:
        name, seconds, rate, limit = key
        due = kinds[name].due(seconds, limit)
        mark = " *" if due < STORMS_DUE else ""
        wrong = f"{percent(cell.passed[1.0] / cell.runs)} / {percent(cell.failed[1.0] / cell.runs)}"
        least, most = FACTORS[0], FACTORS[-1]
        power = f"{100 * cell.passed[least] / cell.runs:.0f} / {100 * cell.failed[most] / cell.runs:.0f}"
        return [
            f"{name}{mark}",
            f"{seconds} s, {rate}/s, {100 * limit:g} %",
            "–" if math.isinf(due) else f"{due:.1f}",
            percent(cell.without / cell.runs),
            wrong,
            power,
        ]

    head = ["failures", "run, limit", "storms due", "no failure", "at the limit", "÷ 3 / × 3"]
    return table(head, (row(key, cell) for key, cell in cells.items()))


# --- means ----------------------------------------------------------------------------------------

MEANS = (  # correlation from sample to sample, sigma of the logarithm, windows of 10 samples
    (0.0, 0.4, 40),
    (0.0, 0.4, 400),
    (0.0, 1.2, 400),
    (0.0, 1.6, 400),
    (0.0, 2.0, 400),
    (0.5, 0.4, 100),
    (0.9, 0.4, 100),
    (0.9, 0.4, 400),
    (0.9, 1.2, 100),
    (0.9, 1.2, 400),
    (0.99, 0.4, 100),
    (0.99, 0.4, 400),
)
TOO_SKEWED = 2.0  # sigma; shown only
MeanKey = tuple[float, float, int]


@dataclass(slots=True)
class Mean:
    """In how many of `runs` each end of a mean was on the wrong side of the truth."""

    runs: int
    low: int
    high: int
    unresolved: int


def judge_mean(rho: float, sigma: float, windows: int, runs: int, *, again: bool = False) -> Mean:
    """Bound the mean of runs of lognormal values, ten in each window."""
    rng = np.random.default_rng([round(100 * rho), round(10 * sigma), windows, again])
    counts, sums = np.full(windows, 10), np.zeros((windows, runs))
    log = rng.normal(0, sigma, runs)
    for i in range(windows * 10):
        sums[i // 10] += np.exp(log)
        log = rho * log + rng.normal(0, sigma * math.sqrt(1 - rho**2), runs)
    truth = math.exp(sigma**2 / 2)
    found = [stats.mean_evidence(row, counts, CONFIDENCE) for row in sums.T]
    return Mean(
        runs,
        low=sum(one is not None and one.low > truth for one in found),
        high=sum(one is not None and one.high < truth for one in found),
        unresolved=sum(one is None or not one.resolved for one in found),
    )


def mean(key: MeanKey, runs: int) -> Part:
    """Judge the mean of one process."""

    def check(found: Mean) -> Iterator[Check]:
        if excepted(key):
            return
        place = f"mean, AR {key[0]:g}, σ {key[1]:g}, {key[2]} windows"
        most = two_errors_above(1 - CONFIDENCE, found.runs) + 0.01 * (key[1] > 1)
        yield Check(place, "lower end wrong", found.low / found.runs, most, found.runs)
        yield Check(place, "upper end wrong", found.high / found.runs, most, found.runs)

    return judged(lambda r, again: judge_mean(*key, r, again=again), check, runs)


def excepted(key: MeanKey) -> bool:
    return key[1] >= TOO_SKEWED


def means_table(cells: dict[MeanKey, Mean]) -> str:
    """Return how often each end is wrong."""
    head = ["process", "windows", "lower end wrong", "upper end wrong", "unresolved"]
    rows = [
        [
            f"AR {key[0]:g}, σ {key[1]:g}" + " *" * excepted(key),
            f"{key[2]}",
            *(percent(count / found.runs) for count in (found.low, found.high, found.unresolved)),
        ]
        for key, found in cells.items()
    ]
    return table(head, rows)


# --- every window ---------------------------------------------------------------------------------


def judge_windows(
    runs: int, *, n: int = 30_000, spans: int = 30, again: bool = False
) -> tuple[float, float, float]:
    """Return how often `over: 10s` FAILs while every span's truth is at the limit or just under it,
    PASSes 20 % under the limit, and FAILs when one span of all is 60 % slower."""
    rng = np.random.default_rng([n, spans, again])
    seconds, q, median, sigma = spans * 10, 0.95, 0.1, 0.5
    truth = median * math.exp(sigma * 1.6448536269514722)
    counted = []
    for slow, limit in ((1.0, truth), (1.0, truth / 0.8), (1.6, truth / 0.8)):
        count = [0, 0]
        for _ in range(runs):
            ends = np.sort(rng.random(n)) * seconds
            latencies = rng.lognormal(math.log(median), sigma, n)
            latencies = np.where((ends >= 50) & (ends < 60), latencies * slow, latencies)
            windows = stats.Windows.of(ends, latencies * 1e9, 1.0, seconds)
            over = np.bincount(ends[latencies > limit].astype(np.int64), minlength=len(windows))
            found = stats.window_evidence(windows, over, q, CONFIDENCE, span_s=10)
            count[0] += found.passes
            count[1] += found.fails
        counted.append(count)
    return counted[0][1] / runs, counted[1][0] / runs, counted[2][1] / runs


def every_window(runs: int) -> Part:
    """Judge `over: 10s`; its value is the runs and the three shares of `judge_windows`."""

    def check(found: tuple[int, tuple[float, float, float]]) -> Iterator[Check]:
        runs, (wrong, _, _) = found
        yield Check("every window", "false FAIL", wrong, two_errors_above(0.05, runs), runs)

    return judged(lambda r, again: (r, judge_windows(r, again=again)), check, runs)
