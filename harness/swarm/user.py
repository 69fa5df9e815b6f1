"""The scenario API: `ModelUser` is a Locust user whose tasks are journeys through named steps.

A journey begins at its planned arrival; so does the first step at its root. Every later step begins
when the scenario enters it. A step that raises, or whose request fails, is counted as failed by the
kind of failure and leaves no latency among the successes.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import gevent
import httpx
import numpy as np
from locust import TaskSet, User
from locust.exception import (
    InterruptTaskSet,
    RescheduleTask,
    RescheduleTaskImmediately,
    StopUser,
)

from harness import apis
from harness.budget import RUN, SEGMENT
from harness.errors import RequestFailed, UserError
from harness.http1 import ProtocolViolation, decoded
from harness.inputs import Input, Inputs
from harness.transport import STAMPS, WHOLE, Fetched, RequestHead, Stamps, Transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.plan import Target
    from harness.recorder import Recorder
    from harness.swarm.dispatch import Arrival

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line per request

_OWN = "harness.own"  # marks requests whose step records itself
_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
_EXCERPT_BYTES = 4096
_NO_SEGMENT = re.compile(r"[^A-Za-z0-9_-]+")  # what budget.SEGMENT does not allow
_CONTROL_FLOW = (StopUser, InterruptTaskSet, RescheduleTask, RescheduleTaskImmediately)


class ArrivalSource(Protocol):
    """Where users get their work from."""

    def take(self, user_class: str) -> Arrival:
        """Block until an arrival is due for a user of this class."""

    def done(self, user_class: str, arrival: Arrival, *, failed: bool, think_s: float = 0) -> None:
        """Take note of a finished arrival."""

    def cut_off(self, user_class: str, arrival: Arrival) -> None:
        """Take note of an arrival that the end of the run cut off."""


@dataclass(slots=True, kw_only=True)
class Run:
    """What the users of one process share; `environment.harness` holds it."""

    target: Target
    url: str
    recorder: Recorder
    transport: Transport
    inputs: Inputs | None
    seed: tuple[int, int]
    """The plan's seed and the worker's number: each arrival draws from a generator of its own."""
    rng: np.random.Generator
    """For what is drawn outside of tasks."""
    dispatcher: ArrivalSource | None = None
    t0_ns: int = 0
    first_failure: str | None = None
    retries: int = 0
    heads: dict[str, RequestHead] = field(default_factory=dict)
    logged: set[tuple[str, str]] = field(default_factory=set)
    """Kinds of errors in the scenario, by task, whose traceback is in the log."""
    on_step: Callable[[Step, Journey], None] | None = None
    """Told of every finished step; plain Locust's statistics listen here."""


@dataclass(slots=True, eq=False)
class Step:
    """One execution of a named step. `fail` marks it as failed without raising."""

    name: str
    start_ns: int
    end_ns: int | None = None
    limit_ns: int = 0
    """How long it lasted at least if its failure is a timeout."""
    failure: str | None = None
    values: dict[str, int] = field(default_factory=dict)
    gaps: Sequence[int] = ()
    token_events: int = 0
    merged: int = 0
    detail: dict[str, Any] = field(default_factory=dict)

    def fail(self, kind: str, detail: str = "") -> None:
        """Count this execution as failed, by its kind (`invalid reply`, …)."""
        if self.failure is None:
            self.failure = kind
            if detail:
                self.detail["error"] = apis.excerpt(detail)


