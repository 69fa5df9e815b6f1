"""The true share of failures: they come in storms, and a lucky run saw few or small ones.

Storms are taken as a weighted Poisson sum whose upper bound allows for one more storm (Fay & Feuer,
Statistics in Medicine 16, 1997), half as large again as the largest seen, since the largest there
is need not have come. With single failures that is Clopper and Pearson's bound, and with none at
all too. The variance is that of `dependence`. No statistic sees storms that did not occur: the
bound is worth its confidence where at least five storms would be due at the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from harness.stats.dependence import (
    FAIL_MARGIN,
    MIN_WINDOWS,
    PASS_MARGIN,
    Frame,
    doubts,
    with_allowances,
)
from harness.stats.evidence import Evidence
from harness.stats.shares import share_bounds
from harness.stats.windows import FloatArray, IntArray, Windows

_LARGER = 1.5  # than the largest storm seen
_CHANCE = 2  # standard deviations by which a window may exceed its mean before it is a storm


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareEvidence(Evidence):
    """What failed requests say about the true share of failures.

    `storm` is how many failures the next storm is allowed for, 1 without any storm.
    """

    storm: float


def share_evidence(
    n: IntArray,
    k: IntArray,
    limit: float,
    confidence: float,
    *,
    length_s: float = 1.0,
    runs: tuple[int, ...] | None = None,
) -> ShareEvidence:
    """Judge "at most `limit` of all fail" from n requests with k failures in each window.

    `runs` says how many windows each of several runs has. Raises ValueError without requests.
    """
    if not n.sum():
        raise ValueError("no requests, no share of them")
    storms = _Storms.of(Frame.of(Windows.counted(n, length_s), runs), k)
    to_fail = storms.vif_fail(confidence)
    return ShareEvidence(
        n=storms.n,
        k=storms.k,
        allowed=limit,
        confidence=confidence,
        windows=storms.windows,
        effective_windows=storms.effective_windows,
        too_short=storms.windows < MIN_WINDOWS,
        vif_pass=storms.vif_pass(confidence),
        vif_fail=to_fail,
        lower=share_bounds(storms.n, storms.k, confidence, vif=to_fail)[0],
        upper=storms.upper(confidence),
        storm=storms.further,
    )


@dataclass(frozen=True, slots=True)
class _Storms:
    """`k` failures in `n`, their VIF within and between runs, and the next storm's size."""

    n: int
    k: int
    windows: int
    effective_windows: float
    degrees: int
    runs: int
    within: float
    between: float
    further: float

    @classmethod
    def of(cls, frame: Frame, failures: IntArray) -> _Storms:
        n, k = frame.windows.n, frame.counts(failures)
        total, failed = int(n.sum()), int(k.sum())
        power = frame.power(k)
        effective = power.effective_windows
        degrees = frame.degrees(effective)
        within = power.vif(failed, total, degrees)
        return cls(
            n=total,
            k=failed,
            windows=len(n),
            effective_windows=effective,
            degrees=degrees,
            runs=len(frame.ends),
            within=within,
            between=frame.between(k),
            further=_further(n.astype(np.float64), k.astype(np.float64), within),
        )

    def inflated(self, confidence: float, margin: float) -> float:
        return with_allowances(
            self.within,
            self.between,
            confidence,
            degrees=self.degrees,
            runs=self.runs,
            margin=margin / self.effective_windows,
        )

    def vif_pass(self, confidence: float) -> float:
        doubt, _ = doubts(self.windows, self.effective_windows)
        spread = doubt * self.inflated(confidence, PASS_MARGIN) * self.k + self.further**2
        return max(1.0, spread / (self.k + self.further))

    def vif_fail(self, confidence: float) -> float:
        _, doubt = doubts(self.windows, self.effective_windows)
        return doubt * max(1.0, self.inflated(confidence, FAIL_MARGIN))

    def upper(self, confidence: float) -> float:
        if self.k == self.n:
            return 1.0
        vif = self.vif_pass(confidence)
        return float(betaincinv((self.k + self.further) / vif, (self.n - self.k) / vif, confidence))


def _further(n: FloatArray, k: FloatArray, vif: float) -> float:
    """Return how many failures a further storm may have.

    The largest seen has those of the fullest window beyond chance, over all windows that it lasted.
    That it goes on from window to window shows where the long-run variance exceeds the sum of the
    windows' own.
    """
    failed, total = k.sum(), n.sum()
    if not 0 < failed < total:
        return 1.0
    due = failed / total * n
    beyond = float((k - due - _CHANCE * np.sqrt(due)).max())
    apart = float(((k - due) ** 2).sum() / (failed * (1 - failed / total)))
    lasting = vif / apart if apart else 1.0  # each window failed exactly its share
    largest = max(1.0, beyond) * max(1.0, lasting)
    return 1.0 + _LARGER * (largest - 1.0)
