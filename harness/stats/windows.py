"""Samples by window of time, exact to an HDR bucket: what the statistics see of a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_SUB_BUCKET_BITS = 11  # HDR with three digits: 2 048 values stand alone, then every 2nd, 4th, …


@dataclass(frozen=True, eq=False, kw_only=True)
class Windows:
    """Samples of one metric, counted in windows of equal length and in time order.

    `n[i]` samples ended in window i (0 is allowed). Cell j says that `count[j]` of the samples of
    window `window[j]` lie in the HDR bucket whose highest equivalent value is `value[j]`, in the
    metric's own unit (ns or tokens). Cells may stand in any order.
    """

    length_s: float
    n: IntArray
    window: IntArray
    value: IntArray
    count: IntArray

    @classmethod
    def of(
        cls,
        times_s: npt.ArrayLike,
        values: npt.ArrayLike,
        length_s: float,
        duration_s: float,
        *,
        unit: int = 1_000,
        exact: bool = False,
    ) -> Self:
        """Count samples that ended at `times_s` (from 0 on) in windows of `length_s`.

        Values are rounded as an HDR histogram of three digits does, in steps of `unit` (1 000 for
        times in ns, 1 for tokens), or kept when `exact`. There are at least the windows of
        `duration_s`, and more where samples ended later.
        """
        own = np.asarray(values).astype(np.int64)
        value = own if exact else _highest_equivalent(own // unit) * unit + (unit - 1)
        window = (np.asarray(times_s, dtype=np.float64) / length_s).astype(np.int64)
        size = max(round(duration_s / length_s), int(window.max(initial=-1)) + 1, 1)
        cells, count = np.unique(value * size + window, return_counts=True)
        return cls(
            length_s=length_s,
            n=np.bincount(window, minlength=size),
            window=cells % size,
            value=cells // size,
            count=count,
        )

    @classmethod
    def counted(cls, n: npt.ArrayLike, length_s: float) -> Self:
        """Return windows of so many samples each, without their values."""
        nothing = np.zeros(0, dtype=np.int64)
        sizes = np.asarray(n).astype(np.int64)
        return cls(length_s=length_s, n=sizes, window=nothing, value=nothing, count=nothing)

    @classmethod
    def concatenated(cls, parts: Sequence[Windows]) -> Self:
        """Put windows of the same length one after another: several runs as one."""
        starts = np.cumsum([0] + [len(part.n) for part in parts])
        return cls(
            length_s=parts[0].length_s,
            n=np.concatenate([part.n for part in parts]),
            window=np.concatenate(
                [part.window + start for part, start in zip(parts, starts, strict=False)]
            ),
            value=np.concatenate([part.value for part in parts]),
            count=np.concatenate([part.count for part in parts]),
        )

    def __len__(self) -> int:
        """Return how many windows there are."""
        return len(self.n)

    @cached_property
    def total(self) -> int:
        """Return the number of samples."""
        return int(self.n.sum())

    @property
    def duration_s(self) -> float:
        """Return the time that all windows span."""
        return len(self.n) * self.length_s

    def over(self, value: float) -> IntArray:
        """Return how many samples of each window lie in buckets above `value`."""
        window, values, count = self._by_value
        first = int(np.searchsorted(values, value, side="right"))
        return _summed(count[first:], window[first:], len(self.n))

    def at_rank(self, rank: int | None) -> int | None:
        """Return the bucket of the `rank`-th smallest sample; None outside 1…n, and for None."""
        if rank is None or not 1 <= rank <= self.total:
            return None
        return int(self._by_value[1][np.searchsorted(self._cumulative, rank)])

    def at_or_above(self, value: float) -> float:
        """Return the highest value of the bucket that may hold `value`; itself if none has samples.

        A bucket is no wider than a 1,024th of what it holds, or than a unit, 1 µs for times.
        """
        _, values, _ = self._by_value
        first = int(np.searchsorted(values, value, side="left"))
        if first == len(values):
            return value
        highest = float(values[first])
        return highest if highest - value <= max(1000.0, highest / 1024) else value

    def quantile(self, q: float) -> int:
        """Return the bucket of rank ⌈q·n⌉; ValueError without samples."""
        found = self.at_rank(max(1, math.ceil(round(q * self.total, 6))))
        if found is None:
            raise ValueError("no samples, no quantile")
        return found

    def quantile_ends(
        self, rank_low: int | None, rank_high: int | None
    ) -> tuple[int | None, int | None]:
        """Return the values of two ranks (1-based, ascending); None for a rank that is None."""
        return self.at_rank(rank_low), self.at_rank(rank_high)

    def log_sums(self) -> FloatArray:
        """Return the sum of ln(value) of each window, a value of 0 taken as 1."""
        logs = np.log(np.maximum(self.value, 1)) * self.count
        return np.bincount(self.window, weights=logs, minlength=len(self.n)).astype(np.float64)

    def threshold(self, share: float, *, upper: bool = True) -> int | None:
        """Return the bucket edge that cuts off at most `share` of all samples, but at least one.

        `upper` cuts off the samples above it, else those at or below it. None where no edge does,
        all samples being in one bucket.
        """
        values, upto = self._levels
        if len(values) < 2:
            return None
        wanted = share * self.total + 1e-9
        if upper:
            first = int(np.searchsorted(upto, self.total - wanted))
            return int(values[min(first, len(values) - 2)])
        return int(values[max(int(np.searchsorted(upto, wanted, side="right")) - 1, 0)])

    def between(self, start: int, end: int) -> Windows:
        """Return the windows from `start` up to, without, `end`."""
        inside = (self.window >= start) & (self.window < end)
        return Windows(
            length_s=self.length_s,
            n=self.n[start:end],
            window=self.window[inside] - start,
            value=self.value[inside],
            count=self.count[inside],
        )

    def joined(self, k: int) -> Windows:
        """Return the windows merged k by k; those left over join the last."""
        last = max(len(self.n) // k, 1) - 1
        return self.grouped(np.minimum(np.arange(len(self.n)) // k, last), self.length_s * k)

    def grouped(self, group: IntArray, length_s: float) -> Windows:
        """Return windows of `length_s` in which each window has become part of its `group`."""
        return Windows(
            length_s=length_s,
            n=_summed(self.n, group, int(group[-1]) + 1),
            window=group[self.window],
            value=self.value,
            count=self.count,
        )

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """Hold what was computed from these windows and does not depend on a limit."""
        return {}

    @cached_property
    def _by_value(self) -> tuple[IntArray, IntArray, IntArray]:
        order = np.argsort(self.value, kind="stable")
        return self.window[order], self.value[order], self.count[order]

    @cached_property
    def _cumulative(self) -> IntArray:
        return np.cumsum(self._by_value[2])

    @cached_property
    def _levels(self) -> tuple[IntArray, IntArray]:
        """Hold each value that occurs, ascending, and how many samples are at or below it."""
        values = self._by_value[1]
        last = np.flatnonzero(np.diff(values, append=values[-1:] + 1))
        return values[last], self._cumulative[last]


def _summed(counts: IntArray, group: IntArray, size: int) -> IntArray:
    return np.bincount(group, weights=counts, minlength=size).astype(np.int64)


def _highest_equivalent(units: IntArray) -> IntArray:
    """Return the largest value that an HDR histogram of three digits does not tell apart."""
    _, bits = np.frexp(np.maximum(units, 1).astype(np.float64))
    shift = np.maximum(bits.astype(np.int64) - _SUB_BUCKET_BITS, 0)
    highest: IntArray = (((units >> shift) + 1) << shift) - 1
    return highest
