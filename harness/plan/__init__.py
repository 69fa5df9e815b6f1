"""The plan: what is run, how hard, and what must hold; found usable before any load starts.

    target:
      url: ${TARGET:-embedded}         # embedded is the reference endpoint, started for the run
      headers: { Authorization: "Bearer ${API_KEY:-}" }
    scenario: chat.py                  # paths are relative to the plan's folder
    load:
      - { name: warmup, arrivals: constant 5/s, for: 10s, record: false }
      - { name: steady, arrivals: poisson 20/s, for: 60s }
    budgets:
      - chat.ttft p99 < 800ms
    prices: { input: $0.15/1M, output: $0.60/1M, monthly_requests: 3000000 }

Every error says `file:line:column: what was found, what is allowed, what to do`. Options of the
command line go the same way and are named in its place. Secrets stay out of `repr`, and
`redacted_source` holds none: `${VAR}` stays as written, what is written out is masked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import yaml
from pydantic import ValidationError

from harness.budget import RUN, Budget, near_miss
from harness.cost import PriceTable
from harness.errors import PlanError
from harness.masking import (
    MASK,
    anywhere,
    is_harmless,
    is_secret,
    mask,
    mask_query,
    query_secrets,
)
from harness.plan.document import (
    Document,
    Loc,
    Places,
    read_text,
    secret_parts,
    url_secrets,
)
from harness.plan.explained import explained
from harness.plan.target import check_target, http2_problem
from harness.plan.values import Arrivals
from harness.plan.written import (
    MOST_REPEATS,
    AbortCause,
    Api,
    MultipleTesting,
    PlanEntry,
    StageEntry,
    TargetEntry,
    json_schema,
)
from harness.units import format_count
from harness.urls import socket_path

__all__ = [
    "MOST_REPEATS",
    "AbortCause",
    "Arrivals",
    "MultipleTesting",
    "Plan",
    "Stage",
    "Target",
    "check_steps",
    "json_schema",
    "load_plan",
    "masked",
    "plan_from_options",
    "secrets",
    "with_url",
]

DEFAULT_MAX_IN_FLIGHT = 1000
_RAMP_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stretch of load; exactly one of `arrivals` (open) and `concurrency` (closed) is set.

    `max_in_flight` is None for a closed load; `ramp_ns` is how long its users take to start, None
    where the plan does not say.
    """

    name: str
    duration_ns: int
    arrivals: Arrivals | None = None
    concurrency: int | None = None
    ramp_ns: int | None = None
    record: bool = True
    max_in_flight: int | None = None

    @property
    def spread_ns(self) -> int:
        """How long its users take to start: its ramp, or a tenth of the stage, a second at most."""
        return min(_RAMP_NS, self.duration_ns // 10) if self.ramp_ns is None else self.ramp_ns

    @property
    def load(self) -> str:
        """`poisson 20/s` or `50 users`."""
        if self.arrivals is not None:
            return str(self.arrivals)
        return "1 user" if self.concurrency == 1 else f"{format_count(self.concurrency or 0)} users"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is measured. `url` is `embedded` or an http(s) URL; `verify` may be a file of CAs.

    `path` stands for the API's own path where it is not None; `params` are further body fields.
    `cert` is what we show to a target that asks who we are, `key` its key where `cert` has none.
    `proxy`, `http2` and `trust_env` mean what they mean to `httpx.Client`. A reply, once it is
    decompressed, and an event of a stream may not be longer than so many bytes; one without a token
    is a failure unless `allow_empty`.
    """

    url: str
    api: Api = "openai-chat"
    model: str | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    path: str | None = None
    timeout_ns: int = 60_000_000_000
    verify: bool | Path = True
    cert: Path | None = None
    key: Path | None = None
    proxy: str | None = field(default=None, repr=False)
    http2: bool = False
    trust_env: bool = True
    max_reply_bytes: int = 64 << 20
    max_event_bytes: int = 1 << 20
    allow_empty: bool = False
    params: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan that was found usable: paths are absolute, variables expanded, budgets parsed.

    `source` is the text as read and may hold secrets; store and show `redacted_source` alone.
    `places` tells where each budget, by its text, and each step's price list was declared.
    """

    name: str
    path: Path | None
    source: str = field(repr=False)
    redacted_source: str = field(repr=False)
    target: Target
    scenario: Path
    inputs: Path | None
    load: tuple[Stage, ...]
    budgets: tuple[Budget, ...]
    prices: PriceTable | None = None
    seed: int = 1
    workers: int = 1
    repeat: int = 1
    abort_on: tuple[AbortCause, ...] = ()
    multiple_testing: MultipleTesting = "none"
    drain_ns: int = 30_000_000_000
    embedded: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict, repr=False)
    secret_variables: tuple[str, ...] = field(default=(), repr=False)


