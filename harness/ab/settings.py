"""What `harness ab` is told on its command line: the two targets, and how they take turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.ab.blocks import Arm
from harness.compare import declared_regressions, p99_limit
from harness.endpoint import Settings
from harness.errors import UserError
from harness.masking import mask_query
from harness.plan import Plan, with_url
from harness.swarm.manifest import EMBEDDED, interval_for
from harness.units import parse_duration

_PAIRS = 20  # of blocks that the shortest recorded stage is cut into, where nothing else is asked
_LONGEST_BLOCK_NS = 5_000_000_000
_MOST_NS = 3_600_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How the targets take turns: length of a block and of the pause after it, ns."""

    block_ns: int
    pause_ns: int


def turns(plan: Plan, block: str | None, pause: str) -> Turns:
    """Return what --block and --pause say; without --block 20 pairs of blocks, of 5 s at most."""
    shortest = min(stage.duration_ns for stage in plan.load if stage.record)
    block_ns = max(min(_LONGEST_BLOCK_NS, shortest // _PAIRS), interval_for(plan))
    if block is not None:
        block_ns = _time("--block", block, least_ns=1)
    return Turns(block_ns=block_ns, pause_ns=_time("--pause", pause, least_ns=0))


def plans(plan: Plan, a: str, b: str, b_set: Sequence[str]) -> dict[Arm, Plan]:
    """Return the plan with each of the two targets; `b_set` are settings of b's embedded endpoint.

    It is played once and to its end. Raises PlanError for a URL that is none, UserError for a
    setting that is none.
    """
    plan = replace(
        plan,
        repeat=1,
        abort_on=(),
        budgets=tuple(replace(budget, abort=False) for budget in plan.budgets),
    )
    other = with_url(plan, b, option="--b")
    if b_set and other.target.url != EMBEDDED:
        raise UserError(f"--b-set: {mask_query(b)} is not ours to set; allowed with --b embedded")
    given = dict(text.partition("=")[::2] for text in b_set)
    other = replace(other, embedded={**plan.embedded, **given})
    Settings.of(other.embedded)
    return {"a": with_url(plan, a, option="--a"), "b": other}


def limited(plan: Plan, limit: str | None, texts: Sequence[str]) -> Plan:
    """Return the plan with the regression budgets of the command line, if any, as its only ones.

    Raises BudgetSyntaxError for a text that is no budget, UserError for a limit that is none and a
    budget that limits no regression.
    """
    if limit is None and not texts:
        return plan
    if limit is not None:
        p99_limit(limit)
    declared = declared_regressions(texts)
    absolute = tuple(budget for budget in plan.budgets if not budget.regression)
    places = {budget.text: "--budget" for budget in declared}
    return replace(plan, budgets=(*absolute, *declared), places={**plan.places, **places})


def _time(option: str, text: str, *, least_ns: int) -> int:
    allowed = "allowed is a time up to 1h, like 500ms or 5s"
    try:
        found = 0 if text == "0" and not least_ns else parse_duration(text)
    except ValueError:
        raise UserError(f"{option}: found {text!r}; {allowed}") from None
    if not least_ns <= found <= _MOST_NS:
        raise UserError(f"{option}: found {text!r}; {allowed}")
    return found
