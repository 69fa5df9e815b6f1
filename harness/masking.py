"""Keeps secrets out of all that is written or shown: the one place that masks a text."""

from __future__ import annotations

from collections.abc import Iterable

MASK = "***"
_LEAST_PART = 6  # of a secret that was cut off at the end of an excerpt; shorter says too little
_CUT = "…"


def mask(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without the secrets, and without the first part of one that its end cuts."""
    for secret in secrets:
        text = text.replace(secret, MASK)
        body = text.removesuffix(_CUT)
        for size in range(min(len(secret) - 1, len(body)), _LEAST_PART - 1, -1):
            if body.endswith(secret[:size]):
                text = body[:-size] + MASK
                break
    return text
