"""A plan's mistakes as pydantic finds them, in the words of someone who writes plans."""

from __future__ import annotations

import re
from decimal import Decimal

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness.budget import near_miss
from harness.errors import PlanError
from harness.plan.document import Loc, Places
from harness.plan.values import HEADER_NAME, KEYS, STAGE_NAME, STEP_NAME, shown
from harness.plan.written import (
    BudgetEntry,
    InputsEntry,
    PlanEntry,
    PriceListEntry,
    PricesEntry,
    StageEntry,
    TargetEntry,
    Written,
)

_ENTRIES: dict[object, type[Written]] = {
    "target": TargetEntry,
    "inputs": InputsEntry,
    "load": StageEntry,
    "budgets": BudgetEntry,
    "prices": PricesEntry,
}
_MEANT_KEY = {
    "duration": "for",
    "rate": "arrivals",
    "rps": "arrivals",
    "request_rate": "arrivals",
    "users": "concurrency",
    "ramp_up": "ramp",
    "rampup": "ramp",
    "ramp_time": "ramp",
    "spawn_time": "ramp",
    "max_concurrency": "max_in_flight",
    "repeats": "repeat",
    "repetitions": "repeat",
    "runs": "repeat",
    "window": "over",
    "family": "multiple_testing",
    "correction": "multiple_testing",
    "thresholds": "budgets",
    "stages": "load",
    "host": "url",
    "base_url": "url",
    "prompts": "inputs",
    "cost": "prices",
    "pricing": "prices",
    "price": "prices",
    "monthly_volume": "monthly_requests",
    "input_tokens": "input",
    "prompt": "input",
    "output_tokens": "output",
    "completion": "output",
    "cached": "cached_input",
    "call": "request",
    "per_request": "request",
}
_WORDS = {
    "string_type": "text; put it in quotes",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "dict_type": KEYS,
    "model_type": KEYS,
    "tuple_type": "a list",
    "too_short": "a list with at least one entry",
    HEADER_NAME: "a header's name",
    STAGE_NAME: "a name of letters, digits, _ and -",
    STEP_NAME: "a step's name, like answer/generate",
    "^/": "a path that begins with /",
    "ge": "at least",
    "gt": "more than",
    "le": "at most",
    "lt": "less than",
}


def explained(errors: ValidationError, places: Places) -> PlanError:
    """Return the error that comes first in the file, the others on lines of their own."""
    found = [
        _one(error, places)
        for error in errors.errors(include_url=False)
        # A list whose entries are all wrong is reported as too short, too: only once for us.
        if error["type"] != "too_short" or not error["input"]
    ]
    first, *others = sorted(found, key=lambda error: _line_and_column(error.place))
    return PlanError(first.place, "\n".join([first.problem, *map(str, others)]))


def _line_and_column(place: str) -> list[int]:
    return [int(number) for number in re.findall(r":(\d+)(?=:|$)", place)[-2:]]


def _one(error: ErrorDetails, places: Places) -> PlanError:
    loc: Loc = error["loc"]
    if error["type"] == "budget":
        column = error["ctx"]["column"]
        return PlanError(places.place((*loc, "budget"), column=column), error["msg"])
    if loc[-1:] == ("[key]",):
        return PlanError(places.place(loc[:-1], key=True), _problem(error))
    return PlanError(places.place(loc, key=error["type"] == "extra_forbidden"), _problem(error))


def _problem(error: ErrorDetails) -> str:
    loc, kind, value = error["loc"], error["type"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "missing":
        return f'found no "{loc[-1]}", which is needed here; add it'
    if kind == "extra_forbidden":
        return _unknown_key(str(loc[-1]), _entry_at(loc))
    found = "this" if "headers" in loc else shown(value)
    allowed = _WORDS.get(kind) or _bounds(error)
    if allowed == KEYS and (not loc or loc[0] in _ENTRIES):
        allowed += f": {', '.join(_keys(_ENTRIES[loc[0]] if loc else PlanEntry))}"
    meant = _meant_confidence(str(value)) if loc[-1:] == ("confidence",) else ""
    return f"found {found}; allowed is {allowed}{meant}"


def _meant_confidence(text: str) -> str:
    """`; did you mean 0.95?` for 95 and 95%."""
    percent = re.fullmatch(r"\s*([5-9]\d(?:\.\d+)?)\s*%?\s*", text)
    return f"; did you mean {Decimal(percent[1]) / 100}?" if percent else ""


def _entry_at(loc: Loc) -> type[Written]:
    """Return what holds the key at `loc`."""
    if loc[:2] == ("prices", "steps"):
        return PriceListEntry
    return _ENTRIES[loc[0]] if len(loc) > 1 else PlanEntry


def _bounds(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if "expected" in context:
        known = re.findall(r"'([^']+)'", context["expected"])
        return ", ".join(known) + near_miss(str(error["input"]), known)
    if context.get("pattern") in _WORDS:
        return _WORDS[context["pattern"]]
    bounds = [f"{_WORDS[name]} {bound}" for name, bound in context.items() if name in _WORDS]
    return bounds[0] if bounds else error["msg"]


def _unknown_key(key: str, entry: type[Written]) -> str:
    allowed = _keys(entry)
    meant = _MEANT_KEY.get(key)
    hint = f'; did you mean "{meant}"?' if meant in allowed else near_miss(key, allowed)
    return f'found the key "{key}"; allowed are {", ".join(allowed)}{hint}'


def _keys(entry: type[Written]) -> list[str]:
    return [info.alias or name for name, info in entry.model_fields.items()]
