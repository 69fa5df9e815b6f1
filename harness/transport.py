"""The bytes' way in and out, as an `httpx.BaseTransport`: the only place that stamps network time.

Stamps are taken in user space, right after a read of the socket returns and right before the first
write of a request, on the monotonic clock. `CLOCK` names that in the run; a transport with a better
clock replaces this module behind the same `Stamps`.

One transport, with one SSL context, serves every client of the process: a context costs some 100 ms
of CPU. Connections are not limited, since a limit would queue requests inside the generator, where
nobody sees it; the one that was idle for the shortest time is used first.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpcore
import httpx

CLOCK = "monotonic, user space, after the socket read"
STAMPS = "harness.stamps"  # key of `Stamps` in a response's extensions

_ATTEMPTS = 3
_STALE = (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError)


@dataclass(slots=True)
class Stamps:
    """Network times of one request, ns of the monotonic clock.

    `read_ns` moves on with every read: beside a chunk of the body it is that chunk's time.
    `connect_ns` is how long DNS, TCP and TLS took, 0 on a connection that was open already.
    """

    sent_ns: int
    first_byte_ns: int
    read_ns: int
    connect_ns: int
    retries: int = 0


class Transport(httpx.BaseTransport):
    """HTTP/1.1 over kept connections; without a limit to their number.

    `verify` is True (the system's trust), a file or folder of certificates, or False. Raises httpx's
    own exceptions.
    """

    def __init__(self, *, verify: bool | Path = True) -> None:
        self._ssl_context = _ssl_context(verify)
        self._backend = _Backend()
        self._idle: list[httpcore.ConnectionPool] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; once more on another connection when a kept one proves dead unanswered."""
        assert isinstance(request.stream, httpx.SyncByteStream)
        pool = self._idle.pop() if self._idle else self._new_pool()
        try:
            with _httpx_exceptions():
                response, retries = _send(pool, request)
        except BaseException:
            self._idle.append(pool)
            raise
        wire = response.extensions["network_stream"]
        assert isinstance(wire, _StampedStream)
        wire.stamps.retries = retries
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response, lambda: self._idle.append(pool)),
            extensions={**response.extensions, STAMPS: wire.stamps},
        )

    def close(self) -> None:
        """Close every idle connection."""
        for pool in self._idle:
            pool.close()

    def _new_pool(self) -> httpcore.ConnectionPool:
        """Return a pool for one request at a time: a large one polls every idle socket each time."""
        return httpcore.ConnectionPool(
            ssl_context=self._ssl_context,
            max_connections=None,
            max_keepalive_connections=1,
            keepalive_expiry=60.0,
            network_backend=self._backend,
        )


class _StampedStream(httpcore.NetworkStream):
    """A connection that notes when it was written to and read from.

    HTTP/1.1 carries one request at a time, so the first write after a read begins a new request.
    """

    def __init__(self, inner: httpcore.NetworkStream, connect_ns: int) -> None:
        self._inner = inner
        self._connect_ns = connect_ns
        self._answering = True
        self.stamps = Stamps(0, 0, 0, connect_ns)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, timeout)
        now = time.monotonic_ns()
        stamps = self.stamps
        stamps.read_ns = now
        if not self._answering:
            self._answering = True
            stamps.first_byte_ns = now
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._answering:
            self._answering = False
            self.stamps = Stamps(time.monotonic_ns(), 0, 0, self._connect_ns)
            self._connect_ns = 0
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        began = time.monotonic_ns()
        inner = self._inner.start_tls(ssl_context, server_hostname, timeout)
        return _StampedStream(inner, self._connect_ns + time.monotonic_ns() - began)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.SyncBackend):
    """Opens stamped connections."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        began = time.monotonic_ns()
        inner = super().connect_tcp(host, port, timeout, local_address, socket_options)
        return _StampedStream(inner, time.monotonic_ns() - began)


class _Body(httpx.SyncByteStream):
    """A response body whose errors are httpx's."""

    def __init__(self, response: httpcore.Response, on_close: Callable[[], None]) -> None:
        self._response = response
        self._on_close: Callable[[], None] | None = on_close

    def __iter__(self) -> Iterator[bytes]:
        with _httpx_exceptions():
            yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()
        if self._on_close:
            self._on_close()
            self._on_close = None


def _send(
    pool: httpcore.ConnectionPool, request: httpx.Request
) -> tuple[httpcore.Response, int]:
    """Send a request; returns the response and how many kept connections proved dead before it."""
    replayable = isinstance(request.stream, httpx.ByteStream)
    for retries in range(_ATTEMPTS):
        opened: list[str] = []
        try:
            return pool.handle_request(_to_core(request, opened)), retries
        except _STALE:
            if opened or not replayable:
                raise
    raise httpcore.ConnectError(f"{_ATTEMPTS} kept connections were dead, one after the other")


def _to_core(request: httpx.Request, opened: list[str]) -> httpcore.Request:
    def trace(name: str, _info: dict[str, Any]) -> None:
        if name == "connection.connect_tcp.started":
            opened.append(name)

    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        ),
        headers=request.headers.raw,
        content=request.stream,
        extensions={**request.extensions, "trace": trace},
    )


def _ssl_context(verify: bool | Path) -> ssl.SSLContext:
    if isinstance(verify, Path):
        folder = verify.is_dir()
        return ssl.create_default_context(
            cafile=None if folder else str(verify), capath=str(verify) if folder else None
        )
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _httpx_exceptions() -> Iterator[None]:
    """Raise httpx's exception of the same name in place of httpcore's."""
    try:
        yield
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    ) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error