@dataclass(slots=True, eq=False)
class Journey:
    """One execution of a task, from its planned start on."""

    run: Run
    task: str
    stage: str
    planned_ns: int
    ready_ns: int
    rng: Random
    steps: list[Step] = field(default_factory=list)
    running: list[Step] = field(default_factory=list)
    calls: int = 0
    rooted: bool = False
    noted: BaseException | None = None
    """The last exception that failed a step."""

    def begin(self, name: str, parent: Step | None) -> Step:
        """Return a step that starts now; the first at the root starts at the planned arrival."""
        path = f"{parent.name}/{name}" if parent else name
        first = parent is None and not self.rooted
        self.rooted |= first
        step = Step(path, self.planned_ns if first else time.monotonic_ns())
        self.running.append(step)
        return step

    def fail(self, step: Step, error: BaseException) -> None:
        """Count a step as failed by an exception."""
        self.noted = error
        detail = error.detail if isinstance(error, RequestFailed) else str(error)
        step.fail(failure_kind(error), detail)

    def finish(self, step: Step) -> None:
        """Record a finished step; one that the end of the run has cut off already stays so."""
        if step not in self.running:
            return
        self.running.remove(step)
        self.steps.append(step)
        if step.end_ns is None:
            step.end_ns = time.monotonic_ns()
        elapsed_ns = step.end_ns - step.start_ns
        run = self.run
        if step.failure is None:
            step.values.setdefault("e2el", elapsed_ns)
            step.values["e2el_all"] = step.values["e2el"]
        else:
            least_ns = step.limit_ns if step.failure == "timeout" else 0
            step.values = {"e2el_all": max(elapsed_ns, least_ns)}
            if run.first_failure is None:
                run.first_failure = f"{step.failure} {step.detail.get('error', '')}".strip()
        if step.token_events:
            load = run.recorder.load(self.stage)
            load.token_events += step.token_events
            load.merged += step.merged
        run.recorder.request(
            self.stage,
            step.name,
            step.values,
            series={"itl": step.gaps} if step.gaps and step.failure is None else None,
            failure=step.failure,
        )
        if run.on_step:
            run.on_step(step, self)

    def call(self, step: str) -> int:
        """Return when the request that is about to be made was due, in ns."""
        self.calls += 1
        if self.calls > 1:
            return time.monotonic_ns()
        if self.ready_ns > self.planned_ns:
            waited_ns = self.ready_ns - self.planned_ns
            self.run.recorder.add(self.stage, step.partition("/")[0], "slot_wait", waited_ns)
        return max(self.planned_ns, self.ready_ns)

    def sent(self, step: str, stamps: Stamps, due_ns: int) -> None:
        """Record how late a request left, apart from waiting for a user and from connecting."""
        root = step.partition("/")[0]
        add = self.run.recorder.add
        if stamps.connect_ns:
            add(self.stage, root, "connect", stamps.connect_ns)
        add(self.stage, root, "send_lag", max(0, stamps.sent_ns - stamps.connect_ns - due_ns))
        self.run.retries += stamps.retries

    def end_with(self, error: BaseException) -> None:
        """Record the exception that ended the task: as a failed step of its name if no step has it.

        What runs on in other greenlets when the end of the run cuts the task off is cut off too.
        """
        if isinstance(error, gevent.GreenletExit):
            for step in [*self.running]:
                self.fail(step, error)
                self.finish(step)
        kinds = {step.failure for step in self.steps}
        cause: BaseException | None = error
        while cause is not None:
            if cause is self.noted or failure_kind(cause) in kinds:
                return
            cause = cause.__cause__ or cause.__context__
        this = self.begin(self.task, None)
        self.fail(this, error)
        self.finish(this)

    def close(self) -> bool:
        """Offer the journey to the recorder; returns whether every step succeeded."""
        end_ns = time.monotonic_ns()
        self.noted = None
        roots = [step.name for step in self.steps if "/" not in step.name]
        ok = all(step.failure is None for step in self.steps)
        self.run.recorder.journey(
            {
                "stage": self.stage,
                "root": roots[0] if len(roots) == 1 else self.task,
                "t_s": (self.planned_ns - self.run.t0_ns) / 1e9,
                "duration_ns": end_ns - self.planned_ns,
                "ok": ok,
                "steps": [
                    {
                        "step": step.name,
                        "start_ns": step.start_ns - self.planned_ns,
                        "end_ns": (step.end_ns or end_ns) - self.planned_ns,
                        "failure": step.failure,
                        "detail": step.detail,
                    }
                    for step in self.steps
                ],
            }
        )
        return ok


class _Place(NamedTuple):
    """Where in a scenario the code is that runs now."""

    journey: Journey | None = None
    step: Step | None = None


_PLACE: ContextVar[_Place] = ContextVar("place")


