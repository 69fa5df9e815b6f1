"""The knee chart: latency, and what the target completed, against the probed load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.budget import RUN
from harness.metrics import METRICS
from harness.report import words
from harness.report.charts import Drawing, drawn
from harness.report.charts.axes import end_labels, latency_scale, y_axis
from harness.report.paper import PHONE, ROLES, WIDE, Paper, Scale
from harness.report.words import Words
from harness.search.decision import Shown
from harness.search.result import Percentiles, Search, headline, in_order
from harness.units import format_count, format_rate
from harness.verdict import BudgetVerdict, Outcome

_HEIGHT, _PHONE_HEIGHT = 430, 400
_LATENCY_SHARE = 0.6  # of the height, the rest is for the rates
_LINES = (("p50", 1.5), ("p95", 1.7), ("p99", 2.2))
MARKS = {
    Shown.HOLDS: Outcome.PASS,
    Shown.BREAKS: Outcome.FAIL,
    Shown.OPEN: Outcome.INCONCLUSIVE,
    Shown.UNFIT: Outcome.INVALID,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One probe on the chart; `judged` is the verdict of the budget that the chart is about."""

    load: float
    shown: Shown
    percentiles: Percentiles
    judged: BudgetVerdict | None
    offered_per_s: float
    completed_per_s: float
    good_per_s: float


def knee(search: Search) -> Drawing:
    """Draw the chart for wide pages and for phones."""
    sizes = (WIDE, _HEIGHT), (PHONE, _PHONE_HEIGHT)
    return drawn("knee", _words(search), sizes, _draw, search)


