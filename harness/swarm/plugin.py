"""The same recording under plain `locust -f SCENARIO`, as one process of Locust's own.

    locust -f locustfiles/chat.py --headless -u 10 -t 30s --host http://127.0.0.1:8000
    locust -f locustfiles/chat.py --headless --plan locustfiles/chat.yaml

`--plan` brings target, inputs, budgets and load. Without it Locust's own users are the load (the
closed model), and a plan that stands beside the scenario still gives target, inputs and budgets.
At the end of the load the users may finish what they began, as long as the plan's `drain` allows.
The run folder is judged when Locust quits, and the verdict's exit code becomes Locust's.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import gevent
from locust import LoadTestShape, events
from locust.runners import LocalRunner

from harness.errors import ExitCode, HarnessError, UserError
from harness.limits import raise_descriptor_limit
from harness.plan import Plan, Stage, Target, load_plan, masked, secrets, with_url
from harness.recorder import Recorder, RunFolder
from harness.swarm.backoff import Backoff
from harness.swarm.dispatch import Arrival, Dispatcher
from harness.swarm.manifest import (
    default_folder,
    describe,
    interval_for,
    stage_windows,
    target_url,
)
from harness.swarm.session import IntervalClock, hide, limits_of, make_run
from harness.swarm.user import Journey, ModelUser, Step
from harness.transport.alarm import Alarm
from harness.urls import canonical_url

log = logging.getLogger(__name__)

_STAGE = "load"
_UNLIMITED_NS = 24 * 3_600_000_000_000
_DRAIN_NS = 30_000_000_000


class _LocustsUsers:
    """Stands where a `Dispatcher` would: each of Locust's users starts its next round at once."""

    def __init__(self, recorder: Recorder, seed: int) -> None:
        self._recorder = recorder
        self._backoff = Backoff(seed)
        self._failures = WeakKeyDictionary[Any, int]()  # in a row, by the user's greenlet
        self.in_flight = 0

    def take(self, _user_class: str) -> Arrival:
        load = self._recorder.load(_STAGE)
        load.planned += 1
        load.sent += 1
        self.in_flight += 1
        self.observe()
        now = time.monotonic_ns()
        return Arrival(_STAGE, now, now, closed=True)

    def done(self, _class: str, arrival: Arrival, *, failed: bool, think_s: float = 0) -> None:
        load = self._recorder.load(_STAGE)
        load.finished += 1
        load.failed += failed
        self.in_flight -= 1
        user = gevent.getcurrent()
        failures = self._failures[user] = self._failures.get(user, 0) + 1 if failed else 0
        lasted_s = (time.monotonic_ns() - arrival.planned_ns) / 1e9
        pause_s = self._backoff.pause_s(failures, lasted_s)
        load.backed_off += pause_s > think_s
        gevent.sleep(max(pause_s, think_s))

    def cut_off(self, _user_class: str, _arrival: Arrival) -> None:
        self._recorder.load(_STAGE).cut_off += 1
        self.in_flight -= 1

    def observe(self) -> None:
        load = self._recorder.load(_STAGE)
        load.in_flight = max(load.in_flight, self.in_flight)


class _UntilDrained(LoadTestShape):
    """Keeps Locust running until the plan's load is over; the dispatcher makes the users."""

    use_common_options = True

    def __init__(self, session: _Session) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._session = session

    def tick(self) -> tuple[int, float] | None:
        return None if self._session.over else (1, 1.0)


