"""A run against its baseline: how a statistic changed, and whether by more than a budget allows.

Nothing is judged against a run that is not comparable, or that was itself not fit to be measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from harness import stats
from harness.budget import Budget
from harness.health import Health, assess
from harness.recorder import Recording, Requests, Series, StageWindow
from harness.stats.recorded import TIMES_IN_SYSTEM, by_window, windows_of
from harness.stats.regression import (
    Change,
    Ends,
    difference,
    quantile_change,
    ratio_change,
    repeated_change,
)
from harness.stats.windows import FloatArray, IntArray, Windows
from harness.units import format_count, format_duration, format_share
from harness.verdict.interleaved import interleaved, paired_change
from harness.verdict.likeness import Weight, unfit, unlike
from harness.verdict.outcome import BudgetVerdict, Outcome

_ANY_LIMIT = 0.5  # the bounds of a share do not depend on what it is judged against


class Sums(NamedTuple):
    """Sums and counts by window of one run, and the windows' length."""

    sums: FloatArray
    counts: FloatArray
    length_s: float


class Side:
    """One of two runs in one stage (all repetitions of it), each metric put in windows once."""

    def __init__(self, recording: Recording, group: str) -> None:
        self.recording = recording
        self.stages = tuple(s for s in recording.stages if s.record and s.group == group)
        self._windows: dict[tuple[str, str], list[Windows]] = {}

    def windows(self, step: str, metric: str) -> list[Windows]:
        """Return a metric's samples, one for each repetition that has some."""
        if (step, metric) not in self._windows:
            self._windows[step, metric] = [
                windows_of(self.recording, series, stage)
                for stage, series in self.series(step, metric)
            ]
        return self._windows[step, metric]

    def series(self, step: str, metric: str) -> list[tuple[StageWindow, Series]]:
        """Return the repetitions that have samples of a metric."""
        found = ((s, self.recording.series(s.name, step, metric)) for s in self.stages)
        return [(stage, series) for stage, series in found if series is not None]

    def in_system_s(self, step: str) -> float | None:
        """Return the p99 of a request's whole time in the system, seconds."""
        for metric in TIMES_IN_SYSTEM:
            found = self.series(step, metric)
            if found:
                return max(series.total.quantile(0.99) or 0 for _, series in found) / 1e9
        return None

    def count(self, step: str, metric: str) -> int:
        """Count the samples of a metric; of a share or rate, the requests."""
        found = self.series(step, metric)
        if found:
            return sum(int(series.n.sum()) for _, series in found)
        return sum(self.recording.requests(stage.name, step).n for stage in self.stages)

    def sums(self, step: str, metric: str) -> list[Sums]:
        """Return each repetition's sums and counts by window."""
        return [
            Sums(
                self._dense(series.sum, series.index, stage),
                self._dense(series.n, series.index, stage),
                self.recording.interval_s,
            )
            for stage, series in self.series(step, metric)
        ]

    def requests(self, step: str, *, bad: Callable[[Requests], IntArray]) -> list[Sums]:
        """Return each repetition's bad and all requests by window."""
        rows = []
        for stage in self.stages:
            found = self.recording.requests(stage.name, step)
            rows.append(
                Sums(
                    self._dense(bad(found), found.index, stage),
                    self._dense(found.total, found.index, stage),
                    self.recording.interval_s,
                )
            )
        return rows

    def done(self, step: str) -> list[Sums]:
        """Return each repetition's successes per second by window until its end, and ones."""
        rows = []
        every = self.requests(step, bad=lambda r: r.failed)
        for stage, (failed, total, interval_s) in zip(self.stages, every, strict=True):
            size = max(1, round((stage.end_s - stage.start_s) / interval_s))
            done = (total - failed)[:size] / interval_s
            rows.append(Sums(done, np.ones(len(done)), interval_s))
        return rows

    def _dense(self, counts: IntArray, index: IntArray, stage: StageWindow) -> FloatArray:
        dense = by_window(counts, index, stage, self.recording.interval_s)
        return dense.astype(np.float64)


