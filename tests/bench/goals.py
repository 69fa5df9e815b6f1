"""What ought to hold, one line each; computed for every repeat, judged by the median."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import decoding
from measurements import (
    AIPERF,
    AIPERF_USAGE,
    BY_CALL,
    BY_CLIENT,
    COMPARE,
    FAST,
    GAP_US,
    HARNESS,
    HTTP1,
    HTTP2,
    HTTPX,
    HTTPX_ALONE,
    RUN,
    VERDICT,
)

EXACT_US = 50  # how far off a p99 may be that still counts as exact

Get = Callable[[str, str, str], float]
"""Of measurement, client and name: the value of one repeat, or the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One line of the table of goals; `of` computes it for one repeat."""

    text: str
    of: Callable[[Get], float]
    limit: float
    at_least: bool = False
    needs: str
    why: Callable[[Get], str | None] | None = None
    """Says, from medians, what is known of why it is missed; shown only then. None where the numbers do not show it."""

    @property
    def bound(self) -> str:
        limit = f"{self.limit:,.0f}" if self.limit % 1 == 0 else number(self.limit)
        return f"{'≥' if self.at_least else '≤'} {limit}"

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def number(value: float) -> str:
    """Three significant digits, with separators."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _exact_up_to(get: Get) -> float:
    """The highest rate at which p99 is exact."""
    p99 = {10_000: get("tokens-10k", HARNESS, "p99"), 80_000: get("tokens-80k", HARNESS, "p99")}
    for rate in (40_000, 60_000, 100_000):
        p99[rate] = get("capacity", f"{rate:,} events/s", "p99")
    return max((rate for rate, error in p99.items() if error < EXACT_US), default=0)


def _dearest_shape(get: Get) -> float:
    return max(get("decode", shape, "event_us") for shape in decoding.SHAPES)


def _ratio(one: Callable[[Get], float], other: Callable[[Get], float]) -> Callable[[Get], float]:
    return lambda get: one(get) / other(get)


def _difference(
    one: Callable[[Get], float], other: Callable[[Get], float]
) -> Callable[[Get], float]:
    return lambda get: one(get) - other(get)


def _value(measurement: str, client: str, name: str) -> Callable[[Get], float]:
    return lambda get: get(measurement, client, name)


def _why_httpx_is_cheap(get: Get) -> str | None:
    behind_us = get("tokens-80k", HTTPX, "p50")
    if behind_us < GAP_US:
        return None
    return (
        f"httpx does not keep up: it is {number(behind_us / 1000)} ms behind (p50), so that each of its "
        "reads brings many events at once."
    )


def _why_waking_up_counts(get: Get) -> str | None:
    small, large, httpx = (
        get("tokens-10k", HARNESS, "cpu_us"),
        get("tokens-80k", HARNESS, "cpu_us"),
        get("tokens-10k", HTTPX, "cpu_us"),
    )
    if large >= small:
        return None
    return (
        f"an event costs {number(small)} µs here and {number(large)} µs at 80,000/s, where a wake-up "
        f"brings many: the {number(small - large)} µs between are waking up. httpx takes "
        f"{number(httpx)} µs."
    )


def _why_not_a_sixth(get: Get) -> str:
    ours, theirs = (get("replies", client, "cpu_s") for client in (HARNESS, AIPERF_USAGE))
    around_s = get("replies", AIPERF, "around_s")
    return (
        f"It is {number(ours / theirs)} of aiperf with the server's token counts. What aiperf takes before "
        f"the load and after it, another {number(around_s)} s, is not in the ratio."
    )


def _why_short_requests(get: Get) -> str:
    ours, theirs, alone = (
        get("short", client, "cpu_us") for client in (BY_CLIENT, FAST, HTTPX_ALONE)
    )
    our_share, their_share = (
        get("short", client, "per_s") * cpu_us / 1e4
        for client, cpu_us in ((BY_CLIENT, ours), (FAST, theirs))
    )
    return (
        f"A request takes {number(ours)} µs of CPU through `self.client` and {number(theirs)} µs through "
        f"FastHttpUser, {number(theirs / ours)} times as much; the first process ran {number(our_share)} % of "
        f"the time, the other {number(their_share)} %. httpx alone, without Locust and network, takes "
        f"{number(alone)} µs to build a request and its response."
    )


def _why_late(get: Get, quantile: str) -> str:
    begun, sent = (get("arrivals", BY_CALL, name) for name in (f"begun_{quantile}", quantile))
    return (
        f"At {quantile} the task begins {number(begun)} µs late (the wake-up of the process, the hand-over "
        f"to a user) and its request leaves {number(sent)} µs late: in between the scenario runs and the "
        "request is put together, in Python."
    )


