"""A run folder read back: all that `gate`, `report` and `compare` know about a run.

Tolerates what a crash leaves behind (a missing last interval, half a last line). Histograms are
decoded when asked for; exact counts need no decoding.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from harness.errors import RecordingError
from harness.recorder.folder import (
    HLOG_FILE,
    INTERVALS_FILE,
    REQUESTS_FILE,
    read_run,
    tag_of,
)
from harness.recorder.histogram import (
    Histogram,
    IntArray,
    decode_cells,
    highest_values,
    unit_of,
)
from harness.recorder.record import RUN, Key, Load

REPETITION_MARK = "~"  # steady, steady~2, …: no declared name holds it
_DAY_S = 86_400
_MOST_INTERVALS = 10_000_000  # 115 days of seconds
_DAMAGE = (KeyError, TypeError, AttributeError, ValueError, ArithmeticError)

FloatArray = npt.NDArray[np.float64]
T = TypeVar("T")


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

    @property
    def group(self) -> str:
        """The name as declared, which all repetitions of the stage share."""
        return self.name.partition(REPETITION_MARK)[0]


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
    """What became of one stage's arrivals; the maxima are over the stage's intervals."""

    planned: int = 0
    sent: int = 0
    finished: int = 0
    failed: int = 0
    dropped: int = 0
    cut_off: int = 0
    waited: int = 0
    token_events: int = 0
    merged: int = 0
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


@dataclass(frozen=True, slots=True)
class Requests:
    """Executions of one step in one stage, per interval in which they ended."""

    index: IntArray
    t_s: FloatArray
    total: IntArray
    failed: IntArray
    good: IntArray
    kinds_by_interval: tuple[dict[str, int], ...]

    @property
    def n(self) -> int:
        """All executions."""
        return int(self.total.sum())

    @property
    def n_failed(self) -> int:
        """Failed executions, of every kind."""
        return int(self.failed.sum())

    @property
    def n_good(self) -> int:
        """Executions that met every per-request latency budget of their step."""
        return int(self.good.sum())

    @property
    def kinds(self) -> dict[str, int]:
        """Failures by kind, most frequent first."""
        total: Counter[str] = Counter()
        for kinds in self.kinds_by_interval:
            total.update(kinds)
        return dict(total.most_common())

    @property
    def first_seen(self) -> dict[str, float]:
        """Start of the interval in which each kind of failure came first, seconds."""
        seen: dict[str, float] = {}
        for t_s, kinds in zip(self.t_s, self.kinds_by_interval, strict=True):
            for kind in kinds:
                seen.setdefault(kind, float(t_s))
        return seen


@dataclass(slots=True)
class _Row:
    """One interval's exact figures of one key, and its histograms still encoded."""

    n: int
    min: int
    max: int
    sum: int
    clamped: int
    over: dict[int, int]
    blobs: list[str]


@dataclass(frozen=True, slots=True)
class Cells:
    """Occupied histogram buckets: `count` samples in `bucket`, in the series' n-th `interval`.

    Ascending by interval. `highest` is the largest value that counts in the bucket, in the metric's
    own unit.
    """

    interval: IntArray
    bucket: IntArray
    count: IntArray
    highest: IntArray


class Series:
    """One metric of one step in one stage, by interval."""

    def __init__(self, interval_s: float, unit: int, rows: dict[int, _Row]) -> None:
        self._unit = unit
        self._rows = [rows[index] for index in sorted(rows)]
        self.index: IntArray = np.array(sorted(rows), dtype=np.int64)
        self.t_s: FloatArray = self.index.astype(np.float64) * interval_s
        self.n: IntArray = np.array([row.n for row in self._rows], dtype=np.int64)
        self.sum: IntArray = np.array([row.sum for row in self._rows], dtype=np.int64)

    def over(self, threshold: int) -> IntArray | None:
        """Return how many samples of each interval were above `threshold`, exactly; None when that
        threshold was not declared when the run was recorded."""
        if not all(threshold in row.over for row in self._rows):
            return None
        return np.array([row.over[threshold] for row in self._rows], dtype=np.int64)

    @cached_property
    def cells(self) -> Cells:
        """The occupied buckets of every interval; RecordingError when a histogram is damaged."""
        owner = np.repeat(np.arange(len(self._rows)), [len(row.blobs) for row in self._rows])
        blob, bucket, count = decode_cells([blob for row in self._rows for blob in row.blobs])
        interval = owner[blob]
        held = np.bincount(interval, weights=count, minlength=len(self._rows))
        wrong = np.flatnonzero(held != self.n)
        if len(wrong):
            raise RecordingError(
                f"the histogram of {self.t_s[wrong[0]]:g} s holds {held[wrong[0]]:.0f} samples, "
                f"its record says {self.n[wrong[0]]}"
            )
        return Cells(interval, bucket, count, highest_values(bucket, self._unit))

    def histograms(self) -> list[Histogram]:
        """Return one histogram per interval, in the order of `t_s`."""
        ends = np.searchsorted(self.cells.interval, np.arange(len(self._rows) + 1)).tolist()
        return [
            self._histogram(self._rows[i : i + 1], slice(ends[i], ends[i + 1]))
            for i in range(len(self._rows))
        ]

    def histogram(self, mask: npt.NDArray[np.bool_]) -> Histogram:
        """Return the histogram of the intervals where `mask` is true."""
        rows = [row for row, wanted in zip(self._rows, mask, strict=True) if wanted]
        return self._histogram(rows, mask[self.cells.interval])

    @cached_property
    def total(self) -> Histogram:
        """The histogram of all intervals together."""
        return self._histogram(self._rows, slice(None))

    def _histogram(self, rows: list[_Row], which: slice | npt.NDArray[np.bool_]) -> Histogram:
        if not rows:
            return Histogram.empty(self._unit)
        dense = np.bincount(self.cells.bucket[which], weights=self.cells.count[which])
        buckets = np.flatnonzero(dense)
        return Histogram(
            indices=buckets,
            counts=dense[buckets].astype(np.int64),
            n=sum(row.n for row in rows),
            min=min(row.min for row in rows),
            max=max(row.max for row in rows),
            sum=sum(row.sum for row in rows),
            clamped=sum(row.clamped for row in rows),
            unit=self._unit,
        )