class Pair:
    """A candidate and the run it is compared with: in what they differ, and whether both count."""

    def __init__(self, base: Recording, candidate: Recording) -> None:
        self.base, self.candidate = base, candidate
        self.unlike = unlike(base, candidate)
        self._interleaved = interleaved(base, candidate)
        self._sides: dict[str, tuple[Side, Side]] = {}
        self._changes: dict[tuple[str, str, str, float | None, float], Change | None] = {}

    @cached_property
    def base_health(self) -> Health:
        """Whether the baseline's measurement was fit."""
        return assess(self.base)

    def sides(self, group: str) -> tuple[Side, Side]:
        """Return baseline and candidate in the stage of that declared name."""
        if group not in self._sides:
            self._sides[group] = Side(self.base, group), Side(self.candidate, group)
        return self._sides[group]

    def why_not(self, group: str) -> str:
        """Say why a stage is not to be compared with the baseline's; empty when it may be."""
        forbids = next(
            (
                one
                for one in self.unlike
                if one.weight is Weight.FORBIDS and one.stage in (None, group)
            ),
            None,
        )
        if forbids:
            return f"the runs are not comparable ({forbids})"
        broken = unfit(self.base_health, self.sides(group)[0].stages)
        return f"the baseline's measurement was not fit ({broken})" if broken else ""

    def change(
        self, group: str, step: str, metric: str, quantile: float | None, confidence: float
    ) -> Change | None:
        """Change of a quantile, without one of a mean, a share or a rate; None without data.

        A goodput is compared by its loss, the share of requests that missed a per-request budget,
        so that more is worse of everything but a rate.
        """
        key = (group, step, metric, quantile, confidence)
        if key not in self._changes:
            self._changes[key] = self._find_change(*key)
        return self._changes[key]

    def _find_change(
        self, group: str, step: str, metric: str, quantile: float | None, confidence: float
    ) -> Change | None:
        base, candidate = self.sides(group)
        if self._interleaved:
            found = paired_change((base, candidate), step, metric, quantile, confidence)
            if found is not None:
                return found
        if metric == "error_rate":
            return share_change(base, candidate, step, confidence, bad=lambda r: r.failed)
        if metric == "goodput":
            return share_change(base, candidate, step, confidence, bad=lambda r: r.total - r.good)
        if metric == "rate":
            return mean_change(base.done(step), candidate.done(step), confidence)
        if quantile is None:
            return mean_change(base.sums(step, metric), candidate.sums(step, metric), confidence)
        return quantile_change(
            base.windows(step, metric),
            candidate.windows(step, metric),
            quantile,
            confidence,
            in_system_s=(base.in_system_s(step), candidate.in_system_s(step)),
        )

    def fails_more(self, group: str, budget: Budget) -> bool:
        """Whether so many more requests may fail than before that a latency can hide among them."""
        found = self.change(group, budget.step, "error_rate", None, budget.confidence)
        hidden = 1 - (budget.quantile or 0.99)
        return found is None or (found.low or 0) > 0 or found.high is None or found.high >= hidden


def judge_regression(pair: Pair | None, budget: Budget, group: str) -> BudgetVerdict:
    """Judge a regression budget in the stage of that declared name, all repetitions of it.

    As if the candidate's measurement were fit and every request of it had succeeded. `observed`,
    `low` and `high` are by how much it is worse than the baseline, as a share.
    """
    change = None
    if pair is not None:
        of = (budget.step, budget.metric, budget.quantile, budget.confidence)
        change = pair.change(group, *of)
    if pair is None or change is None:
        return BudgetVerdict(
            budget=budget,
            stage=group,
            outcome=Outcome.NO_DATA,
            reason=_why_no_data(pair, budget, group),
        )
    why_not = pair.why_not(group)
    worse = change.beyond(budget.limit)
    outcome = {True: Outcome.FAIL, False: Outcome.PASS, None: Outcome.INCONCLUSIVE}[worse]
    n = pair.sides(group)[1].count(budget.step, budget.metric)
    reason = (
        f"from {_value(change.base, budget)} to {_value(change.candidate, budget)}"
        if worse is not None
        else _why_undecided(change, budget, n)
    )
    return BudgetVerdict(
        budget=budget,
        stage=group,
        outcome=Outcome.INVALID if why_not else outcome,
        observed=change.change,
        low=change.low,
        high=change.high,
        n=n,
        used=max(0.0, change.change) / budget.limit,
        reason=why_not or reason,
    )


def mean_change(
    base: Sequence[Sums], candidate: Sequence[Sums], confidence: float
) -> Change | None:
    """Change of Σ sums ÷ Σ counts, as a ratio: of batch means, or of the means of several runs.

    Of successes and seconds it is the change of a rate. None where a side has no samples or its
    mean is 0.
    """
    if not base or not candidate:
        return None
    means = [[_ratio(run) for run in side] for side in (base, candidate)]
    if not all(mean > 0 for side in means for mean in side):
        return None
    if min(len(side) for side in means) > 1:
        return repeated_change(means[0], means[1], confidence)
    (one, one_ends), (other, other_ends) = (_mean(side, confidence) for side in (base, candidate))
    change = ratio_change(one, other, one_ends.ends, other_ends.ends)
    return _known(change, one_ends, other_ends, (len(base), len(candidate)))


