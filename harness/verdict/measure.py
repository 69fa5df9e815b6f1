"""One budget against its samples, as if the measurement were fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness import stats
from harness.budget import Budget
from harness.recorder import StageWindow
from harness.stats import MeanEvidence, QuantileEvidence
from harness.stats.windows import IntArray
from harness.verdict.lacking import why_no_data, why_undecided, why_undecided_share, why_unresolved
from harness.verdict.outcome import BudgetVerdict, Outcome, outcome_of, used_share
from harness.verdict.samples import Sampler, Samples, observed_quantile
from harness.verdict.spans import judge_share_spans, judge_spans


def measure(sampler: Sampler, budget: Budget, stages: Sequence[StageWindow]) -> BudgetVerdict:
    """Judge a stage, or all repetitions of it together, as if every request had succeeded."""
    if budget.metric in ("error_rate", "goodput"):
        return _judge_share(sampler, budget, stages)
    if budget.metric == "rate":
        return _judge_rate(sampler, budget, stages)
    samples = sampler.of(budget, stages)
    if samples is None:
        return no_data(budget, stages, why_no_data(sampler.recording, budget, stages))
    by_statistic = {"mean": _judge_mean, "max": _judge_max}
    by_quantile = _judge_quantile if budget.over_ns is None else judge_spans
    return by_statistic.get(budget.statistic, by_quantile)(samples, budget, stages)


def _judge_quantile(
    samples: Samples, budget: Budget, stages: Sequence[StageWindow]
) -> BudgetVerdict:
    assert budget.quantile is not None
    fewest, most = samples.beyond(upper=budget.upper)
    found = _quantile_evidence(samples, budget, most)
    exact = fewest is most or np.array_equal(fewest, most)
    fails = found.fails if exact else _quantile_evidence(samples, budget, fewest).fails
    observed = observed_quantile(samples, budget)
    reason = None
    if not found.passes and not fails:
        reason = why_undecided(found, budget, stages, samples.in_system_s)
    if not exact:
        note = "the limit was not declared when this run was recorded: judged at the bucket's edge"
        reason = f"{reason}; {note}" if reason else note
    return BudgetVerdict(
        budget=budget,
        stage=stages[0].group,
        outcome=outcome_of(found.passes, fails),
        observed=observed,
        low=found.low,
        high=None if found.high is None else min(found.high, samples.largest),
        n=found.n,
        over=found.k,
        allowed=int(found.n * found.allowed + 1e-9),
        used=used_share(budget, observed),
        reason=reason,
        effective_n=found.effective_n,
        vif=found.vif_pass,
    )


def _quantile_evidence(samples: Samples, budget: Budget, over: IntArray) -> QuantileEvidence:
    assert budget.quantile is not None
    return stats.quantile_evidence(
        samples.windows,
        over,
        budget.quantile,
        budget.confidence,
        upper=budget.upper,
        in_system_s=samples.in_system_s,
        runs=samples.runs,
        far_beyond=samples.far_beyond(budget),
    )


def _judge_mean(samples: Samples, budget: Budget, stages: Sequence[StageWindow]) -> BudgetVerdict:
    n = samples.windows.n
    observed = float(samples.sums.sum() / n.sum())
    found = stats.mean_evidence(
        samples.sums.astype(np.float64),
        n,
        budget.confidence,
        length_s=samples.windows.length_s,
        runs=samples.runs,
    )
    low, high = (found.low, found.high) if found else (None, None)
    passes, fails, reason = _by_mean(budget, found, stages)
    return BudgetVerdict(
        budget=budget,
        stage=stages[0].group,
        outcome=outcome_of(passes, fails),
        observed=observed,
        low=low,
        high=high,
        n=int(n.sum()),
        used=used_share(budget, observed),
        reason=reason,
    )


def _judge_max(samples: Samples, budget: Budget, stages: Sequence[StageWindow]) -> BudgetVerdict:
    """The largest sample is a fact about this run: it has no interval and claims no more."""
    largest = samples.largest
    meets = largest <= budget.threshold if budget.upper else largest > budget.threshold
    return BudgetVerdict(
        budget=budget,
        stage=stages[0].group,
        outcome=Outcome.PASS if meets else Outcome.FAIL,
        observed=largest,
        n=samples.windows.total,
        used=used_share(budget, largest),
    )


def _judge_share(sampler: Sampler, budget: Budget, stages: Sequence[StageWindow]) -> BudgetVerdict:
    outcomes = sampler.outcomes(budget, stages)
    if outcomes is None:
        return no_data(budget, stages, why_no_data(sampler.recording, budget, stages))
    goodput = budget.metric == "goodput"
    beyond = outcomes.total - outcomes.good if goodput else outcomes.failed
    if budget.over_ns is not None:
        return judge_share_spans(sampler, budget, stages, outcomes.total, beyond)
    n, k = int(outcomes.total.sum()), int(beyond.sum())
    allowed = 1 - budget.limit if goodput else budget.limit
    found = stats.share_evidence(
        outcomes.total,
        beyond,
        min(max(allowed, 0.0), 1.0),
        budget.confidence,
        length_s=sampler.recording.interval_s,
        runs=outcomes.runs,
    )
    passes, fails, reason = found.passes, found.fails, None
    if allowed <= 0:  # no sample proves "never": what is left is the fact about this run
        passes, fails = k == 0, k > 0
    elif not passes and not fails:
        reason = why_undecided_share(found, budget, stages)
    observed = 1 - k / n if goodput else k / n
    return BudgetVerdict(
        budget=budget,
        stage=stages[0].group,
        outcome=outcome_of(passes, fails),
        observed=observed,
        low=1 - found.upper if goodput else found.lower,
        high=1 - found.lower if goodput else found.upper,
        n=n,
        over=k,
        allowed=int(n * allowed + 1e-9),
        used=used_share(budget, observed),
        reason=reason,
        effective_n=found.effective_n,
        vif=found.vif_pass,
    )


def _judge_rate(sampler: Sampler, budget: Budget, stages: Sequence[StageWindow]) -> BudgetVerdict:
    """Successful requests that ended within the stage, per second of it.

    A stage of fewer than 20 intervals has no bounds of it: what it reached is a fact of this run.
    """
    done, runs = sampler.done(budget, stages)
    if not done.sum():
        n = sum(sampler.recording.requests(stage.name, budget.step).n for stage in stages)
        if not n:
            return no_data(budget, stages, why_no_data(sampler.recording, budget, stages))
    interval_s = sampler.recording.interval_s
    observed = float(done.sum()) / (len(done) * interval_s)
    found = stats.mean_evidence(
        done / interval_s,
        np.ones(len(done), dtype=np.int64),
        budget.confidence,
        length_s=interval_s,
        runs=runs,
    )
    low, high = (found.low, found.high) if found else (None, None)
    passes, fails, reason = _by_mean(budget, found, stages)
    if found is None:
        passes, _ = _sides(budget, observed, observed)
        fails, reason = not passes, None
    return BudgetVerdict(
        budget=budget,
        stage=stages[0].group,
        outcome=outcome_of(passes, fails),
        observed=observed,
        low=low,
        high=high,
        n=int(done.sum()),
        used=used_share(budget, observed),
        reason=reason,
    )


def _by_mean(
    budget: Budget, found: MeanEvidence | None, stages: Sequence[StageWindow]
) -> tuple[bool, bool, str | None]:
    """Whether a mean or rate is shown to meet its limit, or to break it; else what is missing."""
    if found is None:
        return False, False, "a mean needs 20 intervals with samples"
    passes, fails = _sides(budget, found.low, found.high)
    if passes and not found.resolved:
        return False, False, why_unresolved(found, stages)
    if not passes and not fails:
        return False, False, "its bounds cross the limit; a longer run narrows them"
    return passes, fails, None


def no_data(budget: Budget, stages: Sequence[StageWindow], reason: str) -> BudgetVerdict:
    """Judge a budget that has nothing to be judged on: never a pass."""
    return BudgetVerdict(
        budget=budget, stage=stages[0].group, outcome=Outcome.NO_DATA, reason=reason
    )


def _sides(budget: Budget, low: float, high: float) -> tuple[bool, bool]:
    """Whether bounds lie on the good side of the limit, and whether on the bad one."""
    limit, inclusive = budget.limit, budget.op in ("<=", ">=")
    if budget.upper:
        met = high <= limit if inclusive else high < limit
        return met, low > limit if inclusive else low >= limit
    met = low >= limit if inclusive else low > limit
    return met, high < limit if inclusive else high <= limit
