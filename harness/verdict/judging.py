"""A run becomes one verdict: each budget where it applies, and what takes its PASS back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from harness import stats
from harness.budget import RUN, Budget
from harness.health import Check, assess
from harness.recorder import Recording
from harness.units import format_count
from harness.verdict.caveats import with_caveats
from harness.verdict.headline import headline, outcome_of_run
from harness.verdict.likeness import unfit_because
from harness.verdict.measure import measure
from harness.verdict.outages import fails_anyway, with_outage
from harness.verdict.outcome import WORST_FIRST, BudgetVerdict, Outcome, Verdict
from harness.verdict.regression import Pair, judge_regression
from harness.verdict.samples import Repetitions, share_of


def judge(
    recording: Recording,
    budgets: Sequence[Budget],
    *,
    baseline: Recording | Pair | None = None,
    holm: bool = False,
) -> Verdict:
    """Judge every budget in every recorded stage it names (all of them when it names none).

    All repetitions of a stage are judged together. Regressions are judged against `baseline`,
    which may be given together with the recording as a pair. With `holm` the confidence is that of
    all FAILs together, not of each.
    """
    court = _Court(recording, budgets, baseline)
    judged = list(court.verdicts())
    if holm:
        judged = court.held_together(judged)
    judged.sort(key=lambda b: (WORST_FIRST.index(b.outcome), -(b.used or 0.0)))
    outcome = outcome_of_run(recording, judged, court.health)
    sentence, detail = headline(outcome, judged, recording, declared=len(budgets))
    return Verdict(
        outcome=outcome,
        budgets=tuple(judged),
        health=court.health,
        sentence=sentence,
        detail=detail,
    )


class _Court:
    """Everything that the budgets of one run are judged with."""

    def __init__(
        self, recording: Recording, budgets: Sequence[Budget], baseline: Recording | Pair | None
    ) -> None:
        self.health = assess(recording, budgets)
        self._budgets = budgets
        recorded = dict.fromkeys(stage.group for stage in recording.stages if stage.record)
        self._stages = {group: Repetitions(recording, group) for group in recorded}
        self._pair = Pair(baseline, recording) if isinstance(baseline, Recording) else baseline

    def verdicts(self) -> Iterator[BudgetVerdict]:
        for budget in self._budgets:
            if budget.stage is not None and budget.stage not in self._stages:
                yield _not_recorded(budget, self._stages)
            for group, stage in self._stages.items():
                if budget.stage in (None, group):
                    yield self._judge_in(budget, stage)

    def held_together(self, judged: Sequence[BudgetVerdict]) -> list[BudgetVerdict]:
        """Let only those FAILs stand that do when all budgets share one error rate.

        Holm (Scandinavian Journal of Statistics 6, 1979): of m budgets, those that fail at α/m
        stand; of the others those that fail at α over how many are left; and so on. A PASS needs no
        such care: the run passes when all budgets do, and that is no likelier than any one of them.
        """
        claims = [v for v in judged if v.outcome is not Outcome.NO_DATA]
        open_fails = [v for v in claims if v.outcome is Outcome.FAIL]
        error = 1 - max((v.budget.confidence for v in claims), default=0.0)
        left = len(claims)
        while standing := [v for v in open_fails if self._fails_at(v, 1 - error / left)]:
            open_fails = [v for v in open_fails if v not in standing]
            left -= len(standing)
            if not open_fails:
                break
        reason = f"it breaks its limit by itself, but not among {format_count(len(claims))} budgets"
        return [
            replace(v, outcome=Outcome.INCONCLUSIVE, reason=f"{reason} together (Holm)")
            if v in open_fails
            else v
            for v in judged
        ]

    def _fails_at(self, verdict: BudgetVerdict, confidence: float) -> bool:
        stricter = replace(verdict.budget, confidence=confidence)
        return self._judge_in(stricter, self._stages[verdict.stage]).outcome is Outcome.FAIL

    def _judge_in(self, budget: Budget, stage: Repetitions) -> BudgetVerdict:
        """Judge a budget in one stage, all repetitions of it."""
        if budget.regression:
            verdict = judge_regression(self._pair, budget, stage.group)
        else:
            verdict = measure(stage, budget)
        if verdict.outcome is Outcome.NO_DATA:
            return verdict
        if verdict.outcome is Outcome.PASS:
            verdict = _with_unknown_costs(self._with_failures(verdict, stage), stage)
        judged = self._failures_are_judged(budget, stage.group)
        verdict = with_outage(with_caveats(verdict, stage), stage, failures_judged=judged)
        for check in (check for one in stage.stages for check in self.health.broken(one.name)):
            if not _stands_against(check, verdict, stage):
                return replace(verdict, outcome=Outcome.INVALID, reason=_why_invalid(check))
        return verdict

    def _with_failures(self, verdict: BudgetVerdict, stage: Repetitions) -> BudgetVerdict:
        """Take back a PASS that only holds because failed requests have no latency.

        Failures are the business of `error_rate`, `goodput` and `e2el_all` budgets. Where none
        covers the step, a quantile must also hold with every failure counted as over the limit, and
        with the dependence of failures; a regression needs a baseline that failed as often, and a
        mean, a maximum or a quantile in each window says nothing.
        """
        budget = verdict.budget
        if budget.statistic == "" or not budget.upper or budget.metric == "e2el_all":
            return verdict
        requests = [requests for _, requests in stage.requests(budget.step)]
        n_requests, failed = sum(one.n for one in requests), sum(one.n_failed for one in requests)
        if not failed or self._failures_are_judged(budget, stage.group):
            return verdict
        if budget.regression and self._pair:
            if not self._pair.fails_more(stage.group, budget):
                return verdict
        elif self._holds_with_failures(verdict, stage, failed / (n_requests - failed)):
            return verdict
        reason = (
            f"{format_count(failed)} of {format_count(n_requests)} requests failed "
            f"and no error_rate budget says how many may: add one for {budget.step}"
        )
        return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason)

    def _holds_with_failures(
        self, verdict: BudgetVerdict, stage: Repetitions, failed_to_good: float
    ) -> bool:
        """Whether a quantile holds were the samples of failures, as many as of successes, over."""
        budget = verdict.budget
        if budget.quantile is None or budget.over_ns is not None:
            return False
        allowed, lost = 1 - budget.quantile, math.ceil(verdict.n * failed_to_good - 1e-9)
        failures = share_of(stage.bad(budget.step, "error_rate"), allowed, budget.confidence)
        bounds = stats.share_bounds(
            verdict.n + lost,
            (verdict.over or 0) + lost,
            budget.confidence,
            vif=max(verdict.vif, failures.vif_pass),
        )
        return bounds[1] <= allowed

    def _failures_are_judged(self, budget: Budget, group: str) -> bool:
        return any(
            b.metric in ("error_rate", "goodput", "e2el_all")
            and (budget.regression or not b.regression)
            and b.step in (budget.step, RUN)
            and b.stage in (None, group)
            for b in self._budgets
        )


def _stands_against(check: Check, verdict: BudgetVerdict, stage: Repetitions) -> bool:
    """Whether a verdict stands though the measurement was not fit: a FAIL may."""
    if verdict.outcome is not Outcome.FAIL:
        return False
    return check.fail_stands or (check.from_load and fails_anyway(verdict, stage))


def _with_unknown_costs(verdict: BudgetVerdict, stage: Repetitions) -> BudgetVerdict:
    """Take back a PASS of a cost that is known of some executions only."""
    budget = verdict.budget
    if budget.metric != "cost" or verdict.outcome is not Outcome.PASS:
        return verdict
    known = stage.count(budget.step, "cost")
    done = sum(one.n - one.n_failed for _, one in stage.requests(budget.step))
    if known >= done:
        return verdict
    reason = (
        f"the cost of {format_count(known)} of {format_count(done)} executions is known; let the "
        "target report the usage of all"
    )
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason)


def _not_recorded(budget: Budget, groups: Iterable[str]) -> BudgetVerdict:
    """Judge a budget of a stage that was not recorded, or does not exist: never a pass."""
    return BudgetVerdict(
        budget=budget,
        stage=budget.stage or "",
        outcome=Outcome.NO_DATA,
        reason="no such stage was recorded; the recorded ones were "
        + (", ".join(groups) or "none"),
    )


def _why_invalid(broken: Check) -> str:
    return f"the measurement was not fit ({unfit_because(broken)}): {broken.remedy}"
