"""A run becomes one verdict: each budget where it applies, what voids a PASS, the headline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness import stats
from harness.budget import RUN, Budget
from harness.health import Check, Health, assess
from harness.recorder import Recording, StageWindow
from harness.steadiness import find_drifts
from harness.units import format_count, format_ratio_of_limit
from harness.verdict.caveats import with_caveats
from harness.verdict.measure import measure
from harness.verdict.outcome import WORST_FIRST, BudgetVerdict, Outcome, Verdict
from harness.verdict.regression import Pair, judge_regression
from harness.verdict.samples import Sampler


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
    outcome = _overall(recording, court.recorded, judged, court.health)
    sentence, detail = _headline(outcome, judged, recording)
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
        self.recorded = [stage for stage in recording.stages if stage.record]
        self._recording = recording
        self._budgets = budgets
        self._sampler = Sampler(recording)
        self._drifts = find_drifts(recording)
        self._pair = Pair(baseline, recording) if isinstance(baseline, Recording) else baseline

    def verdicts(self) -> Iterator[BudgetVerdict]:
        groups = list(dict.fromkeys(stage.group for stage in self.recorded))
        for budget in self._budgets:
            if budget.stage is not None and budget.stage not in groups:
                yield _not_recorded(budget, groups)
                continue
            for group in groups:
                if budget.stage in (None, group):
                    yield self._judge_in(budget, self._recording.repetitions(group))

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
        stages = self._recording.repetitions(verdict.stage)
        return self._judge_in(stricter, stages).outcome is Outcome.FAIL

    def _judge_in(self, budget: Budget, stages: Sequence[StageWindow]) -> BudgetVerdict:
        """Judge a budget in one stage, or in all repetitions of it."""
        if budget.regression:
            verdict = judge_regression(self._pair, budget, stages[0].group)
        else:
            verdict = measure(self._sampler, budget, stages)
        if verdict.outcome is Outcome.NO_DATA:
            return verdict
        if verdict.outcome is Outcome.PASS:
            verdict = self._with_failures(verdict, stages)
        verdict = with_caveats(verdict, self._recording, self._drifts, stages[0].group)
        broken = {check: None for stage in stages for check in self.health.broken(stage.name)}
        if verdict.outcome is Outcome.FAIL:
            broken = {check: None for check in broken if not check.target_caused}
        if broken:
            return replace(verdict, outcome=Outcome.INVALID, reason=_why_invalid(list(broken)))
        return verdict

    def _with_failures(
        self, verdict: BudgetVerdict, stages: Sequence[StageWindow]
    ) -> BudgetVerdict:
        """Take back a PASS that only holds because failed requests have no latency.

        Failures are the business of `error_rate`, `goodput` and `e2el_all` budgets. Where none
        covers the step, a quantile must also hold with every failure counted as over the limit, a
        regression needs a baseline that failed as often, and a mean or maximum says nothing.
        """
        budget = verdict.budget
        if budget.statistic == "" or not budget.upper or budget.metric == "e2el_all":
            return verdict
        outcomes = self._sampler.outcomes(budget, stages)
        failed = 0 if outcomes is None else int(outcomes.failed.sum())
        if outcomes is None or not failed or self._failures_are_judged(budget, stages[0].group):
            return verdict
        if budget.regression and self._pair:
            if not self._pair.fails_more(stages[0].group, budget):
                return verdict
        elif budget.quantile is not None:
            n, k = verdict.n + failed, (verdict.over or 0) + failed
            bounds = stats.share_bounds(n, k, budget.confidence, vif=verdict.vif)
            if bounds[1] <= 1 - budget.quantile:
                return verdict
        reason = (
            f"{format_count(failed)} of {format_count(int(outcomes.total.sum()))} requests failed "
            f"and no error_rate budget says how many may: add one for {budget.step}"
        )
        return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason)

    def _failures_are_judged(self, budget: Budget, group: str) -> bool:
        return any(
            b.metric in ("error_rate", "goodput", "e2el_all")
            and (budget.regression or not b.regression)
            and b.step in (budget.step, RUN)
            and b.stage in (None, group)
            for b in self._budgets
        )


def _not_recorded(budget: Budget, groups: Sequence[str]) -> BudgetVerdict:
    """Judge a budget of a stage that was not recorded, or does not exist: never a pass."""
    return BudgetVerdict(
        budget=budget,
        stage=budget.stage or "",
        outcome=Outcome.NO_DATA,
        reason="no such stage was recorded; the recorded ones were "
        + (", ".join(groups) or "none"),
    )


def _why_invalid(broken: Sequence[Check]) -> str:
    first = broken[0]
    return (
        f"the measurement was not fit ({first.name[0].lower()}{first.name[1:]} {first.measured}, "
        f"must be {first.must}): {first.remedy}"
    )


def _overall(
    recording: Recording,
    recorded: Sequence[StageWindow],
    judged: Sequence[BudgetVerdict],
    health: Health,
) -> Outcome:
    finished = sum(
        requests.n - requests.n_failed
        for requests in (recording.requests(stage.name, RUN) for stage in recorded)
    )
    if any(b.outcome is Outcome.FAIL for b in judged):
        return Outcome.FAIL
    if not finished:
        return Outcome.NO_DATA
    if not judged:
        return Outcome.PASS if health.valid else Outcome.INVALID
    return judged[0].outcome if judged[0].outcome is not Outcome.NO_DATA else Outcome.INVALID


def _headline(
    outcome: Outcome, judged: Sequence[BudgetVerdict], recording: Recording
) -> tuple[str, str]:
    """One sentence for the top of every report, and what more there is to say."""
    if outcome is Outcome.NO_DATA:
        return _headline_no_data(judged, recording)
    if not judged:
        return "No budgets were declared; this run was only measured.", ""
    worst = judged[0]
    group = [b for b in judged if b.outcome is worst.outcome]
    rest = " ".join(b.sentence for b in group[1:3])
    total = len(judged)
    if outcome is Outcome.PASS:
        noun = "budget passes" if total == 1 else "budgets pass"
        used = format_ratio_of_limit(worst.used or 0.0)
        head = "The only" if total == 1 else f"All {format_count(total)}"
        return f"{head} {noun}. The closest uses {used} of its limit.", worst.sentence
    if outcome is Outcome.FAIL:
        return worst.sentence, f"Also over: {rest}" if rest else ""
    if outcome is Outcome.INCONCLUSIVE:
        noun = "budget" if total == 1 else "budgets"
        return f"{len(group)} of {total} {noun} cannot be decided yet.", worst.sentence
    unfit = sum(b.outcome in (Outcome.INVALID, Outcome.NO_DATA) for b in judged)
    noun = "budget was" if unfit == 1 else "budgets were"
    return f"{unfit} {noun} not measured.", worst.sentence


def _headline_no_data(judged: Sequence[BudgetVerdict], recording: Recording) -> tuple[str, str]:
    planned = sum(recording.load_totals(stage.name).planned for stage in recording.stages)
    first = recording.run.get("first_failure")
    declared = "1 budget is" if len(judged) == 1 else f"{format_count(len(judged))} budgets are"
    detail = (
        f"{declared} declared, none was judged. "
        f"0 of {format_count(planned)} planned requests got an answer."
    )
    if first:
        detail += f" First error: {first}."
    return "No request finished, so no budget could be judged.", detail
