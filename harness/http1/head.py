"""What the head of a reply says: status, fields, and how the body is framed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

MAX_HEADERS = 256
_KNOWN_HEADS, _KNOWN_HEAD_BYTES = 256, 1024

# Possessive throughout: a line that does not match costs no more than one that does.
_STATUS_LINE = re.compile(
    rb"(HTTP/[0-9]\.[0-9]) ([0-9]{3})(?: ([^\x00\r\n\f\v]*+))?\r?\n", re.IGNORECASE
)
_FIELD = re.compile(
    rb"^([-!#$%&'*+.^_`|~0-9A-Za-z]++):[ \t]*+([^\x00\s]++(?:[ \t]++[^\x00\s]++)*+)?+[ \t]*+\r?\n",
    re.MULTILINE,
)
_FOLD = re.compile(rb"\r?\n[ \t]+")


class ProtocolViolation(Exception):
    """The other side does not speak HTTP/1.1 as it must, or says more than it may."""


class TooLarge(ProtocolViolation):
    """A body above the most that is allowed."""


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


class ParsedHead(NamedTuple):
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


def parse_head(block: bytes) -> ParsedHead:
    """Understand a status line and header lines. Raises ProtocolViolation."""
    line = _STATUS_LINE.match(block)
    if line is None or line[2] < b"100":
        raise ProtocolViolation(f"not an HTTP/1 status line: {excerpt(block)}")
    version, status = line[1].upper(), int(line[2])
    headers = header_fields(block[line.end() :])
    by_name = _joined(headers)
    length, chunked, options = _framing(by_name)
    if status == 101:
        raise ProtocolViolation("the other side switched protocols, unasked")
    persistent = b"close" not in options and (
        version >= b"HTTP/1.1" or (b"keep-alive" in options and not chunked)
    )
    reason = line[3] or b""
    return ParsedHead(status, reason, headers, version, by_name, length, chunked, persistent)


known_heads: dict[bytes, ParsedHead] = {}
"""Heads of replies with a length, by their bytes; replies to like requests mostly have the same."""


def remember(block: bytes, parsed: ParsedHead) -> None:
    """Keep a head of a reply with a length in `known_heads`, if it is short."""
    if len(block) <= _KNOWN_HEAD_BYTES:
        if len(known_heads) >= _KNOWN_HEADS:
            known_heads.clear()
        known_heads[block] = parsed


def header_fields(block: bytes) -> list[tuple[bytes, bytes]]:
    """Header lines with the blank one after them."""
    block = block[: -2 if block.endswith(b"\r\n") else -1]
    if b"\n " in block or b"\n\t" in block:
        block = _FOLD.sub(b" ", block)
    fields: list[tuple[bytes, bytes]] = _FIELD.findall(block)
    if len(fields) != block.count(b"\n"):
        bad = next(line for line in block.splitlines(keepends=True) if not _FIELD.fullmatch(line))
        raise ProtocolViolation(f"not a header line: {excerpt(bad)}")
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
            f"Transfer-Encoding {excerpt(codings.lower())}, only chunked is allowed"
        )
    length = by_name.get(b"content-length")
    if length is not None and not length.isdigit():  # it may be said twice, but not differ
        length = b", ".join(sorted({part.strip() for part in length.split(b",")}))
    if length is not None and not (length.isdigit() and len(length) <= 20):
        raise ProtocolViolation(f"Content-Length {excerpt(length)} is not a length")
    options = by_name.get(b"connection")
    said = {part.strip() for part in options.lower().split(b",")} if options else set()
    return None if length is None else int(length), codings is not None, said


def excerpt(data: bytes | bytearray) -> str:
    """Return the beginning of what was found, to be shown."""
    return repr(bytes(data[:60])) + ("..." if len(data) > 60 else "")
