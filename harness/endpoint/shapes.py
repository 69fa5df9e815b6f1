"""What goes over the wire, in OpenAI's shapes: requests read, replies written, no I/O.

A token is a word: prompts are counted by splitting at whitespace, replies are written word by word.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DIMENSIONS = 32
"""Length of an embedding, unless the request asks for another."""

# One is not ASCII, sent raw as servers do: a client that decodes parts of a character alone breaks
# on it. One holds U+2028, escaped unless `raw_separators` asks for it raw: clients that split lines
# there break on it.
_WORDS = (
    "the model answers one word at a time and each word is a token so a café or a "
    "line\u2028break must arrive whole while the clock of the server writes down when it left"
)
_PIECES = [f" {word}" for word in _WORDS.split(" ")]
_SEPARATORS = {ord(c): f"\\u{ord(c):04x}" for c in "\x1c\x1d\x1e\x85\u2028\u2029"}
_MOST_CHOICES = 128
_MOST_DIMENSIONS = 4096


class RefusedError(Exception):
    """The request cannot be served: HTTP status, what is wrong, and OpenAI's code for it."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = as_json(
            {
                "error": {
                    "message": message,
                    "type": "invalid_request_error" if status < 500 else "server_error",
                    "param": param,
                    "code": code,
                }
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, read and checked. `texts` holds the messages, prompts, or the inputs to embed.

    A list of prompts has `n` choices for each, in order.
    """

    kind: str
    model: str
    texts: list[str]
    instances: list[Any]
    stream: bool
    usage: bool
    limit: int | None
    exact: bool
    n: int
    stop: tuple[str, ...]
    dimensions: int
    base64: bool
    raw_separators: bool

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

    @property
    def choices(self) -> int:
        """How many the reply has."""
        return self.n * (len(self.texts) if self.kind == "completions" else 1)

    def choice(self, index: int, drawn: int) -> tuple[list[str], str]:
        """Return the words of a choice, and why it ends; the same prompt begins alike."""
        asked = self.texts[index // self.n] if self.kind == "completions" else "\n".join(self.texts)
        start = zlib.crc32(asked.encode("utf-8", "replace")) + index % self.n
        tokens, reason = self.length(drawn)
        words = itertools.cycle(_PIECES)
        first = start % len(_PIECES)
        pieces = list(itertools.islice(words, first, first + tokens))
        text = "".join(pieces)
        ends = [text.find(stop) for stop in self.stop if stop in text]
        return (pieces, reason) if not ends else (_cut(pieces, min(ends)), "stop")

    def inside(self, text: str) -> bytes:
        """Return the inside of a JSON string."""
        return as_json(text, raw_separators=self.raw_separators)[1:-1]


def _cut(pieces: list[str], length: int) -> list[str]:
    kept = []
    for piece in pieces:
        if length <= 0:
            break
        kept.append(piece[:length])
        length -= len(piece)
    return kept


def read_ask(kind: str, body: bytes, served: Sequence[str], *, raw_separators: bool = False) -> Ask:
    """Check a request's body. Raises `RefusedError`."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise RefusedError("the body must be a JSON object")
    options = _typed(asked, "stream_options", dict, {})
    limits = [_whole(asked, name, 1, None) for name in ("max_completion_tokens", "max_tokens")]
    encoding = _typed(asked, "encoding_format", str, "float")
    if encoding not in ("float", "base64"):
        raise RefusedError("encoding_format must be float or base64", param="encoding_format")
    return Ask(
        kind=kind,
        model=_model(_typed(asked, "model", str, served[0]), served, kind),
        texts=_texts(kind, asked),
        instances=_needed(asked, "instances", list) if kind == "predict" else [],
        stream=_typed(asked, "stream", bool, False) and kind in ("chat", "completions"),
        usage=_typed(options, "include_usage", bool, False),
        limit=next((limit for limit in limits if limit is not None), None),
        exact=_typed(asked, "ignore_eos", bool, False),
        n=_whole(asked, "n", 1, _MOST_CHOICES) or 1,
        stop=_stop(asked.get("stop")),
        dimensions=_whole(asked, "dimensions", 1, _MOST_DIMENSIONS) or DIMENSIONS,
        base64=encoding == "base64",
        raw_separators=raw_separators,
    )


def _model(name: str, served: Sequence[str], kind: str) -> str:
    if name not in served and kind != "predict":
        raise no_model(name, served)
    return name


def no_model(name: str, served: Sequence[str]) -> RefusedError:
    """Return the refusal of a model that is not served."""
    problem = f"The model `{name}` does not exist; served are {', '.join(served)}"
    return RefusedError(problem, status=404, code="model_not_found", param="model")


def _whole(asked: dict[str, Any], name: str, low: int, high: int | None) -> int | None:
    value: int | None = _typed(asked, name, int, None)
    if value is not None and (value < low or (high is not None and value > high)):
        most = "" if high is None else f" and at most {high}"
        raise RefusedError(f"{name} must be at least {low}{most}", param=name)
    return value


def _stop(value: Any) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise RefusedError("stop must be a string or a list of strings, not empty", param="stop")
    return tuple(texts)


def _texts(kind: str, asked: dict[str, Any]) -> list[str]:
    if kind == "chat":
        return [_content(message) for message in _needed(asked, "messages", list)]
    if kind in ("completions", "embeddings"):
        name = "prompt" if kind == "completions" else "input"
        return _prompts(asked.get(name), name)
    return []


def _prompts(given: Any, name: str) -> list[str]:
    """Read a text, a list of texts, the ids of tokens, or a list of those."""
    if given is None:
        raise RefusedError(f"{name} is missing", param=name)
    if isinstance(given, str) or _is_tokens(given):
        given = [given]
    if isinstance(given, list) and given:
        if all(isinstance(text, str) for text in given):
            return given
        if all(_is_tokens(tokens) for tokens in given):
            return [" ".join(map(str, tokens)) for tokens in given]
    problem = "must be a string, a list of strings, of token ids or of lists of those, not empty"
    raise RefusedError(f"{name} {problem}", param=name)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(t) is int and t >= 0 for t in value)


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
        raise RefusedError(f"{name} is missing", param=name)
    return value


