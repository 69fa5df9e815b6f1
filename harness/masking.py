"""Keeps secrets out of all that is written or shown: the one place that masks a text.

A variable or field holds a secret by its name. A header, or a part of a URL's query, does unless
its name is known to be harmless: what either carries is most often what lets a caller in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote_plus

MASK = "***"
SHORT = 3  # letters; a secret this short may stand in any word: only as a whole value is it masked
_LEAST_PART = 6  # of a secret that was cut off at the end of an excerpt; shorter says too little
_CUT = "…"
_NAME = r"authorization|api[-_]?key|cookie|secret|password|(?:^|[-_])token(?![\w-])"
_WORD = re.compile(r"[a-z][a-z_-]{,18}|.{,5}")  # what is also said where no secret is meant
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_HARMLESS = frozenset({
    "accept", "accept-encoding", "accept-language", "anthropic-beta", "anthropic-version",
    "api-version", "cache-control", "connection", "content-type", "host", "openai-beta", "origin",
    "traceparent", "user-agent", "x-correlation-id", "x-request-id",
})  # fmt: skip
_QUERY = re.compile(r"(?P<name>[?&;](?:[^=&;#]*=)?)(?P<value>(?:\$\{[^{}]*\}|[^&;#}])*)")
_ONLY_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-)?\}")


def is_secret(name: str) -> bool:
    """Return whether a header, field or variable of this name holds what must not be shown."""
    return _SECRET_NAME.search(name) is not None


def is_harmless(name: str) -> bool:
    """Return whether a header, or part of a query, of this name holds what anyone may see."""
    return name.lower() in _HARMLESS


def only_variable(text: str) -> bool:
    """Return whether a plan's text is one `${VAR}`, or empty, so that it gives nothing away."""
    return not text or _ONLY_VARIABLE.fullmatch(text) is not None


def anywhere(name: str, parts: Iterable[str]) -> set[str]:
    """Return those parts of a header's, or a query's, value that are masked wherever they stand.

    Where the name does not say that it is secret, a word is not: a step may be called like it.
    """
    if is_secret(name):
        return set(parts)
    return set() if is_harmless(name) else {p for p in parts if not _WORD.fullmatch(p)}


def query_secrets(url: str) -> set[str]:
    """Return what of a URL's query must not be seen: its values, a word with its name."""
    found = set()
    for part in re.split("[&;]", url.partition("?")[2].partition("#")[0]):
        name, equals, value = part.partition("=")
        name, value = (name, value) if equals else ("", part)
        if value and not is_harmless(name):
            texts = anywhere(name, (value, unquote_plus(value)))
            found |= texts or {f"?{part}", f"&{part}"}  # wherever it ends up in a joined query
    return found


def mask_query(url: str) -> str:
    """Return a URL, whole or as a plan writes it, without its query's values; `${VAR}` stays."""
    return _QUERY.sub(_masked_part, url)


def _masked_part(found: re.Match[str]) -> str:
    plain = is_harmless(found["name"][1:].removesuffix("=")) or only_variable(found["value"])
    return found[0] if plain else found["name"] + MASK


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
