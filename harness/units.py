"""Quantities to text and back: numbers carry their unit on paper and are plain in memory.

Parsing is exact (decimal, never binary, fractions) and wants a unit. Formatting keeps three
significant digits, whole numbers from 1,000 up with commas, a narrow no-break space before the
unit and a real minus. A value that three digits show exactly is written short ("4 s"); a rounded
one keeps its zeros ("4.00 s"). What is not zero is never shown as 0 %, and only all is 100 %. Money
is in US dollars, `$0.002`, and counted in n$, nano-dollars.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

NARROW_SPACE = "\u202f"
MINUS = "\u2212"

TimeUnit = Literal["us", "ms", "s"]

_NS = {
    "us": 1_000,
    "µs": 1_000,  # micro sign
    "μs": 1_000,  # Greek mu, which looks the same
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_SYMBOL: dict[TimeUnit, str] = {"us": "µs", "ms": "ms", "s": "s"}
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "KiB": 1 << 10,
    "MB": 10**6,
    "MiB": 1 << 20,
    "GB": 10**9,
    "GiB": 1 << 30,
}
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_TOKENS = {"/1k": 1_000, "/1M": 1_000_000}
NANO = 1_000_000_000  # n$ in a dollar
_MOST_DOLLARS = 1_000_000
_YEAR_NS = 366 * 24 * _NS["h"]
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(\S*)")
_MONEY = re.compile(r"\$\s*([0-9]{1,9}(?:\.[0-9]{1,15})?)\s*(\S*)")


def parse_duration(text: str) -> int:
    """Nanoseconds of `250us`, `300ms`, `1.5s`, `2m` or `1h`; ValueError says what is allowed."""
    allowed = "a duration is a number and us, ms, s, m or h, like 300ms, 1.5s or 2m"
    number, unit = _split(text, allowed)
    if not unit:
        raise ValueError(f"{text!r} has no unit: write {number}ms or {number}s")
    if unit not in _NS:
        raise ValueError(f"{text!r} is not a duration: {allowed}")
    ns = int((number * _NS[unit]).to_integral_value())
    if ns > _YEAR_NS:
        raise ValueError(f"{text!r} is longer than a year")
    if number and not ns:
        raise ValueError(f"{text!r} is shorter than a nanosecond")
    return ns


def parse_rate(text: str) -> float:
    """Events per second of `20/s`, `600/m` or `3600/h`; ValueError says what is allowed."""
    allowed = "a rate is a number and /s, /m or /h, like 20/s or 600/m"
    number, unit = _split(text, allowed)
    if not unit or unit in ("rps", "qps"):
        raise ValueError(f"{text!r} does not say per what: write {number}/s")
    if unit[0] != "/" or unit[1:] not in _SECONDS:
        raise ValueError(f"{text!r} is not a rate: {allowed}")
    return float(number / _SECONDS[unit[1:]])


def parse_share(text: str) -> float:
    """Return the share, 0 to 1, of `0.1%` or `99.5%`; ValueError says what is allowed."""
    allowed = "a share is a number and %, like 0.1% or 99.5%"
    number, unit = _split(text, allowed)
    if not unit:
        of_one = f"{(number * 100).normalize():f}% if it is a share of 1, else " * (0 < number <= 1)
        raise ValueError(f"{text!r} has no unit: write {of_one}{number}%")
    if unit != "%":
        raise ValueError(f"{text!r} is not a share: {allowed}")
    if number > 100:
        raise ValueError(f"{text!r} is more than all: a share lies between 0% and 100%")
    return float(number / 100)


def parse_size(text: str) -> int:
    """Bytes of `64MiB`, `512KiB` or `10MB`; ValueError says what is allowed."""
    allowed = "a size is a number and B, kB, KiB, MB, MiB, GB or GiB, like 64MiB"
    number, unit = _split(text, allowed)
    if not unit:
        raise ValueError(f"{text!r} has no unit: write {number}MiB")
    if unit not in _BYTES:
        raise ValueError(f"{text!r} is not a size: {allowed}")
    return int(number * _BYTES[unit])


def parse_money(text: str) -> Decimal:
    """n$ of `$0.002`, exactly; ValueError says what is allowed."""
    allowed = "an amount is $ and a number of US dollars, like $0.002, with no /1M behind it"
    dollars, rest = _dollars(text, allowed, ("",))
    if rest:
        raise ValueError(f"{text!r} is not an amount: {allowed}")
    if dollars > _MOST_DOLLARS:
        raise ValueError(f"{text!r} is more than a million dollars")
    return dollars * NANO


def parse_token_price(text: str) -> Decimal:
    """n$ per token of `$0.15/1M` or `$0.0001/1k`, exactly; ValueError says what is allowed."""
    allowed = "a price of tokens is $ and a number per 1M or 1k of them, like $0.15/1M"
    dollars, per = _dollars(text, allowed, ("/1M", "/1k"))
    if not per:
        raise ValueError(f"{text!r} does not say per how many tokens: write ${dollars:f}/1M")
    if per not in _TOKENS:
        raise ValueError(f"{text!r} is not a price of tokens: {allowed}")
    if dollars > _TOKENS[per]:
        raise ValueError(f"{text!r} is more than a dollar for each token")
    return dollars * NANO / _TOKENS[per]


def format_duration(ns: float, *, unit: TimeUnit | None = None) -> str:
    """`1.15 s`; with `unit="ms"` `1,151 ms`. Without a unit µs, ms and s switch at 1,000."""
    value = Decimal(str(ns))
    chosen = unit or _fitting_unit(value)
    return _signed(value / _NS[chosen]) + NARROW_SPACE + _SYMBOL[chosen]


def format_share(share: float) -> str:
    """`1.11 %` of 0.0111."""
    return _signed(Decimal(str(share)) * 100, never=100) + NARROW_SPACE + "%"


def format_rate(per_second: float) -> str:
    """`20/s`."""
    return _signed(Decimal(str(per_second))) + "/s"


def format_money(nano: float) -> str:
    """`$0.00184` of 1,840,000 n$."""
    text = _signed(Decimal(str(nano)) / NANO)
    return f"{MINUS}${text[1:]}" if text.startswith(MINUS) else f"${text}"


def format_count(n: int) -> str:
    """`2,104`: every digit, for what was counted."""
    return f"{n:,d}".replace("-", MINUS)


def format_mean(mean: float) -> str:
    """`23.9`: three digits, for the mean of what was counted."""
    return _signed(Decimal(str(mean)))


def format_ratio_of_limit(ratio: float) -> str:
    """How much of a limit was used: `85 %` up to the limit, `1.44×` beyond it."""
    if math.isinf(ratio):
        return "∞×"
    if ratio <= 1:
        return format_share(ratio)
    return _signed(Decimal(str(ratio)), never=1) + "×"


def format_clock(seconds: float) -> str:
    """Time into the run, whole seconds begun: `6:08`, from an hour up `1:02:05`."""
    sign = MINUS if seconds < 0 else ""
    minutes, second = divmod(int(abs(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    clock = f"{hours}:{minute:02d}" if hours else f"{minute}"
    return f"{sign}{clock}:{second:02d}"


def _split(text: str, allowed: str) -> tuple[Decimal, str]:
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a number with a unit: {allowed}")
    return Decimal(found[1]), found[2]


def _dollars(text: str, allowed: str, units: Sequence[str]) -> tuple[Decimal, str]:
    """Return the number behind `$`, and what follows it: one of `units`, the first by default."""
    found = _MONEY.fullmatch(text.strip())
    if found is not None:
        return Decimal(found[1]), found[2]
    bare = _MONEY.fullmatch(f"${text.strip()}")
    unit = bare and (bare[2] or units[0])
    hint = f": write ${bare[1]}{unit}" if bare and unit in units else f"; {allowed}"
    raise ValueError(f"{text!r} is not in US dollars{hint}")


def _fitting_unit(ns: Decimal) -> TimeUnit:
    for unit in _SYMBOL:
        if abs(_rounded(ns / _NS[unit])) < 1000:
            return unit
    return "s"


def _signed(value: Decimal, *, never: int | None = None) -> str:
    """Write `value`; only a value that is exactly `never` may be shown as it."""
    shown = _rounded(value)
    if never is not None and shown == never and value != never:
        shown = round(value, -(value - never).adjusted())
    if shown == value:
        shown = shown.normalize()
    return f"{shown:,f}".replace("-", MINUS)


def _rounded(value: Decimal) -> Decimal:
    """Three significant digits, or a whole number where it has more."""
    if not value:
        return Decimal(0)
    shown = round(value, max(0, 2 - value.adjusted()))
    return round(shown, max(0, 2 - shown.adjusted()))
