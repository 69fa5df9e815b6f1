"""Puts rising load on embedded endpoints, which know when they wrote what, by a worker as in a run.

Steps follow each other until the worker is no longer fit to judge by the limits of `health`, its
stamps go wrong, or the servers fall behind; what was carried is then a lower bound, and is called
one. All of it ends within `Bounds.deadline_s`.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness import health
from harness.budget import Budget
from harness.endpoint import Settings, running
from harness.errors import HarnessError
from harness.plan import Arrivals, Plan, Stage, Target
from harness.recorder import Histogram, Report, RunFolder
from harness.selftest.result import (
    SEND_LAG,
    Ceiling,
    Level,
    Selftest,
    StampError,
    ceiling_of,
    cores,
    machine,
)
from harness.selftest.stamps import Compared, compared, read_stamps, truth_of
from harness.swarm.collect import Workers, check_probes
from harness.swarm.manifest import describe, stage_windows

_GAP_NS = 20_000_000
_GROWTH = 1.5  # of the load, from step to step
_ERROR_LIMIT_NS, _ERROR_GROWTH = 1_000_000, 10
_SERVER_LATE_NS = 10_000_000
_INTERVALS = 10  # reports in a step
_MAX_SERVERS = 4
_DRAIN_NS = 3_000_000_000
_LOG_FILE = "locust.log"
_STAGE = "step"
_TINY_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long and how far is measured.

    The first step of each measurement is the quiet one; that of the streams lasts twice as long.
    """

    step_s: float = 2.0
    steps: int = 8
    streams: int = 50
    requests_per_s: float = 200
    deadline_s: float = 55.0


