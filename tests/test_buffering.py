"""Events that came in one read share its stamp: what a budget, a comparison and a reader get of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gevent
import load
import pytest
from conftest import limits_of, stage

from harness.budget import parse_budget
from harness.health.streams import BUFFERED, how_buffered
from harness.recorder import LEAST, MOST, LoadTotals, Recorder, Recording, merge_reports
from harness.report.facts import WhyNot, findings
from harness.report.markdown import render_markdown
from harness.report.page import render_page
from harness.report.words import story
from harness.verdict import BudgetVerdict, Outcome, judge

MS = load.MS
LENGTH_S = 60
PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
Ends = tuple[int, int]
SaveRun = Callable[..., Recording]


def replies(
    *,
    gap: int = 20 * MS,
    gap_ends: Ends | None = None,
    ttft: int = 100 * MS,
    ttft_ends: Ends | None = None,
    n: int = 20,
) -> Callable[[Recorder, int], None]:
    """So many replies an interval, each of 20 gaps.

    Of half of them the stamps stand for intervals: `…_ends`. The other half is at the least of it.
    """

    def fill(recorder: Recorder, i: int) -> None:
        for number in range(n):
            unsure = number % 2 == 0
            first = ttft if unsure or not ttft_ends else ttft_ends[0]
            gaps = [gap if unsure or not gap_ends else gap_ends[0]] * 20
            recorder.request(
                "steady",
                "chat",
                {"ttft": first, "e2el": first + sum(gaps), "send_lag": MS},
                ends={"ttft": ttft_ends} if ttft_ends and unsure else {},
                series={"itl": gaps},
                series_ends={"itl": [gap_ends] * 20} if gap_ends and unsure else {},
            )
        counted = recorder.load("steady")
        for name in ("planned", "sent", "finished", "streams"):
            setattr(counted, name, getattr(counted, name) + n)
        counted.token_events += 21 * n
        counted.merged += 10 * n if gap_ends or ttft_ends else 0

    return fill


@pytest.fixture
def judged(save_run: SaveRun) -> Callable[..., BudgetVerdict]:
    """Record a run with the budget declared, or another one, and judge it by it."""

    def run(fill: Any, text: str, *, declared: str = "") -> BudgetVerdict:
        recording = save_run(
            fill, budgets=[declared or text], intervals=LENGTH_S, stages=[stage(end_s=LENGTH_S)]
        )
        (found,) = judge(recording, [parse_budget(text)]).budgets
        return found

    return run


Judged = Callable[..., BudgetVerdict]


@pytest.mark.parametrize("declared", ["", "chat.itl p99 < 7ms"])
@pytest.mark.parametrize(
    ("budget", "point", "ends", "outcome"),
    [
        ("chat.itl p99 < 60ms", 0, (0, 40 * MS), PASS),
        ("chat.itl p99 < 60ms", 0, (0, 800 * MS), INCONCLUSIVE),
        ("chat.itl p99 < 60ms", 200 * MS, (130 * MS, 800 * MS), FAIL),
        ("chat.itl p99 < 60ms", 100 * MS, (0, 800 * MS), INCONCLUSIVE),
        ("chat.itl mean < 60ms", 0, (0, 100 * MS), PASS),
        ("chat.itl mean < 30ms", 0, (0, 100 * MS), INCONCLUSIVE),
        ("chat.itl mean < 30ms", 90 * MS, (50 * MS, 90 * MS), FAIL),
        ("chat.itl max < 60ms", 0, (0, 800 * MS), INCONCLUSIVE),
        ("chat.itl max < 60ms", 0, (0, 59 * MS), PASS),
        ("chat.itl p99 < 60ms over 10s", 0, (0, 800 * MS), INCONCLUSIVE),
        ("chat.itl p99 < 60ms over 10s", 0, (0, 40 * MS), PASS),
    ],
)
def test_a_budget_holds_or_is_broken_only_at_both_ends_of_every_stamp(
    judged: Judged, budget: str, point: int, ends: Ends, outcome: Outcome, declared: str
) -> None:
    found = judged(replies(gap=point, gap_ends=ends), budget, declared=declared)
    assert found.outcome is outcome
    if outcome is INCONCLUSIVE:
        assert "47.6" in (found.reason or "")
        assert "of the token events came in reads that held several" in (found.reason or "")


def test_without_intervals_nothing_changes(judged: Judged) -> None:
    for gap_ends in (None, (20 * MS, 20 * MS)):
        found = judged(replies(gap=20 * MS, gap_ends=gap_ends), "chat.itl p99 < 60ms")
        assert (found.outcome, found.observed) == (PASS, 20 * MS)


def test_the_bounds_are_those_of_both_ends_and_no_value_is_shown_where_they_differ(
    judged: Judged,
) -> None:
    found = judged(replies(gap=0, gap_ends=(0, 800 * MS)), "chat.itl p99 < 60ms")
    assert found.observed is None
    assert found.low is not None
    assert found.high is not None
    assert found.low < MS
    assert found.high >= 799 * MS
    near = judged(replies(gap=20 * MS, gap_ends=(20 * MS, 21 * MS)), "chat.itl p99 < 60ms")
    assert near.observed == 20 * MS


def test_a_first_token_that_shares_its_read_is_judged_at_both_ends(judged: Judged) -> None:
    wide = replies(gap=20 * MS, gap_ends=None, ttft=500 * MS, ttft_ends=(50 * MS, 500 * MS))
    assert judged(wide, "chat.ttft p95 < 400ms").outcome is INCONCLUSIVE
    assert judged(wide, "chat.ttft p95 < 600ms").outcome is PASS
    assert judged(wide, "chat.ttft p95 < 40ms").outcome is FAIL


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [((50, 300), PASS), ((450, 500), FAIL), ((50, 500), INCONCLUSIVE)],
)
def test_goodput_counts_what_surely_met_and_what_may_have_met_every_limit(
    save_run: SaveRun, ends: Ends, outcome: Outcome
) -> None:
    texts = ["chat.goodput > 90%", "chat.ttft p50 < 400ms"]
    least, most = (end * MS for end in ends)
    fill = replies(ttft=most, ttft_ends=(least, most))
    many = {"intervals": LENGTH_S, "stages": [stage(end_s=LENGTH_S)]}
    recording = save_run(fill, budgets=texts, **many)
    requests = recording.requests("steady", "chat")
    good = {PASS: 1200, FAIL: 0, INCONCLUSIVE: 600}[outcome]
    assert (requests.n, requests.n_good) == (1200, good)
    assert int(requests.unsure.sum()) == (600 if outcome is INCONCLUSIVE else 0)
    goodput = next(
        v
        for v in judge(recording, [parse_budget(t) for t in texts]).budgets
        if v.budget.metric == "goodput"
    )
    assert goodput.outcome is outcome


@pytest.mark.parametrize(("ends", "outcome"), [((0, 21 * MS), PASS), ((0, 800 * MS), INCONCLUSIVE)])
def test_a_regression_holds_only_at_both_ends(
    save_run: SaveRun, ends: Ends, outcome: Outcome
) -> None:
    many = {"intervals": LENGTH_S, "stages": [stage(end_s=LENGTH_S)]}
    text = "chat.itl p95 regression < 20%"
    base = save_run(replies(gap=20 * MS, gap_ends=None), **many)
    candidate = save_run(replies(gap=20 * MS, gap_ends=ends), **many)
    found = judge(candidate, [parse_budget(text)], baseline=base).budgets[0]
    assert found.outcome is outcome


def test_the_ends_survive_merging_with_a_worker_that_has_none(save_run: SaveRun) -> None:
    budgets = [parse_budget("chat.itl p99 < 60ms")]
    one, other = Recorder(limits_of(budgets)), Recorder(limits_of(budgets))
    replies(gap=20 * MS, gap_ends=(0, 100 * MS))(one, 0)
    replies(gap=30 * MS, gap_ends=None)(other, 0)
    for reports in ((one, other), (other, one)):
        merged = merge_reports([recorder.flush(0) for recorder in reports])
        measured = merged.measured["steady", "chat", "itl"]
        top = budgets[0].threshold
        assert measured.least is not None
        assert measured.most is not None
        assert (measured.over[top], measured.least.over[top], measured.most.over[top]) == (
            0,
            0,
            200,
        )
        assert {form.histogram.n for _, form in measured.forms("itl")} == {800}
        for recorder, gap_ends in ((one, (0, 100 * MS)), (other, None)):
            replies(gap=20 * MS, gap_ends=gap_ends)(recorder, 0)


def test_a_series_at_an_end_has_the_other_intervals_as_they_are(save_run: SaveRun) -> None:
    exact, unsure = replies(gap=20 * MS, gap_ends=None), replies(gap=20 * MS, gap_ends=(0, 80 * MS))
    recording = save_run(lambda recorder, i: (unsure if i == 3 else exact)(recorder, i))
    for end in (LEAST, MOST):
        series = recording.series("steady", "chat", "itl", end)
        assert series is not None
        assert series.n.tolist() == [400] * 20
        sums = (series.sum // MS).tolist()
        assert sums[:3] == sums[4:7] == [8000] * 3
        assert sums[3] == {LEAST: 0, MOST: 16_000}[end]
    assert recording.metrics("steady", "chat") == ("ttft", "e2el", "send_lag", "itl")


def test_every_report_says_what_buffered_the_stream(save_run: SaveRun) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        replies(gap=0, gap_ends=(0, 800 * MS))(recorder, i)
        counted = recorder.load("steady")
        counted.merged, counted.lumped = counted.token_events, counted.streams

    text = "chat.itl p99 < 60ms"
    many = {"intervals": LENGTH_S, "stages": [stage(end_s=LENGTH_S)]}
    recording = save_run(fill, budgets=[text], **many)
    verdict = judge(recording, [parse_budget(text)])
    assert verdict.outcome is INCONCLUSIVE
    said = f"every reply came in one read: {BUFFERED}"
    assert verdict.budgets[0].reason == said
    found = findings(recording, verdict)
    told = " ".join(story(verdict, found))
    assert said in told
    assert told.count(BUFFERED) == 1
    for text in (told, render_markdown(recording, verdict, found)):
        assert text.count("proxy_buffering off") == 1  # what helps is said once
    assert "came in one read" in render_page(recording, verdict, found)


def test_no_chart_shows_gaps_of_nothing_where_the_stamps_do_not_say_when_events_came(
    save_run: SaveRun,
) -> None:
    texts = ["chat.itl p99 < 60ms", "chat.ttft p95 < 400ms"]
    many = {"intervals": LENGTH_S, "stages": [stage(end_s=LENGTH_S)]}
    recording = save_run(replies(gap=0, gap_ends=(0, 800 * MS)), budgets=texts, **many)
    verdict = judge(recording, [parse_budget(text) for text in texts])
    found = findings(recording, verdict, recording)
    assert found.subject is not None
    assert found.subject.name == "chat.ttft"  # known, so that it takes the big charts
    assert not isinstance(found.nines, WhyNot)
    (other,) = found.others
    for facts in (other.over_time, other.nines, other.heat):
        assert isinstance(facts, WhyNot)
        assert "known only between two ends" in facts.reason


def test_a_bound_below_any_time_that_is_measured_is_nothing(judged: Judged) -> None:
    found = judged(replies(gap=0, gap_ends=(0, 800 * MS)), "chat.itl p99 < 60ms")
    assert found.low == 0


def test_replies_of_one_token_are_not_said_to_be_buffered() -> None:
    one = LoadTotals(token_events=100, merged=100, finished=100)
    assert BUFFERED not in (how_buffered(one) or "")
    assert BUFFERED in (how_buffered(replace(one, streams=50)) or "")


# --- a proxy that holds a stream back --------------------------------------------------------------


@pytest.mark.swarm
def test_a_reply_written_in_one_piece_has_gaps_that_no_budget_is_judged_on() -> None:
    tokens = b"".join(load.event() for _ in range(40))
    seen: list[bool] = []

    def hold_back(connection: Any) -> None:
        while load.request_of(connection):
            gevent.sleep(0.2)
            connection.sendall(
                load.STREAM_HEAD + tokens + load.event(finish="stop") + load.DONE + load.END
            )

    with load.serving(hold_back) as url:
        run = load.make_run(url)
        seen.append(load.do(lambda user: user.chat("why"), run))
    step = run.steps[0]
    assert seen == [True]
    assert step.detail["one_read"] == 41
    assert set(step.gaps) == {0}
    assert step.gap_ends is not None
    assert all(least == 0 and most >= 200 * MS for least, most in step.gap_ends)
    least, most = step.ends["tpot"]
    assert (least, step.values["tpot"]) == (0, 0)
    assert most >= 200 * MS / 40
    report = run.report()
    counted = report.load[load.STAGE]
    assert (counted.streams, counted.lumped, counted.merged) == (1, 1, 41)
