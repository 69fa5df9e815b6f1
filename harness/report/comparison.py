"""What `harness compare` shows: for a terminal, for a pull request, and for programs.

schema_version     1
outcome            "PASS" | "FAIL" | "INCONCLUSIVE" | "INVALID" | "NO DATA", or null where the
                   runs may be compared and no limit was declared
exit_code          what the command ends with
sentence           the headline, for people
base, candidate    the two runs: folder (its name), id, name, target, commit, started_at
confidence         of the intervals of statistics without a budget
comparable         whether nothing forbids a verdict, and forbids: the reasons
unlike             in what the runs differ: what, stage (null: the whole run), base, candidate,
                   weight ("meant to differ", "may differ", "must not differ"), remedy
rows               one per stage, step, metric and statistic of both runs: those names, unit
                   ("ns", "tokens", "share", "per_s", "nano_usd"), base, candidate, change
                   (relative; of a share the difference), low and high (the ends of its interval or
                   null), lacking (of what there are too few for one, or null), runs on each side,
                   pairs of interleaved blocks (null: not paired) and variance_left (what pairing
                   left of two independent runs' variance), and limit, outcome and reason where a
                   budget limits it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len

from harness.compare import Comparison, Row
from harness.errors import ExitCode
from harness.recorder import Recording
from harness.report import words
from harness.report.escaping import MARKS, code, escaped
from harness.report.export import UNITS, plain
from harness.report.pen import WIDTH, Line, Pen, pad
from harness.units import MINUS, NARROW_SPACE, format_count, format_share
from harness.verdict import BudgetVerdict, Outcome
from harness.verdict.likeness import Unlike, Weight

SCHEMA_VERSION = 1  # 1: first
_MOST_ROWS = 60
_RUN_KEYS = ("id", "name", "target", "commit", "started_at")
_COMPARED = "COMPARED"  # where nothing was judged


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return what `json.dumps(..., allow_nan=False)` takes; see the module for its keys."""
    whole = {
        "schema_version": SCHEMA_VERSION,
        "outcome": None if comparison.outcome is None else str(comparison.outcome),
        "exit_code": int(comparison.exit_code),
        "sentence": comparison.sentence,
        "base": _run_json(comparison.base),
        "candidate": _run_json(comparison.candidate),
        "confidence": comparison.confidence,
        "comparable": not comparison.forbids,
        "forbids": comparison.forbids,
        "unlike": [
            {
                "what": one.what,
                "stage": one.stage,
                "base": one.base,
                "candidate": one.candidate,
                "weight": one.weight.value,
                "remedy": one.remedy,
            }
            for one in comparison.unlike
        ],
        "rows": [_row_json(row) for row in comparison.rows],
    }
    whole_plain: dict[str, Any] = plain(whole)
    return whole_plain


def render_text(
    comparison: Comparison,
    *,
    color: bool,
    unicode: bool,
    width: int = WIDTH,
    more: Callable[[Pen], Iterable[Line]] = lambda _pen: (),
    exit_code: ExitCode | None = None,
) -> str:
    """Return the comparison for a terminal, without a line end after its last line.

    `more` is said below the table; `exit_code` is what the command ends with, if not the
    comparison's.
    """
    pen = Pen(width=max(40, min(width, WIDTH)), unicode=unicode)
    lines = [
        *_headline(comparison, pen),
        *_story(comparison, pen),
        *_likeness(comparison, pen),
        *_table(comparison, pen),
        *more(pen),
        Line(""),
        Line(pad(f"exit code {int(exit_code or comparison.exit_code)}", pen.width, right=True)),
    ]
    return "\n".join(line.painted(pen, color=color) for line in lines)


def render_markdown(comparison: Comparison) -> str:
    """Return the comparison as a comment for a pull request; it ends with a line end."""
    shown, left_out = _shown(comparison, most=200)
    judged = [row for row in shown if row.verdict]
    others = [row for row in shown if not row.verdict]
    head = f"{_mark(comparison)} {comparison.outcome or _COMPARED}"
    parts = [
        f"## {head} – {escaped(_versus(comparison))}",
        f"**{escaped(comparison.sentence)}**",
        *_likeness_markdown(comparison),
    ]
    if judged:
        parts.append(_table_markdown(comparison, judged))
    if others:
        table = _table_markdown(comparison, others)
        summary = f"{format_count(len(others))} statistics without a limit"
        folded = f"<details><summary>{summary}</summary>\n\n{table}\n\n</details>"
        parts.append(folded if judged else table)
    if left_out:
        parts.append(f"{format_count(left_out)} more statistics did not change.")
    return "\n\n".join(parts) + "\n"


# --- what all forms say ---------------------------------------------------------------------------


def _versus(comparison: Comparison) -> str:
    runs = comparison.candidate, comparison.base
    ids = [run.run.get("id") for run in runs]
    named = ids if all(ids) and ids[0] != ids[1] else [run.folder.name for run in runs]
    return f"run {named[0]} against {named[1]}"


