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

from harness.errors import UserError

CLOCK = "monotonic, user space, after the socket read"
STAMPS = "harness.stamps"  # key of `Stamps` in a response's extensions

_CLOSED = (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError)
_STALE_WITHIN_NS = 250_000_000  # a busy generator sees a close late; a target drops later


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

    `verify` is True (the system's trust), a file or folder of certificates, or False. Raises the
    exceptions of httpx.
    """

    def __init__(self, *, verify: bool | Path = True) -> None:
        self._ssl_context = _ssl_context(verify)
        self._idle: list[_Line] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; once more on a new connection when a kept one proves dead unanswered."""
        line = self._idle.pop() if self._idle else _Line(self._ssl_context)
        try:
            with _httpx_exceptions():
                response, stamps = line.send(request)
        except BaseException:
            self._idle.append(line)
            raise
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response, lambda: self._idle.append(line)),
            extensions={**response.extensions, STAMPS: stamps},
        )

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop().pool.close()


class _Line:
    """A pool for one request at a time: a large one polls every idle socket each time."""

    def __init__(self, ssl_context: ssl.SSLContext) -> None:
        self._backend = _Backend()
        self.pool = httpcore.ConnectionPool(
            ssl_context=ssl_context,
            max_connections=None,
            max_keepalive_connections=1,
            keepalive_expiry=60.0,
            network_backend=self._backend,
        )

    def send(self, request: httpx.Request) -> tuple[httpcore.Response, Stamps]:
        """Send a request; returns the response, its body still to be read, and its stamps."""
        message = _to_core(request)
        kept = self._backend.opened
        retries = 0
        try:
            response = self.pool.handle_request(message)
        except _CLOSED:
            if kept is None or self._backend.opened is not kept or not kept.was_stale:
                raise
            if not isinstance(request.stream, httpx.ByteStream):  # it cannot be read twice
                raise
            retries = 1
            response = self.pool.handle_request(message)
        assert self._backend.opened is not None
        stamps = self._backend.opened.stamps
        stamps.retries = retries
        return response, stamps


class _StampedStream(httpcore.NetworkStream):
    """A connection that notes when it was written to and read from.

    HTTP/1.1 carries one request at a time, so the first write after a read begins a new request.
    """

    def __init__(self, inner: httpcore.NetworkStream, connect_ns: int) -> None:
        self._inner = inner
        self._connect_ns = connect_ns
        self._round_trip_ns = connect_ns
        self._answering = True
        self.stamps = Stamps(0, 0, 0, connect_ns)

    @property
    def was_stale(self) -> bool:
        """True right after an error if the other side had closed before the request reached it.

        It had not when a byte was answered, or when the error took longer than a reset takes to
        come back: then the target dropped a request that it had accepted.
        """
        took_ns = time.monotonic_ns() - self.stamps.sent_ns
        return not self._answering and took_ns < _STALE_WITHIN_NS + 2 * self._round_trip_ns

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, timeout)
        now = time.monotonic_ns()
        stamps = self.stamps
        stamps.read_ns = now
        if data and not self._answering:
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
        self._inner = self._inner.start_tls(ssl_context, server_hostname, timeout)
        self._connect_ns += time.monotonic_ns() - began
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.SyncBackend):
    """Opens stamped connections; `opened` is the last one."""

    opened: _StampedStream | None = None

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
        self.opened = _StampedStream(inner, time.monotonic_ns() - began)
        return self.opened


class _Body(httpx.SyncByteStream):
    """A response body whose errors are httpx's."""

    def __init__(self, response: httpcore.Response, on_close: Callable[[], None]) -> None:
        self._response = response
        self._on_close: Callable[[], None] | None = on_close

    def __iter__(self) -> Iterator[bytes]:
        with _httpx_exceptions():
            yield from self._response.iter_stream()

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        try:
            self._response.close()
        finally:
            if on_close:
                on_close()


def _to_core(request: httpx.Request) -> httpcore.Request:
    assert isinstance(request.stream, httpx.SyncByteStream)
    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        ),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def _ssl_context(verify: bool | Path) -> ssl.SSLContext:
    if isinstance(verify, Path):
        folder = verify.is_dir()
        try:
            return ssl.create_default_context(
                cafile=None if folder else str(verify), capath=str(verify) if folder else None
            )
        except OSError as error:
            raise UserError(f"verify: {verify} holds no usable certificates ({error})") from error
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
