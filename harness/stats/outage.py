"""A target that stopped for good: from some time to the end of the load nothing succeeds.

One spell that lasts to the end says nothing of how long spells last, so the bounds of the true
share of failures stay wide. What is judged instead is the fact, where it is plain: so many requests
failed in a row as independent failures at the allowed share would in one run of a million, it went
on for over three times as long as any earlier spell without a success, and were as much load to
follow in which nothing failed, more than the allowed share would still have failed.

A run ends at a time that the target does not know. So the chance that it ends in a spell of a
target that would have come back is at most the share of time that the target is in one, and a
target that keeps its limit is in one for at most the allowed share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from harness.stats.windows import IntArray

FEWEST_FAILED = 20
_FEWEST_USERS = 5
_CHANCE = 1e-6
_LONGER = 3.0  # than any spell before


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """From window `start` on all of `failed` requests failed; it is `share` of the load's time.

    `earlier` is the longest spell without a success before, in windows.
    """

    start: int
    failed: int
    windows: int
    earlier: int

    @property
    def share(self) -> float:
        """The part of the load's windows that it lasted."""
        return (self.windows - self.start) / self.windows

    def breaks(self, allowed: float, failed: int, n: int, *, users: int | None = None) -> bool:
        """Return whether it breaks "at most `allowed` of all requests fail"; `failed` of n did.

        Of a closed load with so many `users` no more can fail than these if they hang, so its share
        is that of the time.
        """
        if not 0 < allowed < 1:
            return False
        share = failed / n if users is None else max(failed / n, self.share)
        fewest = FEWEST_FAILED if users is None else max(_FEWEST_USERS, min(FEWEST_FAILED, users))
        chance = math.ceil(math.log(_CHANCE) / math.log(allowed))
        return self.is_long and self.failed >= max(fewest, chance) and share / 2 > allowed

    @property
    def is_long(self) -> bool:
        """Whether no earlier spell without a success compares with it."""
        return self.windows - self.start > _LONGER * self.earlier


def find_outage(total: IntArray, failed: IntArray) -> Outage | None:
    """Return the spell without a success at the end of a load, None where there is none.

    `total` requests ended in each window from the load's start to its planned end, `failed` of them
    failed; what ended later counts in the last one. A load without any success has no outage: there
    is nothing that stopped.
    """
    good = np.flatnonzero(total > failed)
    if not len(good) or good[-1] + 1 >= len(total):
        return None
    start = int(good[-1]) + 1
    gaps = np.diff(good, prepend=-1) - 1
    return Outage(
        start=start,
        failed=int(failed[start:].sum()),
        windows=len(total),
        earlier=int(gaps.max()),
    )
