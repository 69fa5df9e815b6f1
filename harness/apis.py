"""Endpoint dialects: how a request is worded, and what in a reply is a token. Nothing here sends.

What is a token event: one that brings non-empty content (visible), reasoning or a tool call. A
role, a null or an empty delta is none, and neither is a chunk that only carries usage. A streamed
reply is whole when every choice it began has a finish reason; `[DONE]` is neither needed (some
servers never send it) nor enough (a stream that was interrupted can still send it). A whole reply
without any token is not a failure: its ttft is absent.

While a reply streams, its reads are only stored with their stamps; `StreamReader.finish` decodes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from harness.errors import RequestFailed, UserError
from harness.wire import Event, SSEDecoder, Timings, timings

MAX_BODY_BYTES = 16 << 20
MAX_READS = 1 << 18  # a stored read costs about 100 bytes beside its data
MAX_TEXT_CHARS = 64 << 10
EXCERPT_CHARS = 200

Fields = Mapping[str, Any]

_NOT_PLAIN = re.compile(rb'[\x00-\x1f"\\]')  # what a JSON string says with an escape, or must not
_PROBE = "another text"
_FRAME_TRIES = 8
_FAILED_FINISH = ("error", "abort")  # what vLLM and routers put where a reason would stand


class _WrongShape(ValueError):
    """JSON that parses and is not what the dialect has there."""


class Output(NamedTuple):
    """What one choice of a chunk, or of a whole reply, brings."""

    text: str
    reasoning: str
    tool_calls: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One dialect.

    `body(data, model, params)` words the request's JSON: the dialect's defaults, over them the
    input's own fields, over them `params`; a prompt is put where the dialect wants it. It raises
    UserError when the input lacks what the dialect needs.
    `output` reads one choice and is None where replies hold no text, so there is nothing to stream;
    `check` looks at a whole JSON reply. Both raise ValueError on a shape the dialect does not have.
    """

    name: str
    path: str
    body: Callable[[Fields, str | None, Fields], dict[str, Any]]
    output: Callable[[Fields], Output] | None
    check: Callable[[Any], None]

    @property
    def streams(self) -> bool:
        """Tell whether the dialect has event streams at all."""
        return self.output is not None

    def wants_stream(self, body: Fields) -> bool:
        """Tell whether the reply to this request body is an event stream."""
        return self.streams and body.get("stream") is True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is kept of one reply. Failed replies hold what had come before the failure."""

    text: str = ""
    """The first choice's visible text, up to the limit; `text_cut` says that there was more."""
    text_cut: bool = False
    reasoning_chars: int = 0
    token_events: tuple[tuple[int, bool], ...] = ()
    """(stamp in ns, visible) of each token event; empty when the reply was not streamed."""
    merged: int = 0
    """Token events whose stamp may be late, because more followed in the same read."""
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    tokens_counted: bool = False
    """True when the server gave no count and `output_tokens` counts token events."""
    tool_calls: tuple[str, ...] = ()
    """The names of the tools called, in order."""
    model: str | None = None
    server_timings: Fields | None = None
    """llama.cpp's own `timings`, in its units (ms)."""
    done_seen: bool = False
    incomplete_event: bool = False
    """The body ended inside an event; it was left out."""
    value: Any = None
    """The parsed body of a reply that was not streamed."""
    end_ns: int | None = None
    failure: RequestFailed | None = None

    def timings(self, *, start_ns: int, sent_ns: int) -> Timings:
        """Compute this reply's times. Raises ValueError for one that was read without `end_ns`."""
        if self.end_ns is None:
            raise ValueError("this reply was read without end_ns")
        return timings(
            start_ns=start_ns,
            sent_ns=sent_ns,
            tokens=self.token_events,
            end_ns=self.end_ns,
            output_tokens=None if self.tokens_counted else self.output_tokens,
        )


# Requests


def _chat_body(data: Fields, model: str | None, params: Fields) -> dict[str, Any]:
    fields = dict(data)
    prompt = fields.pop("prompt", None)
    if "messages" not in fields:
        if prompt is None:
            raise UserError(_lacks("openai-chat", "'messages' or 'prompt'", data))
        fields["messages"] = [{"role": "user", "content": prompt}]
    return _streamed(model, fields, params)


def _completions_body(data: Fields, model: str | None, params: Fields) -> dict[str, Any]:
    if "prompt" not in data:
        raise UserError(_lacks("openai-completions", "'prompt'", data))
    return _streamed(model, data, params)


