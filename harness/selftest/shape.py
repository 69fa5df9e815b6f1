"""Plays the shape that a plan's own load will have, and says how wrong each metric's times are.

As many streams as the plan will have at once, all in step, by as many workers, over TLS and HTTP/2
if the plan is. What of it has no server here to test it with is named, never assumed to be as good.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.endpoint.certificate import throwaway
from harness.endpoint.instep import TICK_NS, TTFT_NS, running_in_step
from harness.errors import HarnessError
from harness.plan import Plan, Stage, Target
from harness.recorder import Report
from harness.selftest.fitting import Demand, demands, reply_tokens
from harness.selftest.playing import play
from harness.selftest.result import Errors, InStep, Shape
from harness.selftest.stamps import IntArray, read_stamps

MOST_STREAMS = 1_000  # one server in one process keeps these in step
MOST_TOKENS, LEAST_TOKENS = 100, 10
WAVES = 4  # the first, with all that is new in it, is not counted
_INTERVAL_S = 0.5
_DEADLINE_S = 45
_TIMEOUT_NS, _DRAIN_NS = 20_000_000_000, 10_000_000_000


def shape_of(plan: Plan) -> Shape | None:
    """Return the most streams that a stage of the plan has at once; None when it has no streams.

    Of arrivals it is their rate times how long a reply takes of the test server, by the tokens that
    the plan asks for or that are assumed.
    """
    tokens, _ = reply_tokens(plan)
    reply_s = (TTFT_NS + tokens * TICK_NS) / 1e9
    found = []
    for stage, demand in zip(plan.load, demands(plan), strict=True):
        streams = _streams(stage, demand, tokens, reply_s)
        if streams:
            found.append((streams, stage.name))
    if not found:
        return None
    streams, name = max(found)
    https = plan.target.url.startswith("https://")
    return Shape(
        stage=name,
        streams=streams,
        workers=plan.workers,
        tls=https,
        http2=plan.target.http2 and https,
        proxy=plan.target.proxy is not None,
    )


def _streams(stage: Stage, demand: Demand, tokens: int, reply_s: float) -> int:
    if not demand.events_per_s:
        return 0
    if stage.arrivals is None:
        return stage.concurrency or 0
    in_flight = max(1, round(demand.events_per_s / tokens * reply_s))
    return min(in_flight, stage.max_in_flight or in_flight)


def measure_shape(plan: Plan, shape: Shape, *, waves: int = WAVES) -> InStep:
    """Play a closed load of the shape's streams. Raises HarnessError when nothing was measured."""
    asked, _ = reply_tokens(plan)
    tokens = max(LEAST_TOKENS, min(asked, MOST_TOKENS))
    with tempfile.TemporaryDirectory(prefix="harness-selftest-") as name:
        folder = Path(name)
        tls = throwaway(folder) if shape.tls else None
        http2 = shape.http2 and tls is not None
        streams = min(shape.streams, MOST_STREAMS)
        seen = _Seen(TTFT_NS * 2 + tokens * TICK_NS)
        with ExitStack() as stack:
            url = stack.enter_context(
                running_in_step(folder / "truth", tokens=tokens, tls=tls, http2=http2)
            )
            target = Target(
                url=url, verify=tls[0] if tls else True, http2=http2, timeout_ns=_TIMEOUT_NS
            )
            load = Stage(name="in_step", duration_ns=waves * seen.wave_ns, concurrency=streams)
            ours = _plan(folder, target, load, min(shape.workers, streams))
            clock, _ = play(
                ours, url, seen.note, interval_s=_INTERVAL_S, kill_s=time.monotonic() + _DEADLINE_S
            )
        written = read_stamps(folder / "truth")
        stamps: dict[int, IntArray] = {}
        for file in folder.glob("stamps.*"):
            stamps |= read_stamps(file)
    parts = compared_in_step(stamps, written)
    return InStep(
        shape=shape,
        streams=streams,
        tls=tls is not None,
        http2=http2,
        tokens=tokens,
        replies=len(parts["e2el"]),
        failed=seen.failed,
        ttft=_errors(parts["ttft"]),
        itl=_errors(parts["itl"]),
        e2el=_errors(parts["e2el"]),
        merged=seen.merged / max(1, seen.token_events),
        stall_ns=seen.stall_ns,
        server_late_ns=int(np.quantile(parts["late"], 0.99)),
        clock=clock,
    )


