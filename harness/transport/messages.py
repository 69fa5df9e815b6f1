"""What goes through the transport: requests as bytes, replies with their stamps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import httpx

from harness.http1 import Head

STAMPS = "harness.stamps"  # key of `Stamps` in a response's extensions
_PORTS = {"http": 80, "https": 443}
_LENGTH = re.compile(rb"\r\ncontent-length: ([^\r]*)", re.IGNORECASE)

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
        method, url, raw = request.method, request.url, request.headers.raw
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


class Follower(Protocol):
    """Takes in a reply's body while it comes; called in the hub, where nothing may block."""

    end_mark: bytes
    """What is in the piece after which the rest may not matter."""

    def follows(self, status: int) -> bool:
        """Tell whether it wants to follow a reply of this status."""

    def follow(
        self, headers: Mapping[str, str], pieces: Sequence[tuple[bytes, int]], since_ns: int
    ) -> bool:
        """Take what is new of the body; returns whether the rest of it does not matter.

        All of the body came after `since_ns`. Names of headers are in lower case.
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
    """Return where a URL leads. Raises httpx.UnsupportedProtocol beside http and https."""
    scheme = url.scheme
    if scheme not in _PORTS:
        raise httpx.UnsupportedProtocol(f"{scheme or 'no'} protocol: http and https are supported")
    return scheme, url.host, url.port or _PORTS[scheme]


def _head(request: httpx.Request) -> bytes:
    """Return the request up to its body, as it goes over the wire."""
    fields = request.headers.raw
    start = b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.url.raw_path)
    head = b"".join([start, *(b"%b: %b\r\n" % field for field in fields), b"\r\n"])
    if head.count(b"\n") != len(fields) + 2:
        raise httpx.LocalProtocolError("a header holds a line break")
    return head


def wire_bytes(request: httpx.Request) -> bytes:
    """Return the request as it goes over the wire."""
    lines = [_head(request)]
    chunked = "transfer-encoding" in request.headers
    assert isinstance(request.stream, httpx.SyncByteStream)
    for part in request.stream:
        if chunked and part:
            lines += (b"%x\r\n" % len(part), part, b"\r\n")
        else:
            lines.append(part)
    if chunked:
        lines.append(b"0\r\n\r\n")
    return b"".join(lines)
