"""The report's sentences and numbers, so that page, charts and their descriptions say the same.

Every chart has a `Words`: a heading that is its finding, a note that says how to read it, and a
table with the numbers that the picture shows.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.budget import METRICS, Budget
from harness.recorder import Recording, StageWindow
from harness.report.facts import (
    Difference,
    Findings,
    Heat,
    Knee,
    Level,
    Load,
    Nines,
    OverTime,
    Since,
    Subject,
)
from harness.report.waterfall import MOST_BARS, Bar, Waterfall
from harness.units import (
    MINUS,
    NARROW_SPACE,
    TimeUnit,
    format_clock,
    format_count,
    format_duration,
    format_rate,
    format_share,
)
from harness.verdict import BudgetVerdict, Outcome, format_value

NO_STEP = "not in a step"
NAME_LENGTH = 46
_MOST_DRIFTS = 3


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


# --- the run ---


def run_line(recording: Recording) -> list[str]:
    """Return which run this is: name, id, target, model, commit and time."""
    run = recording.run
    target = run.get("target")
    known = {**run, **(target if isinstance(target, Mapping) else {"url": target})}
    templates = {
        "name": "{}",
        "id": "run {}",
        "url": "target {}",
        "model": "model {}",
        "commit": "commit {}",
    }
    said = [text.format(known[key]) for key, text in templates.items() if known.get(key)]
    started = run.get("started_unix_s")
    when = [time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started))] if started else []
    return [*(said or [recording.folder.name]), *when]


def arm_line(recording: Recording) -> list[str]:
    """Say of one target's part of an interleaved run what its times are."""
    interleaved = recording.run.get("interleaved")
    arm = interleaved.get("arm") if isinstance(interleaved, Mapping) else None
    return [f"target {arm} of an A/B run, in the time it was on duty"] if arm else []


def unsteady(findings: Findings, said: str) -> list[str]:
    """Say what was not steady, where that was not `said` before; at most three things."""
    told = [drift.sentence for drift in findings.drifts[:_MOST_DRIFTS]]
    return [f"{re.sub('^overload', 'Overload', text)}." for text in told if text not in said]


def early_end(run: Mapping[str, Any]) -> str:
    """Say that a load did not run to its end, and why; empty when it did."""
    if run.get("status") == "interrupted":
        return "The run was interrupted: judged is what was measured before."
    aborted = run.get("aborted")
    return f"The load was {aborted['why']}." if aborted else ""


# --- quantities ----------------------------------------------------------------------------------


def short(name: str, length: int = NAME_LENGTH) -> str:
    """Return the name, its middle left out when it is longer than `length`."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[head + 1 - length :]}"


def number(value: float | None, kind: str, unit: TimeUnit | None = None) -> str:
    """Write a value of a metric of that kind; an absent one is a dash."""
    if value is None or math.isnan(value):
        return "–"
    if kind == "time":
        return format_duration(value, unit=unit)
    if kind == "share":
        return format_share(value)
    return format_rate(value) if kind == "rate" else format_count(round(value))


def percent(share: float) -> str:
    """Write whole percents; what is not nothing or all is never shown as it."""
    whole = round(abs(share) * 100)
    if not whole:
        text = "<1" if share else "0"
        return text + NARROW_SPACE + "%"
    sign = MINUS if share < 0 else ""
    about = "≈" if whole == 100 and share != 1 else ""
    return f"{about}{sign}{whole}{NARROW_SPACE}%"


def share_of_extra(share: float) -> str:
    """Say how much of the extra time a step makes; over all where other steps were faster."""
    if share >= 1:
        return "all"
    return "nearly all" if share >= 0.995 else percent(share)


def signed(value: float, kind: str = "time") -> str:
    """`+4.30 s` or `−2.12 ms`."""
    return ("+" if value > 0 else "") + number(value, kind) if round(value) else "0"


def limit_of(budget: Budget) -> str:
    """Write the limit as it was declared, with a space before its unit."""
    return re.sub(r"(?<=[0-9])(?=[^0-9.])", NARROW_SPACE, budget.limit_text, count=1)


def operator_of(budget: Budget) -> str:
    """Write the operator."""
    return {"<=": "≤", ">=": "≥"}.get(budget.op, budget.op)


def observed(verdict: BudgetVerdict) -> str:
    """Write the observed value in the limit's unit; in brackets when it is not judged."""
    if verdict.observed is None:
        return "–"
    text = format_value(verdict.budget, verdict.observed)
    return f"({text})" if verdict.outcome is Outcome.INVALID else text


