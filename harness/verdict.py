"""Budgets, a recording and its health become one verdict. Pure: a saved run can be judged again.

A budget PASSes when its whole interval lies on the good side of the limit, FAILs when it lies on
the bad side, and is INCONCLUSIVE between. A stage whose measurement was unfit is INVALID. No data
is never a pass, and neither are failures that no budget limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from harness import stats
from harness.budget import RUN, Budget
from harness.errors import ExitCode
from harness.health import Check, Health, assess
from harness.recorder import Recording, Requests, Series, StageWindow
from harness.units import (
    format_count,
    format_duration,
    format_rate,
    format_ratio_of_limit,
    format_share,
)


class Outcome(StrEnum):
    """What a budget, or the run, came to; worst first."""

    FAIL = "FAIL"
    INVALID = "INVALID"
    NO_DATA = "NO DATA"
    INCONCLUSIVE = "INCONCLUSIVE"
    PASS = "PASS"  # noqa: S105 - no password


EXIT_CODES = {
    Outcome.FAIL: ExitCode.FAIL,
    Outcome.INVALID: ExitCode.INVALID,
    Outcome.NO_DATA: ExitCode.INVALID,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    Outcome.PASS: ExitCode.PASS,
}
_WORST_FIRST = list(Outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetVerdict:
    """One budget in one stage. Values are in the limit's own unit (ns, tokens, share, per second).

    `low` and `high` end the interval of the observed statistic, each at the budget's confidence;
    None where the sample cannot give an end. `over` of `allowed` samples were beyond the limit.
    `used` is the share of the limit used; of a lower limit, the share of the allowed loss.
    """

    budget: Budget
    stage: str
    outcome: Outcome
    observed: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    over: int | None = None
    allowed: int | None = None
    used: float | None = None
    reason: str | None = None

    @property
    def sentence(self) -> str:
        """What a manager reads."""
        budget, where = self.budget, f"in {self.stage}"
        if self.observed is None or self.used is None:
            return f"{budget.subject} was not measured {where}: {self.reason}."
        value = format_value(budget, self.observed)
        limit = format_limit(budget)
        if self.outcome in (Outcome.INVALID, Outcome.NO_DATA):
            return f"{budget.subject} cannot be judged {where}: {self.reason}."
        if self.outcome is Outcome.INCONCLUSIVE:
            return f"{budget.subject} was {value} {where}, but {self.reason}."
        if budget.upper:
            return (
                f"{budget.subject} was {value} {where}, {format_ratio_of_limit(self.used)}"
                f"{'' if self.used > 1 else ' of'} its {limit} limit."
            )
        return f"{budget.subject} was {value} {where}, must be at least {limit}."

    @property
    def evidence(self) -> str:
        """What an engineer checks."""
        budget = self.budget
        parts = [f"{self.outcome} {budget.text}"]
        if self.observed is not None:
            percent = format_share(budget.confidence)
            ends = [
                "?" if end is None else format_value(budget, end) for end in (self.low, self.high)
            ]
            parts[0] += f": observed {format_value(budget, self.observed)}"
            if self.low is not None or self.high is not None:
                parts.append(f"at {percent} between {ends[0]} and {ends[1]}")
            parts.append(f"n={format_count(self.n)}")
        if self.over is not None and self.allowed is not None:
            parts.append(
                f"{format_count(self.over)} beyond the limit, {format_count(self.allowed)} allowed"
            )
        if self.reason:
            parts.append(self.reason)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict of a run; `budgets` stand worst first."""

    outcome: Outcome
    budgets: tuple[BudgetVerdict, ...]
    health: Health
    sentence: str
    detail: str

    @property
    def exit_code(self) -> ExitCode:
        """What the command ends with."""
        return EXIT_CODES[self.outcome]

    def tallies(self) -> dict[Outcome, int]:
        """Return how many budgets came to each outcome, worst first, without zeros."""
        counts = Counter(budget.outcome for budget in self.budgets)
        return {outcome: counts[outcome] for outcome in _WORST_FIRST if counts[outcome]}


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
    judged.sort(key=lambda b: (_WORST_FIRST.index(b.outcome), -(b.used or 0.0)))
    outcome = _overall(recording, recorded, judged, health)
    sentence, detail = _headline(outcome, judged, recording)
    return Verdict(
        outcome=outcome, budgets=tuple(judged), health=health, sentence=sentence, detail=detail
    )


