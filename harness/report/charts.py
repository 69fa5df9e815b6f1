"""Draws the facts: each chart once as themed SVG (wide and for phones) and as PNG files.

Lines are labelled where they end; there are no legend boxes. A chart of which nothing is known is
not drawn: its facts are a `WhyNot`, and the page says so in its place.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from harness.budget import METRICS
from harness.recorder import Recording
from harness.report import words
from harness.report.facts import (
    HEAT_STEPS,
    Difference,
    Findings,
    Heat,
    Knee,
    Level,
    Load,
    Nines,
    OverTime,
    Window,
)
from harness.report.paper import (
    CODES,
    HALF,
    MARKS,
    PHONE,
    ROLES,
    WIDE,
    Paper,
    Scale,
    drawing,
    rectangle,
)
from harness.report.waterfall import MOST_BARS, Bar, Waterfall
from harness.units import (
    NARROW_SPACE,
    format_clock,
    format_count,
    format_duration,
    format_rate,
)
from harness.verdict import BudgetVerdict, Outcome, Verdict

_OPACITIES = (0.09, 0.2, 0.36, 0.55, 0.78, 1.0)

Draw = Callable[["Paper", Recording, Findings, Any], None]


@dataclass(frozen=True, slots=True)
class Drawing:
    """One chart of the page: both drawings as SVG, and what is said about it."""

    name: str
    words: words.Words
    wide: Markup
    phone: Markup


# --- axes ----------------------------------------------------------------------------------------


def latency_scale(values: Iterable[float | None], bottom: float, top: float) -> Scale:
    """Return a log axis when the values span more than a factor of 8, else one from zero."""
    known = [v for v in values if v is not None and not math.isnan(v)]
    high, low = max(known, default=1.0) or 1.0, min((v for v in known if v > 0), default=1.0)
    if high / low > 8:
        headroom = (high / low) ** (26 / (bottom - top))  # for the limit's label
        return Scale(low / 1.15, high * headroom, bottom, top, log=True)
    return Scale(0.0, high * 1.12, bottom, top)


def y_axis(
    paper: Paper,
    scale: Scale,
    left: float,
    right: float,
    label: Callable[[float], str],
    apart: float = 34,
) -> None:
    """Draw a line and write a label at round values, at least `apart` pixels from each other."""
    for value in scale.ticks(apart):
        y = scale(value)
        paper.line([left, right], [y, y], "grid")
        paper.text(left - 6, y, label(value), size=11 if not paper.phone else 10.5, align="right")


def _x_axis(paper: Paper, x: Scale, y: float, apart: float | None = None) -> None:
    """Write the run's time under a panel."""
    apart = apart or (70 if not paper.phone else 56)
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
    step = next((s for s in steps if s * abs(x(1) - x(0)) >= apart), 28800)
    paper.line([x.start, x.end], [y, y], "line")
    at = 0
    while at <= x.high + 1e-9:
        paper.text(
            x(at), y + 13, format_clock(at), size=11 if not paper.phone else 10.5, align="center"
        )
        at += step


def _stages(
    paper: Paper,
    recording: Recording,
    findings: Findings,
    x: Scale,
    top: float,
    bottom: float,
    *,
    named: bool = True,
) -> None:
    """Shade every other stage, hatch those that were not measured properly, name them on top."""
    shown = recording.stages
    for i, stage in enumerate(shown):
        x0, x1 = x(stage.start_s), x(stage.end_s)
        invalid = stage.name in findings.invalid_stages
        if (i % 2 == 0 and len(shown) > 1) or not stage.record:
            paper.box(x0, top, x1, bottom, "band")
        if invalid:
            paper.box(x0, top, x1, bottom, "invalid", alpha=0.45, hatch=True)
        if i:
            paper.line([x0, x0], [top, bottom], "line")
        if named:
            label = f"{stage.name}, not judged" if invalid else words.stage_label(stage)
            last = i == len(shown) - 1
            room = (paper.width if last else x1) - x0 - 6
            fits = [t for t in (label, stage.name) if paper.width_of(t) <= room]
            if fits:
                paper.text(x0 + 2, top - 9, fits[0])


