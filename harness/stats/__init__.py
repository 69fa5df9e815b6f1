"""What a sample says about the truth, at a declared confidence. Pure: numbers in, numbers out."""

from harness.stats.means import mean_interval
from harness.stats.shares import (
    exceedance_counts,
    quantile_interval,
    quantile_ranks,
    samples_to_decide,
    samples_to_pass,
    share_bounds,
)

__all__ = [
    "exceedance_counts",
    "mean_interval",
    "quantile_interval",
    "quantile_ranks",
    "samples_to_decide",
    "samples_to_pass",
    "share_bounds",
]
