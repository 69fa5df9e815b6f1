"""One quantile of one run, or several, against a limit: the method in short.

The share of samples over the limit has Clopper and Pearson's bounds on an effective sample; see
`dependence`. It passes when the upper bound is within the allowed share, and fails when the lower
one is beyond it. The VIF for passing is the larger one, since a lucky run looks calm as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.stats.dependence import (
    FAIL_MARGIN,
    PASS_MARGIN,
    Dependence,
    dependence,
    frame_of,
)
from harness.stats.evidence import Evidence
from harness.stats.shares import quantile_ranks, share_bounds
from harness.stats.windows import IntArray, Windows

_ALL_BEYOND = 4  # effective windows to one effective sample where all samples are beyond a limit


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileEvidence(Evidence):
    """What samples beyond a limit say about a quantile against that limit.

    `low` and `high` bound the true quantile, in the metric's unit (None: the sample gives no end).
    """

    low: int | None
    high: int | None


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
    n, k = windows.total, int(over.sum())
    frame = frame_of(windows, runs)
    counts = frame.counts(over)
    own = frame.power(counts).vif(k, n, found.degrees), frame.between(counts)
    pass_doubt, fail_doubt = found.doubts
    to_pass = pass_doubt * max(
        found.inflated(*own, confidence, PASS_MARGIN),
        found.vif(confidence, thresholds=3, margin=PASS_MARGIN),
    )
    to_fail = fail_doubt * max(
        found.inflated(*own, confidence, FAIL_MARGIN),
        found.vif(confidence, thresholds=1, margin=FAIL_MARGIN),
    )
    if k == n and found.runs == 1:
        each = 1 if far_beyond else _ALL_BEYOND
        to_fail = min(to_fail, max(1.0, each * n / found.effective_windows))
    key = ("ends", q, confidence, upper, in_system_s, runs)
    if key not in windows.memo:
        windows.memo[key] = _ends(windows, found, q, confidence, upper=upper)
    low, high = windows.memo[key]
    return QuantileEvidence(
        n=n,
        k=k,
        allowed=1 - q if upper else q,
        confidence=confidence,
        windows=found.windows,
        effective_windows=found.effective_windows,
        too_short=found.too_short,
        vif_pass=to_pass,
        vif_fail=to_fail,
        lower=share_bounds(n, k, confidence, vif=to_fail)[0],
        upper=share_bounds(n, k, confidence, vif=to_pass)[1],
        low=low,
        high=high,
    )


def _ends(
    windows: Windows, found: Dependence, q: float, confidence: float, *, upper: bool
) -> tuple[int | None, int | None]:
    """Return the ends of the quantile's own interval; the one that could pass has the wider VIF."""
    pass_doubt, fail_doubt = found.doubts
    near = fail_doubt * found.vif(confidence, thresholds=1, margin=FAIL_MARGIN)
    far = pass_doubt * found.vif(confidence, thresholds=3, margin=PASS_MARGIN)
    below, above = (near, far) if upper else (far, near)
    n = windows.total
    return windows.quantile_ends(
        quantile_ranks(n, q, confidence, vif=below)[0],
        quantile_ranks(n, q, confidence, vif=above)[1],
    )
