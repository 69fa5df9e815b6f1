"""Before a run: how many samples each budget will get from its plan, and how many it needs.

Sized is a PASS, at the budget's confidence and with a declared power, where the truth keeps a
distance to the limit: a latency 20 % below it, a share at half of what is allowed, a regression
that is none. Without a pilot run one sample a request is assumed, and how much samples depend on
each other is taken as typical.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness import stats
from harness.budget import RUN, Budget
from harness.metrics import METRICS
from harness.plan import Plan, Stage
from harness.recorder import Recording
from harness.stats.dependence import student_factor
from harness.stats.means import FEWEST_WINDOWS
from harness.stats.sizing import (
    DISTANCE,
    POWER,
    Size,
    exceedance_under,
    mean_size,
    measured_slope,
    quantile_size,
    regression_size,
    share_size,
    span_size,
)
from harness.swarm.manifest import interval_for
from harness.units import format_clock, format_count, format_rate, format_share
from harness.verdict.samples import Repetitions, joined

TYPICAL_VIF = 2.0
"""Variance inflation of latencies of an open load that leaves its target some room."""
_FACT = "a fact about the run, of whatever size, and no bound: nothing is claimed beyond it"
_ONLY_A_RUN_TELLS = "how many samples it gets, only a run can tell: --pilot RUN"
_STAGE_WIDTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependence:
    """What is known, or assumed, of how samples depend on each other, and of a mean's spread.

    `vif` inflates the variance of counts over the limit, `e` is the share of windows of 1 s that
    count as independent, `variation` the standard deviation over the mean, `slope` how steep the
    tail is at the quantile (None: as that of `tail_slope`). `between` is what `vif` is from run to
    run, 1 where runs differ by chance alone.
    """

    vif: float = TYPICAL_VIF
    e: float = 1.0
    variation: float = 1.0
    slope: float | None = None
    between: float = 1.0

    def of_runs(self, repeat: int, confidence: float) -> Dependence:
        """Return what it amounts to in several runs: few tell little of how much they differ."""
        if repeat < 2:
            return self
        least = student_factor(repeat - 1, confidence) * self.between
        return replace(self, vif=max(self.vif, least))


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One budget in one stage: what the plan gives it and what it needs.

    `given` is None where only a pilot run can tell; it is a floor when `at_least`. `size` is None
    for what no number of samples decides better, then `note` says why. `given_s` counts all
    repetitions. With `window` all numbers are those of one of the windows of which each must hold.
    `out_of_reach` is a rate that the planned load does not have.
    """

    budget: Budget
    stage: str
    given: int | None
    given_s: float
    at_least: bool
    size: Size | None
    dependence: Dependence
    note: str = ""
    window: bool = False
    out_of_reach: bool = False

    @property
    def enough(self) -> bool:
        """True when the plan gives what is needed, for all that is known."""
        if self.out_of_reach:
            return False
        return self.size is None or (self.given is not None and self.given >= self.size.samples)

    @property
    def needed_s(self) -> float | None:
        """How long the stage, or window, must last at this rate; None where the rate is unknown."""
        if self.size is None or not self.given:
            return None
        return self.given_s * self.size.samples / self.given

    @property
    def short_by_s(self) -> float | None:
        """How much longer it must last; None when it is long enough or the rate unknown."""
        return None if self.enough or self.needed_s is None else self.needed_s - self.given_s


def needs(
    plan: Plan, *, power: float = POWER, vif: float | None = None, pilot: Recording | None = None
) -> tuple[Need, ...]:
    """Size every budget of a plan in every stage in which it is judged.

    `pilot` is a run of a similar plan: it tells how many samples an arrival makes and how they
    depend on each other; `vif` says the latter instead.
    """
    known = _Pilot(pilot) if pilot else None
    found = []
    for budget in plan.budgets:
        for stage in plan.load:
            if stage.record and budget.stage in (None, stage.name):
                whole = _need(plan, budget, stage, power, vif, known)
                found.append(whole)
                if budget.over_ns and _allowed(budget):  # a fact needs no windows
                    found.append(_of_a_window(whole, power))
    return tuple(found)


def out_of_reach(plan: Plan) -> list[str]:
    """Say which rates are asked for that a planned load does not have."""
    return [f"{one.budget.text}: {one.note}" for one in needs(plan) if one.out_of_reach]


