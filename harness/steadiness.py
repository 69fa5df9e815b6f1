"""Was the target in a steady state while it was judged? Overload, warm-up and trend, in words.

None of them breaks a budget. A stage that was overloaded passes none, since its latencies would
have gone on growing; a warm-up and a trend are said, and what to do about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np

from harness import stats
from harness.recorder import RUN, Recording, Series, StageWindow
from harness.stats.recorded import by_window, windows_of
from harness.units import (
    format_clock,
    format_duration,
    format_ratio_of_limit,
    format_share,
)

_CONFIDENCE = 0.95
_WHOLE_TIMES = ("e2el", "service", "request")  # of a request, in the system
_FIRST_TIMES = ("ttft", "ttfo")  # what a warm-up changes most
_LEAST_GROWTH = 1_000  # ns per s: what is less is no growth but the sums' last digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What was not steady in one stage; `t_s` counts seconds from the run's start.

    An overload begins at `t_s`, a warm-up ends there, a trend has none. `subject` is `chat.ttft`,
    or `run` for all requests. `ratio` is how many times as slow the warm-up was, or how many times
    as slow the stage's end is as its start. An overload has its rates per second, and how many ns
    per second latency grows (None where too little ended).
    """

    kind: Literal["overload", "trend", "warm-up"]
    stage: str
    subject: str
    t_s: float | None
    sentence: str
    ratio: float | None = None
    arrived_per_s: float | None = None
    ended_per_s: float | None = None
    growth_ns_per_s: float | None = None


_KNOWN: WeakKeyDictionary[Recording, tuple[Drift, ...]] = WeakKeyDictionary()


def find_drifts(recording: Recording) -> tuple[Drift, ...]:
    """Look at each recorded stage: an overload, or else what else was not steady in it.

    The chance of a false alarm is 5 % a stage. A recording is looked at once.
    """
    if recording not in _KNOWN:
        _KNOWN[recording] = _find_drifts(recording)
    return _KNOWN[recording]


def _find_drifts(recording: Recording) -> tuple[Drift, ...]:
    found: list[Drift] = []
    for stage in recording.stages:
        if stage.record:
            overload = _overload(recording, stage)
            found += [overload] if overload else _changes(recording, stage)
    return tuple(found)


def overload_in(drifts: Sequence[Drift], group: str) -> Drift | None:
    """Return the overload of a stage, or of one of its repetitions; None when there was none."""
    return next((d for d in drifts if d.kind == "overload" and d.stage == group), None)


def _overload(recording: Recording, stage: StageWindow) -> Drift | None:
    loads = list(recording.load_by_interval(stage.name))
    if stage.planned_rate_per_s is None or not loads:
        return None
    length_s = recording.interval_s
    index = np.array([round(t_s / length_s) for t_s, _ in loads], dtype=np.int64)
    size = round((stage.end_s - stage.start_s) / length_s)
    arrived = by_window([load["planned"] for _, load in loads], index, stage, length_s)[:size]
    ended = by_window([load["finished"] for _, load in loads], index, stage, length_s)[:size]
    n, sums = np.zeros_like(arrived), np.zeros_like(arrived)
    series = _first_of(recording, stage.name, RUN, _WHOLE_TIMES)
    if series is not None:
        n = by_window(series.n, series.index, stage, length_s)[:size]
        sums = by_window(series.sum, series.index, stage, length_s)[:size]
    found = stats.find_overload(arrived, ended, n, sums, length_s)
    if found is None:
        return None
    t_s = stage.start_s + found.start_s
    growth = found.growth_per_s
    grows = ""
    if growth and growth >= _LEAST_GROWTH:
        grows = f"latency grows {format_duration(growth)} per second, "
    return Drift(
        kind="overload",
        stage=stage.group,
        subject=RUN,
        t_s=t_s,
        arrived_per_s=found.arrived_per_s,
        ended_per_s=found.ended_per_s,
        growth_ns_per_s=growth,
        sentence=f"overload in {stage.group} since {format_clock(t_s)}: {grows}"
        f"{found.ended_per_s:.3g} of {found.arrived_per_s:.3g} requests/s complete",
    )


def _changes(recording: Recording, stage: StageWindow) -> list[Drift]:
    """Return at most one change of each root step, of the metric that shows it best."""
    steps = [step for step in recording.steps(stage.name) if "/" not in step]
    found = (_change(recording, stage, step, len(steps)) for step in steps)
    return [drift for drift in found if drift is not None]


def _change(recording: Recording, stage: StageWindow, step: str, steps: int) -> Drift | None:
    whole = _first_of(recording, stage.name, step, _WHOLE_TIMES)
    if whole is None:
        return None
    in_system = windows_of(recording, whole, stage)
    tested = [m for m in (*_FIRST_TIMES, *_WHOLE_TIMES) if m in recording.metrics(stage.name, step)]
    best: tuple[str, stats.WarmUp | stats.Trend, float] | None = None
    for metric in tested[:2]:
        series = recording.series(stage.name, step, metric)
        assert series is not None
        windows, before_s = stats.steady_part(
            windows_of(recording, series, stage),
            in_system,
            stage.end_s - stage.start_s,
            ramp_s=stage.ramp_s,
        )
        confidence = 1 - (1 - _CONFIDENCE) / (steps * len(tested[:2]))
        change = stats.find_drift(windows, confidence=confidence)
        if change and (best is None or change.p < best[1].p):
            best = f"{step}.{metric}", change, before_s
    return _told(stage, *best) if best else None


def _told(
    stage: StageWindow, subject: str, found: stats.WarmUp | stats.Trend, before_s: float
) -> Drift:
    if isinstance(found, stats.Trend):
        by = format_share(abs(found.ratio - 1))
        verb, what = ("rose", "grows") if found.ratio > 1 else ("fell", "changes")
        return Drift(
            kind="trend",
            stage=stage.group,
            subject=subject,
            t_s=None,
            ratio=found.ratio,
            sentence=f"{subject} {verb} by {by} in the course of {stage.group}: no steady state; "
            f"find what {what}, or run longer",
        )
    length_s = before_s + found.length_s
    after = f"until {format_duration(length_s * 1e9)} after the start of {stage.group}"
    return Drift(
        kind="warm-up",
        stage=stage.group,
        subject=subject,
        t_s=stage.start_s + length_s,
        ratio=found.ratio,
        sentence=f"{subject} was {format_ratio_of_limit(found.ratio)} what it was later {after}: "
        "an undeclared warm-up; add a stage of that length with record: false before it",
    )


def _first_of(recording: Recording, stage: str, step: str, metrics: Sequence[str]) -> Series | None:
    found = (recording.series(stage, step, metric) for metric in metrics)
    return next((series for series in found if series is not None), None)
