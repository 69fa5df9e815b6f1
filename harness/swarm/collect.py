"""The parent's side of a load: starts workers, merges their reports, writes the run folder.

Imports neither Locust nor gevent. A worker that dies is noticed at once, its missing reports are
counted as lost, and what the others measured is kept.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ExitCode, HarnessError, TargetError, UserError
from harness.plan import Plan
from harness.recorder import Report, RunFolder, merge_reports
from harness.swarm import frames

_LEAD_NS = 300_000_000  # between "start" and time zero: all workers must have heard of it
_READY_TIMEOUT_S = 120.0
_END_GRACE_S = 15.0
_SILENCE_S = 60.0  # workers report every interval, at most a second; one that is stuck does not


@dataclass(slots=True)
class Ended:
    """How the load ended."""

    interrupted: bool = False
    stopped_s: float | None = None
    """When the load was told to end early, seconds since its start."""
    crashed: list[str] = field(default_factory=list)
    lost_reports: int = 0
    first_failure: str | None = None
    retries: int = 0
    clocks: set[str] = field(default_factory=set)


class Workers:
    """The worker processes of one plan. Use `started`."""

    def __init__(self, plan: Plan, url: str, interval_ns: int, log_path: Path | None) -> None:
        self._frames: queue.Queue[tuple[int, Any]] = queue.Queue()
        self._log = log_path.open("ab") if log_path else None
        self._children = [self._spawn() for _ in range(plan.workers)]
        self._stopped_ns: int | None = None
        for number, child in enumerate(self._children):
            threading.Thread(target=self._listen, args=(number, child), daemon=True).start()
            self._tell(
                child,
                frames.Job(
                    plan=plan,
                    url=url,
                    interval_ns=interval_ns,
                    worker=number,
                    workers=plan.workers,
                    preflight=number == 0,
                ),
            )

    @classmethod
    @contextmanager
    def started(
        cls, plan: Plan, url: str, *, interval_ns: int = 1_000_000_000, log_path: Path | None = None
    ) -> Iterator[Workers]:
        """Start the workers and end them, whatever happens."""
        workers = cls(plan, url, interval_ns, log_path)
        try:
            yield workers
        except BaseException:
            workers.kill()  # one that waits for a target would keep a Ctrl-C waiting
            raise
        finally:
            workers.end()

    def ready(self) -> frames.Ready:
        """Wait until every worker has its scenario loaded; returns the preflight of the first.

        Raises what broke a worker: UserError for the scenario, TargetError for the target.
        """
        waiting = set(range(len(self._children)))
        first: frames.Ready | None = None
        while waiting:
            try:
                number, frame = self._frames.get(timeout=_READY_TIMEOUT_S)
            except queue.Empty:
                raise TargetError(
                    f"the preflight gave no answer within {_READY_TIMEOUT_S:.0f} s"
                ) from None
            if isinstance(frame, frames.Broken):
                raise _ERRORS.get(frame.code, HarnessError)(frame.message)
            if not isinstance(frame, frames.Ready):
                raise HarnessError(f"worker {number} ended before the load; {self._log_hint()}")
            waiting.discard(number)
            first = frame if number == 0 else first
        assert first is not None
        return first

    def run(self, folder: RunFolder, on_report: Callable[[Report], None]) -> Ended:
        """Start the load, write every merged interval, and wait for the end of all workers.

        `stop` may be called from a signal handler meanwhile.
        """
        start = frames.Start(t0_ns=time.monotonic_ns() + _LEAD_NS)
        self._stopped_ns = None
        folder.begin(time.time() + _LEAD_NS / 1e9)
        for child in self._children:
            self._tell(child, start)
        ended = Ended()
        merger = _Merger(len(self._children))
        while merger.open:
            try:
                number, frame = self._frames.get(timeout=_SILENCE_S)
            except queue.Empty:
                self.kill()  # their pipes close, and each is then counted as crashed
                continue
            if isinstance(frame, Report):
                merger.add(number, frame)
            elif isinstance(frame, frames.Done):
                self._note(ended, merger, number, frame)
            elif merger.expects(number):
                code = self._children[number].wait()
                ended.crashed.append(f"worker {number} ended with code {code}")
                ended.lost_reports += 1
                merger.close(number)
            for report in merger.ready():
                folder.append(report)
                on_report(report)
        if self._stopped_ns is not None:
            ended.stopped_s = max(0.0, (self._stopped_ns - start.t0_ns) / 1e9)
        return ended

    def stop(self) -> None:
        """Ask every worker to plan no more arrivals and drain."""
        self._stopped_ns = time.monotonic_ns()
        for child in self._children:
            self._tell(child, frames.Stop())

    def end(self) -> None:
        """End every worker process, the stubborn ones by force."""
        for child in self._children:
            if child.stdin:
                _quietly(child.stdin.close)
        deadline = time.monotonic() + _END_GRACE_S
        for child in self._children:
            try:
                child.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if self._log:
            self._log.close()

    def kill(self) -> None:
        """End every worker at once; what they had not reported is gone."""
        for child in self._children:
            child.kill()

    def _note(self, ended: Ended, merger: _Merger, number: int, done: frames.Done) -> None:
        ended.interrupted |= done.interrupted
        ended.lost_reports += done.reports - merger.received(number)
        ended.first_failure = ended.first_failure or done.first_failure
        ended.retries += done.retries
        ended.clocks.add(done.clock)
        merger.close(number)

    def _spawn(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            [sys.executable, "-m", "harness.swarm.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent to act on
        )

    def _listen(self, number: int, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        try:
            with child.stdout as pipe:
                while (frame := frames.decode(pipe.read)) is not None:
                    self._frames.put((number, frame))
        finally:
            self._frames.put((number, None))

    def _tell(self, child: subprocess.Popen[bytes], frame: object) -> None:
        assert child.stdin is not None
        stdin = child.stdin
        _quietly(lambda: (stdin.write(frames.encode(frame)), stdin.flush()))

    def _log_hint(self) -> str:
        if not self._log:
            return "its messages are above"
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.strip()]
        return f"it said: {said[-1]}" if said else "it said nothing"


class _Merger:
    """Brings the workers' reports of the same interval together, in order."""

    def __init__(self, workers: int) -> None:
        self._next = dict.fromkeys(range(workers), 0)
        self._received = [0] * workers
        self._pending: dict[int, list[Report]] = defaultdict(list)

    @property
    def open(self) -> bool:
        """True while a worker may still report."""
        return bool(self._next)

    def add(self, worker: int, report: Report) -> None:
        self._received[worker] += 1
        if worker in self._next:
            self._next[worker] = report.index + 1
        self._pending[report.index].append(report)

    def expects(self, worker: int) -> bool:
        """True while this worker may still report."""
        return worker in self._next

    def received(self, worker: int) -> int:
        return self._received[worker]

    def close(self, worker: int) -> None:
        self._next.pop(worker, None)

    def ready(self) -> Iterator[Report]:
        """Yield the intervals that every open worker has reported."""
        bound = min(self._next.values(), default=None)
        for index in sorted(self._pending):
            if bound is None or index < bound:
                yield merge_reports(self._pending.pop(index))


