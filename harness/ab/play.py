"""One interleaved run: both targets' workers, two run folders, one comparison."""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.ab.blocks import ARMS, Arm, Block, OwnClock, arm_plan, edges_s, interleave
from harness.ab.settings import Turns
from harness.compare import Comparison, compare, limited
from harness.errors import ExitCode
from harness.plan import Plan, secrets
from harness.recorder import (
    Recording,
    Report,
    RunFolder,
    StageWindow,
    load_recording,
    merge_reports,
)
from harness.runs import (
    LOG_FILE,
    Result,
    budgets_of,
    check_preflight,
    close_run,
    judge_folder,
    kept_once_begun,
    removed_on_error,
    with_reports,
)
from harness.swarm.collect import Beginning, Ended, Workers
from harness.swarm.interrupts import Interrupts, signals_like_ctrl_c
from harness.swarm.manifest import EMBEDDED, describe, interval_for, stage_windows, target_url
from harness.swarm.progress import Progress
from harness.verdict.regression import Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One target's own run, judged by its own budgets.

    `late` is the share of its requests that ended while the other target was on duty.
    """

    arm: Arm
    result: Result
    late: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A finished interleaved run: `b` against `a`, and each by itself."""

    comparison: Comparison
    arms: tuple[ArmResult, ArmResult]
    turns: Turns
    pairs: dict[str, int]
    """Pairs of blocks by recorded stage, as planned."""
    interrupted: bool

    @property
    def exit_code(self) -> ExitCode:
        """The comparison's; what each target makes of its own budgets is told, not judged here."""
        return ExitCode.INTERRUPTED if self.interrupted else self.comparison.exit_code


def play(
    plans: dict[Arm, Plan],
    out: Path,
    turns: Turns,
    on_progress: Callable[[dict[str, Any]], None],
    *,
    limit: str | None = None,
) -> Compared:
    """Play the load against both targets in turns, save each one's run, and compare them.

    The plans differ in their target alone. Judged are their regression budgets, and `limit` for the
    p99 of every step. Raises UserError for blocks that do not suit the plan, UserError or
    TargetError for a scenario or target that cannot run; no folder is left then.
    """
    plan = plans["a"]
    interval_ns = interval_for(plan)
    blocks = interleave(
        plan, block_ns=turns.block_ns, pause_ns=turns.pause_ns, interval_ns=interval_ns
    )
    saved = "before the load started; nothing was saved"
    try:
        with signals_like_ctrl_c():
            with ExitStack() as stack:
                undo = [stack.enter_context(removed_on_error(out, is_new=not out.exists()))]
                arms = [_arm(stack, undo, plans, arm, out, blocks, interval_ns) for arm in ARMS]
                _describe_turns(arms, blocks, turns)
                for arm in arms:
                    arm.check()
                for each in undo:
                    stack.enter_context(kept_once_begun(each, *(arm.folder for arm in arms)))
                saved = f"while reporting; the runs are saved in {out}"
                interrupted = _Load(plan, arms, blocks, interval_ns, on_progress).run()
            return _compared(arms, blocks, turns, limit, interrupted=interrupted)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(saved) from None


class _ArmRun:
    """One target with its workers and its run folder, on its own clock."""

    def __init__(
        self, plan: Plan, url: str, clock: OwnClock, folder: RunFolder, workers: Workers
    ) -> None:
        self.plan, self.folder, self.workers, self.clock = plan, folder, workers, clock
        self._url = url
        self.unsaved = ""
        self._own: tuple[Report, ...] = ()

    def check(self) -> None:
        """Wait for the workers; raises for a target that does not answer."""
        ready = self.workers.ready()
        check_preflight(self.plan, ready, self._url)
        self.folder.update(clock=ready.clock)

    def run(self, begin: Beginning, on_report: Callable[[Report], None]) -> Ended:
        """Play the blocks to their end; what `on_report` gets is by the run's clock."""
        ended = self.workers.run(self, lambda report: on_report(self._as_shown(report)), begin)
        if ended.stopped_s is not None:
            ended.stopped_s = self.clock.own_ns(round(ended.stopped_s * 1e9)) / 1e9
        ended.stepped_s = [self.clock.own_ns(round(t * 1e9)) / 1e9 for t in ended.stepped_s]
        return ended

    def begin(self, started_unix_s: float) -> None:
        """Head the log with the time at which the load starts."""
        self.folder.begin(started_unix_s)

    def append(self, report: Report) -> None:
        """Write what an interval of the run brought, on the arm's own clock."""
        self._own = tuple(self.clock.reports(report))
        for own in self._own:
            self.folder.append(own)

    def _as_shown(self, report: Report) -> Report:
        """Return what was just appended as one report of the run, its stages as declared."""
        return merge_reports(replace(own, index=report.index) for own in self._own or (report,))

    def close(self, ended: Ended) -> None:
        """Write down how it ended."""
        interleaved = {**self.folder.run["interleaved"], "late": self.late}
        self.unsaved = close_run(self.folder, ended, self.plan, interleaved=interleaved)

    @property
    def late(self) -> float:
        """The share of its requests that ended while the other target was on duty."""
        return self.clock.late / max(1, self.clock.finished)


