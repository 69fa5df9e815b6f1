"""The bytes' way in and out, as an `httpx.BaseTransport`: the only place that stamps network time.

A token's time is when its bytes reached the socket, by the kernel's stamp where there is one, not
when a busy loop got round to reading. One epoll serves all sockets of the process, and a greenlet
wakes when its reply is complete rather than for every chunk.

Connections are not limited, since a limit would queue requests inside the generator, where nobody
sees it; the one that was idle for the shortest time is used first. One SSL context serves them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import gevent
import httpx

from harness.http1 import ProtocolViolation, ResponseReader
from harness.transport.clock import KERNEL, USER, KernelClock
from harness.transport.connection import Connection
from harness.transport.messages import (
    STAMPS,
    Decoded,
    Fetched,
    Follower,
    Origin,
    RequestHead,
    Stamps,
    origin_of,
    wire_bytes,
)
from harness.transport.poller import Poller
from harness.transport.tls import client_context, refusal

__all__ = [
    "ANSWER",
    "STAMPS",
    "WHOLE",
    "Fetched",
    "Follower",
    "RequestHead",
    "Stamps",
    "Transport",
    "Within",
    "wire_bytes",
]

ANSWER = "harness.answer"  # in a request's extensions: its reply, which is already here
WHOLE = "harness.whole"  # in a request's extensions: wake the caller when the reply is complete

MAX_BODY_BYTES = 256 << 20
_STALE_WITHIN_NS = 250_000_000  # a busy generator sees a close late; a target drops later
_NO_TIMEOUTS: Mapping[str, float | None] = {}
_NO_LIMIT = nullcontext()


class Transport(httpx.BaseTransport):
    """HTTP/1.1 over kept connections; without a limit to their number.

    `verify` is True (the system's trust), a file or folder of certificates, or False; `cert` and
    its `key` are shown to servers that ask for a certificate. `kernel_stamps` False forces stamps
    in user space. A body above `max_body_bytes`, as it comes, is cut. Raises the exceptions of
    httpx.
    """

    def __init__(
        self,
        *,
        verify: bool | Path = True,
        cert: Path | None = None,
        key: Path | None = None,
        kernel_stamps: bool = True,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._ssl_context = client_context(verify, cert, key)
        self.poller = Poller()
        self._clock = KernelClock() if kernel_stamps else None
        self.poller.may_rest = lambda: self.clock == KERNEL
        self._idle: dict[Origin, list[Connection]] = {}

    @property
    def clock(self) -> str:
        """Which clock stamps most reads; before the first, the one that is asked for."""
        clock = self._clock
        if clock is None or clock.stamped < clock.unstamped:
            return USER
        return KERNEL

    @property
    def kernel_clock(self) -> KernelClock | None:
        """What has counted stamped reads and steps of the clock; None where it is not asked."""
        return self._clock

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; once more on a new connection when a kept one proves dead unanswered."""
        answer: httpx.Response | None = request.extensions.pop(ANSWER, None)
        if answer is not None:
            return answer
        origin = origin_of(request.url)
        timeouts = request.extensions.get("timeout", {})
        whole = bool(request.extensions.get(WHOLE))
        data = wire_bytes(request)
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

    def fetch(self, head: RequestHead, body: bytes, follower: Follower | None = None) -> Fetched:
        """Send a body and return the whole reply; the short way for requests that are all alike.

        What breaks the reply off after its head is returned with it, what comes before is raised.
        A `follower` that needs no more ends the wait for a body that does not end.
        """
        return self.fetch_straight(head, body, _NO_TIMEOUTS, follower)

    def keeps(self, origin: Origin) -> bool:
        """Tell whether there is an idle connection to go straight there."""
        return bool(self._idle.get(origin))

    def fetch_straight(
        self,
        head: RequestHead,
        body: bytes,
        timeouts: Mapping[str, float | None],
        follower: Follower | None = None,
    ) -> Fetched:
        """Do as `fetch` does, with httpx's timeouts to connect and to write; past any proxy."""
        data = head.with_body(body)
        connection, stamps = self._round(
            head.origin, head.method, data, timeouts, whole=True, follower=follower
        )
        reader = connection.reader
        assert reader is not None
        found = reader.head
        assert found is not None
        error: Exception | None = None
        if not reader.complete:
            try:
                _wait_whole(connection, strict=True)
            except httpx.TransportError as broken:
                error = broken
        stamps.read_ns = reader.end_t_ns or time.monotonic_ns()
        pieces = reader.take()
        give_back = partial(self.give_back, head.origin, connection)
        if connection.enough and not reader.complete:
            error = error or httpx.RemoteProtocolError("the body had no end")
            connection.drain(give_back)
        else:
            give_back()
        headers = Decoded(found.by_name)
        return Fetched(found.status, headers, pieces, stamps, error, found)

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
        self,
        origin: Origin,
        method: str,
        data: bytes,
        timeouts: Mapping[str, float | None],
        *,
        whole: bool,
        follower: Follower | None = None,
    ) -> tuple[Connection, Stamps]:
        """Send a request, if need be a second time, and wait for the head, or for all of it."""
        connection, kept = self._checkout(origin, timeouts.get("connect"))
        retries = 0
        try:
            self._exchange(connection, method, data, timeouts, whole=whole, follower=follower)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if not kept or not _was_stale(connection):
                raise
            retries = 1
            lost_ns = time.monotonic_ns() - connection.sent_ns  # the dead connection's, not ours
            connection, _ = self._checkout(origin, timeouts.get("connect"), fresh=True)
            connection.connect_ns += lost_ns
            self._exchange(connection, method, data, timeouts, whole=whole, follower=follower)
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
            raise httpx.ConnectError(refusal(error) or str(error)) from error
        return connection, False

    def _exchange(
        self,
        connection: Connection,
        method: str,
        data: bytes,
        timeouts: Mapping[str, float | None],
        *,
        whole: bool,
        follower: Follower | None,
    ) -> None:
        """Send and wait for the head, or all; closes the connection when that fails."""
        reader = ResponseReader(method=method, max_body_bytes=self._max_body_bytes)
        try:
            with _limit(timeouts.get("write"), httpx.WriteTimeout):
                try:
                    connection.send(data, reader, follower)
                except (ProtocolViolation, OSError) as error:
                    raise _as_httpx(error, httpx.WriteError) from error
            if whole:
                _wait_whole(connection)
            else:
                _wait_live(connection.wait_head, timeouts.get("read"))
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
            _wait_live(connection.wait_piece, self._timeout_s)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.give_back(self._origin, connection)


