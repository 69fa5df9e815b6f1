"""Plays a plan by workers as a run does, but judges nothing: the load of every measurement here."""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import HarnessError
from harness.plan import Plan
from harness.recorder import Report, RunFolder
from harness.swarm.collect import Workers, check_probes
from harness.swarm.manifest import describe, stage_windows

NO_TIME = "selftest: there was no time to measure anything; is the machine busy?"
_LOG_FILE = "locust.log"


def play(
    plan: Plan, url: str, note: Callable[[Report], bool], *, interval_s: float, kill_s: float
) -> tuple[str, float]:
    """Play a plan until it ends or `note`, which is told of every interval, says False.

    Returns the workers' clock, and when the load was stopped, in seconds from its start. Raises
    HarnessError when a worker ended before its time, or all were ended at `kill_s` of the monotonic
    clock.
    """
    out = Path(tempfile.mkdtemp(dir=plan.scenario.parent))
    interval_ns = round(interval_s * 1e9)
    folder = RunFolder.create(out, describe(plan, url, stage_windows(plan), interval_ns))
    stopped = False

    def told(report: Report) -> None:
        nonlocal stopped
        if not note(report) and not stopped:
            stopped = True
            workers.stop()

    with (
        Workers.started(plan, url, interval_ns=interval_ns, log_path=out / _LOG_FILE) as workers,
        _killed_at(kill_s, workers),
    ):
        ready = workers.ready()
        check_probes(ready.probes, url)
        ended = workers.run(folder, told)
    if ended.crashed and time.monotonic() < kill_s:
        raise HarnessError(f"selftest: {ended.crashed[0]}; {_last_line(out / _LOG_FILE)}")
    if ended.crashed:
        raise HarnessError(NO_TIME)
    return ready.clock, math.inf if ended.stopped_s is None else ended.stopped_s


@contextmanager
def _killed_at(when_s: float, workers: Workers) -> Iterator[None]:
    """End the workers at a time of the monotonic clock, whatever they do."""
    timer = threading.Timer(max(0.0, when_s - time.monotonic()), workers.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return f"it said: {said[-1]}" if said else "it said nothing"
