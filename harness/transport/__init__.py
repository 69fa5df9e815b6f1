"""The bytes' way in and out, as an `httpx.BaseTransport`: the only place that stamps network time.

A token's time is when its bytes reached the socket, by the kernel's stamp where there is one, not
when a busy loop got round to reading. One epoll serves all sockets of the process, and a greenlet
wakes when its reply is complete rather than for every chunk.

Connections are not limited, since a limit would queue requests inside the generator, where nobody
sees it; the one that was idle for the shortest time is used first. One SSL context serves them all.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import httpx

from harness.errors import UserError
from harness.http1 import ProtocolViolation, ResponseReader
from harness.transport.clock import KERNEL, USER, KernelClock
from harness.transport.connection import Connection
from harness.transport.poller import Poller

STAMPS = "harness.stamps"  # key of `Stamps` in a response's extensions
WHOLE = "harness.whole"  # in a request's extensions: wake the caller when the reply is complete

_MAX_BODY_BYTES = 256 << 20
_STALE_WITHIN_NS = 250_000_000  # a busy generator sees a close late; a target drops later
_PORTS = {"http": 80, "https": 443}

Origin = tuple[str, str, int]


@dataclass(slots=True)
class Stamps:
    """Network times of one request, ns of the monotonic clock.

    `read_ns` belongs to the piece of the body that was given out last, and after the last piece to
    the end of the reply. `connect_ns` is what DNS, TCP and TLS took, 0 on a kept connection; with a
    retry also what was lost on the dead connection.
    """

    sent_ns: int
    first_byte_ns: int
    read_ns: int
    connect_ns: int
    retries: int = 0


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of requests that differ in their body alone, up to the value of Content-Length."""

    origin: Origin
    before_length: bytes

    @classmethod
    def of(cls, request: httpx.Request) -> RequestHead:
        """Take the head over from a request that httpx has built."""
        fields = [(n, v) for n, v in request.headers.raw if n.lower() != b"content-length"]
        lines = [b"%b: %b\r\n" % field for field in fields]
        start = b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.url.raw_path)
        return cls(_origin(request.url), b"".join([start, *lines, b"Content-Length: "]))


@dataclass(frozen=True, slots=True)
class Fetched:
    """A reply as it came: the body's pieces with their stamps, and what broke it off, if anything.

    Names of headers are in lower case; `error` is an exception of httpx.
    """

    status: int
    headers: Mapping[str, str]
    pieces: list[tuple[bytes, int]]
    stamps: Stamps
    error: Exception | None


class Transport(httpx.BaseTransport):
    """HTTP/1.1 over kept connections; without a limit to their number.

    `verify` is True (the system's trust), a file or folder of certificates, or False.
    `kernel_stamps` False forces stamps in user space. Raises the exceptions of httpx.
    """

    def __init__(self, *, verify: bool | Path = True, kernel_stamps: bool = True) -> None:
        self._ssl_context = _ssl_context(verify)
        self.poller = Poller()
        self._clock = KernelClock() if kernel_stamps else None
        self._idle: dict[Origin, list[Connection]] = {}

    @property
    def clock(self) -> str:
        """Which clock stamps most reads; before the first, the one that is asked for."""
        clock = self._clock
        if clock is None or clock.stamped < clock.unstamped:
            return USER
        return KERNEL

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; once more on a new connection when a kept one proves dead unanswered."""
        origin = _origin(request.url)
        timeouts = request.extensions.get("timeout", {})
        whole = bool(request.extensions.get(WHOLE))
        data = _encode(request)
        connection, stamps = self._round(origin, request.method, data, timeouts, whole=whole)
        assert connection.reader is not None
        head = connection.reader.head
        assert head is not None
        return httpx.Response(
            status_code=head.status,
            headers=head.headers,
            stream=_Body(self, origin, connection, stamps, timeouts.get("read")),
            extensions={
                "http_version": head.http_version,
                "reason_phrase": head.reason,
                STAMPS: stamps,
            },
        )

    def fetch(self, head: RequestHead, body: bytes) -> Fetched:
        """Post a body and return the whole reply; the short way for requests that are all alike.

        What breaks the reply off after its head is returned with it, what comes before is raised.
        """
        data = b"%b%d\r\n\r\n%b" % (head.before_length, len(body), body)
        connection, stamps = self._round(head.origin, "POST", data, {}, whole=True)
        reader = connection.reader
        assert reader is not None
        assert reader.head is not None
        error: Exception | None = None
        if not reader.complete:
            try:
                _wait_whole(connection, strict=True)
            except httpx.TransportError as found:
                error = found
        stamps.read_ns = reader.end_t_ns or time.monotonic_ns()
        self.give_back(head.origin, connection)
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in reader.head.headers
        }
        return Fetched(reader.head.status, headers, reader.take(), stamps, error)

    def close(self) -> None:
        """Close every idle connection."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection whose reply is complete, or close it."""
        reader = connection.reader
        if reader is not None and reader.keep_alive and not connection.gone:
            self._idle.setdefault(origin, []).append(connection)
        else:
            connection.close()

    def _round(
        self, origin: Origin, method: str, data: bytes, timeouts: dict[str, Any], *, whole: bool
    ) -> tuple[Connection, Stamps]:
        """Send a request, if need be a second time, and wait for the head, or for all of it."""
        connection, kept = self._checkout(origin, timeouts.get("connect"))
        retries = 0
        try:
            self._exchange(connection, method, data, timeouts, whole=whole)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if not kept or not _was_stale(connection):
                raise
            retries = 1
            lost_ns = time.monotonic_ns() - connection.sent_ns  # the dead connection's, not ours
            connection, _ = self._checkout(origin, timeouts.get("connect"), fresh=True)
            connection.connect_ns += lost_ns
            self._exchange(connection, method, data, timeouts, whole=whole)
        reader = connection.reader
        assert reader is not None
        assert reader.head is not None
        first_ns, head_ns = reader.first_t_ns or 0, reader.head.t_ns
        stamps = Stamps(connection.sent_ns, first_ns, head_ns, connection.connect_ns, retries)
        connection.connect_ns = 0
        return connection, stamps

    def _checkout(
        self, origin: Origin, timeout_s: float | None, *, fresh: bool = False
    ) -> tuple[Connection, bool]:
        """Return a connection, and whether it is a kept one."""
        kept = self._idle.get(origin)
        while kept and not fresh:
            connection = kept.pop()
            if connection.look():
                return connection, True
        scheme, host, port = origin
        connection = Connection(self.poller, self._clock)
        try:
            with gevent.Timeout(timeout_s, httpx.ConnectTimeout("timed out")):
                connection.open(host, port, tls=self._ssl_context if scheme == "https" else None)
        except (OSError, UnicodeError) as error:  # the latter from a name that cannot be one
            raise httpx.ConnectError(str(error)) from error
        return connection, False

    def _exchange(
        self,
        connection: Connection,
        method: str,
        data: bytes,
        timeouts: dict[str, Any],
        *,
        whole: bool,
    ) -> None:
        """Send and wait for the head, or all; closes the connection when that fails."""
        try:
            with (
                gevent.Timeout(timeouts.get("write"), httpx.WriteTimeout("timed out")),
                _as_httpx(httpx.WriteError),
            ):
                connection.send(data, ResponseReader(method=method, max_body_bytes=_MAX_BODY_BYTES))
            if whole:
                _wait_whole(connection)
            else:
                with _read_limit(timeouts.get("read")):
                    connection.wait_head()
        except BaseException:
            connection.close()
            raise


