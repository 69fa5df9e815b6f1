"""A bound on how often a simulated answer may be wrong, and the rule for one that is exceeded.

Of hundreds of cells some exceed two standard errors by chance. So what breaks a bound is simulated
once more, by four times the runs that share no sample with the first, and only that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
MORE_RUNS = 4


@dataclass(frozen=True, slots=True)
class Check:
    """`what` happened in a `share` of `runs` simulated runs at `place`; `most` is allowed."""

    place: str
    what: str
    share: float
    most: float
    runs: int

    @property
    def broken(self) -> bool:
        return self.share > self.most

    def __str__(self) -> str:
        return (
            f"{self.place}: {self.what} {self.share:.1%} of {self.runs:,}, at most {self.most:.1%}"
        )


@dataclass(frozen=True)
class Part:
    """What one simulation found: its value for the tables, its bounds, and the ones redone.

    `redone` pairs each check that was broken with the same one in the larger simulation.
    """

    value: Any
    checks: tuple[Check, ...] = ()
    redone: tuple[tuple[Check, Check], ...] = ()


def two_errors_above(share: float, runs: int) -> float:
    """Return a share and two standard errors of its estimate from so many runs."""
    return share + 2 * float(np.sqrt(share * (1 - share) / runs))


def judged(
    judge: Callable[[int, bool], Any], checks: Callable[[Any], Iterable[Check]], runs: int
) -> Part:
    """Simulate, and once more where a bound is broken; `judge` gets runs, and whether it is again."""
    value = judge(runs, False)
    first = tuple(checks(value))
    broken = [check for check in first if check.broken]
    if not broken:
        return Part(value, first)
    value = judge(MORE_RUNS * runs, True)
    last = tuple(checks(value))
    after = {(check.place, check.what): check for check in last}
    return Part(value, last, tuple((one, after[one.place, one.what]) for one in broken))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table, the first column to the left, the others to the right."""
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|:--" + "|--:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def percent(share: float) -> str:
    """Return a share in %, with a decimal below 10 %."""
    return f"{100 * share:.1f}" if share < 0.0995 else f"{100 * share:.0f}"
