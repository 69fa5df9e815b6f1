"""Error rates: the p-value of a claim, and of several claims at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scipy.optimize import brentq


def smallest_level(tail: Callable[[float], float]) -> float:
    """Solve tail(1 − p) = p; from 0.5 on a p-value says nothing and is given as 1."""

    def excess(p: float) -> float:
        return tail(1 - p) - p

    least, most = 1e-12, 0.499
    if excess(most) > 0:
        return 1.0
    if excess(least) <= 0:
        return least
    return float(brentq(excess, least, most, xtol=1e-12, rtol=1e-6))


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
