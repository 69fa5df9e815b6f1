"""Recorded series as windows of samples."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from harness.recorder import Recording, Series, StageWindow
from harness.stats.windows import IntArray, Windows

TIMES_IN_SYSTEM = ("e2el_all", "e2el", "service", "request")
"""The metrics that tell a request's whole time in the system, widest first."""

_KNOWN: WeakKeyDictionary[Series, Windows] = WeakKeyDictionary()


def windows_of(recording: Recording, series: Series, stage: StageWindow) -> Windows:
    """Return a stage's series by recording interval, those without samples included.

    There are windows from the stage's start to its end, and to its last sample if that came later.
    They are made once, so that what was computed of them is known to all that ask again.
    """
    if series not in _KNOWN:
        _KNOWN[series] = _in_windows(recording, series, stage)
    return _KNOWN[series]


def _in_windows(recording: Recording, series: Series, stage: StageWindow) -> Windows:
    interval_s = recording.interval_s
    first, _ = _span(series.index, stage, interval_s)
    at = series.index - first
    return Windows(
        length_s=interval_s,
        n=by_window(series.n, series.index, stage, interval_s),
        window=at[series.cells.interval],
        value=series.cells.highest,
        count=series.cells.count,
    )


def by_window(
    counts: IntArray | Sequence[int], index: IntArray, stage: StageWindow, interval_s: float
) -> IntArray:
    """Put counts of the intervals `index` in their windows of a stage, 0 where there are none."""
    first, size = _span(index, stage, interval_s)
    dense = np.zeros(size, dtype=np.int64)
    dense[index - first] = counts
    return dense


def _span(index: IntArray, stage: StageWindow, interval_s: float) -> tuple[int, int]:
    """First window of a stage, as an index of intervals, and how many windows there are."""
    first = min(int(stage.start_s / interval_s + 1e-9), int(index.min(initial=2**62)))
    last = max(round(stage.end_s / interval_s), int(index.max(initial=-1)) + 1)
    return first, max(last - first, 1)
