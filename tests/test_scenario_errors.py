"""A scenario whose own code raises did not make the requests that the plan says, and is told so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from conftest import stage
from load import STAGE, do, kinds, make_run

from harness.budget import parse_budget
from harness.endpoint import Settings, running
from harness.errors import RequestFailed
from harness.health import Check, assess
from harness.recorder import (
    Load,
    Recorder,
    Recording,
    Report,
    Requests,
    RunFolder,
    load_recording,
    merge_reports,
)
from harness.report.facts.findings import findings
from harness.report.words import trust
from harness.swarm.user import step
from harness.verdict import Outcome, judge

MS = 1_000_000
PREDICT = {"instances": [1]}
SaveRun = Callable[..., Recording]
Task = Callable[[Any], None]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running(Settings(predict_ms=1)) as url:
        yield url


def before(user: Any) -> None:
    {}["before"]
    user.predict(PREDICT)


def after(user: Any) -> None:
    user.predict(PREDICT)
    {}["after"]


def inside(user: Any) -> None:
    with step("answer"):
        user.predict(PREDICT)
        {}["inside"]


def leaving(_user: Any) -> None:
    raise SystemExit(0)


def as_recorded(report: Report, path: Path) -> Recording:
    folder = RunFolder.create(path, {"interval_s": 1.0, "stages": [stage(end_s=1)]})
    folder.begin(0.0)
    folder.append(report)
    folder.close()
    folder.update(status="complete")
    return load_recording(path)


@pytest.mark.swarm
@pytest.mark.parametrize(
    ("task", "unsent", "said"),
    [
        (before, 1, "KeyError: 'before' (test_scenario_errors.py:"),
        (after, 0, "KeyError: 'after' (test_scenario_errors.py:"),
        (inside, 0, "KeyError: 'inside' (test_scenario_errors.py:"),
        (leaving, 1, "SystemExit: 0 (test_scenario_errors.py:"),
    ],
)
def test_an_exception_of_the_tasks_own_is_counted_and_the_first_is_kept(
    endpoint: str, task: Task, unsent: int, said: str
) -> None:
    seen = make_run(endpoint)
    assert not do(task, seen)
    do(before, seen)
    load = seen.report().load[STAGE]
    assert (load.raised, load.unsent) == (2, unsent + 1)
    assert str(seen.run.first_exception).startswith(said)


def wrong_reply(user: Any) -> None:
    user.predict(PREDICT)
    raise RequestFailed("invalid reply")


def wrong_status(user: Any) -> None:
    user.client.get("/nowhere").raise_for_status()


def too_slow(_user: Any) -> None:
    with gevent.Timeout(0.001):
        gevent.sleep(10)


def caused_by_the_target(_user: Any) -> None:
    try:
        raise RequestFailed("reset")
    except RequestFailed as error:
        raise RuntimeError("it went wrong") from error


def survived(user: Any) -> None:
    user.predict(PREDICT)
    with contextlib.suppress(KeyError), step("check"):
        {}["caught"]


@pytest.mark.swarm
@pytest.mark.parametrize(
    "task", [wrong_reply, wrong_status, too_slow, caused_by_the_target, survived]
)
def test_a_failure_of_the_target_or_one_that_is_caught_is_none_of_the_scenarios(
    endpoint: str, task: Task
) -> None:
    seen = make_run(endpoint)
    do(task, seen)
    assert seen.report().load.get(STAGE, Load()).raised == 0
    assert seen.run.first_exception is None


@pytest.mark.swarm
@pytest.mark.parametrize("task", [before, after, inside, wrong_reply, leaving])
def test_a_journey_that_failed_counts_once_among_the_root_steps(
    endpoint: str, task: Task, tmp_path: Path
) -> None:
    seen = make_run(endpoint)
    for _ in range(3):
        do(task, seen)
        do(lambda user: user.predict(PREDICT), seen)
    recording = as_recorded(seen.report(), tmp_path / "run")
    run = recording.requests(STAGE, "run")
    assert (run.n, run.n_failed, run.n_good) == (6, 3, 3)


@pytest.mark.swarm
def test_the_step_that_succeeded_before_keeps_its_success(endpoint: str, tmp_path: Path) -> None:
    seen = make_run(endpoint)
    do(after, seen)
    report = seen.report()
    recording = as_recorded(merge_reports([report, replace(report, journeys=[])]), tmp_path / "run")

    def ended(requests: Requests) -> tuple[int, int, int]:
        return requests.n, requests.n_failed, requests.n_good

    assert kinds(report, "after") == {"exception KeyError": 1}
    assert ended(recording.requests(STAGE, "predict")) == (2, 0, 2)
    assert ended(recording.requests(STAGE, "after")) == (2, 2, 0)
    assert ended(recording.requests(STAGE, "run")) == (2, 2, 0)


def test_a_failure_long_after_the_success_it_stands_for_makes_no_more_failures_than_requests(
    save_run: SaveRun,
) -> None:
    """The success ended 5 s before, in an interval of its own; in that of the failure is none."""

    def fill(recorder: Recorder, i: int) -> None:
        if i == 5:
            recorder.request("steady", "chat", {"ttft": MS})
        if i == 10:
            recorder.request("steady", "ask", {}, failure="exception KeyError")
            recorder.replace("steady", "ask", "chat", {"ttft": MS})

    run = save_run(fill).requests("steady", "run")
    assert (run.total.tolist(), run.failed.tolist(), run.good.tolist()) == ([1, 1], [0, 1], [1, 0])


def test_a_success_that_was_not_good_is_not_taken_from_the_good_ones(save_run: SaveRun) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        if i == 3:
            for ttft in (MS, 900 * MS):
                recorder.request("steady", "chat", {"ttft": ttft})
            recorder.request("steady", "ask", {}, failure="exception KeyError")
            recorder.replace("steady", "ask", "chat", {"ttft": 900 * MS})

    run = save_run(fill, budgets=["chat.ttft p99 < 500ms"]).requests("steady", "run")
    assert (run.n, run.n_failed, run.n_good) == (2, 1, 1)


def raising(times: int, *, unsent: bool = False) -> Callable[[Recorder, int], None]:
    """A thousand arrivals at 50/s; so many of them ended with an exception of the scenario's."""

    def fill(recorder: Recorder, i: int) -> None:
        for _ in range(50):
            recorder.request("steady", "chat", {"ttft": 100 * MS, "send_lag": MS})
        load = recorder.load("steady")
        load.planned = load.sent = load.finished = 50
        load.raised = times if i == 3 else 0
        load.unsent = load.raised if unsent else 0

    return fill