def _embeddings_body(data: Fields, model: str | None, params: Fields) -> dict[str, Any]:
    fields = dict(data)
    prompt = fields.pop("prompt", None)
    if fields.setdefault("input", prompt) is None:
        raise UserError(_lacks("openai-embeddings", "'input' or 'prompt'", data))
    return _named(model) | fields | dict(params)


def _json_body(data: Fields, model: str | None, params: Fields) -> dict[str, Any]:
    return _named(model) | dict(data) | dict(params)


def problem_of(api: Api, data: Fields) -> str | None:
    """Say why the dialect has no body for an input's fields; None when it has."""
    try:
        api.body(data, None, {})
    except UserError as error:
        return str(error)
    return None


def _streamed(model: str | None, fields: Fields, params: Fields) -> dict[str, Any]:
    defaults = {"stream": True, "stream_options": {"include_usage": True}}
    body = _named(model) | defaults | dict(fields) | dict(params)
    if body["stream"] is not True or body["stream_options"] is None:
        del body["stream_options"]  # servers refuse it without a stream; null leaves it out
    return body


def _named(model: str | None) -> dict[str, Any]:
    return {} if model is None else {"model": model}


def _lacks(name: str, needed: str, data: Fields) -> str:
    found = ", ".join(map(repr, data)) or "nothing"
    return f"an input for {name} needs {needed}; found {found}"


def url_for(base_url: str, api: Api, path_override: str | None = None) -> str:
    """Join the path to the base URL; what the base already ends with is not said twice.

    `http://h:1`, `http://h:1/v1` and `http://h:1/v1/chat/completions` give the same URL. A query in
    either part is kept. Raises UserError for a base that is not an http or https URL.
    """
    try:
        base = urlsplit(base_url.strip())
        usable = base.scheme in ("http", "https") and base.hostname and base.port != 0
    except ValueError:
        usable = None
    if not usable:
        raise UserError(f"url {base_url!r} must look like http://host:port or https://host/path")
    added = urlsplit(api.path if path_override is None else path_override)
    if added.scheme or added.netloc:
        raise UserError(f"path {path_override!r} must be a path; the host belongs in the url")
    have = [part for part in base.path.split("/") if part]
    want = [part for part in added.path.split("/") if part]
    said = max(n for n in range(len(want) + 1) if have[max(len(have) - n, 0) :] == want[:n])
    path = "/" + "/".join(have + want[said:])
    if want and added.path.endswith("/"):
        path += "/"
    query = "&".join(filter(None, (base.query, added.query)))
    return urlunsplit((base.scheme, base.netloc, path, query, ""))


# What a reply holds


def _chat_output(choice: Fields) -> Output:
    part = choice.get("delta") or choice.get("message") or {}
    if not isinstance(part, dict):
        raise _WrongShape("a delta that is not an object")
    text = part.get("content") or part.get("refusal") or ""
    reasoning = part.get("reasoning_content") or part.get("reasoning") or ""
    calls = part.get("tool_calls") or []
    if not (isinstance(text, str) and isinstance(reasoning, str) and isinstance(calls, list)):
        raise _WrongShape("content, reasoning or tool_calls of another type than the API has")
    return Output(text, reasoning, calls)


def _completions_output(choice: Fields) -> Output:
    text = choice.get("text") or ""
    if not isinstance(text, str):
        raise _WrongShape("a text that is not a string")
    return Output(text, "", [])


def _check_choices(value: Any) -> None:
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise _WrongShape("no 'choices'")


def _check_embeddings(value: Any) -> None:
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not rows:
        raise _WrongShape("'data' must be a list with at least one embedding")
    for row in rows:
        vector = row.get("embedding") if isinstance(row, dict) else None
        if not isinstance(vector, list | str) or not vector:  # a string is base64
            raise _WrongShape("an item of 'data' without an embedding")


def _check_nothing(_value: Any) -> None:
    """Accept any JSON."""


_APIS = {
    one.name: one
    for one in (
        Api(
            name="openai-chat",
            path="/v1/chat/completions",
            body=_chat_body,
            output=_chat_output,
            check=_check_choices,
        ),
        Api(
            name="openai-completions",
            path="/v1/completions",
            body=_completions_body,
            output=_completions_output,
            check=_check_choices,
        ),
        Api(
            name="openai-embeddings",
            path="/v1/embeddings",
            body=_embeddings_body,
            output=None,
            check=_check_embeddings,
        ),
        Api(
            name="json",
            path="/v1/predict",
            body=_json_body,
            output=None,
            check=_check_nothing,
        ),
    )
}
API_NAMES = tuple(_APIS)


