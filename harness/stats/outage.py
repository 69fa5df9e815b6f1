"""A target that stopped for good: from some time to the end of the load nothing succeeds.

One spell that lasts to the end says nothing of how long spells last, so the bounds of the true
share of failures stay wide. What is judged instead is the fact, where it is plain: so many requests
failed in a row as independent failures at the allowed share would in one run of a million, it went
on for over twice as long as any earlier spell without a success, and were as much load to follow
in which nothing failed, more than the allowed share would still have failed.

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
_LONGER = 2.0  # than any spell before
_FAR_LONGER = 20.0  # where the users are few


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

        In a load that so many `users` limit no more than these can fail if they hang: its share is
        that of the time, and all of them count for as many as there might be.
        """
        if not 0 < allowed < 1 or not self.is_long:
            return False
        share = failed / n if users is None else max(failed / n, self.share)
        return share / 2 > allowed and (
            self.failed >= max(FEWEST_FAILED, _run_beyond_chance(allowed))
            or (users is not None and self._holds_all(users, allowed))
        )

    @property
    def is_long(self) -> bool:
        """Whether no earlier spell without a success compares with it."""
        return self.windows - self.start > _LONGER * self.earlier

    def _holds_all(self, users: int, allowed: float) -> bool:
        """Whether every user hangs in it, so many or for so long that none of them is just slow."""
        if self.failed < users:
            return False
        many = users >= _FEWEST_USERS and users >= _run_beyond_chance(allowed)
        return many or self.windows - self.start > _FAR_LONGER * max(1, self.earlier)


def _run_beyond_chance(allowed: float) -> int:
    """Return how many failures in a row independent ones would make in one run of a million."""
    return math.ceil(math.log(_CHANCE) / math.log(allowed))


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
    began = np.flatnonzero(total)[0]  # before that nothing can have succeeded
    gaps = np.diff(good, prepend=began - 1) - 1
    return Outage(
        start=start,
        failed=int(failed[start:].sum()),
        windows=len(total),
        earlier=int(gaps.max()),
    )
