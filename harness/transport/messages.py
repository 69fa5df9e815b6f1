"""What goes through the transport: requests as bytes, replies with their stamps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import httpx

from harness.http1 import Head
from harness.urls import UNIX_SCHEME, decoded_host
from harness.wire import NOTHING_LOOSE

STAMPS = "harness.stamps"  # key of `Stamps` in a response's extensions
_PORTS = {"http": 80, "https": 443, UNIX_SCHEME: 0}
_LENGTH = re.compile(rb"\r\ncontent-length: ([^\r]*)", re.IGNORECASE)
_ZONE = re.compile(rb"%[^\]]*")
_HOP_BY_HOP = frozenset(
    (b"host", b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)  # RFC 9113, 8.2.2; the host is said in :authority

Origin = tuple[str, str, int]
"""Scheme, host and port; of a unix socket `http+unix`, its path and 0."""
Fields = list[tuple[bytes, bytes]]


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
    """The head of requests that differ in their body alone, around the value of Content-Length.

    `after_length` is None where there is no Content-Length, and so no body.
    """

    origin: Origin
    method: str
    url: httpx.URL
    fields: tuple[tuple[bytes, bytes], ...]
    """All but Content-Length."""
    before_length: bytes
    after_length: bytes | None

    @classmethod
    def of(cls, request: httpx.Request) -> RequestHead:
        """Take the head over from a request that httpx has built.

        Raises httpx.LocalProtocolError for one that cannot be sent.
        """
        method, url, raw = request.method, request.url, _fields(request)
        fields = tuple((n, v) for n, v in raw if n.lower() != b"content-length")
        head = _head(request)
        length = _LENGTH.search(head)
        if length is None:
            return cls(origin_of(url), method, url, fields, head, None)
        before, after = head[: length.start(1)], head[length.end(1) :]
        return cls(origin_of(url), method, url, fields, before, after)

    def with_body(self, body: bytes) -> bytes:
        """Return the whole request."""
        if self.after_length is None:
            return self.before_length
        return b"%b%d%b%b" % (self.before_length, len(body), self.after_length, body)


class Message(Protocol):
    """One request, in the words of the version that its connection speaks."""

    @property
    def method(self) -> str:
        """As in the request line."""

    def http1(self) -> bytes:
        """Return the whole request."""

    def http2(self) -> tuple[Fields, bytes]:
        """Return the fields and the body."""


class KnownMessage(NamedTuple):
    """A request whose head is known."""

    head: RequestHead
    body: bytes

    @property
    def method(self) -> str:
        """As in the request line."""
        return self.head.method

    def http1(self) -> bytes:
        """Return the whole request."""
        return self.head.with_body(self.body)

    def http2(self) -> tuple[Fields, bytes]:
        """Return the fields and the body."""
        head = self.head
        if head.after_length is None:
            return http2_fields(head.method, head.url, head.fields), b""
        length = (b"content-length", b"%d" % len(self.body))
        return http2_fields(head.method, head.url, [*head.fields, length]), self.body


class BuiltMessage(NamedTuple):
    """A request as httpx has built it; of its body, which may be read once alone, the parts."""

    request: httpx.Request
    head: bytes
    parts: list[bytes]

    @classmethod
    def of(cls, request: httpx.Request) -> BuiltMessage:
        """Read the body. Raises httpx.LocalProtocolError for what cannot be sent."""
        head = _head(request)
        assert isinstance(request.stream, httpx.SyncByteStream)
        return cls(request, head, list(request.stream))

    @property
    def method(self) -> str:
        """As in the request line."""
        return self.request.method

    def http1(self) -> bytes:
        """Return the whole request."""
        lines = [self.head]
        chunked = "transfer-encoding" in self.request.headers
        for part in self.parts:
            if chunked and part:
                lines += (b"%x\r\n" % len(part), part, b"\r\n")
            else:
                lines.append(part)
        if chunked:
            lines.append(b"0\r\n\r\n")
        return b"".join(lines)

    def http2(self) -> tuple[Fields, bytes]:
        """Return the fields and the body."""
        request = self.request
        fields = http2_fields(request.method, request.url, _fields(request))
        return fields, b"".join(self.parts)


class ForwardedMessage(NamedTuple):
    """A request that an HTTP proxy is to forward: its target is the whole URL."""

    inner: Message
    base: bytes
    """What the path is put behind, such as `http://host:8080`."""
    lines: bytes
    """Header lines for the proxy."""

    @property
    def method(self) -> str:
        """As in the request line."""
        return self.inner.method

    def http1(self) -> bytes:
        """Return the whole request."""
        method, path, rest = self.inner.http1().split(b" ", 2)
        line, _, rest = rest.partition(b"\r\n")
        start = b"%b %b%b %b\r\n%b" % (method, self.base, path, line, self.lines)
        return start + rest

    def http2(self) -> tuple[Fields, bytes]:
        """Nothing is forwarded over HTTP/2."""
        raise NotImplementedError


def http2_fields(method: str, url: httpx.URL, fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Return a request's fields as HTTP/2 has them: what the start line says, then the others."""
    authority = _ZONE.sub(b"", url.netloc)
    rest: Fields = []
    for name, value in fields:
        low = name.lower()
        if low == b"host":
            authority = value
        elif low not in _HOP_BY_HOP and (low != b"te" or value == b"trailers"):
            rest.append((low, value))
    start = [
        (b":method", method.encode("ascii")),
        (b":scheme", url.raw_scheme),
        (b":authority", authority),
        (b":path", url.raw_path),
    ]
    return start + rest


