"""Was the target in a steady state? Warm-up, trend and overload, told from what chance would do.

Latencies of a queue depend on each other for long, so every test here measures the scale of its own
chance at low frequencies: from the squares of cosine projections (Müller, Econometrica 75, 2007),
which a spread of window to window would understate. What the run is too short to tell is not told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.fft import dct
from scipy.special import stdtr

from harness.stats.windows import FloatArray, IntArray, Windows

FEWEST_WINDOWS = 20
_WINDOW_SAMPLES = 5  # a window needs this many on average, or its level is mostly noise
_MOST_WINDOWS = 120  # more resolve no slower a change, and cost more
_PROJECTIONS = 8
_WARM_UP_MOST = 1 / 3  # of the run: what takes longer is a trend
_WARM_UP_STARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)  # windows; tried one after the other
_FEWEST_EFFECTIVE = 20  # below this, slow dependence cannot be told from a trend
_LEAST_CHANGE = 0.1  # a change of the mean by less than a tenth is nobody's business
_ENDED_SHARE = 0.95
_FILLED_AFTER = 20  # arrivals that must have ended before a backlog says anything
_EVEN_PACE = 1.2  # the last third of the run against the one before
_OVERLOAD_SHARE = 0.2  # of the run: the shortest stretch at its end that may be called overload
OVERLOAD_Z = 2.5  # a queue at exactly its capacity gets there in one run of fifty


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """The first `length_s` seconds differ from the rest: latencies were `ratio` times those of it.

    The ratio is of geometric means: 1.5 is half as much again, 0.5 half. `p` is the probability of
    at least such a difference in a steady run.
    """

    length_s: float
    ratio: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Latencies change all along: over the run by the factor `ratio` (1.2: a fifth slower)."""

    ratio: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """From `start_s` on more arrives than ends, and latency keeps growing.

    `start_s` counts from the first window. `growth_per_s` is that of the mean latency, in its own
    unit per second; None where too little ended to tell. `z` is the growth of the backlog in
    standard deviations of that of a queue at its capacity.
    """

    start_s: float
    arrived_per_s: float
    ended_per_s: float
    growth_per_s: float | None
    z: float


def steady_part(
    windows: Windows, in_system: Windows, duration_s: float, *, ramp_s: float = 0.0
) -> tuple[Windows, float]:
    """Return the windows in which all latencies can be seen, and how many seconds lie before them.

    Samples count where they ended: at first only short requests can have, and after `duration_s`
    only long ones are left. `in_system` are the same requests' whole times in ns: the first windows
    go until 95 % of those would have ended that began at the end of the ramp.
    """
    size = round(duration_s / windows.length_s)
    if not in_system.total:
        return _between(windows, 0, size), 0.0
    ended_s = ramp_s + in_system.quantile(_ENDED_SHARE) / 1e9
    first = math.ceil(ended_s / windows.length_s)
    return _between(windows, first, size), first * windows.length_s


