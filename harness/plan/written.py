"""The plan file as people write it: its keys, what each may hold, and how a mistake is explained.

A field has the name it bears in the plan; an alias is the key in the file where the two differ.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from harness.budget import SEGMENT, Budget, near_miss, parse_budget, window_problem
from harness.errors import BudgetSyntaxError, PlanError
from harness.plan.document import Loc, Places
from harness.units import format_rate, parse_duration, parse_rate

Api = Literal["openai-chat", "openai-completions", "openai-embeddings", "json"]
Kind = Literal["constant", "poisson"]
AbortCause = Literal["overload", "errors"]
MultipleTesting = Literal["none", "holm"]

MOST_REPEATS = 20

_HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
_STAGE_NAME = f"^{SEGMENT}$"
_DURATION = r"^\s*[0-9]+(\.[0-9]+)?\s*(us|µs|ms|s|m|h)\s*$|\$\{"
_ARRIVALS = r"^(constant|poisson) +[0-9]+(\.[0-9]+)?\s*/[smh]$|\$\{"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """An open load: requests start when the process says so, whatever the target does."""

    kind: Kind
    rate_per_s: float

    def __str__(self) -> str:
        return f"{self.kind} {format_rate(self.rate_per_s)}"


def _refused(value: object, allowed: str) -> ValueError:
    return ValueError(f"found {_shown(value)}; {allowed}")


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


def _window(value: object) -> int:
    over_ns = _duration(value)
    if problem := window_problem(over_ns):
        raise _refused(value, problem)
    return over_ns


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
    return Arrivals(kind="poisson" if kind == "poisson" else "constant", rate_per_s=rate_per_s)


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
    if value == "embedded":
        return "embedded"
    if not isinstance(value, str):
        raise _refused(value, allowed)
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"found a URL that cannot be read ({error}); {allowed}") from None
    if "@" in parts.netloc:
        problem = "found a user or password in the URL; use the header Authorization and a ${VAR}"
        raise ValueError(problem)
    if parts.scheme not in ("http", "https") or "://" not in value:
        hint = near_miss(value, ["embedded"]) or f'; did you mean "http://{value}"?'
        raise _refused(value, allowed + (hint if "://" not in value else ""))
    if not host or not value.isprintable() or " " in value:
        raise _refused(value, f"it has no usable host; {allowed}")
    return value


def _proxy(value: object) -> str:
    """Check a proxy's URL; its user and password may stand in it, so no message repeats it."""
    allowed = "allowed is a URL like http://proxy:3128, of the scheme http or https"
    if not isinstance(value, str):
        raise _refused(value, allowed)
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"found a URL that cannot be read; {allowed}") from None
    if parts.scheme not in ("http", "https") or "://" not in value:
        scheme = value.partition("://")[0] if "://" in value else ""
        raise ValueError(f'found the scheme "{scheme}"; {allowed}')
    if not host or not value.isprintable() or " " in value:
        raise ValueError(f"found a URL without a usable host; {allowed}")
    return value


def _http2(value: bool) -> bool:
    if value and importlib.util.find_spec("h2") is None:
        raise ValueError(
            "found true, but HTTP/2 needs the package h2, which is not installed; install it: "
            "pip install h2"
        )
    return value


