"""When requests shall start: offsets from a stage's start, absolute and known before the first one.

A late wake-up shifts nothing, since no offset is counted from when an earlier one was served. The
workers' schedules together are the plan's: a Poisson process of rate r is the union of independent
ones of rate r/workers, and a constant grid is dealt out in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

import numpy as np

_CHUNK = 1024


def schedule(
    kind: Literal["constant", "poisson"],
    rate_per_s: float,
    duration_ns: int,
    *,
    seed: int,
    stage: int = 0,
    worker: int = 0,
    workers: int = 1,
) -> Iterator[int]:
    """Return one worker's ascending offsets in ns, each below `duration_ns`, generated as taken.

    `rate_per_s` is that of all `workers` together; `stage` is the stage's place in the plan. The
    same arguments give the same offsets. Raises ValueError on a rate or worker that cannot be.
    """
    if not 0 < rate_per_s < float("inf"):
        raise ValueError(f"found the rate {rate_per_s}; allowed is a number above zero")
    if not 0 <= worker < workers:
        raise ValueError(f"found worker {worker} of {workers}; they count from 0")
    if kind == "constant":
        return _constant(rate_per_s, duration_ns, worker, workers)
    random = np.random.SeedSequence(seed, spawn_key=(stage, worker))
    return _poisson(rate_per_s / workers, duration_ns, np.random.default_rng(random))


def starts(users: int, ramp_ns: int, *, worker: int = 0, workers: int = 1) -> Iterator[int]:
    """Return when one worker's part of `users` start: offsets in ns, evenly over the ramp.

    The users are dealt out in turn, as a constant grid is.
    """
    return (number * ramp_ns // users for number in range(worker, users, workers))


def _constant(rate_per_s: float, duration_ns: int, worker: int, workers: int) -> Iterator[int]:
    # 100 a minute is 5/3 a second, not the float beside it: with the fraction no grid point drifts.
    rate = Fraction(rate_per_s).limit_denominator(10**9) or Fraction(rate_per_s)
    step_ns, per = rate.denominator * 1_000_000_000, rate.numerator
    number = worker
    while (offset_ns := number * step_ns // per) < duration_ns:
        yield offset_ns
        number += workers


def _poisson(rate_per_s: float, duration_ns: int, random: np.random.Generator) -> Iterator[int]:
    last_ns = 0.0
    while last_ns < duration_ns:
        offsets_ns = last_ns + np.cumsum(random.exponential(1e9 / rate_per_s, _CHUNK))
        yield from offsets_ns[offsets_ns < duration_ns].astype(np.int64).tolist()
        last_ns = float(offsets_ns[-1])
