"""One request and its reply, whatever carries them: what its greenlet waits for, who wakes it.

Whoever follows the reply is handed what came of its body behind the reading, some pieces at a time,
and can say that the rest of it does not matter: then the greenlet waits for another moment only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from gevent.hub import Waiter

from harness.http1 import Head, Piece
from harness.transport.messages import Decoded, Follower, Message
from harness.transport.poller import Poller

MAX_BODY_BYTES = 256 << 20  # of a reply
_FOLLOWED_PIECES = 16  # handed over at a time: one by one would cost more than decoding does
_SHORT_BYTES = 16  # a piece as short may hold the second half of an end mark
WHOLE, HEAD, PIECE, ANYTHING = range(4)  # what the waiting greenlet waits for


class Reply(Protocol):
    """A reply as far as it has come in; `ResponseReader` says what is what."""

    head: Head | None
    first_t_ns: int | None
    complete: bool
    end_t_ns: int | None

    @property
    def loose(self) -> Mapping[int, int]:
        """Stamps of pieces whose last byte came before them, and what each came after."""

    @property
    def has_new(self) -> bool:
        """Whether there are pieces to take."""

    @property
    def new(self) -> Sequence[Piece]:
        """The pieces to take."""

    def take(self) -> list[Piece]:
        """Return the pieces of the body that are new since the last call."""


class Exchange:
    """A request that was or will be sent, and its reply.

    `connect_ns` is what was spent on connecting for it. `gone` is true when what carries it can
    carry no more.
    """

    __slots__ = (
        "_error",
        "_follower",
        "_following",
        "_poller",
        "_waiter",
        "_want",
        "connect_ns",
        "enough",
        "gone",
        "reader",
        "sent_ns",
    )

    reader: Reply | None

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._waiter: Waiter | None = None
        self._want = ANYTHING
        self._error: Exception | None = None
        self._follower: Follower | None = None
        self._following = False
        self.gone = False
        self.enough = False
        """Whoever follows the reply needs no more of it, and it has not ended."""
        self.reader = None
        self.sent_ns = 0
        self.connect_ns = 0

    def follow_by(self, follower: Follower | None) -> None:
        """Let the next reply be followed; to be said before it is asked for."""
        self._follower, self._following, self.enough = follower, False, False

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
        if reader.complete or self.enough:
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
        """Wake the greenlet if what it waits for is there, or hand over what came."""
        if self._waiter is not None and (self._want == ANYTHING or self._is_there()):
            self._wake()
        elif self._follower is not None and not self._following:
            self._follow_soon(self._follower)

    def _follow_soon(self, follower: Follower) -> None:
        """Hand over what came when there is enough of it, or the end may be in it."""
        reader = self.reader
        if reader is None or reader.head is None or not reader.has_new:
            return
        pieces = reader.new
        last = pieces[-1][0]
        enough = len(pieces) >= _FOLLOWED_PIECES or len(last) < _SHORT_BYTES
        if (enough or follower.end_mark in last) and follower.follows(reader.head.status):
            self._following = True
            self._poller.behind(self._follow)

    def _follow(self) -> None:
        self._following = False
        reader, follower = self.reader, self._follower
        if reader is None or reader.head is None or follower is None or not reader.has_new:
            return
        pieces = reader.take()
        first_ns = reader.first_t_ns or 0
        since_ns = first_ns if first_ns < pieces[0][1] else self.sent_ns
        headers = Decoded(reader.head.by_name)
        over = follower.follow(headers, pieces, since_ns, reader.loose)
        if over and not reader.complete:
            self._poller.later(partial(self._have_enough, reader))

    def _have_enough(self, reader: Reply) -> None:
        """Wake who waits for a reply that needs no more and has not ended by now."""
        if self.reader is reader and not reader.complete and self._waiter is not None:
            self.enough = True
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._poller.soon(waiter.switch, None)
