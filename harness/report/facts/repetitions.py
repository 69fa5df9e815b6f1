"""What each repetition of a load showed by itself: how much the target differs between runs."""

from __future__ import annotations

from harness.recorder import Recording, StageWindow
from harness.stats import supported
from harness.verdict import BudgetVerdict


def by_run(recording: Recording, verdict: BudgetVerdict) -> tuple[float | None, ...]:
    """Return what was observed in each repetition of the verdict's stage; empty without several.

    None is a repetition that cannot carry the statistic, and what has no value for a whole run:
    budgets that must hold in every window, and rates.
    """
    runs = [s for s in recording.stages if s.record and s.group == verdict.stage]
    if len(runs) < 2 or verdict.budget.regression:
        return ()
    return tuple(_observed(recording, stage, verdict) for stage in runs)


def _observed(recording: Recording, stage: StageWindow, verdict: BudgetVerdict) -> float | None:
    budget = verdict.budget
    if budget.over_ns is not None:
        return None
    if budget.metric in ("error_rate", "goodput"):
        requests = recording.requests(stage.name, budget.step)
        count = requests.n_failed if budget.metric == "error_rate" else requests.n_good
        return count / requests.n if requests.n and count is not None else None
    series = recording.series(stage.name, budget.step, budget.metric)
    if series is None:
        return None
    if budget.quantile is not None:
        total = series.total
        return total.quantile(budget.quantile) if supported(total.n, budget.quantile) else None
    return {"mean": series.total.mean, "max": series.total.max}.get(budget.statistic)
