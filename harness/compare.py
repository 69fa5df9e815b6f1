"""Two saved runs beside each other: what changed, by how much, and whether that is allowed.

Every statistic is compared with its interval; only a declared limit makes a verdict of it, and none
is given for runs that are not comparable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from harness.budget import RUN, Budget, near_miss, parse_budget
from harness.errors import BudgetSyntaxError, ExitCode, UserError
from harness.health import Health, assess
from harness.metrics import METRICS, Kind
from harness.recorder import Recording
from harness.stats.regression import Change
from harness.verdict import BudgetVerdict, Outcome, Verdict, judge
from harness.verdict.likeness import Unlike, Weight, unfit
from harness.verdict.regression import Pair

SHOWN_METRICS = ("ttft", "tpot", "itl", "e2el", "request")
LIMITED_METRICS = ("ttft", "e2el", "request")
_PERCENTILES = {"p50": (0.5, 2), "p95": (0.95, 20), "p99": (0.99, 100)}  # and the fewest samples
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One statistic of both runs. `change.base` and `.candidate` are in the metric's own unit.

    The change is a ratio, of a share the difference; of a goodput it is that of the loss.
    """

    stage: str
    step: str
    metric: str
    statistic: str
    change: Change
    verdict: BudgetVerdict | None = None

    @property
    def kind(self) -> Kind:
        """What the values are: a time, tokens, a share, a rate or money."""
        return METRICS[self.metric].kind

    @property
    def values(self) -> tuple[float, float]:
        """Baseline and candidate as they are shown: a goodput, not its loss."""
        base, candidate = self.change.base, self.change.candidate
        return (1 - base, 1 - candidate) if self.metric == "goodput" else (base, candidate)

    @property
    def shown_change(self) -> tuple[float, float | None, float | None]:
        """The change and the ends of its interval, with the sign of the values shown."""
        c = self.change
        if self.metric != "goodput":
            return c.change, c.low, c.high
        low, high = (None if end is None else -end for end in (c.high, c.low))
        return -c.change, low, high

    @property
    def changed(self) -> bool:
        """True when the interval says that the two runs differ."""
        low, high = self.change.low, self.change.high
        return (low is not None and low > 0) or (high is not None and high < 0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate against its baseline; `verdict` is None where no limit was declared."""

    base: Recording
    candidate: Recording
    unlike: tuple[Unlike, ...]
    unfit: tuple[str, ...]
    rows: tuple[Row, ...]
    verdict: Verdict | None
    confidence: float

    @cached_property
    def forbids(self) -> tuple[str, ...]:
        """Why the runs cannot be compared, or not in some stage; empty when they can."""
        texts = [str(one) for one in self.unlike if one.weight is Weight.FORBIDS]
        return (*texts, *self.unfit)

    @property
    def outcome(self) -> Outcome | None:
        """What the comparison came to; None when it may be made and nothing had a limit."""
        if self.verdict is not None:
            return self.verdict.outcome
        return Outcome.INVALID if self.forbids else None

    @property
    def exit_code(self) -> ExitCode:
        """What the command ends with."""
        if self.verdict is not None:
            return self.verdict.exit_code
        return ExitCode.INVALID if self.forbids else ExitCode.PASS

    @property
    def sentence(self) -> str:
        """What a manager reads."""
        if self.verdict is not None:
            return self.verdict.sentence
        if self.forbids:
            return "The two runs are not comparable."
        moved = [row for row in self.rows if row.changed]
        if not moved:
            return "No statistic changed by more than chance."
        count = f"{len(moved)} of {len(self.rows)} statistics"
        return f"{count} changed by more than chance; no limit says whether that is allowed."


def compare(
    pair: Pair, budgets: Sequence[Budget] = (), *, confidence: float = CONFIDENCE
) -> Comparison:
    """Compare every stage and step that both runs recorded; `budgets` are regression budgets."""
    verdict = judge(pair.candidate, budgets, baseline=pair) if budgets else None
    judged = verdict.budgets if verdict else ()
    health = verdict.health if verdict else assess(pair.candidate)
    return Comparison(
        base=pair.base,
        candidate=pair.candidate,
        unlike=pair.unlike,
        unfit=tuple(_unfit(pair, health)),
        rows=tuple(_rows(pair, judged, confidence)),
        verdict=verdict,
        confidence=confidence,
    )


def regressions(pair: Pair, limit: str | None, texts: Sequence[str]) -> tuple[Budget, ...]:
    """Return the regression budgets that `limit` and `texts` say.

    Raises BudgetSyntaxError for a text that is no budget, UserError for one that is no regression
    or about a step that neither run has.
    """
    declared = declared_regressions(texts)
    _check_steps(pair, declared)
    return declared if limit is None else (*declared, *limited(pair, limit))


def _check_steps(pair: Pair, budgets: Sequence[Budget]) -> None:
    """Refuse a budget of a step that neither run has: it would never be judged."""
    both = (pair.base, pair.candidate)
    known = {step: None for run in both for s in run.stages for step in run.steps(s.name)}
    for budget in budgets:
        if known and budget.step not in (RUN, *known):
            raise UserError(
                f'--budget: found the step "{budget.step}"; the runs have {", ".join(known)}, '
                f"and {RUN} is every root step together{near_miss(budget.step, list(known))}"
            )


def declared_regressions(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Return the regression budgets that `texts` say; raises as `regressions` does."""
    declared = tuple(parse_budget(text) for text in texts)
    absolute = next((budget for budget in declared if not budget.regression), None)
    if absolute is not None:
        raise UserError(
            f'--budget: found "{absolute.text}", a limit on one run; allowed here is a limit on '
            f'the change, like "{absolute.subject} regression < 5%"; harness gate judges the other'
        )
    return declared


def limited(pair: Pair, limit: str, confidence: float = CONFIDENCE) -> tuple[Budget, ...]:
    """Limit the regression of the p99 of ttft and e2el (or request) of every step in both runs.

    Where no step has enough samples for one, all are limited together, so that something is judged.

    Raises UserError for a limit that is not a share above 0.
    """
    like = p99_limit(limit, confidence)
    found = tuple(
        replace(
            like,
            text=f"{step}.{metric} p99 regression < {like.limit_text} in {group}",
            step=step,
            metric=metric,
            stage=group,
        )
        for group in _groups(pair)
        for step in _steps(pair, group)
        for metric in LIMITED_METRICS
        if _enough(pair, group, step, metric, _PERCENTILES["p99"][1])
    )
    return found or (like,)


def p99_limit(limit: str, confidence: float = CONFIDENCE) -> Budget:
    """Limit the regression of the p99 of e2el of all steps together.

    Raises UserError for a limit that is not a share above 0.
    """
    try:
        return parse_budget(f"{RUN}.e2el p99 regression < {limit}", confidence=confidence)
    except BudgetSyntaxError:
        raise UserError(f'--limit: found "{limit}"; allowed is a share like 5%') from None


def _groups(pair: Pair) -> list[str]:
    """Return the declared names of the stages that both runs recorded."""
    names = {s.group: None for s in pair.candidate.stages if s.record}
    return [name for name in names if pair.sides(name)[0].stages]


def _steps(pair: Pair, group: str) -> list[str]:
    base, candidate = (
        {step: None for s in side.stages for step in side.recording.steps(s.name)}
        for side in pair.sides(group)
    )
    return [step for step in candidate if step in base]


def _enough(pair: Pair, group: str, step: str, metric: str, fewest: int) -> bool:
    sides = pair.sides(group)
    return all(side.series(step, metric) and side.count(step, metric) >= fewest for side in sides)


def _unfit(pair: Pair, candidate_health: Health) -> Iterator[str]:
    healths = {"baseline": pair.base_health, "candidate": candidate_health}
    for at, (whose, health) in enumerate(healths.items()):
        for group in _groups(pair):
            broken = unfit(health, pair.sides(group)[at].stages)
            if broken:
                yield f"the {whose}'s measurement in {group} was not fit: {broken}"


def _rows(pair: Pair, judged: Sequence[BudgetVerdict], confidence: float) -> Iterator[Row]:
    for group in _groups(pair):
        for step in (*_steps(pair, group), RUN):
            verdicts = {
                (v.budget.metric, v.budget.statistic): v
                for v in reversed(judged)
                if (v.stage, v.budget.step) == (group, step)
            }
            wanted = dict.fromkeys([*_shown(pair, group, step), *verdicts])
            for metric, statistic in wanted:
                verdict = verdicts.get((metric, statistic))
                change = pair.change(
                    group,
                    step,
                    metric,
                    _quantile(statistic),
                    verdict.budget.confidence if verdict else confidence,
                )
                if change is not None:
                    yield Row(
                        stage=group,
                        step=step,
                        metric=metric,
                        statistic=statistic,
                        change=change,
                        verdict=verdict,
                    )


def _shown(pair: Pair, group: str, step: str) -> Iterator[tuple[str, str]]:
    """Yield what of a step is compared without being asked: metric and statistic."""
    if step != RUN:
        for metric in SHOWN_METRICS:
            for name, (_, fewest) in _PERCENTILES.items():
                if _enough(pair, group, step, metric, fewest):
                    yield metric, name
        if _enough(pair, group, step, "cost", 1):
            yield "cost", "mean"
    sides = pair.sides(group)
    if any(side.recording.requests(s.name, step).n_failed for side in sides for s in side.stages):
        yield "error_rate", ""
    if step == RUN and any(stage.planned_rate_per_s is None for stage in sides[1].stages):
        yield "rate", ""  # of an open load the rate is the plan's, not the target's


def _quantile(statistic: str) -> float | None:
    return float(statistic[1:]) / 100 if statistic.startswith("p") else None
