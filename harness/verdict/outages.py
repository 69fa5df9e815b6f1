"""What a target that stopped for good makes of a budget: it passes nothing, and broke a share.

Judged is what happened (`stats.outage`). What says how many requests may fail is a FAIL where an
outage is far beyond that; so is a quantile where no other budget limits failures, since each of
them then counts as over its limit. A PASS of anything else is taken back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from harness import stats
from harness.budget import RUN, Budget
from harness.limits import name_in
from harness.recorder import StageWindow
from harness.stats.recorded import by_window
from harness.stats.windows import IntArray
from harness.units import format_clock, format_count
from harness.verdict.outcome import BudgetVerdict, Outcome
from harness.verdict.samples import Repetitions, share_of

_NO_ANSWER = ("connect", "reset", "timeout", "cut off")
_MAYBE_OURS = ("timeout", "cut off")  # what a client that is too busy can cause by itself
_NOTABLE = 0.05  # an outage that breaks such a share takes every PASS back


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stopped:
    """An outage of a step, with the kinds of its failures and when it began.

    Of all its n requests `failed` did. `users` is how many could be under way at a time, None where
    that was no limit.
    """

    outage: stats.Outage
    kinds: Counter[str]
    t_s: float
    failed: int
    n: int
    users: int | None

    @property
    def sentence(self) -> str:
        """`the target stopped answering at 31 s`, or what it answered instead."""
        at = f"{self.t_s:.3g} s" if self.t_s < 120 else format_clock(self.t_s)
        silent = sum(self.kinds[kind] for kind in _NO_ANSWER)
        if 2 * silent >= self.kinds.total():
            return f"the target stopped answering at {at}"
        most, _ = self.kinds.most_common(1)[0]
        return f"nothing but failures from {at} on, mostly {most}"

    @property
    def reason(self) -> str:
        """The sentence, and how many requests are behind it."""
        failed = format_count(self.outage.failed)
        return f"{self.sentence}: none of the last {failed} requests succeeded"

    def breaks(self, allowed: float) -> bool:
        """Return whether it is far beyond an allowed share of failures."""
        return self.outage.breaks(allowed, self.failed, self.n, users=self.users)


def with_outage(
    verdict: BudgetVerdict, stage: Repetitions, *, failures_judged: bool
) -> BudgetVerdict:
    """Return the verdict of a budget in a stage as an outage leaves it.

    `failures_judged` says whether there is a budget that limits the failures of its step.
    """
    allowed = _allowed(verdict.budget, failures_judged=failures_judged)
    own = _stopped(stage, verdict.budget.step)
    if own is not None and allowed is not None and own.breaks(allowed):
        failed = replace(verdict, reason=own.reason, outage=own.sentence)
        if verdict.outcome is Outcome.FAIL:
            return failed
        return replace(failed, outcome=Outcome.FAIL, low=None, high=None)
    seen = own or _stopped(stage, RUN)
    if verdict.outcome is Outcome.PASS and seen is not None and seen.breaks(_NOTABLE):
        return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=seen.reason)
    return verdict


def fails_anyway(verdict: BudgetVerdict, stage: Repetitions) -> bool:
    """Return whether a budget is broken by failures that no busy generator can have caused."""
    budget = verdict.budget
    if verdict.outage is not None:
        own = _stopped(stage, budget.step)
        return own is not None and not any(own.kinds[kind] for kind in _MAYBE_OURS)
    if budget.metric not in ("error_rate", "goodput") or budget.regression:
        return False
    allowed = _allowed(budget, failures_judged=True) or 0.0
    found = share_of(stage.failures(budget.step, _is_the_targets), allowed, budget.confidence)
    return found.fails or (allowed <= 0 and found.k > 0)


def _is_the_targets(kind: str) -> bool:
    return kind not in _MAYBE_OURS and not kind.startswith("exception") and not name_in(kind)


def _allowed(budget: Budget, *, failures_judged: bool) -> float | None:
    """Return the share of failures that a budget allows; None where it says nothing of them."""
    if budget.regression:
        return None
    if budget.metric == "error_rate":
        return budget.limit
    if budget.metric == "goodput":
        return 1 - budget.limit
    if failures_judged or budget.quantile is None or not budget.upper:
        return None
    return 1 - budget.quantile


def _stopped(stage: Repetitions, step: str) -> _Stopped | None:
    """Return the outage in which a step's requests ended; None where it came back, or was ours."""
    recording = stage.recording
    if not stage.stages or recording.run.get("status") != "complete":  # one ended early for failing
        return None
    total, failed = (np.concatenate(rows) for rows in zip(*_by_window(stage, step), strict=True))
    outage = stats.find_outage(total, failed)
    if outage is None or _succeeds_after(stage, step):
        return None
    number, t_s = _place(stage, outage.start)
    kinds = Counter[str]()
    for one in stage.stages[number:]:
        kinds.update(recording.requests(one.name, step).kinds_since(t_s))
    if not kinds or any(kind.startswith("exception") or name_in(kind) for kind in kinds):
        return None
    loads = [recording.load_totals(one.name) for one in stage.stages]
    limited = stage.stages[0].planned_rate_per_s is None or any(load.waited for load in loads)
    return _Stopped(
        outage=outage,
        kinds=kinds,
        t_s=t_s,
        failed=int(failed.sum()),
        n=int(total.sum()),
        users=max(load.max_in_flight for load in loads) if limited else None,
    )


def _by_window(stage: Repetitions, step: str) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield all and the failed requests of each repetition; what ended late is in its last one."""
    for one in stage.stages:
        requests = stage.recording.requests(one.name, step)
        size = _size(stage, one)
        for_each = []
        for counts in (requests.total, requests.failed):
            dense = by_window(counts, requests.index, one, stage.recording.interval_s)
            whole = dense[:size].copy()
            whole[-1] += dense[size:].sum()
            for_each.append(whole)
        yield for_each[0], for_each[1]


def _size(stage: Repetitions, one: StageWindow) -> int:
    return max(1, round((one.end_s - one.start_s) / stage.recording.interval_s))


def _place(stage: Repetitions, window: int) -> tuple[int, float]:
    """Return which repetition a window is of, and when it begins, seconds from the run's start."""
    for number, one in enumerate(stage.stages):
        size = _size(stage, one)
        if window < size:
            return number, one.start_s + window * stage.recording.interval_s
        window -= size
    raise IndexError(window)


def _succeeds_after(stage: Repetitions, step: str) -> bool:
    """Tell whether the target came back in a later stage."""
    end_s = stage.stages[-1].end_s
    later = [one.name for one in stage.recording.stages if one.start_s >= end_s]
    ended = (stage.recording.requests(name, step) for name in later)
    return any(requests.n > requests.n_failed for requests in ended)
