"""HTTP/2 over real sockets, with servers that do as they are told: limits, ends, resets, timeouts."""

from __future__ import annotations

import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import httpx
import load
import pytest
from test_routes import Proxy, Socks
from test_tls_stamps import tls
from test_transport import BIG, Counting, client, spin, stamps_of

from harness.plan import Target
from harness.transport import WHOLE, RequestHead, Transport, open_transport
from harness.transport import poller as poller_module
from harness.transport.routes import Routes

pytestmark = pytest.mark.swarm
OK = [(":status", "200"), ("content-type", "text/event-stream")]


@pytest.fixture(autouse=True, params=["epoll, kernel stamps", "watchers, user stamps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs twice: as on Linux, and as where there is neither epoll nor a stamp."""
    if request.param.startswith("watchers"):
        monkeypatch.setattr(poller_module, "_epoll", lambda: None)
        monkeypatch.setitem(Transport.__init__.__kwdefaults__, "kernel_stamps", False)
    return str(request.param)


class Peer:
    """One connection of the server: calls `answer(peer, stream)` for each request that is whole."""

    def __init__(self, server: Server, socket: Any) -> None:
        self.server, self.socket = server, socket
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        codes = {h2.settings.SettingCodes[name]: v for name, v in server.settings.items()}
        self.state.local_settings = h2.settings.Settings(client=False, initial_values=codes)
        self.bodies: dict[int, bytes] = {}
        self.events: list[Any] = []

    def serve(self) -> None:
        self.state.initiate_connection()
        self.flush()
        while data := self.socket.recv(65536):
            for event in self.state.receive_data(data):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived):
                    known = self.bodies.get(event.stream_id, b"")
                    self.bodies[event.stream_id] = known + event.data
                    self.state.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                elif isinstance(event, self.server.when):
                    self.server.requests += 1
                    gevent.spawn(self._answer, event.stream_id)
            if self.server.requests or not self.server.silent:
                self.flush()

    def _answer(self, stream: int) -> None:
        with suppress(OSError):  # the client left
            self.server.answer(self, stream)

    def flush(self) -> None:
        self.socket.sendall(self.state.data_to_send())

    def head(self, stream: int, headers: Any = OK, **options: Any) -> None:
        self.state.send_headers(stream, headers, **options)
        self.flush()

    def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self.state.send_data(stream, data, end_stream=end)
        self.flush()

    def reset(self, stream: int, code: int) -> None:
        self.state.reset_stream(stream, code)
        self.flush()

    def goaway(self, last: int, code: int = 0) -> None:
        """As a server that goes on with what it has: `h2` would not."""
        self.flush()
        self.socket.sendall(b"\0\0\x08\x07\0" + bytes(4) + struct.pack(">II", last, code))


class Server:
    def __init__(self, answer: Callable[[Peer, int], object], **settings: int) -> None:
        self.answer, self.settings = answer, settings
        self.when: type = h2.events.StreamEnded
        self.peers: list[Peer] = []
        self.requests = 0
        self.silent = False
        """Whether it acknowledges nothing before the first request is there."""

    def __call__(self, socket: Any) -> None:
        peer = Peer(self, socket)
        self.peers.append(peer)
        peer.serve()


def ok(peer: Peer, stream: int, body: bytes = b"{}") -> None:
    peer.head(stream)
    peer.data(stream, body, end=True)


@contextmanager
def speaking(
    server: Callable[[Any], None], authority: dict[str, Path], *protocols: str
) -> Iterator[tuple[str, Transport]]:
    """Serve HTTP/2, and yield where with a transport that trusts it."""
    served = tls(authority)
    served["ssl_context"].set_alpn_protocols(list(protocols or ("h2",)))
    with load.serving(server, **served) as url:
        transport = Transport(verify=authority["ca"], routes=Routes(http2=True))
        yield url, transport
        transport.close()
        assert transport.poller.watched == 0


def together(count: int, call: Callable[[], Any]) -> list[Any]:
    running = [gevent.spawn(call) for _ in range(count)]
    gevent.joinall(running, timeout=30, raise_error=True)
    return [one.value for one in running]


# Connections and streams


def test_streams_share_a_connection_and_those_that_come_together_wait_for_it_once(
    authority: dict[str, Path],
) -> None:
    server = Server(ok)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        first = together(20, lambda: stamps_of(http.get("/")))
        later = together(20, lambda: stamps_of(http.get("/")))
    assert len(server.peers) == 1
    assert server.requests == 40
    assert all(stamps.connect_ns > 0 for stamps in first)
    assert not any(stamps.connect_ns for stamps in later)
    for stamps in first + later:
        assert stamps.sent_ns <= stamps.first_byte_ns <= stamps.read_ns


@pytest.mark.parametrize("most", [1, 3])
def test_no_request_waits_for_a_stream_more_connections_are_opened(
    authority: dict[str, Path], most: int
) -> None:
    everybody, running = gevent.event.Event(), []

    def all_at_once(peer: Peer, stream: int) -> None:
        running.append(stream)
        if len(running) == 12:
            everybody.set()
        everybody.wait()
        ok(peer, stream)

    server = Server(all_at_once, MAX_CONCURRENT_STREAMS=most)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        together(12, lambda: http.get("/").raise_for_status())
        together(12, lambda: http.get("/").raise_for_status())
    assert 12 / most <= len(server.peers) <= 12 / most + 1
    assert server.requests == 24


def test_connections_that_are_needed_together_are_opened_together(
    authority: dict[str, Path],
) -> None:
    accepted: list[Any] = []
    everybody = gevent.event.Event()

    def hesitate(connection: Any) -> None:
        accepted.append(connection)
        if len(accepted) == 5:
            everybody.set()
        elif len(accepted) > 1:
            assert everybody.wait(10)
        server(context.wrap_socket(connection, server_side=True))

    def hold(peer: Peer, stream: int) -> None:
        assert everybody.wait(10)
        ok(peer, stream)

    server = Server(hold, MAX_CONCURRENT_STREAMS=1)
    context = tls(authority)["ssl_context"]
    context.set_alpn_protocols(["h2"])
    with load.serving(hesitate) as url:
        place = url.replace("http", "https")
        transport = Transport(verify=authority["ca"], routes=Routes(http2=True))
        with client(transport, place) as http:
            together(5, lambda: http.get("/").raise_for_status())
    assert len(accepted) == 5


def test_what_the_server_says_with_the_end_of_the_handshake_is_heard(
    authority: dict[str, Path],
) -> None:
    context = tls(authority)["ssl_context"]
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # there the handshake's last word is its own
    context.set_alpn_protocols(["h2"])
    server = Server(ok)
    server.silent = True

    def serve(connection: Any) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                secure.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                incoming.write(connection.recv(65536))

        def send(data: bytes) -> None:
            secure.write(data)
            connection.sendall(outgoing.read())

        def receive(size: int) -> bytes:
            while True:
                try:
                    return secure.read(size)
                except ssl.SSLWantReadError:
                    data = connection.recv(size)
                    if not data:
                        return b""
                    incoming.write(data)

        server(SimpleNamespace(sendall=send, recv=receive))

    with load.serving(serve) as url:
        transport = Transport(verify=authority["ca"], routes=Routes(http2=True))
        with client(transport, url.replace("http", "https")) as http:
            assert http.get("/").status_code == 200


def test_a_server_that_allows_no_stream_is_a_connect_error(authority: dict[str, Path]) -> None:
    server = Server(ok, MAX_CONCURRENT_STREAMS=0)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        with pytest.raises(httpx.ConnectError, match="allows no HTTP/2 streams"):
            http.get("/")
        assert transport.poller.watched == 0


@pytest.mark.parametrize("at_once", [1, 5])
def test_a_server_that_does_not_speak_http2_is_asked_by_http1(
    authority: dict[str, Path], at_once: int
) -> None:
    server = Counting()
    with (
        speaking(server, authority, "http/1.1") as (url, transport),
        client(transport, url) as http,
    ):
        for _ in range(2):
            replies = together(at_once, lambda: http.get("/"))
            assert {reply.http_version for reply in replies} == {"HTTP/1.1"}
    assert server.connections == at_once


def test_a_server_that_says_nothing_or_nonsense_after_the_handshake_is_a_connect_error(
    authority: dict[str, Path],
) -> None:
    def nonsense(connection: Any) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    for server in (nonsense, lambda connection: connection.recv(1)):
        with speaking(server, authority) as (url, transport), client(transport, url) as http:
            with pytest.raises(httpx.ConnectError, match=r"HTTP/2|frame"):
                http.get("/")
            assert transport.poller.watched == 0


def test_those_that_wait_for_a_connection_that_is_refused_are_told_and_a_killed_one_is_not_waited_for(
    authority: dict[str, Path],
) -> None:
    released = gevent.event.Event()
    peers: list[Any] = []

    def hesitate(connection: Any) -> None:
        peers.append(connection)
        if len(peers) == 1:
            released.wait()
        Server(ok)(context.wrap_socket(connection, server_side=True))

    context = tls(authority)["ssl_context"]
    context.set_alpn_protocols(["h2"])
    with load.serving(hesitate) as url:
        place = url.replace("http", "https")
        transport = Transport(verify=authority["ca"], routes=Routes(http2=True))
        with client(transport, place) as http:
            first, second = gevent.spawn(http.get, "/"), gevent.spawn(http.get, "/")
            gevent.sleep(0.05)
            assert len(peers) == 1
            first.kill()
            assert second.get(timeout=10).status_code == 200
        released.set()
    with client(transport, place) as http:

        def ask() -> str:
            with pytest.raises(httpx.ConnectError) as caught:
                http.get("/")
            return str(caught.value)

        assert set(together(3, ask)) == {"[Errno 111] Connection refused"}


# Bodies


def test_requests_larger_than_the_servers_window_and_long_replies_arrive_whole(
    authority: dict[str, Path],
) -> None:
    body = bytes(range(256)) * 2048

    def echo(peer: Peer, stream: int) -> None:
        peer.head(stream)
        left = peer.bodies[stream]
        while left:
            part, left = left[:16384], left[16384:]
            peer.data(stream, part, end=not left)

    server = Server(echo, INITIAL_WINDOW_SIZE=5000)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        for whole in (True, False):
            replies = together(
                3,
                lambda: http.post("/", content=body, extensions={WHOLE: whole}),  # noqa: B023
            )
            assert all(reply.content == body for reply in replies)
        parts = (part for part in (b"by ", b"parts"))
        assert http.post("/", content=parts).content == b"by parts"


def test_a_window_that_stays_shut_is_a_write_timeout_and_the_connection_is_kept(
    authority: dict[str, Path],
) -> None:
    server = Server(ok, INITIAL_WINDOW_SIZE=0)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        with pytest.raises(httpx.WriteTimeout):
            http.post("/", content=b"x", timeout=httpx.Timeout(10, write=0.05))
        assert http.get("/").status_code == 200
    assert len(server.peers) == 1


def test_an_early_reply_is_returned_though_the_request_is_not_whole(
    authority: dict[str, Path],
) -> None:
    def refuse(peer: Peer, stream: int) -> None:
        peer.head(stream, [(":status", "413")], end_stream=True)

    server = Server(refuse, INITIAL_WINDOW_SIZE=1000)
    server.when = h2.events.RequestReceived
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        for whole in (True, False):
            reply = http.post("/", content=bytes(BIG), extensions={WHOLE: whole})
            assert reply.status_code == 413
    assert len(server.peers) == 1


def test_a_reply_has_its_fields_and_informational_heads_and_trailers_are_passed_over(
    authority: dict[str, Path],
) -> None:
    def answer(peer: Peer, stream: int) -> None:
        peer.head(stream, [(":status", "103"), ("link", "x")])
        peer.head(stream, [(":status", "201"), ("x-a", "1"), ("x-a", "2")])
        peer.data(stream, b"text")
        peer.head(stream, [("x-late", "3")], end_stream=True)

    server = Server(answer)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        reply = http.put("/a?b=c", content=b"x", headers={"X-Mine": "1", "Connection": "close"})
        request = httpx.Request("POST", f"{url}/f", content=b"12")
        fetched = transport.fetch(RequestHead.of(request), b"123")
    assert (reply.status_code, reply.text, reply.http_version) == (201, "text", "HTTP/2")
    assert reply.headers.get_list("x-a") == ["1", "2"]
    assert dict(fetched.headers) == {"x-a": "1, 2"}
    assert (fetched.status, fetched.error, b"".join(d for d, _ in fetched.pieces)) == (
        201,
        None,
        b"text",
    )
    first, second = (
        dict(event.headers)
        for event in server.peers[0].events
        if isinstance(event, h2.events.RequestReceived)
    )
    assert first[b":path"] == b"/a?b=c"
    assert first[b":method"] == b"PUT"
    assert first[b":authority"].decode() == url.removeprefix("https://")
    assert first[b"x-mine"] == b"1"
    assert not {b"connection", b"host"} & set(first)
    assert second[b"content-length"] == b"3"


def test_a_body_left_unread_gives_its_stream_up_and_no_other(authority: dict[str, Path]) -> None:
    def endless(peer: Peer, stream: int) -> None:
        peer.head(stream)
        while stream == 1:
            peer.data(stream, b"more")
            gevent.sleep(0.005)
        peer.data(stream, b"done", end=True)

    server = Server(endless)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        with http.stream("GET", "/") as response:
            assert next(response.iter_raw()) == b"more"
            assert http.get("/").text == "done"
        assert http.get("/").text == "done"
        gevent.sleep(0.02)
    (peer,) = server.peers
    resets = [e for e in peer.events if isinstance(e, h2.events.StreamReset)]
    assert [(e.stream_id, e.error_code) for e in resets] == [(1, h2.errors.ErrorCodes.CANCEL)]


# What goes wrong


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_a_reset_fails_its_own_stream_and_is_not_sent_again(
    authority: dict[str, Path], whole: bool, begun: bool
) -> None:
    def answer(peer: Peer, stream: int) -> None:
        if stream == 1:
            gevent.sleep(0.05)
            ok(peer, stream, b"well")
            return
        if begun:
            peer.head(stream)
        peer.reset(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)

    server = Server(answer)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        other = gevent.spawn(http.get, "/")
        gevent.sleep(0.02)
        with pytest.raises(httpx.RemoteProtocolError, match="reset the stream: INTERNAL_ERROR"):
            http.get("/", extensions={WHOLE: whole})
        assert other.get(timeout=10).text == "well"
    assert server.requests == 2
    assert len(server.peers) == 1


@pytest.mark.parametrize("how", ["goaway", "refused"])
def test_what_was_not_processed_is_sent_once_more_on_a_fresh_connection_and_counted(
    authority: dict[str, Path], how: str
) -> None:
    def answer(peer: Peer, stream: int) -> None:
        if peer is not server.peers[0]:
            ok(peer, stream, b"again")
        elif stream == 1:
            peer.head(stream)
            gevent.sleep(0.1)
            peer.data(stream, b"went on", end=True)
        elif how == "goaway":
            peer.goaway(1)
        else:
            peer.reset(stream, h2.errors.ErrorCodes.REFUSED_STREAM)

    server = Server(answer)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        running = gevent.spawn(http.get, "/")
        gevent.sleep(0.02)
        again = http.get("/")
        assert again.text == "again"
        assert stamps_of(again).retries == 1
        assert stamps_of(again).connect_ns > 0
        assert running.get(timeout=10).text == "went on"
        assert stamps_of(running.value).retries == 0
    assert len(server.peers) == 2
    assert server.requests == 3


def test_what_is_refused_twice_is_an_error(authority: dict[str, Path]) -> None:
    server = Server(lambda peer, stream: peer.reset(stream, h2.errors.ErrorCodes.REFUSED_STREAM))
    with (
        speaking(server, authority) as (url, transport),
        client(transport, url) as http,
        pytest.raises(httpx.RemoteProtocolError, match="refused the stream"),
    ):
        http.get("/")
    assert server.requests == 2


def test_a_kept_connection_that_dies_unanswered_is_retried_and_a_new_one_is_not(
    authority: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.transport._STALE_WITHIN_NS", 10 * load.S)

    def second_dies(peer: Peer, stream: int) -> None:
        if stream == 1:
            ok(peer, stream)
        else:
            peer.socket.shutdown(2)

    server = Server(second_dies)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        assert stamps_of(http.get("/")).retries == 0
        assert stamps_of(http.get("/")).retries == 1
    assert len(server.peers) == 2
    fresh = Server(lambda peer, _: peer.socket.shutdown(2))
    with (
        speaking(fresh, authority) as (url, transport),
        client(transport, url) as http,
        pytest.raises(httpx.RemoteProtocolError, match="closed before the first byte"),
    ):
        http.get("/")
    assert len(fresh.peers) == 1


def test_an_idle_connection_that_was_closed_or_sent_away_is_not_used_again(
    authority: dict[str, Path],
) -> None:
    ends = [lambda peer: peer.goaway(1), lambda peer: peer.socket.shutdown(2)]

    def once(peer: Peer, stream: int) -> None:
        ok(peer, stream)
        ends[len(server.peers) % 2](peer)

    server = Server(once)
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        for _ in range(4):
            stamps = stamps_of(http.get("/"))
            assert stamps.retries == 0
            assert stamps.connect_ns > 0
            gevent.sleep(0.02)
            assert transport.poller.watched == 0
    assert len(server.peers) == 4


def test_what_happened_on_an_idle_connection_is_seen_though_the_hub_had_no_turn(
    authority: dict[str, Path],
) -> None:
    def once(peer: Peer, stream: int) -> None:
        ok(peer, stream)
        gevent.sleep(0.02)
        peer.socket.shutdown(2)

    with (
        speaking(Server(once), authority) as (url, transport),
        client(transport, url) as http,
    ):
        http.get("/")
        (kept,) = next(iter(transport._shared.values()))._connections
        transport.poller.change(kept._socket._sock.fileno(), lambda: None, mask=0)
        gevent.sleep(0.05)
        again = stamps_of(http.get("/"))
    assert again.connect_ns > 0
    assert again.retries == 0


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_break_off_fails_all_streams_and_what_came_is_kept(
    authority: dict[str, Path], where: str
) -> None:
    def answer(peer: Peer, stream: int) -> None:
        if where == "body":
            peer.head(stream)
            peer.data(stream, b"some")
        if stream == 5:
            peer.socket.shutdown(2)

    server = Server(answer)
    with speaking(server, authority) as (url, transport):
        head = RequestHead.of(httpx.Request("GET", f"{url}/"))
        if where == "body":
            for fetched in together(3, lambda: transport.fetch(head, b"")):
                assert [data for data, _ in fetched.pieces] == [b"some"]
                assert isinstance(fetched.error, httpx.RemoteProtocolError)
            return

        def ask() -> None:
            with pytest.raises(httpx.RemoteProtocolError, match="closed before the first byte"):
                transport.fetch(head, b"")

        together(3, ask)


@pytest.mark.parametrize("where", ["connect", "head", "body"])
def test_a_kill_or_a_timeout_at_any_point_gives_everything_back(
    authority: dict[str, Path], where: str
) -> None:
    def stuck(peer: Peer, stream: int) -> None:
        if where == "body":
            peer.head(stream)

    late = httpx.ConnectTimeout if where == "connect" else httpx.ReadTimeout
    server: Any = Server(stuck)
    if where == "connect":
        server = lambda connection: gevent.sleep(60)  # noqa: E731
    with speaking(server, authority) as (url, transport), client(transport, url) as http:
        with pytest.raises(late):
            http.get("/", timeout=0.1)
        asking = gevent.spawn(http.get, "/", timeout=60)
        gevent.sleep(0.05)
        asking.kill()
        # a connection that works is kept
        assert transport.poller.watched == (0 if where == "connect" else 1)
        for shared in transport._shared.values():
            assert all(not known._streams for known in shared._connections)


# Stamps


def test_a_kernel_stamp_does_not_depend_on_when_we_read_over_http2_either(
    authority: dict[str, Path], way: str
) -> None:
    ended: list[int] = []
    sent: list[int] = []

    def block(peer: Peer, stream: int) -> None:
        peer.head(stream)
        gevent.sleep(0.02)
        peer.data(stream, b"token")
        sent.append(time.monotonic_ns())
        ended.append(spin(50 * load.MS))
        gevent.sleep(0.02)
        peer.data(stream, b"", end=True)

    with (
        speaking(Server(block), authority) as (url, transport),
        client(transport, url) as http,
    ):
        for whole in (True, False):
            with http.stream("GET", "/", extensions={WHOLE: whole}) as response:
                (read_ns,) = [stamps_of(response).read_ns for _ in response.iter_raw()]
            if way.startswith("epoll"):
                assert read_ns < ended[-1] - 25 * load.MS
            else:
                assert read_ns >= ended[-1]


@pytest.mark.parametrize("proxy", [Proxy, Socks])
def test_http2_goes_through_a_proxys_tunnel(
    authority: dict[str, Path], proxy: Callable[[], Proxy]
) -> None:
    server, served = Server(ok), tls(authority)
    served["ssl_context"].set_alpn_protocols(["h2"])
    with load.serving(proxy()) as place, load.serving(server, **served) as url:
        named = url.replace("127.0.0.1", "localhost")
        through = place.replace("http", "socks5") if proxy is Socks else place
        target = Target(url=named, verify=authority["ca"], proxy=through, http2=True)
        transport = open_transport(target, named)
        with client(transport, named) as http:
            together(5, lambda: http.get("/").raise_for_status())
        assert transport.clock.endswith(f": HTTP/2 through the proxy {through}")
    assert len(server.peers) == 1
