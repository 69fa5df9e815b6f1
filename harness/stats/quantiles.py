"""One quantile of one run, or several, against a limit: the method in short.

The share of samples over the limit has Clopper and Pearson's bounds on an effective sample; see
`dependence`. It passes when the upper bound is within the allowed share, and fails when the lower
one is beyond it. The VIF for passing is the larger one, since a lucky run looks calm as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import betainc, betaincc

from harness.stats.dependence import (
    FAIL_MARGIN,
    PASS_MARGIN,
    UNRESOLVED,
    Dependence,
    Frame,
    Undecided,
    dependence,
    frame_of,
)
from harness.stats.levels import smallest_level
from harness.stats.shares import quantile_ranks, share_bounds
from harness.stats.windows import IntArray, Windows

_ALL_BEYOND = 4  # effective windows to one effective sample where all samples are beyond a limit


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileEvidence:
    """What `n` samples, `k` of them beyond a limit, say about a quantile against that limit.

    `lower` and `upper` bound the true share beyond the limit, each at the confidence asked for;
    `low` and `high` bound the true quantile, in the metric's unit (None: the sample gives no end).
    `p_pass` and `p_fail` are the smallest error rates at which it would pass, or fail.
    `vif_pass`, `vif_fail` and `vif_interval` inflate the variance for `upper`, `lower` and for a
    quantile's own limits; `effective_n` is n / vif_pass. Of `windows`, so many as
    `effective_windows` count as independent; not `resolved` means that they are too few to pass.
    """

    n: int
    k: int
    allowed: float
    effective_n: float
    windows: int
    effective_windows: float
    resolved: bool
    vif_pass: float
    vif_fail: float
    vif_interval: float
    lower: float
    upper: float
    low: int | None
    high: int | None
    p_pass: float
    p_fail: float
    passes: bool
    fails: bool
    undecided: Undecided | None


def quantile_evidence(
    windows: Windows,
    over: IntArray,
    q: float,
    confidence: float,
    *,
    upper: bool = True,
    in_system_s: float | None = None,
    runs: tuple[int, ...] | None = None,
    far_beyond: bool = False,
) -> QuantileEvidence:
    """Judge "the q-quantile is below a limit" from samples in windows.

    `over` is the exact number of samples of each window beyond the limit: above it for an `upper`
    limit, at or below it for a lower one. `far_beyond` says that all are so by a factor of two or
    more, which a spell hardly does to a quantile that keeps its limit: then each effective window
    counts. See `dependence` for `in_system_s` and `runs`. Raises ValueError without samples.
    """
    found = dependence(windows, q, in_system_s=in_system_s, runs=runs)
    count = _Count.of(frame_of(windows, runs), over, 1 - q if upper else q, found, far_beyond)
    to_pass, to_fail = count.vif_pass(confidence), count.vif_fail(confidence)
    highest = share_bounds(count.n, count.k, confidence, vif=to_pass)[1]
    lowest = share_bounds(count.n, count.k, confidence, vif=to_fail)[0]
    passes, fails = found.resolved and highest <= count.allowed, lowest > count.allowed
    undecided = None
    if not passes and not fails:
        undecided = _undecided(found, count.n / to_pass, count.allowed, confidence)
    key = ("ends", q, confidence, upper, in_system_s, runs)
    if key not in windows.memo:
        windows.memo[key] = _ends(windows, found, q, confidence, upper=upper)
    low, high = windows.memo[key]
    return QuantileEvidence(
        n=count.n,
        k=count.k,
        allowed=count.allowed,
        effective_n=count.n / to_pass,
        windows=found.windows,
        effective_windows=found.effective_windows,
        resolved=found.resolved,
        vif_pass=to_pass,
        vif_fail=to_fail,
        vif_interval=found.vif_interval(confidence),
        lower=lowest,
        upper=highest,
        low=low,
        high=high,
        p_pass=smallest_level(count.passing_tail) if found.resolved else 1.0,
        p_fail=smallest_level(count.failing_tail),
        passes=passes,
        fails=fails,
        undecided=undecided,
    )


@dataclass(frozen=True, slots=True)
class _Count:
    """`k` of `n` samples beyond a limit, and what is known of the variance of that count."""

    n: int
    k: int
    allowed: float
    within: float
    between: float
    found: Dependence
    far_beyond: bool

    @classmethod
    def of(
        cls,
        frame: Frame,
        over: IntArray,
        allowed: float,
        found: Dependence,
        far_beyond: bool,
    ) -> _Count:
        counts, n, k = frame.counts(over), frame.windows.total, int(over.sum())
        within = frame.power(counts).vif(k, n, found.degrees)
        return cls(n, k, allowed, within, frame.between(counts), found, far_beyond)

    def vif_pass(self, confidence: float) -> float:
        return max(
            self.found.inflated(self.within, self.between, confidence, PASS_MARGIN),
            self.found.vif(confidence, thresholds=3, margin=PASS_MARGIN),
        )

    def vif_fail(self, confidence: float) -> float:
        doubt = 1 if self.found.resolved else UNRESOLVED
        vif = doubt * max(
            self.found.inflated(self.within, self.between, confidence, FAIL_MARGIN),
            self.found.vif(confidence, thresholds=1, margin=FAIL_MARGIN),
        )
        if self.k == self.n and self.found.runs == 1:
            each = 1 if self.far_beyond else _ALL_BEYOND
            return min(vif, max(1.0, each * self.n / self.found.effective_windows))
        return vif

    def passing_tail(self, confidence: float) -> float:
        """Return the chance of so few beyond the limit, were the share just the allowed one."""
        if self.k == self.n:
            return 1.0
        vif = self.vif_pass(confidence)
        return float(betaincc(self.k / vif + 1, (self.n - self.k) / vif, self.allowed))

    def failing_tail(self, confidence: float) -> float:
        """Return the chance of so many beyond the limit, were the share just the allowed one."""
        if not self.k:
            return 1.0
        vif = self.vif_fail(confidence)
        return float(betainc(self.k / vif, (self.n - self.k) / vif + 1, self.allowed))


def _undecided(
    found: Dependence, effective_n: float, allowed: float, confidence: float
) -> Undecided:
    if not found.resolved:
        return Undecided.SHORT if found.too_short else Undecided.DEPENDENCE
    if share_bounds(effective_n, 0, confidence)[1] > allowed:
        return Undecided.SAMPLES
    return Undecided.CLOSE


def _ends(
    windows: Windows, found: Dependence, q: float, confidence: float, *, upper: bool
) -> tuple[int | None, int | None]:
    """Return the ends of the quantile's own interval; the one that could pass has the wider VIF."""
    doubt = 1 if found.resolved else UNRESOLVED
    near = doubt * found.vif(confidence, thresholds=1, margin=FAIL_MARGIN)
    far = doubt * found.vif(confidence, thresholds=3, margin=PASS_MARGIN)
    below, above = (near, far) if upper else (far, near)
    n = windows.total
    return windows.quantile_ends(
        quantile_ranks(n, q, confidence, vif=below)[0],
        quantile_ranks(n, q, confidence, vif=above)[1],
    )