def load_plan(path: str | os.PathLike[str], *, environ: Mapping[str, str] = os.environ) -> Plan:
    """Read and check a plan file. Raises PlanError for whatever cannot run."""
    document = Document(Path(path), read_text(Path(path)), environ)
    return _plan(
        document.data,
        document,
        path=Path(path).absolute(),
        source=document.text,
        redacted_source=document.redacted(),
        secret_variables=tuple(sorted(document.secret_variables)),
    )


def plan_from_options(
    *,
    scenario: str | os.PathLike[str],
    url: str = "embedded",
    api: str | None = None,
    model: str | None = None,
    headers: Sequence[str] = (),
    rate: str | None = None,
    arrivals: str | None = None,
    concurrency: int | None = None,
    ramp: str | None = None,
    duration: str = "60s",
    budgets: Sequence[str] = (),
    inputs: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    workers: int | None = None,
    repeat: int | None = None,
) -> Plan:
    """Make the plan that options describe; paths are relative to the working folder.

    `rate` means Poisson arrivals; `arrivals` says which (`constant 5/s`). `headers` are texts of
    the form `Name: value`. Raises PlanError that names the option at fault.
    """
    if rate is not None and arrivals is not None:
        raise PlanError("--rate", "found beside --arrivals; give one of them")
    sent = _headers(headers)
    load = arrivals if rate is None else f"poisson {rate}"
    data = _given(
        target=_given(url=url, api=api, model=model, headers=sent),
        scenario=os.fspath(scenario),
        inputs=None if inputs is None else os.fspath(inputs),
        load=_given(arrivals=load, concurrency=concurrency, ramp=ramp) | {"for": duration},
        budgets=list(budgets),
        seed=seed,
        workers=workers,
        repeat=repeat,
    )
    masked = {name: value if is_harmless(name) else MASK for name, value in sent.items()}
    target = data["target"] | {"url": mask_query(url), "headers": masked}
    shown = data | {"target": target}
    source = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    options = _Options("--rate" if arrivals is None else "--arrivals")
    return _plan(data, options, path=None, source=source, redacted_source=source)


def with_url(plan: Plan, url: str, *, option: str = "--target") -> Plan:
    """Return the plan for another target. Raises PlanError, which names the option."""
    try:
        entry = TargetEntry(url=url)
    except ValidationError as errors:
        raise PlanError(option, str(errors.errors()[0]["ctx"]["error"])) from None
    if plan.target.http2 and (problem := http2_problem(entry.url)):
        raise PlanError(option, problem)
    if plan.target.proxy and socket_path(entry.url):
        raise PlanError(option, "found a unix socket, which the plan's proxy cannot reach")
    return replace(plan, target=replace(plan.target, url=entry.url))


def check_steps(plan: Plan, known_steps: Iterable[str]) -> None:
    """Raise PlanError at the first budget whose step the scenario does not have."""
    known = list(known_steps)
    for budget in plan.budgets:
        if budget.step != RUN and budget.step not in known:
            raise PlanError(
                plan.places[budget.text],
                f'found the step "{budget.step}"; the scenario has {", ".join(known) or "none"}, '
                f"and {RUN} is every root step together{near_miss(budget.step, known)}",
            )
    for step in plan.prices.steps if plan.prices else ():
        if step not in known:
            raise PlanError(
                plan.places[step],
                f'found prices of the step "{step}"; the scenario has '
                f"{', '.join(known) or 'none'}{near_miss(step, known)}",
            )


def secrets(plan: Plan) -> tuple[str, ...]:
    """Return the texts that must never be written or shown, longest first.

    They are the values of headers and of the URL's query but harmless ones, of sensitive body
    fields and of the sensitive environment variables that the plan uses, each also without
    `Bearer `, and the passwords of proxies.
    """
    target, found = plan.target, set(plan.secret_variables)
    found |= query_secrets(target.url) | query_secrets(target.path or "")
    for proxy in (target.proxy, *(getproxies().values() if target.trust_env else ())):
        found |= url_secrets(proxy or "")
    for name, value in target.headers.items():
        found |= anywhere(name, secret_parts(value))
    for name, value in target.params.items():
        if is_secret(name) and isinstance(value, str):
            found |= secret_parts(value)
    return tuple(sorted(found, key=lambda text: (-len(text), text)))


def masked(plan: Plan, text: str) -> str:
    """Mask the plan's secrets in a text; a server's message may echo a key."""
    return mask(text, secrets(plan))


class _Options:
    """Places on a command line: the option's name."""

    def __init__(self, rate_option: str) -> None:
        self._names: dict[Loc, str] = {
            (): rate_option,
            ("scenario",): "scenario",
            ("target",): "--target",
            ("target", "api"): "--api",
            ("target", "model"): "--model",
            ("target", "headers"): "--header",
            ("inputs",): "--inputs",
            ("load", 0, "concurrency"): "--concurrency",
            ("load", 0, "ramp"): "--ramp",
            ("load", 0, "for"): "--for",
            ("budgets",): "--budget",
            ("seed",): "--seed",
            ("workers",): "--workers",
            ("repeat",): "--repeat",
        }

    def place(self, loc: Loc, *, key: bool = False, column: int = 1) -> str:  # noqa: ARG002 - an option has no columns
        known = (loc[:n] for n in range(len(loc), -1, -1))
        return next(self._names[part] for part in known if part in self._names)


