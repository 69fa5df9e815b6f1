"""A socket whose reads have the kernel's stamp of their arrival; plain, or within TLS.

With TLS its bytes pass through memory, so that they keep the stamps. All that blocks, blocks the
greenlet that calls: connecting, shaking hands, and what is asked of a proxy. Reading and writing do
not block; the handler that watches the socket decides when.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from contextlib import suppress
from os import strerror
from socket import (
    AF_UNIX,
    AI_NUMERICHOST,
    IPPROTO_TCP,
    SO_ERROR,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    gaierror,
)
from time import monotonic_ns
from typing import Any

import gevent.socket
from gevent import monkey
from gevent.hub import Waiter

from harness.limits import limit_met
from harness.transport.clock import ANCILLARY_BYTES, KernelClock, ask_for_stamps
from harness.transport.poller import READ, WRITE, Handler, Poller
from harness.transport.tls import TlsLayer

_Socket = monkey.get_original("socket", "socket")
_getaddrinfo = monkey.get_original("socket", "getaddrinfo")
_READ_BYTES = 65536
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # Linux alone has it


class StampedSocket:
    """A connected socket; OSError and ssl.SSLError come out.

    `end` is what ended the stream of what comes in, None while it goes on: EOFError for a proper
    end, ssl.SSLEOFError for one without TLS's close_notify, or an error of TLS.
    """

    __slots__ = (
        "_acks_at_once",
        "_clock",
        "_handler",
        "_layers",
        "_outbox",
        "_poller",
        "_sock",
        "_waiter",
        "end",
    )

    def __init__(self, poller: Poller, clock: KernelClock | None) -> None:
        self._poller = poller
        self._clock = clock
        self._sock: Any = None
        self._acks_at_once = False
        self._layers: tuple[TlsLayer, ...] = ()  # the outermost first
        self._outbox: deque[memoryview] = deque()
        self._waiter: Waiter | None = None
        self._handler: Handler = self._wake
        self.end: Exception | None = None

    # Blocking: before there is a protocol on it

    def connect(self, host: str, port: int) -> None:
        """Connect to the first address that answers."""
        error: OSError | None = None
        for family, kind, protocol, _, address in _addresses(host, port):
            try:
                sock = _Socket(family, kind, protocol)
                sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
                self._connect(sock, address)
            except OSError as found:
                if error is None or limit_met(error) is None:
                    error = found  # the next address must not take the place of a limit of ours
            else:
                return
        raise error or OSError(f"{host} has no address")

    def connect_unix(self, path: str) -> None:
        """Connect to the socket that is a file."""
        self._connect(_Socket(AF_UNIX, SOCK_STREAM), path)

    def acknowledge_at_once(self) -> None:
        """Acknowledge all that comes in without delay.

        Who sends with Nagle's algorithm holds a token back until the one before is acknowledged,
        which the kernel puts off for up to 40 ms.
        """
        self._acks_at_once = _QUICKACK is not None
        self._acknowledge()

    def start_tls(self, context: ssl.SSLContext, host: str) -> str | None:
        """Shake hands inside what there is; returns the protocol agreed on by ALPN."""
        layer = TlsLayer(context, host)
        data = b""
        try:
            while True:
                done, answer = layer.shake_hands(data)
                self.write_blocking(answer)
                if done:
                    break
                data = self.read_blocking("in the TLS handshake")
        except BaseException:
            with suppress(OSError):  # tells the other side why
                self.write(layer.wrap(b""))
                self.flush()
            self.close()
            raise
        self._layers = (*self._layers, layer)
        return layer.protocol

    def write_blocking(self, data: bytes) -> None:
        """Send all of it."""
        self.write(data)
        while not self.flush():
            self.watch_writing(on=True)
            self._wait()
            self.watch_writing(on=False)

    def read_exactly(self, size: int, where: str) -> bytes:
        """Return as many bytes, and leave what follows them."""
        data = b""
        while len(data) < size:
            data += self.read_blocking(where, size - len(data))
        return data

    def read_blocking(self, where: str, limit: int = _READ_BYTES) -> bytes:
        """Return what comes in, at least a byte; ConnectionResetError says where it was closed.

        With TLS the limit is not kept.
        """
        while True:
            read = self.receive(0, limit)
            if read is None:
                self._wait()
            elif read[0]:
                return read[0]
            elif self.end is not None:
                raise ConnectionResetError(f"closed {where}")

    # Not blocking: in the hub, or in the greenlet that sends

    def watch(self, handler: Handler) -> None:
        """Call `handler` in the hub when there is something to read."""
        self._handler = handler
        self._poller.change(self._sock.fileno(), handler, mask=READ)

    def watch_writing(self, *, on: bool) -> None:
        """Call the handler too when there is room to write, or no longer."""
        mask = READ | WRITE if on else READ
        self._poller.change(self._sock.fileno(), self._handler, mask=mask)

    def receive(self, since_ns: int, limit: int = _READ_BYTES) -> tuple[bytes, int] | None:
        """Return what one read brings and its stamp; None when there is nothing to read now.

        The bytes may be none: at the `end`, or when TLS had something to say by itself.
        `since_ns` is a time that the stamp cannot be before.
        """
        try:
            data, ancillary, _, _ = self._sock.recvmsg(limit, ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        t_ns = monotonic_ns()
        if self._acks_at_once:  # again, as the kernel forgets it
            self._acknowledge()
        if not data:
            self.end = EOFError()
        elif self._clock is not None:
            t_ns = self._clock.stamp(ancillary, t_ns, since_ns)
        if self._layers:
            for layer in self._layers:
                data, self.end = layer.unwrap(data, self.end)
            self._say()
        return data, t_ns

    def early(self) -> bytes:
        """Return what came within TLS together with the end of the handshake."""
        data = b""
        for layer in self._layers:
            data, self.end = layer.unwrap(data, None)
        return data

    def write(self, data: bytes) -> None:
        """Put data behind what is still to be sent; `flush` sends it."""
        if self._sock is None:
            raise ConnectionResetError("the connection was closed")
        for layer in reversed(self._layers):
            data = layer.wrap(data)
        self._outbox.append(memoryview(data))

    def flush(self) -> bool:
        """Send what can be sent now; True when that is all there is."""
        outbox = self._outbox
        while outbox:
            if self._sock is None:
                raise ConnectionResetError("the connection was closed")
            view = outbox[0]
            try:
                sent = self._sock.send(view)
            except (BlockingIOError, InterruptedError):
                return False
            if sent < len(view):
                outbox[0] = view[sent:]
            else:
                outbox.popleft()
        return True

    @property
    def is_open(self) -> bool:
        """False once it was closed here."""
        return self._sock is not None

    def close(self) -> None:
        """Close the socket; may be called again."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._poller.remove(sock.fileno())
            sock.close()

    def _acknowledge(self) -> None:
        if _QUICKACK is not None:
            self._sock.setsockopt(IPPROTO_TCP, _QUICKACK, 1)

    def _say(self) -> None:
        """Send what TLS has to say by itself, such as a new key; what is under way goes first.

        What cannot be sent now goes with what is sent next; errors show in reading.
        """
        data = b""
        for layer in reversed(self._layers):
            data = layer.wrap(data)
        if data:
            self._outbox.append(memoryview(data))
            with suppress(OSError):
                self.flush()

    def _connect(self, sock: Any, address: Any) -> None:
        self._sock = sock
        try:
            sock.setblocking(False)
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
        self._poller.change(sock.fileno(), self._handler, mask=READ)

    def _wait(self) -> None:
        waiter = self._waiter = Waiter()
        try:
            waiter.get()
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._poller.soon(waiter.switch, None)


def _addresses(host: str, port: int) -> Any:
    """Resolve without a thread where the host is a number, with gevent's resolver elsewhere."""
    with suppress(gaierror):
        return _getaddrinfo(host, port, 0, SOCK_STREAM, 0, AI_NUMERICHOST)
    try:
        return gevent.socket.getaddrinfo(host, port, 0, SOCK_STREAM)
    except RuntimeError as error:  # no thread to do it in
        raise OSError(f"{host} cannot be looked up: {error}") from error
