"""The clients that `run.py` measures: `python clients.py NAME OPTIONS OUT`, each a process of its own.

OPTIONS is JSON; the result goes to the file OUT, as JSON. A client pins itself to its core before
it imports anything large. Those that read streams stamp every event when they are given it, and tell
tokens from other events by their JSON after the streams, so that parsing delays no stamp. CPU of
streams counts from `mark_ns`, when all requests are out and no token is due yet, to the last token
decoded.

The imports are inside the functions: aiohttp and uvloop are not in the project's environment, and
the project is not in theirs.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHAT, SHORT = "/v1/chat/completions", "/v1/predict"
BODY = b'{"model":"truth","messages":[{"role":"user","content":"Say something."}],"stream":true}'
HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
S = 1_000_000_000
_MARK_NS = S // 20  # before the first token is due

Options = dict[str, Any]
Result = dict[str, Any]


class Schedule:
    """Streams that begin one after the other and whose tokens then come evenly spread."""

    def __init__(self, options: Options) -> None:
        self.streams, self.gap_ns = options["streams"], options["gap_us"] * 1000
        self.tokens = options["tokens"]
        self.first_ns = time.monotonic_ns() + int(options["lead_s"] * S)
        self.stamps: dict[str, list[int]] = {}
        self.events: dict[str, list[tuple[int, bytes]]] = {}
        """What is decoded when the last stream has ended, so that it disturbs no stamp."""
        self.merged: int | None = None
        self._cpu_s = 0.0
        self._marked_ns = 0

    def headers(self, index: int) -> dict[str, str]:
        due_ns = self.first_ns + index * self.gap_ns // self.streams
        return HEADERS | {
            "x-request-id": f"r{index}",
            "x-ttft-us": str(max(0, due_ns - time.monotonic_ns()) // 1000),
            "x-gap-us": str(self.gap_ns // 1000),
            "x-tokens": str(self.tokens),
        }

    def until_mark_s(self) -> float:
        return max(0, self.first_ns - _MARK_NS - time.monotonic_ns()) / S

    def mark(self) -> None:
        self._marked_ns, self._cpu_s = time.monotonic_ns(), time.process_time()

    def result(self) -> Result:
        self.stamps |= {name: token_stamps(events) for name, events in self.events.items()}
        cpu_s = time.process_time() - self._cpu_s
        return {
            "stamps": self.stamps,
            "merged": self.merged,
            "mark_ns": self._marked_ns,
            "cpu_s": cpu_s,
        }


def token_stamps(events: list[tuple[int, bytes]]) -> list[int]:
    """Return the stamps of the events that bring a token."""
    found = []
    for t_ns, data in events:
        if not data.startswith(b"data: {"):
            continue
        choices = json.loads(data[6:])["choices"]
        if choices and choices[0]["delta"].get("content"):
            found.append(t_ns)
    return found


def pss_mb() -> float:
    """Return this process's share of memory, in MB."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("/proc/self/smaps_rollup has no Pss")


def _freeze() -> None:
    """Spare a client whose tool leaves the collector alone one of what was imported."""
    gc.collect()
    gc.freeze()


# Streams: what the stamps of tokens are worth, and what an event costs


def _in_greenlets(schedule: Schedule, one: Callable[[int], None]) -> Result:
    import gevent

    running = [gevent.spawn_later(schedule.until_mark_s(), schedule.mark)]
    for index in range(schedule.streams):
        running.append(gevent.spawn(one, index))
        gevent.sleep(0.0003)
    gevent.joinall(running, raise_error=True)
    return schedule.result()


