"""Several claims at once: which of them stand."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float], confidence: float) -> tuple[bool, ...]:
    """Return which claims stand when the chance of any false one must stay within 1 − confidence.

    Holm (Scandinavian Journal of Statistics 6, 1979): the smallest p-value is held against α/m, the
    next against α/(m − 1), and so on to the first that is too large. No independence is assumed.
    """
    stands = [False] * len(p_values)
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > (1 - confidence) / (len(p_values) - place):
            break
        stands[index] = True
    return tuple(stands)
