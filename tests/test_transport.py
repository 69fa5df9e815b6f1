"""Real loopback connections: how they are kept, retried, stamped and given back."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.event
import gevent.server
import httpx
import load
import pytest

from harness import transport as transport_module
from harness.http1 import ResponseReader
from harness.transport import STAMPS, WHOLE, Stamps, Transport
from harness.transport import poller as poller_module
from harness.transport import sockets as sockets_module
from harness.transport.clock import KERNEL, USER
from harness.transport.connection import Connection
from harness.transport.messages import BuiltMessage
from harness.wire import SSEDecoder

pytestmark = pytest.mark.swarm
BIG = 20 << 20  # bytes, more than any socket's buffers hold


@pytest.fixture(autouse=True, params=["epoll, kernel stamps", "watchers, user stamps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs twice: as on Linux, and as where there is neither epoll nor a stamp."""
    if request.param.startswith("watchers"):
        monkeypatch.setattr(poller_module, "_epoll", lambda: None)
        monkeypatch.setitem(Transport.__init__.__kwdefaults__, "kernel_stamps", False)
    elif poller_module._epoll() is None:
        pytest.skip("no epoll here")
    return str(request.param)


def client(transport: Transport, url: str, timeout: float = 10) -> httpx.Client:
    return httpx.Client(transport=transport, base_url=url, timeout=timeout)


def stamps_of(response: httpx.Response) -> Stamps:
    stamps = response.extensions[STAMPS]
    assert isinstance(stamps, Stamps)
    return stamps


class Counting:
    """Answers every request on a kept connection; counts connections and requests."""

    def __init__(self, reply: bytes = load.answer()) -> None:
        self.reply = reply
        self.connections = self.requests = 0

    def __call__(self, connection: Any) -> None:
        self.connections += 1
        while load.request_of(connection):
            self.requests += 1
            connection.sendall(self.reply)


def test_a_connection_is_kept_for_the_next_request() -> None:
    server = Counting()
    with load.serving(server) as url, client(Transport(), url) as http:
        first, *others = [stamps_of(http.get("/")) for _ in range(5)]
    assert (server.connections, server.requests) == (1, 5)
    assert first.connect_ns > 0
    assert [s.connect_ns for s in others] == [0] * 4


def test_stamps_are_in_the_order_in_which_things_happen() -> None:
    def slowly(connection: Any) -> None:
        while load.request_of(connection):
            connection.sendall(load.STREAM_HEAD)
            for _ in range(3):
                gevent.sleep(0.002)
                connection.sendall(load.event())
            connection.sendall(load.END)

    with load.serving(slowly) as url, client(Transport(), url) as http:
        for _ in range(3):
            called = time.monotonic_ns()
            with http.stream("GET", "/") as response:
                stamps = stamps_of(response)
                reads = [stamps.read_ns for _part in response.iter_raw()]
            assert called <= stamps.sent_ns <= stamps.first_byte_ns <= reads[0]
            assert reads == sorted(reads)
            assert len(set(reads)) == 3
            assert reads[-1] <= stamps.read_ns <= time.monotonic_ns()


def test_a_kept_connection_that_the_server_has_closed_is_not_used_again() -> None:
    closed = gevent.event.Event()

    def once(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.answer())
        connection.close()
        closed.set()

    with load.serving(once) as url, client(Transport(), url) as http:
        for _ in range(3):
            stamps = stamps_of(http.get("/"))
            assert stamps.connect_ns > 0
            assert stamps.retries == 0
            closed.wait()
            closed.clear()


class Dying:
    """Serves one request a connection; does `at_second` with the second."""

    def __init__(self, at_second: Callable[[Any], object]) -> None:
        self.at_second = at_second
        self.connections = 0

    def __call__(self, connection: Any) -> None:
        self.connections += 1
        load.request_of(connection)
        connection.sendall(load.answer())
        if load.request_of(connection):
            self.at_second(connection)


