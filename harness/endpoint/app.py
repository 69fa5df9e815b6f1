"""The ASGI application: serves requests as scripted, and writes down when it did what.

Each stamp is `time.monotonic_ns()`, one clock for every process of a Linux machine, taken right
before the bytes go to `await send(...)`. uvicorn's h11 protocol writes within that call, without
yielding, and asyncio's selector transport calls `socket.send` at once while its buffer is empty:
the stamp precedes the system call by some tens of microseconds. It precedes it by more only when
the client reads so slowly that the socket's buffer is full. (uvloop defers writes to the end of
its turn, so the server is pinned to asyncio.)
"""

from __future__ import annotations

import asyncio
import hmac
import socket
import struct
import time
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from harness.endpoint.script import Faults, Script, draw, parse_faults
from harness.endpoint.settings import Settings
from harness.endpoint.shapes import (
    DONE,
    Ask,
    Frames,
    RefusedError,
    as_json,
    model,
    models,
    read_ask,
    whole_reply,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_MODEL_ROUTES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/predict": "predict",
}
_PLAIN_ROUTES = ("/v1/models", "/health", "/truth")
_ONE_MODEL = "/v1/models/"
_BODIES_REMEMBERED = 100_000
_JSON = b"application/json"


@dataclass(slots=True, kw_only=True)
class Truth:
    """When one reply really did what. Times are monotonic nanoseconds; None has not happened."""

    id: str
    route: str
    received_ns: int
    """The last byte of the request was in hand."""
    started_ns: int | None = None
    """A slot was free; the wait for it is `queued_ns` in the JSON."""
    head_ns: int | None = None
    role_ns: int | None = None
    token_ns: array[int] = field(default_factory=lambda: array("q"))
    """One for each token event."""
    finish_ns: int | None = None
    usage_ns: int | None = None
    done_ns: int | None = None
    body_ns: int | None = None
    """The body of a reply that is not streamed."""
    finished_ns: int | None = None
    """The last byte was handed over, or the reply was given up."""
    status: int | None = None
    stream: bool = False
    faults: list[str] = field(default_factory=list)
    ended: str | None = None
    """complete, error, truncated, reset, or client left; None while it runs."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with `queued_ns` added."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["token_ns"] = self.token_ns.tolist()
        waited = None if self.started_ns is None else self.started_ns - self.received_ns
        return {**plain, "queued_ns": waited}


class _Reply:
    """Writes one reply, stamping each part of it.

    When the application returns before the last part, uvicorn closes the connection: that is
    how a reply is truncated.
    """

    __slots__ = ("_send", "_transport", "truth")

    def __init__(self, truth: Truth, scope: Scope, send: Send) -> None:
        self.truth = truth
        self._send = send
        self._transport: asyncio.WriteTransport | None = scope.get("state", {}).get("transport")

    async def head(self, status: int, content_type: bytes, length: int | None = None) -> None:
        headers = [
            (b"content-type", content_type),
            (b"x-request-id", self.truth.id.encode("latin-1")),
        ]
        if length is None:
            headers.append((b"cache-control", b"no-cache"))
        else:
            headers.append((b"content-length", b"%d" % length))
        if status in (429, 503):
            headers.append((b"retry-after", b"1"))
        self.truth.status = status
        self.truth.head_ns = time.monotonic_ns()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def part(self, body: bytes, *, more: bool = True) -> int:
        """Write bytes; returns the stamp taken right before."""
        now = time.monotonic_ns()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        return now

    async def whole(self, status: int, body: bytes) -> None:
        await self.head(status, _JSON, len(body))
        self.truth.body_ns = await self.part(body, more=False)

    def reset(self) -> None:
        """Close with a TCP reset; what is not sent yet is lost."""
        self.truth.ended = "reset"
        if self._transport is not None:
            bare: socket.socket = self._transport.get_extra_info("socket")
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


class Endpoint:
    """The application; one instance holds the slots, the counts of bodies seen and the truth."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.slots)
        self._seen: OrderedDict[int, int] = OrderedDict()
        self._truth: OrderedDict[str, Truth] = OrderedDict()
        self._serial = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        kind = _MODEL_ROUTES.get(scope["path"])
        if kind is not None and scope["method"] == "POST":
            body = await _read(receive)
            if body is not None:
                await self._model(kind, body, scope, receive, send)
            return
        try:
            status, payload = 200, self._plain(scope)
        except RefusedError as refusal:
            status, payload = refusal.status, refusal.body
        headers = [(b"content-type", _JSON), (b"content-length", b"%d" % len(payload))]
        if status == 405:
            headers.append((b"allow", b"GET" if kind is None else b"POST"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    def _plain(self, scope: Scope) -> bytes:
        path = scope["path"]
        name = path.removeprefix(_ONE_MODEL) if path.startswith(_ONE_MODEL) else ""
        if not name and path not in _PLAIN_ROUTES and path not in _MODEL_ROUTES:
            raise RefusedError(f"there is no {path}", status=404, code="not_found")
        if path in _MODEL_ROUTES or scope["method"] != "GET":
            raise RefusedError(f"{scope['method']} is not for {path}", status=405)
        if path == "/health":
            return b'{"status":"ok"}'
        if path == "/truth":
            return self._tell(parse_qs(scope["query_string"].decode("latin-1")))
        self._authorise(dict(scope["headers"]))
        served = self._settings.models
        return model(name, served) if name else models(served)

    def _tell(self, query: dict[str, list[str]]) -> bytes:
        if "id" in query:
            one = self._truth.get(query["id"][0])
            if one is None:
                raise RefusedError(
                    "no reply of this id is remembered", status=404, code="not_found"
                )
            return as_json(one.as_dict())
        try:
            last = int(query["last"][0]) if "last" in query else len(self._truth)
        except ValueError:
            raise RefusedError("last must be a whole number") from None
        kept = list(self._truth.values())[-last:] if last > 0 else []
        told = [each.as_dict() for each in kept]
        return as_json({"bound": self._settings.history, "replies": told})

    def _authorise(self, headers: dict[bytes, bytes]) -> None:
        key = self._settings.api_key
        given = headers.get(b"authorization", b"")
        if key is not None and not hmac.compare_digest(given, f"Bearer {key}".encode()):
            raise RefusedError("wrong or missing API key", status=401, code="invalid_api_key")

    async def _model(
        self, kind: str, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = dict(scope["headers"])
        truth = self._remember(headers.get(b"x-request-id", b"").decode("latin-1"), scope["path"])
        reply = _Reply(truth, scope, send)
        leaving = asyncio.create_task(_cancel_when_left(receive, truth, asyncio.current_task()))
        try:
            await self._answer(kind, body, headers, reply)
        except RefusedError as refusal:
            truth.ended = "error"
            await reply.whole(refusal.status, refusal.body)
        except asyncio.CancelledError:
            pass  # The client left, or the server ends: nobody is there to answer.
        finally:
            leaving.cancel()
            truth.finished_ns = time.monotonic_ns()

    def _remember(self, given_id: str, route: str) -> Truth:
        self._serial += 1
        truth = Truth(
            id=given_id or f"req-{self._serial:08d}", route=route, received_ns=time.monotonic_ns()
        )
        self._truth[truth.id] = truth
        self._truth.move_to_end(truth.id)
        if len(self._truth) > self._settings.history:
            self._truth.popitem(last=False)
        return truth

    def _earlier(self, kind: str, body: bytes) -> int:
        """Count how often this body came before; forgotten after 100,000 other bodies."""
        key = hash((kind, body))
        earlier = self._seen.pop(key, 0)
        self._seen[key] = earlier + 1
        if len(self._seen) > _BODIES_REMEMBERED:
            self._seen.popitem(last=False)
        return earlier

    async def _answer(
        self, kind: str, body: bytes, headers: dict[bytes, bytes], reply: _Reply
    ) -> None:
        truth = reply.truth
        self._authorise(headers)
        raw = bool(self._settings.raw_separators)
        ask = read_ask(kind, body, self._settings.models, raw_separators=raw)
        forced = _forced(headers.get(b"x-fault"))
        script = draw(self._settings, kind, body, self._earlier(kind, body), forced)
        faults = script.faults
        truth.stream, truth.faults = ask.stream, faults.names()
        if faults.status is not None:
            await _until(truth.received_ns + faults.delay_ns)
            raise RefusedError("an injected fault", status=faults.status, code="fault")
        async with self._slots:
            truth.started_ns = started_ns = time.monotonic_ns()
            await (_stream if ask.stream else _whole)(ask, script, reply, started_ns)


async def _whole(ask: Ask, script: Script, reply: _Reply, started_ns: int) -> None:
    truth, faults = reply.truth, script.faults
    payload = whole_reply(ask, truth.id, script.tokens)
    due = started_ns + script.first_ns + faults.stall_ns
    if ask.kind in ("chat", "completions"):
        longest = max(len(ask.choice(i, script.tokens)[0]) for i in range(ask.choices))
        due += sum(script.gap_ns() for _ in range(longest - 1))
    await _until(due)
    if faults.reset:
        reply.reset()
    elif faults.truncate or faults.interrupted:
        truth.ended = "truncated"
        await reply.head(200, _JSON, len(payload))
        truth.body_ns = await reply.part(payload[: len(payload) // 2])
    else:
        truth.ended = "complete"
        await reply.whole(200, payload[: len(payload) // 2] if faults.malformed else payload)


async def _stream(ask: Ask, script: Script, reply: _Reply, started_ns: int) -> None:
    """Write a token an event, each due at a time counted from the start: lateness never adds up."""
    truth, faults = reply.truth, script.faults
    frames = Frames(ask, truth.id, script.tokens)
    due, middle = started_ns + script.first_ns, frames.tokens // 2
    await reply.head(200, b"text/event-stream; charset=utf-8")
    if ask.kind == "chat":
        stamps = [await reply.part(role) for role in frames.roles()]
        truth.role_ns = stamps[0]
    for index in range(0 if faults.interrupted else frames.tokens):
        if index == middle:
            due += faults.stall_ns
            if faults.reset or faults.truncate:
                break
        await _until(due)
        if index == middle and faults.malformed:
            await reply.part(frames.broken())
        else:
            truth.token_ns.extend([await reply.part(token) for token in frames.round(index)])
        due += script.gap_ns()
    if faults.reset:
        reply.reset()
    elif faults.truncate or faults.interrupted:
        truth.ended = "truncated"
        if faults.interrupted:
            truth.done_ns = await reply.part(DONE)
    else:
        await _finish(frames, faults, reply)


async def _finish(frames: Frames, faults: Faults, reply: _Reply) -> None:
    truth, usage = reply.truth, frames.usage()
    for finish in frames.finishes():
        truth.finish_ns = await reply.part(finish)
    if usage is not None:
        truth.usage_ns = await reply.part(usage)
    if not faults.no_done:
        truth.done_ns = await reply.part(DONE)
    truth.ended = "complete"
    await reply.part(b"", more=False)


def _forced(header: bytes | None) -> Faults | None:
    if header is None:
        return None
    try:
        return parse_faults(header.decode("latin-1"))
    except ValueError as error:
        raise RefusedError(str(error)) from None


async def _read(receive: Receive) -> bytes | None:
    """Read the whole body; None when the client left before its end."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += bytes(message.get("body", b""))
        if not message.get("more_body", False):
            return body


async def _cancel_when_left(receive: Receive, truth: Truth, work: asyncio.Task[Any] | None) -> None:
    """Cancel the work when the client closes, so that its place (or its slot) is free at once."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if work is not None and truth.ended is None:
        truth.ended = "client left"
        work.cancel()


async def _until(due_ns: int) -> None:
    """Sleep to a time of the monotonic clock; yields once even when it is past."""
    await asyncio.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
