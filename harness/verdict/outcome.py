"""What judging yields: the outcome of each budget, of the run, and how both are said."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from harness import metrics
from harness.budget import Budget
from harness.errors import ExitCode
from harness.health import Health
from harness.stats.evidence import Evidence
from harness.units import NARROW_SPACE, format_count, format_ratio_of_limit, format_share


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
_LEAST_SHARE = 0.0001
WORST_FIRST = list(Outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetVerdict:
    """One budget in one stage. Values are in the limit's own unit (ns, tokens, share, 1/s or n$).

    `observed` is None where there are too few samples to show it, though they may decide the
    budget. `low` and `high` end the interval of the statistic, each at the budget's confidence;
    None where the sample cannot give an end. `over` of `allowed` samples were beyond the limit.
    `used` is the share of the limit used; of a lower limit, the share of the allowed loss.
    `effective_n` is how many independent samples would say as much, where dependence was measured;
    `vif` the variance inflation behind it. A `fact` is judged by what was seen alone: its PASS says
    nothing of the truth, so that it has no interval. `outage` says how the target stopped for good,
    where that broke the budget.
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
    effective_n: float | None = None
    vif: float = 1.0
    fact: bool = False
    outage: str | None = None

    @property
    def sentence(self) -> str:
        """What a manager reads."""
        only = "; a fact about this run, not a bound" if self._shows_a_fact else ""
        return f"{self._finding}{only}."

    @property
    def _shows_a_fact(self) -> bool:
        return self.fact and self.outcome is Outcome.PASS

    @property
    def _finding(self) -> str:
        budget, where = self.budget, f"in {self.stage}"
        if self.observed is None or self.used is None:
            return f"{budget.subject} {self._unseen(where)}"
        value = format_value(budget, self.observed)
        limit = format_limit(budget)
        if self.outcome in (Outcome.INVALID, Outcome.NO_DATA):
            return f"{budget.subject} cannot be judged {where}: {self.reason}"
        if self.outcome is Outcome.INCONCLUSIVE:
            return f"{budget.subject} was {value} {where}, but {self.reason}"
        if self.outage is not None:
            return f"{self.outage}: {budget.subject} was {value} {where}, its limit is {limit}"
        if budget.upper:
            return (
                f"{budget.subject} was {value} {where}, {format_ratio_of_limit(self.used)}"
                f"{'' if self.used > 1 else ' of'} its {limit} limit"
            )
        return f"{budget.subject} was {value} {where}, must be at least {limit}"

    def _unseen(self, where: str) -> str:
        """Say what a budget came to without an observed value."""
        if self.outcome in (Outcome.INVALID, Outcome.NO_DATA) or self.over is None:
            return f"was not measured {where}: {self.reason}"
        if self.outcome is Outcome.INCONCLUSIVE:
            return f"cannot be told {where}: {self.reason}"
        verb = "breaks" if self.outcome is Outcome.FAIL else "keeps"
        counts = f"{format_count(self.over)} of {format_count(self.n)} samples"
        return f"{verb} its {format_limit(self.budget)} limit {where}: {counts} were beyond it"

    @property
    def evidence(self) -> str:
        """What an engineer checks."""
        budget = self.budget
        parts = [f"{self.outcome} {budget.text}"]
        if self.n:
            percent = format_share(budget.confidence)
            ends = [
                "?" if end is None else format_bound(budget, end) for end in (self.low, self.high)
            ]
            if self.observed is not None:
                parts[0] += f": observed {format_value(budget, self.observed)}"
            if self.low is not None or self.high is not None:
                parts.append(f"at {percent} between {ends[0]} and {ends[1]}")
            few = self.effective_n is not None and round(self.effective_n) < self.n
            effective = f" (effective {format_count(round(self.effective_n or 0))})" if few else ""
            parts.append(f"n={format_count(self.n)}{effective}")
        if self.over is not None and self.allowed is not None:
            parts.append(
                f"{format_count(self.over)} beyond the limit, {format_count(self.allowed)} allowed"
            )
        if self._shows_a_fact:
            parts.append("a fact about this run, not a bound")
        if self.reason:
            parts.append(self.reason)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict of a run; `budgets` stand worst first.

    `judged_by` is the plan whose budgets they are, where that is not the run's own.
    """

    outcome: Outcome
    budgets: tuple[BudgetVerdict, ...]
    health: Health
    sentence: str
    detail: str
    judged_by: str | None = None

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
    return metrics.format_value(value, budget.kind, budget.time_unit)


def format_bound(budget: Budget, end: float) -> str:
    """Write an end of an interval: a share near zero that no limit is about is only `<0.01 %`."""
    least = min(_LEAST_SHARE, budget.limit / 100)
    if budget.kind == "share" and 0 < end < least:
        return f"<{f'{least * 100:.12f}'.rstrip('0')}{NARROW_SPACE}%"
    return format_value(budget, end)


def format_limit(budget: Budget) -> str:
    """Write the limit as it was declared, with a space before the unit."""
    return format_value(budget, budget.limit)


def outcome_of(passes: bool, fails: bool) -> Outcome:
    """Return what a budget comes to that is shown to hold, shown to be broken, or neither."""
    if passes:
        return Outcome.PASS
    return Outcome.FAIL if fails else Outcome.INCONCLUSIVE


def by_evidence(
    found: Evidence,
    budget: Budget,
    stage: str,
    *,
    passes: bool | None = None,
    fails: bool | None = None,
    observed: float | None,
    low: float | None = None,
    high: float | None = None,
    reason: str | None,
) -> BudgetVerdict:
    """Judge by what samples beyond a limit, or bad requests, say of their true share.

    `passes` and `fails` are those of the evidence unless they are given.
    """
    return BudgetVerdict(
        budget=budget,
        stage=stage,
        outcome=outcome_of(
            found.passes if passes is None else passes, found.fails if fails is None else fails
        ),
        observed=observed,
        low=low,
        high=high,
        n=found.n,
        over=found.k,
        allowed=int(found.n * found.allowed + 1e-9),
        used=used_share(budget, observed),
        reason=reason,
        effective_n=found.effective_n,
        vif=found.vif_pass,
    )


def used_share(budget: Budget, observed: float | None) -> float | None:
    """Return the share of the limit that was used; of a lower limit, of the allowed loss."""
    if observed is None:
        return None
    if budget.upper:
        return observed / budget.limit if budget.limit else (0.0 if not observed else float("inf"))
    if budget.kind == "share":
        loss = 1 - budget.limit
        return (1 - observed) / loss if loss else (0.0 if observed == 1 else float("inf"))
    return budget.limit / observed if observed else float("inf")
