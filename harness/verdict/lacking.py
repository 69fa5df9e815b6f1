"""What a budget lacks that could not be decided, in words: samples, time, or any data at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness import stats
from harness.budget import RUN, Budget
from harness.recorder import Recording, StageWindow
from harness.stats import MeanEvidence, QuantileEvidence, ShareEvidence, Undecided
from harness.units import format_count

_LEAST_STAYS = 20  # of the p99 of a request's time in the system, in a stage
_NOTABLE_VIF = 1.5


def why_undecided(
    found: QuantileEvidence,
    budget: Budget,
    stages: Sequence[StageWindow],
    in_system_s: float | None,
) -> str:
    """Say what a quantile budget lacks that is neither met nor broken beyond doubt."""
    seconds = sum(stage.end_s - stage.start_s for stage in stages)
    if found.undecided is Undecided.SHORT:
        wanted = _LEAST_STAYS * (in_system_s or 0.0)
        if wanted > seconds:
            return (
                f"a run shows dependence only beyond {_LEAST_STAYS} times the p99 of a request's "
                f"time in the system: it needs {_seconds(wanted)}, has "
                f"{_seconds(seconds)}"
            )
        return why_unresolved(found, stages)
    if found.undecided is Undecided.DEPENDENCE:
        return why_unresolved(found, stages)
    over = found.k / found.n > found.allowed
    vif = found.vif_fail if over else found.vif_pass
    return _needs_samples(found.n, found.k, found.allowed, budget.confidence, vif, seconds)


def why_undecided_share(found: ShareEvidence, budget: Budget, stages: Sequence[StageWindow]) -> str:
    """Say what an error_rate or goodput lacks that is neither met nor broken beyond doubt."""
    if found.undecided in (Undecided.SHORT, Undecided.DEPENDENCE):
        return why_unresolved(found, stages)
    vif = found.vif_fail if found.k / found.n > found.allowed else found.vif_pass
    seconds = sum(stage.end_s - stage.start_s for stage in stages)
    return _needs_samples(found.n, found.k, found.allowed, budget.confidence, vif, seconds)


def why_unresolved(
    found: QuantileEvidence | ShareEvidence | MeanEvidence, stages: Sequence[StageWindow]
) -> str:
    """Say how much longer a stage must be before its dependence shows."""
    seconds = sum(stage.end_s - stage.start_s for stage in stages)
    if found.windows < stats.MIN_WINDOWS:
        wanted = seconds * stats.MIN_WINDOWS / found.windows
        return (
            f"the stage is too short to show how its samples depend on each other: it needs about "
            f"{_seconds(wanted)}, has {_seconds(seconds)}"
        )
    wanted = seconds * stats.MIN_EFFECTIVE_WINDOWS / found.effective_windows
    return (
        f"it comes in spells: the stage holds about {found.effective_windows:.0f} independent "
        f"windows and needs {stats.MIN_EFFECTIVE_WINDOWS}, about {_seconds(wanted)} of load"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds >= 120 else f"{seconds:.3g} s"


def _needs_samples(
    n: int, k: int, allowed: float, confidence: float, vif: float, seconds: float
) -> str:
    """Say how many more samples would decide a share, if it stayed where it is."""
    needed = stats.samples_to_decide(n, k, 1 - allowed, confidence, vif=vif)
    has = f"has {format_count(n)}"
    if vif > _NOTABLE_VIF:
        has += f" (effective {format_count(round(n / vif))})"
    if needed is None:
        return f"it lies too close to its limit to be decided by more samples, {has}"
    more = max(needed - n, 1)
    minutes = more / n * seconds / 60
    return f"needs about {format_count(more)} more samples ({minutes:,.1f} min at this rate), {has}"


def why_no_data(recording: Recording, budget: Budget, stages: Sequence[StageWindow]) -> str:
    """Say why there is nothing to judge a budget on."""
    known = recording.steps(stages[0].name)
    if not known:
        return "no request finished"
    if budget.step != RUN and budget.step not in known:
        return f"no step {budget.step} ran; the steps were {', '.join(known[:8])}"
    every = [recording.requests(stage.name, budget.step) for stage in stages]
    n = sum(requests.n for requests in every)
    if n and n == sum(requests.n_failed for requests in every):
        kinds = sum((Counter(requests.kinds) for requests in every), Counter[str]())
        return f"all {format_count(n)} requests failed ({kinds.most_common(1)[0][0]})"
    return f"{budget.step} gave no {budget.metric}"