def api(name: str) -> Api:
    """Return the dialect of that name. Raises UserError, with near misses, for any other."""
    if name in _APIS:
        return _APIS[name]
    near = get_close_matches(name, _APIS, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}" if near else ""
    raise UserError(f"unknown api {name!r}{hint}; allowed: {', '.join(_APIS)}")


@dataclass(slots=True)
class _Tally:
    """What chunks add up to, and at last the Reply."""

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
    output_tokens: int | None = None
    model: str | None = None
    server_timings: Fields | None = None

    def add(self, value: Fields) -> tuple[bool, bool]:
        """Add a chunk or a whole reply; (has output of any kind, has visible output)."""
        has_output = has_text = False
        output = self.api.output
        if output is not None and (choices := value.get("choices")):
            if not isinstance(choices, list):
                raise _WrongShape("'choices' that are not a list")
            for choice in choices:
                if not isinstance(choice, dict):
                    raise _WrongShape("a choice that is not an object")
                anything, text = self._add_choice(choice, output(choice))
                has_output |= anything
                has_text |= text
        usage = value.get("usage")
        if isinstance(usage, dict):
            self.input_tokens = _count(usage.get("prompt_tokens"), self.input_tokens)
            self.output_tokens = _count(usage.get("completion_tokens"), self.output_tokens)
        if self.model is None and isinstance(value.get("model"), str):
            self.model = excerpt(value["model"])
        if isinstance(value.get("timings"), dict):
            self.server_timings = value["timings"]
        return has_output, has_text

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
                raise _WrongShape("a tool call that is not an object")
            has_content |= not function or any(function.values())
            name, index = function.get("name"), call.get("index")
            if name and isinstance(name, str):
                key = (choice, index if isinstance(index, int) else place)
                self.calls.setdefault(key, excerpt(name))
        return has_content

    def whole(self) -> bool:
        return bool(self.finished) and self.seen <= self.finished.keys()

    def failed_finish(self, kind: str) -> RequestFailed | None:
        reason = next((one for one in self.finished.values() if one in _FAILED_FINISH), None)
        return RequestFailed(kind, f"finish_reason {reason!r}") if reason else None

    def reply(self, *, streamed: bool, **rest: Any) -> Reply:
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
            output_tokens=len(self.tokens) if counted else self.output_tokens,
            tokens_counted=counted,
            tool_calls=tuple(self.calls.values()),
            model=self.model,
            server_timings=self.server_timings,
            **rest,
        )


# Streams


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
        tally = _Tally(self._api, self._max_text_chars)
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


class _Frame:
    """The bytes around the text of an event that was parsed.

    Most events of a stream differ in their text alone. One with the same bytes before and after a
    plain string means the same but for that text, and needs no parsing.
    """

    __slots__ = ("_after", "_before", "_least_bytes", "_tries")

    def __init__(self) -> None:
        self._before = self._after = b""
        self._least_bytes = sys.maxsize
        self._tries = _FRAME_TRIES

    def learn(self, data: bytes, text: str, api: Api) -> None:
        """Take the frame of an event whose only output was `text`.

        That the bytes found are the text's place is proved by putting another text there. A stream
        whose events differ in more is given up after a few tries.
        """
        literal = b'"%b"' % text.encode("utf-8", "replace")
        if not self._tries or data.count(literal) != 1:
            return
        if _NOT_PLAIN.search(literal[1:-1]):
            return
        self._tries -= 1
        at = data.index(literal) + 1
        before, after = data[:at], data[at + len(literal) - 2 :]
        proof = json.loads(before + _PROBE.encode() + after)
        assert api.output is not None
        if api.output(proof["choices"][0]).text == _PROBE:
            self._before, self._after = before, after
            self._least_bytes = len(before) + len(after)

    def text_of(self, data: bytes) -> str | None:
        """Return the text of an event in this frame; None where it must be parsed."""
        if len(data) < self._least_bytes:
            return None
        if not (data.startswith(self._before) and data.endswith(self._after)):
            return None
        text = data[len(self._before) : len(data) - len(self._after)]
        if _NOT_PLAIN.search(text):
            return None
        try:
            return text.decode()
        except UnicodeDecodeError:
            return None


def _read_events(decoder: SSEDecoder, reads: list[tuple[bytes, int]], tally: _Tally) -> bool:
    """Put every event into the tally; True when `[DONE]` ended the stream.

    Raises RequestFailed at the first event that is malformed or an error.
    """
    frame = _Frame()
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