def undecidable(plan: Plan) -> list[str]:
    """Say which budgets could not pass if not one sample was over the limit: a stage too short."""
    said = []
    for need in needs(plan, vif=1.0):
        budget, allowed = need.budget, _allowed(need.budget)
        if need.given is None or need.at_least or not allowed or budget.regression:
            continue
        least = stats.samples_to_pass(1 - allowed, budget.confidence)
        if need.window:
            least = math.ceil(1 / allowed - 1e-9)
        if need.given < least:
            where = "each window" if need.window else need.stage
            said.append(
                f"{budget.text} cannot pass: it needs at least {format_count(least)} samples, "
                f"{where} gives about {format_count(need.given)}; see harness plan-size"
            )
    return said


class _Pilot:
    """What a saved run tells about a budget's samples."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def stage(self, stage: Stage) -> Repetitions:
        """Return the recorded stage of that name, else the first one recorded."""
        recorded = [window.group for window in self._recording.stages if window.record]
        group = stage.name if stage.name in recorded else next(iter(recorded), stage.name)
        return Repetitions(self._recording, group)

    def rate_per_s(self, budget: Budget, stage: Stage) -> float | None:
        """Samples per second that the budget will get; None where this run cannot tell."""
        seen = self.stage(stage)
        n = _count(budget, seen)
        if stage.arrivals is not None:
            planned = sum(self._recording.load_totals(one.name).planned for one in seen.stages)
            return stage.arrivals.rate_per_s * n / planned if n and planned else None
        same = all(window.load == stage.load for window in seen.stages)
        return n / seen.seconds if n and same else None

    def lacking(self, budget: Budget, stage: Stage) -> str:
        """Say why this run cannot tell how many samples the budget will get."""
        seen = self.stage(stage)
        if _count(budget, seen):
            return f"the pilot ran with {seen.stages[0].load}: only one of this load can tell"
        steps = self._recording.steps(seen.stages[0].name) if seen.stages else ()
        if budget.step in (RUN, *steps):
            return f"the pilot's {budget.step} gave no {budget.metric}"
        return f"the pilot ran no step {_cut(budget.step, 30)}: it is not of this plan"

    def dependence(self, budget: Budget, stage: Stage) -> Dependence:
        """Measure how the budget's samples depend on each other; assume it where there are none."""
        seen = self.stage(stage)
        if not seen.stages:
            return Dependence()
        if budget.metric == "rate":
            return _of_rate(budget, seen)
        if not budget.statistic:
            return _of_failures(budget, seen)
        samples = seen.samples(budget)
        if samples is None:
            return Dependence()
        windows, q = samples.windows, budget.quantile or 0.5
        found = stats.dependence(windows, q, in_system_s=samples.in_system_s, runs=samples.runs)
        value = windows.value.astype(float)
        mean = float((value * windows.count).sum()) / windows.total
        square = float((value**2 * windows.count).sum()) / windows.total
        return Dependence(
            vif=max(1.0, *found.tail),
            e=min(1.0, found.effective_windows / windows.duration_s),
            variation=math.sqrt(max(square / mean**2 - 1, 1e-6)) if mean else 1.0,
            slope=measured_slope(windows, q),
            between=max(1.0, *found.between),
        )


def _count(budget: Budget, seen: Repetitions) -> int:
    """Count the samples of a stage that the budget has."""
    if METRICS[budget.metric].kind in ("share", "rate"):
        return sum(requests.n for _, requests in seen.requests(budget.step))
    return sum(int(series.n.sum()) for _, series in seen.series(budget.step, budget.metric))


def _of_rate(budget: Budget, seen: Repetitions) -> Dependence:
    """Measure how the number of requests that end varies: vif is its variance over its mean."""
    whole, runs = joined(seen.done(budget.step))
    found = stats.mean_evidence(
        whole.sums, whole.counts, budget.confidence, length_s=whole.length_s, runs=runs
    )
    if found is None or not found.mean:
        return Dependence()
    done = found.mean * seen.seconds
    return Dependence(
        vif=max(1.0, done * (found.error_low / found.mean) ** 2),
        e=min(1.0, found.effective_windows / seen.seconds),
    )


