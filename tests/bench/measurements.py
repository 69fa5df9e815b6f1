"""What `run.py` measures: each function is one repeat with one client, each table a `Measurement`.

The error of a token's time is the client's stamp less the server's, taken right before its send.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import decoding
import numpy as np
import peers
import truth
import usage
import whole

HERE = Path(__file__).resolve().parent
OTHER_PYTHON = HERE.parents[1] / ".bench" / "venv" / "bin" / "python"  # aiohttp and uvloop alone
_CLIENT_TIMEOUT_S = 180
_PEER_TIMEOUT_S = 150

Values = dict[str, float]


class NotInstalled(Exception):
    """A peer is not there; the text says why."""


class Cores(NamedTuple):
    client: int
    server: int


# Running one client


def run_client(name: str, cores: Cores, folder: Path, **options: Any) -> dict[str, Any]:
    """Run a client to its end; returns what it found, and its CPU seconds from start to end.

    RuntimeError when it failed.
    """
    python = OTHER_PYTHON if name == "streams_aiohttp" else Path(sys.executable)
    out = folder / "result.json"
    words = [str(python), str(HERE / "clients.py"), name]
    given = {**options, "cpu": cores.client, "folder": str(folder)}
    before_s = _ended_children_cpu_s()
    try:
        done = subprocess.run(
            [*words, json.dumps(given), str(out)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_CLIENT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{name} did not end within {_CLIENT_TIMEOUT_S} s") from None
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip().splitlines()[-12:]
        raise RuntimeError(f"{name} ended with code {done.returncode}: " + "\n".join(said))
    spent_s = _ended_children_cpu_s() - before_s
    return {**json.loads(out.read_bytes()), "total_cpu_s": spent_s}


def _ended_children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        yield Path(name)


@contextlib.contextmanager
def _hog(core: int) -> Iterator[None]:
    """Keep a core busy with something else."""
    code = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        try:
            yield
        finally:
            child.kill()


def _certificate(folder: Path) -> tuple[str, str]:
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    options = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2"
    who = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", *options.split(), *who, "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


# What is measured; each function is one repeat with one client


GAP_US = 20_000  # between the tokens of a stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Streams, each with a token every 20 ms."""

    events_per_s: int
    seconds: float = 3
    lead_s: float = 1
    gap_us: int = GAP_US

    @property
    def options(self) -> dict[str, float]:
        return {
            "streams": self.events_per_s * self.gap_us // 1_000_000,
            "gap_us": self.gap_us,
            "tokens": int(self.seconds * 1e6 / self.gap_us),
            "lead_s": self.lead_s,
        }


def token_times(
    client: str,
    load: Load,
    cores: Cores,
    *,
    hog: bool = False,
    tls: bool = False,
    kernel_stamps: bool = True,
) -> Values:
    """Errors of token stamps in µs (stamp minus the server's, right before its send), and CPU."""
    with _scratch() as folder, contextlib.ExitStack() as stack:
        dump = folder / "truth.bin"
        pair = _certificate(folder) if tls else None
        url = stack.enter_context(truth.running(cpu=cores.server, dump=dump, tls=pair))
        if hog:
            stack.enter_context(_hog(cores.client))
        found = run_client(
            client,
            cores,
            folder,
            url=url,
            cert=pair and pair[0],
            kernel_stamps=kernel_stamps,
            **load.options,
        )
        stack.close()
        return _errors(found, truth.read_truth(dump), load, in_time=not hog)


def _errors(found: dict[str, Any], kept: truth.Truth, load: Load, *, in_time: bool) -> Values:
    errors, sends = [], []
    if len(found["stamps"]) != load.options["streams"]:
        raise RuntimeError(f"{len(found['stamps'])} streams of {load.options['streams']} ended")
    for name, stamps in found["stamps"].items():
        reply = kept[name]
        before, after = reply.before_ns[reply.tokens], reply.after_ns[reply.tokens]
        if len(stamps) != len(before):
            raise RuntimeError(f"{len(stamps)} tokens of {len(before)} came in {name}")
        errors.append(np.array(stamps) - before)
        sends.append(after - before)
    if in_time and max(reply.received_ns for reply in kept.values()) > found["mark_ns"]:
        raise RuntimeError("the streams did not all begin before the first token was due")
    error_us, send_us = np.concatenate(errors) / 1000, np.concatenate(sends) / 1000
    p50, p99, p999 = np.quantile(error_us, (0.5, 0.99, 0.999))
    values = {
        "p50": p50,
        "p99": p99,
        "p99.9": p999,
        "max": error_us.max(),
        "cpu_us": found["cpu_s"] * 1e6 / len(error_us),
        "send_p50": np.quantile(send_us, 0.5),
        "send_p99": np.quantile(send_us, 0.99),
    }
    if found["merged"] is not None:
        values["merged_percent"] = 100 * found["merged"] / len(error_us)
    return {name: float(value) for name, value in values.items()}


