"""How latency is distributed by nines, and how that differs from a baseline."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.recorder import Histogram, Recording, Series, StageWindow
from harness.report.facts.subject import FloatArray, Subject, WhyNot, series_of, too_few
from harness.stats import Windows, supported
from harness.stats.recorded import windows_of
from harness.stats.regression import DifferenceCurve, difference_curve, quantile_limits
from harness.verdict import BudgetVerdict, Verdict
from harness.verdict.regression import Pair

MOST_CURVES = 4
MIN_NINES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One stage's quantile curve; `nines` is −log10(1 − q); NaN where the band has no end.

    Repetitions of a stage are judged together: the curve is of all of them, `runs` are each one's.
    """

    stage: str
    n: int
    nines: FloatArray
    values: FloatArray
    low: FloatArray
    high: FloatArray
    solid_to: float
    runs: tuple[FloatArray, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nines:
    """The subject's distribution in each stage; `left_out` stages have no room or too few."""

    curves: tuple[Curve, ...]
    left_out: tuple[str, ...]
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Quantiles of a metric in one stage minus the baseline's; `n` counts the samples of both.

    `baseline` names the run.
    """

    baseline: str
    step: str
    metric: str
    stage: str
    n: tuple[int, int]
    curve: DifferenceCurve
    confidence: float

    def at(self, q: float) -> int | None:
        """Index of a quantile on the curve; None where it does not reach that far."""
        x = -math.log10(1 - q)
        nines = self.curve.nines
        return int(np.abs(nines - x).argmin()) if x <= nines[-1] + 1e-9 else None


def nines(recording: Recording, subject: Subject | None) -> Nines | WhyNot:
    """Return the curves of the recorded stages that use most of their limit."""
    groups: dict[str, list[tuple[StageWindow, Series]]] = defaultdict(list)
    for stage, series in series_of(recording, subject):
        if stage.record:
            groups[stage.group].append((stage, series))
    n = {name: sum(series.total.n for _, series in of) for name, of in groups.items()}
    if subject is None or max(n.values(), default=0) < MIN_NINES:
        return too_few(max(n.values(), default=0), MIN_NINES)
    used = {stage: verdict.used or 0 for stage, verdict in subject.judged.items()}
    enough = [name for name in groups if n[name] >= MIN_NINES]
    chosen = sorted(enough, key=lambda name: -used.get(name, 0))[:MOST_CURVES]
    confidence = subject.budget.confidence if subject.budget else 0.95
    recorded = dict.fromkeys(s.group for s in recording.stages if s.record)
    return Nines(
        curves=tuple(_curve(recording, name, groups[name], confidence) for name in chosen),
        left_out=tuple(name for name in recorded if name not in chosen),
        confidence=confidence,
    )


def _curve(
    recording: Recording,
    name: str,
    runs: Sequence[tuple[StageWindow, Series]],
    confidence: float,
) -> Curve:
    each = [series.total for _, series in runs]
    h = each[0] if len(each) == 1 else Histogram.merged(each, each[0].unit)
    windows = Windows.concatenated([windows_of(recording, series, stage) for stage, series in runs])
    nines = np.append(np.arange(0, math.log10(h.n), 0.04), math.log10(h.n))
    qs = [1 - 10**-x for x in nines.tolist()]
    ends = [quantile_limits(windows, max(q, 1e-6), confidence)[0] for q in qs]
    return Curve(
        stage=name,
        n=h.n,
        nines=nines,
        values=_floats(h.quantile(q) for q in qs),
        low=_floats(low for low, _ in ends),
        high=_floats(high for _, high in ends),
        solid_to=math.log10(h.n / 10),
        runs=tuple(
            _floats(one.quantile(q) if supported(one.n, q) else None for q in qs) for one in each
        )
        if len(each) > 1
        else (),
    )


def _floats(values: Iterable[float | None]) -> FloatArray:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def difference(
    pair: Pair,
    verdict: Verdict,
    focus: BudgetVerdict | None,
    subject: Subject | None,
    invalid: frozenset[str],
) -> Difference | WhyNot:
    """Compare what the worst regression budget limits, else the subject, in the stage it is about.

    Without a budget it is the first stage in which both runs have enough of it.
    """
    limited = next((v for v in verdict.budgets if v.budget.regression and v.budget.quantile), None)
    about = limited or focus
    what = about.budget if about else subject
    if what is None:
        return too_few(0, MIN_NINES)
    step, metric = what.step, what.metric
    groups = [about.stage] if about else [s.group for s in pair.candidate.stages if s.record]
    counts = {group: _counts(pair, group, step, metric) for group in groups}
    group = next((g for g in groups if min(counts[g]) >= MIN_NINES), groups[0])
    n = counts[group]
    if min(n) < MIN_NINES:
        return too_few(min(n), MIN_NINES, "samples in each run")
    why_not = pair.why_not(group) or (f"{group} was not measured" if group in invalid else "")
    if why_not:
        return WhyNot(f"{why_not[0].upper()}{why_not[1:]}.")
    base, candidate = pair.sides(group)
    confidence = about.budget.confidence if about else 0.95
    return Difference(
        baseline=str(pair.base.run.get("id") or pair.base.folder.name),
        step=step,
        metric=metric,
        stage=group,
        n=n,
        curve=difference_curve(
            Windows.concatenated(base.windows(step, metric)),
            Windows.concatenated(candidate.windows(step, metric)),
            confidence,
            in_system_s=(base.in_system_s(step), candidate.in_system_s(step)),
        ),
        confidence=confidence,
    )


def _counts(pair: Pair, group: str, step: str, metric: str) -> tuple[int, int]:
    base, candidate = (
        sum(windows.total for windows in side.windows(step, metric)) for side in pair.sides(group)
    )
    return base, candidate
