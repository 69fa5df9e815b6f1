"""Every chart that has facts, as themed SVG (wide and for phones) and as PNG files."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harness.recorder import Recording
from harness.report import words
from harness.report.charts.budgets import draw_budgets
from harness.report.charts.capacity import draw_knee
from harness.report.charts.course import draw_heat, draw_load, draw_over_time
from harness.report.charts.distribution import draw_difference, draw_nines
from harness.report.charts.waterfall import draw_waterfall
from harness.report.facts import (
    MOST_BARS,
    Difference,
    Findings,
    Heat,
    Knee,
    Load,
    Nines,
    OverTime,
    Waterfall,
)
from harness.report.paper import CODES, HALF, PHONE, ROLES, WIDE, Paper, drawing
from harness.verdict import Verdict

Draw = Callable[[Paper, Recording, Findings, Any], None]


@dataclass(frozen=True, slots=True)
class Drawing:
    """One chart of the page: both drawings as SVG, and what is said about it."""

    name: str
    words: words.Words
    wide: Markup
    phone: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """How one chart is drawn and worded, and in what size (CSS pixels).

    `facts` names the field of the findings that holds them, `kind` is their class. A chart that
    has rows grows with them.
    """

    name: str
    facts: str
    kind: type[Any]
    draw: Draw
    words: Callable[[Recording, Findings, Any], words.Words]
    width: int = WIDE
    height: int
    phone_height: int | None = None
    rows: Callable[[Any], int] = lambda _: 0

    def size(self, facts: Any, *, phone: bool = False) -> tuple[int, int]:
        """Return width and height."""
        own = self.height if self.phone_height is None or not phone else self.phone_height
        return PHONE if phone else self.width, own + self.rows(facts)


_HALF: dict[str, Any] = {"width": HALF, "height": 330, "phone_height": 300}
CHARTS = (
    Chart(
        name="waterfall",
        facts="waterfall",
        kind=Waterfall,
        draw=draw_waterfall,
        words=words.waterfall,
        height=50,
        rows=lambda waterfall: 36 * len(waterfall.bars),
    ),
    Chart(
        name="over-time",
        facts="over_time",
        kind=OverTime,
        draw=draw_over_time,
        words=words.over_time,
        height=260,
    ),
    Chart(name="load", facts="load", kind=Load, draw=draw_load, words=words.load, height=230),
    Chart(name="heatmap", facts="heat", kind=Heat, draw=draw_heat, words=words.heat, height=272),
    Chart(name="nines", facts="nines", kind=Nines, draw=draw_nines, words=words.nines, **_HALF),
    Chart(
        name="difference",
        facts="difference",
        kind=Difference,
        draw=draw_difference,
        words=words.difference,
        **_HALF,
    ),
    Chart(name="capacity", facts="capacity", kind=Knee, draw=draw_knee, words=words.knee, **_HALF),
)


def facts_of(chart: Chart, findings: Findings) -> Any:
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
    for chart in CHARTS:
        facts = facts_of(chart, findings)
        if facts is None or (only and chart.name not in only):
            continue
        drawings[chart.name] = drawn(
            chart.name,
            chart.words(recording, findings, facts),
            (chart.size(facts), chart.size(facts, phone=True)),
            chart.draw,
            recording,
            findings,
            facts,
            prefix=prefix,
        )
    return drawings


def drawn(
    name: str,
    said: words.Words,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    draw: Callable[..., None],
    *facts: Any,
    prefix: str = "",
) -> Drawing:
    """Draw one chart in two sizes (width, height): for wide pages and for phones.

    `draw` is called with paper and the facts.
    """
    svgs = []
    with drawing():
        for size, suffix in zip(sizes, ("", "-phone"), strict=True):
            paper = Paper(*size, CODES)
            draw(paper, *facts)
            svgs.append(paper.svg(prefix + name + suffix, said.heading, said.described))
    return Drawing(name, said, *svgs)


def write_charts(
    folder: Path, recording: Recording, verdict: Verdict, findings: Findings
) -> list[Path]:
    """Write each chart as PNG, light and dark, into `folder`/charts; return the files."""
    target = folder / "charts"
    target.mkdir(parents=True, exist_ok=True)
    written = []
    with drawing():
        for i, theme in enumerate(("light", "dark")):
            colours = {role: pair[i] for role, pair in ROLES.items()}
            for name, paper in _sheets(recording, verdict, findings, colours):
                written.append(target / f"{name}-{theme}.png")
                paper.png(written[-1])
    return written


def _sheets(
    recording: Recording, verdict: Verdict, findings: Findings, colours: dict[str, str]
) -> Iterator[tuple[str, Paper]]:
    """Draw every chart and the budgets on paper with its finding above."""
    footer = " · ".join(words.run_line(recording))
    for chart in CHARTS:
        facts = facts_of(chart, findings)
        if facts is not None:
            said = chart.words(recording, findings, facts)
            paper = _sheet(*chart.size(facts), colours, said.heading, said.note, footer)
            chart.draw(paper, recording, findings, facts)
            yield chart.name, paper
    if verdict.budgets:
        heading = words.budgets_heading(verdict.budgets)
        note = "Mark: observed value. Bar: its interval. Scale: share of the limit used."
        shown = verdict.budgets[:20]
        paper = _sheet(WIDE, 28 * len(shown) + 30, colours, heading, note, footer)
        draw_budgets(paper, shown)
        yield "budgets", paper


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
