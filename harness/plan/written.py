"""The plan file as people write it: its keys and what each may hold.

A field has the name it bears in the plan; an alias is the key in the file where the two differ.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from harness.budget import Budget, parse_budget
from harness.cost import Prices, PriceTable
from harness.errors import BudgetSyntaxError
from harness.plan.values import (
    STAGE_NAME,
    STEP_NAME,
    ArrivalsText,
    Drain,
    Duration,
    File,
    Flag,
    Headers,
    Http2,
    Proxy,
    RequestPrice,
    Size,
    TokenPrice,
    Url,
    Verify,
    Whole,
    Window,
)

Api = Literal["openai-chat", "openai-completions", "openai-embeddings", "json"]
AbortCause = Literal["overload", "errors"]
MultipleTesting = Literal["none", "holm"]

MOST_REPEATS = 20
MOST_USERS = 100_000


def _or_text(schema: dict[str, Any]) -> None:
    body = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string", "description": body["description"]}, body]


def _or_one(schema: dict[str, Any]) -> None:
    several = {key: schema.pop(key) for key in ("type", "items", "minItems")}
    schema["anyOf"] = [several, several["items"]]


class Written(BaseModel):
    """Part of a plan: it holds the keys that it names and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TargetEntry(Written):
    """What is measured."""

    url: Url = Field(
        description="An http(s) URL, or embedded: the reference endpoint, started for the run."
    )
    api: Api = Field("openai-chat", description="The dialect the target speaks.")
    model: str | None = Field(None, description="The model's name, sent with every request.")
    headers: Headers = Field({}, description="Sent with every request. Secrets: ${VAR}.")
    path: Annotated[str, Field(pattern="^/")] | None = Field(
        None, description="Path of the endpoint where it is not the API's own, like /v2/chat."
    )
    timeout_ns: Duration = Field(
        60_000_000_000, alias="timeout", description="Longest wait for one reply; default 60s."
    )
    verify: Verify = Field(
        True, description="TLS: true, false, or the path of a file of CA certificates."
    )
    cert: File | None = Field(
        None, description="TLS: our certificate, a PEM file, for targets that ask for one."
    )
    key: File | None = Field(
        None, description="TLS: the private key of cert, a PEM file, if cert does not hold it."
    )
    proxy: Proxy | None = Field(
        None,
        description="Proxy for all requests, like http://proxy:3128, or socks5://proxy:1080 with "
        "the package socksio. Secrets: ${VAR}.",
    )
    http2: Http2 = Field(False, description="Offer HTTP/2 to an https target.")
    trust_env: Flag = Field(
        True,
        description="Without a proxy here, use that of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, "
        "unless NO_PROXY names the host or it is a loopback address.",
    )
    max_reply_bytes: Size = Field(
        64 << 20,
        alias="max_reply",
        description="Longest reply, once decompressed; a longer one is cut and fails; "
        "default 64MiB.",
    )
    max_event_bytes: Size = Field(
        1 << 20, alias="max_event", description="Longest event of a stream; default 1MiB."
    )
    allow_empty: Flag = Field(
        False, description="Whether a reply of text without one token counts as a success."
    )
    params: dict[str, Any] = Field(
        {}, description="Further fields of the request body, like max_tokens."
    )


