"""Reads a streamed reply: each read is decoded when it is fed, which may be long after it came.

The stamps are those of the reads, so it does not matter when they are decoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from harness.apis.contents import Fields, WrongShape
from harness.apis.dialects import Api
from harness.apis.failures import error_message, excerpt
from harness.apis.reply import Reply
from harness.apis.tally import MAX_TEXT_CHARS, Tally
from harness.errors import RequestFailed
from harness.http1 import Piece
from harness.wire import MAX_EVENT_BYTES, NOTHING_LOOSE, Event, SSEDecoder

MAX_REPLY_BYTES = 64 << 20
MORE_BYTES = "max_reply in the plan's target allows more"
DONE = b"[DONE]"
_HEARTBEATS = ("ping", "heartbeat", "keepalive", "keep-alive")


class StreamReader:
    """One streamed reply: feed it each read with its stamp, then `finish`.

    `choices` is how many were asked for; `since_ns` and `loose` are as in `SSEDecoder`.
    """

    __slots__ = (
        "_begun",
        "_bytes",
        "_complaint",
        "_decoder",
        "_done_ns",
        "_failure",
        "_max_bytes",
        "_over",
        "_plain",
        "_tally",
    )

    def __init__(
        self,
        api: Api,
        *,
        choices: int = 1,
        since_ns: int = 0,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        max_event_bytes: int = MAX_EVENT_BYTES,
        max_text_chars: int = MAX_TEXT_CHARS,
        loose: Mapping[int, int] = NOTHING_LOOSE,
    ) -> None:
        if api.plain is None:
            raise ValueError(f"{api.name} has no streamed replies")
        self._plain = api.plain
        self._begun = False
        self._tally = Tally(api, max_text_chars, choices)
        self._decoder = SSEDecoder(since_ns=since_ns, max_event_bytes=max_event_bytes, loose=loose)
        self._max_bytes = max_reply_bytes
        self._bytes = 0
        self._done_ns: int | None = None
        self._failure: RequestFailed | None = None
        self._complaint: RequestFailed | None = None  # of a reply without an end, its failure
        self._over = False

    @property
    def over(self) -> bool:
        """Whether nothing that may follow matters: `[DONE]` was read, or something was wrong."""
        return self._over

    def feed(self, data: bytes, t_ns: int) -> None:
        """Decode one read of the body, of this stamp; what comes when it is `over` is dropped."""
        self.feed_all(((data, t_ns),))

    def feed_all(self, pieces: Sequence[Piece]) -> None:
        """Decode several reads."""
        if self._over:
            return
        single, plain, add = self._decoder.single, self._plain, self._tally.add_plain
        try:
            self._count(pieces)
            for data, t_ns in pieces:
                one = single(data, t_ns)
                if one is None:
                    self._add_all(self._decoder.feed(data, t_ns))
                elif self._begun and (piece := plain(one)) is not None:
                    add(piece, t_ns, t_ns)
                    continue
                else:
                    self._add_other(Event(one, t_ns, t_ns))
                if self._over:
                    return
        except RequestFailed as found:
            self._failure, self._over = found, True

    def _count(self, pieces: Sequence[Piece]) -> None:
        self._bytes += sum(len(data) for data, _ in pieces)
        if self._bytes > self._max_bytes:
            limit = f"over {self._max_bytes:,} bytes"
            raise RequestFailed("reply too large", f"{limit}; {MORE_BYTES}")

    def finish(
        self,
        end_ns: int,
        *,
        cause: RequestFailed | None = None,
        empty_ok: bool = False,
        needs_reason: bool = False,
    ) -> Reply:
        """Return what was read; `end_ns` is the stamp of the body's end.

        A reply ends with its `[DONE]`, if it has one. `cause` is what broke the body off, if
        anything did; it fails even a reply that looks whole, but not one that was done. Without
        `empty_ok`, one that brought nothing has failed. With `needs_reason` no other mark of the
        end stands for a finish reason: this server gives them. Nothing is raised: `failure` holds,
        the first that applies, what was wrong inside the stream, the cause, that the stream ended
        early or that it was empty.
        """
        tally, done = self._tally, self._done_ns is not None
        cause = None if done else cause
        pending = None if done or self._failure else self._decoder.pending
        failure = self._failure or tally.failed_finish("error event")
        unfinished = False
        if failure is None and not tally.whole():
            failure = self._complaint or cause
            may_lack = failure is None and not (needs_reason or tally.finished)
            unfinished = may_lack and self._has_other_end()
            if failure is None and not unfinished:
                failure = _truncated(tally, done=done, pending=pending)
        elif failure is None:
            failure = cause
        reply = tally.reply(
            streamed=True,
            done_seen=done,
            unfinished=unfinished,
            incomplete_event=pending is not None,
            end_ns=end_ns if self._done_ns is None else self._done_ns,
            failure=failure,
        )
        return reply if empty_ok else without_content(reply)

    def _has_other_end(self) -> bool:
        """Whether tokens came, and after them what ends a reply of servers without a reason."""
        tally = self._tally
        return bool(tally.tokens) and (self._done_ns is not None or tally.usage_ends)

    def _add_all(self, events: Iterable[Event]) -> None:
        """Add events up, until one is the last."""
        for event in events:
            piece = self._plain(event.data) if self._begun and event.event != "error" else None
            if piece is not None:
                self._tally.add_plain(piece, event.t_ns, event.after_ns)
            else:
                self._add_other(event)
            if self._over:
                return

    def _add_other(self, event: Event) -> None:
        """Add an event that is not plain; raises RequestFailed when it is malformed or an error."""
        self._begun = True  # the first is parsed whole whatever it brings: it names the model
        data = event.data.strip()
        if data.strip(b'"').upper() == DONE:
            self._done_ns, self._over = event.t_ns, True
        elif not _is_heartbeat(event.event, data):
            has_output, has_text = self._add_parsed(event)
            if has_output:
                self._tally.add_token(event.t_ns, has_text, event.after_ns)

    def _add_parsed(self, event: Event) -> tuple[bool, bool]:
        value = _parse_event(event)
        self._complaint = self._complaint or _complaint(value)
        try:
            return self._tally.add(value)
        except WrongShape as error:
            raise RequestFailed("malformed event", f"{error}: {excerpt(event.data)}") from None


def without_content(reply: Reply) -> Reply:
    """Return the reply, failed if it is whole and brought nothing."""
    if reply.failure is not None or not reply.is_empty:
        return reply
    ended = "no finish_reason" if reply.finish_reason is None else f"finish {reply.finish_reason!r}"
    detail = f"{ended} and not one token; `allow_empty: true` in the plan's target accepts that"
    return reply.failed(RequestFailed("empty reply", detail))


def parse_json(data: bytes) -> Any:
    """Parse JSON as servers send it: with halves of characters, and NaN; ValueError where not."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return json.loads(str(data, "utf-8-sig", "replace"))


