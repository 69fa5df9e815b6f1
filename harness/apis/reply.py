"""What is kept of a reply, however it was read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from harness.apis.contents import Fields
from harness.errors import RequestFailed
from harness.wire import Timings, Token, timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is kept of one reply. Failed replies hold what had come before the failure."""

    text: str = ""
    """The first choice's visible text, up to the limit; `text_cut` says that there was more."""
    text_cut: bool = False
    reasoning_chars: int = 0
    token_events: tuple[Token, ...] = ()
    """Empty when the reply was not streamed."""
    merged: int = 0
    """Token events whose stamp is the end of an interval: more followed in the same read."""
    finish_reason: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    """How many of `input_tokens` the server had in its prompt cache, where it says so."""
    output_tokens: int | None = None
    tokens_counted: bool = False
    """True when the server gave no count and `output_tokens` counts token events."""
    streamed_tokens: int | None = None
    """How many of them the token events brought; None where that cannot be told."""
    tool_calls: tuple[str, ...] = ()
    """The names of the tools called, in order."""
    model: str | None = None
    server_timings: Fields | None = None
    """llama.cpp's own `timings`, in its units (ms)."""
    done_seen: bool = False
    unfinished: bool = False
    """It was whole by the stream's other marks, and no finish reason said so."""
    incomplete_event: bool = False
    """The body ended inside an event; it was left out."""
    value: Any = None
    """The parsed body of a reply that was not streamed."""
    end_ns: int | None = None
    failure: RequestFailed | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it brought nothing: no text, no reasoning, no tool call, no sound or image."""
        return not (self.token_events or self.text or self.reasoning_chars or self.tool_calls)

    @property
    def is_lumped(self) -> bool:
        """Whether all of its token events, two or more, came in one read."""
        events = self.token_events
        return len(events) > 1 and events[0][0] == events[-1][0]

    def failed(self, failure: RequestFailed) -> Reply:
        """Return the same reply as one that failed."""
        return replace(self, failure=failure)

    def timings(self, *, start_ns: int, sent_ns: int) -> Timings:
        """Compute this reply's times. Raises ValueError for one that was read without `end_ns`."""
        if self.end_ns is None:
            raise ValueError("this reply was read without end_ns")
        return timings(
            start_ns=start_ns,
            sent_ns=sent_ns,
            tokens=self.token_events,
            end_ns=self.end_ns,
            streamed_tokens=self.streamed_tokens,
        )
