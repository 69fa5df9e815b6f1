"""How long a user waits after a round that failed at once, as a well-behaved client does.

Its next round starts no sooner than 10 ms after the failed one did, twice that after each further
failure in a row, a second at most; of that a random part between half and all, lest users that
failed together come back together. A success begins anew.
"""

from __future__ import annotations

from random import Random

_FIRST_S, _LONGEST_S = 0.01, 1.0
_MOST_DOUBLINGS = 7  # 10 ms doubled so often is above a second


class Backoff:
    """Draws the pauses of one process from its seed."""

    def __init__(self, seed: object) -> None:
        self._random = Random(f"{seed} backoff").random

    def pause_s(self, failures: int, lasted_s: float) -> float:
        """Return the pause after so many failed rounds in a row, the last of which lasted so long.

        In seconds; none after none, and none after a round that took long enough by itself.
        """
        if not failures:
            return 0.0
        whole_s = min(_LONGEST_S, _FIRST_S * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
        return max(0.0, whole_s * (1 + self._random()) / 2 - lasted_s)
