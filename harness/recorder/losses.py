"""Which records of a closed run are missing, or too many.

The numbers of the intervals have no gaps, each is there once, every row of one has its histogram
and every histogram its row, and every stage is covered: that shows most losses by itself. The rest
(the end of a file, say) shows what run.json's `saved` holds since the run closed: how many lines
intervals.jsonl has, and how many arrivals were planned by stage. A run that never closed has none,
and may have lost its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.recorder.reading import Intervals, as_count

if TYPE_CHECKING:
    from harness.recorder.recording import StageWindow

CLOSED = ("complete", "interrupted", "aborted")
"""How run.json says that a run closed with all that it measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What is missing, `intervals` of `all_intervals` and `arrivals` of `all_arrivals`, and extra.

    `extra` lines of intervals are twice there or of no interval. `histograms` are missing though
    their row is there, `orphans` are there without one. Where arrivals are negative there are too
    many; where the run did not save their number, they are 0.
    """

    intervals: int = 0
    all_intervals: int = 0
    arrivals: int = 0
    all_arrivals: int = 0
    extra: int = 0
    histograms: int = 0
    orphans: int = 0


def find_losses(
    found: Intervals, run: Mapping[str, Any], stages: Sequence[StageWindow], interval_s: float
) -> Losses:
    """Hold what was read of a run against what its run.json says.

    The last interval of a stage may be missing: a load that ends in it may end before it does.
    Raises one of DAMAGE where `saved` is not as it should be.
    """
    if run.get("status") not in CLOSED:
        return Losses(histograms=found.missing_histograms)
    saved = _saved(run)
    needed = [(first, end - 1) for first, end in (s.intervals(interval_s) for s in stages)]
    if all(stage.repeat == 1 for stage in stages):  # between repetitions there are pauses
        needed.append((0, max(found.pauses, default=-1) + 1))
    gaps, distinct = _gaps(found.pauses, needed), len(found.pauses)
    several = "interleaved" in run  # lines of an interval: what ended late has one of its own
    once = found.lines if several else distinct
    written = saved.intervals if saved else once + gaps
    planned = saved.planned if saved else {}
    return Losses(
        intervals=max(gaps, written - once),
        all_intervals=max(written, once + gaps),
        extra=found.lines - min(written, once),
        arrivals=sum(n - _planned(found, stage) for stage, n in planned.items()),
        all_arrivals=sum(planned.values()),
        histograms=found.missing_histograms,
        orphans=found.orphans,
    )


class _Saved(NamedTuple):
    """How many lines were written, and how many arrivals were planned by stage."""

    intervals: int
    planned: dict[str, int]


def _saved(run: Mapping[str, Any]) -> _Saved | None:
    saved = run.get("saved")
    if saved is None:
        return None
    planned = {stage: as_count(n) for stage, n in saved["planned"].items()}
    return _Saved(as_count(saved["intervals"]), planned)


def _planned(found: Intervals, stage: str) -> int:
    return sum(load["planned"] for load in found.load.get(stage, {}).values())


def _gaps(present: Iterable[int], needed: Iterable[tuple[int, int]]) -> int:
    """Count the intervals of `needed` (the first, and the one after the last) that are missing."""
    have = np.fromiter(present, dtype=np.int64)
    spans = [*needed]
    size = max([int(have.max(initial=-1)) + 1, *(end for _, end in spans)])
    missing = np.zeros(size, dtype=bool)
    for first, end in spans:
        missing[first:end] = True
    missing[have] = False
    return int(missing.sum())
