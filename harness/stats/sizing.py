"""How many samples, and how long, a claim needs before it can be decided at a declared power.

The textbook sizes of a test of one share, of two quantiles and of a mean, for independent samples,
times the variance inflation `vif` of a pilot run (1 without one), and enlarged for a variance that
has to be estimated from few effective windows. `e` is the share of windows of a pilot that counted
as effective, 1 when windows do not depend on each other.

Unless told otherwise, a claim is sized for a truth that lies 20 % on the good side of a limit of
latency, with a tail as steep as a lognormal's with σ = 0.5, or at half of an allowed share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import betainc, ndtri

from harness.stats.shares import samples_to_pass
from harness.stats.windows import Windows

POWER = 0.9
DISTANCE = 0.2  # the truth lies this far on the good side of the limit
LOG_SIGMA = 0.5  # of the lognormal whose tail is assumed without a pilot
_SHORTEST_S = 100.0
_FEWEST_EFFECTIVE_S = 50.0
_RESERVE = 1.2  # for the steps of discrete counts, and of t over z
_VARIANCE_RESERVE = 70.0  # relative cost of an estimated variance, in effective windows of 1 s
_INTERVAL_RESERVE = 10.0  # the same of a quantile's own interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a claim needs: `samples` of its metric, and seconds of load that yield them.

    `seconds` is None where no rate is known, and never short of what a judgement of dependence
    needs, even where the samples would come sooner.
    """

    samples: int
    seconds: float | None


def quantile_size(
    q: float,
    confidence: float,
    *,
    over: float | None = None,
    rate_per_s: float | None = None,
    power: float = POWER,
    vif: float = 1.0,
    e: float = 1.0,
) -> Size | None:
    """Size a run so that `pQ < limit` passes with probability `power`.

    `over` is the share of samples truly above the limit, by default that of `exceedance_under`.
    None when it is as large as the budget allows: such a budget is not to be passed.
    """
    return share_size(
        1 - q,
        confidence,
        true=exceedance_under(q) if over is None else over,
        rate_per_s=rate_per_s,
        power=power,
        vif=vif,
        e=e,
    )


def share_size(
    allowed: float,
    confidence: float,
    *,
    true: float | None = None,
    rate_per_s: float | None = None,
    power: float = POWER,
    vif: float = 1.0,
    e: float = 1.0,
) -> Size | None:
    """Size a run so that a share truly `true` is shown to be at most `allowed`.

    `true` is by default half of what is allowed. The normal test of one share (Fleiss,
    Statistical Methods for Rates and Proportions, 1981, 2.1); never less than what no bad sample
    at all would need. None where no size shows it.
    """
    true = allowed / 2 if true is None else true
    if not 0 <= true < allowed < 1:
        return None
    spread = float(ndtri(confidence)) * math.sqrt(allowed * (1 - allowed))
    spread += float(ndtri(power)) * math.sqrt(true * (1 - true))
    wanted = max((spread / (allowed - true)) ** 2, samples_to_pass(1 - allowed, confidence))
    return _lasting(_RESERVE * vif * wanted, _VARIANCE_RESERVE, rate_per_s, e)


def span_size(
    allowed: float, spans: int, *, true: float | None = None, power: float = POWER, vif: float = 1.0
) -> Size:
    """Size each of `spans` spans of a run so that with probability `power` none breaks by chance.

    A span breaks when more than the `allowed` share of its samples is over the limit; `true` is by
    default half of it. Spans are taken as independent, and the binomial distribution at n/vif
    samples, as an incomplete beta function; of allowed·n the whole part counts, so one less is
    asked for. Never less than what one sample over the limit is allowed in.
    """
    true = allowed / 2 if true is None else true
    each: float = power ** (1 / spans)

    def short_of(n: float) -> float:
        return each - float(betainc((1 - allowed) * n + 1, allowed * n, 1 - true))

    least = 1 / allowed
    wanted = least if short_of(least) <= 0 else float(brentq(short_of, least, 1e12))
    return Size(samples=math.ceil(max(vif * wanted, least) - 1e-9), seconds=None)


