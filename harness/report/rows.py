"""The page's tables as rows of text: budgets, steps, checks and definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.metrics import METRICS
from harness.recorder import Recording
from harness.report import words
from harness.report.facts import MOST_BARS, Findings, StepRow, StepTable, Waterfall
from harness.report.facts.budgets import fold, limit_use
from harness.units import (
    format_count,
    format_duration,
    format_ratio_of_limit,
)
from harness.verdict import BudgetVerdict, Outcome, Verdict

MOST_STEPS, MOST_CHECKS = 40, 14
TABLE_STEPS = 12

OUTCOMES = (
    (Outcome.PASS, "The whole interval is on the good side of the limit."),
    (
        Outcome.FAIL,
        (
            "The whole interval is on the bad side; where it has no ends, so much is over the "
            "limit that samples which strongly depend on each other show it too."
        ),
    ),
    (
        Outcome.INCONCLUSIVE,
        (
            "The interval crosses the limit or has no end at this n, or something forbids a pass "
            "(overload, an early end, failures that no budget limits): the row says what."
        ),
    ),
    (Outcome.INVALID, "The load generator, not the target, shaped the number. It is not judged."),
    (Outcome.NO_DATA, "Nothing finished that could be judged. Counts as INVALID."),
)


def budget_table(verdict: Verdict, findings: Findings) -> dict[str, Any]:
    """Return the budgets, worst first; of many, those far below their limit are folded."""
    every = verdict.budgets
    shown, passes = fold(every)
    repeated = any(findings.runs_of(v) for v in every)
    ticks = " Ticks: each run by itself." if repeated else ""
    return {
        "heading": words.budgets_heading(every),
        "note": "One scale for all rows: share of the limit used. Mark: observed value. Bar: its "
        f"interval.{ticks} Left of the line passes. Worst first."
        if every
        else "",
        "shown": _budget_rows(shown, findings),
        "folded": _budget_rows(passes, findings),
        "fold_text": words.folded(passes) if passes else "",
    }


def _budget_rows(verdicts: Sequence[BudgetVerdict], findings: Findings) -> list[dict[str, Any]]:
    """Return the rows; a reason is not repeated right below itself."""
    rows = [_budget_row(v, findings.runs_of(v)) for v in verdicts]
    before = None
    for row in rows:
        row["reason"], before = None if row["reason"] == before else row["reason"], row["reason"]
    return rows


def _budget_row(v: BudgetVerdict, runs: Sequence[float | None]) -> dict[str, Any]:
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
        "runs": words.runs(v, runs),
        "bar": _bar(v, runs),
        "bar_label": f"{used} of the limit, {v.outcome}",
    }


def _bar(v: BudgetVerdict, runs: Sequence[float | None]) -> dict[str, Any] | None:
    """Return positions in percent of a scale from 0 to twice the limit."""
    use = limit_use(v, runs)
    if use is None:
        return None
    ends = (use.low or 0.0, 2.0 if use.high is None else use.high)
    left, right = (min(end, 2.0) * 50 for end in ends)
    return {
        "at": f"{min(use.observed, 2.0) * 50:.2f}",
        "left": f"{left:.2f}",
        "width": f"{right - left:.2f}" if use.bounded else None,
        "runs": [f"{min(run, 2.0) * 50:.2f}" for run in use.runs],
        "open_low": use.low is None,
        "open_high": use.high is None or use.high > 2,
        "beyond": format_ratio_of_limit(use.observed) if use.observed > 2 else "",
    }


def waterfall_table(recording: Recording, findings: Findings) -> dict[str, Any] | None:
    """Return the waterfall's words, and a table in its place where it would have too many bars."""
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


def step_tables(findings: Findings) -> list[dict[str, Any]]:
    """Return the focus's stage first; the others are folded."""
    first = findings.focus.stage if findings.focus else None
    tables = sorted(findings.steps, key=lambda table: table.stage != first)
    return [_step_table(table) for table in tables]


def _step_table(table: StepTable) -> dict[str, Any]:
    rows = [_step_row(row) for row in table.rows]
    stage = words.stage_phrase(table.stage)
    return {"stage": stage, "rows": rows[:MOST_STEPS], "folded": rows[MOST_STEPS:]}


def _step_row(row: StepRow) -> dict[str, Any]:
    width = 120 / max(1, len(row.shape))
    most = max(row.shape, default=0)
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


def cost_tables(findings: Findings) -> dict[str, Any] | None:
    """Return the focus's stage first; the others are folded. None where nothing has a price."""
    costs = findings.costs
    if costs is None:
        return None
    first = findings.focus.stage if findings.focus else None
    order = sorted(costs.tables, key=lambda table: table.stage != first)
    said = [words.costs(costs, table) for table in order]
    return {
        "words": said[0] if said else words.costs(costs),
        "tables": [
            {
                "stage": words.stage_phrase(table.stage),
                "columns": _with_width(own.columns, own.columns),
                "rows": [
                    {
                        "step": row[0],
                        "depth": row[0].count("/"),
                        "cells": _with_width(own.columns, row)[1:],
                    }
                    for row in own.rows
                ],
            }
            for table, own in zip(order, said, strict=True)
        ],
    }


def _with_width(columns: Sequence[str], cells: Sequence[str]) -> list[tuple[str, bool]]:
    """Say of each cell whether its column is left out where there is no room."""
    wide = ("per 1,000", "tokens in + out", "n")
    return [(cell, name in wide) for name, cell in zip(columns, cells, strict=True)]


def check_table(verdict: Verdict) -> dict[str, Any]:
    """Return the checks, broken ones first."""
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


def definitions(verdict: Verdict, findings: Findings) -> Sequence[tuple[str, str]]:
    """Explain the terms that this page uses."""
    shown = {v.budget.metric for v in verdict.budgets}
    shown |= {row.metric for table in findings.steps for row in table.rows}
    shown |= {findings.subject.metric} if findings.subject else set()
    shown |= {"cost"} if findings.costs else set()
    return [
        *((name, metric.definition) for name, metric in METRICS.items() if name in shown),
        ("p99", "99 of 100 requests were faster. Dotted where fewer than 10 requests lie above."),
        (
            words.interval_name(verdict.budgets),
            (
                "Range of true values that this sample does not rule out: each end holds with that "
                "confidence (exact order statistics for percentiles, Clopper–Pearson for shares, "
                "both by the effective n). “?” means that this n gives no end."
            ),
        ),
        *_of_samples(verdict),
        (
            "Of limit",
            "Observed ÷ limit. Of a lower limit (goodput ≥ 95 %): share of the allowed loss used.",
        ),
    ]


def _of_samples(verdict: Verdict) -> list[tuple[str, str]]:
    """Explain what not every report has: samples that depend on each other, and windows."""
    said = []
    if any(v.effective_n is not None for v in verdict.budgets):
        alike = (
            "Requests near in time are alike: n of them say as much as so many independent ones."
        )
        said.append(("Effective n", alike))
    if any(v.budget.over_ns is not None for v in verdict.budgets):
        each = "The limit must hold in every window of that length. Observed: the worst of them."
        said.append(("In each …", each))
    return said
