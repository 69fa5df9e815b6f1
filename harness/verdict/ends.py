"""A budget whose samples are intervals: several events came in one read, and share its stamp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from harness.health.streams import how_buffered, summed
from harness.units import format_share
from harness.verdict.outcome import BudgetVerdict, Outcome, used_share
from harness.verdict.samples import Repetitions

_SHORTEST_NS = 1000
_SAME = 0.1


def at_both_ends(
    verdict: BudgetVerdict, least: BudgetVerdict, most: BudgetVerdict, stage: Repetitions
) -> BudgetVerdict:
    """Return a verdict that holds wherever in its interval each sample was.

    `least` and `most` judge every sample at the least and at the most that it can be.
    """
    ends = (least, most)
    if least.outcome is most.outcome:
        closest = max(ends, key=lambda one: one.used or 0.0)
        base = verdict if least.outcome is Outcome.INCONCLUSIVE else closest
        outcome, reason = least.outcome, verdict.reason if base is verdict else base.reason
    else:
        base, outcome, reason = verdict, Outcome.INCONCLUSIVE, why_unsure(stage)
    observed = _shown(verdict, ends)
    if outcome is Outcome.INCONCLUSIVE and observed is None:
        reason = why_unsure(stage)  # more samples would not show it
    return replace(
        base,
        outcome=outcome,
        reason=reason,
        observed=observed,
        used=used_share(base.budget, observed),
        low=_from_nothing(_outer(min, [one.low for one in ends])),
        high=_outer(max, [one.high for one in ends]),
    )


def why_unsure(stage: Repetitions) -> str:
    """Say why the stamps of a stage do not decide it."""
    totals = summed(stage.recording, (one.name for one in stage.stages))
    share = totals.merged / max(1, totals.token_events)
    return (
        how_buffered(totals)
        or f"{format_share(share)} of the token events came in reads that held several, and when "
        "they came decides it"
    )


def _shown(verdict: BudgetVerdict, ends: tuple[BudgetVerdict, BudgetVerdict]) -> float | None:
    """Return the observed value; None where the ends show different ones."""
    low, high = (one.observed for one in ends)
    if verdict.observed is None or low is None or high is None:
        return None
    return None if differ(low, high) else verdict.observed


def differ(low: float, high: float) -> bool:
    """Tell whether two ends of an observed value are too far apart to show one."""
    return abs(high - low) > _SAME * abs(high)


def _from_nothing(low: float | None) -> float | None:
    """Return a lower bound; 0 where it is less than any time that is measured."""
    return 0.0 if low is not None and low < _SHORTEST_NS else low


def _outer(of: Callable[[list[float]], float], found: list[float | None]) -> float | None:
    known = [end for end in found if end is not None]
    return of(known) if len(known) == len(found) else None
