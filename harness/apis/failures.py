"""What a server says where a reply should be: failures by kind, with an excerpt safe to print."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from harness.errors import RequestFailed
from harness.masking import mask_query

EXCERPT_CHARS = 200
_TITLE = re.compile(rb"<title>([^<]+)</title>", re.IGNORECASE)
_PARSED_BYTES = 64 << 10  # a longer body is not searched for a message


def status_failure(status: int, body: bytes, location: str = "") -> RequestFailed:
    """Return the failure `status 429`, with the server's own message, cut to 200 characters.

    Of a redirect, the message is where to: its `location`, without the values of its query.
    """
    said = f"redirected to {excerpt(mask_query(location))}" if location else body_message(body)
    return RequestFailed(f"status {status}", said)


def not_a_stream(headers: Mapping[str, str], body: bytes) -> RequestFailed:
    """Return the failure of a body that is something else than the stream that was asked for."""
    kind = content_type(headers)
    declared = f"content-type {excerpt(kind, 80)}" if kind else "no content-type"
    return RequestFailed("not a stream", f"{declared}: {body_message(body)}")


def excerpt(text: str | bytes, limit: int = EXCERPT_CHARS) -> str:
    """Return what is safe to print of a server's text: one line, no control characters, bounded."""
    if isinstance(text, bytes):
        text = text[: limit * 8].decode("utf-8", "replace")
    line = " ".join(text[: limit * 8].split())
    line = "".join(filter(str.isprintable, line))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def body_message(body: bytes) -> str:
    """Return the error message in a body, the title of a page, or else an excerpt of it."""
    value = None
    if len(body) <= _PARSED_BYTES:
        with suppress(ValueError, RecursionError):
            value = json.loads(body)
    page = _TITLE.search(body[:_PARSED_BYTES])
    return error_message(value) or excerpt(page[1] if page else body)


def error_message(value: Any) -> str:
    """Find the message in the shapes that servers give their errors; empty when there is none."""
    for key in ("error", "errors", "base_resp", "message", "detail", "status_msg"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
        if isinstance(value, list):
            value = next(iter(value), None)
    if isinstance(value, str):
        return excerpt(value)
    return ""


def content_type(headers: Mapping[str, str]) -> str:
    """Return the declared type without its parameters, in lower case; empty when there is none."""
    value = headers.get("content-type") or headers.get("Content-Type") or ""
    return value.partition(";")[0].strip().lower()