def _plan(data: Any, places: Places, *, path: Path | None, **texts: Any) -> Plan:
    context = {
        "folder": path.parent if path else Path.cwd(),
        "folder_meaning": "the plan's folder" if path else "the working folder",
    }
    try:
        entry = PlanEntry.model_validate(data, context=context)
    except ValidationError as errors:
        raise explained(errors, places) from None
    check_target(entry.target, places)
    _check_stages(entry.load, places)
    _check_budgets(entry.budgets, entry.load, places)
    _check_prices(entry.budgets, entry.prices, places)
    target, inputs, load = Target(**dict(entry.target)), entry.inputs, map(_stage, entry.load)
    return Plan(
        **dict(entry)
        | {"name": entry.name or (path or entry.scenario).stem, "target": target}
        | {"inputs": inputs.file if inputs else None, "load": tuple(load)},
        path=path,
        places=_places(entry, places),
        **texts,
    )


def _places(entry: PlanEntry, places: Places) -> dict[str, str]:
    budgets = {b.text: places.place(("budgets", i)) for i, b in enumerate(entry.budgets)}
    steps = entry.prices.steps if entry.prices else ()
    return budgets | {name: places.place(("prices", "steps", name), key=True) for name in steps}


def _stage(entry: StageEntry) -> Stage:
    values = dict(entry)
    if entry.arrivals is not None and entry.max_in_flight is None:
        values["max_in_flight"] = DEFAULT_MAX_IN_FLIGHT
    return Stage(**values)


def _check_stages(load: Sequence[StageEntry], places: Places) -> None:
    names = [stage.name for stage in load]
    for i, name in enumerate(names):
        if name in names[:i]:
            problem = f'found the stage "{name}" again; give each stage a name of its own'
            raise PlanError(places.place(("load", i, "name")), problem)
        if problem := _ramp_problem(load[i]):
            raise PlanError(places.place(("load", i, "ramp")), problem)
    if not any(stage.record for stage in load):
        problem = "found no stage that is recorded; remove record: false from one"
        raise PlanError(places.place(("load",)), problem)


def _ramp_problem(stage: StageEntry) -> str:
    """Say why the users of a stage cannot start in its ramp; empty when they can."""
    if stage.ramp_ns is None:
        return ""
    if stage.concurrency is None:
        return (
            "found ramp beside arrivals, which start by their own process; a ramp is how long the "
            "users of a concurrency take to start: remove it, or declare a slower stage before"
        )
    if stage.ramp_ns >= stage.duration_ns:
        return (
            f"found a ramp of {stage.ramp_ns / 1e9:g}s in the stage {stage.name} of "
            f"{stage.duration_ns / 1e9:g}s; allowed is less than the stage lasts, or 0s to start "
            "all users at once"
        )
    return ""


def _check_budgets(budgets: Sequence[Budget], load: Sequence[StageEntry], places: Places) -> None:
    recorded = {stage.name: stage.record for stage in load}
    known = [name for name, record in recorded.items() if record]
    texts = [budget.text for budget in budgets]
    for i, budget in enumerate(budgets):
        place = places.place(("budgets", i))
        if budget.text in texts[:i]:
            raise PlanError(place, f'found the budget "{budget.text}" again; remove one')
        if budget.stage and budget.stage not in known:
            why = "is not recorded" if budget.stage in recorded else "does not exist"
            raise PlanError(
                place,
                f'found the stage "{budget.stage}", which {why}; recorded are {", ".join(known)}'
                f"{near_miss(budget.stage, known)}",
            )
        _check_window(budget, load, places.place(("budgets", i, "over")))


def _check_prices(budgets: Sequence[Budget], prices: PriceTable | None, places: Places) -> None:
    """Raise PlanError for a budget on cost where nothing has a price."""
    at = next((i for i, budget in enumerate(budgets) if budget.metric == "cost"), None)
    if prices is None and at is not None:
        raise PlanError(
            places.place(("budgets", at)),
            f'found the budget "{budgets[at].text}", but the plan has no prices; add to its '
            "file what the target charges, like prices: { input: $0.15/1M, output: $0.60/1M }",
        )


def _check_window(budget: Budget, load: Sequence[StageEntry], place: str) -> None:
    """Raise PlanError when a window of the budget is longer than a stage it is judged in."""
    for stage in load:
        judged = stage.record and budget.stage in (None, stage.name)
        if judged and (budget.over_ns or 0) > stage.duration_ns:
            raise PlanError(
                place,
                f'found windows that are longer than the stage "{stage.name}" of '
                f"{stage.duration_ns / 1e9:g}s; make them shorter, or name a longer stage",
            )


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _headers(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition(":") for text in texts]
    if not all(colon for _, colon, _ in pairs):
        raise PlanError("--header", 'found no colon; allowed is "Name: value"')
    return {name.strip(): value.strip() for name, _, value in pairs}
