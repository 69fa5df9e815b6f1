"""HTTP/2 connections: many exchanges on one socket, and as many sockets as their number needs.

One read is taken in by the hub for all streams in it, and each stream's greenlet is woken when what
it waits for is there. What is to be sent goes at once; what the socket does not take waits in it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic_ns
from typing import TypeVar

import httpx
from gevent.event import Event

from harness.http2 import Session, StreamReply
from harness.transport.exchange import ANYTHING, MAX_BODY_BYTES, Exchange
from harness.transport.messages import Message
from harness.transport.poller import Poller
from harness.transport.sockets import StampedSocket

_UNKNOWN = 1 << 32  # how many streams a connection takes before one has told

Opened = TypeVar("Opened")


class Multiplexed:
    """One HTTP/2 connection; what breaks it breaks all its streams."""

    __slots__ = (
        "_failure",
        "_going_on",
        "_last_ns",
        "_poller",
        "_session",
        "_socket",
        "_started",
        "_streams",
        "_writing",
        "gone",
    )

    def __init__(
        self, poller: Poller, socket: StampedSocket, *, max_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        self._poller = poller
        self._socket = socket
        self._session = Session(max_body_bytes=max_body_bytes)
        self._streams: dict[int, Stream] = {}
        self._last_ns = 0  # the stamp of the last read: none after it is earlier
        self._going_on = False
        self._started = Event()
        self._failure: Exception | None = None
        self._writing = False  # whether the socket is watched for room
        self.gone = False

    def start(self) -> None:
        """Block until the other side has sent its settings. Raises OSError or ProtocolViolation."""
        self._socket.watch(self._on_ready)
        try:
            self._take_in(self._socket.early(), monotonic_ns())
            self._started.wait()
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self.close()
            raise

    @property
    def room(self) -> int:
        """How many more streams it can carry now."""
        return 0 if self.gone else self._session.room

    @property
    def most_streams(self) -> int:
        """How many streams the other side allows at a time."""
        return self._session.most_streams

    def look(self) -> None:
        """Notice what an idle connection's other side has done."""
        if not self._streams and not self.gone:
            self._on_ready()

    def stream(self) -> Stream:
        """Return a stream to send a request on; there must be room."""
        return Stream(self._poller, self)

    def begin(self, stream: Stream, message: Message) -> StreamReply:
        """Send a request on a new stream."""
        if self.gone:
            raise ConnectionResetError("the connection was closed")
        fields, body = message.http2()
        reply = self._session.request(message.method, fields, body)
        stream.reader = reply
        self._streams[reply.stream_id] = stream
        stream.sent_ns = monotonic_ns()
        self._flush()
        return reply

    def cancel(self, reply: StreamReply) -> None:
        """Give a stream up."""
        self._streams.pop(reply.stream_id, None)
        if not reply.over and not self.gone:
            self._session.cancel(reply)
            self._flush()

    def close(self) -> None:
        """Close the socket; may be called again."""
        self._over(None)

    def _on_ready(self) -> None:
        try:
            read = self._socket.receive(self._last_ns)
            if read is not None:
                self._last_ns = read[1]
                self._take_in(*read)
            elif self._session.behind:
                self._settle(self._session.go_on())
            else:
                self._flush()
        except Exception as error:  # noqa: BLE001 - who waits must hear of it, whatever it is
            self._over(error)

    def _take_in(self, data: bytes, t_ns: int) -> None:
        self._settle(self._session.receive(data, t_ns))
        end = self._socket.end
        if end is not None and not self.gone:
            while self._session.behind:
                self._settle(self._session.go_on())
            self._over(None if isinstance(end, EOFError | ssl.SSLEOFError) else end)

    def _settle(self, replies: Iterable[StreamReply]) -> None:
        """Tell whom it concerns what is new, and see what is to be done then."""
        session = self._session
        self._notify(replies)
        if session.broken is not None:
            with suppress(OSError):
                self._socket.write(session.to_send())
                self._socket.flush()
            self._over(session.broken)
            return
        self._flush()
        if session.settled:
            self._started.set()
        if session.behind:
            if not self._going_on:
                self._going_on = True
                self._poller.behind(self._go_on)
        elif session.leaving and not session.streams:
            self._over(None)

    def _go_on(self) -> None:
        """See what has come in meanwhile, and take in the next part of it all."""
        self._going_on = False
        if not self.gone:
            self._on_ready()

    def _flush(self) -> None:
        """Send what there is to send; what was answered before a failure is taken in."""
        if self.gone:
            return
        socket = self._socket
        try:
            data = self._session.to_send()
            if data:
                socket.write(data)
            writing = not socket.flush()
            if writing is not self._writing:
                self._writing = writing
                socket.watch_writing(on=writing)
        except OSError as error:
            with suppress(OSError):
                while not self.gone and self._read_last():
                    pass
            self._over(error)

    def _read_last(self) -> bool:
        read = self._socket.receive(self._last_ns)
        if read is None or self._socket.end is not None:
            return False
        self._notify(self._session.receive(*read))
        while self._session.behind:
            self._notify(self._session.go_on())
        return True

    def _notify(self, replies: Iterable[StreamReply]) -> None:
        for reply in replies:
            stream = self._streams.get(reply.stream_id)
            if stream is not None:
                if reply.over:
                    del self._streams[reply.stream_id]
                stream.notice()

    def _over(self, error: Exception | None) -> None:
        if self.gone:
            return
        self.gone = True
        self._socket.close()
        self._notify(self._session.eof(error))
        if not self._session.settled:
            self._failure = error or ConnectionResetError("closed before HTTP/2's settings")
            self._started.set()


