"""Budgets that must hold in every span of time: `over: 10s`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness import stats
from harness.budget import Budget
from harness.recorder import StageWindow
from harness.stats import WindowEvidence, Windows
from harness.stats.windows import IntArray
from harness.units import format_count
from harness.verdict.lacking import why_undecided
from harness.verdict.outcome import BudgetVerdict, outcome_of, used_share
from harness.verdict.samples import Sampler, Samples


def judge_spans(samples: Samples, budget: Budget, stages: Sequence[StageWindow]) -> BudgetVerdict:
    """Judge `over 10s`: every span of that length must hold; observed is the worst of them."""
    assert budget.quantile is not None
    fewest, most = samples.beyond(upper=budget.upper)
    found = _window_evidence(samples, budget, most)
    fails = found.fails if fewest is most else _window_evidence(samples, budget, fewest).fails
    whole = found.whole
    observed = _quantile_in(samples, budget, found.worst)
    return BudgetVerdict(
        budget=budget,
        stage=stages[0].group,
        outcome=outcome_of(found.passes, fails),
        observed=observed,
        n=whole.n,
        over=whole.k,
        allowed=int(whole.n * whole.allowed + 1e-9),
        used=used_share(budget, observed),
        reason=_spans_said(found, budget, stages, samples.in_system_s),
        effective_n=whole.effective_n,
        vif=whole.vif_pass,
    )


def _quantile_in(samples: Samples, budget: Budget, span: int | None) -> int | None:
    """Return the quantile of one span; None without one."""
    assert budget.quantile is not None
    if span is None:
        return None
    length = round((budget.over_ns or 0) / 1e9 / samples.windows.length_s)
    part = samples.windows.between(span * length, (span + 1) * length)
    return min(part.quantile(budget.quantile), samples.largest)


def judge_share_spans(
    sampler: Sampler,
    budget: Budget,
    stages: Sequence[StageWindow],
    total: IntArray,
    beyond: IntArray,
) -> BudgetVerdict:
    """Judge a share that must hold in every span: as the quantile of 1 for bad and 0 for good."""
    goodput = budget.metric == "goodput"
    allowed = 1 - budget.limit if goodput else budget.limit
    bad = np.flatnonzero(beyond)
    windows = Windows(
        length_s=sampler.recording.interval_s,
        n=total,
        window=np.concatenate([np.arange(len(total)), bad]),
        value=np.concatenate([np.zeros_like(total), np.ones_like(bad)]),
        count=np.concatenate([total - beyond, beyond[bad]]),
    )
    found = stats.window_evidence(
        windows, beyond, 1 - allowed, budget.confidence, span_s=(budget.over_ns or 0) / 1e9
    )
    whole = found.whole
    worst = found.worst_share
    observed = 1 - worst if goodput and worst is not None else worst
    return BudgetVerdict(
        budget=budget,
        stage=stages[0].group,
        outcome=outcome_of(found.passes, found.fails),
        observed=observed,
        n=whole.n,
        over=whole.k,
        allowed=int(whole.n * allowed + 1e-9),
        used=used_share(budget, observed),
        reason=_spans_said(found, budget, stages, None),
        effective_n=whole.effective_n,
        vif=whole.vif_pass,
    )


def _window_evidence(samples: Samples, budget: Budget, over: IntArray) -> WindowEvidence:
    assert budget.quantile is not None
    assert budget.over_ns is not None
    return stats.window_evidence(
        samples.windows,
        over,
        budget.quantile,
        budget.confidence,
        span_s=budget.over_ns / 1e9,
        upper=budget.upper,
        in_system_s=samples.in_system_s,
    )


def _spans_said(
    found: WindowEvidence,
    budget: Budget,
    stages: Sequence[StageWindow],
    in_system_s: float | None,
) -> str:
    """Say how many windows broke the limit, and what is missing where that decides nothing."""
    windows = f"{format_count(found.spans)} windows of {(budget.over_ns or 0) / 1e9:g}s"
    if found.thin:
        return (
            f"{format_count(len(found.thin))} of {windows} have fewer than the "
            f"{format_count(found.needed)} samples that {budget.statistic or 'the limit'} needs: "
            "raise the rate or lengthen the window"
        )
    said = f"{format_count(len(found.broke))} of {windows} broke it"
    if found.surely:
        return f"{said}, {format_count(len(found.surely))} beyond chance"
    if found.broke:
        return f"{said}, none beyond chance"
    if found.passes:
        return said
    return f"{said}, but the whole " + why_undecided(found.whole, budget, stages, in_system_s)
