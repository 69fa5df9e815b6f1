"""A run against its baseline: how a statistic changed, and whether by more than a budget allows.

Nothing is judged against a run that is not comparable, or that was itself not fit to be measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from harness.budget import Budget
from harness.health import Health, assess
from harness.metrics import METRICS, format_value
from harness.recorder import LEAST, MOST, Recording
from harness.stats.regression import (
    Change,
    Ends,
    difference,
    quantile_change,
    ratio_change,
    repeated_change,
)
from harness.units import format_count
from harness.verdict.ends import at_both_ends
from harness.verdict.interleaved import interleaved, paired_change
from harness.verdict.likeness import Weight, unfit, unlike
from harness.verdict.outcome import BudgetVerdict, Outcome
from harness.verdict.samples import Repetitions, Sums, joined, mean_of, share_of

_ANY_LIMIT = 0.5  # the bounds of a share do not depend on what it is judged against


class Pair:
    """A candidate and the run it is compared with: in what they differ, and whether both count."""

    def __init__(self, base: Recording, candidate: Recording) -> None:
        self.base, self.candidate = base, candidate
        self.unlike = unlike(base, candidate)
        self._interleaved = interleaved(base, candidate)
        self._sides: dict[str, tuple[Repetitions, Repetitions]] = {}
        self._changes: dict[tuple[str, str, str, float | None, float, str], Change | None] = {}

    @cached_property
    def base_health(self) -> Health:
        """Whether the baseline's measurement was fit."""
        return assess(self.base)

    def sides(self, group: str) -> tuple[Repetitions, Repetitions]:
        """Return baseline and candidate in the stage of that declared name."""
        if group not in self._sides:
            self._sides[group] = Repetitions(self.base, group), Repetitions(self.candidate, group)
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
        self,
        group: str,
        step: str,
        metric: str,
        quantile: float | None,
        confidence: float,
        end: str = "",
    ) -> Change | None:
        """Change of a quantile, without one of a mean, a share or a rate; None without data.

        A goodput is compared by its loss, the share of requests that missed a per-request budget,
        so that more is worse of everything but a rate. At the `end` LEAST or MOST it is the least
        or the most that it can be, where stamps stand for intervals.
        """
        key = (group, step, metric, quantile, confidence, end)
        if key not in self._changes:
            self._changes[key] = self._find_change(*key)
        return self._changes[key]

    def _find_change(
        self,
        group: str,
        step: str,
        metric: str,
        quantile: float | None,
        confidence: float,
        end: str,
    ) -> Change | None:
        base, candidate = self.sides(group)
        if end:
            base, candidate = base.ends()[end == LEAST], candidate.ends()[end == MOST]
        if self._interleaved:
            found = paired_change((base, candidate), step, metric, quantile, confidence)
            if found is not None:
                return found
        if metric in ("error_rate", "goodput"):
            complete = all(
                len(side.requests(step)) == len(side.stages) for side in (base, candidate)
            )
            bad = base.bad(step, metric), candidate.bad(step, metric)
            return share_change(*bad, confidence) if complete else None
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
        if change and any(side.is_unsure(*of[:2]) for side in pair.sides(group)):
            return _judge_ends(pair, budget, group, change)
    if pair is None or change is None:
        return BudgetVerdict(
            budget=budget,
            stage=group,
            outcome=Outcome.NO_DATA,
            reason=_why_no_data(pair, budget, group),
        )
    return _judge_change(pair, budget, group, change)


def _judge_ends(pair: Pair, budget: Budget, group: str, change: Change) -> BudgetVerdict:
    """Judge a change that the stamps of either run leave open within two ends."""
    of = (budget.step, budget.metric, budget.quantile, budget.confidence)
    ends = [pair.change(group, *of, end) or change for end in (LEAST, MOST)]
    judged = [_judge_change(pair, budget, group, one) for one in (change, *ends)]
    unsure = next(side for side in pair.sides(group) if side.is_unsure(*of[:2]))
    return at_both_ends(judged[0], judged[1], judged[2], unsure)


def _judge_change(pair: Pair, budget: Budget, group: str, change: Change) -> BudgetVerdict:
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
    base: Sequence[Sums], candidate: Sequence[Sums], confidence: float
) -> Change | None:
    """Difference of the shares of requests that are bad; None where a side has no requests."""
    if not base or not candidate:
        return None
    shares = [[_ratio(run) for run in side] for side in (base, candidate)]
    if min(len(side) for side in shares) > 1:
        return repeated_change(shares[0], shares[1], confidence, relative=False)
    (one, one_ends), (other, other_ends) = (_share(side, confidence) for side in (base, candidate))
    change = difference(one, other, one_ends.ends, other_ends.ends)
    return _known(change, one_ends, other_ends, (len(base), len(candidate)))


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


def _share(side: Sequence[Sums], confidence: float) -> tuple[float, _Bounds]:
    found = share_of(side, _ANY_LIMIT, confidence)
    return found.k / found.n, _Bounds((found.lower, found.upper), found.resolved)


def _mean(side: Sequence[Sums], confidence: float) -> tuple[float, _Bounds]:
    found = mean_of(side, confidence)
    if found is None:
        return _ratio(joined(side)[0]), _Bounds((None, None), resolved=False)
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
    shown = 1 - value if budget.metric == "goodput" else value
    return format_value(shown, METRICS[budget.metric].kind)


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
