"""What is sent: a file of prompts, payloads or a trace becomes weighted, seeded request inputs.

One JSON object a line, told apart by its keys:

    {"messages": [...]}  {"prompt": ...}  {"input": ...}  {"instances": ...}   fields of the body;
        beside them "id", "category" and "weight" (1 if absent)
    {"payload": {...}}                          the whole body as it is
    {"custom_id", "body": {...}}                OpenAI batch
    {"text_input"}  {"text"}                    Triton, aiperf: a prompt
    {"conversations": [{"from", "value"}]}      ShareGPT: the user's first turn; later ones as
    {"question_id", "category", "turns"}        MT-bench, aiperf                  `follow_ups`
    {"question"}                                GSM8K
    {"task_id", "prompt"}                       HumanEval
    {"input_length", "output_length"}           Mooncake trace; equal `hash_ids` share a prefix

or the Azure LLM trace as CSV (TIMESTAMP, ContextTokens, GeneratedTokens). Of traces the lengths are
used, not the times: prompts are made up, about one token a word, and `max_tokens` is the length of
the reply. So is `output_tokens` beside a prompt, by any of its names. What other tools keep beside
it (`timestamp`, `session_id`, lengths of prompts, answers) is left out; a key that no API has is
refused, but for the `json` API, whose fields are the user's own.
"""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
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
_LEAST_BLOCK_TOKENS = 4  # what the words take that tell blocks apart
_WORDS = "able back call dark each fact game hand idea just keep land make name once page read "
_CHARS = 5  # of a word and the space after it
_WORD_COUNT = len(_WORDS) // _CHARS
_OWN = ("id", "category", "weight")
_LENGTH_NAMES = (
    "output_tokens", "output_length", "output_len", "output_token_count", "output_tokens_count",
    "num_output_tokens", "max_output_tokens",
)  # fmt: skip
_TEXT_NAMES = ("text_input", "text", "question")
_LEFT_OUT = frozenset({
    "timestamp", "delay", "session_id", "question_id", "input_length", "input_len", "input_tokens",
    "prompt_tokens", "prompt_len", "prompt_token_count", "hash_ids", "answer", "answer_chars",
    "reference", "request_id", "priority_class", "method", "url",
})  # fmt: skip
_FIELDS = frozenset({
    # of the OpenAI APIs
    "model", "messages", "prompt", "input", "instances", "audio", "best_of", "dimensions", "echo",
    "encoding_format", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "metadata", "modalities", "n", "parallel_tool_calls",
    "prediction", "presence_penalty", "prompt_cache_key", "reasoning", "reasoning_effort",
    "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "stream",
    "stream_options", "suffix", "temperature", "tool_choice", "tools", "top_logprobs", "top_p",
    "user", "verbosity", "web_search_options",
    # of the servers that speak them
    "add_generation_prompt", "add_special_tokens", "cache_prompt", "cache_salt",
    "chat_template", "chat_template_kwargs", "continue_final_message", "extra_body", "grammar",
    "guided_choice", "guided_grammar", "guided_json", "guided_regex", "ignore_eos",
    "include_stop_str_in_output", "json_schema", "length_penalty", "lora_path", "min_p",
    "min_tokens", "nvext", "priority", "provider", "regex", "repetition_penalty",
    "skip_special_tokens", "stop_token_ids", "structured_outputs", "thinking", "top_k",
    "truncate_prompt_tokens", "use_beam_search",
})  # fmt: skip


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
        match messages:
            case [*_, {"content": str(content)}]:
                return content
        return json.dumps(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lengths:
    """A trace's row. Its prompt is made when drawn: those of a whole file would be gigabytes."""

    id: str
    tokens: int
    max_tokens: int
    shared: tuple[int, ...]
    block: int = _BLOCK_TOKENS
    weight: float = 1

    @property
    def category(self) -> str:
        return "short" if self.tokens < 1000 else "medium" if self.tokens < 8000 else "long"

    def input(self) -> Input:
        prompt = _prompt(self.tokens, self.shared, self.id, self.block)
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


def load_inputs(path: Path, *, raw: bool = False) -> Inputs:
    """Read a file of inputs. Raises PlanError with `path:line`, or `path:line:column`.

    With `raw` every field of a row that is not a trace's is sent as it is: the payload is the
    user's own.
    """
    places: dict[str, str] = {}
    rows: list[Input | _Lengths] = []
    for number, place, line in _lines(path):
        row = _row(line, number, place, raw=raw)
        if row.id in places:
            raise PlanError(place, f'found the id "{row.id}" again; it is at {places[row.id]}')
        places[row.id] = place
        rows.append(row)
    if not rows:
        raise PlanError(str(path), "found no inputs; write one JSON object a line")
    return Inputs(tuple(_with_blocks(rows, places)))


def unsent_columns(path: Path) -> tuple[str, ...]:
    """Return the columns of other tools, beside a prompt, that are not sent; ascending."""
    found: set[str] = set()
    for _, _, line in _lines(path):
        if any(key in line for key in (*_BODY_KEYS, *_TEXT_NAMES)):
            found |= _LEFT_OUT & line.keys()
    return tuple(sorted(found))


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


def _row(line: Line, number: int, place: str, *, raw: bool) -> Input | _Lengths:
    asked = any(key in line for key in (*_BODY_KEYS, "payload", "body", *_TEXT_NAMES))
    if "input_length" in line and "output_length" in line and not asked:
        return _lengths(line, number, place)
    own = {"id": number, "category": DEFAULT_CATEGORY, "weight": 1}
    follow_ups: tuple[str, ...] = ()
    match line:
        case {"payload": dict(data)}:
            _only(line, "payload", place)
        case {"body": dict(data)} if not any(key in line for key in _BODY_KEYS):
            own["id"] = line.get("custom_id", number)
        case {"task_id": name, "prompt": prompt}:
            own |= {"id": name, "category": "code"}
            data = {"prompt": prompt}
        case {"turns": list(turns)}:
            own["id"] = line.get("question_id", number)
            data, follow_ups = _talk(turns, "turns", place)
        case {"conversations": list(turns)} | {"conversation": list(turns)}:
            data, follow_ups = _talk(turns, "conversations", place)
        case {"question": question} if "prompt" not in line and "messages" not in line:
            own["category"] = "math"
            data = {"prompt": question}
        case _:
            data = {key: value for key, value in line.items() if key not in own}
            data = data if raw or "instances" in data else _sent(data, place)
    if not raw and "payload" not in line:
        data = data | _reply_length(line, data, place)
        _check_body(data, place)
    own |= {key: line[key] for key in own if key in line}
    if not data or "" in data.values():
        raise PlanError(place, "found nothing to send; write a text or an object")
    return Input(**_checked(own, place), data=data, follow_ups=follow_ups)


def _sent(fields: Line, place: str) -> Line:
    """Return the fields that go into the body; other tools' names are understood."""
    data = {}
    if "payload" in fields:
        raise PlanError(place, 'found a "payload" of another type; allowed is payload (an object)')
    for name, value in fields.items():
        if name in _TEXT_NAMES and not any(key in fields for key in _BODY_KEYS):
            data["prompt"] = value
        elif name in _FIELDS:
            data[name] = value
        elif name not in _LEFT_OUT and name not in _LENGTH_NAMES:
            near = get_close_matches(name, (*_FIELDS, *_LENGTH_NAMES, *_OWN), n=1, cutoff=0.8)
            hint = f'; did you mean "{near[0]}"' if near else ""
            raise PlanError(
                place,
                f'found the key "{name[:40]}", which no API has{hint}; remove it, or put all '
                'that is sent into "payload"',
            )
    if not any(key in data for key in _BODY_KEYS):
        found = ", ".join(fields) or "none"
        allowed = ", ".join((*_BODY_KEYS, "payload (an object)"))
        raise PlanError(place, f"found the keys {found[:80]}; an input has one of {allowed}")
    return data


def _reply_length(line: Line, data: Line, place: str) -> Line:
    """Return max_tokens where another tool's name says how long the reply is."""
    named = [name for name in _LENGTH_NAMES if name in line]
    if not named or "instances" in line:
        return {}
    tokens = line[named[0]]
    if type(tokens) is not int or not 0 < tokens < 1e8:
        raise PlanError(place, f'found "{named[0]}": {_json(tokens)}; allowed are tokens, > 0')
    if any(name in data for name in ("max_tokens", "max_completion_tokens")):
        raise PlanError(place, f'found "{named[0]}" beside "max_tokens"; give one of them')
    return {"max_tokens": tokens}


def _talk(turns: list[Any], key: str, place: str) -> tuple[Line, tuple[str, ...]]:
    """Return a conversation's first turn of the user's as prompt, and the later ones."""
    texts = [_turn(turn) for turn in turns]
    if any(text is None for text in texts):
        raise PlanError(place, f'found "{key}" with what is no text; write texts, not empty')
    said = [text for text in texts if text]
    if not said:
        raise PlanError(place, f'found "{key}" without anything that the user says; write a text')
    return {"prompt": said[0]}, tuple(said[1:])


def _turn(turn: Any) -> str | None:
    """Return what the user says; empty for what somebody else does, None for no turn at all."""
    if isinstance(turn, str):
        return turn or None
    if not isinstance(turn, dict):
        return None
    who = turn.get("from", turn.get("role", "user"))
    if who not in ("human", "user"):
        return "" if isinstance(who, str) else None
    text = turn.get("value", turn.get("content", turn.get("text")))
    return text if isinstance(text, str) and text else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


def _only(line: Line, key: str, place: str) -> None:
    beside = [name for name in line if name not in (key, "id", "category", "weight")]
    if beside:
        raise PlanError(place, f'found "{beside[0]}" beside "{key}"; move it into the {key}')


def _check_body(data: Line, place: str) -> None:
    """Raise PlanError at the first field whose type no API has."""
    for name in ("prompt", "input"):
        if name in data and not _is_prompt(data[name]):
            allowed = "allowed is a text, or a list of texts or tokens, not empty"
            raise PlanError(place, f'found "{name}": {_json(data[name])}; {allowed}')
    for name in ("max_tokens", "max_completion_tokens", "n", "min_tokens"):
        if name in data and not (type(data[name]) is int and data[name] >= 0):
            raise PlanError(
                place, f'found "{name}": {_json(data[name])}; allowed is a whole number'
            )
    if "instances" in data and not isinstance(data["instances"], list | dict):
        raise PlanError(place, f'found "instances": {_json(data["instances"])}; allowed is a list')
    _check_messages(data.get("messages", [{"role": ""}]), place)


def _check_messages(messages: Any, place: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise PlanError(
            place, 'found "messages" that are no list; write [{"role": …, "content": …}]'
        )
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise PlanError(
                place, 'found a message without a "role"; allowed are user, system and such'
            )
        if not isinstance(message.get("content"), str | list | None):
            found = _json(message["content"])
            raise PlanError(place, f'found the content {found} in "messages"; allowed is a text')


def _is_prompt(value: Any) -> bool:
    if isinstance(value, str):
        return True
    if not isinstance(value, list) or not value:
        return False
    texts = all(isinstance(part, str) for part in value)
    tokens = all(type(part) is int and part >= 0 for part in value)
    return texts or tokens or all(isinstance(part, list) and _is_prompt(part) for part in value)


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


def _with_blocks(rows: list[Input | _Lengths], places: dict[str, str]) -> list[Input | _Lengths]:
    """Give the rows of a trace the number of tokens that one of its hash ids stands for.

    It follows from their lengths: the last id stands for what is left, or only whole blocks have
    one. Raises PlanError at the first row that goes with no number.
    """
    traced = [row for row in rows if isinstance(row, _Lengths) and row.shared]
    if not traced:
        return rows
    for bounds in (_with_rest, _whole_only):
        low, high = _LEAST_BLOCK_TOKENS, 1 << 30
        for row in traced:
            least, most = bounds(row.tokens, len(row.shared))
            low, high = max(low, least), min(high, most)
            if low > high:
                break
        else:
            block = _likely(low, high)
            return [replace(r, block=block) if isinstance(r, _Lengths) else r for r in rows]
    raise PlanError(places[_misfit(traced).id], _NO_BLOCK)


_NO_BLOCK = (
    'found "hash_ids" whose number does not go with "input_length" as in the other rows: no number '
    "of tokens a block fits them all; make them agree, or leave hash_ids out"
)


def _misfit(traced: list[_Lengths]) -> _Lengths:
    low, high = _LEAST_BLOCK_TOKENS, 1 << 30
    for row in traced:
        least, most = _with_rest(row.tokens, len(row.shared))
        low, high = max(low, least), min(high, most)
        if low > high:
            return row
    return traced[0]


def _with_rest(tokens: int, ids: int) -> tuple[int, int]:
    """(ids - 1) blocks < tokens <= ids blocks."""
    return -(-tokens // ids), (tokens - 1) // (ids - 1) if ids > 1 else 1 << 30


def _whole_only(tokens: int, ids: int) -> tuple[int, int]:
    """Ids blocks <= tokens < (ids + 1) blocks."""
    return tokens // (ids + 1) + 1, tokens // ids


def _likely(low: int, high: int) -> int:
    """Return Mooncake's 512 where it fits, else the largest power of two, else the least."""
    if low <= _BLOCK_TOKENS <= high:
        return _BLOCK_TOKENS
    power = 1 << (min(high, 1 << 20).bit_length() - 1)
    return max(power, low)


def _prompt(tokens: int, shared: tuple[int, ...], name: str, block: int) -> str:
    """Return about `tokens` words, in blocks that are equal where their id, the head, is."""
    needed = -(-tokens // block)
    heads = [
        f"block {shared[i]} " if i < len(shared) else f"row {name} {i} " for i in range(needed)
    ]
    filler = (_WORDS * (block // _WORD_COUNT + 1))[: _CHARS * block]
    return "".join(head + filler[: max(0, len(filler) - len(head))] for head in heads)[
        : _CHARS * tokens
    ]
