"""The run in columns of equal width: did the load arrive, and how latency was spread in each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.recorder import Recording
from harness.report.facts.subject import FloatArray, Subject, WhyNot, series_of, too_few

HEAT_STEPS = (0.01, 0.03, 0.08, 0.16, 0.28)  # upper ends of the first five of six shades
BINS_PER_DOUBLING = 7
MIN_HEAT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Planned and reached starts per second in columns, and the requests in flight."""

    t_s: FloatArray
    column_s: float
    planned: FloatArray | None
    reached: FloatArray
    in_flight_t_s: FloatArray
    in_flight: FloatArray
    shortfalls: dict[str, float]

    def most_in_flight(self) -> list[int]:
        """Return the most requests in flight in each column."""
        column = (self.in_flight_t_s / self.column_s + 1e-9).astype(int)
        return [int(self.in_flight[column == i].max(initial=0)) for i in range(len(self.t_s))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """`counts[bin, column]` of requests that ended there, between the edges in time and latency."""

    t_edges: FloatArray
    edges: FloatArray
    counts: FloatArray
    column_s: float

    def doublings(self) -> list[tuple[float, float, int]]:
        """Return how many requests lie in each doubling of latency: its ends and their number."""
        last = len(self.edges) - 1
        return [
            (
                float(self.edges[i]),
                float(self.edges[min(i + BINS_PER_DOUBLING, last)]),
                int(self.counts[i : i + BINS_PER_DOUBLING].sum()),
            )
            for i in range(0, last, BINS_PER_DOUBLING)
        ]

    def wider(self, most: int) -> Heat:
        """Return the same with columns joined until there are no more than `most`."""
        joined = math.ceil(self.counts.shape[1] / most)
        starts = np.arange(0, self.counts.shape[1], joined)
        return Heat(
            t_edges=np.append(self.t_edges[:-1][starts], self.t_edges[-1]),
            edges=self.edges,
            counts=np.add.reduceat(self.counts, starts, axis=1),
            column_s=self.column_s * joined,
        )


def _column_s(recording: Recording) -> float:
    """Return the column width: 5 s, less in a short run, more in a long one; whole intervals."""
    end = max((stage.end_s for stage in recording.stages), default=0.0)
    wanted = 5.0 if end <= 600 else end / 120
    nice = next((s for s in (1, 2, 5, 10, 15, 30, 60, 120, 300) if s >= wanted), 600)
    width = min(float(nice), end / 24)
    return max(1, math.floor(width / recording.interval_s)) * recording.interval_s


def load(recording: Recording) -> Load | WhyNot:
    """Return starts and requests in flight over the whole run."""
    line, column_s = recording.timeline, _column_s(recording)
    if not len(line.t_s) or not recording.stages:
        return WhyNot("The run ended before its first interval was saved.")
    inside = line.t_s < recording.stages[-1].end_s
    column = (line.t_s[inside] / column_s + 1e-9).astype(int)
    n = int(column.max()) + 1
    width = np.bincount(column, minlength=n) * recording.interval_s

    def per_second(counts: npt.NDArray[np.int64]) -> FloatArray:
        return np.bincount(column, weights=counts[inside], minlength=n) / width

    totals = {stage.name: recording.load_totals(stage.name) for stage in recording.stages}
    return Load(
        t_s=np.arange(n, dtype=np.float64) * column_s,
        column_s=column_s,
        planned=per_second(line.planned)
        if any(stage.planned_rate_per_s is not None for stage in recording.stages)
        else None,
        reached=per_second(line.sent),
        in_flight_t_s=line.t_s,
        in_flight=line.in_flight.astype(np.float64),
        shortfalls={
            name: 1 - t.sent / t.planned for name, t in totals.items() if t.planned > t.sent
        },
    )


def heat(recording: Recording, subject: Subject | None) -> Heat | WhyNot:
    """Count the subject's samples by column and by log bins of latency."""
    found = series_of(recording, subject)
    n = sum(int(series.n.sum()) for _, series in found)
    if n < MIN_HEAT:
        return too_few(n, MIN_HEAT)
    column_s = _column_s(recording)
    parts = [
        (t_s, h)
        for _, series in found
        for t_s, h in zip(series.t_s, series.histograms(), strict=True)
    ]
    values = np.concatenate([h.values for _, h in parts])
    column = np.repeat(
        [int(t_s / column_s + 1e-9) for t_s, _ in parts], [len(h.values) for _, h in parts]
    )
    row = np.floor(np.log2(np.maximum(values, 1)) * BINS_PER_DOUBLING).astype(int)
    low, high, columns = int(row.min()), int(row.max()), int(column.max()) + 1
    counts = np.zeros((high - low + 1, columns))
    np.add.at(counts, (row - low, column), np.concatenate([h.counts for _, h in parts]))
    return Heat(
        t_edges=np.arange(columns + 1, dtype=np.float64) * column_s,
        edges=2.0 ** (np.arange(low, high + 2) / BINS_PER_DOUBLING),
        counts=counts,
        column_s=column_s,
    )
