"""One epoll for all sockets of the process, which gevent sees as a single watcher.

A watcher of its own for each socket costs a callback, a switch and a system call per read; here the
hub is called once for all sockets that are ready. Where there is no epoll (macOS), each has a
watcher after all.

What reading sets off (greenlets to wake, replies to decode) is done behind it, in slices of
`_SLICE_NS`: between two slices all that came in meanwhile is read, however much ended together.

To wake up costs more than to read. Where the kernel stamps what comes in, reading can wait: while
more comes in than one event per `_REST_NS` and no greenlet has to be woken, the process rests that
long between two turns, as network cards do that moderate their interrupts.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from gevent import monkey

READ, WRITE = 1, 4  # EPOLLIN, EPOLLOUT
_GEVENT_READ, _GEVENT_WRITE = 1, 2
_BATCH = 32  # sockets read at a time: about a millisecond, and others have their turn
_REST_NS = 250_000
_SLICE_NS = 500_000
_LATER_NS = 20_000_000
_NEVER_NS = 1 << 63

Handler = Callable[[], None]

_sleep = monkey.get_original("time", "sleep")


def _epoll() -> Any:
    """Return a new epoll object, or None; gevent's patching takes `select.epoll` away."""
    try:
        make = monkey.get_original("select", "epoll")
    except AttributeError:
        make = getattr(select, "epoll", None)
    return make() if make else None


def _nothing() -> None:
    pass


class Poller:
    """Calls `handler()` in the hub whenever its file descriptor is ready. It must not block.

    A handler that raises is a defect: the hub prints it, and its descriptor is watched no longer.
    """

    def __init__(self) -> None:
        self.may_rest: Callable[[], bool] = lambda: False
        """Tells whether reading late does no harm."""
        self.rest_until_ns = _NEVER_NS
        """No rest goes beyond this time of the monotonic clock."""
        self._hub = gevent.get_hub()
        self._handlers: dict[int, Handler] = {}
        self._epoll = _epoll()
        self._free_ns = 0  # when the turn before this one was over, its rest included
        self._woke = False
        self._due: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._behind: deque[Handler] = deque()
        self._check = self._hub.loop.check()  # called once a turn of gevent's loop,
        self._idle = self._hub.loop.idle()  # which does not wait for events meanwhile
        self._later: deque[tuple[int, Handler]] = deque()
        self._timer = self._hub.loop.timer(_LATER_NS / 1e9)
        self._watchers: dict[int, Any] = {}
        if self._epoll is not None:
            self._watcher = self._hub.loop.io(self._epoll.fileno(), _GEVENT_READ)
            self._watcher.start(self._turn)

    def add(self, fd: int, handler: Handler, *, mask: int = READ) -> None:
        """Watch a descriptor that is not watched yet."""
        if self._epoll is not None:
            self._epoll.register(fd, mask)
        else:
            self._watch(fd, handler, mask)
        self._handlers[fd] = handler

    def change(self, fd: int, handler: Handler, *, mask: int = READ) -> None:
        """Watch it for something else."""
        self._handlers[fd] = handler
        if self._epoll is not None:
            self._epoll.modify(fd, mask)
        else:
            self._watch(fd, handler, mask)

    def remove(self, fd: int) -> None:
        """Watch it no longer, if it is watched; to be called before it is closed."""
        if self._handlers.pop(fd, None) is None:
            return
        if self._epoll is not None:
            self._epoll.unregister(fd)
        else:
            self._watchers.pop(fd).close()

    @property
    def watched(self) -> int:
        """How many descriptors are watched."""
        return len(self._handlers)

    def soon(self, call: Callable[..., object], *args: object) -> None:
        """Call something from the hub after the sockets that are ready now have been read."""
        self._due.append((call, args))
        self._note_due()

    def next(self, call: Callable[..., object], *args: object) -> None:
        """Do as `soon` does, before all that is due soon."""
        self._due.appendleft((call, args))
        self._note_due()

    def behind(self, call: Handler) -> None:
        """Call something from the hub when nothing is due and all that is ready has been read."""
        self._behind.append(call)
        self._note_due()

    def later(self, call: Handler) -> None:
        """Call something from the hub in some 20 ms."""
        self._later.append((time.monotonic_ns() + _LATER_NS, call))
        if not self._timer.active:
            self._timer.start(self._call_later)

    def _note_due(self) -> None:
        self._woke = True
        if not self._idle.active:
            self._idle.start(_nothing)
            self._check.start(self._work)

    def _turn(self) -> None:
        began_ns = time.monotonic_ns()
        self._woke = False
        more = self._call_ready()
        if self._due or self._behind:
            self._work()
        if not more and not self._woke and began_ns - self._free_ns < _REST_NS and self.may_rest():
            self._rest()
        self._free_ns = time.monotonic_ns()

    def _rest(self) -> None:
        rest_ns = min(_REST_NS, self.rest_until_ns - time.monotonic_ns())
        if rest_ns > _REST_NS // 2:  # a shorter one costs more than it saves
            _sleep(rest_ns / 1e9)

    def _work(self) -> None:
        """Do what reading has set off, for the length of a slice."""
        until_ns = time.monotonic_ns() + _SLICE_NS
        due, behind = self._due, self._behind
        while due or behind:
            if due:
                call, args = due.popleft()
                self._safely(call, *args)
            else:
                self._safely(behind.popleft())
            if time.monotonic_ns() >= until_ns:
                return
        self._idle.stop()
        self._check.stop()

    def _call_later(self) -> None:
        later, now_ns = self._later, time.monotonic_ns()
        while later and later[0][0] <= now_ns:
            self._safely(later.popleft()[1])
        if later:
            self._timer.start(self._call_later)

    def _safely(self, call: Callable[..., object], *args: object) -> None:
        try:
            call(*args)
        except BaseException as error:  # noqa: BLE001 - what else is due must not wait for ever
            self._hub.handle_error(call, type(error), error, error.__traceback__)

    def _call_ready(self) -> bool:
        """Read some of what is ready; returns whether there may be more."""
        handlers = self._handlers
        ready = [(fd, handlers.get(fd)) for fd, _ in self._epoll.poll(0, _BATCH)]
        for fd, handler in ready:
            if handler is not None and handlers.get(fd) is handler:  # not removed by one before it
                try:
                    handler()
                except BaseException as error:  # noqa: BLE001 - gevent would stop the one watcher
                    self._report(fd, handler, error)
        return len(ready) == _BATCH

    def _report(self, fd: int, handler: Handler, error: BaseException) -> None:
        if isinstance(error, Exception):  # it would be raised again at every turn
            self.remove(fd)
        self._hub.handle_error(handler, type(error), error, error.__traceback__)

    def _call(self, fd: int, handler: Handler) -> None:
        try:
            handler()
        except BaseException as error:  # noqa: BLE001 - as above
            self._report(fd, handler, error)

    def _watch(self, fd: int, handler: Handler, mask: int) -> None:
        if fd in self._watchers:
            self._watchers[fd].close()
        wanted = (_GEVENT_READ if mask & READ else 0) | (_GEVENT_WRITE if mask & WRITE else 0)
        watcher = self._watchers[fd] = self._hub.loop.io(fd, wanted)
        watcher.start(self._call, fd, handler)
