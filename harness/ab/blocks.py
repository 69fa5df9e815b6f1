"""The blocks of an interleaved run: when each target is on duty, and what a worker is told.

A stage is cut into blocks. Each block is played against one target and, after a pause, against the
other; which of them is first is drawn for each pair of blocks from the plan's seed. Both get the
same arrivals. A target's run is recorded on its own clock, which stands still while it is off duty,
so that a request always belongs to the block in which it was planned, however late it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from harness.errors import UserError
from harness.plan import Plan, Stage
from harness.recorder import Report
from harness.stats.regression import FEWEST_BLOCKS

Arm = Literal["a", "b"]
ARMS: tuple[Arm, Arm] = ("a", "b")
_MARK = "#"  # steady#3 is the fourth block of the run, in stage steady; no declared name holds it
_ORDER_STREAM = 2  # of the plan's seed; the arrivals' are (stage, worker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One stretch of a stage. `start_ns` and `end_ns` are on the arms' own clocks, `at_ns` is when
    it starts for each arm on the run's."""

    stage: Stage
    number: int
    start_ns: int
    end_ns: int
    at_ns: dict[Arm, int]

    @property
    def name(self) -> str:
        """The name of the stage that a worker plays it as."""
        return f"{self.stage.name}{_MARK}{self.number}"

    @property
    def length_ns(self) -> int:
        """How long it is, against each target."""
        return self.end_ns - self.start_ns

    @property
    def first(self) -> Arm:
        """The target that is on duty first."""
        return min(ARMS, key=self.at_ns.__getitem__)


def interleave(plan: Plan, *, block_ns: int, pause_ns: int, interval_ns: int) -> tuple[Block, ...]:
    """Cut a plan's load into blocks of about `block_ns` and put them one after the other.

    Edges within a stage are on the grid of recording intervals. What is not recorded is one block a
    stage. Raises UserError for blocks shorter than those, or of which a recorded stage has too few.
    """
    _check_block(plan, block_ns, interval_ns)
    spans = [span for stage in _placed(plan) for span in _cut(*stage, block_ns, interval_ns)]
    rng = np.random.default_rng([plan.seed, _ORDER_STREAM])
    a_first = rng.permutation(np.arange(len(spans)) % 2 == 0)  # as often as b
    blocks: list[Block] = []
    now_ns = 0
    for number, (stage, start_ns, end_ns) in enumerate(spans):
        order = ARMS if a_first[number] else ARMS[::-1]
        at_ns: dict[Arm, int] = {}
        for arm in order:
            at_ns[arm] = now_ns + (start_ns - now_ns) % interval_ns  # both clocks share a grid
            now_ns = at_ns[arm] + end_ns - start_ns + pause_ns
        blocks.append(
            Block(stage=stage, number=number, start_ns=start_ns, end_ns=end_ns, at_ns=at_ns)
        )
    return tuple(blocks)


