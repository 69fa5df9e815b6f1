"""What is said about each chart: a heading that is its finding, how to read it, and its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from harness.metrics import METRICS
from harness.recorder import Recording
from harness.report.facts import (
    MOST_BARS,
    Bar,
    Difference,
    Findings,
    Heat,
    Knee,
    Level,
    Load,
    Nines,
    OverTime,
    Subject,
    Waterfall,
)
from harness.report.facts.subject import stage_name
from harness.report.words.quantities import (
    counted,
    directions,
    limit_of,
    number,
    percent,
    percentile,
    share_of_extra,
    short,
    signed,
    stage_phrase,
)
from harness.report.words.sentences import since_text
from harness.units import (
    TimeUnit,
    format_clock,
    format_count,
    format_duration,
    format_rate,
    format_share,
)
from harness.verdict import Outcome

NO_STEP = "not in a step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What is said about one chart; `rows` are cells of text, the first names the row."""

    heading: str
    note: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=())

    @property
    def described(self) -> str:
        """Return the numbers as one text, for a reader who cannot see the chart."""
        head, *names = self.columns or ("",)
        lines = [
            f"{head} {row[0]}: "
            + ", ".join(f"{n} {cell}" for n, cell in zip(names, row[1:], strict=True))
            for row in self.rows[:40]
        ]
        more = len(self.rows) - len(lines)
        return "; ".join([*lines, *([f"and {more} more rows"] if more else [])]) + "."


def metric_unit(subject: Subject) -> TimeUnit | None:
    """Return the unit of the subject's limit, if it has one."""
    return subject.budget.time_unit if subject.budget else None


def over_time(_: Recording, findings: Findings, facts: OverTime) -> Words:
    """Say since when the limit is missed."""
    subject = findings.subject
    assert subject is not None
    unit = metric_unit(subject)
    names = tuple(percentile(q) for q in facts.quantiles)
    failed = sum(count for _, count in facts.failed)
    kind = "time" if subject.budget is None else subject.budget.kind
    return Words(
        heading=_over_time_heading(findings, facts, subject),
        note=(
            (
                f"Windows of {format_duration(subject.span_s * 1e9)}: the limit must hold in each."
                if subject.span_s
                else "Windows of about 300 requests, never across a stage border."
            )
            + (
                " Squares: more requests over the limit than the budget allows, beyond chance."
                if facts.judged
                else ""
            )
            + (f" Crosses: {counted(failed, 'failed request')}." if failed else "")
        ),
        columns=("Window", "Stage", *names, "n", "over the limit", "beyond chance"),
        rows=tuple(
            (
                f"{format_clock(w.t0)} – {format_clock(w.t1)}",
                stage_name(w.stage),
                *(number(v, kind, unit) for v in w.percentiles),
                format_count(w.n),
                "–" if w.over is None else format_count(w.over),
                "yes" if w.flagged else "no",
            )
            for w in facts.windows
        ),
    )


def _over_time_heading(findings: Findings, facts: OverTime, subject: Subject) -> str:
    focus, name = findings.focus, subject.name
    if focus is None or focus.budget.quantile is None:
        return f"{name} over time"
    if focus.outcome is Outcome.INVALID:
        return f"{name} over time: the {focus.stage} stage was not measured properly"
    what, limit = focus.budget.subject, limit_of(focus.budget)
    windows = counted(facts.judged, "window")
    if facts.since:
        still = facts.still_over
        when = f"{what} {'has been' if still else 'was'} over {limit} "
        when += since_text(facts.since, findings)
        return when if still else f"{when}: {facts.flagged} of {windows} beyond chance"
    above = f"{facts.above or 'none'} of {windows} above {limit}"
    if facts.judged == 1:
        above = f"its one window is {'above' if facts.above else 'below'} {limit}"
    said = {
        Outcome.FAIL: "broke its limit without a clear start",
        Outcome.PASS: "held",
    }.get(focus.outcome, "cannot be decided yet")
    chance = ", within chance" if facts.above else ""
    if facts.flagged:
        chance = ", never two in a row beyond chance"
    return f"{what} {said}: {above}{chance if focus.outcome is Outcome.PASS else ''}"


