"""The end summary for a terminal: the verdict, why, whether to trust it, and the budgets.

No line is wider than 80 columns, whatever the names. Numbers are compact (`800ms`, as a plan is
written), and nothing that came from outside can move the cursor: control characters are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len

from harness.health import Check, Health
from harness.report import words
from harness.report.facts import Findings
from harness.report.pen import WIDTH, Line, Pen, pad, pieces
from harness.units import (
    NARROW_SPACE,
    format_count,
    format_duration,
    format_ratio_of_limit,
    format_share,
)
from harness.verdict import BudgetVerdict, Outcome, Verdict

FOLD_ABOVE, CLOSEST_PASSES = 15, 5
_MOST_ROWS = 60
_MOST_CHECKS = 6
_NARROWEST_NAME = 26

_TALLIED = (Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.INVALID)  # the headline says it by counts


def render_terminal(
    verdict: Verdict,
    findings: Findings,
    run: Mapping[str, Any],
    files: Sequence[str],
    *,
    color: bool,
    unicode: bool,
    width: int = WIDTH,
    exit_code: int | None = None,
) -> str:
    """Return the summary, without a line end after its last line.

    `run` is run.json, `files` what was written, as it should be shown. `width` counts up to 80.
    `exit_code` is what the command ends with where that is not the verdict's (an interrupted run).
    """
    pen = Pen(width=max(40, min(width, WIDTH)), unicode=unicode)
    lines = [
        _headline(verdict, run, pen),
        *_story(verdict, findings, run, pen),
        *_trust(verdict, findings, pen),
        *_table(verdict, pen),
        Line(""),
        *_footer(files, verdict.exit_code if exit_code is None else exit_code, pen),
    ]
    return "\n".join(line.painted(pen, color=color) for line in lines)


# --- words that the Markdown summary shares -------------------------------------------------------


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
        told.insert(0 if first else len(told), f"{what} {words.since_text(since, findings)}.")
    if slow and verdict.outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        told.append(
            f"{slow.step} makes {words.percent(slow.share)} of the extra time of slow "
            f"{slow.root} journeys in {slow.stage}."
        )
    return told + words.unsteady(findings, " ".join(told))


def trust(verdict: Verdict, findings: Findings) -> tuple[bool, str, list[str]]:
    """Return whether the measurement holds, a heading that says so, and the figures behind it."""
    health = verdict.health
    figures = [
        f"{format_count(health.sent)} of {format_count(health.planned)} sent",
        f"{format_count(health.dropped)} dropped",
    ]
    if health.cut_off:
        figures.append(f"{format_count(health.cut_off)} cut off")
    if health.send_lag_p99_ns is not None:
        figures.append(f"send lag p99 {format_duration(health.send_lag_p99_ns)}")
    if verdict.outcome is Outcome.NO_DATA:
        return False, "nothing measured", [*figures, *_failures(findings)]
    if health.valid:
        return True, "measurement valid", figures
    return False, f"measurement not valid{_where(health)}", figures


def broken_checks(health: Health) -> list[str]:
    """Say of each broken check what was measured, what it must be, and what to do."""
    return [_broken(check) for check in health.checks if not check.ok]


def folded(
    budgets: Sequence[BudgetVerdict],
) -> tuple[Sequence[BudgetVerdict], Sequence[BudgetVerdict]]:
    """Split many budgets into those to show and passes to fold away; both stay worst first."""
    if len(budgets) <= FOLD_ABOVE:
        return budgets, ()
    bad = sum(v.outcome is not Outcome.PASS for v in budgets)
    return budgets[: bad + CLOSEST_PASSES], budgets[bad + CLOSEST_PASSES :]


def folded_text(passes: Sequence[BudgetVerdict]) -> str:
    """`23 more budgets pass, none above 78 % of its limit`."""
    one = len(passes) == 1
    text = f"{format_count(len(passes))} more {'budget passes' if one else 'budgets pass'}"
    used = passes[0].used
    if used is None:
        return text
    at = format_ratio_of_limit(used)
    return f"{text}, at {at} of its limit" if one else f"{text}, none above {at} of its limit"


def _where(health: Health) -> str:
    stages = {check.stage: None for check in health.checks if not check.ok}
    return "" if None in stages else f" in {', '.join(str(stage) for stage in stages)}"


def _broken(check: Check) -> str:
    where = f" in {check.stage}" if check.stage else ""
    return f"{check.name}{where}: {check.measured}, must be {check.must}; {check.remedy}."


def _failures(findings: Findings) -> list[str]:
    """Count the most frequent kinds of failure."""
    return [
        f"{format_count(sum(error.by_stage.values()))} failed ({error.kind})"
        for error in findings.errors[:3]
    ]


# --- the parts, from top to bottom ----------------------------------------------------------------


def _headline(verdict: Verdict, run: Mapping[str, Any], pen: Pen) -> Line:
    head = f"{pen.mark(verdict.outcome)} {verdict.outcome}"
    text = f"{head}  {tally(verdict)}"
    room = pen.width - cell_len(text) - 2
    label = pen.middle(pen.clean(run_label(run)), min(room, 40)) if room >= 8 else ""
    padded = text + pad(label, pen.width - cell_len(text), right=True)
    return Line(padded, verdict.outcome, len(head))


def _story(
    verdict: Verdict, findings: Findings, run: Mapping[str, Any], pen: Pen
) -> Iterator[Line]:
    told = story(verdict, findings)
    if verdict.outcome is Outcome.PASS and verdict.detail:
        told[told.index(verdict.detail)] = f"Closest to its limit: {verdict.detail}"
    if verdict.outcome not in _TALLIED or not verdict.budgets:
        told.insert(0, verdict.sentence)
    for sentence in told:
        yield from pen.wrap(sentence, 2)
    if ended := words.early_end(run):
        yield from pen.wrap(ended, 2)


def _trust(verdict: Verdict, findings: Findings, pen: Pen) -> Iterator[Line]:
    ok, heading, figures = trust(verdict, findings)
    role = Outcome.PASS if ok else Outcome.INVALID
    first, *rest = pen.wrap(f"{heading}: {', '.join(figures)}", 2)
    head = f"{pen.mark(role)} {pen.clean(heading)}"
    yield Line(f"{pen.mark(role)} {first.text[2:]}", role, len(head))
    yield from rest
    broken = broken_checks(verdict.health)
    for text in broken[:_MOST_CHECKS]:
        yield from pen.wrap(text, 2)
    if len(broken) > _MOST_CHECKS:
        yield Line(f"  {len(broken) - _MOST_CHECKS} more checks are broken")


def _table(verdict: Verdict, pen: Pen) -> Iterator[Line]:
    shown, passes = folded(verdict.budgets)
    if not shown:
        return
    rows = shown[:_MOST_ROWS]
    columns = _Columns.of(rows, pen)
    yield Line("")
    yield columns.header()
    before = None
    for row in rows:
        yield columns.row(row)
        for note in columns.notes(row, before):
            yield from pen.wrap(note, columns.indent)
        before = row.reason
    if len(shown) > len(rows):
        yield Line(f"  {pen.clean(_left_out(shown[_MOST_ROWS:]))}")
    if passes:
        mark = pen.mark(Outcome.PASS)
        yield Line(f"{mark} {pen.clean(folded_text(passes))}", Outcome.PASS, len(mark))


def _left_out(rows: Iterable[BudgetVerdict]) -> str:
    outcomes = [row.outcome for row in rows]
    parts = [f"{format_count(outcomes.count(o))} {o}" for o in Outcome if o in outcomes]
    return f"{format_count(len(outcomes))} more are not shown: {', '.join(parts)}"


def _footer(files: Sequence[str], exit_code: int, pen: Pen) -> list[Line]:
    code = f"exit code {exit_code:d}"
    lines: list[str] = []
    for file in files:
        for piece in pieces(pen.clean(file), pen.width):
            joined = f"{lines[-1]}  {piece}" if lines else ""
            if lines and cell_len(joined) <= pen.width:
                lines[-1] = joined
            else:
                lines.append(piece)
    if not lines or cell_len(lines[-1]) + 2 + len(code) > pen.width:
        lines.append("")
    lines[-1] += pad(code, pen.width - cell_len(lines[-1]), right=True)
    return [Line(line) for line in lines]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """The widths of the table's columns; an interval that finds no room becomes a note."""

    pen: Pen
    word: int
    name: int
    limit: int
    observed: int
    interval: int
    confidence: float | None

    @classmethod
    def of(cls, rows: Sequence[BudgetVerdict], pen: Pen) -> _Columns:
        levels = {row.budget.confidence for row in rows}
        confidence = levels.pop() if len(levels) == 1 else None
        word = max(len("verdict"), *(len(row.outcome) for row in rows))
        limit = max(len("limit"), *(len(_limit(row, pen)) for row in rows))
        observed = max(len("observed"), *(len(_observed(row, pen)) for row in rows))
        interval = max(
            len(_interval_title(confidence, pen)),
            *(len(_interval(row, confidence, pen)) for row in rows),
        )
        room = pen.width - (2 + word + 1) - (1 + limit) - (1 + observed)
        if room - 2 - interval < _NARROWEST_NAME:
            interval = 0
        return cls(
            pen=pen,
            word=word,
            name=max(0, room - (interval and 2 + interval)),
            limit=limit,
            observed=observed,
            interval=interval,
            confidence=confidence,
        )

    @property
    def indent(self) -> int:
        """Where the name begins, and the notes below it."""
        return 2 + self.word + 1

    def header(self) -> Line:
        title = _interval_title(self.confidence, self.pen) if self.interval else ""
        return Line(f"  {self._cells('verdict', 'budget', 'limit', 'observed', title)}")

    def row(self, verdict: BudgetVerdict) -> Line:
        pen = self.pen
        cells = self._cells(
            verdict.outcome,
            _name(verdict, self.name, pen),
            _limit(verdict, pen),
            _observed(verdict, pen),
            _interval(verdict, self.confidence, pen) if self.interval else "",
        )
        head = f"{pen.mark(verdict.outcome)} {verdict.outcome}"
        return Line(f"{pen.mark(verdict.outcome)} {cells}", verdict.outcome, len(head))

    def notes(self, verdict: BudgetVerdict, before: str | None) -> Iterator[str]:
        """Say what has no column: an interval without room, a reason that was not just given.

        An INVALID budget's reason is a broken check; the trust line has listed those.
        """
        if not self.interval and (verdict.low is not None or verdict.high is not None):
            title = _interval_title(verdict.budget.confidence, self.pen)
            yield f"{title} {_interval(verdict, verdict.budget.confidence, self.pen)}"
        if verdict.reason and verdict.reason != before and verdict.outcome is not Outcome.INVALID:
            yield verdict.reason

    def _cells(self, word: str, name: str, limit: str, observed: str, interval: str) -> str:
        return (
            f"{pad(word, self.word)} {pad(name, self.name)} "
            f"{pad(limit, self.limit, right=True)} {pad(observed, self.observed, right=True)}"
            f"  {interval}"
        )


