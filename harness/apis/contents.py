"""What parsed chunks and replies hold; WrongShape where the dialect has no such thing.

Servers put the same thing in different places. Text and reasoning are looked for by what they are
called and shaped like, not by the server: a string, an object with a text, or a list of such parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

Fields = Mapping[str, Any]

_REASONING = re.compile(r"reason|think|thought", re.IGNORECASE)
_NO_OUTPUT = re.compile(r"finish|stop|signature|token|effort|budget|(^|_)id$", re.IGNORECASE)
_MOST_DEPTH = 4  # of parts inside parts

_USAGES = ("usage_metadata", "usageMetadata")
_DIGITS = re.compile(r"[0-9]{1,10}")
_MOST_TOKENS = 10**9  # of one reply: what claims more is no count
_INPUT = ("prompt_tokens", "input_tokens", "prompt_token_count", "promptTokenCount")
_OUTPUT = (
    "completion_tokens",
    "output_tokens",
    "generated_tokens",
    "candidates_token_count",
    "candidatesTokenCount",
)
_CACHED = ("cached_tokens", "cache_read_input_tokens", "prompt_cache_hit_tokens")
_UNSEEN = ("reasoning_tokens", "rejected_prediction_tokens")


class WrongShape(ValueError):
    """JSON that parses and is not what the dialect has there."""


class Output(NamedTuple):
    """What one choice of a chunk, or of a whole reply, brings.

    `media` says that it brings something that is no text: an image, or sound.
    """

    text: str
    reasoning: str
    tool_calls: list[Any]
    media: bool = False


class Usage(NamedTuple):
    """A server's own counts of tokens; None where it gave none, or what is no count.

    `unseen` of the output tokens were counted and are of a kind that is often not sent:
    reasoning, and predictions that were rejected.
    """

    input: int | None = None
    cached: int | None = None
    output: int | None = None
    unseen: int = 0


NO_USAGE = Usage()


def chat_output(choice: Fields) -> Output:
    """Read a choice of a chat: a chunk's `delta`, a whole reply's `message`, or a completion's."""
    part = choice.get("delta") or choice.get("message") or {}
    if not part and choice.get("text"):
        return _text_output(choice)
    if not isinstance(part, dict):
        raise WrongShape("a delta that is not an object")
    content = _read_parts(part.get("content"))
    refusal = part.get("refusal") or ""
    calls = part.get("tool_calls") or []
    if not (isinstance(refusal, str) and isinstance(calls, list)):
        raise WrongShape("a refusal or tool_calls of another type than the API has")
    if part.get("function_call"):  # what tool_calls were called before there could be several
        calls = [*calls, {"function": part["function_call"]}]
    audio = part.get("audio")
    spoken = audio.get("transcript") if isinstance(audio, dict) else None
    return Output(
        text=content.text or refusal or (spoken if isinstance(spoken, str) else ""),
        reasoning=content.reasoning or _reasoning_of(part),
        tool_calls=calls,
        media=content.media or bool(part.get("images")) or _has_sound(audio),
    )


def completions_output(choice: Fields) -> Output:
    """Read a choice of a completion, or of a chat where a server answers with one."""
    return _text_output(choice) if "text" in choice else chat_output(choice)


def _text_output(choice: Fields) -> Output:
    text = choice.get("text") or ""
    if not isinstance(text, str):
        raise WrongShape("a text that is not a string")
    return Output(text, _reasoning_of(choice), [])


def _has_sound(audio: Any) -> bool:
    return isinstance(audio, dict) and bool(audio.get("data"))


def _read_parts(content: Any) -> Output:
    """Read a content: none, a text, one part, or a list of parts."""
    if content is None or isinstance(content, str):
        return Output(content or "", "", [])
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise WrongShape("a content that is neither a text nor a list of parts")
    text = reasoning = ""
    media = False
    for part in parts:
        kind = str(part.get("type", "text"))
        if _REASONING.search(kind):
            reasoning += "".join(_texts(part))
        elif "text" in part or "refusal" in part:
            text += "".join(_texts(part.get("text") or part.get("refusal")))
        else:
            media = media or len(part) > 1  # beside its type it has something
    return Output(text, reasoning, [], media)


def _reasoning_of(part: Fields) -> str:
    """Return the reasoning under whatever name; servers that have several give it in each."""
    found = ["".join(_texts(value)) for name, value in part.items() if value and _reasons(name)]
    return max(found, key=len, default="")


@lru_cache(maxsize=1024)
def _reasons(name: str) -> bool:
    """Tell whether a field holds reasoning, by its name."""
    return bool(_REASONING.search(name)) and not _NO_OUTPUT.search(name)


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the texts in a value: itself, those of its parts, of a part all that is output."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth < _MOST_DEPTH:
        for one in value:
            yield from _texts(one, depth + 1)
    elif isinstance(value, dict) and depth < _MOST_DEPTH:
        for name, one in value.items():
            if name in ("text", "summary", "content", "data") or _reasons(name):
                yield from _texts(one, depth + 1)


def reports(value: Fields) -> list[Fields]:
    """Return the usage reports of a chunk or reply, wherever servers put them."""
    if isinstance(usage := value.get("usage"), dict):
        return [usage]
    found = [one for name, one in value.items() if name in _USAGES]
    found += [one.get("usage") for one in value.values() if isinstance(one, dict)]
    choices = value.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            part = choice.get("delta") or choice.get("message")
            found.append(choice.get("usage"))
            found.append(part.get("usage") if isinstance(part, dict) else None)
    return [report for report in found if isinstance(report, dict)]


def usage_of(report: Fields) -> Usage:
    """Read a usage report."""
    every = [report, *(part for name, part in report.items() if name.endswith("_details"))]
    details = [part for part in every if isinstance(part, dict)]
    output, given = _first(_OUTPUT, report), _first(_INPUT, report)
    total = _count(report.get("total_tokens"))
    if output is None and None not in (given, total):
        output = max((total or 0) - (given or 0), 0)
    unseen = sum(max(_count(part.get(name)) or 0 for part in details) for name in _UNSEEN)
    if unseen and total == (given or 0) + (output or 0) + unseen:
        unseen = 0  # this server counts them beside its output tokens
    cached = [_first(_CACHED, part) for part in details]
    return Usage(given, next((n for n in cached if n is not None), None), output, unseen)


def _first(names: tuple[str, ...], report: Fields) -> int | None:
    counts = (_count(report.get(name)) for name in names)
    return next((count for count in counts if count is not None), None)


def _count(value: Any) -> int | None:
    whole = type(value) is float and value.is_integer()
    if whole or (type(value) is str and _DIGITS.fullmatch(value)):
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def check_choices(value: Any) -> None:
    """Refuse a whole reply without choices, or with an error beside them."""
    _check_error(value)
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise WrongShape("no 'choices'")


def check_embeddings(value: Any) -> None:
    """Refuse a whole reply with anything but embeddings, at least one, or with an error beside."""
    _check_error(value)
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not rows:
        raise WrongShape("'data' must be a list with at least one embedding")
    for row in rows:
        vector = row.get("embedding") if isinstance(row, dict) else None
        if not isinstance(vector, list | str) or not vector:  # a string is base64
            raise WrongShape("an item of 'data' without an embedding")
        if isinstance(vector, list) and None in vector:  # what NaN becomes in JSON
            raise WrongShape("an embedding with null in it, which is no number")


def _check_error(value: Any) -> None:
    if isinstance(value, dict) and value.get("error"):
        raise WrongShape("an error")


def check_nothing(_value: Any) -> None:
    """Accept any JSON."""
