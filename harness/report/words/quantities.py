"""Names and numbers as a reader wants them, the same in every form of the report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from harness import metrics
from harness.budget import Budget
from harness.metrics import Kind
from harness.recorder import StageWindow
from harness.report.facts.subject import stage_name
from harness.units import (
    MINUS,
    NARROW_SPACE,
    TimeUnit,
    format_count,
    format_rate,
)
from harness.verdict import BudgetVerdict, Outcome, format_bound, format_value

NAME_LENGTH = 46
_MOST_RUNS = 6


def short(name: str, length: int = NAME_LENGTH) -> str:
    """Return the name, its middle left out when it is longer than `length`."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[head + 1 - length :]}"


def number(value: float | None, kind: Kind, unit: TimeUnit | None = None) -> str:
    """Write a value of a metric of that kind; an absent one is a dash."""
    absent = value is None or math.isnan(value)
    return "–" if value is None or absent else metrics.format_value(value, kind, unit)


def percent(share: float) -> str:
    """Write whole percents; what is not nothing or all is never shown as it."""
    whole = round(abs(share) * 100)
    if not whole:
        text = "<1" if share else "0"
        return text + NARROW_SPACE + "%"
    sign = MINUS if share < 0 else ""
    about = "≈" if whole == 100 and share != 1 else ""
    return f"{about}{sign}{whole}{NARROW_SPACE}%"


def share_of_extra(share: float) -> str:
    """Say how much of the extra time a step makes; over all where other steps were faster."""
    if share >= 1:
        return "all"
    return "nearly all" if share >= 0.995 else percent(share)


def signed(value: float, kind: Kind = "time") -> str:
    """`+4.30 s` or `−2.12 ms`."""
    return ("+" if value > 0 else "") + number(value, kind) if round(value) else "0"


def directions(metric: str) -> tuple[str, str]:
    """`slower` and `faster`; of what is no time `higher` and `lower`."""
    timed = metric not in metrics.METRICS or metrics.METRICS[metric].kind == "time"
    return ("slower", "faster") if timed else ("higher", "lower")


def limit_of(budget: Budget) -> str:
    """Write the limit as it was declared, with a space before its unit."""
    return re.sub(r"(?<=[0-9])(?=[^0-9.])", NARROW_SPACE, budget.limit_text, count=1)


def operator_of(budget: Budget) -> str:
    """Write the operator."""
    return {"<=": "≤", ">=": "≥"}.get(budget.op, budget.op)


def observed(verdict: BudgetVerdict) -> str:
    """Write the observed value in the limit's unit; in brackets when it is not judged."""
    if verdict.observed is None:
        return "–"
    text = format_value(verdict.budget, verdict.observed)
    return f"({text})" if verdict.outcome is Outcome.INVALID else text


def interval(verdict: BudgetVerdict) -> str:
    """`1,097 – 1,216 ms`; an end that the sample cannot give is a question mark.

    What has no bounds, like a maximum or the worst of several windows, has a dash.
    """
    if verdict.outcome is Outcome.INVALID:
        return "not judged"
    ends = (verdict.low, verdict.high)
    if ends == (None, None):
        bounded = verdict.budget.quantile is not None and verdict.budget.over_ns is None
        return "? – ?" if bounded and verdict.observed is not None else "–"
    low, high = ("?" if e is None else format_bound(verdict.budget, e) for e in ends)
    return span(low, high)


def span(low: str, high: str) -> str:
    """Join two ends, their unit said once: `1,097 – 1,216 ms`, `$0.00181 – 0.00187`."""
    number_of, space, unit = low.partition(NARROW_SPACE)
    if space and high.endswith(space + unit):
        low = number_of
    if low.startswith("$"):
        high = high.removeprefix("$")
    return f"{low} – {high}"


def runs(verdict: BudgetVerdict, values: Sequence[float | None]) -> str:
    """`3 runs: 271 · 267 · 390 ms`, or from the lowest to the highest of many; empty of one."""
    known = [v for v in values if v is not None]
    if len(known) < 2:
        return ""
    of = format_count(len(values))
    if len(known) > _MOST_RUNS:
        low, high = (format_value(verdict.budget, v) for v in (min(known), max(known)))
        return f"{of} runs: {low} to {high}"
    each = ["–" if v is None else format_value(verdict.budget, v) for v in values]
    return f"{of} runs: {_with_one_unit(each)}"


def _with_one_unit(texts: Sequence[str]) -> str:
    """`271 · 267 · 390 ms`; each with its own unit where they differ."""
    units = {text.partition(NARROW_SPACE)[2] for text in texts}
    if len(units) == 1 and (unit := units.pop()):
        texts = [text.removesuffix(NARROW_SPACE + unit) for text in texts[:-1]] + [texts[-1]]
    return " · ".join(texts)


def percentile(q: float) -> str:
    """`p99.9` of 0.999."""
    return f"p{q * 100:.6g}"


def stage_phrase(name: str) -> str:
    """`steady stage`, or `steady stage of run 2` of one that was repeated."""
    group, _, run = stage_name(name).partition(", ")
    return f"{group} stage of {run}" if run else f"{group} stage"


def stage_label(stage: StageWindow) -> str:
    """`steady · 20/s`."""
    rate = stage.planned_rate_per_s
    load = stage.load if rate is None else format_rate(rate)
    name = stage_name(stage.name)
    return f"{name} · {load}" if stage.record else f"{name}, not judged"


def counted(n: int, noun: str) -> str:
    """`1 window`, `2 windows`."""
    return f"{format_count(n)} {noun}{'' if n == 1 else 's'}"
