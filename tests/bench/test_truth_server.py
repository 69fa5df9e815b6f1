"""The exact server over raw sockets: what it streams, what it wrote down, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import pytest
import truth

from harness.apis import StreamReader, api
from harness.wire import SSEDecoder

CHAT = b"/v1/chat/completions"


@pytest.fixture(scope="module")
def program(require: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(os.environ.get("CC", "cc"))
    return truth.build(tmp_path_factory.mktemp("truth"))


@pytest.fixture(scope="module")
def url(program: Path) -> Iterator[str]:
    with truth.running(program=program, ttft_us=1000, gap_us=200, tokens=6) as base:
        yield base


class Client:
    """A connection that shares no code with the harness; `times_ns` follow each read."""

    def __init__(self, url: str, wrap: ssl.SSLContext | None = None) -> None:
        at = urlsplit(url)
        self.socket = socket.create_connection((at.hostname, at.port), timeout=60)
        if wrap is not None:
            self.socket = wrap.wrap_socket(self.socket)
        self.held = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(
        self, path: bytes, body: bytes = b"{}", *, method: bytes = b"POST", **x: object
    ) -> None:
        lines = [
            b"%b %b HTTP/1.1" % (method, path),
            b"host: here",
            b"content-length: %d" % len(body),
        ]
        lines += [f"x-{name.replace('_', '-')}: {value}".encode() for name, value in x.items()]
        self.socket.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError
        self.held += data

    def until(self, mark: bytes) -> bytes:
        while mark not in self.held:
            self.more()
        found, _, self.held = self.held.partition(mark)
        return found

    def exactly(self, size: int) -> bytes:
        while len(self.held) < size:
            self.more()
        found, self.held = self.held[:size], self.held[size:]
        return found

    def head(self) -> tuple[int, dict[str, str]]:
        first, *rest = self.until(b"\r\n\r\n").decode().split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in rest)

    def chunks(self) -> Iterator[tuple[bytes, int]]:
        while size := int(self.until(b"\r\n"), 16):
            yield self.exactly(size), time.monotonic_ns()
            assert self.exactly(2) == b"\r\n"
        assert self.exactly(2) == b"\r\n"

    def stream(self, **x: object) -> tuple[dict[str, str], list[tuple[bytes, int]]]:
        self.ask(CHAT, **x)
        status, headers = self.head()
        assert status == 200
        return headers, list(self.chunks())

    def whole(self, path: bytes, **x: Any) -> tuple[int, Any]:
        self.ask(path, **x)
        status, headers = self.head()
        return status, json.loads(self.exactly(int(headers["content-length"])))


def truth_of(url: str, id: str) -> dict[str, Any]:
    """Ask the server for one reply, and check what holds of any."""
    with Client(url) as client:
        status, told = client.whole(b"/truth?id=" + id.encode(), method=b"GET")
    assert status == 200
    return told


def assert_ordered(reply: truth.Reply) -> None:
    assert len(reply.before_ns) == len(reply.after_ns) == len(reply.late) == reply.writes
    assert (reply.before_ns >= reply.due_ns).all()
    assert (reply.before_ns <= reply.after_ns).all()
    assert (reply.after_ns[:-1] <= reply.before_ns[1:]).all()


def test_a_stream_is_whole_and_in_order_for_the_harness_readers(url: str) -> None:
    with Client(url) as client:
        _, chunks = client.stream(tokens=20)
    decoder, reader = SSEDecoder(), StreamReader(api("openai-chat"))
    events = [event.data for data, t_ns in chunks for event in decoder.feed(data, t_ns)]
    for data, t_ns in chunks:
        reader.feed(data, t_ns)
    reply = reader.finish(chunks[-1][1])
    assert len(events) == 1 + 20 + 3
    assert events[-1] == b"[DONE]"
    assert reply.failure is None
    assert reply.text == "".join(f" w{index}" for index in range(20))
    assert (reply.output_tokens, reply.tokens_counted) == (20, False)
    assert reply.finish_reason == "stop"
    assert decoder.pending is None


def test_without_usage_the_tokens_are_left_to_count(url: str) -> None:
    with Client(url) as client:
        _, chunks = client.stream(usage=0)
    assert not [data for data, _ in chunks if b'"usage"' in data]


def test_a_token_event_has_150_to_200_bytes(url: str) -> None:
    with Client(url) as client:
        _, chunks = client.stream()
    sizes = [len(data) for data, _ in chunks if b'"content":" w' in data]
    assert all(150 <= size <= 200 for size in sizes)


def test_the_truth_has_a_stamp_for_each_write_at_or_after_its_due_time(
    program: Path, tmp_path: Path
) -> None:
    dump = tmp_path / "truth.bin"
    with truth.running(program=program, dump=dump) as base, Client(base) as client:
        _, chunks = client.stream(tokens=30, ttft_us=2000, gap_us=300, request_id="one")
        told = truth_of(base, "one")
    reply = truth.read_truth(dump)["one"]
    read_ns = np.array([t_ns for data, t_ns in chunks if b'"content":" w' in data])
    assert (reply.streamed, reply.ended, reply.writes) == (True, "complete", 32)
    assert (reply.first_ns, reply.gap_ns) == (2_000_000, 300_000)
    assert_ordered(reply)
    assert (read_ns >= reply.before_ns[reply.tokens]).all()
    assert reply.due_ns[1] - reply.received_ns == 2_000_000
    assert set(np.diff(reply.due_ns[1:])) == {300_000}
    assert told["before_ns"] == reply.before_ns.tolist()
    assert told["after_ns"] == reply.after_ns.tolist()
    assert told["late"] == np.flatnonzero(reply.late).tolist()
    assert (told["received_ns"], told["by_kernel"]) == (reply.received_ns, reply.by_kernel)


def test_in_step_every_stream_is_due_at_the_same_ticks(program: Path, tmp_path: Path) -> None:
    def one(index: int) -> None:
        with Client(base) as client:
            client.stream(ttft_us=1000 + 300 * index, request_id=f"s{index}")

    dump, tick_us = tmp_path / "truth.bin", 5000
    load = {"tick_us": tick_us, "gap_us": tick_us, "tokens": 8}
    with (
        truth.running(program=program, dump=dump, **load) as base,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(one, range(8)))
    kept = truth.read_truth(dump)
    assert len(kept) == 8
    for index in range(8):
        reply = kept[f"s{index}"]
        assert_ordered(reply)
        assert (reply.due_ns[1:] % (tick_us * 1000) == 0).all()
        assert 0 <= reply.first_ns - (1000 + 300 * index) * 1000 < tick_us * 1000


def events_of(url: str, **x: object) -> list[dict[str, Any]]:
    """Return the events of a stream, and check that none has a field twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    with Client(url) as client:
        _, chunks = client.stream(**x)
    texts = [data.removeprefix(b"data: ") for data, _ in chunks]
    assert texts.pop() == b"[DONE]\n\n"
    return [json.loads(text, object_pairs_hook=once) for text in texts]


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ("plain", set()),
        ("fingerprint", {"system_fingerprint"}),
        ("obfuscation", {"obfuscation"}),
        ("created", {"created"}),
        ("usage", {"usage"}),
        ("timings", {"timings"}),
        ("changing", {"system_fingerprint", "obfuscation", "created", "usage", "timings"}),
    ],
)
def test_a_shape_says_which_fields_change_from_event_to_event(
    url: str, shape: str, fields: set[str]
) -> None:
    events = events_of(url, shape=shape, tokens=40, gap_us=0)
    tokens = events[1:41]
    changing = {
        name
        for name in tokens[0]
        for one in tokens
        if name != "choices"
        if one[name] != tokens[0][name]
    }
    assert changing == fields
    if "obfuscation" in fields:
        assert len({len(one["obfuscation"]) for one in tokens}) > 8
    if "usage" in fields:
        counts = [one["usage"]["completion_tokens"] for one in events[:42]]
        assert counts == [*range(41), 40]
    assert events[-1]["usage"] == {"prompt_tokens": 1, "completion_tokens": 40, "total_tokens": 41}