def end_labels(
    paper: Paper, x: float, labels: Sequence[tuple[float, str, str, bool]], bottom: float
) -> None:
    """Write labels (y, text, role, bold) at line ends, moved apart where they would overlap."""
    apart = 14.0
    places: list[float] = []
    for y, *_ in sorted(labels):
        places.append(max(y, places[-1] + apart) if places else y)
    for i in reversed(range(len(places))):
        lowest = places[i + 1] - apart if i + 1 < len(places) else bottom
        places[i] = min(places[i], lowest)
    for at, (_, text, role, bold) in zip(places, sorted(labels), strict=True):
        paper.text(x, at, text, role, bold=bold)


def _limit_label(
    paper: Paper, findings: Findings, x: float, y: float, *, cleared: bool = False
) -> None:
    """Write the limit on its line; `cleared` puts paper between the label and what is below it."""
    if findings.focus is not None:
        said = f"limit {words.limit_of(findings.focus.budget)}"
        width = paper.width_of(said, bold=True)
        if cleared:
            paper.box(x - 3, y - 18, x + width + 3, y - 2, "bg", alpha=0.7)
        paper.text(x, y - 5, said, "limit", bold=True, middle=False)


def _limits(
    paper: Paper,
    recording: Recording,
    findings: Findings,
    x: Scale,
    y: Scale,
    *,
    cleared: bool = False,
) -> None:
    """Draw the limit: through the whole run when every recorded stage has the same one."""
    subject = findings.subject
    if subject is None or not subject.judged:
        return
    of = {stage: v.budget for stage, v in subject.judged.items()}
    recorded = [s for s in recording.stages if s.record]
    same = len({b.limit for b in of.values()}) == 1 and all(s.group in of for s in recorded)
    spans = (
        [(x.low, x.high, next(iter(of.values())))]
        if same
        else [(s.start_s, s.end_s, of[s.group]) for s in recorded if s.group in of]
    )
    label = bool(recorded)
    for start, end, budget in spans:
        at = y(budget.limit)
        if at < y.end - 1:
            paper.text(
                x(start) + 4, y.end + 9, f"↑ limit {words.limit_of(budget)}", "limit", bold=True
            )
            label = False
            continue
        paper.line([x(start), x(end)], [at, at], "limit", 1.4, dash="dashed")
    if label:
        start = recorded[0].start_s if same else spans[0][0]
        _limit_label(paper, findings, x(start) + 4, y(spans[0][2].limit), cleared=cleared)


def _time_scale(paper: Paper, findings: Findings) -> Scale:
    """Return the time axis that all charts over the run share."""
    left, right = (54, 306) if paper.phone else (60, WIDE - 78)
    return Scale(0.0, findings.end_s, left, right)


def _tick(findings: Findings) -> Callable[[float], str]:
    subject = findings.subject
    kind = METRICS[subject.metric].kind if subject else "time"
    return lambda value: words.number(value, kind) if value or kind != "time" else "0"


# --- the charts ----------------------------------------------------------------------------------


def draw_over_time(paper: Paper, recording: Recording, findings: Findings, f: OverTime) -> None:
    """Draw percentiles as steps, the limit, flagged windows and failed requests."""
    x, top, bottom = _time_scale(paper, findings), 26.0, paper.height - 48.0
    limits = [v.budget.limit for v in findings.subject.judged.values()] if findings.subject else []
    values = [v for w in f.windows for v in (*w.percentiles, w.judged_at if w.flagged else None)]
    y = latency_scale([*values, *limits], bottom, top)
    _stages(paper, recording, findings, x, top, bottom)
    y_axis(paper, y, x.start, x.end, _tick(findings))
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
    _limits(paper, recording, findings, x, y)
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
    _x_axis(paper, x, bottom + 20)


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
    x, top = _time_scale(paper, findings), 26.0
    middle, gap = top + (paper.height - 70) * 0.52, 26.0
    planned = _planned(recording, f)
    both = np.concatenate([planned[~np.isnan(planned)], f.reached])
    y = Scale(0.0, max(float(both.max(initial=0)) * 1.15, 1.0), middle, top)
    _stages(paper, recording, findings, x, top, middle)
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
    _stages(paper, recording, findings, x, top, bottom, named=False)
    y_axis(paper, y, x.start, x.end, lambda v: format_count(round(v)), 20)
    step = max(1, math.ceil(len(f.in_flight) / 500))
    starts = np.arange(0, len(f.in_flight), step)
    xs = x.all(f.in_flight_t_s[starts])
    ys = y.all(np.maximum.reduceat(f.in_flight, starts))
    if not xs:
        return
    paper.area([[(xs[0], bottom), *zip(xs, ys, strict=True), (xs[-1], bottom)]], "p95", alpha=0.22)
    paper.line(xs, ys, "p95", 1.3)
    said = f"max {format_count(int(most))}"
    if paper.phone:
        paper.text(x.start + 4, top + 7, f"in flight, {said}", "p95", bold=True)
    else:
        peak = xs[int(np.argmin(ys))]
        late = peak > (x.start + x.end) / 2
        paper.text(peak, y(most) - 7, said, size=11, align="right" if late else "left")
        paper.text(x.end + 7, (top + bottom) / 2, "in flight", "p95", bold=True)
    _x_axis(paper, x, bottom)


