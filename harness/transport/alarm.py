"""Wakes a greenlet at an absolute time: a timerfd in the same epoll as the sockets.

gevent's own timers go by whole milliseconds of a clock that is read once a turn, so that a sleep
ends some 0.6 ms late. Where there is no timerfd, they serve.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

import gevent
from gevent.hub import Waiter

from harness.transport.poller import Poller

_NS = 1_000_000_000
_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC, _ABSOLUTE = 1, 0o2004000, 1  # linux/timerfd.h
_PR_SET_TIMERSLACK = 29  # linux/prctl.h


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
        self._libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        self._fd = -1
        if self._libc is not None:
            self._libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # ns; by default 50 µs late at will
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd >= 0:
            poller.add(self._fd, self._on_due)

    def sleep_until(self, due_ns: int) -> None:
        """Block until `due_ns` on the monotonic clock has come, or until `cancel`.

        The hub has its turn even when `due_ns` is past.
        """
        while not self._sleep(due_ns) and time.monotonic_ns() < due_ns:
            pass  # gevent's timers may be early

    def cancel(self) -> None:
        """Wake whoever sleeps."""
        self._wake(cancelled=True)

    def _wake(self, *, cancelled: bool = False) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._poller.soon(waiter.switch, cancelled)

    def close(self) -> None:
        """Wake whoever sleeps, and give the timer back."""
        self.cancel()
        if self._fd >= 0:
            self._poller.remove(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _sleep(self, due_ns: int) -> bool:
        """Tell whether it was `cancel` that ended it."""
        waiter = self._waiter = Waiter()
        timer = None
        try:
            if self._fd >= 0:
                self._arm(max(1, due_ns))
            else:
                left_s = max(0, due_ns - time.monotonic_ns()) / _NS
                timer = self._loop.timer(left_s)
                timer.start(self._wake)
            return bool(waiter.get())
        finally:
            self._waiter = None
            if timer is not None:
                timer.close()

    def _arm(self, due_ns: int) -> None:
        setting = _Setting(_Timespec(0, 0), _Timespec(*divmod(due_ns, _NS)))
        assert self._libc is not None
        if self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(setting), None) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def _on_due(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._wake()
