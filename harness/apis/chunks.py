"""What nearly every event of a stream brings, at the price of one typed decode.

An event is plain when it adds text, reasoning or the arguments of a tool call to one choice and
says nothing else but how many tokens or ms it took so far. That is what the types here accept
(0.5 µs in msgspec, some 4 in `json`): what must not be there has the type None. For any other
event, such as a role, a name, an end or an error, the readers answer None, and `contents` finds
what it brings. Both find the same token in an event that
both understand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

NO_REPORT = msgspec.Raw(b"")

_Unnamed = Literal[""] | None

Plain = tuple[int, str, int, msgspec.Raw, msgspec.Raw]
"""Index of the choice, its text, characters of reasoning, and the reports of usage and timings.

Without text and reasoning it brings a tool call's arguments. A report is as it came, empty where
there was none.
"""


class _Function(msgspec.Struct, gc=False):
    arguments: str
    name: _Unnamed = None


class _Call(msgspec.Struct, gc=False):
    function: _Function
    custom: None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None
    refusal: _Unnamed = None
    function_call: None = None
    audio: None = None
    images: None = None


class _ChatChoice(msgspec.Struct, gc=False):
    delta: _Delta
    index: int = 0
    finish_reason: _Unnamed = None
    usage: None = None


class _TextChoice(msgspec.Struct, gc=False):
    text: str
    index: int = 0
    finish_reason: _Unnamed = None
    usage: None = None


class _Chunk(msgspec.Struct, gc=False, kw_only=True):
    error: None = None
    usage: msgspec.Raw = NO_REPORT
    timings: msgspec.Raw = NO_REPORT


class _ChatChunk(_Chunk, gc=False, kw_only=True):
    choices: tuple[_ChatChoice]


class _TextChunk(_Chunk, gc=False, kw_only=True):
    choices: tuple[_TextChoice]


def _decoder(kind: type[Any]) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(kind).decode


_decode_chat = _decoder(_ChatChunk)
_decode_text = _decoder(_TextChunk)


def plain_chat(data: bytes) -> Plain | None:
    """Read a plain event of a chat."""
    try:
        chunk = _decode_chat(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    choice = chunk.choices[0]
    delta = choice.delta
    text = delta.content or ""
    reasoning = len(delta.reasoning_content or delta.reasoning or "")
    if not (text or reasoning) and not any(c.function.arguments for c in delta.tool_calls or ()):
        return None
    return choice.index, text, reasoning, chunk.usage, chunk.timings


def plain_text(data: bytes) -> Plain | None:
    """Read a plain event of a completion."""
    try:
        chunk = _decode_text(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    choice = chunk.choices[0]
    if not choice.text:
        return None
    return choice.index, choice.text, 0, chunk.usage, chunk.timings
