"""The result's files: search.json for programs, search.md, search.html and knee.svg for people.

schema_version     1
outcome            "found" | "lower bound" | "does not hold" | "not shown to hold" |
                   "generator not fit" | "stopped"
exit_code          what the command ends with
sentence, story    the headline, and what else people are told
name, target, model, stage, budgets
                   the plan's, without what is left_out
over               "rate" (per second) or "concurrency" (users): the unit of every load
from, to, precision, longest_s
                   as asked for; longest_s is the longest that a probe's stage may last
started_at         UTC
load               the highest load that holds, or null; load_twice: whether it was seen again
not_at             the lowest load that does not, or null; limit: "target", "generator",
                   "undecided", or null where the highest load held
first_broken       the budget that broke first, at `not_at`: probe, budget, step, metric,
                   statistic, stage, limit, unit, observed, low, high, used (of the limit), n;
                   null where none did
contradicted       loads that broke although they, or higher ones, held as well
probes             in their order: number, load, purpose, shown, why, outcome (the verdict's),
                   folder (beside this file), seed, lasted_s, offered_per_s, completed_per_s,
                   good_per_s, and budgets: text, stage, outcome, observed, low, high, n, over,
                   allowed, used, unit, reason
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.recorder import write_atomically
from harness.report.export import UNITS, plain
from harness.search.chart import as_file, knee
from harness.search.decision import Shown
from harness.search.page import render_page
from harness.search.result import Probe, Search, headline, plan_facts, story
from harness.search.text import render_markdown
from harness.verdict import BudgetVerdict

SCHEMA_VERSION = 1  # 1: first

_LIMITS = {Shown.BREAKS: "target", Shown.UNFIT: "generator", Shown.OPEN: "undecided"}


def write_results(search: Search) -> tuple[Path, ...]:
    """Write all of them into the search's folder; returns the files, page first."""
    chart = knee(search)
    texts = {
        "search.html": render_page(search, chart),
        "search.md": render_markdown(search),
        "search.json": json.dumps(as_json(search), indent=1, allow_nan=False) + "\n",
        "knee.svg": as_file(chart),
    }
    for name, text in texts.items():
        write_atomically(search.folder / name, text)
    return tuple(search.folder / name for name in texts)


def as_json(search: Search) -> dict[str, Any]:
    """Return what `json.dumps(..., allow_nan=False)` takes; see the module for its keys."""
    found, within, broken = search.conclusion, search.within, search.first_broken
    whole: dict[str, Any] = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "outcome": _outcome(search),
            "exit_code": int(search.exit_code),
            "sentence": headline(search),
            "story": story(search),
            **plan_facts(search),
            "left_out": list(search.template.left_out),
            "over": search.what,
            "from": within.low,
            "to": within.high,
            "precision": within.precision,
            "longest_s": search.longest_s,
            "started_at": search.started_at,
            "load": found.holds,
            "load_twice": found.twice,
            "not_at": found.ends,
            "limit": None if found.end is None else _LIMITS[found.end],
            "first_broken": broken and _broken(*broken),
            "contradicted": list(found.contradicted),
            "probes": [_probe(probe) for probe in search.probes],
        }
    )
    return whole


def _outcome(search: Search) -> str:
    found = search.conclusion
    if search.stopped is not None:
        return "stopped"
    if found.holds is None:
        return str(found.end)
    return "lower bound" if found.end is Shown.UNFIT else "found"


def _broken(probe: Probe, verdict: BudgetVerdict) -> dict[str, Any]:
    budget = verdict.budget
    return {
        "probe": probe.number,
        "budget": budget.text,
        "step": budget.step,
        "metric": budget.metric,
        "statistic": budget.statistic,
        "stage": verdict.stage,
        "limit": budget.limit,
        **_values(verdict),
    }


def _values(verdict: BudgetVerdict) -> dict[str, Any]:
    return {
        "unit": UNITS[verdict.budget.kind],
        "observed": verdict.observed,
        "low": verdict.low,
        "high": verdict.high,
        "used": verdict.used,
        "n": verdict.n,
    }


def _probe(probe: Probe) -> dict[str, Any]:
    return {
        "number": probe.number,
        "load": probe.load,
        "purpose": probe.purpose,
        "shown": probe.shown,
        "why": probe.why,
        "outcome": probe.outcome,
        "folder": probe.folder.name,
        "seed": probe.seed,
        "lasted_s": probe.lasted_s,
        "offered_per_s": probe.offered_per_s,
        "completed_per_s": probe.completed_per_s,
        "good_per_s": probe.good_per_s,
        "budgets": [
            {
                "text": verdict.budget.text,
                "stage": verdict.stage,
                "outcome": verdict.outcome,
                **_values(verdict),
                "over": verdict.over,
                "allowed": verdict.allowed,
                "reason": verdict.reason,
            }
            for verdict in probe.budgets
        ],
    }
