"""Bounds of a true mean, from sums per window that depend on each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from harness.stats.dependence import (
    FAIL_MARGIN,
    MIN_EFFECTIVE_WINDOWS,
    MIN_WINDOWS,
    PASS_MARGIN,
    UNRESOLVED,
    Frame,
)
from harness.stats.windows import FloatArray, IntArray, Windows

_FEWEST_WINDOWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanEvidence:
    """What sums and counts per window say about the true mean, in the unit of the sums.

    `low` and `high` bound it, each at the confidence asked for; `error_low` and `error_high` are
    the standard errors they come from, with `degrees` of freedom. The upper one is larger, since a
    lucky run of skewed values has both a small mean and a small spread. Where not `resolved`, the
    run is too short for its dependence: it may still fail a budget, but not pass one.
    """

    n: int
    mean: float
    windows: int
    effective_windows: float
    resolved: bool
    degrees: int
    error_low: float
    error_high: float
    low: float
    high: float

    def p_above(self, limit: float) -> float:
        """Return the p-value of "the true mean is above the limit"."""
        return self._tail(limit - self.mean, self.error_low)

    def p_below(self, limit: float) -> float:
        """Return the p-value of "the true mean is below the limit"."""
        return self._tail(self.mean - limit, self.error_high)

    def _tail(self, missing: float, error: float) -> float:
        if error == 0:
            return 1.0 if missing >= 0 else 0.0
        return float(stdtr(self.degrees, missing / error))


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
    projections, as in `dependence`, and the bounds from Student's t. `runs` says how many windows
    each of several runs has. None under 20 windows with samples.
    """
    if np.count_nonzero(counts) < _FEWEST_WINDOWS:
        return None
    nothing = np.zeros(0, dtype=np.int64)
    bare = Windows(
        length_s=length_s,
        n=np.asarray(counts).astype(np.int64),
        window=nothing,
        value=nothing,
        count=nothing,
    )
    frame = Frame.of(bare, runs)
    joined = np.bincount(frame.group, weights=sums, minlength=frame.ends[-1]).astype(np.float64)
    power = frame.power(joined)
    effective, size = power.effective_windows, frame.ends[-1]
    degrees = frame.degrees(effective)
    resolved = size >= MIN_WINDOWS and effective >= MIN_EFFECTIVE_WINDOWS
    within = size * power.lowest(degrees) * (1 if resolved else UNRESOLVED)
    below, above = within * (1 + FAIL_MARGIN / effective), within * (1 + PASS_MARGIN / effective)
    between, apart = _between_runs(frame, joined), len(frame.ends) - 1
    if apart and _t(apart, confidence) ** 2 * between > _t(degrees, confidence) ** 2 * above:
        below, above, degrees = between, between, apart
    mean, t = float(sums.sum()) / bare.total, _t(degrees, confidence)
    low, high = math.sqrt(below) / bare.total, math.sqrt(above) / bare.total
    return MeanEvidence(
        n=bare.total,
        mean=mean,
        windows=size,
        effective_windows=effective,
        resolved=resolved,
        degrees=degrees,
        error_low=low,
        error_high=high,
        low=mean - t * low,
        high=mean + t * high,
    )


def _t(degrees: int, confidence: float) -> float:
    return float(stdtrit(degrees, confidence))


def _between_runs(frame: Frame, sums: FloatArray) -> float:
    """Return the variance of the sum of residuals, from run to run; 0 for one run."""
    runs = len(frame.ends)
    if runs < 2:
        return 0.0
    starts = (0, *frame.ends[:-1])
    total, n = np.add.reduceat(sums, starts), np.add.reduceat(frame.windows.n, starts)
    residual = total - total.sum() / n.sum() * n
    return float(runs / (runs - 1) * (residual**2).sum())
