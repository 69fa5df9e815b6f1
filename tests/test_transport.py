"""Real loopback connections: how they are kept, retried, stamped and given back."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import httpx
import load
import pytest

from harness import transport as transport_module
from harness.transport import STAMPS, Stamps, Transport

pytestmark = pytest.mark.swarm


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


@pytest.mark.parametrize("where", ["connect", "tls", "head", "body"])
@pytest.mark.parametrize(
    "error", [gevent.GreenletExit(), gevent.Timeout(), httpx.ReadTimeout("")], ids=repr
)
def test_a_kill_or_timeout_at_any_point_gives_the_pool_back_once(
    where: str, error: BaseException
) -> None:
    transport = Transport(verify=False)

    def stuck(connection: Any) -> None:
        load.request_of(connection)
        if where == "body":
            connection.sendall(load.STREAM_HEAD)
        gevent.sleep(60)

    with load.serving(stuck) as url, full_backlog() as unreachable:
        place = {"connect": unreachable, "tls": url.replace("http:", "https:")}.get(where, url)
        with client(transport, place, timeout=60) as http:
            asking = gevent.spawn(http.get, "/")
            gevent.sleep(0.02)
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


@pytest.fixture(scope="module")
def authority(
    tmp_path_factory: pytest.TempPathFactory, require: Callable[[str], str]
) -> dict[str, Path]:
    """A certificate authority of our own, and what it says of 127.0.0.1."""
    folder = tmp_path_factory.mktemp("ca")
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    own = ["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=our own"]
    told = ["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"]
    by_us = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
    not_ca = ["-addext", "basicConstraints=critical,CA:FALSE"]
    for arguments in (own, [*told, *by_us, *not_ca]):
        subprocess.run(
            [require("openssl"), "req", "-x509", *options, *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    return {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}


def tls(authority: dict[str, Path]) -> dict[str, ssl.SSLContext]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority["cert"], authority["key"])
    return {"ssl_context": context}


def test_https_is_trusted_by_the_ca_that_verify_names_and_timed_as_connecting(
    authority: dict[str, Path],
) -> None:
    server, served = Counting(), tls(authority)["ssl_context"]

    def hesitate(connection: Any) -> None:
        gevent.sleep(0.3)
        server(served.wrap_socket(connection, server_side=True))

    transport = Transport(verify=authority["ca"])
    with load.serving(hesitate) as url, client(transport, url.replace("http", "https")) as http:
        first, second = stamps_of(http.get("/")), stamps_of(http.get("/"))
    assert first.connect_ns > 0.29 * load.S
    assert second.connect_ns == 0
    assert first.sent_ns <= first.first_byte_ns <= first.read_ns
    assert server.connections == 1


@pytest.mark.parametrize("verify", [True, False])
def test_https_of_an_unknown_ca_is_refused_unless_verify_is_off(
    authority: dict[str, Path], verify: bool
) -> None:
    context = tls(authority)
    with (
        load.serving(Counting(), **context) as url,
        client(Transport(verify=verify), url) as http,
    ):
        if not verify:
            assert http.get("/").status_code == 200
            return
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            http.get("/")


def test_all_connections_of_a_transport_share_one_ssl_context(
    authority: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = Transport(verify=authority["ca"])
    server, served = Counting(), tls(authority)
    monkeypatch.setattr(ssl, "SSLContext", None)
    with (
        load.serving(server, **served) as url,
        client(transport, url) as http,
        http.stream("GET", "/"),
        http.stream("GET", "/"),
    ):
        assert server.connections == 2