def draw_heat(paper: Paper, recording: Recording, findings: Findings, f: Heat) -> None:
    """Draw the share of each column's requests per latency bin, in six strengths."""
    x, top, bottom = _time_scale(paper, findings), 26.0, paper.height - 58.0
    if paper.phone:
        f = f.wider(44)
    subject, high = findings.subject, float(f.edges[-1])
    limits = [v.budget.limit for v in subject.judged.values()] if subject else []
    high = max([high, *(1.3 * limit for limit in limits if limit < 4 * high)])
    y = Scale(float(f.edges[0]) / 1.02, high * 1.05, bottom, top, log=True)
    _stages(paper, recording, findings, x, top, bottom)
    y_axis(paper, y, x.start, x.end, _tick(findings), 24)
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
    _limits(paper, recording, findings, x, y, cleared=True)
    _x_axis(paper, x, bottom)
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


def draw_nines(paper: Paper, _: Recording, findings: Findings, f: Nines) -> None:
    """Draw each stage's quantiles on an axis by nines, with bands, the limit and the verdicts."""
    subject = findings.subject
    if subject is None:
        return
    left, right = (56.0, 286.0) if paper.phone else (60.0, HALF - 92.0)
    top, bottom = 14.0, paper.height - 30.0
    most = max(float(curve.nines[-1]) for curve in f.curves)
    x = Scale(0.0, most, left, right)
    limit = subject.budget.limit if subject.budget else None
    ends = [v for c in f.curves for v in (float(c.values[0]), float(c.values[-1]))]
    spread = [float(v) for c in f.curves for v in c.high if not math.isnan(v)]
    y = latency_scale([*ends, *spread, limit], bottom, top)
    y_axis(paper, y, left, right, _tick(findings), 26)
    _nines_axis(paper, x, top, bottom)
    paper.line([left, right], [bottom, bottom], "line")
    labels = []
    for curve, role, width in zip(
        f.curves, ("p99", "p95", "p50", "ink2"), (2.2, 1.8, 1.5, 1.2), strict=False
    ):
        colour = "invalid" if curve.stage in findings.invalid_stages else role
        xs, ys = x.all(curve.nines), y.all(curve.values)
        band = [
            (a, y(float(low)), y(float(high)))
            for a, low, high in zip(xs, curve.low, curve.high, strict=True)
            if not math.isnan(low) and not math.isnan(high)
        ]
        paper.area(
            [[(a, h) for a, _, h in band] + [(a, lo) for a, lo, _ in band[::-1]]], colour, alpha=0.2
        )
        cut = int((curve.nines <= curve.solid_to).sum())
        paper.line(xs[:cut], ys[:cut], colour, width)
        paper.line(xs[max(cut - 1, 0) :], ys[max(cut - 1, 0) :], colour, 1.3, dash="dotted")
        bold = curve is f.curves[0]
        label = paper.fitted(curve.stage, paper.width - right - 9, bold=bold)
        labels.append((ys[-1], label, "ink2" if colour == "p50" else colour, bold))
    if limit is not None and subject.budget is not None:
        labels += _nines_limit(paper, findings, x, y, limit, right)
    _nines_marks(paper, findings, f, x, y)
    end_labels(paper, right + 8, labels, bottom)


