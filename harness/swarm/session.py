"""What the recording of a process needs, whoever drives its users: a worker, or plain Locust."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from gevent.event import Event

from harness import apis
from harness.budget import Budget, goodput_limits
from harness.inputs import load_inputs
from harness.masking import mask
from harness.plan import Plan
from harness.recorder import Limits, Recorder
from harness.swarm.journey import Run
from harness.swarm.pauses import Pauses
from harness.transport import open_transport


def limits_of(budgets: Iterable[Budget]) -> Limits:
    """Return what must be counted exactly for these budgets to be judged."""
    known = tuple(budgets)
    thresholds: dict[tuple[str, str], tuple[int, ...]] = {}
    for budget in known:
        if budget.counted:
            key = budget.step, budget.metric
            thresholds[key] = tuple(sorted({*thresholds.get(key, ()), budget.threshold}))
    return Limits(
        thresholds=thresholds, good=lambda stage, step: goodput_limits(known, step, stage=stage)
    )


def make_run(plan: Plan, url: str, recorder: Recorder, *, worker: int = 0) -> Run:
    """Return the state that the users of this process share."""
    return Run(
        target=plan.target,
        prices=plan.prices,
        url=url,
        recorder=recorder,
        transport=open_transport(plan.target, url),
        inputs=load_inputs(plan.inputs, raw=plan.target.api == "json") if plan.inputs else None,
        rules=apis.ReplyRules(
            max_reply_bytes=plan.target.max_reply_bytes,
            max_event_bytes=plan.target.max_event_bytes,
            empty_ok=plan.target.allow_empty,
        ),
        seed=(plan.seed, worker),
        rng=np.random.default_rng([plan.seed, worker]),
    )


class IntervalClock:
    """Calls `flush(index, vitals)` at every interval's end, by the absolute grid from `t0_ns` on.

    The vitals are what `Recorder.flush` takes: cpu, stall_ns, gc_ns.
    """

    def __init__(
        self, t0_ns: int, interval_ns: int, flush: Callable[[int, dict[str, Any]], None]
    ) -> None:
        self._t0_ns, self._interval_ns, self._flush = t0_ns, interval_ns, flush
        self._index = 0
        self._over = Event()
        self._pauses = Pauses()
        self._cpu_s, self._wall_ns = time.process_time(), time.monotonic_ns()

    def run(self) -> None:
        """Flush until `stop`; a flush that has begun is not interrupted."""
        with self._pauses:
            while not self._over.is_set():
                due_ns = self._t0_ns + (self._index + 1) * self._interval_ns
                self._over.wait(max(0, due_ns - time.monotonic_ns()) / 1e9)
                if time.monotonic_ns() >= due_ns and not self._over.is_set():
                    self.tick()

    def stop(self) -> None:
        """Let `run` return."""
        self._over.set()

    def tick(self) -> None:
        """Flush the interval that ends now."""
        cpu_s, wall_ns = time.process_time(), time.monotonic_ns()
        share = (cpu_s - self._cpu_s) * 1e9 / max(1, wall_ns - self._wall_ns)
        self._cpu_s, self._wall_ns = cpu_s, wall_ns
        stall_ns, gc_ns = self._pauses.take()
        vitals = {"cpu": min(share, 1.0), "stall_ns": stall_ns, "gc_ns": gc_ns}
        self._flush(self._index, vitals)
        self._index += 1

    @property
    def ticks(self) -> int:
        """How many intervals were flushed."""
        return self._index


def hide(hidden: Sequence[str]) -> None:
    """Keep texts out of this process's logs and out of all that it prints."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Masked(hidden))
    sys.stdout, sys.stderr = _MaskedStream(sys.stdout, hidden), _MaskedStream(sys.stderr, hidden)


class _Masked(logging.Filter):
    def __init__(self, hidden: Sequence[str]) -> None:
        super().__init__()
        self._hidden = hidden

    def filter(self, record: logging.LogRecord) -> bool:
        """Put the masked text, with its traceback, in the record's place."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        record.msg, record.args = mask(text, self._hidden), ()
        record.exc_info = record.exc_text = None
        return True


class _MaskedStream:
    def __init__(self, inner: Any, hidden: Sequence[str]) -> None:
        self._inner = inner
        self._hidden = hidden

    def write(self, text: str) -> int:
        self._inner.write(mask(text, self._hidden))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
