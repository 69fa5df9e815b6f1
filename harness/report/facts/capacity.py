"""How much load the limit allows: the load levels of one run by the rate they reached."""

from __future__ import annotations

from dataclasses import dataclass

from harness.recorder import Recording, Series, StageWindow
from harness.report.facts.subject import Subject, WhyNot, percentiles_of, series_of
from harness.verdict import Outcome

MIN_LEVELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One load level of the capacity chart, for the subject's quantile."""

    stage: str
    planned: float
    reached: float
    percentiles: tuple[float | None, float | None, float | None]
    observed: float | None
    low: float | None
    high: float | None
    outcome: Outcome | None
    short: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Load levels by reached rate; `holds` the highest that passes below every other outcome."""

    levels: tuple[Level, ...]
    holds: Level | None
    breaks: Level | None


def capacity(
    recording: Recording, subject: Subject | None, invalid: frozenset[str]
) -> Knee | WhyNot:
    """Return the recorded stages as load levels; a curve needs several."""
    levels = [
        _level(recording, stage, series, subject, invalid)
        for stage, series in series_of(recording, subject)
        if stage.record and subject is not None
    ]
    loads = {s.load for s in recording.stages if s.record}
    if len({level.planned for level in levels}) < MIN_LEVELS:
        one = len(loads) == 1
        return WhyNot(
            f"{'One load level' if one else f'{len(loads)} load levels'}: "
            f"the capacity curve needs at least {MIN_LEVELS}."
        )
    levels.sort(key=lambda level: level.reached)
    first_bad = next((i for i, lv in enumerate(levels) if lv.outcome is not Outcome.PASS), None)
    failed = next((lv for lv in levels if lv.outcome is Outcome.FAIL), None)
    good = levels if first_bad is None else levels[:first_bad]
    return Knee(
        levels=tuple(levels),
        holds=good[-1] if good else None,
        breaks=failed,
    )


def _level(
    recording: Recording,
    stage: StageWindow,
    series: Series,
    subject: Subject,
    invalid: frozenset[str],
) -> Level:
    totals = recording.load_totals(stage.name)
    reached = totals.sent / (stage.end_s - stage.start_s)
    planned = reached if stage.planned_rate_per_s is None else stage.planned_rate_per_s
    verdict = subject.judged.get(stage.group)
    return Level(
        stage=stage.name,
        planned=planned,
        reached=reached,
        percentiles=percentiles_of(series.total),
        observed=verdict.observed if verdict else None,
        low=verdict.low if verdict else None,
        high=verdict.high if verdict else None,
        outcome=verdict.outcome if verdict else None,
        short=stage.name in invalid,
    )