class Stream(Exchange):
    """One stream of an HTTP/2 connection: a request and its reply."""

    __slots__ = ("_connection",)

    reader: StreamReply | None

    def __init__(self, poller: Poller, connection: Multiplexed) -> None:
        super().__init__(poller)
        self._connection = connection

    def send(self, message: Message) -> None:
        """Send a request; `sent_ns` is stamped right before its first byte is handed over.

        It is sent whole, as the other side's windows allow, unless the reply is over before.
        """
        self._want = ANYTHING
        self.sent_ns = monotonic_ns()
        reply = self._connection.begin(self, message)
        while reply.unsent and not reply.over:
            self._wait()
        if reply.error is not None and reply.head is None:
            raise reply.error

    def close(self) -> None:
        """Give the stream up if its reply is not over."""
        self.gone = True
        if self.reader is not None:
            self._connection.cancel(self.reader)

    def notice(self) -> None:
        """See what is new; wakes the greenlet if it waits for that."""
        if self.reader is not None and self.reader.error is not None:
            self._error = self.reader.error
            self._wake()
        else:
            self._notice()


class Shared:
    """The HTTP/2 connections to one origin.

    While one is being opened, those wait for it who will find room there, as far as is known how
    many streams such a connection takes; for the others more are opened at the same time.
    """

    __slots__ = ("_connections", "_dials", "_most_streams")

    def __init__(self) -> None:
        self._connections: list[Multiplexed] = []
        self._dials: list[_Dial] = []
        self._most_streams = _UNKNOWN

    def with_room(self) -> Multiplexed | None:
        """Return a connection that can carry another stream now."""
        for connection in self._connections:
            connection.look()
            if connection.room > 0:
                return connection
        self._connections = [known for known in self._connections if not known.gone]
        return None

    def wait_for_dial(self) -> bool:
        """Block until a connection that is being opened is open, or will not be.

        False when there is none to wait for. Raises what opening it has raised.
        """
        for dial in self._dials:
            if dial.promised < self._most_streams:
                dial.promised += 1
                dial.done.wait()
                if dial.error is not None:
                    raise type(dial.error)(str(dial.error)) from dial.error
                return True
        return False

    def dial(self, open_one: Callable[[], Opened]) -> Opened:
        """Open a connection; it is shared if it turns out to be one of HTTP/2."""
        dial = _Dial()
        self._dials.append(dial)
        try:
            opened = open_one()
        except httpx.ConnectError as error:
            dial.error = error
            raise
        else:
            if isinstance(opened, Multiplexed):
                self._most_streams = opened.most_streams
                self._connections.append(opened)
            return opened
        finally:
            self._dials.remove(dial)
            dial.done.set()

    def close(self) -> None:
        """Close every connection."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()


class _Dial:
    """A connection that is being opened."""

    __slots__ = ("done", "error", "promised")

    def __init__(self) -> None:
        self.done = Event()
        self.error: Exception | None = None
        self.promised = 1