def streams_harness(options: Options) -> Result:
    """Read as `ModelUser.chat` does."""
    import httpx

    from harness import apis
    from harness.swarm.pauses import quiet_collector
    from harness.transport import STAMPS, WHOLE, Transport

    cert = options.get("cert")
    transport = Transport(
        verify=Path(cert) if cert else True, kernel_stamps=options.get("kernel_stamps", True)
    )
    dialect = apis.api("openai-chat")

    def one(index: int) -> None:
        client = httpx.Client(
            transport=transport, base_url=options["url"], trust_env=False, timeout=120
        )
        request = client.build_request(
            "POST",
            CHAT,
            content=BODY,
            headers=schedule.headers(index),
            extensions={WHOLE: True},
        )
        response = client.send(request, stream=True)
        stamps, reader = response.extensions[STAMPS], apis.StreamReader(dialect)
        for piece in response.iter_raw():
            reader.feed(piece, stamps.read_ns)
        response.close()
        reply = reader.finish(stamps.read_ns)
        if reply.failure is not None:
            raise reply.failure
        schedule.stamps[f"r{index}"] = [t_ns for t_ns, _ in reply.token_events]
        schedule.merged = (schedule.merged or 0) + reply.merged

    quiet_collector()
    schedule = Schedule(options)
    return _in_greenlets(schedule, one)


def streams_httpx(options: Options) -> Result:
    """Stock httpx under gevent: `iter_lines`, a client for each stream as for each user."""
    import httpx

    cert = options.get("cert")
    context = httpx.create_ssl_context(verify=True, trust_env=False)
    if cert:
        context.load_verify_locations(cert)

    def one(index: int) -> None:
        events: list[tuple[int, bytes]] = []
        now = time.monotonic_ns
        with (
            httpx.Client(
                base_url=options["url"], verify=context, trust_env=False, timeout=120
            ) as client,
            client.stream("POST", CHAT, content=BODY, headers=schedule.headers(index)) as response,
        ):
            events.extend((now(), line.encode()) for line in response.iter_lines() if line)
        schedule.events[f"r{index}"] = events

    _freeze()
    schedule = Schedule(options)
    return _in_greenlets(schedule, one)


def streams_fasthttp(options: Options) -> Result:
    """Locust's FastHttpUser, event by event."""
    from locust.contrib.fasthttp import FastHttpUser
    from locust.env import Environment

    environment = Environment()
    FastHttpUser.host, FastHttpUser.network_timeout = options["url"], 120

    def one(index: int) -> None:
        user = FastHttpUser(environment)
        events: list[tuple[int, bytes]] = []
        headers = schedule.headers(index)
        response = user.client.post(CHAT, data=BODY, headers=headers, stream=True)
        body, now = response._response, time.monotonic_ns
        while event := body.readline(b"\n\n"):
            events.append((now(), bytes(event)))
        schedule.events[f"r{index}"] = events

    _freeze()
    schedule = Schedule(options)
    return _in_greenlets(schedule, one)


def streams_aiohttp(options: Options) -> Result:
    """Run aiohttp under uvloop, line by line."""
    import aiohttp
    import uvloop

    async def one(session: aiohttp.ClientSession, index: int) -> None:
        events: list[tuple[int, bytes]] = []
        now = time.monotonic_ns
        async with session.post(CHAT, data=BODY, headers=schedule.headers(index)) as response:
            async for line in response.content:
                if len(line) > 1:
                    events.append((now(), line))  # noqa: PERF401 - stamped as it comes
        schedule.events[f"r{index}"] = events

    async def mark() -> None:
        await asyncio.sleep(schedule.until_mark_s())
        schedule.mark()

    async def everything() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(
            options["url"], connector=connector, timeout=timeout
        ) as session:
            running = [asyncio.create_task(mark())]
            for index in range(schedule.streams):
                running.append(asyncio.create_task(one(session, index)))
                await asyncio.sleep(0.0003)
            await asyncio.gather(*running)

    _freeze()
    schedule = Schedule(options)
    uvloop.run(everything())
    return schedule.result()


def decoded_events(options: Options) -> Result:
    """Say what an event of a shape costs once its bytes are read."""
    import decoding

    from harness.swarm.pauses import quiet_collector

    given = decoding.replies(options["shape"], options["url"])
    quiet_collector()
    return {"event_us": decoding.cost_us(given)}


