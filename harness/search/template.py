"""The plan as a template: the stage to judge and what warms up for it, at any load and length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from harness.budget import Budget, near_miss
from harness.errors import UserError
from harness.metrics import METRICS
from harness.plan import DEFAULT_MAX_IN_FLIGHT, Arrivals, Plan, Stage
from harness.search.decision import Range
from harness.sizing import Need, needs, undecidable
from harness.stats.sizing import POWER
from harness.units import (
    NARROW_SPACE,
    format_clock,
    format_count,
    format_rate,
    format_share,
    parse_duration,
    parse_rate,
    parse_share,
)

Over = Literal["rate", "concurrency"]
T = TypeVar("T")

FINEST = 0.01  # precision of a search
MOST_USERS = 1_000_000
_SEEDS = 0  # spawn key of the seeds of probes; those of repetitions are from 2 on


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A plan with one recorded stage, to be probed over a rate per second or a number of users.

    A probe's stage lasts as long as the plan's own at least, else up to `longest_ns` where a budget
    needs it. `left_out` are budgets that no probe can judge, each with the reason.
    """

    plan: Plan
    over: Over
    longest_ns: int
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan, over: Over, *, stage: str | None, longest_ns: int) -> Template:
        """Raises UserError where it is not clear which stage, or where no budget is left."""
        judged = _judged_stage(plan, stage)
        at = plan.load.index(judged)
        warm_up = tuple(one for one in plan.load[:at] if not one.record)
        of_stage = [b for b in plan.budgets if b.stage in (None, judged.name)]
        kept = [budget for budget in of_stage if not _unfit(budget)]
        if not kept:
            raise UserError(
                f"a search needs a budget that tells whether a load holds; found none in "
                f'the stage "{judged.name}"; add one to the plan, like chat.ttft p99 < 800ms'
            )
        return cls(
            plan=replace(
                plan,
                load=(*warm_up, judged),
                budgets=tuple(replace(budget, abort=budget.known_early) for budget in kept),
            ),
            over=over,
            longest_ns=max(longest_ns, judged.duration_ns),
            left_out=tuple(f"{b.text}: {why}" for b in of_stage if (why := _unfit(b))),
        )

    @property
    def stage(self) -> Stage:
        """The stage that is judged."""
        return self.plan.load[-1]

    def load_text(self, load: float) -> str:
        """`11.3/s` or `16 users`."""
        if self.over == "rate":
            return format_rate(load)
        return "1 user" if load == 1 else f"{format_count(round(load))} users"

    def at(self, load: float, duration_ns: int, *, trial: int = 1) -> Plan:
        """Return the plan of a probe; the second `trial` of a load has another seed."""
        *warm_up, judged = (_at(stage, self.over, load) for stage in self.plan.load)
        return replace(
            self.plan,
            name=f"{self.plan.name} at {self.load_text(load)}",
            load=(*warm_up, replace(judged, duration_ns=duration_ns)),
            seed=_seed(self.plan.seed, trial),
        )

    def duration_ns(self, load: float, rate_per_s: float | None = None) -> int:
        """How long a probe must last for its budgets, as far as it may.

        `rate_per_s` is the rate to be expected of a load of users, if it is known.
        """
        wanted_s = [need.size.seconds for need in self._needs(load, rate_per_s) if need.size]
        most_s = max((s for s in wanted_s if s is not None), default=0.0) / self.plan.repeat
        return max(self.stage.duration_ns, min(round(most_s * 1e9), self.longest_ns))

    def warnings(self, load: float) -> list[str]:
        """Say which budgets the longest probe of a load is too short for, and what that costs."""
        if self.over == "concurrency":
            return []  # how many samples a user makes, only a probe can tell
        longest_s = self.longest_ns / 1e9
        sized = [
            (need.budget.text, need.size.seconds / self.plan.repeat)
            for need in self._needs(load)
            if need.size and need.size.seconds
        ]
        return [
            f"{text} at {self.load_text(load)} needs about {format_clock(needed_s)} to pass with a "
            f"power of {format_share(POWER)}; a probe may last {format_clock(longest_s)} "
            "(--longest), so it may come out undecided"
            for text, needed_s in sized
            if needed_s > longest_s
        ]

    def check(self, load: float) -> None:
        """Raise UserError for a budget that the longest probe of a load could never pass."""
        said = undecidable(self.at(load, self.longest_ns))
        if said:
            raise UserError(
                f"at {self.load_text(load)}, the lowest load, within "
                f"{format_clock(self.longest_ns / 1e9)}: {said[0]}; "
                "begin at a higher load (--from), or allow longer probes (--longest)"
            )

    def _needs(self, load: float, rate_per_s: float | None = None) -> Sequence[Need]:
        """Size the budgets; a load of users as the rate that it reaches."""
        plan = self.at(load, self.stage.duration_ns)
        if self.over == "concurrency" and rate_per_s:
            judged = _at(plan.load[-1], "rate", rate_per_s)
            plan = replace(plan, load=(*plan.load[:-1], judged))
        return [need for need in needs(plan) if not need.window]