def _place() -> _Place:
    """Return the place of this greenlet; gevent hands no context on, so look at who spawned it."""
    greenlet = gevent.getcurrent()
    context: Context | None = copy_context()
    while context is None or _PLACE not in context:
        greenlet = getattr(greenlet, "spawning_greenlet", lambda: None)()
        if greenlet is None:
            return _Place()
        context = greenlet.gr_context
    place = context[_PLACE]
    _PLACE.set(place)
    return place


@contextmanager
def step(name: str) -> Iterator[Step]:
    """Name what happens inside as a step; steps nest: `answer/generate`.

    An exception inside counts the step as failed and goes on. Outside a task nothing is recorded.
    Raises UserError for a name that no budget could have.
    """
    if not re.fullmatch(SEGMENT, name) or name == RUN:
        raise UserError(
            f"step {name!r}: a name must be of letters, digits, '_' and '-', and not {RUN!r}; "
            "steps inside each other make the '/'"
        )
    journey, outer = _place()
    if journey is None:
        yield Step(name, time.monotonic_ns())
        return
    this = journey.begin(name, outer)
    token = _PLACE.set(_Place(journey, this))
    try:
        yield this
    except _CONTROL_FLOW:
        raise
    except BaseException as error:
        journey.fail(this, error)
        raise
    finally:
        _PLACE.reset(token)
        journey.finish(this)


