"""Charts over the run's time: percentiles, load and heatmap, on one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.recorder import Recording
from harness.report import words
from harness.report.charts.axes import (
    draw_limits,
    end_labels,
    latency_scale,
    shade_stages,
    tick_label,
    time_axis,
    time_scale,
    y_axis,
)
from harness.report.facts import HEAT_STEPS, Findings, Heat, Load, OverTime, Window
from harness.report.paper import Paper, Scale, rectangle
from harness.units import NARROW_SPACE, format_clock, format_count, format_duration, format_rate
from harness.verdict import Outcome

_OPACITIES = (0.09, 0.2, 0.36, 0.55, 0.78, 1.0)


def draw_over_time(paper: Paper, recording: Recording, findings: Findings, f: OverTime) -> None:
    """Draw percentiles as steps, the limit, flagged windows and failed requests."""
    x, top, bottom = time_scale(paper, findings), 26.0, paper.height - 48.0
    limits = [v.budget.limit for v in findings.subject.judged.values()] if findings.subject else []
    values = [v for w in f.windows for v in (*w.percentiles, w.judged_at if w.flagged else None)]
    y = latency_scale([*values, *limits], bottom, top)
    shade_stages(paper, recording, findings, x, top, bottom)
    y_axis(paper, y, x.start, x.end, tick_label(findings))
    faded = {s.name for s in recording.stages if not s.record} | findings.invalid_stages
    ends = []
    for i, (role, width) in enumerate((("p50", 1.5), ("p95", 1.7), ("p99", 2.2))):
        for stage in recording.stages:
            own = [w for w in f.windows if w.stage == stage.name]
            _steps(paper, own, i, x, y, role, width, alpha=0.5 if stage.name in faded else 1.0)
        drawn = [w.percentiles[i] for w in f.windows if w.percentiles[i] is not None]
        if drawn:
            label = words.percentile(f.quantiles[i])
            ends.append((y(drawn[-1] or 0), label, "ink2" if i == 0 else role, i == 2))
    draw_limits(paper, recording, findings, x, y)
    flagged = [w for w in f.windows if w.flagged]
    for w in flagged:
        begin = max(w.t0, f.since.t_s) if f.since and f.since.t_s < w.t1 else w.t0
        paper.mark(x((begin + w.t1) / 2), y(w.judged_at or 0), Outcome.FAIL, 6)
    end_labels(paper, x.end + 7, ends, bottom)
    if f.since:
        at = x(f.since.t_s)
        paper.line([at, at], [top, bottom], "fail", 1.1, dash="dotted")
        paper.dots([at], [top + 3], "v", "fail", 7, width=0)
    paper.box(x.start, bottom + 4, x.end, bottom + 20, "band")
    paper.text(
        x.start - 6, bottom + 12, "errors", size=11 if not paper.phone else 10.5, align="right"
    )
    times = [t + recording.interval_s / 2 for t, _ in f.failed]
    paper.dots(x.all(times), [bottom + 12] * len(times), "x", "fail", 4.5, width=1.1)
    time_axis(paper, x, bottom + 20)


def _steps(
    paper: Paper,
    windows: Sequence[Window],
    i: int,
    x: Scale,
    y: Scale,
    role: str,
    width: float,
    *,
    alpha: float,
) -> None:
    xs = [x(t) for w in windows for t in (w.t0, w.t1)]
    ys = [math.nan if (v := w.percentiles[i]) is None else y(v) for w in windows for _ in "ab"]
    if xs and not all(math.isnan(v) for v in ys):
        paper.line(xs, ys, role, width, alpha=alpha)


def draw_load(paper: Paper, recording: Recording, findings: Findings, f: Load) -> None:
    """Draw planned and reached rate, the shortfall hatched, and the requests in flight."""
    x, top = time_scale(paper, findings), 26.0
    middle, gap = top + (paper.height - 70) * 0.52, 26.0
    planned = _planned(recording, f)
    both = np.concatenate([planned[~np.isnan(planned)], f.reached])
    y = Scale(0.0, max(float(both.max(initial=0)) * 1.15, 1.0), middle, top)
    shade_stages(paper, recording, findings, x, top, middle)
    y_axis(paper, y, x.start, x.end, lambda v: format_rate(v) if v else "0", 20)
    edges = np.append(f.t_s, f.t_s[-1] + f.column_s)
    edges = np.minimum(edges, recording.stages[-1].end_s)
    xs = np.repeat(x.all(edges), 2)[1:-1].tolist()
    reached, plan = np.repeat(f.reached, 2), np.repeat(planned, 2)
    for stage in recording.stages:
        inside = np.repeat((f.t_s >= stage.start_s) & (f.t_s < stage.end_s), 2)
        if stage.name in findings.invalid_stages and stage.name in f.shortfalls:
            xi = np.array(xs)[inside].tolist()
            upper = y.all(np.fmax(plan, reached)[inside])
            low = y.all(reached[inside])
            paper.area(
                [[*zip(xi, upper, strict=True), *zip(xi[::-1], low[::-1], strict=True)]],
                "invalid",
                hatch=True,
            )
    paper.line(xs, y.all(reached), "p95", 1.7)
    paper.line(xs, y.all(plan), "limit", 1.3, dash="dashed")
    ends = [(y(float(f.reached[-1])), "reached", "p95", True)]
    if not np.isnan(planned[-1]):
        ends.append((min(y(float(planned[-1])), ends[0][0] - 1), "planned", "ink", False))
    end_labels(paper, x.end + 7, ends, middle)
    _in_flight(paper, recording, findings, f, x, middle + gap)


def _planned(recording: Recording, f: Load) -> npt.NDArray[np.float64]:
    """Return the plan at each column: the stage's rate, NaN where it has none."""
    counted = f.planned if f.planned is not None else np.full(len(f.t_s), np.nan)
    result = counted.copy()
    for stage in recording.stages:
        inside = (f.t_s >= stage.start_s) & (f.t_s < stage.end_s)
        rate = stage.planned_rate_per_s
        result[inside] = np.nan if rate is None else rate
    return result


