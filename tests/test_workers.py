"""Worker processes and their parent: nothing is lost unnoticed, whatever a scenario does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import httpx
import pytest
from load import STAGE, S, check_nothing_vanished, run_here, write_plan

from harness.arrivals import schedule
from harness.endpoint import Settings, running
from harness.errors import HarnessError, TargetError, UserError
from harness.plan import Plan
from harness.recorder import Recording, Report, RunFolder, load_recording
from harness.swarm import collect, frames, worker
from harness.swarm.collect import Ended, Workers
from harness.swarm.manifest import describe, stage_windows

ASK = """
    class Someone(ModelUser):
        @task
        def ask(self):
            self.predict({"instances": [1]})
"""
QUICK = "[{ name: steady, arrivals: poisson 100/s, for: 500ms }]"
INTERVAL = S // 10


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running(Settings(predict_ms=5, ttft_ms=2, gap_ms=1, tokens=3)) as url:
        yield url


def measure(
    plan: Plan, folder: Path, on_report: Callable[[Workers, Report], object] = lambda *_: None
) -> tuple[list[Report], Ended, Recording]:
    """Run a plan's load by its worker processes; returns what they reported and what was saved."""
    url, reports = plan.target.url, []
    run = RunFolder.create(folder, describe(plan, url, stage_windows(plan), INTERVAL))
    with Workers.started(plan, url, interval_ns=INTERVAL, log_path=folder / "log") as workers:
        workers.ready()

        def note(report: Report) -> None:
            reports.append(report)
            on_report(workers, report)

        ended = workers.run(run, note)
    run.update(status="complete", lost_reports=ended.lost_reports)
    run.close()
    return reports, ended, load_recording(folder)


