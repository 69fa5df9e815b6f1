"""The tables: every step's latency in each stage, and failures by kind."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from harness.budget import RUN
from harness.metrics import METRICS
from harness.recorder import Histogram, Recording
from harness.report.facts.subject import percentiles_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One line of the steps table; `shape` is shares by log bins, on one axis for the table."""

    step: str
    metric: str
    n: int
    failed: int
    p50: float | None
    p95: float | None
    p99: float | None
    max: int | None
    shape: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """The steps of one stage."""

    stage: str
    rows: tuple[StepRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorKind:
    """One kind of failure: how often in each stage (all repetitions of it), and when first."""

    kind: str
    by_stage: dict[str, int]
    first_s: float


def step_tables(recording: Recording) -> tuple[StepTable, ...]:
    """Return one table for each recorded stage that has steps."""
    rows = ((s.name, _step_rows(recording, s.name)) for s in recording.stages if s.record)
    return tuple(StepTable(stage=stage, rows=of) for stage, of in rows if of)


def _step_rows(recording: Recording, stage: str) -> tuple[StepRow, ...]:
    """Return one row a step, of its end-to-end time or else of its first time metric."""
    chosen: list[tuple[str, str, Histogram]] = []
    for step in recording.steps(stage):
        timed = [
            m for m in recording.metrics(stage, step) if m in METRICS and METRICS[m].kind == "time"
        ]
        best = next((m for m in ("e2el", "request", *timed) if m in timed), None)
        series = recording.series(stage, step, best) if best else None
        chosen.append((step, best or "", series.total if series else Histogram.empty()))
    full = [h for _, _, h in chosen if h.n]
    low = math.log(min((h.min or 1 for h in full), default=1) or 1)
    high = math.log(max((h.max or 2 for h in full), default=2))
    edges = np.linspace(low, max(high, low + 0.1), 41)
    rows = []
    for step, metric, h in chosen:
        requests = recording.requests(stage, step)
        p50, p95, p99 = percentiles_of(h)
        shape = np.histogram(np.log(np.maximum(h.values, 1)), bins=edges, weights=h.counts)[0]
        rows.append(
            StepRow(
                step=step,
                metric=metric,
                n=requests.n or h.n,
                failed=requests.n_failed,
                p50=p50,
                p95=p95,
                p99=p99,
                max=h.max,
                shape=tuple((shape / max(1, h.n)).tolist()),
            )
        )
    return tuple(rows)


def errors(recording: Recording) -> tuple[ErrorKind, ...]:
    """Count failures by kind, the most frequent first."""
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    first: dict[str, float] = {}
    for stage in recording.stages:
        requests = recording.requests(stage.name, RUN)
        for kind, count in requests.kinds.items():
            by_kind[kind][stage.group] += count
            seen = requests.first_seen[kind]
            first[kind] = min(seen, first.get(kind, seen))
    order = sorted(by_kind, key=lambda kind: -sum(by_kind[kind].values()))
    return tuple(
        ErrorKind(kind=kind, by_stage=by_kind[kind], first_s=first[kind]) for kind in order
    )