@dataclass(slots=True)
class _Seen:
    """What the workers report: failures from the start, the rest once the first wave is over."""

    wave_ns: int
    failed: int = 0
    stall_ns: int = 0
    merged: int = 0
    token_events: int = 0
    _since: int = field(init=False, default=0)

    def note(self, report: Report) -> bool:
        """Take an interval in."""
        self.failed += sum(load.failed + load.cut_off for load in report.load.values())
        if report.index * _INTERVAL_S * 1e9 >= self.wave_ns:
            self.stall_ns = max(self.stall_ns, report.stall_ns)
            self.merged += sum(load.merged for load in report.load.values())
            self.token_events += sum(load.token_events for load in report.load.values())
        return True


def _plan(folder: Path, target: Target, load: Stage, workers: int) -> Plan:
    scenario = folder / "in_step.py"
    call = f"in_step_user({str(folder / 'stamps')!r})"
    text = f"from harness.swarm.stamping import in_step_user\n\nInStepUser = {call}\n"
    scenario.write_text(text, encoding="utf-8")
    return Plan(
        name="selftest",
        path=None,
        source="",
        redacted_source="",
        target=target,
        scenario=scenario,
        inputs=None,
        load=(load,),
        budgets=(),
        workers=workers,
        drain_ns=_DRAIN_NS,
    )


def compared_in_step(
    stamps: Mapping[int, IntArray], written: Mapping[int, IntArray]
) -> dict[str, IntArray]:
    """Return how wrong the times of each metric are, ns, and how late the server was in its ticks.

    A time to the first token and to the end is as wrong as its stamp, since the client itself takes
    the time of its send; a gap is as wrong as the difference of two stamps. Replies of the first
    wave do not count. Raises HarnessError when stamps and truth do not fit, or none are left.
    """
    ends = [written[number][0] for number in stamps if number in written]
    first_wave_ns = min(ends, default=0) + TICK_NS
    parts: dict[str, list[IntArray]] = {"ttft": [], "itl": [], "e2el": [], "late": []}
    for number, (end_ns, *reported) in stamps.items():
        true = written.get(number)
        if true is None or len(true) - 1 != len(reported) or not reported:
            wrote = 0 if true is None else len(true) - 1
            raise HarnessError(
                f"selftest: reply {number} has {len(reported)} stamped tokens; the server wrote "
                f"{wrote}"
            )
        if true[0] <= first_wave_ns:
            continue
        errors = np.asarray(reported) - true[1:]
        parts["ttft"].append(errors[:1])
        parts["itl"].append(np.diff(errors))
        parts["e2el"].append(np.asarray([end_ns - true[0]]))
        parts["late"].append(true % TICK_NS)
    if not parts["e2el"]:
        raise HarnessError("selftest: no reply came whole; is the machine busy?")
    return {name: np.concatenate(list(_some(each))) for name, each in parts.items()}


def _some(arrays: list[IntArray]) -> Iterator[IntArray]:
    """Yield arrays, at least one: a reply of one token has no gap."""
    yield np.zeros(0, dtype=np.int64)
    yield from arrays


def _errors(errors_ns: IntArray) -> Errors:
    """Return how large errors were, early or late."""
    sizes = np.abs(errors_ns)
    p50, p99 = (int(np.quantile(sizes, q)) for q in (0.5, 0.99))
    return Errors(p50_ns=p50, p99_ns=p99, max_ns=int(sizes.max()))
