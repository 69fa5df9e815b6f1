"""The short way of `self.client`: a request like one that httpx has built before, and its reply.

httpx takes some 100 µs of CPU to build a request and a response. A request that differs in its body
alone from one before needs none of that: its head is known, and of the reply httpx's view is made
when somebody looks. What is unusual, in the client, the call or the reply, goes httpx's own way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta
from json import JSONEncoder
from typing import Any, ClassVar

import httpx

from harness.http1 import Head
from harness.transport import STAMPS, Fetched, RequestHead, Stamps, wire_bytes

_MOST_SHAPES = 1024
_READ = httpx.ByteStream(b"")  # the stream of a response that was read
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHANGES = frozenset({b"set-cookie", b"content-encoding"})  # headers that httpx acts on
_NO_SEGMENT = re.compile(r"[^A-Za-z0-9_-]+")  # what budget.SEGMENT does not allow
_encode_json = JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def body_of(content: Any, json: Any) -> bytes | None:
    """Return the bytes of a body; None for one that only httpx knows how to send.

    Raises as httpx does for what is no JSON.
    """
    if json is not None:
        return None if content is not None else _encode_json(json).encode()
    if content is None:
        return b""
    if type(content) is bytes:
        return content
    return content.encode() if type(content) is str else None


@dataclass(frozen=True, slots=True)
class Shape:
    """What requests have in common that differ in their body alone."""

    head: RequestHead
    headers: list[tuple[bytes, bytes]]
    extensions: dict[str, Any]
    step: str
    """The name of the step that it is if the scenario gives none."""
    limit_s: float | None
    """For the whole reply."""
    timeouts: dict[str, float | None]
    """Those of httpx that may end it before."""

    @classmethod
    def of(cls, request: httpx.Request, body: bytes) -> Shape | None:
        """Take it from a request; None where one with another body could not be told from it."""
        if not isinstance(request.stream, httpx.ByteStream):
            return None
        head = RequestHead.of(request)
        if head.with_body(body) != wire_bytes(request):
            return None
        timeouts: dict[str, float | None] = request.extensions["timeout"]
        limit_s = timeouts["read"]
        earlier = {
            phase: timeouts[phase]
            for phase in ("connect", "write")
            if limit_s is None or (timeouts[phase] or limit_s) < limit_s
        }
        name = step_name(request)
        return cls(head, request.headers.raw, request.extensions, name, limit_s, earlier)

    def request(self, body: bytes, **marks: Any) -> httpx.Request:
        """Return the request with this body as httpx would have built it."""
        length = b"%d" % len(body)
        headers = [(n, length if n.lower() == b"content-length" else v) for n, v in self.headers]
        head, extensions = self.head, {**self.extensions, **marks}
        return httpx.Request(
            head.method, head.url, headers=headers, content=body, extensions=extensions
        )


def step_name(request: httpx.Request) -> str:
    """Return the name of the step that a request outside of any step is, such as GET_v1_models."""
    return _NO_SEGMENT.sub("_", f"{request.method}{request.url.path}").strip("_")


class Shapes:
    """The shapes of the requests that the clients of one process made lately."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Shape | None] = {}
        self._states: dict[Hashable, int] = {}

    def state(self, *parts: Hashable) -> int:
        """Return a number for a client's state; clients in the same state share their shapes."""
        return self._states.setdefault(parts, len(self._states))

    def find(self, key: Hashable) -> Shape | None:
        """Return the shape of a request if it is known and can be sent the short way."""
        return self._known.get(key)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._known

    def keep(self, key: Hashable, shape: Shape | None) -> None:
        """Keep a shape, or that there is none."""
        if len(self._known) >= _MOST_SHAPES:
            self._known.clear()
        self._known[key] = shape


def is_plain(head: Head) -> bool:
    """Tell whether httpx would do nothing about a reply but hand it out."""
    return head.status not in _REDIRECTS and _CHANGES.isdisjoint(head.by_name)


def as_sent(fetched: Fetched) -> httpx.Response:
    """Return a reply for httpx to work on, as a transport hands it out."""
    head = fetched.head
    assert head is not None
    return httpx.Response(
        head.status,
        headers=head.headers,
        stream=httpx.ByteStream(b"".join(data for data, _ in fetched.pieces)),
        extensions=_extensions(head, fetched.stamps),
    )


def _extensions(head: Head, stamps: Stamps) -> dict[str, Any]:
    return {"http_version": head.http_version, "reason_phrase": head.reason, STAMPS: stamps}


class Response(httpx.Response):
    """A whole, plain reply; its headers, request and elapsed time are made when asked for.

    Has the attributes that httpx 0.28 gives a response that was read; a test compares the two.
    """

    def __init__(  # not httpx's, which would work on the headers
        self, shape: Shape, sent: bytes, fetched: Fetched, took_ns: int, default_encoding: Any
    ) -> None:
        head, pieces = fetched.head, fetched.pieces
        assert head is not None
        content = pieces[0][0] if len(pieces) == 1 else b"".join(data for data, _ in pieces)
        self.status_code = head.status
        self.next_request = None
        self.extensions = _extensions(head, fetched.stamps)
        self.history = []
        self.is_closed = self.is_stream_consumed = True
        self.default_encoding = default_encoding
        self.stream = _READ
        self._content = content
        self._num_bytes_downloaded = len(content)
        self._late = shape, sent, head, took_ns

    def __getattr__(self, name: str) -> Any:
        make = self._LATE.get(name)
        if make is None or "_late" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = make(*self._late)
        setattr(self, name, value)
        return value

    def __getstate__(self) -> dict[str, Any]:
        for name in self._LATE:
            getattr(self, name)
        state = super().__getstate__()
        del state["_late"]
        return state

    _LATE: ClassVar[dict[str, Callable[[Shape, bytes, Head, int], Any]]] = {
        "headers": lambda _shape, _sent, head, _took_ns: httpx.Headers(head.headers),
        "_request": lambda shape, sent, _head, _took_ns: shape.request(sent),
        "_elapsed": lambda _shape, _sent, _head, took_ns: timedelta(microseconds=took_ns / 1000),
    }