def load(recording: Recording, findings: Findings, facts: Load) -> Words:
    """Say whether the load arrived."""
    short_of = {s: x for s, x in facts.shortfalls.items() if s in findings.invalid_stages}
    if short_of:
        stage, share = max(short_of.items(), key=lambda item: item[1])
        heading = (
            f"The generator fell behind its plan in the {stage_phrase(stage)}: "
            f"{percent(share)} of requests were never sent"
        )
    elif facts.planned is None:
        loads = dict.fromkeys(stage.load for stage in recording.stages if stage.record)
        heading = f"{', '.join(loads)}: up to {format_rate(float(facts.reached.max()))} reached"
    else:
        heading = "The target got the planned load"
        if recording.run.get("status") == "interrupted":
            heading += " until the run was interrupted"
        if findings.overloads:
            heading += f", and could not keep up from {format_clock(findings.overloads[0])} on"
    planned = facts.planned if facts.planned is not None else [math.nan] * len(facts.t_s)
    return Words(
        heading=heading,
        columns=("From", "planned", "reached", "most in flight"),
        rows=tuple(
            (
                format_clock(float(t)),
                "–" if math.isnan(p) else format_rate(float(p)),
                format_rate(float(r)),
                format_count(f),
            )
            for t, p, r, f in zip(
                facts.t_s, planned, facts.reached, facts.most_in_flight(), strict=True
            )
        ),
    )


def heat(_: Recording, __: Findings, facts: Heat) -> Words:
    """Say what the heatmap shows, as counts in coarse bins."""
    totals = facts.doublings()
    every = sum(count for _, _, count in totals)
    return Words(
        heading="Every request: the stronger the colour, the more requests",
        columns=("Latency", "requests", "share"),
        rows=tuple(
            (f"{number(a, 'time')} – {number(b, 'time')}", format_count(n), percent(n / every))
            for a, b, n in totals
        ),
    )


def nines(_: Recording, findings: Findings, facts: Nines) -> Words:
    """Say how close each percentile comes to the limit."""
    subject = findings.subject
    assert subject is not None
    unit, rows = metric_unit(subject), []
    kind = "time" if subject.budget is None else subject.budget.kind
    for curve in facts.curves:
        for q in (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999):
            x = -math.log10(1 - q)
            if x > curve.nines[-1]:
                continue
            i = int(abs(curve.nines - x).argmin())
            ends = [
                "?" if math.isnan(e[i]) else number(float(e[i]), kind, unit)
                for e in (curve.low, curve.high)
            ]
            value = number(float(curve.values[i]), kind, unit)
            rows.append((curve.stage, percentile(q), value, " – ".join(ends)))
    return Words(
        heading=_nines_heading(subject, facts),
        note=(
            f"{subject.name}. The horizontal axis runs by nines: one step right is ten times "
            f"rarer. Bands are {format_share(facts.confidence)} bounds."
            + (" Thin lines: each run by itself." if any(c.runs for c in facts.curves) else "")
            + " A dotted line means fewer than 10 requests lie above it."
            + (f" Left out: {', '.join(facts.left_out)}." if facts.left_out else "")
        ),
        columns=("Stage", "percentile", "value", "interval"),
        rows=tuple(rows),
    )


def _nines_heading(subject: Subject, facts: Nines) -> str:
    verbs = {
        Outcome.PASS: "passes in",
        Outcome.FAIL: "breaks in",
        Outcome.INVALID: "was not measured in",
        Outcome.INCONCLUSIVE: "is undecided in",
    }
    shown = {curve.stage for curve in facts.curves}
    parts: dict[str, list[str]] = {}
    for stage, verdict in subject.judged.items():
        if stage in shown and verdict.outcome in verbs:
            parts.setdefault(verbs[verdict.outcome], []).append(stage)
    if not parts:
        return f"How {subject.name} is distributed"
    what = subject.budget.subject if subject.budget else subject.name
    return f"{what} " + ", ".join(f"{v} {' and '.join(s)}" for v, s in parts.items())


