"""`self.client`: an `httpx.Client` whose requests are recorded; model calls may go through it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx

from harness import apis
from harness.swarm.journey import Journey, Run, Step, place
from harness.swarm.short import Response, Shape, Shapes, as_sent, body_of, is_plain, step_name
from harness.transport import ANSWER, STAMPS, WHOLE, Fetched, Stamps, Transport, Within

OWN = "harness.own"  # marks requests whose step records itself
_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
_httpx_log = logging.getLogger("httpx")


class Client(httpx.Client):
    """Records every request that no step records by itself.

    Inside a step the request's time is the step's `request` metric, and a status of 400 or more
    fails the step. Outside any step it is a step of its own, named like `GET_v1_models`.
    """

    def __init__(self, *, shapes: Shapes | None = None, **options: Any) -> None:
        """Take httpx's options; with `shapes` and a `Transport` plain requests are sent shortly."""
        super().__init__(**options)
        transport = options.get("transport")
        self._straight = transport if isinstance(transport, Transport) else None
        self._shapes = None if self._straight is None or options.get("mounts") else shapes
        self._encoding = options.get("default_encoding", "utf-8")
        self._first_headers = self._last_headers = self.headers.raw
        self._last_parts: tuple[object, object] = (None, None)
        self._settings_number = 0

    @property
    def is_plain(self) -> bool:
        """True while the scenario has given it no hooks, auth, cookies, parameters or headers."""
        return self._is_usual and self.headers.raw == self._first_headers

    @property
    def _is_usual(self) -> bool:
        hooks = self.event_hooks
        return not (
            self.auth or self.params or self.cookies or hooks["request"] or hooks["response"]
        )

    def request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        content: Any = None,
        data: Any = None,
        files: Any = None,
        json: Any = None,
        params: Any = None,
        headers: Any = None,
        cookies: Any = None,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
        timeout: Any = httpx.USE_CLIENT_DEFAULT,
        extensions: Any = None,
    ) -> httpx.Response:
        """Build and send a request as httpx does; the short way if nothing about it is unusual."""
        if (
            data is None
            and files is None
            and params is None
            and cookies is None
            and extensions is None
            and auth is httpx.USE_CLIENT_DEFAULT
            and follow_redirects is httpx.USE_CLIENT_DEFAULT
            and timeout is httpx.USE_CLIENT_DEFAULT
            and self._shapes is not None
        ):
            response = self._request_shortly(self._shapes, method, url, content, json, headers)
            if response is not None:
                return response
        return super().request(
            method,
            url,
            content=content,
            data=data,
            files=files,
            json=json,
            params=params,
            headers=headers,
            cookies=cookies,
            auth=auth,
            follow_redirects=follow_redirects,
            timeout=timeout,
            extensions=extensions,
        )

    def _request_shortly(
        self, shapes: Shapes, method: str, url: object, content: Any, json: Any, headers: Any
    ) -> httpx.Response | None:
        """Send a request the short way, if there is one for it; None if it is still to be sent."""
        journey, outer = place()
        if (
            journey is None
            or type(url) is not str
            or not (headers is None or type(headers) is dict)
            or not self._is_usual
            or self.is_closed
            or _httpx_log.isEnabledFor(logging.INFO)
        ):
            return None
        body = body_of(content, json)
        if body is None:
            return None
        given = tuple(headers.items()) if headers else ()
        key = (self._settings(shapes), method, url, given, json is None, bool(body))
        try:
            shape = shapes.find(key)
        except TypeError:  # a header that is no text
            return None
        assert self._straight is not None
        if shape is not None and self._straight.keeps(shape.head.origin):
            return self._exchange(self._straight, shape, body, journey, outer)
        if key in shapes:
            return None
        request = self.build_request(method, url, content=content, json=json, headers=headers)
        own_length = "content-length" in httpx.Headers(
            [*self.headers.raw, *httpx.Headers(headers).raw]
        )
        shapes.keep(key, None if own_length else Shape.of(request, body))
        return self.send(request)

    def _settings(self, shapes: Shapes) -> int:
        """Return the number of all that goes from this client into each of its requests."""
        raw, parts = self.headers.raw, (self.base_url, self.timeout)
        if raw != self._last_headers or parts != self._last_parts:
            self._last_headers, self._last_parts = raw, parts
            self._settings_number = shapes.state(
                tuple(raw), self.base_url, tuple(self.timeout.as_dict().items())
            )
        return self._settings_number

    def _exchange(
        self,
        transport: Transport,
        shape: Shape,
        body: bytes,
        journey: Journey,
        outer: Step | None,
    ) -> httpx.Response:
        """Send a request on a kept connection, and record it."""
        watch = _begin(journey, outer, shape.step, shape.head.url)
        try:
            with Within(shape.limit_s):
                fetched = transport.fetch_straight(shape.head, body, shape.timeouts)
                if fetched.error is not None:
                    raise fetched.error
                took_ns = time.monotonic_ns() - watch.called_ns
                response = self._response(shape, body, fetched, took_ns)
        except BaseException as error:
            if isinstance(error, httpx.RequestError):
                error.request = shape.request(body)
            watch.failed(error)
            raise
        watch.answered(response.status_code, fetched.stamps)
        watch.done()
        return response

    def _response(
        self, shape: Shape, body: bytes, fetched: Fetched, took_ns: int
    ) -> httpx.Response:
        assert fetched.head is not None
        if is_plain(fetched.head):
            return Response(shape, body, fetched, took_ns, self._encoding)
        request = shape.request(body, **{ANSWER: as_sent(fetched)})
        response = super().send(request)
        first = response.history[0] if response.history else response
        first.elapsed = timedelta(microseconds=took_ns / 1000)
        return response

    def send(
        self, request: httpx.Request, *, stream: bool = False, **options: Any
    ) -> httpx.Response:
        """Send as httpx does, and record it."""
        journey, outer = place()
        if OWN in request.extensions or journey is None:
            return super().send(request, stream=stream, **options)
        watch = _begin(journey, outer, step_name(request), request.url)
        limit_s = None if stream else request.extensions.get("timeout", {}).get("read")
        try:
            with Within(limit_s):
                response = super().send(request, stream=stream, **options)
        except BaseException as error:
            watch.failed(error)
            raise
        first = response.history[0] if response.history else response
        watch.answered(response.status_code, first.extensions.get(STAMPS))
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
    called_ns: int
    over: bool = False

    def answered(self, status: int, stamps: Stamps | None) -> None:
        if stamps is not None:
            self.journey.sent(self.step.name, stamps, self.due_ns)
        self.step.detail["status"] = status
        if status >= 400:
            self.step.fail(f"status {status}")

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


def _begin(journey: Journey, outer: Step | None, name: str, url: httpx.URL) -> _Watch:
    this = outer or journey.begin(name, None)
    this.url = url
    return _Watch(journey, this, outer is None, journey.call(this.name), time.monotonic_ns())


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
        shapes=run.shapes,
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
