"""One run as a whole: from a plan to a folder with its reports, and from a folder to them again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.budget import RUN, Budget, parse_budget
from harness.errors import ExitCode, HarnessError, RecordingError
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
from harness.swarm.abort import Aborted, Watch
from harness.swarm.collect import Beginning, Ended, Workers, check_probes
from harness.swarm.interrupts import Interrupts, signals_like_ctrl_c
from harness.swarm.manifest import (
    describe,
    interval_for,
    repetition,
    stage_windows,
    target_url,
)
from harness.swarm.progress import Progress
from harness.swarm.scan import known_steps
from harness.verdict import Verdict, judge

LOG_FILE = "locust.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished run: where it is, what it came to, which files were written.

    `unsaved` says why not all that was measured was saved, `unwritten` why the reports were not.
    """

    folder: Path
    recording: Recording
    verdict: Verdict
    exit_code: ExitCode
    files: tuple[Path, ...] = ()
    unsaved: str = ""
    unwritten: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person must be told beside the verdict."""
        return tuple(filter(None, (self.unsaved, self.unwritten)))


def run_plan(
    plan: Plan,
    out: Path,
    on_progress: Callable[[dict[str, Any]], None],
    *,
    baseline: Recording | None = None,
) -> Result:
    """Run a plan's load, as often as it says, and judge it; regressions against `baseline`.

    Raises UserError for a scenario or plan that cannot run, TargetError when the preflight fails;
    no load has run then, and no folder is left. A load that has run is judged, whatever happens to
    the disk meanwhile.
    """
    interval_ns = interval_for(plan)
    saved = "before the load started; nothing was saved"
    try:
        with signals_like_ctrl_c():
            with ExitStack() as stack:
                url = stack.enter_context(target_url(plan))
                folder = RunFolder.create(
                    out,
                    describe(plan, url, stage_windows(plan), interval_ns),
                    secrets=secrets(plan),
                )
                undo = stack.enter_context(removed_on_error(out, is_new=folder.is_new))
                load = _Load(plan, url, folder, interval_ns, on_progress)
                with load.workers(1) as workers:
                    ready = workers.ready()
                    check_preflight(plan, ready, url)
                    folder.update(clock=ready.clock)
                    with kept_once_begun(undo, folder):
                        saved = f"while reporting; the run is saved: harness report {out}"
                        ended = load.run(workers)
            result = judge_folder(out, baseline=baseline, interrupted=ended.interrupted)
            return with_reports(replace(result, unsaved=ended.unsaved), out, baseline=baseline)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(saved) from None


def preflight(plan: Plan) -> tuple[str, tuple[frames.Probe, ...]]:
    """Run each task once and no load; returns the target's URL and what the tasks met."""
    with target_url(plan) as url, Workers.started(replace(plan, workers=1), url) as workers:
        ready = workers.ready()
        check_preflight(plan, ready, url)
        return url, ready.probes


def judge_folder(
    folder: Path,
    plan: Plan | None = None,
    *,
    baseline: Recording | None = None,
    interrupted: bool = False,
) -> Result:
    """Judge a saved run, by its own plan's budgets or by another's; writes nothing."""
    recording = load_recording(folder)
    budgets = budgets_of(recording) if plan is None else plan.budgets
    together = plan.multiple_testing if plan else recording.run.get("multiple_testing", "none")
    verdict = judge(recording, budgets, baseline=baseline, holm=together == "holm")
    if plan is not None:
        verdict = replace(verdict, judged_by=plan.path.name if plan.path else plan.name)
    code = ExitCode.INTERRUPTED if interrupted else verdict.exit_code
    return Result(folder=folder, recording=recording, verdict=verdict, exit_code=code)


def with_reports(result: Result, folder: Path, *, baseline: Recording | None = None) -> Result:
    """Write a judged run's reports into a folder; where they cannot be, the result says why."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = write_reports(folder, result.recording, result.verdict, baseline=baseline)
    except OSError as error:
        why = f"the reports were not written to {folder} ({error.strerror})"
        return replace(result, unwritten=why)
    return replace(result, files=files)


def write_reports(
    folder: Path, recording: Recording, verdict: Verdict, *, baseline: Recording | None = None
) -> tuple[Path, ...]:
    """Write every form of the report into a folder; returns the files, page first."""
    from harness.report.charts import write_charts
    from harness.report.export import verdict_json
    from harness.report.facts import findings
    from harness.report.junit import render_junit
    from harness.report.markdown import render_markdown
    from harness.report.page import render_page

    found = findings(recording, verdict, baseline)
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
        parse_budget(
            budget["text"], confidence=budget["confidence"], abort=budget.get("abort", False)
        )
        for budget in recording.run.get("budgets", ())
    )


def without_baseline(budgets: Iterable[Budget]) -> str | None:
    """Say which budgets cannot be judged without a baseline; None when all can."""
    texts = [budget.text for budget in budgets if budget.regression]
    if not texts:
        return None
    return f"{', '.join(texts)}: not judged without a run to compare with, --baseline RUN"


def check_preflight(plan: Plan, ready: frames.Ready, url: str) -> None:
    """Raise TargetError for a target that does not answer, PlanError for a budget's wrong step."""
    check_probes(ready.probes, url)
    seen = [name for probe in ready.probes for name, _, _ in probe.steps]
    wanted = [budget.step for budget in plan.budgets if budget.step != RUN]
    wanted += plan.prices.steps if plan.prices else ()
    known = known_steps(plan.scenario, seen, wanted)
    if known is not None:
        check_steps(plan, known)


