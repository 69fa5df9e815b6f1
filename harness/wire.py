"""Bytes and stamps in, server-sent events and timings out; no I/O and no clock here.

An event is stamped with the read that carried the last byte of its last data line, the line end not
counted: that is when the token was here, even if the blank line came a read later.

A read has one stamp, that of the last segment it holds. An event is `exact` when that read carried
nothing but line ends after the event. Otherwise bytes of what followed were merged into the read,
and the stamp is the end of an interval: the event came after the read before it (`after_ns`) and no
later than `t_ns`. What is computed of such events has two ends as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from harness.errors import RequestFailed

MAX_EVENT_BYTES = 1 << 20

_LINE_END = re.compile(rb"\r\n?|\n")  # the only three; U+2028 and the like are data
_LF = ord("\n")
NOTHING_LOOSE: Mapping[int, int] = {}
_BOM = b"\xef\xbb\xbf"


Token = tuple[int, bool, int]
"""A token event: its stamp in ns, whether it is visible, and the stamp that it came after.

The third is the first where the stamp is exact. Reasoning and tool calls are not visible.
"""

Ends = tuple[int, int]
"""The least and the most that a value can be, both included."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event of the stream: its data lines joined by LF, as sent, and its stamps in ns.

    It came after `after_ns`, and by `t_ns` at the latest; an exact event has both the same. `event`
    is the name from an `event:` line, None when there was none.
    """

    data: bytes
    t_ns: int
    after_ns: int
    event: str | None = None

    @property
    def exact(self) -> bool:
        """Whether the stamp is the event's own."""
        return self.after_ns == self.t_ns


class SSEDecoder:
    """Server-sent events out of a body that may be cut anywhere.

    Follows https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream,
    save that `id` and `retry` are ignored (nothing here reconnects) and data stays undecoded.
    The end of the body completes nothing: an event without its blank line never comes out, it
    stays in `pending`. So there is no `close`.

    `since_ns` is a time after which all of the body came: when the request was sent. `loose` has
    the stamps of reads in which more followed that was not of this body, and what each came after.
    `max_event_bytes` bounds the data lines of one event, and any single line.
    """

    __slots__ = (
        "_after_cr",
        "_before_ns",
        "_data",
        "_first",
        "_held_bytes",
        "_idle",
        "_name",
        "_partial",
        "_partial_t_ns",
        "_t_ns",
        "loose",
        "max_event_bytes",
    )

    def __init__(
        self,
        *,
        since_ns: int = 0,
        max_event_bytes: int = MAX_EVENT_BYTES,
        loose: Mapping[int, int] = NOTHING_LOOSE,
    ) -> None:
        self.loose = loose
        self.max_event_bytes = max_event_bytes
        self._before_ns = since_ns  # stamp of the read before
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

    def single(self, data: bytes, t_ns: int) -> bytes | None:
        """Return the data of a read that is one event, in one line, and nothing else.

        Most are. None of any other read, which is still to be fed.
        """
        end = data.find(b"\n")
        if (
            end == len(data) - 2
            and data[-1] == _LF
            and data[:6] == b"data: "
            and self._idle
            and end <= self.max_event_bytes
            and data.find(b"\r") < 0
            and t_ns not in self.loose
        ):
            self._first = False
            self._before_ns = t_ns
            return data[6:end]
        return None

    def feed(self, data: bytes, t_ns: int) -> list[Event]:
        """Return the events that this read completed, in order.

        Raises RequestFailed("malformed event") above `max_event_bytes`; feed nothing after it.
        """
        if (one := self.single(data, t_ns)) is not None:
            return [Event(one, t_ns, t_ns)]
        events = self._events(data, t_ns)
        return [self._loosened(event) for event in events] if self.loose else events

    def _loosened(self, event: Event) -> Event:
        """Return the event as it is known where more followed that was not of this body."""
        after_ns = self.loose.get(event.t_ns)
        if after_ns is None:
            return event
        if not event.exact:
            after_ns = max(after_ns, event.after_ns)
        return Event(event.data, event.t_ns, after_ns, event.event)

    def _events(self, data: bytes, t_ns: int) -> list[Event]:
        if self._idle and data[:6] == b"data: " and data[-2:] == b"\n\n" and b"\r" not in data:
            parts = data[:-2].split(b"\n\n")
            if all(part[:6] == b"data: " and b"\n" not in part for part in parts):
                return self._feed_whole(parts, t_ns)
        return self._feed_lines(data, t_ns)

    def _feed_whole(self, parts: list[bytes], t_ns: int) -> list[Event]:
        self._bound(max(map(len, parts)))
        self._first = False
        before_ns, self._before_ns = self._before_ns, t_ns
        events = [Event(part[6:], t_ns, before_ns) for part in parts[:-1]]
        events.append(Event(parts[-1][6:], t_ns, t_ns))
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
                after_ns = self._t_ns if exact else self._before_ns
                events.append(Event(b"\n".join(self._data), self._t_ns, after_ns, self._name))
            self._data, self._held_bytes, self._name = [], 0, None
            self._first = False
        if start < len(data):
            self._partial += data[start:]
            self._partial_t_ns = t_ns
            self._bound(self._held_bytes + len(self._partial))
        self._idle = not (self._partial or self._data or self._name)
        self._before_ns = t_ns
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
                "malformed event",
                f"longer than the {self.max_event_bytes:,} bytes allowed; max_event in the plan's "
                "target allows more",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """One reply's times, all in ns. What was not there to measure is None, never 0.

    They are computed from the stamps. Where a stamp stands for an interval, `ends` has what the
    time, by its name, can be at the least and at the most, and `itl_ends` the same of each gap.
    """

    ttft: int | None
    """First token event of any kind - start."""
    ttfo: int | None
    """First visible token event - start."""
    itl: tuple[int, ...]
    """Gaps between successive token events; one fewer than there were events."""
    tpot: int | None
    """(last - first token event) / (streamed output tokens - 1); None below two of either."""
    e2el: int
    """End - start."""
    service: int
    """End - sent."""
    service_ttft: int | None
    """First token event - sent."""
    ends: dict[str, Ends] = field(default_factory=dict)
    itl_ends: tuple[Ends, ...] | None = None