# The whole tool: a worker with its users, dispatcher and recorder

_CHAT_SCENARIO = """
from harness import ModelUser, task


class Chatter(ModelUser):
    @task
    def ask(self):
        self.chat("Say something.")
"""
_SHORT_SCENARIO = """
from harness import ModelUser, task


class Short(ModelUser):
    @task
    def ask(self):
        {call}
"""
_CALLS = {
    "client": f"self.client.post({SHORT!r}, content=b'{{}}', headers={HEADERS!r})",
    "predict": "self.predict({})",
}
_PLAN = """
target: {{ url: "{url}", model: truth }}
scenario: scenario.py
load: [{load}]
budgets: [run.error_rate < 1%]
"""


def _work(
    options: Options,
    scenario: str,
    *,
    on_step: Callable[..., None] | None = None,
    on_take: Callable[[Any], None] | None = None,
) -> Result:
    """Run a plan as a worker process does; its reports are packed for the parent and kept.

    `on_step` is told of every finished step, `on_take` of every arrival that a user takes.
    """
    from harness.plan import load_plan
    from harness.recorder import Report
    from harness.swarm import frames
    from harness.swarm.pauses import quiet_collector
    from harness.swarm.worker import Worker

    folder = Path(options["folder"])
    folder.joinpath("scenario.py").write_text(scenario, encoding="utf-8")
    path = folder / "plan.yaml"
    path.write_text(_PLAN.format(url=options["url"], load=options["load"]), encoding="utf-8")
    reports: list[Report] = []

    def send(frame: object) -> None:
        frames.encode(frame)
        if isinstance(frame, Report):
            frame.journeys.clear()
            reports.append(frame)

    job = frames.Job(
        plan=load_plan(path),
        url=options["url"],
        interval_ns=S,
        worker=0,
        workers=1,
        preflight=False,
    )
    worker = Worker(job, send)
    worker._run.on_step = on_step
    if on_take is not None:
        _tell(worker._dispatcher, on_take)
    quiet_collector()
    cpu_s = time.process_time()
    worker.load(time.monotonic_ns() + S // 5)
    cpu_s = time.process_time() - cpu_s
    loads = [load for report in reports for load in report.load.values()]
    if any(load.failed or load.dropped or load.cut_off for load in loads):
        raise RuntimeError(f"requests failed: {worker._run.first_failure}")
    return {
        "cpu_s": cpu_s,
        "pss_mb": pss_mb(),
        "requests": sum(load.finished for load in loads),
        "reports": reports,
        "merged": sum(load.merged for load in loads),
        "token_events": sum(load.token_events for load in loads),
    }


def _tell(dispatcher: Any, on_take: Callable[[Any], None]) -> None:
    take = dispatcher.take

    def told(user_class: str) -> Any:
        arrival = take(user_class)
        on_take(arrival)
        return arrival

    dispatcher.take = told


def replies_harness(options: Options) -> Result:
    """Run users in a closed loop; of each reply its end, and its times as recorded."""
    rows: list[tuple[int, ...]] = []

    def note(step: Any, _journey: Any) -> None:
        of = step.values
        rows.append((step.end_ns, of["service_ttft"], of["service"], of["ttft"], of["e2el"]))

    result = _work(options, _CHAT_SCENARIO, on_step=note)
    return {**result, "reports": None, "rows": rows}


def replies_fasthttp(options: Options) -> Result:
    """Do the same load with a FastHttpUser that reads the stream and takes two times."""
    from locust import task
    from locust.contrib.fasthttp import FastHttpUser

    rows: list[tuple[int, ...]] = []

    class Chatter(FastHttpUser):
        @task
        def ask(self) -> None:
            over()
            start_ns = time.monotonic_ns()
            response = self.client.post(CHAT, data=BODY, headers=HEADERS, stream=True)
            body, first_ns = response._response, 0
            while event := body.readline(b"\n\n"):
                if not first_ns and b'"content":" ' in event:
                    first_ns = time.monotonic_ns()
            end_ns = time.monotonic_ns()
            name = response.headers["x-request-id"]
            rows.append((name, first_ns - start_ns, end_ns - start_ns))

    over, result = _locust(options, Chatter)
    return {**result(), "requests": len(rows), "rows": rows}


def short_harness(options: Options) -> Result:
    """Count short requests, by `self.client` or by the call that is asked for."""
    return {**_work(options, _short(options)), "reports": None}


def _short(options: Options) -> str:
    return _SHORT_SCENARIO.format(call=_CALLS[options["call"]])


def short_fasthttp(options: Options) -> Result:
    """Count short requests through a FastHttpUser's client."""
    from locust import task
    from locust.contrib.fasthttp import FastHttpUser

    class Short(FastHttpUser):
        done = 0

        @task
        def ask(self) -> None:
            over()
            self.client.post(SHORT, data=b"{}", headers=HEADERS)
            Short.done += 1

    over, result = _locust(options, Short)
    return {**result(), "requests": Short.done}


def short_httpx(options: Options) -> Result:
    """Count what httpx alone can do: no Locust, no network, the reply is there at once."""
    import httpx

    head, body, done = {"content-type": "application/json"}, b'{"predictions":[0.5]}', 0

    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=head, content=body)

    transport = httpx.MockTransport(answer)
    client = httpx.Client(transport=transport, base_url=options["url"], trust_env=False)
    cpu_s, until = time.process_time(), time.monotonic() + options["seconds"]
    while time.monotonic() < until:
        client.post(SHORT, content=b"{}", headers=HEADERS)
        done += 1
    return {"cpu_s": time.process_time() - cpu_s, "requests": done}


