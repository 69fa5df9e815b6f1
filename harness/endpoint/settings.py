"""What the endpoint does unless a request asks otherwise; checked whole before a socket opens."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from harness.errors import UserError


def _between(default: Any, low: float, high: float = math.inf) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Latency, capacity and faults of the endpoint.

    A time with median m and sigma s is drawn as `m * exp(s * z)`, z standard normal: lognormal,
    so its p99 is `m * exp(2.33 * s)`. Rates are shares of all requests, 0 to 1.
    Raises `UserError` for a value out of range.
    """

    seed: int = _between(1, 0)
    """Start of all randomness; no unit."""
    slots: int = _between(32, 1)
    """Requests served at once; the others wait in order of arrival."""
    ttft_ms: float = _between(120.0, 0)
    """Median time from the start of service to the first token, milliseconds."""
    ttft_sigma: float = _between(0.35, 0, 5)
    """Lognormal sigma of `ttft_ms`; no unit."""
    gap_ms: float = _between(12.0, 0)
    """Median time between two tokens, milliseconds."""
    gap_sigma: float = _between(0.3, 0, 5)
    """Lognormal sigma of `gap_ms`; no unit."""
    tokens: int = _between(24, 1)
    """Median tokens in a reply; `max_tokens` of the request caps it."""
    tokens_sigma: float = _between(0.0, 0, 5)
    """Lognormal sigma of `tokens`; 0 gives every reply the same length."""
    embed_ms: float = _between(15.0, 0)
    """Median service time of /v1/embeddings, milliseconds."""
    embed_sigma: float = _between(0.2, 0, 5)
    """Lognormal sigma of `embed_ms`; no unit."""
    predict_ms: float = _between(15.0, 0)
    """Median service time of /v1/predict, milliseconds."""
    predict_sigma: float = _between(0.2, 0, 5)
    """Lognormal sigma of `predict_ms`; no unit."""
    error_rate: float = _between(0.0, 0, 1)
    """Share answered at once with `error_status`."""
    error_status: int = _between(503, 400, 599)
    """HTTP status of those answers."""
    truncate_rate: float = _between(0.0, 0, 1)
    """Share cut half-way: the connection closes, the reply is not finished."""
    malformed_rate: float = _between(0.0, 0, 1)
    """Share with broken JSON in the reply."""
    reset_rate: float = _between(0.0, 0, 1)
    """Share cut half-way by a TCP reset."""
    stall_rate: float = _between(0.0, 0, 1)
    """Share that pauses half-way for `stall_ms`."""
    stall_ms: float = _between(2000.0, 0)
    """Length of that pause, milliseconds."""
    model: str = "reference, tiny"
    """The names that are served, with commas between; the first stands for none. Others get 404."""
    raw_separators: int = _between(0, 0, 1)
    """1 sends U+2028 raw in replies, which breaks clients that split lines there."""
    api_key: str | None = None
    """Bearer token that /v1/ asks for; None asks for none."""
    history: int = _between(20_000, 1)
    """Replies whose true times are kept for /truth; the oldest go first."""

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each.name, getattr(self, each.name), each.metadata)

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models that are served, at least one."""
        names = tuple(name.strip() for name in self.model.split(","))
        return tuple(filter(None, names)) or ("",)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain names and values; numbers may be text, as on a command line.

        Raises `UserError` for an unknown name (with the nearest known ones) or a bad value.
        """
        for name in values:
            if name not in _KINDS:
                raise UserError(_unknown(str(name)))
        return cls(**{name: _as(_KINDS[name], value) for name, value in values.items()})


_KINDS: dict[str, type] = {
    each.name: str if each.default is None else type(each.default) for each in fields(Settings)
}


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _KINDS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"allowed are {', '.join(_KINDS)}"
    return f"embedded endpoint: there is no setting {name!r}; {hint}"


def _as(kind: type, value: Any) -> Any:
    """Turn text into the number it stands for; leave the rest for `_check` to refuse."""
    if kind is str or isinstance(value, bool) or not isinstance(value, str | int):
        return value
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return value


def _check(name: str, value: Any, limits: Mapping[str, float]) -> None:
    kind = _KINDS[name]
    if kind is str:
        wanted = "a text without line breaks"
        ok = value.isprintable() if isinstance(value, str) else (name, value) == ("api_key", None)
    else:
        low, high = limits["low"], limits["high"]
        wanted = f"{'a whole number' if kind is int else 'a number'} " + (
            f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        )
        ok = type(value) in (int, kind) and low <= value <= high and value < math.inf
    if not ok:
        raise UserError(f"embedded endpoint: {name} must be {wanted}, not {value!r}")
