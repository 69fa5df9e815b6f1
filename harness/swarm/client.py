"""`self.client`: an `httpx.Client` whose requests are recorded; model calls may go through it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gevent
import httpx

from harness import apis
from harness.swarm.journey import Journey, Run, Step, place
from harness.transport import STAMPS, WHOLE, Fetched, Stamps

OWN = "harness.own"  # marks requests whose step records itself
_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
_NO_SEGMENT = re.compile(r"[^A-Za-z0-9_-]+")  # what budget.SEGMENT does not allow


class Client(httpx.Client):
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
        """Send as httpx does, and record it."""
        journey, outer = place()
        if OWN in request.extensions or journey is None:
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


def new_client(run: Run) -> Client:
    """Return a client of the process's transport with the target's URL, headers and timeout."""
    return Client(
        transport=run.transport,
        base_url=run.url,
        headers=run.target.headers,
        timeout=run.target.timeout_ns / 1e9,
        trust_env=False,
    )


def build_request(client: httpx.Client, run: Run, api: apis.Api, body: bytes) -> httpx.Request:
    """Word a model call, marked as one that its step records."""
    path = run.target.path if api.name == run.target.api else None
    url = apis.url_for(run.url, api, path)
    marks = {OWN: True, WHOLE: True}
    return client.build_request("POST", url, content=body, headers=_HEADERS, extensions=marks)


def collect(response: httpx.Response) -> Fetched:
    """Take a response of httpx apart, whose body came whole."""
    stamps: Stamps = response.extensions[STAMPS]
    pieces: list[tuple[bytes, int]] = []
    error: Exception | None = None
    try:  # `extend` keeps what came before an error
        pieces.extend((piece, stamps.read_ns) for piece in response.iter_raw())
    except httpx.HTTPError as found:
        error = found
    return Fetched(response.status_code, response.headers, pieces, stamps, error)
