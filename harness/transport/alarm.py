"""Wakes a greenlet at an absolute time: a timerfd in the same epoll as the sockets.

gevent's own timers go by whole milliseconds of a clock that is read once a turn, so that a sleep
ends some 0.6 ms late. Where there is no timerfd, they serve.

An idle core takes tens of µs to wake up. The timer is therefore set a little early, by as much as
nine of ten wake-ups have lately taken, and what is left is spun away on the clock.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.hub import Waiter

from harness.transport.poller import Poller

_NS = 1_000_000_000
_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC, _ABSOLUTE = 1, 0o2004000, 1  # linux/timerfd.h
_PR_SET_TIMERSLACK = 29  # linux/prctl.h

_MOST_LEAD_NS = 100_000  # whoever wakes up later than this was busy or preempted: no lead helps
_LEAD_SHARE = 10  # at most a tenth of a sleep, so that spinning costs a tenth of an idle core
_LEAD_STEP_NS = 200


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("every", _Timespec), ("first", _Timespec))


class Alarm:
    """One greenlet at a time sleeps on it; `cancel` wakes it early."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._loop = gevent.get_hub().loop
        self._waiter: Waiter | None = None
        self._then: Callable[[], object] | None = None
        self._due_ns = self._armed_ns = 0
        self._lead_ns = _MOST_LEAD_NS // 2
        self._timer: Any = None  # gevent's, where there is no timerfd
        self._libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        self._fd = -1
        if self._libc is not None:
            self._libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # ns; by default 50 µs late at will
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd >= 0:
            poller.add(self._fd, self._on_timerfd)

    def sleep_until(self, due_ns: int, then: Callable[[], object] | None = None) -> None:
        """Block until `due_ns` on the monotonic clock has come, or until `cancel`.

        When it has come, `then` is called in the hub, before anything else has its turn; what it
        raises is raised here. The hub has its turn even when `due_ns` is past.
        """
        waiter = self._waiter = Waiter()
        self._due_ns, self._then = due_ns, then
        try:
            if self._fd >= 0:
                self._arm()
            else:
                self._start_timer()
            waiter.get()
        finally:
            self._waiter = self._then = None
            self._stop_timer()

    def cancel(self) -> None:
        """Wake whoever sleeps."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._poller.next(waiter.switch, None)

    def close(self) -> None:
        """Wake whoever sleeps, and give the timer back."""
        self.cancel()
        if self._fd >= 0:
            self._poller.remove(self._fd)
            os.close(self._fd)
            self._fd = -1

    # By timerfd

    def _arm(self) -> None:
        left_ns = self._due_ns - time.monotonic_ns()
        lead_ns = max(0, min(self._lead_ns, left_ns // _LEAD_SHARE))
        self._armed_ns = self._due_ns - lead_ns
        self._poller.rest_until_ns = self._armed_ns
        setting = _Setting(_Timespec(0, 0), _Timespec(*divmod(max(1, self._armed_ns), _NS)))
        assert self._libc is not None
        if self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(setting), None) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def _on_timerfd(self) -> None:
        woken_ns = time.monotonic_ns()
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew since
            return
        if self._waiter is not None:
            self._learn(woken_ns - self._armed_ns)
            while time.monotonic_ns() < self._due_ns:
                pass
            self._ring()

    def _learn(self, delay_ns: int) -> None:
        """Follow the 90th percentile of the delays: there, nine steps down meet one of nine up."""
        if delay_ns < _MOST_LEAD_NS:
            self._lead_ns += 9 * _LEAD_STEP_NS if delay_ns > self._lead_ns else -_LEAD_STEP_NS

    # By gevent's timers

    def _start_timer(self) -> None:
        self._timer = self._loop.timer(max(0, self._due_ns - time.monotonic_ns()) / _NS)
        self._timer.start(self._on_timer)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _on_timer(self) -> None:
        self._stop_timer()
        if time.monotonic_ns() < self._due_ns:  # they may be early
            self._start_timer()
        else:
            self._ring()

    def _ring(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        try:
            if self._then is not None:
                self._then()
        except BaseException as error:  # noqa: BLE001 - the sleeper must hear of it, whatever it is
            self._poller.next(waiter.throw, error)
        else:
            self._poller.next(waiter.switch, None)