def _in_flight(
    paper: Paper, recording: Recording, findings: Findings, f: Load, x: Scale, top: float
) -> None:
    bottom = paper.height - 22.0
    most = float(f.in_flight.max(initial=0))
    y = Scale(0.0, max(most * 1.25, 1.0), bottom, top)
    shade_stages(paper, recording, findings, x, top, bottom, named=False)
    y_axis(paper, y, x.start, x.end, lambda v: format_count(round(v)), 20)
    step = max(1, math.ceil(len(f.in_flight) / 500))
    starts = np.arange(0, len(f.in_flight), step)
    xs = x.all(f.in_flight_t_s[starts])
    ys = y.all(np.maximum.reduceat(f.in_flight, starts))
    if not xs:
        return
    paper.area([[(xs[0], bottom), *zip(xs, ys, strict=True), (xs[-1], bottom)]], "p95", alpha=0.22)
    paper.line(xs, ys, "p95", 1.3)
    _overloads(paper, findings, x, top, bottom)
    said = f"max {format_count(int(most))}"
    if paper.phone:
        paper.text(x.start + 4, top + 7, f"in flight, {said}", "p95", bold=True)
    else:
        peak = xs[int(np.argmin(ys))]
        late = peak > (x.start + x.end) / 2
        paper.text(peak, y(most) - 7, said, size=11, align="right" if late else "left")
        paper.text(x.end + 7, (top + bottom) / 2, "in flight", "p95", bold=True)
    time_axis(paper, x, bottom)


def _overloads(paper: Paper, findings: Findings, x: Scale, top: float, bottom: float) -> None:
    """Mark where the target began to fall behind; the label stands where less was in flight."""
    for begin in findings.overloads:
        at, said = x(begin), f"overload since {format_clock(begin)}"
        paper.line([at, at], [top, bottom], "fail", 1.1, dash="dotted")
        paper.dots([at], [top + 2], "v", "fail", 7, width=0)
        left = at - x.start > paper.width_of(said, bold=True) + 12
        level = top + (22 if paper.phone else 8)
        side: Literal["left", "right"] = "right" if left else "left"
        paper.text(at + (-6 if left else 6), level, said, "fail", align=side, bold=True)


def draw_heat(paper: Paper, recording: Recording, findings: Findings, f: Heat) -> None:
    """Draw the share of each column's requests per latency bin, in six strengths."""
    x, top, bottom = time_scale(paper, findings), 26.0, paper.height - 58.0
    if paper.phone:
        f = f.wider(44)
    subject, high = findings.subject, float(f.edges[-1])
    limits = [v.budget.limit for v in subject.judged.values()] if subject else []
    high = max([high, *(1.3 * limit for limit in limits if limit < 4 * high)])
    y = Scale(float(f.edges[0]) / 1.02, high * 1.05, bottom, top, log=True)
    shade_stages(paper, recording, findings, x, top, bottom)
    y_axis(paper, y, x.start, x.end, tick_label(findings), 24)
    share = f.counts / np.maximum(f.counts.sum(axis=0), 1)
    level = np.digitize(share, HEAT_STEPS, right=True)
    xs = [min(v, x.end) for v in x.all(f.t_edges)]
    ys = y.all(f.edges)
    for i, opacity in enumerate(_OPACITIES):
        cells = [
            rectangle(xs[c], ys[b], xs[c + 1], ys[b + 1])
            for b, c in np.argwhere((level == i) & (f.counts > 0)).tolist()
            if xs[c + 1] > xs[c]
        ]
        paper.area(cells, "heat", alpha=opacity, crisp=True)
    draw_limits(paper, recording, findings, x, y, cleared=True)
    time_axis(paper, x, bottom)
    names = [f"≤{100 * HEAT_STEPS[0]:.0f}", *(f"{100 * s:.0f}" for s in HEAT_STEPS[1:])]
    names = [f"{n}{NARROW_SPACE}%" for n in names] + ["more"]
    width, at = 30.0 if paper.phone else 36.0, bottom + 28
    for i, (name, opacity) in enumerate(zip(names, _OPACITIES, strict=True)):
        x0 = x.start + i * width
        paper.box(x0, at, x0 + width, at + 9, "heat", alpha=opacity, crisp=True)
        paper.text(x0 + width / 2, at + 18, name, size=10, align="center")
    wide = format_duration(f.column_s * 1e9)
    text = f"share of that {wide} column's requests" if not paper.phone else f"of a {wide} column"
    paper.text(x.start + 6 * width + 8, at + 5, text, size=11 if not paper.phone else 10.5)
