"""`harness init`: ask an endpoint what it is, and write a plan and a scenario that run at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from harness import apis
from harness.errors import TargetError, UserError
from harness.health.streams import in_one_read
from harness.masking import anywhere, mask, mask_query, query_secrets
from harness.plan.document import secret_parts, url_secrets
from harness.proxies import SocksTrace, environment_proxy, without_secrets
from harness.urls import canonical_url, socket_path

_TIMEOUT_S = 30.0
_UNREACHABLE = (httpx.ConnectError, httpx.ProxyError)
_UNTRUSTED = "write a plan for it whose verify: names its CA's file (verify: ca.pem), or is false"
_PROMPT = "Say hello in five words."


@dataclass(frozen=True, slots=True)
class _Kind:
    """One API to try: what to send, and the scenario that fits it."""

    api: str
    question: dict[str, Any]
    step: str
    call: str
    budgets: tuple[str, ...]


_STREAM_BUDGETS = ("{step}.ttft p95 < 1s", "{step}.tpot p95 < 100ms", "{step}.e2el p95 < 20s")
_KINDS = (
    _Kind("openai-chat", {"prompt": _PROMPT}, "chat", "self.chat(self.next_input())",
          _STREAM_BUDGETS),
    _Kind("openai-completions", {"prompt": _PROMPT}, "completion",
          "self.complete(self.next_input())", _STREAM_BUDGETS),
    _Kind("openai-embeddings", {"input": _PROMPT}, "embedding",
          "self.embed(self.next_input().text)", ("{step}.e2el p95 < 500ms",)),
    _Kind("json", {"instances": [[1.0, 2.0, 3.0]]}, "predict",
          'self.predict({"instances": [[1.0, 2.0, 3.0]]})', ("{step}.e2el p95 < 500ms",)),
)  # fmt: skip

_SCENARIO = '''"""What one user does; every call is recorded as a step that budgets can name."""

from harness import ModelUser, task


class User(ModelUser):
    @task
    def journey(self) -> None:
        {call}
'''

_PLAN = """\
# What is tested. ${{VAR:-default}} comes from the environment; keep keys there, not here.
target:
  url: {url}
  api: {api}
{model}{headers}{params}
# Who asks what: the scenario's tasks, with prompts drawn from the inputs.
scenario: scenario.py
{inputs}
# How hard: the open model, arrivals do not wait for replies. Raise the rate step by step.
load:
  - {{ name: warmup, arrivals: constant 1/s, for: 5s, record: false }}
  - {{ name: steady, arrivals: poisson 4/s, for: 180s, max_in_flight: 100 }}

# What must hold. harness plan-size says how long a run that takes.
budgets:
{budgets}
  - {step}.error_rate < 5%

# What it costs, in the report and for budgets like {step}.cost mean < $0.002: put in your prices.
# prices: {{ input: $0.15/1M, output: $0.60/1M, monthly_requests: 1000000 }}

seed: 1
"""

_PROMPTS = (
    ("facts", "Which planet has the most moons?"),
    ("facts", "Name three rivers that flow into the Black Sea."),
    ("writing", "Write two sentences about the first day of spring."),
    ("writing", "Write a polite reminder about an unpaid invoice."),
    ("summaries", "Explain in one sentence what a load test is for."),
    ("summaries", "Explain the difference between a median and a mean to a child."),
)


def write_starter(url: str, into: Path, headers: Sequence[str]) -> tuple[str, tuple[Path, ...]]:
    """Probe the endpoint; write plan.yaml, scenario.py and, for text, prompts.jsonl.

    It is asked through the proxy that the environment names, as in a run. Returns what was found
    and the files. Raises TargetError when nothing known answers, UserError when a file is there
    already or the URL or the proxy cannot be used.
    """
    files = [into / name for name in ("plan.yaml", "scenario.py", "prompts.jsonl")]
    for file in files:
        if file.exists():
            raise UserError(f"{file} is there already; choose another folder with --into")
    given = _headers(headers)
    try:
        url = canonical_url(url)
    except ValueError as error:
        raise UserError(f"URL: {error}") from None
    secrets = _secrets(url, given)
    shown = _shown(url, secrets)
    models, proxy = _way(url, shown)
    through = f" through the proxy {without_secrets(proxy)}" if proxy else ""
    with _client(url, given, proxy) as client:
        try:
            model = _first_model(client, models)
        except _UNREACHABLE as error:
            why = mask(str(error), secrets)
            asked = _shown(str(models), secrets)
            remedy = _UNTRUSTED if "CERTIFICATE_VERIFY_FAILED" in why else "check that it is up"
            raise TargetError(
                f"{shown} does not answer{through}: {why}, asked {asked}; {remedy}"
            ) from error
        kind, reply = _first_that_answers(client, url, model, secrets)
    # A URL with a key in it comes from the environment, as the keys in headers do.
    keyed = query_secrets(url) | url_secrets(url)
    written = f"${{TARGET}}  # {shown}" if keyed else f"${{TARGET:-{url}}}"
    texts = [_plan_text(kind, written, model, sorted(given)), _SCENARIO.format(call=kind.call)]
    if kind.api != "json":
        lines = [
            json.dumps({"id": f"{category}-{number}", "category": category, "prompt": prompt})
            for number, (category, prompt) in enumerate(_PROMPTS, 1)
        ]
        texts.append("\n".join(lines) + "\n")
    try:
        into.mkdir(parents=True, exist_ok=True)
        for file, text in zip(files, texts, strict=False):
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{into} cannot be written: {error.strerror}") from error
    named = mask(model, secrets) if model else "not named"
    found = f"{shown} answers as {kind.api}, model {named}"
    if reply.is_lumped:
        found += f"\n{in_one_read(len(reply.token_events))}"
    return found, tuple(files[: len(texts)])


def _secrets(url: str, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return what must not be shown of the URL and the headers, longest first, as a plan's."""
    found = query_secrets(url) | url_secrets(url)
    for name, value in headers.items():
        found |= anywhere(name, secret_parts(value))
    return tuple(sorted(found, key=len, reverse=True))