def difference(_: Recording, __: Findings, facts: Difference) -> Words:
    """Say how much slower or faster, or higher or lower, each percentile became."""
    kind = METRICS[facts.metric].kind if facts.metric in METRICS else "time"
    curve, rows = facts.curve, []
    for q in (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999):
        i = facts.at(q)
        if i is not None:
            ends = (float(e[i]) for e in (curve.low, curve.high))
            said = ["?" if math.isnan(end) else signed(end, kind) for end in ends]
            base, change = float(curve.base[i]), float(curve.difference[i])
            rows.append(
                (
                    percentile(q),
                    number(base, kind),
                    number(base + change, kind),
                    signed(change, kind),
                    " – ".join(said),
                )
            )
    return Words(
        heading=_difference_heading(facts),
        note=(
            f"{facts.step}.{facts.metric} in {facts.stage}, against run {facts.baseline}: "
            f"{format_count(facts.n[1])} and {format_count(facts.n[0])} samples. Above zero this "
            f"run is {directions(facts.metric)[0]}. The band is the "
            f"{format_share(facts.confidence)} interval of each percentile by itself."
        ),
        columns=("Percentile", "baseline", "this run", "difference", "interval"),
        rows=tuple(rows),
    )


def _difference_heading(facts: Difference) -> str:
    """Say whether the whole distribution moved, or its tail alone."""
    moved, (up, down) = {}, directions(facts.metric)
    for q in (0.5, 0.95, 0.99):
        i = facts.at(q)
        if i is not None:
            low, high = float(facts.curve.low[i]), float(facts.curve.high[i])
            moved[percentile(q)] = up if low > 0 else down if high < 0 else ""
    name, ways = f"{facts.step}.{facts.metric}", set(moved.values()) - {""}
    if not ways:
        return f"{name} did not change by more than chance"
    if len(ways) > 1:
        parts = [f"{way} at {q}" for q, way in moved.items() if way]
        return f"{name} is {' and '.join(parts)}"
    way = ways.pop()
    where = [q for q in moved if moved[q]]
    if len(where) == len(moved):
        return f"{name} is {way} as a whole"
    return f"{name} is {way} at {' and '.join(where)} only"


def rate_of(level: Level) -> str:
    """Return the level's planned rate, or the reached one where that fell short."""
    return format_rate(level.reached if level.short else level.planned)


def knee(_: Recording, findings: Findings, facts: Knee) -> Words:
    """Say how much load the limit allows."""
    subject = findings.subject
    assert subject is not None
    what = subject.budget.subject if subject.budget else subject.name
    if not any(level.outcome for level in facts.levels):
        heading = f"{subject.name} over {len(facts.levels)} load levels"
    elif facts.holds is None:
        heading = f"{what} does not hold even at {rate_of(facts.levels[0])}, the lowest level"
    else:
        heading = f"{what} holds its limit up to {rate_of(facts.holds)}"
        if facts.breaks is None:
            most = facts.holds is facts.levels[-1]
            heading += ", the most that was tried" if most else ", undecided above"
    return Words(
        heading=heading,
        note=f"{len(facts.levels)} load levels of the same run.",
        columns=("Stage", "planned", "reached", "p50", "p95", "p99", "verdict"),
        rows=tuple(
            (
                stage_name(level.stage),
                format_rate(level.planned),
                format_rate(level.reached),
                *(number(v, "time", metric_unit(subject)) for v in level.percentiles),
                level.outcome or "–",
            )
            for level in facts.levels
        ),
    )


def bar_name(bar: Bar) -> str:
    """Return the step's name."""
    return bar.step or NO_STEP


def waterfall(_: Recording, __: Findings, facts: Waterfall) -> Words:
    """Say which step makes slow journeys slow."""
    largest = facts.largest
    count, share = len(facts.steps), share_of_extra(largest.share)
    if facts.slow <= facts.median or largest.share <= 0:
        heading = "No step makes slow journeys slower"
    elif not largest.step:
        heading = f"Time outside of every step makes {share} of the extra time of slow journeys"
    elif count > MOST_BARS:
        name = short(largest.step)
        heading = f"{name}, 1 of {count} steps, makes {share} of the extra time of slow journeys"
    else:
        heading = f"{largest.step} makes {share} of the extra time of slow journeys"
    return Words(
        heading=heading,
        note=(
            f"Workload {facts.root}, {stage_phrase(facts.stage)}: {facts.n_median} median "
            f"journeys (p45–p55) against the {facts.n_slow} slowest."
            + (" Bars start where the step starts." if count <= MOST_BARS else "")
        ),
        columns=("Step", "median starts", "median", "slowest 1 %", "extra time", "share of extra"),
        rows=tuple(
            (
                bar_name(bar),
                format_duration(bar.start),
                format_duration(bar.length),
                format_duration(bar.slow_length),
                signed(bar.extra),
                percent(bar.share),
            )
            for bar in facts.bars
        ),
    )
