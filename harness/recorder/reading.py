"""The files of a run folder into columns; what no run can have written is refused.

Every error here is one of `DAMAGE`, or a RecordingError that names the file.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import RecordingError
from harness.recorder.folder import HLOG_FILE, INTERVALS_FILE, tag_of
from harness.recorder.histogram import IntArray
from harness.recorder.record import Key, Load
from harness.recorder.series import Endings, Figures

DAMAGE = (KeyError, TypeError, AttributeError, ValueError, ArithmeticError)
_LATER_COUNTERS = (  # runs of before them have none
    *("token_events", "merged", "raised", "unsent", "backed_off"),
    *("replies", "streams", "lumped", "empty", "unfinished"),
)
_COUNTERS = tuple(name for name in Load.__slots__ if name not in _LATER_COUNTERS)


@dataclass(slots=True)
class Intervals:
    """What `intervals.jsonl` and `latency.hlog` say of a run.

    `load` holds the counters of each stage's arrivals by interval, `cpu` the busiest worker's share
    of a core, `pauses` its longest stall and longest collection, ns. A row without its histogram is
    left out and counted in `missing_histograms`, a histogram without its row in `orphans`. `lines`
    are those of intervals.jsonl.
    """

    figures: dict[Key, Figures] = field(default_factory=dict)
    endings: dict[tuple[str, str], Endings] = field(default_factory=dict)
    load: dict[str, dict[int, dict[str, int]]] = field(default_factory=lambda: defaultdict(dict))
    cpu: dict[int, float] = field(default_factory=dict)
    pauses: dict[int, tuple[int, int]] = field(default_factory=dict)
    missing_histograms: int = 0
    orphans: int = 0
    lines: int = 0
    clamped: int = 0


def read_intervals(folder: Path, interval_s: float, *, last: int) -> Intervals:
    """Read a run folder's intervals, none of them after number `last`.

    Raises RecordingError, or one of DAMAGE.
    """
    found = Intervals()
    metrics: dict[Key, _Metric] = defaultdict(_Metric)
    steps: dict[tuple[str, str], _Step] = defaultdict(_Step)
    for line in json_lines(folder / INTERVALS_FILE):
        index = as_count(line["i"], at_most=last)
        found.lines += 1
        _add_vitals(found, index, line)
        for stage, step, metric, *row in line["metrics"]:
            metrics[stage, step, metric].add(index, *row)
        for stage, step, *row in line["steps"]:
            steps[stage, step].add(index, *row)
    encoded = _read_histograms(folder / HLOG_FILE, interval_s)
    for key, metric_rows in metrics.items():
        check_names(*key)
        figures = metric_rows.figures(encoded[tag_of(key)])
        found.missing_histograms += len(metric_rows) - len(figures.index)
        found.clamped += int(figures.clamped.sum())
        if len(figures.index):
            found.figures[key] = figures
    used = sum(len(figures.index) for figures in found.figures.values())
    found.orphans = sum(len(one.blobs) for one in encoded.values()) - used
    for where, step_rows in steps.items():
        check_names(*where)
        found.endings[where] = step_rows.endings()
    return found


class _Encoded:
    """The histograms of one tag, still encoded, in file order."""

    def __init__(self) -> None:
        self.index = array("q")
        self.blobs: list[str] = []

    def of(self, index: IntArray) -> list[str | None]:
        """Return the histogram of each row, given its interval; None where one is missing."""
        if np.array_equal(self.index, index):
            return [*self.blobs]
        waiting = defaultdict(list)  # a crash, or a full disk, left one of both files behind
        for at, blob in zip(reversed(self.index), reversed(self.blobs), strict=True):
            waiting[at].append(blob)
        return [waiting[at].pop() if waiting[at] else None for at in index.tolist()]


def _read_histograms(file: Path, interval_s: float) -> dict[str, _Encoded]:
    """Return the encoded histograms by tag."""

    @cache
    def index_of(start: str) -> int:
        return round(float(start) / interval_s)

    found: dict[str, _Encoded] = defaultdict(_Encoded)
    for line in whole_lines(file):
        if line.startswith("Tag="):
            try:
                tag, start, _, _, blob = line[4:].split(",")
                encoded = found[tag]
                encoded.index.append(index_of(start))
                encoded.blobs.append(blob)
            except (ValueError, OverflowError) as error:
                raise RecordingError(f"{file}: bad line: {error}") from error
    return found


class _Metric:
    """Collects the rows of one metric as columns of 64 bits: what is no whole number is refused."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._over = array("q")

    def __len__(self) -> int:
        return len(self._rows) // 6

    def add(
        self,
        index: int,
        n: int,
        low: int,
        high: int,
        total: int,
        clamped: int,
        over: Sequence[tuple[int, int]],
    ) -> None:
        """Take in a row; `over` are pairs of a limit and how many samples were above it."""
        for limit, k in over:
            self._over.extend((len(self), limit, k))
        self._rows.extend((index, n, low, high, total, clamped))

    def figures(self, encoded: _Encoded) -> Figures:
        """Return the rows that have their histogram."""
        index, n, low, high, total, clamped = _columns(self._rows, 6)
        _refuse(n < 1, "a metric without samples")
        _refuse(low > high, "a smallest sample above the largest")
        _refuse((clamped < 0) | (clamped > n), "a wrong number of samples out of range")
        blobs = encoded.of(index)
        saved = np.array([blob is not None for blob in blobs], dtype=bool)
        return Figures(
            index=index[saved],
            n=n[saved],
            min=low[saved],
            max=high[saved],
            sum=total[saved],
            clamped=clamped[saved],
            over={limit: counts[saved] for limit, counts in self._counts(n)},
            encoded=[blob for blob in blobs if blob is not None],
        )

    def _counts(self, n: IntArray) -> Iterator[tuple[int, IntArray]]:
        """Yield each limit that every row has, and the counts above it."""
        row, limit, k = _columns(self._over, 3)
        _refuse((k < 0) | (k > n[row]), "a wrong number of samples over a limit")
        for top in np.unique(limit).tolist():
            of = limit == top
            if np.array_equal(row[of], np.arange(len(n))):
                yield top, k[of]


