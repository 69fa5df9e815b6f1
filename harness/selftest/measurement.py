"""Measures this machine against embedded endpoints, which know when they wrote what.

First rising rates of token events, then rising rates of short requests; all of it ends within
`Bounds.deadline_s`. Then, with a plan, the shape of its own load.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import health
from harness.endpoint import Settings, running
from harness.errors import HarnessError
from harness.plan import Plan
from harness.selftest.ramp import SERVER_LATE_NS, Seen, Steps, carry
from harness.selftest.result import (
    Ceiling,
    InStep,
    Level,
    Selftest,
    StampError,
    ceiling_of,
    cores,
    machine,
)
from harness.selftest.shape import measure_shape, shape_of
from harness.selftest.stamps import Compared, IntArray, compared, read_stamps, truth_of

_GAP_NS = 20_000_000
_GROWTH = 1.5  # of the load, from step to step
_ERROR_LIMIT_NS, _ERROR_GROWTH = 1_000_000, 10
_MAX_SERVERS = 4
_STREAMS_END, _REQUESTS_END = 0.55, 0.9  # shares of the deadline, when no step is begun any more


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
    plan: Plan | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Selftest:
    """Measure this machine; with a plan, by how late its budgets let sends be and in its own shape.

    `say` hears what is going on. Raises HarnessError when there was no time to measure anything.
    """
    bounds = bounds or Bounds()
    began_s = time.monotonic()
    lag_limit_ns = health.send_lag_limit(plan.budgets if plan else ())
    servers = max(1, min(cores() - 1, _MAX_SERVERS))
    with tempfile.TemporaryDirectory(prefix="harness-selftest-") as folder, ExitStack() as stack:
        urls = [stack.enter_context(running(_settings(bounds))) for _ in range(servers)]
        bench = _Bench(bounds, lag_limit_ns, began_s, Path(folder), tuple(urls))
        say("measuring the stamp error, then rising rates of token events")
        clock, error, token_events = bench.streams()
        say("measuring rising rates of short requests")
        requests = bench.requests()
    in_step: tuple[InStep, ...] = ()
    if plan is not None and (shape := shape_of(plan)):
        say(f"playing the plan's own shape: {shape.streams} streams in step")
        try:
            in_step = (measure_shape(plan, shape),)
        except HarnessError as why:  # what was measured of the machine holds all the same
            say(f"the plan's own shape was not measured: {why}")
    return Selftest(
        machine=machine(),
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        took_s=time.monotonic() - began_s,
        clock=clock,
        send_lag_limit_ns=lag_limit_ns,
        stamp_error=error,
        token_events=token_events,
        requests=requests,
        in_step=in_step,
    )


def _settings(bounds: Bounds) -> Settings:
    """Return what the servers do: a token every gap, half a step long; short replies at once."""
    return Settings(
        slots=1_000_000,
        ttft_ms=_GAP_NS / 1e6,
        ttft_sigma=0,
        gap_ms=_GAP_NS / 1e6,
        gap_sigma=0,
        tokens=_reply_tokens(bounds),
        predict_ms=0,
        predict_sigma=0,
        history=200_000,
    )


def _reply_tokens(bounds: Bounds) -> int:
    return max(2, round(bounds.step_s * 1e9 / 2 / _GAP_NS) + 1)


@dataclass(frozen=True, slots=True)
class _Bench:
    """The servers, a folder for what is written, and the time that is left."""

    bounds: Bounds
    lag_limit_ns: int
    began_s: float
    folder: Path
    urls: tuple[str, ...]

    def streams(self) -> tuple[str, StampError, Ceiling]:
        """Measure the clock that stamps, its error in the quiet step, and the token events."""
        bounds, file = self.bounds, self.folder / "stamps"
        reply_s = _reply_tokens(bounds) * _GAP_NS / 1e9
        streams = [round(bounds.streams * _GROWTH**i) for i in range(bounds.steps)]
        steps = Steps(
            api="openai-chat",
            scenario=self._scenario("stream_user", self.urls, str(file)),
            rates=[n / reply_s for n in streams],
            step_s=bounds.step_s,
            settle_s=reply_s,
            usual_ns=round(reply_s * 1e9),
            lag_limit_ns=self.lag_limit_ns,
            quiet_steps=2,
            max_in_flight=4 * streams[-1],
        )
        seen, clock = self._carry(steps, _STREAMS_END)
        truth = {key: one for url in self.urls for key, one in truth_of(url).items()}
        tokens = compared(read_stamps(file), truth, gap_ns=_GAP_NS)
        return clock, *_stream_levels(seen, tokens, streams[0])

    def requests(self) -> Ceiling:
        """Measure the short requests."""
        bounds = self.bounds
        steps = Steps(
            api="json",
            scenario=self._scenario("request_user", self.urls),
            rates=[bounds.requests_per_s * _GROWTH**i for i in range(bounds.steps)],
            step_s=bounds.step_s,
            settle_s=bounds.step_s / 4,
            usual_ns=None,
            lag_limit_ns=self.lag_limit_ns,
            quiet_steps=1,
            max_in_flight=500,
        )
        seen, _ = self._carry(steps, _REQUESTS_END)
        return ceiling_of([_level(one, one.per_s) for one in seen])

    def _carry(self, steps: Steps, end: float) -> tuple[list[Seen], str]:
        deadline_s = self.bounds.deadline_s
        return carry(
            steps,
            self.urls[0],
            stop_s=self.began_s + end * deadline_s,
            kill_s=self.began_s + deadline_s,
        )

    def _scenario(self, make: str, *arguments: object) -> Path:
        """Write the locust file of one measurement: its users come from `swarm.stamping`."""
        file = self.folder / f"{make}.py"
        given = ", ".join(map(repr, arguments))
        text = f"from harness.swarm.stamping import {make}\n\nSelftestUser = {make}({given})\n"
        file.write_text(text, encoding="utf-8")
        return file


def _stream_levels(
    seen: Sequence[Seen], tokens: Compared, streams: int
) -> tuple[StampError, Ceiling]:
    """Return the first step's stamp error, and what was carried until a step had no tokens."""
    quiet: StampError | None = None
    levels = []
    for one in seen:
        inside = (tokens.written_ns >= one.start_s * 1e9) & (tokens.written_ns < one.end_s * 1e9)
        if not inside.any():
            break
        error = _stamp_error(tokens.error_ns[inside], streams)
        quiet = quiet or error
        wrong = error.p99_ns > max(_ERROR_LIMIT_NS, _ERROR_GROWTH * quiet.p99_ns)
        late = float(np.quantile(tokens.late_ns[inside], 0.99)) > SERVER_LATE_NS
        per_s = error.events / (one.end_s - one.start_s)
        levels.append(_level(one, per_s, error_p99_ns=error.p99_ns, wrong=wrong, late=late))
    if quiet is None:
        raise HarnessError("selftest: no reply came whole; is the machine busy?")
    return quiet, ceiling_of(levels)


def _stamp_error(errors_ns: IntArray, streams: int) -> StampError:
    p50, p99, p999 = (int(np.quantile(errors_ns, q)) for q in (0.5, 0.99, 0.999))
    return StampError(events=len(errors_ns), streams=streams, p50_ns=p50, p99_ns=p99, p999_ns=p999)


def _level(
    seen: Seen,
    per_s: float,
    *,
    error_p99_ns: int | None = None,
    wrong: bool = False,
    late: bool = False,
) -> Level:
    return Level(
        per_s=per_s,
        error_p99_ns=error_p99_ns,
        send_lag_p99_ns=seen.lag_p99_ns,
        cpu=seen.cpu_mean,
        server_late=late or seen.late_server,
        broke=(*(["stamp error"] if wrong else []), *seen.broke()),
    )