class _Body(httpx.SyncByteStream):
    """A reply's body, piece by piece; each piece moves `stamps.read_ns`."""

    def __init__(
        self,
        transport: Transport,
        origin: Origin,
        connection: Connection,
        stamps: Stamps,
        timeout_s: float | None,
    ) -> None:
        self._transport = transport
        self._origin = origin
        self._connection: Connection | None = connection
        self._stamps = stamps
        self._timeout_s = timeout_s

    def __iter__(self) -> Iterator[bytes]:
        connection, stamps = self._connection, self._stamps
        if connection is None:
            return
        reader = connection.reader
        assert reader is not None
        while True:
            for piece, t_ns in reader.take():
                stamps.read_ns = t_ns
                yield piece
            if reader.complete:
                stamps.read_ns = reader.end_t_ns or stamps.read_ns
                return
            with _read_limit(self._timeout_s):
                connection.wait_piece()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.give_back(self._origin, connection)


def _wait_whole(connection: Connection, *, strict: bool = False) -> None:
    """Wait for the end of the reply. What breaks off after the head is left for the body to raise,
    unless `strict`."""
    with _as_httpx(httpx.ReadError):
        try:
            connection.wait_whole()
        except (ProtocolViolation, OSError):
            if strict or connection.reader is None or connection.reader.head is None:
                raise


def _origin(url: httpx.URL) -> Origin:
    scheme = url.scheme
    if scheme not in _PORTS:
        raise httpx.UnsupportedProtocol(f"{scheme or 'no'} protocol: http and https are supported")
    return scheme, url.host, url.port or _PORTS[scheme]


def _encode(request: httpx.Request) -> bytes:
    """Return the request as it goes over the wire."""
    target = request.url.raw_path
    lines = [request.method.encode("ascii"), b" ", target, b" HTTP/1.1\r\n"]
    chunked = False
    for name, value in request.headers.raw:
        lines += (name, b": ", value, b"\r\n")
        chunked |= name.lower() == b"transfer-encoding"
    lines.append(b"\r\n")
    if b"".join(lines).count(b"\n") != len(request.headers.raw) + 2:
        raise httpx.LocalProtocolError("a header holds a line break")
    assert isinstance(request.stream, httpx.SyncByteStream)
    for part in request.stream:
        if chunked and part:
            lines += (b"%x\r\n" % len(part), part, b"\r\n")
        else:
            lines.append(part)
    if chunked:
        lines.append(b"0\r\n\r\n")
    return b"".join(lines)


def _was_stale(connection: Connection) -> bool:
    """Tell whether the other side had closed before the request reached it.

    It had not when a byte was answered, or when the error took longer than a reset takes to come
    back: then the target dropped a request that it had accepted.
    """
    reader = connection.reader
    answered = reader is not None and reader.first_t_ns is not None
    return not answered and time.monotonic_ns() - connection.sent_ns < _STALE_WITHIN_NS


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
def _as_httpx(kind: type[httpx.NetworkError]) -> Iterator[None]:
    """Raise httpx's exceptions in place of the connection's."""
    try:
        yield
    except ProtocolViolation as error:
        raise httpx.RemoteProtocolError(str(error)) from error
    except OSError as error:
        raise kind(str(error)) from error


@contextmanager
def _read_limit(timeout_s: float | None) -> Iterator[None]:
    with (
        gevent.Timeout(timeout_s, httpx.ReadTimeout("timed out")),
        _as_httpx(httpx.ReadError),
    ):
        yield
