"""What a budget lacks that could not be decided, in words: samples, time, or any data at all."""

from __future__ import annotations

from collections import Counter

from harness import stats
from harness.budget import RUN, Budget
from harness.recorder import Recording
from harness.stats import MeanEvidence, Undecided
from harness.stats.evidence import Evidence
from harness.units import format_count
from harness.verdict.samples import Repetitions

_LEAST_STAYS = 20  # of the p99 of a request's time in the system, in a stage
_NOTABLE_VIF = 1.5


def why_undecided(found: Evidence, seconds: float, in_system_s: float | None = None) -> str:
    """Say what a quantile or share lacks that is neither kept nor broken beyond doubt.

    `seconds` is how long all of its stages lasted, `in_system_s` the p99 of a request's time there.
    """
    wanted = _LEAST_STAYS * (in_system_s or 0.0)
    if found.undecided is Undecided.SHORT and wanted > seconds:
        return (
            f"a run shows dependence only beyond {_LEAST_STAYS} times the p99 of a request's "
            f"time in the system: it needs {_seconds(wanted)}, has {_seconds(seconds)}"
        )
    if found.undecided in (Undecided.SHORT, Undecided.DEPENDENCE):
        return why_unresolved(found, seconds)
    return _needs_samples(found, seconds)


def why_unresolved(found: Evidence | MeanEvidence, seconds: float) -> str:
    """Say how much longer stages of so many seconds must be before their dependence shows."""
    if found.windows < stats.MIN_WINDOWS:
        wanted = seconds * stats.MIN_WINDOWS / found.windows
        return (
            f"the stage is too short to show how its samples depend on each other: it needs about "
            f"{_seconds(wanted)}, has {_seconds(seconds)}"
        )
    wanted = seconds * stats.MIN_EFFECTIVE_WINDOWS / found.effective_windows
    return (
        f"it comes in spells: of about {found.effective_windows:.0f} independent windows only what "
        f"is far from its limit is decided, {stats.MIN_EFFECTIVE_WINDOWS} take about "
        f"{_seconds(wanted)} of load"
    )


def _needs_samples(found: Evidence, seconds: float) -> str:
    """Say how many more samples would decide a share, if it stayed where it is."""
    n, k, allowed = found.n, found.k, found.allowed
    vif = found.vif_fail if k / n > allowed else found.vif_pass
    if not found.resolved:  # even were they independent
        vif = 1.0
    needed = stats.samples_to_decide(n, k, 1 - allowed, found.confidence, vif=vif)
    has = f"has {format_count(n)}"
    if vif > _NOTABLE_VIF:
        has += f" (effective {format_count(round(n / vif))})"
    if needed is None:
        return f"it lies too close to its limit to be decided by more samples, {has}"
    more = max(needed - n, 1)
    lasts = _seconds(more / n * seconds)
    return f"needs about {format_count(more)} more samples ({lasts} at this rate), {has}"


def _seconds(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds >= 120 else f"{seconds:.3g} s"


def why_no_data(stage: Repetitions, budget: Budget) -> str:
    """Say why there is nothing to judge a budget on."""
    recording = stage.recording
    known = recording.steps(stage.stages[0].name)
    if not known:
        return "no request finished"
    if budget.step != RUN and budget.step not in known:
        return f"no step {budget.step} ran; the steps were {', '.join(known[:8])}"
    every = [requests for _, requests in stage.requests(budget.step)]
    n = sum(requests.n for requests in every)
    if n and n == sum(requests.n_failed for requests in every):
        kinds = sum((Counter(requests.kinds) for requests in every), Counter[str]())
        return f"all {format_count(n)} requests failed ({kinds.most_common(1)[0][0]})"
    if budget.metric == "cost":
        return f"{budget.step} gave no cost: {_why_no_cost(recording)}"
    return f"{budget.step} gave no {budget.metric}"


def _why_no_cost(recording: Recording) -> str:
    if recording.run.get("prices") is None:
        return "the run was recorded by a plan without prices"
    return "no execution had all its tokens reported; let the target report its usage"