class _Load:
    """Both arms at once, on one time axis."""

    def __init__(
        self,
        plan: Plan,
        arms: Sequence[_ArmRun],
        blocks: Sequence[Block],
        interval_ns: int,
        on_progress: Callable[[dict[str, Any]], None],
    ) -> None:
        self._progress = Progress(plan, _spans(blocks), interval_ns / 1e9)
        self._on_progress = on_progress
        self._waiting: dict[int, list[Report]] = defaultdict(list)
        self._arms = arms
        self._playing = len(arms)
        self._lock = threading.Lock()
        self._interrupts = Interrupts(lambda: [arm.workers for arm in arms])

    def run(self) -> bool:
        """Play both to their end; returns whether it was interrupted."""
        begin = Beginning.soon()
        with self._interrupts.obeyed(), ThreadPoolExecutor(len(self._arms)) as pool:
            playing = [pool.submit(self._play, arm, begin) for arm in self._arms]
            ended = [future.result() for future in playing]
            for arm, how in zip(self._arms, ended, strict=True):
                how.interrupted |= self._interrupts.came
                arm.close(how)
        return self._interrupts.came

    def _play(self, arm: _ArmRun, begin: Beginning) -> Ended:
        ended: Ended | None = None
        try:
            ended = arm.run(begin, self._note)
        finally:
            if ended is None or ended.crashed:
                for each in self._arms:
                    each.workers.stop()
        with self._lock:
            self._playing -= 1
            self._show()
        return ended

    def _note(self, report: Report) -> None:
        with self._lock:
            self._waiting[report.index].append(report)
            self._show()

    def _show(self) -> None:
        """Show the intervals that every arm still playing has reported, both arms together."""
        for index in sorted(self._waiting):
            if len(self._waiting[index]) >= self._playing:
                told = {"stopping": self._interrupts.came}
                whole = merge_reports(self._waiting.pop(index))
                self._on_progress(self._progress.update(whole) | told)


def _arm(
    stack: ExitStack,
    undo: list[ExitStack],
    plans: dict[Arm, Plan],
    arm: Arm,
    out: Path,
    blocks: Sequence[Block],
    interval_ns: int,
) -> _ArmRun:
    """Start a target's workers and open its folder; both end with the stack."""
    plan, path = plans[arm], out / arm
    url = stack.enter_context(target_url(plan))
    run = describe(_own(plan, arm), url, stage_windows(plan), interval_ns)
    if plan.target.url == EMBEDDED:
        run["target"]["url"] = " ".join([EMBEDDED, *_changed(plans["a"], plan)])
    folder = RunFolder.create(path, {**run, "interleaved": {"arm": arm}}, secrets=secrets(plan))
    undo.append(stack.enter_context(removed_on_error(path, is_new=folder.is_new)))
    workers = stack.enter_context(
        Workers.started(
            arm_plan(plan, blocks, arm), url, interval_ns=interval_ns, log_path=path / LOG_FILE
        )
    )
    return _ArmRun(plan, url, OwnClock(blocks, arm, interval_ns), folder, workers)


def _changed(plan: Plan, other: Plan) -> list[str]:
    """Return what is set otherwise of the other's embedded endpoint."""
    return [f"{k}={v}" for k, v in other.embedded.items() if plan.embedded.get(k) != v]


def _own(plan: Plan, arm: Arm) -> Plan:
    """Return the plan that an arm's own run is judged by: the baseline's changes have no limit."""
    kept = (budget for budget in plan.budgets if arm == "b" or not budget.regression)
    return replace(plan, budgets=tuple(kept))


def _describe_turns(arms: Sequence[_ArmRun], blocks: Sequence[Block], turns: Turns) -> None:
    shared = {
        "run": uuid.uuid4().hex,
        "block_s": turns.block_ns / 1e9,
        "pause_s": turns.pause_ns / 1e9,
        "order": "".join(block.first for block in blocks if block.stage.record),
        "edges_s": edges_s(blocks),
    }
    number = arms[0].folder.run["id"]
    for name, arm in zip(ARMS, arms, strict=True):
        interleaved = {**arm.folder.run["interleaved"], **shared}
        arm.folder.update(id=f"{number}-{name}", interleaved=interleaved)


def _spans(blocks: Sequence[Block]) -> tuple[StageWindow, ...]:
    """Return when each stage runs against either target, on the run's clock."""
    spans: dict[str, StageWindow] = {}
    for block in blocks:
        stage = block.stage
        start_s = min(block.at_ns.values()) / 1e9
        end_s = (max(block.at_ns.values()) + block.length_ns) / 1e9
        known = spans.get(stage.name)
        spans[stage.name] = StageWindow(
            name=stage.name,
            start_s=known.start_s if known else start_s,
            end_s=end_s,
            record=stage.record,
            load=stage.load,
            planned_rate_per_s=stage.arrivals.rate_per_s if stage.arrivals else None,
            max_in_flight=stage.max_in_flight,
        )
    return tuple(spans.values())


def _compared(
    arms: Sequence[_ArmRun],
    blocks: Sequence[Block],
    turns: Turns,
    limit: str | None,
    *,
    interrupted: bool,
) -> Compared:
    base, candidate = (load_recording(arm.folder.path) for arm in arms)
    pair = Pair(base, candidate)
    declared = [budget for budget in budgets_of(candidate) if budget.regression]
    limits = [] if limit is None else limited(pair, limit)
    results = [_judged(arms[0]), _judged(arms[1], base)]
    first, second = (
        ArmResult(arm=arm, result=result, late=run.late)
        for arm, result, run in zip(ARMS, results, arms, strict=True)
    )
    return Compared(
        comparison=compare(pair, [*declared, *limits]),
        arms=(first, second),
        turns=turns,
        pairs={name: len(edges) - 1 for name, edges in edges_s(blocks).items()},
        interrupted=interrupted,
    )


def _judged(arm: _ArmRun, baseline: Recording | None = None) -> Result:
    path = arm.folder.path
    result = replace(judge_folder(path, baseline=baseline), unsaved=arm.unsaved)
    return with_reports(result, path, baseline=baseline)
