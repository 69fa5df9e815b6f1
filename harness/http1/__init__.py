"""One HTTP/1.1 reply out of stamped reads; no I/O and no clock here.

A byte of the body has the stamp of the read it came in, and the body bytes of one read come out as
one piece. The framing is followed while the bytes come in, each looked at once, so the end of the
reply is seen in the very read that holds it, however the reads are cut and whatever follows it.
`reader` follows the framing, `head` understands what it says, `coding` undoes a Content-Encoding.

Follows RFC 9112, and h11 where that is more lenient: bare LF in the head and the trailers, folded
header lines (joined by a space), blanks after a chunk's size, no reason in the status line. Blank
lines before the status line and a lowercase `http/1.1` pass too. Every length has a limit.
"""

from harness.http1.coding import ENCODINGS, Decompressor
from harness.http1.head import MAX_HEADERS, Head, ProtocolViolation, TooLarge, Truncated
from harness.http1.reader import (
    MAX_BODY_BYTES,
    MAX_CHUNK_LINE_BYTES,
    MAX_HEAD_BYTES,
    MAX_LEFTOVER_BYTES,
    Piece,
    ResponseReader,
)

__all__ = [
    "ENCODINGS",
    "MAX_BODY_BYTES",
    "MAX_CHUNK_LINE_BYTES",
    "MAX_HEADERS",
    "MAX_HEAD_BYTES",
    "MAX_LEFTOVER_BYTES",
    "Decompressor",
    "Head",
    "Piece",
    "ProtocolViolation",
    "ResponseReader",
    "TooLarge",
    "Truncated",
]