def _of_failures(budget: Budget, seen: Repetitions) -> Dependence:
    """Measure how failures, or misses, depend on each other; none at all are independent."""
    allowed, bad = _allowed(budget), seen.bad(budget.step, budget.metric)
    if not bad or not allowed:
        return Dependence()
    whole, runs = joined(bad)
    beyond, total = (one.astype(np.int64) for one in whole[:2])
    found = stats.share_evidence(
        total, beyond, allowed, budget.confidence, length_s=whole.length_s, runs=runs
    )
    if not found.k:
        return Dependence(vif=1.0)
    lasted = len(total) * whole.length_s
    return Dependence(vif=found.vif_pass, e=min(1.0, found.effective_windows / lasted))


def _need(
    plan: Plan,
    budget: Budget,
    stage: Stage,
    power: float,
    vif: float | None,
    pilot: _Pilot | None,
) -> Need:
    rate = pilot.rate_per_s(budget, stage) if pilot else _assumed_rate(stage)
    found = pilot.dependence(budget, stage) if pilot else Dependence()
    found = found if vif is None else replace(found, vif=vif)
    if not budget.regression:
        found = found.of_runs(plan.repeat, budget.confidence)
    lasts_s = stage.duration_ns * plan.repeat / 1e9
    size, note = _size(budget, rate, power, found)
    if budget.metric == "rate" and lasts_s * 1e9 < FEWEST_WINDOWS * interval_for(plan):
        size, note = None, _FACT  # too short to tell its bounds
    too_slow = budget.metric == "rate" and rate is not None and _beyond(rate, budget)
    if too_slow:
        note = (
            f"{stage.name} plans {format_rate(rate or 0)}, so that it cannot be reached"
            f"{'' if pilot else f' unless a task runs {budget.step} several times'}"
        )
        size = None
    if size and rate is None:
        note = pilot.lacking(budget, stage) if pilot else _ONLY_A_RUN_TELLS
    several = budget.statistic and not METRICS[budget.metric].per_request
    return Need(
        budget=budget,
        stage=stage.name,
        given=None if rate is None else int(rate * lasts_s + 1e-9),
        given_s=lasts_s,
        at_least=bool(several) and pilot is None,
        size=size,
        dependence=found,
        note=note,
        out_of_reach=too_slow,
    )


def _of_a_window(whole: Need, power: float) -> Need:
    """Return what each window of the budget gets and needs, so that none breaks by chance."""
    allowed, window_s = _allowed(whole.budget), (whole.budget.over_ns or 0) / 1e9
    assert allowed
    quantile = whole.budget.quantile if whole.budget.upper else None
    return replace(
        whole,
        given=None if whole.given is None else int(whole.given * window_s / whole.given_s + 1e-9),
        given_s=window_s,
        size=span_size(
            allowed,
            max(1, int(whole.given_s / window_s)),
            true=None if quantile is None else exceedance_under(quantile),
            power=power,
            vif=whole.dependence.vif,
        ),
        window=True,
    )


def _assumed_rate(stage: Stage) -> float | None:
    return stage.arrivals.rate_per_s if stage.arrivals is not None else None


def _beyond(rate_per_s: float, budget: Budget) -> bool:
    """Whether a rate budget asks for more than that."""
    return rate_per_s < budget.limit or (rate_per_s == budget.limit and budget.op == ">")


def _allowed(budget: Budget) -> float | None:
    """Return the share of samples that may be beyond the limit; None of what counts none."""
    if budget.quantile is not None:
        return 1 - budget.quantile if budget.upper else budget.quantile
    if budget.statistic or budget.kind != "share":
        return None
    return budget.limit if budget.upper else 1 - budget.limit


