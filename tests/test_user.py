"""One user: tasks become journeys, steps nest, every failure is counted by its kind and only so."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import socket
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import gevent.pool
import httpx
import load
import pytest
from load import MS, STAGE, S, do, kinds, make_run, make_user, metrics
from locust import TaskSet, constant, tag, task
from locust.exception import InterruptTaskSet, RescheduleTask, RescheduleTaskImmediately, StopUser

from harness.endpoint import Settings, running
from harness.errors import RequestFailed, UserError
from harness.inputs import Input, Inputs
from harness.swarm.dispatch import Arrival
from harness.swarm.user import ModelUser, step
from harness.transport import sockets as sockets_module

pytestmark = pytest.mark.swarm

SUCCESS_ONLY = {"ttft", "ttfo", "itl", "tpot", "e2el", "service", "service_ttft", "output_tokens"}
PREDICT = {"instances": [1]}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running(Settings(ttft_ms=2, gap_ms=0.5, predict_ms=1, embed_ms=1, tokens=4)) as url:
        yield url


def with_fault(fault: str) -> dict[str, Any]:
    return {"headers": {"x-fault": fault}}


# --- failures -----------------------------------------------------------------------------------


def one_reply(data: bytes) -> Callable[[Any], None]:
    """A handler that answers each connection's request with these bytes and closes."""

    def handle(connection: Any) -> None:
        if load.request_of(connection):
            connection.sendall(data)

    return handle


def ndjson(connection: Any) -> None:
    while load.request_of(connection):
        connection.sendall(load.answer(b'{"message": "no stream here"}'))


def reset(connection: Any) -> None:
    load.request_of(connection)
    connection.sendall(load.STREAM_HEAD + load.event())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


STREAM = load.STREAM_HEAD + load.event("a") + load.event("b")
SERVED = {
    "status 429": one_reply(load.answer(b'{"error": "slow down"}', status="429 Too Many")),
    "status 500": one_reply(load.answer(b"oops", status="500 Oh")),
    "truncated stream, closed": one_reply(STREAM),
    "truncated stream, ended without a reason": one_reply(STREAM + load.END),
    "truncated stream, done before a token": one_reply(load.STREAM_HEAD + load.DONE + load.END),
    "empty reply": one_reply(
        load.STREAM_HEAD + load.event("", finish="stop") + load.DONE + load.END
    ),
    "malformed event": one_reply(STREAM + load.chunk(b"data: {no\n\n") + load.END),
    "error event": one_reply(STREAM + load.chunk(b'data: {"error": "gone"}\n\n') + load.END),
    "not a stream": one_reply(load.answer(b"{}")),
    "reset": reset,
}


@pytest.mark.parametrize("what", SERVED)
def test_a_failed_chat_is_counted_by_its_kind_and_leaves_no_success_sample(what: str) -> None:
    with load.serving(SERVED[what]) as url:
        seen = make_run(url)
        assert do(lambda user: user.chat("why"), seen) is False
    report = seen.report()
    assert kinds(report, "chat") == {what.partition(",")[0]: 1}
    assert report.finished[STAGE, "chat"].total == 1
    assert not metrics(report, "chat") & SUCCESS_ONLY
    assert report.measured[STAGE, "chat", "e2el_all"].histogram.n == 1
    assert str(seen.run.first_failure).split(what.partition(",")[0])[:2][0] == ""
    assert ": " + what.partition(",")[0] not in str(seen.run.first_failure)


