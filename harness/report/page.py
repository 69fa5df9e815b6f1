"""The page: did it pass, by how much, which step, since when, and can I trust it.

Needs no script and makes no request, so it reads the same from a mail, an artifact store or disk.
What is computed comes from `facts`, what is said from `words`; this file only lays it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from harness import __version__
from harness.recorder import Recording
from harness.report import rows, words
from harness.report.charts import Drawing, draw_all
from harness.report.facts import Findings, WhyNot
from harness.report.paper import ROLES
from harness.units import (
    format_clock,
    format_count,
    format_duration,
    format_share,
)
from harness.verdict import Outcome, Verdict

_MOST_ERROR_STAGES = 4

_SECTIONS = (
    ("budgets", "Budgets"),
    ("step", "Which step"),
    ("since", "Since when"),
    ("change", "How it changed"),
    ("capacity", "Capacity"),
    ("steps", "Steps"),
    ("cost", "Cost"),
    ("trust", "Trust"),
    ("definitions", "Definitions"),
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
            interval_name=words.interval_name(verdict.budgets),
            budgets=rows.budget_table(verdict, findings),
            nothing=nothing
            and "Percentiles, heatmap, steps and comparison need finished requests. "
            "What happened to each request stands in requests.jsonl beside this report.",
            drawings=_Defaulted(drawings),
            missing={name: f.reason for name, f in facts.items() if isinstance(f, WhyNot)},
            waterfall=rows.waterfall_table(recording, findings),
            against=_against(findings),
            errors=findings.errors,
            error_stages=_error_stages(recording),
            steps=rows.step_tables(findings),
            costs=rows.cost_tables(findings),
            checks=rows.check_table(verdict),
            definitions=rows.definitions(verdict, findings),
            outcomes=rows.OUTCOMES,
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
        "stage": _stage,
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


def _stage(name: str) -> Markup:
    return _short_name(words.stage_name(name))


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
    names = list(dict.fromkeys(stage.group for stage in recording.stages))
    return names if len(names) <= _MOST_ERROR_STAGES else []


def _has(section: str, findings: Findings, *, nothing: bool) -> bool:
    if nothing:
        return section in ("budgets", "trust", "definitions")
    if section == "cost":
        return findings.costs is not None
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
    more += [words.other_budgets(verdict), words.early_end(recording.run)]
    more += words.remarks(verdict.health, "".join(text for text, _ in story))
    story += [(f"{text} ", None) for text in more if text]
    return story


def _trust(verdict: Verdict, findings: Findings) -> dict[str, Any]:
    health = verdict.health
    broken = [check for check in health.checks if not check.ok]
    stages = list(dict.fromkeys(words.stage_name(c.stage) for c in broken if c.stage))
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
    if health.raised:
        count, _, first = words.exceptions(health).partition(", the ")
        facts.append((count, first))
    if health.send_lag_p99_ns is not None:
        lag = format_duration(health.send_lag_p99_ns)
        facts.append((f"send lag p99 {lag}", f"limit {format_duration(health.send_lag_limit_ns)}"))
    if health.cpu_p95 is not None:
        facts.append((f"generator CPU {words.percent(health.cpu_p95)}", ""))
    if health.clock != "unknown":
        kind, _, how = health.clock.partition(", ")
        way = how.partition(": ")[2]
        facts.append((f"{kind} clock", how if "user space" in how else way))
    said = [
        f"{c.name}{f' in {words.stage_name(c.stage)}' if c.stage else ''}: {c.measured}, "
        f"must be {c.must}. What helps: {c.remedy}."
        for c in broken[:4]
    ]
    return {"label": label, "outcome": outcome, "facts": facts, "broken": said}


def _against(findings: Findings) -> str:
    if isinstance(findings.nines, WhyNot):
        return "Percentiles"
    curves = findings.nines.curves
    names = " and ".join(c.stage for c in curves) if len(curves) < 3 else f"{len(curves)} stages"
    return f"{names[:1].upper()}{names[1:]}{' against the limit' if findings.focus else ''}"
