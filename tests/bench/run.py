"""What the harness costs and how exact it is, against other clients in the same run: `make bench`.

    python tests/bench/run.py [NAME ...]     without names: everything, and docs/benchmarks.md

The exact server (`truth.c`) has one core, the client (`clients.py`) another; every client is a
process of its own and is run three times, in turn with the others; whole tools (`peers.py`) once. A
missed goal is a line in the table, and so is a tool that did not install; the command fails only when
something else could not be measured.
"""

# ruff: noqa: T201 - what it found is for people to read

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import peers
import truth
from goals import Goal, goals, number
from measurements import (
    HARNESS,
    HERE,
    MEASUREMENTS,
    OTHER_PYTHON,
    REPLIES,
    WARM,
    Cores,
    NotInstalled,
    Values,
)

import harness

ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
REPEATS = 3

# Running it all


@dataclass(slots=True)
class Bench:
    """What was found, by measurement and client one entry a repeat; and what could not be."""

    cores: Cores
    repeats: int = REPEATS
    found: dict[tuple[str, str], list[Values]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    absent: dict[tuple[str, str], str] = field(default_factory=dict)
    """Why a peer is not installed, by measurement and client."""

    def run(self, name: str) -> None:
        measurement = MEASUREMENTS[name]
        for repeat in range(self.repeats):
            for client, once in measurement.clients.items():
                if repeat > 0 and client in measurement.once:
                    continue
                began = time.monotonic()
                try:
                    values = once(self.cores)
                except NotInstalled as why:
                    self.absent[name, client] = str(why)
                    print(f"NOT INSTALLED  {client}: {why}", file=sys.stderr, flush=True)
                    continue
                except (
                    RuntimeError,
                    OSError,
                    subprocess.SubprocessError,
                    ValueError,
                    LookupError,
                ) as error:
                    self.broken.append(f"{name}, {client}: {error}")
                    print(f"NOT MEASURED  {self.broken[-1]}", file=sys.stderr, flush=True)
                    continue
                self.found.setdefault((name, client), []).append(values)
                shown = "  ".join(
                    f"{heading} {number(values[key])}"
                    for key, heading in measurement.columns.items()
                    if key in values
                )
                took = time.monotonic() - began
                print(
                    f"{name} {repeat + 1}/{self.repeats} {client}: {shown}  ({took:.0f} s)",
                    flush=True,
                )

    def goal_values(self, goal: Goal) -> list[float] | None:
        """Return the goal's value in each repeat; None unless all could be measured."""

        def get(repeat: int, measurement: str, client: str, name: str) -> float:
            found = self.found[measurement, client]
            return found[0 if client in MEASUREMENTS[measurement].once else repeat][name]

        try:
            return [goal.of(partial(get, repeat)) for repeat in range(self.repeats)]
        except (KeyError, IndexError):
            return None

    def median_of(self, measurement: str, client: str, name: str) -> float:
        return median(values[name] for values in self.found[measurement, client])


# The page

_INTRO = """\
# Benchmarks

Written by `make bench` (`tests/bench/run.py`), never by hand. A small C program
(`tests/bench/truth.c`) streams events at exact times and writes down when it sent each; it has one
core, the client another. Every client is a process of its own and is run {repeats} times, in turn with
the others (aiperf and guidellm once); shown is the median, in brackets the least and the greatest.
The absolute figures are this machine's; the ratios are of one run.
"""
_NOTES = """\
- The error of a token's time is the client's stamp less the server's, taken right before its
  `send()`. The send itself lasts {send}; so far the truth is uncertain.
- Every client decodes what it read, the harness after each stream, the others every event's JSON
  after all streams; CPU counts from the moment when all requests are sent to the last token decoded.
- httpx (under gevent, `iter_lines`) and FastHttpUser have a client for each stream, as each of their
  users has; aiohttp has one session. They stamp each event when they are given it.
- A read that holds several events has one stamp, that of the last: the others are *merged*, and the
  harness counts them.
- Whole tool: a worker's scenario, users, dispatcher and recorder, its reports packed for the parent;
  a closed loop of {users} users for {seconds} s, with what runs then. Its times are `service_ttft` and
  `service`, from sent; the columns "from plan" are `ttft` and `e2el`, which count the harness's own
  delay in. True is from the time at which the request's last byte was there, {received}, to the token's send.
  FastHttpUser's times are from before its call; it looks for the first token in the bytes and
  decodes nothing.
- CPU s are of the load alone, for 1,000 replies: with aiperf and guidellm from the first request that
  is counted to the last reply. Start-up is *before and after*, and so is what they compute when the load
  is over. Memory is PSS at the end.
- aiperf and guidellm are run once, as each run takes about a minute: {users} users for 1,000 replies
  after {warm} that are not counted. All their processes share the client's core. They run with their defaults,
  save that aiperf looks at no GPU and scrapes no metrics; it counts tokens itself, with a tokenizer of
  two words, then, in a run of its own, takes the server's counts. Each reply they report is compared
  with the same reply of the server, by its id; aiperf's E2E ends at the last token and is compared with
  that. PyTorch, which guidellm asks for to go through its prompts, is replaced by
  a few lines (`tests/bench/torch_stand_in`), so that its memory is too low by what PyTorch takes.
- In step: as continuous batching writes. A first token waits for the next whole tick of 20 ms, so that
  all streams are written in the same ticks, those of a wave end in the same one, and the next wave is
  asked for while other replies are decoded. Each event has its own `created`, fingerprint,
  obfuscation, `usage` and `timings`. `harness run` is the command with its parent, its report and all, on the
  client's core; its CPU s are from time zero of the load until its worker has ended, the verdict and the report
  are in *before and after*. A stall is how late a timer of the worker's loop was; a gap's error is that of the
  time between two tokens.
- Through nginx: one nginx, on the server's core, ends TLS and buffers nothing. What it takes is in the
  errors; it is about the same for HTTP/1.1 and HTTP/2, so that the goals are of the difference.
- What an event costs from its read on is measured with no socket, in replies of 100 tokens and one event a
  read: HTTP/1.1's chunk, the event, its JSON, the reply's times. Recorded replies of real servers are made as
  long, each token with a text of its own; the rest are the exact server's.
- Short requests: a task makes one request, in a closed loop; both sides record it.
- The runs of an hour are written by the recorder, of latencies that were drawn. CPU s are of reading
  them and of the verdict or the comparison; imports, and what is printed, are not in it.
"""


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    middle, least, most = (number(x) for x in (median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least}–{most})"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def goals_table(bench: Bench, names: Sequence[str]) -> str:
    rows, why = [], []
    for goal in goals():
        if goal.needs not in names:
            continue
        values = bench.goal_values(goal)
        if values is None:
            rows.append([goal.text, goal.bound, "not measured", ""])
            continue
        ok = goal.holds(median(values))
        rows.append([goal.text, goal.bound, spread(values), "ok" if ok else "**missed**"])
        if not ok and goal.why:
            with contextlib.suppress(KeyError):
                if known := goal.why(bench.median_of):
                    why.append(f"- Missed: {goal.text}. {known}")
    text = table(["goal", "limit", "measured", ""], rows)
    return text + ("\n\n" + "\n".join(why) if why else "")


def details(bench: Bench, name: str) -> str:
    measurement = MEASUREMENTS[name]
    first = next(iter(measurement.clients))
    rows = []
    for client in measurement.clients:
        repeats = bench.found.get((name, client), [])
        if (name, client) in bench.absent:
            why = bench.absent[name, client].replace("|", "/")
            rows.append([client, f"not measured: did not install: {why}"])
            continue
        cells = [
            spread([values[key] for values in repeats])
            if repeats and all(key in values for values in repeats)
            else "–"
            for key in measurement.columns
        ]
        for key in measurement.ratios:
            with contextlib.suppress(KeyError):
                ratio = bench.median_of(name, client, key) / bench.median_of(name, first, key)
                cells.append(number(ratio))
        rows.append([client, *cells])
    headings = ["", *measurement.columns.values(), *measurement.ratios.values()]
    rows = [row + ["–"] * (len(headings) - len(row)) for row in rows]
    return f"### {measurement.title}\n\n{table(headings, rows)}"


def page(bench: Bench, names: Sequence[str], about: str) -> str:
    sends = [
        (values["send_p50"], values["send_p99"])
        for values in bench.found.get(("tokens-10k", HARNESS), [])
    ]
    send = "an unknown time"
    if sends:
        p50, p99 = (median(column) for column in zip(*sends, strict=True))
        send = f"{number(p50)} µs (p50; p99 {number(p99)} µs)"
    notes = _NOTES.format(send=send, received=received(bench), warm=WARM, **REPLIES)
    broken = "".join(f"- Not measured: {one.splitlines()[0]}\n" for one in bench.broken)
    parts = [
        _INTRO.format(repeats=bench.repeats),
        f"{about}\n",
        f"## Goals, on one core\n\n{goals_table(bench, names)}\n",
        "## Measured\n",
        *(details(bench, name) + "\n" for name in names),
        f"## Notes\n\n{notes}{broken}",
    ]
    return "\n".join(parts)


def received(bench: Bench) -> str:
    """Say by which clock the server knows when a whole request was there."""
    percents = [
        values["by_kernel_percent"]
        for (name, _), repeats in bench.found.items()
        if name == "replies"
        for values in repeats
    ]
    server = "by the server's clock after its own wake-up"
    if not percents or max(percents) == 0:
        return server if percents else "by the kernel's stamp where it gives one"
    if min(percents) == 100:
        return "by the kernel's stamp"
    return f"by the kernel's stamp (of {number(min(percents))} % or more; the rest {server})"


def surroundings(cores: Cores) -> str:
    """Date, versions and machine, as they are before the load."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    ours = ", ".join(f"{name} {version(name)}" for name in ("httpx", "gevent", "locust", "numpy"))
    code = "import importlib.metadata as m; print(*(n + ' ' + m.version(n) for n in ('aiohttp', 'uvloop')), sep=', ')"
    theirs = _said(str(OTHER_PYTHON), "-c", code)
    tools = (
        one.release if one.is_installed else f"{one.release} (not installed)"
        for one in peers.INSTALLED
    )
    where = str(Path(harness.__file__).parent)
    commit = _said("git", "-C", where, "describe", "--always", "--dirty")
    today = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return (
        f"- {today}, harness at {commit}\n"
        f"- Python {platform.python_version()}, {ours}, {theirs}\n"
        f"- Whole tools: {', '.join(tools)}\n"
        f"- {_processor()}, {os.cpu_count()} cores (client on {cores.client}, server on "
        f"{cores.server}), Linux {platform.release()}; load average before: {load}"
    )


def _said(*command: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"found {', '.join(unknown)}; known are {', '.join(MEASUREMENTS)}")
    free = sorted(os.sched_getaffinity(0))
    if len(free) < 2:
        parser.error("found one core; the server and the client need one each")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left running
    truth.build()
    bench = Bench(Cores(client=free[0], server=free[1]), given.repeats)
    os.sched_setaffinity(0, {bench.cores.server})  # and nginx's; a client's core is its own
    names = given.names or list(MEASUREMENTS)
    about = surroundings(bench.cores)
    for name in names:
        bench.run(name)
    text = page(bench, names, about)
    print(text)
    if not given.names:
        PAGE.write_text(text, encoding="utf-8")
    return 1 if bench.broken else 0


if __name__ == "__main__":
    sys.exit(main())
