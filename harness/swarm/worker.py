"""A worker process: Locust's users on one core, their samples sent to the parent every interval.

Started as `python -m harness.swarm.worker`; speaks `frames` on stdin and stdout. What the scenario
prints goes to stderr. When the parent is gone, the pipe says so and the worker ends by itself.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import httpx
import locust
from gevent.os import nb_write, tp_read
from locust.env import Environment
from locust.util.load_locustfile import load_locustfile

from harness import apis
from harness.errors import GeneratorError, HarnessError, RequestFailed, TargetError, UserError
from harness.inputs import check_inputs
from harness.limits import limit_met, raise_descriptor_limit, setting
from harness.masking import mask_query
from harness.plan import secrets
from harness.recorder import Limits, Recorder
from harness.swarm import frames
from harness.swarm.dispatch import Arrival, Dispatcher
from harness.swarm.pauses import quiet_collector
from harness.swarm.session import IntervalClock, hide, limits_of, make_run
from harness.swarm.user import Journey, ModelUser, Step
from harness.transport.alarm import Alarm

log = logging.getLogger(__name__)

_END_S = 5.0  # for what users do in on_stop


class Worker:
    """One job, from its scenario's import to the last report."""

    def __init__(self, job: frames.Job, send: Callable[[object], None]) -> None:
        plan = job.plan
        self._job, self._plan, self._send = job, plan, send
        self._classes = load_scenario(plan.scenario)
        self._recorder = Recorder(limits_of(plan.budgets), seed=plan.seed + job.worker)
        self._run = make_run(plan, job.url, self._recorder, worker=job.worker)
        self._environment = Environment(
            user_classes=list(self._classes.values()),
            host=job.url,
            events=locust.events,  # where the scenario's listeners are
            catch_exceptions=False,  # what a task of a nested TaskSet raises fails the journey
        )
        self._environment.harness = self._run  # type: ignore[attr-defined]
        self._runner = self._environment.create_local_runner()
        self._dispatcher = Dispatcher(
            plan.load,
            self._recorder,
            weights={name: float(cls.weight) for name, cls in self._classes.items()},
            alarm=Alarm(self._run.transport.poller),
            spawn=lambda name, count: self._runner.spawn_users({name: count}),
            seed=plan.seed,
            worker=job.worker,
            workers=job.workers,
        )
        self._run.dispatcher = self._dispatcher
        self.interrupted = False

    @property
    def clock(self) -> str:
        """Which clock stamps the reads."""
        return self._run.transport.clock

    def preflight(self) -> tuple[frames.Probe, ...]:
        """Run every task of the scenario once, recording nothing; says what its steps met."""
        recorder, self._run.recorder = self._run.recorder, Recorder(Limits())
        try:
            probes = [probe for cls in self._classes.values() for probe in self._probe_all(cls)]
            self._check_inputs()
            return tuple(probes)
        finally:
            self._run.recorder, self._run.retries = recorder, 0
            self._run.first_failure = self._run.first_exception = None

    def _check_inputs(self) -> None:
        """Raise PlanError at the first input that a task may draw and cannot send."""
        inputs, path = self._run.inputs, self._plan.inputs
        if inputs is None or path is None:
            return
        for dialect in sorted(self._run.fed):
            check_inputs(inputs, path, partial(apis.problem_of, apis.api(dialect)))

    def _probe_all(self, cls: type[ModelUser]) -> list[frames.Probe]:
        user = cls(self._environment)
        try:
            user.on_start()
            probes = [self._probe(user, task) for task in dict.fromkeys(cls.tasks)]
            user.on_stop()  # type: ignore[no-untyped-call]
        except (RequestFailed, httpx.HTTPError) as error:
            if limit := limit_met(error):
                raise GeneratorError(
                    f"this machine met a limit of its own in the preflight ({error}), in on_start "
                    f"or on_stop of {cls.__name__}: {setting(limit)}"
                ) from error
            raise TargetError(
                f"{mask_query(self._job.url)} did not pass the preflight: "
                f"{type(error).__name__}: {error}{self._asked(error)}, in on_start or on_stop of "
                f"{cls.__name__}; check the target"
            ) from error
        except Exception as error:
            raise UserError(
                f"{_where(error)}; on_start or on_stop of {cls.__name__} failed"
            ) from error
        return probes

    def _asked(self, error: Exception) -> str:
        """Say where the request went that failed outside of any task."""
        url = self._run.asked if isinstance(error, RequestFailed) else None
        if isinstance(error, httpx.RequestError | httpx.HTTPStatusError):
            with suppress(RuntimeError):  # an error that was raised without a request
                url = error.request.url
        return "" if url is None else f", asked {mask_query(str(url))}"

    def _probe(self, user: ModelUser, task: Any) -> frames.Probe:
        seen: list[Step] = []

        def note(step: Step, _journey: Journey) -> None:
            seen.append(step)

        now = time.monotonic_ns()
        self._run.on_step = note
        try:
            if not isinstance(task, type):
                user.run_task(Arrival("preflight", now, now), task)
        finally:
            self._run.on_step = None
        steps = tuple((s.name, s.failure, s.detail | {"url": s.asked}) for s in seen)
        failure = next((failure for _, failure, _ in steps if failure), None)
        return frames.Probe(task=getattr(task, "__name__", str(task)), steps=steps, failure=failure)

    def load(self, t0_ns: int) -> None:
        """Run all stages, drain, cut off what is left, and send the last frame."""
        self._run.t0_ns = t0_ns
        clock = IntervalClock(t0_ns, self._job.interval_ns, self._flush)
        self._environment.events.test_start.fire(  # type: ignore[no-untyped-call]
            environment=self._environment
        )
        ticking = gevent.spawn(clock.run)
        self._dispatcher.run(t0_ns, drain_ns=self._plan.drain_ns)
        self._dispatcher.end()
        self._runner.user_greenlets.kill(timeout=_END_S)  # all at once: an on_stop may take long
        self._runner.stop()
        clock.stop()
        ticking.join()  # not killed: it may be in the middle of sending a frame
        clock.tick()
        kernel = self._run.transport.kernel_clock
        self._send(
            frames.Done(
                reports=clock.ticks,
                interrupted=self.interrupted,
                first_failure=self._run.first_failure,
                first_exception=self._run.first_exception,
                retries=self._run.retries,
                clock=self.clock,
                stamped=kernel.stamped if kernel else 0,
                unstamped=kernel.unstamped if kernel else 0,
                stepped_ns=tuple(kernel.stepped_ns) if kernel else (),
            )
        )

    def stop(self) -> None:
        """End the load early; what runs is drained."""
        self.interrupted = True
        self._dispatcher.stop()

    def _flush(self, index: int, vitals: dict[str, Any]) -> None:
        self._dispatcher.observe()
        self._send(self._recorder.flush(index, between=partial(gevent.sleep, 0), **vitals))
        self._dispatcher.observe()


