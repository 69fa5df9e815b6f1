"""The budgets as a chart: what share of its limit each one uses, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report import words
from harness.report.facts.budgets import limit_use
from harness.report.paper import MARKS, WIDE, Paper, Scale
from harness.units import NARROW_SPACE
from harness.verdict import BudgetVerdict, Outcome


def draw_budgets(paper: Paper, verdicts: Sequence[BudgetVerdict]) -> None:
    """Draw every budget's share of its limit with its interval; for the PNG file only."""
    left, right, top = 440.0, 730.0, 8.0
    x = Scale(0.0, 2.0, left, right)
    bottom = top + 28 * len(verdicts)
    paper.box(x(1), top, right, bottom, "band")
    paper.line([x(1)] * 2, [top, bottom], "limit", 2)
    for share, text in (
        (0, "0"),
        (0.5, f"50{NARROW_SPACE}%"),
        (1, "limit"),
        (1.5, "1.5×"),
        (2, "2×"),
    ):
        paper.text(x(share), bottom + 12, text, size=11, align="center")
    for i, v in enumerate(verdicts):
        y, role = top + 28 * i + 14, MARKS[v.outcome][1]
        paper.text(18, y, str(v.outcome), role, bold=True)
        paper.text(140, y, words.short(v.budget.subject, 30), "ink")
        paper.text(left - 16, y, words.short(v.stage, 12), align="right")
        use = limit_use(v)
        if use is not None:
            if use.bounded:
                end = 2.0 if use.high is None else min(use.high, 2.0)
                paper.box(x(min(use.low or 0.0, 2.0)), y - 4, x(end), y + 4, role, alpha=0.5)
                if use.high is None:
                    paper.dots([right], [y], ">", role, 6, width=0)
            shape = MARKS[v.outcome][0]
            face = role if v.outcome in (Outcome.PASS, Outcome.FAIL) else "bg"
            paper.dots([x(min(use.observed, 2.0))], [y], shape, role, 7.5, face=face)
        paper.text(836, y, words.observed(v), "ink", bold=True, align="right")
        paper.text(848, y, f"[{words.interval(v)}]", size=11)
        paper.text(
            WIDE - 18,
            y,
            f"{words.operator_of(v.budget)} {words.limit_of(v.budget)}",
            "ink",
            align="right",
        )