def format_value(budget: Budget, value: float) -> str:
    """Write an observed value in the unit of the budget's limit."""
    if budget.kind == "time":
        return format_duration(value, unit=budget.time_unit)
    if budget.kind == "share":
        return format_share(value)
    if budget.kind == "rate":
        return format_rate(value)
    return format_count(round(value))


def format_limit(budget: Budget) -> str:
    """Write the limit as it was declared, with a space before the unit."""
    return format_value(budget, budget.limit)


def _judge_in(
    recording: Recording,
    health: Health,
    budgets: Iterable[Budget],
    budget: Budget,
    stage: StageWindow,
) -> BudgetVerdict:
    verdict = _measure(recording, budget, stage)
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


def _measure(recording: Recording, budget: Budget, stage: StageWindow) -> BudgetVerdict:
    """Judge as if the measurement were fit and every request had succeeded."""
    if budget.metric in ("error_rate", "goodput"):
        return _judge_share(recording, budget, stage.name)
    if budget.metric == "rate":
        return _judge_rate(recording, budget, stage)
    series = recording.series(stage.name, budget.step, budget.metric)
    if series is None:
        return BudgetVerdict(
            budget=budget,
            stage=stage.name,
            outcome=Outcome.NO_DATA,
            reason=_why_no_data(recording, budget, stage.name),
        )
    if budget.statistic == "mean":
        return _judge_mean(series, budget, stage.name)
    if budget.statistic == "max":
        return _judge_max(series, budget, stage.name)
    return _judge_quantile(series, budget, stage)


def _judge_quantile(series: Series, budget: Budget, stage: StageWindow) -> BudgetVerdict:
    assert budget.quantile is not None
    q, c, histogram = budget.quantile, budget.confidence, series.total
    n = histogram.n
    exact = series.over(budget.threshold)
    fewest, most = (
        histogram.count_over(budget.threshold)
        if exact is None
        else (int(exact.sum()), int(exact.sum()))
    )
    if not budget.upper:  # p50 > 100: the share at or below the limit must stay under q
        fewest, most = n - most, n - fewest
    beyond = 1 - q if budget.upper else q
    passes = stats.share_bounds(n, most, c)[1] <= beyond
    fails = stats.share_bounds(n, fewest, c)[0] > beyond
    observed = histogram.quantile(q)
    low, high = stats.quantile_interval(histogram, q, c)
    reason = None
    if not passes and not fails:
        reason = _why_undecided(n, most, q if budget.upper else 1 - q, c, high, stage)
    if exact is None:
        note = "the limit was not declared when this run was recorded: judged at the bucket's edge"
        reason = f"{reason}; {note}" if reason else note
    return BudgetVerdict(
        budget=budget,
        stage=stage.name,
        outcome=_outcome(passes, fails),
        observed=observed,
        low=low,
        high=high,
        n=n,
        over=most,
        allowed=int(n * beyond + 1e-9),
        used=_used(budget, observed),
        reason=reason,
    )


def _judge_mean(series: Series, budget: Budget, stage: str) -> BudgetVerdict:
    n, observed = int(series.n.sum()), float(series.sum.sum() / series.n.sum())
    ends = stats.mean_interval(
        series.sum.astype(np.float64), series.n.astype(np.float64), budget.confidence
    )
    low, high = ends or (None, None)
    passes, fails = _sides(budget, low, high)
    reason = None
    if ends is None:
        reason = f"a mean needs 20 intervals with samples, has {len(series.n)}"
    elif not passes and not fails:
        reason = "its interval crosses the limit; a longer run narrows it"
    return BudgetVerdict(
        budget=budget,
        stage=stage,
        outcome=_outcome(passes, fails),
        observed=observed,
        low=low,
        high=high,
        n=n,
        used=_used(budget, observed),
        reason=reason,
    )


def _judge_max(series: Series, budget: Budget, stage: str) -> BudgetVerdict:
    """The largest sample is a fact about this run: it has no interval and claims no more."""
    largest = series.total.max
    assert largest is not None
    meets = largest <= budget.threshold if budget.upper else largest > budget.threshold
    return BudgetVerdict(
        budget=budget,
        stage=stage,
        outcome=Outcome.PASS if meets else Outcome.FAIL,
        observed=largest,
        n=series.total.n,
        used=_used(budget, largest),
    )


