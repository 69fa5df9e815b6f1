"""What an event costs from the bytes of its read to the reply's times, for every shape of event.

The shapes are those of real servers, recorded in `tests/data/wire`, and those of the exact server. A
recording is short: its tokens are repeated, each with a text of its own, until the reply has as many
as the exact server's.
"""

from __future__ import annotations

import json
import re
import socket
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TOKENS, REPLIES, PASSES = 100, 100, 3
_TOGETHER = 16  # events that are decoded at a time, as the transport hands them over
_HEADERS = {"content-type": "text/event-stream"}
_WIRE = Path(__file__).resolve().parents[1] / "data" / "wire"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"
_TEXT = re.compile(rb'("content": ?)"(?:[^"\\]|\\.)+"')
_RECORDED = {
    file.stem.removeprefix("sse-").removesuffix("-raw"): file
    for file in sorted(_WIRE.glob("sse-*-raw.bin"))
}
_OURS = {f"fields that change: {name}": name for name in ("fingerprint", "usage", "timings")} | {
    "all of them, and more": "changing"
}
SHAPES = (*_RECORDED, *_OURS)


def replies(shape: str, url: str) -> list[list[bytes]]:
    """Return replies of a shape as the reads that bring them, one an event; `url` is the server's."""
    if shape in _RECORDED:
        return [_like(_RECORDED[shape].read_bytes(), number) for number in range(REPLIES)]
    return [_asked(url, _OURS[shape]) for _ in range(REPLIES)]


def cost_us(given: list[list[bytes]]) -> float:
    """Return the CPU µs of an event, from its read to the times of its reply.

    Raises RuntimeError when a reply is not read as a whole one.
    """
    from harness import apis
    from harness.http1 import ResponseReader

    dialect, now_ns, spent_s, events = apis.api("openai-chat"), time.monotonic_ns(), 0.0, 0
    for turn in range(PASSES + 1):
        began_s = time.process_time()
        for reads in given:
            reader, reply = ResponseReader(method="POST"), apis.ReplyReader(dialect, streamed=True)
            for read in reads:
                reader.feed(read, now_ns)
                if len(reader.new) >= _TOGETHER:
                    reply.follow(_HEADERS, reader.take(), now_ns)
            found = reply.finish(200, _HEADERS, reader.take(), since_ns=now_ns, end_ns=now_ns)
            found.timings(start_ns=now_ns, sent_ns=now_ns)
            if found.failure is not None or len(found.token_events) < TOKENS:
                raise RuntimeError(f"{len(found.token_events)} tokens were read: {found.failure}")
        if turn > 0:  # the first is to get warm
            spent_s += time.process_time() - began_s
            events += sum(len(reads) - 2 for reads in given)  # beside the head and the end
    return spent_s * 1e6 / events


def _like(recorded: bytes, number: int) -> list[bytes]:
    """Return a reply like the recorded one, but of more tokens."""
    _, _, body = recorded.partition(b"\r\n\r\n")
    events = [event + b"\n\n" for event in body.split(b"\n\n") if event]
    tokens = [event for event in events if _is_token(event)]
    first, last = events.index(tokens[0]), events.index(tokens[-1]) + 1
    more = [
        _TEXT.sub(rb'\1" w%d.%d"' % (number, index), event)
        for index, event in enumerate(islice(cycle(tokens), TOKENS))
    ]
    chunks = [b"%x\r\n%b\r\n" % (len(one), one) for one in (*events[:first], *more, *events[last:])]
    return [_HEAD, *chunks, _END]


def _is_token(event: bytes) -> bool:
    """Tell whether an event has a text and does not end the reply."""
    if event == b"data: [DONE]\n\n":
        return False
    choices: list[dict[str, Any]] = json.loads(event.removeprefix(b"data: "))["choices"]
    one = choices[0] if choices else {"delta": {}}
    return bool(one["delta"].get("content")) and not one.get("finish_reason")


def _asked(url: str, shape: str) -> list[bytes]:
    """Ask the exact server for a reply, all at once."""
    at = urlsplit(url)
    lines = ("POST /v1/chat/completions HTTP/1.1", "content-length: 0", "connection: close")
    given = {"x-tokens": TOKENS, "x-shape": shape, "x-ttft-us": 0, "x-gap-us": 0, "x-tick-us": 0}
    asked = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in given.items()), "", ""])
    data = b""
    with socket.create_connection((at.hostname, at.port), timeout=20) as connection:
        connection.sendall(asked.encode())
        while more := connection.recv(1 << 16):
            data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    reads = [head + b"\r\n\r\n"]
    while rest:
        size, _, _ = rest.partition(b"\r\n")
        end = len(size) + 2 + int(size, 16) + 2
        reads.append(rest[:end])
        rest = rest[end:]
    return reads
