"""The verdict: PASS, FAIL and INCONCLUSIVE at their exact borders, and no data is never a pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest
from conftest import stage

from harness.budget import parse_budget
from harness.errors import ExitCode
from harness.recorder import Recorder, Recording, load_recording
from harness.verdict import BudgetVerdict, Outcome, Verdict, format_bound, judge

MS, S = 1_000_000, 1_000_000_000
LENGTH_S = 60
LONG: dict[str, Any] = {"intervals": LENGTH_S, "stages": [stage(end_s=LENGTH_S)]}
PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
INVALID, NO_DATA = Outcome.INVALID, Outcome.NO_DATA
SaveRun = Callable[..., Recording]
Fill = Callable[[Recorder, int], None]
P99 = "chat.ttft p99 < 800ms"


def replies(
    values: Sequence[int],
    *,
    failed: int = 0,
    where: str = "steady",
    metric: str = "ttft",
    step: str = "chat",
    intervals: int = LENGTH_S,
    lag: int = MS,
    **load: int,
) -> Fill:
    """Spread the replies, and the failures, evenly over the intervals."""

    def fill(recorder: Recorder, i: int) -> None:
        mine = values[i::intervals]
        broken = sum(j * 37 % intervals == i for j in range(failed))
        for value in mine:
            recorder.request(where, step, {metric: int(value), "send_lag": lag})
        for _ in range(broken):
            recorder.request(where, step, {"send_lag": lag}, failure="status 500")
        counters = recorder.load(where)
        n = len(mine) + broken
        for name, value in {
            "planned": n,
            "sent": n,
            "finished": n,
            "failed": broken,
            **load,
        }.items():
            setattr(counters, name, getattr(counters, name) + value)

    return fill


def together(*fills: Fill, failed: int, at: Collection[int]) -> Fill:
    """Do all of these, and fail so many requests in the intervals `at`."""

    def fill(recorder: Recorder, i: int) -> None:
        for one in fills:
            one(recorder, i)
        broken = failed // len(at) if i in at else 0
        for _ in range(broken):
            recorder.request("steady", "chat", {"send_lag": MS}, failure="status 500")
        load = recorder.load("steady")
        load.planned, load.sent = load.planned + broken, load.sent + broken
        load.finished, load.failed = load.finished + broken, load.failed + broken

    return fill


def slow(n: int, over: int, *, fast: int = 100 * MS, late: int = 900 * MS) -> list[int]:
    """Replies in random order, so that none depends on the one before."""
    values = [late] * over + [fast] * (n - over)
    random.Random(7).shuffle(values)
    return values


@pytest.fixture
def judged(save_run: SaveRun) -> Callable[..., Verdict]:
    """Record a run with the budgets declared, and judge it by them."""

    def run(fill: Fill, *texts: str, holm: bool = False, **options: Any) -> Verdict:
        recording = save_run(fill, budgets=texts, **LONG | options)
        return judge(recording, [parse_budget(text) for text in texts], holm=holm)

    return run


Judged = Callable[..., Verdict]


def only(verdict: Verdict) -> BudgetVerdict:
    (found,) = verdict.budgets
    return found


def plain(text: str | None) -> str:
    return (text or "").replace("\u202f", " ")


# --- the borders of a quantile ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "over", "budget", "confidence", "outcome"),
    [
        (3000, 0, P99, 0.95, PASS),
        (3000, 10, P99, 0.95, PASS),
        (3000, 25, P99, 0.95, INCONCLUSIVE),
        (3000, 36, P99, 0.95, INCONCLUSIVE),
        (3000, 70, P99, 0.95, FAIL),
        (3000, 3000, P99, 0.95, FAIL),
        (3000, 10, P99, 0.9999, INCONCLUSIVE),
        (3000, 50, P99, 0.9999, INCONCLUSIVE),
        (298, 0, P99, 0.95, INCONCLUSIVE),
        (240, 0, "chat.ttft p95 < 800ms", 0.95, PASS),
        (58, 0, "chat.ttft p95 < 800ms", 0.95, INCONCLUSIVE),
        (120, 0, "chat.ttft p50 < 800ms", 0.95, PASS),
        (4, 0, "chat.ttft p50 < 800ms", 0.95, INCONCLUSIVE),
        (1, 1, P99, 0.95, FAIL),
        (1, 1, P99, 0.99, INCONCLUSIVE),
        (20, 20, P99, 0.95, FAIL),
    ],
)
def test_a_quantile_is_judged_by_the_exact_count_over_its_limit(
    save_run: SaveRun, n: int, over: int, budget: str, confidence: float, outcome: Outcome
) -> None:
    recording = save_run(replies(slow(n, over)), budgets=[budget], **LONG)
    found = only(judge(recording, [parse_budget(budget, confidence=confidence)]))
    assert (found.outcome, found.n, found.over) == (outcome, n, over)


@pytest.mark.parametrize(("op", "outcome"), [("<", FAIL), ("<=", PASS)])
def test_a_value_that_equals_the_limit_is_over_it_only_under_less_than(
    judged: Judged, op: str, outcome: Outcome
) -> None:
    verdict = judged(replies([800 * MS] * 400), f"chat.ttft p99 {op} 800ms")
    assert verdict.outcome is outcome


@pytest.mark.parametrize(("over", "outcome"), [(4, PASS), (3000, FAIL)])
def test_an_undeclared_limit_whose_bucket_is_empty_is_judged_as_a_declared_one(
    save_run: SaveRun, over: int, outcome: Outcome
) -> None:
    fill = replies(slow(3000, over))
    for declared in ((), (P99,)):
        found = only(judge(save_run(fill, budgets=declared, **LONG), [parse_budget(P99)]))
        assert (found.outcome, found.over) == (outcome, over)
        assert "not declared" not in plain(found.evidence)


def test_at_the_buckets_edge_a_doubtful_limit_neither_passes_nor_fails(save_run: SaveRun) -> None:
    """All samples share the bucket of the limit: on which side each is, nobody can tell."""
    values = [800_000_001] * 500 + [800_250_000] * 500
    budget = parse_budget("chat.ttft p99 < 800.2ms")
    undeclared = only(judge(save_run(replies(values), **LONG), [budget]))
    assert undeclared.outcome is INCONCLUSIVE
    assert "not declared when this run was recorded" in plain(undeclared.evidence)
    recording = save_run(replies(values), budgets=[budget.text], **LONG)
    declared = only(judge(recording, [budget]))
    assert (declared.outcome, declared.over) == (FAIL, 500)


def test_the_interval_and_the_verdict_agree(judged: Judged) -> None:
    values = [(100 + i) * MS for i in range(1000)]
    random.Random(3).shuffle(values)
    found = only(judged(replies(values), "chat.ttft p50 < 2s"))
    assert found.low is not None
    assert found.high is not None
    for limit_ms, outcome in (
        (found.high / MS + 1, PASS),
        (found.high / MS - 2, INCONCLUSIVE),
        (found.low / MS + 1, INCONCLUSIVE),
        (found.low / MS - 2, FAIL),
    ):
        text = f"chat.ttft p50 <= {limit_ms:.0f}ms"
        assert judged(replies(values), text).outcome is outcome, text


def test_too_few_samples_say_how_many_are_needed(judged: Judged) -> None:
    found = only(judged(replies([100 * MS] * 200), P99))
    reason = "needs about 99 more samples (29.7 s at this rate), has 200"
    assert plain(found.reason) == reason
    assert f"but {reason}" in plain(found.sentence)


def test_an_undecided_quantile_says_how_long_to_run_on(judged: Judged) -> None:
    reason = plain(only(judged(replies(slow(1000, 7)), P99)).reason)
    assert "more samples" in reason
    assert " at this rate" in reason
    assert "has 1,000" in reason


def test_a_gross_failure_fails_in_a_run_that_is_too_short_to_pass(save_run: SaveRun) -> None:
    """Thirty requests in ten seconds that grow from 20 to 65 ms: one long spell."""

    def fill(recorder: Recorder, i: int) -> None:
        replies([(20 + 5 * i) * MS] * 3, intervals=1, lag=MS // 10)(recorder, 0)

    short = {"stages": [stage(end_s=10)], "intervals": 10}
    for text, outcome in (("p50 < 1ms", FAIL), ("p50 < 11ms", INCONCLUSIVE), ("p99 < 11ms", FAIL)):
        budget = f"chat.ttft {text}"
        recording = save_run(fill, budgets=[budget], **short)
        assert only(judge(recording, [parse_budget(budget)])).outcome is outcome, text


# --- lower limits, means, maxima, rates ------------------------------------------------------------


@pytest.mark.parametrize(
    ("under", "op", "at", "outcome"),
    [
        (0, ">", 100, FAIL),
        (0, ">=", 100, PASS),
        (430, ">", 101, PASS),
        (490, ">", 101, INCONCLUSIVE),
        (510, ">", 101, INCONCLUSIVE),
        (570, ">", 101, FAIL),
    ],
)
def test_a_median_of_tokens_that_must_be_high_is_judged_from_below(
    judged: Judged, under: int, op: str, at: int, outcome: Outcome
) -> None:
    values = slow(1000, under, fast=at, late=50)
    verdict = judged(replies(values, metric="output_tokens"), f"chat.output_tokens p50 {op} 100")
    assert verdict.outcome is outcome
    found = only(verdict)
    assert found.over == (1000 if at == 100 and op == ">" else under)
    assert found.allowed == 500


@pytest.mark.parametrize(
    ("good", "outcome"), [(965, PASS), (955, INCONCLUSIVE), (930, FAIL), (1000, PASS), (0, FAIL)]
)
def test_goodput_counts_what_missed_a_limit_and_what_failed(
    judged: Judged, good: int, outcome: Outcome
) -> None:
    missed = 1000 - good
    fill = replies(slow(1000 - missed // 2, missed - missed // 2), failed=missed // 2)
    verdict = judged(fill, "chat.goodput > 95%", P99, "chat.error_rate < 99%")
    (found,) = (b for b in verdict.budgets if b.budget.metric == "goodput")
    assert (found.outcome, found.over, found.n) == (outcome, missed, 1000)
    assert found.observed == pytest.approx(good / 1000)
    assert found.allowed == 50
    assert found.low is not None
    assert found.high is not None
    assert found.low <= good / 1000 <= found.high


@pytest.mark.parametrize(
    ("failed", "outcome"), [(0, PASS), (4, PASS), (5, INCONCLUSIVE), (15, INCONCLUSIVE), (16, FAIL)]
)
def test_an_error_rate_is_judged_by_the_same_borders(
    judged: Judged, failed: int, outcome: Outcome
) -> None:
    found = only(
        judged(replies([100 * MS] * (1000 - failed), failed=failed), "chat.error_rate < 1%")
    )
    assert (found.outcome, found.over, found.n) == (outcome, failed, 1000)


@pytest.mark.parametrize(
    ("budget", "failed", "outcome"),
    [
        ("chat.error_rate <= 0%", 0, PASS),
        ("chat.error_rate <= 0%", 1, FAIL),
        ("chat.goodput >= 100%", 0, PASS),
        ("chat.goodput >= 100%", 1, FAIL),
    ],
)
def test_a_limit_of_none_at_all_is_a_fact_about_this_run(
    judged: Judged, budget: str, failed: int, outcome: Outcome
) -> None:
    """No number of samples proves "never", so asking for more of them would be no answer."""
    verdict = judged(replies([100 * MS] * 300, failed=failed), budget)
    found = only(verdict)
    assert (found.outcome, found.low, found.high) == (outcome, None, None)
    said = "a fact about this run, not a bound"
    assert (said in found.sentence, said in found.evidence) == (not failed, not failed)


@pytest.mark.parametrize(
    ("limit", "outcome"), [("200ms", PASS), ("150ms", INCONCLUSIVE), ("100ms", FAIL)]
)
def test_a_mean_is_judged_by_its_interval(judged: Judged, limit: str, outcome: Outcome) -> None:
    values = [(100 if i % 7 < 3 else 187.5) * MS for i in range(1000)]  # mean 150 ms
    verdict = judged(replies([int(v) for v in values]), f"chat.ttft mean < {limit}")
    found = only(verdict)
    assert found.outcome is outcome
    assert found.observed == pytest.approx(150 * MS, rel=1e-3)


def test_a_mean_of_fewer_than_twenty_intervals_is_not_decided(judged: Judged) -> None:
    fill = replies([100 * MS] * 500, intervals=10)
    found = only(judged(fill, "chat.ttft mean < 1s", intervals=10, stages=[stage(end_s=10)]))
    assert found.outcome is INCONCLUSIVE
    assert "40 intervals" in plain(found.reason)


@pytest.mark.parametrize(
    ("op", "largest", "outcome"),
    [
        ("<", 800 * MS - 1, PASS),
        ("<", 800 * MS, FAIL),
        ("<=", 800 * MS, PASS),
        ("<=", 800 * MS + 1, FAIL),
    ],
)
def test_a_maximum_is_exact_to_the_nanosecond(
    judged: Judged, op: str, largest: int, outcome: Outcome
) -> None:
    found = only(judged(replies([100 * MS] * 20 + [largest]), f"chat.ttft max {op} 800ms"))
    assert (found.outcome, found.observed) == (outcome, largest)
    assert found.sentence.endswith("; a fact about this run, not a bound.") == (outcome is PASS)


@pytest.mark.parametrize(
    ("op", "limit", "outcome"),
    [(">", 49, PASS), (">", 50, FAIL), (">=", 50, PASS), (">=", 51, FAIL)],
)
def test_a_rate_is_what_succeeded_within_the_stage_per_second(
    judged: Judged, op: str, limit: int, outcome: Outcome
) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        if i < 60:
            replies([100 * MS] * 3000)(recorder, i)
            recorder.request("steady", "chat", {}, failure="timeout")
        else:  # after the stage: no part of its rate
            recorder.request("steady", "chat", {"ttft": MS})

    found = only(judged(fill, f"run.rate {op} {limit}/s", intervals=62))
    assert (found.outcome, found.observed) == (outcome, 50)


@pytest.mark.parametrize(("limit", "outcome"), [(40, PASS), (50, INCONCLUSIVE), (60, FAIL)])
def test_a_rate_that_varies_is_judged_by_its_bounds(
    judged: Judged, limit: int, outcome: Outcome
) -> None:
    rates = np.random.default_rng(1).poisson(50, LENGTH_S)

    def fill(recorder: Recorder, i: int) -> None:
        replies([100 * MS] * int(rates[i]), intervals=1)(recorder, 0)

    found = only(judged(fill, f"run.rate > {limit}/s"))
    assert found.outcome is outcome
    assert found.low is not None
    assert found.high is not None
    assert found.low < rates.mean() < found.high


# --- no data ---------------------------------------------------------------------------------------


def nothing(recorder: Recorder, i: int) -> None:
    """An interval in which nothing happened."""


@pytest.mark.parametrize(
    "budget",
    [
        P99,
        "chat.ttft mean < 1s",
        "chat.ttft max < 1s",
        "chat.error_rate < 1%",
        "run.goodput > 90%",
        "run.rate > 1/s",
        "chat.output_tokens p50 > 100",
    ],
)
def test_no_data_is_never_a_pass(judged: Judged, budget: str) -> None:
    verdict = judged(nothing, budget)
    assert verdict.outcome is NO_DATA
    assert verdict.exit_code == 5
    found = only(verdict)
    assert (found.outcome, found.observed, found.low, found.high) == (NO_DATA, None, None, None)
    assert "no request finished" in found.sentence


def test_no_data_without_budgets_is_no_pass_either(judged: Judged) -> None:
    assert judged(nothing).outcome is NO_DATA


def test_when_all_requests_failed_there_is_no_data_and_exit_5(judged: Judged) -> None:
    verdict = judged(replies([], failed=400), P99, first_failure="status 500: overloaded")
    assert (verdict.outcome, verdict.exit_code) == (NO_DATA, ExitCode.INVALID)
    assert "all 400 requests failed (status 500)" in only(verdict).sentence
    assert "Of 400 planned requests none succeeded, 400 failed." in verdict.detail
    assert "First error: status 500: overloaded" in verdict.detail


def test_a_load_that_ended_in_its_warm_up_has_judged_none_of_its_budgets(judged: Judged) -> None:
    verdict = judged(nothing, P99, "chat.error_rate < 1%", stages=[stage("warm", record=False)])
    assert verdict.outcome is NO_DATA
    assert verdict.detail == "2 budgets are declared, none was judged."
    assert verdict.sentence.startswith("The load ended before a stage that is judged began, so")


@pytest.mark.parametrize(
    ("text", "end", "said"),
    [
        ("chat.error_rate < 5%", 3.39e-10, "<0.01 %"),
        ("chat.error_rate < 5%", 0.0, "0 %"),
        ("chat.error_rate < 5%", 0.976, "97.6 %"),
        ("chat.error_rate < 0.001%", 3.39e-10, "<0.00001 %"),
        ("chat.goodput > 95%", 3.39e-10, "<0.01 %"),
    ],
)
def test_an_end_near_zero_has_no_digits_that_nobody_needs(text: str, end: float, said: str) -> None:
    assert plain(format_bound(parse_budget(text), end)) == said


def test_when_all_failed_and_a_budget_limits_failures_that_budget_fails(judged: Judged) -> None:
    verdict = judged(replies([], failed=400), P99, "chat.error_rate < 1%")
    assert verdict.outcome is FAIL
    assert [b.outcome for b in verdict.budgets] == [FAIL, NO_DATA]


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("other.ttft p99 < 1s", "no step other ran; the steps were chat"),
        ("chat.itl p99 < 1s", "chat gave no itl"),
        (
            "chat.ttft p99 < 1s in nosuch",
            "no such stage was recorded; the recorded ones were steady",
        ),
    ],
)
def test_a_budget_of_what_was_not_measured_invalidates_the_run_and_says_why(
    judged: Judged, budget: str, says: str
) -> None:
    verdict = judged(replies([100 * MS] * 400), budget, P99)
    assert (verdict.outcome, verdict.exit_code) == (INVALID, 5)
    assert [b.outcome for b in verdict.budgets] == [NO_DATA, PASS]
    assert says in verdict.budgets[0].sentence
    assert says in verdict.budgets[0].evidence


def test_a_run_with_only_budgets_of_unknown_stages_does_not_pass(judged: Judged) -> None:
    verdict = judged(replies([100 * MS] * 400), "chat.ttft p99 < 1ms in typo")
    assert (verdict.outcome, verdict.exit_code) == (INVALID, 5)
    assert verdict.sentence == "1 budget was not measured."


# --- failures --------------------------------------------------------------------------------------


def test_failures_that_no_budget_limits_take_back_a_pass(judged: Judged) -> None:
    verdict = judged(replies([100 * MS] * 950, failed=50), P99)
    assert verdict.outcome is INCONCLUSIVE
    reason = plain(only(verdict).reason)
    assert "50 of 1,000 requests failed" in reason
    assert "add one for chat" in reason


@pytest.mark.parametrize("limit", ["chat.ttft max < 1s", "chat.ttft mean < 1s"])
def test_failures_that_no_budget_limits_take_back_a_means_or_maximums_pass(
    judged: Judged, limit: str
) -> None:
    assert judged(replies([100 * MS] * 950), limit).outcome is PASS
    verdict = judged(replies([100 * MS] * 950, failed=1), limit)
    assert verdict.outcome is INCONCLUSIVE


@pytest.mark.parametrize(
    ("limit", "outcome"), [("chat.error_rate < 10%", PASS), ("chat.error_rate < 1%", FAIL)]
)
def test_failures_are_judged_by_the_error_rate_where_one_is_declared(
    judged: Judged, limit: str, outcome: Outcome
) -> None:
    verdict = judged(replies([100 * MS] * 950, failed=50), P99, limit)
    outcomes = {b.budget.metric: b.outcome for b in verdict.budgets}
    assert outcomes == {"ttft": PASS, "error_rate": outcome}


@pytest.mark.parametrize(
    ("other", "outcome"),
    [
        ("run.error_rate < 10%", PASS),
        ("chat.goodput > 80%", PASS),
        ("rag.error_rate < 10%", INCONCLUSIVE),
        ("chat.error_rate < 10% in peak", INCONCLUSIVE),
    ],
)
def test_only_a_budget_of_the_same_step_and_stage_answers_for_its_failures(
    judged: Judged, other: str, outcome: Outcome
) -> None:
    verdict = judged(replies([100 * MS] * 950, failed=50), P99, other)
    (found,) = (b for b in verdict.budgets if b.budget.metric == "ttft")
    assert found.outcome is outcome


@pytest.mark.parametrize(("failed", "outcome"), [(0, PASS), (5, PASS), (25, INCONCLUSIVE)])
def test_a_few_failures_pass_if_they_could_all_have_been_slow(
    judged: Judged, failed: int, outcome: Outcome
) -> None:
    fill = replies([100 * MS] * (3000 - failed), failed=failed)
    assert judged(fill, P99).outcome is outcome


def test_failures_that_come_together_may_be_more_than_were_seen(judged: Judged) -> None:
    fast = replies([100 * MS] * 6000)
    even = together(fast, failed=60, at=range(60))
    storm = together(fast, failed=60, at=range(20, 23))
    budget = "chat.ttft p95 < 800ms"
    assert judged(even, budget).outcome is PASS
    assert judged(storm, budget).outcome is INCONCLUSIVE


def test_a_failure_could_have_had_as_many_slow_samples_as_a_success(judged: Judged) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        for j in range(20):
            failure = "status 500" if j < 6 else None
            gaps = {} if failure else {"itl": [10 * MS] * 60}
            recorder.request("steady", "chat", {"send_lag": MS}, series=gaps, failure=failure)
        load = recorder.load("steady")
        load.planned, load.sent, load.finished, load.failed = 20, 20, 20, 6

    assert judged(fill, "chat.itl p95 < 100ms").outcome is INCONCLUSIVE


def test_failures_in_a_window_are_not_forgotten(judged: Judged) -> None:
    budget = "chat.ttft p95 < 800ms over 10s"
    assert judged(replies([100 * MS] * 6000), budget).outcome is PASS
    assert judged(replies([100 * MS] * 6000, failed=10), budget).outcome is INCONCLUSIVE


def test_a_cost_that_is_known_of_some_executions_only_is_not_passed(judged: Judged) -> None:
    budget = "chat.cost mean < $1"
    known = replies([1000] * 1200, metric="cost")
    assert judged(known, budget).outcome is PASS
    some = together(known, replies([100 * MS] * 600), failed=0, at=())
    assert judged(some, budget).outcome is INCONCLUSIVE


def test_failures_never_soften_a_fail(judged: Judged) -> None:
    assert judged(replies(slow(900, 100), failed=100), P99).outcome is FAIL


# --- a generator that was not fit ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "load", "run", "says"),
    [
        ("a slow send lag", {"lag": 50 * MS}, {}, "send lag, p99 50 ms, must be < 40 ms"),
        ("a rate reached by 80 %", {"sent": 13}, {}, "planned rate reached"),
        ("a dropped arrival", {"dropped": 1}, {}, "arrivals never sent 60, must be 0"),
        ("cut off requests", {"cut_off": 5}, {}, "cut off by the end of the run"),
        ("a busy processor", {}, {"cpu": 0.95}, "generator CPU, p95 95 %, must be < 85 %"),
        ("a crash", {}, {"status": "crashed"}, "the run ended by itself crashed"),
        ("a run that never ended", {}, {"status": "running"}, "never ended"),
        ("a lost report", {}, {"lost_reports": 1}, "lost records 1 worker report, must be none"),
    ],
)
@pytest.mark.parametrize(("over", "as_measured"), [(0, PASS), (7, INCONCLUSIVE)])
def test_an_unfit_measurement_makes_what_is_not_broken_invalid(
    judged: Judged,
    what: str,
    load: dict[str, int],
    run: dict[str, Any],
    says: str,
    over: int,
    as_measured: Outcome,
) -> None:
    assert judged(replies(slow(1000, over)), P99).outcome is as_measured
    verdict = judged(replies(slow(1000, over), **load), P99, **run)
    assert (verdict.outcome, verdict.exit_code) == (INVALID, 5), what
    assert says in plain(only(verdict).reason)
    assert "cannot be judged" in only(verdict).sentence


@pytest.mark.parametrize(
    ("what", "load", "run", "outcome"),
    [
        ("a missed rate while users were busy", {"sent": 13, "waited": 5}, {}, FAIL),
        ("arrivals dropped while users were busy", {"dropped": 1, "waited": 5}, {}, FAIL),
        ("requests cut off", {"cut_off": 5}, {}, FAIL),
        ("a missed rate while users were free", {"sent": 13}, {}, INVALID),
        ("arrivals dropped while users were free", {"dropped": 1}, {}, INVALID),
        ("a slow send lag", {"lag": 50 * MS, "waited": 5}, {}, INVALID),
        ("a busy processor", {"waited": 5}, {"cpu": 0.95}, INVALID),
        ("a crash", {"waited": 5}, {"status": "crashed"}, INVALID),
    ],
)
def test_a_broken_budget_stands_only_where_the_target_caused_the_unfitness(
    judged: Judged, what: str, load: dict[str, int], run: dict[str, Any], outcome: Outcome
) -> None:
    verdict = judged(replies(slow(1000, 400), **load), P99, **run)
    assert verdict.outcome is outcome, what


def test_a_missing_histogram_invalidates(save_run: SaveRun) -> None:
    recording = save_run(replies(slow(1000, 0)), budgets=[P99], **LONG)
    log = recording.folder / "latency.hlog"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if not line.startswith("Tag=steady:chat.ttft,7")))
    verdict = judge(load_recording(recording.folder), [parse_budget(P99)])
    assert (verdict.outcome, only(verdict).n) == (INVALID, 983)


# --- stages ----------------------------------------------------------------------------------------

TWO = [stage("calm", 0, 60), stage("peak", 60, 120)]


def calm_then_peak(recorder: Recorder, i: int) -> None:
    if i < 60:
        replies([100 * MS] * 1000, where="calm")(recorder, i)
    else:
        replies([900 * MS] * 1000, where="peak")(recorder, i - 60)


def test_each_recorded_stage_is_judged_by_itself(judged: Judged) -> None:
    verdict = judged(calm_then_peak, P99, stages=TWO, intervals=120)
    assert [(b.stage, b.outcome, b.n) for b in verdict.budgets] == [
        ("peak", FAIL, 1000),
        ("calm", PASS, 1000),
    ]


@pytest.mark.parametrize(("name", "outcome"), [("calm", PASS), ("peak", FAIL)])
def test_a_budget_in_a_stage_is_judged_there_only(
    judged: Judged, name: str, outcome: Outcome
) -> None:
    verdict = judged(calm_then_peak, f"{P99} in {name}", stages=TWO, intervals=120)
    assert [(b.stage, b.outcome) for b in verdict.budgets] == [(name, outcome)]


def test_an_unfit_stage_leaves_the_other_ones_verdict_alone(judged: Judged) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        lag, where = (MS, "calm") if i < 60 else (50 * MS, "peak")
        replies([100 * MS] * 1000, where=where, lag=lag)(recorder, i % 60)

    verdict = judged(fill, P99, stages=TWO, intervals=120)
    assert {b.stage: b.outcome for b in verdict.budgets} == {"calm": PASS, "peak": INVALID}


def test_a_warm_up_is_never_judged(judged: Judged) -> None:
    stages = [stage("warmup", 0, 60, record=False), stage("steady", 60, 120)]

    def fill(recorder: Recorder, i: int) -> None:
        where, value = ("warmup", 5 * S) if i < 60 else ("steady", 100 * MS)
        replies([value] * 1000, where=where, failed=0 if i >= 60 else 500)(recorder, i % 60)

    verdict = judged(fill, P99, "chat.error_rate < 1%", stages=stages, intervals=120)
    assert verdict.outcome is PASS
    assert {b.stage for b in verdict.budgets} == {"steady"}


def test_a_budget_in_the_warm_up_is_no_pass(judged: Judged) -> None:
    stages = [stage("warmup", 0, 10, record=False), stage("steady", 10, 20)]
    verdict = judged(replies([MS] * 1000), f"{P99} in warmup", stages=stages)
    assert verdict.outcome is INVALID
    assert only(verdict).outcome is NO_DATA


# --- the whole -------------------------------------------------------------------------------------

FAILS, UNSURE, PASSES = "chat.ttft p50 < 50ms", "chat.ttft p99.9 < 2s", "chat.ttft p95 < 2s"
UNSEEN = "chat.itl p99 < 1s"


@pytest.mark.parametrize(
    ("texts", "outcome", "code"),
    [
        ([PASSES], PASS, 0),
        ([PASSES, UNSURE], INCONCLUSIVE, 4),
        ([PASSES, UNSURE, UNSEEN], INVALID, 5),
        ([PASSES, UNSURE, UNSEEN, FAILS], FAIL, 3),
        ([UNSEEN, FAILS], FAIL, 3),
        ([UNSEEN], INVALID, 5),
    ],
)
def test_the_worst_budget_decides_the_run(
    judged: Judged, texts: list[str], outcome: Outcome, code: int
) -> None:
    verdict = judged(replies([100 * MS] * 1000), *texts)
    assert (verdict.outcome, verdict.exit_code) == (outcome, code)


def test_a_fail_outranks_an_invalid_stage_and_that_an_inconclusive_one(judged: Judged) -> None:
    stages = [stage("calm", 0, 60), stage("peak", 60, 120), stage("late", 120, 180)]

    def fill(recorder: Recorder, i: int) -> None:
        where, over, lag = [("calm", 7, MS), ("peak", 0, 50 * MS), ("late", 500, MS)][i // 60]
        replies(slow(1000, over), where=where, lag=lag)(recorder, i % 60)

    verdict = judged(fill, P99, stages=stages, intervals=180)
    assert [b.outcome for b in verdict.budgets] == [FAIL, INVALID, INCONCLUSIVE]
    assert verdict.outcome is FAIL
    less = judged(fill, P99, stages=stages[:2], intervals=120)
    assert less.outcome is INVALID


def test_budgets_stand_worst_first_and_then_by_the_share_of_their_limit(judged: Judged) -> None:
    texts = [PASSES, "chat.ttft p50 < 80ms", UNSURE, "chat.ttft p50 < 110ms", FAILS, UNSEEN]
    verdict = judged(replies([100 * MS] * 1000), *texts)
    assert [b.budget.text for b in verdict.budgets] == [
        FAILS,
        "chat.ttft p50 < 80ms",
        UNSEEN,
        UNSURE,
        "chat.ttft p50 < 110ms",
        PASSES,
    ]
    assert list(verdict.tallies().items()) == [
        (FAIL, 2),
        (NO_DATA, 1),
        (INCONCLUSIVE, 1),
        (PASS, 2),
    ]
    assert verdict.budgets[0].used == pytest.approx(2, rel=1e-3)


def test_judging_is_pure_and_gives_the_same_verdict_again(save_run: SaveRun) -> None:
    recording = save_run(replies(slow(1000, 3)), budgets=[P99])
    before = {p.name: p.read_bytes() for p in recording.folder.iterdir()}
    first = judge(recording, [parse_budget(P99)])
    again = judge(load_recording(recording.folder), [parse_budget(P99)])
    assert first == again
    assert {p.name: p.read_bytes() for p in recording.folder.iterdir()} == before


def test_a_run_without_budgets_is_measured_and_passes_only_if_fit(judged: Judged) -> None:
    fit = judged(replies([100 * MS] * 100))
    assert (fit.outcome, fit.budgets) == (PASS, ())
    assert "only measured" in fit.sentence
    assert judged(replies([100 * MS] * 100, lag=50 * MS)).outcome is INVALID


# --- words -----------------------------------------------------------------------------------------


def test_a_fails_sentence_and_evidence_hold_its_numbers(judged: Judged) -> None:
    verdict = judged(replies(slow(1000, 30, late=1152 * MS)), P99)
    found = only(verdict)
    assert plain(found.sentence) == "chat.ttft p99 was 1,152 ms in steady, 1.44× its 800 ms limit."
    assert verdict.sentence == found.sentence
    evidence = plain(found.evidence)
    for part in (
        "FAIL chat.ttft p99 < 800ms",
        "observed 1,152 ms",
        "at 95 % between",
        "n=1,000",
        "30 beyond the limit, 10 allowed",
    ):
        assert part in evidence


def test_a_passs_sentence_says_how_much_of_the_limit_was_used(judged: Judged) -> None:
    verdict = judged(replies([400 * MS] * 1000), P99, "chat.ttft p50 < 4s")
    sentences = [plain(b.sentence) for b in verdict.budgets]
    assert sentences[0] == "chat.ttft p99 was 400 ms in steady, 50 % of its 800 ms limit."
    assert plain(verdict.sentence) == "All 2 budgets pass. The closest uses 50 % of its limit."


def test_a_lower_limits_sentence_says_what_it_must_be(judged: Judged) -> None:
    found = only(judged(replies([100 * MS] * 1000, failed=50), "run.goodput > 90%"))
    assert plain(found.sentence) == "run.goodput was 95.2 % in steady, must be at least 90 %."
    assert found.used == pytest.approx((50 / 1050) / 0.1)


def test_an_inconclusive_runs_sentence_counts_what_is_open(judged: Judged) -> None:
    verdict = judged(replies([100 * MS] * 1000), PASSES, UNSURE)
    assert verdict.sentence == "1 of 2 budgets cannot be decided yet."
    assert "needs about 1,995 more samples (120 s at this rate), has 1,000" in plain(verdict.detail)


def test_several_fails_are_all_named(judged: Judged) -> None:
    verdict = judged(replies([900 * MS] * 1000), P99, "chat.ttft p95 < 300ms")
    assert verdict.sentence.startswith("chat.ttft p95")
    assert verdict.detail.startswith("Also over: chat.ttft p99")


# --- every window, several runs, several budgets ----------------------------------------------------


def spell(recorder: Recorder, i: int) -> None:
    """Sixty seconds of 100 ms, but for one spell of ten seconds."""
    late = 18 if 20 <= i < 30 else 0
    replies(slow(100, late), intervals=1)(recorder, 0)


def test_a_budget_of_every_window_finds_the_spell_that_the_whole_hides(judged: Judged) -> None:
    whole, windows = judged(
        spell, "chat.ttft p95 < 800ms", "chat.ttft p95 < 800ms over 10s"
    ).budgets
    if whole.budget.over_ns:
        whole, windows = windows, whole
    assert whole.outcome is not FAIL
    assert windows.outcome is FAIL
    assert plain(windows.reason) == "1 of 6 windows of 10s broke it, 1 beyond chance"
    assert windows.observed == pytest.approx(900 * MS, rel=1e-3)
    assert windows.used == pytest.approx(900 / 800, rel=1e-3)


def test_windows_that_all_hold_pass_and_thin_ones_are_not_decided(judged: Judged) -> None:
    held = only(judged(replies(slow(6000, 60)), "chat.ttft p95 < 800ms over 10s"))
    assert (held.outcome, plain(held.reason)) == (PASS, "0 of 6 windows of 10s broke it")
    thin = only(judged(replies(slow(300, 0)), "chat.ttft p99 < 800ms over 10s"))
    assert thin.outcome is INCONCLUSIVE
    assert "fewer than the 100 samples that p99 needs" in plain(thin.reason)


@pytest.mark.parametrize(("storm", "outcome"), [(0, PASS), (5, FAIL)])
def test_an_error_rate_may_have_to_hold_in_every_window(
    judged: Judged, storm: int, outcome: Outcome
) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        replies([100 * MS] * 100, failed=storm if 30 <= i < 40 else 0, intervals=1)(recorder, 0)

    assert judged(fill, "chat.error_rate < 1% over 10s").outcome is outcome


def test_what_ends_in_the_drain_belongs_to_the_last_window(judged: Judged) -> None:
    """The target stands still for the stage's last 10 s, and all that waited ends after it."""

    def fill(recorder: Recorder, i: int) -> None:
        due = 100 if i < 60 else 0
        ended = [100 * MS] * 100 if i < 50 else [9 * S] * 1000 if i == 64 else []
        replies(ended, intervals=1, planned=due, sent=due)(recorder, 0)

    found = only(judged(fill, "chat.ttft p95 < 800ms over 10s", intervals=65))
    assert found.outcome is FAIL
    assert found.observed == pytest.approx(9 * S, rel=1e-3)