def _nines_axis(paper: Paper, x: Scale, top: float, bottom: float) -> None:
    """Draw percentiles one nine apart, and the median."""
    for k in range(math.floor(x.high) + 1):
        for q in (0.0, 0.5) if k == 0 else (1 - 10**-k,):
            at = x(-math.log10(1 - q))
            if at < x.start - 1:
                continue
            paper.line([at, at], [top, bottom], "grid")
            if q or x(-math.log10(0.5)) - x.start > 34:
                paper.text(
                    at,
                    bottom + 13,
                    words.percentile(q) if q else "min",
                    size=11 if not paper.phone else 10.5,
                    align="center",
                )


def draw_difference(paper: Paper, _: Recording, __: Findings, f: Difference) -> None:
    """Draw candidate − baseline at each percentile with its band, and the line of no change."""
    left, right = (62.0, paper.width - 16.0) if paper.phone else (66.0, HALF - 24.0)
    top, bottom = 14.0, paper.height - 30.0
    curve = f.curve
    x = Scale(float(curve.nines[0]), float(curve.nines[-1]), left, right)
    known = [v for line in (curve.difference, curve.low, curve.high) for v in line.tolist()]
    reach = 1.12 * max((abs(v) for v in known if not math.isnan(v)), default=1.0) or 1.0
    y = Scale(-reach, reach, bottom, top)
    kind = METRICS[f.metric].kind if f.metric in METRICS else "time"
    for value in y.ticks(26):
        for at in {value, -value}:
            paper.line([left, right], [y(at), y(at)], "grid")
            label = words.signed(at, kind)
            size = 11 if not paper.phone else 10.5
            paper.text(left - 6, y(at), label, size=size, align="right")
    _nines_axis(paper, x, top, bottom)
    paper.line([left, right], [bottom, bottom], "line")
    band = [
        (a, y(low), y(high))
        for a, low, high in zip(x.all(curve.nines), curve.low, curve.high, strict=True)
        if not math.isnan(low) and not math.isnan(high)
    ]
    paper.area(
        [[(a, h) for a, _, h in band] + [(a, lo) for a, lo, _ in band[::-1]]], "p99", alpha=0.2
    )
    paper.line([left, right], [y(0), y(0)], "ink", 1.2)
    paper.line(x.all(curve.nines), y.all(curve.difference), "p99", 2.2)
    paper.text(left + 6, top + 8, "slower ↑", "ink2")
    paper.text(left + 6, bottom - 10, "faster ↓", "ink2")
    _difference_marks(paper, f, x, y, kind)


def _difference_marks(paper: Paper, f: Difference, x: Scale, y: Scale, kind: str) -> None:
    """Mark p50, p95 and p99 and write their difference where it finds room."""
    for q in (0.5, 0.95, 0.99):
        i = f.at(q)
        if i is None:
            continue
        change = float(f.curve.difference[i])
        at, level = x(float(f.curve.nines[i])), y(change)
        paper.dots([at], [level], "o", "p99", 6)
        text = f"{words.percentile(q)} {words.signed(change, kind)}"
        if at - x.start < paper.width_of(text, bold=True) + 12:
            rises = f.curve.difference[min(i + 5, len(f.curve.difference) - 1)] > change
            paper.text(at + 8, level + (14 if rises else -12), text, "ink", bold=True)
        else:
            paper.text(at - 8, level - 12, text, "ink", align="right", bold=True)


def _nines_limit(
    paper: Paper, findings: Findings, x: Scale, y: Scale, limit: float, right: float
) -> list[tuple[float, str, str, bool]]:
    """Draw the limit at its percentile; the labels for it, which stand at the right."""
    subject = findings.subject
    if subject is None or subject.budget is None:
        return []
    at = min(x(-math.log10(1 - subject.quantile)), right)
    level = y(limit)
    paper.line([min(at + 28, right), right], [level, level], "limit", 1.2, dash="dashed")
    paper.line([at - 28, min(at + 28, right)], [level, level], "limit", 2.4)
    paper.dots([at], [level - 4], "v", "limit", 6, width=0)
    return [
        (level, "limit", "limit", True),
        (level + 13, words.limit_of(subject.budget), "limit", True),
    ]


