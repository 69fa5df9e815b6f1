"""Adds up what the chunks of a reply, or a whole one, bring."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from harness.apis.chunks import NO_REPORT, Plain
from harness.apis.contents import (
    NO_USAGE,
    Fields,
    Output,
    Usage,
    WrongShape,
    reports,
    usage_of,
)
from harness.apis.dialects import Api
from harness.apis.failures import excerpt
from harness.apis.reply import Reply
from harness.errors import RequestFailed
from harness.wire import Token

MAX_TEXT_CHARS = 64 << 10

_GAVE_UP = re.compile(
    r"abort|error|cancel|insufficient|time_?out|timed|fail|overload|exception|interrupt|preempt"
    r"|unavailable|disconnect|killed|evict",
    re.IGNORECASE,
)
_NO_REASON = ("", "null", "none")  # what stands for null in some servers


@dataclass(slots=True)
class Tally:
    """What one reply has brought so far.

    `choices` is how many were asked for: of one, whatever index the server gives it.
    """

    api: Api
    max_text_chars: int = MAX_TEXT_CHARS
    choices: int = 1
    text: list[str] = field(default_factory=list)
    text_chars: int = 0
    reasoning_chars: int = 0
    tokens: list[Token] = field(default_factory=list)
    merged: int = 0
    """Of them, those whose stamp is the end of an interval."""
    seen: set[int] = field(default_factory=set)
    """Indexes of the choices that began; `finished` has the reason of those that ended."""
    finished: dict[int, str] = field(default_factory=dict)
    gave_up: str | None = None
    """The finish reason that says so."""
    calls: dict[tuple[int, int], str] = field(default_factory=dict)
    usage: Usage = NO_USAGE
    usage_ends: bool = False
    """Whether the last that came was a report of usage alone, after a token."""
    model: str | None = None
    server_timings: Fields | None = None
    _late_usage: msgspec.Raw | None = None
    _late_timings: msgspec.Raw | None = None

    def add_token(self, t_ns: int, visible: bool, after_ns: int) -> None:
        """Add the stamps of a token event."""
        self.tokens.append((t_ns, visible, after_ns))
        if after_ns != t_ns:
            self.merged += 1

    def add_plain(self, piece: Plain, t_ns: int, after_ns: int) -> None:
        """Add a plain event, which is a token event, and its stamps."""
        index, text, reasoning, usage, timings = piece
        self.tokens.append((t_ns, text != "", after_ns))
        if after_ns != t_ns:
            self.merged += 1
        if index and self.choices == 1:
            index = 0
        if index not in self.seen:
            self.seen.add(index)
        if text and not index:
            self.text_chars += len(text)
            if self.text_chars - len(text) <= self.max_text_chars:
                self.text.append(text)
        if reasoning:
            self.reasoning_chars += reasoning
        if usage is not NO_REPORT:
            self._late_usage = usage
        if timings is not NO_REPORT:
            self._late_timings = timings
        self.usage_ends = False

    def add(self, value: Fields) -> tuple[bool, bool]:
        """Add a chunk or a whole reply; (has output of any kind, has visible output)."""
        self._take_late_reports()
        has_output = has_text = False
        output = self.api.output
        if output is not None and (choices := value.get("choices")):
            if not isinstance(choices, list):
                raise WrongShape("'choices' that are not a list")
            for choice in choices:
                if not isinstance(choice, dict):
                    raise WrongShape("a choice that is not an object")
                anything, text = self._add_choice(choice, output(choice))
                has_output |= anything
                has_text |= text
        counted = [self._add_usage(report) for report in reports(value)]
        self.usage_ends = any(counted) and not has_output and bool(self.tokens)
        if self.model is None and isinstance(value.get("model"), str):
            self.model = excerpt(value["model"])
        if isinstance(value.get("timings"), dict):
            self.server_timings = value["timings"]
        return has_output, has_text

    def _take_late_reports(self) -> None:
        """Parse the last reports of the plain events, which were left as they came."""
        late, self._late_usage = self._late_usage, None
        if isinstance(report := _parsed(late), dict):
            self._add_usage(report)
        late, self._late_timings = self._late_timings, None
        if isinstance(report := _parsed(late), dict):
            self.server_timings = report

    def _add_usage(self, report: Fields) -> bool:
        """Take the server's counts, of several the last; returns whether it counts output."""
        found, before = usage_of(report), self.usage
        self.usage = Usage(
            before.input if found.input is None else found.input,
            before.cached if found.cached is None else found.cached,
            before.output if found.output is None else found.output,
            before.unseen if found.output is None else found.unseen,
        )
        return bool(found.output)

    def _add_choice(self, choice: Fields, output: Output) -> tuple[bool, bool]:
        index = choice.get("index")
        index = index if isinstance(index, int) and self.choices > 1 else 0
        self.seen.add(index)
        self._add_finish(index, choice.get("finish_reason"))
        if index == 0 and output.text and self.text_chars <= self.max_text_chars:
            self.text.append(output.text)
            self.text_chars += len(output.text)
        self.reasoning_chars += len(output.reasoning)
        called = bool(output.tool_calls) and self._add_calls(index, output.tool_calls)
        visible = bool(output.text) or output.media
        return visible or bool(output.reasoning) or called, visible

    def _add_finish(self, index: int, reason: Any) -> None:
        """Note why a choice ended; an object says it by its `type`, and is no plain end."""
        if isinstance(reason, dict):
            kind = reason.get("type")
            if kind not in ("stop", "length"):
                self.gave_up = excerpt(str(reason.get("message") or kind or reason))
            reason = str(kind or "object")
        if not reason or str(reason).lower() in _NO_REASON:
            return
        self.finished[index] = excerpt(str(reason))
        if _GAVE_UP.search(str(reason)) and self.gave_up is None:
            self.gave_up = self.finished[index]

    def _add_calls(self, choice: int, calls: list[Any]) -> bool:
        """Note the names of the tools called; False when every call is an empty shell."""
        has_content = False
        for place, call in enumerate(calls):
            function = (call.get("function") or {}) if isinstance(call, dict) else None
            if not isinstance(function, dict):
                raise WrongShape("a tool call that is not an object")
            has_content |= not function or any(function.values())
            name, index = function.get("name"), call.get("index")
            if name and isinstance(name, str):
                key = (choice, index if isinstance(index, int) else place)
                self.calls.setdefault(key, excerpt(name))
        return has_content

    def whole(self) -> bool:
        """Tell whether every choice that began has a finish reason."""
        return bool(self.finished) and self.seen <= self.finished.keys()

    def failed_finish(self, kind: str) -> RequestFailed | None:
        """Return a failure of this kind when a finish reason says that the server gave up."""
        if self.gave_up is None:
            return None
        return RequestFailed(kind, f"finish_reason {self.gave_up!r}")

    def reply(self, *, streamed: bool, **rest: Any) -> Reply:
        """Return what has been added; `rest` are the fields of Reply that only the reader knows."""
        self._take_late_reports()
        usage = self._believable()
        text = "".join(self.text)
        counted = streamed and usage.output is None
        tokens = self.tokens
        return Reply(
            text=_encodable(text[: self.max_text_chars]),
            text_cut=len(text) > self.max_text_chars,
            reasoning_chars=self.reasoning_chars,
            token_events=tuple(tokens),
            merged=self.merged,
            finish_reason=self.finished.get(0) or next(iter(self.finished.values()), None),
            input_tokens=usage.input,
            cached_tokens=usage.cached,
            output_tokens=len(tokens) if counted else usage.output,
            tokens_counted=counted,
            streamed_tokens=self._streamed(usage),
            tool_calls=tuple(self.calls.values()),
            model=self.model,
            server_timings=self.server_timings,
            **rest,
        )

    def _believable(self) -> Usage:
        """Return the usage without counts of zero that cannot be: missing is not free."""
        usage = self.usage
        if usage.output == 0 and (self.tokens or self.text or self.calls):
            usage = usage._replace(output=None)
        if usage.input == 0 and not usage.cached:
            usage = usage._replace(input=None)
        return usage

    def _streamed(self, usage: Usage) -> int | None:
        """How many of the output tokens came in the stream; None where that cannot be told.

        Reasoning that is counted is often not sent, or in another form: a summary of fewer
        characters than it has tokens.
        """
        if usage.output is None:
            return len(self.tokens)
        if not usage.unseen or self.reasoning_chars >= usage.unseen:
            return usage.output
        return None if self.reasoning_chars else max(usage.output - usage.unseen, 0)


def _parsed(report: msgspec.Raw | None) -> Any:
    if report is None:
        return None
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(report)
    return None


def _encodable(text: str) -> str:
    """Join surrogate halves that came in two events; a half without its other becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
