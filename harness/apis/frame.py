"""Spares a stream the parsing of events that differ from one already parsed in their text alone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

from harness.apis.contents import Fields, Output

_NOT_PLAIN = re.compile(rb'[\x00-\x1f"\\]')  # what a JSON string says with an escape, or must not
_PROBE = "another text"
_TRIES = 8


class Frame:
    """The bytes around the text of an event that was parsed.

    Most events of a stream differ in their text alone. One with the same bytes before and after a
    plain string means the same but for that text, and needs no parsing.
    """

    __slots__ = ("_after", "_before", "_least_bytes", "_output", "_tries")

    def __init__(self, output: Callable[[Fields], Output]) -> None:
        self._output = output
        self._before = self._after = b""
        self._least_bytes = sys.maxsize
        self._tries = _TRIES

    def learn(self, data: bytes, value: Fields) -> None:
        """Take the frame of an event, parsed as `value`, if a visible text is all that it brings.

        That the bytes found are the text's place is proved by putting another text there. A stream
        whose events differ in more is given up after a few tries.
        """
        text = self._text_alone(value) if self._tries else None
        if not text:
            return
        literal = b'"%b"' % text.encode("utf-8", "replace")
        if data.count(literal) != 1 or _NOT_PLAIN.search(literal[1:-1]):
            return
        self._tries -= 1
        at = data.index(literal) + 1
        before, after = data[:at], data[at + len(literal) - 2 :]
        proof = json.loads(before + _PROBE.encode() + after)
        if self._output(proof["choices"][0]).text == _PROBE:
            self._before, self._after = before, after
            self._least_bytes = len(before) + len(after)

    def _text_alone(self, value: Fields) -> str | None:
        """Return the text of the only choice, None where an event brings anything else."""
        choice, *others = value["choices"]
        if others or choice.get("index") or choice.get("finish_reason") or value.get("usage"):
            return None
        text, reasoning, tool_calls = self._output(choice)
        return None if reasoning or tool_calls else text

    def text_of(self, data: bytes) -> str | None:
        """Return the text of an event in this frame; None where it must be parsed."""
        if len(data) < self._least_bytes:
            return None
        if not (data.startswith(self._before) and data.endswith(self._after)):
            return None
        text = data[len(self._before) : len(data) - len(self._after)]
        if _NOT_PLAIN.search(text):
            return None
        try:
            return text.decode()
        except UnicodeDecodeError:
            return None
