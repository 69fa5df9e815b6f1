"""The scenario API: `ModelUser` is a Locust user whose tasks are journeys through named steps."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextvars import Context
from functools import cached_property
from typing import TYPE_CHECKING, Any

import gevent
import httpx
from locust import TaskSet, User
from locust.user.task import LOCUST_STATE_STOPPING

from harness import apis
from harness.errors import RequestFailed, UserError
from harness.http1 import TooLarge
from harness.inputs import Input
from harness.limits import kind_of, limit_met
from harness.swarm.client import build_request, new_client
from harness.swarm.journey import CONTROL_FLOW, PLACE, Journey, Place, Run, Step, place, step
from harness.transport import Fetched, RequestHead, Stamps, Within

if TYPE_CHECKING:
    from harness.swarm.dispatch import Arrival

__all__ = ["Journey", "ModelUser", "Run", "Step", "step"]

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line per request

_PIECES_AT_ONCE = 200


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
            self.tasks = [ModelUser._journeys]  # Locust runs this; it runs the scenario's tasks
        self.wait_time = lambda: 0  # type: ignore[method-assign]

    def start(self, group: Any) -> Any:
        """Start the user's greenlet; it belongs to no journey, whoever made it."""
        greenlet = super().start(group)
        greenlet.gr_context = context = Context()
        context.run(PLACE.set, Place())
        return greenlet

    @cached_property
    def run_state(self) -> Run:
        """What this user shares with the others of its process."""
        run: Run = self.environment.harness
        return run

    @cached_property
    def client(self) -> httpx.Client:
        """An `httpx.Client` on the harness's transport; cookies are this user's own."""
        return new_client(self.run_state)

    def next_input(self) -> Input:
        """Return the next input of the plan's `inputs`, drawn by weight from the run's seed."""
        run = self.run_state
        if run.inputs is None:
            raise UserError("the scenario asks for inputs, the plan has none: add inputs: FILE")
        journey = place().journey
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

    def _journeys(self) -> None:
        """Run one task for each arrival until Locust stops this user."""
        while self._state != LOCUST_STATE_STOPPING:
            self._journey()

    def _journey(self) -> None:
        """Wait for an arrival and run one task for it."""
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
        stage, planned_ns, ready_ns = arrival.stage, arrival.planned_ns, arrival.ready_ns
        journey = Journey(self.run_state, "", stage, planned_ns, ready_ns, arrival.number)
        if task is None:
            tasks = self._own_tasks
            task = tasks[0] if len(tasks) == 1 else journey.rng.choice(tasks)
        name = journey.task = getattr(task, "__name__", None) or str(task)
        token = PLACE.set(Place(journey))
        try:
            if isinstance(task, type) and issubclass(task, TaskSet):
                task(self).run()  # type: ignore[no-untyped-call]
            else:
                task(self)
        except CONTROL_FLOW:
            pass
        except (gevent.GreenletExit, KeyboardInterrupt) as error:
            journey.end_with(error)
            journey.close()
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and gevent.Timeout are failures too
            self._log_once(name, error)
            journey.end_with(error)
        finally:
            PLACE.reset(token)
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
        target = self.run_state.target
        api = apis.api(dialect)
        with step(name) as this:
            journey = place().journey
            due_ns = journey.call(this.name) if journey else 0
            this.limit_ns = target.timeout_ns
            if isinstance(data, _InputData):
                self.run_state.fed.add(dialect)
                this.detail |= {"input": data.id, "category": data.category}
            this.url = self.run_state.asked = self._head(api).url
            body = api.body(data, target.model, {**target.params, **params})
            reader = apis.ReplyReader(
                api,
                streamed=api.wants_stream(body),
                choices=api.choices(body),
                rules=self.run_state.rules,
                needs_reason=dialect in self.run_state.reasoned,
            )
            with Within(target.timeout_ns / 1e9):
                fetched = self._fetch(api, json.dumps(body).encode(), reader)
            if journey is not None:
                journey.sent(this.name, fetched.stamps, due_ns)
            this.detail["status"] = fetched.status
            reply = _read_reply(fetched, reader)
            self._note(this, api, reply, fetched.stamps)
            if reply.failure is not None:
                raise reply.failure
        return reply

    def _fetch(self, api: apis.Api, body: bytes, reader: apis.ReplyReader) -> Fetched:
        """Post a model call: through `self.client` where the scenario has given it a say in it."""
        client = self.__dict__.get("client")
        if client is None or client.is_plain:
            return self.run_state.transport.fetch(self._head(api), body, reader)
        request = build_request(client, self.run_state, api, body)
        return Fetched.of(client.send(request, stream=True))

    def _head(self, api: apis.Api) -> RequestHead:
        """Return what every request to this API begins with, as httpx words it."""
        run = self.run_state
        head = run.heads.get(api.name)
        if head is None:
            request = build_request(new_client(run), run, api, b"")
            head = run.heads[api.name] = RequestHead.of(request)
        return head

    def _note(self, this: Step, api: apis.Api, reply: apis.Reply, stamps: Stamps) -> None:
        """Put a reply's times and tokens into its step."""
        detail = this.detail
        detail["streamed"] = bool(reply.token_events)
        detail["input_tokens"] = reply.input_tokens
        detail["output_tokens"] = reply.output_tokens
        detail["tokens_counted"] = reply.tokens_counted
        detail["finish"] = reply.finish_reason
        if reply.finish_reason is not None:
            self.run_state.reasoned.add(api.name)
        if reply.is_lumped:
            detail["one_read"] = len(reply.token_events)
        if reply.server_timings:
            this.detail["server_timings"] = dict(reply.server_timings)
        if self.run_state.prices is not None:
            self._charge(this, api, reply)
        if reply.end_ns is None:
            return
        this.end_ns = reply.end_ns
        if reply.failure is not None:
            return
        times = reply.timings(start_ns=this.start_ns, sent_ns=stamps.sent_ns)
        if reply.server_timings:
            this.detail["service_ttft_ns"] = times.service_ttft
        this.gaps, this.gap_ends, this.ends = times.itl, times.itl_ends, times.ends
        this.reply = reply
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

    def _charge(self, this: Step, api: apis.Api, reply: apis.Reply) -> None:
        """Add to a step what its call cost; a failed one costs what its reply reported."""
        prices = self.run_state.prices
        assert prices is not None
        input_tokens = reply.input_tokens
        output_tokens = None if reply.tokens_counted else reply.output_tokens
        if reply.failure is not None:
            if input_tokens is output_tokens is None:
                return
            input_tokens, output_tokens = input_tokens or 0, output_tokens or 0
        elif api.output is None and input_tokens is not None:
            output_tokens = output_tokens or 0  # embeddings have none to report
        cost = prices.of(this.name).cost(
            input_tokens=input_tokens,
            cached_tokens=reply.cached_tokens,
            output_tokens=output_tokens,
        )
        this.cost = None if cost is None or this.cost is None else this.cost + cost


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