class ModelUser(User):
    """A Locust user of a model endpoint.

    `chat`, `complete`, `embed` and `predict` make one call each and record it as a step;
    `self.client` is an `httpx.Client` whose requests are recorded too. A failed call is counted and
    raises `RequestFailed`, which ends the task unless it is caught.
    """

    abstract = True

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._own_tasks = list(type(self).tasks)
        self._think = self.wait_time
        if self._own_tasks:
            self.tasks = [ModelUser._journey]  # Locust runs this; it runs the scenario's tasks
        self.wait_time = lambda: 0  # type: ignore[method-assign]

    def start(self, group: Any) -> Any:
        """Start the user's greenlet; it belongs to no journey, whoever made it."""
        greenlet = super().start(group)
        greenlet.gr_context = context = Context()
        context.run(_PLACE.set, _Place())
        return greenlet

    @property
    def run_state(self) -> Run:
        """What this user shares with the others of its process."""
        run: Run = self.environment.harness
        return run

    @cached_property
    def client(self) -> httpx.Client:
        """An `httpx.Client` on the harness's transport; cookies are this user's own."""
        return _new_client(self.run_state)

    def next_input(self) -> Input:
        """Return the next input of the plan's `inputs`, drawn by weight from the run's seed."""
        run = self.run_state
        if run.inputs is None:
            raise UserError("the scenario asks for inputs, the plan has none: add inputs: FILE")
        journey = _place().journey
        return run.inputs.draw(journey.rng if journey else run.rng)

    def chat(
        self,
        messages: Input | Mapping[str, Any] | Sequence[Mapping[str, Any]] | str,
        *,
        step: str = "chat",
        **params: Any,
    ) -> apis.Reply:
        """Stream one chat completion and record it as `step`.

        `messages` may be an input, the list of messages, or a prompt. `params` go into the body of
        the request. Raises RequestFailed when the reply is not a whole, valid stream.
        """
        name = "prompt" if isinstance(messages, str) else "messages"
        return self._model_step("openai-chat", _as_data(messages, name), step, params)

    def complete(
        self, prompt: Input | Mapping[str, Any] | str, *, step: str = "completion", **params: Any
    ) -> apis.Reply:
        """Stream one text completion and record it as `step`; otherwise like `chat`."""
        return self._model_step("openai-completions", _as_data(prompt, "prompt"), step, params)

    def embed(
        self,
        texts: Input | Mapping[str, Any] | Sequence[str] | str,
        *,
        step: str = "embedding",
        **params: Any,
    ) -> apis.Reply:
        """Embed one text, or a batch, and record it as `step`; `.value` holds the reply's JSON."""
        return self._model_step("openai-embeddings", _as_data(texts, "input"), step, params)

    def predict(
        self, payload: Input | Mapping[str, Any], *, step: str = "predict", **params: Any
    ) -> apis.Reply:
        """Post plain JSON and record it as `step`; `.value` holds the reply's JSON."""
        return self._model_step("json", _as_data(payload, "instances"), step, params)

    # Below: how tasks become journeys and calls become samples

    def _journey(self) -> None:
        """Wait for an arrival and run one task for it; Locust calls this again and again."""
        run = self.run_state
        assert run.dispatcher is not None
        name = type(self).__name__
        arrival = run.dispatcher.take(name)
        cut = False
        ok = False
        try:
            ok = self.run_task(arrival)
        except gevent.GreenletExit:
            cut = True
            raise
        finally:
            if cut:
                run.dispatcher.cut_off(name, arrival)
            else:
                think_s = self._think_time() if arrival.closed else 0
                run.dispatcher.done(name, arrival, failed=not ok, think_s=think_s)

    def _think_time(self) -> float:
        try:
            return float(self._think())
        except Exception as error:  # noqa: BLE001 - it is the scenario's code
            self._log_once("wait_time", error)
            return 0

    def run_task(self, arrival: Arrival, task: Any = None) -> bool:
        """Run a task, one drawn by weight if none is given, as the journey of an arrival.

        Returns whether every step succeeded. What a task raises is counted as a failure and goes no
        further, but for GreenletExit and KeyboardInterrupt.
        """
        run = self.run_state
        rng = Random(f"{run.seed} {arrival.number}")  # a fifth of what numpy's takes to make
        if task is None:
            task = rng.choice(self._own_tasks)
        name = getattr(task, "__name__", str(task))
        journey = Journey(run, name, arrival.stage, arrival.planned_ns, arrival.ready_ns, rng)
        token = _PLACE.set(_Place(journey))
        try:
            if isinstance(task, type) and issubclass(task, TaskSet):
                task(self).run()  # type: ignore[no-untyped-call]
            else:
                task(self)
        except _CONTROL_FLOW:
            pass
        except (gevent.GreenletExit, KeyboardInterrupt) as error:
            journey.end_with(error)
            journey.close()
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and gevent.Timeout are failures too
            self._log_once(name, error)
            journey.end_with(error)
        finally:
            _PLACE.reset(token)
        return journey.close()

    def _log_once(self, task: str, error: BaseException) -> None:
        """Log an error of the scenario's own, the first of its kind with its traceback."""
        kind = (task, type(error).__name__)
        if isinstance(error, RequestFailed | httpx.HTTPError) or kind in self.run_state.logged:
            return
        self.run_state.logged.add(kind)
        log.error("%s raised %s; others like it are only counted", *kind, exc_info=error)

    def _model_step(
        self, dialect: str, data: Mapping[str, Any], name: str, params: Mapping[str, Any]
    ) -> apis.Reply:
        run = self.run_state
        api = apis.api(dialect)
        journey = _place().journey
        with step(name) as this:
            due_ns = journey.call(this.name) if journey else 0
            target = run.target
            this.limit_ns = target.timeout_ns
            body = api.body(data, target.model, {**target.params, **params})
            if isinstance(data, _InputData):
                this.detail |= {"input": data.id, "category": data.category}
            limit_s = target.timeout_ns / 1e9
            late = httpx.ReadTimeout(f"no whole reply within {limit_s:g} s")
            with gevent.Timeout(limit_s, late):
                fetched = self._fetch(api, json.dumps(body).encode())
            if journey is not None:
                journey.sent(this.name, fetched.stamps, due_ns)
            this.detail["status"] = fetched.status
            reply = _read_reply(fetched, api, stream=api.wants_stream(body))
            self._note(this, reply, fetched.stamps)
            if reply.failure is not None:
                raise reply.failure
        return reply

    def _fetch(self, api: apis.Api, body: bytes) -> Fetched:
        """Post a model call: through `self.client` where the scenario has given it a say in it."""
        client = self.__dict__.get("client")
        if client is None or client.is_plain:
            return self.run_state.transport.fetch(self._head(api), body)
        request = _build(client, self.run_state, api, body)
        response = client.send(request, stream=True)
        try:
            return _collect(response)
        finally:
            response.close()

    def _head(self, api: apis.Api) -> RequestHead:
        """Return what every request to this API begins with, as httpx words it."""
        run = self.run_state
        head = run.heads.get(api.name)
        if head is None:
            request = _build(_new_client(run), run, api, b"")
            head = run.heads[api.name] = RequestHead.of(request)
        return head

    def _note(self, this: Step, reply: apis.Reply, stamps: Stamps) -> None:
        """Put a reply's times and tokens into its step."""
        this.detail |= {
            "streamed": bool(reply.token_events),
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
            "tokens_counted": reply.tokens_counted,
            "finish": reply.finish_reason,
        }
        if reply.server_timings:
            this.detail["server_timings"] = dict(reply.server_timings)
        if reply.end_ns is None:
            return
        this.end_ns = reply.end_ns
        if reply.failure is not None:
            return
        times = reply.timings(start_ns=this.start_ns, sent_ns=stamps.sent_ns)
        if reply.server_timings:
            this.detail["service_ttft_ns"] = times.service_ttft
        this.gaps = times.itl
        this.token_events, this.merged = len(reply.token_events), reply.merged
        found = {
            "ttft": times.ttft,
            "ttfo": times.ttfo,
            "tpot": times.tpot,
            "e2el": times.e2el,
            "service": times.service,
            "service_ttft": times.service_ttft,
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
        }
        this.values = {name: value for name, value in found.items() if value is not None}


