"""What model calls cost: tokens × prices, exact until a whole execution of a step is added up.

Amounts are n$ (1e-9 US dollars). A price of `$0.15/1M` is 150 n$ a token; cheaper tokens cost
fractions of one, so prices and what they add up to are decimals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from harness.units import NANO

_FREE = Decimal(0)
_PER_1M = Decimal(NANO) / 1_000_000  # n$ a token of $1/1M


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """A price list: n$ per token and per model call; None where it names no price.

    Prompt tokens that came from the target's cache cost `cached_input`, by default as `input`.
    """

    input: Decimal | None = None
    cached_input: Decimal | None = None
    output: Decimal | None = None
    request: Decimal | None = None

    def cost(
        self, *, input_tokens: int | None, cached_tokens: int | None, output_tokens: int | None
    ) -> Decimal | None:
        """Return what one call costs, n$; None where tokens that have a price were not reported.

        `cached_tokens` are part of `input_tokens`; None of them is none.
        """
        total = self.request or _FREE
        if self.input is not None or self.cached_input is not None:
            if input_tokens is None:
                return None
            cached = min(cached_tokens or 0, input_tokens)
            fresh = self.input or _FREE
            cheap = fresh if self.cached_input is None else self.cached_input
            total += (input_tokens - cached) * fresh + cached * cheap
        if self.output is not None:
            if output_tokens is None:
                return None
            total += output_tokens * self.output
        return total

    def written(self) -> dict[str, str]:
        """Return the list as a plan writes it, token prices per million."""
        tokens = {"input": self.input, "cached_input": self.cached_input, "output": self.output}
        found = {
            name: f"${_plain(price / _PER_1M)}/1M"
            for name, price in tokens.items()
            if price is not None
        }
        if self.request is not None:
            found["request"] = f"${_plain(self.request / NANO)}"
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """A plan's prices: one list for all steps but those that have their own.

    `monthly_requests` is the volume that the costs of a month are told for, None where undeclared.
    """

    default: Prices
    steps: Mapping[str, Prices] = field(default_factory=dict)
    monthly_requests: int | None = None

    def of(self, step: str) -> Prices:
        """Return the list that a step's own model call is priced by."""
        return self.steps.get(step, self.default)

    def written(self) -> dict[str, Any]:
        """Return the table as a plan writes it."""
        found: dict[str, Any] = self.default.written()
        if self.steps:
            found["steps"] = {step: prices.written() for step, prices in self.steps.items()}
        if self.monthly_requests is not None:
            found["monthly_requests"] = self.monthly_requests
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A mean cost in n$ and the ends of its interval; None for an end that no sample gives."""

    mean: float
    low: float | None = None
    high: float | None = None

    def of(self, requests: float) -> Cost:
        """Return what that many requests cost."""
        low, high = (None if end is None else end * requests for end in (self.low, self.high))
        return Cost(mean=self.mean * requests, low=low, high=high)


def _plain(number: Decimal) -> str:
    """Every digit, as price lists write it: `10`, `2.50`, `0.075`."""
    text = f"{number.normalize():f}"
    return f"{text}0" if text[-2:-1] == "." else text
