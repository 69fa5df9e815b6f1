"""Replies are decoded behind the reading, and end with their own mark: over real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import load
import pytest
from gevent.event import Event

from harness import apis
from harness.apis import StreamReader
from harness.transport import connection as connection_module
from harness.transport import poller as poller_module
from harness.transport.poller import Poller

pytestmark = pytest.mark.swarm
_PATIENCE_S = 20


@pytest.fixture(autouse=True, params=["epoll", "watchers"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs twice: as on Linux, and as where there is no epoll."""
    if request.param == "watchers":
        monkeypatch.setattr(poller_module, "_epoll", lambda: None)
    elif poller_module._epoll() is None:
        pytest.skip("no epoll here")


class Server:
    """Answers each request with the same bytes, then does as `after` says with the connection."""

    def __init__(self, reply: bytes, after: Any = lambda _socket: None) -> None:
        self.reply, self.after = reply, after
        self.connections = self.requests = 0

    def __call__(self, connection: Any) -> None:
        self.connections += 1
        while load.request_of(connection):
            self.requests += 1
            connection.sendall(self.reply)
            self.after(connection)


WHOLE = load.STREAM_HEAD + load.event("a") + load.event("b", finish="stop") + load.DONE


def ask(seen: load.Seen, times: int = 1) -> None:
    for _ in range(times):
        assert load.do(lambda user: user.chat("why"), seen)


def test_a_reply_ends_with_its_done_though_the_body_stays_open():
    free = Event()
    server = Server(WHOLE, lambda _socket: free.wait(_PATIENCE_S))
    with load.serving(server) as url:
        seen = load.make_run(url, timeout_s=_PATIENCE_S / 2)
        ask(seen)
        assert not free.is_set()
        free.set()
    step = seen.steps[0]
    assert step.failure is None
    assert step.end_ns == step.start_ns + step.values["e2el"]
    assert step.values["e2el"] >= step.values["ttft"]


def test_what_ends_a_moment_after_its_done_is_taken_with_it_and_keeps_the_connection(monkeypatch):
    monkeypatch.setattr(poller_module, "_LATER_NS", _PATIENCE_S * load.S)  # however slow we are

    def end(connection: Any) -> None:
        gevent.sleep(0.002)
        connection.sendall(load.END)

    server = Server(WHOLE, end)
    with load.serving(server) as url:
        ask(load.make_run(url), times=3)
    assert (server.connections, server.requests) == (1, 3)


def test_what_follows_a_done_is_drained_apart_and_the_connection_used_again():
    free, drained = Event(), Event()

    def end(connection: Any) -> None:
        if not free.is_set():
            free.wait(_PATIENCE_S)
            connection.sendall(load.chunk(b": bye\n\n") + load.END)
            drained.set()
        else:
            connection.sendall(load.END)

    server = Server(WHOLE, end)
    with load.serving(server) as url:
        seen = load.make_run(url)
        ask(seen)
        free.set()
        drained.wait(_PATIENCE_S)
        idle = seen.run.transport._idle
        with gevent.Timeout(_PATIENCE_S):
            while not any(idle.values()):
                gevent.sleep(0.001)
        ask(seen)
    assert (server.connections, server.requests) == (1, 2)


@pytest.mark.parametrize(("lines", "every_s"), [(1000, 0), (1, 0.01)])
def test_what_does_not_end_after_its_done_is_cut_when_it_is_much_or_long(
    lines: int, every_s: float, monkeypatch: pytest.MonkeyPatch
):
    if lines > 1:
        monkeypatch.setattr(connection_module, "_LONGEST_DRAIN_S", _PATIENCE_S)
    broken = Event()
    sent: list[int] = []

    def flood(connection: Any) -> None:
        more = load.chunk(b": more\n\n" * lines)
        try:
            while True:
                connection.sendall(more)
                sent.append(len(more))
                gevent.sleep(every_s)
        except OSError:
            broken.set()

    server = Server(WHOLE, flood)
    with load.serving(server) as url:
        seen = load.make_run(url)
        ask(seen)
        assert broken.wait(_PATIENCE_S)
        assert seen.run.transport.poller.watched == 0
    assert sum(sent) < 64 << 20  # and the sockets held some of it