_ERRORS: dict[ExitCode, type[HarnessError]] = {
    ExitCode.USAGE: UserError,
    ExitCode.TARGET: TargetError,
}


def check_probes(probes: Sequence[frames.Probe], url: str) -> None:
    """Raise TargetError when a task did not get through the preflight, UserError when the scenario
    itself is at fault."""
    broken = [probe for probe in probes if probe.failure]
    if not broken:
        return
    step, failure, detail = next(step for step in broken[0].steps if step[1])
    said = f": {detail['error']}" if detail.get("error") else ""
    if (failure or "").startswith("exception"):
        raise UserError(f"the scenario's task {broken[0].task} failed in the preflight{said}")
    raise TargetError(
        f"{url} did not pass the preflight: step {step} failed with {failure}{said}; "
        f"{_ADVICE.get((failure or '').split()[0], 'check the target, its path and its model')}"
    )


_ADVICE = {
    "connect": "check that the target is up and that host and port are right",
    "timeout": "check that the target is up, or raise the target's timeout",
    "not": "the target's API must stream: check api and path",
    "status": "check path, model and headers (an API key?)",
    "reset": "the target closed the connection: check host, port and http or https",
}


def _quietly(action: Callable[[], object]) -> None:
    try:
        action()
    except (BrokenPipeError, ValueError):
        return
