"""One HTTP/1.1 reply out of stamped reads; no I/O and no clock here.

A byte of the body has the stamp of the read it came in, and the body bytes of one read come out as
one piece. The framing is followed while the bytes come in, each looked at once, so the end of the
reply is seen in the very read that holds it, however the reads are cut and whatever follows it.

Follows RFC 9112, and h11 where that is more lenient: bare LF in the head and the trailers, folded
header lines (joined by a space), blanks after a chunk's size, no reason in the status line. Blank
lines before the status line and a lowercase `http/1.1` pass too. Every length has a limit.
"""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 16 << 20
MAX_HEADERS = 256
MAX_CHUNK_LINE_BYTES = 4096  # size, extensions and line end
MAX_LEFTOVER_BYTES = 1024
_KNOWN_HEADS, _KNOWN_HEAD_BYTES = 256, 1024

try:
    _brotli: Any = importlib.import_module("brotli")
except ImportError:
    _brotli = None
_HAS_BROTLI = hasattr(_brotli, "Decompressor") and hasattr(
    _brotli.Decompressor, "can_accept_more_data"
)  # since 1.2; before it, output could not be bounded
ENCODINGS = ("gzip", "deflate", "br") if _HAS_BROTLI else ("gzip", "deflate")
"""What `Decompressor` undoes: the most a request that relies on it may put in Accept-Encoding."""
_DECODING_ERRORS = (zlib.error, _brotli.error) if _HAS_BROTLI else (zlib.error,)
_STEP_BYTES = 1 << 16  # of brotli's output and zlib's input

# Possessive throughout: a line that does not match costs no more than one that does.
_STATUS_LINE = re.compile(
    rb"(HTTP/[0-9]\.[0-9]) ([0-9]{3})(?: ([^\x00\r\n\f\v]*+))?\r?\n", re.IGNORECASE
)
_FIELD = re.compile(
    rb"^([-!#$%&'*+.^_`|~0-9A-Za-z]++):[ \t]*+([^\x00\s]++(?:[ \t]++[^\x00\s]++)*+)?+[ \t]*+\r?\n",
    re.MULTILINE,
)
_FOLD = re.compile(rb"\r?\n[ \t]+")
_BLANK_LINE = re.compile(rb"\r?\n")
_LAST_LINE_END = re.compile(rb"\n\r?\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*+(?:;[^\n]*+)?")

Piece = tuple[bytes, int]
"""Bytes and the stamp, in ns, of the read that they came in."""


class ProtocolViolation(Exception):
    """The other side does not speak HTTP/1.1 as it must, or says more than it may."""


class Truncated(ProtocolViolation):
    """The connection was closed before the reply had ended."""


class Head(NamedTuple):
    """Status line and headers, names and values as sent; `t_ns` is of the read that ended it."""

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    http_version: bytes
    """In the form of httpx, `HTTP/1.1`."""
    t_ns: int
    by_name: Mapping[bytes, bytes]
    """The headers again, names in lower case, the values of one name joined by commas."""


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

    def feed(self, data: bytes, t_ns: int) -> None:
        """Take in what one read brought; b"" brings nothing, a close is told by `eof`.

        Raises ProtocolViolation; what was read before stays to be taken, more can not be fed.
        """
        try:
            if self._mode == _SIZE and not self._held:  # nearly always the read is one whole chunk
                end = data.find(b"\r\n", 0, 20)
                if end > 0:
                    size = _chunk_size(data[:end])
                    if size and len(data) == end + size + 4 and data.endswith(b"\r\n"):
                        self._add(size)
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
        parsed = _heads.get(data[:end])
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
            raise Truncated(f"closed inside the head, after {_excerpt(self._held)}")
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
                raise ProtocolViolation(f"not an HTTP/1 reply: {_excerpt(self._held)}")
        elif len(block) > 2:  # shorter, it is a blank line before the status line
            self._begin(block, t_ns)
        return at

    def _begin(self, block: bytes, t_ns: int) -> None:
        parsed = _parse_head(block)
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
            _remember(block, parsed)
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
                raise ProtocolViolation(f"a chunk's first line has no end: {_excerpt(held)}")
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
            raise ProtocolViolation(f"a chunk goes on where it must end: {_excerpt(line_end)}")
        if not self._left:
            self._mode = _SIZE
        return at + len(part)

    def _read_trailers(self, data: bytes, at: int, t_ns: int, _parts: list[bytes]) -> int:
        block, at = self._block(data, at)
        if block is not None:
            if len(block) > 2:
                _fields(block)
            self._finish(t_ns)
        return at

    def _read_leftover(self, data: bytes, at: int, _t_ns: int, _parts: list[bytes]) -> int:
        self.leftover = (self.leftover + data[at : at + MAX_LEFTOVER_BYTES])[:MAX_LEFTOVER_BYTES]
        return len(data)

    def _read_broken(self, data: bytes, at: int, _t_ns: int, _parts: list[bytes]) -> int:
        raise ProtocolViolation(f"after a violation: {_excerpt(data[at:])}")

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
            raise ProtocolViolation(f"a body above the {self.max_body_bytes:,} bytes allowed")

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