class Recording:
    """One saved run. Build it with `load_recording`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = read_run(folder)
        self.interval_s = _positive(self.run["interval_s"])
        self.stages = tuple(_stage(stage) for stage in self.run["stages"])
        last_s = max((stage.end_s for stage in self.stages), default=0)
        _count(int(last_s / self.interval_s), at_most=_MOST_INTERVALS)
        _check_aborted(self.run.get("aborted"))
        _names(self.run.get("status", "unknown"), self.run.get("clock", "unknown"))
        _number(self.run.get("lost_reports", 0))
        _number(self.run.get("machine", {}).get("cores") or 0)
        for value in (*self.run.get("reads", {}).values(), *self.run.get("clock_steps_s", ())):
            _number(value)
        self._rows: dict[Key, dict[int, _Row]] = defaultdict(dict)
        self._steps: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
        self._load: dict[int, dict[str, dict[str, int]]] = defaultdict(dict)
        self._cpu: dict[int, float] = {}
        self._pauses: dict[int, tuple[int, int]] = {}
        self._series: dict[Key, Series | None] = {}
        self._requests: dict[tuple[str, str], Requests] = {}
        self.missing_histograms = 0
        self.clamped = 0
        self._read()

    def stage(self, name: str) -> StageWindow:
        """Return the stage of that name; KeyError when there is none."""
        return {stage.name: stage for stage in self.stages}[name]

    def repetitions(self, group: str) -> tuple[StageWindow, ...]:
        """Return the stages that were declared as `group`, in the order of their repetitions."""
        return tuple(stage for stage in self.stages if stage.group == group)

    def steps(self, stage: str) -> tuple[str, ...]:
        """Return the steps seen in a stage: in order of appearance, parents before children."""
        seen = [step for where, step in self._steps if where == stage]
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
        return tuple(m for where, name, m in self._rows if (where, name) == (stage, step))

    def series(self, stage: str, step: str, metric: str) -> Series | None:
        """Return a metric's samples, None when there are none; step `run` is all root steps."""
        wanted = (stage, step, metric)
        if wanted not in self._series:  # decoding is the cost, and many budgets share a series
            keys = [
                key
                for key in self._rows
                if key[0] == stage
                and key[2] == metric
                and (key[1] == step or (step == RUN and "/" not in key[1]))
            ]
            rows = _by_interval((self._rows[key] for key in keys), _sum_rows)
            found = Series(self.interval_s, unit_of(metric), rows) if rows else None
            self._series[wanted] = found
        return self._series[wanted]

    def requests(self, stage: str, step: str) -> Requests:
        """Return how a step's executions ended; step `run` means all root steps."""
        if (stage, step) not in self._requests:
            self._requests[stage, step] = self._sum_requests(stage, step)
        return self._requests[stage, step]

    def _sum_requests(self, stage: str, step: str) -> Requests:
        steps = (
            by_index
            for (where, name), by_index in self._steps.items()
            if where == stage and (name == step or (step == RUN and "/" not in name))
        )
        rows = _by_interval(steps, _sum_steps)
        order = sorted(rows)
        kinds = tuple(dict(rows[i]["kinds"]) for i in order)
        return Requests(
            index=np.array(order, dtype=np.int64),
            t_s=np.array(order, dtype=np.float64) * self.interval_s,
            total=np.array([rows[i]["total"] for i in order], dtype=np.int64),
            failed=np.array([sum(k.values()) for k in kinds], dtype=np.int64),
            good=np.array([rows[i]["good"] for i in order], dtype=np.int64),
            kinds_by_interval=kinds,
        )

    def load_totals(self, stage: str) -> LoadTotals:
        """Return what became of a stage's arrivals."""
        rows = [by_stage[stage] for by_stage in self._load.values() if stage in by_stage]
        if not rows:
            return LoadTotals()
        sums = {
            name: sum(row[name] for row in rows)
            for name in Load.__slots__
            if name not in ("in_flight", "waiting")
        }
        return LoadTotals(
            **sums,
            max_in_flight=max(row["in_flight"] for row in rows),
            max_waiting=max(row["waiting"] for row in rows),
        )

    def load_by_interval(self, stage: str) -> Iterator[tuple[float, dict[str, int]]]:
        """Yield a stage's arrival counters with the start of their interval, seconds, ascending."""
        for index in sorted(self._load):
            if stage in self._load[index]:
                yield index * self.interval_s, self._load[index][stage]

    def longest_pauses(self, stage: StageWindow) -> tuple[int, int]:
        """Return the longest stall of a worker's event loop and its longest collection, ns."""
        first, last = stage.start_s / self.interval_s, stage.end_s / self.interval_s
        inside = [pauses for index, pauses in self._pauses.items() if first <= index < last]
        return (
            max((stall for stall, _ in inside), default=0),
            max((collection for _, collection in inside), default=0),
        )

    @cached_property
    def timeline(self) -> Timeline:
        """The load of the run by interval, all stages together."""
        size = max([*self._load, *self._cpu], default=-1) + 1
        sums = {name: np.zeros(size, dtype=np.int64) for name in Timeline.__slots__[1:-1]}
        for index, by_stage in self._load.items():
            for row in by_stage.values():
                for name, array in sums.items():
                    if name in ("in_flight", "waiting"):  # of the whole run, in every stage
                        array[index] = max(array[index], row[name])
                    else:
                        array[index] += row[name]
        cpu = np.full(size, np.nan)
        for index, share in self._cpu.items():
            cpu[index] = share
        return Timeline(t_s=np.arange(size, dtype=np.float64) * self.interval_s, cpu=cpu, **sums)

    @cached_property
    def journeys(self) -> tuple[Journey, ...]:
        """The kept journeys, in the order in which they ended; RecordingError when damaged."""
        try:
            return tuple(_journey(row) for row in _json_lines(self.folder / REQUESTS_FILE))
        except _DAMAGE as error:
            raise _damaged(self.folder / REQUESTS_FILE, error) from error

    def _read(self) -> None:
        blobs = self._read_hlog()
        last = (max((stage.end_s for stage in self.stages), default=0) + _DAY_S) / self.interval_s
        for line in _json_lines(self.folder / INTERVALS_FILE):
            index = _count(line["i"], at_most=int(last))
            for stage, counters in line["load"].items():
                load = {name: _count(counters[name]) for name in Load.__slots__[:-2]}
                load |= {name: _count(counters.get(name, 0)) for name in Load.__slots__[-2:]}
                known = self._load[index].get(stage)
                self._load[index][stage] = (
                    load if known is None else {k: known[k] + load[k] for k in load}
                )
            pauses = _count(line.get("stall_ns", 0)), _count(line.get("gc_ns", 0))
            known_pauses = self._pauses.get(index, (0, 0))
            self._pauses[index] = (
                max(pauses[0], known_pauses[0]),
                max(pauses[1], known_pauses[1]),
            )
            if line["cpu"] is not None:
                self._cpu[index] = max(_number(line["cpu"]), self._cpu.get(index, 0.0))
            for stage, step, total, good, kinds in line["steps"]:
                _names(stage, step, *kinds)
                failed = sum(_count(k) for k in kinds.values())
                _count(_count(good) + failed, at_most=_count(total))
                row = {"total": total, "good": good, "kinds": kinds}
                by_index = self._steps[stage, step]
                by_index[index] = _sum_steps([by_index[index], row]) if index in by_index else row
            for stage, step, metric, n, low, high, total, clamped, over in line["metrics"]:
                _names(stage, step, metric)
                _check_figures(n, low, high, total)
                for _, k in over:
                    _count(k, at_most=n)
                self.clamped += _count(clamped, at_most=n)
                waiting = blobs.get((tag_of((stage, step, metric)), index))
                if not waiting:
                    self.missing_histograms += 1
                    continue
                blobs_ = [waiting.pop(0)]
                row_ = _Row(n, low, high, total, clamped, dict(map(tuple, over)), blobs_)
                rows = self._rows[stage, step, metric]
                rows[index] = _sum_rows([rows[index], row_]) if index in rows else row_

    def _read_hlog(self) -> dict[tuple[str, int], list[str]]:
        """Return the encoded histograms by tag and interval, in file order."""
        blobs: dict[tuple[str, int], list[str]] = defaultdict(list)
        for line in _whole_lines(self.folder / HLOG_FILE):
            if line.startswith("Tag="):
                try:
                    tag, start, _, _, blob = line[4:].split(",")
                    blobs[tag, round(float(start) / self.interval_s)].append(blob)
                except (ValueError, OverflowError) as error:
                    raise RecordingError(f"{self.folder / HLOG_FILE}: bad line: {error}") from error
        return blobs


