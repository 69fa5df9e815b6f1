"""One run as a whole: from a plan to a folder with its reports, and from a folder to them again."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.budget import RUN, Budget, parse_budget
from harness.errors import ExitCode
from harness.plan import Plan, check_steps, masked, secrets
from harness.recorder import (
    Recording,
    Report,
    RunFolder,
    load_recording,
    write_atomically,
)
from harness.recorder.folder import HLOG_FILE, INTERVALS_FILE, REQUESTS_FILE, RUN_FILE
from harness.swarm import frames
from harness.swarm.collect import Ended, Workers, check_probes
from harness.swarm.manifest import describe, interval_for, stage_windows, target_url
from harness.swarm.progress import Progress
from harness.swarm.scan import known_steps
from harness.verdict import Verdict, judge

_LOG_FILE = "locust.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished run: where it is, what it came to, which files were written."""

    folder: Path
    recording: Recording
    verdict: Verdict
    files: tuple[Path, ...]
    exit_code: ExitCode


def run_plan(plan: Plan, out: Path, on_progress: Callable[[dict[str, Any]], None]) -> Result:
    """Run a plan's load and judge it.

    Raises UserError for a scenario or plan that cannot run, TargetError when the preflight fails;
    no load has run then, and no folder is left.
    """
    stages = stage_windows(plan)
    interval_ns = interval_for(plan)
    saved = "before the load started; nothing was saved"
    try:
        with _sigterm_like_ctrl_c():
            with ExitStack() as stack:
                url = stack.enter_context(target_url(plan))
                is_new = not out.exists()
                folder = RunFolder.create(
                    out, describe(plan, url, stages, interval_ns), secrets=secrets(plan)
                )
                undo = stack.enter_context(_removed_on_error(out, is_new=is_new))
                workers = stack.enter_context(
                    Workers.started(plan, url, interval_ns=interval_ns, log_path=out / _LOG_FILE)
                )
                ready = workers.ready()
                check_preflight(plan, ready, url)
                undo.pop_all()
                saved = f"while reporting; the run is saved, go on with: harness gate {out}"
                folder.update(clock=ready.clock)
                progress = Progress(plan, stages, interval_ns / 1e9)
                ended = _load(plan, workers, folder, progress, on_progress)
            return judge_folder(out, interrupted=ended.interrupted)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(saved) from None


def preflight(plan: Plan) -> tuple[str, tuple[frames.Probe, ...]]:
    """Run each task once and no load; returns the target's URL and what the tasks met."""
    with target_url(plan) as url, Workers.started(replace(plan, workers=1), url) as workers:
        ready = workers.ready()
        check_preflight(plan, ready, url)
        return url, ready.probes


def judge_folder(
    folder: Path, budgets: Sequence[Budget] | None = None, *, interrupted: bool = False
) -> Result:
    """Judge a saved run, by its own budgets or by others, and write its reports."""
    recording = load_recording(folder)
    verdict = judge(recording, budgets_of(recording) if budgets is None else budgets)
    files = write_reports(folder, recording, verdict)
    code = ExitCode.INTERRUPTED if interrupted else verdict.exit_code
    return Result(folder=folder, recording=recording, verdict=verdict, files=files, exit_code=code)


def write_reports(folder: Path, recording: Recording, verdict: Verdict) -> tuple[Path, ...]:
    """Write every form of the report into the run's folder; returns the files, page first."""
    from harness.report.charts import write_charts
    from harness.report.export import verdict_json
    from harness.report.facts import findings
    from harness.report.junit import render_junit
    from harness.report.markdown import render_markdown
    from harness.report.page import render_page

    found = findings(recording, verdict)
    texts = {
        "report.html": render_page(recording, verdict, found),
        "report.md": render_markdown(recording, verdict, found),
        "verdict.json": json.dumps(verdict_json(recording, verdict, found), indent=1) + "\n",
        "junit.xml": render_junit(recording, verdict),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    write_charts(folder, recording, verdict, found)
    return tuple(folder / name for name in texts)


def budgets_of(recording: Recording) -> tuple[Budget, ...]:
    """Return the budgets that a run was declared with."""
    return tuple(
        parse_budget(budget["text"], confidence=budget["confidence"])
        for budget in recording.run.get("budgets", ())
    )


def check_preflight(plan: Plan, ready: frames.Ready, url: str) -> None:
    """Raise TargetError for a target that does not answer, PlanError for a budget's wrong step."""
    check_probes(ready.probes, url)
    seen = [name for probe in ready.probes for name, _, _ in probe.steps]
    wanted = [budget.step for budget in plan.budgets if budget.step != RUN]
    known = known_steps(plan.scenario, seen, wanted)
    if known is not None:
        check_steps(plan, known)


def _load(
    plan: Plan,
    workers: Workers,
    folder: RunFolder,
    progress: Progress,
    on_progress: Callable[[dict[str, Any]], None],
) -> Ended:
    """Run the load and save it; the first Ctrl-C drains, the second ends at once."""
    asked = [0]

    def interrupt(_signal: int, _frame: object) -> None:
        asked[0] += 1
        if asked[0] == 1:
            workers.stop()
        else:
            workers.kill()

    def note(report: Report) -> None:
        on_progress(progress.update(report) | {"stopping": asked[0] > 0})

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended = workers.run(folder, note)
        ended.interrupted |= asked[0] > 0
        _close(folder, ended, plan)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ended


def _close(folder: RunFolder, ended: Ended, plan: Plan) -> None:
    if ended.stopped_s is not None:
        end_s = max(ended.stopped_s, folder.run["interval_s"])
        begun = [stage for stage in folder.run["stages"] if stage["start_s"] < end_s]
        folder.update(stages=[{**stage, "end_s": min(stage["end_s"], end_s)} for stage in begun])
    status = "interrupted" if ended.interrupted else "crashed" if ended.crashed else "complete"
    folder.update(
        status=status,
        ended_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        crashed=ended.crashed,
        lost_reports=ended.lost_reports,
        first_failure=masked(plan, ended.first_failure or "") or None,
        retries=ended.retries,
        clock=" and ".join(sorted(ended.clocks)) or folder.run.get("clock"),
    )
    folder.close()


@contextmanager
def _removed_on_error(folder: Path, *, is_new: bool) -> Iterator[ExitStack]:
    """Remove what a run made when no load has started; `pop_all` on what is yielded keeps it.

    A folder that was there before may hold other people's files: it stays, with them.
    """
    with ExitStack() as undo:
        if is_new:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
        for name in (RUN_FILE, HLOG_FILE, INTERVALS_FILE, REQUESTS_FILE, _LOG_FILE):
            undo.callback((folder / name).unlink, missing_ok=True)
        yield undo


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
