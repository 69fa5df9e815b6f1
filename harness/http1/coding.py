"""Undoes a Content-Encoding while the bytes come in, bounded in what they may unfold to."""

from __future__ import annotations

import importlib
import zlib
from typing import Any

from harness.http1.head import ProtocolViolation, TooLarge, Truncated, excerpt
from harness.http1.reader import MAX_BODY_BYTES

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
                raise ProtocolViolation(f"after the end of deflate: {excerpt(data)}")
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
            raise TooLarge(f"the body ({self.encoding}) unfolds to above {self.max_bytes:,} bytes")
        return out
