"""One HTTP/1.1 connection: it sends a request and collects the stamped reads of the reply.

Reading is done in the hub as bytes come in; the greenlet that waits is woken when the reply is
complete, or at the next piece if it wants the stream live.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from time import monotonic_ns

import gevent

from harness.http1 import ProtocolViolation, ResponseReader, Truncated
from harness.transport.exchange import ANYTHING, MAX_BODY_BYTES, Exchange
from harness.transport.messages import Message
from harness.transport.poller import Poller
from harness.transport.sockets import StampedSocket

_MOST_DRAINED_BYTES = 64 << 10
_LONGEST_DRAIN_S = 1.0


class Connection(Exchange):
    """A socket and at most one exchange on it; OSError, ssl.SSLError or ProtocolViolation come out.

    `gone` is true once the other side has closed, or an error has made the connection useless.
    """

    __slots__ = ("_drained", "_max_body_bytes", "_socket")

    reader: ResponseReader | None

    def __init__(
        self, poller: Poller, socket: StampedSocket, *, max_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        super().__init__(poller)
        self._socket = socket
        self._max_body_bytes = max_body_bytes
        self._drained: Callable[[], None] | None = None
        socket.watch(self._on_ready)

    def look(self) -> bool:
        """Tell whether an idle connection can be used: the other side has not closed it."""
        if not self.gone:
            self._on_idle()
        return not self.gone

    @property
    def keep_alive(self) -> bool:
        """True when it may carry another request."""
        return self.reader is not None and self.reader.keep_alive and not self.gone

    def send(self, message: Message) -> None:
        """Send a request; `sent_ns` is stamped right before its first byte is handed over.

        It is sent whole, unless the reply is complete before: then the rest is not sent, and the
        connection is `gone`.
        """
        reader = self.reader = ResponseReader(
            method=message.method, max_body_bytes=self._max_body_bytes
        )
        self._want = ANYTHING
        self.sent_ns = monotonic_ns()
        if not self._socket.is_open:
            raise self._error or ConnectionResetError("the connection was closed")
        self._error = None
        self._socket.write(message.http1())
        self.sent_ns = monotonic_ns()
        self._send_all(reader)

    def drain(self, done: Callable[[], None]) -> None:
        """Read the rest of a reply that nobody waits for, not much and not long; then call `done`.

        A connection that brings more is closed before.
        """
        assert self.reader is not None
        self.reader.bound(_MOST_DRAINED_BYTES)
        self.follow_by(None)
        self._drained = done
        gevent.spawn_later(_LONGEST_DRAIN_S, self._end_drain, done)

    def close(self) -> None:
        """Close the socket; may be called again."""
        self.gone = True
        self._socket.close()

    def _end_drain(self, late: Callable[[], None] | None = None) -> None:
        """Tell that what was to be drained is over, or that one drain takes too long."""
        done = self._drained
        if done is None or late not in (None, done):
            return
        self._drained = None
        if late is not None:
            self.close()
        done()

    # In the hub

    def _on_ready(self) -> None:
        reader = self.reader
        try:
            if reader is None or reader.complete:
                self._on_idle()
                return
            self._receive(reader)
        except Exception as error:  # noqa: BLE001 - who waits must hear of it, whatever it is
            self._error = error
            self.close()
            self._wake()
            self._end_drain()
            return
        self._notice()
        if self._drained is not None and reader.complete:
            self._end_drain()

    def _receive(self, reader: ResponseReader) -> bool:
        """Feed what one read brings; False when there is nothing to read now."""
        read = self._socket.receive(self.sent_ns)
        if read is None:
            return False
        data, t_ns = read
        if data:
            reader.feed(data, t_ns)
        end = self._socket.end
        if end is not None:
            self._end(reader, end, t_ns)
        return True

    def _end(self, reader: ResponseReader, end: Exception, t_ns: int) -> None:
        self.gone = True
        if reader.complete:
            return
        if isinstance(end, ssl.SSLEOFError):
            if reader.head is not None:  # anyone may have cut it, even a body that a close ends
                raise Truncated("closed inside the body, without TLS's close_notify")
        elif not isinstance(end, EOFError):
            raise end
        reader.eof(t_ns)

    def _on_idle(self) -> None:
        """Nobody asked: the other side has closed, or says what it must not; either way it is over.

        With TLS it may be a late ticket of the handshake.
        """
        try:
            while (read := self._socket.receive(0)) is not None:
                if read[0] or self._socket.end is not None:
                    break
            else:
                return
        except OSError as error:
            self._error = error
        self.close()

    # Sending

    def _send_all(self, reader: ResponseReader) -> None:
        """Send all, or less if the reply is complete before."""
        while True:
            if reader.complete:
                self.gone = True  # half a request stands in the way of another
                return
            if not self._socket.is_open:
                raise self._error or ConnectionResetError("the connection was closed")
            try:
                if self._socket.flush():
                    return
            except OSError:
                if not self._was_answered(reader):
                    raise
            else:
                self._wait_for_room()

    def _wait_for_room(self) -> None:
        self._socket.watch_writing(on=True)
        self._wait()
        if self._socket.is_open:
            self._socket.watch_writing(on=False)

    def _was_answered(self, reader: ResponseReader) -> bool:
        """Read what came before the other side stopped listening; True if it is a whole reply."""
        with suppress(OSError, ProtocolViolation):
            while not reader.complete and not self.gone and self._receive(reader):
                pass
        return reader.complete