def _nines_marks(paper: Paper, findings: Findings, f: Nines, x: Scale, y: Scale) -> None:
    subject = findings.subject
    shown = {curve.stage for curve in f.curves}
    judged = [v for s, v in subject.judged.items() if s in shown] if subject else []
    judged = [v for v in judged if v.observed is not None and v.budget.quantile is not None]
    taken: list[float] = []
    for i, v in enumerate(sorted(judged, key=lambda v: -(v.observed or 0))):
        at = x(-math.log10(1 - (v.budget.quantile or 0)))
        level = y(v.observed or 0)
        paper.mark(at, level, v.outcome)
        if any(abs(level - other) < 15 for other in taken):
            continue
        taken.append(level)
        above = i == 0
        paper.text(
            at - 8 if above else at + 8,
            level + (-8 if above else 9),
            words.observed(v),
            MARKS[v.outcome][1],
            align="right" if above else "left",
            bold=True,
        )


def draw_knee(paper: Paper, _: Recording, findings: Findings, f: Knee) -> None:
    """Draw percentiles over the reached rate, and where the limit breaks."""
    left, right = (56.0, 316.0) if paper.phone else (60.0, HALF - 44.0)
    top, bottom = 30.0, paper.height - 46.0
    limit = findings.subject.budget.limit if findings.subject and findings.subject.budget else None
    x = Scale(0.0, max(lv.reached for lv in f.levels) * 1.05, left, right)
    values = [v for lv in f.levels for v in (*lv.percentiles, lv.low, lv.high)]
    y = latency_scale([*values, limit], bottom, top)
    y_axis(paper, y, left, right, _tick(findings), 26)
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
        _limit_label(paper, findings, left + 4, y(limit))
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


def draw_waterfall(paper: Paper, _: Recording, __: Findings, f: Waterfall) -> None:
    """Draw where each step starts and how long it takes, in median and in slow journeys."""
    left, right = (104.0, 316.0) if paper.phone else (180.0, WIDE - 250.0)
    top, row = 26.0, 36.0
    bottom = top + row * len(f.bars)
    x = Scale(0.0, max(f.slow, f.median) * 1.04, left, right)
    for value in x.ticks(110 if not paper.phone else 64):
        paper.line([x(value)] * 2, [top, bottom], "grid")
        paper.text(
            x(value),
            bottom + 13,
            words.number(value, "time") if value else "0",
            size=11 if not paper.phone else 10.5,
            align="center",
        )
    paper.line([left, right], [bottom, bottom], "line")
    legend = (
        ("p50", f"median ({words.number(f.median, 'time')})"),
        ("p99", f"slowest 1{NARROW_SPACE}% ({words.number(f.slow, 'time')})"),
    )
    at = left if not paper.phone else 8.0
    for role, text in legend:
        paper.box(at, 5, at + 10, 13, role)
        paper.text(at + 15, 9, text)
        at += 40 + paper.width_of(text)
    if not paper.phone:
        paper.text(WIDE - 116, 9, "extra time", size=11, align="right")
        paper.text(WIDE - 16, 9, "share of extra", size=11, align="right")
    for i, bar in enumerate(f.bars):
        _waterfall_row(paper, f, bar, top + row * i, x)


def _waterfall_row(paper: Paper, f: Waterfall, bar: Bar, y: float, x: Scale) -> None:
    name = words.bar_name(bar)
    if paper.phone:
        name = name.removeprefix(f.root + "/")
    paper.text(x.start - 7, y + 18, paper.fitted(name, x.start - 14), "ink", align="right")
    pairs = ((bar.start, bar.length, "p50", 4), (bar.slow_start, bar.slow_length, "p99", 18))
    for start, length, role, down in pairs:
        x0, x1 = x(start), x(start + length)
        paper.box(x0, y + down, max(x1, x0 + 1.5), y + down + 10, role)
        text = words.number(length, "time")
        if x1 + 5 + paper.width_of(text, size=11) > x.end + (60 if not paper.phone else 40):
            paper.text(x0 - 4, y + down + 5, text, size=11, align="right")
        else:
            paper.text(max(x1, x0 + 1.5) + 4, y + down + 5, text, size=11)
    if not paper.phone:
        top = bar is f.largest and bar.extra > 0
        role = "ink" if top else "ink2"
        paper.text(WIDE - 116, y + 18, words.signed(bar.extra), role, align="right", bold=top)
        paper.text(WIDE - 16, y + 18, words.percent(bar.share), role, align="right", bold=top)


