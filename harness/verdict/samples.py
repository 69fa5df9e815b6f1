"""The samples that a budget is judged on: one stage, or all repetitions of it, by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness import stats
from harness.budget import Budget
from harness.recorder import Recording, Series, StageWindow
from harness.stats import Windows
from harness.stats.recorded import TIMES_IN_SYSTEM, by_window, windows_of
from harness.stats.windows import IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples of one metric by window; `runs` says how many windows each repetition has.

    `fewest` and `most` bound how many samples of each window are over the budget's limit. They are
    equal where the limit was declared when the run was recorded: the samples were then counted,
    else buckets are, and one of them may hold the limit.
    """

    windows: Windows
    runs: tuple[int, ...]
    sums: IntArray
    fewest: IntArray
    most: IntArray
    largest: int
    in_system_s: float | None

    def beyond(self, *, upper: bool) -> tuple[IntArray, IntArray]:
        """Return the bounds of how many samples are beyond the limit: of a lower one, under it."""
        if upper:
            return self.fewest, self.most
        n = self.windows.n
        return (n - self.most, n - self.fewest)

    def far_beyond(self, budget: Budget) -> bool:
        """Whether every sample misses the budget's limit by a factor of two or more."""
        if budget.upper:
            return bool((self.windows.value >= 2 * budget.limit).all())
        return self.largest <= budget.limit / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """How the executions of one step ended, by window; `runs` as in `Samples`."""

    total: IntArray
    failed: IntArray
    good: IntArray
    runs: tuple[int, ...]


class Sampler:
    """Gives each budget its samples of a recording; what budgets share is read once."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._windows: dict[tuple[str, str, str], tuple[Windows, tuple[int, ...]]] = {}

    def of(self, budget: Budget, stages: Sequence[StageWindow]) -> Samples | None:
        """Collect a budget's samples of the stages, in their order; None when there are none."""
        found = self._found(budget.step, budget.metric, stages)
        if not found:
            return None
        windows, runs = self._in_windows(budget.step, budget.metric, found)
        counted = [series.over(budget.threshold) for _, series in found]
        exact = [over for over in counted if over is not None]
        if len(exact) == len(found):
            fewest = most = self._by_window(exact, found)
        else:
            most = windows.over(budget.threshold)
            fewest = windows.over(windows.at_or_above(budget.threshold))
        return Samples(
            windows=windows,
            runs=runs,
            sums=self._by_window([series.sum for _, series in found], found),
            fewest=fewest,
            most=most,
            largest=max(series.total.max or 0 for _, series in found),
            in_system_s=self._in_system_s(budget, stages),
        )

    def outcomes(self, budget: Budget, stages: Sequence[StageWindow]) -> Outcomes | None:
        """Collect how the requests of the stages ended; None when none did."""
        parts = [(stage, self.recording.requests(stage.name, budget.step)) for stage in stages]
        full = [(stage, requests) for stage, requests in parts if requests.n]
        if not full:
            return None
        total, failed, good = (
            [
                by_window(getattr(requests, name), requests.index, stage, self.recording.interval_s)
                for stage, requests in full
            ]
            for name in ("total", "failed", "good")
        )
        return Outcomes(
            total=np.concatenate(total),
            failed=np.concatenate(failed),
            good=np.concatenate(good),
            runs=tuple(len(part) for part in total),
        )

    def done(
        self, budget: Budget, stages: Sequence[StageWindow]
    ) -> tuple[IntArray, tuple[int, ...]]:
        """Count the successes of each window until its stage's end, and each stage's windows."""
        parts = []
        for stage in stages:
            requests = self.recording.requests(stage.name, budget.step)
            successes = requests.total - requests.failed
            dense = by_window(successes, requests.index, stage, self.recording.interval_s)
            size = max(1, round((stage.end_s - stage.start_s) / self.recording.interval_s))
            parts.append(dense[:size])
        return np.concatenate(parts), tuple(len(part) for part in parts)

    def _found(
        self, step: str, metric: str, stages: Sequence[StageWindow]
    ) -> list[tuple[StageWindow, Series]]:
        every = ((stage, self.recording.series(stage.name, step, metric)) for stage in stages)
        return [(stage, series) for stage, series in every if series is not None]

    def _in_windows(
        self, step: str, metric: str, found: Sequence[tuple[StageWindow, Series]]
    ) -> tuple[Windows, tuple[int, ...]]:
        key = (found[0][0].name, step, metric)
        if key not in self._windows:
            parts = [windows_of(self.recording, series, stage) for stage, series in found]
            windows = parts[0] if len(parts) == 1 else Windows.concatenated(parts)
            self._windows[key] = windows, tuple(len(part) for part in parts)
        return self._windows[key]

    def _by_window(
        self, counts: Sequence[IntArray], found: Sequence[tuple[StageWindow, Series]]
    ) -> IntArray:
        parts = [
            by_window(one, series.index, stage, self.recording.interval_s)
            for one, (stage, series) in zip(counts, found, strict=True)
        ]
        return np.concatenate(parts)

    def _in_system_s(self, budget: Budget, stages: Sequence[StageWindow]) -> float | None:
        """The p99 of a request's whole time in the system, s; None where no metric tells it."""
        for metric in TIMES_IN_SYSTEM:
            found = self._found(budget.step, metric, stages)
            if found:
                return max(series.total.quantile(0.99) or 0 for _, series in found) / 1e9
        return None


def observed_quantile(samples: Samples, budget: Budget) -> int | None:
    """Return the sample's own quantile; None where it has too few samples to have one."""
    assert budget.quantile is not None
    if not stats.supported(samples.windows.total, budget.quantile):
        return None
    return min(samples.windows.quantile(budget.quantile), samples.largest)