def measure(
    *,
    bounds: Bounds | None = None,
    budgets: Iterable[Budget] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Selftest:
    """Measure this machine, by how late sends may be under `budgets`. `say` hears what is going on.

    Raises HarnessError when there was no time to measure anything.
    """
    bounds = bounds or Bounds()
    lag_limit_ns = health.send_lag_limit(budgets)
    began_s = time.monotonic()
    deadline_s = began_s + bounds.deadline_s
    reply_tokens = max(2, round(bounds.step_s * 1e9 / 2 / _GAP_NS) + 1)
    settings = Settings(
        slots=1_000_000,
        ttft_ms=_GAP_NS / 1e6,
        ttft_sigma=0,
        gap_ms=_GAP_NS / 1e6,
        gap_sigma=0,
        tokens=reply_tokens,
        predict_ms=0,
        predict_sigma=0,
        history=200_000,
    )
    servers = max(1, min(cores() - 1, _MAX_SERVERS))
    with tempfile.TemporaryDirectory(prefix="harness-selftest-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        urls = tuple(stack.enter_context(running(settings)) for _ in range(servers))
        say("measuring the stamp error, then rising rates of token events")
        reply_s = reply_tokens * _GAP_NS / 1e9
        streams = [round(bounds.streams * _GROWTH**i) for i in range(bounds.steps)]
        file = folder / "stamps"
        steps = _Steps(
            api="openai-chat",
            scenario=_scenario(folder, "stream_user", urls, str(file)),
            rates=[n / reply_s for n in streams],
            step_s=bounds.step_s,
            settle_s=reply_s,
            usual_ns=round(reply_s * 1e9),
            lag_limit_ns=lag_limit_ns,
            quiet_steps=2,
            max_in_flight=4 * streams[-1],
        )
        half_s = began_s + 0.55 * bounds.deadline_s
        seen, clock = _carry(steps, urls, stop_s=half_s, kill_s=deadline_s)
        truth = {key: one for url in urls for key, one in truth_of(url).items()}
        error, token_events = _stream_levels(
            seen, compared(read_stamps(file), truth, gap_ns=_GAP_NS), streams[0]
        )
        say("measuring rising rates of short requests")
        steps = _Steps(
            api="json",
            scenario=_scenario(folder, "request_user", urls),
            rates=[bounds.requests_per_s * _GROWTH**i for i in range(bounds.steps)],
            step_s=bounds.step_s,
            settle_s=bounds.step_s / 4,
            usual_ns=None,
            lag_limit_ns=lag_limit_ns,
            quiet_steps=1,
            max_in_flight=500,
        )
        stop_s = began_s + 0.9 * bounds.deadline_s
        seen, _ = _carry(steps, urls, stop_s=stop_s, kill_s=deadline_s)
        requests = _request_levels(seen)
    return Selftest(
        machine=machine(),
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        took_s=time.monotonic() - began_s,
        clock=clock,
        send_lag_limit_ns=lag_limit_ns,
        stamp_error=error,
        token_events=token_events,
        requests=requests,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """Rising constant rates of one kind of request; what a step measures begins at `settle_s`.

    `usual_ns` is how long a request takes with a server that keeps up; None is found out in the
    quiet step.
    """

    api: Any
    scenario: Path
    rates: Sequence[float]
    step_s: float
    settle_s: float
    usual_ns: int | None
    lag_limit_ns: int
    quiet_steps: int
    max_in_flight: int

    def plan(self) -> Plan:
        durations = [self.quiet_steps * self.step_s, *[self.step_s] * (len(self.rates) - 1)]
        stages = tuple(
            Stage(
                name=f"{_STAGE}{number}",
                duration_ns=round(duration_s * 1e9),
                arrivals=Arrivals(kind="constant", rate_per_s=rate),
                max_in_flight=self.max_in_flight,
            )
            for number, (rate, duration_s) in enumerate(zip(self.rates, durations, strict=True))
        )
        return Plan(
            name="selftest",
            path=None,
            source="",
            redacted_source="",
            target=Target(url="embedded", api=self.api, timeout_ns=10_000_000_000),
            scenario=self.scenario,
            inputs=None,
            load=stages,
            budgets=(),
            drain_ns=_DRAIN_NS,
        )


@dataclass(slots=True)
class _Seen:
    """What the worker reported of one step.

    `start_s` is when it had settled. It is judged at `judged_s`, after its end: a request is
    reported when its reply has ended.
    """

    start_s: float
    end_s: float
    judged_s: float
    lag_limit_ns: int
    counted_s: float = 0
    lags: list[Histogram] = field(default_factory=list)
    services: list[Histogram] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    finished: int = 0
    failed: int = 0
    late_server: bool = False

    @property
    def per_s(self) -> float:
        """Requests that finished in this step's time, a second."""
        return self.finished / self.counted_s if self.counted_s else 0.0

    @property
    def lag_p99_ns(self) -> int | None:
        """The p99, or of fewer than 100 the second largest, as `health` has it."""
        lags = Histogram.merged(self.lags)
        return lags.at_rank(max(1, min(math.ceil(0.99 * lags.n), lags.n - 1)))

    def service_ns(self, q: float) -> int | None:
        return Histogram.merged(self.services).quantile(q)

    @property
    def cpu_mean(self) -> float | None:
        return sum(self.cpu) / len(self.cpu) if self.cpu else None

    def broke(self) -> tuple[str, ...]:
        """What made the worker unfit to judge a target."""
        lag_ns, cpu = self.lag_p99_ns, self.cpu_mean
        found = {
            SEND_LAG: lag_ns is not None and lag_ns >= self.lag_limit_ns,
            "its CPU": cpu is not None and cpu >= health.CPU_LIMIT,
            "failed requests": self.failed > 0,
        }
        return tuple(name for name, is_so in found.items() if is_so)


class _Ramp:
    """Follows the reports step by step and tells when to go no further."""

    def __init__(self, steps: _Steps, plan: Plan, interval_s: float) -> None:
        self._interval_s = interval_s
        self._usual_ns = steps.usual_ns
        windows = stage_windows(plan)
        plan_end_s = windows[-1].end_s
        self.seen = [
            _Seen(
                window.start_s + steps.settle_s,
                window.end_s,
                judged_s=min(window.end_s + steps.settle_s, plan_end_s),
                lag_limit_ns=steps.lag_limit_ns,
            )
            for window in windows
        ]
        self._next = 0
        self._bad = 0

    def note(self, report: Report) -> bool:
        """Take in a report; returns False when a step ended that no higher one should follow."""
        start_s = report.index * self._interval_s
        end_s = start_s + self._interval_s
        for (stage, _, metric), measured in report.measured.items():
            if metric == "send_lag":
                self._step(stage).lags.append(measured.histogram)
            elif metric == "service":
                self._step(stage).services.append(measured.histogram)
        for (stage, _), finished in report.finished.items():
            self._step(stage).failed += sum(finished.kinds.values())
        for seen in self.seen:
            if seen.start_s <= start_s + _TINY_S and end_s <= seen.end_s + _TINY_S:
                seen.counted_s += self._interval_s
                seen.finished += sum(load.finished for load in report.load.values())
                if report.cpu is not None:
                    seen.cpu.append(report.cpu)
        go_on = True
        while self._next < len(self.seen) and self.seen[self._next].judged_s <= end_s + _TINY_S:
            go_on &= self._judge(self.seen[self._next])
            self._next += 1
        return go_on

    def is_late(self, seen: _Seen) -> bool:
        """Tell whether the server took longer in a step than one does that keeps up."""
        usual_ns = self._usual_ns or self.seen[0].service_ns(0.5) or 0
        service_ns = seen.service_ns(0.9)
        return service_ns is None or service_ns > usual_ns + _SERVER_LATE_NS

    def _judge(self, seen: _Seen) -> bool:
        """One bad step may be a hiccup of the machine, two in a row are the end."""
        self._bad = self._bad + 1 if seen.broke() or self.is_late(seen) else 0
        return self._bad < 2

    def _step(self, stage: str) -> _Seen:
        return self.seen[int(stage.removeprefix(_STAGE))]


def _carry(
    steps: _Steps, urls: Sequence[str], *, stop_s: float, kill_s: float
) -> tuple[list[_Seen], str]:
    """Run the steps by one worker; returns those that were run whole, and the worker's clock."""
    plan = steps.plan()
    interval_s = steps.step_s / _INTERVALS
    ramp = _Ramp(steps, plan, interval_s)
    out = Path(tempfile.mkdtemp(dir=steps.scenario.parent))
    run = describe(plan, urls[0], stage_windows(plan), round(interval_s * 1e9))
    folder = RunFolder.create(out, run)
    stopped = False

    def note(report: Report) -> None:
        nonlocal stopped
        go_on = ramp.note(report) and time.monotonic() < stop_s
        if not go_on and not stopped:
            stopped = True
            workers.stop()

    with (
        Workers.started(
            plan, urls[0], interval_ns=round(interval_s * 1e9), log_path=out / _LOG_FILE
        ) as workers,
        _killed_at(kill_s, workers),
    ):
        ready = workers.ready()
        check_probes(ready.probes, urls[0])
        ended = workers.run(folder, note)
    for one in ramp.seen:
        one.late_server = ramp.is_late(one)
    whole = [seen for seen in ramp.seen if seen.end_s <= (ended.stopped_s or math.inf)]
    if ended.crashed and time.monotonic() < kill_s:
        raise HarnessError(f"selftest: {ended.crashed[0]}; {_last_line(out / _LOG_FILE)}")
    if ended.crashed or not whole:
        raise HarnessError("selftest: there was no time to measure anything; is the machine busy?")
    return whole, ready.clock


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


def _scenario(folder: Path, make: str, *arguments: object) -> Path:
    """Write the locust file of one measurement: its users come from `swarm.stamping`."""
    file = folder / f"{make}.py"
    given = ", ".join(map(repr, arguments))
    text = f"from harness.swarm.stamping import {make}\n\nSelftestUser = {make}({given})\n"
    file.write_text(text, encoding="utf-8")
    return file


def _stream_levels(
    seen: Sequence[_Seen], tokens: Compared, streams: int
) -> tuple[StampError, Ceiling]:
    quiet: StampError | None = None
    levels = []
    for one in seen:
        inside = (tokens.written_ns >= one.start_s * 1e9) & (tokens.written_ns < one.end_s * 1e9)
        if not inside.any():
            break
        errors = tokens.error_ns[inside]
        p50, p99, p999 = (int(np.quantile(errors, q)) for q in (0.5, 0.99, 0.999))
        if quiet is None:
            quiet = StampError(
                events=len(errors), streams=streams, p50_ns=p50, p99_ns=p99, p999_ns=p999
            )
        wrong = p99 > max(_ERROR_LIMIT_NS, _ERROR_GROWTH * quiet.p99_ns)
        late = float(np.quantile(tokens.late_ns[inside], 0.99)) > _SERVER_LATE_NS
        levels.append(
            Level(
                per_s=int(inside.sum()) / (one.end_s - one.start_s),
                error_p99_ns=p99,
                send_lag_p99_ns=one.lag_p99_ns,
                cpu=one.cpu_mean,
                server_late=late or one.late_server,
                broke=(*(["stamp error"] if wrong else []), *one.broke()),
            )
        )
    if quiet is None:
        raise HarnessError("selftest: no reply came whole; is the machine busy?")
    return quiet, ceiling_of(levels)


def _request_levels(seen: Sequence[_Seen]) -> Ceiling:
    return ceiling_of(
        [
            Level(
                per_s=one.per_s,
                error_p99_ns=None,
                send_lag_p99_ns=one.lag_p99_ns,
                cpu=one.cpu_mean,
                server_late=one.late_server,
                broke=one.broke(),
            )
            for one in seen
        ]
    )