@pytest.mark.parametrize(("failed", "outcome"), [(0, PASS), (1, FAIL)])
@pytest.mark.parametrize("text", ["chat.error_rate <= 0%", "chat.goodput >= 100%"])
def test_where_nothing_is_allowed_windows_change_nothing(
    judged: Judged, text: str, failed: int, outcome: Outcome
) -> None:
    found = only(judged(replies([100 * MS] * 1000, failed=failed), f"{text} over 10s"))
    assert (found.outcome, found.over, found.fact) == (outcome, failed, True)


def test_windows_that_hold_in_a_run_that_comes_in_spells_say_what_the_whole_lacks(
    judged: Judged,
) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        replies(slow(100, 4 if i % 30 < 10 else 0), intervals=1)(recorder, 0)

    found = only(judged(fill, "chat.ttft p95 < 800ms over 10s"))
    assert found.outcome is INCONCLUSIVE
    assert "0 of 6 windows of 10s broke it, but of the whole: it " in plain(found.reason)


def repeated(*late: int) -> tuple[Fill, dict[str, Any]]:
    """Runs of 3,000 replies, each with its own number of late ones."""
    names = ["steady", *(f"steady~{n}" for n in range(2, len(late) + 1))]
    stages = [
        stage(name, i * LENGTH_S, (i + 1) * LENGTH_S, repeat=i + 1) for i, name in enumerate(names)
    ]

    def fill(recorder: Recorder, i: int) -> None:
        run, second = divmod(i, LENGTH_S)
        replies(slow(3000, late[run]), where=names[run])(recorder, second)

    return fill, {"stages": stages, "intervals": len(late) * LENGTH_S}


