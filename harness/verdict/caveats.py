"""What an early end and an overload make of a budget's verdict: they take a PASS back.

An overload is also why its stage cannot be decided: latencies that grow come in one long spell.
But a latency that is over its limit already will be further over it the longer the load lasts.

A load that was ended because a budget could no longer be met is a FAIL of that budget: the rest of
it would have changed nothing (`stats.abort`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.steadiness import find_drifts, overload_in
from harness.units import format_count
from harness.verdict.outcome import BudgetVerdict, Outcome
from harness.verdict.samples import Repetitions


def with_caveats(verdict: BudgetVerdict, stage: Repetitions) -> BudgetVerdict:
    """Return the verdict of a budget in a stage as an early end or an overload leaves it."""
    aborted = stage.recording.run.get("aborted")
    if aborted and (aborted["budget"], aborted["stage"]) == (verdict.budget.text, stage.group):
        return _doomed(verdict, aborted)
    if aborted and verdict.outcome is Outcome.FAIL:
        return _without_cut_off(verdict, stage)
    if aborted and verdict.outcome is Outcome.PASS:
        reason = f"the load was {aborted['why']}"
        return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason)
    overload = overload_in(find_drifts(stage.recording), stage.group)
    if overload and verdict.outcome in (Outcome.PASS, Outcome.INCONCLUSIVE):
        outcome = Outcome.FAIL if _grows_with_the_queue(verdict) else Outcome.INCONCLUSIVE
        return replace(verdict, outcome=outcome, reason=overload.sentence)
    return verdict


def _doomed(verdict: BudgetVerdict, aborted: dict[str, Any]) -> BudgetVerdict:
    """Fail the budget for which the load was ended, by the counts that ended it."""
    verdict = replace(verdict, outcome=Outcome.FAIL, reason=aborted["why"])
    if aborted["over"] is None:
        return verdict
    return replace(verdict, over=aborted["over"], allowed=aborted["allowed"])


def _grows_with_the_queue(verdict: BudgetVerdict) -> bool:
    """Whether a limit that is missed already is one that ever more requests will miss."""
    budget = verdict.budget
    missed = verdict.over is not None and verdict.over > (verdict.allowed or 0)
    return missed and budget.upper and budget.kind == "time" and not budget.regression


def _without_cut_off(verdict: BudgetVerdict, stage: Repetitions) -> BudgetVerdict:
    """Take back a FAIL that only the requests make which the early end itself cut off."""
    cut_off = sum(stage.recording.load_totals(one.name).cut_off for one in stage.stages)
    if verdict.budget.metric not in ("error_rate", "goodput") or not cut_off:
        return verdict
    if verdict.over is None or verdict.allowed is None or verdict.over - cut_off > verdict.allowed:
        return verdict
    reason = f"the early end of the load cut off {format_count(cut_off)} requests"
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason)
