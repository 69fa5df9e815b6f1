"""What one worker counts between two flushes: append on the hot path, histograms at the flush.

A request's samples are recorded together, when it ends, in the stage in which it was planned. One
`Report` covers one interval; reports of several workers for the same interval merge into one.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.recorder.histogram import Histogram, IntArray, unit_of

Key = tuple[str, str, str]  # stage, step, metric
Ends = tuple[int, int]  # the least and the most that a value can be
LEAST, MOST = ".least", ".most"
"""Behind a metric's name: its samples, each at the least or the most that it can be."""
RUN = "run"  # the name that stands for every root step together

_NO_ENDS: Mapping[str, Any] = {}

# Journeys kept per interval, stage and root step
_KEPT_RANDOM, _KEPT_SLOW, _KEPT_FAILED = 6, 20, 3
_SLOW_SHARE, _LEAST_SLOW, _MOST_SLOW = 0.02, 20, 2000


@dataclass(slots=True)
class Measured:
    """One (stage, step, metric) in one interval: a histogram, and exact counts over each limit.

    Where stamps stand for intervals, `least` and `most` are the same samples, each at the least and
    at the most that it can be; None where they are no other than these.
    """

    histogram: Histogram
    over: dict[int, int]
    least: Measured | None = None
    most: Measured | None = None

    def forms(self, metric: str) -> Iterator[tuple[str, Measured]]:
        """Yield what is saved of it, by the names that it is saved under."""
        yield metric, self
        if self.least is not None and self.most is not None:
            yield metric + LEAST, self.least
            yield metric + MOST, self.most


@dataclass(slots=True)
class Finished:
    """How the executions of one (stage, step) that ended in one interval came out.

    Of the others, `good` are those that surely met every per-request budget of the step, `unsure`
    those that may have: a stamp stands for an interval. Of the failed ones, `replaced` stand for a
    success of their journey that counts no more, and `replaced_good` for a good one: see
    `Recorder.replace`.
    """

    total: int = 0
    good: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    replaced: int = 0
    replaced_good: int = 0
    unsure: int = 0


@dataclass(slots=True)
class Load:
    """Arrivals of one stage in one interval; `in_flight` and `waiting` are the highest seen.

    Of `token_events`, `merged` came in one read with what followed: their stamps are the ends of
    intervals. Of the model's `replies` without an error, `streams` brought two token events or
    more, `lumped` of them all in one read; `empty` brought no token, `unfinished` gave no reason
    for their end.
    `raised` are the journeys that an exception of the scenario's own ended, `unsent` those of them
    that it ended before their first request; they are counted in `sent` too. `backed_off` are the
    rounds of closed users that a pause followed because they had failed.
    """

    planned: int = 0
    sent: int = 0
    finished: int = 0
    failed: int = 0
    dropped: int = 0
    cut_off: int = 0
    waited: int = 0
    in_flight: int = 0
    waiting: int = 0
    token_events: int = 0
    merged: int = 0
    raised: int = 0
    unsent: int = 0
    replies: int = 0
    streams: int = 0
    lumped: int = 0
    empty: int = 0
    unfinished: int = 0
    backed_off: int = 0


