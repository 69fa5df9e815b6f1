"""Holds a plan against what a worker of this machine carries.

What a plan does not say is assumed, and said; by itself that never makes a plan unfit.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from harness.health import send_lag_limit
from harness.plan import Plan
from harness.selftest.result import Ceiling, Selftest, at_send_lag_limit, plain
from harness.swarm.scan import Requests, written_requests

ASSUMED_TOKENS = 256  # in a reply, where the plan does not limit them
ASSUMED_TOKENS_PER_S = 50  # of one stream, where a stage says only how many users it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a stage asks of the generator, a second; None where only the target decides it.

    `basis` says what was taken for granted. `least_…` is what remains without what was assumed: a
    token a reply, and nothing of users whose replies come at an unknown speed.
    """

    stage: str
    requests_per_s: float | None
    events_per_s: float | None
    least_requests_per_s: float
    least_events_per_s: float
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether a plan's most demanding stage fits the machine.

    `share` is that of one worker's time which it takes. `needed` workers would do, `least` of them
    are needed whatever was assumed; None when no number would do. `at_most` says that fewer may do,
    since the ceiling is a lower bound.
    """

    demand: Demand | None
    share: float
    needed: int | None
    least: int | None
    at_most: bool
    workers: int
    cores: int
    not_judged: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """True when the plan's workers, each on a core of its own, suffice for what is certain."""
        return self.needed is not None and self._suffice_for(self.least)

    @property
    def fits_as_assumed(self) -> bool:
        """True when they suffice also where what was assumed holds."""
        return self._suffice_for(self.needed)

    def _suffice_for(self, needed: int | None) -> bool:
        return needed is not None and needed <= min(self.workers, self.cores)


def demands(plan: Plan) -> tuple[Demand, ...]:
    """Return what each stage asks for, counting the requests that the scenario's source has."""
    a_task, counted = _requests_of(plan)
    streams = a_task.streams > 0
    tokens, known = reply_tokens(plan)
    basis = (
        f"{tokens} tokens a reply, "
        + ("as target.params says" if known else "assumed: target.params sets no max_tokens")
        if streams
        else "no token streams"
    )
    basis += f"; {counted}"
    found = []
    for stage in plan.load:
        requests: float | None
        events: float | None
        least_requests = least_events = 0.0
        if stage.arrivals is not None:
            requests = least_requests = stage.arrivals.rate_per_s * a_task.total
            replies_per_s = stage.arrivals.rate_per_s * a_task.streams
            events, least_events = replies_per_s * tokens, replies_per_s * (tokens if known else 1)
            said = basis
        elif streams:
            events = float((stage.concurrency or 0) * ASSUMED_TOKENS_PER_S)
            requests = events / tokens / a_task.streams * a_task.total
            said = f"{basis}; {ASSUMED_TOKENS_PER_S} tokens/s a user, assumed"
        else:
            requests, events, said = None, None, "the target decides the rate"
        found.append(
            Demand(
                stage=stage.name,
                requests_per_s=requests,
                events_per_s=events,
                least_requests_per_s=least_requests,
                least_events_per_s=least_events,
                basis=said,
            )
        )
    return tuple(found)


def reply_tokens(plan: Plan) -> tuple[int, bool]:
    """Return the tokens of a reply, and whether the plan says so; else they are assumed."""
    params = plan.target.params
    given = params.get("max_completion_tokens", params.get("max_tokens"))
    known = type(given) is int and given > 0
    return (int(given), True) if known and given else (ASSUMED_TOKENS, False)


def _requests_of(plan: Plan) -> tuple[Requests, str]:
    """Return the requests of a task, and in words where they are known from."""
    streams = plan.target.params.get("stream") is not False
    written = written_requests(plan.scenario)
    if written is None:
        chats = plan.target.api in ("openai-chat", "openai-completions")
        return Requests(1, int(streams and chats)), "1 request a task, assumed"
    more = "" if written.total == 1 else "s"
    counted = f"{written.total} request{more} a task, as its source has them"
    return written if streams else Requests(written.total, 0), counted


def fit(plan: Plan, found: Selftest, *, cores: int | None = None) -> Fit:
    """Compare a plan's most demanding stage with what a worker carries within its send-lag limit.

    A worker's time is shared: what its requests take and what its token events take add up. Where
    stages do not fit whatever was assumed, the most demanding of those is told of.
    """
    found = at_send_lag_limit(found, send_lag_limit(plan.budgets))
    there = cores or int(found.machine["cores"])
    known: list[tuple[float, float, Demand]] = []
    not_judged = []
    for demand in demands(plan):
        if demand.requests_per_s is None or demand.events_per_s is None:
            not_judged.append(demand.stage)
            continue
        share = _share(found, demand.requests_per_s, demand.events_per_s)
        least = _share(found, demand.least_requests_per_s, demand.least_events_per_s)
        known.append((share, least, demand))
    surely = [one for one in known if one[1] > min(plan.workers, there)]
    share, least, most = max(surely or known, key=lambda one: one[0], default=(0.0, 0.0, None))
    bounded = most is not None and (
        (bool(most.requests_per_s) and found.requests.at_least)
        or (bool(most.events_per_s) and found.token_events.at_least)
    )
    return Fit(
        demand=most,
        share=share,
        needed=_workers(share),
        least=_workers(least),
        at_most=bounded,
        workers=plan.workers,
        cores=there,
        not_judged=tuple(not_judged),
    )


def _share(found: Selftest, requests_per_s: float, events_per_s: float) -> float:
    """Return the share of one worker's time that this takes."""
    return _part(requests_per_s, found.requests) + _part(events_per_s, found.token_events)


def _part(asked_per_s: float, carried: Ceiling) -> float:
    if not asked_per_s:
        return 0.0
    return asked_per_s / carried.per_s if carried.per_s else math.inf


def _workers(share: float) -> int | None:
    return None if math.isinf(share) else max(1, math.ceil(round(share, 9)))


def as_json(found: Selftest, fitting: Fit | None = None) -> dict[str, Any]:
    """Return a result, and how a plan fits if one was given, as plain values for JSON."""
    if fitting is None:
        return {**plain(found), "fit": None}
    share = None if math.isinf(fitting.share) else fitting.share
    return {**plain(found), "fit": {**asdict(fitting), "share": share, "fits": fitting.fits}}