class StageEntry(Written):
    """One stretch of load: open with arrivals, or closed with concurrency."""

    name: str = Field(
        "", pattern=STAGE_NAME, description="Shown in the report; budgets name it with: in NAME."
    )
    arrivals: ArrivalsText | None = Field(
        None, description="Open load: constant RATE or poisson RATE, like poisson 20/s."
    )
    concurrency: Whole | None = Field(
        None,
        ge=1,
        le=MOST_USERS,
        description="Closed load: users, each starting anew when its reply has ended.",
    )
    ramp_ns: Drain | None = Field(
        None,
        alias="ramp",
        description="Closed load: how long the users take to start, spread evenly, like 5s; 0s "
        "starts all at once. Default: a tenth of the stage, at most 1s.",
    )
    duration_ns: Duration = Field(alias="for", description="How long, like 60s.")
    record: Flag = Field(True, description="False for a warm-up: sent, but not judged.")
    max_in_flight: Whole | None = Field(
        None,
        ge=1,
        le=MOST_USERS,
        description="Open load: most requests at a time, others wait; default 1000.",
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


class InputsEntry(Written):
    """Prompts or a trace; weights and categories stand inside."""

    model_config = ConfigDict(json_schema_extra=_or_text)
    file: File = Field(description="JSON lines or CSV, relative to the plan's folder.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"file": value} if isinstance(value, str) else value


class BudgetEntry(Written):
    """STEP.METRIC [QUANTILE|mean|max] [regression] OP VALUE [over DURATION] [in STAGE].

    Like chat.ttft p99 < 800ms.
    """

    model_config = ConfigDict(json_schema_extra=_or_text)
    budget: str = Field(description="The sentence, like chat.ttft p99 < 800ms.")
    confidence: float = Field(
        0.95, ge=0.5, le=0.9999, description="How sure a PASS or a FAIL must be; default 0.95."
    )
    stage: str | None = Field(None, description="Judge in this stage only.")
    over_ns: Window | None = Field(
        None, alias="over", description="Every window of this length must hold, like 10s."
    )
    abort: Flag = Field(
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


class PriceListEntry(Written):
    """What model calls cost, in US dollars; at least one price."""

    input: TokenPrice | None = Field(
        None, description="Of prompt tokens, like $0.15/1M or $0.0001/1k."
    )
    cached_input: TokenPrice | None = Field(
        None,
        description="Of prompt tokens that the target reports as read from its cache; default: "
        "as input.",
    )
    output: TokenPrice | None = Field(None, description="Of the reply's tokens, like $0.60/1M.")
    request: RequestPrice | None = Field(None, description="Of each model call, like $0.0001.")

    @model_validator(mode="after")
    def _has_a_price(self) -> Self:
        if self.prices() == Prices():
            raise ValueError(
                "found no price for model calls; add input: $0.15/1M, output: $0.60/1M or "
                "request: $0.0001, as $0 where they are free"
            )
        return self

    def prices(self) -> Prices:
        """Return the list as it is reckoned with."""
        return Prices(
            input=self.input,
            cached_input=self.cached_input,
            output=self.output,
            request=self.request,
        )


class PricesEntry(PriceListEntry):
    """What model calls cost, in US dollars; at least one price. Makes the metric cost."""

    steps: dict[Annotated[str, Field(pattern=STEP_NAME)], PriceListEntry] = Field(
        {}, description="Price lists of steps that have their own instead, like answer/embed."
    )
    monthly_requests: Whole | None = Field(
        None, ge=1, description="Requests in a month, that its costs are told for."
    )


def _to_table(entry: PricesEntry) -> PriceTable:
    return PriceTable(
        default=entry.prices(),
        steps={step: prices.prices() for step, prices in entry.steps.items()},
        monthly_requests=entry.monthly_requests,
    )


_Prices = Annotated[
    PriceTable,
    GetPydanticSchema(
        lambda _, handler: core_schema.no_info_after_validator_function(
            _to_table, handler(PricesEntry)
        )
    ),
]


class PlanEntry(Written):
    """A load test of a model endpoint and the budgets it must keep."""

    name: str | None = Field(None, description="Shown in the report; default: the file's name.")
    target: TargetEntry
    scenario: File = Field(description="A Locust file, relative to the plan's folder.")
    inputs: InputsEntry | None = None
    load: tuple[StageEntry, ...] = Field(
        min_length=1, description="Stages, run one after another.", json_schema_extra=_or_one
    )
    budgets: tuple[_Budget, ...] = Field(
        min_length=1, description="What must hold for the run to pass."
    )
    prices: _Prices | None = Field(None, description="What model calls cost, for the metric cost.")
    seed: Whole = Field(1, ge=0, lt=2**63, description="Same seed, same arrivals and inputs.")
    workers: Whole = Field(1, ge=1, le=1024, description="Processes that generate the load.")
    repeat: Whole = Field(
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
    drain_ns: Drain = Field(
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
