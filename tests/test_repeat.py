"""A load that is played several times: new processes and seeds, one folder, one time axis."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import invoked
from conftest import stage
from load import S, write_plan

from harness import runs
from harness.arrivals import schedule
from harness.endpoint import Settings, running
from harness.errors import ExitCode
from harness.plan import Plan
from harness.recorder import Recording, RunFolder, load_recording
from harness.runs import run_plan
from harness.swarm.collect import Beginning, Workers
from harness.swarm.manifest import describe, interval_for, repetition, stage_windows
from harness.verdict import Outcome, judge

ASK = """
    import os

    class Someone(ModelUser):
        @task
        def ask(self):
            with step("ask") as this:
                this.detail["pid"] = os.getpid()
                self.predict({"instances": [1]})
"""
LOAD = (
    "[{ name: warmup, arrivals: constant 50/s, for: 100ms, record: false },"
    " { name: steady, arrivals: poisson 100/s, for: 400ms }]"
)
BUDGETS = ["ask.e2el p50 < 1us in steady", "run.error_rate < 99%", "ask.goodput > 1%"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running(Settings(predict_ms=5)) as url:
        yield url


def plan_of(folder: Path, url: str, scenario: str = ASK, **more: Any) -> Plan:
    given = {"load": LOAD, "repeat": 3, "seed": 3, "budgets": BUDGETS, **more}
    return write_plan(folder, scenario, url=url, **given)


def played(
    plan: Plan, folder: Path, watch: Callable[[dict[str, Any]], object] = lambda _: None
) -> tuple[Recording, ExitCode]:
    result = run_plan(plan, folder, watch)
    return load_recording(folder), result.exit_code


def names(recording: Recording) -> list[str]:
    return [stage.name for stage in recording.stages]


@pytest.fixture(autouse=True, scope="module")
def _without_reports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "write_reports", lambda *_, **__: ())
        yield


@dataclass
class Thrice:
    plan: Plan
    recording: Recording
    progress: list[dict[str, Any]]


@pytest.fixture(scope="module")
def thrice(tmp_path_factory: pytest.TempPathFactory, endpoint: str) -> Thrice:
    folder, progress = tmp_path_factory.mktemp("thrice"), []
    plan = plan_of(folder, endpoint)
    recording, _ = played(plan, folder / "run", progress.append)
    return Thrice(plan, recording, progress)


def test_each_repetition_is_the_whole_load_with_a_seed_of_its_own(thrice: Thrice) -> None:
    recording, numbers = thrice.recording, (1, 2, 3)
    assert names(recording) == ["warmup", "steady", "warmup~2", "steady~2", "warmup~3", "steady~3"]
    steady = recording.repetitions("steady")
    assert [(s.group, s.repeat) for s in steady] == [("steady", number) for number in numbers]
    seeds = [repetition(thrice.plan, number).seed for number in numbers]
    assert len(set(seeds)) == 3
    assert [recording.load_totals(stage.name).finished for stage in steady] == [
        len(list(schedule("poisson", 100, 2 * S // 5, seed=seed, stage=1))) for seed in seeds
    ]
    assert recording.run["status"] == "complete"


def test_each_repetition_has_processes_of_its_own(thrice: Thrice) -> None:
    pids = {
        (journey.stage.partition("~")[2], span.detail["pid"])
        for journey in thrice.recording.journeys
        for span in journey.steps
        if "pid" in span.detail
    }
    assert len(pids) == len({pid for _, pid in pids}) == 3


def test_the_live_view_hears_which_repetition_runs_and_its_own_clock(thrice: Thrice) -> None:
    seen = [(p["repetition"], p["repetitions"]) for p in thrice.progress]
    assert sorted(set(seen)) == [(1, 3), (2, 3), (3, 3)] == list(dict.fromkeys(seen))
    assert {p["stage"] for p in thrice.progress} <= {"warmup", "steady"}
    assert all(p["t_s"] > 0 and p["total_s"] == pytest.approx(0.5) for p in thrice.progress)


def test_all_repetitions_stand_on_one_time_axis(thrice: Thrice) -> None:
    recording = thrice.recording
    ends = [t for stage in recording.stages for t in (stage.start_s, stage.end_s)]
    assert ends == sorted(ends)
    for window in recording.repetitions("warmup"):
        intervals = window.start_s / recording.interval_s
        assert intervals == pytest.approx(round(intervals))
    for window in recording.repetitions("steady"):
        series = recording.series(window.name, "ask", "e2el")
        assert series is not None
        assert window.start_s - recording.interval_s < series.t_s[0] < window.end_s
        times = [j.t_s for j in recording.journeys if j.stage == window.name]
        assert times
        assert all(window.start_s <= t < window.end_s for t in times)


def test_what_budgets_need_is_counted_in_every_repetition(thrice: Thrice) -> None:
    limit = thrice.plan.budgets[0].threshold
    for window in thrice.recording.repetitions("steady"):
        series = thrice.recording.series(window.name, "ask", "e2el")
        assert series is not None
        over = series.over(limit)
        assert over is not None
        requests = thrice.recording.requests(window.name, "ask")
        assert over.sum() == requests.n > 0
        assert requests.n_good == 0


def test_ctrl_c_in_a_repetition_drains_it_and_no_other_follows(
    tmp_path: Path, endpoint: str
) -> None:
    def strike(progress: dict[str, Any]) -> None:
        if progress["repetition"] == 2 and not progress["stopping"] and progress["finished"]:
            os.kill(os.getpid(), signal.SIGINT)

    plan = plan_of(tmp_path, endpoint, load="[{ name: steady, concurrency: 2, for: 2s }]", repeat=3)
    recording, code = played(plan, tmp_path / "run", strike)
    assert code == ExitCode.INTERRUPTED
    assert names(recording) == ["steady", "steady~2"]
    whole, cut = recording.stages
    assert whole.end_s - whole.start_s == 2 > cut.end_s - cut.start_s
    totals = recording.load_totals("steady~2")
    assert totals.planned == totals.finished > 0
    assert (recording.run["status"], recording.run["lost_reports"]) == ("interrupted", 0)


def test_ctrl_c_while_the_next_workers_start_keeps_what_was_played(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, calls = Workers.ready, []

    def interrupted(workers: Workers) -> Any:
        calls.append(workers)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return ready(workers)

    monkeypatch.setattr(Workers, "ready", interrupted)
    recording, code = played(plan_of(tmp_path, endpoint), tmp_path / "run")
    assert code == ExitCode.INTERRUPTED
    assert names(recording) == ["warmup", "steady"]
    assert recording.stage("steady").end_s == 0.5
    assert [child.returncode for child in calls[1]._children] == [0]


def test_a_stop_before_the_start_is_obeyed_right_after_it(tmp_path: Path, endpoint: str) -> None:
    plan = plan_of(tmp_path, endpoint, load="[{ name: steady, concurrency: 1, for: 10m }]")
    folder = RunFolder.create(
        tmp_path / "run", describe(plan, endpoint, stage_windows(plan), interval_for(plan))
    )
    with Workers.started(plan, endpoint, log_path=tmp_path / "log") as workers:
        workers.ready()
        workers.stop()
        ended = workers.run(folder, lambda _: None)
    folder.close()
    assert (ended.interrupted, ended.crashed, ended.lost_reports) == (True, [], 0)


CRASHES = """
    import os
    first = not os.path.exists(MARK)
    open(MARK, "a").close()

    class Someone(ModelUser):
        @task
        def ask(self):
            self.predict({"instances": [1]})
            if not first:
                os._exit(7)
