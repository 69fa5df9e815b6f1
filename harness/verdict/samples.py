"""One stage of a run, all repetitions of it, by window: what budgets and comparisons judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from harness import stats
from harness.budget import Budget
from harness.recorder import LEAST, MOST, Recording, Requests, Series, StageWindow
from harness.stats import MeanEvidence, ShareEvidence, Windows
from harness.stats.recorded import TIMES_IN_SYSTEM, by_window, windows_of
from harness.stats.windows import FloatArray, IntArray


class Sums(NamedTuple):
    """Sums and counts by window of one run, or of several one after another (`joined`)."""

    sums: FloatArray
    counts: FloatArray
    length_s: float


def joined(runs: Sequence[Sums]) -> tuple[Sums, tuple[int, ...]]:
    """Put several runs one after another; returns how many windows each has, too."""
    sums, counts, length_s = zip(*runs, strict=True)
    whole = Sums(np.concatenate(sums), np.concatenate(counts), length_s[0])
    return whole, tuple(len(one) for one in sums)


def mean_of(runs: Sequence[Sums], confidence: float) -> MeanEvidence | None:
    """Bound the true Σ sums ÷ Σ counts; None of too few windows."""
    whole, sizes = joined(runs)
    return stats.mean_evidence(
        whole.sums, whole.counts, confidence, length_s=whole.length_s, runs=sizes
    )


def share_of(runs: Sequence[Sums], allowed: float, confidence: float) -> ShareEvidence:
    """Judge the true share of Σ counts that are in Σ sums against the allowed one."""
    whole, sizes = joined(runs)
    k, n = (counts.astype(np.int64) for counts in whole[:2])
    return stats.share_evidence(n, k, allowed, confidence, length_s=whole.length_s, runs=sizes)


class Repetitions:
    """All repetitions of the stage that was declared as `group`; none where it was not recorded.

    At the `end` LEAST or MOST, every sample whose stamp stands for an interval is taken for the
    least or the most that it can be.
    """

    def __init__(self, recording: Recording, group: str, end: str = "") -> None:
        self.recording = recording
        self.group = group
        self.end = end
        self.stages = tuple(s for s in recording.repetitions(group) if s.record)

    @property
    def seconds(self) -> float:
        """How long all repetitions last together."""
        return sum(stage.end_s - stage.start_s for stage in self.stages)

    def series(self, step: str, metric: str) -> list[tuple[StageWindow, Series]]:
        """Return the repetitions that have samples of a metric."""
        series = self.recording.series
        found = ((s, series(s.name, step, metric, self.end)) for s in self.stages)
        return [(stage, series) for stage, series in found if series is not None]

    def windows(self, step: str, metric: str) -> list[Windows]:
        """Return a metric's samples, one for each repetition that has some."""
        return [
            windows_of(self.recording, series, stage) for stage, series in self.series(step, metric)
        ]

    def sums(self, step: str, metric: str) -> list[Sums]:
        """Return the sums and counts of a metric's samples, as `windows`."""
        return [
            self._sums(stage, series.index, series.sum, series.n)
            for stage, series in self.series(step, metric)
        ]

    def requests(self, step: str) -> list[tuple[StageWindow, Requests]]:
        """Return how a step's executions ended, of the repetitions that have some."""
        every = ((stage, self.recording.requests(stage.name, step)) for stage in self.stages)
        return [(stage, requests) for stage, requests in every if requests.n]

    def bad(self, step: str, metric: str) -> list[Sums]:
        """Return the bad and all requests, as `requests`; bad by an `error_rate` or a `goodput`."""
        return [
            self._sums(stage, requests.index, self._bad(requests, metric), requests.total)
            for stage, requests in self.requests(step)
        ]

    def _bad(self, requests: Requests, metric: str) -> IntArray:
        if metric != "goodput":
            return requests.failed
        bad = requests.total - requests.good
        return bad - requests.unsure if self.end == LEAST else bad

    def is_unsure(self, step: str, metric: str) -> bool:
        """Whether a metric has samples whose stamp stands for an interval."""
        if metric == "goodput":
            return any(bool(requests.unsure.any()) for _, requests in self.requests(step))
        return any(self.recording.has_ends(stage.name, step, metric) for stage in self.stages)

    def ends(self) -> tuple[Repetitions, Repetitions]:
        """Return the same with every sample at the least, and at the most, that it can be."""
        least, most = (Repetitions(self.recording, self.group, end) for end in (LEAST, MOST))
        return least, most

    def failures(self, step: str, counts: Callable[[str], bool]) -> list[Sums]:
        """Return the failures whose kind counts, and all requests, as `requests`."""
        return [
            self._sums(stage, requests.index, requests.failed_by(counts), requests.total)
            for stage, requests in self.requests(step)
        ]

    def done(self, step: str) -> list[Sums]:
        """Return the successes per second, and ones, by window to the end of each repetition."""
        rows, length_s = [], self.recording.interval_s
        for stage in self.stages:
            requests = self.recording.requests(stage.name, step)
            every = by_window(requests.total - requests.failed, requests.index, stage, length_s)
            done = every[: max(1, round((stage.end_s - stage.start_s) / length_s))]
            rows.append(Sums(done / length_s, np.ones(len(done)), length_s))
        return rows

    def count(self, step: str, metric: str) -> int:
        """Count the samples of a metric; of a share or rate, the requests."""
        found = self.series(step, metric)
        if found:
            return sum(int(series.n.sum()) for _, series in found)
        return sum(requests.n for _, requests in self.requests(step))

    def in_system_s(self, step: str) -> float | None:
        """Return the p99 of a request's whole time in the system, s; None where nothing tells."""
        for metric in TIMES_IN_SYSTEM:
            found = self.series(step, metric)
            if found:
                return max(series.total.quantile(0.99) or 0 for _, series in found) / 1e9
        return None

    def samples(self, budget: Budget) -> Samples | None:
        """Return the samples that a budget is judged on; None when there are none."""
        found = self.series(budget.step, budget.metric)
        return Samples(self, budget, found) if found else None

    def _sums(self, stage: StageWindow, index: IntArray, sums: IntArray, counts: IntArray) -> Sums:
        length_s = self.recording.interval_s
        dense = [by_window(one, index, stage, length_s) for one in (sums, counts)]
        return Sums(dense[0].astype(np.float64), dense[1].astype(np.float64), length_s)


