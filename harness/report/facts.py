"""Everything a report shows that has to be computed: the renderers only draw and format.

A chart's facts are either data or a `WhyNot` that says what is missing. Latencies are nanoseconds
(tokens for token metrics), times are seconds since the run's start, shares are 0 to 1.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc

from harness.budget import METRICS, RUN, Budget
from harness.recorder import Histogram, Recording, Series, StageWindow
from harness.report.waterfall import SlowStep, Waterfall, WhyNot, find_waterfall, slow_step
from harness.stats import Windows, supported
from harness.stats.recorded import windows_of
from harness.stats.regression import DifferenceCurve, difference_curve, quantile_limits
from harness.steadiness import Drift, find_drifts
from harness.verdict import BudgetVerdict, Outcome, Verdict
from harness.verdict.regression import Pair

FloatArray = npt.NDArray[np.float64]

WINDOW_REQUESTS = 300
CHANCE = 0.01  # a window is flagged when its overs are less likely than this under the budget
HEAT_STEPS = (0.01, 0.03, 0.08, 0.16, 0.28)  # upper ends of the first five of six shades
BINS_PER_DOUBLING = 7
MOST_CURVES = 4
MIN_OVER_TIME, MIN_HEAT, MIN_NINES, MIN_LEVELS = 30, 200, 100, 3
MOST_OTHERS = 3
_NO_BASELINE = (
    "No baseline: give a saved run of the same plan, harness report RUN --baseline EARLIER_RUN."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What the big charts show: one metric of one step, and its verdict in each judged stage."""

    step: str
    metric: str
    quantile: float
    budget: Budget | None
    judged: dict[str, BudgetVerdict]

    @property
    def name(self) -> str:
        """`chat.ttft`."""
        return f"{self.step}.{self.metric}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """Since when the limit is missed: a change point in the first of two flagged windows in a row.

    `flagged` of all `windows` in judged stages are flagged.
    """

    t_s: float
    stage: str
    offset_s: float
    flagged: int
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """About WINDOW_REQUESTS requests of one stage; a percentile its count cannot carry is None."""

    stage: str
    t0: float
    t1: float
    n: int
    percentiles: tuple[float | None, float | None, float | None]
    judged_at: float | None
    over: int | None
    above: bool
    flagged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OverTime:
    """Percentiles of the subject in windows, failed requests, and since when it is over."""

    quantiles: tuple[float, float, float]
    windows: tuple[Window, ...]
    failed: tuple[tuple[float, int], ...]
    since: Since | None
    above: int
    flagged: int
    judged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Planned and reached starts per second in columns, and the requests in flight."""

    t_s: FloatArray
    column_s: float
    planned: FloatArray | None
    reached: FloatArray
    in_flight_t_s: FloatArray
    in_flight: FloatArray
    shortfalls: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """`counts[bin, column]` of requests that ended there, between the edges in time and latency."""

    t_edges: FloatArray
    edges: FloatArray
    counts: FloatArray
    column_s: float

    def wider(self, most: int) -> Heat:
        """Return the same with columns joined until there are no more than `most`."""
        joined = math.ceil(self.counts.shape[1] / most)
        starts = np.arange(0, self.counts.shape[1], joined)
        return Heat(
            t_edges=np.append(self.t_edges[:-1][starts], self.t_edges[-1]),
            edges=self.edges,
            counts=np.add.reduceat(self.counts, starts, axis=1),
            column_s=self.column_s * joined,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One stage's quantile curve; `nines` is −log10(1 − q); NaN where the band has no end."""

    stage: str
    n: int
    nines: FloatArray
    values: FloatArray
    low: FloatArray
    high: FloatArray
    solid_to: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Nines:
    """The subject's distribution in each stage; `left_out` stages have no room or too few."""

    curves: tuple[Curve, ...]
    left_out: tuple[str, ...]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One load level of the capacity chart, for the subject's quantile."""

    stage: str
    planned: float
    reached: float
    percentiles: tuple[float | None, float | None, float | None]
    observed: float | None
    low: float | None
    high: float | None
    outcome: Outcome | None
    short: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Load levels by reached rate; `holds` the highest that passes below every other outcome."""

    levels: tuple[Level, ...]
    holds: Level | None
    breaks: Level | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One line of the steps table; `shape` is shares by log bins, on one axis for the table."""

    step: str
    metric: str
    n: int
    failed: int
    p50: float | None
    p95: float | None
    p99: float | None
    max: int | None
    shape: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """The steps of one stage."""

    stage: str
    rows: tuple[StepRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorKind:
    """One kind of failure: how often in each stage, and when first."""

    kind: str
    by_stage: dict[str, int]
    first_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a report says beyond the verdict itself.

    `others` are the same for other latency budgets that did not pass: they differ in what the
    charts over time and of the distribution show.
    """

    focus: BudgetVerdict | None
    subject: Subject | None
    invalid_stages: frozenset[str]
    end_s: float
    over_time: OverTime | WhyNot
    load: Load | WhyNot
    heat: Heat | WhyNot
    nines: Nines | WhyNot
    difference: Difference | WhyNot
    capacity: Knee | WhyNot
    waterfall: Waterfall | WhyNot
    slow_step: SlowStep | None
    steps: tuple[StepTable, ...]
    errors: tuple[ErrorKind, ...]
    others: tuple[Findings, ...] = ()
    drifts: tuple[Drift, ...] = ()

    @property
    def since(self) -> Since | None:
        """Since when the subject is over its limit, if it is at all."""
        return self.over_time.since if isinstance(self.over_time, OverTime) else None


def findings(recording: Recording, verdict: Verdict, baseline: Recording | None = None) -> Findings:
    """Compute all of it; a few hundred milliseconds for a run of an hour."""
    invalid = frozenset(s.name for s in recording.stages if verdict.health.broken(s.name))
    ranked = _ranked(verdict.budgets)
    waterfall = find_waterfall(recording, verdict.budgets, invalid)
    main = Findings(
        invalid_stages=invalid,
        end_s=_end_s(recording),
        load=_load(recording),
        waterfall=waterfall,
        slow_step=slow_step(waterfall),
        steps=_step_tables(recording),
        errors=_errors(recording),
        drifts=find_drifts(recording),
        difference=WhyNot(_NO_BASELINE),
        **_about(recording, verdict.budgets, ranked[0] if ranked else None, invalid),
    )
    if baseline is not None:
        main = replace(
            main, difference=_difference(Pair(baseline, recording), verdict, main, invalid)
        )
    others = [v for v in ranked[1:] if v.outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE)]
    return replace(
        main,
        others=tuple(
            replace(main, **_about(recording, verdict.budgets, v, invalid))
            for v in others[:MOST_OTHERS]
        ),
    )


def _about(
    recording: Recording,
    budgets: Sequence[BudgetVerdict],
    focus: BudgetVerdict | None,
    invalid: frozenset[str],
) -> dict[str, Any]:
    """Return the facts that depend on which budget the big charts are about."""
    subject = _subject(recording, budgets, focus)
    return {
        "focus": focus,
        "subject": subject,
        "over_time": _over_time(recording, subject, invalid),
        "heat": _heat(recording, subject),
        "nines": _nines(recording, subject),
        "capacity": _capacity(recording, subject, invalid),
    }


def _end_s(recording: Recording) -> float:
    ends = [stage.end_s for stage in recording.stages]
    ends += [float(t) + recording.interval_s for t in recording.timeline.t_s[-1:]]
    return max(ends, default=0.0)


# --- what the charts are about -------------------------------------------------------------------


def _ranked(budgets: Iterable[BudgetVerdict]) -> list[BudgetVerdict]:
    """Order latency budgets by what deserves the big charts; one for each metric of a step.

    The worst failing one, else one that was not measured, else the closest to its limit.
    """
    rank = {Outcome.FAIL: 0, Outcome.INVALID: 1}
    timed = [v for v in budgets if v.budget.kind == "time" and v.n]
    timed.sort(key=lambda v: (v.budget.quantile is None, rank.get(v.outcome, 2), -(v.used or 0.0)))
    first: dict[tuple[str, str], BudgetVerdict] = {}
    for v in timed:
        first.setdefault((v.budget.step, v.budget.metric), v)
    return list(first.values())


def _subject(
    recording: Recording, budgets: Sequence[BudgetVerdict], focus: BudgetVerdict | None
) -> Subject | None:
    if focus is not None:
        b = focus.budget
        return Subject(
            step=b.step,
            metric=b.metric,
            quantile=b.quantile or 0.99,
            budget=b,
            judged={v.stage: v for v in reversed(budgets) if v.budget.subject == b.subject},
        )
    for stage in recording.stages:
        for step in recording.steps(stage.name):
            for metric in ("ttft", "e2el", "request"):
                if stage.record and recording.series(stage.name, step, metric):
                    return Subject(step=step, metric=metric, quantile=0.99, budget=None, judged={})
    return None


def _found(recording: Recording, subject: Subject | None) -> list[tuple[StageWindow, Series]]:
    """Return the stages in which the subject has samples."""
    if subject is None:
        return []
    pairs = ((s, recording.series(s.name, subject.step, subject.metric)) for s in recording.stages)
    return [(stage, series) for stage, series in pairs if series is not None]


def _too_few(n: int, least: int, what: str = "finished requests") -> WhyNot:
    return WhyNot(f"Needs at least {least} {what}, has {n:,}.")


# --- since when ----------------------------------------------------------------------------------


def _over_time(
    recording: Recording, subject: Subject | None, invalid: frozenset[str]
) -> OverTime | WhyNot:
    found = _found(recording, subject)
    n = sum(int(series.n.sum()) for _, series in found)
    if subject is None or n < MIN_OVER_TIME:
        return _too_few(n, MIN_OVER_TIME)
    q = subject.quantile
    quantiles = (0.5, q if 0.5 < q < 0.99 else 0.95, 0.99)
    windows = [
        window
        for stage, series in found
        for window in _windows(recording, stage, series, subject, quantiles)
    ]
    judged = [w for w in windows if w.over is not None and w.stage not in invalid]
    requests = [recording.requests(stage.name, RUN) for stage in recording.stages]
    failed: Counter[float] = Counter()
    for r in requests:
        for t_s, count in zip(r.t_s, r.failed, strict=True):
            failed[float(t_s)] += int(count)
    return OverTime(
        quantiles=quantiles,
        windows=tuple(windows),
        failed=tuple((t, k) for t, k in sorted(failed.items()) if k),
        since=_since(judged, found, subject),
        above=sum(w.above for w in judged),
        flagged=sum(w.flagged for w in judged),
        judged=len(judged),
    )


def _windows(
    recording: Recording,
    stage: StageWindow,
    series: Series,
    subject: Subject,
    quantiles: tuple[float, float, float],
) -> Iterable[Window]:
    """Merge intervals to windows of about WINDOW_REQUESTS requests, never across a stage."""
    samples = int(series.n.sum())
    done = recording.requests(stage.name, subject.step)
    per_request = max(1.0, samples / max(1, done.n - done.n_failed))
    count = max(1, round(samples / per_request / WINDOW_REQUESTS))
    group = np.minimum((np.cumsum(series.n) - series.n) * count // samples, count - 1)
    verdict = subject.judged.get(stage.group)
    over = _over(series, verdict.budget) if verdict and verdict.budget.quantile else None
    starts = [
        max(stage.start_s, float(series.t_s[np.flatnonzero(group == g)[0]]))
        for g in np.unique(group)
    ]
    starts = [stage.start_s] + [min(t, stage.end_s) for t in starts[1:]] + [stage.end_s]
    for i, g in enumerate(np.unique(group)):
        mask = group == g
        h = series.histogram(mask)
        k = None if over is None else int(over[mask].sum())
        at = h.quantile(subject.quantile) if supported(h.n, subject.quantile) else None
        yield Window(
            stage=stage.name,
            t0=starts[i],
            t1=starts[i + 1],
            n=h.n,
            percentiles=_percentiles(h, quantiles),
            judged_at=at,
            over=k,
            above=k is not None and k > h.n - math.ceil(round(subject.quantile * h.n, 6)),
            flagged=k is not None and _beyond_chance(h.n, k, subject.quantile, per_request),
        )


def _percentiles(
    h: Histogram, quantiles: tuple[float, float, float] = (0.5, 0.95, 0.99)
) -> tuple[float | None, float | None, float | None]:
    """Return the quantiles; None where less than one sample is to be expected above."""
    a, b, c = (h.quantile(q) if supported(h.n, q) else None for q in quantiles)
    return a, b, c


def _over(series: Series, budget: Budget) -> npt.NDArray[np.int64]:
    """Count each interval's samples over the limit; by bucket edges if not counted exactly."""
    exact = series.over(budget.threshold)
    if exact is not None:
        return exact
    counts = [h.count_over(budget.threshold)[0] for h in series.histograms()]
    return np.array(counts, dtype=np.int64)


def _beyond_chance(n: int, over: int, quantile: float, per_request: float) -> bool:
    """Test binomially; many samples of one request (gaps between tokens) count as one."""
    n, over = round(n / per_request), math.floor(over / per_request)
    return bool(over and bdtrc(over - 1, n, 1 - quantile) < CHANCE)


def _since(
    judged: Sequence[Window], found: Iterable[tuple[StageWindow, Series]], subject: Subject
) -> Since | None:
    pairs = itertools.pairwise(judged)
    first = next((a for a, b in pairs if a.flagged and b.flagged and a.stage == b.stage), None)
    if first is None:
        return None
    stage, series = next((s, series) for s, series in found if s.name == first.stage)
    t_s = _change_point(series, subject.judged[stage.group].budget, subject.quantile, first)
    return Since(
        t_s=t_s,
        stage=stage.name,
        offset_s=t_s - stage.start_s,
        flagged=sum(w.flagged for w in judged),
        windows=len(judged),
    )


def _change_point(series: Series, budget: Budget, quantile: float, window: Window) -> float:
    """Return where the cumulative excess over the allowed share turns upward (Page 1954)."""
    inside = (series.t_s >= window.t0) & (series.t_s < window.t1)
    excess = _over(series, budget)[inside] - (1 - quantile) * series.n[inside]
    before = np.append(0.0, np.cumsum(excess)[:-1])
    last_low = len(before) - 1 - int(np.argmin(before[::-1]))
    return max(window.t0, float(series.t_s[inside][last_low]))


# --- load and heat -------------------------------------------------------------------------------


def _column_s(recording: Recording) -> float:
    """Return the column width: 5 s, less in a short run, more in a long one; whole intervals."""
    end = max((stage.end_s for stage in recording.stages), default=0.0)
    wanted = 5.0 if end <= 600 else end / 120
    nice = next((s for s in (1, 2, 5, 10, 15, 30, 60, 120, 300) if s >= wanted), 600)
    width = min(float(nice), end / 24)
    return max(1, math.floor(width / recording.interval_s)) * recording.interval_s


def _load(recording: Recording) -> Load | WhyNot:
    line, column_s = recording.timeline, _column_s(recording)
    if not len(line.t_s) or not recording.stages:
        return WhyNot("The run ended before its first interval was saved.")
    inside = line.t_s < recording.stages[-1].end_s
    column = (line.t_s[inside] / column_s + 1e-9).astype(int)
    n = int(column.max()) + 1
    width = np.bincount(column, minlength=n) * recording.interval_s

    def per_second(counts: npt.NDArray[np.int64]) -> FloatArray:
        return np.bincount(column, weights=counts[inside], minlength=n) / width

    totals = {stage.name: recording.load_totals(stage.name) for stage in recording.stages}
    return Load(
        t_s=np.arange(n, dtype=np.float64) * column_s,
        column_s=column_s,
        planned=per_second(line.planned)
        if any(stage.planned_rate_per_s is not None for stage in recording.stages)
        else None,
        reached=per_second(line.sent),
        in_flight_t_s=line.t_s,
        in_flight=line.in_flight.astype(np.float64),
        shortfalls={
            name: 1 - t.sent / t.planned for name, t in totals.items() if t.planned > t.sent
        },
    )


def _heat(recording: Recording, subject: Subject | None) -> Heat | WhyNot:
    found = _found(recording, subject)
    n = sum(int(series.n.sum()) for _, series in found)
    if n < MIN_HEAT:
        return _too_few(n, MIN_HEAT)
    column_s = _column_s(recording)
    parts = [
        (t_s, h)
        for _, series in found
        for t_s, h in zip(series.t_s, series.histograms(), strict=True)
    ]
    values = np.concatenate([h.values for _, h in parts])
    column = np.repeat(
        [int(t_s / column_s + 1e-9) for t_s, _ in parts], [len(h.values) for _, h in parts]
    )
    row = np.floor(np.log2(np.maximum(values, 1)) * BINS_PER_DOUBLING).astype(int)
    low, high, columns = int(row.min()), int(row.max()), int(column.max()) + 1
    counts = np.zeros((high - low + 1, columns))
    np.add.at(counts, (row - low, column), np.concatenate([h.counts for _, h in parts]))
    return Heat(
        t_edges=np.arange(columns + 1, dtype=np.float64) * column_s,
        edges=2.0 ** (np.arange(low, high + 2) / BINS_PER_DOUBLING),
        counts=counts,
        column_s=column_s,
    )


# --- distribution and capacity -------------------------------------------------------------------


def _nines(recording: Recording, subject: Subject | None) -> Nines | WhyNot:
    found = [(s, series) for s, series in _found(recording, subject) if s.record]
    enough = [(stage, series) for stage, series in found if series.total.n >= MIN_NINES]
    if subject is None or not enough:
        return _too_few(max((series.total.n for _, series in found), default=0), MIN_NINES)
    used = {stage: verdict.used or 0 for stage, verdict in subject.judged.items()}
    chosen = sorted(enough, key=lambda pair: -used.get(pair[0].group, 0))[:MOST_CURVES]
    confidence = subject.budget.confidence if subject.budget else 0.95
    return Nines(
        curves=tuple(
            _curve(stage.name, series.total, windows_of(recording, series, stage), confidence)
            for stage, series in chosen
        ),
        left_out=tuple(
            s.name for s in recording.stages if s.record and s not in [c for c, _ in chosen]
        ),
    )


def _curve(stage: str, h: Histogram, windows: Windows, confidence: float) -> Curve:
    nines = np.append(np.arange(0, math.log10(h.n), 0.04), math.log10(h.n))
    qs = [1 - 10**-x for x in nines.tolist()]
    ends = [quantile_limits(windows, max(q, 1e-6), confidence)[0] for q in qs]
    return Curve(
        stage=stage,
        n=h.n,
        nines=nines,
        values=_floats(h.quantile(q) for q in qs),
        low=_floats(low for low, _ in ends),
        high=_floats(high for _, high in ends),
        solid_to=math.log10(h.n / 10),
    )


def _floats(values: Iterable[float | None]) -> FloatArray:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _difference(
    pair: Pair, verdict: Verdict, main: Findings, invalid: frozenset[str]
) -> Difference | WhyNot:
    """Compare what the worst regression budget limits, else the subject, in the stage it is about.

    Without a budget it is the first stage in which both runs have enough of it.
    """
    limited = next((v for v in verdict.budgets if v.budget.regression and v.budget.quantile), None)
    about = limited or main.focus
    what = about.budget if about else main.subject
    if what is None:
        return _too_few(0, MIN_NINES)
    step, metric = what.step, what.metric
    groups = [about.stage] if about else [s.group for s in pair.candidate.stages if s.record]
    counts = {group: _counts(pair, group, step, metric) for group in groups}
    group = next((g for g in groups if min(counts[g]) >= MIN_NINES), groups[0])
    n = counts[group]
    if min(n) < MIN_NINES:
        return _too_few(min(n), MIN_NINES, "samples in each run")
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


def _capacity(
    recording: Recording, subject: Subject | None, invalid: frozenset[str]
) -> Knee | WhyNot:
    levels = [
        _level(recording, stage, series, subject, invalid)
        for stage, series in _found(recording, subject)
        if stage.record and subject is not None
    ]
    loads = {s.load for s in recording.stages if s.record}
    if len({level.planned for level in levels}) < MIN_LEVELS:
        one = len(loads) == 1
        return WhyNot(
            f"{'One load level' if one else f'{len(loads)} load levels'}: "
            f"the capacity curve needs at least {MIN_LEVELS}."
        )
    levels.sort(key=lambda level: level.reached)
    first_bad = next((i for i, lv in enumerate(levels) if lv.outcome is not Outcome.PASS), None)
    failed = next((lv for lv in levels if lv.outcome is Outcome.FAIL), None)
    good = levels if first_bad is None else levels[:first_bad]
    return Knee(
        levels=tuple(levels),
        holds=good[-1] if good else None,
        breaks=failed,
    )


def _level(
    recording: Recording,
    stage: StageWindow,
    series: Series,
    subject: Subject,
    invalid: frozenset[str],
) -> Level:
    totals = recording.load_totals(stage.name)
    reached = totals.sent / (stage.end_s - stage.start_s)
    planned = reached if stage.planned_rate_per_s is None else stage.planned_rate_per_s
    verdict = subject.judged.get(stage.group)
    return Level(
        stage=stage.name,
        planned=planned,
        reached=reached,
        percentiles=_percentiles(series.total),
        observed=verdict.observed if verdict else None,
        low=verdict.low if verdict else None,
        high=verdict.high if verdict else None,
        outcome=verdict.outcome if verdict else None,
        short=stage.name in invalid,
    )


# --- tables --------------------------------------------------------------------------------------


def _step_tables(recording: Recording) -> tuple[StepTable, ...]:
    rows = ((s.name, _step_rows(recording, s.name)) for s in recording.stages if s.record)
    return tuple(StepTable(stage=stage, rows=of) for stage, of in rows if of)


def _step_rows(recording: Recording, stage: str) -> tuple[StepRow, ...]:
    """Return one row a step, of its end-to-end time or else of its first time metric."""
    chosen: list[tuple[str, str, Histogram]] = []
    for step in recording.steps(stage):
        timed = [
            m for m in recording.metrics(stage, step) if m in METRICS and METRICS[m].kind == "time"
        ]
        best = next((m for m in ("e2el", "request", *timed) if m in timed), None)
        series = recording.series(stage, step, best) if best else None
        chosen.append((step, best or "", series.total if series else Histogram.empty()))
    full = [h for _, _, h in chosen if h.n]
    low = math.log(min((h.min or 1 for h in full), default=1) or 1)
    high = math.log(max((h.max or 2 for h in full), default=2))
    edges = np.linspace(low, max(high, low + 0.1), 41)
    rows = []
    for step, metric, h in chosen:
        requests = recording.requests(stage, step)
        p50, p95, p99 = _percentiles(h)
        shape = np.histogram(np.log(np.maximum(h.values, 1)), bins=edges, weights=h.counts)[0]
        rows.append(
            StepRow(
                step=step,
                metric=metric,
                n=requests.n or h.n,
                failed=requests.n_failed,
                p50=p50,
                p95=p95,
                p99=p99,
                max=h.max,
                shape=tuple((shape / max(1, h.n)).tolist()),
            )
        )
    return tuple(rows)


def _errors(recording: Recording) -> tuple[ErrorKind, ...]:
    by_kind: dict[str, dict[str, int]] = defaultdict(dict)
    first: dict[str, float] = {}
    for stage in recording.stages:
        requests = recording.requests(stage.name, RUN)
        for kind, count in requests.kinds.items():
            by_kind[kind][stage.name] = count
            seen = requests.first_seen[kind]
            first[kind] = min(seen, first.get(kind, seen))
    order = sorted(by_kind, key=lambda kind: -sum(by_kind[kind].values()))
    return tuple(
        ErrorKind(kind=kind, by_stage=by_kind[kind], first_s=first[kind]) for kind in order
    )
