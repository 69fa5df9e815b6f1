"""The embedded endpoint over real loopback: what it sends, what it says is true, how it ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from harness.endpoint import Settings, process, running
from harness.endpoint.script import draw, parse_faults
from harness.errors import UserError

QUICK = Settings(ttft_ms=1, gap_ms=0.2, embed_ms=1, predict_ms=1, tokens=6, slots=8)
CHAT = {"messages": [{"role": "user", "content": "why is the sky blue"}]}
POSTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "why is the sky blue"},
    "/v1/embeddings": {"input": "why is the sky blue"},
    "/v1/predict": {"instances": [1]},
}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """One client for the file: making one loads certificates."""
    with httpx.Client(timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(QUICK) as base:
        yield base


def events_of(reply: httpx.Response) -> list[Any]:
    """The events of a finished stream, by the plainest reading there is."""
    body = reply.content
    assert body.endswith(b"\n\n")
    lines = body[:-2].split(b"\n\n")
    assert all(line.startswith(b"data: ") and b"\n" not in line for line in lines)
    return [
        line[6:].decode() if line == b"data: [DONE]" else json.loads(line[6:]) for line in lines
    ]


def stream(http: httpx.Client, url: str, *, fault: str = "none", **fields: Any) -> list[Any]:
    body = {**CHAT, "stream": True, **fields}
    return events_of(http.post(f"{url}/v1/chat/completions", json=body, headers={"x-fault": fault}))


def truth_when(
    http: httpx.Client, url: str, name: str, so: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Ask for the truth about one reply until it is so; gives up after 20 s."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        reply = http.get(f"{url}/truth", params={"id": name})
        if reply.status_code == 200 and so(truth := reply.json()):
            return dict(truth)
        time.sleep(0.005)
    raise AssertionError(f"{name} never became so; last {reply.text}")


@contextlib.contextmanager
def asking(url: str, name: str, *, fault: str = "none") -> Iterator[socket.socket]:
    """A request that is sent and not read; leaving the block closes the connection."""
    where = urlsplit(url)
    body = json.dumps({**CHAT, "stream": True}).encode()
    with socket.create_connection((where.hostname, where.port)) as open_socket:
        open_socket.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-request-id: %b\r\nx-fault: %b\r\n"
            b"content-length: %d\r\n\r\n%b" % (name.encode(), fault.encode(), len(body), body)
        )
        yield open_socket


# --- shapes ------------------------------------------------------------------------------------


def test_a_chat_reply_has_the_shape_of_openai(http: httpx.Client, url: str) -> None:
    reply = http.post(f"{url}/v1/chat/completions", json={**CHAT, "model": "tiny"}).json()
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "tiny"
    (choice,) = reply["choices"]
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"].split(" ")) == 1 + 6
    assert choice["finish_reason"] == "stop"
    assert reply["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


def test_a_chat_stream_opens_with_a_role_and_closes_with_a_reason_and_done(
    http: httpx.Client, url: str
) -> None:
    first, *tokens, last, done = stream(http, url)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [len(one["choices"][0]["delta"]["content"].split()) >= 1 for one in tokens] == [True] * 6
    assert {one["choices"][0]["finish_reason"] for one in (first, *tokens)} == {None}
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert done == "[DONE]"
    assert {one["object"] for one in (first, *tokens, last)} == {"chat.completion.chunk"}
    assert len({one["id"] for one in (first, *tokens, last)}) == 1


def test_a_streamed_reply_says_the_same_as_a_whole_one(http: httpx.Client, url: str) -> None:
    whole = http.post(f"{url}/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]
    parts = [one["choices"][0]["delta"].get("content", "") for one in stream(http, url)[:-1]]
    assert "".join(parts) == whole["content"]


def test_long_replies_hold_raw_text_that_is_not_ascii(http: httpx.Client, url: str) -> None:
    body = {**CHAT, "max_tokens": 80, "ignore_eos": True, "stream": True}
    reply = http.post(f"{url}/v1/chat/completions", json=body)
    assert "café".encode() in reply.content
    assert "\u2028".encode() not in reply.content
    assert b"\\u2028" in reply.content
    assert len(events_of(reply)) == 1 + 80 + 1 + 1


def test_the_usage_event_comes_when_asked_for_with_no_choices(http: httpx.Client, url: str) -> None:
    *_, usage, done = stream(http, url, stream_options={"include_usage": True})
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    assert done == "[DONE]"
    assert not any(one.get("usage") for one in stream(http, url)[:-1])


@pytest.mark.parametrize(
    ("asked", "tokens", "reason"),
    [
        ({"max_tokens": 2}, 2, "length"),
        ({"max_completion_tokens": 2}, 2, "length"),
        ({"max_tokens": 6}, 6, "stop"),
        ({"max_tokens": 99}, 6, "stop"),
        ({"max_tokens": 9, "ignore_eos": True}, 9, "length"),
    ],
)
def test_max_tokens_caps_the_reply(
    http: httpx.Client, url: str, asked: dict[str, Any], tokens: int, reason: str
) -> None:
    events = stream(http, url, **asked)
    assert len(events) == 1 + tokens + 1 + 1
    assert events[-2]["choices"][0]["finish_reason"] == reason
    reply = http.post(f"{url}/v1/chat/completions", json={**CHAT, **asked}).json()
    assert reply["usage"]["completion_tokens"] == tokens
    assert reply["choices"][0]["finish_reason"] == reason


def test_completions_answer_whole_and_streamed(http: httpx.Client, url: str) -> None:
    asked = {"prompt": "once upon a time", "max_tokens": 3}
    whole = http.post(f"{url}/v1/completions", json=asked).json()
    assert whole["object"] == "text_completion"
    *tokens, last, done = events_of(
        http.post(f"{url}/v1/completions", json={**asked, "stream": True})
    )
    assert len(tokens) == 3
    assert "".join(one["choices"][0]["text"] for one in tokens) == whole["choices"][0]["text"]
    assert last["choices"][0]["finish_reason"] == "length"
    assert done == "[DONE]"


def test_embeddings_take_one_text_or_several(http: httpx.Client, url: str) -> None:
    one = http.post(f"{url}/v1/embeddings", json={"input": "a cat"}).json()
    two = http.post(f"{url}/v1/embeddings", json={"input": ["a dog", "a cat"]}).json()
    assert [each["index"] for each in two["data"]] == [0, 1]
    assert two["data"][1]["embedding"] == one["data"][0]["embedding"]
    assert two["data"][0]["embedding"] != one["data"][0]["embedding"]
    assert sum(x * x for x in one["data"][0]["embedding"]) == pytest.approx(1)
    assert two["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_predictions_depend_on_the_instance_alone(http: httpx.Client, url: str) -> None:
    asked = {"instances": [{"a": 1, "b": 2}, [3, 4], {"b": 2, "a": 1}]}
    first, second, third = http.post(f"{url}/v1/predict", json=asked).json()["predictions"]
    assert first == third != second
    assert 0 <= first <= 1


def test_models_and_health_answer(http: httpx.Client, url: str) -> None:
    assert http.get(f"{url}/v1/models").json()["data"][0]["id"] == "reference"
    assert http.get(f"{url}/health").json() == {"status": "ok"}


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/chat/completions", b"{", "not JSON"),
        ("/v1/chat/completions", b"[" * 100_000, "not JSON"),
        ("/v1/chat/completions", b"\xff", "not JSON"),
        ("/v1/chat/completions", b"[]", "object"),
        ("/v1/chat/completions", b"{}", "messages"),
        ("/v1/chat/completions", b'{"messages": []}', "messages"),
        ("/v1/chat/completions", b'{"messages": ["hi"]}', "messages"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": 3}]}', "content"),
        ("/v1/completions", b'{"messages": []}', "prompt"),
        ("/v1/completions", b'{"prompt": 3}', "prompt"),
        ("/v1/completions", b'{"prompt": "x", "stream": "yes"}', "stream"),
        ("/v1/completions", b'{"prompt": "x", "max_tokens": 0}', "max_tokens"),
        ("/v1/completions", b'{"prompt": "x", "max_tokens": true}', "max_tokens"),
        ("/v1/embeddings", b'{"input": []}', "input"),
        ("/v1/embeddings", b'{"input": [1.5]}', "input"),
        ("/v1/predict", b"{}", "instances"),
    ],
)
def test_a_bad_body_is_refused_by_name(
    http: httpx.Client, url: str, path: str, body: bytes, says: str
) -> None:
    reply = http.post(f"{url}{path}", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert says in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("where", "status", "allow"),
    [
        ("GET /v1/nothing", 404, None),
        ("POST /", 404, None),
        ("GET /v1/chat/completions", 405, "POST"),
        ("POST /health", 405, "GET"),
        ("GET /truth?id=nobody", 404, None),
        ("GET /truth?last=x", 400, None),
    ],
)
def test_a_wrong_address_or_method_is_refused(
    http: httpx.Client, url: str, where: str, status: int, allow: str | None
) -> None:
    method, path = where.split()
    reply = http.request(method, f"{url}{path}")
    assert reply.status_code == status
    assert reply.headers.get("allow") == allow
    assert reply.json()["error"]["message"]


def test_an_api_key_guards_the_models_and_not_the_truth(http: httpx.Client) -> None:
    with running(Settings(api_key="secret", ttft_ms=0, gap_ms=0)) as url:
        for key in (None, "Bearer wrong", "secret"):
            headers = {"authorization": key} if key else {}
            refused = http.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert http.get(f"{url}/v1/models", headers=headers).status_code == 401
        right = {"authorization": "Bearer secret"}
        assert http.post(f"{url}/v1/chat/completions", json=CHAT, headers=right).is_success
        assert http.get(f"{url}/v1/models", headers=right).is_success
        assert http.get(f"{url}/truth").is_success


# --- truth -------------------------------------------------------------------------------------


def test_the_truth_has_one_stamp_for_each_event_in_order(http: httpx.Client, url: str) -> None:
    before = time.monotonic_ns()
    reply = http.post(
        f"{url}/v1/chat/completions",
        json={**CHAT, "stream": True, "stream_options": {"include_usage": True}},
        headers={"x-request-id": "stamped"},
    )
    after = time.monotonic_ns()
    assert reply.headers["x-request-id"] == "stamped"
    truth = http.get(f"{url}/truth", params={"id": "stamped"}).json()
    assert len(truth["token_ns"]) == len(events_of(reply)) - 4 == 6
    names = "received_ns started_ns head_ns role_ns token_ns finish_ns usage_ns done_ns finished_ns"
    flat = [
        stamp
        for name in names.split()
        for stamp in (truth[name] if name == "token_ns" else [truth[name]])
    ]
    assert flat == sorted(flat)
    assert before <= truth["received_ns"]
    assert truth["done_ns"] <= after
    assert truth["queued_ns"] == truth["started_ns"] - truth["received_ns"]
    assert (truth["status"], truth["stream"], truth["ended"]) == (200, True, "complete")
    assert (truth["body_ns"], truth["faults"]) == (None, [])


def test_the_truth_of_a_whole_reply_has_no_tokens(http: httpx.Client, url: str) -> None:
    for path, body in POSTS.items():
        name = http.post(f"{url}{path}", json=body).headers["x-request-id"]
        truth = http.get(f"{url}/truth", params={"id": name}).json()
        assert truth["route"] == path
        assert truth["token_ns"] == []
        assert truth["role_ns"] is truth["finish_ns"] is truth["done_ns"] is None
        assert truth["started_ns"] <= truth["head_ns"] <= truth["body_ns"] <= truth["finished_ns"]


def test_only_the_latest_replies_are_remembered(http: httpx.Client) -> None:
    with running(Settings(history=3, ttft_ms=0, gap_ms=0)) as url:
        for name in "abcdb":
            http.post(f"{url}/v1/chat/completions", json=CHAT, headers={"x-request-id": name})
        told = http.get(f"{url}/truth").json()
        assert told["bound"] == 3
        assert [each["id"] for each in told["replies"]] == ["c", "d", "b"]
        last = http.get(f"{url}/truth?last=1").json()["replies"]
        assert [each["id"] for each in last] == ["b"]


def test_tokens_never_come_before_they_are_due(http: httpx.Client, url: str) -> None:
    body = json.dumps({**CHAT, "stream": True, "user": "due"}).encode()
    script = draw(QUICK, "chat", body, 0, None)
    due, wanted = script.first_ns, []
    for _ in range(script.tokens):
        wanted.append(due)
        due += script.gap_ns()
    http.post(f"{url}/v1/chat/completions", content=body, headers={"x-request-id": "due"})
    truth = http.get(f"{url}/truth", params={"id": "due"}).json()
    early = [
        want - (stamp - truth["started_ns"])
        for want, stamp in zip(wanted, truth["token_ns"], strict=True)
    ]
    assert max(early) < 1_000  # asyncio's own clock is a float


def test_the_bytes_are_on_the_socket_when_send_returns() -> None:
    """What makes a stamp before `send` the time of the write, for the protocol we pin."""
    asyncio.run(_watch_each_send())


async def _watch_each_send() -> None:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import ServerState

    from harness.endpoint.app import Endpoint

    endpoint = Endpoint(Settings(ttft_ms=0, gap_ms=0, tokens=3))
    seen: list[bytes] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    there.setblocking(False)  # so that reading too early raises

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def spy(message: Any) -> None:
            turns: list[None] = []
            loop.call_soon(turns.append, None)
            await send(message)
            assert not turns, "send let another task run"
            seen.append(there.recv(65536))

        await endpoint(scope, receive, spy)
        done.set()

    config = uvicorn.Config(watched, http="h11", loop="asyncio", ws="none", log_config=None)
    config.load()
    state = ServerState()
    transport, _ = await loop.connect_accepted_socket(
        lambda: H11Protocol(config, state, {}, loop), here
    )
    body = json.dumps({**CHAT, "stream": True}).encode()
    there.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    async with asyncio.timeout(10):
        await done.wait()
    there.close()
    transport.abort()
    await asyncio.sleep(0)
    assert len(seen) == 1 + 1 + 3 + 1 + 1 + 1  # head, role, tokens, finish, [DONE], end
    assert seen[0].startswith(b"HTTP/1.1 200")
    assert seen[-1] == b"0\r\n\r\n"


def test_no_write_waits_for_an_acknowledgement() -> None:
    with contextlib.ExitStack() as held:
        listener = held.enter_context(process._listen("127.0.0.1", 0))
        held.enter_context(socket.create_connection(listener.getsockname()))
        accepted = held.enter_context(listener.accept()[0])
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


# --- slots -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_slots() -> Iterator[str]:
    with running(Settings(slots=2, ttft_ms=0, gap_ms=0, tokens=2)) as base:
        yield base


def is_started(truth: dict[str, Any]) -> bool:
    return truth["started_ns"] is not None


def is_finished(truth: dict[str, Any]) -> bool:
    return truth["finished_ns"] is not None


def test_a_third_request_waits_for_one_of_two_slots(http: httpx.Client, two_slots: str) -> None:
    with contextlib.ExitStack() as held:
        first, *_ = [held.enter_context(asking(two_slots, n, fault="delay=1m")) for n in "ab"]
        for name in "ab":
            truth_when(http, two_slots, name, is_started)
        for name in "cd":
            held.enter_context(asking(two_slots, name))
            waiting = truth_when(http, two_slots, name, lambda _: True)
            assert waiting["started_ns"] is waiting["queued_ns"] is None
        first.close()
        third = truth_when(http, two_slots, "c", is_finished)
        fourth = truth_when(http, two_slots, "d", is_finished)
        assert truth_when(http, two_slots, "b", is_started)["finished_ns"] is None
    gone = truth_when(http, two_slots, "a", is_finished)
    assert (gone["ended"], third["ended"], fourth["ended"]) == ("client left", *["complete"] * 2)
    assert gone["finished_ns"] <= third["started_ns"]
    assert third["finished_ns"] <= fourth["started_ns"]
    assert third["queued_ns"] > 0


def test_a_client_that_leaves_the_queue_frees_its_place(http: httpx.Client) -> None:
    with running(Settings(slots=1, ttft_ms=0, gap_ms=0)) as url:
        with asking(url, "served", fault="delay=1m"):
            truth_when(http, url, "served", is_started)
            with asking(url, "queued"):
                truth_when(http, url, "queued", lambda _: True)
            gone = truth_when(http, url, "queued", is_finished)
            assert (gone["ended"], gone["started_ns"]) == ("client left", None)
        assert len(stream(http, url)) > 3


def test_a_forced_status_does_not_wait_for_a_slot(http: httpx.Client) -> None:
    with running(Settings(slots=1)) as url, asking(url, "served", fault="delay=1m"):
        truth_when(http, url, "served", is_started)
        headers = {"x-fault": "status=429", "x-request-id": "refused"}
        reply = http.post(f"{url}/v1/completions", json={"prompt": "x"}, headers=headers)
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
        truth = http.get(f"{url}/truth?id=refused").json()
        assert (truth["ended"], truth["started_ns"], truth["status"]) == ("error", None, 429)


# --- faults ------------------------------------------------------------------------------------


def received(url: str, name: str, fault: str) -> bytes:
    """Everything the socket gave until it was closed."""
    with asking(url, name, fault=fault) as open_socket:
        open_socket.settimeout(20)
        parts = []
        while part := open_socket.recv(65536):
            parts.append(part)
        return b"".join(parts)


def test_a_truncated_stream_is_closed_without_reason_done_or_end(
    http: httpx.Client, url: str
) -> None:
    body = received(url, "cut", "truncate")
    assert body.count(b"data: ") == 1 + 3
    assert b'"finish_reason":"' not in body
    assert b"[DONE]" not in body
    assert not body.endswith(b"0\r\n\r\n")
    truth = http.get(f"{url}/truth?id=cut").json()
    assert (truth["ended"], truth["faults"]) == ("truncated", ["truncate"])
    assert (len(truth["token_ns"]), truth["finish_ns"], truth["done_ns"]) == (3, None, None)


def test_an_interrupted_stream_is_done_without_content(http: httpx.Client, url: str) -> None:
    body = received(url, "hollow", "interrupted")
    assert body.count(b"data: ") == 2
    assert b"data: [DONE]\n\n" in body
    assert not body.endswith(b"0\r\n\r\n")
    assert http.get(f"{url}/truth?id=hollow").json()["ended"] == "truncated"


def test_a_reset_stream_is_torn_down_by_tcp(http: httpx.Client, url: str) -> None:
    with pytest.raises(ConnectionResetError):
        received(url, "torn", "reset")
    assert http.get(f"{url}/truth?id=torn").json()["ended"] == "reset"


def test_a_malformed_event_takes_the_place_of_one_token(http: httpx.Client, url: str) -> None:
    headers = {"x-fault": "malformed", "x-request-id": "broken"}
    body = {**CHAT, "stream": True}
    reply = http.post(f"{url}/v1/chat/completions", json=body, headers=headers)
    events = reply.content.split(b"\n\n")[:-2]
    broken = []
    for event in events:
        try:
            json.loads(event.removeprefix(b"data: "))
        except ValueError:
            broken.append(event)
    assert len(events) == 1 + 6 + 1
    assert len(broken) == 1
    assert len(http.get(f"{url}/truth?id=broken").json()["token_ns"]) == 5


def test_a_stream_may_finish_without_done(http: httpx.Client, url: str) -> None:
    events = stream(http, url, fault="no-done")
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_delay_comes_before_the_first_token_and_a_stall_half_way(
    http: httpx.Client, url: str
) -> None:
    headers = {"x-fault": "delay=60ms, stall=90ms", "x-request-id": "slow"}
    body = {**CHAT, "stream": True}
    http.post(f"{url}/v1/chat/completions", json=body, headers=headers)
    truth = http.get(f"{url}/truth?id=slow").json()
    tokens = truth["token_ns"]
    assert truth["faults"] == ["delay", "stall"]
    assert tokens[0] - truth["started_ns"] >= 60_000_000
    assert tokens[3] - truth["started_ns"] >= 150_000_000


@pytest.mark.parametrize("path", POSTS)
def test_whole_replies_have_the_same_faults(http: httpx.Client, url: str, path: str) -> None:
    def post(fault: str) -> httpx.Response:
        return http.post(f"{url}{path}", json=POSTS[path], headers={"x-fault": fault})

    with pytest.raises(httpx.RemoteProtocolError):
        post("truncate")
    with pytest.raises(httpx.ReadError):
        post("reset")
    with pytest.raises(ValueError, match="line 1 column"):
        post("malformed").json()
    refused = post("status=500")
    assert refused.status_code == 500
    assert refused.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    "fault", ["explode", "status=200", "status=99999", "delay=fast", "stall", "truncate=1", ""]
)
def test_an_unknown_fault_is_refused_and_the_known_ones_listed(
    http: httpx.Client, url: str, fault: str
) -> None:
    reply = http.post(f"{url}/v1/chat/completions", json=CHAT, headers={"x-fault": fault})
    assert reply.status_code == 400
    assert "truncate" in reply.json()["error"]["message"]


# --- reproducibility ---------------------------------------------------------------------------


def outcomes(http: httpx.Client, settings: Settings) -> list[tuple[int, int | None]]:
    """Status and length of twenty replies, ten to each of two prompts."""
    found = []
    with running(settings) as url:
        for prompt in ["a", "b"] * 10:
            reply = http.post(f"{url}/v1/completions", json={"prompt": prompt})
            usage = reply.json().get("usage", {})
            found.append((reply.status_code, usage.get("completion_tokens")))
    return found


def test_the_same_seed_gives_the_same_replies_and_another_gives_others(http: httpx.Client) -> None:
    drawn = {"ttft_ms": 0, "gap_ms": 0, "tokens_sigma": 0.5, "error_rate": 0.3}
    once = outcomes(http, Settings.of(drawn))
    assert outcomes(http, Settings.of(drawn)) == once
    assert outcomes(http, Settings.of({**drawn, "seed": 2})) != once
    assert {status for status, _ in once} == {200, 503}
    assert len({tokens for _, tokens in once}) > 5


def test_a_draw_depends_on_the_body_and_its_count_and_not_on_fault_rates() -> None:
    def drawn(settings: Settings, body: bytes, earlier: int) -> tuple[int, int, int]:
        script = draw(settings, "chat", body, earlier, None)
        return script.first_ns, script.tokens, script.gap_ns()

    plain = Settings(tokens_sigma=0.4)
    assert drawn(plain, b"x", 0) == drawn(plain, b"x", 0)
    assert len({drawn(plain, b"x", 0), drawn(plain, b"x", 1), drawn(plain, b"y", 0)}) == 3
    assert drawn(Settings(tokens_sigma=0.4, error_rate=1), b"x", 0) == drawn(plain, b"x", 0)


def test_drawn_times_have_the_declared_median_and_spread() -> None:
    settings = Settings(ttft_ms=100, ttft_sigma=0.5)
    first = sorted(draw(settings, "chat", b"x", n, None).first_ns / 1e6 for n in range(4000))
    assert first[2000] == pytest.approx(100, rel=0.05)
    assert first[3364] == pytest.approx(100 * 2.718281828**0.5, rel=0.06)  # one sigma


def test_drawn_faults_come_at_their_rates() -> None:
    rates = {"error_rate": 0.1, "truncate_rate": 0.2, "malformed_rate": 0.3, "reset_rate": 0.4}
    settings = Settings.of({**rates, "stall_rate": 0.5, "stall_ms": 7})
    faults = [draw(settings, "chat", b"x", n, None).faults for n in range(4000)]
    shares = {
        name: sum(name in one.names() for one in faults) / 4000 for name in faults[0].__slots__
    }
    assert shares["status"] == pytest.approx(0.1, abs=0.03)
    assert shares["truncate"] == pytest.approx(0.2, abs=0.03)
    assert shares["malformed"] == pytest.approx(0.3, abs=0.03)
    assert shares["reset"] == pytest.approx(0.4, abs=0.03)
    assert {one.stall_ns for one in faults} == {0, 7_000_000}


def test_a_forced_clean_reply_overrides_the_drawn_faults() -> None:
    settings = Settings(error_rate=1, reset_rate=1)
    assert draw(settings, "chat", b"x", 0, parse_faults("none")).faults.names() == []


# --- settings ----------------------------------------------------------------------------------


def test_settings_take_numbers_and_their_text() -> None:
    settings = Settings.of({"seed": "7", "ttft_ms": "80.5", "gap_ms": 9, "api_key": "123"})
    assert settings == Settings(seed=7, ttft_ms=80.5, gap_ms=9.0, api_key="123")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ttft": 100}, "no setting 'ttft'; did you mean ttft_ms"),
        ({"zzzzzz": 1}, "allowed are seed, slots"),
        ({"slots": 0}, "slots must be a whole number of at least 1, not 0"),
        ({"slots": 1.5}, "slots must be a whole number"),
        ({"slots": "many"}, "slots must be a whole number"),
        ({"slots": True}, "slots must be a whole number"),
        ({"gap_ms": -1}, "gap_ms must be a number of at least 0, not -1"),
        ({"gap_ms": "nan"}, "gap_ms must be a number"),
        ({"gap_ms": "inf"}, "gap_ms must be a number"),
        ({"error_rate": 1.1}, "error_rate must be a number from 0 to 1, not 1.1"),
        ({"error_status": 200}, "error_status must be a whole number from 400 to 599"),
        ({"model": None}, "model must be a text"),
        ({"api_key": "a\nb"}, "api_key must be a text"),
    ],
)
def test_a_bad_setting_is_refused_with_what_is_allowed(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says.replace("(", "\\(")):
        Settings.of(values)


# --- the process -------------------------------------------------------------------------------


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "harness.endpoint", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        try:
            yield child
        finally:
            child.kill()


def url_of(child: subprocess.Popen[bytes]) -> str:
    assert child.stdout
    return str(json.loads(child.stdout.readline())["url"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_quietly(http: httpx.Client, number: int) -> None:
    with started("--port", "0", "--setting", "model=mine", "--setting", "ttft_ms=0") as child:
        url = url_of(child)
        assert http.get(f"{url}/v1/models").json()["data"][0]["id"] == "mine"
        assert http.post(f"{url}/v1/chat/completions", json=CHAT).is_success
        with asking(url, "running", fault="delay=1m"):
            truth_when(http, url, "running", is_started)
            child.send_signal(number)
            out, err = child.communicate(timeout=20)
        assert (child.returncode, out, err) == (0, b"", b"")


def test_it_ends_when_its_stdin_closes() -> None:
    with started("--exit-with-parent") as child:
        url_of(child)
        assert child.stdin
        child.stdin.close()
        assert child.wait(timeout=20) == 0


def listens(url: str) -> bool:
    where = urlsplit(url)
    try:
        socket.create_connection((where.hostname, where.port)).close()
    except OSError:
        return False
    return True


def test_it_does_not_outlive_a_killed_parent(http: httpx.Client) -> None:
    parent = (
        "from harness.endpoint import Settings, running\n"
        "import json, time\n"
        "with running(Settings()) as url:\n"
        "    print(json.dumps({'url': url}), flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        url = url_of(process)
        assert http.get(f"{url}/health").is_success
        process.kill()
    deadline = time.monotonic() + 20
    while listens(url):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--setting", "slot=3"], b"did you mean slots"),
        (["--setting", "slots"], b"NAME=VALUE"),
        (["--settings", "{"], b"--settings"),
        (["--host", "192.0.2.1"], b"cannot listen on 192.0.2.1"),
        (["--port", "99999"], b"cannot listen on"),
    ],
)
def test_a_bad_command_line_ends_with_code_2(arguments: list[str], says: bytes) -> None:
    with started(*arguments) as child:
        out, err = child.communicate(timeout=20)
    assert (child.returncode, out) == (2, b"")
    assert says in err
    assert b"Traceback" not in err


def test_importing_the_package_loads_no_server_and_no_client() -> None:
    code = "import sys, harness.endpoint; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    loaded = {name.split(".")[0] for name in found.stdout.decode().split()}
    assert not loaded & {"uvicorn", "asyncio", "numpy", "httpx", "gevent", "locust", "h11"}


def test_the_server_shares_no_code_with_the_client() -> None:
    code = (
        "import sys, uvicorn\nfrom harness.endpoint import app, process\n"
        "print(*[name for name in sys.modules if name.startswith('harness')])"
    )
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    names = found.stdout.decode().split()
    assert {name for name in names if not name.startswith("harness.endpoint")} == {
        "harness",
        "harness.errors",
    }


def _posted(http: httpx.Client, url: str, path: str, **body: object) -> httpx.Response:
    return http.post(f"{url}/v1/{path}", json=body)


def test_n_choices_come_interleaved_and_each_ends(http: httpx.Client, url: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "n": 2, "max_completion_tokens": 3}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    reply = _posted(http, url, "chat/completions", **body, **options)
    events = [json.loads(line[6:]) for line in reply.text.split("\n") if line[6:7] == "{"]
    indexes = [choice["index"] for event in events for choice in event["choices"]]
    assert indexes == [0, 1] * 5
    assert events[-1]["usage"]["completion_tokens"] == 6
    whole = _posted(http, url, "chat/completions", **body).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]


@pytest.mark.parametrize("stop", [" answers", ["never", " answers"]])
def test_a_reply_ends_before_what_stops_it(http: httpx.Client, url: str, stop: object) -> None:
    for prompt in ("a", [1, 2]):
        body = {"prompt": prompt, "stop": stop, "max_tokens": 60}
        (choice,) = _posted(http, url, "completions", **body).json()["choices"]
        assert choice["finish_reason"] == "stop"
        assert "answers" not in choice["text"]


@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2], [3]]])
def test_each_of_several_prompts_has_its_choice(
    http: httpx.Client, url: str, prompt: object
) -> None:
    choices = _posted(http, url, "completions", prompt=prompt).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]


@pytest.mark.parametrize(("given", "rows"), [([1, 2], 1), ([[1], [2]], 2), (["a", "b"], 2)])
def test_an_embedding_has_the_dimensions_that_were_asked_for(
    http: httpx.Client, url: str, given: object, rows: int
) -> None:
    data = _posted(http, url, "embeddings", input=given, dimensions=7).json()["data"]
    assert [len(row["embedding"]) for row in data] == [7] * rows
    coded = _posted(http, url, "embeddings", input=given, dimensions=7, encoding_format="base64")
    assert len(base64.b64decode(coded.json()["data"][0]["embedding"])) == 28


def test_a_model_that_is_not_served_is_not_found(http: httpx.Client, url: str) -> None:
    assert http.get(f"{url}/v1/models/reference").json()["id"] == "reference"
    asked = _posted(http, url, "completions", prompt="a", model="other")
    for reply in (http.get(f"{url}/v1/models/other"), asked):
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "fields", [{"n": 0}, {"n": "2"}, {"stop": 3}, {"stop": [""]}, {"max_tokens": 1.5}, {"model": 1}]
)
def test_a_field_of_another_type_is_named_as_the_param(
    http: httpx.Client, url: str, fields: dict[str, object]
) -> None:
    reply = _posted(http, url, "completions", prompt="a", **fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, next(iter(fields)))