def arm_plan(plan: Plan, blocks: Sequence[Block], arm: Arm) -> Plan:
    """Return the plan as the workers of one arm play it: its blocks, and nothing in between.

    Both arms' stages stand at the same places, so that their arrivals are the same. The users of a
    closed stage start anew in each block, within a tenth of it.
    """
    load: list[Stage] = []
    free_ns = 0
    for block in blocks:
        stage = block.stage
        load.append(
            Stage(
                name=f"{_MARK}{block.number}",
                duration_ns=block.at_ns[arm] - free_ns,
                concurrency=0,
                record=False,
                max_in_flight=load[-1].concurrency or load[-1].max_in_flight if load else None,
            )
        )
        ramp_ns = None if stage.ramp_ns is None else min(stage.ramp_ns, block.length_ns // 10)
        load.append(replace(stage, name=block.name, duration_ns=block.length_ns, ramp_ns=ramp_ns))
        free_ns = block.at_ns[arm] + block.length_ns
    budgets = [
        replace(budget, stage=name)
        for budget in plan.budgets
        for name in _block_names(blocks, budget.stage)
    ]
    return replace(plan, load=tuple(load), budgets=tuple(budgets))


class OwnClock:
    """Puts what one arm's workers report on the clock of that arm's own run."""

    def __init__(self, blocks: Sequence[Block], arm: Arm, interval_ns: int) -> None:
        self._blocks, self._arm, self._interval_ns = blocks, arm, interval_ns
        other = ARMS[1 - ARMS.index(arm)]
        starts = sorted(block.at_ns[other] for block in blocks)
        self._others_turn_ns = [
            next((t for t in starts if t > block.at_ns[arm]), None) for block in blocks
        ]
        self.finished = self.late = 0
        """Requests of recorded stages that ended; `late` ended when the other was on duty."""

    def own_ns(self, run_ns: int) -> int:
        """Return what this arm's clock shows at a time of the run."""
        begun = [block for block in self._blocks if block.at_ns[self._arm] <= run_ns]
        if not begun:
            return 0
        last = begun[-1]
        return last.start_ns + min(run_ns - last.at_ns[self._arm], last.length_ns)

    def reports(self, report: Report) -> Iterator[Report]:
        """Split an interval of the run into those of the blocks that something of it belongs to.

        What a block's requests did after its end stands in its last interval.
        """
        stages = {key[0] for key in (*report.measured, *report.finished)} | set(report.load)
        stages |= {journey["stage"] for journey in report.journeys}
        for block in self._blocks:
            if block.name in stages or self._on_duty(block, report.index):
                self._count_late(report, block)
                yield self._part(report, block)

    def _on_duty(self, block: Block, index: int) -> bool:
        at_ns, run_ns = block.at_ns[self._arm], index * self._interval_ns
        return at_ns - self._interval_ns < run_ns < at_ns + block.length_ns

    def _part(self, report: Report, block: Block) -> Report:
        shift_ns = block.at_ns[self._arm] - block.start_ns
        first, end = block.start_ns // self._interval_ns, -(-block.end_ns // self._interval_ns)
        index = report.index - shift_ns // self._interval_ns
        name, declared = block.name, block.stage.name
        load = report.load.get(name)
        if load is not None and not first <= index < end:  # the highest are noted inside
            load = replace(load, in_flight=0, waiting=0)
        return replace(
            report,
            index=min(max(index, first), end - 1),
            measured={
                (declared, *key[1:]): measured
                for key, measured in report.measured.items()
                if key[0] == name
            },
            finished={
                (declared, step): outcome
                for (stage, step), outcome in report.finished.items()
                if stage == name
            },
            load={declared: load} if load else {},
            journeys=[
                {**journey, "stage": declared, "t_s": journey["t_s"] - shift_ns / 1e9}
                for journey in report.journeys
                if journey["stage"] == name
            ],
        )

    def _count_late(self, report: Report, block: Block) -> None:
        if not block.stage.record or block.name not in report.load:
            return
        finished = report.load[block.name].finished
        others_ns = self._others_turn_ns[block.number]
        self.finished += finished
        if others_ns is not None and report.index * self._interval_ns >= others_ns:
            self.late += finished


def edges_s(blocks: Sequence[Block]) -> dict[str, list[float]]:
    """Return where the blocks of each recorded stage begin on an arm's own clock, and their end."""
    edges: dict[str, list[float]] = {}
    for block in blocks:
        if block.stage.record:
            known = edges.setdefault(block.stage.name, [block.start_ns / 1e9])
            known.append(block.end_ns / 1e9)
    return edges


def _placed(plan: Plan) -> Iterator[tuple[Stage, int]]:
    start_ns = 0
    for stage in plan.load:
        yield stage, start_ns
        start_ns += stage.duration_ns


def _cut(
    stage: Stage, start_ns: int, block_ns: int, interval_ns: int
) -> Iterator[tuple[Stage, int, int]]:
    count = max(1, round(stage.duration_ns / block_ns)) if stage.record else 1
    wanted = [start_ns + stage.duration_ns * i // count for i in range(1, count)]
    inner = [round(edge / interval_ns) * interval_ns for edge in wanted]
    edges = sorted({start_ns, *inner, start_ns + stage.duration_ns})
    for begin_ns, end_ns in pairwise(edges):
        yield stage, begin_ns, end_ns


def _check_block(plan: Plan, block_ns: int, interval_ns: int) -> None:
    recorded = (stage for stage in plan.load if stage.record)
    shortest = min(recorded, key=lambda stage: stage.duration_ns)
    most_ns = shortest.duration_ns // FEWEST_BLOCKS
    if block_ns > most_ns:
        raise UserError(
            f"--block: found {block_ns / 1e9:g}s; stage {shortest.name} lasts "
            f"{shortest.duration_ns / 1e9:g}s and needs {FEWEST_BLOCKS} pairs of blocks: allowed "
            f"is at most {most_ns / 1e9:g}s, or give the stage more time"
        )
    if block_ns < interval_ns:
        raise UserError(
            f"--block: found {block_ns / 1e9:g}s; this plan is recorded in intervals of "
            f"{interval_ns / 1e9:g}s: allowed is that or more"
        )


def _block_names(blocks: Sequence[Block], stage: str | None) -> list[str | None]:
    """Return the stages in which a worker counts for a budget of this stage; None is all."""
    if stage is None:
        return [None]
    return [block.name for block in blocks if block.stage.name == stage]
