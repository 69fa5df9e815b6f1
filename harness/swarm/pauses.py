"""How long this process's event loop, and its garbage collector, stood still."""

from __future__ import annotations

import gc
import time
from typing import Self

import gevent

_TICK_S = 0.02
_OWN_LATENESS_NS = 1_000_000  # gevent's timers go by whole ms


def quiet_collector() -> None:
    """Keep garbage collection out of the load; call it when all is loaded.

    A full collection of what is loaded by then would stop the load for tens of ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 1_000)  # a full one of what comes later is all but never due


class Pauses:
    """The longest stall and the longest collection since last asked, ns. Use as a context."""

    def __init__(self) -> None:
        self._stall_ns = self._gc_ns = 0
        self._gc_began_ns = 0
        self._watcher: gevent.Greenlet | None = None

    def __enter__(self) -> Self:
        gc.callbacks.append(self._on_gc)
        self._watcher = gevent.spawn(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._on_gc)
        if self._watcher is not None:
            self._watcher.kill()

    def take(self) -> tuple[int, int]:
        """Return the longest stall and collection, and begin anew."""
        taken = self._stall_ns, self._gc_ns
        self._stall_ns = self._gc_ns = 0
        return taken

    def _watch(self) -> None:
        while True:
            due_ns = time.monotonic_ns() + round(_TICK_S * 1e9) + _OWN_LATENESS_NS
            gevent.sleep(_TICK_S)
            self._stall_ns = max(self._stall_ns, time.monotonic_ns() - due_ns)

    def _on_gc(self, phase: str, _info: dict[str, int]) -> None:
        now_ns = time.monotonic_ns()
        if phase == "start":
            self._gc_began_ns = now_ns
        else:
            self._gc_ns = max(self._gc_ns, now_ns - self._gc_began_ns)