def _judge_share(recording: Recording, budget: Budget, stage: str) -> BudgetVerdict:
    requests = recording.requests(stage, budget.step)
    n = requests.n
    if not n:
        return BudgetVerdict(
            budget=budget,
            stage=stage,
            outcome=Outcome.NO_DATA,
            reason=_why_no_data(recording, budget, stage),
        )
    goodput = budget.metric == "goodput"
    k = n - requests.n_good if goodput else requests.n_failed
    allowed = 1 - budget.limit if goodput else budget.limit
    lower, upper = stats.share_bounds(n, k, budget.confidence)
    passes, fails = upper <= allowed, lower > allowed
    if allowed <= 0:  # no sample proves "never": what is left is the fact about this run
        passes, fails = k == 0, k > 0
    observed = 1 - k / n if goodput else k / n
    reason = None
    if not passes and not fails:
        reason = _why_undecided_share(n, k, allowed, budget.confidence)
    return BudgetVerdict(
        budget=budget,
        stage=stage,
        outcome=_outcome(passes, fails),
        observed=observed,
        low=1 - upper if goodput else lower,
        high=1 - lower if goodput else upper,
        n=n,
        over=k,
        allowed=int(n * allowed + 1e-9),
        used=_used(budget, observed),
        reason=reason,
    )


def _judge_rate(recording: Recording, budget: Budget, stage: StageWindow) -> BudgetVerdict:
    """Successful requests that ended within the stage, per second of it: a fact about this run."""
    requests = recording.requests(stage.name, budget.step)
    if not requests.n:
        return BudgetVerdict(
            budget=budget,
            stage=stage.name,
            outcome=Outcome.NO_DATA,
            reason=_why_no_data(recording, budget, stage.name),
        )
    inside = requests.t_s < stage.end_s
    done = int((requests.total - requests.failed)[inside].sum())
    observed = done / (stage.end_s - stage.start_s)
    meets = observed >= budget.limit if budget.op == ">=" else observed > budget.limit
    return BudgetVerdict(
        budget=budget,
        stage=stage.name,
        outcome=Outcome.PASS if meets else Outcome.FAIL,
        observed=observed,
        n=requests.n,
        used=_used(budget, observed),
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


def _outcome(passes: bool, fails: bool) -> Outcome:
    if passes:
        return Outcome.PASS
    return Outcome.FAIL if fails else Outcome.INCONCLUSIVE


def _sides(budget: Budget, low: float | None, high: float | None) -> tuple[bool, bool]:
    if low is None or high is None:
        return False, False
    if budget.upper:
        return high < budget.limit, low >= budget.limit
    return low > budget.limit, high <= budget.limit


def _used(budget: Budget, observed: float | None) -> float | None:
    if observed is None:
        return None
    if budget.upper:
        return observed / budget.limit if budget.limit else (0.0 if not observed else float("inf"))
    if budget.kind == "share":
        loss = 1 - budget.limit
        return (1 - observed) / loss if loss else (0.0 if observed == 1 else float("inf"))
    return budget.limit / observed if observed else float("inf")


def _why_undecided(
    n: int, k: int, q: float, confidence: float, high: int | None, stage: StageWindow
) -> str:
    has = f"has {format_count(n)}"
    if high is None:
        return f"needs at least {format_count(stats.samples_to_pass(q, confidence))} samples, {has}"
    needed = stats.samples_to_decide(n, k, q, confidence)
    if needed is None:
        return f"it lies too close to its limit to be decided by more samples, {has}"
    minutes = (needed - n) / n * (stage.end_s - stage.start_s) / 60
    return (
        f"needs about {format_count(needed - n)} more samples "
        f"({minutes:,.1f} min at this rate), {has}"
    )


def _why_undecided_share(n: int, k: int, allowed: float, confidence: float) -> str:
    needed = stats.samples_to_decide(n, k, 1 - allowed, confidence)
    if needed is None:
        return f"it lies too close to its limit to be decided, has {format_count(n)} requests"
    return f"needs about {format_count(needed)} requests, has {format_count(n)}"


def _why_no_data(recording: Recording, budget: Budget, stage: str) -> str:
    known = recording.steps(stage)
    if not known:
        return "no request finished"
    if budget.step != RUN and budget.step not in known:
        return f"no step {budget.step} ran; the steps were {', '.join(known[:8])}"
    requests = recording.requests(stage, budget.step)
    if requests.n and requests.n_failed == requests.n:
        return f"all {format_count(requests.n)} requests failed ({_worst_kind(requests)})"
    return f"{budget.step} gave no {budget.metric}"


def _why_invalid(broken: Sequence[Check]) -> str:
    first = broken[0]
    return (
        f"the measurement was not fit ({first.name[0].lower()}{first.name[1:]} {first.measured}, "
        f"must be {first.must}): {first.remedy}"
    )


def _worst_kind(requests: Requests) -> str:
    return next(iter(requests.kinds))


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
