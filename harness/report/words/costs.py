"""What the report says of costs: one row a step, the same in every form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.cost import Cost
from harness.report.facts import CostRow, Costs, CostTable
from harness.report.words.captions import Words
from harness.report.words.quantities import span
from harness.units import format_count, format_mean, format_money, format_share

UNKNOWN = "What a request costs is unknown"
_WHY_UNKNOWN = "The target did not report all tokens that have a price."


def costs(facts: Costs, table: CostTable | None = None) -> Words:
    """Say what the steps of a stage cost; of the first one unless it is given."""
    if not facts.tables:
        return Words(heading=UNKNOWN, note=_WHY_UNKNOWN)
    shown = table or facts.tables[0]
    bounds = f"{format_share(facts.confidence)} bounds"
    return Words(
        heading=_heading(facts, shown),
        note=_note(facts) if shown.whole else f"{_WHY_UNKNOWN} {_note(facts)}",
        columns=(
            "Step",
            "per request",
            bounds,
            "per 1,000",
            *(["per month"] if facts.monthly_requests else []),
            "tokens in + out",
            "n",
        ),
        rows=tuple(_cells(facts, row) for row in shown.rows),
    )


def _tokens(row: CostRow) -> str:
    """`23.9 + 24`, prompt and reply; a dash where the step made no call of its own."""
    known = [mean for mean in (row.input_tokens, row.output_tokens) if mean is not None]
    return " + ".join(format_mean(mean) for mean in known) or "–"


def _bounds(cost: Cost) -> str:
    """`$0.00181 – 0.00187`; a dash where the run is too short for an interval."""
    if cost.low is None or cost.high is None:
        return "–"
    return span(format_money(cost.low), format_money(cost.high))


def _heading(facts: Costs, table: CostTable) -> str:
    whole, month = table.whole, ""
    where = f" in {table.stage}" if len(facts.tables) > 1 else ""
    if whole is None:
        return f"{UNKNOWN}{where}"
    if facts.monthly_requests and whole.month:
        volume = format_count(facts.monthly_requests)
        month = f"; the {volume} of a month cost {format_money(whole.month.mean)}"
    return f"A request costs {format_money(whole.request.mean)}{where}{month}"


def _note(facts: Costs) -> str:
    own: Mapping[str, Any] = facts.prices.get("steps") or {}
    lists = [_listed(facts.prices), *(f"{step} {_listed(prices)}" for step, prices in own.items())]
    month = (
        "Per month: its part of what all requests cost, in this run's mix of steps."
        if facts.monthly_requests
        else "Prices with monthly_requests tell the cost of a month, too."
    )
    return (
        "Means of a step's successful executions, with all model calls inside them. "
        f"{month} Prices: {'; '.join(lists)}."
    )


def _listed(prices: Mapping[str, Any]) -> str:
    """`input $0.15/1M, output $0.60/1M`."""
    kinds = ("input", "cached_input", "output", "request")
    return ", ".join(f"{kind.replace('_', ' ')} {prices[kind]}" for kind in kinds if kind in prices)


def _cells(facts: Costs, row: CostRow) -> tuple[str, ...]:
    month = ["–" if row.month is None else format_money(row.month.mean)]
    return (
        row.step,
        format_money(row.request.mean),
        _bounds(row.request),
        format_money(row.thousand.mean),
        *(month if facts.monthly_requests else []),
        _tokens(row),
        format_count(row.n),
    )