def check_of(recording: Recording) -> Check:
    (found,) = (c for c in assess(recording).checks if c.name == "Exceptions of the scenario")
    return found


@pytest.mark.parametrize(
    ("times", "ok", "measured", "outcome"),
    [
        (0, True, "0 of 1,000 arrivals (0 %)", Outcome.PASS),
        (10, True, "10 of 1,000 arrivals (1 %)", Outcome.PASS),
        (11, False, "11 of 1,000 arrivals (1.1 %)", Outcome.INVALID),
    ],
)
def test_more_than_one_in_a_hundred_voids_what_other_steps_showed(
    save_run: SaveRun, times: int, ok: bool, measured: str, outcome: Outcome
) -> None:
    recording = save_run(raising(times))
    check = check_of(recording)
    assert (check.ok, check.measured.replace("\u202f", " ")) == (ok, measured)
    assert "locust.log" in check.remedy
    assert judge(recording, [parse_budget("chat.ttft max < 400ms")]).outcome is outcome


def test_a_budget_that_fails_all_the_same_stands(save_run: SaveRun) -> None:
    verdict = judge(save_run(raising(500)), [parse_budget("chat.ttft max < 50ms")])
    assert verdict.outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("times", "says"),
    [
        (0, "1,000 of 1,000 sent, 0 dropped, send lag p99 1 ms"),
        (
            1,
            "999 of 1,000 sent, 0 dropped, 1 exception of the scenario, the first: KeyError: 'x', ",
        ),
        (30, "970 of 1,000 sent, 0 dropped, 30 exceptions of the scenario, the first: KeyError: "),
    ],
)
def test_the_trust_line_counts_them_and_only_what_was_sent_as_sent(
    save_run: SaveRun, times: int, says: str
) -> None:
    recording = save_run(raising(times, unsent=True), first_exception="KeyError: 'x'")
    verdict = judge(recording, [parse_budget("chat.ttft max < 400ms")])
    _, _, figures = trust(verdict, findings(recording, verdict, None))
    assert ", ".join(figures).replace("\u202f", " ").startswith(says)