def decoded(client: str, cores: Cores, *, shape: str) -> Values:
    """CPU µs of an event of a shape from its read on."""
    with _scratch() as folder, truth.running(cpu=cores.server) as url:
        found = run_client(client, cores, folder, url=url, shape=shape)
    return {"event_us": found["event_us"]}


REPLIES = {"users": 100, "seconds": 19.5}
_REPLY = {"ttft_us": 50_000, "gap_us": GAP_US, "tokens": 100}
IN_STEP = {**_REPLY, "tick_us": GAP_US, "shape": "changing", "name_model": True}
"""All streams are written in the same tick and end in the same one, and no event is like the last."""


def replies(client: str, cores: Cores, reply: Mapping[str, object] = _REPLY) -> Values:
    """Times of replies in ms, as reported minus as written by the server; CPU s per 1,000."""
    with _scratch() as folder:
        dump = folder / "truth.bin"
        load = f"{{ name: steady, concurrency: {REPLIES['users']}, for: {REPLIES['seconds']}s, ramp: 0s }}"
        with truth.running(cpu=cores.server, dump=dump, **reply) as url:
            found = run_client(client, cores, folder, url=url, load=load, **REPLIES)
        kept = truth.read_truth(dump)
    matched = (_by_end if client.endswith("harness") else _by_name)(found["rows"], kept)
    n = len(found["rows"])
    values = {
        "replies": n,
        "cpu_s": found["cpu_s"] * 1000 / n,
        "around_s": found["total_cpu_s"] - found["cpu_s"],
        "pss_mb": found["pss_mb"],
        "by_kernel_percent": _by_kernel_percent(kept.values()),
    }
    if found.get("token_events"):
        values["merged_percent"] = 100 * found["merged"] / found["token_events"]
    return {name: float(value) for name, value in values.items()} | _in_ms(matched)


def _in_ms(matched: dict[str, np.ndarray]) -> Values:
    """Quantiles of errors, ms instead of ns."""
    values = {}
    for name, errors in matched.items():
        for q in (50, 99, 99.9):
            values[f"{name}_p{q:g}"] = float(np.quantile(errors, q / 100)) / 1e6
    return values


def whole_run(cores: Cores, reply: Mapping[str, object] = IN_STEP) -> Values:
    """Do the same load by `harness run`; its CPU counts from time zero of the load to the workers' end.

    What is not in `cpu_s` is the start before, and the verdict and the report after it.
    """
    with _scratch() as folder:
        dump = folder / "truth.bin"
        with truth.running(cpu=cores.server, dump=dump, **reply) as url:
            ran = whole.run(folder, core=cores.client, target={"url": url}, **REPLIES)
        kept = truth.read_truth(dump)
    return _of_run(ran, kept)


def _of_run(ran: whole.Ran, kept: truth.Truth) -> Values:
    n = len(ran.rows)
    cpu_s = ran.used.cpu_s(ran.began_ns, ran.ended_ns)
    return {
        "replies": n,
        "cpu_s": cpu_s * 1000 / n,
        "around_s": ran.used.total_cpu_s - cpu_s,
        "pss_mb": ran.used.pss_mb(ran.ended_ns),
        "by_kernel_percent": _by_kernel_percent(kept.values()),
        "merged_percent": 100 * ran.merged / ran.token_events,
        "stall_ms": ran.stall_ns / 1e6,
    } | _in_ms(_by_model(ran.rows, kept))


def _by_model(rows: list[list[Any]], kept: truth.Truth) -> dict[str, np.ndarray]:
    """Pair what was recorded with what was written by the model's name, which is the reply's id."""
    pairs, gaps = [], []
    for model, *times, recorded in rows:
        reply = kept[model]
        true = (_ttft(reply), _e2e(reply)) * 2
        pairs.append([a - b for a, b in zip(times, true, strict=True)])
        gaps.append(np.abs(np.array(recorded) - np.diff(reply.before_ns[reply.tokens])))
    names = ("ttft", "e2e", "planned_ttft", "planned_e2e")
    found = dict(zip(names, np.array(pairs).T, strict=True))
    return found | {"gap": np.concatenate(gaps)}