def test_a_kept_connection_that_dies_unanswered_is_retried_once_on_a_new_one_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport_module, "_STALE_WITHIN_NS", load.S)
    server = Dying(lambda connection: connection.close())
    with load.serving(server) as url, client(Transport(), url) as http:
        assert stamps_of(http.get("/")).retries == 0
        again = http.post("/", json={"a": 1})
    assert again.status_code == 200
    assert stamps_of(again).retries == 1
    assert stamps_of(again).connect_ns > 0
    assert server.connections == 2


def test_a_kept_connection_that_is_reset_unanswered_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport_module, "_STALE_WITHIN_NS", load.S)
    linger = (socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server = Dying(lambda connection: connection.setsockopt(*linger))
    with load.serving(server) as url, client(Transport(), url) as http:
        http.get("/")
        assert stamps_of(http.get("/")).retries == 1


def test_a_request_that_the_server_had_in_hand_for_a_while_is_not_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport_module, "_STALE_WITHIN_NS", -load.S)
    server = Dying(lambda connection: connection.close())
    with load.serving(server) as url, client(Transport(), url) as http:
        http.get("/")
        with pytest.raises(httpx.RemoteProtocolError):
            http.get("/")
    assert server.connections == 1


def test_nothing_is_retried_once_a_byte_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "_STALE_WITHIN_NS", load.S)
    for answered in (b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"):
        server = Dying(lambda connection, answered=answered: connection.sendall(answered))
        with load.serving(server) as url, client(Transport(), url) as http:
            http.get("/")
            with pytest.raises(httpx.RemoteProtocolError):
                http.get("/")
        assert server.connections == 1


def test_a_new_connection_that_dies_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "_STALE_WITHIN_NS", load.S)
    connections = []

    def die(connection: Any) -> None:
        connections.append(load.request_of(connection))

    with (
        load.serving(die) as url,
        client(Transport(), url) as http,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        http.get("/")
    assert len(connections) == 1


def test_a_body_that_can_be_read_once_is_read_once_and_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport_module, "_STALE_WITHIN_NS", load.S)
    server = Dying(lambda connection: connection.close())
    with load.serving(server) as url, client(Transport(), url) as http:
        http.get("/")
        again = http.post("/", content=iter([b"once"]), headers={"content-length": "4"})
    assert again.status_code == 200
    assert stamps_of(again).retries == 1


def test_a_reply_that_closes_the_connection_is_followed_by_a_new_one() -> None:
    server = Counting(load.answer(more=b"connection: close\r\n"))
    with load.serving(server) as url, client(Transport(), url) as http:
        for _ in range(3):
            assert http.get("/").json() == {}
    assert server.connections == 3


def test_many_requests_by_many_users_keep_as_many_connections_as_run_at_once() -> None:
    server, transport = Counting(), Transport()
    with load.serving(server) as url, client(transport, url) as http:

        def ask() -> None:
            for _ in range(40):
                http.get("/")

        gevent.joinall([gevent.spawn(ask) for _ in range(5)], raise_error=True)
        assert server.requests == 200
        assert server.connections <= 5
        assert transport.poller.watched <= 5


def test_a_body_left_unread_gives_the_connection_up_and_the_pool_back() -> None:
    def endless(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.STREAM_HEAD)
        while True:
            connection.sendall(load.event())
            gevent.sleep(0.001)

    transport = Transport()
    with load.serving(endless) as url, client(transport, url) as http:
        for _ in range(3):
            with http.stream("GET", "/") as response:
                next(response.iter_raw())
            assert transport.poller.watched == 0
            assert not transport._idle