def _header(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("found a header that is not text; put it in quotes")  # noqa: TRY004 - pydantic wants it
    if not value.isprintable():
        raise ValueError("found a line break or control character; a header is one line of text")
    if not value.isascii():
        raise ValueError("found a letter that is not ASCII; a header's value is ASCII")
    return value


def _or_text(schema: dict[str, Any]) -> None:
    body = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string", "description": body["description"]}, body]


def _or_one(schema: dict[str, Any]) -> None:
    several = {key: schema.pop(key) for key in ("type", "items", "minItems")}
    schema["anyOf"] = [several, several["items"]]


def _text(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


_Duration = Annotated[int, BeforeValidator(_positive_duration), _text(_DURATION, "60s")]
_Window = Annotated[int, BeforeValidator(_window), _text(_DURATION, "10s")]
_Drain = Annotated[int, BeforeValidator(_duration), _text(_DURATION, "30s")]
_Arrivals = Annotated[Arrivals, PlainValidator(_arrivals), _text(_ARRIVALS, "poisson 20/s")]
_File = Annotated[Path, PlainValidator(_file), WithJsonSchema({"type": "string"})]
_Url = Annotated[str, PlainValidator(_url), WithJsonSchema({"type": "string"})]
_Verify = Annotated[
    bool | Path, PlainValidator(_verify), WithJsonSchema({"type": ["boolean", "string"]})
]
_Proxy = Annotated[str, PlainValidator(_proxy), WithJsonSchema({"type": "string"})]
_Http2 = Annotated[bool, AfterValidator(_http2)]
_Headers = dict[
    Annotated[str, Field(pattern=_HEADER_NAME)], Annotated[str, BeforeValidator(_header)]
]


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TargetEntry(_Written):
    """What is measured."""

    url: _Url = Field(
        description="An http(s) URL, or embedded: the reference endpoint, started for the run."
    )
    api: Api = Field("openai-chat", description="The dialect the target speaks.")
    model: str | None = Field(None, description="The model's name, sent with every request.")
    headers: _Headers = Field({}, description="Sent with every request. Secrets: ${VAR}.")
    path: Annotated[str, Field(pattern="^/")] | None = Field(
        None, description="Path of the endpoint where it is not the API's own, like /v2/chat."
    )
    timeout_ns: _Duration = Field(
        60_000_000_000, alias="timeout", description="Longest wait for one reply; default 60s."
    )
    verify: _Verify = Field(
        True, description="TLS: true, false, or the path of a file of CA certificates."
    )
    cert: _File | None = Field(
        None, description="TLS: our certificate, a PEM file, for targets that ask for one."
    )
    key: _File | None = Field(
        None, description="TLS: the private key of cert, a PEM file, if cert does not hold it."
    )
    proxy: _Proxy | None = Field(
        None, description="Proxy for all requests, like http://proxy:3128. Secrets: ${VAR}."
    )
    http2: _Http2 = Field(
        False, description="Offer HTTP/2 to an https target; needs the package h2."
    )
    trust_env: bool = Field(
        True,
        description="Without a proxy here, use that of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, "
        "unless NO_PROXY names the host or it is a loopback address.",
    )
    params: dict[str, Any] = Field(
        {}, description="Further fields of the request body, like max_tokens."
    )


class StageEntry(_Written):
    """One stretch of load: open with arrivals, or closed with concurrency."""

    name: str = Field(
        "", pattern=_STAGE_NAME, description="Shown in the report; budgets name it with: in NAME."
    )
    arrivals: _Arrivals | None = Field(
        None, description="Open load: constant RATE or poisson RATE, like poisson 20/s."
    )
    concurrency: int | None = Field(
        None, ge=1, description="Closed load: users, each starting anew when its reply has ended."
    )
    duration_ns: _Duration = Field(alias="for", description="How long, like 60s.")
    record: bool = Field(True, description="False for a warm-up: sent, but not judged.")
    max_in_flight: int | None = Field(
        None, ge=1, description="Open load: most requests at a time, others wait; default 1000."
    )

    @model_validator(mode="after")
    def _open_or_closed(self) -> Self:
        if (self.arrivals is None) == (self.concurrency is None):
            found = "neither arrivals nor" if self.arrivals is None else "both arrivals and"
            raise ValueError(
                f"found {found} concurrency; a stage has one of them: arrivals (open load) or "
                "concurrency (closed load)"
            )
        if self.concurrency is not None and self.max_in_flight is not None:
            raise ValueError("found max_in_flight beside concurrency, which is the limit itself")
        return self


class InputsEntry(_Written):
    """Prompts or a trace; weights and categories stand inside."""

    model_config = ConfigDict(json_schema_extra=_or_text)
    file: _File = Field(description="JSON lines or CSV, relative to the plan's folder.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"file": value} if isinstance(value, str) else value


class BudgetEntry(_Written):
    """STEP.METRIC [QUANTILE|mean|max] [regression] OP VALUE [over DURATION] [in STAGE].

    Like chat.ttft p99 < 800ms.
    """

    model_config = ConfigDict(json_schema_extra=_or_text)
    budget: str = Field(description="The sentence, like chat.ttft p99 < 800ms.")
    confidence: float = Field(
        0.95, ge=0.5, le=0.9999, description="How sure a PASS or a FAIL must be; default 0.95."
    )
    stage: str | None = Field(None, description="Judge in this stage only.")
    over_ns: _Window | None = Field(
        None, alias="over", description="Every window of this length must hold, like 10s."
    )
    abort: bool = Field(
        False, description="End the load once no remaining outcome could meet this budget."
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"budget": value} if isinstance(value, str) else value


def _to_budget(entry: BudgetEntry) -> Budget:
    try:
        return parse_budget(
            entry.budget,
            stage=entry.stage,
            over_ns=entry.over_ns,
            confidence=entry.confidence,
            abort=entry.abort,
        )
    except BudgetSyntaxError as error:
        details = {"problem": error.problem, "column": error.column}
        raise PydanticCustomError("budget", "{problem}", details) from None


_Budget = Annotated[
    Budget,
    GetPydanticSchema(
        lambda _, handler: core_schema.no_info_after_validator_function(
            _to_budget, handler(BudgetEntry)
        )
    ),
]


class PlanEntry(_Written):
    """A load test of a model endpoint and the budgets it must keep."""

    name: str | None = Field(None, description="Shown in the report; default: the file's name.")
    target: TargetEntry
    scenario: _File = Field(description="A Locust file, relative to the plan's folder.")
    inputs: InputsEntry | None = None
    load: tuple[StageEntry, ...] = Field(
        min_length=1, description="Stages, run one after another.", json_schema_extra=_or_one
    )
    budgets: tuple[_Budget, ...] = Field(
        min_length=1, description="What must hold for the run to pass."
    )
    seed: int = Field(1, ge=0, lt=2**63, description="Same seed, same arrivals and inputs.")
    workers: int = Field(1, ge=1, le=1024, description="Processes that generate the load.")
    repeat: int = Field(
        1,
        ge=1,
        le=MOST_REPEATS,
        description="How often the whole load is played, each time by new worker processes with "
        "a seed of its own; a budget is judged on all of them.",
    )
    abort_on: tuple[AbortCause, ...] = Field(
        (),
        description="What else ends the load early: overload (latency that keeps growing), errors "
        "(a storm of failures).",
    )
    multiple_testing: MultipleTesting = Field(
        "none",
        description="none: each budget has its own confidence. holm: the confidence is that of all "
        "budgets together, by Holm's procedure.",
    )
    drain_ns: _Drain = Field(
        30_000_000_000,
        alias="drain",
        description="How long the last replies may take after the load has ended; default 30s.",
    )
    embedded: dict[str, Any] = Field({}, description="Settings of the embedded endpoint.")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        """Make one stage a list, and name stages without a name: load, or load-1, load-2."""
        if not isinstance(value, dict) or not isinstance(value.get("load"), (dict, list)):
            return value
        load = value["load"] if isinstance(value["load"], list) else [value["load"]]
        names = ["load"] if len(load) == 1 else [f"load-{i + 1}" for i in range(len(load))]
        named = [
            {"name": name} | stage if isinstance(stage, dict) else stage
            for name, stage in zip(names, load, strict=True)
        ]
        return value | {"load": named}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the plan file as written, for editors."""
    schema = _with_variables(PlanEntry.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Plan"}


def _with_variables(schema: Any) -> Any:
    """Allow `${VAR}` where an editor would else want a number, true, false or a known word."""
    if isinstance(schema, list):
        return [_with_variables(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("integer", "number", "boolean") or isinstance(
        schema.get("enum"), list
    ):
        about = {key: schema[key] for key in ("title", "description", "default") if key in schema}
        exact = {key: value for key, value in schema.items() if key not in about}
        return about | {"anyOf": [exact, {"type": "string", "pattern": r"\$\{"}]}
    return {key: _with_variables(value) for key, value in schema.items()}


# What pydantic found, in the words of someone who writes plans.

_ENTRIES: dict[object, type[_Written]] = {
    "target": TargetEntry,
    "inputs": InputsEntry,
    "load": StageEntry,
    "budgets": BudgetEntry,
}
_MEANT_KEY = {
    "duration": "for",
    "rate": "arrivals",
    "rps": "arrivals",
    "request_rate": "arrivals",
    "users": "concurrency",
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
}
_KEYS = "keys with values"
_WORDS = {
    "string_type": "text; put it in quotes",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "dict_type": _KEYS,
    "model_type": _KEYS,
    "tuple_type": "a list",
    "too_short": "a list with at least one entry",
    _HEADER_NAME: "a header's name",
    _STAGE_NAME: "a name of letters, digits, _ and -",
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
        return _unknown_key(str(loc[-1]), _ENTRIES[loc[0]] if len(loc) > 1 else PlanEntry)
    found = "this" if "headers" in loc else _shown(value)
    allowed = _WORDS.get(kind) or _bounds(error)
    if allowed == _KEYS and (not loc or loc[0] in _ENTRIES):
        allowed += f": {', '.join(_keys(_ENTRIES[loc[0]] if loc else PlanEntry))}"
    return f"found {found}; allowed is {allowed}"


def _bounds(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if "expected" in context:
        known = re.findall(r"'([^']+)'", context["expected"])
        return ", ".join(known) + near_miss(str(error["input"]), known)
    if context.get("pattern") in _WORDS:
        return _WORDS[context["pattern"]]
    bounds = [f"{_WORDS[name]} {bound}" for name, bound in context.items() if name in _WORDS]
    return bounds[0] if bounds else error["msg"]


def _unknown_key(key: str, entry: type[_Written]) -> str:
    allowed = _keys(entry)
    meant = _MEANT_KEY.get(key)
    hint = f'; did you mean "{meant}"?' if meant in allowed else near_miss(key, allowed)
    return f'found the key "{key}"; allowed are {", ".join(allowed)}{hint}'


def _keys(entry: type[_Written]) -> list[str]:
    return [info.alias or name for name, info in entry.model_fields.items()]


def _shown(value: object) -> str:
    """Return a value as a message names it."""
    if value is None or value == {}:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return _KEYS
    text = str(value)
    return f'"{text[:60]}…"' if len(text) > 60 else f'"{text}"'
