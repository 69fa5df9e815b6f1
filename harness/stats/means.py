"""Bounds of a true mean, from sums per window that depend on each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from harness.stats.dependence import (
    FAIL_MARGIN,
    MIN_WINDOWS,
    PASS_MARGIN,
    Frame,
    doubts,
    is_resolved,
)
from harness.stats.windows import FloatArray, IntArray, Windows

FEWEST_WINDOWS = 20
_BATCHES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanEvidence:
    """What sums and counts per window say about the true mean, in the unit of the sums.

    `low` and `high` bound it, each at the confidence asked for; `error_low` is the standard error
    that the lower one comes from. The upper one's is larger, since a lucky run of skewed values has
    both a small mean and a small spread. Where not `resolved`, the dependence outlasts the run
    and both are larger. One `too_short` to show dependence at all passes no budget.
    """

    n: int
    mean: float
    windows: int
    effective_windows: float
    resolved: bool
    degrees: int
    error_low: float
    low: float
    high: float

    @property
    def too_short(self) -> bool:
        """Return whether there are fewer windows than a measure of dependence takes."""
        return self.windows < MIN_WINDOWS


def mean_evidence(
    sums: FloatArray,
    counts: FloatArray | IntArray,
    confidence: float,
    *,
    length_s: float = 1.0,
    runs: tuple[int, ...] | None = None,
) -> MeanEvidence | None:
    """Bound a true mean from the sum and the number of samples of each window.

    The long-run variance of the ratio estimator's residuals comes from their lowest cosine
    projections, as in `dependence`, and the bounds from Student's t, corrected for skewness.
    `runs` says how many windows each of several runs has. None under 20 windows with samples.
    """
    if np.count_nonzero(counts) < FEWEST_WINDOWS:
        return None
    bare = Windows.counted(counts, length_s)
    frame = Frame.of(bare, runs)
    joined = np.bincount(frame.group, weights=sums, minlength=frame.ends[-1]).astype(np.float64)
    power = frame.power(joined)
    effective, size = power.effective_windows, frame.ends[-1]
    degrees = frame.degrees(effective)
    resolved = is_resolved(size, effective)
    within, (pass_doubt, fail_doubt) = size * power.lowest(degrees), doubts(size, effective)
    below = fail_doubt * within * (1 + FAIL_MARGIN / effective)
    above = pass_doubt * within * (1 + PASS_MARGIN / effective)
    between, apart = _between_runs(frame, joined), len(frame.ends) - 1
    if apart and _t(apart, confidence) ** 2 * between > _t(degrees, confidence) ** 2 * above:
        below, above, degrees = between, between, apart
    mean, t = float(sums.sum()) / bare.total, _t(degrees, confidence)
    skewness = _skewness(frame, joined)
    low, high = math.sqrt(below) / bare.total, math.sqrt(above) / bare.total
    return MeanEvidence(
        n=bare.total,
        mean=mean,
        windows=size,
        effective_windows=effective,
        resolved=resolved,
        degrees=degrees,
        error_low=low,
        low=mean - (t + _for_skewness(-min(skewness), t)) * low,
        high=mean + (t + _for_skewness(max(skewness), t)) * high,
    )


def _t(degrees: int, confidence: float) -> float:
    return float(stdtrit(degrees, confidence))


def _skewness(frame: Frame, sums: FloatArray) -> tuple[float, float]:
    """Return the skewness of the whole sum, by single windows and by batches that spells fit in."""
    n = frame.windows.n
    residual = sums - sums.sum() / n.sum() * n
    starts = np.arange(0, len(residual), max(1, len(residual) // _BATCHES))
    return _skew(residual), _skew(np.add.reduceat(residual, starts))


def _skew(parts: FloatArray) -> float:
    spread = float((parts**2).sum())
    return float((parts**3).sum()) / spread**1.5 if spread > 0 else 0.0


def _for_skewness(skewness: float, t: float) -> float:
    """Return what t must grow by for a bound on the side that a sum leans to; 0 for the other.

    The first term of the Cornish-Fisher expansion of a studentized mean (Johnson, Journal of the
    American Statistical Association 73, 1978), twice: the skewness of samples, which cannot exceed
    the root of their number, is about half of the true one where that is large.
    """
    return 2 * max(0.0, skewness) * (1 + 2 * t**2) / 6


def _between_runs(frame: Frame, sums: FloatArray) -> float:
    """Return the variance of the sum of residuals, from run to run; 0 for one run."""
    runs = len(frame.ends)
    if runs < 2:
        return 0.0
    starts = (0, *frame.ends[:-1])
    total, n = np.add.reduceat(sums, starts), np.add.reduceat(frame.windows.n, starts)
    residual = total - total.sum() / n.sum() * n
    return float(runs / (runs - 1) * (residual**2).sum())
