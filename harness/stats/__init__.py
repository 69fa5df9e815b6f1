"""What a sample says about the truth, at a declared confidence. Pure: numbers in, numbers out."""

from harness.stats.dependence import (
    MIN_EFFECTIVE_WINDOWS,
    MIN_WINDOWS,
    Dependence,
    Undecided,
    dependence,
)
from harness.stats.drift import (
    Overload,
    Trend,
    WarmUp,
    find_drift,
    find_overload,
    find_trend,
    find_warm_up,
    steady_part,
)
from harness.stats.failures import ShareEvidence, share_evidence
from harness.stats.levels import holm
from harness.stats.means import MeanEvidence, mean_evidence
from harness.stats.outage import Outage, find_outage
from harness.stats.process import Fit, planned_fit, poisson_fit
from harness.stats.quantiles import QuantileEvidence, quantile_evidence
from harness.stats.shares import (
    exceedance_counts,
    quantile_ranks,
    samples_to_decide,
    samples_to_pass,
    share_bounds,
    supported,
)
from harness.stats.spans import WindowEvidence, window_evidence
from harness.stats.windows import Windows

__all__ = [
    "MIN_EFFECTIVE_WINDOWS",
    "MIN_WINDOWS",
    "Dependence",
    "Fit",
    "MeanEvidence",
    "Outage",
    "Overload",
    "QuantileEvidence",
    "ShareEvidence",
    "Trend",
    "Undecided",
    "WarmUp",
    "WindowEvidence",
    "Windows",
    "dependence",
    "exceedance_counts",
    "find_drift",
    "find_outage",
    "find_overload",
    "find_trend",
    "find_warm_up",
    "holm",
    "mean_evidence",
    "planned_fit",
    "poisson_fit",
    "quantile_evidence",
    "quantile_ranks",
    "samples_to_decide",
    "samples_to_pass",
    "share_bounds",
    "share_evidence",
    "steady_part",
    "supported",
    "window_evidence",
]
