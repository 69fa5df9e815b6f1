"""What a selftest found, and where it is kept: it holds for the machine that it was made on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from harness import __version__
from harness.recorder import write_atomically

SCHEMA_VERSION = 3  # 1: first; 2: the limit of the send lag; 3: the shapes of plans
_SHAPES_KEPT = 20
SEND_LAG = "send lag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One step of rising load: what was really carried, and how well.

    `broke` names what made the worker unfit here; empty when nothing did.
    """

    per_s: float
    error_p99_ns: int | None
    send_lag_p99_ns: int | None
    cpu: float | None
    server_late: bool
    broke: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The most that one worker carried; `at_least` when something else ended the measurement."""

    per_s: float
    at_least: bool
    ended_by: str
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StampError:
    """Reported stamp − the server's own stamp right before its write, of each token event, ns."""

    events: int
    streams: int
    p50_ns: int
    p99_ns: int
    p999_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a plan asks of the client: the most streams at once, in `stage`, and by which way."""

    stage: str
    streams: int
    workers: int
    tls: bool
    http2: bool
    proxy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far reported times were from true ones, either way, ns."""

    p50_ns: int
    p99_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InStep:
    """How wrong times were in a plan's own shape, all streams written in the same ticks.

    `streams`, `tls` and `http2` are what was tested of it; `merged` is the share of tokens whose
    stamp is that of a later one, `server_late_ns` how long the server took to write a tick (p99).
    """

    shape: Shape
    streams: int
    tls: bool
    http2: bool
    tokens: int
    replies: int
    failed: int
    ttft: Errors
    itl: Errors
    e2el: Errors
    merged: float
    stall_ns: int
    server_late_ns: int
    clock: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selftest:
    """What was found out about this machine. `clock` is the one that stamped the tokens.

    A worker whose send lag's p99 reached `send_lag_limit_ns` was unfit. `in_step` holds the shapes
    of the plans that were given, the latest first.
    """

    machine: dict[str, Any]
    measured_at: str
    took_s: float
    clock: str
    send_lag_limit_ns: int
    stamp_error: StampError
    token_events: Ceiling
    requests: Ceiling
    in_step: tuple[InStep, ...] = ()

    def of_shape(self, shape: Shape | None) -> InStep | None:
        """Return what was found of a shape, in whichever stage; None when it was not tested."""
        if shape is None:
            return None
        return next(
            (one for one in self.in_step if replace(one.shape, stage=shape.stage) == shape), None
        )


def at_send_lag_limit(found: Selftest, limit_ns: int) -> Selftest:
    """Return what the same measurement says of a worker whose sends may be late by another limit.

    Beyond a limit that is higher than the one measured by, what was carried is a lower bound.
    """
    if limit_ns == found.send_lag_limit_ns:
        return found
    return replace(
        found,
        send_lag_limit_ns=limit_ns,
        token_events=ceiling_of([_at(level, limit_ns) for level in found.token_events.levels]),
        requests=ceiling_of([_at(level, limit_ns) for level in found.requests.levels]),
    )


def _at(level: Level, limit_ns: int) -> Level:
    others = tuple(reason for reason in level.broke if reason != SEND_LAG)
    lag_ns = level.send_lag_p99_ns
    late = lag_ns is not None and lag_ns >= limit_ns
    return replace(level, broke=(SEND_LAG, *others) if late else others)


def ceiling_of(levels: Sequence[Level]) -> Ceiling:
    """Return the most that was carried before two steps in a row broke, or the last one.

    A single broken step with a good one after it is a hiccup of the machine. Where the servers
    fell behind, or nothing broke, the worker may carry more.
    """
    last_good = -1
    for number, level in enumerate(levels):
        if not level.broke:
            last_good = number
        elif number - last_good == 2:
            break
    beyond = levels[last_good + 1 : last_good + 3]
    best = max((level.per_s for level in levels[: last_good + 1] if not level.broke), default=0.0)
    late = any(level.server_late for level in levels[max(0, last_good) : last_good + 2])
    reasons = dict.fromkeys(reason for level in beyond for reason in level.broke)
    ended_by = (
        "the test server" if late else " and ".join(reasons) if reasons else "the end of the steps"
    )
    return Ceiling(
        per_s=best, at_least=late or not reasons, ended_by=ended_by, levels=tuple(levels)
    )


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return the facts that a saved result holds for."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "python": platform.python_version(),
        "harness": __version__,
    }


def saved_path() -> Path:
    """Return where the result is kept: `latency-harness/selftest.json` in the cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "latency-harness" / "selftest.json"


def save(found: Selftest) -> Path:
    """Keep a result for `harness run` to look at; OSError when it cannot be written.

    Shapes of other plans that were tested before on this machine are kept with it.
    """
    before = saved()
    for one in before.in_step if before else ():
        if found.of_shape(one.shape) is None and len(found.in_step) < _SHAPES_KEPT:
            found = replace(found, in_step=(*found.in_step, one))
    path = saved_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(plain(found), indent=1) + "\n")
    return path


def saved() -> Selftest | None:
    """Return the saved result, or None when there is none that holds for this machine."""
    try:
        data = json.loads(saved_path().read_text(encoding="utf-8"))
        if data.pop("schema_version") != SCHEMA_VERSION or data["machine"] != machine():
            return None
        return Selftest(
            stamp_error=StampError(**data.pop("stamp_error")),
            token_events=_ceiling(data.pop("token_events")),
            requests=_ceiling(data.pop("requests")),
            in_step=tuple(map(_in_step, data.pop("in_step"))),
            **data,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _ceiling(data: dict[str, Any]) -> Ceiling:
    levels = tuple(Level(**level | {"broke": tuple(level["broke"])}) for level in data["levels"])
    return Ceiling(**data | {"per_s": float(data["per_s"]), "levels": levels})


def _in_step(data: dict[str, Any]) -> InStep:
    shape = Shape(**data["shape"])
    errors = {name: Errors(**data[name]) for name in ("ttft", "itl", "e2el")}
    return InStep(**data | {"shape": shape} | errors)


def plain(found: Selftest) -> dict[str, Any]:
    """Return a result as plain values for JSON."""
    return {"schema_version": SCHEMA_VERSION, **asdict(found)}
