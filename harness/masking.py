"""Keeps secrets out of all that is written or shown: the one place that masks a text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

MASK = "***"
SHORT = 3  # letters; a secret this short may stand in any word: only as a whole value is it masked
_LEAST_PART = 6  # of a secret that was cut off at the end of an excerpt; shorter says too little
_CUT = "…"
_NAME = r"authorization|api[-_]?key|cookie|secret|password|(?:^|[-_])token(?![\w-])"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Return whether a header, field or variable of this name holds what must not be shown."""
    return _SECRET_NAME.search(name) is not None


def mask(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without the secrets, and without the first part of one that its end cuts.

    One of up to 3 letters goes where it is the whole text, or the value of a name that `is_secret`.
    """
    for secret in secrets:
        if len(secret) <= SHORT:
            text = MASK if text == secret else _as_value(secret).sub(rf"\g<name>{MASK}", text)
            continue
        text = text.replace(secret, MASK)
        body = text.removesuffix(_CUT)
        for size in range(min(len(secret) - 1, len(body)), _LEAST_PART - 1, -1):
            if body.endswith(secret[:size]):
                text = body[:-size] + MASK
                break
    return text


@lru_cache
def _as_value(secret: str) -> re.Pattern[str]:
    """`secret` where it is all of a value: `api_key=no`, `"Authorization": "Bearer no"`."""
    words = r"(?:bearer|basic|token|apikey)\s+"
    return re.compile(
        rf"(?P<name>(?:{_NAME})[\w-]*[\"']?\s*[:=]\s*[\"']?(?:{words})?)"
        rf"{re.escape(secret)}(?![^\s\"',;&)\]}}])",
        re.IGNORECASE | re.MULTILINE,
    )
