"""The reply on one stream, as far as it has come in."""

from __future__ import annotations

from collections.abc import Sequence

from harness.http1 import Head, Piece, ProtocolViolation, TooLarge, Truncated

_NO_BODY = frozenset({204, 304})


class StreamUnprocessed(ProtocolViolation):
    """The other side says that it has not looked at the request: it may be sent again."""


class StreamReply:
    """One request's reply; `error` is what broke it off.

    `complete` is true when it has ended as it must. What an error breaks off stays to be taken.
    """

    __slots__ = (
        "_body_bytes",
        "_flow_bytes",
        "_length",
        "_method",
        "_new",
        "_parts",
        "complete",
        "end_t_ns",
        "error",
        "first_t_ns",
        "head",
        "loose",
        "max_body_bytes",
        "stream_id",
        "unsent",
    )

    def __init__(self, stream_id: int, method: str, body: bytes, *, max_body_bytes: int) -> None:
        self.stream_id = stream_id
        self.max_body_bytes = max_body_bytes
        """Bounds the body as it came, padding included."""
        self.unsent = memoryview(body)
        """What of the request's body is still to be sent."""
        self.head: Head | None = None
        self.first_t_ns: int | None = None
        """Stamp of the first frame on this stream."""
        self.complete = False
        self.end_t_ns: int | None = None
        self.error: Exception | None = None
        self.loose: dict[int, int] = {}
        """Stamps of reads in which frames of other streams followed, and what each came after."""
        self._method = method
        self._length: int | None = None  # what Content-Length says
        self._body_bytes = self._flow_bytes = 0
        self._parts: list[bytes] = []  # of the read that is being taken in
        self._new: list[Piece] = []

    @property
    def over(self) -> bool:
        """True when nothing more will come."""
        return self.complete or self.error is not None

    @property
    def has_new(self) -> bool:
        """True when there are pieces to take."""
        return bool(self._new)

    @property
    def new(self) -> Sequence[Piece]:
        """The pieces to take."""
        return self._new

    def take(self) -> list[Piece]:
        """Return the pieces of the body that are new since the last call."""
        new, self._new = self._new, []
        return new

    def begin(self, headers: Sequence[tuple[bytes, bytes]], t_ns: int) -> None:
        """Take in the head of the reply."""
        by_name: dict[bytes, bytes] = {}
        fields: list[tuple[bytes, bytes]] = []
        for name, value in headers:
            if not name.startswith(b":"):
                fields.append((name, value))
                by_name[name] = by_name[name] + b", " + value if name in by_name else value
        status = int(dict(headers)[b":status"])
        length = by_name.get(b"content-length")
        if length is not None and self._method != "HEAD" and status not in _NO_BODY:
            self._length = int(length)
        self.head = Head(status, b"", fields, b"HTTP/2", t_ns, by_name)

    def add(self, data: bytes, flow_bytes: int) -> None:
        """Take in a DATA frame. Raises ProtocolViolation."""
        if self.head is None:
            raise ProtocolViolation("DATA before the head of the reply")
        self._body_bytes += len(data)
        self._flow_bytes += flow_bytes
        if self._flow_bytes > self.max_body_bytes:
            raise TooLarge(f"a body above the {self.max_body_bytes:,} bytes allowed")
        if data:
            self._parts.append(data)

    def end(self, t_ns: int) -> None:
        """There is no more. Raises ProtocolViolation where there should be."""
        if self.head is None:
            raise ProtocolViolation("the stream ended before the head of the reply")
        if self._length is not None and self._length != self._body_bytes:
            raise Truncated(f"ended after {self._body_bytes:,} of {self._length:,} bytes")
        self.complete = True
        self.end_t_ns = t_ns

    def settle(self, t_ns: int, after_ns: int) -> None:
        """Make one piece of what a read brought, even if it was taken in in two goes.

        Its last byte has the stamp where `after_ns` is the same, and else came after that.
        """
        if not self._parts:
            return
        if after_ns != t_ns:
            self.loose[t_ns] = after_ns
        if self._new and self._new[-1][1] == t_ns:
            self._parts.insert(0, self._new.pop()[0])
        self._new.append((b"".join(self._parts), t_ns))
        self._parts.clear()
