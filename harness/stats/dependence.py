"""How strongly samples depend on each other, so that bounds hold although they do.

Latencies come in spells: a queue that is long now is long a moment later, so 20 000 samples may
say no more than 500 independent ones. The bounds are those of Korn and Graubard (Survey
Methodology 24, 1998): Clopper and Pearson's on an effective sample, n and k divided by a variance
inflation (VIF).

The VIF is the long-run variance of counts per window over their binomial variance. The long-run
variance comes from cosine projections (Müller, Econometrica 75, 2007; Lazarus et al., Journal of
Business & Economic Statistics 36, 2018), whose mean square over the ν lowest frequencies has ν
degrees of freedom, so that a t-quantile replaces the normal one. It is never taken from the counts
over the limit alone: a lucky run has few spells, hence few samples over the limit and a small VIF
together. Counts above thresholds inside the sample are looked at as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from scipy.fft import dct
from scipy.special import ndtri, stdtrit

from harness.stats.windows import FloatArray, IntArray, Windows

MIN_WINDOWS = 40
MIN_EFFECTIVE_WINDOWS = 20
_SAMPLES_PER_WINDOW = 5  # fewer hide the dependence under the noise of single samples
_TAIL_SAMPLES = 30  # the fewest samples above the lowest threshold inside the sample
PASS_MARGIN, FAIL_MARGIN = 40, 10  # of few effective windows: VIF · (1 + margin/E)
# What the VIF is multiplied with where the dependence outlasts the run, to PASS and to FAIL
UNRESOLVED_PASS, UNRESOLVED_FAIL = 9, 4


class Undecided(Enum):
    """Why a sample neither passes nor fails a budget.

    SAMPLES: so few effective ones that it could not even pass without any over the limit. SHORT:
    the run is shorter than 20 times the p99 of the time in the system, or has fewer than 40
    windows. DEPENDENCE: spells last too long for the run, it has fewer than 20 effective windows.
    CLOSE: the true share may be on either side of the allowed one.
    """

    SAMPLES = "samples"
    SHORT = "short"
    DEPENDENCE = "dependence"
    CLOSE = "close"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependence:
    """How strongly samples near one quantile depend on each other.

    `tail` holds the VIF of the counts above three thresholds inside the sample, from the quantile
    (or where 30 samples are above it) towards the median; `between` the same from run to run,
    before its t-quantile, 0 for a single run.
    """

    windows: int
    effective_windows: float
    too_short: bool
    degrees: int
    runs: int
    tail: tuple[float, float, float]
    between: tuple[float, float, float]

    @property
    def resolved(self) -> bool:
        """Return whether the run is long enough to measure how long its spells last."""
        return is_resolved(self.windows, self.effective_windows)

    @property
    def doubts(self) -> tuple[float, float]:
        """Return what the VIF to PASS and that to FAIL are multiplied with."""
        return doubts(self.windows, self.effective_windows)

    def vif(self, confidence: float, *, thresholds: int, margin: float) -> float:
        """Return the inflation from so many of the thresholds, at least 1."""
        return self.inflated(
            max(self.tail[:thresholds]), max(self.between[:thresholds]), confidence, margin
        )

    def inflated(self, within: float, between: float, confidence: float, margin: float) -> float:
        """Return a VIF with the allowances for its own uncertainty, at least 1."""
        inflated = with_allowances(
            within,
            between,
            confidence,
            degrees=self.degrees,
            runs=self.runs,
            margin=margin / self.effective_windows,
        )
        return max(1.0, inflated)

    def vif_interval(self, confidence: float) -> float:
        """Return the inflation for the limits of a quantile of its own, without a budget."""
        return self.vif(confidence, thresholds=1, margin=FAIL_MARGIN)


def is_resolved(windows: int, effective_windows: float) -> bool:
    """Return whether a run has windows enough to measure how strongly they depend on each other."""
    return windows >= MIN_WINDOWS and effective_windows >= MIN_EFFECTIVE_WINDOWS


def doubts(windows: int, effective_windows: float) -> tuple[float, float]:
    """Return what the VIF to PASS and that to FAIL are multiplied with, 1 where resolved."""
    if is_resolved(windows, effective_windows):
        return 1.0, 1.0
    return UNRESOLVED_PASS, UNRESOLVED_FAIL


def with_allowances(
    within: float, between: float, confidence: float, *, degrees: int, runs: int, margin: float
) -> float:
    """Return a VIF enlarged for being an estimate: by Student's t, and by `margin` for few windows.

    That from run to run, `between`, counts where it is larger; its degrees are `runs` − 1.
    """
    inflated = student_factor(degrees, confidence) * within * (1 + margin)
    if runs == 1:
        return inflated
    return max(inflated, student_factor(runs - 1, confidence) * between)


def student_factor(degrees: int, confidence: float) -> float:
    """Return (t/z)², what the variance is multiplied with since it is itself an estimate."""
    return float((stdtrit(degrees, confidence) / ndtri(confidence)) ** 2)


@dataclass(frozen=True, slots=True)
class Frame:
    """Windows wide enough to show dependence.

    `group` says which of them holds each original window; at `ends` a run ends.
    """

    windows: Windows
    group: IntArray
    ends: tuple[int, ...]

    @classmethod
    def of(cls, windows: Windows, runs: tuple[int, ...] | None) -> Frame:
        """Join windows to 1 s or more, and until five samples are in each, but not below 40."""
        sizes = runs or (len(windows),)
        wanted = max(
            round(1 / windows.length_s),
            math.ceil(_SAMPLES_PER_WINDOW * len(windows) / max(windows.total, 1)),
        )
        k = max(1, min(wanted, len(windows) // MIN_WINDOWS))
        groups, ends, start = [], [], 0
        for size in sizes:
            joined = max(size // k, 1)
            groups.append(start + np.minimum(np.arange(size) // k, joined - 1))
            start += joined
            ends.append(start)
        group = np.concatenate(groups)
        wide = windows.grouped(group, windows.length_s * k) if k > 1 else windows
        return cls(wide, group, tuple(ends))

    def counts(self, counts: IntArray) -> IntArray:
        """Join counts per original window like the windows."""
        return np.bincount(self.group, weights=counts, minlength=self.ends[-1]).astype(np.int64)

    def power(self, sums: npt.NDArray[np.generic]) -> Power:
        """Return what the sums per window show of dependence within the runs."""
        values, n = sums.astype(np.float64), self.windows.n.astype(np.float64)
        spectra, squares, start = [], 0.0, 0
        for end in self.ends:
            part, size = values[start:end], n[start:end]
            residual = part - part.sum() / max(size.sum(), 1.0) * size
            spectra.append(dct(residual, norm="ortho")[1:] ** 2)
            squares += float((residual**2).sum())
            start = end
        return Power(spectra, squares, self.ends[-1])

    def degrees(self, effective_windows: float) -> int:
        """Return how many projections, over all runs, show the long-run variance: 5 to 24."""
        most = min(24, len(self.windows) // 3)
        wanted = max(1, min(max(int(effective_windows / 5), 5), most))
        return math.ceil(wanted / len(self.ends)) * len(self.ends)

    def between(self, counts: IntArray) -> float:
        """Return the VIF of a count from run to run; 0 for one run."""
        if len(self.ends) < 2:
            return 0.0
        starts = (0, *self.ends[:-1])
        k, n = np.add.reduceat(counts, starts), np.add.reduceat(self.windows.n, starts)
        residual = k - k.sum() / n.sum() * n
        variance = k.sum() * (1 - k.sum() / n.sum())
        runs = len(starts)
        return float(runs / (runs - 1) * (residual**2).sum() / variance) if variance > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Power:
    """Squared cosine projections of a residual series, lowest frequency first, for each run."""

    spectra: list[FloatArray]
    squares: float
    windows: int

    def lowest(self, degrees: int) -> float:
        """Return the mean of about `degrees` of the lowest, as many from each run."""
        each = math.ceil(degrees / len(self.spectra))
        found = np.concatenate([one[:each] for one in self.spectra])
        return float(found.mean()) if len(found) else 0.0

    def vif(self, k: int, n: int, degrees: int) -> float:
        """Return the variance of the count `k` of `n` over the binomial one; 0 where undefined."""
        if not 0 < k < n:
            return 0.0
        return self.windows * self.lowest(degrees) / (k * (1 - k / n))

    @property
    def effective_windows(self) -> float:
        """Return how many independent windows would vary as little as all of them do together."""
        low = self.lowest(8)
        return self.squares / low if low > 0 else float(self.windows)


def frame_of(windows: Windows, runs: tuple[int, ...] | None = None) -> Frame:
    """Return the frame of windows, made once."""
    key = ("frame", runs)
    if key not in windows.memo:
        windows.memo[key] = Frame.of(windows, runs)
    found: Frame = windows.memo[key]
    return found


def _effective_windows(frame: Frame) -> float:
    """Return the fewest that the log-latencies and the counts over p50 and p90 show."""
    wide, key = frame.windows, ("effective", frame.ends)
    if key not in wide.memo:
        series: list[npt.NDArray[np.generic]] = [wide.log_sums()]
        series += [wide.over(wide.quantile(q)) for q in (0.5, 0.9)]
        wide.memo[key] = min(frame.power(sums).effective_windows for sums in series)
    found: float = wide.memo[key]
    return found


def dependence(
    windows: Windows,
    q: float,
    *,
    in_system_s: float | None = None,
    runs: tuple[int, ...] | None = None,
) -> Dependence:
    """Measure how strongly the samples near the q-quantile depend on each other.

    `in_system_s` is the p99 of a request's whole time in the system (queue included), since no
    spell of a queue is shorter. `runs` says how many windows each of several runs has.
    """
    key = ("dependence", q, in_system_s, runs)
    if key not in windows.memo:
        windows.memo[key] = _measure(frame_of(windows, runs), q, in_system_s)
    found: Dependence = windows.memo[key]
    return found


def _measure(frame: Frame, q: float, in_system_s: float | None) -> Dependence:
    wide = frame.windows
    size = len(wide)
    stays = wide.duration_s / in_system_s if in_system_s else math.inf
    effective = min(_effective_windows(frame), stays)
    degrees = frame.degrees(effective)
    lowest = min(0.5, max(min(q, 1 - q), _TAIL_SAMPLES / wide.total))
    tail, between = [], []
    for share in (lowest, 2 * lowest, 4 * lowest):
        edge = wide.threshold(min(share, 0.5), upper=q >= 0.5)
        counts = wide.over(edge) if edge is not None else np.zeros_like(wide.n)
        tail.append(frame.power(counts).vif(int(counts.sum()), wide.total, degrees))
        between.append(frame.between(counts))
    return Dependence(
        windows=size,
        effective_windows=effective,
        too_short=size < MIN_WINDOWS or stays < MIN_EFFECTIVE_WINDOWS,
        degrees=degrees,
        runs=len(frame.ends),
        tail=(tail[0], tail[1], tail[2]),
        between=(between[0], between[1], between[2]),
    )
