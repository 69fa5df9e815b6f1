"""Which way a request goes: straight, or by httpx's own transport where a proxy or HTTP/2 is asked.

httpx's transport reads its sockets itself, so there no kernel stamp is to be had: what it hands out
is stamped in user space, each piece of a body as it is read, and `clock` says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.request import getproxies

import httpx

from harness.plan import Target
from harness.proxies import SocksTrace, environment_proxy, without_secrets
from harness.transport import STAMPS, Fetched, Follower, RequestHead, Stamps, Transport
from harness.transport.tls import client_context, refusal

_CLOCK = "monotonic, stamped in user space"
_UNLIMITED = httpx.Limits(
    max_connections=None, max_keepalive_connections=None, keepalive_expiry=None
)
_CONNECTING = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)

Way = tuple[str | None, bool]  # the proxy, and whether HTTP/2 is offered


def open_transport(target: Target, url: str) -> Transport:
    """Return the transport for a target whose URL is `url`.

    Raises UserError for certificates and for a proxy of the environment that cannot be used.
    """
    if not (target.http2 or target.proxy or (target.trust_env and getproxies())):
        return Transport(**_settings(target))
    return RoutedTransport(target, url)


class RoutedTransport(Transport):
    """Goes straight where it can, and hands the rest to httpx's own transport.

    HTTP/2 is httpx's: one connection to a host, on which requests beyond the streams that the host
    allows wait; the wait is the generator's, and counts as send lag.
    """

    def __init__(self, target: Target, url: str) -> None:
        super().__init__(**_settings(target))
        self._target = target
        self._url = httpx.URL(url)
        self._ways: dict[tuple[str, str, int | None], Way] = {}
        self._handed: dict[Way, _Handed] = {}
        self._by_httpx(self._url)

    @property
    def clock(self) -> str:
        """Which clock stamps what comes from the target, and why if not the kernel's."""
        handed = self._by_httpx(self._url)
        return super().clock if handed is None else f"{_CLOCK}: {handed.why}"

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request the way that its URL asks for."""
        handed = self._by_httpx(request.url)
        if handed is None:
            return super().handle_request(request)
        return handed.handle_request(request)

    def fetch(self, head: RequestHead, body: bytes, follower: Follower | None = None) -> Fetched:
        """Send a body and return the whole reply, the way that the URL asks for."""
        handed = self._by_httpx(head.url)
        if handed is None:
            return super().fetch(head, body, follower)
        content = None if head.after_length is None else body
        request = httpx.Request(head.method, head.url, headers=list(head.fields), content=content)
        return Fetched.of(handed.handle_request(request))

    def close(self) -> None:
        """Close every idle connection."""
        super().close()
        for handed in self._handed.values():
            handed.close()

    def _by_httpx(self, url: httpx.URL) -> _Handed | None:
        """Return what sends to this URL in our place; None where we do."""
        place = (url.scheme, url.host, url.port)
        way = self._ways.get(place)
        if way is None:
            way = self._ways[place] = self._way(url)
        if way == (None, False):
            return None
        if way not in self._handed:
            self._handed[way] = _Handed(self._target, *way)
        return self._handed[way]

    def _way(self, url: httpx.URL) -> Way:
        target = self._target
        proxy = target.proxy
        if proxy is None and target.trust_env:
            proxy = environment_proxy(url)
        return proxy, target.http2 and url.scheme == "https"


class _Handed(httpx.BaseTransport):
    """httpx's own transport, its requests stamped and their number unlimited as with ours."""

    def __init__(self, target: Target, proxy: str | None, http2: bool) -> None:
        self._proxy = None if proxy is None else without_secrets(proxy)
        self._http2 = http2
        self._spoken: set[str] = set()
        self._inner = httpx.HTTPTransport(
            verify=client_context(target.verify, target.cert, target.key),  # httpx changes it
            http2=http2,
            limits=_UNLIMITED,
            trust_env=False,
            proxy=None if proxy is None else _proxy(httpx.URL(proxy), target),
        )

    @property
    def why(self) -> str:
        """`HTTP/2 through the proxy http://proxy:3128`; what was spoken where it was not HTTP/2."""
        version = "HTTP/2" if self._http2 else ""
        if self._http2 and self._spoken and "HTTP/2" not in self._spoken:
            version = f"HTTP/2 offered, {' and '.join(sorted(self._spoken))} spoken,"
        through = "" if self._proxy is None else f"through the proxy {self._proxy}"
        return f"{version} {through}".strip(" ,")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        trace = _Trace(request.extensions.get("trace"))
        request.extensions = {**request.extensions, "trace": trace}
        try:
            response = self._inner.handle_request(request)
        except httpx.TransportError as error:
            told = self._told(error)
            if told is None:
                raise
            raise told from error
        self._spoken.add(response.extensions["http_version"].decode("ascii"))
        stamps = trace.stamps()
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _StampedBody(response.stream, stamps)
        response.extensions[STAMPS] = stamps
        return response

    def close(self) -> None:
        self._inner.close()

    def _told(self, error: httpx.TransportError) -> httpx.TransportError | None:
        """Return the error with what only we know of it; None when that is nothing."""
        refused = refusal(error)
        if refused is not None:
            return httpx.ConnectError(refused)
        if self._proxy is not None and isinstance(error, _CONNECTING):
            return type(error)(f"through the proxy {self._proxy}: {error}")
        return None


class _Trace(SocksTrace):
    """Notes when httpx's transport did what, and tells who else listens.

    Of what is done twice the last counts: a tunnel is asked for before the request itself is sent.
    """

    __slots__ = ("_connecting_ns", "_first_byte_ns", "_sent_ns", "_then")

    def __init__(self, then: Callable[[str, Mapping[str, Any]], object] | None) -> None:
        self._then = then
        self._connecting_ns: int | None = None
        self._sent_ns = self._first_byte_ns = 0

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        now_ns = time.monotonic_ns()
        what = event.partition(".")[2]
        if what == "connect_tcp.started" and self._connecting_ns is None:
            self._connecting_ns = now_ns
        elif what == "send_request_headers.started":
            self._sent_ns = now_ns
        elif what == "receive_response_headers.complete":
            self._first_byte_ns = now_ns
        if self._then is not None:
            self._then(event, info)
        super().__call__(event, info)

    def stamps(self) -> Stamps:
        """Return the times of the exchange so far."""
        began_ns = self._sent_ns if self._connecting_ns is None else self._connecting_ns
        first_ns = self._first_byte_ns
        return Stamps(self._sent_ns, first_ns, first_ns, connect_ns=self._sent_ns - began_ns)


class _StampedBody(httpx.SyncByteStream):
    """A reply's body; each piece, and then the end, moves `stamps.read_ns` when it is read."""

    def __init__(self, inner: httpx.SyncByteStream, stamps: Stamps) -> None:
        self._inner, self._stamps = inner, stamps

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._inner:
            self._stamps.read_ns = time.monotonic_ns()
            yield piece
        self._stamps.read_ns = time.monotonic_ns()

    def close(self) -> None:
        self._inner.close()


def _settings(target: Target) -> dict[str, Any]:
    return {
        "verify": target.verify,
        "cert": target.cert,
        "key": target.key,
        "max_body_bytes": target.max_reply_bytes,
    }


def _proxy(url: httpx.URL, target: Target) -> httpx.Proxy:
    tls = url.scheme == "https"
    return httpx.Proxy(url, ssl_context=client_context(target.verify) if tls else None)