def _read_reply(fetched: Fetched, reader: apis.ReplyReader) -> apis.Reply:
    """Read what was not read while it came; other greenlets have their turn in between."""
    status, headers, pieces = fetched.status, fetched.headers, fetched.pieces
    since_ns, loose = fetched.since_ns, fetched.loose
    streamed = reader.follows(status)
    while streamed and len(pieces) > _PIECES_AT_ONCE:
        reader.follow(headers, pieces[:_PIECES_AT_ONCE], since_ns, loose)
        pieces = pieces[_PIECES_AT_ONCE:]
        gevent.sleep(0)
    return reader.finish(
        status,
        headers,
        pieces,
        since_ns=since_ns,
        loose=loose,
        end_ns=fetched.stamps.read_ns,
        cause=_cause(fetched.error, "truncated stream" if streamed else "truncated body"),
    )


def _cause(error: Exception | None, truncated: str) -> RequestFailed | None:
    """Return the kind of failure that broke a reply off, `truncated` if nobody said that it did."""
    if error is None:
        return None
    if isinstance(error.__cause__, TooLarge):
        more = "max_reply in the plan's target allows more"
        return RequestFailed("reply too large", f"{error}; {more}")
    kind = truncated if isinstance(error, httpx.RemoteProtocolError) else "reset"
    limit = limit_met(error)
    return RequestFailed(kind if limit is None else kind_of(limit), str(error))
