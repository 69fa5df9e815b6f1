"""Sentences about the run as a whole: which it is, since when it fails, what was not steady."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from harness.health import Check, Health
from harness.health.streams import REMEDY
from harness.recorder import Recording
from harness.report.facts import Findings, OverTime, Since
from harness.report.facts.subject import stage_name
from harness.report.words.quantities import counted, percent, stage_phrase
from harness.steadiness import Drift
from harness.units import (
    format_clock,
    format_count,
    format_duration,
    format_rate,
    format_ratio_of_limit,
    format_share,
)
from harness.verdict import BudgetVerdict, Outcome, Verdict

_MOST_DRIFTS = 3


def run_line(recording: Recording) -> list[str]:
    """Return which run this is: name, id, target, model, commit and time."""
    run = recording.run
    target = run.get("target")
    known = {**run, **(target if isinstance(target, Mapping) else {"url": target})}
    templates = {
        "name": "{}",
        "id": "run {}",
        "url": "target {}",
        "model": "model {}",
        "commit": "commit {}",
    }
    said = [text.format(known[key]) for key, text in templates.items() if known.get(key)]
    started = run.get("started_unix_s")
    when = [time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started))] if started else []
    return [*(said or [recording.folder.name]), *when]


def arm_line(recording: Recording) -> list[str]:
    """Say of one target's part of an interleaved run what its times are."""
    interleaved = recording.run.get("interleaved")
    arm = interleaved.get("arm") if isinstance(interleaved, Mapping) else None
    return [f"target {arm} of an A/B run, in the time it was on duty"] if arm else []


def unsteady(findings: Findings, said: str) -> list[str]:
    """Say what was not steady, where that was not `said` before; each thing once, at most three."""
    told: dict[tuple[str, str], list[Drift]] = {}
    for drift in findings.drifts:
        told.setdefault((drift.kind, drift.stage), []).append(drift)
    return [
        _drifted(drifts)
        for drifts in list(told.values())[:_MOST_DRIFTS]
        if drifts[0].sentence not in said
    ]


def _drifted(drifts: Sequence[Drift]) -> str:
    """Say the first of several alike, and what else it holds for."""
    first, *others = drifts
    more = "".join(f" The same holds for {drift.subject}." for drift in others[:1])
    if len(others) > 1:
        more = f" The same holds for {len(others)} other metrics."
    return f"{re.sub('^overload', 'Overload', first.sentence)}.{more}"


def early_end(run: Mapping[str, Any]) -> str:
    """Say that a load did not run to its end, and why; empty when it did."""
    if run.get("status") == "interrupted":
        return "The run was interrupted: judged is what was measured before."
    aborted = run.get("aborted")
    return f"The load was {aborted['why']}." if aborted else ""


def other_budgets(verdict: Verdict) -> str:
    """Say that another plan's budgets were judged; empty where they are the run's own."""
    by = verdict.judged_by
    return f"Judged by the budgets of {by}, not by those the run was declared with." if by else ""


def since_text(since: Since, findings: Findings) -> str:
    """`since 6:08, 8 s into the spike stage`."""
    stage = f"the {stage_phrase(since.stage)}"
    where = (
        f"{format_duration(since.offset_s * 1e9)} into {stage}"
        if since.offset_s > 0
        else f"the start of {stage}"
    )
    facts = findings.over_time
    word = "since" if isinstance(facts, OverTime) and facts.still_over else "from"
    return f"{word} {format_clock(since.t_s)}, {where}"


def load_change(since: Since, recording: Recording) -> str:
    """Say how the load changed before: `load rose from 20/s to 60/s at 6:00`, or nothing."""
    names = [stage.name for stage in recording.stages]
    at = names.index(since.stage)
    stage = recording.stages[at]
    before = recording.stages[at - 1].planned_rate_per_s if at else None
    after = stage.planned_rate_per_s
    if before is None or after is None or before == after:
        return ""
    verb = "rose" if after > before else "fell"
    return (
        f"load {verb} from {format_rate(before)} to {format_rate(after)} "
        f"at {format_clock(stage.start_s)}"
    )


def budgets_heading(budgets: Sequence[BudgetVerdict]) -> str:
    """`2 of 11 budgets are broken, 1 cannot be decided yet`."""
    if not budgets:
        return "No budgets were declared"
    of = f"{counted(len(budgets), 'budget')}"
    counts = {o: sum(v.outcome is o for v in budgets) for o in Outcome}
    unmeasured = counts[Outcome.INVALID] + counts[Outcome.NO_DATA]
    parts = [
        (counts[Outcome.FAIL], "is broken", "are broken"),
        (unmeasured, "was not measured", "were not measured"),
        (counts[Outcome.INCONCLUSIVE], "cannot be decided yet", "cannot be decided yet"),
    ]
    said = [(n, one if n == 1 else many) for n, one, many in parts if n]
    if len(budgets) == 1:
        return f"The budget {said[0][1] if said else 'passes'}"
    if not said:
        return f"{len(budgets)} of {of} pass"
    (n, verb), *rest = said
    return f"{n} of {of} {verb}" + "".join(f", {k} {v}" for k, v in rest)