BEHIND_SECONDS = 6


@cache
def _fronts() -> Any:
    """Import what stands before a server in other tests too, from the folder above."""
    sys.path.append(str(HERE.parent))
    import fronts

    return fronts


def behind_nginx(cores: Cores, *, users: int, http2: bool) -> Values:
    """Do the load by `harness run` through nginx: TLS, by HTTP/2 or not. NotInstalled without it.

    What nginx takes for a token and for a request is in the errors, and is the same for both.
    """
    if shutil.which("nginx") is None:
        raise NotInstalled("nginx is not there; apt-get install nginx")
    with _scratch() as folder, contextlib.ExitStack() as stack:
        dump, pair = folder / "truth.bin", _certificate(folder)
        upstream = stack.enter_context(
            truth.running(cpu=cores.server, dump=dump, no_spin=True, **IN_STEP | {"tick_us": 0})
        )
        url = stack.enter_context(_fronts().nginx(folder, upstream, *map(Path, pair)))
        target = {"url": url, "verify": pair[0], "http2": http2}
        ran = whole.run(
            folder, core=cores.client, target=target, users=users, seconds=BEHIND_SECONDS
        )
        stack.close()
        return _of_run(ran, truth.read_truth(dump))


WARM = 100  # replies of a peer that are not counted: its first of each user


def peer_replies(peer: peers.Peer, cores: Cores, reply: Mapping[str, object] = _REPLY) -> Values:
    """Do the same load with another tool; its first replies are left out. NotInstalled without it.

    Its CPU counts from the first request that is counted to the end of the last reply.
    """
    if peer.missing is not None:
        raise NotInstalled(peer.missing)
    with _scratch() as folder:
        dump = folder / "truth.bin"
        with truth.running(cpu=cores.server, dump=dump, **reply) as url:
            work = peers.Work(url=url, folder=folder, users=REPLIES["users"], requests=1_000 + WARM)
            work.prepare()
            used = usage.run(
                peer.command(work),
                core=cores.client,
                folder=folder,
                env=peers.environment(folder),
                timeout_s=_PEER_TIMEOUT_S,
            )
        counted = _counted(truth.read_truth(dump), work.requests)
        matched = _by_id(peer.read(folder), counted, peer.last_write)
    began_ns, ended_ns = counted[0].received_ns, max(int(one.before_ns[-1]) for one in counted)
    cpu_s = used.cpu_s(began_ns, ended_ns)
    return {
        "replies": len(counted),
        "cpu_s": cpu_s * 1000 / len(counted),
        "around_s": used.total_cpu_s - cpu_s,
        "pss_mb": used.pss_mb(ended_ns),
        "by_kernel_percent": _by_kernel_percent(counted),
    } | _in_ms(matched)


def _counted(kept: truth.Truth, requests: int) -> list[truth.Reply]:
    """Return the streams in the order of their requests, without the first."""
    streams = [reply for reply in kept.values() if reply.streamed and reply.ended == "complete"]
    if len(streams) != requests:
        raise RuntimeError(f"{len(streams)} replies of {requests} were written to their end")
    return sorted(streams, key=lambda reply: reply.received_ns)[WARM:]


def _by_id(
    reported: peers.Reported, counted: list[truth.Reply], last_write: int
) -> dict[str, np.ndarray]:
    lost = sum(reply.id not in reported for reply in counted)
    if lost:
        raise RuntimeError(f"{lost} replies of {len(counted)} were not reported")
    pairs = [
        (reported[reply.id][0] - _ttft(reply), reported[reply.id][1] - _e2e(reply, last_write))
        for reply in counted
    ]
    return dict(zip(("ttft", "e2e"), np.array(pairs).T, strict=True))


def _by_name(rows: list[list[Any]], kept: truth.Truth) -> dict[str, np.ndarray]:
    pairs = [(ttft - _ttft(kept[name]), e2e - _e2e(kept[name])) for name, ttft, e2e in rows]
    return dict(zip(("ttft", "e2e"), np.array(pairs).T, strict=True))


