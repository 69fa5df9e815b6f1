"""Bounds of a true share, and of a quantile, at a declared confidence; how many samples they need.

The exceedance of a limit is a share k/n. Its bounds are Clopper and Pearson's (Biometrika 26,
1934), each end by itself at the declared confidence. `vif` (variance inflation, 1 for independent
samples) shrinks k and n to an effective sample, after Korn and Graubard (Survey Methodology 24,
1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import brentq
from scipy.special import betainc, betaincinv


def share_bounds(n: float, k: float, confidence: float, *, vif: float = 1.0) -> tuple[float, float]:
    """Lower and upper bound of a true share, of which k in n were seen; (0, 1) without samples."""
    if n <= 0:
        return 0.0, 1.0
    n, k = n / vif, k / vif
    lower = float(betaincinv(k, n - k + 1, 1 - confidence)) if k > 0 else 0.0
    upper = float(betaincinv(k + 1, n - k, confidence)) if k < n else 1.0
    return lower, upper


def quantile_ranks(
    n: int, q: float, confidence: float, *, vif: float = 1.0
) -> tuple[int | None, int | None]:
    """Ranks (1-based, ascending) of the samples that bound the true q-quantile.

    None where no sample is extreme enough: the interval has no end on that side.
    """
    over_low, over_high = exceedance_counts(n, q, confidence, vif=vif)
    low_rank = None if over_low is None else n - math.ceil(over_low) + 1
    high_rank = None if over_high is None else n - math.floor(over_high)
    return low_rank if low_rank and low_rank >= 1 else None, high_rank


def exceedance_counts(
    n: int, q: float, confidence: float, *, vif: float = 1.0
) -> tuple[float | None, float | None]:
    """Counts above the limit (fractional) at which the verdict turns: from the first on a limit is
    broken, up to the second it is met. None where no count does."""
    if n <= 0:
        return None, None
    p0, size = 1 - q, n / vif
    low = _root(lambda k: float(betainc(k, size - k + 1, p0)) - (1 - confidence), 1e-9, size)
    high = _root(lambda k: float(betainc(k + 1, size - k, p0)) - confidence, 0.0, size - 1e-9)
    return None if low is None else low * vif, None if high is None else high * vif


def _root(excess: Callable[[float], float], start: float, end: float) -> float | None:
    """Where a decreasing function crosses zero; None when it does not between the ends."""
    if start >= end or excess(start) < 0 or excess(end) > 0:
        return None
    return float(brentq(excess, start, end, xtol=1e-10))


def supported(n: int, q: float) -> bool:
    """Return whether n samples show the q-quantile: one or more is to be expected beyond it.

    p99 takes 100 samples, p99.9 takes 1,000; of fewer the quantile is but the largest sample. Of
    q below one half, beyond means below.
    """
    return n * min(q, 1 - q) >= 1 - 1e-9


def samples_to_pass(q: float, confidence: float, *, over: int = 0) -> int:
    """Smallest n at which `over` samples above the limit still certify the q-quantile below it.

    The table of MLPerf LoadGen: p99 at 0.99 with 0, 1, 2 over needs 459, 662, 838.
    """
    low, high = over, max(2 * over, 64)
    while share_bounds(high, over, confidence)[1] > 1 - q:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if share_bounds(middle, over, confidence)[1] > 1 - q:
            low = middle
        else:
            high = middle
    return high


def samples_to_decide(
    n: int, k: int, q: float, confidence: float, *, vif: float = 1.0
) -> int | None:
    """About how many samples decide a budget if the share over its limit stays at k/n.

    `vif` says how dependent they are. None when the share is so close to the allowed one that no
    sensible number would.
    """
    share = k / n if n else 0.0
    if k == 0:
        return math.ceil(vif * samples_to_pass(q, confidence))
    size = float(n)
    while size < 1e9:
        size *= 1.1
        lower, upper = share_bounds(size, share * size, confidence, vif=vif)
        if upper <= 1 - q or lower > 1 - q:
            return math.ceil(size)
    return None