class _Session:
    """One recording inside a Locust process."""

    def __init__(self, environment: Any, runner: Any) -> None:
        options = environment.parsed_options
        self._environment, self._runner = environment, runner
        self._undo = ExitStack()
        self._drives = bool(options.plan)
        self._plan = replace(_plan_for(environment, options), workers=1)  # it is one process
        raise_descriptor_limit()
        hide(secrets(self._plan))
        self._url = self._undo.enter_context(target_url(self._plan))
        self._windows = stage_windows(self._plan)
        interval_ns = interval_for(self._plan)
        out = Path(options.harness_out or default_folder(self._plan.name))
        self._folder = RunFolder.create(
            out,
            describe(self._plan, self._url, self._windows, interval_ns),
            secrets=secrets(self._plan),
        )
        self._interval_ns = interval_ns
        self._recorder = Recorder(limits_of(self._plan.budgets), seed=self._plan.seed)
        self._run = make_run(self._plan, self._url, self._recorder)
        self._run.on_step = self._tell_locust
        self._dispatcher = self._make_dispatcher()
        self._run.dispatcher = self._dispatcher
        self._greenlets: list[gevent.Greenlet] = []
        self._clock: IntervalClock | None = None
        self._ended_ns: int | None = None
        self.over = False
        environment.harness = self._run
        if self._drives:
            environment.shape_class = _UntilDrained(self)
        else:
            drain_s = self._plan.drain_ns / 1e9
            environment.stop_timeout = max(environment.stop_timeout or 0, drain_s)

    def begin(self, **_: Any) -> None:
        """Start the clock of intervals, and the plan's load if it drives."""
        t0_ns = self._run.t0_ns = time.monotonic_ns()
        self._folder.begin(time.time())
        self._folder.update(clock=self._run.transport.clock)
        self._clock = IntervalClock(t0_ns, self._interval_ns, self._flush)
        self._greenlets = [gevent.spawn(self._clock.run)]
        if isinstance(self._dispatcher, Dispatcher):
            self._greenlets.append(gevent.spawn(self._run_load, self._dispatcher, t0_ns))

    def stopping(self, **_: Any) -> None:
        """Note when the load ended; what the users still do is its drain."""
        self._ended_ns = time.monotonic_ns()

    def finish(self, environment: Any, **_: Any) -> None:
        """Save what there is, judge it in a process of its own, hand the exit code to Locust."""
        if self._clock is None:
            self._undo.close()
            return
        interrupted = self._drives and not self.over
        if isinstance(self._dispatcher, Dispatcher):
            self._dispatcher.stop()
            self._dispatcher.end()  # counts what was never sent, and replaces no user any more
        self._runner.stop()
        gevent.killall(self._greenlets)
        self._clock.tick()
        seconds = ((self._ended_ns or time.monotonic_ns()) - self._run.t0_ns) / 1e9
        played_s = max(seconds, self._interval_ns / 1e9)
        begun = [stage for stage in self._folder.run["stages"] if stage["start_s"] < played_s]
        self._folder.update(
            stages=[{**stage, "end_s": min(stage["end_s"], played_s)} for stage in begun]
        )
        lost = self._folder.close()
        self._folder.update(
            status="interrupted" if interrupted else "complete",
            lost_reports=lost,
            first_failure=masked(self._plan, self._run.first_failure or "") or None,
            first_exception=masked(self._plan, self._run.first_exception or "") or None,
            retries=self._run.retries,
            **self._clock_facts(),
        )
        self._undo.close()
        folder = str(self._folder.path)
        command = [sys.executable, "-m", "harness", "gate", folder, "--out", folder]
        code = subprocess.run(command, check=False).returncode
        environment.process_exit_code = int(ExitCode.INTERRUPTED) if interrupted else code

    def _clock_facts(self) -> dict[str, Any]:
        kernel = self._run.transport.kernel_clock
        if kernel is None:
            return {}
        return {
            "reads": {"stamped": kernel.stamped, "unstamped": kernel.unstamped},
            "clock_steps_s": [(t_ns - self._run.t0_ns) / 1e9 for t_ns in kernel.stepped_ns],
        }

    def _make_dispatcher(self) -> Dispatcher | _LocustsUsers:
        if not self._drives:
            return _LocustsUsers(self._recorder, self._plan.seed)
        classes = self._environment.user_classes
        return Dispatcher(
            self._plan.load,
            self._recorder,
            weights={cls.__name__: float(cls.weight) for cls in classes},
            alarm=Alarm(self._run.transport.poller),
            spawn=lambda name, count: self._runner.spawn_users({name: count}),
            seed=self._plan.seed,
            worker=0,
            workers=1,
        )

    def _run_load(self, dispatcher: Dispatcher, t0_ns: int) -> None:
        dispatcher.run(t0_ns, drain_ns=self._plan.drain_ns)
        dispatcher.end()
        self.over = True

    def _flush(self, index: int, vitals: dict[str, Any]) -> None:
        self._dispatcher.observe()
        self._folder.append(self._recorder.flush(index, **vitals))
        self._dispatcher.observe()

    def _tell_locust(self, step: Step, _journey: Journey) -> None:
        """Show finished steps in Locust's own statistics and web page."""
        self._environment.events.request.fire(
            request_type="step",
            name=step.name,
            response_time=((step.end_ns or step.start_ns) - step.start_ns) / 1e6,
            response_length=0,
            exception=step.failure,
            context={},
        )


def _plan_for(environment: Any, options: Any) -> Plan:
    """Return the plan to record by: the given one, the one beside the scenario, or defaults."""
    scenario = Path(environment.parsed_locustfiles[0]).resolve()
    if options.plan:
        plan = load_plan(options.plan)
        return plan if not options.host else with_url(plan, options.host, option="--host")
    beside = scenario.with_suffix(".yaml")
    free = Stage(name=_STAGE, concurrency=options.num_users or 1, duration_ns=_UNLIMITED_NS)
    if beside.exists():
        plan = load_plan(beside)
        budgets = tuple(replace(b, stage=None) for b in plan.budgets)
        plan = replace(plan, load=(free,), budgets=budgets)
        return plan if not options.host else with_url(plan, options.host, option="--host")
    if not options.host:
        raise UserError(f"name the target with --host, or put a plan at {beside}")
    try:
        url = canonical_url(options.host)
    except ValueError as error:
        raise UserError(f"--host: {error}") from None
    return Plan(
        name=scenario.stem,
        path=None,
        source="",
        redacted_source="",
        target=Target(url=url),
        scenario=scenario,
        inputs=None,
        load=(free,),
        budgets=(),
        seed=1,
        workers=1,
        drain_ns=_DRAIN_NS,
        embedded={},
        places={},
    )


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_options(parser: Any) -> None:
    group = parser.add_argument_group("latency harness")
    group.add_argument("--plan", metavar="PLAN.yaml", help="Plan whose load and budgets to run")
    group.add_argument("--harness-out", metavar="DIR", help="Folder of the recorded run")


@events.init.add_listener  # type: ignore[untyped-decorator]
def _attach(environment: Any, runner: Any, **_: Any) -> None:
    if not any(issubclass(cls, ModelUser) for cls in environment.user_classes):
        return
    if not isinstance(runner, LocalRunner):
        _refuse(UserError("plain Locust records one process; for more: harness run --workers N"))
    try:
        session = _Session(environment, runner)
    except HarnessError as error:
        _refuse(error)
    environment.events.test_start.add_listener(session.begin)
    environment.events.test_stopping.add_listener(session.stopping)
    environment.events.quitting.add_listener(session.finish)


def _refuse(error: HarnessError) -> NoReturn:
    """End Locust with our message and code; an error raised from a listener it only logs."""
    sys.stderr.write(f"harness: {error}\n")
    sys.exit(int(error.exit_code))
