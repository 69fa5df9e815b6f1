"""The rows of the page's tables, and the windows and repetitions that they speak of."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from report_samples import SAMPLES, StageWindow, budgets, build, from_second

from harness.recorder import Recording
from harness.report import rows, words
from harness.report.facts import Findings, OverTime, findings
from harness.report.facts.budgets import limit_use
from harness.report.page import render_page
from harness.report.terminal import render_terminal
from harness.verdict import BudgetVerdict, Outcome, Verdict, judge


@cache
def found(name: str) -> tuple[Recording, Verdict, Findings]:
    recording, verdict = SAMPLES[name]()
    return recording, verdict, findings(recording, verdict)


def table(name: str) -> list[dict[str, Any]]:
    _, verdict, facts = found(name)
    shown: list[dict[str, Any]] = rows.budget_table(verdict, facts)["shown"]
    return shown


# --- repetitions ---------------------------------------------------------------------------------


def test_a_row_shows_what_each_repetition_showed_by_itself() -> None:
    recording, verdict, facts = found("repeated")
    budget = next(v for v in verdict.budgets if v.budget.metric == "ttft")
    each = [
        series.total.quantile(0.5)
        for stage in recording.stages
        if (series := recording.series(stage.name, "chat", "ttft"))
    ]
    assert list(facts.runs_of(budget)) == each
    assert each[3] > 1.2 * max(each[:3])
    row = next(row for row in table("repeated") if row["statistic"] == "p50")
    assert row["runs"] == words.runs(budget, each)
    assert row["runs"].startswith("4 runs: ")
    assert row["runs"].count("ms") == 1
    places = [float(at) for at in row["bar"]["runs"]]
    assert places == pytest.approx([value / budget.budget.limit * 50 for value in each], abs=0.01)
    assert render_page(recording, verdict, facts).count('class="tick"') == 8


def test_a_share_has_its_value_in_each_repetition_too() -> None:
    recording, verdict, facts = found("repeated")
    failed = next(v for v in verdict.budgets if v.budget.metric == "error_rate")
    each = [recording.requests(stage.name, "chat") for stage in recording.stages]
    assert list(facts.runs_of(failed)) == [r.n_failed / r.n for r in each]


def test_the_terminal_says_what_each_run_showed_where_the_budget_does_not_pass() -> None:
    recording, verdict, facts = found("repeated")
    text = render_terminal(verdict, facts, recording.run, [], color=False, unicode=True)
    assert [v.outcome for v in verdict.budgets] == [Outcome.INCONCLUSIVE, Outcome.PASS]
    assert text.count("4 runs: ") == 1


def test_many_repetitions_are_told_by_their_lowest_and_highest() -> None:
    _, verdict, _ = found("repeated")
    said = words.runs(verdict.budgets[0], [ms * 1e6 for ms in (300, 200, *range(210, 220))])
    assert said.replace("\u202f", " ") == "12 runs: 200 ms to 300 ms"


def test_one_run_has_no_repetitions() -> None:
    _, verdict, facts = found("fail")
    assert all(facts.runs_of(v) == () for v in verdict.budgets)
    assert all(row["runs"] == "" for row in table("fail"))


def test_no_form_shows_the_name_by_which_a_repetition_is_saved() -> None:
    recording, verdict, facts = found("repeated")
    assert "steady~" not in render_page(recording, verdict, facts)
    assert set(facts.errors[0].by_stage) == {"steady"}


# --- windows that must each hold -----------------------------------------------------------------


@cache
def windowed() -> tuple[Recording, Verdict, Findings]:
    """A budget for every 10 s, of which all after 0:40 break it."""
    chosen = (replace(budgets([("chat.ttft p95 < 650ms", None)])[0], over_ns=10 * 10**9),)
    stages = [StageWindow("steady", 0, 65, True, "poisson 60/s", 60.0)]
    recording = build(stages=stages, chosen=chosen, worse=from_second(40, 2.0), seed=2)
    verdict = judge(recording, chosen)
    return recording, verdict, findings(recording, verdict)


def test_a_budget_for_every_window_is_drawn_in_just_these_windows() -> None:
    recording, _, facts = windowed()
    assert isinstance(facts.over_time, OverTime)
    assert [round(w.t0) for w in facts.over_time.windows] == [0, 10, 20, 30, 40, 50, 60]
    assert [w.above for w in facts.over_time.windows][:6] == [False] * 4 + [True] * 2
    said = words.over_time(recording, facts, facts.over_time)
    assert "Windows of 10\u202fs: the limit must hold in each." in said.note


def test_a_page_explains_windows_only_where_a_budget_asks_for_them() -> None:
    _, verdict, facts = windowed()
    assert "In each …" in dict(rows.definitions(verdict, facts))
    _, other, others = found("fail")
    assert "In each …" not in dict(rows.definitions(other, others))
    assert "Effective n" in dict(rows.definitions(other, others))


# --- rows ----------------------------------------------------------------------------------------


def with_reasons(*reasons: str | None) -> list[str | None]:
    _, verdict, facts = found("fail")
    budgets = tuple(replace(verdict.budgets[0], reason=reason) for reason in reasons)
    shown = rows.budget_table(replace(verdict, budgets=budgets), facts)["shown"]
    return [row["reason"] for row in shown]


def test_a_reason_is_left_out_only_right_below_itself() -> None:
    assert with_reasons("a", "a", "b", "a", None, "a") == ["a", None, "b", "a", None, "a"]


@pytest.mark.parametrize(
    ("text", "low", "high", "expected"),
    [
        ("chat.ttft p99 < 800ms", 4e8, 1.2e9, (0.5, 1.5)),
        ("chat.ttft p99 < 800ms", 4e8, None, (0.5, None)),
        ("chat.goodput >= 90%", 0.8, 0.95, (0.5, 2.0)),
        ("run.rate > 10/s", 5.0, 20.0, (0.5, 2.0)),
    ],
)
def test_the_interval_is_drawn_from_its_better_end(
    text: str, low: float, high: float | None, expected: tuple[float, float | None]
) -> None:
    (budget,) = budgets([(text, None)])
    verdict = BudgetVerdict(
        budget=budget,
        stage="steady",
        outcome=Outcome.INCONCLUSIVE,
        observed=budget.limit,
        low=low,
        high=high,
        n=100,
        over=0,
        allowed=0,
        used=1.0,
    )
    use = limit_use(verdict)
    assert use is not None
    assert use.bounded
    assert (use.low, use.high) == pytest.approx(expected)
    unfit = limit_use(replace(verdict, outcome=Outcome.INVALID))
    assert unfit is not None
    assert not unfit.bounded