@dataclass(frozen=True)
class Samples:
    """The samples of one budget, by window; `found` are the repetitions that have some."""

    of: Repetitions
    budget: Budget
    found: Sequence[tuple[StageWindow, Series]]

    @cached_property
    def windows(self) -> Windows:
        """All repetitions, one after another."""
        parts = self.of.windows(self.budget.step, self.budget.metric)
        return parts[0] if len(parts) == 1 else Windows.concatenated(parts)

    @cached_property
    def runs(self) -> tuple[int, ...]:
        """How many windows each repetition has."""
        return tuple(map(len, self.of.windows(self.budget.step, self.budget.metric)))

    @property
    def largest(self) -> int:
        """The largest sample."""
        return max(series.total.max or 0 for _, series in self.found)

    @property
    def in_system_s(self) -> float | None:
        """The p99 of a request's whole time in the system, s; None where nothing tells."""
        return self.of.in_system_s(self.budget.step)

    @cached_property
    def beyond(self) -> tuple[IntArray, IntArray]:
        """The fewest and the most samples of each window that can be beyond the limit.

        Beyond a lower limit is under it. Both are the same array where the limit was declared when
        the run was recorded: the samples were then counted, else buckets are, and one of them may
        hold the limit.
        """
        top, windows, n = self.budget.threshold, self.windows, self.windows.n
        counted = [series.over(top) for _, series in self.found]
        exact = [over for over in counted if over is not None]
        if len(exact) == len(counted):
            parts = zip(exact, self.found, strict=True)
            dense = [by_window(k, of.index, stage, windows.length_s) for k, (stage, of) in parts]
            over = np.concatenate(dense)
            beyond = over if self.budget.upper else n - over
            return beyond, beyond
        most, fewest = windows.over(top), windows.over(windows.at_or_above(top))
        return (fewest, most) if self.budget.upper else (n - most, n - fewest)

    @property
    def far_beyond(self) -> bool:
        """Whether every sample misses the budget's limit by a factor of two or more."""
        if self.budget.upper:
            return bool((self.windows.value >= 2 * self.budget.limit).all())
        return self.largest <= self.budget.limit / 2

    @property
    def quantile(self) -> int | None:
        """The sample's own quantile; None where it has too few samples to have one."""
        assert self.budget.quantile is not None
        if not stats.supported(self.windows.total, self.budget.quantile):
            return None
        return min(self.windows.quantile(self.budget.quantile), self.largest)
