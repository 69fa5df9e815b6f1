"""When a run may stop early: only when nothing that may still come could turn its outcome.

Counts beyond a limit never shrink. If a budget would fail even if every remaining sample met its
limit, the whole run fails, too, and the rest of it can be spared. Looking often does no harm: each
look asks about the end of the planned run, not about now.
"""

from __future__ import annotations

import math

from harness.stats.dependence import UNRESOLVED_FAIL
from harness.stats.evidence import Evidence
from harness.stats.failures import share_evidence
from harness.stats.quantiles import quantile_evidence
from harness.stats.shares import share_bounds
from harness.stats.spans import window_evidence
from harness.stats.windows import IntArray, Windows

_SURELY_RESOLVED = 40  # effective windows: with fewer now, the whole run may have too few
_VIF_MARGIN = 2.0  # what comes may depend on itself more strongly than what came


def doomed(
    n: float, k: float, n_most: float, allowed: float, confidence: float, *, vif: float = 1.0
) -> bool:
    """Tell whether `k` of `n` beyond a limit break it whatever follows.

    `n_most` is the largest number of samples that the whole run can have. In the best case none of
    those to come is beyond the limit; doomed is a run whose lower bound exceeds the `allowed` share
    even then. Nothing beyond a limit that allows nothing (`allowed` 0) is doomed by the first.
    """
    if allowed <= 0:
        return k > 0
    return share_bounds(max(n, n_most), k, confidence, vif=vif)[0] > allowed


def doomed_quantile(
    windows: Windows,
    over: IntArray,
    n_most: float,
    q: float,
    confidence: float,
    *,
    upper: bool = True,
    in_system_s: float | None = None,
) -> bool:
    """Tell the same of a quantile, from its samples so far in windows, as `quantile_evidence`."""
    evidence = quantile_evidence(windows, over, q, confidence, upper=upper, in_system_s=in_system_s)
    return _doomed(evidence, n_most)


def doomed_span(
    windows: Windows,
    over: IntArray,
    span_s: float,
    spans_most: int,
    q: float,
    confidence: float,
    *,
    upper: bool = True,
    in_system_s: float | None = None,
) -> bool:
    """Tell whether a quantile that must hold in every span of time is broken in one for good.

    `spans_most` is how many spans the whole run has: each is one more chance to fail. As the spans
    to come may show more dependence, a hundredth of the error is allowed.
    """
    complete = int(windows.duration_s / span_s + 1e-9) * round(span_s / windows.length_s)
    if not complete or not windows.n[:complete].any():
        return False
    inside = windows.window < complete
    seen = Windows(
        length_s=windows.length_s,
        n=windows.n[:complete],
        window=windows.window[inside],
        value=windows.value[inside],
        count=windows.count[inside],
    )
    found = window_evidence(
        seen,
        over[:complete],
        q,
        confidence,
        span_s=span_s,
        upper=upper,
        in_system_s=in_system_s,
    )
    return found.p_fail * max(1.0, spans_most / found.spans) <= (1 - confidence) / 100


def doomed_share(
    n: IntArray, k: IntArray, n_most: float, allowed: float, confidence: float, *, length_s: float
) -> bool:
    """Tell the same of a share of failures, from n requests with k of them in each window."""
    if allowed <= 0 or not n.sum():
        return bool(k.any())
    return _doomed(share_evidence(n, k, allowed, confidence, length_s=length_s), n_most)


def arrivals_at_most(planned: int, rate_per_s: float, left_s: float) -> float:
    """Bound how many arrivals an open stage has in all: those planned so far and those to come.

    Six standard deviations of a Poisson count above what is expected.
    """
    expected = rate_per_s * max(0.0, left_s)
    return planned + expected + 6 * math.sqrt(expected)


def _doomed(evidence: Evidence, n_most: float) -> bool:
    """Ask with a larger variance than a FAIL needs now.

    The whole run may show more dependence than its beginning, in proportion to how much of it is to
    come, and may turn out too short for it.
    """
    surely = evidence.effective_windows >= _SURELY_RESOLVED
    doubt = 1 if surely or not evidence.resolved else UNRESOLVED_FAIL
    ahead = max(1.0, n_most / evidence.n)
    vif = _VIF_MARGIN * ahead * doubt * evidence.vif_fail
    return doomed(evidence.n, evidence.k, n_most, evidence.allowed, evidence.confidence, vif=vif)
