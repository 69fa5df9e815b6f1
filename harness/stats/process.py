"""Did arrivals come as the declared process has them? Gaps between arrivals against their law.

A large sample finds every flaw of a clock, a small one finds none: each test gives both how sure it
is that there is a difference (`p`) and how large that is (`distance`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import kolmogorov

from harness.recorder import Histogram
from harness.recorder.histogram import highest_values
from harness.stats.windows import FloatArray, IntArray

_LEAST_TOLERANCE = 0.05  # of the mean gap
_AD_LOW = (0.00168691, -0.0116720, 0.0347962, -0.0649821, 0.247105, 2.00012)
_AD_HIGH = (-0.0003146, 0.008056, -0.082433, 0.43424, -2.30695, 1.0776)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How n gaps agree with what was planned.

    `statistic` is Anderson and Darling's A² or Kolmogorov's √n·D, `p` the probability of at least
    it if the process is as planned. `distance` is the share of gaps that would have to move by more
    than `tolerance_ns` (as asked for, at least a twentieth of the mean gap) to agree: 0 to 1.
    """

    n: int
    statistic: float
    p: float
    distance: float
    tolerance_ns: float


def poisson_fit(gaps: Histogram, rate_per_s: float, tolerance_ns: float) -> Fit | None:
    """Test gaps in ns for being exponential with the known rate: a Poisson process; None of none.

    Anderson and Darling's test of a fully specified law (JASA 49, 1954).
    """
    if not gaps.n:
        return None
    mean_ns = 1e9 / rate_per_s
    edges, below = _distribution(gaps)
    tolerance_ns = max(tolerance_ns, _LEAST_TOLERANCE * mean_ns)
    above = below - _exponential(edges + tolerance_ns, mean_ns)
    under = _exponential(edges - tolerance_ns, mean_ns) - below
    statistic = _anderson_darling(_exponential(_middles(gaps), mean_ns), gaps.counts)
    return Fit(
        n=gaps.n,
        statistic=statistic,
        p=1 - anderson_darling_cdf(statistic),
        distance=max(0.0, float(above.max()), float(under.max())),
        tolerance_ns=tolerance_ns,
    )


def planned_fit(gaps: Histogram, planned: Histogram, tolerance_ns: float) -> Fit | None:
    """Compare gaps in ns with the planned ones, whatever their law; None without both.

    Kolmogorov's test with a tolerance, without which the smallest lateness would break a constant
    rate: a gap that is off by no more than that is as planned.
    """
    if not gaps.n or not planned.n:
        return None
    tolerance_ns = max(tolerance_ns, _LEAST_TOLERANCE * planned.sum / planned.n)
    edges, below = _distribution(gaps)
    planned_edges, planned_below = _distribution(planned)
    above = below - _at(edges + tolerance_ns, planned_edges, planned_below)
    under = planned_below - _at(planned_edges + tolerance_ns, edges, below)
    distance = max(0.0, float(above.max()), float(under.max()))
    statistic = math.sqrt(gaps.n) * distance
    return Fit(
        n=gaps.n,
        statistic=statistic,
        p=float(kolmogorov(statistic)),
        distance=distance,
        tolerance_ns=tolerance_ns,
    )


def anderson_darling_cdf(z: float) -> float:
    """Probability that A² is below z for a large sample of a fully specified continuous law.

    Marsaglia and Marsaglia's approximation (Journal of Statistical Software 9, 2004).
    """
    if z <= 0:
        return 0.0
    if z < 2:
        low = np.polyval(_AD_LOW, z)
        return math.exp(-1.2337141 / z) / math.sqrt(z) * float(low)
    return math.exp(-math.exp(float(np.polyval(_AD_HIGH, z))))


def _distribution(gaps: Histogram) -> tuple[FloatArray, FloatArray]:
    """Upper edges of the occupied buckets, and the share of gaps at or below each: exact there."""
    edges = highest_values(gaps.indices, gaps.unit).astype(np.float64)
    return edges, np.cumsum(gaps.counts) / gaps.n


def _at(x: FloatArray, edges: FloatArray, below: FloatArray) -> FloatArray:
    """Return the share at or below each x."""
    shares: FloatArray = np.append(0.0, below)[np.searchsorted(edges, x, side="right")]
    return shares


def _middles(gaps: Histogram) -> FloatArray:
    middles: FloatArray = (gaps.values + highest_values(gaps.indices, gaps.unit) + 1) / 2
    return middles


def _exponential(x: FloatArray, mean: float) -> FloatArray:
    shares: FloatArray = -np.expm1(-np.maximum(x, 0.0) / mean)
    return shares


def _anderson_darling(shares: FloatArray, counts: IntArray) -> float:
    """A² of samples whose distribution function, at ascending values, is `shares`."""
    n, before = int(counts.sum()), np.cumsum(counts) - counts
    inside = np.clip(shares, 1e-300, 1 - 1e-16)
    low = counts * (2 * before + counts) * np.log(inside)
    high = counts * (2 * (n - before) - counts) * np.log1p(-inside)
    return float(-n - (low + high).sum() / n)
