"""The values of a plan file: each kind is read from text, or refused with what is allowed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)

from harness.budget import SEGMENT, near_miss, window_problem
from harness.proxies import proxy_problem
from harness.units import (
    format_rate,
    parse_duration,
    parse_money,
    parse_rate,
    parse_size,
    parse_token_price,
)
from harness.urls import canonical_url

Kind = Literal["constant", "poisson"]
MOST_PER_S = 1_000_000
LEAST_BYTES, MOST_BYTES = 1 << 10, 4 << 30
KEYS = "keys with values"
HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
STAGE_NAME = f"^{SEGMENT}$"
STEP_NAME = f"^{SEGMENT}(/{SEGMENT})*$"
_DURATION = r"^\s*[0-9]+(\.[0-9]+)?\s*(us|µs|ms|s|m|h)\s*$|\$\{"
_SIZE = r"^\s*[0-9]+(\.[0-9]+)?\s*([kKMG]i?)?B\s*$|\$\{"
_AMOUNT = r"^\s*\$\s*[0-9]+(\.[0-9]+)?\s*$|\$\{"
_PRICE = r"^\s*\$\s*[0-9]+(\.[0-9]+)?\s*/1[kM]\s*$|\$\{"
_ARRIVALS = r"^(constant|poisson) +[0-9]+(\.[0-9]+)?\s*/[smh]$|\$\{"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """An open load: requests start when the process says so, whatever the target does."""

    kind: Kind
    rate_per_s: float

    def __str__(self) -> str:
        return f"{self.kind} {format_rate(self.rate_per_s)}"


def _refused(value: object, allowed: str) -> ValueError:
    return ValueError(f"found {shown(value)}; {allowed}")


def _duration(value: object) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise _refused(value, f"it has no unit: write {value}s or {value}ms")
    if not isinstance(value, str):
        raise _refused(value, "allowed is a duration, like 300ms, 60s or 2m")
    return parse_duration(value)


def _positive_duration(value: object) -> int:
    duration_ns = _duration(value)
    if not duration_ns:
        raise _refused(value, "allowed is a duration above zero")
    return duration_ns


def _size(value: object) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise _refused(value, f"it has no unit: write {value}MiB")
    if not isinstance(value, str):
        raise _refused(value, "allowed is a size, like 64MiB")
    size_bytes = parse_size(value)
    if not LEAST_BYTES <= size_bytes <= MOST_BYTES:
        raise _refused(value, "allowed is from 1KiB to 4GiB")
    return size_bytes


def _window(value: object) -> int:
    over_ns = _duration(value)
    if problem := window_problem(over_ns):
        raise _refused(value, problem)
    return over_ns


def _whole(value: object) -> object:
    if isinstance(value, (bool, float)):
        raise _refused(value, "allowed is a whole number")
    return value


def _flag(value: object) -> bool:
    word = str(value).lower()
    if not isinstance(value, (bool, str)) or word not in ("true", "false"):
        raise _refused(value, "allowed is true or false")
    return word == "true"


def _arrivals(value: object) -> Arrivals:
    kind, _, rate = str(value).strip().partition(" ")
    allowed = "allowed are constant RATE and poisson RATE, like poisson 20/s"
    if kind not in ("constant", "poisson"):
        hint = near_miss(kind, ("constant", "poisson"))
        if kind[:1].isdigit():
            hint = f'; did you mean "poisson {kind.removesuffix("/s")}/s"?'
        raise _refused(value, allowed + hint)
    rate_per_s = parse_rate(rate) if rate.strip() else 0
    if not rate_per_s:
        raise _refused(value, f"{allowed}; the rate must be above zero")
    if rate_per_s > MOST_PER_S:
        most = f"allowed are up to {format_rate(MOST_PER_S)}"
        raise _refused(value, f"{most}; one machine makes some thousands a second a worker")
    return Arrivals(kind="poisson" if kind == "poisson" else "constant", rate_per_s=rate_per_s)


def _price(value: object, parse: Callable[[str], Decimal], example: str) -> Decimal:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise _refused(value, f"allowed is a price in US dollars, like {example}")
    if not isinstance(value, str):
        raise _refused(value, f"allowed is a price, like {example}")
    return parse(value)


def _token_price(value: object) -> Decimal:
    return _price(value, parse_token_price, "$0.15/1M")


def _request_price(value: object) -> Decimal:
    return _price(value, parse_money, "$0.0001")


def _file(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value:
        raise _refused(value, "allowed is the path of a file")
    context: Any = info.context
    path = Path(os.path.normpath(context["folder"] / Path(value).expanduser()))
    if not path.is_file():
        relative = f"paths are relative to {context['folder_meaning']}"
        raise _refused(value, f"there is no file {path}; {relative}")
    return path


def _verify(value: object, info: ValidationInfo) -> bool | Path:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return _file(value, info)


def _url(value: object) -> str:
    allowed = "allowed are embedded and a URL, like http://localhost:8000"
    if not isinstance(value, str):
        raise _refused(value, allowed)
    if value.strip() == "embedded":
        return "embedded"
    if "://" not in value and (hint := near_miss(value.strip(), ["embedded"])):
        raise _refused(value, allowed + hint)
    return canonical_url(value, allowed=allowed)


def _proxy(value: object) -> str:
    if not isinstance(value, str):
        raise _refused(value, "allowed is a URL like http://proxy:3128")
    if problem := proxy_problem(value):
        raise ValueError(f"found {problem}")
    return value


def _header(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("found a header that is not text; put it in quotes")  # noqa: TRY004 - pydantic wants it
    if not value.isprintable():
        raise ValueError("found a line break or control character; a header is one line of text")
    if not value.isascii():
        raise ValueError("found a letter that is not ASCII; a header's value is ASCII")
    return value


def _text(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


Whole = Annotated[int, BeforeValidator(_whole)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Duration = Annotated[int, BeforeValidator(_positive_duration), _text(_DURATION, "60s")]
Window = Annotated[int, BeforeValidator(_window), _text(_DURATION, "10s")]
Size = Annotated[int, BeforeValidator(_size), _text(_SIZE, "64MiB")]
Drain = Annotated[int, BeforeValidator(_duration), _text(_DURATION, "30s")]
ArrivalsText = Annotated[Arrivals, PlainValidator(_arrivals), _text(_ARRIVALS, "poisson 20/s")]
TokenPrice = Annotated[Decimal, PlainValidator(_token_price), _text(_PRICE, "$0.15/1M")]
RequestPrice = Annotated[Decimal, PlainValidator(_request_price), _text(_AMOUNT, "$0.0001")]
File = Annotated[Path, PlainValidator(_file), WithJsonSchema({"type": "string"})]
Url = Annotated[str, PlainValidator(_url), WithJsonSchema({"type": "string"})]
Verify = Annotated[
    bool | Path, PlainValidator(_verify), WithJsonSchema({"type": ["boolean", "string"]})
]
Proxy = Annotated[str, PlainValidator(_proxy), WithJsonSchema({"type": "string"})]
Http2 = Annotated[bool, BeforeValidator(_flag)]
Headers = dict[Annotated[str, Field(pattern=HEADER_NAME)], Annotated[str, BeforeValidator(_header)]]


def shown(value: object) -> str:
    """Return a value as a message names it."""
    if value is None or value == {}:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return KEYS
    text = str(value)
    return f'"{text[:60]}…"' if len(text) > 60 else f'"{text}"'
