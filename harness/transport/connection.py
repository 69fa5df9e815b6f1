"""One HTTP/1.1 connection: it connects, sends a request, collects the stamped reads of the reply.

Reading is done in the hub as bytes come in; the greenlet that waits is woken when the reply is
complete, or at the next piece if it wants the stream live. With TLS the socket's bytes pass through
memory, so that they keep the kernel's stamps.
"""

from __future__ import annotations

import ssl
import time
from contextlib import suppress
from os import strerror
from socket import (
    AI_NUMERICHOST,
    IPPROTO_TCP,
    SO_ERROR,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    gaierror,
)
from typing import Any

import gevent.socket
from gevent import monkey
from gevent.hub import Waiter

from harness.http1 import ProtocolViolation, ResponseReader, Truncated
from harness.limits import limit_met
from harness.transport.clock import ANCILLARY_BYTES, KernelClock, ask_for_stamps
from harness.transport.poller import READ, WRITE, Handler, Poller

_Socket = monkey.get_original("socket", "socket")
_getaddrinfo = monkey.get_original("socket", "getaddrinfo")
_READ_BYTES = 65536
_WHOLE, _HEAD, _PIECE, _ANYTHING = range(4)  # what the waiting greenlet waits for


class Connection:
    """A socket and at most one exchange on it; OSError, ssl.SSLError or ProtocolViolation come out.

    `connect_ns` is what DNS, TCP and TLS took. `gone` is true once the other side has closed, or an
    error has made the connection useless.
    """

    __slots__ = (
        "_clock",
        "_error",
        "_incoming",
        "_outgoing",
        "_poller",
        "_sending",
        "_sock",
        "_tls",
        "_unsent",
        "_waiter",
        "_want",
        "connect_ns",
        "gone",
        "reader",
        "sent_ns",
    )

    def __init__(self, poller: Poller, clock: KernelClock | None) -> None:
        self._poller = poller
        self._clock = clock
        self._sock: Any = None
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._waiter: Waiter | None = None
        self._want = _ANYTHING
        self._sending = False
        self._unsent = b""  # of what TLS has to say by itself
        self._error: Exception | None = None
        self.gone = False
        self.reader: ResponseReader | None = None
        self.sent_ns = 0
        self.connect_ns = 0

    def open(self, host: str, port: int, *, tls: ssl.SSLContext | None) -> None:
        """Connect to the first address that answers, and shake hands if `tls` is given."""
        began_ns = time.monotonic_ns()
        error: OSError | None = None
        for family, kind, protocol, _, address in _addresses(host, port):
            try:
                self._connect(_Socket(family, kind, protocol), address)
                break
            except OSError as found:
                if error is None or limit_met(error) is None:
                    error = found  # of a limit of ours the next address must not take the place
        else:
            raise error or OSError(f"{host} has no address")
        if tls is not None:
            self._shake_hands(tls, host)
        self.connect_ns = time.monotonic_ns() - began_ns

    def look(self) -> bool:
        """Tell whether an idle connection can be used: the other side has not closed it."""
        if not self.gone:
            self._on_idle()
        return not self.gone

    def send(self, data: bytes, reader: ResponseReader) -> None:
        """Send a request; `sent_ns` is stamped right before its first byte is handed over.

        It is sent whole, unless the reply is complete before: then the rest is not sent, and the
        connection is `gone`.
        """
        self.reader = reader
        self._want = _ANYTHING
        self.sent_ns = time.monotonic_ns()
        if self._sock is None:
            raise self._error or ConnectionResetError("the connection was closed")
        self._error = None
        if self._tls is not None:
            self._tls.write(data)
            data = self._unsent + self._outgoing.read()
            self._unsent = b""
            self.sent_ns = time.monotonic_ns()
        self._sending = True
        try:
            self._send_all(data, self._on_ready)
        finally:
            self._sending = False
        if self._outgoing.pending:
            self._say()

    def wait_whole(self) -> None:
        """Block until the reply is complete."""
        self._wait_for(_WHOLE)

    def wait_head(self) -> None:
        """Block until the reply's head is there."""
        self._wait_for(_HEAD)

    def wait_piece(self) -> None:
        """Block until there is more of the body, or its end."""
        self._wait_for(_PIECE)

    def close(self) -> None:
        """Close the socket; may be called again."""
        self.gone = True
        sock, self._sock = self._sock, None
        if sock is not None:
            self._poller.remove(sock.fileno())
            sock.close()

    # Waiting, in the greenlet that uses the connection

    def _wait_for(self, want: int) -> None:
        self._want = want
        while not self._is_there():
            if self._error is not None:
                raise self._error
            if self.gone:
                raise ConnectionResetError("the connection was closed")
            self._wait()

    def _is_there(self) -> bool:
        reader = self.reader
        assert reader is not None
        if reader.complete:
            return True
        if self._want == _HEAD:
            return reader.head is not None
        return self._want == _PIECE and reader.has_new

    def _wait(self) -> None:
        waiter = self._waiter = Waiter()
        try:
            waiter.get()
        finally:
            self._waiter = None

    # In the hub

    def _on_ready(self) -> None:
        reader = self.reader
        try:
            if reader is None or reader.complete:
                self._on_idle()
                return
            self._receive(reader)
        except Exception as error:  # noqa: BLE001 - who waits must hear of it, whatever it is
            self._fail(error)
            return
        if self._want == _ANYTHING or self._is_there():
            self._wake()

    def _receive(self, reader: ResponseReader) -> bool:
        """Feed what one read brings; False when there is nothing to read now."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ_BYTES, ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        t_ns = time.monotonic_ns()
        if data and self._clock is not None:
            t_ns = self._clock.stamp(ancillary, t_ns, self.sent_ns)
        if self._tls is not None:
            self._decrypt(reader, data, t_ns)
        elif data:
            reader.feed(data, t_ns)
        else:
            self.gone = True
            reader.eof(t_ns)
        return True

    def _on_idle(self) -> None:
        """Nobody asked: the other side has closed, or says what it must not; either way it is over.

        With TLS it may be a late ticket of the handshake.
        """
        try:
            while (data := self._sock.recv(_READ_BYTES)) and self._tls is not None:
                self._incoming.write(data)
                try:
                    self._tls.read(1)
                except ssl.SSLWantReadError:
                    continue
                break
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._error = error
        self.close()

    def _decrypt(self, reader: ResponseReader, data: bytes, t_ns: int) -> None:
        """Feed what one read of the socket holds as one piece, whatever the records in it."""
        plain, end = self._unwrap(data)
        if plain:
            reader.feed(plain, t_ns)
        if self._outgoing.pending and not self._sending:
            self._say()
        if end is None:
            return
        self.gone = True
        if reader.complete:
            return
        if isinstance(end, ssl.SSLEOFError):
            if reader.head is not None:  # anyone may have cut it, even a body that a close ends
                raise Truncated("closed inside the body, without TLS's close_notify")
        elif not isinstance(end, ssl.SSLZeroReturnError):
            raise end
        reader.eof(t_ns)

    def _unwrap(self, data: bytes) -> tuple[bytes, ssl.SSLError | None]:
        """Return what can be decrypted now, and what ended the stream, if it has ended."""
        assert self._tls is not None
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        plain: list[bytes] = []
        try:
            while part := self._tls.read(_READ_BYTES):
                plain.append(part)
            end: ssl.SSLError | None = ssl.SSLZeroReturnError()
        except ssl.SSLWantReadError:
            end = None
        except ssl.SSLError as found:
            end = found
        return b"".join(plain), end

    def _say(self) -> None:
        """Send what TLS has to say by itself, such as a new key; a request under way goes first."""
        self._unsent += self._outgoing.read()
        with suppress(OSError):  # what is left goes with the next request; errors show in reading
            self._unsent = self._unsent[self._sock.send(self._unsent) :]

    def _fail(self, error: Exception) -> None:
        self._error = error
        self.close()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._poller.soon(waiter.switch, None)

    # Connecting and sending

    def _connect(self, sock: Any, address: Any) -> None:
        self._sock = sock
        self.gone = False
        try:
            sock.setblocking(False)
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            if self._clock is not None:
                ask_for_stamps(sock)
            self._poller.add(sock.fileno(), self._wake, mask=WRITE)
            try:
                sock.connect(address)
            except BlockingIOError:
                self._wait()
                code = sock.getsockopt(SOL_SOCKET, SO_ERROR)
                if code:
                    raise OSError(code, strerror(code)) from None
        except BaseException:
            self.close()
            raise
        self._poller.change(sock.fileno(), self._on_ready, mask=READ)

    def _shake_hands(self, context: ssl.SSLContext, host: str) -> None:
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._poller.change(self._sock.fileno(), self._wake, mask=READ)
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    done = False
                if self._outgoing.pending:
                    self._send_all(self._outgoing.read(), self._wake)
                if done:
                    break
                self._receive_handshake()
        except BaseException:
            if self._outgoing.pending:
                self._say()  # tells the other side why
            self.close()
            raise
        self._poller.change(self._sock.fileno(), self._on_ready, mask=READ)

    def _receive_handshake(self) -> None:
        while True:
            try:
                data = self._sock.recv(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                self._wait()
                continue
            if not data:
                raise ConnectionResetError("closed in the TLS handshake")
            self._incoming.write(data)
            return

    def _send_all(self, data: bytes, handler: Handler) -> None:
        """Send all, or less if the reply is complete before; `handler` is for what comes in."""
        view = memoryview(data)
        while view:
            reader = self.reader
            if reader is not None and reader.complete:
                self.gone = True  # half a request stands in the way of another
                return
            if self._sock is None:
                raise self._error or ConnectionResetError("the connection was closed")
            try:
                view = view[self._sock.send(view) :]
            except (BlockingIOError, InterruptedError):
                self._wait_for_room(handler)
            except OSError:
                if reader is None or not self._was_answered(reader):
                    raise

    def _wait_for_room(self, handler: Handler) -> None:
        fd = self._sock.fileno()
        self._poller.change(fd, handler, mask=READ | WRITE)
        self._wait()
        if self._sock is not None:
            self._poller.change(fd, handler, mask=READ)

    def _was_answered(self, reader: ResponseReader) -> bool:
        """Read what came before the other side stopped listening; True if it is a whole reply."""
        with suppress(OSError, ProtocolViolation):
            while not reader.complete and not self.gone and self._receive(reader):
                pass
        return reader.complete


def _addresses(host: str, port: int) -> Any:
    """Resolve without a thread where the host is a number, with gevent's resolver elsewhere."""
    with suppress(gaierror):
        return _getaddrinfo(host, port, 0, SOCK_STREAM, 0, AI_NUMERICHOST)
    try:
        return gevent.socket.getaddrinfo(host, port, 0, SOCK_STREAM)
    except RuntimeError as error:  # no thread to do it in
        raise OSError(f"{host} cannot be looked up: {error}") from error
