"""Means and ratios of interleaved blocks, compared pair by pair; quantiles are in `regression`.

What slows both blocks of a pair alike is in both and cancels in their difference.
"""

from __future__ import annotations

import math

from scipy.special import stdtrit

from harness.stats.regression import FEWEST_BLOCKS, Change
from harness.stats.windows import FloatArray, Windows


def paired_mean_change(
    base: tuple[FloatArray, FloatArray], candidate: tuple[FloatArray, FloatArray], confidence: float
) -> Change | None:
    """Change of Σ sums ÷ Σ counts as a ratio, from sums and counts by block on each side.

    The log ratio's error is that of the mean of the pairs' differences, each block standing for its
    linearised part of the mean, (sum − mean · count) ÷ (mean · mean count) (Cochran, Sampling
    Techniques, 1977, ch. 6), by Student's t with pairs − 1 degrees of freedom. None where a side
    has nothing or its mean is not above 0.
    """
    means = [_mean(side) for side in (base, candidate)]
    if not all(mean > 0 for mean in means):
        return None
    parts = [
        (sums - mean * counts) / (mean * counts.mean())
        for mean, (sums, counts) in zip(means, (base, candidate), strict=True)
    ]
    log_ratio, pairs = math.log(means[1] / means[0]), len(parts[0])
    enough = pairs >= FEWEST_BLOCKS
    half = _half_width(parts[1] - parts[0], confidence) if enough else math.nan
    return Change(
        base=means[0],
        candidate=means[1],
        change=means[1] / means[0] - 1,
        low=math.expm1(log_ratio - half) if enough else None,
        high=math.expm1(log_ratio + half) if enough else None,
        lacking=None if enough else "blocks",
    )


def variance_left(base: FloatArray, candidate: FloatArray) -> float | None:
    """Return what pairing leaves of the variance that two independent runs would have had.

    Below 1 the blocks of a pair are alike: they shared a disturbance. None without any variance.
    """
    apart = float(base.var(ddof=1) + candidate.var(ddof=1))
    return float((candidate - base).var(ddof=1)) / apart if apart > 0 else None


def excesses(blocks: Windows, q: float) -> FloatArray:
    """Return by how many samples each block has more above the run's q-quantile than its share."""
    over = blocks.over(blocks.quantile(q))
    excess: FloatArray = over - over.sum() / blocks.total * blocks.n
    return excess


def _mean(side: tuple[FloatArray, FloatArray]) -> float:
    sums, counts = side
    return float(sums.sum() / counts.sum()) if counts.sum() else 0.0


def _half_width(differences: FloatArray, confidence: float) -> float:
    n = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    return float(stdtrit(n - 1, confidence)) * error