def interval(verdict: BudgetVerdict) -> str:
    """`1,097 – 1,216 ms`; an end that the sample cannot give is a question mark.

    What has no bounds, like a maximum or the worst of several windows, has a dash.
    """
    if verdict.outcome is Outcome.INVALID:
        return "not judged"
    ends = (verdict.low, verdict.high)
    if ends == (None, None):
        bounded = verdict.budget.quantile is not None and verdict.budget.over_ns is None
        return "? – ?" if bounded and verdict.observed is not None else "–"
    low, high = ("?" if e is None else format_value(verdict.budget, e) for e in ends)
    number_of, space, unit = low.partition(NARROW_SPACE)
    if space and high.endswith(space + unit):
        low = number_of
    return f"{low} – {high}"


def metric_unit(subject: Subject) -> TimeUnit | None:
    """Return the unit of the subject's limit, if it has one."""
    return subject.budget.time_unit if subject.budget else None


def percentile(q: float) -> str:
    """`p99.9` of 0.999."""
    return f"p{q * 100:.6g}"


def stage_label(stage: StageWindow) -> str:
    """`steady · 20/s`."""
    rate = stage.planned_rate_per_s
    load = stage.load if rate is None else format_rate(rate)
    return f"{stage.name} · {load}" if stage.record else f"{stage.name}, not judged"


# --- the charts ----------------------------------------------------------------------------------


def since_text(since: Since, findings: Findings) -> str:
    """`since 6:08, 8 s into the spike stage`."""
    where = (
        f"{format_duration(since.offset_s * 1e9)} into the {since.stage} stage"
        if since.offset_s > 0
        else f"the start of the {since.stage} stage"
    )
    word = "since" if _still_over(findings) else "from"
    return f"{word} {format_clock(since.t_s)}, {where}"


def load_change(since: Since, recording: Recording) -> str:
    """Say how the load changed before: `load rose from 20/s to 60/s at 6:00`, or nothing."""
    names = [stage.name for stage in recording.stages]
    at = names.index(since.stage)
    stage = recording.stages[at]
    before = recording.stages[at - 1].planned_rate_per_s if at else None
    after = stage.planned_rate_per_s
    if before is None or after is None or before == after:
        return ""
    verb = "rose" if after > before else "fell"
    return (
        f"load {verb} from {format_rate(before)} to {format_rate(after)} "
        f"at {format_clock(stage.start_s)}"
    )


