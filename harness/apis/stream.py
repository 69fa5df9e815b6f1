"""Reads a streamed reply: while it runs its reads are only stored with their stamps.

`StreamReader.finish` decodes them.
"""

from __future__ import annotations

import json
from typing import Any

from harness.apis.contents import Fields, WrongShape
from harness.apis.dialects import Api
from harness.apis.failures import error_message, excerpt
from harness.apis.frame import Frame
from harness.apis.reply import Reply
from harness.apis.tally import MAX_TEXT_CHARS, Tally
from harness.errors import RequestFailed
from harness.wire import Event, SSEDecoder

MAX_BODY_BYTES = 16 << 20
MAX_READS = 1 << 18  # a stored read costs about 100 bytes beside its data


class StreamReader:
    """One streamed reply: feed it each read with its stamp, then `finish`."""

    __slots__ = ("_api", "_bytes", "_max_body_bytes", "_max_text_chars", "_reads", "_too_large")

    def __init__(
        self,
        api: Api,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_text_chars: int = MAX_TEXT_CHARS,
    ) -> None:
        if not api.streams:
            raise ValueError(f"{api.name} has no streamed replies")
        self._api = api
        self._max_body_bytes = max_body_bytes
        self._max_text_chars = max_text_chars
        self._reads: list[tuple[bytes, int]] = []
        self._bytes = 0
        self._too_large: RequestFailed | None = None

    def feed(self, data: bytes, t_ns: int) -> None:
        """Store one read of the body and its stamp.

        Raises RequestFailed("reply too large") once the limit is passed: read no further. `finish`
        then reports the same failure.
        """
        self._bytes += len(data)
        if self._bytes > self._max_body_bytes or len(self._reads) >= MAX_READS:
            limit = f"over {self._max_body_bytes:,} bytes or {MAX_READS:,} reads"
            self._too_large = RequestFailed("reply too large", limit)
            raise self._too_large
        self._reads.append((data, t_ns))

    def finish(self, end_ns: int, *, cause: RequestFailed | None = None) -> Reply:
        """Decode what was fed; `end_ns` is the stamp of the body's end.

        `cause` is what ended the body when the caller knows (reset, timeout, cut off); it fails
        even a reply that looks whole. Nothing is raised: `failure` holds, the first that applies,
        what was wrong inside the stream, the size limit, the cause, or that the stream ended early.
        """
        tally = Tally(self._api, self._max_text_chars)
        decoder = SSEDecoder()
        failure: RequestFailed | None = None
        done = False
        try:
            done = _read_events(decoder, self._reads, tally)
        except RequestFailed as found:
            failure = found
        pending = None if done else decoder.pending
        failure = failure or tally.failed_finish("error event") or self._too_large or cause
        if failure is None and not tally.whole():
            failure = _truncated(tally, done=done, pending=pending)
        return tally.reply(
            streamed=True,
            done_seen=done,
            incomplete_event=pending is not None,
            end_ns=end_ns,
            failure=failure,
        )


def _read_events(decoder: SSEDecoder, reads: list[tuple[bytes, int]], tally: Tally) -> bool:
    """Put every event into the tally; True when `[DONE]` ended the stream.

    Raises RequestFailed at the first event that is malformed or an error.
    """
    assert tally.api.output is not None  # only such dialects stream
    frame = Frame(tally.api.output)
    for data, t_ns in reads:
        for event in decoder.feed(data, t_ns):
            text = frame.text_of(event.data) if event.event is None else None
            if text is not None:
                tally.add_text(text)
                has_output = has_text = bool(text)
            elif event.data.strip() == b"[DONE]":
                return True
            else:
                has_output, has_text = _add_parsed(event, tally, frame)
            if has_output:
                tally.tokens.append((event.t_ns, has_text))
                tally.merged += not event.exact
    return False


def _add_parsed(event: Event, tally: Tally, frame: Frame) -> tuple[bool, bool]:
    """Parse an event whole, and learn its frame."""
    value = _parse_event(event)
    try:
        has_output, has_text = tally.add(value)
    except WrongShape as error:
        raise RequestFailed("malformed event", f"{error}: {excerpt(event.data)}") from None
    if has_text:
        frame.learn(event.data, value)
    return has_output, has_text


def _parse_event(event: Event) -> dict[str, Any]:
    try:
        value = json.loads(str(event.data, "utf-8"))
    except (ValueError, RecursionError):
        value = None
    if event.event == "error" or (isinstance(value, dict) and _is_error(value)):
        raise RequestFailed("error event", error_message(value) or excerpt(event.data))
    if not isinstance(value, dict):
        raise RequestFailed("malformed event", f"not a JSON object: {excerpt(event.data)!r}")
    return value


def _is_error(value: Fields) -> bool:
    return bool(value.get("error")) or value.get("object") == "error"


def _truncated(tally: Tally, *, done: bool, pending: bytes | None) -> RequestFailed:
    ended = "[DONE]" if done else "end of the body"
    detail = f"{ended} without finish_reason after {len(tally.tokens)} token events"
    if pending is not None:
        detail += f"; the last event was cut: {excerpt(pending, 80)!r}"
    return RequestFailed("truncated stream", detail)
