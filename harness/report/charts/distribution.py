"""Charts by nines: the percentile curve of each stage, and its difference from a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable

from harness.metrics import METRICS, Kind
from harness.recorder import Recording
from harness.report import words
from harness.report.charts.axes import end_labels, latency_scale, tick_label, y_axis
from harness.report.facts import Difference, Findings, Nines
from harness.report.facts.subject import FloatArray
from harness.report.paper import HALF, MARKS, Paper, Scale


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
    y_axis(paper, y, left, right, tick_label(findings), 26)
    nines_axis(paper, x, top, bottom)
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
        for run in curve.runs:
            paper.line(xs, y.all(run), colour, 0.9, alpha=0.6)
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


def nines_axis(paper: Paper, x: Scale, top: float, bottom: float) -> None:
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
        (level + 0.01, words.limit_of(subject.budget), "limit", True),  # right below
    ]


def _nines_marks(paper: Paper, findings: Findings, f: Nines, x: Scale, y: Scale) -> None:
    subject = findings.subject
    shown = {curve.stage for curve in f.curves}
    judged = [v for s, v in subject.judged.items() if s in shown] if subject else []
    judged = [
        v
        for v in judged
        if v.observed is not None and v.budget.quantile is not None and v.budget.over_ns is None
    ]
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


def draw_difference(paper: Paper, _: Recording, __: Findings, f: Difference) -> None:
    """Draw candidate − baseline at each percentile with its band, and the line of no change."""
    left, right = (62.0, paper.width - 16.0) if paper.phone else (66.0, HALF - 24.0)
    top, bottom = 14.0, paper.height - 30.0
    curve = f.curve
    x = Scale(float(curve.nines[0]), float(curve.nines[-1]), left, right)
    y = _around_zero([curve.difference, curve.low, curve.high], bottom, top)
    kind = METRICS[f.metric].kind if f.metric in METRICS else "time"
    y_axis(paper, y, left, right, lambda value: words.signed(value, kind), 26)
    nines_axis(paper, x, top, bottom)
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
    up, down = words.directions(f.metric)
    paper.text(left + 6, top + 8, f"{up} ↑", "ink2")
    paper.text(left + 6, bottom - 10, f"{down} ↓", "ink2")
    _difference_marks(paper, f, x, y, kind)


def _around_zero(lines: Iterable[FloatArray], bottom: float, top: float) -> Scale:
    """Return an axis that holds zero and all values, and some room on either side."""
    known = [v for line in lines for v in line.tolist() if not math.isnan(v)]
    low, high = min([0.0, *known]), max([0.0, *known])
    room = 0.16 * (high - low) or 1.0
    return Scale(low - room, high + room, bottom, top)


def _difference_marks(paper: Paper, f: Difference, x: Scale, y: Scale, kind: Kind) -> None:
    """Mark p50, p95 and p99 and write their difference where it finds room."""
    taken = (-math.inf, 0.0)  # where the label before ends, and how high it stands
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
            above = level - 12
            beside = at - 8 - paper.width_of(text, bold=True) < taken[0] + 10
            if beside and abs(above - taken[1]) < 15:
                above = taken[1] - 15
            taken = (at - 8, above)
            paper.text(at - 8, above, text, "ink", align="right", bold=True)
