"""Text that GitHub's Markdown shows as it is: it makes no cell, tag or mention."""

from __future__ import annotations

import re
import unicodedata

from harness.report import words
from harness.units import NARROW_SPACE
from harness.verdict import Outcome

MARKS = {
    Outcome.PASS: "✅",
    Outcome.FAIL: "❌",
    Outcome.INCONCLUSIVE: "❔",
    Outcome.INVALID: "🚫",
    Outcome.NO_DATA: "🚫",
}
_MOST_TEXT = 600
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_./ -]+")
# What Markdown, HTML, GitHub's formulas, mentions and references begin with.
_SPECIAL = re.compile(r"[&<>|`$*~\[\]\\@#!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_ZERO_WIDTH_SPACE = "&#8203;"  # after an @: a mention is made from the text that a page shows


def _line(text: str, most: int) -> str:
    """Bring a text into one line, without control characters, cut where it is too long."""
    clean = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)
    clean = re.sub(f"[^\\S{NARROW_SPACE}]+", " ", clean).strip()
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"


def escaped(text: str) -> str:
    """Escape a text so that GitHub shows it as it is."""
    return _SPECIAL.sub(_entity, _line(text, _MOST_TEXT))


def _entity(found: re.Match[str]) -> str:
    named = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    char = found[0]
    return named.get(char, f"&#{ord(char)};") + (_ZERO_WIDTH_SPACE if char == "@" else "")


def code(name: str) -> str:
    """Set a name in code type; backticks cannot hold every character, a tag with entities can."""
    name = words.short(_line(name, _MOST_TEXT))
    if _PLAIN_NAME.fullmatch(name):
        return f"`{name}`"
    return f"<code>{_SPECIAL.sub(_entity, name)}</code>"
