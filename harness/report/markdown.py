"""The verdict as GitHub-flavoured Markdown: a step summary or a comment, and log annotations.

Every name and sentence is escaped, so that none can make a table cell, a tag, a formula or a
mention of its own. A step summary may hold 1 MiB: rows and long texts are bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from harness.recorder import Recording
from harness.report import words
from harness.report.escaping import MARKS, code, escaped
from harness.report.facts import Findings
from harness.report.facts.budgets import fold
from harness.units import NARROW_SPACE, format_count, format_ratio_of_limit
from harness.verdict import BudgetVerdict, Outcome, Verdict

_MOST_BAD, _MOST_PASSES, _MOST_NAME = 100, 200, 60
_HEAD = (
    "| Verdict | Budget | Stage | Limit | Observed | {interval} | Of limit | n |\n"
    "|:--|:--|:--|--:|--:|--:|--:|--:|"
)


def render_markdown(recording: Recording, verdict: Verdict, findings: Findings) -> str:
    """Return the summary; it ends with a line end."""
    parts = [
        _title(recording, verdict),
        _sentences(recording, verdict, findings),
        _trust(verdict, findings),
        *_tables(verdict),
        *_costs(findings),
        _errors(findings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def github_annotations(verdict: Verdict) -> list[str]:
    """Return one `::error` workflow command per broken budget, worst first."""
    return [
        f"::error title={_property(_title_of(row))}::{_message(f'{row.sentence} {row.evidence}')}"
        for row in verdict.budgets
        if row.outcome is Outcome.FAIL
    ]


# --- parts ---------------------------------------------------------------------------------------


def _title(recording: Recording, verdict: Verdict) -> str:
    names = (str(recording.run.get("name") or ""), words.run_label(recording.run))
    what = ", ".join(escaped(words.short(name, _MOST_NAME)) for name in names if name)
    return f"## {MARKS[verdict.outcome]} {verdict.outcome}" + (f" – {what}" if what else "")


def _sentences(recording: Recording, verdict: Verdict, findings: Findings) -> str:
    told = [escaped(sentence) for sentence in words.story(verdict, findings)]
    since = findings.since
    change = words.load_change(since, recording) if since else ""
    if change and verdict.outcome is Outcome.FAIL:
        told.append(escaped(f"{change[0].upper()}{change[1:]}."))
    more = words.other_budgets(verdict), words.early_end(recording.run)
    told += [escaped(text) for text in more if text]
    return " ".join([f"**{escaped(verdict.sentence)}**", *told])


def _trust(verdict: Verdict, findings: Findings) -> str:
    ok, heading, figures = words.trust(verdict, findings)
    mark = MARKS[Outcome.PASS if ok else Outcome.INVALID]
    head = escaped(heading[0].upper() + heading[1:])
    lines = [f"{mark} **{head}:** {escaped(', '.join(figures))}"]
    broken = words.broken_checks(verdict.health)
    lines += [f"- {escaped(text)}" for text in broken[:20]]
    if len(broken) > 20:
        lines.append(f"- {format_count(len(broken) - 20)} more checks are broken")
    return "\n".join([lines[0], *([""] if broken else []), *lines[1:]])


def _tables(verdict: Verdict) -> Iterator[str]:
    """Show the budgets that do not pass, and fold the passes away."""
    bad = [row for row in verdict.budgets if row.outcome is not Outcome.PASS]
    passes = verdict.budgets[len(bad) :]
    interval = words.interval_name(verdict.budgets)
    shown, far = fold(verdict.budgets)
    closest, rest = (shown[len(bad) :], far) if far else ((), passes)
    for rows in (bad, closest):
        if rows:
            yield _table(rows, _MOST_BAD, interval)
    if rest:
        summary = words.folded(rest) if closest else _passes(len(rest))
        table = _table(rest, _MOST_PASSES, interval)
        yield f"<details><summary>{escaped(summary)}</summary>\n\n{table}\n\n</details>"


def _passes(n: int) -> str:
    return f"{format_count(n)} {'budget passes' if n == 1 else 'budgets pass'}"


def _table(rows: Sequence[BudgetVerdict], most: int, interval: str) -> str:
    lines = [_HEAD.format(interval=interval), *(_row(row) for row in islice(rows, most))]
    if len(rows) > most:
        lines.append(f"\n{format_count(len(rows) - most)} more are in the report.")
    return "\n".join(lines)


def _row(row: BudgetVerdict) -> str:
    budget, outcome = row.budget, row.outcome
    said = row.reason if outcome is not Outcome.INVALID else None  # the broken checks stand above
    reason = f"<br>{escaped(said)}" if said else ""
    observed = escaped(words.observed(row))
    cells = (
        f"{MARKS[outcome]} **{outcome}**",
        f"{code(f'{budget.step}.{budget.metric}')} {budget.aspect}".rstrip() + reason,
        escaped(words.short(row.stage)),
        escaped(f"{words.operator_of(budget)}{NARROW_SPACE}{words.limit_of(budget)}"),
        f"**{observed}**" if outcome is Outcome.FAIL else observed,
        escaped(words.interval(row)),
        _of_limit(row),
        format_count(row.n),
    )
    return f"| {' | '.join(cells)} |"


def _of_limit(row: BudgetVerdict) -> str:
    if row.used is None or row.outcome in (Outcome.INVALID, Outcome.NO_DATA):
        return "–"
    return format_ratio_of_limit(row.used)


def _costs(findings: Findings) -> Iterator[str]:
    """Show what each step costs; of several stages the first, the others folded."""
    costs = findings.costs
    if costs is None:
        return
    said = [words.costs(costs, table) for table in costs.tables] or [words.costs(costs)]
    yield f"**{escaped(said[0].heading)}.** {escaped(said[0].note)}"
    for i, own in enumerate(said):
        if own.rows:
            table = _cost_table(own)
            summary = f"{escaped(own.heading)}"
            folded = f"<details><summary>{summary}</summary>\n\n{table}\n\n</details>"
            yield folded if i else table


def _cost_table(own: words.Words) -> str:
    lines = [
        f"| {' | '.join(own.columns)} |",
        f"|:--|{'--:|' * (len(own.columns) - 1)}",
        *(
            f"| {code(words.short(row[0]))} | {' | '.join(escaped(cell) for cell in row[1:])} |"
            for row in own.rows[:_MOST_BAD]
        ),
    ]
    return "\n".join(lines)


def _errors(findings: Findings) -> str:
    """Count the most frequent kinds of failure, of all stages."""
    shown = [
        f"{format_count(sum(error.by_stage.values()))} × {code(error.kind)}"
        for error in findings.errors[:8]
    ]
    more = len(findings.errors) - len(shown)
    if not shown:
        return ""
    return f"Failed requests: {', '.join(shown)}" + (f" and {more} more kinds." if more else ".")


def _title_of(row: BudgetVerdict) -> str:
    where = "" if row.budget.stage else f" in {row.stage}"
    return f"{row.budget.text}{where}"


def _message(text: str) -> str:
    """Escape the data of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escape a property of a workflow command."""
    return _message(text).replace(":", "%3A").replace(",", "%2C")
