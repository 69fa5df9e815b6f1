"""What a run as a whole came to, and the first sentence of every report."""

from __future__ import annotations

from collections.abc import Sequence

from harness.budget import RUN
from harness.health import Health
from harness.recorder import Recording
from harness.units import format_count, format_ratio_of_limit
from harness.verdict.outcome import BudgetVerdict, Outcome


def outcome_of_run(
    recording: Recording, judged: Sequence[BudgetVerdict], health: Health
) -> Outcome:
    """Return what a run came to, its budgets worst first: what the worst of them did.

    Without any request that finished it is no data, whatever the budgets are; a budget without data
    makes the run invalid.
    """
    recorded = [recording.requests(stage.name, RUN) for stage in recording.stages if stage.record]
    finished = sum(requests.n - requests.n_failed for requests in recorded)
    if any(b.outcome is Outcome.FAIL for b in judged):
        return Outcome.FAIL
    if not finished:
        return Outcome.NO_DATA
    if not judged:
        return Outcome.PASS if health.valid else Outcome.INVALID
    return judged[0].outcome if judged[0].outcome is not Outcome.NO_DATA else Outcome.INVALID


def headline(
    outcome: Outcome, judged: Sequence[BudgetVerdict], recording: Recording, *, declared: int
) -> tuple[str, str]:
    """Return one sentence for the top of every report, and what more there is to say.

    `declared` counts the budgets, also those for which no stage was there to judge them in.
    """
    if outcome is Outcome.NO_DATA:
        return _headline_no_data(recording, declared)
    if not judged:
        return "No budgets were declared; this run was only measured.", ""
    worst = judged[0]
    group = [b for b in judged if b.outcome is worst.outcome]
    rest = " ".join(b.sentence for b in group[1:3])
    total = len(judged)
    if outcome is Outcome.PASS:
        noun = "budget passes" if total == 1 else "budgets pass"
        used = format_ratio_of_limit(worst.used or 0.0)
        head = "The only" if total == 1 else f"All {format_count(total)}"
        return f"{head} {noun}. The closest uses {used} of its limit.", worst.sentence
    if outcome is Outcome.FAIL:
        return worst.sentence, f"Also over: {rest}" if rest else ""
    if outcome is Outcome.INCONCLUSIVE:
        noun = "budget" if total == 1 else "budgets"
        return f"{len(group)} of {total} {noun} cannot be decided yet.", worst.sentence
    unfit = sum(b.outcome in (Outcome.INVALID, Outcome.NO_DATA) for b in judged)
    noun = "budget was" if unfit == 1 else "budgets were"
    return f"{unfit} {noun} not measured.", worst.sentence


def _headline_no_data(recording: Recording, declared: int) -> tuple[str, str]:
    recorded = [stage.name for stage in recording.stages if stage.record]
    totals = [recording.load_totals(name) for name in recorded]
    planned = format_count(sum(total.planned for total in totals))
    failed = format_count(sum(total.failed for total in totals))
    budgets = "1 budget is" if declared == 1 else f"{format_count(declared)} budgets are"
    why, detail = "No request succeeded", f"{budgets} declared, none was judged."
    if recorded:
        detail += f" Of {planned} planned requests none succeeded, {failed} failed."
    else:
        why = "The load ended before a stage that is judged began"
    if first := recording.run.get("first_failure"):
        detail += f" First error: {first}."
    return f"{why}, so no budget could be judged.", detail