def _locust(options: Options, user: type[Any]) -> tuple[Callable[[], None], Callable[[], Result]]:
    """Return what a task calls first, and what runs the users until their time is over."""
    import gevent
    from locust.env import Environment
    from locust.exception import StopUser

    user.host = options["url"]
    environment = Environment(user_classes=[user])
    runner = environment.create_local_runner()
    until_ns = 0

    def over() -> None:
        if time.monotonic_ns() >= until_ns:
            raise StopUser

    def run() -> Result:
        nonlocal until_ns
        _freeze()
        cpu_s = time.process_time()
        until_ns = time.monotonic_ns() + int(options["seconds"] * S)
        users = runner.spawn_users({user.__name__: options["users"]})
        gevent.joinall([one.greenlet for one in users])
        cpu_s = time.process_time() - cpu_s
        failed = environment.stats.total.num_failures
        if failed:
            raise RuntimeError(f"{failed} requests failed: {list(environment.stats.errors)}")
        return {"cpu_s": cpu_s, "pss_mb": pss_mb()}

    return over, run


def arrivals_harness(options: Options) -> Result:
    """Say in µs how late requests left, by the send lag recorded, and how late tasks began."""
    import numpy as np

    from harness.recorder import Histogram

    begun: list[int] = []

    def on_take(arrival: Any) -> None:
        if arrival.stage == "steady":
            begun.append(time.monotonic_ns() - arrival.planned_ns)

    result = _work(options, _short(options), on_take=on_take)
    lag = Histogram.merged(
        measured.histogram
        for report in result["reports"]
        for (stage, _, metric), measured in report.measured.items()
        if (stage, metric) == ("steady", "send_lag")
    )
    late = {f"p{q:g}": (lag.quantile(q / 100) or 0) / 1000 for q in (50, 99, 99.9)}
    begun_p50, begun_p99 = np.quantile(begun, (0.5, 0.99)) / 1000
    return {"n": lag.n, "begun_p50": begun_p50, "begun_p99": begun_p99, **late}


# The recorder