def _shown(url: str, secrets: Sequence[str]) -> str:
    return mask(mask_query(url), secrets)


def _way(url: str, shown: str) -> tuple[httpx.URL, str | None]:
    """Return where the models are listed and the proxy on the way; UserError for no usable host."""
    try:
        models = httpx.URL(apis.models_url(url))
        models.raw_host.decode().encode("idna")  # as the resolver will
        return models, environment_proxy(models)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise UserError(
            f"url {shown!r} cannot be asked ({error}); it must look like http://host:port or "
            "https://host/path"
        ) from error


class _SocketTransport(httpx.HTTPTransport):
    """Speaks through a unix socket, whose URLs httpx has no scheme for."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(scheme="http", host="localhost")
        request.headers["host"] = "localhost"
        return super().handle_request(request)


def _client(url: str, headers: Mapping[str, str], proxy: str | None) -> httpx.Client:
    socket = socket_path(url)
    way = _SocketTransport(uds=socket, trust_env=False) if socket else None
    return httpx.Client(
        headers=headers, timeout=_TIMEOUT_S, trust_env=False, proxy=proxy, transport=way
    )


def _plan_text(kind: _Kind, url: str, model: str | None, headers: Sequence[str]) -> str:
    named = "".join(f"    {name}: ${{{_variable(name)}}}\n" for name in headers)
    return _PLAN.format(
        url=url,
        api=kind.api,
        model=f"  model: {json.dumps(model, ensure_ascii=False)}\n" if model else "",
        headers=f"  headers:\n{named}" if named else "",
        params="  params: { max_tokens: 64 }\n" if "ttft" in kind.budgets[0] else "",
        inputs="" if kind.api == "json" else "inputs: prompts.jsonl\n",
        budgets="\n".join(f"  - {text.format(step=kind.step)}" for text in kind.budgets),
        step=kind.step,
    )


def _variable(header: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in header.upper())


def _headers(texts: Sequence[str]) -> dict[str, str]:
    parted = [text.partition(":") for text in texts]
    for text, (name, colon, _) in zip(texts, parted, strict=True):
        if not colon or not name.strip() or not text.isascii() or not text.isprintable():
            raise UserError(f'--header: found {name!r}; allowed is "Name: value", in ASCII')
    return {name.strip(): value.strip() for name, _, value in parted}


def _first_model(client: httpx.Client, models: httpx.URL) -> str | None:
    """Return the first model that the endpoint lists, if it lists any."""
    try:
        return str(client.get(models, extensions={"trace": SocksTrace()}).json()["data"][0]["id"])
    except _UNREACHABLE:
        raise
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return None


def _first_that_answers(
    client: httpx.Client, url: str, model: str | None, secrets: Sequence[str]
) -> tuple[_Kind, apis.Reply]:
    """Return the first kind of API whose question gets a good reply, and that."""
    said = []
    for kind in _KINDS:
        api = apis.api(kind.api)
        body = api.body(kind.question, model, {"max_tokens": 8} if api.streams else {})
        reply, failure = _ask(lambda a=api, b=body: _read(client, url, a, b))  # type: ignore[misc]
        if reply is not None and failure is None:
            return kind, reply
        asked = _shown(apis.url_for(url, api), secrets)
        said.append(f"{asked}: {mask(failure or '', secrets)}")
    shown = _shown(url, secrets)
    raise TargetError(f"{shown} answers none of the known APIs; " + "; ".join(said))


def _ask(read: Callable[[], apis.Reply]) -> tuple[apis.Reply | None, str | None]:
    """Return the reply, and what was wrong."""
    try:
        reply = read()
    except httpx.HTTPError as error:
        return None, f"{type(error).__name__} {error}".strip()
    return reply, None if reply.failure is None else str(reply.failure)


def _read(client: httpx.Client, url: str, api: apis.Api, body: dict[str, Any]) -> apis.Reply:
    place = apis.url_for(url, api)
    reader = apis.ReplyReader(api, streamed=api.wants_stream(body))
    sent_ns = time.monotonic_ns()
    with client.stream("POST", place, json=body, extensions={"trace": SocksTrace()}) as response:
        pieces = [(piece, time.monotonic_ns()) for piece in response.iter_raw()]
    return reader.finish(
        response.status_code,
        response.headers,
        pieces,
        since_ns=sent_ns,
        end_ns=time.monotonic_ns(),
    )