CUT = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{"


@pytest.mark.parametrize(
    ("what", "serve"),
    [
        ("truncated body", one_reply(CUT % b"200 OK")),
        ("status 503", one_reply(CUT % b"503 Busy")),
        ("reset", reset),
    ],
)
def test_a_body_that_was_cut_off_is_no_reset_unless_it_was_one(
    what: str, serve: Callable[[Any], None]
) -> None:
    with load.serving(serve) as url:
        seen = make_run(url)
        assert do(lambda user: user.predict({"x": 1}), seen) is False
    assert kinds(seen.report(), "predict") == {what: 1}


def test_a_refused_connection_is_a_failure_to_connect() -> None:
    seen = make_run("http://127.0.0.1:9")
    do(lambda user: user.chat("why"), seen)
    assert kinds(seen.report(), "chat") == {"connect": 1}


def test_a_reply_of_another_shape_is_invalid(endpoint: str) -> None:
    for body in (b"[]", b"not JSON", b'{"choices": []}'):
        with load.serving(one_reply(load.answer(body))) as url:
            seen = make_run(url)
            do(lambda user: user.chat("why", stream=False), seen)
        assert kinds(seen.report(), "chat") == {"invalid reply": 1}


@pytest.mark.parametrize("phase", ["head", "silence", "trickle", "body"])
def test_a_reply_that_takes_longer_than_the_timeout_is_one_and_censored_at_it(phase: str) -> None:
    def slow(connection: Any) -> None:
        load.request_of(connection)
        if phase == "body":
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")
        elif phase != "head":
            connection.sendall(load.STREAM_HEAD)
        while phase == "trickle":
            connection.sendall(load.event())
            gevent.sleep(0.005)
        gevent.sleep(60)

    with load.serving(slow) as url:
        seen = make_run(url, timeout_s=0.15)
        ahead = time.monotonic_ns() + 10 * MS  # as if the timer had gone off too early
        do(lambda user: user.chat("why", stream=phase != "body"), seen, planned_ns=ahead)
        report = seen.report()
        assert kinds(report, "chat") == {"timeout": 1}
        assert not metrics(report, "chat") & SUCCESS_ONLY
        least = report.measured[STAGE, "chat", "e2el_all"].histogram.min
        assert least is not None
        assert least >= 150 * MS * 0.99  # a histogram keeps three figures
        assert seen.run.transport.poller.watched == 0


def test_a_timeout_is_counted_from_the_planned_arrival() -> None:
    def stops(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(STREAM)
        gevent.sleep(60)

    with load.serving(stops) as url:
        seen = make_run(url, timeout_s=0.3)
        planned = time.monotonic_ns() - S
        do(lambda user: user.chat("why"), seen, planned_ns=planned)
        least = seen.report().measured[STAGE, "chat", "e2el_all"].histogram.min
        assert least is not None
        assert least >= 1.29 * S


def test_a_request_of_the_scenarios_own_has_a_limit_for_the_whole_reply() -> None:
    def trickle(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.STREAM_HEAD)
        while True:
            connection.sendall(load.event())
            gevent.sleep(0.005)

    with load.serving(trickle) as url:
        seen = make_run(url, timeout_s=0.1)
        do(lambda user: user.client.get("/forever"), seen)
        assert kinds(seen.report(), "GET_forever") == {"timeout": 1}


# --- what a task raises -------------------------------------------------------------------------


def test_an_exception_in_a_step_fails_that_step_and_those_around_it() -> None:
    def work(_user: Any) -> None:
        with step("fine"):
            pass
        with step("outer"), step("inner"):
            raise ValueError("x")

    seen = make_run()
    assert do(work, seen) is False
    report = seen.report()
    assert {name: dict(o.kinds) for (_, name), o in report.finished.items()} == {
        "fine": {},
        "outer/inner": {"exception ValueError": 1},
        "outer": {"exception ValueError": 1},
    }


def test_an_exception_outside_of_any_step_fails_a_step_named_after_the_task() -> None:
    def work(_user: Any) -> None:
        with step("fine"):
            pass
        raise ValueError("x")

    seen = make_run()
    do(work, seen)
    report = seen.report()
    assert kinds(report, "work") == {"exception ValueError": 1}
    assert kinds(report, "fine") == {}


def test_a_caught_failure_does_not_hide_a_later_exception() -> None:
    def work(user: Any) -> None:
        with contextlib.suppress(RequestFailed, httpx.HTTPError):
            user.chat("why")
        raise ValueError("x")

    seen = make_run()
    do(work, seen)
    report = seen.report()
    assert kinds(report, "chat") == {"connect": 1}
    assert kinds(report, "work") == {"exception ValueError": 1}


def test_an_exception_that_follows_from_a_failed_step_is_not_counted_again() -> None:
    def again(user: Any) -> None:
        try:
            user.chat("why")
        except httpx.HTTPError as error:
            raise RuntimeError("the scenario's own") from error

    def marked(_user: Any) -> None:
        with step("check") as this:
            this.fail("invalid reply")
            raise AssertionError

    def from_itself(user: Any) -> None:
        try:
            user.chat("why")
        except httpx.HTTPError as error:
            raise error from error

    for work, name in ((again, "chat"), (marked, "check"), (from_itself, "chat")):
        seen = make_run()
        do(work, seen)
        assert {key[1] for key in seen.report().finished} == {name}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SystemExit(1), "exception SystemExit"),
        (gevent.Timeout(), "timeout"),
        (RequestFailed("invalid reply", "no"), "invalid reply"),
        (BaseException(), "exception BaseException"),
    ],
    ids=repr,
)
def test_whatever_a_task_raises_is_a_failure_and_the_user_lives_on(
    error: BaseException, kind: str
) -> None:
    def work(_user: Any) -> None:
        raise error

    seen = make_run()
    assert do(work, seen) is False
    assert kinds(seen.report(), "work") == {kind: 1}


