"""The result for a terminal, at most 80 columns wide, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len

from harness.report.escaping import MARKS, code, escaped
from harness.report.pen import WIDTH, Line, Pen, pad, pieces
from harness.search.chart import MARKS as SHOWN_MARKS
from harness.search.result import (
    Probe,
    Search,
    closest,
    headline,
    in_order,
    lasted,
    measured,
    story,
)
from harness.units import format_count, format_rate
from harness.verdict import Outcome

_WORDS = {
    Outcome.PASS: "FOUND",
    Outcome.FAIL: "FAIL",
    Outcome.INCONCLUSIVE: "INCONCLUSIVE",
    Outcome.INVALID: "INVALID",
}


def word(search: Search) -> str:
    """Return the result in one word."""
    return "STOPPED" if search.stopped is not None else _WORDS[search.outcome]


def mark_of(probe: Probe) -> Outcome:
    """Return the outcome whose mark and colour a probe has."""
    return Outcome.NO_DATA if probe.shown is None else SHOWN_MARKS[probe.shown]


def shown_text(probe: Probe) -> str:
    """Say in a few words what a probe showed."""
    return "interrupted" if probe.shown is None else str(probe.shown)


def tally(search: Search) -> str:
    """`12 probes, 14:05 of load`."""
    n = len(search.probes)
    return f"{format_count(n)} {'probe' if n == 1 else 'probes'}"


def render_terminal(
    search: Search, files: Sequence[str], *, color: bool, unicode: bool, width: int = WIDTH
) -> str:
    """Return the summary, without a line end after its last line; `files` as they are shown."""
    pen = Pen(width=max(40, min(width, WIDTH)), unicode=unicode)
    lines = [
        _head(search, pen),
        *(line for text in (headline(search), *story(search)) for line in pen.wrap(text, 2)),
        Line(""),
        *_table(search, pen),
        Line(""),
        *_footer(search, files, pen),
    ]
    return "\n".join(line.painted(pen, color=color) for line in lines)


def _head(search: Search, pen: Pen) -> Line:
    head = f"{pen.mark(search.outcome)} {word(search)}"
    text = f"{head}  {tally(search)}"
    name = pen.middle(pen.clean(search.template.plan.name), pen.width - cell_len(text) - 2)
    return Line(text + pad(name, pen.width - cell_len(text), right=True), search.outcome, len(head))


def _table(search: Search, pen: Pen) -> Iterator[Line]:
    """By load, which is the order in which the result is read; the number tells the order."""
    focus = search.focus
    last = focus.budget.subject if focus else "closest budget"
    yield Line(f"  {_cells(pen, 'load', '#', 'for', 'completed', 'shown', last)}")
    for probe in in_order(search):
        cells = _cells(
            pen,
            search.template.load_text(probe.load),
            str(probe.number),
            lasted(probe.lasted_s),
            format_rate(probe.completed_per_s),
            shown_text(probe),
            _judged(probe, focus.budget.text if focus else None),
        )
        outcome = mark_of(probe)
        yield Line(f"{pen.mark(outcome)} {cells}", outcome, 1)


def _judged(probe: Probe, text: str | None) -> str:
    """Say how that budget came out, or the worst one where that is another and broke."""
    own = probe.of(text) if text else None
    other = probe.budgets and probe.budgets[0].outcome is Outcome.FAIL
    if own is None or (other and own.outcome is not Outcome.FAIL):
        return closest(probe)
    return measured(own)


def _cells(pen: Pen, load: str, number: str, lasts: str, done: str, shown: str, budget: str) -> str:
    room = pen.width - 2 - 11 - 4 - 7 - 11 - 20
    load, lasts, done = map(pen.clean, (load, lasts, done))
    return (
        f"{pad(load, 11)}{pad(number, 3, right=True)}{pad(lasts, 7, right=True)}"
        f"{pad(done, 11, right=True)}  {pad(shown, 19)}{pen.middle(pen.clean(budget), room)}"
    )


def _footer(search: Search, files: Sequence[str], pen: Pen) -> list[Line]:
    ended = f"exit code {int(search.exit_code)}"
    lines = [piece for file in files for piece in pieces(pen.clean(file), pen.width)] or [""]
    if cell_len(lines[-1]) + 2 + len(ended) > pen.width:
        lines.append("")
    lines[-1] += pad(ended, pen.width - cell_len(lines[-1]), right=True)
    return [Line(line) for line in lines]


# --- Markdown ------------------------------------------------------------------------------------


def render_markdown(search: Search) -> str:
    """Return the result as Markdown for a pull request or a job's summary."""
    head = f"## {MARKS[search.outcome]} {word(search)} – {escaped(search.template.plan.name)}"
    rows = [
        "| # | Load | For | Offered | Completed | Good | Shown | Closest budget |",
        "|--:|--:|--:|--:|--:|--:|:--|:--|",
        *(_row(search, probe) for probe in in_order(search)),
    ]
    told = " ".join([f"**{escaped(headline(search))}**", *map(escaped, story(search))])
    budgets = ", ".join(code(budget.text) for budget in search.template.plan.budgets)
    parts = [head, told, f"Budgets: {budgets}.", "![Latency and goodput against load](knee.svg)"]
    return "\n\n".join([*parts, "\n".join(rows)]) + "\n"


def _row(search: Search, probe: Probe) -> str:
    cells = (
        str(probe.number),
        escaped(search.template.load_text(probe.load)),
        escaped(lasted(probe.lasted_s)),
        *(
            format_rate(rate)
            for rate in (probe.offered_per_s, probe.completed_per_s, probe.good_per_s)
        ),
        f"{MARKS[mark_of(probe)]} {escaped(shown_text(probe))}",
        escaped(closest(probe)),
    )
    return f"| {' | '.join(cells)} |"
