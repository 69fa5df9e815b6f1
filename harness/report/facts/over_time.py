"""Since when a limit is missed: percentiles in windows, tested against the budget."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc

from harness.budget import RUN, Budget
from harness.recorder import Recording, Series, StageWindow
from harness.report.facts.subject import Subject, WhyNot, percentiles_of, series_of, too_few
from harness.stats import supported

WINDOW_REQUESTS = 300
MIN_OVER_TIME = 30
CHANCE = 0.01  # a window is flagged when its overs are less likely than this under the budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """Since when the limit is missed: a change point in the first of two flagged windows in a row.

    `flagged` of all `windows` in judged stages are flagged.
    """

    t_s: float
    stage: str
    offset_s: float
    flagged: int
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """About WINDOW_REQUESTS requests of one stage; a percentile its count cannot carry is None."""

    stage: str
    t0: float
    t1: float
    n: int
    percentiles: tuple[float | None, float | None, float | None]
    judged_at: float | None
    over: int | None
    above: bool
    flagged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OverTime:
    """Percentiles of the subject in windows, failed requests, and since when it is over."""

    quantiles: tuple[float, float, float]
    windows: tuple[Window, ...]
    failed: tuple[tuple[float, int], ...]
    since: Since | None
    above: int
    flagged: int
    judged: int

    @property
    def still_over(self) -> bool:
        """Whether the last window that was judged is above the limit."""
        judged = [w for w in self.windows if w.over is not None]
        return bool(judged) and judged[-1].above


def over_time(
    recording: Recording, subject: Subject | None, invalid: frozenset[str]
) -> OverTime | WhyNot:
    """Return the subject's percentiles in windows of about WINDOW_REQUESTS requests."""
    found = series_of(recording, subject)
    n = sum(int(series.n.sum()) for _, series in found)
    if subject is None or n < MIN_OVER_TIME:
        return too_few(n, MIN_OVER_TIME)
    q = subject.quantile
    quantiles = (0.5, q if 0.5 < q < 0.99 else 0.95, 0.99)
    windows = [
        window
        for stage, series in found
        for window in _windows(recording, stage, series, subject, quantiles)
    ]
    judged = [w for w in windows if w.over is not None and w.stage not in invalid]
    requests = [recording.requests(stage.name, RUN) for stage in recording.stages]
    failed: Counter[float] = Counter()
    for r in requests:
        for t_s, count in zip(r.t_s, r.failed, strict=True):
            failed[float(t_s)] += int(count)
    return OverTime(
        quantiles=quantiles,
        windows=tuple(windows),
        failed=tuple((t, k) for t, k in sorted(failed.items()) if k),
        since=_since(judged, found, subject),
        above=sum(w.above for w in judged),
        flagged=sum(w.flagged for w in judged),
        judged=len(judged),
    )


def _windows(
    recording: Recording,
    stage: StageWindow,
    series: Series,
    subject: Subject,
    quantiles: tuple[float, float, float],
) -> Iterable[Window]:
    """Merge intervals to windows, never across a stage.

    They are those that the budget must hold in, else of about WINDOW_REQUESTS requests.
    """
    samples = int(series.n.sum())
    done = recording.requests(stage.name, subject.step)
    per_request = max(1.0, samples / max(1, done.n - done.n_failed))
    group = _grouped(stage, series, subject.span_s, samples / per_request)
    verdict = subject.judged.get(stage.group)
    over = _over(series, verdict.budget) if verdict and verdict.budget.quantile else None
    starts = [
        max(stage.start_s, float(series.t_s[np.flatnonzero(group == g)[0]]))
        for g in np.unique(group)
    ]
    starts = [stage.start_s] + [min(t, stage.end_s) for t in starts[1:]] + [stage.end_s]
    for i, g in enumerate(np.unique(group)):
        mask = group == g
        h = series.histogram(mask)
        k = None if over is None else int(over[mask].sum())
        at = h.quantile(subject.quantile) if supported(h.n, subject.quantile) else None
        yield Window(
            stage=stage.name,
            t0=starts[i],
            t1=starts[i + 1],
            n=h.n,
            percentiles=percentiles_of(h, quantiles),
            judged_at=at,
            over=k,
            above=k is not None and k > h.n - math.ceil(round(subject.quantile * h.n, 6)),
            flagged=k is not None and _beyond_chance(h.n, k, subject.quantile, per_request),
        )


def _grouped(
    stage: StageWindow, series: Series, span_s: float | None, requests: float
) -> npt.NDArray[np.int64]:
    """Number the window of each interval: spans of equal length, or of equally many requests."""
    if span_s is None:
        count, samples = max(1, round(requests / WINDOW_REQUESTS)), int(series.n.sum())
        group: npt.NDArray[np.int64] = (np.cumsum(series.n) - series.n) * count // samples
        return np.minimum(group, count - 1)
    last = math.ceil((stage.end_s - stage.start_s) / span_s - 1e-9) - 1
    group = ((series.t_s - stage.start_s) / span_s + 1e-9).astype(np.int64)
    return np.minimum(group, last)


def _over(series: Series, budget: Budget) -> npt.NDArray[np.int64]:
    """Count each interval's samples over the limit; by bucket edges if not counted exactly."""
    exact = series.over(budget.threshold)
    if exact is not None:
        return exact
    counts = [h.count_over(budget.threshold)[0] for h in series.histograms()]
    return np.array(counts, dtype=np.int64)


def _beyond_chance(n: int, over: int, quantile: float, per_request: float) -> bool:
    """Test binomially; many samples of one request (gaps between tokens) count as one."""
    n, over = round(n / per_request), math.floor(over / per_request)
    return bool(over and bdtrc(over - 1, n, 1 - quantile) < CHANCE)


def _since(
    judged: Sequence[Window], found: Iterable[tuple[StageWindow, Series]], subject: Subject
) -> Since | None:
    pairs = itertools.pairwise(judged)
    first = next((a for a, b in pairs if a.flagged and b.flagged and a.stage == b.stage), None)
    if first is None:
        return None
    stage, series = next((s, series) for s, series in found if s.name == first.stage)
    t_s = _change_point(series, subject.judged[stage.group].budget, subject.quantile, first)
    return Since(
        t_s=t_s,
        stage=stage.name,
        offset_s=t_s - stage.start_s,
        flagged=sum(w.flagged for w in judged),
        windows=len(judged),
    )


def _change_point(series: Series, budget: Budget, quantile: float, window: Window) -> float:
    """Return where the cumulative excess over the allowed share turns upward (Page 1954)."""
    inside = (series.t_s >= window.t0) & (series.t_s < window.t1)
    excess = _over(series, budget)[inside] - (1 - quantile) * series.n[inside]
    before = np.append(0.0, np.cumsum(excess)[:-1])
    last_low = len(before) - 1 - int(np.argmin(before[::-1]))
    return max(window.t0, float(series.t_s[inside][last_low]))
