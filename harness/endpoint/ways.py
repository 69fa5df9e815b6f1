"""How a reply's bytes reach its client: as chunks of HTTP/1.1 or as frames of HTTP/2.

A way reads requests off one connection, whatever they ask for, and writes what it is given at
once, with a stamp right before the bytes go. Bytes that the client does not take at once are a
failure: it reads too slowly to be measured.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Protocol

_READ_BYTES = 1 << 16
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = {"content-type": "text/event-stream", "cache-control": "no-cache"}
_HEAD = (
    "HTTP/1.1 200 OK\r\n"
    + "".join(f"{name}: {value}\r\n" for name, value in _STREAM.items())
    + "transfer-encoding: chunked\r\n\r\n"
).encode()


class Writer(Protocol):
    """Writes one reply; returns when, or None when the client did not take it."""

    def __call__(self, data: bytes, *, last: bool = False) -> int | None:
        """Write some of it, or the last of it."""
        ...


class Way(Protocol):
    """One connection."""

    def read(self) -> bool:
        """Take in what has come; False when the connection is at its end."""
        ...


def way(connection: socket.socket, begin: Callable[[Writer], None]) -> Way:
    """Return how to speak on a connection; `begin` is told of each whole request."""
    spoken = connection.selected_alpn_protocol() if isinstance(connection, ssl.SSLSocket) else None
    return (_Frames if spoken == "h2" else _Chunks)(connection, begin)


def _received(connection: socket.socket) -> tuple[bytes, bool]:
    """Return all that has come, and whether more may."""
    data = b""
    try:
        while more := connection.recv(_READ_BYTES):
            data += more
    except (BlockingIOError, ssl.SSLWantReadError):
        return data, True
    except OSError:
        pass
    return data, False


def _sent(connection: socket.socket, data: bytes) -> int | None:
    """Send bytes; returns when, or None when they were not taken whole."""
    now_ns = time.monotonic_ns()
    with contextlib.suppress(OSError):
        if connection.send(data) == len(data):
            return now_ns
    return None


class _Chunks:
    """HTTP/1.1: one request after the other."""

    def __init__(self, connection: socket.socket, begin: Callable[[Writer], None]) -> None:
        self._connection, self._begin = connection, begin
        self._held = b""
        self._head = b""

    def read(self) -> bool:
        """Take in a request, as a whole or in parts."""
        data, open_ = _received(self._connection)
        self._held += data
        end = self._held.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(self._held, 0, end)
        if length is not None and len(self._held) >= end + int(length[1]):
            self._held, self._head = b"", _HEAD
            self._begin(self._write)
        return open_

    def _write(self, data: bytes, *, last: bool = False) -> int | None:
        end = b"0\r\n\r\n" if last else b""
        chunk = b"%b%x\r\n%b\r\n%b" % (self._head, len(data), data, end)
        self._head = b""
        return _sent(self._connection, chunk)


class _Frames:
    """HTTP/2: as many requests at once as the client likes to send."""

    def __init__(self, connection: socket.socket, begin: Callable[[Writer], None]) -> None:
        from h2.config import H2Configuration
        from h2.connection import H2Connection

        self._connection, self._begin = connection, begin
        self._spoken = H2Connection(H2Configuration(client_side=False))
        self._spoken.initiate_connection()
        self._flush()

    def read(self) -> bool:
        """Take in what frames say, and answer what they ask for."""
        from h2 import events
        from h2.exceptions import ProtocolError

        data, open_ = _received(self._connection)
        try:
            happened = self._spoken.receive_data(data) if data else []
        except ProtocolError:
            return False
        for one in happened:
            if isinstance(one, events.DataReceived):
                self._spoken.acknowledge_received_data(one.flow_controlled_length, one.stream_id)
            elif isinstance(one, events.StreamEnded):
                self._answer(one.stream_id)
            elif isinstance(one, events.ConnectionTerminated):
                open_ = False
        self._flush()
        return open_

    def _answer(self, stream_id: int) -> None:
        self._spoken.send_headers(stream_id, [(":status", "200"), *_STREAM.items()])

        def write(data: bytes, *, last: bool = False) -> int | None:
            from h2.exceptions import ProtocolError

            try:
                self._spoken.send_data(stream_id, data, end_stream=last)
            except ProtocolError:  # the stream was given up, or its window is full
                return None
            return self._flush()

        self._begin(write)

    def _flush(self) -> int | None:
        data: Any = self._spoken.data_to_send()
        return _sent(self._connection, data) if data else None