@pytest.mark.parametrize(
    "signal", [StopUser, RescheduleTask, RescheduleTaskImmediately, InterruptTaskSet]
)
def test_locusts_control_flow_ends_a_task_without_failing_it(signal: type[Exception]) -> None:
    def work(_user: Any) -> None:
        with step("part"):
            raise signal

    seen = make_run()
    assert do(work, seen) is True
    report = seen.report()
    assert report.finished[STAGE, "part"].kinds == {}
    assert {key[1] for key in report.finished} == {"part"}


def test_a_killed_task_is_cut_off_and_its_parallel_steps_too() -> None:
    entered = gevent.event.Event()

    def wait(name: str) -> None:
        with step(name):
            entered.set()
            gevent.sleep(60)

    def work(_user: Any) -> None:
        with step("outer"):
            gevent.joinall([gevent.spawn(wait, "a"), gevent.spawn(wait, "b")])

    seen = make_run()
    running_task = gevent.spawn(do, work, seen)
    entered.wait()
    gevent.sleep(0)
    running_task.kill()
    report = seen.report()
    assert {name: dict(o.kinds) for (_, name), o in report.finished.items()} == {
        name: {"cut off": 1} for name in ("outer", "outer/a", "outer/b")
    }
    assert {len(s.values) for s in seen.steps} == {1}


