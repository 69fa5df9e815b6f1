"""What would help a busy generator: more workers, and how many, by estimate."""

from __future__ import annotations

import math

from harness.recorder import Recording
from harness.units import format_count, format_duration, format_share

MOST_WORKERS = 1024  # that a plan may ask for
_NOTABLE_STALL_NS = 50_000_000
_BUSY_CPU = 0.5
_GOOD_CPU = 0.6  # of a worker's core, at its p95: what is recommended leaves room for bursts
_MOST_CPU = 0.95  # beyond it the queue's formula gives anything


def generator_remedy(
    recording: Recording,
    cpu: float | None,
    *,
    lag_ns: int | None,
    limit_ns: int,
    stall_ns: int,
) -> str:
    """Name the one thing that helps a generator, whichever of a stage's checks it broke.

    A single stall delays sends by its length at most, so one as long as the lag explains it; what
    CPU is used then, to catch up, says nothing of the load.
    """
    if lag_ns is None or lag_ns < limit_ns:
        return rate_remedy(recording, cpu)
    if stall_ns >= max(lag_ns, _NOTABLE_STALL_NS):
        return (
            f"a worker stood still for {format_duration(stall_ns)}, stopped, without a core or in "
            "code of the scenario that blocks: use a quieter machine, and nothing that blocks"
        )
    return lag_remedy(recording, cpu, lag_ns, limit_ns)


def lag_remedy(recording: Recording, cpu: float | None, lag_ns: int, limit_ns: int) -> str:
    """Name what helps: more workers for a busy generator, a quieter machine for an idle one."""
    workers = int(recording.run.get("workers", 1))
    if cpu is None:
        return "lower the rate, use more workers or a machine with less other work"
    used = f"the generator used {format_share(cpu)} of {_a_core(workers)}"
    if cpu < _BUSY_CPU:
        return f"{used}, so other work kept it waiting: use a quieter machine"
    wanted = max(workers_for(cpu, workers), workers_for_wait(cpu, workers, limit_ns / lag_ns))
    lag = format_duration(round(lag_ns * wait_ratio(cpu, workers / wanted)))
    estimate = f" would cut the send lag to about {lag}, by estimate (an M/D/1 queue)"
    return f"{used}: {_workers_wanted(recording, wanted, estimate)}"


def workers_for(cpu: float, workers: int) -> int:
    """Return how many workers would each use 60 % of a core where `workers` use `cpu` of theirs.

    One more than there are at the least; the load is taken to split evenly.
    """
    return max(workers + 1, math.ceil(round(workers * cpu / _GOOD_CPU, 9)))


def wait_ratio(cpu: float, factor: float) -> float:
    """Return by what factor the mean wait changes when each worker has `factor` times its load.

    In an M/D/1 queue of utilisation ρ and service time s it is ρ s / (2 (1 − ρ)), after Pollaczek
    and Khinchine; the CPU's share of the core stands for ρ.
    """
    before = min(cpu, _MOST_CPU)
    after = before * factor
    return (after / (1 - after)) / (before / (1 - before))


def workers_for_wait(cpu: float, workers: int, ratio: float) -> int:
    """Return the fewest workers whose `wait_ratio` is below `ratio`, at most what a plan allows."""
    before = min(cpu, _MOST_CPU)
    odds = ratio * before / (1 - before)
    return min(MOST_WORKERS, math.floor(workers * before * (1 + odds) / odds) + 1)


def _workers_wanted(recording: Recording, wanted: int, estimate: str) -> str:
    """Ask for workers, or for another machine where this one has no cores for them."""
    cores = recording.run.get("machine", {}).get("cores")
    if not cores or wanted <= cores:
        return f"--workers {wanted}{estimate}"
    return (
        f"about {format_count(wanted)} workers are needed by estimate, this machine has "
        f"{format_count(cores)} core{'' if cores == 1 else 's'}: use a larger machine, or "
        f"{format_share(round(cores / wanted, 2))} of the load"
    )


def _a_core(workers: int) -> str:
    return "its core" if workers == 1 else "the core of its busiest worker"


def rate_remedy(recording: Recording, cpu: float | None) -> str:
    """Name the workers that the CPU's share asks for, where it is known and high."""
    if cpu is None or cpu < _BUSY_CPU:
        return "lower the rate, or use more workers or a quieter machine"
    wanted = workers_for(cpu, int(recording.run.get("workers", 1)))
    estimate = f" would bring it to about {format_share(_GOOD_CPU)}, by estimate, or lower the rate"
    return _workers_wanted(recording, wanted, estimate)