def test_an_event_that_changes_is_a_token_like_any_other_for_the_harness(url: str) -> None:
    reader = StreamReader(api("openai-chat"))
    with Client(url) as client:
        _, chunks = client.stream(shape="changing", tokens=20)
    for data, t_ns in chunks:
        reader.feed(data, t_ns)
    reply = reader.finish(chunks[-1][1])
    assert reply.failure is None
    assert reply.text == "".join(f" w{index}" for index in range(20))
    assert (reply.output_tokens, len(reply.token_events)) == (20, 20)


def test_the_model_can_be_the_id_of_the_reply(program: Path) -> None:
    with truth.running(program=program, name_model=True, gap_us=0, tokens=2) as base:
        assert {one["model"] for one in events_of(base, request_id="mine")} == {"mine"}


@contextlib.contextmanager
def held_up(program: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run the server as a child that the test may stop and wake up."""
    pipe, command = subprocess.PIPE, [program, "--exit-with-parent", *words]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as child:
        try:
            assert child.stdout is not None
            yield child, json.loads(child.stdout.readline())["url"]
        finally:
            child.kill()


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_request_is_received_when_it_comes_however_late_the_server_wakes_up(
    program: Path, by_kernel: bool
) -> None:
    words = [] if by_kernel else ["--user-stamps"]
    with held_up(program, *words) as (server, base), Client(base) as client:
        client.whole(b"/v1/predict")
        server.send_signal(signal.SIGSTOP)
        os.waitpid(server.pid, os.WUNTRACED)
        sent_ns = time.monotonic_ns()
        client.ask(b"/v1/predict", request_id="late")
        woken_ns = time.monotonic_ns()
        server.send_signal(signal.SIGCONT)
        assert client.head()[0] == 200
        told = truth_of(base, "late")
    assert told["by_kernel"] is by_kernel
    assert (sent_ns <= told["received_ns"] <= woken_ns) is by_kernel
    assert told["before_ns"][0] >= woken_ns


def test_a_request_sent_ahead_is_received_when_its_turn_comes(program: Path) -> None:
    with truth.running(program=program) as base, Client(base) as client:
        client.ask(CHAT, tokens=3, ttft_us=0, gap_us=0, request_id="first")
        client.ask(b"/v1/predict", request_id="ahead")
        client.head()
        assert len(list(client.chunks())) == 1 + 3 + 3
        assert client.head()[0] == 200
        first, ahead = truth_of(base, "first"), truth_of(base, "ahead")
    assert first["before_ns"][-1] <= ahead["received_ns"] <= ahead["before_ns"][0]


def test_a_reply_without_an_id_gets_one(url: str) -> None:
    with Client(url) as client:
        headers, chunks = client.stream()
        again, _ = client.stream()
    given = headers["x-request-id"]
    assert given != again["x-request-id"]
    assert truth_of(url, given)["writes"] == 6 + 2
    assert f'"id":"chatcmpl-{given}"'.encode() in chunks[0][0]


def test_fifty_streams_at_once_are_each_whole(program: Path, tmp_path: Path) -> None:
    def one(index: int) -> int:
        with Client(base) as client:
            _, chunks = client.stream(tokens=50, gap_us=500, request_id=f"s{index}")
        return len([data for data, _ in chunks if b'"content":" w' in data])

    dump = tmp_path / "truth.bin"
    with truth.running(program=program, dump=dump) as base, ThreadPoolExecutor(50) as pool:
        assert list(pool.map(one, range(50))) == [50] * 50
    kept = truth.read_truth(dump)
    assert sorted(kept) == sorted(f"s{index}" for index in range(50))
    for reply in kept.values():
        assert reply.ended == "complete"
        assert_ordered(reply)


def test_a_connection_serves_one_request_after_another(url: str) -> None:
    with Client(url) as client:
        for _ in range(3):
            assert len(client.stream()[1]) == 1 + 6 + 3
            assert client.whole(b"/v1/predict")[0] == 200


def test_requests_sent_ahead_are_answered_in_turn(url: str) -> None:
    with Client(url) as client:
        client.ask(CHAT, tokens=3)
        client.ask(b"/v1/predict")
        client.ask(CHAT, tokens=0)
        assert client.head()[0] == 200
        assert len(list(client.chunks())) == 1 + 3 + 3
        _, headers = client.head()
        client.exactly(int(headers["content-length"]))
        assert client.head()[0] == 200
        assert len(list(client.chunks())) == 1 + 3


def test_a_request_may_come_byte_by_byte(url: str) -> None:
    request = b"POST /v1/predict HTTP/1.1\r\nX-Request-ID:  slow \r\ncontent-length: 3\r\n\r\nabc"
    with Client(url) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            client.socket.sendall(bytes([byte]))
        status, headers = client.head()
    assert (status, headers["x-request-id"]) == (200, "slow")


def test_a_long_body_is_thrown_away(url: str) -> None:
    with Client(url) as client:
        assert client.whole(b"/v1/predict", body=b"x" * 500_000)[0] == 200
        assert client.whole(b"/v1/predict")[0] == 200


def test_a_short_reply_comes_after_its_delay(url: str) -> None:
    with Client(url) as client:
        _, body = client.whole(b"/v1/predict", delay_us=1500, request_id="short")
    told = truth_of(url, "short")
    assert body["predictions"] == [0.5]
    assert (told["stream"], told["ended"], told["writes"]) == (False, "complete", 1)
    assert told["before_ns"][0] >= told["received_ns"] + 1_500_000


def test_a_client_that_leaves_ends_its_stream_alone(url: str) -> None:
    with Client(url) as stays, Client(url) as leaves:
        stays.ask(CHAT, tokens=200)
        leaves.ask(CHAT, tokens=1_000_000, gap_us=100, request_id="left")
        leaves.head()
        next(leaves.chunks())
        leaves.socket.close()
        assert stays.head()[0] == 200
        assert len(list(stays.chunks())) == 1 + 200 + 3
    while (told := truth_of(url, "left"))["ended"] is None:
        pass
    assert told["ended"] == "client left"
    assert len(told["before_ns"]) < told["writes"]


def test_what_a_full_socket_holds_up_is_whole_and_marked_late(
    program: Path, tmp_path: Path
) -> None:
    def written() -> int:
        return len(truth_of(base, "full")["before_ns"])

    dump = tmp_path / "truth.bin"
    with truth.running(program=program, dump=dump) as base, Client(base) as client:
        client.ask(CHAT, tokens=120_000, ttft_us=0, gap_us=0, request_id="full")
        while (before := written()) != written() or before == 0:
            pass  # until it is stuck: all is due at once, so nothing else can stop it
        client.head()
        texts = [data for data, _ in client.chunks() if b'"content":" w' in data]
    assert [int(text.partition(b'" w')[2].partition(b'"')[0]) for text in texts] == list(
        range(120_000)
    )
    reply = truth.read_truth(dump)["full"]
    assert_ordered(reply)
    assert not reply.late[0]
    assert reply.late.any()
    assert before < 120_000


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx-tokens: many\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx-tokens: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx-shape: round\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx-tokens: 1000001\r\n\r\n", 400),
        (b'GET / HTTP/1.1\r\nx-request-id: a"b\r\n\r\n', 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx-long: " + b"x" * 20_000, 431),
    ],
)
def test_a_bad_request_is_refused_and_the_connection_closed(
    url: str, request_bytes: bytes, status: int
) -> None:
    with Client(url) as client:
        client.socket.sendall(request_bytes)
        found, headers = client.head()
        body = json.loads(client.exactly(int(headers["content-length"])))
        assert found == status
        assert body["error"]["message"]
        with pytest.raises(EOFError):
            client.more()


def test_the_header_at_fault_is_named(url: str) -> None:
    with Client(url) as client:
        _, body = client.whole(b"/v1/predict", gap_us="soon")
    assert body["error"]["message"].endswith("x-gap-us")


def test_an_unknown_id_is_not_found(url: str) -> None:
    with Client(url) as client:
        assert client.whole(b"/truth?id=nobody", method=b"GET")[0] == 404


def test_connection_close_is_obeyed(url: str) -> None:
    with Client(url) as client:
        client.socket.sendall(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
        _, headers = client.head()
        client.exactly(int(headers["content-length"]))
        assert headers["connection"] == "close"
        with pytest.raises(EOFError):
            client.more()


def test_beyond_the_cap_replies_are_served_and_counted_but_not_kept(
    program: Path, tmp_path: Path
) -> None:
    dump = tmp_path / "truth.bin"
    with (
        truth.running(program=program, dump=dump, events=25, gap_us=100) as base,
        Client(base) as client,
    ):
        for name in ("kept", "second"):
            assert len(client.stream(tokens=10, request_id=name)[1]) == 1 + 10 + 3
    kept = truth.read_truth(dump)
    assert list(kept) == ["kept"]
    assert kept.unrecorded == 1


def test_a_dump_can_be_had_while_it_runs(program: Path, tmp_path: Path) -> None:
    dump = tmp_path / "truth.bin"
    with truth.running(program=program, dump=dump) as base, Client(base) as client:
        client.ask(CHAT, tokens=1_000_000, request_id="running")
        client.head()
        with Client(base) as other:
            assert other.whole(b"/dump") == (200, {"dumped": True})
        reply = truth.read_truth(dump)["running"]
    assert reply.ended is None
    assert len(reply.before_ns) >= 1


def test_a_cut_dump_is_refused(url: str, program: Path, tmp_path: Path) -> None:
    dump = tmp_path / "truth.bin"
    with truth.running(program=program, dump=dump) as base, Client(base) as client:
        client.stream(tokens=3, gap_us=0)
    whole = dump.read_bytes()
    for size in range(len(whole)):
        dump.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"truth\.bin"):
            truth.read_truth(dump)


def test_it_ends_with_its_parent(program: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([program, "--exit-with-parent"], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=60) == 0


@pytest.mark.parametrize(
    "words", [["--tokens", "many"], ["--port", "70000"], ["more"], ["--tls"], ["--shape", "round"]]
)
def test_a_bad_command_line_is_refused(program: Path, words: list[str]) -> None:
    done = subprocess.run([program, *words], capture_output=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr


def test_the_same_stream_comes_over_tls(
    require: Callable[[str], str], program: Path, tmp_path: Path
) -> None:
    cert, key, dump = (tmp_path / name for name in ("cert.pem", "key.pem", "truth.bin"))
    if not truth.has_openssl(require(os.environ.get("CC", "cc"))):
        pytest.skip("OpenSSL's headers are not installed; the server is built without TLS")
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    subprocess.run(
        [require("openssl"), *words, "-keyout", key, "-out", cert], check=True, capture_output=True
    )
    trust = ssl.create_default_context(cafile=str(cert))
    trust.check_hostname = False
    with (
        truth.running(program=program, tls=(cert, key), dump=dump) as base,
        Client(base, trust) as client,
    ):
        assert base.startswith("https://")
        for _ in range(2):
            assert len(client.stream(tokens=20, gap_us=100)[1]) == 1 + 20 + 3
        assert client.whole(b"/v1/predict", body=b"x" * 100_000)[0] == 200
    assert {reply.by_kernel for reply in truth.read_truth(dump).values()} == {False}


def test_it_compiles_without_a_warning(require: Callable[[str], str], tmp_path: Path) -> None:
    compiler = require(os.environ.get("CC", "cc"))
    words = [*truth.FLAGS, "-Werror", str(truth.SOURCE), "-o", str(tmp_path / "truth")]
    subprocess.run([compiler, *words], check=True)