class _Load:
    """The repetitions of one plan's load, saved into one folder.

    No repetition follows an interrupt, an early end or a crash.
    """

    def __init__(
        self,
        plan: Plan,
        url: str,
        folder: RunFolder,
        interval_ns: int,
        on_progress: Callable[[dict[str, Any]], None],
    ) -> None:
        self._plan, self._url, self._folder = plan, url, folder
        self._interval_ns, self._on_progress = interval_ns, on_progress
        self._progress = Progress(plan, stage_windows(plan), interval_ns / 1e9)
        self._workers: Workers | None = None
        self._interrupts = Interrupts(lambda: [self._workers] if self._workers else [])
        self._ended = Ended()
        self._watch = Watch(plan, interval_ns / 1e9)
        self._watch.begin(stage_windows(plan))
        self._aborted: Aborted | None = None

    def workers(self, number: int) -> AbstractContextManager[Workers]:
        """Start the processes of a repetition; those of the first do the preflight."""
        return Workers.started(
            repetition(self._plan, number),
            self._url,
            interval_ns=self._interval_ns,
            log_path=self._folder.path / LOG_FILE,
            preflight=number == 1,
        )

    def run(self, first: Workers) -> Ended:
        """Play the load as often as the plan says, and close the folder."""
        begin = Beginning.soon()
        with self._interrupts.obeyed():
            self._workers = first
            self._ended = first.run(self._folder, self._note, begin)
            first.end()
            for number in range(2, self._plan.repeat + 1):
                if not (self._interrupts.came or self._aborted or self._ended.early):
                    self._repeat(number, begin)
            self._ended.interrupted = self._interrupts.came
            self._ended.unsaved = close_run(self._folder, self._ended, self._plan, self._aborted)
        return self._ended

    def _repeat(self, number: int, first: Beginning) -> None:
        self._workers = None
        with self.workers(number) as workers:
            self._workers = workers
            try:
                workers.ready()
            except HarnessError as error:
                if not self._interrupts.came:
                    self._ended.crashed.append(f"repetition {number} did not start: {error}")
            if self._interrupts.came or self._ended.crashed:
                return
            begin = first.following(self._interval_ns)
            begin_s = begin.index * self._interval_ns / 1e9
            stages = stage_windows(repetition(self._plan, number), begin_s=begin_s, repeat=number)
            self._progress.begin(number, stages)
            self._watch.begin(stages)
            self._folder.update(stages=[*self._folder.run["stages"], *map(asdict, stages)])
            self._ended.include(workers.run(self._folder, self._note, begin))

    def _note(self, report: Report) -> None:
        if not (self._interrupts.came or self._aborted):
            self._aborted = self._watch.add(report)
            if self._aborted and self._workers:
                self._workers.stop()
        told = {"stopping": self._interrupts.came, "aborted": self._aborted and self._aborted.why}
        self._on_progress(self._progress.update(report) | told)


def close_run(
    folder: RunFolder, ended: Ended, plan: Plan, aborted: Aborted | None = None, **facts: Any
) -> str:
    """Write down how a load ended, with `facts`, and close its folder.

    Returns what could not be saved, empty when all was.
    """
    lost = folder.close()
    ended.lost_reports += lost
    try:
        _write_end(folder, ended, plan, aborted, facts)
    except RecordingError as error:
        return f"{error}; what was recorded before is judged"
    told = f"{folder.path}: {lost} intervals were not saved; is the disk full?"
    return told if lost else ""


def _write_end(
    folder: RunFolder,
    ended: Ended,
    plan: Plan,
    aborted: Aborted | None,
    facts: Mapping[str, Any],
) -> None:
    if ended.stopped_s is not None:
        end_s = max(ended.stopped_s, folder.run["interval_s"])
        begun = [stage for stage in folder.run["stages"] if stage["start_s"] < end_s]
        folder.update(stages=[{**stage, "end_s": min(stage["end_s"], end_s)} for stage in begun])
    early = "interrupted" if ended.interrupted else "crashed" if ended.crashed else None
    folder.update(
        status=early or ("aborted" if aborted else "complete"),
        **({"aborted": asdict(aborted)} if aborted else {}),
        ended_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        crashed=ended.crashed,
        lost_reports=ended.lost_reports,
        first_failure=masked(plan, ended.first_failure or "") or None,
        first_exception=masked(plan, ended.first_exception or "") or None,
        retries=ended.retries,
        reads={"stamped": ended.stamped, "unstamped": ended.unstamped},
        clock_steps_s=sorted(ended.stepped_s),
        clock=" and ".join(sorted(ended.clocks)) or folder.run.get("clock"),
        **facts,
    )


@contextmanager
def removed_on_error(folder: Path, *, is_new: bool) -> Iterator[ExitStack]:
    """Remove what a run made when no load has started; `pop_all` on what is yielded keeps it.

    A folder that was there before may hold other people's files: it stays, with them.
    """
    with ExitStack() as undo:
        if is_new:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
        for name in (RUN_FILE, HLOG_FILE, INTERVALS_FILE, REQUESTS_FILE, LOG_FILE):
            undo.callback((folder / name).unlink, missing_ok=True)
        yield undo


@contextmanager
def kept_once_begun(undo: ExitStack, *folders: RunFolder) -> Iterator[None]:
    """Keep what `undo` would remove as soon as the load of one of its folders has begun."""
    try:
        yield
    finally:
        if any(folder.begun for folder in folders):
            undo.pop_all()
