"""What an early end and an overload make of a budget's verdict: they take a PASS back.

An overload is also why its stage cannot be decided: latencies that grow come in one long spell.
But a latency that is over its limit already will be further over it the longer the load lasts.

A load that was ended because a budget could no longer be met is a FAIL of that budget: the rest of
it would have changed nothing (`stats.abort`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.recorder import Recording
from harness.steadiness import Drift, overload_in
from harness.units import format_count
from harness.verdict.outcome import BudgetVerdict, Outcome


def with_caveats(
    verdict: BudgetVerdict, recording: Recording, drifts: Sequence[Drift], group: str
) -> BudgetVerdict:
    """Return the verdict of a budget in the stage `group` as an early end or an overload leaves it.

    `drifts` are those of `steadiness.find_drifts(recording)`.
    """
    aborted: dict[str, Any] | None = recording.run.get("aborted")
    if aborted and (aborted["budget"], aborted["stage"]) == (verdict.budget.text, group):
        verdict = replace(verdict, outcome=Outcome.FAIL, reason=aborted["why"])
        if aborted["over"] is None:
            return verdict
        return replace(verdict, over=aborted["over"], allowed=aborted["allowed"])
    if aborted and verdict.outcome is Outcome.FAIL:
        return _without_cut_off(verdict, recording, group)
    if aborted and verdict.outcome is Outcome.PASS:
        reason = f"the load was {aborted['why']}"
        return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason)
    overload = overload_in(drifts, group)
    if overload and verdict.outcome in (Outcome.PASS, Outcome.INCONCLUSIVE):
        outcome = Outcome.FAIL if _grows_with_the_queue(verdict) else Outcome.INCONCLUSIVE
        return replace(verdict, outcome=outcome, reason=overload.sentence)
    return verdict


def _grows_with_the_queue(verdict: BudgetVerdict) -> bool:
    """Whether a limit that is missed already is one that ever more requests will miss."""
    budget = verdict.budget
    missed = verdict.over is not None and verdict.over > (verdict.allowed or 0)
    return missed and budget.upper and budget.kind == "time" and not budget.regression


def _without_cut_off(verdict: BudgetVerdict, recording: Recording, group: str) -> BudgetVerdict:
    """Take back a FAIL that only the requests make which the early end itself cut off."""
    totals = [recording.load_totals(stage.name) for stage in recording.repetitions(group)]
    cut_off = sum(total.cut_off for total in totals)
    counted = verdict.over is not None and verdict.allowed is not None
    if verdict.budget.metric not in ("error_rate", "goodput") or not cut_off or not counted:
        return verdict
    if (verdict.over or 0) - cut_off > (verdict.allowed or 0):
        return verdict
    reason = f"the early end of the load cut off {format_count(cut_off)} requests"
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason)