@pytest.mark.parametrize("where", ["connect", "tls", "send", "head", "body"])
def test_a_kill_or_timeout_at_any_point_gives_the_pool_back_once(where: str) -> None:
    transport = Transport(verify=False)

    def stuck(connection: Any) -> None:
        if where == "send":
            connection.recv(1000)
        else:
            load.request_of(connection)
        if where == "body":
            connection.sendall(load.STREAM_HEAD)
        gevent.sleep(60)

    for error in (gevent.GreenletExit(), gevent.Timeout(), httpx.ReadTimeout("")):
        with load.serving(stuck) as url, full_backlog() as unreachable:
            place = {"connect": unreachable, "tls": url.replace("http:", "https:")}.get(where, url)
            with client(transport, place, timeout=60) as http:
                body = bytes(BIG if where == "send" else 1)
                asking = gevent.spawn(http.post, "/", content=body)
                gevent.sleep(0.02)
                assert transport.poller.watched == 1
                asking.kill(error)
                assert transport.poller.watched == 0
                assert not transport._idle
                gevent.sleep(0)
        assert type(asking.value or asking.exception) is type(error)


@contextmanager
def full_backlog() -> Iterator[str]:
    """An address that accepts no more connections: whoever connects is left waiting."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in waiting:
            one.close()


# --- which clock, and what it is worth ----------------------------------------------------------


def test_the_run_says_which_clock_stamps(way: str) -> None:
    expected = USER if way.endswith("user stamps") else KERNEL
    transport = Transport()
    assert transport.clock == expected
    with load.serving(Counting()) as url, client(transport, url) as http:
        http.get("/")
    assert transport.clock == expected
    assert Transport(kernel_stamps=False).clock == USER


@pytest.mark.parametrize("says", [False, True])
def test_where_no_stamps_come_the_run_says_user_clock_though_the_kernel_may_promise_them(
    monkeypatch: pytest.MonkeyPatch, says: bool
) -> None:
    monkeypatch.setattr(sockets_module, "ask_for_stamps", lambda _: says)
    transport = Transport(kernel_stamps=True)
    with load.serving(Counting()) as url, client(transport, url) as http:
        stamps = stamps_of(http.get("/"))
    assert transport.clock == USER
    assert stamps.sent_ns < stamps.first_byte_ns <= time.monotonic_ns()


def test_a_kernel_stamp_does_not_depend_on_when_we_read_and_a_users_does(way: str) -> None:
    ended = []

    def block(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.STREAM_HEAD)
        gevent.sleep(0.01)
        connection.sendall(load.event())
        ended.append(spin(50 * load.MS))
        gevent.sleep(0.01)
        connection.sendall(load.END)

    with load.serving(block) as url, client(Transport(), url) as http:
        for whole in (True, False):
            with http.stream("GET", "/", extensions={WHOLE: whole}) as response:
                reads = [stamps_of(response).read_ns for _ in response.iter_raw()]
            assert len(reads) == 1
            if way.endswith("kernel stamps"):
                assert reads[0] < ended[-1] - 25 * load.MS
            else:
                assert reads[0] >= ended[-1]


def test_events_that_came_while_we_were_blocked_are_one_piece_whose_last_stamp_is_exact(
    way: str,
) -> None:
    last = []

    def block(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.STREAM_HEAD)
        gevent.sleep(0.01)
        for _ in range(3):
            spin(20 * load.MS)
            last[:] = [time.monotonic_ns()]
            connection.sendall(load.event())
        last.append(spin(50 * load.MS))
        gevent.sleep(0.01)
        connection.sendall(load.END)

    decoder, events, pieces = SSEDecoder(), [], 0
    with (
        load.serving(block) as url,
        client(Transport(), url) as http,
        http.stream("GET", "/", extensions={WHOLE: True}) as response,
    ):
        for part in response.iter_raw():
            pieces += 1
            events += decoder.feed(part, stamps_of(response).read_ns)
    assert (pieces, [event.exact for event in events]) == (1, [False, False, True])
    assert [event.exact for event in events] == [False, False, True]
    assert last[0] <= events[-1].t_ns
    if way.endswith("kernel stamps"):
        assert events[-1].t_ns < last[1] - 25 * load.MS


def spin(ns: int) -> int:
    """Keep the process from reading for a while; returns when that ended."""
    end_ns = time.monotonic_ns() + ns
    while time.monotonic_ns() < end_ns:
        pass
    return time.monotonic_ns()


@pytest.mark.parametrize("whole", [True, False])
def test_bytes_and_stamps_are_the_same_whether_the_caller_waits_for_all_or_iterates(
    whole: bool,
) -> None:
    before: list[int] = []

    def tell(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.STREAM_HEAD)
        gevent.sleep(0.01)
        for i in range(5):
            before.append(time.monotonic_ns())
            connection.sendall(load.chunk(b"%d" % i * 100))
            gevent.sleep(0.01)
        before.append(time.monotonic_ns())
        connection.sendall(load.END)

    with (
        load.serving(tell) as url,
        client(Transport(), url) as http,
        http.stream("GET", "/", extensions={WHOLE: whole}) as response,
    ):
        stamps = stamps_of(response)
        read = [(part, stamps.read_ns) for part in response.iter_raw()]
    assert [part for part, _ in read] == [b"%d" % i * 100 for i in range(5)]
    for i, (_, t_ns) in enumerate(read):
        assert before[i] <= t_ns < before[i + 1]
    assert before[5] <= stamps.read_ns


# --- sending ------------------------------------------------------------------------------------


def test_a_large_body_to_a_slow_reader_arrives_whole_and_is_stamped_at_its_first_byte() -> None:
    body = bytes(range(256)) * (BIG // 256)
    seen: list[Any] = []

    def slowly(connection: Any) -> None:
        got = b""
        while len(got.partition(b"\r\n\r\n")[2]) < 10:
            got += connection.recv(100)
        seen.append(time.monotonic_ns())
        got = bytearray(got.partition(b"\r\n\r\n")[2])
        while len(got) < BIG:
            got += connection.recv(1 << 20)
            gevent.sleep(0.001)
        seen.append(got == body)
        connection.sendall(load.answer())

    transport = Transport()
    with load.serving(slowly) as url, client(transport, url) as http:
        stamps = stamps_of(http.post("/", content=body))
        assert transport.poller.watched == 1
    assert seen[1]
    assert stamps.sent_ns < seen[0] < stamps.first_byte_ns


@pytest.mark.parametrize("then", ["read on", "do nothing", "close", "reset"])
def test_an_early_complete_reply_is_returned_and_its_connection_not_used_again(then: str) -> None:
    connections = []

    def refuse(connection: Any) -> None:
        connections.append(connection)
        connection.recv(1000)
        connection.sendall(load.answer(b"too large", status="413 Content Too Large"))
        if then == "read on":
            while connection.recv(1 << 20):
                pass
        elif then == "do nothing":
            gevent.sleep(60)
        elif then == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    transport = Transport()
    with load.serving(refuse) as url, client(transport, url) as http:
        for whole in (True, False, True):
            response = http.post("/", content=bytes(BIG), extensions={WHOLE: whole})
            assert (response.status_code, response.content) == (413, b"too large")
            assert transport.poller.watched == 0
    assert len(connections) == 3


def test_an_early_reply_that_was_there_before_the_write_failed_is_returned() -> None:
    def refuse(connection: Any) -> None:
        connection.recv(1000)
        connection.sendall(load.answer(status="413 Content Too Large"))
        connection.close()

    transport = Transport()
    with load.serving(refuse) as url:
        stamped = sockets_module.StampedSocket(transport.poller, None)
        stamped.connect("127.0.0.1", int(url.rpartition(":")[2]))
        connection = Connection(transport.poller, stamped)
        transport.poller.change(stamped._sock.fileno(), lambda: None, mask=0)
        stamped._sock.send(b"POST / HTTP/1.1\r\n")
        gevent.sleep(0.05)  # the reply and the close are here, and nobody has looked
        request = httpx.Request("POST", url, content=bytes(BIG))
        connection.send(BuiltMessage.of(request))
    assert connection.reader is not None
    assert connection.reader.head is not None
    assert connection.reader.head.status == 413
    assert connection.gone
    connection.close()
    assert transport.poller.watched == 0


def test_a_reply_that_begins_early_does_not_stop_the_request() -> None:
    got = []

    def echo(connection: Any) -> None:
        size = len(connection.recv(1000).partition(b"\r\n\r\n")[2])
        connection.sendall(load.STREAM_HEAD + load.chunk(b"begun"))
        while size < BIG:
            size += len(connection.recv(1 << 20))
        got.append(size)
        connection.sendall(load.chunk(b" and ended") + load.END)
        load.request_of(connection)

    transport = Transport()
    with load.serving(echo) as url, client(transport, url) as http:
        assert http.post("/", content=bytes(BIG)).text == "begun and ended"
        assert transport.poller.watched == 1
    assert got == [BIG]


@pytest.mark.parametrize("reset", [True, False])
def test_a_close_amid_the_request_without_a_whole_reply_is_an_error(reset: bool) -> None:
    said = b""

    def leave(connection: Any) -> None:
        connection.recv(1000)
        connection.sendall(said)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    transport = Transport()
    with load.serving(leave) as url, client(transport, url) as http:
        for text in (b"", load.answer(b"cut off")[:-3]):
            said = text
            with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
                http.post("/", content=bytes(BIG))
            assert transport.poller.watched == 0


def test_a_server_that_does_not_read_is_a_write_timeout() -> None:
    transport = Transport()
    with (
        load.serving(lambda _: gevent.sleep(60)) as url,
        client(transport, url, timeout=0.1) as http,
    ):
        with pytest.raises(httpx.WriteTimeout):
            http.post("/", content=bytes(BIG))
        assert transport.poller.watched == 0


def test_a_header_with_a_line_break_is_not_sent() -> None:
    server = Counting()
    with load.serving(server) as url, client(Transport(), url) as http:
        for value in ("Bearer x\n", "a\r\nb: c"):
            with pytest.raises(httpx.LocalProtocolError, match="line break"):
                http.get("/", headers={"authorization": value})
        assert http.post("/", content=b"line\nbreaks\n").status_code == 200
    assert server.connections == 1


# --- connecting ---------------------------------------------------------------------------------


def test_names_and_numbers_are_connected_to() -> None:
    with load.serving(Counting()) as url:
        for host in ("localhost", "127.0.0.1", "LOCALHOST"):
            with client(Transport(), url.replace("127.0.0.1", host)) as http:
                assert http.get("/").status_code == 200


def test_ipv6_is_connected_to() -> None:
    def answer(connection: Any, _address: object) -> None:
        Counting()(connection)

    try:
        server = gevent.server.StreamServer(("::1", 0), answer)
        server.start()
    except OSError:
        pytest.skip("no IPv6 here")
    with client(Transport(), f"http://[::1]:{server.server_port}") as http:
        assert http.get("/").status_code == 200
    server.stop(timeout=0)


def test_a_name_that_does_not_resolve_is_a_connect_error() -> None:
    transport = Transport()
    for host in ("no-such-host.invalid", "a" * 70 + ".invalid"):
        with client(transport, f"http://{host}", timeout=60) as http:
            with pytest.raises(httpx.ConnectError) as caught:
                http.get("/")
            assert str(caught.value)
    assert transport.poller.watched == 0


def test_of_several_addresses_the_first_that_answers_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = unused.getsockname()[1]
        find = sockets_module._addresses
        transport = Transport()
        with load.serving(Counting()) as url, client(transport, url) as http:
            monkeypatch.setattr(
                sockets_module,
                "_addresses",
                lambda host, port: [*find(host, dead), *find(host, port), *find(host, dead)],
            )
            assert http.get("/").status_code == 200
            assert http.get("/").status_code == 200
            assert transport.poller.watched == 1
        monkeypatch.setattr(sockets_module, "_addresses", lambda host, _: find(host, dead) * 3)
        with client(transport, url) as http, pytest.raises(httpx.ConnectError, match="refused"):
            http.get("/")
        assert transport.poller.watched == 0


def test_no_answer_to_a_connect_is_a_connect_timeout() -> None:
    transport = Transport()
    with full_backlog() as unreachable, client(transport, unreachable, timeout=0.05) as http:
        with pytest.raises(httpx.ConnectTimeout):
            http.get("/")
        assert transport.poller.watched == 0


# --- reading ------------------------------------------------------------------------------------


def test_the_read_timeout_is_for_each_read_of_a_live_stream() -> None:
    def stall(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.STREAM_HEAD)
        for _ in range(5):
            gevent.sleep(0.15)
            connection.sendall(load.event())
        gevent.sleep(60)

    transport, pieces = Transport(), []
    with load.serving(stall) as url, client(transport, url, timeout=0.6) as http:
        with http.stream("GET", "/") as response, pytest.raises(httpx.ReadTimeout):
            pieces.extend(response.iter_raw())
        assert transport.poller.watched == 0
    assert len(pieces) == 5


@pytest.mark.parametrize("then", ["garbage", "close", "nothing"])
def test_an_idle_connection_on_which_something_happens_is_closed(then: str) -> None:
    def after(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.answer())
        gevent.sleep(0.01)
        if then == "garbage":
            connection.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        if then != "close":
            load.request_of(connection)
            connection.sendall(load.answer())

    transport = Transport()
    with load.serving(after) as url, client(transport, url) as http:
        http.get("/")
        gevent.sleep(0.05)
        assert transport.poller.watched == (then == "nothing")
        again = stamps_of(http.get("/"))
        assert (again.connect_ns == 0) == (then == "nothing")
        assert again.retries == 0


def test_what_happened_on_an_idle_connection_is_seen_though_the_hub_had_no_turn() -> None:
    def close(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.answer())

    transport = Transport()
    with load.serving(close) as url, client(transport, url) as http:
        http.get("/")
        (kept,) = next(iter(transport._idle.values()))
        transport.poller.change(kept._socket._sock.fileno(), lambda: None, mask=0)
        gevent.sleep(0.02)
        again = stamps_of(http.get("/"))
    assert again.connect_ns > 0
    assert again.retries == 0


@pytest.mark.parametrize("together", [True, False])
def test_bytes_after_a_reply_keep_its_connection_from_being_used_again(together: bool) -> None:
    server = Counting()
    reply = load.answer()
    server.reply = reply + b"HTTP/1.1 200 OK\r\n" if together else reply

    def serve(connection: Any) -> None:
        if together:
            server(connection)
            return
        server.connections += 1
        load.request_of(connection)
        connection.sendall(reply)
        gevent.sleep(0.01)
        connection.sendall(b"x")
        gevent.sleep(60)

    transport = Transport()
    with load.serving(serve) as url, client(transport, url) as http:
        for _ in range(3):
            assert http.get("/").json() == {}
            gevent.sleep(0.03)
            assert transport.poller.watched == 0
    assert server.connections == 3


REPLIES = {
    "103": ("GET", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + load.answer(), 200),
    "100": ("POST", b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + load.answer(), 200),
    "HEAD": ("HEAD", load.answer(b"x" * 10)[:-10], 200),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n", 304),
    "empty": ("GET", load.answer(b""), 200),
    "no chunks": ("GET", load.STREAM_HEAD + load.END, 200),
}


def test_replies_of_every_form_end_where_they_end() -> None:
    for form, (method, reply, status) in REPLIES.items():
        server = Counting(reply)
        with load.serving(server) as url, client(Transport(), url) as http:
            for whole in (True, False, True):
                response = http.request(method, "/", extensions={WHOLE: whole})
                assert response.status_code == status, form
                assert stamps_of(response).retries == 0
        assert (server.connections, server.requests) == (1, 3), form


def test_a_body_that_only_a_close_ends_is_whole() -> None:
    server = Counting(b"")

    def serve(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000)
        gevent.sleep(0.01)

    transport = Transport()
    with load.serving(serve) as url, client(transport, url) as http:
        for whole in (True, False):
            assert http.get("/", extensions={WHOLE: whole}).content == b"x" * 1000
            assert transport.poller.watched == 0
    assert server.connections == 0


def test_a_body_above_the_limit_is_cut_with_a_clear_error() -> None:
    transport = Transport(max_body_bytes=1000)
    for reply in (load.answer(bytes(1001)), load.STREAM_HEAD + load.event() * 20):
        with load.serving(Counting(reply)) as url, client(transport, url) as http:
            for whole in (True, False):
                with pytest.raises(httpx.RemoteProtocolError, match="the 1,000 bytes allowed"):
                    http.get("/", extensions={WHOLE: whole})
                assert transport.poller.watched == 0


def test_a_large_body_arrives_whole() -> None:
    body = bytes(range(256)) * (BIG // 256)
    with load.serving(Counting(load.answer(body))) as url, client(Transport(), url) as http:
        for whole in (True, False):
            assert http.get("/", extensions={WHOLE: whole}).content == body


def test_a_response_may_be_closed_at_any_time_and_again() -> None:
    transport = Transport()
    with load.serving(Counting()) as url, client(transport, url) as http:
        response = http.send(http.build_request("GET", "/"), stream=True)
        response.close()
        response.close()
        assert transport.poller.watched <= 1
        with pytest.raises(httpx.StreamClosed):
            response.read()


def test_two_greenlets_never_share_a_connection() -> None:
    def echo(connection: Any) -> None:
        while request := load.request_of(connection):
            gevent.sleep(0.001)
            _head, _, body = request.partition(b"\r\n\r\n")
            connection.sendall(load.answer(body))

    transport, wrong = Transport(), []

    def ask(http: httpx.Client, me: int) -> None:
        for i in range(10):
            text = f"{me}/{i}"
            whole = bool((me + i) % 2)
            if http.post("/", content=text, extensions={WHOLE: whole}).text != text:
                wrong.append(text)

    with load.serving(echo) as url, client(transport, url) as http:
        asking = [gevent.spawn(ask, http, me) for me in range(100)]
        gevent.joinall(asking, raise_error=True)
        assert transport.poller.watched <= 100
    assert wrong == []
    assert transport.poller.watched == 0


def test_a_defect_in_reading_reaches_who_waits_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed = ResponseReader.feed

    def fail(self: ResponseReader, data: bytes, t_ns: int) -> None:
        if b"bad" in data:
            raise LookupError("a defect")
        feed(self, data, t_ns)

    monkeypatch.setattr(ResponseReader, "feed", fail)
    transport = Transport()
    with (
        load.serving(Counting()) as good,
        load.serving(Counting(load.answer(b"bad"))) as bad,
        client(transport, good) as http,
    ):
        for whole in (True, False):
            with pytest.raises(LookupError):
                http.get(bad, extensions={WHOLE: whole})
            assert http.get("/").status_code == 200
        assert transport.poller.watched == 1


def test_thousands_of_connections_leave_nothing_behind() -> None:
    transport = Transport()
    server = Counting(load.answer(more=b"connection: close\r\n"))

    def ask(http: httpx.Client) -> None:
        for _ in range(100):
            http.get("/")

    def left() -> int:
        gc.collect()
        return sum(isinstance(one, Connection) for one in gc.get_objects())

    with load.serving(server) as url, client(transport, url) as http:
        gevent.joinall([gevent.spawn(ask, http) for _ in range(20)], raise_error=True)
        assert server.connections == 2000
        assert transport.poller.watched == 0
        assert not transport.poller._watchers
        assert not transport._idle
        assert left() == 0