def share_change(
    base: Side,
    candidate: Side,
    step: str,
    confidence: float,
    *,
    bad: Callable[[Requests], IntArray],
) -> Change | None:
    """Difference of the shares of requests that are `bad`."""
    counts = [side.requests(step, bad=bad) for side in (base, candidate)]
    if not all(side and all(run.counts.sum() for run in side) for side in counts):
        return None
    shares = [[_ratio(run) for run in side] for side in counts]
    if min(len(side) for side in shares) > 1:
        return repeated_change(shares[0], shares[1], confidence, relative=False)
    (one, one_ends), (other, other_ends) = (_share(side, confidence) for side in counts)
    change = difference(one, other, one_ends.ends, other_ends.ends)
    return _known(change, one_ends, other_ends, (len(counts[0]), len(counts[1])))


class _Bounds(NamedTuple):
    ends: Ends
    resolved: bool


def _known(change: Change, base: _Bounds, candidate: _Bounds, runs: tuple[int, int]) -> Change:
    """Take the upper end away where a run is too short to show that nothing got worse."""
    if not (base.resolved and candidate.resolved):
        change = replace(change, high=None, lacking="time")
    return replace(change, runs=runs)


def _ratio(run: Sums) -> float:
    return float(run.sums.sum() / run.counts.sum())


def _joined(runs: Sequence[Sums]) -> tuple[Sums, tuple[int, ...]]:
    sums, counts, length_s = zip(*runs, strict=True)
    whole = Sums(np.concatenate(sums), np.concatenate(counts), length_s[0])
    return whole, tuple(len(one) for one in sums)


def _share(side: Sequence[Sums], confidence: float) -> tuple[float, _Bounds]:
    whole, runs = _joined(side)
    bad, n = (counts.astype(np.int64) for counts in whole[:2])
    found = stats.share_evidence(n, bad, _ANY_LIMIT, confidence, length_s=whole.length_s, runs=runs)
    return _ratio(whole), _Bounds((found.lower, found.upper), found.resolved)


def _mean(side: Sequence[Sums], confidence: float) -> tuple[float, _Bounds]:
    whole, runs = _joined(side)
    found = stats.mean_evidence(
        whole.sums, whole.counts, confidence, length_s=whole.length_s, runs=runs
    )
    if found is None:
        return _ratio(whole), _Bounds((None, None), resolved=False)
    low = found.low if found.low > 0 else None
    return found.mean, _Bounds((low, found.high), found.resolved)


def _why_no_data(pair: Pair | None, budget: Budget, group: str) -> str:
    if pair is None:
        return "declare a baseline: give the run to compare with as --baseline RUN"
    if not pair.sides(group)[0].stages:
        return f"the baseline has no stage {group}: give a run of the same plan"
    without = [
        name
        for name, side in zip(("baseline", "run"), pair.sides(group), strict=True)
        if not side.count(budget.step, budget.metric)
    ]
    return f"the {' and the '.join(without or ['baseline'])} gave no {budget.step}.{budget.metric}"


def _value(value: float, budget: Budget) -> str:
    metric = budget.metric
    if metric == "error_rate":
        return format_share(value)
    if metric == "goodput":
        return format_share(1 - value)
    if metric.endswith("_tokens"):
        return format_count(round(value))
    return format_duration(value)


def _why_undecided(change: Change, budget: Budget, n: int) -> str:
    """Say what is missing for a decision; `n` is the candidate's number of samples."""
    ones, others = change.runs
    if change.lacking == "runs":
        return (
            f"{ones} runs against {others} can show a change at {change.smallest_p:.2g} "
            f"at best, {1 - budget.confidence:.2g} is asked: repeat both more often"
        )
    if change.lacking == "time":
        return "the runs are too short for how long requests or slow spells last: measure longer"
    if change.low is None or change.high is None:
        return "too few samples for an interval: measure longer"
    needed = n * ((change.high - change.low) / 2 / (change.change - budget.limit)) ** 2
    if not needed < 1e9:
        return "too close to its limit to be decided by more samples"
    return (
        f"needs about {format_count(math.ceil(needed))} samples in each run, has {format_count(n)}"
    )