def timings(
    *,
    start_ns: int,
    sent_ns: int,
    tokens: Sequence[Token],
    end_ns: int,
    streamed_tokens: int | None,
) -> Timings:
    """Compute the times of one reply out of stamps of one clock, all in ns.

    `start_ns` is where response time begins (the planned arrival), `sent_ns` when the first byte of
    the request left. `tokens` are its token events in order of arrival; `streamed_tokens` how many
    tokens they brought, None where that cannot be told: then there is no tpot.
    """
    stamps = [token[0] for token in tokens]
    first = stamps[0] if stamps else None
    shown = next((token for token in tokens if token[1]), None)
    count = streamed_tokens or 0
    tpot = None
    if len(stamps) > 1 and count > 1:
        tpot = round((stamps[-1] - stamps[0]) / (count - 1))
    ends: dict[str, Ends] = {}
    itl_ends = None
    if stamps != [token[2] for token in tokens]:
        ends = _ends(tokens, shown, start_ns, sent_ns, None if tpot is None else count)
        itl_ends = tuple(_apart(one, other) for one, other in pairwise(tokens))
    return Timings(
        ttft=None if first is None else first - start_ns,
        ttfo=None if shown is None else shown[0] - start_ns,
        itl=tuple(after - before for before, after in pairwise(stamps)),
        tpot=tpot,
        e2el=end_ns - start_ns,
        service=end_ns - sent_ns,
        service_ttft=None if first is None else first - sent_ns,
        ends=ends,
        itl_ends=itl_ends,
    )


def _ends(
    tokens: Sequence[Token], shown: Token | None, start_ns: int, sent_ns: int, count: int | None
) -> dict[str, Ends]:
    """Return the ends of those times that depend on an interval."""
    t_ns, _, after_ns = tokens[0]
    ends = {
        "ttft": (after_ns - start_ns, t_ns - start_ns),
        "service_ttft": (after_ns - sent_ns, t_ns - sent_ns),
    }
    if shown is not None:
        ends["ttfo"] = (shown[2] - start_ns, shown[0] - start_ns)
    if count is not None:
        least, most = _apart(tokens[0], tokens[-1])
        ends["tpot"] = (round(least / (count - 1)), round(most / (count - 1)))
    return {name: both for name, both in ends.items() if both[0] != both[1]}


def _apart(one: Token, other: Token) -> Ends:
    """Return how far a token event can be from a later one."""
    return max(0, other[2] - one[0]), other[0] - one[2]