def draw_budgets(paper: Paper, verdicts: Sequence[BudgetVerdict]) -> None:
    """Draw every budget's share of its limit with its interval; for the PNG file only."""
    left, right, top = 440.0, 730.0, 8.0
    x = Scale(0.0, 2.0, left, right)
    bottom = top + 28 * len(verdicts)
    paper.box(x(1), top, right, bottom, "band")
    paper.line([x(1)] * 2, [top, bottom], "limit", 2)
    for share, text in (
        (0, "0"),
        (0.5, f"50{NARROW_SPACE}%"),
        (1, "limit"),
        (1.5, "1.5×"),
        (2, "2×"),
    ):
        paper.text(x(share), bottom + 12, text, size=11, align="center")
    for i, v in enumerate(verdicts):
        y, role = top + 28 * i + 14, MARKS[v.outcome][1]
        paper.text(18, y, str(v.outcome), role, bold=True)
        paper.text(140, y, words.short(v.budget.subject, 30), "ink")
        paper.text(left - 16, y, words.short(v.stage, 12), align="right")
        ends = [used_share(v, end) for end in (v.low, v.high)]
        if v.used is not None:
            low, high = (
                min(e for e in ends if e is not None)
                if any(e is not None for e in ends)
                else v.used,
                max((e for e in ends if e is not None), default=v.used),
            )
            open_end = None in ends and v.outcome is Outcome.INCONCLUSIVE
            x1 = right if open_end else x(min(high, 2.0))
            if v.outcome is not Outcome.INVALID:
                paper.box(x(min(low, 2.0)), y - 4, x1, y + 4, role, alpha=0.5)
            if open_end:
                paper.dots([right], [y], ">", role, 6, width=0)
            shape = MARKS[v.outcome][0]
            face = role if v.outcome in (Outcome.PASS, Outcome.FAIL) else "bg"
            paper.dots([x(min(v.used, 2.0))], [y], shape, role, 7.5, face=face)
        paper.text(836, y, words.observed(v), "ink", bold=True, align="right")
        paper.text(848, y, f"[{words.interval(v)}]", size=11)
        paper.text(
            WIDE - 18,
            y,
            f"{words.operator_of(v.budget)} {words.limit_of(v.budget)}",
            "ink",
            align="right",
        )


def used_share(verdict: BudgetVerdict, value: float | None) -> float | None:
    """Return what share of the limit (of a lower limit, of the allowed loss) a value uses.

    An improvement on a baseline uses nothing of what it might have grown.
    """
    if value is None:
        return None
    limit = verdict.budget.limit
    if not verdict.budget.upper and verdict.budget.kind == "share":
        return (1 - value) / (1 - limit) if limit < 1 else 2.0
    if not verdict.budget.upper:
        return limit / value if value else 2.0
    return max(0.0, value / limit) if limit else 2.0


# --- all of them ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Chart:
    name: str
    facts: str
    kind: type[Any]
    draw: Draw
    words: Callable[[Recording, Findings, Any], words.Words]
    width: int
    height: Callable[[Any], int]
    phone_height: Callable[[Any], int]


def _fixed(height: int) -> Callable[[Any], int]:
    return lambda _: height


def _rows_high(facts: Waterfall) -> int:
    return 26 + 36 * len(facts.bars) + 24


