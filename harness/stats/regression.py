"""How a statistic changed from a baseline to a candidate, with an interval.

The two runs are independent of each other, the samples within a run are not: the interval of the
change is made of the two runs' own (MOVER: Zou and Donner, Statistics in Medicine 27, 2008), on
logs where the change is a ratio. Repeated runs are compared run by run instead (permutation), and
interleaved blocks pair by pair, so that what slows neighbouring blocks together cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import stdtrit

from harness.stats.dependence import dependence
from harness.stats.shares import quantile_ranks
from harness.stats.windows import FloatArray, Windows

Lacking = Literal["samples", "time", "runs", "blocks"]
Ends = tuple[float | None, float | None]

FEWEST_BLOCKS = 8
FEWEST_BEYOND = 10  # samples expected above a quantile that blocks are compared by
_FEWEST_WINDOWS = 20
_UNRESOLVED = 9  # what VIF is multiplied with where the dependence outlasts a run
_MOST_RELABELLINGS = 20_000
_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How one statistic changed: `change` is 0.1 for a tenth more, of a share 0.1 for ten points.

    `low` and `high` end the interval of the true change, each at the asked confidence; None where
    the samples give no end, and `lacking` says of what there are too few. `runs` counts the runs on
    each side; `smallest_p` is the smallest error rate that a permutation of so few can show.
    """

    base: float
    candidate: float
    change: float
    low: float | None
    high: float | None
    lacking: Lacking | None = None
    runs: tuple[int, int] = (1, 1)
    smallest_p: float | None = None
    pairs: int | None = None
    """Pairs of interleaved blocks that the interval is made of, None where it is not."""
    variance_left: float | None = None
    """What pairing left of the variance that two independent runs would have had."""

    def beyond(self, margin: float) -> bool | None:
        """Whether the true change is more than `margin`; None where the interval cannot say."""
        if self.low is not None and self.low > margin:
            return True
        return False if self.high is not None and self.high < margin else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceCurve:
    """Candidate − baseline at each quantile, in the metric's unit; `nines` is −log10(1 − q).

    `low` and `high` hold at each quantile by itself; NaN where the samples give no end.
    """

    nines: FloatArray
    base: FloatArray
    difference: FloatArray
    low: FloatArray
    high: FloatArray


def quantile_limits(
    windows: Windows,
    q: float,
    confidence: float,
    *,
    in_system_s: float | None = None,
    runs: tuple[int, ...] | None = None,
) -> tuple[Ends, bool]:
    """Bounds of the true q-quantile of a run, and whether its dependence is resolved.

    Where it is not, they are three times as far, so that still only a gross change shows; of very
    few windows there are none. See `dependence` for `in_system_s` and `runs`.
    """
    found = dependence(windows, q, in_system_s=in_system_s, runs=runs)
    if found.windows < _FEWEST_WINDOWS:
        return (None, None), False
    vif = found.vif_interval(confidence) * (1 if found.resolved else _UNRESOLVED)
    ranks = quantile_ranks(windows.total, q, confidence, vif=vif)
    return windows.quantile_ends(*ranks), found.resolved


def quantile_change(
    base: Sequence[Windows],
    candidate: Sequence[Windows],
    q: float,
    confidence: float,
    *,
    in_system_s: tuple[float | None, float | None] = (None, None),
) -> Change | None:
    """Change of the q-quantile, as a ratio; both sides are one or several runs.

    Several runs on both sides are compared run by run. Where the dependence within a run is not
    resolved there is no upper end: nothing shows that the candidate is no worse. `in_system_s` is
    each side's p99 of a request's whole time in the system, see `dependence`. None without samples
    on a side.
    """
    if not all(run.total for run in (*base, *candidate)) or not base or not candidate:
        return None
    if len(base) > 1 and len(candidate) > 1:
        return repeated_change(
            [_positive(run.quantile(q)) for run in base],
            [_positive(run.quantile(q)) for run in candidate],
            confidence,
        )
    one, other = _joined(base), _joined(candidate)
    (one_ends, one_known), (other_ends, other_known) = (
        quantile_limits(
            windows,
            q,
            confidence,
            in_system_s=stay,
            runs=tuple(len(run) for run in side) if len(side) > 1 else None,
        )
        for windows, side, stay in zip((one, other), (base, candidate), in_system_s, strict=True)
    )
    change = ratio_change(
        _positive(one.quantile(q)),
        _positive(other.quantile(q)),
        _mapped(one_ends, _positive),
        _mapped(other_ends, _positive),
    )
    if not (one_known and other_known):
        change = replace(change, high=None, lacking="time")
    return replace(change, runs=(len(base), len(candidate)))


