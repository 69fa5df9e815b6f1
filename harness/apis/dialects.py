"""The APIs that are known: each one's path, its request's wording and its replies' shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from harness.apis.bodies import chat_body, completions_body, embeddings_body, json_body
from harness.apis.chunks import Plain, plain_chat, plain_text
from harness.apis.contents import (
    Fields,
    Output,
    chat_output,
    check_choices,
    check_embeddings,
    check_nothing,
    completions_output,
)
from harness.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One dialect.

    `body(data, model, params)` words the request's JSON: the dialect's defaults, over them the
    input's own fields, over them `params`; a prompt is put where the dialect wants it. It raises
    UserError when the input lacks what the dialect needs.
    `output` reads one choice and is None where replies hold no text, so there is nothing to stream;
    `check` looks at a whole JSON reply. Both raise ValueError on a shape the dialect does not have.
    `plain` reads what nearly every event of a stream is like, and `end_mark` is in the last one.
    """

    name: str
    path: str
    body: Callable[[Fields, str | None, Fields], dict[str, Any]]
    output: Callable[[Fields], Output] | None
    check: Callable[[Any], None]
    plain: Callable[[bytes], Plain | None] | None = None
    end_mark: bytes = b"[DONE]"

    @property
    def streams(self) -> bool:
        """Tell whether the dialect has event streams at all."""
        return self.output is not None

    def wants_stream(self, body: Fields) -> bool:
        """Tell whether the reply to this request body is an event stream."""
        return self.streams and body.get("stream") is True

    def choices(self, body: Fields) -> int:
        """Return how many choices a request asks for: `n`, of each of its prompts."""
        n, prompts = body.get("n"), body.get("prompt")
        several = isinstance(prompts, list) and not all(type(one) is int for one in prompts)
        return max(1, n if type(n) is int else 1) * (len(prompts or ()) if several else 1)


_APIS = {
    one.name: one
    for one in (
        Api(
            name="openai-chat",
            path="/v1/chat/completions",
            body=chat_body,
            output=chat_output,
            check=check_choices,
            plain=plain_chat,
        ),
        Api(
            name="openai-completions",
            path="/v1/completions",
            body=completions_body,
            output=completions_output,
            check=check_choices,
            plain=plain_text,
        ),
        Api(
            name="openai-embeddings",
            path="/v1/embeddings",
            body=embeddings_body,
            output=None,
            check=check_embeddings,
        ),
        Api(
            name="json",
            path="/v1/predict",
            body=json_body,
            output=None,
            check=check_nothing,
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


def problem_of(api: Api, data: Fields) -> str | None:
    """Say why the dialect has no body for an input's fields; None when it has."""
    try:
        api.body(data, None, {})
    except UserError as error:
        return str(error)
    return None