def record_harness(options: Options) -> Result:
    """Record replies of 100 tokens; a flush every 100,000 samples, packed for the parent."""
    from random import Random

    import harness.swarm.worker  # noqa: F401 - the memory is a worker's
    from harness.recorder import Limits, Recorder
    from harness.swarm import frames

    draw = Random(1)
    metrics = ("ttft", "ttfo", "tpot", "e2el", "e2el_all", "service", "service_ttft", "send_lag")
    values = [{m: draw.randrange(10**6, 3 * 10**9) for m in metrics} for _ in range(500)]
    gaps = [[draw.randrange(10**7, 3 * 10**7) for _ in range(99)] for _ in range(500)]
    per_reply = len(metrics) + 99
    recorder = Recorder(Limits())
    spent_ns = recorded = flushed = 0
    memory: list[float] = []
    now = time.perf_counter_ns
    while recorded < options["samples"]:
        began = now()
        for index in range(100_000 // per_reply):
            at = index % 500
            recorder.request("steady", "chat", values[at], series={"itl": gaps[at]})
        report = recorder.flush(flushed)
        spent_ns += now() - began
        recorded += 100_000 // per_reply * per_reply
        flushed += 1
        frames.encode(report)
        if flushed == 1:
            memory.append(pss_mb())
    memory.append(pss_mb())
    return {"ns": spent_ns / recorded, "early_mb": memory[0], "late_mb": memory[1]}


def record_hdrh(options: Options) -> Result:
    """Record sample by sample into hdrh's histogram."""
    from random import Random

    from hdrh.histogram import HdrHistogram

    draw = Random(1)
    values = [draw.randrange(10**3, 3 * 10**6) for _ in range(options["samples"] // 20)]
    histogram = HdrHistogram(1, 3_600_000_000, 3)
    began = time.perf_counter_ns()
    for value in values:
        histogram.record_value(value)
    return {"ns": (time.perf_counter_ns() - began) / len(values)}


# What is computed of saved runs


def hour_saved(options: Options) -> Result:
    """Write an hour-long run for the others to read."""
    import hour

    hour.save(Path(options["run"]), seed=options["seed"])
    return {}


def hour_judged(options: Options) -> Result:
    """Read a run and judge all its budgets."""
    import hour

    from harness.recorder import load_recording
    from harness.verdict import judge

    budgets, began_s = hour.budgets(), time.process_time()
    recording = load_recording(Path(options["runs"][0]))
    read_s = time.process_time()
    judged = judge(recording, budgets).budgets
    if not all(one.n for one in judged):
        raise RuntimeError("a budget was judged without samples")
    return {"read_s": read_s - began_s, "cpu_s": time.process_time() - began_s}


def hour_compared(options: Options) -> Result:
    """Read two runs and compare them as `harness compare BASE CANDIDATE --limit 5%` does."""
    from harness.compare import compare, regressions
    from harness.recorder import load_recording
    from harness.verdict.regression import Pair

    began_s = time.process_time()
    pair = Pair(*(load_recording(Path(run)) for run in options["runs"]))
    read_s = time.process_time()
    found = compare(pair, regressions(pair, options["limit"], ()))
    if found.forbids or not found.rows:
        raise RuntimeError(f"the runs could not be compared: {found.sentence}")
    return {"read_s": read_s - began_s, "cpu_s": time.process_time() - began_s}


CLIENTS: dict[str, Callable[[Options], Result]] = {
    client.__name__: client
    for client in (
        streams_harness,
        streams_httpx,
        streams_fasthttp,
        streams_aiohttp,
        decoded_events,
        replies_harness,
        replies_fasthttp,
        short_harness,
        short_fasthttp,
        short_httpx,
        arrivals_harness,
        record_harness,
        record_hdrh,
        hour_saved,
        hour_judged,
        hour_compared,
    )
}


def main() -> None:
    name, options, out = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    os.sched_setaffinity(0, {options["cpu"]})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if name != "streams_aiohttp":
        from gevent import monkey

        monkey.patch_all()
    out.write_text(json.dumps(CLIENTS[name](options)), encoding="utf-8")


if __name__ == "__main__":
    main()
