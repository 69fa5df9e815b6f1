"""Which step makes slow journeys slow: median journeys against the slowest 1 %, step by step.

A recorder keeps a random few journeys of every interval, which stand for the usual ones, and the
slowest few. Steps that only hold other steps are left out, so that no time counts twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.recorder import Journey, Recording
from harness.report.facts.subject import WhyNot, stage_name
from harness.verdict import BudgetVerdict

MIN_SLOW = 10
MOST_BARS = 8  # with more steps a table shows them better


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One step of the waterfall: mean start and length in median and in slow journeys."""

    step: str
    start: float
    length: float
    slow_start: float
    slow_length: float
    extra: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """Median journeys against the slowest 1 %; the last bar is what lies in no step."""

    stage: str
    root: str
    bars: tuple[Bar, ...]
    median: float
    slow: float
    n_median: int
    n_slow: int

    @property
    def steps(self) -> tuple[Bar, ...]:
        """The real steps, without what lies in none."""
        return self.bars[:-1]

    @property
    def largest(self) -> Bar:
        """The bar with the most extra time."""
        return max(self.bars, key=lambda bar: bar.extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStep:
    """The step that makes most of the extra time of slow journeys."""

    step: str
    share: float
    root: str
    stage: str


def find_waterfall(
    recording: Recording, budgets: Iterable[BudgetVerdict], invalid: frozenset[str]
) -> Waterfall | WhyNot:
    """Return that of the worst budget whose journeys have several steps, else of any journey."""
    groups: dict[tuple[str, str], list[Journey]] = defaultdict(list)
    recorded = {s.name for s in recording.stages if s.record} - invalid
    for journey in recording.journeys:
        if journey.ok and journey.stage in recorded:
            groups[journey.stage, journey.root].append(journey)
    several = {where for where, js in groups.items() if any(len(_leaves(j)) > 1 for j in js)}
    if not several:
        return WhyNot(
            "Every journey is one request, so there are no steps to tell apart."
            if groups
            else "No finished journey was kept from a stage that was measured properly."
        )
    worst = [(v.stage, v.budget.step.split("/")[0]) for v in budgets if v.budget.kind == "time"]
    order = [where for where in worst if where in several]
    order += sorted(several, key=lambda where: -len(groups[where]))
    tried = [_waterfall(recording, where, groups[where]) for where in dict.fromkeys(order)]
    return next((w for w in tried if isinstance(w, Waterfall)), tried[0])


def _waterfall(
    recording: Recording, where: tuple[str, str], journeys: Sequence[Journey]
) -> Waterfall | WhyNot:
    stage, root = where
    usual = [j for j in journeys if j.kept == "random"]
    if not usual:
        return WhyNot(f"No random sample of {root} journeys was kept.")
    lengths = np.array([j.duration_ns for j in usual], dtype=np.float64)
    low, high = np.quantile(lengths, [0.45, 0.55])
    middle = [j for j in usual if low <= j.duration_ns <= high]
    every = recording.series(stage, root, "e2el") or recording.series(stage, root, "request")
    p99 = every.total.quantile(0.99) if every else None
    bar = float(np.quantile(lengths, 0.99)) if p99 is None else p99
    slow = [j for j in journeys if j.duration_ns >= bar]
    if len(slow) < MIN_SLOW:
        return WhyNot(
            f"Needs at least {MIN_SLOW} slow journeys (above p99) of {root} in "
            f"{stage_name(stage)}, has {len(slow)}."
        )
    return _compare(stage, root, middle, slow)


def _compare(
    stage: str, root: str, middle: Sequence[Journey], slow: Sequence[Journey]
) -> Waterfall:
    usual, late = _means(middle), _means(slow)
    median = float(np.mean([j.duration_ns for j in middle]))
    slowest = float(np.mean([j.duration_ns for j in slow]))
    order = sorted(usual | late, key=lambda s: (s == "", (usual | late)[s][0]))
    bars = []
    for step in order:
        start, length = usual.get(step, (late.get(step, (0.0, 0.0))[0], 0.0))
        slow_start, slow_length = late.get(step, (start, 0.0))
        extra = slow_length - length
        share = extra / (slowest - median) if slowest != median else 0.0
        bars.append(
            Bar(
                step=step,
                start=start,
                length=length,
                slow_start=slow_start,
                slow_length=slow_length,
                extra=extra,
                share=share,
            )
        )
    return Waterfall(
        stage=stage,
        root=root,
        bars=tuple(bars),
        median=median,
        slow=slowest,
        n_median=len(middle),
        n_slow=len(slow),
    )


def _leaves(journey: Journey) -> dict[str, list[tuple[int, int]]]:
    """Return spans by step, without steps that only hold other steps of the same journey."""
    names = {span.step for span in journey.steps}
    parents = {n.rsplit("/", depth)[0] for n in names for depth in range(1, n.count("/") + 1)}
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for span in journey.steps:
        if span.step not in parents:
            spans[span.step].append((span.start_ns, span.end_ns))
    return spans


def _means(journeys: Sequence[Journey]) -> dict[str, tuple[float, float]]:
    """Return mean start and length of every step; "" is what lies in no step, at the end."""
    starts: dict[str, list[float]] = defaultdict(list)
    lengths: Counter[str] = Counter()
    for journey in journeys:
        leaves = _leaves(journey)
        for step, spans in leaves.items():
            starts[step].append(min(start for start, _ in spans))
            lengths[step] += sum(end - start for start, end in spans)
        rest = max(0, journey.duration_ns - _covered(leaves.values(), journey.duration_ns))
        starts[""].append(journey.duration_ns - rest)
        lengths[""] += rest
    n = len(journeys)
    return {step: (float(np.mean(starts[step])), lengths[step] / n) for step in starts}


def _covered(groups: Iterable[list[tuple[int, int]]], end_ns: int) -> int:
    """Return the length of the union of all spans, up to the journey's end."""
    total = reached = 0
    for start, end in sorted(span for spans in groups for span in spans):
        begin = max(start, reached, 0)
        stop = min(end, end_ns)
        if stop > begin:
            total += stop - begin
            reached = stop
    return total


def slow_step(waterfall: Waterfall | WhyNot) -> SlowStep | None:
    """Return the step that makes most of the extra time, if a step does."""
    if isinstance(waterfall, WhyNot) or waterfall.slow <= waterfall.median:
        return None
    bar = waterfall.largest
    if not bar.step or bar.share <= 0:
        return None
    return SlowStep(step=bar.step, share=bar.share, root=waterfall.root, stage=waterfall.stage)
