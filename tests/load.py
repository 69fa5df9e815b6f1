"""For the tests of the load's side: a user in a few words, a whole load, servers that misbehave."""

from __future__ import annotations

import os
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"  # the `swarm` marker patches, in a child
try:
    import locust
finally:
    del os.environ["LOCUST_SKIP_MONKEY_PATCH"]

import gevent.socket
import numpy as np
from gevent.server import StreamServer

from harness.plan import Plan, Target, load_plan
from harness.recorder import Histogram, Limits, Load, Recorder, Report, merge_reports
from harness.swarm import frames
from harness.swarm.dispatch import Arrival
from harness.swarm.session import limits_of
from harness.swarm.user import Journey, ModelUser, Run, Step
from harness.swarm.worker import Worker
from harness.transport import Transport

MS = 1_000_000
S = 1_000_000_000
STAGE = "steady"


# --- one user, without a load -------------------------------------------------------------------


@dataclass
class Seen:
    """What the recorder got, and every finished step with its stamps."""

    run: Run
    steps: list[Step] = field(default_factory=list)

    def note(self, step: Step, _journey: Journey) -> None:
        self.steps.append(step)

    def report(self) -> Report:
        return self.run.recorder.flush(0)


def make_run(url: str = "http://127.0.0.1:9", *, timeout_s: float = 10, **more: Any) -> Seen:
    """The state of one process, its steps noted."""
    target = Target(url=url, timeout_ns=round(timeout_s * S), **more.pop("target", {}))
    values: dict[str, Any] = {
        "target": target,
        "url": url,
        "recorder": Recorder(Limits()),
        "transport": Transport(),
        "inputs": None,
        "seed": (1, 0),
        "rng": np.random.default_rng(1),
        **more,
    }
    seen = Seen(Run(**values))
    seen.run.on_step = seen.note
    return seen


def make_user(cls: type[ModelUser], seen: Seen) -> Any:
    return cls(SimpleNamespace(harness=seen.run, catch_exceptions=False, events=locust.events))


def do(
    task: Callable[[Any], Any],
    seen: Seen,
    *,
    user: Any = None,
    planned_ns: int | None = None,
    ready_ns: int | None = None,
) -> bool:
    """Run a function as the task of a user."""
    now = time.monotonic_ns()
    planned = now if planned_ns is None else planned_ns
    user = user or make_user(type("Someone", (ModelUser,), {"tasks": [task]}), seen)
    return bool(user.run_task(Arrival(STAGE, planned, ready_ns or planned), task))


def kinds(report: Report, step: str) -> dict[str, int]:
    return dict(report.finished[STAGE, step].kinds)


def metrics(report: Report, step: str) -> set[str]:
    return {metric for _, name, metric in report.measured if name == step}


# --- a whole load in this process ---------------------------------------------------------------


def write_plan(folder: Path, scenario: str, *, url: str, load: str, **more: Any) -> Plan:
    """Write a scenario and its plan, and load them. `load` is the plan's, in flow style."""
    head = "from harness import ModelUser, RequestFailed, step, task\nimport gevent, time\n"
    (folder / "scenario.py").write_text(head + textwrap.dedent(scenario), encoding="utf-8")
    target = {"url": url, "timeout": "10s", **more.pop("target", {})}
    more.setdefault("budgets", ["run.error_rate < 99%"])
    fields = "".join(f"{name}: {value}\n" for name, value in more.items())
    text = f"target: {target}\nscenario: scenario.py\nload: {load}\n{fields}"
    (folder / "plan.yaml").write_text(text, encoding="utf-8")
    return load_plan(folder / "plan.yaml")


