"""One request and its reply, whatever carries them: what its greenlet waits for, who wakes it."""

from __future__ import annotations

from typing import Protocol

from gevent.hub import Waiter

from harness.http1 import Head, Piece
from harness.transport.messages import Message
from harness.transport.poller import Poller

MAX_BODY_BYTES = 256 << 20  # of a reply
WHOLE, HEAD, PIECE, ANYTHING = range(4)  # what the waiting greenlet waits for


class Reply(Protocol):
    """A reply as far as it has come in; `ResponseReader` says what is what."""

    head: Head | None
    first_t_ns: int | None
    complete: bool
    end_t_ns: int | None

    @property
    def has_new(self) -> bool:
        """Whether there are pieces to take."""

    def take(self) -> list[Piece]:
        """Return the pieces of the body that are new since the last call."""


class Exchange:
    """A request that was or will be sent, and its reply.

    `connect_ns` is what was spent on connecting for it. `gone` is true when what carries it can
    carry no more.
    """

    __slots__ = ("_error", "_poller", "_waiter", "_want", "connect_ns", "gone", "reader", "sent_ns")

    reader: Reply | None

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._waiter: Waiter | None = None
        self._want = ANYTHING
        self._error: Exception | None = None
        self.gone = False
        self.reader = None
        self.sent_ns = 0
        self.connect_ns = 0

    def send(self, message: Message) -> None:
        """Send a request; `sent_ns` is stamped right before its first byte is handed over.

        It is sent whole, unless the reply is complete before: then the rest is not sent.
        """
        raise NotImplementedError

    def wait_whole(self) -> None:
        """Block until the reply is complete."""
        self._wait_for(WHOLE)

    def wait_head(self) -> None:
        """Block until the reply's head is there."""
        self._wait_for(HEAD)

    def wait_piece(self) -> None:
        """Block until there is more of the body, or its end."""
        self._wait_for(PIECE)

    def close(self) -> None:
        """Give it up, wherever it stands; may be called again."""
        raise NotImplementedError

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
        if self._want == HEAD:
            return reader.head is not None
        return self._want == PIECE and reader.has_new

    def _wait(self) -> None:
        waiter = self._waiter = Waiter()
        try:
            waiter.get()
        finally:
            self._waiter = None

    def _notice(self) -> None:
        """Wake the greenlet if what it waits for is there."""
        if self._waiter is not None and (self._want == ANYTHING or self._is_there()):
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._poller.soon(waiter.switch, None)
