"""The parent's side of a load: starts workers, merges their reports, writes the run folder.

Imports neither Locust nor gevent. A worker that dies is noticed at once, its missing reports are
counted as lost, and what the others measured is kept.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from errno import EAGAIN
from pathlib import Path
from typing import Any, Protocol

from harness.errors import ExitCode, GeneratorError, HarnessError, TargetError, UserError
from harness.limits import limit_met, name_in, setting
from harness.masking import mask_query
from harness.plan import Plan
from harness.recorder import Report, merge_reports
from harness.swarm import frames

_LEAD_NS = 300_000_000  # between "start" and time zero: all workers must have heard of it
_READY_TIMEOUT_S = 120.0
_END_GRACE_S = 15.0
_SILENCE_S = 60.0  # workers report every interval, at most a second; one that is stuck does not


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """When a repetition of the load begins.

    `t0_ns` is on the monotonic clock; `index` is the recording interval, counted from the run's
    start, that begins then.
    """

    t0_ns: int
    index: int = 0

    @classmethod
    def soon(cls) -> Beginning:
        """Return the beginning of a run: as soon as all workers can have heard of it."""
        return cls(t0_ns=time.monotonic_ns() + _LEAD_NS)

    def following(self, interval_ns: int) -> Beginning:
        """Return the soonest beginning of a further repetition, on the grid of this one."""
        ahead = -((self.t0_ns - time.monotonic_ns() - _LEAD_NS) // interval_ns)
        return Beginning(t0_ns=self.t0_ns + ahead * interval_ns, index=self.index + ahead)


@dataclass(slots=True)
class Ended:
    """How the load ended."""

    interrupted: bool = False
    stopped_s: float | None = None
    """When the load was told to end early, seconds since the run's start."""
    crashed: list[str] = field(default_factory=list)
    lost_reports: int = 0
    first_failure: str | None = None
    first_exception: str | None = None
    """The first exception of the scenario's own that ended a journey."""
    retries: int = 0
    clocks: set[str] = field(default_factory=set)
    stamped: int = 0
    """Reads of sockets with a stamp of the kernel's; `unstamped` those without."""
    unstamped: int = 0
    unsaved: str = ""
    """What could not be written to the run folder, and why."""
    stepped_s: list[float] = field(default_factory=list)
    """When the wall clock was found stepped, seconds since the run's start."""

    @property
    def early(self) -> bool:
        """True when it did not end by itself, so that no repetition shall follow."""
        return self.interrupted or bool(self.crashed)

    def include(self, other: Ended) -> None:
        """Add how a further repetition ended."""
        self.interrupted |= other.interrupted
        self.stopped_s = other.stopped_s
        self.crashed += other.crashed
        self.lost_reports += other.lost_reports
        self.first_failure = self.first_failure or other.first_failure
        self.first_exception = self.first_exception or other.first_exception
        self.retries += other.retries
        self.clocks |= other.clocks
        self.stamped += other.stamped
        self.unstamped += other.unstamped
        self.stepped_s += other.stepped_s


class Sink(Protocol):
    """Where the merged intervals of a load go: a run folder, or what writes to one."""

    def begin(self, started_unix_s: float) -> None:
        """Take note of when the load's time zero is."""

    def append(self, report: Report) -> None:
        """Take an interval."""


