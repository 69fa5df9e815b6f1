"""The capacity chart: percentiles over the rate that was reached, and where the limit breaks."""

from __future__ import annotations

from harness.recorder import Recording
from harness.report import words
from harness.report.charts.axes import end_labels, latency_scale, limit_label, tick_label, y_axis
from harness.report.facts import Findings, Knee, Level
from harness.report.paper import HALF, Paper, Scale
from harness.units import format_rate


def draw_knee(paper: Paper, _: Recording, findings: Findings, f: Knee) -> None:
    """Draw percentiles over the reached rate, and where the limit breaks."""
    left, right = (56.0, 316.0) if paper.phone else (60.0, HALF - 44.0)
    top, bottom = 30.0, paper.height - 46.0
    limit = findings.subject.budget.limit if findings.subject and findings.subject.budget else None
    x = Scale(0.0, max(lv.reached for lv in f.levels) * 1.05, left, right)
    values = [v for lv in f.levels for v in (*lv.percentiles, lv.low, lv.high)]
    y = latency_scale([*values, limit], bottom, top)
    y_axis(paper, y, left, right, tick_label(findings), 26)
    if f.holds is not None and f.breaks is not None:
        paper.box(x(f.holds.reached), top, x(f.breaks.reached), bottom, "fail", alpha=0.12)
    if f.holds is not None:
        at = x(f.holds.reached)
        paper.text(
            at - 6,
            top - 10,
            f"holds to {words.rate_of(f.holds)}",
            "ink",
            bold=True,
            align="right" if at > left + 110 else "left",
        )
    labels = []
    for i, (role, width) in enumerate((("p50", 1.5), ("p95", 1.7), ("p99", 2.2))):
        points = [(x(lv.reached), y(v)) for lv in f.levels if (v := lv.percentiles[i]) is not None]
        if points:
            xs, ys = zip(*points, strict=True)
            paper.line(xs, ys, role, width)
            if i < 2:
                paper.dots(xs, ys, "o", role, 3, width=0)
            name = ("p50", "p95", "p99")[i]
            labels.append((ys[-1], name, "ink2" if i == 0 else role, i == 2))
    for level in f.levels:
        _level_marks(paper, level, x, y, top)
    if limit is not None:
        paper.line([left, right], [y(limit)] * 2, "limit", 1.4, dash="dashed")
        limit_label(paper, findings, left + 4, y(limit))
    end_labels(paper, right + 7, labels, bottom)
    paper.line([left, right], [bottom, bottom], "line")
    for value in x.ticks(64):
        paper.text(
            x(value), bottom + 13, format_rate(value) if value else "0", size=11, align="center"
        )
    paper.text(
        (left + right) / 2,
        bottom + 30,
        "reached rate, requests per second",
        size=11,
        align="center",
    )


def _level_marks(paper: Paper, lv: Level, x: Scale, y: Scale, top: float) -> None:
    at = x(lv.reached)
    if lv.low is not None and lv.high is not None:
        paper.line([at, at], [y(lv.low), y(lv.high)], "p99", 1.5)
    if lv.observed is not None and lv.outcome is not None:
        paper.mark(at, y(lv.observed), lv.outcome, 7)
    if lv.short:
        said = f"planned {format_rate(lv.planned)}, reached {format_rate(lv.reached)}"
        paper.text(at - 8, top + 6, said, "invalid", size=11, align="right")