class _Step:
    """Collects how the executions of one step ended, like `_Metric`."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._kinds: list[tuple[int, dict[str, int]]] = []

    def add(
        self,
        index: int,
        total: int,
        good: int,
        kinds: dict[str, int],
        replaced: int = 0,
        replaced_good: int = 0,
        unsure: int = 0,
    ) -> None:
        """Take in a row; `kinds` counts the failed ones, the others are as in `Finished`."""
        check_names(*kinds)
        if kinds:
            self._kinds.append((index, kinds))
        failed = sum(map(as_count, kinds.values()))
        self._rows.extend((index, total, good, failed, replaced, replaced_good, unsure))

    def endings(self) -> Endings:
        """Return all rows."""
        index, total, good, failed, replaced, replaced_good, unsure = _columns(self._rows, 7)
        most_good = total - failed - unsure
        wrong = (good < 0) | (good > most_good) | (unsure < 0)
        _refuse(wrong, "more good and failed ones than all")
        wrong = (replaced_good < 0) | (replaced_good > replaced) | (replaced > failed)
        _refuse(wrong, "more replaced ones than failed ones")
        return Endings(
            index=index,
            total=total,
            failed=failed,
            good=good,
            replaced=replaced,
            replaced_good=replaced_good,
            unsure=unsure,
            kinds=self._kinds,
        )


def _columns(rows: array[int], width: int) -> IntArray:
    return np.array(rows, dtype=np.int64).reshape(-1, width).T.copy()


def _refuse(wrong: npt.NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise ValueError(f"{what} in row {int(wrong.argmax()) + 1} of its metric or step")


def _add_vitals(found: Intervals, index: int, line: dict[str, Any]) -> None:
    """Take in what a line says of the load and of the workers."""
    for stage, counters in line["load"].items():
        load = {name: as_count(counters[name]) for name in _COUNTERS}
        load |= {name: as_count(counters.get(name, 0)) for name in _LATER_COUNTERS}
        known = found.load[stage].get(index, {})
        found.load[stage][index] = {name: k + known.get(name, 0) for name, k in load.items()}
    stall, collection = found.pauses.get(index, (0, 0))
    found.pauses[index] = (
        max(stall, as_count(line.get("stall_ns", 0))),
        max(collection, as_count(line.get("gc_ns", 0))),
    )
    if line["cpu"] is not None:
        found.cpu[index] = max(as_number(line["cpu"]), found.cpu.get(index, 0.0))


def as_count(value: Any, *, at_most: int = 2**63 - 1) -> int:
    """Return a count as it is; ValueError when it is none."""
    if type(value) is not int or not 0 <= value <= at_most:
        raise ValueError(f"{value!r} where a whole number from 0 to {at_most:,} must stand")
    return value


def as_number(value: Any, *, above: float = -1e18) -> float:
    """Return a number; ValueError when it is none, or of no sensible size."""
    if type(value) not in (int, float) or not math.isfinite(value) or not above < value <= 1e18:
        raise ValueError(f"{value!r} where a number of sensible size must stand")
    return float(value)


def check_names(*names: Any) -> None:
    """Refuse with ValueError what is no text."""
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no name")  # noqa: TRY004 - one class for all


def whole_lines(path: Path) -> Iterator[str]:
    """Yield the whole lines of a file; a crash can leave half a line after them.

    Raises RecordingError when it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield line[:-1]
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what each whole line of a file says; RecordingError when one is no JSON."""
    for at, line in enumerate(whole_lines(path), 1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordingError(f"{path}:{at}: not JSON: {error}") from error
