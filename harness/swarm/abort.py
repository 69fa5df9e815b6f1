"""Watches a load from the parent and says when to end it early, and why.

Budgets with `abort: true` end it once no remaining outcome could meet them, so that the verdict is
that of the whole run. `abort_on` ends it for an overload that lasts, or a storm of failures; what
is judged then is what was measured before, and nothing of it passes.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from harness import stats
from harness.budget import RUN, Budget
from harness.plan import Plan
from harness.recorder import Histogram, Load, Report, StageWindow
from harness.recorder.histogram import highest_values
from harness.stats.abort import (
    arrivals_at_most,
    doomed,
    doomed_quantile,
    doomed_share,
    doomed_span,
)
from harness.stats.recorded import TIMES_IN_SYSTEM
from harness.stats.windows import IntArray, Windows
from harness.units import format_clock, format_count

STORM_S, STORM_SHARE, STORM_FEWEST = 10.0, 0.5, 20
OVERLOAD_Z = 4.0  # more than at the end of a run, since it is asked at every interval
OVERLOAD_CONFIRMED = 5  # intervals in a row
_LOOK_AGAIN = 1.02  # how many more must be beyond the limit before the costly part is repeated
_MORE_THAN_ONE, _PER_ARRIVAL_MARGIN = 1.02, 2.0  # samples that each arrival brings


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """Why a load was ended early, `t_s` seconds after the run's start; run.json keeps it.

    `budget` is the text of the budget that could no longer be met: `over` of its samples were
    beyond the limit in `stage`, where `allowed` of at most `planned` might have been.
    """

    t_s: float
    why: str
    budget: str | None = None
    stage: str | None = None
    over: int | None = None
    allowed: int | None = None
    planned: int | None = None


class Watch:
    """Takes in the merged intervals of a load, one after the other."""

    def __init__(self, plan: Plan, interval_s: float) -> None:
        self._plan, self._interval_s = plan, interval_s
        self._stages: list[_Stage] = []
        self._budgets: list[_Judged] = []
        self._recent: deque[tuple[int, int]] = deque(maxlen=max(1, round(STORM_S / interval_s)))

    def begin(self, stages: Iterable[StageWindow]) -> None:
        """Take note of the stages of the repetition that begins."""
        self._stages = [_Stage(window, self._interval_s) for window in stages]
        recorded = [stage for stage in self._stages if stage.window.record]
        several = len(recorded) * len(self._plan.budgets)
        self._budgets = [
            _Judged(budget, stage, _confidence(self._plan, budget, several))
            for budget in self._plan.budgets
            for stage in recorded
            if _known_early(self._plan, budget) and budget.stage in (None, stage.window.group)
        ]
        self._recent.clear()

    def add(self, report: Report) -> Aborted | None:
        """Add one interval; returns why the load shall end now, if it shall."""
        t_s = (report.index + 1) * self._interval_s
        for stage in self._stages:
            stage.add(report, look_for_overload="overload" in self._plan.abort_on)
        for judged in self._budgets:
            judged.add(report)
        if self._plan.repeat == 1 and t_s >= self._stages[-1].window.end_s:
            return None  # the load has ended by itself
        found = next((judged for judged in self._budgets if judged.doomed(t_s)), None)
        if found:
            return found.aborted(t_s)
        return self._overload(t_s) or self._storm(t_s, report)

    def _overload(self, t_s: float) -> Aborted | None:
        for stage in self._stages:
            found = stage.overload
            if found:
                since = format_clock(stage.window.start_s + found.start_s)
                return Aborted(
                    t_s=t_s,
                    stage=stage.window.group,
                    why=f"stopped at {format_clock(t_s)}: overload since {since}, "
                    f"{found.ended_per_s:.3g} of {found.arrived_per_s:.3g} requests/s complete",
                )
        return None

    def _storm(self, t_s: float, report: Report) -> Aborted | None:
        loads = report.load.values()
        self._recent.append((sum(x.finished for x in loads), sum(x.failed for x in loads)))
        finished, failed = (sum(counts) for counts in zip(*self._recent, strict=True))
        few = finished < STORM_FEWEST or failed < STORM_SHARE * finished
        if "errors" not in self._plan.abort_on or few:
            return None
        return Aborted(
            t_s=t_s,
            why=f"stopped at {format_clock(t_s)}: {format_count(failed)} of the last "
            f"{format_count(finished)} requests failed",
        )


def _known_early(plan: Plan, budget: Budget) -> bool:
    """Tell whether a budget can be known to fail before the end.

    Of several repetitions only what a single sample breaks can, a maximum or a share of which
    nothing is allowed. Else how much they differ from each other, and with that how sure a FAIL is,
    the last of them tells: of three, two in which every request was slow and a good one decide
    nothing.
    """
    nothing = {"error_rate": 0.0, "goodput": 1.0}.get(budget.metric)
    one_is_enough = budget.statistic == "max" or budget.limit == nothing
    return budget.abort and (plan.repeat == 1 or one_is_enough)


def _confidence(plan: Plan, budget: Budget, budgets: int) -> float:
    """Return what one budget must reach; by Holm's procedure the first against all of them."""
    if plan.multiple_testing == "none":
        return budget.confidence
    return 1 - (1 - budget.confidence) / budgets


