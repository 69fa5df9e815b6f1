"""Targets whose host is no name: unix sockets, IPv6 addresses with a zone; and what they are sent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gevent.server
import gevent.socket
import httpx
import load
import pytest

from harness.plan import Target
from harness.transport import RequestHead, open_transport, wire_bytes
from harness.transport import sockets as sockets_module
from harness.transport.messages import http2_fields, origin_of
from harness.urls import canonical_url

pytestmark = pytest.mark.swarm


def unix_url(path: str, base: str = "") -> str:
    return canonical_url(f"http+unix://{quote(path, safe='')}{base}")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http+unix://%2Ftmp%2FMy%20S.sock/v1", ("http+unix", "/tmp/My S.sock", 0)),
        ("HTTP+UNIX://%2ftmp%2F%25a/", ("http+unix", "/tmp/%a", 0)),
        ("http://[fe80::1%25eth0]:80", ("http", "fe80::1%eth0", 80)),
        ("https://[fe80::1%25enP2p1]/v1", ("https", "fe80::1%enP2p1", 443)),
        ("http://A.test:8/%25A", ("http", "a.test", 8)),
    ],
)
def test_a_host_that_is_no_name_keeps_its_case(url: str, origin: tuple[str, str, int]) -> None:
    kept = canonical_url(url)
    assert origin_of(httpx.URL(kept)) == origin
    assert canonical_url(kept) == kept


def test_the_url_of_a_socket_leads_to_its_path() -> None:
    for path in ("/run/model.sock", "/tmp/Ünïcode x.sock", "/a?b#c%41"):
        assert origin_of(httpx.URL(unix_url(path, "/v1"))) == ("http+unix", path, 0)


@contextmanager
def listening(path: Path, seen: list[bytes]) -> Iterator[str]:
    listener = gevent.socket.socket(gevent.socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve(connection: Any, _: object) -> None:
        while request := load.request_of(connection):
            seen.append(request)
            connection.sendall(load.answer())

    server = gevent.server.StreamServer(listener, serve)
    server.start()
    try:
        yield unix_url(str(path))
    finally:
        server.stop(timeout=0)


def test_a_target_may_be_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # no proxy leads there
    seen: list[bytes] = []
    with listening(tmp_path / "Model.sock", seen) as url:
        transport = open_transport(Target(url=url, http2=True), url)
        with httpx.Client(transport=transport, base_url=f"{url}/v1") as http:
            assert [http.get("models").json(), http.post("x", json={}).json()] == [{}, {}]
        request = httpx.Request("POST", f"{url}/v1/y", content=b"1")
        assert transport.fetch(RequestHead.of(request), b"1").status == 200
    assert [line.split(b"\r\n")[0] for line in seen] == [
        b"GET /v1/models HTTP/1.1",
        b"POST /v1/x HTTP/1.1",
        b"POST /v1/y HTTP/1.1",
    ]
    assert all(b"Host: localhost\r\n" in request for request in seen)


def test_a_unix_socket_that_is_not_there_is_a_connect_error(tmp_path: Path) -> None:
    url = unix_url(str(tmp_path / "none.sock"))
    with (
        httpx.Client(transport=open_transport(Target(url=url), url), base_url=url) as http,
        pytest.raises(httpx.ConnectError, match="No such file"),
    ):
        http.get("/")


def test_a_zone_says_by_which_interface_and_is_not_sent() -> None:
    url = httpx.URL("http://[fe80::1%25lo]:8000/v1")
    _, host, port = origin_of(url)
    (found,) = sockets_module._addresses(host, port)
    assert found[4] == ("fe80::1", 8000, 0, socket.if_nametoindex("lo"))
    assert b"\r\nHost: [fe80::1]:8000\r\n" in wire_bytes(httpx.Request("GET", url))
    assert dict(http2_fields("GET", url, []))[b":authority"] == b"[fe80::1]:8000"