def difference_curve(
    base: Windows,
    candidate: Windows,
    confidence: float,
    *,
    in_system_s: tuple[float | None, float | None] = (None, None),
) -> DifferenceCurve:
    """Difference of every quantile from the median on, as far as ten samples of each lie above it.

    A quantile-difference curve is the shift function (Doksum, Annals of Statistics 2, 1974) read
    by quantiles.
    """
    most = math.log10(max(min(base.total, candidate.total) / FEWEST_BEYOND, 2))
    nines = np.append(np.arange(math.log10(2), most, 0.05), most)
    rows = [
        _difference_at(base, candidate, 1 - 10**-x, confidence, in_system_s) for x in nines.tolist()
    ]
    base_at, differences, low, high = np.array(rows, dtype=np.float64).T
    return DifferenceCurve(nines=nines, base=base_at, difference=differences, low=low, high=high)


def _difference_at(
    base: Windows,
    candidate: Windows,
    q: float,
    confidence: float,
    in_system_s: tuple[float | None, float | None],
) -> tuple[float, float, float, float]:
    found = difference(
        base.quantile(q),
        candidate.quantile(q),
        quantile_limits(base, q, confidence, in_system_s=in_system_s[0])[0],
        quantile_limits(candidate, q, confidence, in_system_s=in_system_s[1])[0],
    )
    low, high = (math.nan if end is None else end for end in (found.low, found.high))
    return found.base, found.change, low, high


def ratio_change(base: float, candidate: float, of_base: Ends, of_candidate: Ends) -> Change:
    """Change of a positive statistic from its value and interval in each of two runs."""
    values = (math.log(base), math.log(candidate))
    low, high = _mover(values, _mapped(of_base, math.log), _mapped(of_candidate, math.log))
    return Change(
        base=base,
        candidate=candidate,
        change=candidate / base - 1,
        low=None if low is None else math.expm1(low),
        high=None if high is None else math.expm1(high),
        lacking="samples" if low is None and high is None else None,
    )


def difference(base: float, candidate: float, of_base: Ends, of_candidate: Ends) -> Change:
    """Difference of a statistic from its value and interval in each of two runs.

    Of two shares with Clopper and Pearson's bounds it is Newcombe's method 10 (Statistics in
    Medicine 17, 1998) with wider, exact limits.
    """
    low, high = _mover((base, candidate), of_base, of_candidate)
    return Change(
        base=base,
        candidate=candidate,
        change=candidate - base,
        low=low,
        high=high,
        lacking="samples" if low is None and high is None else None,
    )


def repeated_change(
    base: Sequence[float], candidate: Sequence[float], confidence: float, *, relative: bool = True
) -> Change:
    """Change of the mean over runs (`relative`: the geometric mean) from each run's statistic."""
    one, other = (np.asarray(values, dtype=np.float64) for values in (base, candidate))
    if relative:
        one, other = np.log(one), np.log(other)
    low, high = shift_interval(one, other, confidence)
    back = math.exp if relative else float
    means = back(float(one.mean())), back(float(other.mean()))
    ends = _mapped((low, high), math.expm1 if relative else float)
    return Change(
        base=means[0],
        candidate=means[1],
        change=means[1] / means[0] - 1 if relative else means[1] - means[0],
        low=ends[0],
        high=ends[1],
        lacking="runs" if low is None else None,
        runs=(len(one), len(other)),
        smallest_p=1 / math.comb(len(one) + len(other), len(one)),
    )


def shift_interval(base: FloatArray, candidate: FloatArray, confidence: float) -> Ends:
    """Bounds of a shift between two groups of runs, from all relabellings of the runs.

    The exact inversion of the permutation test of a difference of means (Pitman, Supplement to
    the Journal of the Royal Statistical Society 4, 1937): exchanging a set A of base runs for as
    many candidate runs B ties with what was seen at the shift mean(B) − mean(A). Three runs on
    each side have 20 labellings, so one-sided 5 % is the least that they can show; None where
    there are too few for `confidence`. Beyond some thousand labellings a random part is taken.
    """
    shifts = np.sort(_exchange_shifts(base, candidate))
    rank = math.floor((1 - confidence) * (len(shifts) + 1) + 1e-9)
    if rank < 1:
        return None, None
    return float(shifts[rank - 1]), float(shifts[-rank])