class _Stage:
    """What became of a stage's arrivals, by interval from its start on."""

    def __init__(self, window: StageWindow, interval_s: float) -> None:
        self.window, self.interval_s = window, interval_s
        self.first = int(window.start_s / interval_s + 1e-9)
        self.planned = self.finished = 0
        self._most_in_flight = 0
        self._fastest_ns: int | None = None
        self._by_interval: list[tuple[int, int, int, int]] = []
        self._overloaded = 0
        self._overload: stats.Overload | None = None

    def add(self, report: Report, *, look_for_overload: bool) -> None:
        """Take in an interval."""
        load = report.load.get(self.window.name, Load())
        stays = Histogram.merged(
            measured.histogram
            for (stage, step, metric), measured in report.measured.items()
            if stage == self.window.name and "/" not in step and metric == "e2el"
        )
        self.planned += load.planned
        self.finished += load.finished
        self._most_in_flight = max(self._most_in_flight, load.in_flight)
        if stays.min is not None:
            self._fastest_ns = min(stays.min, self._fastest_ns or stays.min)
        if self.window.start_s <= report.index * self.interval_s < self.window.end_s:
            self._by_interval.append((load.planned, load.finished, stays.n, stays.sum))
            if look_for_overload and self.window.planned_rate_per_s is not None:
                self._look_for_overload()

    @property
    def overload(self) -> stats.Overload | None:
        """An overload that was seen at so many intervals in a row that it will stay."""
        return self._overload if self._overloaded >= OVERLOAD_CONFIRMED else None

    def arrivals_at_most(self, t_s: float) -> float:
        """Bound the arrivals of the whole stage, as seen at `t_s`.

        Of a closed stage: as if every user's rounds were as fast as the fastest so far.
        """
        left_s = max(0.0, self.window.end_s - max(t_s, self.window.start_s))
        if not left_s:
            return self.planned
        if self.window.planned_rate_per_s is not None:
            return arrivals_at_most(self.planned, self.window.planned_rate_per_s, left_s)
        if not self._fastest_ns:
            return math.inf
        return self.planned + self._most_in_flight * math.ceil(left_s * 1e9 / self._fastest_ns)

    def _look_for_overload(self) -> None:
        arrived, ended, n, sums = np.array(self._by_interval, dtype=np.int64).T
        self._overload = stats.find_overload(
            arrived, ended, n, sums, self.interval_s, least_z=OVERLOAD_Z
        )
        self._overloaded = self._overloaded + 1 if self._overload else 0