def find_warm_up(windows: Windows, *, confidence: float = 0.95) -> WarmUp | None:
    """Compare the first windows with the rest; None where there is no difference beyond chance.

    The length is where White's MSER rule cuts (Simulation 69, 1997): there the standard error of
    what remains is smallest.
    """
    windows = _readable(windows)
    if len(windows) < FEWEST_WINDOWS or not windows.total:
        return None
    n, logs = windows.n.astype(np.float64), windows.log_sums()
    most = int(len(n) * _WARM_UP_MOST)
    rest_n, rest_logs = n[most:].sum(), logs[most:].sum()
    if not rest_n:
        return None
    level = rest_logs / rest_n
    residual = logs[most:] - level * n[most:]
    effective = _effective(residual)
    if effective < _FEWEST_EFFECTIVE:
        return None
    noise = max(_long_run_variance(residual), float(np.mean(residual**2))) * (1 + 10 / effective)
    starts = [start for start in _WARM_UP_STARTS if start <= most]
    p = min(
        1.0, len(starts) * min(_p_of_start(n, logs, start, level, noise, most) for start in starts)
    )
    cut = _mser_cut(n, logs, len(n) // 2)
    if p > 1 - confidence or not cut or not n[:cut].sum():
        return None
    ratio = math.exp(logs[:cut].sum() / n[:cut].sum() - logs[cut:].sum() / n[cut:].sum())
    if abs(math.log(ratio)) < math.log1p(_LEAST_CHANGE):
        return None
    return WarmUp(length_s=cut * windows.length_s, ratio=ratio, p=p)


def find_trend(windows: Windows, *, confidence: float = 0.95) -> Trend | None:
    """Tell whether latency rises or falls all along; None where it does not beyond chance.

    The first cosine holds nearly all of a line; how large it is by chance, the next ones tell. The
    slope is Sen's (JASA 63, 1968), of the windows' mean logarithms.
    """
    windows = _readable(windows)
    if len(windows) < FEWEST_WINDOWS or not windows.total:
        return None
    n, logs = windows.n.astype(np.float64), windows.log_sums()
    residual = logs - logs.sum() / n.sum() * n
    projections = dct(residual, norm="ortho")[1:]
    chance = float(np.mean(projections[1 : _PROJECTIONS + 1] ** 2))
    effective = _effective(residual)
    if not chance or effective < _FEWEST_EFFECTIVE:
        return None
    t = float(projections[0]) / math.sqrt(chance * (1 + 10 / effective))
    p = 2 * float(stdtr(_PROJECTIONS, -abs(t)))
    ratio = math.exp(_sen_slope(n, logs) * (len(n) - 1))
    if p > 1 - confidence or abs(math.log(ratio)) < math.log1p(_LEAST_CHANGE):
        return None
    return Trend(ratio=ratio, p=p)


def find_overload(
    arrived: IntArray,
    ended: IntArray,
    latency_n: IntArray,
    latency_sums: IntArray,
    length_s: float,
    *,
    least_z: float = OVERLOAD_Z,
) -> Overload | None:
    """Tell whether the backlog of an open load grows beyond what a full queue's would by chance.

    `arrived` and `ended` count requests by window of `length_s`, from the stage's start to its
    planned end; `latency_n` samples of a latency with the sum `latency_sums` ended in the same
    windows. A queue at exactly its capacity is a random walk: its backlog has no drift, only steps
    of a known spread. Overload is a backlog that from some time to the end climbs more than
    `least_z` standard deviations of such a walk, while latency climbs too.
    """
    size = len(arrived)
    first = _filled(arrived, ended) if size >= FEWEST_WINDOWS else None
    fewest = math.ceil(_OVERLOAD_SHARE * size)
    if first is None or size - first < fewest:
        return None
    steps = (arrived - ended).astype(np.float64)
    climb = np.cumsum(steps[::-1])[::-1][first : size - fewest + 1]
    length = size - np.arange(first, first + len(climb))
    best = int(np.argmax(climb / np.sqrt(length)))
    begin = first + best
    z = float(climb[best]) / math.sqrt(float(length[best]) * _step_variance(steps[begin:]))
    growth = _growth(latency_n[begin:], latency_sums[begin:])
    if z < least_z or (growth is not None and growth <= 0):
        return None
    span_s = (size - begin) * length_s
    return Overload(
        start_s=begin * length_s if best else 0.0,
        arrived_per_s=float(arrived[begin:].sum()) / span_s,
        ended_per_s=float(ended[begin:].sum()) / span_s,
        growth_per_s=None if growth is None else growth / length_s,
        z=z,
    )


def find_drift(windows: Windows, *, confidence: float = 0.95) -> WarmUp | Trend | None:
    """Return a trend that is there without the warm-up too, else the warm-up, if there is one.

    `confidence` is that of both tests together.
    """
    each = 1 - (1 - confidence) / 2
    warm_up, trend = find_warm_up(windows, confidence=each), find_trend(windows, confidence=each)
    if warm_up is None:
        return trend
    cut = round(warm_up.length_s / windows.length_s)
    rest = find_trend(_between(windows, cut, len(windows)), confidence=each)
    return (trend or rest) if rest else warm_up


def _between(windows: Windows, first: int, end: int) -> Windows:
    """Return the windows from `first` up to `end`."""
    inside = (windows.window >= first) & (windows.window < end)
    return Windows(
        length_s=windows.length_s,
        n=windows.n[first : max(first, end)],
        window=windows.window[inside] - first,
        value=windows.value[inside],
        count=windows.count[inside],
    )


def _readable(windows: Windows) -> Windows:
    """Join windows until they hold enough samples each, and are no more than are needed."""
    size = len(windows)
    if not windows.total:
        return windows
    few = math.ceil(_WINDOW_SAMPLES * size / windows.total)
    return windows.joined(max(few, math.ceil(size / _MOST_WINDOWS)))


def _long_run_variance(residual: FloatArray) -> float:
    """Return a long sum's variance per window: the mean square at low frequencies."""
    return float(np.mean(dct(residual, norm="ortho")[1 : _PROJECTIONS + 1] ** 2))


def _p_of_start(
    n: FloatArray, logs: FloatArray, start: int, level: float, noise: float, most: int
) -> float:
    """Probability that the first `start` windows differ so much from the rest in a steady run."""
    rest = len(n) - most
    excess = abs(float(logs[:start].sum() - level * n[:start].sum()))
    scale = math.sqrt(noise * start * (1 + start / rest))
    if not scale:
        return 0.0 if excess > 1e-9 else 1.0
    return 2 * float(stdtr(_PROJECTIONS, -excess / scale))


def _mser_cut(n: FloatArray, logs: FloatArray, most: int) -> int:
    """Return how many windows to cut, at most `most`, for the smallest error of the rest's mean."""
    full = n > 0
    squares = np.zeros(len(n))
    squares[full] = logs[full] ** 2 / n[full]
    after_n, after_logs, after_squares = (np.cumsum(x[::-1])[::-1] for x in (n, logs, squares))
    kept = after_n[: most + 1] > 0
    spread = after_squares - after_logs**2 / np.maximum(after_n, 1)
    error = np.where(kept, (spread / np.maximum(after_n, 1) ** 2)[: most + 1], np.inf)
    return int(np.argmin(error))


def _effective(residual: FloatArray) -> float:
    """Return how many independent windows these are worth, a straight line taken out first."""
    line = np.linspace(-1, 1, len(residual))
    rest = residual - residual.mean() - line * float(residual @ line) / float(line @ line)
    noise = _long_run_variance(rest)
    return float(rest @ rest) / noise if noise else float(len(rest))


def _sen_slope(n: FloatArray, logs: FloatArray) -> float:
    """Median of the slopes between all pairs of windows, per window."""
    at = np.flatnonzero(n)
    level = logs[at] / n[at]
    later, earlier = np.triu_indices(len(at), 1)[::-1]
    return float(np.median((level[later] - level[earlier]) / (at[later] - at[earlier])))


def _filled(arrived: IntArray, ended: IntArray) -> int | None:
    """Return the first window in which a steady target would have filled up; None if it never has.

    At first the backlog grows whatever the target does, until requests end as fast as they come. By
    t that is so where as many have ended as had come by t/2: they took less than t/2, as a rule.
    Where the backlog outgrows even that, ends that come at an even pace tell an overload from
    requests that take long.
    """
    came, gone = np.cumsum(arrived), np.cumsum(ended)
    size = len(came)
    enough = gone >= min(_FILLED_AFTER, int(came[-1]))
    full = np.flatnonzero(enough & (gone >= came[np.arange(size) // 2]))
    if len(full):
        return int(full[0])
    third = size // 3
    middle, last = ended[third : 2 * third].sum(), ended[2 * third :].sum() * third
    if not enough.any() or last > _EVEN_PACE * middle * (size - 2 * third):
        return None
    return int(np.flatnonzero(enough)[0])


def _step_variance(steps: FloatArray) -> float:
    """Variance per window of the backlog's steps around their drift, slow swings included."""
    around = steps - steps.mean()
    low = dct(around, norm="ortho")[1 : _PROJECTIONS + 1]
    return max(float(np.mean(around**2)), float(np.mean(low**2)), 1e-9)


def _growth(n: IntArray, sums: IntArray) -> float | None:
    """Least-squares slope of the windows' means, per window; None under 4 windows with samples."""
    full = np.flatnonzero(n)
    if len(full) < 4:
        return None
    means = sums[full] / n[full]
    return float(np.polyfit(full.astype(np.float64), means, 1, w=np.sqrt(n[full]))[0])