def _typed(asked: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = asked.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        problem = f"{name} must be of type {kind.__name__}, not {type(value).__name__}"
        raise RefusedError(problem, param=name)
    return value


class Frames:
    """The SSE events of one reply; the part that repeats is encoded once."""

    __slots__ = ("_after", "_ask", "_before", "_chat", "_pieces", "_prefix", "_reasons", "tokens")

    def __init__(self, ask: Ask, reply_id: str, drawn_tokens: int) -> None:
        self._ask, self._chat = ask, ask.kind == "chat"
        choices = [ask.choice(index, drawn_tokens) for index in range(ask.choices)]
        self._pieces = [[ask.inside(piece) for piece in pieces] for pieces, _ in choices]
        self._reasons = [reason for _, reason in choices]
        self.tokens = max(map(len, self._pieces))
        head = as_json(_head(ask, reply_id, "chat.completion.chunk"))
        self._prefix = b"data: " + head[:-1] + b',"choices":['
        text = b'"delta":{"content":"' if self._chat else b'"text":"'
        self._before = [self._prefix + b'{"index":%d,%b' % (i, text) for i in range(ask.choices)]
        self._after = (
            b'"},"finish_reason":null}]}\n\n'
            if self._chat
            else b'","logprobs":null,"finish_reason":null}]}\n\n'
        )

    def roles(self) -> Iterator[bytes]:
        """Open a chat, choice by choice: a role and no token."""
        rest = b'"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
        for index in range(self._ask.choices):
            yield self._prefix + b'{"index":%d,%b' % (index, rest)

    def round(self, turn: int) -> Iterator[bytes]:
        """Carry the next token of every choice that has one."""
        for before, pieces in zip(self._before, self._pieces, strict=True):
            if turn < len(pieces):
                yield before + pieces[turn] + self._after

    def broken(self) -> bytes:
        """Stop the JSON in the middle."""
        return self._before[0] + b"\n\n"

    def finishes(self) -> Iterator[bytes]:
        """Say of each choice why it ended."""
        what = b'"delta":{}' if self._chat else b'"text":"","logprobs":null'
        for index, reason in enumerate(self._reasons):
            end = b'{"index":%d,%b,"finish_reason":"%b"}]}\n\n' % (index, what, reason.encode())
            yield self._prefix + end

    def usage(self) -> bytes | None:
        """Count the tokens, with empty choices; None when that was not asked for."""
        if not self._ask.usage:
            return None
        used = _usage(self._ask, sum(map(len, self._pieces)))
        return self._prefix + b'],"usage":%b}\n\n' % as_json(used)


DONE = b"data: [DONE]\n\n"


def whole_reply(ask: Ask, reply_id: str, drawn_tokens: int) -> bytes:
    """Write the JSON of a reply that is not streamed."""
    if ask.kind == "predict":
        return as_json({"predictions": [_predict(instance) for instance in ask.instances]})
    if ask.kind == "embeddings":
        data = [
            {"object": "embedding", "index": index, "embedding": _embed(ask, text)}
            for index, text in enumerate(ask.texts)
        ]
        used = {"prompt_tokens": ask.input_tokens, "total_tokens": ask.input_tokens}
        return as_json({"object": "list", "data": data, "model": ask.model, "usage": used})
    ended = [ask.choice(index, drawn_tokens) for index in range(ask.choices)]
    choices = [_choice(ask, index, *end) for index, end in enumerate(ended)]
    head = _head(ask, reply_id, "chat.completion")
    used = _usage(ask, sum(len(pieces) for pieces, _ in ended))
    reply = {**head, "choices": choices, "usage": used}
    return as_json(reply, raw_separators=ask.raw_separators)


def _choice(ask: Ask, index: int, pieces: list[str], reason: str) -> dict[str, Any]:
    text = "".join(pieces)
    message = {"role": "assistant", "content": text}
    said = {"message": message} if ask.kind == "chat" else {"text": text}
    return {"index": index, **said, "logprobs": None, "finish_reason": reason}


def models(served: Sequence[str]) -> bytes:
    """Write the list of models."""
    return as_json({"object": "list", "data": [_described(name) for name in served]})


def model(name: str, served: Sequence[str]) -> bytes:
    """Describe one model. Raises `RefusedError` for one that is not served."""
    if name not in served:
        raise no_model(name, served)
    return as_json(_described(name))


def _described(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "harness"}


def as_json(value: Any, *, raw_separators: bool = False) -> bytes:
    """Compact JSON; what some clients take for a line's end is escaped unless asked for raw."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    text = text if raw_separators else text.translate(_SEPARATORS)
    return text.encode("utf-8", "replace")


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


def _embed(ask: Ask, text: str) -> list[float] | str:
    """Make a unit vector that depends on the text and its length alone."""
    raw = hashlib.shake_128(text.encode("utf-8", "replace")).digest(ask.dimensions)
    numbers = [byte - 127.5 for byte in raw]
    length = sum(number * number for number in numbers) ** 0.5
    vector = [number / length for number in numbers]
    if not ask.base64:
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def _predict(instance: Any) -> float:
    """Make a number from 0 to 1 that depends on the instance alone."""
    text = json.dumps(instance, sort_keys=True, separators=(",", ":"))
    return zlib.crc32(text.encode()) / 0xFFFFFFFF