def _differences(comparison: Comparison, weight: Weight) -> str:
    """`model a, now b; seed 1, now 2`."""
    return "; ".join(_moved(one) for one in comparison.unlike if one.weight is weight)


def _moved(one: Unlike) -> str:
    where = f" in {one.stage}" if one.stage else ""
    text = f"{one.what}{where} {words.short(one.base)}, now {words.short(one.candidate)}"
    return f"{text} ({one.remedy})" if one.remedy else text


def _shown(comparison: Comparison, *, most: int) -> tuple[list[Row], int]:
    """Return the rows that find room, in their order: judged ones and changes before others."""
    weight = [(row.verdict is not None, row.changed) for row in comparison.rows]
    ranked = sorted(range(len(weight)), key=lambda i: weight[i], reverse=True)[:most]
    return [comparison.rows[i] for i in sorted(ranked)], len(weight) - len(ranked)


def _value(value: float, row: Row) -> str:
    return words.number(value, row.kind)


def _signed(change: float, row: Row) -> str:
    """`+12.4 %`; of a share `+0.3 pp`, percentage points."""
    return f"{_percents(change)}{NARROW_SPACE}{_unit(row)}"


def _interval(row: Row) -> str:
    """`+8.1 to +16.9 %`; an end that the samples cannot give is a question mark."""
    ends = row.shown_change[1:]
    if ends == (None, None):
        return "?"
    low, high = ("?" if end is None else _percents(end) for end in ends)
    unit = f"{NARROW_SPACE}{_unit(row)}"
    return f"{low}{unit} to ?" if high == "?" else f"{low} to {high}{unit}"


def _percents(share: float) -> str:
    digits = format_share(abs(share)).removesuffix(f"{NARROW_SPACE}%")
    return f"{'+' if share > 0 else MINUS if share < 0 else ''}{digits}"


def _unit(row: Row) -> str:
    return "pp" if row.kind == "share" else "%"


def _limit(verdict: BudgetVerdict) -> str:
    points = verdict.budget.metric in ("error_rate", "goodput")
    return verdict.budget.limit_text.replace("%", f"{NARROW_SPACE}{'pp' if points else '%'}")


def _why_undecided(row: Row) -> str:
    """Say what a decision needs; what forbids one stands above the table."""
    undecided = row.verdict is not None and row.verdict.outcome is Outcome.INCONCLUSIVE
    return row.verdict.reason or "" if row.verdict and undecided else ""


def _name(row: Row) -> str:
    return f"{row.step}.{row.metric} {row.statistic}".rstrip()


# --- for a terminal -------------------------------------------------------------------------------


def _headline(comparison: Comparison, pen: Pen) -> Iterator[Line]:
    outcome = comparison.outcome
    head = f"{pen.mark(outcome)} {outcome}" if outcome else f"= {_COMPARED}"
    text = f"{head}  {_tally(comparison)}".rstrip()
    label, left = pen.clean(_versus(comparison)), pen.width - cell_len(text)
    beside = cell_len(label) <= left - 2
    line = text + pad(label, left, right=True) if beside else text
    yield Line(line, outcome, len(head) if outcome else 0)
    if not beside:
        yield from pen.wrap(label, 2)


def _tally(comparison: Comparison) -> str:
    if comparison.verdict is None:
        return ""
    total = len(comparison.verdict.budgets)
    broken = comparison.verdict.tallies().get(Outcome.FAIL, 0)
    return f"{broken} of {total} {'limit' if total == 1 else 'limits'} broken"


def _story(comparison: Comparison, pen: Pen) -> Iterator[Line]:
    yield from pen.wrap(comparison.sentence, 2)
    if comparison.verdict is not None and comparison.verdict.detail:
        yield from pen.wrap(comparison.verdict.detail, 2)
    if comparison.outcome is None:
        yield from pen.wrap(
            'Declare what is allowed: --limit 5%, or --budget "chat.e2el p99 regression < 5%".', 2
        )


def _likeness(comparison: Comparison, pen: Pen) -> Iterator[Line]:
    role = Outcome.INVALID if comparison.forbids else Outcome.PASS
    text = "not comparable" if comparison.forbids else f"comparable: {_SAME}"
    head = f"{pen.mark(role)} {text.partition(':')[0]}"
    yield Line(f"{pen.mark(role)} {text}", role, len(head))
    for reason in comparison.forbids:
        yield from pen.wrap(reason, 2)
    for title, weight in _TITLES.items():
        said = _differences(comparison, weight)
        if said:
            yield from pen.wrap(f"{title}: {said}", 2)


_SAME = "same load, inputs, scenario, machine and clock"
_TITLES = {"meant to differ": Weight.MEANT, "also differs": Weight.NOTED}