def _judged_stage(plan: Plan, name: str | None) -> Stage:
    recorded = [stage for stage in plan.load if stage.record]
    names = ", ".join(stage.name for stage in recorded)
    if name is None and len(recorded) > 1:
        raise UserError(f"found {len(recorded)} recorded stages: {names}; choose one: --stage NAME")
    for stage in recorded:
        if name in (None, stage.name):
            return stage
    raise UserError(
        f'--stage: found "{name}"; the recorded stages are {names}'
        f"{near_miss(str(name), [stage.name for stage in recorded])}"
    )


def _unfit(budget: Budget) -> str:
    """Say why a budget tells nothing about how much load the target bears; empty if it does."""
    if budget.regression:
        return "a probe has no baseline"
    if METRICS[budget.metric].kind == "rate":
        return "its limit is meant for the plan's own load"
    return ""


def _at(stage: Stage, over: Over, load: float) -> Stage:
    """Return the stage at a load; arrivals keep their kind, those of a closed load are Poisson."""
    if over == "concurrency":
        return replace(stage, concurrency=round(load), arrivals=None, max_in_flight=None)
    kind = stage.arrivals.kind if stage.arrivals else "poisson"
    return replace(
        stage,
        arrivals=Arrivals(kind=kind, rate_per_s=load),
        concurrency=None,
        ramp_ns=None,
        max_in_flight=stage.max_in_flight or DEFAULT_MAX_IN_FLIGHT,
    )


def _seed(seed: int, trial: int) -> int:
    if trial == 1:
        return seed
    words = np.random.SeedSequence(seed, spawn_key=(_SEEDS, trial)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def range_of(over: Over, low: str, high: str, precision: str) -> Range:
    """Read `--from`, `--to` and `--precision`; raises UserError that names the option."""
    ends = _load_of("--from", over, low), _load_of("--to", over, high)
    if ends[0] >= ends[1]:
        raise UserError(f"--from: found {low}; allowed is less than --to, {high}")
    share = _parsed("--precision", precision, parse_share)
    if not FINEST <= share <= 1:
        allowed = f"{format_share(FINEST)} to 100%".replace(NARROW_SPACE, "")
        raise UserError(f"--precision: found {precision}; allowed is {allowed}")
    return Range(low=ends[0], high=ends[1], precision=share, whole=over == "concurrency")


def longest_ns_of(text: str) -> int:
    """Read `--longest`, nanoseconds; raises UserError that names the option."""
    return _parsed("--longest", text, parse_duration)


def _load_of(option: str, over: Over, text: str) -> float:
    if over == "rate":
        rate_per_s = _parsed(option, text, parse_rate)
        if not rate_per_s:
            raise UserError(f"{option}: found {text}; allowed is a rate above zero, like 20/s")
        return rate_per_s
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_USERS or len(text) > 9:
        raise UserError(
            f"{option}: found {text!r}; allowed is a number of users, 1 to {MOST_USERS:,}"
        )
    return float(text)


def _parsed(option: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None