def _parse_event(event: Event) -> dict[str, Any]:
    try:
        value = parse_json(event.data)
    except (ValueError, RecursionError):
        value = None
    if event.event == "error" or (isinstance(value, dict) and _is_error(value)):
        raise RequestFailed("error event", error_message(value) or excerpt(event.data))
    if not isinstance(value, dict):
        raise RequestFailed("malformed event", f"not a JSON object: {excerpt(event.data)!r}")
    return value


def _is_heartbeat(name: str | None, data: bytes) -> bool:
    """Tell what only keeps the connection alive: an empty event, or one that is called so."""
    return name != "error" and (
        not data or name in _HEARTBEATS or data.decode("ascii", "replace").lower() in _HEARTBEATS
    )


def _is_error(value: Fields) -> bool:
    return bool(value.get("error")) or "error" in (value.get("object"), value.get("type"))


def _complaint(value: Fields) -> RequestFailed | None:
    """Return what may be an error: a message where choices and usage should be."""
    said = "" if value.get("choices") or value.get("usage") else error_message(value)
    return RequestFailed("error event", said) if said else None


def _truncated(tally: Tally, *, done: bool, pending: bytes | None) -> RequestFailed:
    ended = "[DONE]" if done else "end of the body"
    detail = f"{ended} without finish_reason after {len(tally.tokens)} token events"
    if pending is not None:
        detail += f"; the last event was cut: {excerpt(pending, 80)!r}"
    return RequestFailed("truncated stream", detail)