class Follower(Protocol):
    """Takes in a reply's body while it comes; called in the hub, where nothing may block."""

    end_mark: bytes
    """What is in the piece after which the rest may not matter."""

    def follows(self, status: int) -> bool:
        """Tell whether it wants to follow a reply of this status."""

    def follow(
        self,
        headers: Mapping[str, str],
        pieces: Sequence[tuple[bytes, int]],
        since_ns: int,
        loose: Mapping[int, int],
    ) -> bool:
        """Take what is new of the body; returns whether the rest of it does not matter.

        All of the body came after `since_ns`. A piece's last byte has its stamp, unless `loose`,
        which grows with the reply, has a time that it came after. Names of headers are in lower
        case.
        """


class Fetched(NamedTuple):
    """A reply as it came: the body's pieces with their stamps, and what broke it off, if anything.

    What was followed is not among the pieces. Names of headers are in lower case; `error` is an
    exception of httpx.
    """

    status: int
    headers: Mapping[str, str]
    pieces: list[tuple[bytes, int]]
    stamps: Stamps
    error: Exception | None
    head: Head | None = None
    """As it was sent; None where the reply came through httpx."""
    loose: Mapping[int, int] = NOTHING_LOOSE
    """Stamps of pieces whose last byte came before them, and what each came after."""

    @property
    def since_ns(self) -> int:
        """A time after which all of the pieces came, as far as the stamps tell."""
        stamps = self.stamps
        first_ns = self.pieces[0][1] if self.pieces else stamps.read_ns
        return stamps.first_byte_ns if stamps.first_byte_ns < first_ns else stamps.sent_ns

    @classmethod
    def of(cls, response: httpx.Response) -> Fetched:
        """Read a response of httpx to its end, or to what breaks it off, and close it."""
        stamps: Stamps = response.extensions[STAMPS]
        pieces: list[tuple[bytes, int]] = []
        error: Exception | None = None
        try:  # `extend` keeps what came before an error
            pieces.extend((piece, stamps.read_ns) for piece in response.iter_raw())
        except httpx.HTTPError as found:
            error = found
        finally:
            response.close()
        return cls(response.status_code, response.headers, pieces, stamps, error)


class Decoded(Mapping[str, str]):
    """Headers as text, each decoded when it is asked for."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Mapping[bytes, bytes]) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        return self._raw[name.encode("latin-1")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def origin_of(url: httpx.URL) -> Origin:
    """Return where a URL leads. Raises httpx.UnsupportedProtocol beside http, https, http+unix."""
    scheme, host = url.scheme, url.host
    if scheme not in _PORTS:
        raise httpx.UnsupportedProtocol(f"{scheme or 'no'} protocol: http and https are supported")
    if "%" in host:
        host = decoded_host(scheme, host)
    return scheme, host, url.port or _PORTS[scheme]


def _fields(request: httpx.Request) -> Fields:
    """Return the header fields. The host of a unix socket and an IPv6 zone are no one else's."""
    fields = request.headers.raw
    if "%" not in request.url.host:
        return fields
    named = request.url.netloc
    host = b"localhost" if request.url.scheme == UNIX_SCHEME else _ZONE.sub(b"", named)
    return [(n, host if v == named and n.lower() == b"host" else v) for n, v in fields]


def _head(request: httpx.Request) -> bytes:
    """Return the request up to its body, as it goes over the wire."""
    fields = _fields(request)
    start = b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.url.raw_path)
    head = b"".join([start, *(b"%b: %b\r\n" % field for field in fields), b"\r\n"])
    if head.count(b"\n") != len(fields) + 2:
        raise httpx.LocalProtocolError("a header holds a line break")
    return head


def wire_bytes(request: httpx.Request) -> bytes:
    """Return the request as it goes over the wire."""
    return BuiltMessage.of(request).http1()