def paired_quantile_change(
    base: Windows, candidate: Windows, q: float, confidence: float
) -> Change | None:
    """Change of the q-quantile between interleaved blocks; window i of both is one pair of blocks.

    At a ratio θ, a limit x for the baseline and θx for the candidate is exceeded by the same share
    of both if θ is the true ratio. The interval is of all ratios at which a paired t test (pairs
    − 1 degrees of freedom) of the blocks' exceedances does not tell them apart: the quantile's
    influence values by block pair, linear in the counts and without an estimate of the density.
    None without samples on a side.
    """
    if not base.total or not candidate.total:
        return None
    at = _positive(base.quantile(q)), _positive(candidate.quantile(q))
    beyond = (1 - q) * min(base.total, candidate.total)
    lacking: Lacking | None = "samples" if beyond < FEWEST_BEYOND else None
    if min(len(base.n), len(candidate.n)) < FEWEST_BLOCKS:
        lacking = "blocks"
    low, high = (None, None) if lacking else _paired_ends(base, candidate, q, confidence)
    return Change(
        base=at[0],
        candidate=at[1],
        change=at[1] / at[0] - 1,
        low=low,
        high=high,
        lacking=lacking,
    )


def _paired_ends(base: Windows, candidate: Windows, q: float, confidence: float) -> Ends:
    centre = math.log(_positive(candidate.quantile(q)) / _positive(base.quantile(q)))
    critical = float(stdtrit(len(base.n) - 1, confidence))

    def t_at(log_ratio: float) -> float:
        return _paired_t(base, candidate, q, math.exp(log_ratio))

    ends: list[float | None] = []
    for side in (-1.0, 1.0):
        reach = 0.01
        while t_at(centre + side * reach) * -side < critical and reach < 5:
            reach *= 2
        if reach >= 5:
            ends.append(None)
            continue
        root = brentq(
            lambda x, s=side: t_at(x) * -s - critical, centre, centre + side * reach, xtol=1e-5
        )
        ends.append(math.expm1(root))
    return ends[0], ends[1]


def _paired_t(base: Windows, candidate: Windows, q: float, ratio: float) -> float:
    """Student's t of the block pairs' difference between the shares above x and above ratio·x.

    x is the q-quantile of both together once the candidate's values are divided by the ratio.
    """
    at = _joint_quantile(base, candidate, q, ratio)
    over = base.over(at), candidate.over(at * ratio)
    share = (over[0].sum() + over[1].sum()) / (base.total + candidate.total)
    excess = [
        (above - share * run.n) / run.n.mean()
        for above, run in zip(over, (base, candidate), strict=True)
    ]
    pairs = excess[1] - excess[0]
    error = float(pairs.std(ddof=1)) / math.sqrt(len(pairs))
    return float(pairs.mean()) / max(error, 1e-12)


def _joint_quantile(base: Windows, candidate: Windows, q: float, ratio: float) -> float:
    values = np.concatenate([base.value, candidate.value / ratio])
    order = np.argsort(values)
    ranks = np.cumsum(np.concatenate([base.count, candidate.count])[order])
    return float(values[order][np.searchsorted(ranks, math.ceil(q * ranks[-1]))])


def _exchange_shifts(base: FloatArray, candidate: FloatArray) -> FloatArray:
    """Shift at which each exchange of runs ties with what was seen; the identity left out."""
    runs, size = np.concatenate([base, candidate]), len(base)
    labelled = _labellings(len(runs), size)
    given, taken = ~labelled[:, :size], labelled[:, size:]
    exchanged = given.sum(axis=1)
    some = exchanged > 0
    gain = taken[some] @ runs[size:] - given[some] @ runs[:size]
    shifts: FloatArray = gain / exchanged[some]
    return shifts


def _labellings(runs: int, size: int) -> npt.NDArray[np.bool_]:
    """Ways to call `size` of the runs the baseline: all, or a random part of very many."""
    if math.comb(runs, size) <= _MOST_RELABELLINGS:
        chosen = np.array(list(combinations(range(runs), size)))
    else:
        shuffled = np.tile(np.arange(runs), (_MOST_RELABELLINGS, 1))
        chosen = np.random.default_rng(_SEED).permuted(shuffled, axis=1)[:, :size]
    labelled = np.zeros((len(chosen), runs), dtype=bool)
    np.put_along_axis(labelled, chosen, values=True, axis=1)
    return labelled


def _mover(values: tuple[float, float], of_base: Ends, of_candidate: Ends) -> Ends:
    """Ends of candidate − base from both values and their own ends."""
    (base, candidate), (base_low, base_high), (low, high) = values, of_base, of_candidate
    change = candidate - base
    return (
        None
        if low is None or base_high is None
        else change - math.hypot(candidate - low, base_high - base),
        None
        if high is None or base_low is None
        else change + math.hypot(high - candidate, base - base_low),
    )


def _joined(runs: Sequence[Windows]) -> Windows:
    """Return several runs as one; one run as it is, with what is known of it."""
    return runs[0] if len(runs) == 1 else Windows.concatenated(runs)


def _positive(value: float) -> float:
    """A time of 0 is one below the clock's step; on a log axis it counts as 1."""
    return max(float(value), 1.0)


def _mapped(ends: Ends, function: Callable[[float], float]) -> Ends:
    low, high = (None if end is None else function(end) for end in ends)
    return low, high
