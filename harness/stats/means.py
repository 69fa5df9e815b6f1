"""Bounds of a true mean."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

FloatArray = npt.NDArray[np.float64]


def mean_interval(
    sums: FloatArray, counts: FloatArray, confidence: float
) -> tuple[float, float] | None:
    """Bounds of a true mean from batch means (Conway, Management Science 9, 1963).

    Successive intervals are joined into 20 batches, so that dependence inside a batch does no harm;
    the ratio estimator handles unequal batches. None under 20 intervals with samples.
    """
    if len(counts) < 20 or counts.sum() <= 0:
        return None
    edges = np.linspace(0, len(counts), 21).astype(int)[:-1]
    batch_sum, batch_n = np.add.reduceat(sums, edges), np.add.reduceat(counts, edges)
    mean = batch_sum.sum() / batch_n.sum()
    residual = batch_sum - mean * batch_n
    error = math.sqrt(20 / 19 * float((residual**2).sum())) / float(batch_n.sum())
    half = float(stdtrit(19, confidence)) * error
    return float(mean) - half, float(mean) + half
