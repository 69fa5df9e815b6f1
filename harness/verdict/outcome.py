"""What judging yields: the outcome of each budget, of the run, and how both are said."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from harness.budget import Budget
from harness.errors import ExitCode
from harness.health import Health
from harness.units import (
    format_count,
    format_duration,
    format_rate,
    format_ratio_of_limit,
    format_share,
)


class Outcome(StrEnum):
    """What a budget, or the run, came to; worst first."""

    FAIL = "FAIL"
    INVALID = "INVALID"
    NO_DATA = "NO DATA"
    INCONCLUSIVE = "INCONCLUSIVE"
    PASS = "PASS"  # noqa: S105 - no password


EXIT_CODES = {
    Outcome.FAIL: ExitCode.FAIL,
    Outcome.INVALID: ExitCode.INVALID,
    Outcome.NO_DATA: ExitCode.INVALID,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    Outcome.PASS: ExitCode.PASS,
}
WORST_FIRST = list(Outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetVerdict:
    """One budget in one stage. Values are in the limit's own unit (ns, tokens, share, per second).

    `low` and `high` end the interval of the observed statistic, each at the budget's confidence;
    None where the sample cannot give an end. `over` of `allowed` samples were beyond the limit.
    `used` is the share of the limit used; of a lower limit, the share of the allowed loss.
    """

    budget: Budget
    stage: str
    outcome: Outcome
    observed: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    over: int | None = None
    allowed: int | None = None
    used: float | None = None
    reason: str | None = None

    @property
    def sentence(self) -> str:
        """What a manager reads."""
        budget, where = self.budget, f"in {self.stage}"
        if self.observed is None or self.used is None:
            return f"{budget.subject} was not measured {where}: {self.reason}."
        value = format_value(budget, self.observed)
        limit = format_limit(budget)
        if self.outcome in (Outcome.INVALID, Outcome.NO_DATA):
            return f"{budget.subject} cannot be judged {where}: {self.reason}."
        if self.outcome is Outcome.INCONCLUSIVE:
            return f"{budget.subject} was {value} {where}, but {self.reason}."
        if budget.upper:
            return (
                f"{budget.subject} was {value} {where}, {format_ratio_of_limit(self.used)}"
                f"{'' if self.used > 1 else ' of'} its {limit} limit."
            )
        return f"{budget.subject} was {value} {where}, must be at least {limit}."

    @property
    def evidence(self) -> str:
        """What an engineer checks."""
        budget = self.budget
        parts = [f"{self.outcome} {budget.text}"]
        if self.observed is not None:
            percent = format_share(budget.confidence)
            ends = [
                "?" if end is None else format_value(budget, end) for end in (self.low, self.high)
            ]
            parts[0] += f": observed {format_value(budget, self.observed)}"
            if self.low is not None or self.high is not None:
                parts.append(f"at {percent} between {ends[0]} and {ends[1]}")
            parts.append(f"n={format_count(self.n)}")
        if self.over is not None and self.allowed is not None:
            parts.append(
                f"{format_count(self.over)} beyond the limit, {format_count(self.allowed)} allowed"
            )
        if self.reason:
            parts.append(self.reason)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict of a run; `budgets` stand worst first."""

    outcome: Outcome
    budgets: tuple[BudgetVerdict, ...]
    health: Health
    sentence: str
    detail: str

    @property
    def exit_code(self) -> ExitCode:
        """What the command ends with."""
        return EXIT_CODES[self.outcome]

    def tallies(self) -> dict[Outcome, int]:
        """Return how many budgets came to each outcome, worst first, without zeros."""
        counts = Counter(budget.outcome for budget in self.budgets)
        return {outcome: counts[outcome] for outcome in WORST_FIRST if counts[outcome]}


def format_value(budget: Budget, value: float) -> str:
    """Write an observed value in the unit of the budget's limit."""
    if budget.kind == "time":
        return format_duration(value, unit=budget.time_unit)
    if budget.kind == "share":
        return format_share(value)
    if budget.kind == "rate":
        return format_rate(value)
    return format_count(round(value))


def format_limit(budget: Budget) -> str:
    """Write the limit as it was declared, with a space before the unit."""
    return format_value(budget, budget.limit)