def _size(
    budget: Budget, rate_per_s: float | None, power: float, found: Dependence
) -> tuple[Size | None, str]:
    """Return what a budget needs, or None and why it needs nothing."""
    given: dict[str, Any] = {
        "rate_per_s": rate_per_s, "power": power, "vif": found.vif, "e": found.e
    }  # fmt: skip
    allowed, confidence = _allowed(budget), budget.confidence
    if budget.regression and budget.quantile is not None:
        margin, slope = budget.limit, found.slope
        of = regression_size(
            budget.quantile, confidence, ratio=1.0, margin=margin, slope=slope, **given
        )
        return of, ""
    if budget.regression:
        return None, "not sized: only the regression of a quantile is"
    if budget.statistic == "mean" or budget.metric == "rate":
        variation, upper = found.variation, budget.upper
        return mean_size(confidence, variation=variation, upper=upper, **given), ""
    if not allowed:
        return None, _FACT
    if budget.quantile is not None and budget.upper:
        over = exceedance_under(budget.quantile, slope=found.slope)
        return quantile_size(budget.quantile, confidence, over=over, **given), ""
    return share_size(allowed, confidence, **given), ""


# --- what is shown -------------------------------------------------------------------------------


def as_json(found: Sequence[Need], *, power: float) -> dict[str, Any]:
    """Return the sizes as plain values, times in seconds."""
    return {
        "power": power,
        "enough": all(need.enough for need in found),
        "budgets": [
            {
                "budget": need.budget.text,
                "confidence": need.budget.confidence,
                "stage": need.stage,
                "window_s": need.given_s if need.window else None,
                "gives": need.given,
                "gives_at_least": need.at_least,
                "needs": need.size.samples if need.size else None,
                "lasts_s": need.given_s,
                "needs_s": need.needed_s,
                "short_by_s": need.short_by_s,
                "vif": need.dependence.vif,
                "e": need.dependence.e,
                "enough": need.enough,
                "note": need.note or None,
            }
            for need in found
        ],
    }


def render(
    found: Sequence[Need], *, power: float, measured: bool, unicode: bool = True, width: int = 80
) -> str:
    """Return the sizes as a table for people, with what they rest on below it."""
    good, bad = ("✓", "✗") if unicode else ("+", "x")
    stage_width = min(_STAGE_WIDTH, max([5, *(len(_where(need)) for need in found)]))
    room = width - stage_width - 40
    distance, chance = format_share(DISTANCE), format_share(power)
    columns = f"{'gives':>9} {'needs':>9} {'takes':>7} {'short by':>8}"
    lines = [
        f"Samples that the plan gives, and that it needs to PASS with power {chance}",
        f"where the truth is {distance} inside its limit:",
        "",
        f"  {'budget':{room}} {'stage':{stage_width}} {columns}",
    ]
    for need in found:
        lines.append(
            f"{good if need.enough else bad} {_cut(need.budget.text, room):{room}} "
            f"{_cut(_where(need), stage_width):{stage_width}} {_given(need):>9} "
            f"{format_count(need.size.samples) if need.size else '-':>9} "
            f"{_clock(need.needed_s):>7} {'' if need.enough else _clock(need.short_by_s):>8}"
        )
        if need.note:
            lines.append(f"  {need.note}")
    lines += ["", *_assumptions(found, measured=measured)]
    text = "\n".join(line.rstrip() for line in lines).replace("\u202f", "")
    return text if unicode else text.encode("ascii", "replace").decode()


def _assumptions(found: Sequence[Need], *, measured: bool) -> list[str]:
    factors = sorted({need.dependence.vif for need in found if need.size})
    if not factors:
        return []
    low, high = f"{factors[0]:.3g}", f"{factors[-1]:.3g}"
    times = low if low == high else f"{low} to {high}"
    lines = [f"Variance inflation, for samples that depend on each other: {times}."]
    if not measured:
        lines += [
            "It and one sample a request are assumed: --pilot RUN measures both.",
        ]
    if any(need.at_least and need.size for need in found):
        lines.append("A reply makes several samples of some metrics: the plan gives more of them.")
    return lines


def _where(need: Need) -> str:
    return f"each {need.given_s:.15g}s" if need.window else need.stage


def _given(need: Need) -> str:
    if need.given is None:
        return "?"
    return f"{'>=' if need.at_least else ''}{format_count(need.given)}"


def _clock(seconds: float | None) -> str:
    return "?" if seconds is None else format_clock(math.ceil(seconds - 1e-6))


def _cut(text: str, room: int) -> str:
    """Leave out the middle of a text that is too long."""
    if len(text) <= room:
        return text
    tail = (room - 1) * 2 // 3
    return f"{text[: room - 1 - tail]}~{text[len(text) - tail :]}"