def test_two_workers_share_the_plan_and_the_recording_is_what_they_saw(
    tmp_path: Path, endpoint: str
) -> None:
    plan = write_plan(tmp_path, ASK, url=endpoint, load=QUICK, workers=2, seed=3)
    reports, ended, recording = measure(plan, tmp_path / "run")
    check_nothing_vanished(reports)
    offsets = [list(schedule("poisson", 100, S // 2, seed=3, worker=n, workers=2)) for n in (0, 1)]
    planned = len(offsets[0]) + len(offsets[1])
    assert (ended.crashed, ended.lost_reports, ended.interrupted) == ([], 0, False)
    totals = recording.load_totals(STAGE)
    assert (totals.planned, totals.sent, totals.finished) == (planned,) * 3
    series = recording.series(STAGE, "predict", "e2el")
    assert series is not None
    assert series.total.n == planned == recording.requests(STAGE, "predict").n
    assert [report.index for report in reports] == list(range(len(recording.timeline.t_s)))


def test_workers_that_end_at_different_times_have_not_crashed(
    tmp_path: Path, endpoint: str
) -> None:
    scenario = """
        class Someone(ModelUser):
            @task
            def ask(self):
                self.predict({"instances": [1]})
                if self.environment.harness.seed[1] == 1:
                    gevent.sleep(0.7)
    """
    plan = write_plan(tmp_path, scenario, url=endpoint, load=QUICK, workers=2)
    reports, ended, _ = measure(plan, tmp_path / "run")
    check_nothing_vanished(reports)
    assert (ended.crashed, ended.lost_reports) == ([], 0)


def test_a_worker_that_is_killed_is_noticed_and_what_the_other_saw_is_kept(
    tmp_path: Path, endpoint: str
) -> None:
    def strike(workers: Workers, report: Report) -> None:
        if report.index == 1:
            workers._children[0].kill()

    plan = write_plan(tmp_path, ASK, url=endpoint, load=QUICK, workers=2)
    reports, ended, recording = measure(plan, tmp_path / "run", strike)
    assert ended.crashed == [f"worker 0 ended with code {-signal.SIGKILL} (SIGKILL)"]
    assert ended.lost_reports == 1
    assert [report.index for report in reports] == list(range(len(reports)))
    alone = len(list(schedule("poisson", 100, S // 2, seed=1, worker=1, workers=2)))
    assert recording.load_totals(STAGE).finished >= alone


def test_a_worker_that_hangs_is_ended_and_counted(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze(workers: Workers, report: Report) -> None:
        if report.index == 1:
            os.kill(workers._children[1].pid, signal.SIGSTOP)

    monkeypatch.setattr(collect, "_SILENCE_S", 1.5)
    plan = write_plan(tmp_path, ASK, url=endpoint, load=QUICK, workers=2)
    _, ended, _ = measure(plan, tmp_path / "run", freeze)
    assert ended.crashed == [f"worker 1 ended with code {-signal.SIGKILL} (SIGKILL)"]
    assert ended.lost_reports == 1


def test_a_report_that_never_came_is_counted_as_lost() -> None:
    merger, ended = collect._Merger(2), Ended()
    for index in (0, 2):
        merger.add(0, Report(index))
    done = frames.Done(reports=3, interrupted=False, first_failure=None, retries=0, clock="one")
    Workers._note(Any, ended, merger, 0, done)  # type: ignore[arg-type]
    assert ended.lost_reports == 1


def test_a_stopped_load_is_drained_by_every_worker(tmp_path: Path, endpoint: str) -> None:
    stages = "[{ name: steady, arrivals: poisson 50/s, for: 10m }]"
    plan = write_plan(tmp_path, ASK, url=endpoint, load=stages, workers=2)
    reports, ended, _ = measure(
        plan, tmp_path / "run", lambda workers, report: report.index == 2 and workers.stop()
    )
    check_nothing_vanished(reports)
    assert ended.interrupted
    assert ended.lost_reports == 0


@pytest.mark.swarm
def test_the_same_seed_plans_and_draws_the_same_and_another_does_not(
    tmp_path: Path, endpoint: str
) -> None:
    """Each arrival draws on its own, so the order in which replies come changes nothing."""
    scenario = """
        class Someone(ModelUser):
            @task(3)
            def one(self):
                with step("drew") as this:
                    first = self.next_input().id
                    self.predict({"instances": [1]})
                    this.detail["drew"] = [first, self.next_input().id]

            @task
            def other(self):
                with step("drew") as this:
                    this.detail["drew"] = [self.next_input().id]
    """
    inputs = "".join(f'{{"id": "{n}", "prompt": "x"}}\n' for n in range(99))
    (tmp_path / "inputs.jsonl").write_text(inputs, encoding="utf-8")

    def drawn(seed: int, *, preflight: bool = False) -> list[tuple[int, list[str]]]:
        plan = write_plan(
            tmp_path, scenario, url=endpoint, load=QUICK, seed=seed, inputs="inputs.jsonl"
        )
        loaded = run_here(plan, preflight=preflight)
        drew = [one for _, one in loaded.steps if one.name == "drew"]
        return sorted((one.start_ns - loaded.t0_ns, one.detail["drew"]) for one in drew)

    assert drawn(4) == drawn(4, preflight=True)
    assert [draws for _, draws in drawn(4)] != [draws for _, draws in drawn(5)]


@pytest.mark.swarm
def test_the_preflight_leaves_no_trace_in_the_recording(tmp_path: Path, endpoint: str) -> None:
    plan = write_plan(tmp_path, ASK, url=endpoint, load=QUICK)
    before = asked(endpoint)
    loaded = run_here(plan, preflight=True)
    planned = len(list(schedule("poisson", 100, S // 2, seed=1)))
    assert asked(endpoint) - before == planned + 1
    assert loaded.histogram("predict", "e2el").n == planned
    assert {stage for report in loaded.reports for stage, *_ in report.measured} == {STAGE}
    assert {j["stage"] for report in loaded.reports for j in report.journeys} == {STAGE}
    assert (loaded.done.first_failure, loaded.done.retries) == (None, 0)


def asked(url: str) -> int:
    with httpx.Client(base_url=url, trust_env=False) as http:
        return len(http.get("/truth").json()["replies"])


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ("raise ValueError('no account')", UserError, r"scenario.py:\d+: ValueError: no account"),
        ("self.client.get('http://127.0.0.1:9')", TargetError, "on_start.*Someone"),
        ("import os; os._exit(3)", HarnessError, "worker 0 ended before the load"),
    ],
)
def test_an_on_start_that_fails_is_told_before_the_load(
    tmp_path: Path, endpoint: str, body: str, error: type[Exception], says: str
) -> None:
    scenario = ASK + f"        def on_start(self):\n            {body}\n"
    plan = write_plan(tmp_path, scenario, url=endpoint, load=QUICK)
    with (
        Workers.started(plan, endpoint, log_path=tmp_path / "log") as workers,
        pytest.raises(error, match=says),
    ):
        workers.ready()


def test_an_on_start_that_hangs_ends_with_the_preflights_time(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "_READY_TIMEOUT_S", 3.0)
    monkeypatch.setattr(collect, "_END_GRACE_S", 1000.0)  # it is not waited for
    scenario = ASK + "        def on_start(self):\n            gevent.sleep(1000)\n"
    plan = write_plan(tmp_path, scenario, url=endpoint, load=QUICK)
    with (
        pytest.raises(TargetError, match="no answer within"),
        Workers.started(plan, endpoint, log_path=tmp_path / "log") as workers,
    ):
        workers.ready()
    assert [child.returncode for child in workers._children] == [-signal.SIGKILL]


@pytest.mark.swarm
def test_an_on_stop_that_hangs_holds_neither_the_end_nor_the_cut_off(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_END_S", 0.1)
    scenario = """
        class Someone(ModelUser):
            def on_stop(self):
                gevent.sleep(1000)

            @task
            def ask(self):
                gevent.sleep(1000)
    """
    plan = write_plan(tmp_path, scenario, url=endpoint, load=QUICK, drain="1ms")
    loaded = run_here(plan)
    assert loaded.load().cut_off == loaded.load().planned > 10
    assert loaded.kinds() == {"cut off": loaded.load().planned}


@pytest.mark.swarm
def test_users_that_sometimes_fail_to_start_lose_no_arrival(tmp_path: Path, endpoint: str) -> None:
    scenario = """
        import itertools
        starts = itertools.count(1)

        class Someone(ModelUser):
            def on_start(self):
                if next(starts) % 2:
                    raise ValueError("login failed")

            @task
            def ask(self):
                self.predict({"instances": [1]})
    """
    loaded = run_here(write_plan(tmp_path, scenario, url=endpoint, load=QUICK))
    assert loaded.load().finished == len(list(schedule("poisson", 100, S // 2, seed=1)))


@pytest.mark.swarm
def test_the_scenarios_listeners_hear_of_the_start_and_the_end(
    tmp_path: Path, endpoint: str
) -> None:
    scenario = """
        from locust import events

        @events.test_start.add_listener
        def begin(environment, **_):
            environment.heard = ["start"]

        @events.test_stop.add_listener
        def end(environment, **_):
            environment.heard.append("stop")
            open(PLACE, "w").write(" ".join(environment.heard))

        class Someone(ModelUser):
            @task
            def ask(self):
                self.predict({"instances": [1]})
    """
    place = tmp_path / "heard"
    scenario = scenario.replace("PLACE", repr(str(place)))
    run_here(write_plan(tmp_path, scenario, url=endpoint, load=QUICK))
    assert place.read_text(encoding="utf-8") == "start stop"


@pytest.mark.swarm
def test_a_class_without_tasks_is_no_user(tmp_path: Path, endpoint: str) -> None:
    scenario = """
        class Base(ModelUser):
            pass

        class Someone(Base):
            @task
            def ask(self):
                self.predict({"instances": [1]})
    """
    plan = write_plan(tmp_path, scenario, url=endpoint, load=QUICK)
    assert list(worker.load_scenario(plan.scenario)) == ["Someone"]
    (tmp_path / "scenario.py").write_text(
        "from harness import ModelUser\nclass Base(ModelUser):\n    pass\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"no subclass of .* with a @task"):
        worker.load_scenario(plan.scenario)


@pytest.mark.swarm
def test_a_user_class_goes_by_its_own_name_however_the_scenario_binds_it(tmp_path: Path) -> None:
    path = tmp_path / "scenario.py"
    made = "class U(ModelUser):\n    @task\n    def t(self): pass\n"
    path.write_text(f"from harness import ModelUser, task\n{made}Other = U\ndel U\n")
    assert list(worker.load_scenario(path)) == ["U"]
    path.write_text(f"from harness import ModelUser, task\n{made}First = U\n{made}")
    with pytest.raises(UserError, match="same name"):
        worker.load_scenario(path)


@pytest.mark.swarm
def test_a_frame_that_is_being_sent_is_not_torn_by_the_end_of_the_load(
    tmp_path: Path, endpoint: str
) -> None:
    """The pipe is full and the parent slow: the sender waits in the middle of its frame."""
    torn: list[str] = []
    sent: list[Any] = []

    def slowly(frame: Any) -> None:
        try:
            gevent.sleep(0.15)
        except gevent.GreenletExit:
            torn.append("torn")
            raise
        sent.append(frame)

    plan = write_plan(tmp_path, ASK, url=endpoint, load=QUICK)
    job = frames.Job(
        plan=plan, url=endpoint, interval_ns=INTERVAL, worker=0, workers=1, preflight=False
    )
    worker.Worker(job, slowly).load(time.monotonic_ns())
    *reports, done = sent
    assert torn == []
    assert [report.index for report in reports] == list(range(done.reports))
    check_nothing_vanished(reports)