def load_recording(folder: Path) -> Recording:
    """Read a run folder.

    Raises RecordingError when it is not one, is damaged, or was written by an unknown version.
    """
    try:
        with _collection_paused():
            return Recording(folder)
    except _DAMAGE as error:
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


def _damaged(path: Path, error: Exception) -> RecordingError:
    return RecordingError(f"{path} is damaged: {type(error).__name__}: {error}")


def _count(value: Any, *, at_most: int = 2**63 - 1) -> int:
    """Return a count as it is; ValueError when it is none."""
    if type(value) is not int or not 0 <= value <= at_most:
        raise ValueError(f"{value!r} where a whole number from 0 to {at_most:,} must stand")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1e18:
        raise ValueError(f"{value!r} where a number of sensible size must stand")
    return float(value)


def _positive(value: Any) -> float:
    if _number(value) <= 0:
        raise ValueError(f"{value!r} where a number above 0 must stand")
    return float(value)


def _names(*names: Any) -> None:
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no name")  # noqa: TRY004 - one class for all


def _check_figures(n: Any, low: Any, high: Any, total: Any) -> None:
    """Refuse exact figures that no samples can have."""
    if not _count(n):
        raise ValueError("a metric without samples")
    if not all(type(x) is int and abs(x) < 2**63 for x in (low, high, total)) or low > high:
        raise ValueError(f"[{low!r}, {high!r}, {total!r}] where min, max and sum must stand")


