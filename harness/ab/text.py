"""What `harness ab` shows: the comparison as `harness compare` shows it, and how it was measured.

ab.json holds what `harness compare --json -` prints (see report.comparison), and besides

interleaved        pairs (of blocks, by recorded stage), block_s, pause_s, and arms: for `a` and `b`
                   its folder (its name), outcome and sentence by all its budgets, and late, the
                   share of its requests that ended while the other target was on duty
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from harness.ab.play import ArmResult, Compared
from harness.recorder import write_atomically
from harness.report.comparison import as_json as comparison_json
from harness.report.comparison import render_markdown as comparison_markdown
from harness.report.comparison import render_text as comparison_text
from harness.report.escaping import MARKS, escaped
from harness.report.pen import WIDTH, Line, Pen, pieces
from harness.units import format_count, format_duration, format_share
from harness.verdict import Outcome

_MOST_LATE = 0.01


def write(compared: Compared, out: Path) -> None:
    """Write ab.json and ab.md beside the folders of the two runs."""
    data = json.dumps(as_json(compared), indent=1, allow_nan=False) + "\n"
    write_atomically(out / "ab.json", data)
    write_atomically(out / "ab.md", render_markdown(compared))


def as_json(compared: Compared) -> dict[str, Any]:
    """Return what ab.json holds; see the module for its keys."""
    turns = compared.turns
    return {
        **comparison_json(compared.comparison),
        "exit_code": int(compared.exit_code),
        "interleaved": {
            "pairs": compared.pairs,
            "block_s": turns.block_ns / 1e9,
            "pause_s": turns.pause_ns / 1e9,
            "arms": {
                arm.arm: {
                    "folder": arm.result.folder.name,
                    "outcome": str(arm.result.verdict.outcome),
                    "sentence": arm.result.verdict.sentence,
                    "late": arm.late,
                }
                for arm in compared.arms
            },
        },
    }


def render_text(
    compared: Compared,
    *,
    color: bool,
    unicode: bool,
    width: int = WIDTH,
    shown: Callable[[Path], str] = str,
) -> str:
    """Return the result for a terminal; `shown` words the path of a file."""

    def more(pen: Pen) -> Iterator[Line]:
        yield Line("")
        for text in _measured(compared):
            yield from pen.wrap(text, 2)
        for arm in compared.arms:
            yield from _arm_lines(arm, pen, shown)

    return comparison_text(
        compared.comparison,
        color=color,
        unicode=unicode,
        width=width,
        more=more,
        exit_code=compared.exit_code,
    )


def render_markdown(compared: Compared) -> str:
    """Return ab.md, a comment for a pull request; it ends with a line end."""
    arms = [
        f"- {MARKS[arm.result.verdict.outcome]} {_own_verdict(arm)}. "
        f"{escaped(arm.result.verdict.sentence)}"
        for arm in compared.arms
    ]
    measured = " ".join(escaped(text) for text in _measured(compared))
    return (
        "\n\n".join([comparison_markdown(compared.comparison).rstrip(), measured, "\n".join(arms)])
        + "\n"
    )


def _measured(compared: Compared) -> Iterator[str]:
    turns = compared.turns
    pairs = ", ".join(f"{format_count(n)} in {stage}" for stage, n in compared.pairs.items())
    yield (
        f"Pairs of blocks: {pairs}; about {format_duration(turns.block_ns)} against each target in "
        f"turns, {format_duration(turns.pause_ns)} apart, order by seed, same arrivals."
    )
    left = [row.change.variance_left for row in compared.comparison.rows]
    known = [share for share in left if share is not None]
    if known:
        yield (
            f"Pairing left {format_share(median(known))} of the variance that two runs apart would "
            f"have had (median of {format_count(len(known))} statistics)."
        )
    for arm in compared.arms:
        if arm.late > _MOST_LATE:
            yield (
                f"{format_share(arm.late)} of {arm.arm}'s requests ended while the other target "
                "was on duty: if both share a machine, a longer --pause keeps them apart."
            )


def _own_verdict(arm: ArmResult) -> str:
    verdict = arm.result.verdict
    by = "by all its budgets" if verdict.budgets else "by itself, without budgets"
    return f"{arm.arm} {by}: {verdict.outcome}"


def _arm_lines(arm: ArmResult, pen: Pen, shown: Callable[[Path], str]) -> Iterator[Line]:
    verdict = arm.result.verdict
    head = f"{pen.mark(verdict.outcome)} {_own_verdict(arm)}"
    yield Line(pen.clean(head), verdict.outcome, len(pen.mark(verdict.outcome)))
    if verdict.outcome is not Outcome.PASS:
        yield from pen.wrap(verdict.sentence, 4)
    for file in arm.result.files[:1]:
        yield from (Line(f"    {piece}") for piece in pieces(shown(file), pen.width - 4))
