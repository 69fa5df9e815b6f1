"""A run folder read back: all that `gate`, `report` and `compare` know about a run.

Tolerates what a crash leaves behind (a missing last interval, half a last line). Histograms are
decoded when asked for; exact counts need no decoding.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import RecordingError
from harness.recorder.folder import REQUESTS_FILE, read_run
from harness.recorder.histogram import IntArray, unit_of
from harness.recorder.losses import find_losses
from harness.recorder.reading import (
    DAMAGE,
    as_count,
    as_number,
    check_names,
    json_lines,
    read_intervals,
)
from harness.recorder.record import LEAST, MOST, RUN, Key, Load
from harness.recorder.series import Figures, FloatArray, Requests, Series

REPETITION_MARK = "~"  # steady, steady~2, …: no declared name holds it
_DAY_S = 86_400
_MOST_INTERVALS = 10_000_000  # 115 days of seconds


def repetition_name(declared: str, repeat: int) -> str:
    """Return the name under which a repetition of a stage is recorded: `steady`, `steady~2`."""
    return declared if repeat == 1 else f"{declared}{REPETITION_MARK}{repeat}"


@dataclass(frozen=True, slots=True)
class StageWindow:
    """One stage of the load as planned; times in seconds since the run's start."""

    name: str
    start_s: float
    end_s: float
    record: bool
    load: str
    planned_rate_per_s: float | None
    max_in_flight: int | None = None
    repeat: int = 1
    """Which repetition of the load it belongs to, from 1 on."""
    ramp_s: float = 0.0
    """How long the users of a closed load took to start."""

    @property
    def group(self) -> str:
        """The name as declared, which all repetitions of the stage share."""
        return self.name.partition(REPETITION_MARK)[0]

    def intervals(self, interval_s: float) -> tuple[int, int]:
        """Return the first interval of the stage and the one after its last."""
        length_ns = round(interval_s * 1e9)
        start_ns, end_ns = round(self.start_s * 1e9), round(self.end_s * 1e9)
        return max(0, start_ns // length_ns), -(-end_ns // length_ns)


@dataclass(frozen=True, slots=True)
class StepSpan:
    """One step of a kept journey; times in ns since the journey's planned start."""

    step: str
    start_ns: int
    end_ns: int
    failure: str | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Journey:
    """One kept execution of a task, with its steps."""

    stage: str
    root: str
    t_s: float
    duration_ns: int
    ok: bool
    kept: str
    steps: tuple[StepSpan, ...]


@dataclass(frozen=True, slots=True)
class LoadTotals:
    """What became of one stage's arrivals; the maxima are over the stage's intervals.

    `sent` are the journeys that got as far as a request; `raised` those that an exception of the
    scenario's own ended, and `backed_off` the failed rounds of closed users that a pause followed.
    The rest is as in `Load`.
    """

    planned: int = 0
    sent: int = 0
    finished: int = 0
    failed: int = 0
    dropped: int = 0
    cut_off: int = 0
    waited: int = 0
    token_events: int = 0
    merged: int = 0
    raised: int = 0
    replies: int = 0
    streams: int = 0
    lumped: int = 0
    empty: int = 0
    unfinished: int = 0
    backed_off: int = 0
    max_in_flight: int = 0
    max_waiting: int = 0


@dataclass(frozen=True, slots=True)
class Timeline:
    """The load of the whole run, one entry per interval, without gaps."""

    t_s: FloatArray
    planned: IntArray
    sent: IntArray
    finished: IntArray
    failed: IntArray
    dropped: IntArray
    in_flight: IntArray
    waiting: IntArray
    cpu: FloatArray  # share of one core; NaN where not known


class Recording:
    """One saved run. Build it with `load_recording`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = read_run(folder)
        self.interval_s = as_number(self.run["interval_s"], above=0)
        self.stages = tuple(_stage(stage) for stage in self.run["stages"])
        last_s = max((stage.end_s for stage in self.stages), default=0)
        as_count(int(last_s / self.interval_s), at_most=_MOST_INTERVALS)
        _check_aborted(self.run.get("aborted"))
        check_names(self.run.get("status", "unknown"), self.run.get("clock", "unknown"))
        as_number(self.run.get("lost_reports", 0))
        check_names(self.run.get("first_exception") or "")
        as_number(self.run.get("machine", {}).get("cores") or 0)
        for value in (*self.run.get("reads", {}).values(), *self.run.get("clock_steps_s", ())):
            as_number(value)
        self._series: dict[tuple[str, str, str, str], Series | None] = {}
        self._requests: dict[tuple[str, str], Requests] = {}
        last = int((last_s + _DAY_S) / self.interval_s)
        self._intervals = read_intervals(folder, self.interval_s, last=last)
        self.losses = find_losses(self._intervals, self.run, self.stages, self.interval_s)
        self.clamped = self._intervals.clamped

    def stage(self, name: str) -> StageWindow:
        """Return the stage of that name; KeyError when there is none."""
        return {stage.name: stage for stage in self.stages}[name]

    def repetitions(self, group: str) -> tuple[StageWindow, ...]:
        """Return the stages that were declared as `group`, in the order of their repetitions."""
        return tuple(stage for stage in self.stages if stage.group == group)

    def steps(self, stage: str) -> tuple[str, ...]:
        """Return the steps seen in a stage: in order of appearance, parents before children."""
        seen = [step for where, step in self._intervals.endings if where == stage]
        tree = (
            sorted(
                {
                    "/".join(step.split("/")[:depth])
                    for step in seen
                    for depth in range(1, step.count("/") + 2)
                }
                - set(seen)
            )
            + seen
        )
        first = {name: tree.index(name) for name in tree}
        return tuple(
            sorted(
                seen,
                key=lambda step: [
                    first["/".join(step.split("/")[: depth + 1])]
                    for depth in range(step.count("/") + 1)
                ],
            )
        )

    def metrics(self, stage: str, step: str) -> tuple[str, ...]:
        """Return the metrics recorded for a step in a stage."""
        return tuple(
            metric
            for where, name, metric in self._intervals.figures
            if (where, name) == (stage, step) and not metric.endswith((LEAST, MOST))
        )

    def series(self, stage: str, step: str, metric: str, end: str = "") -> Series | None:
        """Return a metric's samples, None when there are none; step `run` is all root steps.

        With the `end` LEAST or MOST each is the least or the most that it can be, where its stamp
        stands for an interval.
        """
        wanted = (stage, step, metric, end)
        if wanted not in self._series:  # decoding is the cost, and many budgets share a series
            parts = [
                self._at_end(key, end)
                for key in self._intervals.figures
                if (key[0], key[2]) == (stage, metric) and _belongs(key[1], step)
            ]
            found = Series(self.interval_s, unit_of(metric), parts) if parts else None
            self._series[wanted] = found
        return self._series[wanted]

    def has_ends(self, stage: str, step: str, metric: str) -> bool:
        """Tell whether stamps stand for intervals in some of a metric's samples."""
        return any(
            (where, of) == (stage, metric + LEAST) and _belongs(name, step)
            for where, name, of in self._intervals.figures
        )

    def _at_end(self, key: Key, end: str) -> Figures:
        figures = self._intervals.figures
        stage, step, metric = key
        other = figures.get((stage, step, metric + end)) if end else None
        return figures[key] if other is None else figures[key].with_lines(other)

    def requests(self, stage: str, step: str) -> Requests:
        """Return how a step's executions ended; step `run` means all root steps."""
        if (stage, step) not in self._requests:
            parts = [
                endings
                for (where, name), endings in self._intervals.endings.items()
                if where == stage and _belongs(name, step)
            ]
            self._requests[stage, step] = Requests.of(self.interval_s, parts)
        return self._requests[stage, step]

    def load_totals(self, stage: str) -> LoadTotals:
        """Return what became of a stage's arrivals."""
        rows = self._intervals.load.get(stage, {}).values()
        if not rows:
            return LoadTotals()
        sums = {
            name: sum(row[name] for row in rows)
            for name in Load.__slots__
            if name not in ("in_flight", "waiting")
        }
        sums["sent"] -= sums.pop("unsent")
        return LoadTotals(
            **sums,
            max_in_flight=max(row["in_flight"] for row in rows),
            max_waiting=max(row["waiting"] for row in rows),
        )

    def load_by_interval(self, stage: str) -> Iterator[tuple[float, dict[str, int]]]:
        """Yield a stage's arrival counters with the start of their interval, seconds, ascending."""
        for index, load in sorted(self._intervals.load.get(stage, {}).items()):
            yield index * self.interval_s, load

    def longest_pauses(self, stage: StageWindow) -> tuple[int, int]:
        """Return the longest stall of a worker's event loop and its longest collection, ns."""
        first, last = stage.start_s / self.interval_s, stage.end_s / self.interval_s
        inside = [
            pauses for index, pauses in self._intervals.pauses.items() if first <= index < last
        ]
        return (
            max((stall for stall, _ in inside), default=0),
            max((collection for _, collection in inside), default=0),
        )

    @cached_property
    def timeline(self) -> Timeline:
        """The load of the run by interval, all stages together."""
        load, cpu_of = self._intervals.load, self._intervals.cpu
        size = max([*chain.from_iterable(load.values()), *cpu_of], default=-1) + 1
        sums = {name: np.zeros(size, dtype=np.int64) for name in Timeline.__slots__[1:-1]}
        for by_index in load.values():
            at = list(by_index)
            for name, array in sums.items():
                values = np.array([row[name] for row in by_index.values()], dtype=np.int64)
                both = np.maximum if name in ("in_flight", "waiting") else np.add
                array[at] = both(array[at], values)  # those two are of the whole run in every stage
        cpu = np.full(size, np.nan)
        cpu[list(cpu_of)] = list(cpu_of.values())
        return Timeline(t_s=np.arange(size, dtype=np.float64) * self.interval_s, cpu=cpu, **sums)

    @cached_property
    def journeys(self) -> tuple[Journey, ...]:
        """The kept journeys, in the order in which they ended; RecordingError when damaged."""
        try:
            return tuple(_journey(row) for row in json_lines(self.folder / REQUESTS_FILE))
        except DAMAGE as error:
            raise _damaged(self.folder / REQUESTS_FILE, error) from error


def load_recording(folder: Path) -> Recording:
    """Read a run folder.

    Raises RecordingError when it is not one, is damaged, or was written by an unknown version.
    """
    try:
        with _collection_paused():
            return Recording(folder)
    except DAMAGE as error:
        raise _damaged(folder, error) from error


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keep the collector from looking again and again through what is read: none of it goes."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _belongs(name: str, step: str) -> bool:
    """Whether a step is the one that was asked for, or one of the root steps that `run` means."""
    return name == step or (step == RUN and "/" not in name)


def _damaged(path: Path, error: Exception) -> RecordingError:
    return RecordingError(f"{path} is damaged: {type(error).__name__}: {error}")


def _check_aborted(aborted: Any) -> None:
    """Refuse what cannot be the reason for which a load was ended early."""
    if aborted is not None:
        as_number(aborted["t_s"])
        check_names(aborted["why"], aborted["budget"] or "", aborted["stage"] or "")
        for name in ("over", "allowed", "planned"):
            as_count(aborted[name] or 0)


def _stage(row: dict[str, Any]) -> StageWindow:
    stage = StageWindow(**row)
    check_names(stage.name, stage.load)
    as_count(stage.repeat)
    as_number(stage.ramp_s)
    as_number(as_number(stage.end_s) - as_number(stage.start_s), above=0)
    if stage.planned_rate_per_s is not None:
        as_number(stage.planned_rate_per_s)
    return stage


def _journey(row: dict[str, Any]) -> Journey:
    steps = tuple(StepSpan(**span) for span in row["steps"])
    check_names(row["stage"], row["root"], row["kept"], *(span.step for span in steps))
    ends = [t for span in steps for t in (span.start_ns, span.end_ns)]
    for value in (row["t_s"], row["duration_ns"], *ends):
        as_number(value)
    return Journey(
        stage=row["stage"],
        root=row["root"],
        t_s=row["t_s"],
        duration_ns=row["duration_ns"],
        ok=row["ok"],
        kept=row["kept"],
        steps=steps,
    )
