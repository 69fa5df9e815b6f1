"""One budget against one stage's samples, as if the measurement were fit."""

from __future__ import annotations

import numpy as np

from harness import stats
from harness.budget import RUN, Budget
from harness.recorder import Recording, Requests, Series, StageWindow
from harness.units import format_count
from harness.verdict.outcome import BudgetVerdict, Outcome


def measure(recording: Recording, budget: Budget, stage: StageWindow) -> BudgetVerdict:
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


def _worst_kind(requests: Requests) -> str:
    return next(iter(requests.kinds))
