"""What a person sees of a running load: one screen redrawn in place, or a plain line now and then.

Drawn by the parent process from the dicts that the load's process reports, so it must not cost the
load anything: no Locust, no gevent here. A dict with missing or odd values shows less, and never
raises. Everything goes to the given console, which is that of stderr.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text

from harness.units import MINUS, NARROW_SPACE, format_clock, format_count, format_rate

WIDTH = 80
PLAIN_EVERY_S = 5.0
MOST_ROWS = 12

_BUDGET = re.compile(r"(.*?) ([<>]=?) (\S+)((?: over \S+)?(?: in \S+)?)")
_OVER, _HOLDS, _UNKNOWN = "bold red", "cyan", "dim"
_ASCII = str.maketrans({"µ": "u", "μ": "u", "×": "x", "–": "-", MINUS: "-", "…": "~"})


class LiveView:
    """Shows the progress of a load until its `with` block ends, then leaves the terminal as it was.

    `plain` writes lines even to a terminal; `quiet` shows nothing at all.
    """

    def __init__(self, console: Console, *, plain: bool, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._live = None if plain or quiet or not console.is_terminal else _live(console)
        self._lines = _PlainLines()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            with _unheard():
                self._live.stop()
        elif not self._quiet:
            self._write(self._lines.last())

    def update(self, progress: Mapping[str, Any]) -> None:
        """Show the newest progress; a console that is gone is no reason to end a load."""
        if self._quiet:
            return
        state = _Progress.read(progress)
        if self._live:
            screen = _screen(state, self._sheet())
            with _unheard():
                self._live.update(screen, refresh=True)
        else:
            self._write(self._lines.next(state))

    def _sheet(self) -> _Sheet:
        return _Sheet(
            width=max(30, min(WIDTH, self._console.width)), unicode=_speaks_unicode(self._console)
        )

    def _write(self, line: str | None) -> None:
        """Write a line as it is: no markup, no colour, not wrapped at the terminal's width."""
        if line is None:
            return
        text = _Sheet(width=WIDTH, unicode=_speaks_unicode(self._console)).fit(line).rstrip()
        with _unheard():
            self._console.file.write(f"{text}\n")
            self._console.file.flush()


def _live(console: Console) -> Live:
    """Return a display that leaves stdout alone: the verdict may be piped from there."""
    return Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)


def _unheard() -> contextlib.suppress:
    """Ignore that the console was closed or its disk is full."""
    return contextlib.suppress(OSError, ValueError)


def _speaks_unicode(console: Console) -> bool:
    return not console.options.ascii_only