class _Client(httpx.Client):
    """Records every request that no step records by itself.

    Inside a step the request's time is the step's `request` metric, and a status of 400 or more
    fails the step. Outside any step it is a step of its own, named like `GET_v1_models`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._first_headers = self.headers.copy()

    @property
    def is_plain(self) -> bool:
        """True while the scenario has given it no hooks, auth, cookies, parameters or headers."""
        return (
            not (self.auth or self.params or self.cookies or any(self.event_hooks.values()))
            and self.headers == self._first_headers
        )

    def send(
        self, request: httpx.Request, *, stream: bool = False, **options: Any
    ) -> httpx.Response:
        journey, outer = _place()
        if _OWN in request.extensions or journey is None:
            return super().send(request, stream=stream, **options)
        name = _NO_SEGMENT.sub("_", f"{request.method}{request.url.path}").strip("_")
        this = outer or journey.begin(name, None)
        watch = _Watch(journey, this, own_step=outer is None, due_ns=journey.call(this.name))
        limit_s = None if stream else request.extensions.get("timeout", {}).get("read")
        try:
            with gevent.Timeout(limit_s, httpx.ReadTimeout(f"no whole reply within {limit_s} s")):
                response = super().send(request, stream=stream, **options)
        except BaseException as error:
            watch.failed(error)
            raise
        watch.answered(response)
        if stream:
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = _WatchedBody(response.stream, watch)
        else:
            watch.done()
        return response


@dataclass(slots=True)
class _Watch:
    """One request of the scenario's own, from its call to the end of its reply."""

    journey: Journey
    step: Step
    own_step: bool
    due_ns: int
    called_ns: int = field(default_factory=time.monotonic_ns)
    over: bool = False

    def answered(self, response: httpx.Response) -> None:
        first = response.history[0] if response.history else response
        stamps = first.extensions.get(STAMPS)
        if stamps is not None:
            self.journey.sent(self.step.name, stamps, self.due_ns)
        self.step.detail["status"] = response.status_code
        if response.status_code >= 400:
            self.step.fail(f"status {response.status_code}")

    def failed(self, error: BaseException) -> None:
        self.journey.fail(self.step, error)
        self.done()

    def done(self) -> None:
        if self.over:
            return
        self.over = True
        if self.own_step:
            self.journey.finish(self.step)
        elif self.step.failure is None:
            took_ns = time.monotonic_ns() - self.called_ns
            self.journey.run.recorder.add(self.journey.stage, self.step.name, "request", took_ns)


