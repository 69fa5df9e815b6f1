"""One budget against its samples, as if the measurement were fit and every request had succeeded.

What an aggregate cannot show, the largest sample or the rate of a short run, is a fact about the
run alone: it is held against the limit without bounds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harness import stats
from harness.budget import Budget
from harness.stats import MeanEvidence, QuantileEvidence
from harness.stats.windows import IntArray
from harness.verdict.ends import at_both_ends
from harness.verdict.lacking import why_no_data, why_undecided, why_unresolved
from harness.verdict.outcome import BudgetVerdict, Outcome, by_evidence, outcome_of, used_share
from harness.verdict.samples import Repetitions, Samples, joined, mean_of, share_of
from harness.verdict.spans import judge_share_spans, judge_spans


def measure(stage: Repetitions, budget: Budget) -> BudgetVerdict:
    """Judge a budget in a stage, all repetitions of it together.

    Where stamps stand for intervals, it holds or is broken only if it does at both ends of all.
    """
    verdict = _measure(stage, budget)
    if not stage.is_unsure(budget.step, budget.metric):
        return verdict
    least, most = (_measure(end, budget) for end in stage.ends())
    return at_both_ends(verdict, least, most, stage)


def _measure(stage: Repetitions, budget: Budget) -> BudgetVerdict:
    if budget.metric in ("error_rate", "goodput"):
        some = stage.requests(budget.step)
        fact = _allowed_share(budget) <= 0  # it needs no spans
        by_share = _judge_share if fact or budget.over_ns is None else judge_share_spans
        return by_share(stage, budget) if some else _no_data(stage, budget)
    if budget.metric == "rate":
        some = stage.requests(budget.step)
        return _judge_rate(stage, budget) if some else _no_data(stage, budget)
    samples = stage.samples(budget)
    if samples is None:
        return _no_data(stage, budget)
    if budget.statistic == "mean":
        return _judge_mean(samples)
    if budget.statistic == "max":
        return _judge_max(samples)
    return _judge_quantile(samples) if budget.over_ns is None else judge_spans(samples)


def _judge_quantile(samples: Samples) -> BudgetVerdict:
    fewest, most = samples.beyond
    found = _quantile_evidence(samples, most)
    exact = fewest is most or np.array_equal(fewest, most)
    fails = found.fails if exact else _quantile_evidence(samples, fewest).fails
    reason = None
    if not found.passes and not fails:
        reason = why_undecided(found, samples.of.seconds, samples.in_system_s)
    if not exact:
        note = "the limit was not declared when this run was recorded: judged at the bucket's edge"
        reason = f"{reason}; {note}" if reason else note
    return by_evidence(
        found,
        samples.budget,
        samples.of.group,
        fails=fails,
        observed=samples.quantile,
        low=found.low,
        high=None if found.high is None else min(found.high, samples.largest),
        reason=reason,
    )


def _quantile_evidence(samples: Samples, over: IntArray) -> QuantileEvidence:
    budget = samples.budget
    assert budget.quantile is not None
    return stats.quantile_evidence(
        samples.windows,
        over,
        budget.quantile,
        budget.confidence,
        upper=budget.upper,
        in_system_s=samples.in_system_s,
        runs=samples.runs,
        far_beyond=samples.far_beyond,
    )


def _allowed_share(budget: Budget) -> float:
    """Return the share of bad requests that an `error_rate` or a `goodput` allows."""
    allowed = 1 - budget.limit if budget.metric == "goodput" else budget.limit
    return min(max(allowed, 0.0), 1.0)


def _judge_share(stage: Repetitions, budget: Budget) -> BudgetVerdict:
    goodput = budget.metric == "goodput"
    allowed = _allowed_share(budget)
    bad = stage.bad(budget.step, budget.metric)
    found = share_of(bad, allowed, budget.confidence)
    passes, fails, reason = found.passes, found.fails, None
    fact = allowed <= 0  # no sample proves "never": what is left is what this run was like
    if fact:
        passes, fails = not found.k, found.k > 0
    elif not passes and not fails:
        reason = why_undecided(found, stage.seconds)
    share, low, high = found.k / found.n, found.lower, found.upper
    verdict = by_evidence(
        found,
        budget,
        stage.group,
        passes=passes,
        fails=fails,
        observed=1 - share if goodput else share,
        low=1 - high if goodput else low,
        high=1 - low if goodput else high,
        reason=reason,
    )
    return replace(verdict, low=None, high=None, fact=True) if fact else verdict


def _judge_mean(samples: Samples) -> BudgetVerdict:
    budget, stage = samples.budget, samples.of
    runs = stage.sums(budget.step, budget.metric)
    whole, _ = joined(runs)
    observed = float(whole.sums.sum() / whole.counts.sum())
    found = mean_of(runs, budget.confidence)
    return _by_mean(found, budget, stage, observed, samples.windows.total)


def _judge_rate(stage: Repetitions, budget: Budget) -> BudgetVerdict:
    """Successful requests that ended within the stage, per second of it."""
    runs = stage.done(budget.step)
    whole, _ = joined(runs)
    n = round(float(whole.sums.sum()) * whole.length_s)
    observed = n / (len(whole.sums) * whole.length_s)
    found = mean_of(runs, budget.confidence)
    if found is None:
        return _by_fact(observed, n, budget, stage.group)
    return _by_mean(found, budget, stage, observed, n)


def _judge_max(samples: Samples) -> BudgetVerdict:
    return _by_fact(samples.largest, samples.windows.total, samples.budget, samples.of.group)


def _by_fact(observed: float, n: int, budget: Budget, group: str) -> BudgetVerdict:
    """Judge what has no interval and claims no more than what was seen."""
    meets, _ = _sides(budget, observed, observed)
    return BudgetVerdict(
        budget=budget,
        stage=group,
        outcome=Outcome.PASS if meets else Outcome.FAIL,
        observed=observed,
        n=n,
        used=used_share(budget, observed),
        fact=True,
    )


def _by_mean(
    found: MeanEvidence | None, budget: Budget, stage: Repetitions, observed: float, n: int
) -> BudgetVerdict:
    """Judge a mean or rate by its bounds; None are there of too few windows."""
    passes, fails, reason = False, False, None
    if found is None:
        reason = f"a mean needs {stats.MIN_WINDOWS} intervals with samples"
    else:
        passes, fails = _sides(budget, found.low, found.high)
        if passes and found.too_short:
            passes, reason = False, why_unresolved(found, stage.seconds)
        elif not passes and not fails:
            reason = "its bounds cross the limit; a longer run narrows them"
    return BudgetVerdict(
        budget=budget,
        stage=stage.group,
        outcome=outcome_of(passes, fails),
        observed=observed,
        low=found.low if found else None,
        high=found.high if found else None,
        n=n,
        used=used_share(budget, observed),
        reason=reason,
    )


def _no_data(stage: Repetitions, budget: Budget) -> BudgetVerdict:
    """Judge a budget that has nothing to be judged on: never a pass."""
    return BudgetVerdict(
        budget=budget,
        stage=stage.group,
        outcome=Outcome.NO_DATA,
        reason=why_no_data(stage, budget),
    )


def _sides(budget: Budget, low: float, high: float) -> tuple[bool, bool]:
    """Whether bounds lie on the good side of the limit, and whether on the bad one."""
    limit, inclusive = budget.limit, budget.op in ("<=", ">=")
    if budget.upper:
        met = high <= limit if inclusive else high < limit
        return met, low > limit if inclusive else low >= limit
    met = low >= limit if inclusive else low > limit
    return met, high < limit if inclusive else high <= limit