def mean_size(
    confidence: float,
    *,
    variation: float = 1.0,
    distance: float = DISTANCE,
    upper: bool = True,
    rate_per_s: float | None = None,
    power: float = POWER,
    vif: float = 1.0,
    e: float = 1.0,
) -> Size:
    """Size a run so that a mean truly `distance` (a share of the limit) inside its limit passes.

    `variation` is the standard deviation over the mean, 1 for an exponential latency, and for a
    rate, whose samples are the requests of a Poisson process. `upper` says that it must lie below.
    """
    relative = variation * (1 - distance if upper else 1 + distance) / distance
    wanted = vif * (_z_sum(confidence, power) * relative) ** 2
    return _lasting(_RESERVE * wanted, _VARIANCE_RESERVE, rate_per_s, e)


def regression_size(
    q: float,
    confidence: float,
    *,
    ratio: float,
    margin: float = 0.0,
    slope: float | None = None,
    rate_per_s: float | None = None,
    power: float = POWER,
    vif: float = 1.0,
    e: float = 1.0,
) -> Size | None:
    """Size each of two runs so that a quantile truly `ratio` times the baseline's is decided.

    It fails `regression < margin` where the ratio is beyond 1 + margin, and passes where it is
    below; None where it is equal. Asymptotic variance of ln q̂ (Serfling, Approximation Theorems,
    1980, 2.3.3), twice: of two runs.
    """
    distance = abs(math.log(ratio / (1 + margin)))
    if not distance:
        return None
    slope = tail_slope(q) if slope is None else slope
    wanted = 2 * q / (1 - q) * (_z_sum(confidence, power) / (slope * distance)) ** 2
    wanted = max(wanted, float(samples_to_pass(q, confidence)))
    return _lasting(_RESERVE * vif * wanted, _INTERVAL_RESERVE, rate_per_s, e)


def exceedance_under(q: float, *, distance: float = DISTANCE, slope: float | None = None) -> float:
    """Share of samples above a limit under which the true q-quantile lies by `distance`.

    With a tail (1 − F) that falls by the power `slope` between the two.
    """
    slope = tail_slope(q) if slope is None else slope
    return (1 - q) * math.pow(1 - distance, slope)


def tail_slope(q: float, *, sigma: float = LOG_SIGMA) -> float:
    """Return q·f(q)/(1 − F(q)) of a lognormal latency at its q-quantile: how steep its tail falls.

    How many per cent of the exceedances one per cent of latency is worth: 1.6 at p50, 4.1 at p95
    and 5.3 at p99 with σ = 0.5; heavier tails fall less.
    """
    z = float(ndtri(q))
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / ((1 - q) * sigma)


def measured_slope(windows: Windows, q: float) -> float | None:
    """Return the slope of a sample's tail around its q-quantile, as `tail_slope` defines it.

    Between the quantiles at twice and at half the odds of being above; None where fewer than ten
    samples are above the latter, or both are equal.
    """
    odds = (1 - q) / q
    wide, narrow = (o / (1 + o) for o in (2 * odds, odds / 2))
    if windows.total * narrow < 10:
        return None
    low, high = windows.quantile(1 - wide), windows.quantile(1 - narrow)
    return math.log(wide / narrow) / math.log(high / low) if 0 < low < high else None


def _z_sum(confidence: float, power: float) -> float:
    return float(ndtri(confidence) + ndtri(power))


def _lasting(wanted: float, reserve: float, rate_per_s: float | None, e: float) -> Size:
    """Enlarge n to n·(1 + reserve/(e·T)), where T = n/rate also has a shortest length."""
    if not rate_per_s:
        return Size(samples=math.ceil(wanted), seconds=None)
    extra = wanted * reserve * rate_per_s / e
    n = wanted / 2 + math.sqrt(wanted**2 / 4 + extra)  # of n² = wanted·n + extra
    seconds = max(n / rate_per_s, _SHORTEST_S, _FEWEST_EFFECTIVE_S / e)
    return Size(samples=math.ceil(seconds * rate_per_s), seconds=seconds)
