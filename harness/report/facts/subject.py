"""What the big charts are about: one metric of one step, chosen by how badly its budget fares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.budget import Budget
from harness.recorder import LEAST, MOST, Histogram, Recording, Series, StageWindow
from harness.recorder.recording import REPETITION_MARK
from harness.stats import supported
from harness.verdict import BudgetVerdict, Outcome
from harness.verdict.ends import differ

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WhyNot:
    """Why a chart is left out."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What the big charts show: one metric of one step, and its verdict in each judged stage."""

    step: str
    metric: str
    quantile: float
    budget: Budget | None
    judged: dict[str, BudgetVerdict]

    @property
    def name(self) -> str:
        """`chat.ttft`."""
        return f"{self.step}.{self.metric}"

    @property
    def span_s(self) -> float | None:
        """The length of the windows that must each hold, if the budget asks for such."""
        over_ns = self.budget.over_ns if self.budget else None
        return None if over_ns is None else over_ns / 1e9


def rank_budgets(budgets: Iterable[BudgetVerdict]) -> list[BudgetVerdict]:
    """Order latency budgets by what deserves the big charts; one for each metric of a step.

    The worst failing one, else one that was not measured, else the closest to its limit; last what
    stamps do not show.
    """
    rank = {Outcome.FAIL: 0, Outcome.INVALID: 1}
    timed = [v for v in budgets if v.budget.kind == "time" and v.n]
    timed.sort(
        key=lambda v: (
            v.budget.quantile is None,
            rank.get(v.outcome, 2),
            v.observed is None,
            -(v.used or 0.0),
        )
    )
    first: dict[tuple[str, str], BudgetVerdict] = {}
    for v in timed:
        first.setdefault((v.budget.step, v.budget.metric), v)
    return list(first.values())


def subject_of(
    recording: Recording, budgets: Sequence[BudgetVerdict], focus: BudgetVerdict | None
) -> Subject | None:
    """Return what that budget is about; without one, the first step's latency."""
    if focus is not None:
        b = focus.budget
        return Subject(
            step=b.step,
            metric=b.metric,
            quantile=b.quantile or 0.99,
            budget=b,
            judged={v.stage: v for v in reversed(budgets) if v.budget.subject == b.subject},
        )
    for stage in recording.stages:
        for step in recording.steps(stage.name):
            for metric in ("ttft", "e2el", "request"):
                if stage.record and recording.series(stage.name, step, metric):
                    return Subject(step=step, metric=metric, quantile=0.99, budget=None, judged={})
    return None


def series_of(recording: Recording, subject: Subject | None) -> list[tuple[StageWindow, Series]]:
    """Return the stages in which the subject has samples."""
    if subject is None:
        return []
    pairs = ((s, recording.series(s.name, subject.step, subject.metric)) for s in recording.stages)
    return [(stage, series) for stage, series in pairs if series is not None]


def unknown(recording: Recording, subject: Subject | None) -> WhyNot | None:
    """Say why the subject's times are not known; None where the stamps show them.

    Of events that came in one read a chart of the stamps would show gaps of nothing.
    """
    stages = [stage for stage, _ in series_of(recording, subject) if stage.record]
    if subject is None or not any(_is_wide(recording, stage.name, subject) for stage in stages):
        return None
    return WhyNot(f"{subject.name} is known only between two ends, too far apart to draw.")


def _is_wide(recording: Recording, stage: str, subject: Subject) -> bool:
    """Whether a quantile at the least that every sample can be is another than at the most."""
    if not recording.has_ends(stage, subject.step, subject.metric):
        return False
    both = [recording.series(stage, subject.step, subject.metric, end) for end in (LEAST, MOST)]
    for q in (0.5, subject.quantile):
        low, high = (series.total.quantile(q) or 0 if series else 0 for series in both)
        if differ(low, high):
            return True
    return False


def stage_name(name: str) -> str:
    """`steady`, or `steady, run 2` of one that was repeated."""
    group, mark, run = name.partition(REPETITION_MARK)
    return f"{group}, run {run}" if mark else group


def too_few(n: int, least: int, what: str = "finished requests") -> WhyNot:
    """Say how much a chart would need."""
    return WhyNot(f"Needs at least {least} {what}, has {n:,}.")


def percentiles_of(
    h: Histogram, quantiles: tuple[float, float, float] = (0.5, 0.95, 0.99)
) -> tuple[float | None, float | None, float | None]:
    """Return the quantiles; None where less than one sample is to be expected above."""
    a, b, c = (h.quantile(q) if supported(h.n, q) else None for q in quantiles)
    return a, b, c