def test_a_killed_request_is_cut_off_and_keeps_its_lower_bound() -> None:
    reached = gevent.event.Event()

    def never(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(STREAM)
        reached.set()
        gevent.sleep(60)

    for work in (
        lambda user: user.chat("why", step="ask"),
        lambda user: own_stream(user, "ask"),
    ):
        reached.clear()
        with load.serving(never) as url:
            seen = make_run(url)
            asking = gevent.spawn(do, work, seen)
            reached.wait()
            gevent.sleep(0.01)
            asking.kill()
        report = seen.report()
        assert kinds(report, "ask") == {"cut off": 1}
        assert metrics(report, "ask") - {"connect", "send_lag"} == {"e2el_all"}
        assert seen.run.transport.poller.watched == 0


def own_stream(user: Any, name: str) -> None:
    with step(name), user.client.stream("GET", "/") as response:
        for _ in response.iter_raw():
            pass


def test_errors_of_the_scenario_are_logged_once_with_their_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def work(_user: Any) -> None:
        raise ValueError("x")

    seen = make_run()
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            do(work, seen)
        do(lambda user: user.client.get("/"), seen)
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is not None


# --- steps --------------------------------------------------------------------------------------


def test_the_first_root_step_starts_at_the_planned_arrival_and_later_ones_when_entered() -> None:
    def work(_user: Any) -> None:
        with step("first"), step("inner"):
            pass
        with step("second"):
            pass

    seen = make_run()
    planned = time.monotonic_ns() - S
    before = time.monotonic_ns()
    do(work, seen, planned_ns=planned)
    starts = {s.name: s.start_ns for s in seen.steps}
    assert starts["first"] == planned
    assert before <= starts["first/inner"] <= starts["second"]


def test_steps_in_spawned_greenlets_keep_their_parent() -> None:
    def part(name: str, pause_s: float) -> None:
        with step(name):
            gevent.sleep(pause_s)
            with step("deep"):
                pass

    def work(_user: Any) -> None:
        with step("answer"):
            gevent.joinall([gevent.spawn(part, "a", 0.01), gevent.spawn(part, "b", 0)])
        with step("after"):
            pass

    seen = make_run()
    assert do(work, seen) is True
    assert [s.name for s in seen.steps] == [
        "answer/b/deep", "answer/b", "answer/a/deep", "answer/a", "answer", "after",
    ]  # fmt: skip


def test_a_step_outside_of_a_task_records_nothing(endpoint: str) -> None:
    seen = make_run(endpoint)
    user = make_user(type("Someone", (ModelUser,), {}), seen)
    with step("alone") as this:
        user.chat("why")
        user.client.get("/health")
        this.fail("invalid reply")
    report = seen.report()
    assert (report.measured, report.finished, report.journeys) == ({}, {}, [])


@pytest.mark.parametrize("name", ["a/b", "run", "two words", ""])
def test_a_name_that_no_budget_could_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="letters, digits"), step(name):
        pass


def test_a_step_can_be_failed_without_raising() -> None:
    def work(_user: Any) -> None:
        with step("check") as this:
            this.fail("invalid reply", "no citation")
            this.fail("another kind")

    seen = make_run()
    assert do(work, seen) is False
    report = seen.report()
    assert kinds(report, "check") == {"invalid reply": 1}
    assert metrics(report, "check") == {"e2el_all"}
    (journey,) = report.journeys
    assert journey["steps"][0]["detail"]["error"] == "no citation"


def test_the_waiting_for_a_user_is_recorded_apart_and_kept_out_of_the_send_lag() -> None:
    with load.serving(one_reply(STREAM + load.event("", finish="stop") + load.END)) as url:
        seen = make_run(url)
        now = time.monotonic_ns()
        do(lambda user: user.chat("why"), seen, planned_ns=now - 5 * S, ready_ns=now)
    report = seen.report()
    found = {m: report.measured[STAGE, "chat", m].histogram for m in metrics(report, "chat")}
    assert abs(found["slot_wait"].mean / (5 * S) - 1) < 0.01
    assert found["send_lag"].max < found["slot_wait"].min
    assert found["ttft"].min > found["slot_wait"].min * 0.99
    assert found["service"].max < found["slot_wait"].min


def test_the_waiting_for_a_user_is_recorded_when_the_request_fails_too() -> None:
    seen = make_run()
    now = time.monotonic_ns()
    do(lambda user: user.chat("why"), seen, planned_ns=now - 5 * S, ready_ns=now)
    assert "slot_wait" in metrics(seen.report(), "chat")


def test_connecting_is_recorded_apart_and_kept_out_of_the_send_lag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve = sockets_module._addresses

    def slowly(*args: Any, **options: Any) -> Any:
        gevent.sleep(0.5)
        return resolve(*args, **options)

    monkeypatch.setattr(sockets_module, "_addresses", slowly)
    with load.serving(ndjson) as url:
        seen = make_run(url)
        do(lambda user: user.predict(PREDICT), seen)
    report = seen.report()
    connecting = report.measured[STAGE, "predict", "connect"].histogram
    assert connecting.min >= 0.49 * S
    assert report.measured[STAGE, "predict", "send_lag"].histogram.max < connecting.min
    assert report.measured[STAGE, "predict", "e2el"].histogram.min > connecting.min


