"""The result as a page of its own: no script, no request; only its links lead to the probes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from harness import __version__
from harness.report import words
from harness.report.charts import Drawing
from harness.report.page import environment, theme_variables
from harness.search.decision import Shown
from harness.search.result import (
    Probe,
    Search,
    closest,
    headline,
    in_order,
    lasted,
    story,
)
from harness.search.text import mark_of, shown_text, tally, word
from harness.units import (
    format_count,
    format_rate,
    format_ratio_of_limit,
    format_share,
)
from harness.verdict import BudgetVerdict, Outcome


def render_page(search: Search, chart: Drawing) -> str:
    """Return the whole page as HTML."""
    return (
        environment()
        .get_template("search.html.j2")
        .render(
            light=theme_variables(0),
            dark=theme_variables(1),
            run_line=_run_line(search),
            word_of=word(search),
            outcome=search.outcome,
            big=_big(search),
            headline=headline(search),
            story=story(search),
            tallies=_tallies(search),
            chart=chart,
            budgets=_budgets(search),
            probes=[_row(search, probe) for probe in in_order(search)],
            definitions=_definitions(search),
            footer=f"latency-harness {__version__} · seed {search.template.plan.seed} · made from "
            "the probes' run folders: no network requests, no scripts",
        )
    )


def _run_line(search: Search) -> list[str]:
    plan = search.template.plan
    model = [f"model {plan.target.model}"] if plan.target.model else []
    return [
        f"{plan.name}: search over {search.what}",
        f"target {search.url}",
        *model,
        f"{search.started_at[:16].replace('T', ' ')} UTC",
        tally(search),
    ]


def _big(search: Search) -> str:
    """Return the chosen load where there is one, as the page's largest word."""
    found = search.conclusion
    if search.stopped is not None or found.holds is None:
        return word(search)
    at_least = "≥ " if found.ends is None or found.end is Shown.UNFIT else ""
    return f"{at_least}{search.template.load_text(found.holds)}"


def _tallies(search: Search) -> list[tuple[Outcome, str]]:
    counts = Counter((mark_of(probe), shown_text(probe)) for probe in search.probes)
    order = list(Outcome)
    return [
        (outcome, f"{format_count(n)} × {text}")
        for (outcome, text), n in sorted(
            counts.items(), key=lambda item: order.index(item[0][0]), reverse=True
        )
    ]


def _budgets(search: Search) -> dict[str, Any]:
    """Return each budget at the highest load that holds and at the lowest that does not."""
    found, text = search.conclusion, search.template.load_text
    columns = [(load, f"at {text(load)}") for load in (found.holds, found.ends) if load is not None]
    probes = [_telling(search, load) for load, _ in columns]
    broken = search.first_broken
    heading = f"{broken[1].budget.subject} breaks first" if broken else "The budgets"
    return {
        "heading": heading,
        "columns": [name for _, name in columns],
        "rows": [
            {
                "text": budget.text,
                "cells": [_cell(probe.of(budget.text)) for probe in probes],
            }
            for budget in search.template.plan.budgets
        ]
        if columns
        else [],
    }


def _telling(search: Search, load: float) -> Probe:
    """Return the probe that tells most of an end of the interval: the last that made it one."""
    found = search.conclusion
    shown = found.end if load == found.ends else Shown.HOLDS
    return next(probe for probe in reversed(search.at(load)) if probe.shown is shown)


def _cell(verdict: BudgetVerdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    used = "" if verdict.used is None else format_ratio_of_limit(verdict.used)
    return {"outcome": verdict.outcome, "observed": words.observed(verdict), "used": used}


def _row(search: Search, probe: Probe) -> dict[str, Any]:
    return {
        "load": search.template.load_text(probe.load),
        "number": probe.number,
        "report": f"{probe.folder.name}/report.html",
        "lasted": lasted(probe.lasted_s),
        "offered": format_rate(probe.offered_per_s),
        "completed": format_rate(probe.completed_per_s),
        "good": format_rate(probe.good_per_s),
        "outcome": mark_of(probe),
        "shown": shown_text(probe),
        "closest": closest(probe),
    }


def _definitions(search: Search) -> list[tuple[str, str]]:
    within, text = search.within, search.template.load_text
    own = lasted(search.template.stage.duration_ns / 1e9)
    said = {
        "Loads": f"From {text(within.low)}, doubled until a probe does not hold, up to "
        f"{text(within.high)} at most; then halved on the log scale until the interval is "
        f"{format_share(within.precision)} wide. Both of its ends are probed twice, the second "
        "time with another seed.",
        "Length": f"As long as the budgets need at that load: {own} at least (the plan's own), "
        f"{lasted(search.longest_s)} at most. A probe whose budget breaks beyond doubt ends "
        "early.",
        "Holds": "Every budget passes: the whole interval is on the good side of its limit.",
        "Does not hold": "A budget is broken, the target is overloaded (latency grows without "
        "end), or every user was busy with it.",
        "Not shown to hold": "Undecided, after a longer repeat too. It counts as not holding.",
        "Generator not fit": "The load generator, not the target, shaped the numbers. The probe is "
        "repeated once, and never counts as the target's limit.",
        "Good": "Completed requests that met every per-request latency budget: goodput.",
    }
    return list(said.items())
