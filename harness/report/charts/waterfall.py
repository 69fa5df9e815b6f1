"""The waterfall: where each step starts and how long it takes, in usual and in slow journeys."""

from __future__ import annotations

from harness.recorder import Recording
from harness.report import words
from harness.report.facts import Bar, Findings, Waterfall
from harness.report.paper import WIDE, Paper, Scale
from harness.units import NARROW_SPACE


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
