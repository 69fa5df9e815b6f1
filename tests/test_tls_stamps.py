"""TLS through memory: the kernel's stamps are kept, and what goes wrong is told by its reason."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path
from typing import Any

import gevent
import httpx
import load
import pytest
from test_transport import BIG, Counting, client, spin, stamps_of

from harness import transport as transport_module
from harness.transport import WHOLE, Transport
from harness.transport.connection import Connection
from harness.transport.sockets import StampedSocket
from harness.transport.tls import TlsLayer

pytestmark = pytest.mark.swarm
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def tls(authority: dict[str, Path], name: str = "cert") -> dict[str, ssl.SSLContext]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority[name], authority[name].with_suffix(".key"))
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
        with pytest.raises(httpx.ConnectError, match=r"certificate verify failed.*verify: ca\.pem"):
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


@pytest.mark.parametrize(
    ("name", "host", "reason"),
    [
        ("other", "127.0.0.1", "IP address mismatch.*verify: false"),
        ("other", "localhost", "Hostname mismatch.*as its certificate does"),
        ("expired", "127.0.0.1", "expired; renew it, or set the target's verify: false"),
    ],
)
def test_a_failed_handshake_is_a_connect_error_with_its_reason_and_the_server_is_told(
    authority: dict[str, Path], name: str, host: str, reason: str
) -> None:
    told: list[str] = []
    context = tls(authority, name)["ssl_context"]

    def serve(connection: Any) -> None:
        try:
            context.wrap_socket(connection, server_side=True).recv(1)
        except OSError as error:
            told.append(str(error))

    transport = Transport(verify=authority["ca"])
    with load.serving(serve) as url:
        place = url.replace("http", "https").replace("127.0.0.1", host)
        with client(transport, place) as http, pytest.raises(httpx.ConnectError, match=reason):
            http.get("/")
        assert transport.poller.watched == 0
        gevent.sleep(0.05)
    assert "alert" in told[0]


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_a_server_that_speaks_no_tls_is_a_connect_error(says: bytes) -> None:
    def serve(connection: Any) -> None:
        connection.recv(1000)
        connection.sendall(says)

    transport = Transport()
    with load.serving(serve) as url:
        with (
            client(transport, url.replace("http", "https")) as http,
            pytest.raises(httpx.ConnectError, match=r"SSL|TLS"),
        ):
            http.get("/")
        assert transport.poller.watched == 0


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
def test_a_server_that_wants_a_client_certificate_is_an_error_that_says_so(
    authority: dict[str, Path], version: ssl.TLSVersion
) -> None:
    served = tls(authority)
    served["ssl_context"].verify_mode = ssl.CERT_REQUIRED
    served["ssl_context"].load_verify_locations(authority["ca"])
    served["ssl_context"].maximum_version = version
    transport = Transport(verify=authority["ca"])
    with load.serving(Counting(), **served) as url, client(transport, url) as http:
        with pytest.raises(httpx.NetworkError, match="alert"):
            http.get("/")
        assert transport.poller.watched == 0


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
def test_a_connection_is_kept_over_late_tickets_and_large_bodies_arrive_whole(
    authority: dict[str, Path], version: ssl.TLSVersion
) -> None:
    body = bytes(range(256)) * (BIG // 1024)
    served = tls(authority)
    served["ssl_context"].minimum_version = served["ssl_context"].maximum_version = version

    def echo(connection: Any) -> None:
        while request := load.request_of(connection):
            connection.sendall(load.answer(request.partition(b"\r\n\r\n")[2]))

    transport = Transport(verify=authority["ca"])
    with load.serving(echo, **served) as url, client(transport, url) as http:
        for whole in (True, False):
            response = http.post("/", content=body, extensions={WHOLE: whole})
            assert response.content == body
            gevent.sleep(0.02)
        assert stamps_of(response).connect_ns == 0
        assert transport.poller.watched == 1


def test_tickets_on_an_idle_connection_do_not_close_it_and_a_close_does(
    authority: dict[str, Path],
) -> None:
    transport = Transport(verify=authority["ca"])
    context = tls(authority)["ssl_context"]
    context.num_tickets = 2
    secure: list[Any] = []
    steps = [gevent.event.Event() for _ in range(2)]

    def serve(connection: Any) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(incoming, outgoing, server_side=True)
        secure.append(server)
        while True:
            try:
                server.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                incoming.write(connection.recv(65536))
        tickets = outgoing.read()
        steps[0].wait()
        connection.sendall(tickets)
        steps[1].wait()
        connection.close()

    with load.serving(serve) as url:
        stamped = StampedSocket(transport.poller, None)
        stamped.connect("127.0.0.1", int(url.rpartition(":")[2]))
        stamped.start_tls(transport._ssl_context, "127.0.0.1")
        idle = Connection(transport.poller, stamped)
        steps[0].set()
        gevent.sleep(0.05)
        assert idle.look()
        steps[1].set()
        gevent.sleep(0.05)
        assert not idle.look()
        assert idle.gone
    assert transport.poller.watched == 0


@pytest.mark.parametrize("kernel_stamps", [True, False])
def test_a_kernel_stamp_does_not_depend_on_when_we_read_over_tls_either(
    authority: dict[str, Path], kernel_stamps: bool
) -> None:
    ended: list[int] = []
    sent: list[int] = []

    def block(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.STREAM_HEAD)
        gevent.sleep(0.02)
        connection.sendall(load.event())
        sent.append(time.monotonic_ns())
        connection.sendall(load.event())
        ended.append(spin(50 * load.MS))
        gevent.sleep(0.02)
        connection.sendall(load.END)

    transport = Transport(verify=authority["ca"], kernel_stamps=kernel_stamps)
    with load.serving(block, **tls(authority)) as url, client(transport, url) as http:
        for whole in (True, False):
            with http.stream("GET", "/", extensions={WHOLE: whole}) as response:
                reads = [stamps_of(response).read_ns for _ in response.iter_raw()]
            assert len(reads) == 1
            if kernel_stamps:
                assert sent[-1] <= reads[0] < ended[-1] - 25 * load.MS
            else:
                assert reads[0] >= ended[-1]


LENGTH = load.answer(b"x" * 100)
TO_THE_END = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100


@pytest.mark.parametrize("notify", [True, False], ids=["close_notify", "no close_notify"])
@pytest.mark.parametrize(
    ("reply", "whole_if"),
    [
        (LENGTH, {True, False}),
        (LENGTH[:-1], set()),
        (load.STREAM_HEAD + load.event(), set()),
        (TO_THE_END, {True}),
    ],
    ids=["complete", "cut short", "cut chunks", "ended by the close"],
)
def test_without_close_notify_a_complete_reply_is_accepted_and_no_other(
    authority: dict[str, Path], reply: bytes, whole_if: set[bool], notify: bool
) -> None:
    context = tls(authority)["ssl_context"]

    def serve(connection: Any) -> None:
        secure = context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=True)
        load.request_of(secure)
        secure.sendall(reply)
        if notify:
            secure.settimeout(0.2)
            secure.unwrap()
        else:
            secure.shutdown(socket.SHUT_RDWR)

    transport = Transport(verify=authority["ca"])
    with load.serving(serve) as url:
        for whole in (True, False):
            with client(transport, url.replace("http", "https")) as http:
                if notify in whole_if:
                    text = http.get("/", extensions={WHOLE: whole}).text
                    assert text == "x" * 100
                else:
                    with pytest.raises(httpx.RemoteProtocolError, match="closed"):
                        http.get("/", extensions={WHOLE: whole})
                gevent.sleep(0.03)
                assert transport.poller.watched == 0


def test_a_complete_reply_is_kept_though_an_alert_comes_in_the_same_read(
    authority: dict[str, Path],
) -> None:
    context = tls(authority)["ssl_context"]

    def serve(connection: Any) -> None:
        secure = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=True)
        load.request_of(secure)
        secure.sendall(load.answer())
        raw = socket.socket(fileno=secure.detach())
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record that nobody can decrypt
        raw.close()

    transport = Transport(verify=authority["ca"])
    with load.serving(serve) as url, client(transport, url.replace("http", "https")) as http:
        assert http.get("/").json() == {}
        gevent.sleep(0.03)
        assert transport.poller.watched == 0


@pytest.mark.parametrize("where", ["handshake", "send", "body"])
def test_a_kill_at_any_point_of_tls_gives_everything_back(
    authority: dict[str, Path], where: str
) -> None:
    context = tls(authority)["ssl_context"]

    def stuck(connection: Any) -> None:
        if where == "handshake":
            connection.recv(1)
            gevent.sleep(60)
        secure = context.wrap_socket(connection, server_side=True)
        secure.recv(1000)
        if where == "body":
            secure.sendall(load.STREAM_HEAD)
        gevent.sleep(60)

    transport = Transport(verify=authority["ca"])
    with load.serving(stuck) as url:
        place = url.replace("http", "https")
        with client(transport, place, timeout=60) as http:
            body = bytes(BIG if where == "send" else 1)
            asking = gevent.spawn(http.post, "/", content=body)
            gevent.sleep(0.1)
            assert transport.poller.watched == 1
            asking.kill()
            assert transport.poller.watched == 0
            assert not transport._idle


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
def test_an_early_complete_reply_is_returned_over_tls_too(
    authority: dict[str, Path], version: ssl.TLSVersion
) -> None:
    served = tls(authority)
    served["ssl_context"].maximum_version = version

    def refuse(connection: Any) -> None:
        connection.recv(1000)
        connection.sendall(load.answer(b"too large", status="413 Content Too Large"))
        gevent.sleep(60)

    transport = Transport(verify=authority["ca"])
    with load.serving(refuse, **served) as url, client(transport, url) as http:
        response = http.post("/", content=bytes(BIG))
        assert (response.status_code, response.content) == (413, b"too large")
        assert transport.poller.watched == 0


def test_a_kept_tls_connection_that_dies_unanswered_is_retried(
    authority: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "_STALE_WITHIN_NS", 10 * load.S)

    def serve(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.answer())
        load.request_of(connection)

    transport = Transport(verify=authority["ca"])
    with load.serving(serve, **tls(authority)) as url, client(transport, url) as http:
        http.get("/")
        again = stamps_of(http.get("/"))
    assert again.retries == 1
    assert 0 < again.connect_ns < 10 * load.S


def test_what_tls_has_to_say_amid_an_upload_does_not_cut_into_it(
    authority: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    got = bytearray()

    def serve(connection: Any) -> None:
        connection.sendall(load.STREAM_HEAD + load.chunk(b"begun"))
        gevent.sleep(0.05)
        while not got.endswith(b"own words"):
            got.extend(connection.recv(1 << 20))
        connection.sendall(load.END)

    unwrap = TlsLayer.unwrap

    def speak(self: Any, *arguments: Any) -> Any:
        found = unwrap(self, *arguments)
        if found[0].endswith(b"begun\r\n"):
            self._tls.write(b"own words")  # as with a new key: a record out of turn
        return found

    monkeypatch.setattr(TlsLayer, "unwrap", speak)
    transport = Transport(verify=authority["ca"])
    with load.serving(serve, **tls(authority)) as url, client(transport, url) as http:
        assert http.post("/", content=bytes(BIG)).text == "begun"
    assert bytes(got).endswith(bytes(1000) + b"own words")