class _Judged:
    """One budget in one stage: its samples so far, and whether it can still be met."""

    def __init__(self, budget: Budget, stage: _Stage, confidence: float) -> None:
        self._budget, self._stage, self._confidence = budget, stage, confidence
        self._share = budget.metric in ("error_rate", "goodput")
        self._n = self._over = self._largest = 0
        self._by_index: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        self._parts: list[tuple[int, Histogram]] = []
        self._stays: dict[str, list[Histogram]] = defaultdict(list)
        self._look_at = 0.0
        self._spans_seen = 0

    @property
    def _allowed(self) -> float:
        """The share that may be beyond the limit."""
        if self._budget.quantile is not None:
            return 1 - self._budget.quantile if self._budget.upper else self._budget.quantile
        return 1 - self._budget.limit if self._budget.metric == "goodput" else self._budget.limit

    def add(self, report: Report) -> None:
        """Take in an interval."""
        if self._share:
            self._add_executions(report)
        else:
            self._add_samples(report)

    def doomed(self, t_s: float) -> bool:
        """Tell whether it would fail whatever comes after `t_s`."""
        if self._budget.statistic == "max":
            return self._budget.upper and self._largest > self._budget.threshold
        if not self._over or self._over < self._look_at:
            return False
        if self._budget.over_ns is not None and self._allowed > 0:
            return self._doomed_span(self._budget.over_ns / 1e9)
        n_most = self._at_most(t_s)
        if not doomed(self._n, self._over, n_most, self._allowed, self._confidence):
            return False  # not even if all samples were independent
        self._look_at = self._over * _LOOK_AGAIN
        return self._doomed_share(n_most) if self._share else self._doomed_quantile(n_most)

    def aborted(self, t_s: float) -> Aborted:
        """Say why it ended the load."""
        stopped = f"stopped at {format_clock(t_s)}"
        said = Aborted(t_s=t_s, why="", budget=self._budget.text, stage=self._stage.window.group)
        if self._budget.statistic == "max":
            return replace(said, why=f"{stopped}: one sample was over the limit, none is allowed")
        if self._allowed <= 0:
            why = f"{stopped}: {format_count(self._over)} beyond the limit, none is allowed"
            return replace(said, why=why, over=self._over, allowed=0)
        if self._budget.over_ns is not None:
            why = f"{stopped}: a window broke the limit beyond chance, and every one must hold"
            return replace(said, why=why)
        planned = math.floor(self._at_most(t_s))
        allowed = int(planned * self._allowed + 1e-9)
        return replace(
            said,
            why=f"{stopped}: {format_count(self._over)} beyond the limit, "
            f"{format_count(allowed)} allowed of at most {format_count(planned)} planned",
            over=self._over,
            allowed=allowed,
            planned=planned,
        )

    def _add_executions(self, report: Report) -> None:
        """Count the executions of an interval, as `Requests.of` does."""
        ended = [
            outcome
            for (stage, step), outcome in report.finished.items()
            if stage == self._stage.window.name and self._concerns(step)
        ]
        if not ended:
            return
        failed = sum(sum(outcome.kinds.values()) for outcome in ended)
        n = max(sum(outcome.total - outcome.replaced for outcome in ended), failed)
        good = sum(outcome.good + outcome.unsure - outcome.replaced_good for outcome in ended)
        good = min(max(good, 0), n - failed)
        self._count(report.index, n, n - good if self._budget.metric == "goodput" else failed)

    def _add_samples(self, report: Report) -> None:
        for (stage, step, metric), measured in report.measured.items():
            if stage != self._stage.window.name or not self._concerns(step):
                continue
            if metric == self._budget.metric:
                upper = self._budget.upper
                surely = (measured.least if upper else measured.most) or measured
                histogram = surely.histogram
                over = surely.over.get(self._budget.threshold, 0)
                beyond = over if upper else histogram.n - over
                self._count(report.index, histogram.n, beyond)
                self._largest = max(self._largest, histogram.max or 0)
                self._parts.append((report.index, histogram))
            if metric in TIMES_IN_SYSTEM:
                self._stays[metric].append(measured.histogram)

    def _count(self, index: int, n: int, over: int) -> None:
        self._n += n
        self._over += over
        counts = self._by_index[index]
        counts[0] += n
        counts[1] += over

    def _concerns(self, step: str) -> bool:
        return step == self._budget.step or (self._budget.step == RUN and "/" not in step)

    def _at_most(self, t_s: float) -> float:
        """Bound the samples of the whole stage.

        An arrival brings one of them, or as many as so far and as many again where it brings more.
        """
        finished = max(1, self._stage.finished)
        each = self._n / finished if self._n > _MORE_THAN_ONE * finished else 1.0
        margin = _PER_ARRIVAL_MARGIN if each > 1 else 1.0
        left = self._stage.arrivals_at_most(t_s) - self._stage.finished
        return self._n + max(0.0, left) * each * margin

    def _doomed_share(self, n_most: float) -> bool:
        n, over = self._by_interval()
        length_s = self._stage.interval_s
        return doomed_share(n, over, n_most, self._allowed, self._confidence, length_s=length_s)

    def _doomed_quantile(self, n_most: float) -> bool:
        assert self._budget.quantile is not None
        windows, over = self._windows()
        return doomed_quantile(
            windows,
            over,
            n_most,
            self._budget.quantile,
            self._confidence,
            upper=self._budget.upper,
            in_system_s=self._in_system_s(),
        )

    def _doomed_span(self, span_s: float) -> bool:
        """Look at the complete spans when one more of them has become so."""
        spans = int((max(self._by_index) + 1 - self._stage.first) * self._stage.interval_s / span_s)
        if spans <= self._spans_seen:
            return False
        self._spans_seen = spans
        windows, over = self._shares() if self._share else self._windows()
        window = self._stage.window
        return doomed_span(
            windows,
            over,
            span_s,
            math.ceil((window.end_s - window.start_s) / span_s),
            1 - self._allowed if self._share else self._budget.quantile or 0.5,
            self._confidence,
            upper=self._budget.upper or self._share,
            in_system_s=None if self._share else self._in_system_s(),
        )

    def _windows(self) -> tuple[Windows, IntArray]:
        """The samples by interval, and how many of each are beyond the limit."""
        n, over = self._by_interval()
        sizes = [len(histogram.counts) for _, histogram in self._parts]
        windows = Windows(
            length_s=self._stage.interval_s,
            n=n,
            window=np.repeat([at - self._stage.first for at, _ in self._parts], sizes),
            value=np.concatenate([highest_values(h.indices, h.unit) for _, h in self._parts]),
            count=np.concatenate([h.counts for _, h in self._parts]),
        )
        return windows, over

    def _shares(self) -> tuple[Windows, IntArray]:
        """Executions by interval, bad ones as 1 and good ones as 0, and how many are bad."""
        n, bad = self._by_interval()
        at = np.arange(len(n))
        windows = Windows(
            length_s=self._stage.interval_s,
            n=n,
            window=np.concatenate([at, at]),
            value=np.repeat([0, 1], len(n)),
            count=np.concatenate([n - bad, bad]),
        )
        return windows, bad

    def _by_interval(self) -> tuple[IntArray, IntArray]:
        """Samples, and those beyond the limit, of every interval from the stage's start on."""
        dense = np.zeros((2, max(self._by_index) - self._stage.first + 1), dtype=np.int64)
        for index, counts in self._by_index.items():
            dense[:, index - self._stage.first] = counts
        return dense[0], dense[1]

    def _in_system_s(self) -> float | None:
        """The p99 of the whole time in the system, s, as the verdict takes it."""
        stays = next(
            (self._stays[metric] for metric in TIMES_IN_SYSTEM if metric in self._stays), []
        )
        p99 = Histogram.merged(stays).quantile(0.99)
        return None if p99 is None else p99 / 1e9