def _table(comparison: Comparison, pen: Pen) -> Iterator[Line]:
    rows, left_out = _shown(comparison, most=_MOST_ROWS)
    percent = format_share(comparison.confidence)
    stage, told = None, ""
    values = [pen.clean(_value(value, row)) for row in rows for value in row.values]
    width = max([9, *(cell_len(value) + 2 for value in values)])
    for row in rows:
        if row.stage != stage:
            stage = row.stage
            yield Line("")
            title = pen.clean(f"{percent} bounds")
            yield Line(f"  {_cells(pen, width, stage, 'baseline', 'now', 'change', title)}")
        yield _text_row(row, pen, width)
        why = _why_undecided(row)
        if why != told:
            yield from pen.wrap(why, 4)
        told = why
    if left_out:
        yield Line(f"  {format_count(left_out)} more statistics did not change: --json - has all")


def _text_row(row: Row, pen: Pen, width: int) -> Line:
    base, candidate = row.values
    cells = _cells(
        pen,
        width,
        _name(row),
        _value(base, row),
        _value(candidate, row),
        _signed(row.shown_change[0], row),
        _interval(row),
    )
    outcome = row.verdict.outcome if row.verdict else None
    if row.verdict is None or outcome is None:
        return Line(f"  {cells}")
    mark = pen.mark(outcome)
    return Line(f"{mark} {cells}", outcome, len(mark))


def _cells(
    pen: Pen, width: int, name: str, base: str, candidate: str, change: str, interval: str
) -> str:
    """Join a row; both values have the same `width`."""
    base, candidate, change, interval = map(pen.clean, (base, candidate, change, interval))
    room = pen.width - 2 - 2 * width - 10 - 20
    shown = pen.middle(pen.clean(name), room)
    return (
        f"{pad(shown, room)}{pad(base, width, right=True)}{pad(candidate, width, right=True)}"
        f"{pad(change, 10, right=True)}{pad(interval, 20, right=True)}"
    )


# --- for a pull request ---------------------------------------------------------------------------


def _mark(comparison: Comparison) -> str:
    return MARKS[comparison.outcome] if comparison.outcome else "⚖️"


def _likeness_markdown(comparison: Comparison) -> Iterator[str]:
    lines = [f"{MARKS[Outcome.PASS]} **Comparable:** {_SAME}."]
    if comparison.forbids:
        lines = [f"{MARKS[Outcome.INVALID]} **Not comparable:**", ""]
        lines += [f"- {escaped(reason)}" for reason in comparison.forbids[:20]]
    yield "\n".join(lines)
    told = [
        f"{title[0].upper()}{title[1:]}: {escaped(_differences(comparison, weight))}."
        for title, weight in _TITLES.items()
        if _differences(comparison, weight)
    ]
    if told:
        yield " ".join(told)


def _table_markdown(comparison: Comparison, rows: Sequence[Row]) -> str:
    interval = f"{format_share(comparison.confidence)} bounds"
    head = (
        f"| Verdict | Statistic | Stage | Baseline | Now | Change | {interval} | Limit |\n"
        "|:--|:--|:--|--:|--:|--:|--:|--:|"
    )
    return "\n".join([head, *(_markdown_row(row) for row in rows)])


def _markdown_row(row: Row) -> str:
    verdict, (base, candidate) = row.verdict, row.values
    why = _why_undecided(row)
    reason = f"<br>{escaped(why)}" if why else ""
    change = _signed(row.shown_change[0], row)
    cells = (
        f"{MARKS[verdict.outcome]} **{verdict.outcome}**" if verdict else "",
        f"{code(f'{row.step}.{row.metric}')} {row.statistic}".rstrip() + reason,
        escaped(words.short(row.stage)),
        _value(base, row),
        _value(candidate, row),
        f"**{change}**" if row.changed else change,
        _interval(row),
        escaped(f"{verdict.budget.op}{NARROW_SPACE}{_limit(verdict)}") if verdict else "",
    )
    return f"| {' | '.join(cells)} |"


# --- for programs ---------------------------------------------------------------------------------


def _run_json(recording: Recording) -> dict[str, Any]:
    known = {key: recording.run[key] for key in _RUN_KEYS if key in recording.run}
    return {**known, "folder": recording.folder.name}


def _row_json(row: Row) -> dict[str, Any]:
    (base, candidate), (change, low, high) = row.values, row.shown_change
    verdict = row.verdict
    return {
        "stage": row.stage,
        "step": row.step,
        "metric": row.metric,
        "statistic": row.statistic,
        "unit": UNITS[row.kind],
        "base": base,
        "candidate": candidate,
        "change": change,
        "low": low,
        "high": high,
        "lacking": row.change.lacking,
        "runs": row.change.runs,
        "pairs": row.change.pairs,
        "variance_left": row.change.variance_left,
        "limit": verdict.budget.limit if verdict else None,
        "outcome": str(verdict.outcome) if verdict else None,
        "reason": verdict.reason if verdict else None,
    }
