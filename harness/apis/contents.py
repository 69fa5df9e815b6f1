"""What parsed chunks and replies hold; WrongShape where the dialect has no such thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Fields = Mapping[str, Any]


class WrongShape(ValueError):
    """JSON that parses and is not what the dialect has there."""


class Output(NamedTuple):
    """What one choice of a chunk, or of a whole reply, brings."""

    text: str
    reasoning: str
    tool_calls: list[Any]


def chat_output(choice: Fields) -> Output:
    """Read a choice of a chat: a chunk's `delta`, or a whole reply's `message`."""
    part = choice.get("delta") or choice.get("message") or {}
    if not isinstance(part, dict):
        raise WrongShape("a delta that is not an object")
    text = part.get("content") or part.get("refusal") or ""
    reasoning = part.get("reasoning_content") or part.get("reasoning") or ""
    calls = part.get("tool_calls") or []
    if not (isinstance(text, str) and isinstance(reasoning, str) and isinstance(calls, list)):
        raise WrongShape("content, reasoning or tool_calls of another type than the API has")
    return Output(text, reasoning, calls)


def completions_output(choice: Fields) -> Output:
    """Read a choice of a completion."""
    text = choice.get("text") or ""
    if not isinstance(text, str):
        raise WrongShape("a text that is not a string")
    return Output(text, "", [])


def check_choices(value: Any) -> None:
    """Refuse a whole reply without choices."""
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise WrongShape("no 'choices'")


def check_embeddings(value: Any) -> None:
    """Refuse a whole reply with anything but embeddings, at least one."""
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not rows:
        raise WrongShape("'data' must be a list with at least one embedding")
    for row in rows:
        vector = row.get("embedding") if isinstance(row, dict) else None
        if not isinstance(vector, list | str) or not vector:  # a string is base64
            raise WrongShape("an item of 'data' without an embedding")


def check_nothing(_value: Any) -> None:
    """Accept any JSON."""
