"""A run becomes one verdict: each budget where it applies, what voids a PASS, the headline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness import stats
from harness.budget import RUN, Budget
from harness.health import Check, Health, assess
from harness.recorder import Recording, StageWindow
from harness.units import format_count, format_ratio_of_limit
from harness.verdict.measure import measure
from harness.verdict.outcome import WORST_FIRST, BudgetVerdict, Outcome, Verdict


def judge(recording: Recording, budgets: Sequence[Budget]) -> Verdict:
    """Judge every budget in every recorded stage it names (all of them when it names none)."""
    health = assess(recording, budgets)
    recorded = [stage for stage in recording.stages if stage.record]
    judged = [
        _judge_in(recording, health, budgets, budget, stage)
        for budget in budgets
        for stage in recorded
        if budget.stage in (None, stage.name)
    ]
    judged += [_not_recorded(recording, budget) for budget in budgets if _unknown(budget, recorded)]
    judged.sort(key=lambda b: (WORST_FIRST.index(b.outcome), -(b.used or 0.0)))
    outcome = _overall(recording, recorded, judged, health)
    sentence, detail = _headline(outcome, judged, recording)
    return Verdict(
        outcome=outcome, budgets=tuple(judged), health=health, sentence=sentence, detail=detail
    )


def _judge_in(
    recording: Recording,
    health: Health,
    budgets: Iterable[Budget],
    budget: Budget,
    stage: StageWindow,
) -> BudgetVerdict:
    verdict = measure(recording, budget, stage)
    if verdict.outcome is Outcome.NO_DATA:
        return verdict
    if verdict.outcome is Outcome.PASS:
        verdict = _with_failures(verdict, recording, budgets)
    broken = health.broken(stage.name)
    if verdict.outcome is Outcome.FAIL:
        broken = tuple(check for check in broken if not check.target_caused)
    if broken:
        return replace(verdict, outcome=Outcome.INVALID, reason=_why_invalid(broken))
    return verdict


def _unknown(budget: Budget, recorded: Sequence[StageWindow]) -> bool:
    return budget.stage is not None and all(budget.stage != stage.name for stage in recorded)


def _not_recorded(recording: Recording, budget: Budget) -> BudgetVerdict:
    """Judge a budget of a stage that was not recorded, or does not exist: never a pass."""
    names = ", ".join(stage.name for stage in recording.stages if stage.record) or "none"
    return BudgetVerdict(
        budget=budget,
        stage=budget.stage or "",
        outcome=Outcome.NO_DATA,
        reason=f"no such stage was recorded; the recorded ones were {names}",
    )


def _with_failures(
    verdict: BudgetVerdict, recording: Recording, budgets: Iterable[Budget]
) -> BudgetVerdict:
    """Take back a PASS that only holds because failed requests have no latency.

    Failures are the business of `error_rate`, `goodput` and `e2el_all` budgets. Where none covers
    the step, a quantile must also hold with every failure counted as over the limit, and a mean or
    maximum says nothing.
    """
    budget = verdict.budget
    if budget.statistic == "" or not budget.upper or budget.metric == "e2el_all":
        return verdict
    requests = recording.requests(verdict.stage, budget.step)
    failed = requests.n_failed
    covered = any(
        b.metric in ("error_rate", "goodput", "e2el_all")
        and b.step in (budget.step, RUN)
        and b.stage in (None, verdict.stage)
        for b in budgets
    )
    if not failed or covered:
        return verdict
    if budget.quantile is not None:
        n, k = verdict.n + failed, (verdict.over or 0) + failed
        if stats.share_bounds(n, k, budget.confidence)[1] <= 1 - budget.quantile:
            return verdict
    reason = (
        f"{format_count(failed)} of {format_count(requests.n)} requests failed and no "
        f"error_rate budget says how many may: add one for {budget.step}"
    )
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason)


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
