"""A target that stops for good is a FAIL that says when; one that comes back is judged by bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from conftest import stage

from harness import stats
from harness.budget import parse_budget
from harness.recorder import Recorder, Recording
from harness.verdict import Outcome, Verdict, judge

MS = 1_000_000
LENGTH_S = 60
ERRORS = "chat.error_rate < 5%"
P95 = "chat.ttft p95 < 800ms"
CLOSED: dict[str, Any] = {"load": "10 users", "planned_rate_per_s": None}
SaveRun = Callable[..., Recording]
Fill = Callable[[Recorder, int], None]


def load_of(
    kinds: Mapping[int, str | None], *, rate: int = 40, where: str = "steady", users: int = 10
) -> Fill:
    """So many requests an interval; `kinds` says from which one on they fail, and how."""

    def fill(recorder: Recorder, i: int) -> None:
        kind = kinds[max((t for t in kinds if t <= i), default=0)] if kinds else None
        answered = recorder.load(where)
        for _ in range(rate):
            if kind is None:
                recorder.request(where, "chat", {"ttft": 100 * MS, "send_lag": MS})
            else:
                recorder.request(where, "chat", {}, failure=kind)
        answered.planned = answered.sent = answered.finished = rate
        answered.failed = 0 if kind is None else rate
        answered.in_flight = users

    return fill


@pytest.fixture
def judged(save_run: SaveRun) -> Callable[..., Verdict]:
    def run(fill: Fill, *texts: str, **options: Any) -> Verdict:
        more = {"stages": [stage(end_s=LENGTH_S)], "intervals": LENGTH_S} | options
        recording = save_run(fill, budgets=texts or [ERRORS], **more)
        return judge(recording, [parse_budget(text) for text in texts or [ERRORS]])

    return run


Judged = Callable[..., Verdict]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("connect", "the target stopped answering at 31 s"),
        ("timeout", "the target stopped answering at 31 s"),
        ("cut off", "the target stopped answering at 31 s"),
        ("reset", "the target stopped answering at 31 s"),
        ("status 503", "nothing but failures from 31 s on, mostly status 503"),
        ("malformed event", "nothing but failures from 31 s on, mostly malformed event"),
    ],
)
def test_a_target_that_is_gone_fails_and_says_since_when(
    judged: Judged, kind: str, said: str
) -> None:
    verdict = judged(load_of({0: None, 31: kind}))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.sentence.startswith(f"{said}: chat.error_rate was ")
    (budget,) = verdict.budgets
    assert (budget.reason, budget.low, budget.high) == (
        f"{said}: none of the last 1,160 requests succeeded",
        None,
        None,
    )


@pytest.mark.parametrize("budget", [ERRORS, "chat.goodput > 95%", "run.error_rate < 20%"])
def test_every_budget_of_failures_that_is_far_broken_fails(judged: Judged, budget: str) -> None:
    assert judged(load_of({0: None, 31: "connect"}), budget).outcome is Outcome.FAIL


def test_a_limit_that_is_not_far_broken_is_left_to_its_bounds(judged: Judged) -> None:
    found = judged(load_of({0: None, 31: "connect"}), "chat.error_rate < 40%")
    assert found.outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("end", [45, 58, 59])
def test_a_target_that_came_back_is_judged_by_its_bounds(judged: Judged, end: int) -> None:
    verdict = judged(load_of({0: None, 31: "connect", end: None}))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "stopped" not in verdict.sentence


def test_a_target_that_came_back_in_a_later_stage_had_a_storm(judged: Judged) -> None:
    stages = [stage("first", 0, 60), stage("second", 60, 120)]

    def fill(recorder: Recorder, i: int) -> None:
        where = "first" if i < 60 else "second"
        load_of({0: None, 31: "connect", 60: None}, where=where)(recorder, i)

    first, second = judged(fill, ERRORS, stages=stages, intervals=120).budgets
    assert (first.stage, first.outcome) == ("first", Outcome.INCONCLUSIVE)
    assert second.outcome is Outcome.PASS


def test_repetitions_are_one_load_and_the_last_must_not_succeed(judged: Judged) -> None:
    def play(kinds: Mapping[int, str | None]) -> Outcome:
        def fill(recorder: Recorder, i: int) -> None:
            load_of(kinds, where="steady" if i < 60 else "steady~2")(recorder, i)

        stages = [stage("steady", 0, 60), stage("steady~2", 60, 120, repeat=2)]
        return judged(fill, ERRORS, stages=stages, intervals=120).outcome

    assert play({0: None, 40: "connect"}) is Outcome.FAIL
    assert play({0: None, 40: "connect", 60: None}) is not Outcome.FAIL


def test_an_earlier_spell_as_long_shows_that_it_may_come_back(judged: Judged) -> None:
    verdict = judged(load_of({0: None, 10: "connect", 20: None, 40: "connect"}))
    assert "stopped" not in verdict.sentence


def test_few_failures_are_no_outage(judged: Judged) -> None:
    assert judged(load_of({0: None, 57: "connect"}, rate=4)).outcome is not Outcome.FAIL


def test_a_load_that_was_ended_early_is_not_judged_by_its_end(judged: Judged) -> None:
    verdict = judged(load_of({0: None, 31: "connect"}), status="interrupted")
    assert verdict.outcome is not Outcome.FAIL


@pytest.mark.parametrize("kind", ["exception ValueError", "generator limit EMFILE"])
def test_what_is_not_the_targets_failure_is_no_outage_of_it(judged: Judged, kind: str) -> None:
    verdict = judged(load_of({0: None, 31: kind}))
    assert "stopped" not in verdict.sentence
    assert "nothing but" not in verdict.sentence


@pytest.mark.parametrize("users", [1, 4, 10])
def test_users_that_all_hang_until_the_end_are_an_outage_though_they_are_few(
    judged: Judged, users: int
) -> None:
    """Each fails once, 1 % of all requests at most: but half of the time nothing succeeded."""

    def fill(recorder: Recorder, i: int) -> None:
        if i < 30:
            load_of({}, users=users)(recorder, i)
        elif i == LENGTH_S:
            load_of({0: "cut off"}, rate=users, users=users)(recorder, i)

    options = {"stages": [stage(end_s=LENGTH_S, **CLOSED)], "intervals": LENGTH_S + 1}
    errors, latency = judged(fill, ERRORS, P95, **options).budgets
    assert (errors.outcome, errors.outage) == (
        Outcome.FAIL,
        "the target stopped answering at 30 s",
    )
    assert latency.outcome is Outcome.INCONCLUSIVE
    assert "stopped answering" in (latency.reason or "")


def test_a_user_that_is_slow_at_the_end_has_not_stopped(judged: Judged) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        if i < 48:
            load_of({}, users=1)(recorder, i)
        elif i == LENGTH_S:
            load_of({0: "cut off"}, rate=1, users=1)(recorder, i)

    options = {"stages": [stage(end_s=LENGTH_S, **CLOSED)], "intervals": LENGTH_S + 1}
    assert judged(fill, ERRORS, **options).budgets[0].outage is None


def test_without_a_budget_of_failures_a_quantile_that_counts_them_fails(judged: Judged) -> None:
    verdict = judged(load_of({0: None, 31: "connect"}), P95)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.sentence.startswith("the target stopped answering at 31 s: chat.ttft p95 was ")


def test_independent_failures_near_the_limit_make_no_outage() -> None:
    """None in 4,000 runs, whatever the share: the rule wants a run of a million."""
    rng = np.random.default_rng(5)
    for share in (0.01, 0.05, 0.2, 0.45):
        for rate in (1, 20):
            total = np.full(60, rate)
            for _ in range(500):
                failed = rng.binomial(total, share)
                outage = stats.find_outage(total, failed)
                n, k = int(total.sum()), int(failed.sum())
                assert outage is None or not outage.breaks(share, k, n)


@pytest.mark.parametrize("storm", [2, 10, 40])
def test_storms_of_a_target_within_its_limit_seldom_look_like_an_outage(storm: int) -> None:
    """Total failure for some seconds, for 4 % of the time: a run may end in one, at most as often."""
    rng = np.random.default_rng(storm)
    limit, share, length, runs, wrong = 0.05, 0.04, 240, 1000, 0
    for _ in range(runs):
        failed = np.zeros(length + 2 * storm, dtype=bool)
        for start in np.flatnonzero(rng.random(len(failed)) < share / storm):
            failed[start : start + storm] = True
        total = np.full(length, 10)
        seen = np.where(failed[storm : storm + length], total, 0)
        outage = stats.find_outage(total, seen)
        wrong += outage is not None and outage.breaks(limit, int(seen.sum()), int(total.sum()))
    assert wrong / runs <= limit


def test_what_stopped_is_found_where_it_stopped() -> None:
    total = np.full(10, 5)
    failed = np.array([5, 5, 0, 0, 4, 0, 5, 5, 5, 5])
    found = stats.find_outage(total, failed)
    assert found == stats.Outage(start=6, failed=20, windows=10, earlier=2)
    total[:2] = failed[:2] = 0  # nothing had ended yet: no spell
    found = stats.find_outage(total, failed)
    assert found == stats.Outage(start=6, failed=20, windows=10, earlier=0)
    assert stats.find_outage(total, np.zeros(10, dtype=np.int64)) is None
    assert stats.find_outage(total, total) is None  # it never answered: nothing stopped


# --- failures that no busy generator causes --------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("connect", Outcome.FAIL), ("status 503", Outcome.FAIL), ("timeout", Outcome.INVALID)],
)
def test_a_busy_generator_voids_no_failures_that_it_cannot_have_caused(
    judged: Judged, kind: str, outcome: Outcome
) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        load_of({0: kind}, rate=20)(recorder, i)
        load_of({}, rate=20)(recorder, i)

    errors, latency = judged(fill, ERRORS, P95, cpu=0.99).budgets
    assert errors.outcome is outcome
    assert latency.outcome is Outcome.INVALID


@pytest.mark.parametrize(
    ("kind", "outcome"), [("connect", Outcome.FAIL), ("timeout", Outcome.INVALID)]
)
def test_nor_an_outage_that_it_cannot_have_caused(
    judged: Judged, kind: str, outcome: Outcome
) -> None:
    assert judged(load_of({0: None, 31: kind}), cpu=0.99).outcome is outcome


def test_a_busy_generator_still_voids_a_pass(judged: Judged) -> None:
    assert judged(load_of({}), cpu=0.99).outcome is Outcome.INVALID
