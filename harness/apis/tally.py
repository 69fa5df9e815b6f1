"""Adds up what the chunks of a reply, or a whole one, bring."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.apis.contents import Fields, Output, WrongShape
from harness.apis.dialects import Api
from harness.apis.failures import excerpt
from harness.apis.reply import Reply
from harness.errors import RequestFailed

MAX_TEXT_CHARS = 64 << 10

_MOST_TOKENS = 10**9  # of one reply: what claims more is no count

_FAILED_FINISH = ("error", "abort")  # what vLLM and routers put where a reason would stand


@dataclass(slots=True)
class Tally:
    """What one reply has brought so far."""

    api: Api
    max_text_chars: int = MAX_TEXT_CHARS
    text: list[str] = field(default_factory=list)
    text_chars: int = 0
    reasoning_chars: int = 0
    tokens: list[tuple[int, bool]] = field(default_factory=list)
    merged: int = 0
    seen: set[int] = field(default_factory=set)
    """Indexes of the choices that began; `finished` has the reason of those that ended."""
    finished: dict[int, str] = field(default_factory=dict)
    calls: dict[tuple[int, int], str] = field(default_factory=dict)
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    model: str | None = None
    server_timings: Fields | None = None

    def add(self, value: Fields) -> tuple[bool, bool]:
        """Add a chunk or a whole reply; (has output of any kind, has visible output)."""
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
        if isinstance(usage := value.get("usage"), dict):
            self._add_usage(usage)
        if self.model is None and isinstance(value.get("model"), str):
            self.model = excerpt(value["model"])
        if isinstance(value.get("timings"), dict):
            self.server_timings = value["timings"]
        return has_output, has_text

    def _add_usage(self, usage: Fields) -> None:
        """Take the server's counts; of several the last one counts."""
        self.input_tokens = _count(usage.get("prompt_tokens"), self.input_tokens)
        self.output_tokens = _count(usage.get("completion_tokens"), self.output_tokens)
        if isinstance(details := usage.get("prompt_tokens_details"), dict):
            self.cached_tokens = _count(details.get("cached_tokens"), self.cached_tokens)

    def _add_choice(self, choice: Fields, output: Output) -> tuple[bool, bool]:
        text, reasoning, calls = output
        index = choice.get("index")
        index = index if isinstance(index, int) else 0
        self.seen.add(index)
        if choice.get("finish_reason"):
            self.finished[index] = excerpt(str(choice["finish_reason"]))
        if index == 0:
            self.add_text(text)
        self.reasoning_chars += len(reasoning)
        called = bool(calls) and self._add_calls(index, calls)
        return bool(text or reasoning or called), bool(text)

    def add_text(self, text: str) -> None:
        """Keep visible text of the first choice, up to a little over the limit."""
        if text and self.text_chars <= self.max_text_chars:
            self.text.append(text)
            self.text_chars += len(text)

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
        reason = next((one for one in self.finished.values() if one in _FAILED_FINISH), None)
        return RequestFailed(kind, f"finish_reason {reason!r}") if reason else None

    def reply(self, *, streamed: bool, **rest: Any) -> Reply:
        """Return what has been added; `rest` are the fields of Reply that only the reader knows."""
        text = "".join(self.text)
        counted = streamed and self.output_tokens is None
        return Reply(
            text=_encodable(text[: self.max_text_chars]),
            text_cut=len(text) > self.max_text_chars,
            reasoning_chars=self.reasoning_chars,
            token_events=tuple(self.tokens),
            merged=self.merged,
            finish_reason=self.finished.get(0) or next(iter(self.finished.values()), None),
            input_tokens=self.input_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=len(self.tokens) if counted else self.output_tokens,
            tokens_counted=counted,
            tool_calls=tuple(self.calls.values()),
            model=self.model,
            server_timings=self.server_timings,
            **rest,
        )


def _count(value: Any, before: int | None) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else before


def _encodable(text: str) -> str:
    """Join surrogate halves that came in two events; a half without its other becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