def _by_end(rows: list[list[int]], kept: truth.Truth) -> dict[str, np.ndarray]:
    """Pair what was recorded with what was written, by the order in which the replies ended.

    The server writes one after the other and on loopback the kernel stamps within its send, so that
    the orders are the same. It is checked that every pair can be one.
    """
    rows = sorted(rows)
    written = sorted(kept.values(), key=lambda reply: int(reply.before_ns[-1]))
    if len(rows) != len(written):
        raise RuntimeError(f"{len(rows)} replies were recorded, {len(written)} written")
    pairs = []
    for (end_ns, *times), reply in zip(rows, written, strict=True):
        if end_ns < reply.before_ns[-1] or end_ns - times[1] > reply.received_ns:
            raise RuntimeError("the replies recorded cannot be paired with those written")
        true = (_ttft(reply), _e2e(reply)) * 2
        pairs.append([a - b for a, b in zip(times, true, strict=True)])
    names = ("ttft", "e2e", "planned_ttft", "planned_e2e")
    return dict(zip(names, np.array(pairs).T, strict=True))


def _by_kernel_percent(written: Collection[truth.Reply]) -> float:
    """Return how many of the requests have the kernel's stamp of their last byte."""
    return 100 * sum(reply.by_kernel for reply in written) / len(written)


def _ttft(reply: truth.Reply) -> int:
    return int(reply.before_ns[reply.tokens][0]) - reply.received_ns


def _e2e(reply: truth.Reply, last_write: int = -1) -> int:
    return int(reply.before_ns[last_write]) - reply.received_ns


def short_requests(client: str, cores: Cores, *, call: str | None = None) -> Values:
    """Short requests a second."""
    users, seconds = 50, 3
    load = f"{{ name: steady, concurrency: {users}, for: {seconds}s, ramp: 0s }}"
    with _scratch() as folder, truth.running(cpu=cores.server) as url:
        found = run_client(
            client, cores, folder, url=url, load=load, users=users, seconds=seconds, call=call
        )
    return {
        "per_s": found["requests"] / seconds,
        "cpu_us": found["cpu_s"] * 1e6 / found["requests"],
    }


def arrivals(client: str, cores: Cores, *, call: str) -> Values:
    """How late a request left that was planned, in µs, at 1000/s."""
    load = (
        "{ name: warmup, arrivals: constant 1000/s, for: 1s, record: false },"
        " { name: steady, arrivals: constant 1000/s, for: 5s }"
    )
    with _scratch() as folder, truth.running(cpu=cores.server) as url:
        return run_client(client, cores, folder, url=url, load=load, call=call)


def recorder(client: str, cores: Cores) -> Values:
    """What a sample costs in ns, and the worker's memory early and late."""
    with _scratch() as folder:
        return run_client(client, cores, folder, samples=10_000_000)


@cache
def _two_hours(cores: Cores) -> tempfile.TemporaryDirectory[str]:
    """Save two hour-long runs, once for all repeats; gone when this process ends."""
    kept = tempfile.TemporaryDirectory(prefix="bench-")
    for name, seed in _RUNS.items():
        with _scratch() as folder:
            run_client("hour_saved", cores, folder, run=str(Path(kept.name) / name), seed=seed)
    return kept


_RUNS = {"base": 1, "candidate": 2}


def saved(client: str, cores: Cores, **how: str) -> Values:
    """CPU seconds of what is computed of hour-long runs, reading them included."""
    runs = [str(Path(_two_hours(cores).name) / name) for name in _RUNS]
    with _scratch() as folder:
        return run_client(client, cores, folder, runs=runs, **how)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One table: what is run with each client, by the client's name in the table."""

    title: str
    clients: Mapping[str, Callable[[Cores], Values]]
    columns: Mapping[str, str]
    """Headings of the values shown."""
    ratios: Mapping[str, str] = field(default_factory=dict)
    """Headings of values shown as multiples of the first client's."""
    once: frozenset[str] = frozenset()
    """Clients that are run in the first repeat alone."""