def _name(verdict: BudgetVerdict, room: int, pen: Pen) -> str:
    """Name subject and stage; a long step gives way before the metric and the stage do."""
    budget = verdict.budget
    tail = pen.clean(f".{budget.measure} {verdict.stage}")
    step = pen.middle(pen.clean(budget.step), max(12, room - cell_len(tail)))
    return pen.middle(step + tail, room)


def _limit(verdict: BudgetVerdict, pen: Pen) -> str:
    return pen.clean(f"{verdict.budget.op}{verdict.budget.limit_text}")


def _observed(verdict: BudgetVerdict, pen: Pen) -> str:
    return pen.clean(words.observed(verdict))


def _interval(verdict: BudgetVerdict, confidence: float | None, pen: Pen) -> str:
    """`1,097–1,216`, in the observed value's unit; its confidence too where rows differ in that."""
    text = re.sub(f"{NARROW_SPACE}[^ ]+", "", words.interval(verdict))
    own = f"{format_share(verdict.budget.confidence)} " if confidence is None else ""
    judged = verdict.low is not None or verdict.high is not None
    return pen.clean(f"{own if judged else ''}{text.replace(' – ', '–')}")


def _interval_title(confidence: float | None, pen: Pen) -> str:
    return pen.clean("bounds" if confidence is None else f"{format_share(confidence)} bounds")
