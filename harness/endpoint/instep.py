"""A server that writes in step, as continuous batching does, and knows when it wrote what.

All running streams get their next token in the same tick, a request joins at a tick, and no event
is like the last. Every reply ends with its wave, whenever it began. One thread and plain sockets: a
tick of many streams has to be short. When it is ended it leaves in a file, of each reply, 64-bit
integers: its number (its events name it as the model), when the end was written, how many tokens,
and when each was. A time is CLOCK_MONOTONIC, taken right before the write.

`python -m harness.endpoint.instep --out FILE --tokens N [--tls CERT KEY]` prints its URL.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import select
import signal
import socket
import ssl
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from harness.endpoint.process import allow_many_files, announce, child, exit_with_parent

TICK_NS = 20_000_000
TTFT_NS = 50_000_000
_AWAKE_S = 0.001  # before a tick: epoll's time-outs are whole ms
_HANDSHAKE_S = 5
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_NOISE = "tE4nW0aKz9RjQmX7LcUvB2dYgH5sPfOi3e8MxTqJ6rVbCkDwG1"
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


@contextlib.contextmanager
def running_in_step(
    out: Path, *, tokens: int, tls: tuple[Path, Path] | None = None
) -> Iterator[str]:
    """Run the server as a child process; yields its URL. What it knows is in `out` afterwards."""
    words = ["--out", str(out), "--tokens", str(tokens)]
    with child(
        "harness.endpoint.instep", [*words, *(("--tls", *map(str, tls)) if tls else ())]
    ) as url:
        yield url


@dataclass(slots=True)
class _Stream:
    """A reply that runs: its first tick, its last one, and the write that is ready for the next."""

    number: int
    to: socket.socket
    first: int
    last: int
    ready: bytes = b""
    token_ns: array[int] = field(default_factory=lambda: array("q"))
    end_ns: int = 0

    def prepare(self) -> None:
        """Have the next event ready, so that all writes of a tick follow each other at once."""
        k = len(self.token_ns)
        if self.first + k < self.last:
            self.ready = _chunk(_event(self.number, k, f'{{"content":" w{k}"}}'))
            return
        finish = _event(self.number, k, "{}", '"stop"')
        self.ready = _chunk(finish) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _event(number: int, k: int, delta: str, reason: str = "null") -> bytes:
    """Write an event whose fields, and their length, change from one to the next."""
    drawn = (number * 2654435761 + k * 40503) & 0xFFFFFFFF
    noise = _NOISE[drawn % 17 : drawn % 17 + drawn % 29 + 1]
    return (
        f'data: {{"id":"chatcmpl-{number}","object":"chat.completion.chunk",'
        f'"created":{1_700_000_000 + k},"model":"{number}",'
        f'"system_fingerprint":"fp_{drawn:x}","obfuscation":"{noise}",'
        f'"usage":{{"prompt_tokens":1,"completion_tokens":{k},"total_tokens":{k + 1}}},'
        f'"timings":{{"predicted_n":{k},"predicted_ms":{k * 20 + drawn % 1000 / 1000}}},'
        f'"choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}\n\n'
    ).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class _Server:
    """The connections by descriptor, what each has sent so far, and the streams."""

    def __init__(self, listener: socket.socket, tokens: int, tls: ssl.SSLContext | None) -> None:
        listener.setblocking(False)
        self._listener, self._tls = listener, tls
        self._wave = tokens + -(-TTFT_NS // TICK_NS)  # ticks
        self._poll = select.epoll()
        self._poll.register(listener, select.EPOLLIN)
        self._open: dict[int, tuple[socket.socket, bytearray]] = {}
        self._running: list[_Stream] = []
        self._ended: list[_Stream] = []
        self._number = 0
        self._ending = False

    def serve(self) -> None:
        """Serve until `end` is called, by a signal's handler."""
        due = time.monotonic_ns() // TICK_NS + 1
        while not self._ending:
            left_s = (due * TICK_NS - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                self._tick(due)
                due = max(due, time.monotonic_ns() // TICK_NS) + 1
                continue
            for fd, _ in self._poll.poll(max(0.0, left_s - _AWAKE_S)):
                if fd == self._listener.fileno():
                    self._welcome()
                else:
                    self._read(fd)

    def end(self) -> None:
        """End after what is done now: a tick is written down whole."""
        self._ending = True

    def keep(self, file: Path) -> None:
        """Write down what is known of every reply that came to its end."""
        with file.open("wb") as out:
            for one in self._ended:
                array("q", (one.number, one.end_ns, len(one.token_ns))).tofile(out)
                one.token_ns.tofile(out)

    def _tick(self, tick: int) -> None:
        """Write what is due in every stream; only then make the next writes ready."""
        due = [stream for stream in self._running if stream.first <= tick]
        for stream in due:
            ending = stream.first + len(stream.token_ns) >= stream.last
            now_ns = time.monotonic_ns()
            try:
                whole = stream.to.send(stream.ready) == len(stream.ready)
            except OSError:
                whole = False  # it left, or reads so slowly that its socket is full
            if not whole:
                self._close(stream.to)
            elif ending:
                stream.end_ns = now_ns
            else:
                stream.token_ns.append(now_ns)
        self._ended += (stream for stream in due if stream.end_ns)
        self._running = [one for one in self._running if not one.end_ns and one.to.fileno() >= 0]
        for stream in due:
            if not stream.end_ns:
                stream.prepare()

    def _welcome(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                new, _ = self._listener.accept()
                new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    new.settimeout(_HANDSHAKE_S)
                    new = self._tls.wrap_socket(new, server_side=True)
                new.setblocking(False)
                self._poll.register(new, select.EPOLLIN)
                self._open[new.fileno()] = (new, bytearray())

    def _read(self, fd: int) -> None:
        if fd not in self._open:
            return
        connection, held = self._open[fd]
        try:
            while data := connection.recv(1 << 16):
                held += data
            self._close(connection)
        except (BlockingIOError, ssl.SSLWantReadError):
            self._take(connection, held)
        except OSError:
            self._close(connection)

    def _take(self, connection: socket.socket, held: bytearray) -> None:
        """Begin the reply once the whole request is there."""
        end = held.find(b"\r\n\r\n")
        length = _LENGTH.search(held, 0, end + 2) if end >= 0 else None
        if length is None or len(held) < end + 4 + int(length[1]):
            return
        held.clear()
        self._number += 1
        first = -(-(time.monotonic_ns() + TTFT_NS) // TICK_NS)
        last = -(-(first + self._wave // 2) // self._wave) * self._wave
        stream = _Stream(self._number, connection, first, last)
        role = _event(self._number, 0, '{"role":"assistant","content":""}')
        with contextlib.suppress(OSError):
            connection.send(_HEAD + _chunk(role))
        stream.prepare()
        self._running.append(stream)

    def _close(self, connection: socket.socket) -> None:
        self._open.pop(connection.fileno(), None)
        connection.close()


def main() -> NoReturn:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m harness.endpoint.instep")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--exit-with-parent", action="store_true", help="end when stdin closes")
    given = parser.parse_args()
    if given.exit_with_parent:
        exit_with_parent()
    context = None
    if given.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*given.tls)
    allow_many_files()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server = _Server(listener, given.tokens, context)
    signal.signal(signal.SIGTERM, lambda *_: server.end())
    announce(f"http{'s' if context else ''}://127.0.0.1:{listener.getsockname()[1]}")
    server.serve()
    server.keep(given.out)
    sys.exit(0)


if __name__ == "__main__":
    main()