_STAMPS = {"p50": "p50 µs", "p99": "p99 µs", "p99.9": "p99.9 µs", "max": "max µs"}
_TIMES = {"p99": "p99 ÷ harness's"}
_TIMES_CPU = {**_TIMES, "cpu_us": "CPU ÷ harness's"}
_EVENTS = {**_STAMPS, "merged_percent": "merged %", "cpu_us": "CPU µs/event"}
RUN, HTTP1, HTTP2 = "`harness run`", "HTTP/1.1, 64 users", "HTTP/2, 64 users"
HARNESS, HTTPX, FAST, AIO = "harness", "httpx", "FastHttpUser", "aiohttp + uvloop"
AIPERF, AIPERF_USAGE, GUIDELLM = (
    one.title for one in (peers.AIPERF, peers.AIPERF_USAGE, peers.GUIDELLM)
)
BY_CLIENT, BY_CALL = "harness, `self.client`", "harness, `self.predict`"
VERDICT, COMPARE = "verdict", "compare of two, every p99 limited to 5 % more"
HTTPX_ALONE = "httpx alone: no Locust, no network"
USER_CLOCK = "harness, stamps in user space"
_MANY = partial(Load, seconds=2, lead_s=4)


def _streams(client: str, load: Load, **how: bool) -> Callable[[Cores], Values]:
    return lambda cores: token_times(f"streams_{client}", load, cores, **how)


_QUIET, _HOGGED, _TLS = (
    Load(events_per_s=10_000),
    Load(events_per_s=10_000, lead_s=3),
    Load(events_per_s=10_000, lead_s=2),
)