@dataclass(slots=True)
class Report:
    """Everything one worker, or all of them, saw in interval number `index`."""

    index: int
    measured: dict[Key, Measured] = field(default_factory=dict)
    finished: dict[tuple[str, str], Finished] = field(default_factory=dict)
    load: dict[str, Load] = field(default_factory=dict)
    cpu: float | None = None
    stall_ns: int = 0
    """The longest that the worker's event loop stood still; `gc_ns` its longest collection."""
    gc_ns: int = 0
    journeys: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What must be counted exactly while samples are still samples.

    `thresholds[step, metric]` are the largest values that still meet a budget; `good(stage, step)`
    gives the largest value of each per-request metric that a good request may have.
    """

    thresholds: Mapping[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    good: Callable[[str, str], Mapping[str, int]] = lambda stage, step: {}  # noqa: ARG005

    def of(self, step: str, metric: str) -> tuple[int, ...]:
        """Return the thresholds that apply to a step, those of `run` included for a root step."""
        own = self.thresholds.get((step, metric), ())
        if "/" in step:
            return own
        return tuple(sorted({*own, *self.thresholds.get((RUN, metric), ())}))


class _Slowest:
    """The slowest of the durations so far: 2 % of them, and at least 20, at most 2,000."""

    __slots__ = ("_seen", "_top")

    def __init__(self) -> None:
        self._seen = 0
        self._top: list[int] = []

    def include(self, duration_ns: int) -> bool:
        """Take a duration in; returns whether it is one of the slowest."""
        self._seen += 1
        size = min(_MOST_SLOW, max(_LEAST_SLOW, int(self._seen * _SLOW_SHARE)))
        if len(self._top) < size:
            heapq.heappush(self._top, duration_ns)
            return True
        return heapq.heappushpop(self._top, duration_ns) < duration_ns


class Recorder:
    """Collects one worker's samples; `flush` turns them into the report of the interval."""

    def __init__(self, limits: Limits, *, seed: int = 0) -> None:
        self._limits = limits
        self._good: dict[tuple[str, str], Mapping[str, int]] = {}
        self._rng = np.random.default_rng(seed)
        self._samples: dict[Key, list[int]] = defaultdict(list)
        self._ends: dict[Key, list[tuple[int, int, int]]] = defaultdict(list)  # place, least, most
        self._finished: dict[tuple[str, str], Finished] = defaultdict(Finished)
        self._load: dict[str, Load] = defaultdict(Load)
        self._journeys: list[dict[str, Any]] = []
        self._slowest: dict[tuple[str, str], _Slowest] = defaultdict(_Slowest)

    def request(
        self,
        stage: str,
        step: str,
        values: Mapping[str, int],
        *,
        ends: Mapping[str, Ends] = _NO_ENDS,
        series: Mapping[str, Sequence[int]] | None = None,
        series_ends: Mapping[str, Sequence[Ends]] = _NO_ENDS,
        failure: str | None = None,
    ) -> None:
        """Record the end of one execution of a step.

        `values` maps metrics to ns (or tokens), `series` metrics with many samples (`itl`); `ends`
        and `series_ends` have the least and the most of those whose stamp stands for an interval. A
        failed execution is counted by its kind; its `values` must hold no success metric.
        """
        samples = self._samples
        for metric, value in values.items():
            samples[stage, step, metric].append(value)
        for metric, (least, most) in ends.items():
            key = (stage, step, metric)
            self._ends[key].append((len(samples[key]) - 1, least, most))
        for metric, many in (series or {}).items():
            key = (stage, step, metric)
            if metric in series_ends:
                first = len(samples[key])
                self._ends[key] += [(first + i, *e) for i, e in enumerate(series_ends[metric])]
            samples[key].extend(many)
        outcome = self._finished[stage, step]
        outcome.total += 1
        if failure is not None:
            outcome.kinds[failure] += 1
        elif self._is_good(stage, step, _at_end(values, ends, 1)):
            outcome.good += 1
        elif ends and self._is_good(stage, step, _at_end(values, ends, 0)):
            outcome.unsure += 1

    def replace(self, stage: str, step: str, success: str, values: Mapping[str, int]) -> None:
        """Let the failure just recorded for `step` stand for a success, which it made worthless.

        A journey that fails after its root step `success` ended, with these values, has failed
        once: among the root steps together (`run`) the success counts no more.
        """
        outcome = self._finished[stage, step]
        outcome.replaced += 1
        outcome.replaced_good += self._is_good(stage, success, values)

    def add(self, stage: str, step: str, metric: str, value: int) -> None:
        """Record one sample of a metric that is no execution of the step in itself."""
        self._samples[stage, step, metric].append(value)

    def load(self, stage: str) -> Load:
        """Return the running counters of a stage's arrivals in the current interval."""
        return self._load[stage]

    def journey(self, journey: dict[str, Any]) -> None:
        """Offer a finished journey; a bounded number an interval is kept (slow, random, failed)."""
        self._journeys.append(journey)

    def flush(
        self,
        index: int,
        *,
        cpu: float | None = None,
        stall_ns: int = 0,
        gc_ns: int = 0,
        between: Callable[[], object] = lambda: None,
    ) -> Report:
        """Return the report of interval `index`, with the worker's vitals, and begin the next.

        What is recorded from now on is the next one's, so that others may have a turn `between`
        two metrics.
        """
        samples, self._samples = self._samples, defaultdict(list)
        ends, self._ends = self._ends, defaultdict(list)
        finished, self._finished = self._finished, defaultdict(Finished)
        load, self._load = self._load, defaultdict(Load)
        journeys, self._journeys = self._journeys, []
        measured = {}
        for key, values in samples.items():
            measured[key] = self._measure(key, values, ends.get(key, ()))
            between()
        return Report(
            index=index,
            measured=measured,
            finished=dict(finished),
            load=dict(load),
            cpu=cpu,
            stall_ns=stall_ns,
            gc_ns=gc_ns,
            journeys=self._keep(journeys),
        )

    def _is_good(self, stage: str, step: str, values: Mapping[str, int]) -> bool:
        """Tell whether a success met every per-request budget; what it has not cannot break one."""
        where = (stage, step)
        limits = self._good.get(where)
        if limits is None:
            limits = self._good[where] = self._limits.good(stage, step)
        return all(values.get(metric, 0) <= top for metric, top in limits.items())

    def _measure(
        self, key: Key, values: list[int], ends: Sequence[tuple[int, int, int]]
    ) -> Measured:
        array = np.asarray(values, dtype=np.int64)
        measured = self._count(key, array)
        if ends:
            place, least, most = np.asarray(ends, dtype=np.int64).T
            measured.least, measured.most = (
                self._count(key, _with(array, place, end)) for end in (least, most)
            )
        return measured

    def _count(self, key: Key, array: IntArray) -> Measured:
        _, step, metric = key
        over = {top: int((array > top).sum()) for top in self._limits.of(step, metric)}
        return Measured(Histogram.of(array, unit_of(metric)), over)

    def _keep(self, journeys: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Choose, per stage and root step, the slowest, some failed and a random few."""
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for journey in journeys:
            groups[journey["stage"], journey["root"]].append(journey)
        kept = []
        for where, group in groups.items():
            slowest = self._slowest[where]
            order = self._rng.permutation(len(group))[:_KEPT_RANDOM]
            kept += [{**group[i], "kept": "random"} for i in order]
            chosen = set(order.tolist())
            rest = [j for i, j in enumerate(group) if i not in chosen]
            failed = [j for j in rest if not j["ok"]]
            slow = [j for j in rest if j["ok"] and slowest.include(j["duration_ns"])]
            slow.sort(key=lambda j: -j["duration_ns"])
            kept += [{**j, "kept": "failed"} for j in failed[:_KEPT_FAILED]]
            kept += [{**j, "kept": "slow"} for j in slow[:_KEPT_SLOW]]
        return kept


def merge_reports(reports: Iterable[Report]) -> Report:
    """Return the one report that all workers' reports of the same interval amount to.

    Counts add, histograms merge; `in_flight` and `waiting` add too, being of different workers, and
    `cpu`, `stall_ns` and `gc_ns` are those of the worker that had the most.
    """
    first, *others = reports
    merged = Report(first.index, cpu=first.cpu, journeys=list(first.journeys))
    for report in (first, *others):
        for key, measured in report.measured.items():
            merged.measured[key] = _join(merged.measured.get(key), measured)
        for where, outcome in report.finished.items():
            into = merged.finished.setdefault(where, Finished())
            into.total += outcome.total
            into.good += outcome.good
            into.kinds += outcome.kinds
            into.replaced += outcome.replaced
            into.replaced_good += outcome.replaced_good
            into.unsure += outcome.unsure
        merged.stall_ns = max(merged.stall_ns, report.stall_ns)
        merged.gc_ns = max(merged.gc_ns, report.gc_ns)
        for stage, load in report.load.items():
            merged.load[stage] = _add_loads(merged.load.get(stage, Load()), load)
    for report in others:
        merged.journeys += report.journeys
        if report.cpu is not None:
            merged.cpu = max(report.cpu, merged.cpu or 0.0)
    return merged


def _join(one: Measured | None, other: Measured) -> Measured:
    if one is None:
        return other
    histogram = Histogram.merged((one.histogram, other.histogram), other.histogram.unit)
    joined = Measured(histogram, {top: k + other.over.get(top, 0) for top, k in one.over.items()})
    if one.least or other.least:
        joined.least = _join(one.least or _bare(one), other.least or _bare(other))
        joined.most = _join(one.most or _bare(one), other.most or _bare(other))
    return joined


def _bare(measured: Measured) -> Measured:
    return Measured(measured.histogram, measured.over)


def _at_end(values: Mapping[str, int], ends: Mapping[str, Ends], which: int) -> Mapping[str, int]:
    """Return the values, each at the least (0) or the most (1) that it can be."""
    return {**values, **{metric: both[which] for metric, both in ends.items()}} if ends else values


def _with(array: IntArray, place: IntArray, values: IntArray) -> IntArray:
    """Return the array with other values in some places."""
    changed = array.copy()
    changed[place] = values
    return changed


def _add_loads(one: Load, other: Load) -> Load:
    return Load(*(getattr(one, name) + getattr(other, name) for name in Load.__slots__))