class _ParsedHead(NamedTuple):
    """What a head says, whenever it came; several replies may share one, so nobody changes it."""

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    http_version: bytes
    by_name: Mapping[bytes, bytes]
    length: int | None
    chunked: bool
    persistent: bool

    def at(self, t_ns: int) -> Head:
        """Return the head of a reply whose head ended in the read of this stamp."""
        return Head(self.status, self.reason, self.headers, self.http_version, t_ns, self.by_name)


def _parse_head(block: bytes) -> _ParsedHead:
    line = _STATUS_LINE.match(block)
    if line is None or line[2] < b"100":
        raise ProtocolViolation(f"not an HTTP/1 status line: {_excerpt(block)}")
    version, status = line[1].upper(), int(line[2])
    headers = _fields(block[line.end() :])
    by_name = _joined(headers)
    length, chunked, options = _framing(by_name)
    if status == 101:
        raise ProtocolViolation("the other side switched protocols, unasked")
    persistent = b"close" not in options and (
        version >= b"HTTP/1.1" or (b"keep-alive" in options and not chunked)
    )
    reason = line[3] or b""
    return _ParsedHead(status, reason, headers, version, by_name, length, chunked, persistent)


_heads: dict[bytes, _ParsedHead] = {}
"""Heads of replies with a length, by their bytes; replies to like requests mostly have the same."""


def _remember(block: bytes, parsed: _ParsedHead) -> None:
    if len(block) <= _KNOWN_HEAD_BYTES:
        if len(_heads) >= _KNOWN_HEADS:
            _heads.clear()
        _heads[block] = parsed


def _fields(block: bytes) -> list[tuple[bytes, bytes]]:
    """Header lines with the blank one after them."""
    block = block[: -2 if block.endswith(b"\r\n") else -1]
    if b"\n " in block or b"\n\t" in block:
        block = _FOLD.sub(b" ", block)
    fields: list[tuple[bytes, bytes]] = _FIELD.findall(block)
    if len(fields) != block.count(b"\n"):
        bad = next(line for line in block.splitlines(keepends=True) if not _FIELD.fullmatch(line))
        raise ProtocolViolation(f"not a header line: {_excerpt(bad)}")
    if len(fields) > MAX_HEADERS:
        raise ProtocolViolation(f"{len(fields):,} header lines, {MAX_HEADERS} are allowed")
    return fields


