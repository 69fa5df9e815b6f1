"""The page: did it pass, by how much, which step, since when, and can I trust it.

Needs no script and makes no request, so it reads the same from a mail, an artifact store or disk.
What is computed comes from `facts`, what is said from `words`; this file only lays it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from harness import __version__
from harness.budget import METRICS
from harness.recorder import Recording
from harness.report import words
from harness.report.charts import Drawing, draw_all, used_share
from harness.report.facts import Findings, StepRow, StepTable
from harness.report.paper import ROLES
from harness.report.waterfall import MOST_BARS, Waterfall, WhyNot
from harness.units import (
    format_clock,
    format_count,
    format_duration,
    format_ratio_of_limit,
    format_share,
)
from harness.verdict import BudgetVerdict, Outcome, Verdict

MOST_BUDGETS, CLOSEST_PASSES, MOST_STEPS, MOST_CHECKS = 15, 5, 40, 14
TABLE_STEPS = 12

_SECTIONS = (
    ("budgets", "Budgets"),
    ("step", "Which step"),
    ("since", "Since when"),
    ("change", "How it changed"),
    ("capacity", "Capacity"),
    ("steps", "Steps"),
    ("trust", "Trust"),
    ("definitions", "Definitions"),
)
_OUTCOMES = (
    (Outcome.PASS, "The whole interval is on the good side of the limit."),
    (Outcome.FAIL, "The whole interval is on the bad side."),
    (
        Outcome.INCONCLUSIVE,
        "The interval crosses the limit, or has no end at this n: too few samples to say.",
    ),
    (Outcome.INVALID, "The load generator, not the target, shaped the number. It is not judged."),
    (Outcome.NO_DATA, "Nothing finished that could be judged. Counts as INVALID."),
)


def render_page(recording: Recording, verdict: Verdict, findings: Findings) -> str:
    """Return the whole page as HTML."""
    drawings = draw_all(recording, findings)
    facts = {
        "waterfall": findings.waterfall,
        "over-time": findings.over_time,
        "load": findings.load,
        "heatmap": findings.heat,
        "nines": findings.nines,
        "capacity": findings.capacity,
        "difference": findings.difference,
    }
    nothing = verdict.outcome is Outcome.NO_DATA
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            light=theme_variables(0),
            dark=theme_variables(1),
            run_line=_run_line(recording, findings),
            verdict=verdict,
            story=_story(recording, verdict, findings),
            trust=_trust(verdict, findings),
            sections=[s for s in _SECTIONS if _has(s[0], findings, nothing=nothing)],
            interval_name=_interval_name(verdict),
            budgets=_budgets(verdict),
            nothing=nothing
            and "Percentiles, heatmap, steps and comparison need finished requests. "
            "What happened to each request stands in requests.jsonl beside this report.",
            drawings=_Defaulted(drawings),
            missing={name: f.reason for name, f in facts.items() if isinstance(f, WhyNot)},
            waterfall=_waterfall(recording, findings),
            against=_against(findings),
            errors=findings.errors,
            error_stages=_error_stages(recording),
            steps=_step_tables(findings),
            checks=_checks(verdict),
            definitions=_definitions(verdict, findings),
            outcomes=_OUTCOMES,
            others=_others(recording, findings),
            footer=_footer(recording),
        )
    )


class _Defaulted(dict[str, Drawing]):
    """Drawings by name; one that was left out is None, not an error."""

    def __missing__(self, key: str) -> None:
        return None


def environment() -> Environment:
    """Return what renders the pages' templates."""
    made = Environment(
        loader=PackageLoader("harness.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "wrap": breakable,
        "name": _short_name,
        "slug": lambda outcome: str(outcome).lower().replace(" ", "-"),
        "count": format_count,
        "clock": format_clock,
    }
    return made


def breakable(text: object) -> Markup:
    """Return escaped text that may break after `/` and `_`."""
    parts = str(escape(text)).replace("/", "/<wbr>").replace("_", "_<wbr>")
    return Markup(parts)  # noqa: S704 - escaped above


def _short_name(name: str) -> Markup:
    short = words.short(name)
    if short == name:
        return breakable(name)
    return Markup('<span title="{}">{}</span>').format(name, breakable(short))


def theme_variables(theme: int) -> Markup:
    """Return the colours of the light theme (0) or the dark one (1) as CSS variables."""
    return Markup(" ".join(f"--{role}: {pair[theme]};" for role, pair in ROLES.items()))  # noqa: S704 - our own constants


def _run_line(recording: Recording, findings: Findings) -> list[str]:
    minutes, seconds = divmod(round(findings.end_s), 60)
    return [
        *words.run_line(recording),
        *words.arm_line(recording),
        f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s",
        *(word for word in ("interrupted", "aborted") if word == recording.run.get("status")),
    ]


def _footer(recording: Recording) -> str:
    run = recording.run
    scenario, seed = run.get("scenario"), run.get("seed")
    made = [f"latency-harness {run.get('harness') or __version__}"]
    if isinstance(scenario, Mapping):
        made.append(f"{scenario.get('file')} sha256 {str(scenario.get('sha256'))[:12]}")
    if seed is not None:
        made.append(f"seed {seed}")
    made.append("made from the run folder: no network requests, no scripts")
    return " · ".join(made)


def _others(recording: Recording, findings: Findings) -> list[dict[str, Drawing]]:
    """Draw the charts of other budgets that did not pass."""
    names = ("over-time", "heatmap", "nines")
    drawn = [
        draw_all(recording, other, only=names, prefix=f"o{i}-")
        for i, other in enumerate(findings.others)
    ]
    return [charts for charts in drawn if "over-time" in charts]


def _error_stages(recording: Recording) -> list[str]:
    """Return the columns of the errors table: every stage, or none (a total) if they are many."""
    names = [stage.name for stage in recording.stages]
    return names if len(names) <= 4 else []


def _has(section: str, findings: Findings, *, nothing: bool) -> bool:
    if nothing:
        return section in ("budgets", "trust", "definitions")
    return section != "steps" or bool(findings.steps)


def _story(
    recording: Recording, verdict: Verdict, findings: Findings
) -> list[tuple[str, str | None]]:
    """Return what stands below the verdict's sentence: pieces of text, some of them links."""
    story: list[tuple[str, str | None]] = []
    since, focus = findings.since, findings.focus
    if since and focus and focus.outcome is Outcome.FAIL:
        first = bool(verdict.budgets) and verdict.budgets[0] is focus
        change = words.load_change(since, recording)
        story += [
            ("Over the limit " if first else f"{focus.budget.subject} is over its limit ", None),
            (words.since_text(since, findings), "since"),
            (f"; {change}. " if change else ". ", None),
        ]
    if verdict.detail:
        story.append((verdict.detail + " ", None))
    slow = findings.slow_step
    if slow and verdict.outcome is Outcome.FAIL:
        said = f" makes {words.share_of_extra(slow.share)} of the extra time of slow "
        story += [(slow.step, "step"), (f"{said}{slow.root} journeys. ", None)]
    more = words.unsteady(findings, "".join(text for text, _ in story))
    story += [(f"{text} ", None) for text in (*more, words.early_end(recording.run)) if text]
    return story


def _trust(verdict: Verdict, findings: Findings) -> dict[str, Any]:
    health = verdict.health
    broken = [check for check in health.checks if not check.ok]
    stages = list(dict.fromkeys(c.stage for c in broken if c.stage))
    label, outcome = "Measurement valid", Outcome.PASS
    if verdict.outcome is Outcome.NO_DATA:
        label, outcome = "Nothing measured", Outcome.INVALID
    elif broken:
        label = f"{', '.join(stages)} not measured properly" if stages else "Measurement not valid"
        outcome = Outcome.INVALID
    facts = [
        (
            f"{format_count(health.sent)} of {format_count(health.planned)} planned sent",
            format_share(health.sent / health.planned) if health.planned else "",
        ),
        (f"{format_count(health.dropped)} dropped", ""),
    ]
    if verdict.outcome is Outcome.NO_DATA:
        failed = sum(sum(kind.by_stage.values()) for kind in findings.errors)
        facts.append(
            (f"{format_count(failed)} failed", ", ".join(kind.kind for kind in findings.errors[:3]))
        )
    if health.cut_off:
        facts.append((f"{format_count(health.cut_off)} cut off", ""))
    if health.send_lag_p99_ns is not None:
        lag = format_duration(health.send_lag_p99_ns)
        facts.append((f"send lag p99 {lag}", f"limit {format_duration(health.send_lag_limit_ns)}"))
    if health.cpu_p95 is not None:
        facts.append((f"generator CPU {words.percent(health.cpu_p95)}", ""))
    if health.clock != "unknown":
        kind, _, how = health.clock.partition(", ")
        facts.append((f"{kind} clock", how if "user space" in how else ""))
    said = [
        f"{c.name}{f' in {c.stage}' if c.stage else ''}: {c.measured}, must be {c.must}. "
        f"What helps: {c.remedy}."
        for c in broken[:4]
    ]
    return {"label": label, "outcome": outcome, "facts": facts, "broken": said}


def _interval_name(verdict: Verdict) -> str:
    levels = {v.budget.confidence for v in verdict.budgets} or {0.95}
    return f"{format_share(levels.pop())} bounds" if len(levels) == 1 else "Bounds"


def _budgets(verdict: Verdict) -> dict[str, Any]:
    every = verdict.budgets
    shown, folded = list(every), []
    if len(every) > MOST_BUDGETS:
        passes = [v for v in every if v.outcome is Outcome.PASS]
        folded = passes[CLOSEST_PASSES:]
        shown = [v for v in every if v.outcome is not Outcome.PASS] + passes[:CLOSEST_PASSES]
    most = max((v.used or 0 for v in folded), default=0)
    return {
        "heading": words.budgets_heading(every),
        "note": "One scale for all rows: share of the limit used. Mark: observed value. Bar: its "
        "interval. Left of the line passes. Worst first."
        if every
        else "",
        "shown": _budget_rows(shown),
        "folded": _budget_rows(folded),
        "fold_text": f"{len(folded)} more budgets pass, none above "
        f"{format_ratio_of_limit(most)} of its limit",
    }


def _budget_rows(verdicts: Sequence[BudgetVerdict]) -> list[dict[str, Any]]:
    """Return the rows; a reason that a row above has already given is not repeated."""
    rows = [_budget_row(v) for v in verdicts]
    given: set[str | None] = set()
    for row in rows:
        row["reason"] = None if row["reason"] in given else row["reason"]
        given.add(row["reason"])
    return rows


def _budget_row(v: BudgetVerdict) -> dict[str, Any]:
    judged = v.outcome is not Outcome.INVALID and v.used is not None
    used = format_ratio_of_limit(v.used) if judged and v.used is not None else "–"
    return {
        "outcome": v.outcome,
        "name": f"{v.budget.step}.{v.budget.metric}",
        "statistic": v.budget.aspect,
        "stage": v.stage,
        "reason": v.reason,
        "limit": f"{words.operator_of(v.budget)} {words.limit_of(v.budget)}",
        "observed": words.observed(v),
        "interval": words.interval(v),
        "used": used,
        "n": format_count(v.n),
        "bar": _bar(v),
        "bar_label": f"{used} of the limit, {v.outcome}",
    }


def _bar(v: BudgetVerdict) -> dict[str, Any] | None:
    """Return positions in percent of a scale from 0 to twice the limit."""
    if v.used is None:
        return None
    ends = [used_share(v, end) for end in (v.low, v.high)]
    if v.budget.upper is False:
        ends.reverse()
    low, high = (0.0 if ends[0] is None else ends[0]), (2.0 if ends[1] is None else ends[1])
    drawn = v.outcome is not Outcome.INVALID and ends != [None, None]
    left, right = (min(max(x, 0.0), 2.0) * 50 for x in (low, high))
    return {
        "at": f"{min(v.used, 2.0) * 50:.2f}",
        "left": f"{left:.2f}",
        "width": f"{right - left:.2f}" if drawn else None,
        "open_low": ends[0] is None,
        "open_high": ends[1] is None or high > 2,
        "beyond": format_ratio_of_limit(v.used) if v.used > 2 else "",
    }


def _waterfall(recording: Recording, findings: Findings) -> dict[str, Any] | None:
    facts = findings.waterfall
    if not isinstance(facts, Waterfall):
        return None
    said = words.waterfall(recording, findings, facts)
    if len(facts.steps) <= MOST_BARS:
        return {"words": said, "table": None}
    order = sorted(facts.bars, key=lambda bar: -bar.extra)
    top, rest = order[:TABLE_STEPS], order[TABLE_STEPS:]
    most = max((bar.extra for bar in top), default=0) or 1
    note = " With more than 8 steps the waterfall becomes this table, sorted by extra time."
    return {
        "words": words.Words(
            heading=said.heading, note=said.note + note, columns=said.columns, rows=said.rows
        ),
        "table": {
            "top": [
                {
                    "step": words.bar_name(bar),
                    "median": format_duration(bar.length),
                    "slow": format_duration(bar.slow_length),
                    "extra": words.signed(bar.extra),
                    "share": words.percent(bar.share),
                    "width": f"{max(0.0, bar.extra / most) * 100:.1f}",
                }
                for bar in top
            ],
            "rest_name": f"{sum(bool(bar.step) for bar in rest)} other steps, and time in none",
            "rest_extra": words.signed(sum(bar.extra for bar in rest)),
            "rest_share": words.percent(sum(bar.share for bar in rest)),
        },
    }


def _against(findings: Findings) -> str:
    if isinstance(findings.nines, WhyNot):
        return "Percentiles"
    curves = findings.nines.curves
    names = " and ".join(c.stage for c in curves) if len(curves) < 3 else f"{len(curves)} stages"
    return f"{names[:1].upper()}{names[1:]}{' against the limit' if findings.focus else ''}"


def _step_tables(findings: Findings) -> list[dict[str, Any]]:
    """Return the focus's stage first; the others are folded."""
    first = findings.focus.stage if findings.focus else None
    tables = sorted(findings.steps, key=lambda table: table.stage != first)
    return [_step_table(table) for table in tables]


def _step_table(table: StepTable) -> dict[str, Any]:
    most = max((share for row in table.rows for share in row.shape), default=0) or 1
    rows = [_step_row(row, most) for row in table.rows]
    return {"stage": table.stage, "rows": rows[:MOST_STEPS], "folded": rows[MOST_STEPS:]}


def _step_row(row: StepRow, most: float) -> dict[str, Any]:
    width = 120 / max(1, len(row.shape))
    most = max(row.shape, default=0) or most
    bars = [
        f"M{i * width:.1f} 20v{-20 * share / most:.1f}h{width - 0.6:.1f}V20z"
        for i, share in enumerate(row.shape)
        if share
    ]
    return {
        "step": row.step,
        "depth": row.step.count("/"),
        "n": format_count(row.n),
        "p50": words.number(row.p50, "time"),
        "p95": words.number(row.p95, "time"),
        "p99": words.number(row.p99, "time"),
        "max": words.number(row.max, "time"),
        "shape": "".join(bars),
    }


def _checks(verdict: Verdict) -> dict[str, Any]:
    checks = verdict.health.checks
    broken = sum(not check.ok for check in checks)
    answer = (
        f"Yes: all {len(checks)} checks hold"
        if not broken
        else f"Not all: {broken} of {len(checks)} checks {'is' if broken == 1 else 'are'} broken"
    )
    if verdict.outcome is Outcome.NO_DATA:
        answer = "There are none: no request finished"
    rows = sorted(checks, key=lambda check: check.ok)
    most = max(broken, MOST_CHECKS if len(rows) > MOST_CHECKS + 2 else len(rows))
    return {
        "heading": f"Can the numbers be trusted? {answer}",
        "rows": rows[:most],
        "folded": rows[most:],
    }


def _definitions(verdict: Verdict, findings: Findings) -> Sequence[tuple[str, str]]:
    shown = {v.budget.metric for v in verdict.budgets}
    shown |= {row.metric for table in findings.steps for row in table.rows}
    shown |= {findings.subject.metric} if findings.subject else set()
    return [
        *((name, metric.definition) for name, metric in METRICS.items() if name in shown),
        ("p99", "99 of 100 requests were faster. Dotted where fewer than 10 requests lie above."),
        (
            _interval_name(verdict),
            (
                "Range of true values that this sample does not rule out: each end holds with that "
                "confidence (exact order statistics for percentiles, Clopper–Pearson for shares). "
                "“?” means that this n gives no end."
            ),
        ),
        (
            "Of limit",
            "Observed ÷ limit. Of a lower limit (goodput ≥ 95 %): share of the allowed loss used.",
        ),
    ]
