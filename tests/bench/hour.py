"""An hour-long run without the hour: ten steps, 50 budgets, saved as a load of that length is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from harness.budget import Budget, parse_budget
from harness.recorder import Limits, Recorder, RunFolder, StageWindow

SECONDS = 3600
STEPS = tuple(f"step{index}" for index in range(10))
RATE_PER_S = 20  # of each step
_MEDIAN_NS = {"ttft": 2e8, "e2el": 2e9}
_SPREAD = {"ttft": 0.5, "e2el": 0.3}  # standard deviation of the logarithm
_LIMITS = (
    "ttft p50 < 300ms",
    "ttft p95 < 700ms",
    "ttft p99 < 1.2s",
    "e2el p95 < 4s",
    "e2el p99 < 6s",
)


def budgets() -> list[Budget]:
    """Return the budgets of such a run, five a step."""
    return [parse_budget(f"{step}.{limit}") for step in STEPS for limit in _LIMITS]


def save(folder: Path, *, seed: int, seconds: int = SECONDS) -> None:
    """Write a run folder with intervals of 1 s and lognormal latencies."""
    declared = budgets()
    total_per_s = RATE_PER_S * len(STEPS)
    stage = StageWindow(
        name="steady",
        start_s=0.0,
        end_s=float(seconds),
        record=True,
        load=f"poisson {total_per_s}/s",
        planned_rate_per_s=float(total_per_s),
        max_in_flight=1000,
    )
    saved = RunFolder.create(
        folder,
        {
            "interval_s": 1.0,
            "stages": [asdict(stage)],
            "budgets": [{"text": one.text, "confidence": one.confidence} for one in declared],
            "clock": "kernel",
            "workers": 1,
            "seed": seed,
            "plan": {},
        },
    )
    saved.begin(time.time())
    recorder, latencies = Recorder(_limits(declared)), _latencies(seed)
    for second in range(seconds):
        for step in STEPS:
            for values in latencies():
                recorder.request(stage.name, step, values)
        load = recorder.load(stage.name)
        load.planned += total_per_s
        load.sent += total_per_s
        load.finished += total_per_s
        saved.append(recorder.flush(second, cpu=0.3))
    saved.update(status="complete")
    saved.close()


def _limits(declared: list[Budget]) -> Limits:
    thresholds: dict[tuple[str, str], tuple[int, ...]] = {}
    for one in declared:
        assert one.threshold is not None
        key = one.step, one.metric
        thresholds[key] = (*thresholds.get(key, ()), one.threshold)
    return Limits(thresholds=thresholds)


def _latencies(seed: int) -> Callable[[], list[dict[str, int]]]:
    """Return what draws a second of one step."""
    rng = np.random.default_rng(seed)

    def draw() -> list[dict[str, int]]:
        columns = {
            metric: rng.lognormal(np.log(median_ns), _SPREAD[metric], RATE_PER_S).astype(np.int64)
            for metric, median_ns in _MEDIAN_NS.items()
        }
        columns["send_lag"] = np.full(RATE_PER_S, 100_000)
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    return draw
