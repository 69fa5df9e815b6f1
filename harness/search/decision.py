"""The next load to probe, from the outcomes so far alone: nothing here runs or waits.

The search doubles the load until a probe does not hold, then halves the gap on the log scale until
its ends are within the precision. Then both ends are seen twice: the highest load that held is run
again, and so is the lowest that broke, because one probe in twenty may be wrong at a confidence of
95 %. A load that did not hold when it was run again counts as not holding, and the search goes
on below it. A load that broke once and held when run again has a third run to decide.

An unfit generator is never the target's limit, only where this search ends: its probe is run once
more, and then loads below it are looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

STEP_UP = 2.0  # factor from one load that holds to the next
_DIGITS = 3  # significant digits of a rate between two probed ones


class Shown(StrEnum):
    """What a probe showed of its load."""

    HOLDS = "holds"
    BREAKS = "does not hold"
    OPEN = "not shown to hold"
    UNFIT = "generator not fit"


class Purpose(StrEnum):
    """Why a load is probed."""

    FIRST = "first"
    UP = "step up"
    BETWEEN = "bisection"
    AGAIN = "re-check"
    RETRY = "retry"
    LONGER = "longer repeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Where to search: loads from `low` to `high`, `precision` as a share of the load.

    `whole` loads are numbers of users, others rates per second.
    """

    low: float
    high: float
    precision: float = 0.1
    whole: bool = False

    def between(self, low: float, high: float) -> float | None:
        """Return the geometric mean of two loads; None where they are close enough."""
        if high <= low * (1 + self.precision):
            return None
        middle = math.sqrt(low * high)
        if self.whole:
            found = float(round(middle))
        else:
            found = round(middle, _DIGITS - 1 - math.floor(math.log10(middle)))
        return found if low < found < high else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One probe that is over; `extendable` when there is room for a longer one."""

    load: float
    shown: Shown
    extendable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do next."""

    load: float
    purpose: Purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What the trials show so far.

    `holds` is the highest load below every one that does not, `twice` whether it was seen again.
    `ends` is the lowest that does not hold, because of `end`; None where even the highest held.
    `contradicted` are loads that broke although they, or higher ones, held as well.
    """

    holds: float | None
    twice: bool
    ends: float | None
    end: Shown | None
    contradicted: tuple[float, ...]


def next_step(within: Range, trials: Sequence[Trial]) -> Step | None:
    """Return the next probe, or None when there is nothing left to learn."""
    if not trials:
        return Step(load=within.low, purpose=Purpose.FIRST)
    again = _same_again(trials)
    if again is not None:
        return Step(load=trials[-1].load, purpose=again)
    settled = _settled(trials)
    low, high = _bracket(settled)
    if low is None or high is None:
        step = _outwards(within, low)
    else:
        middle = within.between(low, high)
        step = None if middle is None else Step(load=middle, purpose=Purpose.BETWEEN)
    return step or _check_ends(settled, low, high)


def conclude(trials: Sequence[Trial]) -> Conclusion:
    """Say what the trials show, also when the search was not allowed to end."""
    settled = _settled(trials)
    low, high = _bracket(settled)
    most = max((t.load for t in trials if t.shown is Shown.HOLDS), default=-math.inf)
    return Conclusion(
        holds=low,
        twice=low is not None and settled[low].count(Shown.HOLDS) > 1,
        ends=high,
        end=None if high is None else _why_not(settled[high]),
        contradicted=tuple(
            sorted({t.load for t in trials if t.shown is Shown.BREAKS and t.load <= most})
        ),
    )


def _same_again(trials: Sequence[Trial]) -> Purpose | None:
    """Return why the last probe is repeated at once, if it is: it showed nothing, once."""
    last = trials[-1]
    if last.shown in (Shown.HOLDS, Shown.BREAKS):
        return None
    empty = itertools.takewhile(
        lambda t: t.load == last.load and t.shown in (Shown.UNFIT, Shown.OPEN), reversed(trials)
    )
    if [trial.shown for trial in empty].count(last.shown) > 1:
        return None
    if last.shown is Shown.UNFIT:
        return Purpose.RETRY
    return Purpose.LONGER if last.extendable else None


def _settled(trials: Sequence[Trial]) -> dict[float, list[Shown]]:
    """Return what each load came to, in order, without probes that were repeated at once."""
    found: dict[float, list[Shown]] = {}
    for i, trial in enumerate(trials):
        if i + 1 == len(trials) or _same_again(trials[: i + 1]) is None:
            found.setdefault(trial.load, []).append(trial.shown)
    return found


def _holds(shown: Sequence[Shown]) -> bool:
    """Tell whether a load counts as holding: always, or twice after it broke once."""
    once_broken = shown[0] is Shown.BREAKS and shown[1:] == [Shown.HOLDS, Shown.HOLDS]
    return once_broken or all(one is Shown.HOLDS for one in shown)


def _why_not(shown: Sequence[Shown]) -> Shown:
    """Return what a load came to that does not hold: a break weighs most."""
    return Shown.BREAKS if Shown.BREAKS in shown else shown[-1]


def _bracket(settled: dict[float, list[Shown]]) -> tuple[float | None, float | None]:
    """Return the highest load that holds below the lowest that does not, and the latter."""
    high = min((load for load, shown in settled.items() if not _holds(shown)), default=None)
    below = (load for load in settled if high is None or load < high)
    return max(below, default=None), high


def _outwards(within: Range, low: float | None) -> Step | None:
    """Step up from the highest load that holds; nothing is below the lowest."""
    if low is None or low >= within.high:
        return None
    return Step(load=min(low * STEP_UP, within.high), purpose=Purpose.UP)


def _check_ends(
    settled: dict[float, list[Shown]], low: float | None, high: float | None
) -> Step | None:
    """See both ends of the interval twice, the answer itself first."""
    if low is not None and settled[low].count(Shown.HOLDS) < 2:
        return Step(load=low, purpose=Purpose.AGAIN)
    unsure = ([Shown.BREAKS], [Shown.BREAKS, Shown.HOLDS])
    if high is not None and settled[high] in unsure:
        return Step(load=high, purpose=Purpose.AGAIN)
    return None


def most_probes(within: Range) -> int:
    """Return how many probes a search takes at most, unless outcomes contradict each other."""
    loads = itertools.takewhile(
        lambda load: load < within.high, (within.low * STEP_UP**i for i in itertools.count())
    )
    halvings = math.log(STEP_UP) / math.log(1 + within.precision)
    return len(list(loads)) + 1 + max(0, math.ceil(math.log2(max(halvings, 1)))) + 2
