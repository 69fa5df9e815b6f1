"""What is measured: every metric, its definition that is printed beside it, how its values read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.units import (
    TimeUnit,
    format_count,
    format_duration,
    format_money,
    format_rate,
    format_share,
)

Kind = Literal["time", "tokens", "share", "rate", "money"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One thing that is measured; `definition` is printed beside every number of it."""

    name: str
    kind: Kind
    definition: str
    per_request: bool
    """True when a request yields at most one sample of it."""


def _metric(name: str, kind: Kind, definition: str, *, per_request: bool = True) -> Metric:
    return Metric(name=name, kind=kind, definition=definition, per_request=per_request)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _metric(
            "ttft",
            "time",
            "Time to first token: first event with non-empty content, reasoning or tool-call delta "
            "− start. A role-only or empty delta is not a token.",
        ),
        _metric(
            "ttfo",
            "time",
            "Time to first output: first event with non-empty visible content − start. Reasoning "
            "and tool calls are not visible.",
        ),
        _metric(
            "itl",
            "time",
            "Inter-token latency: gap between successive token events, one sample per gap. Tokens "
            "that came in one event make no gap; of events that came in one read, gaps are known "
            "between two ends.",
            per_request=False,
        ),
        _metric(
            "tpot",
            "time",
            "Time per output token: (last token event − first token event) ÷ (output tokens − 1), "
            "one sample per request. Absent, not 0, for one-token replies.",
        ),
        _metric(
            "e2el",
            "time",
            "End-to-end latency, the response time: end of the reply's stream − start. Start is "
            "the planned arrival, so waiting to be sent counts. Successful requests only.",
        ),
        _metric(
            "e2el_all",
            "time",
            "End-to-end latency including failures: as e2el, with each failed or timed-out request "
            "standing at its timeout, which its true time is known to reach or exceed.",
        ),
        _metric(
            "service",
            "time",
            "Service time: end of the reply's stream − sent, when the request's first byte was "
            "handed to the kernel. What the target took, without the wait before it.",
        ),
        _metric(
            "service_ttft",
            "time",
            "Service time to first token: as ttft, from sent instead of start.",
        ),
        _metric(
            "request",
            "time",
            "Request time: end of the reply − call, of one HTTP request that the scenario makes "
            "itself inside the step.",
        ),
        _metric(
            "send_lag",
            "time",
            "Send lag: sent − planned, less the wait for a free user and the time to connect. The "
            "load generator's delay, not the target's.",
        ),
        _metric(
            "slot_wait",
            "time",
            "Wait for a free user: how long a planned arrival waited because max_in_flight "
            "requests were running. Part of the response time.",
        ),
        _metric(
            "connect",
            "time",
            "Time to connect: DNS, TCP and TLS, for requests that needed a new connection. Part of "
            "the response time.",
        ),
        _metric(
            "input_tokens",
            "tokens",
            "Tokens of the prompt, as the target's usage report counts them.",
        ),
        _metric(
            "output_tokens",
            "tokens",
            "Tokens of the reply: the target's usage report where it sends one, else counted "
            "token events.",
        ),
        _metric(
            "cost",
            "money",
            "Cost: tokens and requests of all model calls inside one execution of the step, by the "
            "plan's prices. A failed call costs what its reply reported. Successful executions "
            "only.",
        ),
        _metric(
            "error_rate",
            "share",
            "Failed requests ÷ all requests. Failed by kind: connect, timeout, reset, status, "
            "truncated stream or body, malformed or error event, invalid or empty reply, reply "
            "too large, generator limit, cut off by the end of the run. Of run: root steps; a task "
            "that fails after its last one fails that one.",
            per_request=False,
        ),
        _metric(
            "goodput",
            "share",
            "Requests that met every per-request latency budget ÷ all requests. Failed requests "
            "count as missed.",
            per_request=False,
        ),
        _metric(
            "rate",
            "rate",
            "Successful requests that ended within the stage ÷ its duration.",
            per_request=False,
        ),
    )
}


def format_value(value: float, kind: Kind, unit: TimeUnit | None = None) -> str:
    """Write a value in ns, tokens, n$, per second or as a share of 1, as its kind says.

    `unit` is that of a time; without one it is the fitting one.
    """
    if kind == "time":
        return format_duration(value, unit=unit)
    if kind == "money":
        return format_money(value)
    if kind == "share":
        return format_share(value)
    return format_rate(value) if kind == "rate" else format_count(round(value))
