"""Budgets that must hold in every span of time: `over: 10s`."""

from __future__ import annotations

import numpy as np

from harness import stats
from harness.budget import Budget
from harness.stats import WindowEvidence, Windows
from harness.stats.windows import IntArray
from harness.units import format_count
from harness.verdict.lacking import why_undecided
from harness.verdict.outcome import BudgetVerdict, by_evidence
from harness.verdict.samples import Repetitions, Samples, joined


def judge_spans(samples: Samples) -> BudgetVerdict:
    """Judge `over 10s`: every span of that length must hold; observed is the worst of them."""
    budget = samples.budget
    fewest, most = samples.beyond
    found = _window_evidence(samples, most)
    fails = found.fails if fewest is most else _window_evidence(samples, fewest).fails
    return by_evidence(
        found.whole,
        budget,
        samples.of.group,
        passes=found.passes,
        fails=fails,
        observed=_quantile_in(samples, found),
        reason=_reason(found, budget, samples.of.seconds, samples.in_system_s),
    )


def judge_share_spans(stage: Repetitions, budget: Budget) -> BudgetVerdict:
    """Judge a share that must hold in every span: as the quantile of 1 for bad and 0 for good."""
    goodput = budget.metric == "goodput"
    whole, runs = joined(stage.bad(budget.step, budget.metric))
    k, n = (counts.astype(np.int64) for counts in whole[:2])
    bad = np.flatnonzero(k)
    windows = Windows(
        length_s=whole.length_s,
        n=n,
        window=np.concatenate([np.arange(len(n)), bad]),
        value=np.concatenate([np.zeros_like(n), np.ones_like(bad)]),
        count=np.concatenate([n - k, k[bad]]),
    )
    met = budget.limit if goodput else 1 - budget.limit
    found = stats.window_evidence(
        windows, k, met, budget.confidence, span_s=_span_s(budget), runs=runs
    )
    worst = found.worst_share
    return by_evidence(
        found.whole,
        budget,
        stage.group,
        passes=found.passes,
        fails=found.fails,
        observed=1 - worst if goodput and worst is not None else worst,
        reason=_reason(found, budget, stage.seconds, None),
    )


def _span_s(budget: Budget) -> float:
    assert budget.over_ns is not None
    return budget.over_ns / 1e9


def _quantile_in(samples: Samples, found: WindowEvidence) -> int | None:
    """Return the quantile of the worst span; None where none is judged."""
    assert samples.budget.quantile is not None
    if found.worst is None:
        return None
    part = samples.windows.between(*found.windows_of(found.worst))
    return min(part.quantile(samples.budget.quantile), samples.largest)


def _window_evidence(samples: Samples, over: IntArray) -> WindowEvidence:
    budget = samples.budget
    assert budget.quantile is not None
    return stats.window_evidence(
        samples.windows,
        over,
        budget.quantile,
        budget.confidence,
        span_s=_span_s(budget),
        upper=budget.upper,
        in_system_s=samples.in_system_s,
        runs=samples.runs,
    )


def _reason(
    found: WindowEvidence, budget: Budget, seconds: float, in_system_s: float | None
) -> str:
    """Say how many windows broke the limit, and what is missing where that decides nothing."""
    windows = f"{format_count(found.spans)} windows of {_span_s(budget):g}s"
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
    return f"{said}, but of the whole: " + why_undecided(found.whole, seconds, in_system_s)