def _add_parsed(event: Event, tally: _Tally, frame: _Frame) -> tuple[bool, bool]:
    """Parse an event whole; learn its frame when its text is all that it brings."""
    value = _parse_event(event)
    before = tally.reasoning_chars
    try:
        has_output, has_text = tally.add(value)
    except _WrongShape as error:
        raise RequestFailed("malformed event", f"{error}: {excerpt(event.data)}") from None
    if has_text and tally.reasoning_chars == before and not value.get("usage"):
        choice, *others = value["choices"]
        plain = not (others or choice.get("index") or choice.get("finish_reason"))
        output = tally.api.output(choice) if plain and tally.api.output else None
        if output is not None and not output.tool_calls:
            frame.learn(event.data, output.text, tally.api)
    return has_output, has_text


def _parse_event(event: Event) -> dict[str, Any]:
    try:
        value = json.loads(str(event.data, "utf-8"))
    except (ValueError, RecursionError):
        value = None
    if event.event == "error":
        raise RequestFailed("error event", _error_message(value) or excerpt(event.data))
    if not isinstance(value, dict):
        raise RequestFailed("malformed event", f"not a JSON object: {excerpt(event.data)!r}")
    if value.get("error") or value.get("object") == "error":
        raise RequestFailed("error event", _error_message(value) or excerpt(event.data))
    return value


def _truncated(tally: _Tally, *, done: bool, pending: bytes | None) -> RequestFailed:
    ended = "[DONE]" if done else "end of the body"
    detail = f"{ended} without finish_reason after {len(tally.tokens)} token events"
    if pending is not None:
        detail += f"; the last event was cut: {excerpt(pending, 80)!r}"
    return RequestFailed("truncated stream", detail)


def stream_failure(headers: Mapping[str, str], body: bytes = b"") -> RequestFailed | None:
    """Return a failure when a reply that should stream declares another content type.

    A reply that declares none is taken as a stream. `body`, or its beginning, explains it better.
    """
    kind = _content_type(headers)
    if not kind or kind == "text/event-stream":
        return None
    said = f": {_body_message(body)}" if body else ""
    return RequestFailed("not a stream", f"content-type {excerpt(kind, 80)}{said}")


# Whole replies


def read_json(
    api: Api, status: int, headers: Mapping[str, str], body: bytes, *, end_ns: int | None = None
) -> Reply:
    """Read a reply that was not streamed; nothing is raised, `failure` says what was wrong."""
    if not 200 <= status < 300:
        return Reply(failure=status_failure(status, body), end_ns=end_ns)
    tally = _Tally(api)
    failure = None
    value = None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        kind = _content_type(headers) or "no content-type"
        failure = RequestFailed("invalid reply", f"not JSON ({kind}): {excerpt(body)!r}")
    if failure is None:
        try:
            api.check(value)
            if isinstance(value, dict):
                tally.add(value)
            failure = tally.failed_finish("invalid reply")
        except _WrongShape as error:
            failure = RequestFailed("invalid reply", f"{error}: {_body_message(body)}")
    return tally.reply(streamed=False, value=value, end_ns=end_ns, failure=failure)


def status_failure(status: int, body: bytes) -> RequestFailed:
    """Return the failure `status 429`, with the server's own message, cut to 200 characters."""
    return RequestFailed(f"status {status}", _body_message(body))


def excerpt(text: str | bytes, limit: int = EXCERPT_CHARS) -> str:
    """Return what is safe to print of a server's text: one line, no control characters, bounded."""
    if isinstance(text, bytes):
        text = text[: limit * 8].decode("utf-8", "replace")
    line = " ".join(text[: limit * 8].split())
    line = "".join(filter(str.isprintable, line))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _body_message(body: bytes) -> str:
    value = None
    if len(body) <= 64 << 10:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
    return _error_message(value) or excerpt(body)


def _error_message(value: Any) -> str:
    """Find the message in the shapes that servers give their errors; empty when there is none."""
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
    if isinstance(value, str):
        return excerpt(value)
    return ""


def _content_type(headers: Mapping[str, str]) -> str:
    value = headers.get("content-type") or headers.get("Content-Type") or ""
    return value.partition(";")[0].strip().lower()


def _count(value: Any, before: int | None) -> int | None:
    return value if type(value) is int and value >= 0 else before


def _encodable(text: str) -> str:
    """Join surrogate halves that came in two events; a half without its other becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
