"""The JSON of a request: the dialect's defaults, over them the input's fields, over them `params`.

All raise UserError when the input lacks what the dialect needs.
"""

from __future__ import annotations

from typing import Any

from harness.apis.contents import Fields
from harness.errors import UserError


def chat_body(data: Fields, model: str | None, params: Fields) -> dict[str, Any]:
    """Word a chat request; a prompt becomes one user message."""
    fields = dict(data)
    prompt = fields.pop("prompt", None)
    if "messages" not in fields:
        if prompt is None:
            raise UserError(_lacks("openai-chat", "'messages' or 'prompt'", data))
        fields["messages"] = [{"role": "user", "content": prompt}]
    return _streamed(model, fields, params)


def completions_body(data: Fields, model: str | None, params: Fields) -> dict[str, Any]:
    """Word a completion request."""
    if "prompt" not in data:
        raise UserError(_lacks("openai-completions", "'prompt'", data))
    return _streamed(model, data, params)


def embeddings_body(data: Fields, model: str | None, params: Fields) -> dict[str, Any]:
    """Word an embeddings request; a prompt is its input."""
    fields = dict(data)
    prompt = fields.pop("prompt", None)
    if fields.setdefault("input", prompt) is None:
        raise UserError(_lacks("openai-embeddings", "'input' or 'prompt'", data))
    return _named(model) | fields | dict(params)


def json_body(data: Fields, model: str | None, params: Fields) -> dict[str, Any]:
    """Take the fields as they are."""
    return _named(model) | dict(data) | dict(params)


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