_CHARTS = (
    _Chart(
        "waterfall",
        "waterfall",
        Waterfall,
        draw_waterfall,
        words.waterfall,
        WIDE,
        _rows_high,
        _rows_high,
    ),
    _Chart(
        "over-time",
        "over_time",
        OverTime,
        draw_over_time,
        words.over_time,
        WIDE,
        _fixed(260),
        _fixed(260),
    ),
    _Chart("load", "load", Load, draw_load, words.load, WIDE, _fixed(230), _fixed(230)),
    _Chart("heatmap", "heat", Heat, draw_heat, words.heat, WIDE, _fixed(272), _fixed(272)),
    _Chart("nines", "nines", Nines, draw_nines, words.nines, HALF, _fixed(330), _fixed(300)),
    _Chart(
        "difference",
        "difference",
        Difference,
        draw_difference,
        words.difference,
        HALF,
        _fixed(330),
        _fixed(300),
    ),
    _Chart("capacity", "capacity", Knee, draw_knee, words.knee, HALF, _fixed(330), _fixed(300)),
)


def _facts_of(chart: _Chart, findings: Findings) -> Any:
    """Return the chart's facts, or None when it is left out or is a table on the page."""
    facts = getattr(findings, chart.facts)
    table = isinstance(facts, Waterfall) and len(facts.steps) > MOST_BARS
    return facts if isinstance(facts, chart.kind) and not table else None


def draw_all(
    recording: Recording, findings: Findings, *, only: Sequence[str] = (), prefix: str = ""
) -> dict[str, Drawing]:
    """Draw every chart that has data (or `only` some), for wide pages and for phones; by name.

    `prefix` keeps the ids of several sets apart on one page.
    """
    drawings = {}
    with drawing():
        for chart in _CHARTS:
            facts = _facts_of(chart, findings)
            if facts is None or (only and chart.name not in only):
                continue
            said = chart.words(recording, findings, facts)
            svgs = []
            for width, height, suffix in (
                (chart.width, chart.height(facts), ""),
                (PHONE, chart.phone_height(facts), "-phone"),
            ):
                paper = Paper(width, height, CODES)
                chart.draw(paper, recording, findings, facts)
                svgs.append(paper.svg(prefix + chart.name + suffix, said.heading, said.described))
            drawings[chart.name] = Drawing(chart.name, said, *svgs)
    return drawings


def write_charts(
    folder: Path, recording: Recording, verdict: Verdict, findings: Findings
) -> list[Path]:
    """Write each chart as PNG, light and dark, into `folder`/charts; return the files."""
    footer = " · ".join(words.run_line(recording))
    target = folder / "charts"
    target.mkdir(parents=True, exist_ok=True)
    written = []
    with drawing():
        for i, theme in enumerate(("light", "dark")):
            colours = {role: pair[i] for role, pair in ROLES.items()}
            for chart in _CHARTS:
                facts = _facts_of(chart, findings)
                if facts is not None:
                    said, size = (
                        chart.words(recording, findings, facts),
                        (chart.width, chart.height(facts)),
                    )
                    paper = _sheet(*size, colours, said.heading, said.note, footer)
                    chart.draw(paper, recording, findings, facts)
                    written.append(target / f"{chart.name}-{theme}.png")
                    paper.png(written[-1])
            if verdict.budgets:
                heading = words.budgets_heading(verdict.budgets)
                note = "Mark: observed value. Bar: its interval. Scale: share of the limit used."
                shown = verdict.budgets[:20]
                paper = _sheet(WIDE, 28 * len(shown) + 30, colours, heading, note, footer)
                draw_budgets(paper, shown)
                written.append(target / f"budgets-{theme}.png")
                paper.png(written[-1])
    return written


def _sheet(
    width: int, height: int, colours: dict[str, str], heading: str, note: str, footer: str
) -> Paper:
    """Return paper with the wrapped finding as its title and a footer."""
    titles = textwrap.wrap(heading, max(20, int((width - 36) / 10.2)))
    notes = textwrap.wrap(note, max(30, int((width - 36) / 6.9)))
    head = 16 + 22 * len(titles) + 17 * len(notes) + 10
    paper = Paper(width, height, colours, head=head, foot=30)
    for i, line in enumerate(titles):
        paper.text(18, 28 + 22 * i - head, line, "ink", size=16, bold=True, middle=False)
    for i, line in enumerate(notes):
        paper.text(18, 24 + 22 * len(titles) + 17 * i - head, line, size=12, middle=False)
    paper.text(18, height + 14, footer, size=11)
    return paper