def test_a_failed_first_request_puts_no_lag_on_the_second() -> None:
    silent = [True]

    def handle(connection: Any) -> None:
        while load.request_of(connection):
            if silent.pop():
                gevent.sleep(60)
            connection.sendall(load.answer())

    def work(user: Any) -> None:
        with contextlib.suppress(httpx.HTTPError):
            user.predict(PREDICT, step="first")
        silent.append(False)
        user.predict(PREDICT, step="second")

    with load.serving(handle) as url:
        seen = make_run(url, timeout_s=0.3)
        do(work, seen)
    report = seen.report()
    assert kinds(report, "first") == {"timeout": 1}
    assert report.measured[STAGE, "second", "send_lag"].histogram.max < 0.3 * S


# --- the client ---------------------------------------------------------------------------------


class Site:
    """Cookies, a redirect, an error, a stream, an echo; one connection serves many requests."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def __call__(self, connection: Any) -> None:
        while request := load.request_of(connection):
            self.asked.append(request)
            path = request.split(b" ", 2)[1].partition(b"?")[0]
            connection.sendall(
                {
                    b"/login": load.answer(more=b"set-cookie: who=me; Path=/\r\n"),
                    b"/old": load.answer(status="307 Moved", more=b"location: /echo\r\n"),
                    b"/bad": load.answer(b"no", status="404 Not Found"),
                    b"/stream": STREAM + load.END,
                }.get(path, load.answer(json.dumps(request.decode()).encode()))
            )
            if path == b"/old":
                gevent.sleep(0)


@pytest.fixture
def site() -> Site:
    return Site()


def test_the_client_is_an_httpx_client(site: Site) -> None:
    hooked: list[str] = []
    said: list[str] = []
    statuses: list[int] = []

    def work(user: Any) -> None:
        client = user.client
        assert isinstance(client, httpx.Client)
        client.event_hooks = {"response": [lambda r: hooked.append(r.url.path)]}
        with step("all"):
            said.append(client.get("/echo", params={"q": "a"}, headers={"x-one": "1"}).json())
            said.append(client.post("/echo", json={"a": 1}).json())
            said.append(client.get("/echo", auth=("me", "secret")).json())
            statuses.append(client.get("/old", follow_redirects=True).status_code)
            statuses.append(client.get("/old").status_code)

    with load.serving(site) as url:
        assert do(work, make_run(url, target={"headers": {"x-plan": "yes"}}))
    assert said[0].startswith("GET /echo?q=a HTTP/1.1")
    assert "x-one: 1" in said[0]
    assert "x-plan: yes" in said[0]
    assert said[1].endswith('{"a":1}')
    assert "Authorization: Basic" in said[2]
    assert statuses == [200, 307]
    assert hooked == ["/echo"] * 3 + ["/old", "/echo", "/old"]


def test_cookies_are_each_users_own(site: Site) -> None:
    def log_in(user: Any) -> None:
        with step("x"):
            user.client.get("/login")
            user.client.get("/echo")

    def look(user: Any) -> None:
        with step("x"):
            user.client.get("/echo")

    with load.serving(site) as url:
        seen = make_run(url)
        cls = type("Someone", (ModelUser,), {})
        one, other = make_user(cls, seen), make_user(cls, seen)
        do(log_in, seen, user=one)
        do(look, seen, user=other)
        do(look, seen, user=one)
    assert [b"who=me" in request for request in site.asked] == [False, True, False, True]


def test_a_request_in_a_step_is_that_steps_request_metric(site: Site) -> None:
    def work(user: Any) -> None:
        with step("outer"):
            user.client.get("/echo")
            with user.client.stream("GET", "/stream") as response:
                list(response.iter_lines())

    with load.serving(site) as url:
        seen = make_run(url)
        assert do(work, seen)
    report = seen.report()
    assert {key[1] for key in report.finished} == {"outer"}
    assert report.measured[STAGE, "outer", "request"].histogram.n == 2
    assert report.measured[STAGE, "outer", "send_lag"].histogram.n == 2


def test_a_request_outside_of_steps_is_a_step_of_its_own_from_the_planned_arrival(
    site: Site,
) -> None:
    planned = time.monotonic_ns() - S
    with load.serving(site) as url:
        seen = make_run(url)
        assert do(lambda user: user.client.get("/echo?q=1"), seen, planned_ns=planned)
    (only,) = seen.steps
    assert (only.name, only.start_ns) == ("GET_echo", planned)
    assert only.values["e2el"] > S


@pytest.mark.parametrize("raises", [True, False])
def test_a_status_of_400_or_more_fails_the_step_it_happens_in(site: Site, raises: bool) -> None:
    def work(user: Any) -> None:
        with step("outer"):
            response = user.client.get("/bad")
            if raises:
                response.raise_for_status()

    def bare(user: Any) -> None:
        user.client.get("/bad").raise_for_status()

    with load.serving(site) as url:
        for function, name in ((work, "outer"), (bare, "GET_bad")):
            seen = make_run(url)
            assert do(function, seen) is False
            report = seen.report()
            assert {key[1] for key in report.finished} == {name}
            assert kinds(report, name) == {"status 404": 1}
            assert not metrics(report, name) & {"request", "e2el"}


def test_a_redirect_is_no_send_lag(site: Site) -> None:
    def slow_redirect(connection: Any) -> None:
        while request := load.request_of(connection):
            if b" /old " in request:
                gevent.sleep(0.5)
                connection.sendall(load.answer(status="307 Moved", more=b"location: /new\r\n"))
            else:
                connection.sendall(load.answer())

    with load.serving(slow_redirect) as url:
        seen = make_run(url)
        assert do(lambda user: user.client.get("/old", follow_redirects=True), seen)
    report = seen.report()
    assert report.measured[STAGE, "GET_old", "send_lag"].histogram.max < 0.5 * S


def test_errors_of_the_network_are_httpxs_own(site: Site) -> None:
    raised: list[type[Exception]] = []

    def work(user: Any) -> None:
        for path in ("/a", "/b"):
            try:
                user.client.get(path, timeout=0.05)
            except httpx.HTTPError as error:
                raised.append(type(error))

    with load.serving(lambda _connection: gevent.sleep(60)) as url:
        do(work, make_run(url))
    do(work, make_run())
    assert raised == [httpx.ReadTimeout] * 2 + [httpx.ConnectError] * 2


# --- tasks --------------------------------------------------------------------------------------


class Arrivals:
    """Hands each user a fixed number of arrivals and notes what becomes of them."""

    def __init__(self, count: int, *, closed: bool = False) -> None:
        self.left, self.closed = count, closed
        self.log: list[tuple[str, bool, float]] = []

    def take(self, user_class: str) -> Arrival:
        if not self.left:
            raise StopUser
        self.left -= 1
        now = time.monotonic_ns()
        return Arrival(STAGE, now, now, closed=self.closed, number=self.left)

    def done(self, user_class: str, _arrival: Arrival, *, failed: bool, think_s: float = 0) -> None:
        self.log.append((user_class, failed, think_s))

    def cut_off(self, user_class: str, _arrival: Arrival) -> None:
        self.log.append((user_class, True, -1))


def live(cls: type[ModelUser], arrivals: Arrivals, **more: Any) -> load.Seen:
    """Let one user of the class live, as Locust does, until the arrivals are used up."""
    seen = make_run(dispatcher=arrivals, **more)
    make_user(cls, seen).run()
    return seen


def test_tasks_are_drawn_by_their_weights_and_on_start_and_on_stop_frame_them() -> None:
    order: list[str] = []

    class Someone(ModelUser):
        def on_start(self) -> None:
            order.append("start")

        def on_stop(self) -> None:
            order.append("stop")

        @task(9)
        def often(self) -> None:
            order.append("often")

        @tag("rare")
        @task
        def rarely(self) -> None:
            order.append("rarely")

    live(Someone, Arrivals(300))
    assert (order[0], order[-1], len(order)) == ("start", "stop", 302)
    assert 5 < order.count("rarely") < order.count("often") / 3


def test_think_time_counts_in_the_closed_model_alone_and_its_errors_lose_no_arrival() -> None:
    class Thinks(ModelUser):
        wait_time = constant(7)

        @task
        def nothing(self) -> None:
            pass

    class Stumbles(Thinks):
        def wait_time(self) -> float:
            raise ValueError("x")

    for cls, closed, think_s in ((Thinks, True, 7), (Thinks, False, 0), (Stumbles, True, 0)):
        arrivals = Arrivals(3, closed=closed)
        live(cls, arrivals)
        assert arrivals.log == [(cls.__name__, False, think_s)] * 3


def test_a_task_set_is_one_journey_and_its_errors_fail_it() -> None:
    class Shopping(TaskSet):
        @task
        def look(self) -> None:
            with step("look"):
                pass
            self.interrupt()

    class Stealing(TaskSet):
        @task
        def take(self) -> None:
            raise ValueError("x")

    class Someone(ModelUser):
        tasks = (Shopping,)

    class Thief(ModelUser):
        tasks = (Stealing,)

    arrivals = Arrivals(2)
    report = live(Someone, arrivals).report()
    assert report.finished[STAGE, "look"].total == 2
    assert arrivals.log == [("Someone", False, 0)] * 2
    arrivals = Arrivals(2)
    report = live(Thief, arrivals).report()
    assert kinds(report, "Stealing") == {"exception ValueError": 2}
    assert arrivals.log == [("Thief", True, 0)] * 2


def test_what_an_arrival_draws_depends_on_its_number_alone() -> None:
    rows = tuple(
        Input(id=str(i), category="x", weight=1, data={"prompt": str(i)}) for i in range(50)
    )

    def drawn(numbers: list[int], pause_s: float) -> dict[int, list[str]]:
        seen = make_run(inputs=Inputs(rows), seed=(7, 0))
        found: dict[int, list[str]] = {}

        class Someone(ModelUser):
            @task
            def one(self) -> None:
                ids = [self.next_input().id]
                gevent.sleep(pause_s)
                found[number.get()] = ["one", *ids, self.next_input().id]

            @task
            def other(self) -> None:
                found[number.get()] = ["other", self.next_input().id]

        number: Any = gevent.local.local()
        number.get = lambda: number.value

        def serve(which: int) -> None:
            number.value, number.get = which, lambda: number.value
            now = time.monotonic_ns()
            make_user(Someone, seen).run_task(Arrival(STAGE, now, now, number=which))

        gevent.joinall([gevent.spawn(serve, n) for n in numbers], raise_error=True)
        return found

    forward, backward = drawn(list(range(20)), 0), drawn(list(range(19, -1, -1)), 0.005)
    assert forward == backward
    assert len({tuple(ids) for ids in forward.values()}) > 10


def test_a_user_that_is_made_during_a_journey_is_no_part_of_it() -> None:
    class Newcomer(ModelUser):
        def on_start(self) -> None:
            with step("login"):
                pass

        @task
        def nothing(self) -> None:
            pass

    def work(_user: Any) -> None:
        with step("outer"):
            make_user(Newcomer, seen).start(gevent.pool.Group()).join()

    seen = make_run(dispatcher=Arrivals(1))
    assert do(work, seen)
    assert [one.name for one in seen.steps] == ["outer"]


def test_a_chat_brings_its_text_and_samples(endpoint: str) -> None:
    replies = []
    seen = make_run(endpoint)
    assert do(lambda user: replies.append(user.chat("why")), seen)
    (reply,) = replies
    report = seen.report()
    assert reply.output_tokens == 4
    assert metrics(report, "chat") >= SUCCESS_ONLY | {"e2el_all", "send_lag", "connect"}
    assert report.measured[STAGE, "chat", "itl"].histogram.n == 3


def test_memory_does_not_grow_with_the_number_of_requests() -> None:
    """The recorder's samples are flushed, as every interval does; all else must be freed."""
    with load.serving(ndjson) as url:
        seen = make_run(url)
        seen.run.on_step = None
        user = make_user(type("Someone", (ModelUser,), {}), seen)

        def many(count: int) -> int:
            for _ in range(count):
                do(lambda user: user.predict(PREDICT), seen, user=user)
                with contextlib.suppress(Exception):
                    do(lambda user: user.chat("why"), seen, user=user)
            seen.report()
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        many(50)
        before = many(50)
        after = many(250)
    assert after - before < 250 * 100  # not even 100 bytes a round stay


