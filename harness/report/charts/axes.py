"""What the charts share: axes, stages, the limit, and labels where lines end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from harness.metrics import METRICS
from harness.recorder import Recording
from harness.report import words
from harness.report.facts import Findings
from harness.report.paper import WIDE, Paper, Scale
from harness.units import format_clock


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


def time_axis(paper: Paper, x: Scale, y: float, apart: float | None = None) -> None:
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


def time_scale(paper: Paper, findings: Findings) -> Scale:
    """Return the time axis that all charts over the run share."""
    left, right = (54, 306) if paper.phone else (60, WIDE - 78)
    return Scale(0.0, findings.end_s, left, right)


def tick_label(findings: Findings) -> Callable[[float], str]:
    """Return what writes a tick of the subject's axis."""
    subject = findings.subject
    kind = METRICS[subject.metric].kind if subject else "time"
    return lambda value: words.number(value, kind) if value or kind != "time" else "0"


def shade_stages(
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
            name = words.stage_name(stage.name)
            label = f"{name}, not judged" if invalid else words.stage_label(stage)
            last = i == len(shown) - 1
            room = (paper.width if last else x1) - x0 - 6
            fits = [t for t in (label, name) if paper.width_of(t) <= room]
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


def limit_label(
    paper: Paper, findings: Findings, x: float, y: float, *, cleared: bool = False
) -> None:
    """Write the limit on its line; `cleared` puts paper between the label and what is below it."""
    if findings.focus is not None:
        said = f"limit {words.limit_of(findings.focus.budget)}"
        width = paper.width_of(said, bold=True)
        if cleared:
            paper.box(x - 3, y - 18, x + width + 3, y - 2, "bg", alpha=0.7)
        paper.text(x, y - 5, said, "limit", bold=True, middle=False)


def draw_limits(
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
        limit_label(paper, findings, x(start) + 4, y(spans[0][2].limit), cleared=cleared)
