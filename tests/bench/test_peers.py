"""The whole tools beside the harness: what they report, what they use, and what if they are missing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import measurements
import numpy as np
import peers
import psutil
import pytest
import run
import truth
import usage

HERE = Path(__file__).parent
CORE = min(os.sched_getaffinity(0))
CORES = measurements.Cores(client=CORE, server=CORE)


def stream(
    id: str, *, received_ns: int, at: tuple[int, ...], ended: str = "complete"
) -> truth.Reply:
    times = np.array(at, dtype=np.int64)
    return truth.Reply(
        id=id,
        streamed=True,
        ended=ended,
        writes=len(at),
        received_ns=received_ns,
        by_kernel=True,
        first_ns=10,
        gap_ns=10,
        before_ns=times,
        after_ns=times + 1,
        late=np.zeros(len(at), dtype=bool),
    )


# What they report


def test_aiperf_is_read_by_the_id_it_sent(tmp_path: Path) -> None:
    record = {
        "metadata": {"x_request_id": "an-id"},
        "metrics": {"time_to_first_token": {"value": 52.5}, "request_latency": {"value": 2030}},
    }
    (tmp_path / "aiperf").mkdir()
    (tmp_path / "aiperf" / "profile_export.jsonl").write_text(json.dumps(record) + "\n")
    assert peers.AIPERF.read(tmp_path) == {"an-id": (52_500_000, 2_030_000_000)}


def test_guidellm_is_read_by_the_id_the_server_gave(tmp_path: Path) -> None:
    one = {"response_id": "chatcmpl-t-7", "time_to_first_token_ms": 52.5, "request_latency": 2.05}
    report = {"benchmarks": [{"requests": {"successful": [one]}}]}
    (tmp_path / "guidellm.json").write_text(json.dumps(report))
    assert peers.GUIDELLM.read(tmp_path) == {"t-7": (52_500_000, pytest.approx(2_050_000_000))}


@pytest.mark.parametrize(("last_write", "e2e"), [(-1, 10), (-2, 30)])
def test_a_reply_is_compared_with_the_write_at_which_the_tool_ends_it(
    last_write: int, e2e: int
) -> None:
    reply = stream("a", received_ns=100, at=(101, 150, 180, 200))  # head, two tokens, tail
    errors = measurements._by_id({"a": (55, 110)}, [reply], last_write)
    assert errors["ttft"].tolist() == [5]
    assert errors["e2e"].tolist() == [e2e]


def test_a_reply_that_is_not_reported_is_no_measurement() -> None:
    reply = stream("a", received_ns=100, at=(101, 150, 200))
    with pytest.raises(RuntimeError, match="1 replies of 1 were not reported"):
        measurements._by_id({"b": (55, 110)}, [reply], -1)


def test_the_first_requests_are_not_counted_nor_what_is_no_stream() -> None:
    kept = truth.Truth()
    for index in reversed(range(measurements.WARM + 2)):
        kept[f"r{index}"] = stream(f"r{index}", received_ns=index, at=(index, index + 1, index + 2))
    kept["models"] = replace(kept["r0"], id="models", streamed=False)
    counted = measurements._counted(kept, measurements.WARM + 2)
    assert [reply.id for reply in counted] == [f"r{measurements.WARM + n}" for n in (0, 1)]


def test_a_reply_that_was_cut_is_no_measurement() -> None:
    kept = truth.Truth(a=stream("a", received_ns=1, at=(1, 2), ended="client left"))
    with pytest.raises(RuntimeError, match="0 replies of 1"):
        measurements._counted(kept, 1)


# What they use

_BUSY_CHILD = """
import subprocess, sys, time
code = "import time\\nwhile time.process_time() < 0.4: pass\\ntime.sleep({lingers_s})"
subprocess.run([sys.executable, "-c", code])
time.sleep({outlived_s})
"""


def used_by(code: str, folder: Path) -> usage.Usage:
    command = [sys.executable, "-c", code]
    return usage.run(command, core=CORE, folder=folder, env={}, timeout_s=60)


@pytest.mark.parametrize(("lingers_s", "outlived_s"), [(1, 0), (0, 1)])
def test_cpu_of_descendants_counts_while_they_run_and_after(
    tmp_path: Path, lingers_s: float, outlived_s: float
) -> None:
    code = _BUSY_CHILD.format(lingers_s=lingers_s, outlived_s=outlived_s)
    assert used_by(code, tmp_path).total_cpu_s >= 0.35


def test_cpu_between_samples_is_taken_in_proportion() -> None:
    used = usage.Usage(cpu=[(0, 1.0), (100, 2.0), (200, 2.0)])
    assert used.cpu_s(50, 200) == pytest.approx(0.5)


def test_memory_is_the_last_read_before_the_end() -> None:
    used = usage.Usage(pss=[(10, 1.0), (20, 2.0), (30, 3.0)])
    assert used.pss_mb(25) == 2.0
    with pytest.raises(LookupError):
        used.pss_mb(5)


@pytest.mark.parametrize("then", ["wait", ":"], ids=["out of time", "ended by itself"])
def test_nothing_that_a_command_started_is_left(tmp_path: Path, then: str) -> None:
    command = ["sh", "-c", f"sleep 60 & echo $! > pid; {then}"]
    late = pytest.raises(RuntimeError, match="did not end in time")
    with late if then == "wait" else contextlib.nullcontext():
        usage.run(command, core=CORE, folder=tmp_path, env={}, timeout_s=2)
    pid, until = int((tmp_path / "pid").read_text()), time.monotonic() + 30
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_command_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with code 3: .*no such model"):
        used_by("print('no such model'); raise SystemExit(3)", tmp_path)


# Where they do not install


def test_a_failed_installation_leaves_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str]) -> None:
        said = (
            "error: a build failed\n  WARNING: retrying\n  ERROR: no release fits\nERROR: gave up\n"
        )
        raise subprocess.CalledProcessError(1, command, stderr=said)

    monkeypatch.setattr(peers, "BENCH", tmp_path)
    monkeypatch.setattr(peers, "_do", fail)
    peers.install([peers.AIPERF])
    assert peers.AIPERF.missing == "no release fits"
    with pytest.raises(measurements.NotInstalled, match="no release fits"):
        measurements.peer_replies(peers.AIPERF, CORES)


def test_another_release_is_installed_anew_and_the_same_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def pretend(command: list[str]) -> None:
        peers.AIPERF.home.mkdir(exist_ok=True)
        done.append(command[-1])

    monkeypatch.setattr(peers, "BENCH", tmp_path)
    monkeypatch.setattr(peers, "_do", pretend)
    for version in ("1.0", "1.0", "2.0"):
        peers.install([replace(peers.AIPERF, version=version)])
    home = str(peers.AIPERF.home)
    assert done == [home, "aiperf==1.0", home, "aiperf==2.0"]


def test_a_tool_that_is_missing_is_a_line_of_the_table_and_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[str] = []

    def measured(_cores: measurements.Cores) -> measurements.Values:
        runs.append("harness")
        return {"cpu_s": 2.0}

    def missing(_cores: measurements.Cores) -> measurements.Values:
        runs.append("aiperf")
        raise measurements.NotInstalled("no release | fits")

    some = measurements.Measurement(
        title="Some",
        clients={"harness": measured, "aiperf": missing},
        columns={"cpu_s": "CPU s", "pss_mb": "memory MB"},
        once=frozenset({"aiperf"}),
    )
    monkeypatch.setitem(run.MEASUREMENTS, "some", some)
    bench = run.Bench(CORES, repeats=2)
    bench.run("some")
    assert runs == ["harness", "aiperf", "harness"]
    assert bench.broken == []
    assert run.details(bench, "some").splitlines()[-1] == (
        "| aiperf | not measured: did not install: no release / fits | – |"
    )


def test_every_repeat_is_compared_with_the_only_run_of_a_tool() -> None:
    bench = run.Bench(CORES, repeats=2)
    bench.found["replies", measurements.HARNESS] = [{"cpu_s": 2.0}, {"cpu_s": 3.0}]
    bench.found["replies", measurements.AIPERF] = [{"cpu_s": 20.0}]
    line = next(x for x in run.goals_table(bench, ["replies"]).splitlines() if "÷ aiperf" in x)
    assert line == "| whole tool: CPU, harness ÷ aiperf | ≤ 0.167 | 0.125 (0.100–0.150) | ok |"


def test_the_stand_in_for_torch_hands_out_rows_in_their_order() -> None:
    code = (
        "import torch\n"
        "from torch.utils.data.dataloader import DataLoader\n"
        "gen = torch.Generator(); gen.manual_seed(1)\n"
        "rows = DataLoader(dataset=[1, 2], collate_fn=lambda batch: batch[0], generator=gen)\n"
        "assert torch.utils.data.get_worker_info() is None\n"
        "print(list(rows))"
    )
    env = {"PYTHONPATH": str(HERE / "torch_stand_in"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout == b"[1, 2]\n"