"""
CANNOT_START = """
    import os
    if os.path.exists(MARK):
        raise ValueError("no account left")
    open(MARK, "a").close()

    class Someone(ModelUser):
        @task
        def ask(self):
            self.predict({"instances": [1]})
"""


@pytest.mark.parametrize(
    ("scenario", "stages", "says"),
    [
        (CRASHES, ["warmup", "steady", "warmup~2", "steady~2"], "worker 0 ended with code 7"),
        (CANNOT_START, ["warmup", "steady"], "repetition 2 did not start: .*no account left"),
    ],
)
def test_a_crash_ends_the_run_and_makes_it_invalid(
    tmp_path: Path, endpoint: str, scenario: str, stages: list[str], says: str
) -> None:
    scenario = scenario.replace("MARK", repr(str(tmp_path / "mark")))
    plan = plan_of(tmp_path, endpoint, scenario, budgets=["predict.e2el p50 < 30s"])
    recording, code = played(plan, tmp_path / "run")
    assert code == ExitCode.INVALID
    assert names(recording) == stages
    (crash,) = recording.run["crashed"]
    assert re.match(says, crash)


def test_one_repetition_is_the_plan_itself(tmp_path: Path, endpoint: str) -> None:
    plan = plan_of(tmp_path, endpoint)
    assert repetition(plan, 1) is plan
    second = repetition(plan, 2)
    assert second == repetition(plan, 2)
    assert [budget.stage for budget in second.budgets] == ["steady~2", None, None]
    assert [budget.text for budget in second.budgets] == [b.text for b in plan.budgets]


def test_a_beginning_lies_on_the_grid_of_the_first_and_in_the_future() -> None:
    first = Beginning.soon()
    for interval_ns in (S // 10, S):
        second = first.following(interval_ns)
        assert second.t0_ns - first.t0_ns == second.index * interval_ns > 0


def test_the_windows_of_every_budget_are_whole_intervals(tmp_path: Path, endpoint: str) -> None:
    load = "[{ name: steady, concurrency: 1, for: 30s }]"
    assert interval_for(plan_of(tmp_path, endpoint, load=load)) == 7 * S // 10
    for over, tenths in (("3s", 5), ("5.6s", 7), ("1s", 1), ("30s", 6), ("4.7s", 1)):
        windows = [{"budget": "ask.e2el p50 < 1s", "over": over}]
        plan = plan_of(tmp_path, endpoint, load=load, budgets=windows)
        assert interval_for(plan) == tenths * S // 10, over


def test_a_run_saved_before_there_were_repetitions_has_one(
    save_run: Callable[..., Recording],
) -> None:
    recording = save_run(lambda _recorder, _i: None, stages=[stage("steady")])
    assert (recording.stages[0].repeat, recording.stages[0].group) == (1, "steady")
    assert recording.repetitions("steady") == recording.stages


@pytest.mark.parametrize("number", [0, 21, "two"])
def test_how_often_is_bounded_on_the_command_line_too(
    tmp_path: Path, endpoint: str, number: object
) -> None:
    plan_of(tmp_path, endpoint)
    done = invoked("run", tmp_path / "plan.yaml", "--repeat", number, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "--repeat: found" in done.stderr
    assert "1 to 20" in done.stderr


def test_a_baseline_that_is_no_run_is_told_before_the_load(tmp_path: Path, endpoint: str) -> None:
    plan_of(tmp_path, endpoint)
    given = ("--baseline", tmp_path, "--out", tmp_path / "run")
    done = invoked("run", tmp_path / "plan.yaml", *given)
    assert (done.exit_code, "is not a run folder" in done.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_regression_without_a_baseline_is_warned_of_and_never_passes(
    tmp_path: Path, endpoint: str
) -> None:
    budget = "ask.e2el p50 regression < 5%"
    plan = plan_of(tmp_path, endpoint, repeat=1, budgets=[budget])
    assert (runs.without_baseline(plan.budgets) or "").startswith(budget)
    recording, code = played(plan, tmp_path / "run")
    (verdict,) = judge(recording, plan.budgets).budgets
    assert (verdict.outcome, code) == (Outcome.NO_DATA, ExitCode.INVALID)
    assert "--baseline RUN" in (verdict.reason or "")
    assert runs.without_baseline(plan_of(tmp_path, endpoint).budgets) is None