class Within:
    """Raises httpx.ReadTimeout when what is inside takes over `limit_s`, None for no limit."""

    __slots__ = ("_limit_s", "_timeout")

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._timeout = gevent.Timeout(limit_s)

    def __enter__(self) -> None:
        self._timeout.start()

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        self._timeout.close()
        if error is self._timeout:
            raise httpx.ReadTimeout(f"no whole reply within {self._limit_s:g} s") from None


def _wait_whole(connection: Connection, *, strict: bool = False) -> None:
    """Wait for the end of the reply. What breaks off after the head is left for the body to raise,
    unless `strict`."""
    try:
        connection.wait_whole()
    except (ProtocolViolation, OSError) as error:
        if strict or connection.reader is None or connection.reader.head is None:
            raise _as_httpx(error, httpx.ReadError) from error


def _wait_live(wait: Callable[[], None], timeout_s: float | None) -> None:
    """Wait for the next thing to read."""
    with _limit(timeout_s, httpx.ReadTimeout):
        try:
            wait()
        except (ProtocolViolation, OSError) as error:
            raise _as_httpx(error, httpx.ReadError) from error


def _was_stale(connection: Connection) -> bool:
    """Tell whether the other side had closed before the request reached it.

    It had not when a byte was answered, or when the error took longer than a reset takes to come
    back: then the target dropped a request that it had accepted.
    """
    reader = connection.reader
    answered = reader is not None and reader.first_t_ns is not None
    return not answered and time.monotonic_ns() - connection.sent_ns < _STALE_WITHIN_NS


def _as_httpx(
    error: ProtocolViolation | OSError, kind: type[httpx.NetworkError]
) -> httpx.TransportError:
    """Return httpx's exception for one of the connection's; `kind` is what an OSError becomes."""
    if isinstance(error, ProtocolViolation):
        return httpx.RemoteProtocolError(str(error))
    refused = refusal(error)
    return kind(str(error)) if refused is None else httpx.ConnectError(refused)


def _limit(
    timeout_s: float | None, late: type[httpx.TimeoutException]
) -> AbstractContextManager[object]:
    if timeout_s is None:
        return _NO_LIMIT
    limit: AbstractContextManager[object] = gevent.Timeout(timeout_s, late("timed out"))
    return limit
