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

from harness.report import words
from harness.report.facts import Findings
from harness.report.facts.budgets import fold
from harness.report.pen import WIDTH, Line, Pen, pad, pieces
from harness.units import (
    NARROW_SPACE,
    format_count,
    format_share,
)
from harness.verdict import BudgetVerdict, Outcome, Verdict

_MOST_ROWS = 60
_MOST_CHECKS = 6
_MOST_COSTS, _LEAST_NAME = 12, 16
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
        *_table(verdict, findings, pen),
        *_cost_table(findings, pen),
        Line(""),
        *_footer(files, verdict.exit_code if exit_code is None else exit_code, pen),
    ]
    return "\n".join(line.painted(pen, color=color) for line in lines)


def _headline(verdict: Verdict, run: Mapping[str, Any], pen: Pen) -> Line:
    head = f"{pen.mark(verdict.outcome)} {verdict.outcome}"
    text = f"{head}  {words.tally(verdict)}"
    room = pen.width - cell_len(text) - 2
    label = pen.middle(pen.clean(words.run_label(run)), min(room, 40)) if room >= 8 else ""
    padded = text + pad(label, pen.width - cell_len(text), right=True)
    return Line(padded, verdict.outcome, len(head))


def _story(
    verdict: Verdict, findings: Findings, run: Mapping[str, Any], pen: Pen
) -> Iterator[Line]:
    told = words.story(verdict, findings)
    if verdict.outcome is Outcome.PASS and verdict.detail:
        told[told.index(verdict.detail)] = f"Closest to its limit: {verdict.detail}"
    if verdict.outcome not in _TALLIED or not verdict.budgets:
        told.insert(0, verdict.sentence)
    for sentence in told:
        yield from pen.wrap(sentence, 2)
    for text in filter(None, (words.other_budgets(verdict), words.early_end(run))):
        yield from pen.wrap(text, 2)


def _trust(verdict: Verdict, findings: Findings, pen: Pen) -> Iterator[Line]:
    ok, heading, figures = words.trust(verdict, findings)
    role = Outcome.PASS if ok else Outcome.INVALID
    first, *rest = pen.wrap(f"{heading}: {', '.join(figures)}", 2)
    head = f"{pen.mark(role)} {pen.clean(heading)}"
    yield Line(f"{pen.mark(role)} {first.text[2:]}", role, len(head))
    yield from rest
    broken = words.broken_checks(verdict.health)
    for text in broken[:_MOST_CHECKS]:
        yield from pen.wrap(text, 2)
    if len(broken) > _MOST_CHECKS:
        yield Line(f"  {len(broken) - _MOST_CHECKS} more checks are broken")


def _table(verdict: Verdict, findings: Findings, pen: Pen) -> Iterator[Line]:
    shown, passes = fold(verdict.budgets)
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
        if row.outcome is not Outcome.PASS and (runs := words.runs(row, findings.runs_of(row))):
            yield from pen.wrap(runs, columns.indent)
        before = row.reason
    if len(shown) > len(rows):
        yield Line(f"  {pen.clean(_left_out(shown[_MOST_ROWS:]))}")
    if passes:
        mark = pen.mark(Outcome.PASS)
        yield Line(f"{mark} {pen.clean(words.folded(passes))}", Outcome.PASS, len(mark))


def _cost_table(findings: Findings, pen: Pen) -> Iterator[Line]:
    """Show what each step costs, in the first stage, with as many columns as find room."""
    if findings.costs is None:
        return
    said = words.costs(findings.costs)
    yield Line("")
    yield from pen.wrap(f"{said.heading}.", 2)
    if not said.rows:
        yield from pen.wrap(said.note, 2)
        return
    shown = said.rows[:_MOST_COSTS]
    rows = [[pen.clean(cell.replace(" – ", "–")) for cell in row] for row in shown]
    heads = [
        "cost",
        *(pen.clean(name).removesuffix(" in + out") for name in said.columns[1:]),
    ]
    kept = _fitting([heads, *rows], pen)
    width = [max(cell_len(row[i]) for row in (heads, *rows)) for i in kept]
    name = min(width[0], pen.width - 2 - sum(w + 2 for w in width[1:]))
    for row in (heads, *rows):
        cells = (
            f"  {pad(row[i], w, right=True)}" for i, w in zip(kept[1:], width[1:], strict=True)
        )
        yield Line(pen.clip(f"  {pad(pen.middle(row[0], name), name)}{''.join(cells)}"))
    if len(said.rows) > len(rows):
        yield Line(f"  {format_count(len(said.rows) - len(rows))} more steps are in the report")


def _fitting(rows: Sequence[Sequence[str]], pen: Pen) -> list[int]:
    """Return the columns that leave room for names: the last ones give way first, then bounds."""
    kept = list(range(len(rows[0])))
    width = [max(cell_len(row[i]) for row in rows) for i in kept]
    width[0] = min(width[0], _LEAST_NAME)
    for i in (*reversed(kept[4:]), 3, 2):
        if sum(width[i] + 2 for i in kept) > pen.width:
            kept.remove(i)
    return kept


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
