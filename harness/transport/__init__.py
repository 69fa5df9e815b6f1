"""The bytes' way in and out, as an `httpx.BaseTransport`: the only place that stamps network time.

A token's time is when its bytes reached the socket, by the kernel's stamp where there is one, not
when a busy loop got round to reading. That holds for HTTP/1.1 and HTTP/2, straight and through
proxies. One epoll serves all sockets of the process, and a greenlet wakes when its reply is
complete rather than for every chunk.

Connections are not limited, since a limit would queue requests inside the generator, where nobody
sees it. Of those for HTTP/1.1 the one that was idle for the shortest time is used first; of those
for HTTP/2 the first that takes another stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from ssl import SSLContext

import gevent
import httpx

from harness.http1 import ProtocolViolation
from harness.http2 import StreamUnprocessed
from harness.plan import Target
from harness.transport.clock import KERNEL, USER, KernelClock
from harness.transport.connection import Connection
from harness.transport.exchange import MAX_BODY_BYTES, Exchange
from harness.transport.messages import (
    STAMPS,
    BuiltMessage,
    Decoded,
    Fetched,
    Follower,
    KnownMessage,
    Message,
    Origin,
    RequestHead,
    Stamps,
    origin_of,
    wire_bytes,
)
from harness.transport.multiplexed import Multiplexed, Shared
from harness.transport.poller import Poller
from harness.transport.routes import Route, Routes
from harness.transport.sockets import StampedSocket
from harness.transport.tls import client_context, refusal
from harness.urls import UNIX_SCHEME, canonical_url

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
    "open_transport",
    "wire_bytes",
]

ANSWER = "harness.answer"  # in a request's extensions: its reply, which is already here
WHOLE = "harness.whole"  # in a request's extensions: wake the caller when the reply is complete

_STALE_WITHIN_NS = 250_000_000  # a busy generator sees a close late; a target drops later
_NO_TIMEOUTS: Mapping[str, float | None] = {}
_NO_LIMIT = nullcontext()


def open_transport(target: Target, url: str) -> Transport:
    """Return the transport for a target whose URL is `url`.

    Raises UserError for certificates and for a proxy of the environment that cannot be used.
    """
    return Transport(
        verify=target.verify,
        cert=target.cert,
        key=target.key,
        routes=Routes.of(target),
        target=origin_of(httpx.URL(canonical_url(url))),
        max_body_bytes=target.max_reply_bytes,
    )


class Transport(httpx.BaseTransport):
    """HTTP/1.1 and HTTP/2 over kept connections; without a limit to their number.

    `verify` is True (the system's trust), a file or folder of certificates, or False; `cert` and
    its `key` are shown to servers that ask for a certificate. `kernel_stamps` False forces stamps
    in user space. A body above `max_body_bytes`, as it comes, is cut. `routes` are the ways to go,
    and `target` is the origin whose way `clock` tells.
    Raises the exceptions of httpx.
    """

    def __init__(
        self,
        *,
        verify: bool | Path = True,
        cert: Path | None = None,
        key: Path | None = None,
        kernel_stamps: bool = True,
        routes: Routes | None = None,
        target: Origin | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._trust = verify, cert, key
        self._ssl_context = client_context(*self._trust)
        self.poller = Poller()
        self._clock = KernelClock() if kernel_stamps else None
        self.poller.may_rest = lambda: self._stamps_by == KERNEL
        self._routes = routes or Routes()
        self._target = target
        if target is not None:
            self._routes.find(target)
        self._idle: dict[Origin, list[Connection]] = {}
        self._shared: dict[Origin, Shared] = {}
        self._spoken: dict[Origin, set[str]] = {}

    @property
    def clock(self) -> str:
        """Which clock stamps most reads, and what is on the way to the target.

        Before the first read it is the clock that is asked for.
        """
        if self._target is None:
            return self._stamps_by
        spoken = self._spoken.get(self._target, set())
        why = self._routes.find(self._target).why(spoken)
        return f"{self._stamps_by}: {why}" if why else self._stamps_by

    @property
    def _stamps_by(self) -> str:
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
        exchange, stamps = self._round(origin, BuiltMessage.of(request), timeouts, whole=whole)
        assert exchange.reader is not None
        head = exchange.reader.head
        assert head is not None
        return httpx.Response(
            status_code=head.status,
            headers=head.headers,
            stream=_Body(self, origin, exchange, stamps, timeouts.get("read")),
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
        """Tell whether there is a connection to go there at once."""
        if self._idle.get(origin):
            return True
        shared = self._shared.get(origin)
        return shared is not None and shared.with_room() is not None

    def fetch_straight(
        self,
        head: RequestHead,
        body: bytes,
        timeouts: Mapping[str, float | None],
        follower: Follower | None = None,
    ) -> Fetched:
        """Do as `fetch` does, with httpx's timeouts to connect and to write."""
        exchange, stamps = self._round(
            head.origin, KnownMessage(head, body), timeouts, whole=True, follower=follower
        )
        reader = exchange.reader
        assert reader is not None
        found = reader.head
        assert found is not None
        error: Exception | None = None
        if not reader.complete:
            try:
                _wait_whole(exchange, strict=True)
            except httpx.TransportError as broken:
                error = broken
        stamps.read_ns = reader.end_t_ns or time.monotonic_ns()
        pieces = reader.take()
        if exchange.enough and not reader.complete:
            error = error or httpx.RemoteProtocolError("the body had no end")
            self._leave(head.origin, exchange)
        else:
            self.give_back(head.origin, exchange)
        headers = Decoded(found.by_name)
        return Fetched(found.status, headers, pieces, stamps, error, found, reader.loose)

    def close(self) -> None:
        """Close every idle connection."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()
        for shared in self._shared.values():
            shared.close()
        self._shared.clear()

    def give_back(self, origin: Origin, exchange: Exchange) -> None:
        """Keep a connection whose reply is complete, or close it."""
        if isinstance(exchange, Connection) and exchange.keep_alive:
            self._idle.setdefault(origin, []).append(exchange)
        else:
            exchange.close()

    def _leave(self, origin: Origin, exchange: Exchange) -> None:
        """Let the rest of a reply come in apart from any request, if that keeps a connection."""
        if isinstance(exchange, Connection):
            exchange.drain(partial(self.give_back, origin, exchange))
        else:
            exchange.close()

    def _round(
        self,
        origin: Origin,
        message: Message,
        timeouts: Mapping[str, float | None],
        *,
        whole: bool,
        follower: Follower | None = None,
    ) -> tuple[Exchange, Stamps]:
        """Send a request, if need be a second time, and wait for the head, or for all of it."""
        route = self._routes.find(origin)
        if route.proxy is not None and route.proxy.forwards(origin):
            message = route.proxy.forwarded(message, origin)
        exchange, kept = self._checkout(origin, route, timeouts.get("connect"))
        retries = 0
        try:
            exchange.follow_by(follower)
            self._exchange(exchange, message, timeouts, whole=whole)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            if not isinstance(error.__cause__, StreamUnprocessed) and (
                not kept or not _was_stale(exchange)
            ):
                raise
            retries = 1
            lost_ns = time.monotonic_ns() - exchange.sent_ns  # the dead connection's, not ours
            exchange, _ = self._checkout(origin, route, timeouts.get("connect"), fresh=True)
            exchange.connect_ns += lost_ns
            exchange.follow_by(follower)
            self._exchange(exchange, message, timeouts, whole=whole)
        reader = exchange.reader
        assert reader is not None
        assert reader.head is not None
        first_ns, head_ns = reader.first_t_ns or 0, reader.head.t_ns
        stamps = Stamps(exchange.sent_ns, first_ns, head_ns, exchange.connect_ns, retries)
        exchange.connect_ns = 0
        return exchange, stamps

    def _checkout(
        self, origin: Origin, route: Route, timeout_s: float | None, *, fresh: bool = False
    ) -> tuple[Exchange, bool]:
        """Return what can carry a request, and whether it was open before."""
        kept = self._idle.get(origin)
        while kept and not fresh:
            connection = kept.pop()
            if connection.look():
                return connection, True
        began_ns = time.monotonic_ns()
        with _limit(timeout_s, httpx.ConnectTimeout, route):
            if route.http2:
                exchange, was_open = self._share(origin, route, fresh=fresh)
                if was_open:
                    return exchange, True
            else:
                exchange = _first_of(self._dial(origin, route))
        exchange.connect_ns = time.monotonic_ns() - began_ns
        return exchange, False

    def _share(self, origin: Origin, route: Route, *, fresh: bool) -> tuple[Exchange, bool]:
        """Return a stream on a connection that is open or is being opened; or open one."""
        shared = self._shared.get(origin)
        if shared is None:
            shared = self._shared[origin] = Shared()
        waited = False
        while True:
            if waited or not fresh:
                connection = shared.with_room()
                if connection is not None:
                    return connection.stream(), not waited
            if "HTTP/1.1" in self._spoken.get(origin, ()) or not shared.wait_for_dial():
                return _first_of(shared.dial(lambda: self._dial(origin, route))), False
            waited = True

    def _dial(self, origin: Origin, route: Route) -> Connection | Multiplexed:
        """Open a connection, and make out which version is spoken on it."""
        through = "" if route.proxy is None else f"through the proxy {route.proxy.shown}: "
        try:
            return self._open(origin, route)
        except httpx.ProxyError as error:
            raise httpx.ProxyError(f"{through}{error}") from error
        except (OSError, ProtocolViolation, UnicodeError) as error:  # the last: no name of a host
            raise httpx.ConnectError(through + (refusal(error) or str(error))) from error

    def _open(self, origin: Origin, route: Route) -> Connection | Multiplexed:
        scheme, host, port = origin
        socket = StampedSocket(self.poller, self._clock)
        if route.proxy is not None:
            context = self._proxy_context if route.proxy.has_tls else None
            route.proxy.open(socket, origin, context)
        elif scheme == UNIX_SCHEME:
            socket.connect_unix(host)
        else:
            socket.connect(host, port)
        agreed = None
        if scheme == "https":
            context = self._http2_context if route.http2 else self._ssl_context
            agreed = socket.start_tls(context, host.partition("%")[0])
        spoken = self._spoken.setdefault(origin, set())
        if agreed != "h2":
            spoken.add("HTTP/1.1")
            return Connection(self.poller, socket, max_body_bytes=self._max_body_bytes)
        spoken.add("HTTP/2")
        connection = Multiplexed(self.poller, socket, max_body_bytes=self._max_body_bytes)
        connection.start()
        if connection.room <= 0:
            connection.close()
            raise ProtocolViolation("the server allows no HTTP/2 streams")
        return connection

    @cached_property
    def _http2_context(self) -> SSLContext:
        return client_context(*self._trust, offers=("h2", "http/1.1"))

    @cached_property
    def _proxy_context(self) -> SSLContext:
        return client_context(self._trust[0])

    def _exchange(
        self,
        exchange: Exchange,
        message: Message,
        timeouts: Mapping[str, float | None],
        *,
        whole: bool,
    ) -> None:
        """Send and wait for the head, or all; closes the exchange when that fails."""
        try:
            with _limit(timeouts.get("write"), httpx.WriteTimeout):
                try:
                    exchange.send(message)
                except (ProtocolViolation, OSError) as error:
                    raise _as_httpx(error, httpx.WriteError) from error
            if whole:
                _wait_whole(exchange)
            else:
                _wait_live(exchange.wait_head, timeouts.get("read"))
        except BaseException:
            exchange.close()
            raise


class _Body(httpx.SyncByteStream):
    """A reply's body, piece by piece; each piece moves `stamps.read_ns`."""

    def __init__(
        self,
        transport: Transport,
        origin: Origin,
        exchange: Exchange,
        stamps: Stamps,
        timeout_s: float | None,
    ) -> None:
        self._transport = transport
        self._origin = origin
        self._exchange: Exchange | None = exchange
        self._stamps = stamps
        self._timeout_s = timeout_s

    def __iter__(self) -> Iterator[bytes]:
        exchange, stamps = self._exchange, self._stamps
        if exchange is None:
            return
        reader = exchange.reader
        assert reader is not None
        while True:
            for piece, t_ns in reader.take():
                stamps.read_ns = t_ns
                yield piece
            if reader.complete:
                stamps.read_ns = reader.end_t_ns or stamps.read_ns
                return
            _wait_live(exchange.wait_piece, self._timeout_s)

    def close(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._transport.give_back(self._origin, exchange)


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


def _wait_whole(exchange: Exchange, *, strict: bool = False) -> None:
    """Wait for the end of the reply. What breaks off after the head is left for the body to raise,
    unless `strict`."""
    try:
        exchange.wait_whole()
    except (ProtocolViolation, OSError) as error:
        if strict or exchange.reader is None or exchange.reader.head is None:
            raise _as_httpx(error, httpx.ReadError) from error


def _wait_live(wait: Callable[[], None], timeout_s: float | None) -> None:
    """Wait for the next thing to read."""
    with _limit(timeout_s, httpx.ReadTimeout):
        try:
            wait()
        except (ProtocolViolation, OSError) as error:
            raise _as_httpx(error, httpx.ReadError) from error


def _was_stale(exchange: Exchange) -> bool:
    """Tell whether the other side had closed before the request reached it.

    It had not when a byte was answered, or when the error took longer than a reset takes to come
    back: then the target dropped a request that it had accepted.
    """
    reader = exchange.reader
    answered = reader is not None and reader.first_t_ns is not None
    return not answered and time.monotonic_ns() - exchange.sent_ns < _STALE_WITHIN_NS


def _as_httpx(
    error: ProtocolViolation | OSError, kind: type[httpx.NetworkError]
) -> httpx.TransportError:
    """Return httpx's exception for one of the connection's; `kind` is what an OSError becomes."""
    if isinstance(error, ProtocolViolation):
        return httpx.RemoteProtocolError(str(error))
    refused = refusal(error)
    return kind(str(error)) if refused is None else httpx.ConnectError(refused)


def _first_of(opened: Connection | Multiplexed) -> Exchange:
    return opened.stream() if isinstance(opened, Multiplexed) else opened


def _limit(
    timeout_s: float | None, late: type[httpx.TimeoutException], route: Route | None = None
) -> AbstractContextManager[object]:
    if timeout_s is None:
        return _NO_LIMIT
    proxy = route.proxy if route is not None else None
    through = "" if proxy is None else f"through the proxy {proxy.shown}: "
    limit: AbstractContextManager[object] = gevent.Timeout(timeout_s, late(f"{through}timed out"))
    return limit
