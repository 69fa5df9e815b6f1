"""What was measured of one step by interval: exact figures as columns, histograms decoded late."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from harness.errors import RecordingError
from harness.recorder.histogram import Histogram, IntArray, decode_cells, highest_values

FloatArray = npt.NDArray[np.float64]
_NOTHING: IntArray = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False, kw_only=True)
class Figures:
    """Exact figures of one metric, an entry for each line that was written, and its histograms.

    `index` is the line's interval. `over` has, by limit, how many of its samples were above it, for
    each limit that was declared in all of the run.
    """

    index: IntArray
    n: IntArray
    min: IntArray
    max: IntArray
    sum: IntArray
    clamped: IntArray
    over: Mapping[int, IntArray]
    encoded: Sequence[str]

    def with_lines(self, other: Figures) -> Figures:
        """Return these figures with the lines of `other` in place of their own.

        A line's own is of the same interval and of as many samples.
        """
        places: dict[tuple[int, int], list[int]] = defaultdict(list)
        for at, where in enumerate(zip(self.index.tolist(), self.n.tolist(), strict=True)):
            places[where].append(at)
        wanted = zip(other.index.tolist(), other.n.tolist(), strict=True)
        found = [places[where].pop(0) if places[where] else -1 for where in wanted]
        theirs = np.flatnonzero(np.array(found, dtype=np.int64) >= 0)
        ours = np.array(found, dtype=np.int64)[theirs]
        encoded = [*self.encoded]
        for one, at in zip(theirs.tolist(), ours.tolist(), strict=True):
            encoded[at] = other.encoded[one]

        def changed(mine: IntArray, others: IntArray) -> IntArray:
            column = mine.copy()
            column[ours] = others[theirs]
            return column

        return Figures(
            index=self.index,
            n=self.n,
            min=changed(self.min, other.min),
            max=changed(self.max, other.max),
            sum=changed(self.sum, other.sum),
            clamped=changed(self.clamped, other.clamped),
            over={top: changed(self.over[top], k) for top, k in other.over.items()},
            encoded=encoded,
        )

    @cached_property
    def cells(self) -> tuple[IntArray, IntArray, IntArray]:
        """The line, the bucket and the count of each occupied bucket, ascending by line.

        Raises RecordingError when a histogram is damaged, or holds other than its `n` samples.
        """
        line, bucket, count = decode_cells(self.encoded)
        held = np.bincount(line, weights=count, minlength=len(self.n))
        wrong = np.flatnonzero(held != self.n)
        if len(wrong):
            raise RecordingError(
                f"the histogram of interval {self.index[wrong[0]]} holds {held[wrong[0]]:.0f} "
                f"samples, its record says {self.n[wrong[0]]}"
            )
        return line, bucket, count


@dataclass(frozen=True, slots=True)
class Cells:
    """Occupied histogram buckets: `count` samples in `bucket`, in the series' n-th `interval`.

    Ascending by bucket. `highest` is the largest value that counts in the bucket, in the metric's
    own unit.
    """

    interval: IntArray
    bucket: IntArray
    count: IntArray
    highest: IntArray


class Series:
    """One metric of one step in one stage, by interval; or of several steps together."""

    def __init__(self, interval_s: float, unit: int, parts: Sequence[Figures]) -> None:
        self._unit = unit
        self._parts = parts
        self._by_interval = ByInterval.of([part.index for part in parts])
        self.index = self._by_interval.index
        self.t_s: FloatArray = self.index.astype(np.float64) * interval_s
        self.n = self._by_interval.reduced(np.add, [part.n for part in parts])
        self.sum = self._by_interval.reduced(np.add, [part.sum for part in parts])

    def over(self, threshold: int) -> IntArray | None:
        """Return how many samples of each interval were above `threshold`, exactly; None when that
        threshold was not declared when the run was recorded."""
        if not all(threshold in part.over for part in self._parts):
            return None
        return self._by_interval.reduced(np.add, [part.over[threshold] for part in self._parts])

    @cached_property
    def cells(self) -> Cells:
        """The occupied buckets of every interval; RecordingError when a histogram is damaged."""
        sizes = [len(part.index) for part in self._parts]
        before = np.cumsum([0, *sizes[:-1]])  # lines of the parts before each
        line, bucket, count = (
            np.concatenate(column)
            for column in zip(*(part.cells for part in self._parts), strict=True)
        )
        line += np.repeat(before, [len(part.cells[0]) for part in self._parts])
        order = np.argsort(bucket.astype(np.uint16), kind="stable")  # of 16 bits it is a radix sort
        interval, bucket = self._by_interval.of_line[line][order], bucket[order]
        return Cells(interval, bucket, count[order], highest_values(bucket, self._unit))

    def histograms(self) -> list[Histogram]:
        """Return one histogram per interval, in the order of `t_s`."""
        order = np.argsort(self.cells.interval, kind="stable")
        ends = np.searchsorted(self.cells.interval[order], np.arange(len(self.n) + 1))
        return [
            self._histogram(slice(i, i + 1), order[start:end])
            for i, (start, end) in enumerate(pairwise(ends))
        ]

    def histogram(self, mask: npt.NDArray[np.bool_]) -> Histogram:
        """Return the histogram of the intervals where `mask` is true."""
        return self._histogram(mask, mask[self.cells.interval])

    @cached_property
    def total(self) -> Histogram:
        """The histogram of all intervals together."""
        return self._histogram(slice(None), slice(None))

    @cached_property
    def _min(self) -> IntArray:
        return self._by_interval.reduced(np.minimum, [part.min for part in self._parts])

    @cached_property
    def _max(self) -> IntArray:
        return self._by_interval.reduced(np.maximum, [part.max for part in self._parts])

    @cached_property
    def _clamped(self) -> IntArray:
        return self._by_interval.reduced(np.add, [part.clamped for part in self._parts])

    def _histogram(
        self,
        intervals: slice | npt.NDArray[np.bool_],
        cells: slice | IntArray | npt.NDArray[np.bool_],
    ) -> Histogram:
        """Return the histogram of these intervals, of which these are the cells."""
        if not len(self.n[intervals]):
            return Histogram.empty(self._unit)
        dense = np.bincount(self.cells.bucket[cells], weights=self.cells.count[cells])
        buckets = np.flatnonzero(dense)
        return Histogram(
            indices=buckets,
            counts=dense[buckets].astype(np.int64),
            n=int(self.n[intervals].sum()),
            min=int(self._min[intervals].min()),
            max=int(self._max[intervals].max()),
            sum=int(self.sum[intervals].sum()),
            clamped=int(self._clamped[intervals].sum()),
            unit=self._unit,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Endings:
    """How executions of one step ended, an entry for each line that was written."""

    index: IntArray
    total: IntArray
    failed: IntArray
    good: IntArray
    replaced: IntArray
    replaced_good: IntArray
    unsure: IntArray
    kinds: Sequence[tuple[int, dict[str, int]]]
    """Failures by kind with their interval, of lines that had some."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Executions of one step in one stage, per interval in which they ended."""

    index: IntArray
    t_s: FloatArray
    total: IntArray
    failed: IntArray
    good: IntArray
    unsure: IntArray
    """Those that may be good too: a stamp stands for an interval."""
    _kinds: tuple[tuple[float, dict[str, int]], ...]
    """Failures by kind, and when their interval began; ascending, without those that had none."""

    @classmethod
    def of(cls, interval_s: float, parts: Sequence[Endings]) -> Requests:
        """Add up the executions of several steps.

        A failure that stands for a success of its journey takes it away, of its own interval if
        there is one: the success may have ended in an earlier one.
        """
        by_interval = ByInterval.of([part.index for part in parts])
        total, failed, good, replaced, replaced_good, unsure = (
            by_interval.reduced(np.add, [getattr(part, name) for part in parts])
            for name in ("total", "failed", "good", "replaced", "replaced_good", "unsure")
        )
        total = np.maximum(total - replaced, failed)
        good = np.clip(good - replaced_good, 0, total - failed)
        kinds = [(index * interval_s, kinds) for part in parts for index, kinds in part.kinds]
        return cls(
            index=by_interval.index,
            t_s=by_interval.index.astype(np.float64) * interval_s,
            total=total,
            failed=failed,
            good=good,
            unsure=np.minimum(unsure, total - failed - good),
            _kinds=tuple(sorted(kinds, key=lambda one: one[0])),
        )

    @property
    def n(self) -> int:
        """All executions."""
        return int(self.total.sum())

    @property
    def n_failed(self) -> int:
        """Failed executions, of every kind."""
        return int(self.failed.sum())

    @property
    def n_good(self) -> int:
        """Executions that met every per-request latency budget of their step."""
        return int(self.good.sum())

    @property
    def kinds(self) -> dict[str, int]:
        """Failures by kind, most frequent first."""
        total: Counter[str] = Counter()
        for _, kinds in self._kinds:
            total.update(kinds)
        return dict(total.most_common())

    def kinds_since(self, t_s: float) -> dict[str, int]:
        """Failures by kind of the intervals that began at a time or later, seconds."""
        total: Counter[str] = Counter()
        for at_s, kinds in self._kinds:
            if at_s >= t_s - 1e-9:
                total.update(kinds)
        return dict(total)

    def failed_by(self, counts: Callable[[str], bool]) -> IntArray:
        """Failures of each interval whose kind counts."""
        failed = np.zeros_like(self.total)
        for at_s, kinds in self._kinds:
            at = np.searchsorted(self.t_s, at_s)
            failed[at] += sum(n for kind, n in kinds.items() if counts(kind))
        return failed

    @property
    def first_seen(self) -> dict[str, float]:
        """Start of the interval in which each kind of failure came first, seconds."""
        seen: dict[str, float] = {}
        for t_s, kinds in self._kinds:
            for kind in kinds:
                seen.setdefault(kind, t_s)
        return seen


@dataclass(frozen=True, slots=True)
class ByInterval:
    """Which lines, of one step or several one after another, belong to the same interval.

    `index` are the intervals, ascending, and `of_line` says which of them each line belongs to.
    """

    index: IntArray
    of_line: IntArray
    _order: IntArray
    _starts: IntArray

    @classmethod
    def of(cls, indices: Sequence[IntArray]) -> ByInterval:
        """Group the lines of several parts by the intervals that they are of."""
        lines = np.concatenate([_NOTHING, *indices])
        order = np.argsort(lines, kind="stable")
        first = np.diff(lines[order], prepend=-1) > 0
        of_line = np.empty_like(order)
        of_line[order] = np.cumsum(first) - 1
        return cls(lines[order][first], of_line, order, np.flatnonzero(first))

    def reduced(self, add: np.ufunc, parts: Sequence[IntArray]) -> IntArray:
        """Return what `add` makes of each interval's values, given line by line of all parts."""
        values: IntArray = add.reduceat(
            np.concatenate([_NOTHING, *parts])[self._order], self._starts
        )
        return values