# --- what was reported ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _BudgetSoFar:
    subject: str
    limit: str
    now: str
    n: int | None
    ok: bool | None

    @classmethod
    def read(cls, budget: Mapping[str, Any]) -> _BudgetSoFar:
        text = _word(budget.get("text"))
        limit = _word(budget.get("limit")).replace(" ", "")
        found = _BUDGET.fullmatch(text)
        ok, n = budget.get("ok"), _number(budget.get("n"))
        return cls(
            subject=f"{found[1]}{found[4] or ''}" if found else text,
            limit=f"{found[2]}{limit or found[3]}" if found else limit,
            now=_word(budget.get("now")).replace(" ", "") or "-",
            n=None if n is None else int(n),
            ok=ok if isinstance(ok, bool) else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """A progress dict, read as far as it can be; what it does not tell is None or empty."""

    run: str
    t_s: float | None
    total_s: float | None
    stage: str
    stage_left_s: float | None
    record: bool
    draining: bool
    stopping: bool
    aborted: str
    planned_rate: float | None
    sent_rate: float | None
    in_flight: float | None
    waiting: float | None
    errors: float | None
    budgets: tuple[_BudgetSoFar, ...]

    @classmethod
    def read(cls, progress: Mapping[str, Any]) -> _Progress:
        known = progress if isinstance(progress, Mapping) else {}
        budgets = known.get("budgets")
        return cls(
            run=_which_run(known),
            t_s=_number(known.get("t_s")),
            total_s=_number(known.get("total_s")),
            stage=_word(known.get("stage")),
            stage_left_s=_number(known.get("stage_left_s")),
            record=known.get("record") is not False,
            draining=known.get("draining") is True,
            stopping=known.get("stopping") is True,
            aborted=_word(known.get("aborted")),
            planned_rate=_number(known.get("planned_rate")),
            sent_rate=_number(known.get("sent_rate")),
            in_flight=_number(known.get("in_flight")),
            waiting=_number(known.get("waiting")),
            errors=_number(known.get("errors")),
            budgets=tuple(
                _BudgetSoFar.read(budget)
                for budget in (budgets if isinstance(budgets, list | tuple) else ())
                if isinstance(budget, Mapping)
            ),
        )

    @property
    def phase(self) -> str:
        """The stage, and what it is not."""
        if self.stopping or self.aborted:
            return "stopping"
        if self.draining:
            return f"{self.run}draining"
        return f"{self.run}{self.stage if self.record else f'{self.stage} (not judged)'}"

    @property
    def clock(self) -> str:
        """`0:12/1:10`."""
        parts = [format_clock(t) for t in (self.t_s, self.total_s) if t is not None]
        return "/".join(parts)

    @property
    def rate(self) -> str:
        """`19.8/s of 20.1/s`; users without a planned rate have the first alone."""
        rates = [format_rate(r) for r in (self.sent_rate, self.planned_rate) if r is not None]
        return " of ".join(rates) if self.sent_rate is not None else ""

    @property
    def over(self) -> int:
        """How many budgets are over their limit so far."""
        return sum(budget.ok is False for budget in self.budgets)


def _which_run(known: Mapping[str, Any]) -> str:
    """`run 2 of 5, `; nothing where the load is played once."""
    number, of = _number(known.get("repetition")), _number(known.get("repetitions"))
    if number is None or of is None or of < 2:
        return ""
    return f"run {number:.0f} of {of:.0f}, "


def _number(value: Any) -> float | None:
    """Return a finite number of a size that a clock can show."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 else None  # neither NaN nor infinity


def _word(value: Any) -> str:
    """Return a text in one line, without anything that could move the cursor."""
    text = value.replace(NARROW_SPACE, "") if isinstance(value, str) else ""
    text = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text[:500])
    return " ".join(text.split())


# --- plain lines ---------------------------------------------------------------------------------


class _PlainLines:
    """Chooses what is worth a line: the first report, each new stage, every 5 s, and the last."""

    def __init__(self) -> None:
        self._seen: _Progress | None = None
        self._told: _Progress | None = None

    def next(self, state: _Progress) -> str | None:
        """Return the line for a report, or None when it can wait."""
        self._seen = state
        told = self._told
        if told is not None and told.phase == state.phase and not self._due(told.t_s, state.t_s):
            return None
        self._told = state
        return _plain_line(state)

    def last(self) -> str | None:
        """Return the line of the last report, unless it was told."""
        if self._seen is None or self._seen is self._told:
            return None
        self._told = self._seen
        return _plain_line(self._seen)

    @staticmethod
    def _due(told_s: float | None, now_s: float | None) -> bool:
        if told_s is None or now_s is None:
            return told_s is not now_s
        return not 0 <= now_s - told_s < PLAIN_EVERY_S


def _plain_line(state: _Progress) -> str:
    """Say as much as fits into a line; what is left out comes last in a reader's interest."""
    budgets = len(state.budgets) if state.record else 0
    over = f"{state.over}/{_counted(budgets, 'budget')} over" if budgets else ""
    line = f"{state.clock} {_cut(state.phase, 40)}".strip() + ":"
    for figure in (*_figures(state), over):
        if figure and len(line) + 2 + cell_len(figure) <= WIDTH:
            line += f" {figure},"
    return line[:-1]


def _figures(state: _Progress) -> list[str]:
    """List the rate and the counts; nobody waits, as a rule, and then nothing is said of it."""
    figures = [] if state.draining or state.stopping or state.aborted else [state.rate]
    if state.in_flight is not None:
        figures.append(f"{format_count(int(state.in_flight))} in flight")
    if state.waiting:
        figures.append(f"{format_count(int(state.waiting))} waiting")
    if state.errors is not None:
        figures.append(_counted(int(state.errors), "error"))
    return figures


def _counted(n: int, noun: str) -> str:
    return f"{format_count(n)} {noun}{'' if n == 1 else 's'}"


# --- the screen ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sheet:
    """How wide a line may be, and of which characters."""

    width: int
    unicode: bool

    def plain(self, text: str) -> str:
        if self.unicode:
            return text
        return text.translate(_ASCII).encode("ascii", "replace").decode()

    def fit(self, text: str, room: int | None = None) -> str:
        """Make a text exactly `room` columns wide: filled up, or without its middle."""
        room = self.width if room is None else max(0, room)
        text = self.plain(text)
        if cell_len(text) > room:
            keep = max(0, room - 1)
            tail = _cut(text[::-1], keep // 2)[::-1]
            text = f"{_cut(text, keep - cell_len(tail))}{self.plain('…')}{tail}"[:room]
        return text + " " * (room - cell_len(text))

    def ends(self, left: str, right: str) -> str:
        """Set two texts at both ends of a line; the right one stays whole."""
        right = self.plain(right)
        return self.fit(left, self.width - cell_len(right) - 1) + " " + right


def _cut(text: str, room: int) -> str:
    end = max(0, room)
    while end and cell_len(text[:end]) > room:
        end -= 1
    return text[:end]


def _screen(state: _Progress, sheet: _Sheet) -> Text:
    lines = [
        Text(sheet.ends(_title(state), state.clock), style="bold"),
        _bar(state, sheet),
        Text(sheet.fit("   ".join(filter(None, _figures(state))))),
    ]
    if state.budgets:
        lines += [Text(), *_budget_lines(state.budgets, sheet)]
    return Text("\n").join(lines)


def _title(state: _Progress) -> str:
    if state.stopping:
        return "Stopping: saving what ended, Ctrl-C again ends at once"
    if state.aborted:
        return f"{state.aborted[0].upper()}{state.aborted[1:]}"
    if state.draining:
        return f"Draining: {state.run}waiting for the last requests"
    left = "" if state.stage_left_s is None else f"{format_clock(max(0, state.stage_left_s))} left"
    return "  ".join(part for part in (state.phase, left) if part)


def _bar(state: _Progress, sheet: _Sheet) -> Text:
    share = 0.0
    if state.t_s is not None and state.total_s:
        share = max(0.0, min(1.0, state.t_s / state.total_s))
    done = round(share * sheet.width)
    full, empty = ("━", "─") if sheet.unicode else ("#", "-")
    return Text.assemble((full * done, "bold"), (empty * (sheet.width - done), "dim"))


def _budget_lines(budgets: Sequence[_BudgetSoFar], sheet: _Sheet) -> list[Text]:
    """Show those over their limit first, at most MOST_ROWS."""
    order = sorted(budgets, key=lambda budget: (budget.ok is not False, budget.ok is True))
    lines = [Text(_budget_row(sheet, " ", ("budget so far", "limit", "now", "n")), style="dim")]
    for budget in order[:MOST_ROWS]:
        mark, style = _mark(budget, sheet)
        n = "-" if budget.n is None else format_count(budget.n)
        line = Text(_budget_row(sheet, mark, (budget.subject, budget.limit, budget.now, n)))
        line.stylize(style, 0, 1)
        if budget.ok is False:
            line.stylize(style)
        lines.append(line)
    rest = order[MOST_ROWS:]
    if rest:
        over = sum(budget.ok is False for budget in rest)
        lines.append(Text(sheet.fit(f"  {len(rest)} more, {over or 'none'} of them over")))
    return lines


def _mark(budget: _BudgetSoFar, sheet: _Sheet) -> tuple[str, str]:
    if budget.ok is None:
        return "·" if sheet.unicode else ".", _UNKNOWN
    if budget.ok:
        return "✓" if sheet.unicode else "+", _HOLDS
    return "✗" if sheet.unicode else "x", _OVER


def _budget_row(sheet: _Sheet, mark: str, cells: tuple[str, str, str, str]) -> str:
    subject, *numbers = cells
    columns = [_right(sheet, text, room) for text, room in zip(numbers, (11, 10, 9), strict=True)]
    tail = " ".join(columns)
    return f"{mark} {sheet.fit(subject, sheet.width - 3 - cell_len(tail))} {tail}"


def _right(sheet: _Sheet, text: str, room: int) -> str:
    short = sheet.fit(text, room).rstrip()
    return " " * (room - cell_len(short)) + short
