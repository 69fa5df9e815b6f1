"""The framing of one reply, followed while its bytes come in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

from harness.http1.head import (
    Head,
    ProtocolViolation,
    TooLarge,
    Truncated,
    excerpt,
    header_fields,
    known_heads,
    parse_head,
    remember,
)

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 16 << 20
MAX_CHUNK_LINE_BYTES = 4096  # size, extensions and line end
MAX_LEFTOVER_BYTES = 1024

_BLANK_LINE = re.compile(rb"\r?\n")
_LAST_LINE_END = re.compile(rb"\n\r?\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*+(?:;[^\n]*+)?")

Piece = tuple[bytes, int]
"""Bytes and the stamp, in ns, of the read that they came in."""

_HEAD, _LENGTH, _TO_EOF, _SIZE, _CHUNK, _TRAILERS, _DONE, _BROKEN = range(8)


class ResponseReader:
    """The reply to one request of this `method`; not for CONNECT.

    Replies 1xx are passed over, save 101, which is a violation: nobody asked for an upgrade.
    Trailers are checked and dropped.
    """

    __slots__ = (
        "_body_bytes",
        "_head_bytes",
        "_held",
        "_left",
        "_method",
        "_mode",
        "_new",
        "_persistent",
        "complete",
        "end_t_ns",
        "first_t_ns",
        "head",
        "leftover",
        "max_body_bytes",
        "max_head_bytes",
    )

    def __init__(
        self,
        *,
        method: str,
        max_head_bytes: int = MAX_HEAD_BYTES,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.max_head_bytes = max_head_bytes
        """Bounds all there is beside the body: blank lines, 1xx replies, the head, trailers."""
        self.max_body_bytes = max_body_bytes
        """Bounds the body as it came, before any Content-Encoding is undone."""
        self.head: Head | None = None
        self.first_t_ns: int | None = None
        """Stamp of the first byte of any kind, None while the other side has not said a word."""
        self.complete = False
        self.end_t_ns: int | None = None
        """Stamp of the read that completed the reply, or of the close that did."""
        self.leftover = b""
        """What came after the end, the first `MAX_LEFTOVER_BYTES` of it; there must be none."""
        self._method = method
        self._mode = _HEAD
        self._held = bytearray()  # a head, chunk line or trailers whose end has not come
        self._left = 0  # bytes to come of the body, or of the chunk with its line end
        self._head_bytes = 0
        self._body_bytes = 0
        self._persistent = False
        self._new: list[Piece] = []

    @property
    def keep_alive(self) -> bool:
        """True when the reply is complete and the connection may carry another request."""
        return self.complete and self._persistent and not self.leftover

    def bound(self, more_bytes: int) -> None:
        """Allow so much more of the body."""
        self.max_body_bytes = min(self.max_body_bytes, self._body_bytes + more_bytes)

    def feed(self, data: bytes, t_ns: int) -> None:
        """Take in what one read brought; b"" brings nothing, a close is told by `eof`.

        Raises ProtocolViolation; what was read before stays to be taken, more can not be fed.
        """
        try:
            if self._mode == _SIZE and not self._held:  # nearly always the read is one whole chunk
                end = data.find(b"\r\n", 0, 20)
                if end > 0:
                    size = _chunk_size(data[:end])
                    if size and len(data) == end + size + 4 and data[-2:] == b"\r\n":
                        self._body_bytes += size
                        if self._body_bytes > self.max_body_bytes:
                            self._add(0)
                        self._new.append((data[end + 2 : -2], t_ns))
                        return
            elif self._mode == _HEAD and self._feed_known(data, t_ns):
                return
            self._feed_any(data, t_ns)
        except ProtocolViolation:
            self._mode = _BROKEN
            raise

    def _feed_known(self, data: bytes, t_ns: int) -> bool:
        """Take a whole reply at once if its head was seen before; False, and nothing, if not."""
        end = data.find(b"\r\n\r\n") + 4
        parsed = known_heads.get(data[:end])
        if (
            parsed is None
            or len(data) - end != parsed.length
            or end > self.max_head_bytes
            or self._method == "HEAD"
            or self.first_t_ns is not None
        ):
            return False
        self.first_t_ns = t_ns
        self.head = parsed.at(t_ns)
        self._persistent = parsed.persistent
        self._add(len(data) - end)
        self._new.append((data[end:], t_ns))
        self._finish(t_ns)
        return True

    def _feed_any(self, data: bytes, t_ns: int) -> None:
        if self.first_t_ns is None and data:
            self.first_t_ns = t_ns
        parts: list[bytes] = []
        at, end = 0, len(data)
        try:
            while at < end:
                at = self._STEPS[self._mode](self, data, at, t_ns, parts)
        finally:
            if parts:
                self._new.append((b"".join(parts), t_ns))

    def eof(self, t_ns: int) -> None:
        """The other side has closed: that ends a body without a length; raises Truncated if not."""
        if self._mode == _TO_EOF:
            self._finish(t_ns)
        elif self.first_t_ns is None:
            raise Truncated("closed before the first byte of a reply")
        elif self.head is None:
            raise Truncated(f"closed inside the head, after {excerpt(self._held)}")
        elif not self.complete:
            raise Truncated(
                f"closed after {self._body_bytes - self._left:,} of {self._body_bytes:,} bytes"
                if self._mode == _LENGTH
                else "closed inside a chunked body"
            )

    @property
    def has_new(self) -> bool:
        """True when there are pieces to take."""
        return bool(self._new)

    loose: ClassVar[Mapping[int, int]] = {}
    """Nothing but this reply is in its reads."""

    @property
    def new(self) -> Sequence[Piece]:
        """The pieces to take."""
        return self._new

    def take(self) -> list[Piece]:
        """Return the pieces of the body that are new since the last call, chunking undone."""
        new, self._new = self._new, []
        return new

    # One step for each mode: reads on from data[at], returns how far it came. No step reads a byte
    # of `data` twice, none reads over what is held again.

    def _read_head(self, data: bytes, at: int, t_ns: int, _parts: list[bytes]) -> int:
        block, at = self._block(data, at)
        if block is None:
            start = bytes(self._held[:5]).upper()
            if start != b"\r" and not b"HTTP/".startswith(start):
                raise ProtocolViolation(f"not an HTTP/1 reply: {excerpt(self._held)}")
        elif len(block) > 2:  # shorter, it is a blank line before the status line
            self._begin(block, t_ns)
        return at

    def _begin(self, block: bytes, t_ns: int) -> None:
        parsed = parse_head(block)
        status, chunked, length = parsed.status, parsed.chunked, parsed.length
        if status < 200:
            return
        self.head = parsed.at(t_ns)
        self._persistent = parsed.persistent
        if self._method == "HEAD" or status in {204, 304}:
            self._finish(t_ns)
        elif chunked:
            self._mode = _SIZE
            self._persistent &= length is None  # RFC 9112, 6.3: someone may have been deceived
        elif length is None:
            self._mode = _TO_EOF
            self._persistent = False
        elif length:
            remember(block, parsed)
            self._mode = _LENGTH
            self._left = length
            self._add(length)
        else:
            self._finish(t_ns)

    def _read_length(self, data: bytes, at: int, t_ns: int, parts: list[bytes]) -> int:
        part = data[at : at + self._left]
        parts.append(part)
        self._left -= len(part)
        if not self._left:
            self._finish(t_ns)
        return at + len(part)

    def _read_to_eof(self, data: bytes, at: int, _t_ns: int, parts: list[bytes]) -> int:
        self._add(len(data) - at)
        parts.append(data[at:])
        return len(data)

    def _read_size(self, data: bytes, at: int, _t_ns: int, parts: list[bytes]) -> int:
        held = self._held
        known = len(held)
        if known:
            held += data[at : at + MAX_CHUNK_LINE_BYTES]
            end = held.find(b"\r\n", known - 1, MAX_CHUNK_LINE_BYTES)
        else:
            end = data.find(b"\r\n", at, at + MAX_CHUNK_LINE_BYTES)
            if end < 0:
                held += data[at : at + MAX_CHUNK_LINE_BYTES]
        if end < 0:
            if len(held) >= MAX_CHUNK_LINE_BYTES:
                raise ProtocolViolation(f"a chunk's first line has no end: {excerpt(held)}")
            return len(data)
        line = bytes(held[:end]) if known else data[at:end]
        start = end + 2 + (at - known if known else 0)
        held.clear()
        size = _chunk_size(line)
        if not size:
            self._mode = _TRAILERS
            return start
        self._add(size)
        stop = start + size
        if data[stop : stop + 2] == b"\r\n":  # the chunk is all here
            parts.append(data[start:stop])
            return stop + 2
        self._mode = _CHUNK
        self._left = size + 2
        return start

    def _read_chunk(self, data: bytes, at: int, _t_ns: int, parts: list[bytes]) -> int:
        part = data[at : at + self._left]
        body = part[: max(0, self._left - 2)]
        if body:
            parts.append(body)
        line_end = part[len(body) :]
        self._left -= len(part)
        if not b"\r\n".startswith(line_end, 2 - self._left - len(line_end)):
            raise ProtocolViolation(f"a chunk goes on where it must end: {excerpt(line_end)}")
        if not self._left:
            self._mode = _SIZE
        return at + len(part)

    def _read_trailers(self, data: bytes, at: int, t_ns: int, _parts: list[bytes]) -> int:
        block, at = self._block(data, at)
        if block is not None:
            if len(block) > 2:
                header_fields(block)
            self._finish(t_ns)
        return at

    def _read_leftover(self, data: bytes, at: int, _t_ns: int, _parts: list[bytes]) -> int:
        self.leftover = (self.leftover + data[at : at + MAX_LEFTOVER_BYTES])[:MAX_LEFTOVER_BYTES]
        return len(data)

    def _read_broken(self, data: bytes, at: int, _t_ns: int, _parts: list[bytes]) -> int:
        raise ProtocolViolation(f"after a violation: {excerpt(data[at:])}")

    def _block(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        """Return the lines up to and with a blank one, or None, and how far that reaches."""
        held = self._held
        known = len(held)
        if known:
            held += data[at:]
            found = _BLANK_LINE.match(held) or _LAST_LINE_END.search(held, max(0, known - 2))
        else:
            found = _BLANK_LINE.match(data, at) or _LAST_LINE_END.search(data, at)
            if found is None:
                held += data[at:]
        size = len(held) if found is None else found.end() - (0 if known else at)
        if self._head_bytes + size > self.max_head_bytes:
            raise ProtocolViolation(f"head or trailers above {self.max_head_bytes:,} bytes")
        if found is None:
            return None, len(data)
        self._head_bytes += size
        block = bytes(held[:size]) if known else data[at : at + size]
        held.clear()
        return block, at + size - known

    def _add(self, size: int) -> None:
        self._body_bytes += size
        if self._body_bytes > self.max_body_bytes:
            raise TooLarge(f"a body above the {self.max_body_bytes:,} bytes allowed")

    def _finish(self, t_ns: int) -> None:
        self.complete = True
        self.end_t_ns = t_ns
        self._mode = _DONE

    _STEPS: ClassVar[tuple[_Step, ...]] = (  # by mode
        _read_head,
        _read_length,
        _read_to_eof,
        _read_size,
        _read_chunk,
        _read_trailers,
        _read_leftover,
        _read_broken,
    )


_Step = Callable[[ResponseReader, bytes, int, int, list[bytes]], int]


@lru_cache(maxsize=1024)
def _chunk_size(line: bytes) -> int:
    found = _CHUNK_LINE.fullmatch(line)
    if found is None:
        raise ProtocolViolation(f"not a chunk's size: {excerpt(line)}")
    return int(found[1], 16)
