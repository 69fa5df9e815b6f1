"""Kernel receive stamps on the monotonic clock.

The kernel stamps arrivals with CLOCK_REALTIME; everything else here is CLOCK_MONOTONIC. The offset
between the two is sampled about once a second, since the wall clock is slewed, and may be stepped.
A stamp that cannot be true (after the present, or before the request was sent) tells of a step: the
offset is sampled again at once, and until it fits the present stands for the stamp.

The kernel begins to stamp a moment after the first socket has asked, and ends with the last that
did: one socket asks for as long as the process lives, or fresh connections would miss some stamps.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from functools import cache

_RESAMPLE_NS = 1_000_000_000
_STEP_NS = 1_000_000  # between two samples a slewed clock drifts by 0.5 ms at the very most
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python's socket module has no name for it
_TIMESPEC = struct.Struct("@ll")
_BYTES = _TIMESPEC.size
ANCILLARY_BYTES = socket.CMSG_SPACE(_BYTES) if hasattr(socket, "CMSG_SPACE") else 0

KERNEL = "monotonic, kernel receive stamps (SO_TIMESTAMPNS)"
USER = "monotonic, user space, after the socket read"


class KernelClock:
    """Turns the kernel's stamps into monotonic ns.

    `stepped_ns` are the times at which jumps of the wall clock were noticed, `stamped` and
    `unstamped` count the reads with a stamp of the kernel's and without.
    """

    __slots__ = ("_offset_ns", "_sampled_ns", "stamped", "stepped_ns", "unstamped")

    def __init__(self) -> None:
        _keep_stamping()
        self.stamped = self.unstamped = 0
        self.stepped_ns: list[int] = []
        self._offset_ns = _offset_ns()
        self._sampled_ns = time.monotonic_ns()

    @property
    def steps(self) -> int:
        """How often the wall clock has jumped, as far as was noticed."""
        return len(self.stepped_ns)

    def stamp(self, ancillary: Sequence[tuple[int, int, bytes]], now_ns: int, since_ns: int) -> int:
        """Return when what a `recvmsg` returned came in, monotonic ns.

        `ancillary` is recvmsg's; without a stamp in it, `now_ns` is returned. A stamp before
        `since_ns` (the send) or after `now_ns` cannot be true.
        """
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(data) == _BYTES:
                self.stamped += 1
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
        self.unstamped += 1
        return now_ns

    def _sample(self, now_ns: int) -> None:
        offset_ns = _offset_ns()
        if abs(offset_ns - self._offset_ns) > _STEP_NS:
            self.stepped_ns.append(now_ns)
        self._offset_ns, self._sampled_ns = offset_ns, now_ns


def ask_for_stamps(sock: socket.socket) -> bool:
    """Ask the kernel to stamp what this socket receives; False where it cannot."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


@cache
def _keep_stamping() -> int | None:
    """Leave a socket open that asks for stamps; None where there is nothing to ask."""
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        return None
    with sock:
        return sock.detach() if ask_for_stamps(sock) else None


def _offset_ns() -> int:
    """Realtime minus monotonic: of five tries the one that was interrupted least."""
    tries: list[tuple[int, int]] = []
    for _ in range(5):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        tries.append((after - before, real - (before + after) // 2))
    return min(tries)[1]
