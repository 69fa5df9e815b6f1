"""What is sent: a file of prompts, payloads or a trace becomes weighted, seeded request inputs.

One JSON object a line, told apart by its keys:

    {"messages": [...]}  {"prompt": "..."}  {"input": ...}  {"instances": ...}   fields of the body;
        beside them "id", "category" and "weight" (1 if absent); every other key goes to the body
    {"payload": {...}}                          the whole body as it is
    {"question_id", "category", "turns"}        MT-bench: the first turn; later ones as `follow_ups`
    {"question"}                                GSM8K
    {"task_id", "prompt"}                       HumanEval
    {"input_length", "output_length"}           Mooncake trace; equal `hash_ids` share a prefix

or the Azure LLM trace as CSV (TIMESTAMP, ContextTokens, GeneratedTokens). Of traces the lengths are
used, not the times: prompts are made up, about one token a word, and `max_tokens` is the length of
the reply.
"""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import numpy as np

from harness.errors import PlanError

MAX_BYTES = 256 << 20
DEFAULT_CATEGORY = "default"

Line = dict[str, Any]
_BODY_KEYS = ("messages", "prompt", "input", "instances")
_BLOCK_TOKENS = 512  # what one of Mooncake's hash ids stands for
_HEAD_TOKENS = 4  # about what the words before the filler take
_WORDS = "able back call dark each fact game hand idea just keep land make name once page read "
_CHARS = 5  # of a word and the space after it
_FILLER = (_WORDS * _BLOCK_TOKENS)[: _CHARS * (_BLOCK_TOKENS - _HEAD_TOKENS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One request's input; `data` holds fields of its body, `follow_ups` a user's later turns."""

    id: str
    category: str
    weight: float
    data: dict[str, Any]
    follow_ups: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The prompt, or the last message's text, whichever the input has; else its JSON."""
        prompt = self.data.get("prompt", self.data.get("input"))
        if isinstance(prompt, str):
            return prompt
        messages = self.data.get("messages")
        if messages and isinstance(messages[-1].get("content"), str):
            return str(messages[-1]["content"])
        return json.dumps(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lengths:
    """A trace's row. Its prompt is made when drawn: those of a whole file would be gigabytes."""

    id: str
    tokens: int
    max_tokens: int
    shared: tuple[int, ...]
    weight: float = 1

    @property
    def category(self) -> str:
        return "short" if self.tokens < 1000 else "medium" if self.tokens < 8000 else "long"

    def input(self) -> Input:
        prompt = _prompt(self.tokens, self.shared, self.id)
        data = {"prompt": prompt, "max_tokens": self.max_tokens}
        return Input(id=self.id, category=self.category, weight=self.weight, data=data)


class Inputs:
    """The inputs of one file, drawn by weight."""

    def __init__(self, rows: tuple[Input | _Lengths, ...]) -> None:
        self.rows = rows
        self._up_to = list(accumulate(row.weight for row in rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Input:
        row = self.rows[i]
        return row if isinstance(row, Input) else row.input()

    def __iter__(self) -> Iterator[Input]:
        return map(self.__getitem__, range(len(self)))

    @property
    def categories(self) -> dict[str, float]:
        """The share of draws, 0 to 1, that falls on each category."""
        weights: dict[str, float] = {}
        for row in self.rows:
            weights[row.category] = weights.get(row.category, 0) + row.weight
        return {category: weight / self._up_to[-1] for category, weight in weights.items()}

    def draw(self, rng: np.random.Generator | Random) -> Input:
        """Return an input with a chance in proportion to its weight."""
        chosen = bisect_right(self._up_to, rng.random() * self._up_to[-1])
        return self[min(chosen, len(self) - 1)]


def load_inputs(path: Path) -> Inputs:
    """Read a file of inputs. Raises PlanError with `path:line`, or `path:line:column`."""
    places: dict[str, str] = {}
    rows = []
    for number, place, line in _lines(path):
        row = _row(line, number, place)
        if row.id in places:
            raise PlanError(place, f'found the id "{row.id}" again; it is at {places[row.id]}')
        places[row.id] = place
        rows.append(row)
    if not rows:
        raise PlanError(str(path), "found no inputs; write one JSON object a line")
    return Inputs(tuple(rows))


def check_inputs(inputs: Inputs, path: Path, problem_of: Callable[[Line], str | None]) -> None:
    """Raise PlanError at the first input whose fields are not what they are sent as.

    Of a trace one row stands for all, since their prompts are made alike.
    """
    seen_trace = False
    for i, row in enumerate(inputs.rows):
        if isinstance(row, _Lengths) and seen_trace:
            continue
        seen_trace |= isinstance(row, _Lengths)
        problem = problem_of(inputs[i].data)
        if problem is not None:
            _, place, _ = next(islice(_lines(path), i, None))
            raise PlanError(place, f"{problem}; name other inputs, or make what is sent of them")


def _lines(path: Path) -> Iterator[tuple[int, str, Line]]:
    """Every line that is not blank: its number, its place, its fields."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PlanError(str(path), f"is larger than the {MAX_BYTES:,} bytes inputs may have")
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PlanError(str(path), f"cannot be read: {reason}; name a file of inputs") from None
    texts = ((i, f"{path}:{i}", _text(line, f"{path}:{i}")) for i, line in enumerate(raw, 1))
    lines = ((number, place, text) for number, place, text in texts if text)
    if raw[0].startswith(b"TIMESTAMP,") or path.suffix == ".csv":
        yield from _csv_lines(lines)
    else:
        yield from ((number, place, _object(text, place)) for number, place, text in lines)


def _text(line: bytes, place: str) -> str:
    try:
        return line.decode().strip()
    except UnicodeDecodeError as error:
        problem = f"found the byte 0x{line[error.start]:02x}; allowed is UTF-8; save it as that"
        raise PlanError(f"{place}:{error.start + 1}", problem) from None


def _object(text: str, place: str) -> Line:
    try:
        line = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        problem = f"found what is not JSON ({error.msg.lower()}); write one object a line"
        raise PlanError(f"{place}:{error.colno}", problem) from None
    except (ValueError, RecursionError) as error:
        raise PlanError(
            place, f"found what is not JSON ({error}); write one object a line"
        ) from None
    if not isinstance(line, dict):
        raise PlanError(
            place, 'found no object; write one JSON object a line, like {"prompt": "…"}'
        )
    return line


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _csv_lines(lines: Iterator[tuple[int, str, str]]) -> Iterator[tuple[int, str, Line]]:
    wanted = ("ContextTokens", "GeneratedTokens")
    _, place, head = next(lines, (1, "", ""))
    columns = next(csv.reader([head]))
    if not set(wanted) <= set(columns):
        raise PlanError(
            place,
            f'found the columns "{head[:80]}"; needed are {" and ".join(wanted)} (Azure trace)',
        )
    for number, here, text in lines:
        values = dict(zip(columns, next(csv.reader([text])), strict=False))
        lengths = [values.get(name, "") for name in wanted]
        if not all(length.isdecimal() for length in lengths):
            raise PlanError(here, f'found "{text[:80]}"; needed are whole numbers of tokens')
        yield (
            number,
            here,
            dict(zip(("input_length", "output_length"), map(int, lengths), strict=True)),
        )


def _row(line: Line, number: int, place: str) -> Input | _Lengths:
    if "input_length" in line and "output_length" in line:
        return _lengths(line, number, place)
    own = {"id": number, "category": DEFAULT_CATEGORY, "weight": 1}
    follow_ups: tuple[str, ...] = ()
    match line:
        case {"payload": dict(data)}:
            _only(line, "payload", place)
        case {"task_id": name, "prompt": prompt}:
            own |= {"id": name, "category": "code"}
            data = {"prompt": prompt}
        case {"turns": [str(first), *rest]} if all(isinstance(turn, str) for turn in rest):
            own["id"] = line.get("question_id", number)
            data, follow_ups = {"prompt": first}, tuple(rest)
        case {"question": question}:
            own["category"] = "math"
            data = {"prompt": question}
        case _:
            data = {key: value for key, value in line.items() if key not in own}
            _check_body(data, place)
    own |= {key: line[key] for key in own if key in line}
    if not data or "" in data.values():
        raise PlanError(place, "found nothing to send; write a text or an object")
    return Input(**_checked(own, place), data=data, follow_ups=follow_ups)


def _only(line: Line, key: str, place: str) -> None:
    beside = [name for name in line if name not in (key, "id", "category", "weight")]
    if beside:
        raise PlanError(place, f'found "{beside[0]}" beside "{key}"; move it into the {key}')


def _check_body(data: Line, place: str) -> None:
    if not any(key in data for key in _BODY_KEYS):
        found = ", ".join(data) or "none"
        allowed = ", ".join((*_BODY_KEYS, "payload (an object)"))
        raise PlanError(place, f"found the keys {found[:80]}; an input has one of {allowed}")
    messages = data.get("messages", [{"role": ""}])
    if not isinstance(messages, list) or not messages:
        raise PlanError(
            place, 'found "messages" that are no list; write [{"role": …, "content": …}]'
        )
    if not all(isinstance(message, dict) and "role" in message for message in messages):
        raise PlanError(
            place, 'found a message without a "role"; allowed are user, system and such'
        )


def _checked(own: Line, place: str) -> dict[str, Any]:
    name, category, weight = own["id"], own["category"], own["weight"]
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < 1e9:
        raise PlanError(place, f'found the weight "{weight}"; allowed is a number above zero')
    if not isinstance(category, str) or not category:
        raise PlanError(place, f'found the category "{category}"; allowed is a text')
    if not isinstance(name, (str, int)):
        raise PlanError(place, f'found the id "{name}"; allowed is a text or a whole number')
    return {"id": str(name), "category": category, "weight": float(weight)}


def _lengths(line: Line, number: int, place: str) -> _Lengths:
    tokens, max_tokens = line["input_length"], line["output_length"]
    shared = line.get("hash_ids", [])
    if not all(type(length) is int and 0 < length < 1e8 for length in (tokens, max_tokens)):
        raise PlanError(
            place, f"found the lengths {tokens} and {max_tokens}; allowed are tokens, > 0"
        )
    if not isinstance(shared, list) or not all(type(block) is int for block in shared):
        raise PlanError(place, 'found "hash_ids" that are no list of whole numbers')
    return _Lengths(id=str(number), tokens=tokens, max_tokens=max_tokens, shared=tuple(shared))


def _prompt(tokens: int, shared: tuple[int, ...], name: str) -> str:
    """Return about `tokens` words, in blocks that are equal where their id, the head, is."""
    needed = -(-tokens // _BLOCK_TOKENS)
    heads = [
        f"block {shared[i]} " if i < len(shared) else f"row {name} {i} " for i in range(needed)
    ]
    return "".join(head + _FILLER for head in heads)[: _CHARS * tokens]