@pytest.mark.parametrize("reasons", [True, False])
def test_a_done_without_a_finish_reason_is_an_end_where_the_server_never_gives_one(reasons: bool):
    stay = Event()
    cut = load.STREAM_HEAD + load.event("a") + load.DONE

    def reply(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(WHOLE + load.END if reasons else cut + load.END)
        load.request_of(connection)
        connection.sendall(cut)  # and the body stays open, as of a stream that was broken off
        stay.wait(_PATIENCE_S)

    with load.serving(reply) as url:
        seen = load.make_run(url)
        ask(seen)
        assert load.do(lambda user: user.chat("why"), seen) is not reasons
        stay.set()
    assert seen.steps[1].failure == ("truncated stream" if reasons else None)


def test_an_end_mark_in_two_reads_is_found_too():
    stay = Event()

    def rest(connection: Any) -> None:
        gevent.sleep(0.01)
        connection.sendall(b"NE]\n\n\r\n")
        stay.wait(_PATIENCE_S)

    server = Server(WHOLE[: WHOLE.index(b"NE]")], rest)
    with load.serving(server) as url:
        ask(load.make_run(url, timeout_s=_PATIENCE_S / 2))
        stay.set()


def test_a_long_reply_is_decoded_while_it_comes_in(monkeypatch: pytest.MonkeyPatch):
    decoded = Event()
    events: list[int] = []
    feed_all = StreamReader.feed_all

    def counted(reader: StreamReader, pieces: Any) -> None:
        events.extend(t_ns for _, t_ns in pieces)
        if len(events) >= 32:
            decoded.set()
        feed_all(reader, pieces)

    monkeypatch.setattr(StreamReader, "feed_all", counted)

    def reply(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.STREAM_HEAD)
        for _ in range(40):
            connection.sendall(load.event())
            gevent.sleep(0.001)
        assert decoded.wait(_PATIENCE_S)  # before the reply has ended
        connection.sendall(load.event(finish="stop") + load.DONE + load.END)

    with load.serving(reply) as url:
        ask(load.make_run(url))
    assert len(events) >= 40


def test_a_scenario_that_puts_hooks_on_its_client_gets_the_same_reply():
    replies: list[apis.Reply] = []
    server = Server(WHOLE + load.END)

    def task(user: Any) -> None:
        replies.append(user.chat("why"))
        user.client.headers["x-own"] = "1"  # from here on the call goes httpx's way
        replies.append(user.chat("why"))

    with load.serving(server) as url:
        assert load.do(task, load.make_run(url))
    assert [(r.text, len(r.token_events), r.finish_reason) for r in replies] == [
        ("ab", 2, "stop")
    ] * 2


# --- the poller -----------------------------------------------------------------------------------


def spin(ns: int) -> None:
    until_ns = time.monotonic_ns() + ns
    while time.monotonic_ns() < until_ns:
        pass


@contextmanager
def watched() -> Iterator[tuple[Poller, socket.socket, list[str]]]:
    """A poller that notes when something comes in, and the other end; made in the test's process."""
    poller, order = Poller(), list[str]()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def read() -> None:
        ours.recv(100)
        order.append("read")

    poller.add(ours.fileno(), read)
    yield poller, theirs, order
    poller.remove(ours.fileno())
    ours.close()
    theirs.close()


@pytest.mark.parametrize("how", ["soon", "behind"])
def test_however_much_is_due_what_comes_in_is_read_in_between(how):
    with watched() as (poller, theirs, order):
        done = Event()

        def work(number: int) -> None:
            if number == 10:
                theirs.send(b"x")
            spin(poller_module._SLICE_NS)
            order.append(str(number))
            if number == 39:
                done.set()

        for number in range(40):
            if how == "soon":
                poller.soon(work, number)
            else:
                poller.behind(lambda number=number: work(number))
        assert done.wait(_PATIENCE_S)
        assert order.index("read") < order.index("15")
        assert [one for one in order if one != "read"] == [str(n) for n in range(40)]


def test_what_is_next_goes_before_what_is_due_soon_and_decoding_after_it():
    with watched() as (poller, _, order):
        poller.behind(lambda: order.append("behind"))
        poller.soon(order.append, "soon")
        poller.next(order.append, "next")
        while len(order) < 3:
            gevent.sleep(0)
        assert order == ["next", "soon", "behind"]


def test_timers_have_their_turn_while_much_is_due():
    with watched() as (poller, _, order):
        done = Event()

        def work(left: int) -> None:
            spin(poller_module._SLICE_NS)
            order.append("work")
            if left:
                poller.soon(work, left - 1)
            else:
                done.set()

        gevent.spawn_later(0.001, order.append, "timer")
        poller.soon(work, 60)
        assert done.wait(_PATIENCE_S)
        assert "timer" in order


def test_what_raises_does_not_keep_the_others_from_their_turn(monkeypatch):
    with watched() as (poller, _, order):
        seen = []
        monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *error: seen.append(error[1]))
        poller.soon(lambda: 1 / 0)
        poller.behind([].pop)
        poller.later(lambda: {}["a"])
        poller.later(lambda: order.append("last"))
        with gevent.Timeout(_PATIENCE_S):
            while not order:
                gevent.sleep(0.001)
        assert seen == [ZeroDivisionError, IndexError, KeyError]