MEASUREMENTS = {
    "tokens-10k": Measurement(
        title="Error of a token's time at 10,000 events/s (200 streams)",
        clients={
            HARNESS: _streams("harness", _QUIET),
            HTTPX: _streams("httpx", _QUIET),
            FAST: _streams("fasthttp", _QUIET),
            AIO: _streams("aiohttp", _QUIET),
        },
        columns=_EVENTS,
        ratios=_TIMES_CPU,
    ),
    "tokens-80k": Measurement(
        title="The same at 80,000 events/s (1,600 streams)",
        clients={
            HARNESS: _streams("harness", _MANY(events_per_s=80_000)),
            HTTPX: _streams("httpx", _MANY(events_per_s=80_000, lead_s=6)),
            FAST: _streams("fasthttp", _MANY(events_per_s=80_000)),
            AIO: _streams("aiohttp", _MANY(events_per_s=80_000)),
        },
        columns=_EVENTS,
        ratios=_TIMES_CPU,
    ),
    "capacity": Measurement(
        title="The harness at other rates",
        clients={
            f"{rate:,} events/s": _streams("harness", _MANY(events_per_s=rate))
            for rate in (40_000, 60_000, 100_000)
        },
        columns=_EVENTS,
    ),
    "hog": Measurement(
        title="10,000 events/s with a busy program on the client's core",
        clients={
            HARNESS: _streams("harness", _HOGGED, hog=True),
            USER_CLOCK: _streams("harness", _HOGGED, hog=True, kernel_stamps=False),
            HTTPX: _streams("httpx", _HOGGED, hog=True),
        },
        columns={**_STAMPS, "merged_percent": "merged %"},
        ratios=_TIMES,
    ),
    "tls": Measurement(
        title="10,000 events/s over TLS",
        clients={
            HARNESS: _streams("harness", _TLS, tls=True),
            HTTPX: _streams("httpx", _TLS, tls=True),
        },
        columns=_EVENTS,
        ratios=_TIMES_CPU,
    ),
    "decode": Measurement(
        title="What an event costs the harness from its read to the reply's times, by the event's shape",
        clients={
            shape: partial(decoded, "decoded_events", shape=shape) for shape in decoding.SHAPES
        },
        columns={"event_us": "CPU µs/event"},
    ),
    "replies": Measurement(
        title="The whole tool: 100 users, 1,000 replies of 100 tokens (TTFT 50 ms, gap 20 ms);"
        " reported minus true",
        clients={
            HARNESS: partial(replies, "replies_harness"),
            FAST: partial(replies, "replies_fasthttp"),
            AIPERF: partial(peer_replies, peers.AIPERF),
            AIPERF_USAGE: partial(peer_replies, peers.AIPERF_USAGE),
            GUIDELLM: partial(peer_replies, peers.GUIDELLM),
        },
        once=frozenset({AIPERF, AIPERF_USAGE, GUIDELLM}),
        columns={
            "ttft_p50": "TTFT p50 ms",
            "ttft_p99": "TTFT p99 ms",
            "e2e_p50": "E2E p50 ms",
            "e2e_p99": "E2E p99 ms",
            "planned_ttft_p99": "TTFT from plan p99 ms",
            "planned_e2e_p99": "E2E from plan p99 ms",
            "merged_percent": "merged %",
            "cpu_s": "CPU s",
            "around_s": "CPU s before and after",
            "pss_mb": "memory MB",
        },
        ratios={"cpu_s": "CPU ÷ harness's"},
    ),
    "in-step": Measurement(
        title="The same in step, as a tool's user starts it: all streams in the same ticks of 20 ms, and"
        " no event like the last",
        clients={
            RUN: whole_run,
            FAST: partial(replies, "replies_fasthttp", reply=IN_STEP),
            AIPERF_USAGE: partial(peer_replies, peers.AIPERF_USAGE, reply=IN_STEP),
            GUIDELLM: partial(peer_replies, peers.GUIDELLM, reply=IN_STEP),
        },
        once=frozenset({AIPERF_USAGE, GUIDELLM}),
        columns={
            "ttft_p50": "TTFT p50 ms",
            "ttft_p99": "TTFT p99 ms",
            "e2e_p50": "E2E p50 ms",
            "e2e_p99": "E2E p99 ms",
            "gap_p99.9": "gap p99.9 ms",
            "planned_ttft_p99": "TTFT from plan p99 ms",
            "planned_e2e_p99": "E2E from plan p99 ms",
            "stall_ms": "longest stall ms",
            "merged_percent": "merged %",
            "cpu_s": "CPU s",
            "around_s": "CPU s before and after",
            "pss_mb": "memory MB",
        },
        ratios={"cpu_s": "CPU ÷ `harness run`'s"},
    ),
    "http2": Measurement(
        title="`harness run` through nginx over TLS: replies of 100 tokens, a gap of 20 ms, no event like"
        " the last; reported minus true, with what nginx takes",
        clients={
            HTTP1: partial(behind_nginx, users=64, http2=False),
            HTTP2: partial(behind_nginx, users=64, http2=True),
            "HTTP/2, 4 users": partial(behind_nginx, users=4, http2=True),
            "HTTP/2, 1 user": partial(behind_nginx, users=1, http2=True),
        },
        once=frozenset({"HTTP/2, 4 users", "HTTP/2, 1 user"}),
        columns={
            "ttft_p50": "TTFT p50 ms",
            "ttft_p99": "TTFT p99 ms",
            "e2e_p50": "E2E p50 ms",
            "e2e_p99": "E2E p99 ms",
            "gap_p50": "gap p50 ms",
            "gap_p99.9": "gap p99.9 ms",
            "stall_ms": "longest stall ms",
            "merged_percent": "merged %",
            "cpu_s": "CPU s",
        },
        ratios={"cpu_s": "CPU ÷ HTTP/1.1's"},
    ),
    "short": Measurement(
        title="Short requests, one a task, 50 users",
        clients={
            BY_CLIENT: partial(short_requests, "short_harness", call="client"),
            BY_CALL: partial(short_requests, "short_harness", call="predict"),
            FAST: partial(short_requests, "short_fasthttp"),
            HTTPX_ALONE: partial(short_requests, "short_httpx"),
        },
        columns={"per_s": "requests/s", "cpu_us": "CPU µs/request"},
        ratios={"per_s": "requests/s ÷ `self.client`'s"},
    ),
    "arrivals": Measurement(
        title="How late a planned request is sent, constant 1,000/s",
        clients={
            BY_CALL: partial(arrivals, "arrivals_harness", call="predict"),
            BY_CLIENT: partial(arrivals, "arrivals_harness", call="client"),
        },
        columns={
            "p50": "p50 µs",
            "p99": "p99 µs",
            "p99.9": "p99.9 µs",
            "begun_p50": "its task begins, p50 µs",
            "begun_p99": "p99 µs",
        },
    ),
    "record": Measurement(
        title="Recording 10 M samples (hdrh alone: 0.5 M)",
        clients={
            HARNESS: partial(recorder, "record_harness"),
            "hdrh": partial(recorder, "record_hdrh"),
        },
        columns={
            "ns": "ns/sample",
            "early_mb": "MB after 100 k",
            "late_mb": "MB after 10 M",
        },
        ratios={"ns": "÷ harness's"},
    ),
    "hour": Measurement(
        title="Saved runs of an hour: 10 steps at 20/s each, 50 budgets, 3,600 intervals",
        clients={
            VERDICT: partial(saved, "hour_judged"),
            COMPARE: partial(saved, "hour_compared", limit="5%"),
        },
        columns={"cpu_s": "CPU s", "read_s": "of that reading, CPU s"},
    ),
}
