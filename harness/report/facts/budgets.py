"""How much of its limit each budget uses, its interval included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.verdict import BudgetVerdict, Outcome
from harness.verdict.outcome import used_share

FOLD_ABOVE, CLOSEST_PASSES = 15, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUse:
    """Shares of the limit (of a lower limit, of the allowed loss); 1 is the limit itself.

    `low` and `high` end the interval, the better end first; None is an end that the sample cannot
    give. What was not measured properly has no interval: `bounded` is false. `runs` are the
    repetitions, each by itself.
    """

    observed: float
    low: float | None
    high: float | None
    bounded: bool
    runs: tuple[float, ...] = ()


def limit_use(verdict: BudgetVerdict, runs: Sequence[float | None] = ()) -> LimitUse | None:
    """Return how much of its limit a budget uses; None where nothing was observed.

    An improvement on a baseline uses nothing of what it might have grown.
    """
    if verdict.used is None:
        return None
    low, high = (_share(verdict, end) for end in (verdict.low, verdict.high))
    if not verdict.budget.upper:
        low, high = high, low
    return LimitUse(
        observed=verdict.used,
        low=low,
        high=high,
        bounded=verdict.outcome is not Outcome.INVALID and (low, high) != (None, None),
        runs=tuple(use for run in runs if (use := _share(verdict, run)) is not None),
    )


def _share(verdict: BudgetVerdict, value: float | None) -> float | None:
    share = used_share(verdict.budget, value)
    return None if share is None else max(0.0, share)


def fold(
    budgets: Sequence[BudgetVerdict],
) -> tuple[Sequence[BudgetVerdict], Sequence[BudgetVerdict]]:
    """Split many budgets into those to show and passes to fold away; both stay worst first."""
    if len(budgets) <= FOLD_ABOVE:
        return budgets, ()
    bad = sum(v.outcome is not Outcome.PASS for v in budgets)
    return budgets[: bad + CLOSEST_PASSES], budgets[bad + CLOSEST_PASSES :]
