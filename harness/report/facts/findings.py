"""All facts of one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.recorder import Recording
from harness.report.facts.capacity import Knee, capacity
from harness.report.facts.columns import Heat, Load, heat, load
from harness.report.facts.costs import Costs, costs
from harness.report.facts.distribution import Difference, Nines, difference, nines
from harness.report.facts.over_time import OverTime, Since, over_time
from harness.report.facts.repetitions import by_run
from harness.report.facts.subject import Subject, WhyNot, rank_budgets, subject_of, unknown
from harness.report.facts.tables import ErrorKind, StepTable, errors, step_tables
from harness.report.facts.waterfall import SlowStep, Waterfall, find_waterfall, slow_step
from harness.steadiness import Drift, find_drifts
from harness.verdict import BudgetVerdict, Outcome, Verdict
from harness.verdict.regression import Pair

MOST_OTHERS = 3
_NO_BASELINE = (
    "No baseline: give a saved run of the same plan, harness report RUN --baseline EARLIER_RUN."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a report says beyond the verdict itself.

    `others` are the same for other latency budgets that did not pass: they differ in what the
    charts over time and of the distribution show.
    """

    focus: BudgetVerdict | None
    subject: Subject | None
    invalid_stages: frozenset[str]
    end_s: float
    over_time: OverTime | WhyNot
    load: Load | WhyNot
    heat: Heat | WhyNot
    nines: Nines | WhyNot
    difference: Difference | WhyNot
    capacity: Knee | WhyNot
    waterfall: Waterfall | WhyNot
    slow_step: SlowStep | None
    steps: tuple[StepTable, ...]
    errors: tuple[ErrorKind, ...]
    costs: Costs | None = None
    others: tuple[Findings, ...] = ()
    drifts: tuple[Drift, ...] = ()
    repetitions: Mapping[tuple[str, str], tuple[float | None, ...]] = field(default_factory=dict)

    def runs_of(self, verdict: BudgetVerdict) -> tuple[float | None, ...]:
        """Return what each repetition showed of a budget; empty where there was one run."""
        return self.repetitions.get((verdict.budget.text, verdict.stage), ())

    @property
    def overloads(self) -> list[float]:
        """Since when the target could not keep up, once for each stage where it could not."""
        return [d.t_s for d in self.drifts if d.kind == "overload" and d.t_s is not None]

    @property
    def since(self) -> Since | None:
        """Since when the subject is over its limit, if it is at all."""
        return self.over_time.since if isinstance(self.over_time, OverTime) else None


def findings(recording: Recording, verdict: Verdict, baseline: Recording | None = None) -> Findings:
    """Compute all of it; a few hundred milliseconds for a run of an hour."""
    invalid = frozenset(s.name for s in recording.stages if verdict.health.broken(s.name))
    order = rank_budgets(verdict.budgets)
    waterfall = find_waterfall(recording, verdict.budgets, invalid)
    main = Findings(
        invalid_stages=invalid,
        end_s=_end_s(recording),
        load=load(recording),
        waterfall=waterfall,
        slow_step=slow_step(waterfall),
        steps=step_tables(recording),
        errors=errors(recording),
        costs=costs(recording),
        drifts=find_drifts(recording),
        repetitions={(v.budget.text, v.stage): by_run(recording, v) for v in verdict.budgets},
        difference=WhyNot(_NO_BASELINE),
        **_about(recording, verdict.budgets, order[0] if order else None, invalid),
    )
    if baseline is not None:
        main = replace(
            main,
            difference=unknown(recording, main.subject)
            or unknown(baseline, main.subject)
            or difference(Pair(baseline, recording), verdict, main.focus, main.subject, invalid),
        )
    others = [v for v in order[1:] if v.outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE)]
    return replace(
        main,
        others=tuple(
            replace(main, **_about(recording, verdict.budgets, v, invalid))
            for v in others[:MOST_OTHERS]
        ),
    )


def _about(
    recording: Recording,
    budgets: Sequence[BudgetVerdict],
    focus: BudgetVerdict | None,
    invalid: frozenset[str],
) -> dict[str, Any]:
    """Return the facts that depend on which budget the big charts are about."""
    subject = subject_of(recording, budgets, focus)
    why_not = unknown(recording, subject)
    return {
        "focus": focus,
        "subject": subject,
        "over_time": why_not or over_time(recording, subject, invalid),
        "heat": why_not or heat(recording, subject),
        "nines": why_not or nines(recording, subject),
        "capacity": why_not or capacity(recording, subject, invalid),
    }


def _end_s(recording: Recording) -> float:
    ends = [stage.end_s for stage in recording.stages]
    ends += [float(t) + recording.interval_s for t in recording.timeline.t_s[-1:]]
    return max(ends, default=0.0)