def folded(passes: Sequence[BudgetVerdict]) -> str:
    """`23 more budgets pass, none above 78 % of its limit`."""
    one = len(passes) == 1
    text = f"{format_count(len(passes))} more {'budget passes' if one else 'budgets pass'}"
    used = passes[0].used
    if used is None:
        return text
    at = format_ratio_of_limit(used)
    return f"{text}, at {at} of its limit" if one else f"{text}, none above {at} of its limit"


def run_label(run: Mapping[str, Any]) -> str:
    """Name the run by its id: `run 418`; empty where it has none."""
    return f"run {run['id']}" if run.get("id") else ""


def tally(verdict: Verdict) -> str:
    """Count the budgets: `2 of 11 budgets broken, 1 inconclusive`."""
    total = len(verdict.budgets)
    if not total:
        return "no budget was judged"
    counts = verdict.tallies()
    unmeasured = counts.get(Outcome.INVALID, 0) + counts.get(Outcome.NO_DATA, 0)
    parts = [
        (counts.get(Outcome.FAIL, 0), "broken"),
        (unmeasured, "not measured"),
        (counts.get(Outcome.INCONCLUSIVE, 0), "inconclusive"),
        (counts.get(Outcome.PASS, 0), "passes" if total == 1 else "pass"),
    ]
    (first, what), *others = [(n, word) for n, word in parts if n]
    text = f"{format_count(first)} of {format_count(total)} budget{'s'[: total != 1]} {what}"
    bad = [f"{format_count(n)} {word}" for n, word in others if not word.startswith("pass")]
    return ", ".join([text, *bad])


def story(verdict: Verdict, findings: Findings) -> list[str]:
    """Say what there is to say beyond the verdict's own sentence: since when, which step."""
    unfit = verdict.outcome is Outcome.INVALID and not verdict.health.valid
    told = [verdict.detail] if verdict.detail and not unfit else []  # the broken checks say it
    focus, since, slow = findings.focus, findings.since, findings.slow_step
    if since and focus and focus.outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        first = focus is verdict.budgets[0]
        what = "Over the limit" if first else f"{focus.budget.subject} is over its limit"
        told.insert(0 if first else len(told), f"{what} {since_text(since, findings)}.")
    if slow and verdict.outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        told.append(
            f"{slow.step} makes {percent(slow.share)} of the extra time of slow "
            f"{slow.root} journeys in {stage_name(slow.stage)}."
        )
    return told + unsteady(findings, " ".join(told)) + remarks(verdict.health, " ".join(told))


def remarks(health: Health, told: str = "") -> list[str]:
    """Return what to know of the streams, as sentences; not what was told already."""
    untold = [one for one in health.remarks if one not in told]
    rest = [REMEDY if one.removesuffix(f": {REMEDY}") in told else one for one in untold]
    return [f"{one[:1].upper()}{one[1:]}." for one in rest]


def trust(verdict: Verdict, findings: Findings) -> tuple[bool, str, list[str]]:
    """Return whether the measurement holds, a heading that says so, and the figures behind it."""
    health = verdict.health
    figures = [
        f"{format_count(health.sent)} of {format_count(health.planned)} sent",
        f"{format_count(health.dropped)} dropped",
    ]
    if health.cut_off:
        figures.append(f"{format_count(health.cut_off)} cut off")
    if health.raised:
        figures.append(exceptions(health))
    if health.send_lag_p99_ns is not None:
        figures.append(f"send lag p99 {format_duration(health.send_lag_p99_ns)}")
    if verdict.outcome is Outcome.NO_DATA:
        return False, "nothing measured", [*figures, *_failures(findings)]
    if health.valid:
        return True, "measurement valid", figures
    return False, f"measurement not valid{_where(health)}", figures


def exceptions(health: Health) -> str:
    """Count the journeys that the scenario's own code ended, and name the first exception."""
    noun = "exception" if health.raised == 1 else "exceptions"
    first = f", the first: {health.first_exception}" if health.first_exception else ""
    return f"{format_count(health.raised)} {noun} of the scenario{first}"


def broken_checks(health: Health) -> list[str]:
    """Say of each broken check what was measured, what it must be, and what to do, once."""
    broken = [check for check in health.checks if not check.ok]
    first = {check.remedy: check for check in reversed(broken)}
    return [_broken(check, advised=first[check.remedy] is check) for check in broken]


def _where(health: Health) -> str:
    stages = {
        check.stage and stage_name(check.stage): None for check in health.checks if not check.ok
    }
    return "" if None in stages else f" in {', '.join(str(stage) for stage in stages)}"


def _broken(check: Check, *, advised: bool) -> str:
    where = f" in {stage_name(check.stage)}" if check.stage else ""
    said = f"{check.name}{where}: {check.measured}, must be {check.must}"
    return f"{said}; {check.remedy}." if advised else f"{said}."


def _failures(findings: Findings) -> list[str]:
    """Count the most frequent kinds of failure."""
    return [
        f"{format_count(sum(error.by_stage.values()))} failed ({error.kind})"
        for error in findings.errors[:3]
    ]


def interval_name(budgets: Sequence[BudgetVerdict]) -> str:
    """Name the intervals by their confidence, if all have the same."""
    levels = {row.budget.confidence for row in budgets} or {0.95}
    return f"{format_share(levels.pop())} bounds" if len(levels) == 1 else "Bounds"