@dataclass
class Loaded:
    """A load that is over: its reports in order, its last frame, every step with its stage."""

    reports: list[Report]
    done: frames.Done
    steps: list[tuple[str, Step]]
    t0_ns: int

    def load(self, stage: str = STAGE) -> Load:
        return merge_reports([replace(r, index=0) for r in self.reports]).load[stage]

    def kinds(self, stage: str = STAGE) -> Counter[str]:
        found: Counter[str] = Counter()
        for report in self.reports:
            for (name, _), outcome in report.finished.items():
                found += outcome.kinds if name == stage else Counter()
        return found

    def histogram(self, step: str, metric: str, stage: str = STAGE) -> Histogram:
        key = (stage, step, metric)
        return Histogram.merged(
            r.measured[key].histogram for r in self.reports if key in r.measured
        )

    def samples(self, metric: str, stage: str = STAGE) -> int:
        return sum(
            m.histogram.n
            for report in self.reports
            for (name, _, what), m in report.measured.items()
            if (name, what) == (stage, metric)
        )


def run_here(
    plan: Plan, *, preflight: bool = False, stop_when: Callable[[Worker], bool] | None = None
) -> Loaded:
    """Run a plan's load by one worker inside this process, and check that nothing vanished."""
    sent: list[Any] = []
    job = frames.Job(
        plan=plan,
        url=plan.target.url,
        interval_ns=S // 10,
        worker=0,
        workers=1,
        preflight=preflight,
    )
    worker = Worker(job, sent.append)
    if preflight:
        worker.preflight()
    steps: list[tuple[str, Step]] = []
    worker._run.on_step = lambda step, journey: steps.append((journey.stage, step))
    t0_ns = time.monotonic_ns() + 50 * MS
    watch = gevent.spawn(_stop_when, worker, stop_when) if stop_when else None
    worker.load(t0_ns)
    gevent.killall([watch] if watch else [])
    *reports, done = sent
    loaded = Loaded(reports, done, steps, t0_ns)
    check_nothing_vanished(loaded.reports)
    return loaded


def check_nothing_vanished(reports: Sequence[Report]) -> None:
    """Every planned arrival was sent or dropped, every sent one finished or was cut off."""
    assert [report.index for report in reports] == list(range(len(reports)))
    for stage, load in merge_reports([replace(r, index=0) for r in reports]).load.items():
        assert load.planned == load.sent + load.dropped, (stage, load)
        assert load.sent == load.finished + load.cut_off, (stage, load)


def _stop_when(worker: Worker, so: Callable[[Worker], bool]) -> None:
    while not so(worker):
        gevent.sleep(0.001)
    worker.stop()


def limits(plan: Plan) -> Limits:
    return limits_of(plan.budgets)


# --- servers that do what they are told ---------------------------------------------------------


@contextmanager
def serving(handle: Callable[[Any], object], **options: Any) -> Iterator[str]:
    """Serve raw sockets on loopback; `handle` has the connection to itself, then it is closed."""

    def connection(socket: Any, _address: object) -> None:
        socket.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        try:
            handle(socket)
        except OSError:
            pass  # the client left
        finally:
            socket.close()

    server = StreamServer(("127.0.0.1", 0), connection, **options)
    server.start()
    try:
        yield f"{'https' if options else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.stop(timeout=0)


def request_of(socket: Any) -> bytes:
    """Read one request; empty when the client closed instead."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = socket.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (
            int(line[15:])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ),
        0,
    )
    while len(body) < length:
        body += socket.recv(65536)
    return head + b"\r\n\r\n" + body


def answer(body: bytes = b"{}", *, status: str = "200 OK", more: bytes = b"") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n".encode()
        + b"content-length: %d\r\n" % len(body) + more + b"\r\n" + body
    )  # fmt: skip


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str = "a", *, finish: str | None = None) -> bytes:
    """One chat event, as a chunk."""
    reason = "null" if finish is None else f'"{finish}"'
    data = f'{{"choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":{reason}}}]}}'
    return chunk(f"data: {data}\n\n".encode())


DONE = chunk(b"data: [DONE]\n\n")
END = b"0\r\n\r\n"