def _still_over(findings: Findings) -> bool:
    facts = findings.over_time
    if not isinstance(facts, OverTime):
        return False
    judged = [w for w in facts.windows if w.over is not None]
    return bool(judged) and judged[-1].above


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
            "Windows of about 300 requests, never across a stage border."
            + (
                " Squares: more requests over the limit than the budget allows, beyond chance."
                if facts.judged
                else ""
            )
            + (f" Crosses: {_counted(failed, 'failed request')}." if failed else "")
        ),
        columns=("Window", "Stage", *names, "n", "over the limit", "beyond chance"),
        rows=tuple(
            (
                f"{format_clock(w.t0)} – {format_clock(w.t1)}",
                w.stage,
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
    windows = _counted(facts.judged, "window")
    if facts.since:
        still = _still_over(findings)
        when = f"{what} {'has been' if still else 'was'} over {limit} "
        when += since_text(facts.since, findings)
        return when if still else f"{when}: {facts.flagged} of {windows} beyond chance"
    above = f"{facts.above or 'none'} of {windows} above {limit}"
    said = {
        Outcome.FAIL: "broke its limit without a clear start",
        Outcome.PASS: "held",
    }.get(focus.outcome, "cannot be decided yet")
    chance = ", within chance" if facts.above else ""
    if facts.flagged:
        chance = ", never two in a row beyond chance"
    return f"{what} {said}: {above}{chance if focus.outcome is Outcome.PASS else ''}"


def _counted(n: int, noun: str) -> str:
    return f"{format_count(n)} {noun}{'' if n == 1 else 's'}"


def load(recording: Recording, findings: Findings, facts: Load) -> Words:
    """Say whether the load arrived."""
    short_of = {s: x for s, x in facts.shortfalls.items() if s in findings.invalid_stages}
    if short_of:
        stage, share = max(short_of.items(), key=lambda item: item[1])
        heading = (
            f"The generator fell behind its plan in the {stage} stage: "
            f"{percent(share)} of requests were never sent"
        )
    elif facts.planned is None:
        loads = dict.fromkeys(stage.load for stage in recording.stages if stage.record)
        heading = f"{', '.join(loads)}: up to {format_rate(float(facts.reached.max()))} reached"
    else:
        heading = "The target got the planned load"
        if recording.run.get("status") == "interrupted":
            heading += " until the run was interrupted"
    planned = facts.planned if facts.planned is not None else [math.nan] * len(facts.t_s)
    flight = [
        facts.in_flight[
            (facts.in_flight_t_s >= t) & (facts.in_flight_t_s < t + facts.column_s)
        ].max(initial=0)
        for t in facts.t_s
    ]
    return Words(
        heading=heading,
        columns=("From", "planned", "reached", "most in flight"),
        rows=tuple(
            (
                format_clock(float(t)),
                "–" if math.isnan(p) else format_rate(float(p)),
                format_rate(float(r)),
                format_count(int(f)),
            )
            for t, p, r, f in zip(facts.t_s, planned, facts.reached, flight, strict=True)
        ),
    )


def heat(_: Recording, __: Findings, facts: Heat) -> Words:
    """Say what the heatmap shows, as counts in coarse bins."""
    doubling = 7
    totals = [
        (
            float(facts.edges[i]),
            float(facts.edges[min(i + doubling, len(facts.edges) - 1)]),
            int(facts.counts[i : i + doubling].sum()),
        )
        for i in range(0, len(facts.edges) - 1, doubling)
    ]
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
            "rarer. Bands are 95 % bounds. A dotted line means fewer than 10 requests lie "
            "above it." + (f" Left out: {', '.join(facts.left_out)}." if facts.left_out else "")
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
    """Say how much slower or faster each percentile became."""
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
            f"run is slower. The band is the {format_share(facts.confidence)} interval of each "
            "percentile by itself."
        ),
        columns=("Percentile", "baseline", "this run", "difference", "interval"),
        rows=tuple(rows),
    )


def _difference_heading(facts: Difference) -> str:
    """Say whether the whole distribution moved, or its tail alone."""
    moved = {}
    for q in (0.5, 0.95, 0.99):
        i = facts.at(q)
        if i is not None:
            low, high = float(facts.curve.low[i]), float(facts.curve.high[i])
            moved[percentile(q)] = "slower" if low > 0 else "faster" if high < 0 else ""
    name, directions = f"{facts.step}.{facts.metric}", set(moved.values()) - {""}
    if not directions:
        return f"{name} did not change by more than chance"
    if len(directions) > 1:
        parts = [f"{way} at {q}" for q, way in moved.items() if way]
        return f"{name} is {' and '.join(parts)}"
    way = directions.pop()
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
                level.stage,
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
            f"Workload {facts.root}, {facts.stage} stage: {facts.n_median} median journeys "
            f"(p45–p55) against the {facts.n_slow} slowest."
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


def budgets_heading(budgets: Sequence[BudgetVerdict]) -> str:
    """`2 of 11 budgets are broken, 1 cannot be decided yet`."""
    if not budgets:
        return "No budgets were declared"
    of = f"{_counted(len(budgets), 'budget')}"
    counts = {o: sum(v.outcome is o for v in budgets) for o in Outcome}
    unmeasured = counts[Outcome.INVALID] + counts[Outcome.NO_DATA]
    parts = [
        (counts[Outcome.FAIL], "is broken", "are broken"),
        (unmeasured, "was not measured", "were not measured"),
        (counts[Outcome.INCONCLUSIVE], "cannot be decided yet", "cannot be decided yet"),
    ]
    said = [(n, one if n == 1 else many) for n, one, many in parts if n]
    if not said:
        return f"{len(budgets)} of {of} {'passes' if len(budgets) == 1 else 'pass'}"
    (n, verb), *rest = said
    return f"{n} of {of} {verb}" + "".join(f", {k} {v}" for k, v in rest)
