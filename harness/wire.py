"""Bytes and stamps in, server-sent events and timings out; no I/O and no clock here.

An event is stamped with the read that carried the last byte of its last data line, the line end not
counted: that is when the token was here, even if the blank line came a read later.

A read has one stamp, that of the last segment it holds. An event is `exact` when that read carried
nothing but line ends after the event. Otherwise bytes of what followed were merged into the read,
the event may have come earlier than its stamp says, and `merged` counts it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from harness.errors import RequestFailed

MAX_EVENT_BYTES = 1 << 20

_LINE_END = re.compile(rb"\r\n?|\n")  # the only three; U+2028 and the like are data
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event of the stream: its data lines joined by LF, as sent, and the stamp in ns.

    `event` is the name from an `event:` line, None when there was none.
    """

    data: bytes
    t_ns: int
    exact: bool
    event: str | None = None


class SSEDecoder:
    """Server-sent events out of a body that may be cut anywhere.

    Follows https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream,
    save that `id` and `retry` are ignored (nothing here reconnects) and data stays undecoded.
    The end of the body completes nothing: an event without its blank line never comes out, it
    stays in `pending`. So there is no `close`.

    `max_event_bytes` bounds the data lines of one event, and any single line.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_first",
        "_held_bytes",
        "_idle",
        "_name",
        "_partial",
        "_partial_t_ns",
        "_t_ns",
        "max_event_bytes",
        "merged",
    )

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_event_bytes = max_event_bytes
        self.merged = 0
        """Events so far whose stamp may be late, because more followed in the same read."""
        self._idle = True  # between two events, nothing held: the fast path is allowed
        self._first = True  # the first line may begin with a BOM
        self._after_cr = False  # the last read ended in CR: an LF now belongs to that line end
        self._partial = bytearray()  # a line whose end has not come
        self._partial_t_ns = 0
        self._data: list[bytes] = []
        self._held_bytes = 0
        self._name: str | None = None
        self._t_ns = 0  # stamp of the last data line held

    @property
    def pending(self) -> bytes | None:
        """Data of an event that has begun and lacks its blank line; None between events."""
        lines = list(self._data)
        if self._partial:
            name, colon, value = self._split(bytes(self._partial))
            if name == b"data" and colon:
                lines.append(value)
        return b"\n".join(lines) if lines else None

    def feed(self, data: bytes, t_ns: int) -> list[Event]:
        """Return the events that this read completed, in order.

        Raises RequestFailed("malformed event") above `max_event_bytes`; feed nothing after it.
        """
        if self._idle and data[:6] == b"data: " and data[-2:] == b"\n\n" and b"\r" not in data:
            if b"\n" not in data[6:-2]:
                self._bound(len(data) - 2)
                self._first = False
                return [Event(data[6:-2], t_ns, True)]
            parts = data[:-2].split(b"\n\n")
            if all(part[:6] == b"data: " and b"\n" not in part for part in parts):
                return self._feed_whole(parts, t_ns)
        return self._feed_lines(data, t_ns)

    def _feed_whole(self, parts: list[bytes], t_ns: int) -> list[Event]:
        self._bound(max(map(len, parts)))
        self._first = False
        self.merged += len(parts) - 1
        events = [Event(part[6:], t_ns, False) for part in parts]
        events[-1] = events[-1]._replace(exact=True)
        return events

    def _feed_lines(self, data: bytes, t_ns: int) -> list[Event]:
        """Read any form, line by line."""
        if not data:
            return []
        events: list[Event] = []
        start = 1 if self._after_cr and data[:1] == b"\n" else 0
        self._after_cr = data[-1:] == b"\r"
        quiet_from = len(data.rstrip(b"\r\n"))  # from here on the read holds line ends alone
        fresh = False  # the held event's last data byte came in this read
        for found in _LINE_END.finditer(data, start):
            line = data[start : found.start()]
            here = bool(line)
            if self._partial:
                line = bytes(self._partial) + line
                self._partial.clear()
            start = found.end()
            if line:
                if self._take(line, t_ns if here else self._partial_t_ns):
                    fresh = here
                continue
            if self._data:
                exact = not fresh or start >= quiet_from
                self.merged += not exact
                events.append(Event(b"\n".join(self._data), self._t_ns, exact, self._name))
            self._data, self._held_bytes, self._name = [], 0, None
            self._first = False
        if start < len(data):
            self._partial += data[start:]
            self._partial_t_ns = t_ns
            self._bound(self._held_bytes + len(self._partial))
        self._idle = not (self._partial or self._data or self._name)
        return events

    def _take(self, line: bytes, t_ns: int) -> bool:
        """One whole line that is not blank; True when it held data."""
        self._bound(self._held_bytes + len(line))
        name, _, value = self._split(line)
        self._first = False
        if name == b"data":
            self._data.append(value)
            self._held_bytes += len(line)
            self._t_ns = t_ns
            return True
        if name == b"event":
            self._name = value.decode("utf-8", "replace") or None
        return False

    def _split(self, line: bytes) -> tuple[bytes, bytes, bytes]:
        name, colon, value = (line.removeprefix(_BOM) if self._first else line).partition(b":")
        return name, colon, value.removeprefix(b" ")

    def _bound(self, size_bytes: int) -> None:
        if size_bytes > self.max_event_bytes:
            raise RequestFailed(
                "malformed event", f"longer than the {self.max_event_bytes:,} bytes allowed"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """One reply's times, all in ns. What was not there to measure is None, never 0."""

    ttft: int | None
    """First token event of any kind - start."""
    ttfo: int | None
    """First visible token event - start."""
    itl: tuple[int, ...]
    """Gaps between successive token events; one fewer than there were events."""
    tpot: int | None
    """(last - first token event) / (output tokens - 1); None below two tokens or two events."""
    e2el: int
    """End - start."""
    service: int
    """End - sent."""
    service_ttft: int | None
    """First token event - sent."""
    tokens_counted: bool
    """True when tpot divides by counted token events, as the server gave no token count."""


def timings(
    *,
    start_ns: int,
    sent_ns: int,
    tokens: Sequence[tuple[int, bool]],
    end_ns: int,
    output_tokens: int | None,
) -> Timings:
    """Compute the times of one reply out of stamps of one clock, all in ns.

    `start_ns` is where response time begins (the planned arrival), `sent_ns` when the first byte of
    the request left. `tokens` holds (stamp, visible) of each token event in order of arrival;
    reasoning and tool-call events are not visible. `output_tokens` is the server's own count, None
    if it gave none.
    """
    stamps = [t_ns for t_ns, _ in tokens]
    first = stamps[0] if stamps else None
    shown = next((t_ns for t_ns, visible in tokens if visible), None)
    count = len(stamps) if output_tokens is None else output_tokens
    tpot = None
    if len(stamps) > 1 and count > 1:
        tpot = round((stamps[-1] - stamps[0]) / (count - 1))
    return Timings(
        ttft=None if first is None else first - start_ns,
        ttfo=None if shown is None else shown - start_ns,
        itl=tuple(after - before for before, after in pairwise(stamps)),
        tpot=tpot,
        e2el=end_ns - start_ns,
        service=end_ns - sent_ns,
        service_ttft=None if first is None else first - sent_ns,
        tokens_counted=output_tokens is None,
    )