def load_scenario(path: Path) -> dict[str, type[ModelUser]]:
    """Import a Locust file; returns its `ModelUser` classes by their own names, as Locust has them.

    Raises UserError that says what is wrong with the file.
    """
    try:
        classes, _ = load_locustfile(str(path))
    except (Exception, SystemExit) as error:
        raise UserError(f"{_where(error)}; the scenario {path.name} cannot be imported") from error
    usable = {cls for cls in classes.values() if issubclass(cls, ModelUser) and cls.tasks}
    found = {cls.__name__: cls for cls in sorted(usable, key=lambda cls: cls.__name__)}
    if len(found) < len(usable):
        raise UserError(f"{path}: two user classes have the same name; give each its own")
    if not found:
        others = f"; it has {', '.join(classes)}, of other bases" if classes else ""
        raise UserError(f"{path}: no subclass of harness.ModelUser with a @task was found{others}")
    return found


def _where(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}:{error.offset}"
        return f"{place}: {type(error).__name__}: {error.msg}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}: {type(error).__name__}: {error}"


def main() -> None:
    """Serve one job on stdin and stdout."""
    out = os.dup(1)
    os.dup2(2, 1)  # what the scenario prints must not get between the frames
    os.set_blocking(out, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=layout)
    raise_descriptor_limit()
    receive = partial(frames.decode, _read_exactly)
    send = partial(_send, out)
    job = receive()
    if job is None:
        return
    hide(secrets(job.plan))
    try:
        worker = Worker(job, send)
        probes = worker.preflight() if job.preflight else ()
    except HarnessError as error:
        send(frames.Broken(message=str(error), code=error.exit_code))
        return
    quiet_collector()
    send(frames.Ready(probes=probes, clock=worker.clock))
    start = receive()
    if not isinstance(start, frames.Start):
        return
    gevent.spawn(_obey, receive, worker)
    worker.load(start.t0_ns)


def _obey(receive: Callable[[], Any], worker: Worker) -> None:
    """Stop the load when the parent says so, or is gone."""
    receive()
    worker.stop()


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = tp_read(0, size - len(data))
        if not part:
            return b""
        data += part
    return data


def _send(fd: int, frame: object) -> None:
    data = frames.encode(frame)
    try:
        while data:
            data = data[nb_write(fd, data) :]
    except BrokenPipeError:
        log.warning("the parent process is gone; ending")
        os._exit(1)


if __name__ == "__main__":
    main()
