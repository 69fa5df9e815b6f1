"""Reads one reply, streamed or not: what its head says, then its body, as it comes in or after.

A body is taken for the event stream that was asked for by what it begins with, whatever type it
declares: proxies repeat headers and rename types. Content-Encoding is undone as the bytes come.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.apis.dialects import Api
from harness.apis.failures import content_type, not_a_stream
from harness.apis.reply import Reply
from harness.apis.stream import MAX_REPLY_BYTES, MORE_BYTES, StreamReader
from harness.apis.whole import read_json
from harness.errors import RequestFailed
from harness.http1 import Decompressor, Piece, ProtocolViolation, TooLarge
from harness.wire import MAX_EVENT_BYTES, NOTHING_LOOSE

_FIELD = re.compile(rb"(?:\xef\xbb\xbf)?(?:data|event|id|retry)?[:\r\n]")
_OTHER = (b"{", b"[", b"<", b'"')  # how JSON and HTML begin
_TELLING_BYTES = 16  # so many show how a body begins


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRules:
    """What a target's replies may be: how long, in bytes once decompressed, and whether empty."""

    max_reply_bytes: int = MAX_REPLY_BYTES
    max_event_bytes: int = MAX_EVENT_BYTES
    empty_ok: bool = False


class ReplyReader:
    """One reply: `follow` it while it comes in, where that is of use, then `finish` it.

    `choices` is how many the request asked for, `needs_reason` whether the server is known to give
    finish reasons: a stream without one is then cut, whatever other mark of an end it has.
    """

    def __init__(
        self,
        api: Api,
        *,
        streamed: bool,
        choices: int = 1,
        rules: ReplyRules | None = None,
        needs_reason: bool = False,
    ) -> None:
        self.end_mark = api.end_mark
        """What is in the read that ends the reply, whatever may follow."""
        self._api, self._streamed, self._choices = api, streamed, choices
        self._rules = rules or ReplyRules()
        self._needs_reason = needs_reason
        self._stream: StreamReader | None = None
        self._decompressor: Decompressor | None = None
        self._held: list[Piece] = []  # of a body that is no stream, or not known to be one
        self._held_bytes = 0
        self._failure: RequestFailed | None = None
        self._loose = NOTHING_LOOSE

    def follows(self, status: int) -> bool:
        """Tell whether a reply of this status is worth following: a stream that may be one."""
        return self._streamed and 200 <= status < 300

    def follow(
        self,
        headers: Mapping[str, str],
        pieces: Sequence[Piece],
        since_ns: int,
        loose: Mapping[int, int] = NOTHING_LOOSE,
    ) -> bool:
        """Decode what is new of a body; returns whether the rest of it does not matter.

        `since_ns` is a time after which all of the body came. A piece's last byte has its stamp,
        unless `loose`, which grows with the reply, has a time that it came after.
        """
        self._loose = loose
        try:
            unfold = self._unfolding(headers)
            if self._stream is not None and unfold.encoding == "identity":
                self._stream.feed_all(pieces)
                return self._stream.over
            for data, t_ns in pieces:
                self._take(headers, unfold.feed(data), t_ns, since_ns)
        except TooLarge as error:
            self._failure = RequestFailed("reply too large", f"{error}; {MORE_BYTES}")
        except ProtocolViolation as error:
            self._failure = RequestFailed("invalid reply", str(error))
        except RequestFailed as error:
            self._failure = error
        return self._failure is not None or (self._stream is not None and self._stream.over)

    def finish(
        self,
        status: int,
        headers: Mapping[str, str],
        pieces: Sequence[Piece],
        *,
        since_ns: int,
        end_ns: int,
        cause: RequestFailed | None = None,
        loose: Mapping[int, int] = NOTHING_LOOSE,
    ) -> Reply:
        """Return the reply; `pieces` are those of its body that were not followed.

        `end_ns` is the stamp of its end, `cause` what broke it off, if anything did. Nothing is
        raised: `failure` says what was wrong.
        """
        over = self.follow(headers, pieces, since_ns, loose)
        if self.follows(status):
            return self._end_of_stream(headers, since_ns, end_ns, cause, over=over)
        failure = self._failure or (self._broken_coding() if cause is None else None)
        if failure is None and status < 400:
            failure = cause
        if failure is not None:
            return Reply(failure=failure, end_ns=end_ns)
        body = b"".join(data for data, _ in self._held)
        return read_json(
            self._api,
            status,
            headers,
            body,
            end_ns=end_ns,
            choices=self._choices,
            empty_ok=self._rules.empty_ok,
        )

    def _end_of_stream(
        self,
        headers: Mapping[str, str],
        since_ns: int,
        end_ns: int,
        cause: RequestFailed | None,
        *,
        over: bool,
    ) -> Reply:
        if self._stream is None and self._failure is None:
            body = b"".join(data for data, _ in self._held)
            if body.strip() and not _is_stream(headers, body):
                return Reply(failure=not_a_stream(headers, body), end_ns=end_ns)
            self._begin(since_ns)
        if cause is None and not over:
            cause = self._broken_coding()
        if self._stream is None:
            return Reply(failure=self._failure, end_ns=end_ns)
        return self._stream.finish(
            end_ns,
            cause=self._failure or cause,
            empty_ok=self._rules.empty_ok,
            needs_reason=self._needs_reason,
        )

    def _unfolding(self, headers: Mapping[str, str]) -> Decompressor:
        if self._decompressor is None:
            encoding = headers.get("content-encoding", "identity")
            self._decompressor = Decompressor(encoding, max_bytes=self._rules.max_reply_bytes)
        return self._decompressor

    def _broken_coding(self) -> RequestFailed | None:
        """Return a failure when the body ended inside of its Content-Encoding."""
        try:
            if self._decompressor is not None:
                self._decompressor.end()
        except ProtocolViolation as error:
            return RequestFailed("invalid reply", str(error))
        return None

    def _take(self, headers: Mapping[str, str], data: bytes, t_ns: int, since_ns: int) -> None:
        if self._stream is not None:
            self._stream.feed(data, t_ns)
        elif data:
            self._held.append((data, t_ns))
            self._held_bytes += len(data)
            if not self._streamed or self._held_bytes - len(data) > _TELLING_BYTES:
                return
            start = b"".join(part for part, _ in self._held)
            if len(start.lstrip()) >= _TELLING_BYTES and _is_stream(headers, start):
                self._begin(since_ns)

    def _begin(self, since_ns: int) -> None:
        """Read what is held, and what follows, as an event stream."""
        rules = self._rules
        self._stream = StreamReader(
            self._api,
            choices=self._choices,
            since_ns=since_ns,
            max_reply_bytes=rules.max_reply_bytes,
            max_event_bytes=rules.max_event_bytes,
            loose=self._loose,
        )
        for data, t_ns in self._held:
            self._stream.feed(data, t_ns)
        self._held.clear()


def _is_stream(headers: Mapping[str, str], start: bytes) -> bool:
    """Tell an event stream by its first field, or where there is none by what it is declared as."""
    start = start.lstrip()
    if _FIELD.match(start):
        return True
    kind = content_type(headers)
    return (not kind or "event-stream" in kind) and not start.startswith(_OTHER)
