"""Latencies whose true distribution is known, from the kinds of processes that servers are.

Times are in seconds. Each process draws many runs at once, one in each row: the moments at which
its requests ended, from the start of the run on, and their latencies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri

FloatArray = npt.NDArray[np.float64]
Runs = tuple[FloatArray, FloatArray]  # ends and latencies, shape (runs, n)

MEDIAN_S, SIGMA = 0.1, 0.5
SERVICE_SIGMA = 0.8  # of lognormal service times: a coefficient of variation of 0.95
BURN_IN = 8_000  # arrivals before a queue of many servers is looked at


@dataclass(frozen=True)
class Scenario:
    """A process: `draw(rng, runs, n, rate_per_s)` and its true quantile, `truth(q, rate_per_s)`.

    `kind` is "independent", "dependent" or "queue". Spells of the process last about `spell_s` at
    the most, where that does not depend on the load.
    """

    name: str
    kind: str
    draw: Callable[[np.random.Generator, int, int, float], Runs]
    truth: Callable[[float, float], float]
    spell_s: float = field(default=0.0)


def arrivals(rng: np.random.Generator, runs: int, n: int, rate: float) -> FloatArray:
    return np.cumsum(rng.exponential(1 / rate, (runs, n)), axis=1)


def _quantile_of(survival: Callable[[float], float], q: float, top: float = 1e4) -> float:
    return float(brentq(lambda x: survival(x) - (1 - q), 0.0, top, xtol=1e-12, rtol=1e-12))


def lognormal_survival(x: FloatArray | float, median: float, sigma: float) -> FloatArray:
    return ndtr(-(np.log(np.maximum(x, 1e-300)) - np.log(median)) / sigma)


# --- independent ----------------------------------------------------------------------------------


def independent(
    name: str,
    values: Callable[[np.random.Generator, tuple[int, int]], FloatArray],
    truth: Callable[[float], float],
) -> Scenario:
    def draw(rng: np.random.Generator, runs: int, n: int, rate: float) -> Runs:
        latency = values(rng, (runs, n))
        return arrivals(rng, runs, n, rate) + latency, latency

    return Scenario(name, "independent", draw, lambda q, _: truth(q))


def lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    return rng.lognormal(np.log(MEDIAN_S), SIGMA, shape)


def lognormal_truth(q: float) -> float:
    return float(MEDIAN_S * np.exp(SIGMA * ndtri(q)))


def pareto(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    return MEDIAN_S / 2 * (1 - rng.random(shape)) ** (-1 / 1.5)


def bimodal(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """A cache: 97 % hits at 20 ms, 3 % misses at 300 ms."""
    missed = rng.random(shape) < 0.03
    return rng.lognormal(np.log(np.where(missed, 0.3, 0.02)), 0.3)


def bimodal_truth(q: float) -> float:
    return _quantile_of(
        lambda x: float(
            0.97 * lognormal_survival(x, 0.02, 0.3) + 0.03 * lognormal_survival(x, 0.3, 0.3)
        ),
        q,
    )


# --- dependent, with a known marginal -------------------------------------------------------------


def autoregressive(rho: float) -> Scenario:
    """Lognormal latencies whose logarithms are AR(1) from sample to sample."""

    def draw(rng: np.random.Generator, runs: int, n: int, rate: float) -> Runs:
        noise = rng.standard_normal((runs, n)) * np.sqrt(1 - rho**2)
        noise[:, 0] /= np.sqrt(1 - rho**2)
        latency = MEDIAN_S * np.exp(SIGMA * lfilter([1], [1, -rho], noise, axis=1))
        return arrivals(rng, runs, n, rate) + latency, latency

    return Scenario(f"AR {rho:g}", "dependent", draw, lambda q, _: lognormal_truth(q))


def alternating(
    rng: np.random.Generator, at: FloatArray, on_s: float, off_s: float, *, fixed_on: bool
) -> tuple[npt.NDArray[np.bool_], FloatArray]:
    """Which moments lie in an "on" spell of a stationary process, and how long that still lasts.

    Off spells are exponential with mean `off_s`; on spells too, or all of them last `on_s`.
    """
    inside = np.zeros(at.shape, dtype=bool)
    rest = np.zeros(at.shape)
    for row, times in enumerate(at):
        spells = int(2 * times[-1] / (on_s + off_s) + 20)
        on = np.full(spells, on_s) if fixed_on else rng.exponential(on_s, spells)
        off = rng.exponential(off_s, spells)
        edges = np.cumsum(np.column_stack([on, off]).ravel())
        if rng.random() < on_s / (on_s + off_s):  # the first spell has run for a while
            first = on_s * rng.random() if fixed_on else rng.exponential(on_s)
            edges += first - on[0]
        else:
            edges += rng.exponential(off_s)
            edges = np.concatenate([[-np.inf, edges[0] - on[0]], edges])
        place = np.searchsorted(edges, times, side="right")
        inside[row] = place % 2 == 0
        rest[row] = np.where(inside[row], edges[np.minimum(place, len(edges) - 1)] - times, 0.0)
    return inside, rest


def stalls(every_s: float, length_s: float) -> Scenario:
    """A collector that stops the server: who comes meanwhile waits for its end."""
    share = length_s / (every_s + length_s)

    def draw(rng: np.random.Generator, runs: int, n: int, rate: float) -> Runs:
        at = arrivals(rng, runs, n, rate)
        _, rest = alternating(rng, at, length_s, every_s, fixed_on=True)
        latency = lognormal(rng, (runs, n)) + rest
        return at + latency, latency

    def survival(x: float) -> float:
        rest = (np.arange(2_000) + 0.5) / 2_000 * length_s
        free = float(lognormal_survival(x, MEDIAN_S, SIGMA))
        return (1 - share) * free + share * float(
            lognormal_survival(x - rest, MEDIAN_S, SIGMA).mean()
        )

    return Scenario(
        f"stalls of {length_s:g} s", "dependent", draw, lambda q, _: _quantile_of(survival, q)
    )


def regimes(spell_s: float, slower: float = 1.5) -> Scenario:
    """A server that is slower by a factor for spells that last `spell_s` on average."""

    def draw(rng: np.random.Generator, runs: int, n: int, rate: float) -> Runs:
        at = arrivals(rng, runs, n, rate)
        slow, _ = alternating(rng, at, spell_s, spell_s, fixed_on=False)
        latency = lognormal(rng, (runs, n)) * np.where(slow, slower, 1.0)
        return at + latency, latency

    def survival(x: float) -> float:
        return (
            float(
                lognormal_survival(x, MEDIAN_S, SIGMA)
                + lognormal_survival(x, MEDIAN_S * slower, SIGMA)
            )
            / 2
        )

    return Scenario(
        f"regimes of {spell_s:g} s",
        "dependent",
        draw,
        lambda q, _: _quantile_of(survival, q),
        spell_s=spell_s,
    )


# --- queues ---------------------------------------------------------------------------------------


def single_server(load: float) -> Scenario:
    """M/G/1, first come first served, lognormal service."""

    def draw(rng: np.random.Generator, runs: int, n: int, rate: float) -> Runs:
        mean = load / rate
        median = mean * np.exp(-(SERVICE_SIGMA**2) / 2)
        gaps = rng.exponential(1 / rate, (runs, n))
        service = rng.lognormal(np.log(median), SERVICE_SIGMA, (runs, n))
        steps = np.empty((runs, n))  # Lindley's recursion, unrolled
        steps[:, 0] = stationary_wait(rng, runs, load, median)
        steps[:, 1:] = service[:, :-1] - gaps[:, 1:]
        total = np.cumsum(steps, axis=1)
        wait = total - np.minimum(np.minimum.accumulate(total, axis=1), 0.0)
        latency = wait + service
        return np.cumsum(gaps, axis=1) + latency, latency

    return Scenario(
        f"M/G/1 {load:g}", "queue", draw, lambda q, rate: load / rate * pollaczek(load, q)
    )


def stationary_wait(rng: np.random.Generator, runs: int, load: float, median: float) -> FloatArray:
    """Draw from the waiting time of M/G/1: a geometric number of residual services."""
    number = rng.geometric(1 - load, runs) - 1
    residual = rng.lognormal(
        np.log(median) + SERVICE_SIGMA**2, SERVICE_SIGMA, int(number.sum())
    ) * rng.random(int(number.sum()))
    return np.bincount(np.repeat(np.arange(runs), number), weights=residual, minlength=runs)


@cache
def pollaczek(load: float, q: float) -> float:
    """The true quantile of the time in M/G/1, in mean service times.

    Pollaczek and Khinchine's transform on a lattice, inverted by FFT.
    """
    width, size = 1 / 200, 1 << 18  # to 1 300 services: beyond is nothing, at a load of 0.95
    edges = np.arange(size + 1) * width
    median = np.exp(-(SERVICE_SIGMA**2) / 2)
    service = -np.diff(lognormal_survival(edges, median, SERVICE_SIGMA))
    alive = lognormal_survival(edges, median, SERVICE_SIGMA)
    residual = (alive[:-1] + alive[1:]) / 2 * width
    residual /= residual.sum()
    # mass at the middle of each cell, by half a cell's shift of both factors
    half = np.exp(-2j * np.pi * np.fft.rfftfreq(size) / 2)
    wait = (1 - load) / (1 - load * np.fft.rfft(residual) * half)
    density = np.fft.irfft(wait * np.fft.rfft(service) * half, size)
    survival = np.maximum(1 - np.cumsum(density), 0)
    at = int(np.searchsorted(-survival, -(1 - q)))
    here, before = survival[at], survival[at - 1]
    return float(width * (at + (before - (1 - q)) / (before - here)) - width / 2)


def many_servers(name: str, servers: int, load: float, sigma: float | None) -> Scenario:
    """M/G/c, first come first served. Its truth is a far larger simulation."""

    def draw(rng: np.random.Generator, runs: int, n: int, rate: float) -> Runs:
        at = np.empty((runs, n))
        latency = np.empty((runs, n))
        chunks = _many_servers(rng, runs, n, servers, load, sigma)
        start = np.zeros(runs)
        for first, ends, stays in chunks:
            at[:, first : first + ends.shape[1]] = ends
            latency[:, first : first + ends.shape[1]] = stays
        return (at - start[:, None]) / rate + latency / rate, latency / rate

    return Scenario(
        name, "queue", draw, lambda q, rate: _simulated_quantile(servers, load, sigma, q) / rate
    )


def service_times(
    rng: np.random.Generator, mean: float, sigma: float | None, shape: tuple[int, int]
) -> FloatArray:
    """Draw from a lognormal law, or from the exponential one where there is no sigma."""
    if sigma is None:
        return rng.exponential(mean, shape)
    return rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, shape)


def _many_servers(rng, runs, n, servers, load, sigma):
    """Yield blocks of arrival times and times in the system, at one arrival a second."""
    mean = load * servers
    free = np.zeros((runs, servers))
    rows = np.arange(runs)
    now = np.zeros(runs)
    for first in range(-BURN_IN, n, 1_000):
        size = min(1_000, n - first) if first >= 0 else 1_000
        gaps = rng.exponential(1.0, (size, runs))
        service = service_times(rng, mean, sigma, (size, runs))
        if first == 0:
            free -= now[:, None]
            now = np.zeros(runs)
        at, stay = np.empty((size, runs)), np.empty((size, runs))
        for i in range(size):
            now = now + gaps[i]
            chosen = free.argmin(axis=1)
            begin = np.maximum(free[rows, chosen], now)
            done = begin + service[i]
            free[rows, chosen] = done
            at[i] = now
            stay[i] = done - now
        if first >= 0:
            yield first, at.T, stay.T


BINS_PER_E = 4_000
Law = tuple[int, float, float | None]  # servers, load, sigma of the service (None: exponential)
known: dict[Law, FloatArray] = {}


def simulated_survival(servers: int, load: float, sigma: float | None) -> FloatArray:
    """Return the true share above each bin of the logarithm of the time in M/G/c."""
    law = (servers, load, sigma)
    if law in known:
        return known[law]
    counts = np.zeros(24 * BINS_PER_E, dtype=np.int64)
    rng = np.random.default_rng([servers, round(100 * load), round(100 * (sigma or 0))])
    for _, _, stay in _many_servers(rng, TRUTH_RUNS, TRUTH_N, servers, load, sigma):
        place = np.maximum((np.log(stay) + 12) * BINS_PER_E, 0).astype(np.int64)
        counts += np.bincount(place.ravel(), minlength=len(counts))
    known[law] = 1 - np.cumsum(counts) / counts.sum()
    return known[law]


TRUTH_RUNS, TRUTH_N = 4_000, 30_000


def _simulated_quantile(servers: int, load: float, sigma: float | None, q: float) -> float:
    survival = simulated_survival(servers, load, sigma)
    return float(np.exp((np.searchsorted(-survival, -(1 - q)) + 1) / BINS_PER_E - 12))


MANY_SERVERS: dict[str, Law] = {
    "M/G/8 0.5": (8, 0.5, SERVICE_SIGMA),
    "M/G/8 0.8": (8, 0.8, SERVICE_SIGMA),
    "M/G/8 0.95": (8, 0.95, SERVICE_SIGMA),
    "16 slots 0.9": (16, 0.9, 0.6),
}
SCENARIOS = (
    independent("lognormal", lognormal, lognormal_truth),
    independent("Pareto 1.5", pareto, lambda q: MEDIAN_S / 2 * (1 - q) ** (-1 / 1.5)),
    independent("bimodal", bimodal, bimodal_truth),
    autoregressive(0.9),
    autoregressive(0.99),
    stalls(10.0, 0.3),
    regimes(2.0),
    regimes(20.0),
    single_server(0.5),
    single_server(0.8),
    single_server(0.95),
    *(many_servers(name, *law) for name, law in MANY_SERVERS.items()),
)
