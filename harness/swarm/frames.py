"""What the parent and its workers say to each other over pipes: pickled, length first.

Both ends are this program, so pickle is safe here; nothing else ever reads these pipes.

    parent → worker   Job, Start, Stop          worker → parent   Ready | Broken, Report…, Done
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.errors import ExitCode
from harness.plan import Plan

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that a worker needs to know."""

    plan: Plan
    url: str
    interval_ns: int
    worker: int
    workers: int
    preflight: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How one task of the scenario fared in the preflight; `steps` are (name, failure, detail)."""

    task: str
    steps: tuple[tuple[str, str | None, dict[str, Any]], ...]
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The scenario is loaded, the preflight (if asked for) done, users can start."""

    probes: tuple[Probe, ...]
    clock: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The worker cannot run; `code` says whose fault that is."""

    message: str
    code: ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Time zero of the load, on the monotonic clock that all processes of a machine share."""

    t0_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Plan no more arrivals; drain, report and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The last frame: how many reports were sent, so that a missing one is noticed.

    Of all reads of sockets, `stamped` had the kernel's stamp and `unstamped` had none; `stepped_ns`
    are the times, on the monotonic clock, at which the wall clock was found stepped.
    """

    reports: int
    interrupted: bool
    first_failure: str | None
    retries: int
    clock: str
    stamped: int = 0
    unstamped: int = 0
    first_exception: str | None = None
    stepped_ns: tuple[int, ...] = ()


def encode(frame: object) -> bytes:
    """Return a frame as bytes for a pipe."""
    data = pickle.dumps(frame, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def decode(read_exactly: Callable[[int], bytes]) -> Any:
    """Return the next frame, None at the end of the pipe, where `read_exactly` gives b""."""
    head = read_exactly(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = read_exactly(length)
    return pickle.loads(data) if len(data) == length else None  # noqa: S301 - our own pipe