# --- model calls go the short way, or through self.client where the scenario has a say ----------


class Asked:
    """Answers every request with a whole stream and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    def __call__(self, connection: Any) -> None:
        while asked := load.request_of(connection):
            self.requests.append(asked)
            connection.sendall(STREAM + load.event("", finish="stop") + load.DONE + load.END)


def head_of(request: bytes) -> tuple[bytes, set[bytes]]:
    start, *fields = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    return start, {field.lower() for field in fields}


def test_the_short_way_sends_what_httpx_would_have_sent() -> None:
    server = Asked()
    headers = {"X-Team": "search", "Authorization": "Bearer k"}
    with load.serving(server) as url:
        seen = make_run(url, target={"headers": headers})
        do(lambda user: user.chat("why"), seen)

        def with_a_say(user: ModelUser) -> None:
            user.client.event_hooks = {"request": [lambda _request: None]}
            user.chat("why")

        do(with_a_say, seen)
    short, long = map(head_of, server.requests)
    assert short == long
    assert b"x-team: search" in short[1]


@pytest.mark.parametrize(
    ("say", "expected"),
    [
        (lambda client: client.headers.update({"X-Mine": "1"}), b"x-mine: 1"),
        (lambda client: client.cookies.set("a", "b"), b"cookie: a=b"),
        (lambda client: setattr(client, "auth", ("me", "pw")), b"authorization: basic "),
        (lambda client: setattr(client, "params", {"q": "1"}), b"?q=1 "),
    ],
    ids=["headers", "cookies", "auth", "params"],
)
def test_what_the_scenario_gives_its_client_reaches_the_model_calls_too(
    say: Callable[[httpx.Client], object], expected: bytes
) -> None:
    server = Asked()

    def work(user: ModelUser) -> None:
        user.chat("first")
        say(user.client)
        user.chat("second")

    with load.serving(server) as url:
        do(work, make_run(url))
    first, second = (request.partition(b"\r\n\r\n")[0].lower() for request in server.requests)
    assert expected not in first
    assert expected in second


def test_a_compressed_stream_is_read_though_none_was_asked_for() -> None:
    body = b"".join(
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()
        + b"\n\n" for text in ("a", "b")
    )  # fmt: skip
    body += b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    packed = zlib.compress(body)
    head = b"content-type: text/event-stream\r\ncontent-encoding: deflate\r\n"
    reply = b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (head, len(packed), packed)
    seen_texts = []
    with load.serving(one_reply(reply)) as url:
        seen = make_run(url)
        do(lambda user: seen_texts.append(user.chat("why").text), seen)
    assert kinds(seen.report(), "chat") == {}
    assert seen_texts == ["ab"]
