"""The limits of the machine that makes the load: which error says that one is met, what to change.

What runs into one has not met the target: it is a failure of a kind of its own, `generator limit
EMFILE`, that is counted, and voids what it touches. Only errors of the transport are asked about
here; a file that the scenario cannot open is its own business.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from contextlib import suppress
from pathlib import Path

KIND = "generator limit"
_MOST_DESCRIPTORS = 1 << 20  # of an unlimited hard limit; the kernel allows no more by default
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

_PORTS = (
    "widen net.ipv4.ip_local_port_range, set net.ipv4.tcp_tw_reuse to 1, or let the target keep "
    "connections alive: no local port is left, or no local address of the target's family"
)
_MEMORY = "free memory, or raise net.ipv4.tcp_mem or the container's memory: the kernel has none"
_SETTINGS = {
    "EMFILE": "raise the limit of open files of a process: ulimit -n (hard and soft; nofile in "
    "limits.conf, LimitNOFILE of a service, --ulimit nofile of a container)",
    "ENFILE": "raise fs.file-max, the limit of open files of the machine",
    "EADDRNOTAVAIL": _PORTS,
    "EADDRINUSE": _PORTS,
    "ENOBUFS": _MEMORY,
    "ENOMEM": _MEMORY,
    "ENOSPC": "raise fs.epoll.max_user_watches, the limit of watched sockets of a user",
    "EAGAIN": "raise the limit of processes and threads: ulimit -u, kernel.threads-max, or the "
    "container's pids limit",
}
_BY_ERRNO = {
    getattr(errno, name): name
    for name in _SETTINGS
    if name != "EAGAIN"  # of a socket it says "later"; of a thread Python makes a RuntimeError
}
_NO_NAME = (socket.EAI_AGAIN, socket.EAI_NONAME, socket.EAI_FAIL)


def limit_met(error: BaseException) -> str | None:
    """Return the name of the limit that an error of the transport is due to, such as EMFILE.

    Only what it was raised from counts: what was handled at the time may be the scenario's own. A
    resolver that fails for want of a descriptor says that a name is unknown, so one is tried.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return _resolver_limit(cause)
        if isinstance(cause, OSError) and cause.errno is not None:
            return _BY_ERRNO.get(cause.errno)
        if isinstance(cause, MemoryError):
            return "ENOMEM"
        if isinstance(cause, RuntimeError) and "new thread" in str(cause):
            return "EAGAIN"
        cause = cause.__cause__
    return None


def kind_of(name: str) -> str:
    """Return the kind by which requests that met a limit are counted."""
    return f"{KIND} {name}"


def name_in(kind: str) -> str | None:
    """Return the limit that a kind of failure names; None for every other kind."""
    before, _, name = kind.rpartition(" ")
    return name if before == KIND else None


def setting(name: str) -> str:
    """Say which setting to change where a limit was met."""
    return _SETTINGS.get(name, "raise what the error names")


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files as far as the hard one allows; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft if soft >= 0 else _MOST_DESCRIPTORS
    for limit in (wanted, 10_240):  # macOS allows no more, whatever the hard limit says
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return limit
    return soft


def local_ports() -> int | None:
    """Return how many connections one address and port can have at a time; None if unknown."""
    try:
        low, high = map(int, _PORT_RANGE.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return None
    return high - low + 1


def _resolver_limit(error: socket.gaierror) -> str | None:
    if error.errno == socket.EAI_MEMORY:
        return "ENOMEM"
    if error.errno not in _NO_NAME:
        return None
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as refused:
        return _BY_ERRNO.get(refused.errno or 0)
    return None
