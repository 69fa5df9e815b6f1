"""Reads without a kernel stamp and steps of the clock are counted from the socket to run.json."""

from __future__ import annotations

from pathlib import Path

import load
import pytest
from commands import PREDICT, invoked, predictions, run_json, serving
from test_transport import Counting

from harness.swarm.collect import Beginning, Ended, Workers, _Merger
from harness.swarm.frames import Done
from harness.transport import clock
from harness.transport.clock import KERNEL

JUDGED = (0, 3, 4, 5)  # exit codes of a run that was judged, however


@pytest.mark.swarm
def test_a_worker_tells_its_reads_and_when_the_clock_was_stepped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock jumps by 5 ms once the worker has taken its first look at it."""
    true_offset_ns = clock._offset_ns
    looks: list[int] = []

    def offset_ns() -> int:
        looks.append(1)
        return true_offset_ns() - 5 * load.MS * (len(looks) > 1)

    monkeypatch.setattr(clock, "_offset_ns", offset_ns)
    with load.serving(Counting()) as url:
        plan = load.write_plan(
            tmp_path,
            "class U(ModelUser):\n    @task\n    def ask(self):\n        self.predict({})\n",
            url=url,
            load="{ name: steady, arrivals: constant 40/s, for: 1.4s }",
        )
        loaded = load.run_here(plan)
    done = loaded.done
    if done.clock != KERNEL:
        pytest.skip("no kernel stamps here")
    assert done.stamped >= 40
    assert done.unstamped <= 2
    assert len(done.stepped_ns) == 1
    assert loaded.t0_ns < done.stepped_ns[0] < loaded.t0_ns + 3 * load.S


def test_a_run_saves_its_reads_and_no_step_where_there_was_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenario.py").write_text(PREDICT)
    (tmp_path / "plan.yaml").write_text(
        "target: { url: embedded, api: json }\nscenario: scenario.py\nworkers: 2\n"
        "load: { concurrency: 2, for: 1s }\nbudgets: [predict.error_rate < 99%]\n"
    )
    with serving(predictions) as url:
        assert invoked("run", "plan.yaml", "--target", url, "--out", "run").exit_code in JUDGED
    run = run_json(tmp_path / "run")
    assert set(run["reads"]) == {"stamped", "unstamped"}
    assert sum(run["reads"].values()) > 10
    assert run["clock_steps_s"] == []


def test_times_of_steps_count_from_the_runs_start_whichever_repetition_they_fell_in() -> None:
    workers = Workers.__new__(Workers)
    workers._interval_ns = 100 * load.MS
    begin = Beginning(t0_ns=50 * load.S, index=300)  # 30 s after the run's start
    assert workers._run_s(52 * load.S, begin) == 32.0


def test_what_several_workers_and_repetitions_read_adds_up() -> None:
    workers = Workers.__new__(Workers)
    ended = Ended(stepped_s=[3.0])
    merger = _Merger(2)
    for number in range(2):
        done = Done(
            reports=0, interrupted=False, first_failure=None, retries=0, clock=KERNEL,
            stamped=10, unstamped=number,
        )  # fmt: skip
        workers._note(ended, merger, number, done)
    ended.include(Ended(stamped=5, unstamped=2, stepped_s=[40.0]))
    assert (ended.stamped, ended.unstamped, ended.stepped_s) == (25, 3, [3.0, 40.0])