def _check_aborted(aborted: Any) -> None:
    """Refuse what cannot be the reason for which a load was ended early."""
    if aborted is not None:
        _number(aborted["t_s"])
        _names(aborted["why"], aborted["budget"] or "", aborted["stage"] or "")
        for number in ("over", "allowed", "planned"):
            _count(aborted[number] or 0)


def _stage(row: dict[str, Any]) -> StageWindow:
    stage = StageWindow(**row)
    _names(stage.name, stage.load)
    _count(stage.repeat)
    _positive(_number(stage.end_s) - _number(stage.start_s))
    if stage.planned_rate_per_s is not None:
        _number(stage.planned_rate_per_s)
    return stage


def _journey(row: dict[str, Any]) -> Journey:
    steps = tuple(StepSpan(**span) for span in row["steps"])
    _names(row["stage"], row["root"], row["kept"], *(span.step for span in steps))
    ends = [t for span in steps for t in (span.start_ns, span.end_ns)]
    for number in (row["t_s"], row["duration_ns"], *ends):
        _number(number)
    return Journey(
        stage=row["stage"],
        root=row["root"],
        t_s=row["t_s"],
        duration_ns=row["duration_ns"],
        ok=row["ok"],
        kept=row["kept"],
        steps=steps,
    )


def _whole_lines(path: Path) -> Iterator[str]:
    """Yield the whole lines of a file; a crash can leave half a line after them."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield line[:-1]
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordingError(f"{path}:{number}: not JSON: {error}") from error


def _by_interval(parts: Iterable[Mapping[int, T]], add: Callable[[Sequence[T]], T]) -> dict[int, T]:
    """Add up what several parts have of the same interval."""
    first, *others = [*parts] or [{}]
    if not others:
        return dict(first)
    every: dict[int, list[T]] = defaultdict(list)
    for part in (first, *others):
        for index, row in part.items():
            every[index].append(row)
    return {index: rows[0] if len(rows) == 1 else add(rows) for index, rows in every.items()}


def _sum_rows(rows: Sequence[_Row]) -> _Row:
    shared = set(rows[0].over).intersection(*(row.over for row in rows[1:]))
    return _Row(
        n=sum(row.n for row in rows),
        min=min(row.min for row in rows),
        max=max(row.max for row in rows),
        sum=sum(row.sum for row in rows),
        clamped=sum(row.clamped for row in rows),
        over={top: sum(row.over[top] for row in rows) for top in shared},
        blobs=[blob for row in rows for blob in row.blobs],
    )


def _sum_steps(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    for row in rows:
        kinds.update(row["kinds"])
    return {
        "total": sum(row["total"] for row in rows),
        "good": sum(row["good"] for row in rows),
        "kinds": kinds,
    }
