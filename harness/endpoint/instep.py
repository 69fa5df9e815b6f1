"""A server that writes in step, as continuous batching does, and knows when it wrote what.

All running streams get their next token in the same tick, a request joins at a tick, and no event
is like the last. Every reply ends with its wave, whenever it began. One thread and plain sockets: a
tick of many streams has to be short. When it is ended it leaves in a file, of each reply, 64-bit
integers: its number (its events name it as the model), when the end was written, how many tokens,
and when each was. A time is CLOCK_MONOTONIC, taken right before the write.

`python -m harness.endpoint.instep --out FILE --tokens N [--tls CERT KEY [--http2]]` prints its URL.
"""

from __future__ import annotations

import argparse
import contextlib
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
from harness.endpoint.ways import Way, Writer, way

TICK_NS = 20_000_000
TTFT_NS = 50_000_000
_AWAKE_S = 0.001  # before a tick: epoll's time-outs are whole ms
_HANDSHAKE_S = 5
_NOISE = "tE4nW0aKz9RjQmX7LcUvB2dYgH5sPfOi3e8MxTqJ6rVbCkDwG1"


@contextlib.contextmanager
def running_in_step(
    out: Path, *, tokens: int, tls: tuple[Path, Path] | None = None, http2: bool = False
) -> Iterator[str]:
    """Run the server as a child process; yields its URL. What it knows is in `out` afterwards."""
    words = ["--out", str(out), "--tokens", str(tokens)]
    if tls is not None:
        words += ["--tls", *map(str, tls)]
    if http2:
        words.append("--http2")
    with child("harness.endpoint.instep", words) as url:
        yield url


@dataclass(slots=True)
class _Stream:
    """A reply that runs: its first tick, its last one, and the write that is ready for the next."""

    number: int
    write: Writer
    first: int
    last: int
    ready: bytes = b""
    token_ns: array[int] = field(default_factory=lambda: array("q"))
    end_ns: int = 0
    gone: bool = False

    @property
    def ending(self) -> bool:
        """True when no token is left to write."""
        return self.first + len(self.token_ns) >= self.last

    def prepare(self) -> None:
        """Have the next event ready, so that all writes of a tick follow each other at once."""
        k = len(self.token_ns)
        if self.ending:
            self.ready = _event(self.number, k, "{}", '"stop"') + b"data: [DONE]\n\n"
        else:
            self.ready = _event(self.number, k, f'{{"content":" w{k}"}}')

    def step(self) -> None:
        """Write what is ready."""
        ending = self.ending
        now_ns = self.write(self.ready, last=ending)
        if now_ns is None:
            self.gone = True
        elif ending:
            self.end_ns = now_ns
        else:
            self.token_ns.append(now_ns)


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


class _Server:
    """The connections by descriptor, and the streams."""

    def __init__(self, listener: socket.socket, tokens: int, tls: ssl.SSLContext | None) -> None:
        listener.setblocking(False)
        self._listener, self._tls = listener, tls
        self._wave = tokens + -(-TTFT_NS // TICK_NS)  # ticks
        self._poll = select.epoll()
        self._poll.register(listener, select.EPOLLIN)
        self._open: dict[int, tuple[socket.socket, Way]] = {}
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
            stream.step()
        self._ended += (stream for stream in due if stream.end_ns)
        self._running = [one for one in self._running if not (one.end_ns or one.gone)]
        for stream in due:
            if not (stream.end_ns or stream.gone):
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
                self._open[new.fileno()] = (new, way(new, self._begin))

    def _read(self, fd: int) -> None:
        connection, spoken = self._open[fd]
        if not spoken.read():
            del self._open[fd]
            connection.close()

    def _begin(self, write: Writer) -> None:
        """Begin the reply to a request that is there."""
        self._number += 1
        first = -(-(time.monotonic_ns() + TTFT_NS) // TICK_NS)
        last = -(-(first + self._wave // 2) // self._wave) * self._wave
        stream = _Stream(self._number, write, first, last)
        write(_event(self._number, 0, '{"role":"assistant","content":""}'))
        stream.prepare()
        self._running.append(stream)


def main() -> NoReturn:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m harness.endpoint.instep")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--http2", action="store_true", help="offer it; needs --tls")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when stdin closes")
    given = parser.parse_args()
    if given.exit_with_parent:
        exit_with_parent()
    context = None
    if given.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*given.tls)
        context.set_alpn_protocols(["h2", "http/1.1"] if given.http2 else ["http/1.1"])
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
