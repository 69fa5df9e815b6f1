"""What a search found: its probes, and the sentences that every form of the result shares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.budget import RUN
from harness.errors import ExitCode
from harness.health import Check
from harness.recorder import Histogram, Recording
from harness.report import words
from harness.runs import Result
from harness.search.decision import Conclusion, Purpose, Range, Shown, Trial, conclude
from harness.search.template import Template
from harness.stats import supported
from harness.steadiness import find_drifts, overload_in
from harness.units import format_count, format_duration, format_ratio_of_limit
from harness.verdict import BudgetVerdict, Outcome, Verdict, format_limit, format_value

Percentiles = tuple[float | None, float | None, float | None]
_WHOLE_TIMES = ("e2el", "request")
_EXIT_CODES = {
    Shown.BREAKS: ExitCode.FAIL,
    Shown.OPEN: ExitCode.INCONCLUSIVE,
    Shown.UNFIT: ExitCode.INVALID,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One run of the search; `shown` is None where it was interrupted.

    `why` says what it showed, in a sentence. Rates are those of the judged stage, of all root
    steps: offered, completed (successes that ended within it) and good (those of them that met
    every latency limit). `percentiles` are p50, p95 and p99 by step and metric.
    """

    number: int
    load: float
    purpose: Purpose
    shown: Shown | None
    why: str
    outcome: Outcome
    folder: Path
    seed: int
    lasted_s: float
    offered_per_s: float
    completed_per_s: float
    good_per_s: float
    budgets: tuple[BudgetVerdict, ...]
    percentiles: dict[tuple[str, str], Percentiles]

    def of(self, text: str) -> BudgetVerdict | None:
        """Return the verdict of the budget of that text."""
        return next((v for v in self.budgets if v.budget.text == text), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search that is over; `stopped` is the error, or the Ctrl-C, that ended it early."""

    template: Template
    within: Range
    url: str
    started_at: str
    probes: tuple[Probe, ...]
    folder: Path
    stopped: ExitCode | None = None
    stopped_why: str = ""

    @property
    def trials(self) -> list[Trial]:
        """What the probes showed, for the decision."""
        return [
            Trial(load=p.load, shown=p.shown, extendable=p.lasted_s < self.longest_s)
            for p in self.probes
            if p.shown is not None
        ]

    @property
    def longest_s(self) -> float:
        """How long the judged stage of a probe may last."""
        return self.template.longest_ns / 1e9

    @property
    def conclusion(self) -> Conclusion:
        """What the probes show together."""
        return conclude(self.trials)

    @property
    def exit_code(self) -> ExitCode:
        """What the command ends with."""
        if self.stopped is not None:
            return self.stopped
        found = self.conclusion
        if found.holds is not None and found.end is not Shown.UNFIT:
            return ExitCode.PASS
        assert found.end is not None
        return _EXIT_CODES[found.end]

    @property
    def outcome(self) -> Outcome:
        """What the search came to, as a verdict's word and colour."""
        found = self.conclusion
        if found.holds is not None and self.stopped is None and found.end is not Shown.UNFIT:
            return Outcome.PASS
        if self.stopped is not None:
            return Outcome.INCONCLUSIVE
        return {
            Shown.BREAKS: Outcome.FAIL,
            Shown.OPEN: Outcome.INCONCLUSIVE,
            Shown.UNFIT: Outcome.INVALID,
        }[found.end or Shown.OPEN]

    @property
    def what(self) -> str:
        """`rate` or `concurrency`."""
        return self.template.over

    def at(self, load: float | None) -> list[Probe]:
        """Return the probes of a load that were not interrupted, in their order."""
        return [p for p in self.probes if p.load == load and p.shown is not None]

    @property
    def first_broken(self) -> tuple[Probe, BudgetVerdict] | None:
        """Return the budget that broke first, and where: the worst, at the lowest load."""
        ends = self.conclusion.ends or math.inf
        for probe in in_order(self):
            failed = (v for v in probe.budgets if v.outcome is Outcome.FAIL)
            verdict = next(failed, None)
            if verdict and probe.load >= ends and probe.shown is Shown.BREAKS:
                return probe, verdict
        return None

    @property
    def focus(self) -> BudgetVerdict | None:
        """Return the latency budget that the chart shows: what broke, else the closest to it."""
        found = self.conclusion
        probes = [*self.at(found.ends), *self.at(found.holds)] or list(self.probes)
        broken = [self.first_broken[0]] if self.first_broken else []
        timed = [
            v for p in (broken or probes) for v in p.budgets if v.budget.kind == "time" and v.n
        ]
        timed.sort(key=lambda v: (v.outcome is not Outcome.FAIL, -(v.used or 0.0)))
        return timed[0] if timed else None


# --- one probe -----------------------------------------------------------------------------------


def probe_of(
    result: Result, *, number: int, load: float, purpose: Purpose, stage: str, lasted_s: float
) -> Probe:
    """Read what the search needs from a run that is over."""
    recording, verdict = result.recording, result.verdict
    shown, why = classify(result, stage)
    offered, completed, good = _rates(recording, stage)
    return Probe(
        number=number,
        load=load,
        purpose=purpose,
        shown=None if result.exit_code is ExitCode.INTERRUPTED else shown,
        why=why,
        outcome=verdict.outcome,
        folder=result.folder,
        seed=int(recording.run.get("seed", 0)),
        lasted_s=lasted_s,
        offered_per_s=offered,
        completed_per_s=completed,
        good_per_s=good,
        budgets=verdict.budgets,
        percentiles=_percentiles(recording, stage, verdict.budgets),
    )


def classify(result: Result, stage: str) -> tuple[Shown, str]:
    """Say what a run showed of its load, and why; an unfit generator comes before all it shaped."""
    recording, verdict = result.recording, result.verdict
    if verdict.outcome is Outcome.PASS:
        return Shown.HOLDS, verdict.detail
    if verdict.outcome is Outcome.FAIL:
        return Shown.BREAKS, verdict.sentence
    unfit = [c for c in verdict.health.checks if not c.ok and not c.target_caused]
    if unfit:
        return Shown.UNFIT, f"{_measured(unfit[0])}; {unfit[0].remedy}."
    limit = _targets_limit(recording, verdict, stage)
    if limit:
        return Shown.BREAKS, limit
    return Shown.OPEN, verdict.budgets[0].sentence if verdict.budgets else verdict.sentence


def _targets_limit(recording: Recording, verdict: Verdict, stage: str) -> str:
    """Say why a load is beyond the target's limit though no budget is shown to be broken."""
    overload = overload_in(find_drifts(recording), stage)
    if overload:
        return f"{overload.sentence[0].upper()}{overload.sentence[1:]}."
    if recording.run.get("aborted"):
        return words.early_end(recording.run)
    busy = [check for check in verdict.health.checks if not check.ok]
    if busy:
        return f"Every user was busy with the target: {_measured(busy[0])}."
    if verdict.outcome is Outcome.NO_DATA:
        return f"{verdict.sentence} {verdict.detail}"
    return ""


def _measured(check: Check) -> str:
    return f"{check.name} {check.measured}, must be {check.must}"


def _rates(recording: Recording, group: str) -> tuple[float, float, float]:
    """Return requests per second of all repetitions: offered, completed and good."""
    planned = completed = good = 0
    lasted_s = 0.0
    for stage in recording.repetitions(group):
        planned += recording.load_totals(stage.name).planned
        requests = recording.requests(stage.name, RUN)
        inside = requests.t_s < stage.end_s
        completed += int((requests.total - requests.failed)[inside].sum())
        good += int(requests.good[inside].sum())
        lasted_s += stage.end_s - stage.start_s
    if not lasted_s:  # it was interrupted before the stage began
        return 0.0, 0.0, 0.0
    return planned / lasted_s, completed / lasted_s, good / lasted_s


def _percentiles(
    recording: Recording, group: str, budgets: Sequence[BudgetVerdict]
) -> dict[tuple[str, str], Percentiles]:
    """Return those of every metric with a limit on a time, and of whole requests."""
    wanted = {(v.budget.step, v.budget.metric) for v in budgets if v.budget.kind == "time"}
    wanted |= {(RUN, metric) for metric in _WHOLE_TIMES}
    found: dict[tuple[str, str], Percentiles] = {}
    for step, metric in sorted(wanted):
        series = [recording.series(s.name, step, metric) for s in recording.repetitions(group)]
        known = [one.total for one in series if one is not None]
        if known:
            merged = Histogram.merged(known)
            p50, p95, p99 = (
                merged.quantile(q) if supported(merged.n, q) else None for q in (0.5, 0.95, 0.99)
            )
            found[step, metric] = (p50, p95, p99)
    return found


# --- what all forms say ---------------------------------------------------------------------------


def headline(search: Search) -> str:
    """Say what was found, in a sentence."""
    found, text = search.conclusion, search.template.load_text
    every = _all_budgets(search)
    if search.stopped is not None:
        so_far = (
            f"{text(found.holds)} held so far" if found.holds is not None else "nothing held yet"
        )
        return f"The search did not end: {so_far}."
    if found.holds is None:
        return _nothing_holds(search)
    if found.end is Shown.UNFIT:
        return (
            f"{every} at {text(found.holds)} at least: the generator, not the target, was the "
            f"limit at {text(found.ends or 0)}."
        )
    if found.ends is None:
        return f"{every} at {text(found.holds)}, the most that was asked for (--to)."
    if found.end is Shown.OPEN:
        return f"{every} up to {text(found.holds)}; not shown at {text(found.ends)}."
    return f"{every} up to {text(found.holds)}, and not at {text(found.ends)}."


def _nothing_holds(search: Search) -> str:
    found, lowest = search.conclusion, search.template.load_text(search.within.low)
    return {
        Shown.BREAKS: f"Not even {lowest} holds, the lowest load (--from).",
        Shown.OPEN: f"{lowest}, the lowest load (--from), cannot be decided.",
        Shown.UNFIT: f"The generator, not the target, was the limit at {lowest}, the lowest load.",
    }[found.end or Shown.OPEN]


def _all_budgets(search: Search) -> str:
    n = len(search.template.plan.budgets)
    if n == 1:
        return f"{search.template.plan.budgets[0].text} holds"
    if n == 2:
        return "Both budgets hold"
    return f"All {format_count(n)} budgets hold"


def story(search: Search) -> list[str]:
    """Say what broke and by how much, and what else a reader must know."""
    found, text = search.conclusion, search.template.load_text
    told = []
    if search.stopped_why:
        told.append(search.stopped_why)
    if found.ends is not None:
        told += _end_told(search, found)
    if found.holds is not None and not found.twice:
        told.append(f"{text(found.holds)} was seen once, not again with another seed.")
    told += [
        f"{text(load)} broke, although it or a higher load held as well: {_counted(search, load)}."
        for load in found.contradicted
    ]
    told += [f"Left out: {reason}." for reason in search.template.left_out]
    return told


def _end_told(search: Search, found: Conclusion) -> Iterator[str]:
    """Say why the lowest load that does not hold does not, and which budget broke first."""
    text, broken = search.template.load_text, search.first_broken
    if broken is None or broken[0].load != found.ends:
        probe = next(p for p in reversed(search.at(found.ends)) if p.shown is found.end)
        yield f"At {text(probe.load)}: {probe.why}"
    if broken:
        yield f"At {text(broken[0].load)} {_broke(broken[1])}."


def _broke(verdict: BudgetVerdict) -> str:
    """`chat.ttft p99 was 1.24 s, 1.55× its 800 ms limit`."""
    budget = verdict.budget
    limit = format_limit(budget)
    if verdict.observed is None or verdict.used is None:
        counts = f"{format_count(verdict.over or 0)} of {format_count(verdict.n)} samples"
        return f"{budget.subject} broke its {limit} limit: {counts} were beyond it"
    value = format_value(budget, verdict.observed)
    if not budget.upper:
        return f"{budget.subject} was {value}, must be at least {limit}"
    return f"{budget.subject} was {value}, {format_ratio_of_limit(verdict.used)} its {limit} limit"


def _counted(search: Search, load: float) -> str:
    held = [p.shown is Shown.HOLDS for p in search.at(load) if p.shown in _DECIDED]
    counts = "holding" if load <= (search.conclusion.holds or 0) else "not holding"
    return f"it held in {held.count(True)} of {len(held)} probes and counts as {counts}"


_DECIDED = (Shown.HOLDS, Shown.BREAKS)


def closest(probe: Probe) -> str:
    """Say how the worst budget of a probe came out: `chat.ttft p99 612 ms, 77 %`."""
    if not probe.budgets:
        return "–"
    return f"{probe.budgets[0].budget.subject} {measured(probe.budgets[0])}"


def measured(verdict: BudgetVerdict) -> str:
    """`612 ms, 77 %`: the observed value and the share of the limit that it uses."""
    used = "" if verdict.used is None else f", {format_ratio_of_limit(verdict.used)}"
    return f"{words.observed(verdict)}{used}"


def lasted(seconds: float) -> str:
    """`60 s`."""
    return format_duration(seconds * 1e9, unit="s")


def in_order(search: Search) -> list[Probe]:
    """Return the probes by load, those of one load in their order."""
    return sorted(search.probes, key=lambda probe: (probe.load, probe.number))


def plan_facts(search: Search) -> dict[str, Any]:
    """Return what the result says about the plan."""
    plan = search.template.plan
    return {
        "name": plan.name,
        "target": search.url,
        "model": plan.target.model,
        "stage": search.template.stage.name,
        "budgets": [budget.text for budget in plan.budgets],
    }