def _joined(fields: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the values by name in lower case; what came several times is joined by commas."""
    by_name = {name.lower(): value for name, value in fields}
    if len(by_name) < len(fields):
        by_name = {}
        for name, value in fields:
            key = name.lower()
            by_name[key] = by_name[key] + b", " + value if key in by_name else value
    return by_name


def _framing(by_name: dict[bytes, bytes]) -> tuple[int | None, bool, set[bytes]]:
    """Content-Length, whether chunked, and the options of Connection in lower case."""
    codings = by_name.get(b"transfer-encoding")
    if codings is not None and codings.lower() != b"chunked":
        raise ProtocolViolation(
            f"Transfer-Encoding {_excerpt(codings.lower())}, only chunked is allowed"
        )
    length = by_name.get(b"content-length")
    if length is not None and not length.isdigit():  # it may be said twice, but not differ
        length = b", ".join(sorted({part.strip() for part in length.split(b",")}))
    if length is not None and not (length.isdigit() and len(length) <= 20):
        raise ProtocolViolation(f"Content-Length {_excerpt(length)} is not a length")
    options = by_name.get(b"connection")
    said = {part.strip() for part in options.lower().split(b",")} if options else set()
    return None if length is None else int(length), codings is not None, said


@lru_cache(maxsize=1024)
def _chunk_size(line: bytes) -> int:
    found = _CHUNK_LINE.fullmatch(line)
    if found is None:
        raise ProtocolViolation(f"not a chunk's size: {_excerpt(line)}")
    return int(found[1], 16)


def _excerpt(data: bytes | bytearray) -> str:
    return repr(bytes(data[:60])) + ("..." if len(data) > 60 else "")


class Decompressor:
    """Undoes one Content-Encoding, of `ENCODINGS` or identity, as the bytes come in.

    Raises ProtocolViolation for an unknown coding, for bytes that are not of it or come after its
    end, and above `max_bytes` of output: a bomb is cut before it is unfolded. Gzip may have any
    number of members.
    """

    def __init__(self, encoding: str, *, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.encoding = encoding.strip().lower().removeprefix("x-") or "identity"
        self.max_bytes = max_bytes
        self._out_bytes = 0
        self._inner: Any = None  # None before the first byte and between members
        self._held = b""  # first byte of deflate: it takes two to tell zlib from raw
        self._ended = True
        if self.encoding not in {*ENCODINGS, "identity"}:
            allowed = ", ".join(ENCODINGS)
            raise ProtocolViolation(f"Content-Encoding {encoding[:60]!r}, known are {allowed}")

    def feed(self, data: bytes) -> bytes:
        """Return what these bytes unfold to."""
        if self.encoding == "identity":
            return self._bounded(data)
        step = self._brotli if self.encoding == "br" else self._zlib
        try:  # in steps, as what follows a gzip member is copied at each one's end
            return b"".join(
                step(data[at : at + _STEP_BYTES]) for at in range(0, len(data), _STEP_BYTES)
            )
        except _DECODING_ERRORS as error:
            raise ProtocolViolation(f"the body is not {self.encoding}: {error}") from None

    def end(self) -> None:
        """There is no more; raises Truncated in the middle of an encoded stream."""
        if not self._ended:
            raise Truncated(f"the {self.encoding} stream has no end")

    def _zlib(self, data: bytes) -> bytes:
        parts = []
        self._ended = False
        data, self._held = self._held + data, b""
        while data:
            if self._inner is None:
                if self.encoding == "deflate" and len(data) < 2:
                    self._held = data
                    break
                self._inner = zlib.decompressobj(self._window_bits(data))
            room = self.max_bytes - self._out_bytes + 1
            parts.append(self._bounded(self._inner.decompress(data, room)))
            self._ended = self._inner.eof
            data = self._inner.unused_data
            if self._ended and self.encoding == "gzip":
                self._inner = None
            elif data:
                raise ProtocolViolation(f"after the end of deflate: {_excerpt(data)}")
        return b"".join(parts)

    def _window_bits(self, data: bytes) -> int:
        """RFC 9110 means zlib by deflate; some send it raw, which never begins like zlib."""
        if self.encoding == "gzip":
            return zlib.MAX_WBITS | 16
        is_zlib = data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0
        return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS

    def _brotli(self, data: bytes) -> bytes:
        inner = self._inner = self._inner or _brotli.Decompressor()
        parts = []
        while True:
            out = inner.process(data, output_buffer_limit=_STEP_BYTES)
            data = b""
            parts.append(self._bounded(out))
            self._ended = inner.is_finished()
            if self._ended or not out:
                return b"".join(parts)

    def _bounded(self, out: bytes) -> bytes:
        self._out_bytes += len(out)
        if self._out_bytes > self.max_bytes:
            raise ProtocolViolation(f"{self.encoding} unfolds to above {self.max_bytes:,} bytes")
        return out


def decoded(
    pieces: Iterable[Piece],
    encoding: str,
    *,
    max_bytes: int = MAX_BODY_BYTES,
    whole: bool = True,
) -> list[Piece]:
    """Undo a Content-Encoding; what a piece unfolds to has that piece's stamp.

    Raises as `Decompressor` does. `whole=False` is for a reply that broke off: no end is asked for.
    """
    decompressor = Decompressor(encoding, max_bytes=max_bytes)
    unfolded = [(decompressor.feed(data), t_ns) for data, t_ns in pieces]
    if whole:
        decompressor.end()
    return [piece for piece in unfolded if piece[0]]