def goals() -> Iterator[Goal]:
    small, large = "tokens-10k", "tokens-80k"
    for name, limit in (("p50", 10), ("p99", 20), ("p99.9", 50)):
        text = f"error of a token's time at 10,000 events/s, {name}, µs"
        yield Goal(text=text, of=_value(small, HARNESS, name), limit=limit, needs=small)
    yield Goal(
        text="p99 of that error, httpx ÷ harness",
        of=_ratio(_value(small, HTTPX, "p99"), _value(small, HARNESS, "p99")),
        limit=50,
        at_least=True,
        needs=small,
    )
    yield Goal(
        text=f"events/s with p99 of the error below {EXACT_US} µs",
        of=_exact_up_to,
        limit=60_000,
        at_least=True,
        needs="capacity",
    )
    for name, shown, limit in ((small, "10,000", 26), (large, "80,000", 14)):
        cpu = _value(name, HARNESS, "cpu_us")
        text = f"CPU per event at {shown} events/s"
        yield Goal(text=f"{text}, µs", of=cpu, limit=limit, needs=name)
        yield Goal(
            text=f"{text}, harness ÷ httpx",
            of=_ratio(cpu, _value(name, HTTPX, "cpu_us")),
            limit=1 / 3,
            needs=name,
            why=_why_httpx_is_cheap if name == large else _why_waking_up_counts,
        )
    yield Goal(
        text="CPU per event from its read to the reply's times, the dearest shape, µs",
        of=_dearest_shape,
        limit=2,
        needs="decode",
    )
    for name in "ttft", "e2e":
        yield Goal(
            text=f"whole tool: {name.upper()} reported minus true, p99, ms",
            of=_value("replies", HARNESS, f"{name}_p99"),
            limit=0.1,
            needs="replies",
        )
    yield Goal(
        text="whole tool: CPU, harness ÷ FastHttpUser",
        of=_ratio(_value("replies", HARNESS, "cpu_s"), _value("replies", FAST, "cpu_s")),
        limit=0.8,
        needs="replies",
    )
    yield Goal(
        text="whole tool: CPU, harness ÷ aiperf",
        of=_ratio(_value("replies", HARNESS, "cpu_s"), _value("replies", AIPERF, "cpu_s")),
        limit=1 / 6,
        needs="replies",
        why=_why_not_a_sixth,
    )
    yield Goal(
        text="whole tool: memory of a worker with 100 users, MB",
        of=_value("replies", HARNESS, "pss_mb"),
        limit=80,
        needs="replies",
    )
    yield from _in_step()
    for key, text in (("ttft_p99", "TTFT"), ("e2e_p99", "E2E")):
        yield Goal(
            text=f"64 users through nginx: {text} error, p99, HTTP/2 minus HTTP/1.1, ms",
            of=_difference(_value("http2", HTTP2, key), _value("http2", HTTP1, key)),
            limit=0.1,
            needs="http2",
        )
    yield Goal(
        text="64 users through nginx: error of a gap of 20 ms by HTTP/2, p99.9, ms",
        of=_value("http2", HTTP2, "gap_p99.9"),
        limit=2,
        needs="http2",
    )
    yield Goal(
        text="short requests/s, Locust + `self.client` ÷ FastHttpUser",
        of=_ratio(_value("short", BY_CLIENT, "per_s"), _value("short", FAST, "per_s")),
        limit=2,
        at_least=True,
        needs="short",
        why=_why_short_requests,
    )
    for name, limit in (("p50", 60), ("p99", 300)):
        yield Goal(
            text=f"lateness of arrivals at 1,000/s, {name}, µs",
            of=_value("arrivals", BY_CALL, name),
            limit=limit,
            needs="arrivals",
            why=partial(_why_late, quantile=name),
        )
    yield Goal(
        text="error of a token's time with a busy core, p99, µs",
        of=_value("hog", HARNESS, "p99"),
        limit=50,
        needs="hog",
    )
    yield Goal(
        text="recording, ns a sample",
        of=_value("record", HARNESS, "ns"),
        limit=100,
        needs="record",
    )
    yield Goal(
        text="memory of a worker after 10 M samples ÷ after 100 k",
        of=_ratio(_value("record", HARNESS, "late_mb"), _value("record", HARNESS, "early_mb")),
        limit=1.1,
        needs="record",
    )
    for client, text, limit in (
        (VERDICT, "verdict of an hour-long run with 50 budgets, CPU s", 2),
        (COMPARE, "compare of two such runs, CPU s", 3),
    ):
        yield Goal(text=text, of=_value("hour", client, "cpu_s"), limit=limit, needs="hour")


def _in_step() -> Iterator[Goal]:
    name, run = "in-step", "`harness run`, all streams in step"
    for key, text, limit in (
        ("ttft_p99", "TTFT reported minus true, p99, ms", 0.1),
        ("e2e_p99", "E2E reported minus true, p99, ms", 0.1),
        ("stall_ms", "longest stall of the event loop, ms", 2),
    ):
        yield Goal(text=f"{run}: {text}", of=_value(name, RUN, key), limit=limit, needs=name)
    yield Goal(
        text=f"{run}: CPU of the command without its report ÷ FastHttpUser's process",
        of=_ratio(_value(name, RUN, "cpu_s"), _value(name, FAST, "cpu_s")),
        limit=0.8,
        needs=name,
    )
