"""Puts rising load on servers by a worker as in a run, step by step.

Steps follow each other until the worker is no longer fit to judge by the limits of `health`, or the
servers fall behind.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import health
from harness.errors import HarnessError
from harness.plan import Arrivals, Plan, Stage, Target
from harness.recorder import Histogram, Report
from harness.selftest.playing import NO_TIME, play
from harness.selftest.result import SEND_LAG
from harness.swarm.manifest import stage_windows

SERVER_LATE_NS = 10_000_000
_INTERVALS = 10  # reports in a step
_DRAIN_NS = 3_000_000_000
_STAGE = "step"
_TINY_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
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
        """Return the plan that a worker runs, a stage for each step."""
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
class Seen:
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
        """Return a quantile of how long requests took."""
        return Histogram.merged(self.services).quantile(q)

    @property
    def cpu_mean(self) -> float | None:
        """The worker's mean share of a core."""
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


class Ramp:
    """Follows the reports step by step and tells when to go no further."""

    def __init__(self, steps: Steps, plan: Plan, interval_s: float) -> None:
        self._interval_s = interval_s
        self._usual_ns = steps.usual_ns
        windows = stage_windows(plan)
        plan_end_s = windows[-1].end_s
        self.seen = [
            Seen(
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
        self._add_requests(report)
        start_s = report.index * self._interval_s
        end_s = start_s + self._interval_s
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

    def _add_requests(self, report: Report) -> None:
        """Add what was measured of each request to the step that it was planned in."""
        for (stage, _, metric), measured in report.measured.items():
            if metric == "send_lag":
                self._step(stage).lags.append(measured.histogram)
            elif metric == "service":
                self._step(stage).services.append(measured.histogram)
        for (stage, _), finished in report.finished.items():
            self._step(stage).failed += sum(finished.kinds.values())

    def is_late(self, seen: Seen) -> bool:
        """Tell whether the server took longer in a step than one does that keeps up."""
        usual_ns = self._usual_ns or self.seen[0].service_ns(0.5) or 0
        service_ns = seen.service_ns(0.9)
        return service_ns is None or service_ns > usual_ns + SERVER_LATE_NS

    def _judge(self, seen: Seen) -> bool:
        """One bad step may be a hiccup of the machine, two in a row are the end."""
        self._bad = self._bad + 1 if seen.broke() or self.is_late(seen) else 0
        return self._bad < 2

    def _step(self, stage: str) -> Seen:
        return self.seen[int(stage.removeprefix(_STAGE))]


def carry(steps: Steps, url: str, *, stop_s: float, kill_s: float) -> tuple[list[Seen], str]:
    """Run the steps by one worker; returns those that were run whole, and the worker's clock."""
    plan = steps.plan()
    interval_s = steps.step_s / _INTERVALS
    ramp = Ramp(steps, plan, interval_s)

    def note(report: Report) -> bool:
        return ramp.note(report) and time.monotonic() < stop_s

    clock, stopped_s = play(plan, url, note, interval_s=interval_s, kill_s=kill_s)
    for one in ramp.seen:
        one.late_server = ramp.is_late(one)
    whole = [seen for seen in ramp.seen if seen.end_s <= stopped_s]
    if not whole:
        raise HarnessError(NO_TIME)
    return whole, clock