def as_file(chart: Drawing) -> str:
    """Return the wide drawing as an SVG file of its own, in the reader's theme."""
    light, dark = (
        " ".join(f"--{role}: {pair[theme]};" for role, pair in ROLES.items()) for theme in (0, 1)
    )
    style = (
        f"<style>svg {{ {light} font-family: system-ui, sans-serif; background: var(--bg); }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    )
    head, rest = str(chart.wide).split(">", 1)
    opened = head.replace(
        "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{_HEIGHT}" ', 1
    )
    return f"{opened}>{style}{rest}\n"


def subject(search: Search) -> tuple[str, str]:
    """Return the step and metric that the chart shows; whole requests where none is limited."""
    if search.focus is not None:
        return search.focus.budget.step, search.focus.budget.metric
    known = [key for probe in search.probes for key in probe.percentiles if key[0] == RUN]
    return known[0] if known else (RUN, "e2el")


def levels(search: Search) -> list[Level]:
    """Return what the chart shows of each probe that was not interrupted, by load."""
    where, focus = subject(search), search.focus
    return [
        Level(
            load=probe.load,
            shown=probe.shown,
            percentiles=probe.percentiles.get(where, (None, None, None)),
            judged=probe.of(focus.budget.text) if focus else None,
            offered_per_s=probe.offered_per_s,
            completed_per_s=probe.completed_per_s,
            good_per_s=probe.good_per_s,
        )
        for probe in in_order(search)
        if probe.shown is not None
    ]


# --- drawing -------------------------------------------------------------------------------------


def _draw(paper: Paper, search: Search) -> None:
    shown = levels(search)
    left, right = (58.0, 286.0) if paper.phone else (64.0, WIDE - 96.0)
    most = max((level.load for level in shown), default=search.within.high)
    x = Scale(0.0, most * 1.04, left, right)
    top, bottom = 30.0, paper.height - 46.0
    middle = top + (bottom - top) * _LATENCY_SHARE
    for panel in ((top, middle), (middle + 30, bottom)):
        _ends(paper, search, x, *panel)
    _latency(paper, search, shown, x, top, middle)
    _rates(paper, search, shown, x, middle + 30, bottom)
    _chosen(paper, search, x, top, bottom)
    for value in x.ticks(44 if paper.phone else 64):
        paper.text(x(value), bottom + 13, _load(search, value), size=11, align="center")
    of = "offered rate, requests per second" if search.what == "rate" else "concurrency, users"
    paper.text((left + right) / 2, bottom + 32, of, size=11, align="center")


def _load(search: Search, value: float) -> str:
    if search.what == "concurrency":
        return format_count(round(value)) if value == round(value) else ""
    return _rate(value)


def _rate(value: float) -> str:
    return format_rate(round(value, 9)) if value else "0"


def _ends(paper: Paper, search: Search, x: Scale, top: float, bottom: float) -> None:
    """Shade what lies beyond the limit; hatched where the generator was it, not the target."""
    found = search.conclusion
    if found.ends is None or found.end is None:
        return
    unfit = found.end is Shown.UNFIT
    role = MARKS[found.end].lower()
    beyond = 0.35 if unfit else 0.06
    paper.box(x(found.ends), top, x.end, bottom, role, alpha=beyond, hatch=unfit)
    if found.holds is not None:
        paper.box(x(found.holds), top, x(found.ends), bottom, role, alpha=0.14)


def _chosen(paper: Paper, search: Search, x: Scale, top: float, bottom: float) -> None:
    holds = search.conclusion.holds
    if holds is None:
        return
    at = x(holds)
    paper.line([at, at], [top, bottom], "ink", 1.4)
    said = f"holds at {search.template.load_text(holds)}"
    room = paper.width_of(said, bold=True)
    fits = at - room > x.start
    paper.text(at, top - 11, said, "ink", bold=True, align="right" if fits else "left")
    paper.dots([at], [top - 1], "v", "ink", 7, width=0)


def _latency(
    paper: Paper, search: Search, shown: Sequence[Level], x: Scale, top: float, bottom: float
) -> None:
    """Draw percentiles as lines, the judged statistic with its interval, and the limit."""
    limit = None if search.focus is None else search.focus.budget.limit
    judged = [level.judged for level in shown if level.judged is not None]
    values = [value for level in shown for value in level.percentiles]
    values += [end for one in judged for end in (one.observed, one.low, one.high)]
    if not any(value is not None for value in values):
        paper.text(x.start, (top + bottom) / 2, "no request finished in any probe")
        return
    y = latency_scale([*values, limit], bottom, top)
    y_axis(paper, y, x.start, x.end, _tick(search), 26)
    paper.line([x.start, x.end], [bottom, bottom], "line")
    labels = []
    lines = _last_of_each(shown)
    for i, (role, width) in enumerate(_LINES):
        points = [(x(lv.load), y(v)) for lv in lines if (v := lv.percentiles[i]) is not None]
        if points:
            xs, ys = zip(*points, strict=True)
            paper.line(xs, ys, role, width)
            paper.dots(xs, ys, "o", role, 3, width=0)
            labels.append((ys[-1], role, "ink2" if i == 0 else role, i == 2))
    if limit is not None and search.focus is not None:
        paper.line([x.start, x.end], [y(limit)] * 2, "limit", 1.4, dash="dashed")
        said = f"{search.focus.budget.aspect} limit {words.limit_of(search.focus.budget)}"
        paper.text(x.start + 4, y(limit) - 5, said, "limit", bold=True, middle=False)
    for level in shown:
        _mark(paper, level, x(level.load), y)
    end_labels(paper, x.end + 7, labels, bottom)


def _last_of_each(shown: Sequence[Level]) -> list[Level]:
    """Return the last probe of each load, without those of an unfit generator."""
    return list({level.load: level for level in shown if level.shown is not Shown.UNFIT}.values())


def _mark(paper: Paper, level: Level, at: float, y: Scale) -> None:
    judged = level.judged
    if judged is None:
        return
    if judged.low is not None and judged.high is not None:
        paper.line([at, at], [y(judged.low), y(judged.high)], "p99", 1.5)
    value = next((v for v in (judged.observed, judged.low, judged.high) if v is not None), None)
    if value is not None:
        paper.mark(at, y(value), MARKS[level.shown], 7)


def _tick(search: Search) -> Callable[[float], str]:
    metric = METRICS.get(subject(search)[1])
    kind = metric.kind if metric else "time"
    return lambda value: words.number(value, kind) if value else "0"


def _rates(
    paper: Paper, search: Search, shown: Sequence[Level], x: Scale, top: float, bottom: float
) -> None:
    """Draw what was completed, and how much of it was good, below what was offered."""
    lines = _last_of_each(shown)
    most = max((max(lv.offered_per_s, lv.completed_per_s) for lv in shown), default=1.0) or 1.0
    y = Scale(0.0, most * 1.12, bottom, top)
    y_axis(paper, y, x.start, x.end, _rate, 26)
    paper.line([x.start, x.end], [bottom, bottom], "line")
    if search.what == "rate":
        end = min(x.high, y.high)
        paper.line([x(0), x(end)], [y(0), y(end)], "ink2", 1.1, dash="dashed")
    labels = []
    series = (
        ("completed", "p50", [lv.completed_per_s for lv in lines], 1.7),
        ("good", "p99", [lv.good_per_s for lv in lines], 2.2),
    )
    for name, role, values, width in series:
        if values:
            xs, ys = x.all([lv.load for lv in lines]), y.all(values)
            paper.line(xs, ys, role, width)
            paper.dots(xs, ys, "o", role, 4, width=0)
            labels.append((ys[-1], name, "ink2" if role == "p50" else role, role == "p99"))
    if search.what == "rate" and lines:
        labels.append((y(min(x.high, y.high)), "offered", "ink2", False))
    end_labels(paper, x.end + 7, labels, bottom)


# --- words ---------------------------------------------------------------------------------------


def _words(search: Search) -> Words:
    step, metric = subject(search)
    kind = METRICS[metric].kind if metric in METRICS else "time"
    unit = search.focus.budget.time_unit if search.focus else None
    judged = f" Marks: {search.focus.budget.subject}, with its interval." if search.focus else ""
    return Words(
        heading=headline(search).rstrip("."),
        note=f"Above: {step}.{metric} by probe; lines join the last probe of each load.{judged} "
        "Below: requests per second completed, and those of them that met every latency limit.",
        columns=("Load", "shown", "p50", "p95", "p99", "offered", "completed", "good"),
        rows=tuple(
            (
                search.template.load_text(level.load),
                str(level.shown),
                *(words.number(value, kind, unit) for value in level.percentiles),
                format_rate(level.offered_per_s),
                format_rate(level.completed_per_s),
                format_rate(level.good_per_s),
            )
            for level in levels(search)
        ),
    )
