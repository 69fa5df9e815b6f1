"""Text for a terminal: printable, no wider than it should be, in ASCII where need be, coloured.

Nothing that came from outside can move the cursor: control characters are dropped.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len

from harness.units import MINUS, NARROW_SPACE
from harness.verdict import Outcome

WIDTH = 80
_MARKS = {
    Outcome.PASS: ("✓", "+"),
    Outcome.FAIL: ("✗", "x"),
    Outcome.INCONCLUSIVE: ("?", "?"),
    Outcome.INVALID: ("⊘", "!"),
    Outcome.NO_DATA: ("⊘", "!"),
}
_COLORS = {
    Outcome.PASS: "36",  # cyan and red stay apart for red-green blindness, green and red do not
    Outcome.FAIL: "31",
    Outcome.INCONCLUSIVE: "33",
    Outcome.INVALID: "35",
    Outcome.NO_DATA: "35",
}
_ASCII = str.maketrans(
    {"×": "x", "–": "-", "—": "-", MINUS: "-", "µ": "u", "μ": "u", "≥": ">=", "≤": "<=",
     "≈": "~", "…": "...", "∞": "inf", "·": "-"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A line whose first `colored` characters have the colour of `role`."""

    text: str
    role: Outcome | None = None
    colored: int = 0

    def painted(self, pen: Pen, *, color: bool) -> str:
        """Return the line as it is printed."""
        text = pen.clip(self.text.rstrip())
        if not color or self.role is None:
            return text
        head, tail = text[: self.colored], text[self.colored :]
        return f"\x1b[1;{_COLORS[self.role]}m{head}\x1b[0m{tail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pen:
    """What a line may be made of: its width in columns, and whether beyond ASCII."""

    width: int
    unicode: bool

    def clean(self, text: str) -> str:
        """Make a text printable in one line: no control characters, compact, ASCII if need be."""
        text = text.replace(NARROW_SPACE, "").replace("\xa0", " ")
        text = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)
        text = " ".join(text.split())
        return text if self.unicode else text.translate(_ASCII).encode("ascii", "replace").decode()

    def mark(self, outcome: Outcome) -> str:
        """Return the mark of an outcome, which says it without colour."""
        return _MARKS[outcome][0 if self.unicode else 1]

    def middle(self, text: str, room: int) -> str:
        """Leave out the middle of what is wider than `room` columns."""
        if cell_len(text) <= room:
            return text
        dots = "…" if self.unicode else "..."
        kept = max(0, room - cell_len(dots))
        head = _first_cells(text, kept // 2)
        tail = _first_cells(text[::-1], kept - cell_len(head))[::-1]
        return _first_cells(f"{head}{dots}{tail}", room)

    def clip(self, text: str) -> str:
        """Cut a line that would be too wide after all."""
        return text if cell_len(text) <= self.width else _first_cells(text, self.width)

    def wrap(self, text: str, indent: int) -> list[Line]:
        """Break a text at its spaces; a word wider than a line loses its middle."""
        room, lines = self.width - indent, [""]
        for word in self.clean(text).split():
            piece = self.middle(word, room)
            joined = f"{lines[-1]} {piece}".lstrip()
            if cell_len(joined) <= room:
                lines[-1] = joined
            else:
                lines.append(piece)
        return [Line(" " * indent + line) for line in lines if line]


def _first_cells(text: str, room: int) -> str:
    """Return the longest start of at most `room` characters that is no wider than that."""
    end = max(0, room)
    while end and cell_len(text[:end]) > room:
        end -= 1
    return text[:end]


def pieces(text: str, room: int) -> Iterator[str]:
    """Cut a text to pieces that fit, without losing any of it: a path must stay whole."""
    while text:
        piece = _first_cells(text, room)
        yield piece
        text = text[len(piece) :]


def pad(text: str, room: int, *, right: bool = False) -> str:
    """Fill up to `room` columns: at the end, or (`right`) before the text."""
    gap = " " * (room - cell_len(text))
    return gap + text if right else text + gap
