"""However a run is ended, what was measured is saved, no process stays, and the verdict is honest."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import (
    CALM,
    PREDICT,
    Asked,
    alive,
    descendants,
    eventually,
    finished,
    invoked,
    predictions,
    run_json,
    serving,
    started,
    total,
)
from conftest import stage

from harness.errors import ExitCode, RecordingError
from harness.plan import load_plan
from harness.recorder import Limits, Recorder, RunFolder, load_recording
from harness.runs import close_run, judge_folder
from harness.swarm.collect import Ended
from harness.swarm.interrupts import Interrupts

PLAN = """
target: { url: "${TARGET:-embedded}", api: json }
scenario: scenario.py
load: { name: steady, arrivals: constant 20/s, for: 20s }
budgets: [predict.e2el max < 30s, predict.rate > 0.1/s]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "scenario.py").write_text(PREDICT)
    return tmp_path


@contextmanager
def under_way(folder: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A run of twenty seconds, kept in run/, that has finished some requests."""
    given = ("run", "plan.yaml", "--out", "run")
    with started(*given, cwd=folder, command=CALM, **env) as process:
        eventually(lambda: total(folder / "run", "finished") > 6, "a finished request")
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_drains_saves_reports_and_ends_with_130(folder: Path, number: int) -> None:
    with under_way(folder) as process:
        children = descendants(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "The run was interrupted" in out
    assert "exit code 130" in out
    assert len(children) == 2  # a worker and the endpoint
    assert not alive(children)
    run = folder / "run"
    assert run_json(run)["status"] == "interrupted"
    assert total(run, "finished") == total(run, "sent") == total(run, "planned")
    assert (run / "report.html").exists()


def test_the_second_ctrl_c_ends_at_once_and_what_was_lost_makes_the_run_invalid(
    folder: Path,
) -> None:
    never = threading.Event()

    def respond(asked: Asked, number: int) -> None:
        if number > 10:
            never.wait()
        predictions(asked, number)

    with serving(respond) as url, under_way(folder, TARGET=url) as process:
        children = descendants(process)
        eventually(lambda: total(folder / "run", "sent") > 11, "a request without an answer")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        eventually(lambda: "stopping" in (process.stderr.readline()), "the drain")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)  # the drain alone would take 30 s
    never.set()
    assert process.returncode == 130
    assert not alive(children)
    assert load_recording(folder / "run").run["status"] == "interrupted"
    assert invoked("gate", folder / "run").exit_code == 5


def test_a_killed_run_leaves_no_process_and_a_folder_that_is_judged_invalid(folder: Path) -> None:
    with under_way(folder) as process:
        children = descendants(process)
        process.kill()
        process.communicate()
    eventually(lambda: not alive(children), "the end of worker and endpoint")
    done = invoked("gate", folder / "run")
    assert done.exit_code == 5
    assert "never ended" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_preflight_ends_at_once_and_leaves_nothing(
    folder: Path, number: int
) -> None:
    asked, never = threading.Event(), threading.Event()

    def respond(_asked: Asked, _number: int) -> None:
        asked.set()
        never.wait()

    given = ("run", "plan.yaml", "--out", "run")
    with serving(respond) as url, started(*given, cwd=folder, TARGET=url) as process:
        assert asked.wait(60)
        children = descendants(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=10)  # the target's timeout is 60 s
    never.set()
    assert (process.returncode, out) == (130, "")
    assert err == "harness: interrupted before the load started; nothing was saved\n"
    assert not (folder / "run").exists()
    assert not alive(children)


def test_ctrl_c_while_a_saved_run_is_judged_ends_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.runs.judge_folder", interrupted)
    done = invoked("gate", tmp_path)
    assert (done.exit_code, done.stderr) == (130, "harness: interrupted\n")


CRASHING = """
import os
from harness import ModelUser, task

class User(ModelUser):
    asked = 0

    @task
    def ask(self):
        User.asked += 1
        if User.asked > 14:
            os.kill(os.getpid(), 9)
        self.predict({"instances": [[1.0]]})
"""


def test_a_worker_that_crashes_makes_the_run_invalid_and_what_it_sent_before_stays(
    folder: Path,
) -> None:
    (folder / "scenario.py").write_text(CRASHING)
    with serving(predictions) as url:
        done = finished("run", "plan.yaml", "--out", "run", cwd=folder, command=CALM, TARGET=url)
    assert done.returncode == 5, done.stdout + done.stderr
    why = "worker 0 ended with code -9 (SIGKILL)"
    assert f"ended by itself: {why}" in " ".join(done.stdout.split())
    run = run_json(folder / "run")
    assert (run["status"], run["crashed"]) == ("crashed", [why])
    assert total(folder / "run", "finished") > 4


UNEVEN = """
import os, time
from harness import ModelUser, task

try:
    os.mkdir(os.environ["SLOW_ONE"])
    slow = True
except FileExistsError:
    slow = False

class User(ModelUser):
    @task
    def ask(self):
        self.predict({"instances": [[1.0]]})
        time.sleep(0.6 if slow else 0)
"""


def test_a_worker_that_is_done_before_the_others_has_not_crashed(folder: Path) -> None:
    (folder / "scenario.py").write_text(UNEVEN)
    (folder / "plan.yaml").write_text(PLAN.replace("for: 20s", "for: 500ms"))
    with serving(predictions) as url:
        done = finished(
            "run", "plan.yaml", "--workers", 2, "--seed", 9, "--out", "run",
            cwd=folder, command=CALM, TARGET=url, SLOW_ONE=str(folder / "slow"),
        )  # fmt: skip
    assert done.returncode in (0, 4), done.stdout + done.stderr  # half a second is little evidence
    run = run_json(folder / "run")
    assert (run["workers"], run["seed"]) == (2, 9)
    assert (run["status"], run["crashed"], run["lost_reports"]) == ("complete", [], 0)
    assert total(folder / "run", "finished") == 10


def test_signals_reach_the_workers_of_their_time_and_the_handlers_before_come_back() -> None:
    told: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.stop = lambda: told.append(f"stop {name}")
            self.kill = lambda: told.append(f"kill {name}")

    running = [Named("a"), Named("b")]
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    interrupts = Interrupts(lambda: running)
    with interrupts.obeyed():
        assert not interrupts.came
        signal.raise_signal(signal.SIGTERM)
        del running[0]
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
    assert interrupts.came
    assert told == ["stop a", "stop b", "kill b", "kill b"]
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_closed_terminal_ends_nothing_that_was_started_to_outlive_it() -> None:
    interrupts = Interrupts(list)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interrupts.obeyed():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not interrupts.came


def test_a_load_that_met_a_full_disk_is_judged_invalid_by_what_was_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(folder / "run", {"interval_s": 1.0, "stages": [stage()]})
    run.begin(0.0)
    run.append(Recorder(Limits(), seed=1).flush(0, cpu=0.1))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        run.append(Recorder(Limits(), seed=1).flush(1, cpu=0.1))
        patched.setattr("harness.recorder.folder.write_atomically", full)
        ended = Ended()
        said = close_run(run, ended, load_plan(folder / "plan.yaml"))
    assert ended.lost_reports == 1
    assert said.startswith(f"{folder / 'run'} cannot be written (No space left on device)")
    judged = judge_folder(folder / "run")
    assert judged.exit_code == ExitCode.INVALID
    assert not run_json(folder / "run").get("ended_at")


def test_a_start_that_a_full_disk_ends_leaves_no_run_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "touch", full)
        with pytest.raises(RecordingError, match="cannot be written"):
            RunFolder.create(tmp_path / "run", {"interval_s": 1.0, "stages": [stage()]})
    assert not (tmp_path / "run").exists()
    RunFolder.create(tmp_path / "run", {"interval_s": 1.0, "stages": [stage()]})
