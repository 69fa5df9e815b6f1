"""The true share of failures: they come in storms, and a lucky run saw few or small ones.

Storms are taken as a weighted Poisson sum whose upper bound allows for one more storm of the
largest size seen (Fay & Feuer, Statistics in Medicine 16, 1997). With single failures that is
Clopper and Pearson's bound, and with none at all too. The variance is that of `dependence`.
No statistic sees storms that did not occur: the bound is worth its confidence where at least five
storms would be due at the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import betainc, betaincc, betaincinv

from harness.stats.dependence import (
    FAIL_MARGIN,
    MIN_EFFECTIVE_WINDOWS,
    MIN_WINDOWS,
    PASS_MARGIN,
    UNRESOLVED,
    Frame,
    Undecided,
    student_factor,
)
from harness.stats.levels import smallest_level
from harness.stats.shares import share_bounds
from harness.stats.windows import FloatArray, IntArray, Windows

_CHANCE = 2  # standard deviations by which a window may exceed its mean before it is a storm


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareEvidence:
    """What `k` failures in `n` say about the true share of failures against the `allowed` one.

    `lower` and `upper` bound the true share, each at the confidence asked for. `storm` is how many
    failures the largest storm had beyond chance, 1 without any. The rest is as in
    `QuantileEvidence`.
    """

    n: int
    k: int
    allowed: float
    effective_n: float
    windows: int
    effective_windows: float
    resolved: bool
    storm: float
    vif_pass: float
    vif_fail: float
    lower: float
    upper: float
    p_pass: float
    p_fail: float
    passes: bool
    fails: bool
    undecided: Undecided | None


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
    total, failed = int(n.sum()), int(k.sum())
    if not total:
        raise ValueError("no requests, no share of them")
    nothing = np.zeros(0, dtype=np.int64)
    bare = Windows(length_s=length_s, n=n, window=nothing, value=nothing, count=nothing)
    storms = _Storms.of(Frame.of(bare, runs), k)
    to_pass, to_fail = storms.vif_pass(confidence), storms.vif_fail(confidence)
    lower = share_bounds(total, failed, confidence, vif=to_fail)[0]
    upper = storms.upper(confidence)
    passes, fails = storms.resolved and upper <= limit, lower > limit
    undecided = None
    if not passes and not fails:
        undecided = storms.undecided(limit, confidence)
    return ShareEvidence(
        n=total,
        k=failed,
        allowed=limit,
        effective_n=total / to_pass,
        windows=storms.windows,
        effective_windows=storms.effective_windows,
        resolved=storms.resolved,
        storm=storms.largest,
        vif_pass=to_pass,
        vif_fail=to_fail,
        lower=lower,
        upper=upper,
        p_pass=smallest_level(partial(storms.passing_tail, limit)) if storms.resolved else 1.0,
        p_fail=smallest_level(partial(storms.failing_tail, limit)),
        passes=passes,
        fails=fails,
        undecided=undecided,
    )


@dataclass(frozen=True, slots=True)
class _Storms:
    """`k` failures in `n`, their VIF within and between runs, and the largest storm."""

    n: int
    k: int
    windows: int
    effective_windows: float
    degrees: int
    runs: int
    within: float
    between: float
    largest: float

    @classmethod
    def of(cls, frame: Frame, failures: IntArray) -> _Storms:
        n, k = frame.windows.n, frame.counts(failures)
        total, failed = int(n.sum()), int(k.sum())
        power = frame.power(k)
        effective, runs = power.effective_windows, len(frame.ends)
        degrees = frame.degrees(effective)
        within = power.vif(failed, total, degrees)
        return cls(
            n=total,
            k=failed,
            windows=len(n),
            effective_windows=effective,
            degrees=degrees,
            runs=runs,
            within=within,
            between=frame.between(k),
            largest=_largest(n.astype(np.float64), k.astype(np.float64), within),
        )

    @property
    def resolved(self) -> bool:
        return self.windows >= MIN_WINDOWS and self.effective_windows >= MIN_EFFECTIVE_WINDOWS

    def inflated(self, confidence: float, margin: float) -> float:
        within = student_factor(self.degrees, confidence) * self.within
        if self.runs == 1:
            return within * (1 + margin / self.effective_windows)
        between = student_factor(self.runs - 1, confidence) * self.between
        return max(within * (1 + margin / self.effective_windows), between)

    def vif_pass(self, confidence: float) -> float:
        spread = self.inflated(confidence, PASS_MARGIN) * self.k + self.largest**2
        return max(1.0, spread / (self.k + self.largest))

    def vif_fail(self, confidence: float) -> float:
        doubt = 1 if self.resolved else UNRESOLVED
        return doubt * max(1.0, self.inflated(confidence, FAIL_MARGIN))

    def upper(self, confidence: float) -> float:
        if self.k == self.n:
            return 1.0
        vif = self.vif_pass(confidence)
        return float(betaincinv((self.k + self.largest) / vif, (self.n - self.k) / vif, confidence))

    def passing_tail(self, limit: float, confidence: float) -> float:
        if self.k == self.n:
            return 1.0
        vif = self.vif_pass(confidence)
        return float(betaincc((self.k + self.largest) / vif, (self.n - self.k) / vif, limit))

    def failing_tail(self, limit: float, confidence: float) -> float:
        if not self.k:
            return 1.0
        vif = self.vif_fail(confidence)
        return float(betainc(self.k / vif, (self.n - self.k) / vif + 1, limit))

    def undecided(self, limit: float, confidence: float) -> Undecided:
        if self.windows < MIN_WINDOWS:
            return Undecided.SHORT
        if not self.resolved:
            return Undecided.DEPENDENCE
        effective = self.n / self.vif_pass(confidence)
        too_few = share_bounds(effective, 0, confidence)[1] > limit
        return Undecided.SAMPLES if too_few else Undecided.CLOSE


def _largest(n: FloatArray, k: FloatArray, vif: float) -> float:
    """Return the failures of the largest storm beyond chance, over all windows that it lasted.

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
    return max(1.0, beyond) * max(1.0, lasting)