class _WatchedBody(httpx.SyncByteStream):
    """A streamed body that ends its request's record when it is closed."""

    def __init__(self, inner: httpx.SyncByteStream, watch: _Watch) -> None:
        self._inner = inner
        self._watch = watch

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._inner
        except GeneratorExit:  # the scenario has read enough
            raise
        except BaseException as error:
            self._watch.failed(error)
            raise

    def close(self) -> None:
        self._inner.close()
        self._watch.done()


class _InputData(dict[str, Any]):
    """An input's fields that still know which input they are."""

    def __init__(self, given: Input) -> None:
        super().__init__(given.data)
        self.id = given.id
        self.category = given.category


def _as_data(given: Any, name: str) -> Mapping[str, Any]:
    if isinstance(given, Input):
        return _InputData(given)
    return given if isinstance(given, Mapping) else {name: given}


def _new_client(run: Run) -> _Client:
    return _Client(
        transport=run.transport,
        base_url=run.url,
        headers=run.target.headers,
        timeout=run.target.timeout_ns / 1e9,
        trust_env=False,
    )


def _build(client: httpx.Client, run: Run, api: apis.Api, body: bytes) -> httpx.Request:
    path = run.target.path if api.name == run.target.api else None
    url = apis.url_for(run.url, api, path)
    marks = {_OWN: True, WHOLE: True}
    return client.build_request("POST", url, content=body, headers=_HEADERS, extensions=marks)


def _collect(response: httpx.Response) -> Fetched:
    """Take a response of httpx apart, whose body came whole."""
    stamps: Stamps = response.extensions[STAMPS]
    pieces: list[tuple[bytes, int]] = []
    error: Exception | None = None
    try:  # `extend` keeps what came before an error
        pieces.extend((piece, stamps.read_ns) for piece in response.iter_raw())
    except httpx.HTTPError as found:
        error = found
    return Fetched(response.status_code, response.headers, pieces, stamps, error)


def _read_reply(fetched: Fetched, api: apis.Api, *, stream: bool) -> apis.Reply:
    """Decode a reply; nothing was parsed while it came in."""
    end_ns = fetched.stamps.read_ns
    encoding = fetched.headers.get("content-encoding", "identity")
    pieces = fetched.pieces
    cause = _cause(fetched.error)
    try:
        if encoding != "identity":
            pieces = decoded(pieces, encoding, whole=cause is None)
    except ProtocolViolation as error:
        return apis.Reply(failure=RequestFailed("invalid reply", str(error)), end_ns=end_ns)
    if not stream or fetched.status != 200:
        if fetched.error is not None:
            raise fetched.error
        body = b"".join(data for data, _ in pieces)
        return apis.read_json(api, fetched.status, fetched.headers, body, end_ns=end_ns)
    wrong = apis.stream_failure(fetched.headers)
    if wrong is not None:
        body = b"".join(data for data, _ in pieces)[:_EXCERPT_BYTES]
        return apis.Reply(failure=apis.stream_failure(fetched.headers, body), end_ns=end_ns)
    reader = apis.StreamReader(api)
    try:
        for data, t_ns in pieces:
            reader.feed(data, t_ns)
    except RequestFailed as error:
        cause = error
    return reader.finish(end_ns, cause=cause)


def _cause(error: Exception | None) -> RequestFailed | None:
    """Return the kind of failure that broke a stream off."""
    if error is None:
        return None
    truncated = isinstance(error, httpx.RemoteProtocolError)
    return RequestFailed("truncated stream" if truncated else "reset", str(error))


def failure_kind(error: BaseException) -> str:  # noqa: PLR0911 - one for each kind
    """Return the kind that `error_rate` counts an exception by."""
    match error:
        case RequestFailed():
            return error.kind
        case gevent.GreenletExit():
            return "cut off"
        case httpx.ConnectTimeout() | httpx.ConnectError():
            return "connect"
        case httpx.TimeoutException() | gevent.Timeout():
            return "timeout"
        case httpx.HTTPStatusError():
            return f"status {error.response.status_code}"
        case httpx.NetworkError() | httpx.RemoteProtocolError():
            return "reset"
        case _:
            return f"exception {type(error).__name__}"
