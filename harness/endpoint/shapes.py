"""What goes over the wire, in OpenAI's shapes: requests read, replies written, no I/O.

A token is a word: prompts are counted by splitting at whitespace, replies are written word by word.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DIMENSIONS = 32
"""Length of an embedding."""

# One is not ASCII and one holds U+2028, both sent raw as servers do: a client that splits lines
# there, or decodes parts of a character alone, breaks on them.
_WORDS = (
    "the model answers one word at a time and each word is a token so a café or a "
    "line\u2028break must arrive whole while the clock of the server writes down when it left"
)
_PIECES = [json.dumps(f" {word}", ensure_ascii=False)[1:-1].encode() for word in _WORDS.split(" ")]


class RefusedError(Exception):
    """The request cannot be served: HTTP status, what is wrong, and OpenAI's code for it."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = as_json(
            {
                "error": {
                    "message": message,
                    "type": "invalid_request_error" if status < 500 else "server_error",
                    "param": None,
                    "code": code,
                }
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, read and checked. `texts` holds the prompt, or the inputs to embed."""

    kind: str
    model: str
    texts: list[str]
    instances: list[Any]
    stream: bool
    usage: bool
    limit: int | None
    exact: bool

    @property
    def input_tokens(self) -> int:
        """Words in the input."""
        return sum(len(text.split()) for text in self.texts)

    def length(self, drawn: int) -> tuple[int, str]:
        """Tokens to write, and why they end: `stop`, or `length` when max_tokens cut them.

        With `ignore_eos` the reply has exactly max_tokens tokens.
        """
        if self.limit is None or (drawn <= self.limit and not self.exact):
            return drawn, "stop"
        return self.limit, "length"

    def pieces(self) -> Iterator[bytes]:
        """Words for ever, as the inside of JSON strings; the same prompt begins alike."""
        start = zlib.crc32("\n".join(self.texts).encode("utf-8", "replace")) % len(_PIECES)
        return itertools.islice(itertools.cycle(_PIECES), start, None)


def read_ask(kind: str, body: bytes, default_model: str) -> Ask:
    """Check a request's body. Raises `RefusedError`."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise RefusedError("the body must be a JSON object")
    options = _typed(asked, "stream_options", dict, {})
    limit = _typed(asked, "max_completion_tokens", int, _typed(asked, "max_tokens", int, None))
    if limit is not None and limit < 1:
        raise RefusedError("max_tokens must be at least 1")
    return Ask(
        kind=kind,
        model=_typed(asked, "model", str, default_model),
        texts=_texts(kind, asked),
        instances=_needed(asked, "instances", list) if kind == "predict" else [],
        stream=_typed(asked, "stream", bool, False) and kind in ("chat", "completions"),
        usage=_typed(options, "include_usage", bool, False),
        limit=limit,
        exact=_typed(asked, "ignore_eos", bool, False),
    )


def _texts(kind: str, asked: dict[str, Any]) -> list[str]:
    if kind == "chat":
        return [_content(message) for message in _needed(asked, "messages", list)]
    if kind == "completions":
        return [_needed(asked, "prompt", str)]
    if kind == "embeddings":
        given = asked.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise RefusedError("input must be a string or a list of strings, not empty")
        return texts
    return []


def _content(message: Any) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RefusedError("each of messages must be an object with a role")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return " ".join(str(part.get("text", "")) for part in content)
    if content is None or isinstance(content, str):
        return content or ""
    raise RefusedError("content must be a string, a list of parts or null")


def _needed(asked: dict[str, Any], name: str, kind: type) -> Any:
    value = _typed(asked, name, kind, None)
    if value is None or (name == "messages" and not value):
        raise RefusedError(f"{name} is missing")
    return value


def _typed(asked: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = asked.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        raise RefusedError(f"{name} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


class Frames:
    """The SSE events of one reply; the part that repeats is encoded once."""

    __slots__ = ("_after", "_ask", "_before", "_chat", "_prefix", "_reason", "tokens")

    def __init__(self, ask: Ask, reply_id: str, drawn_tokens: int) -> None:
        self._ask, self._chat = ask, ask.kind == "chat"
        self.tokens, self._reason = ask.length(drawn_tokens)
        head = as_json(_head(ask, reply_id, "chat.completion.chunk"))
        self._prefix = b"data: " + head[:-1] + b',"choices":['
        self._before = self._prefix + (
            b'{"index":0,"delta":{"content":"' if self._chat else b'{"index":0,"text":"'
        )
        self._after = (
            b'"},"finish_reason":null}]}\n\n'
            if self._chat
            else b'","logprobs":null,"finish_reason":null}]}\n\n'
        )

    def role(self) -> bytes:
        """Open a chat: a role and no token."""
        return self._prefix + (
            b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
        )

    def token(self, piece: bytes) -> bytes:
        """Carry one token, the inside of a JSON string."""
        return self._before + piece + self._after

    def broken(self) -> bytes:
        """Stop the JSON in the middle."""
        return self._before + b"\n\n"

    def finish(self) -> bytes:
        """Say why the reply ended."""
        what = b'"delta":{}' if self._chat else b'"text":"","logprobs":null'
        reason = self._reason.encode()
        return self._prefix + b'{"index":0,%b,"finish_reason":"%b"}]}\n\n' % (what, reason)

    def usage(self) -> bytes | None:
        """Count the tokens, with empty choices; None when that was not asked for."""
        if not self._ask.usage:
            return None
        return self._prefix + b'],"usage":%b}\n\n' % as_json(_usage(self._ask, self.tokens))


DONE = b"data: [DONE]\n\n"


def whole_reply(ask: Ask, reply_id: str, drawn_tokens: int) -> bytes:
    """Write the JSON of a reply that is not streamed."""
    if ask.kind == "predict":
        return as_json({"predictions": [_predict(instance) for instance in ask.instances]})
    if ask.kind == "embeddings":
        data = [
            {"object": "embedding", "index": index, "embedding": _embed(text)}
            for index, text in enumerate(ask.texts)
        ]
        used = {"prompt_tokens": ask.input_tokens, "total_tokens": ask.input_tokens}
        return as_json({"object": "list", "data": data, "model": ask.model, "usage": used})
    tokens, reason = ask.length(drawn_tokens)
    text = json.loads(b'"' + b"".join(itertools.islice(ask.pieces(), tokens)) + b'"')
    message = {"role": "assistant", "content": text}
    said = {"message": message} if ask.kind == "chat" else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
    head = _head(ask, reply_id, "chat.completion")
    return as_json({**head, "choices": [choice], "usage": _usage(ask, tokens)})


def models(name: str) -> bytes:
    """Write the list of models: one."""
    one = {"id": name, "object": "model", "created": 0, "owned_by": "harness"}
    return as_json({"object": "list", "data": [one]})


def as_json(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _head(ask: Ask, reply_id: str, chat_object: str) -> dict[str, Any]:
    chat = ask.kind == "chat"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{reply_id}",
        "object": chat_object if chat else "text_completion",
        "created": int(time.time()),
        "model": ask.model,
    }


def _usage(ask: Ask, tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": ask.input_tokens,
        "completion_tokens": tokens,
        "total_tokens": ask.input_tokens + tokens,
    }


def _embed(text: str) -> list[float]:
    """Make a unit vector that depends on the text alone."""
    raw = hashlib.shake_128(text.encode("utf-8", "replace")).digest(DIMENSIONS)
    numbers = [byte - 127.5 for byte in raw]
    length = sum(number * number for number in numbers) ** 0.5
    return [number / length for number in numbers]


def _predict(instance: Any) -> float:
    """Make a number from 0 to 1 that depends on the instance alone."""
    text = json.dumps(instance, sort_keys=True, separators=(",", ":"))
    return zlib.crc32(text.encode()) / 0xFFFFFFFF