class Workers:
    """The worker processes of one plan. Use `started`."""

    def __init__(
        self, plan: Plan, url: str, interval_ns: int, log_path: Path | None, *, preflight: bool
    ) -> None:
        self._frames: queue.Queue[tuple[int, Any]] = queue.Queue()
        self._log = log_path.open("ab") if log_path else None
        self._children: list[subprocess.Popen[bytes]] = []
        self._start_all(plan.workers)
        self._interval_ns = interval_ns
        self._begun = False
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
                    preflight=preflight and number == 0,
                ),
            )

    @classmethod
    @contextmanager
    def started(
        cls,
        plan: Plan,
        url: str,
        *,
        interval_ns: int = 1_000_000_000,
        log_path: Path | None = None,
        preflight: bool = True,
    ) -> Iterator[Workers]:
        """Start the workers and end them, whatever happens."""
        workers = cls(plan, url, interval_ns, log_path, preflight=preflight)
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

    def run(
        self,
        folder: Sink,
        on_report: Callable[[Report], None],
        begin: Beginning | None = None,
    ) -> Ended:
        """Start the load, write every merged interval, and wait for the end of all workers.

        Without `begin` it starts a run, with it a repetition; `stop` may be called from a signal
        handler meanwhile.
        """
        begin = begin or Beginning.soon()
        self._start(folder, begin)
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
                ended.stepped_s += (self._run_s(t_ns, begin) for t_ns in frame.stepped_ns)
            elif merger.expects(number):
                code = self._children[number].wait()
                ended.crashed.append(f"worker {number} ended with code {_code(code)}")
                ended.lost_reports += 1
                merger.close(number)
            for merged in merger.ready():
                report = _moved(merged, begin.index, self._interval_ns)
                folder.append(report)
                on_report(report)
        if self._stopped_ns is not None:
            ended.stopped_s = max(0.0, self._run_s(self._stopped_ns, begin))
        return ended

    def stop(self) -> None:
        """Ask every worker to plan no more arrivals and drain; at the earliest once started."""
        self._stopped_ns = time.monotonic_ns()
        for child in self._children if self._begun else ():
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

    def _start(self, folder: Sink, begin: Beginning) -> None:
        if begin.index == 0:
            folder.begin(time.time() + (begin.t0_ns - time.monotonic_ns()) / 1e9)
        for child in self._children:
            self._tell(child, frames.Start(t0_ns=begin.t0_ns))
        self._begun = True
        if self._stopped_ns is not None:
            self.stop()

    def _run_s(self, t_ns: int, begin: Beginning) -> float:
        """Return a time of the monotonic clock as seconds since the run's start."""
        return (t_ns - begin.t0_ns + begin.index * self._interval_ns) / 1e9

    def _note(self, ended: Ended, merger: _Merger, number: int, done: frames.Done) -> None:
        ended.interrupted |= done.interrupted
        ended.lost_reports += done.reports - merger.received(number)
        ended.first_failure = ended.first_failure or done.first_failure
        ended.first_exception = ended.first_exception or done.first_exception
        ended.retries += done.retries
        ended.clocks.add(done.clock)
        ended.stamped += done.stamped
        ended.unstamped += done.unstamped
        merger.close(number)

    def _start_all(self, workers: int) -> None:
        try:
            while len(self._children) < workers:
                self._children.append(self._spawn())
        except OSError as error:
            self.kill()
            self.end()
            name = "EAGAIN" if error.errno == EAGAIN else limit_met(error)
            raise GeneratorError(
                f"worker {len(self._children)} of {workers} cannot be started ({error}): "
                f"{setting(name or '')}"
            ) from error

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


def _moved(report: Report, intervals: int, interval_ns: int) -> Report:
    """Return a report of a repetition on the time axis of its run."""
    if not intervals:
        return report
    by_s = intervals * interval_ns / 1e9
    return replace(
        report,
        index=report.index + intervals,
        journeys=[{**journey, "t_s": journey["t_s"] + by_s} for journey in report.journeys],
    )


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
    ExitCode.INVALID: GeneratorError,
}


def check_probes(probes: Sequence[frames.Probe], url: str) -> None:
    """Raise TargetError when a task did not get through the preflight, UserError when the scenario
    itself is at fault, GeneratorError when a limit of this machine is."""
    broken = [probe for probe in probes if probe.failure]
    if not broken:
        return
    step, failure, detail = next(step for step in broken[0].steps if step[1])
    said = f": {detail['error']}" if detail.get("error") else ""
    if (failure or "").startswith("exception"):
        raise UserError(f"the scenario's task {broken[0].task} failed in the preflight{said}")
    asked = f", asked {detail['url']}" if detail.get("url") else ""
    if limit := name_in(failure or ""):
        raise GeneratorError(
            f"this machine met a limit of its own in the preflight, at step {step} "
            f"({limit}{said}): {setting(limit)}"
        )
    advice = "" if _advises(said) else f"; {_advice(failure or '')}"
    raise TargetError(
        f"{mask_query(url)} did not pass the preflight: step {step} failed with {failure}{said}"
        f"{asked}{advice}"
    )


def _advises(said: str) -> bool:
    """Tell whether what was said names the setting that helps."""
    return "verify:" in said or "in the plan's target" in said


def _advice(failure: str) -> str:
    kind, _, code = failure.partition(" ")
    if kind == "status" and code.startswith("3"):
        return "no redirect is followed: let the target's url, or its path, name the place itself"
    if kind == "status" and code.startswith("429"):
        return "the target limits how often it is asked: wait, or use a key that may do more"
    if kind == "status" and code.startswith("5"):
        return "the target, or a proxy before it, has failed: look at its log"
    return _ADVICE.get(kind, "check the target, its path and its model")


_ADVICE = {
    "connect": "check that the target is up and that host and port are right",
    "timeout": "check that the target is up, or raise the target's timeout",
    "not": "the target's API must stream: check api and path",
    "status": "check path, model and headers (an API key?)",
    "reset": "the target closed the connection: check host, port and http or https",
}


def _code(code: int) -> str:
    """`7`, or `-9 (SIGKILL)` of a process that a signal ended."""
    return f"{code} ({signal.Signals(-code).name})" if code < 0 else str(code)


def _quietly(action: Callable[[], object]) -> None:
    try:
        action()
    except (BrokenPipeError, ValueError):
        return
