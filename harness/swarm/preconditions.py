"""Before a load: which of the client's own limits its plan does not fit, and what to change.

A limit that is met all the same is a failure of the generator (`limits`), never of the target.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.limits import local_ports, raise_descriptor_limit, setting
from harness.plan import Plan, Stage
from harness.swarm.manifest import EMBEDDED
from harness.units import format_count

_OWN_DESCRIPTORS = 20  # of a worker or endpoint beside its connections: pipes, clocks, libraries


def misfits(plan: Plan) -> list[str]:
    """Say which limits of this machine the plan's connections do not fit; raises what it may."""
    if plan.target.http2:  # many requests share a connection: how many, only the target tells
        return []
    widest = max(plan.load, key=_at_a_time)
    return [*_descriptors(plan, widest), *_ports(widest)]


def _at_a_time(stage: Stage) -> int:
    return stage.concurrency or stage.max_in_flight or 0


def _descriptors(plan: Plan, stage: Stage) -> Iterator[str]:
    allowed = raise_descriptor_limit()
    most = _at_a_time(stage)
    parties = {"a worker": -(-most // plan.workers)}
    if plan.target.url == EMBEDDED:
        parties["the embedded endpoint"] = most
    for who, connections in parties.items():
        needed = connections + _OWN_DESCRIPTORS
        if needed > allowed:
            yield (
                f"{_asks(stage)}: {who} needs about {format_count(needed)} open files for that, "
                f"{format_count(allowed)} are allowed; {setting('EMFILE')}"
            )


def _ports(stage: Stage) -> Iterator[str]:
    allowed = local_ports()
    if allowed is not None and _at_a_time(stage) > allowed:
        yield (
            f"{_asks(stage)}: this machine has {format_count(allowed)} local ports for connections "
            "to one address; widen net.ipv4.ip_local_port_range"
        )


def _asks(stage: Stage) -> str:
    requests = f"{format_count(_at_a_time(stage))} requests at a time"
    return (
        f"stage {stage.name} allows {requests}" if stage.arrivals else f"{stage.name}: {requests}"
    )
