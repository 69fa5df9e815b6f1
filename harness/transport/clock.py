"""Kernel receive stamps on the monotonic clock.

The kernel stamps arrivals with CLOCK_REALTIME; everything else here is CLOCK_MONOTONIC. The offset
between the two is sampled about once a second, since the wall clock is slewed, and may be stepped.
A stamp that cannot be true (after the present, or before the request was sent) tells of a step: the
offset is sampled again at once, and until it fits the present stands for the stamp.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence

_RESAMPLE_NS = 1_000_000_000
_STEP_NS = 1_000_000  # between two samples a slewed clock drifts by 0.5 ms at the very most
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python's socket module has no name for it
_TIMESPEC = struct.Struct("@qq")
ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0

KERNEL = "monotonic, kernel receive stamps (SO_TIMESTAMPNS)"
USER = "monotonic, user space, after the socket read"


class KernelClock:
    """Turns the kernel's stamps into monotonic ns; `steps` counts jumps of the wall clock."""

    __slots__ = ("_offset_ns", "_sampled_ns", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self._offset_ns = _offset_ns()
        self._sampled_ns = time.monotonic_ns()

    def stamp(self, ancillary: Sequence[tuple[int, int, bytes]], now_ns: int, since_ns: int) -> int:
        """Return when what a `recvmsg` returned came in, monotonic ns.

        `ancillary` is recvmsg's; without a stamp in it, `now_ns` is returned. A stamp before
        `since_ns` (the send) or after `now_ns` cannot be true.
        """
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                if now_ns - self._sampled_ns > _RESAMPLE_NS:
                    self._sample(now_ns)
                seconds, nanoseconds = _TIMESPEC.unpack(data)
                real_ns = seconds * 1_000_000_000 + nanoseconds
                t_ns: int = real_ns - self._offset_ns
                if since_ns <= t_ns <= now_ns:
                    return t_ns
                self._sample(now_ns)
                t_ns = real_ns - self._offset_ns
                return t_ns if since_ns <= t_ns <= now_ns else now_ns
        return now_ns

    def _sample(self, now_ns: int) -> None:
        offset_ns = _offset_ns()
        self.steps += abs(offset_ns - self._offset_ns) > _STEP_NS
        self._offset_ns, self._sampled_ns = offset_ns, now_ns


def ask_for_stamps(sock: socket.socket) -> bool:
    """Ask the kernel to stamp what this socket receives; False where it cannot."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


def _offset_ns() -> int:
    """Realtime minus monotonic: of five tries the one that was interrupted least."""
    tries: list[tuple[int, int]] = []
    for _ in range(5):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        tries.append((after - before, real - (before + after) // 2))
    return min(tries)[1]