def test_repetitions_are_judged_together(judged: Judged) -> None:
    fill, options = repeated(10, 12, 8)
    found = only(judged(fill, P99, **options))
    assert (found.outcome, found.stage, found.n, found.over) == (PASS, "steady", 9000, 30)


@pytest.mark.parametrize("text", [P99, "chat.error_rate < 1%"])
def test_windows_are_those_of_each_repetition(judged: Judged, text: str) -> None:
    """Of 60 s each: one window of 40 s, whose last third is left over, and not half of another."""
    fill, options = repeated(0, 0, 0)
    found = only(judged(fill, f"{text} over 40s", **options))
    assert (found.outcome, plain(found.reason)) == (PASS, "0 of 3 windows of 40s broke it")


def test_runs_that_disagree_are_less_evidence_than_their_samples(judged: Judged) -> None:
    fill, options = repeated(0, 0, 110)
    found = only(judged(fill, P99, **options))
    assert found.outcome is INCONCLUSIVE
    assert found.effective_n is not None
    assert found.effective_n < 900


@pytest.mark.parametrize(("holm", "outcome"), [(False, FAIL), (True, INCONCLUSIVE)])
def test_by_holms_procedure_a_fail_must_stand_among_all_budgets(
    judged: Judged, *, holm: bool, outcome: Outcome
) -> None:
    """One budget of twenty that just fails by itself is what chance alone would bring."""
    texts = [P99, *(f"chat.ttft p50 < {limit}ms" for limit in range(800, 819))]
    verdict = judged(replies(slow(3000, 55)), *texts, holm=holm)
    (found,) = (v for v in verdict.budgets if v.budget.text == P99)
    assert found.outcome is outcome
    assert ("not among 20 budgets together" in (found.reason or "")) is holm


def test_by_holms_procedure_a_clear_fail_stands(judged: Judged) -> None:
    verdict = judged(replies(slow(3000, 900)), P99, "chat.ttft p50 < 2s", holm=True)
    assert verdict.outcome is FAIL
