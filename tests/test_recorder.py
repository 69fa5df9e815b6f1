"""From samples to a folder and back: exact where it says exact, and never half a line on disk."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import limits_of, stage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.budget import parse_budget
from harness.errors import RecordingError
from harness.recorder import (
    Limits,
    Recorder,
    Recording,
    Report,
    RunFolder,
    load_recording,
    merge_reports,
    write_atomically,
)
from harness.verdict import judge

MS, S = 1_000_000, 1_000_000_000


def run_json(**more: Any) -> dict[str, Any]:
    return {"interval_s": 1.0, "stages": [stage()], **more}


def write(path: Path, *reports: Report, **run: Any) -> Path:
    folder = RunFolder.create(path, run_json(**run))
    folder.begin(1_700_000_000.0)
    for report in reports:
        folder.append(report)
    folder.close()
    folder.update(status="complete")
    return path


def journey(duration_ns: int, *, ok: bool = True, root: str = "chat") -> dict[str, Any]:
    step = {"step": root, "start_ns": 0, "end_ns": duration_ns, "failure": None, "detail": {}}
    return {
        "stage": "steady",
        "root": root,
        "t_s": 1.5,
        "duration_ns": duration_ns,
        "ok": ok,
        "steps": [step],
    }


def figures(report: Report) -> dict[str, Any]:
    """Everything a report says, in a form that compares."""
    return {
        "measured": {
            key: (
                h.n,
                h.min,
                h.max,
                h.sum,
                h.clamped,
                h.indices.tolist(),
                h.counts.tolist(),
                dict(m.over),
            )
            for key, m in report.measured.items()
            for h in [m.histogram]
        },
        "finished": {k: (f.total, f.good, dict(f.kinds)) for k, f in report.finished.items()},
        "load": report.load,
    }


# --- counting in a worker --------------------------------------------------------------------------


def test_a_flush_holds_exactly_what_was_recorded() -> None:
    recorder = Recorder(Limits())
    recorder.request(
        "steady", "chat", {"ttft": 3 * MS, "e2el": 9 * MS}, series={"itl": [MS, 2 * MS]}
    )
    recorder.request("steady", "chat", {"ttft": 5 * MS})
    recorder.request("steady", "chat", {"send_lag": 7}, failure="timeout")
    recorder.add("steady", "chat", "connect", 4 * MS)
    recorder.load("steady").planned += 3
    report = recorder.flush(4, cpu=0.5)
    ttft = report.measured["steady", "chat", "ttft"].histogram
    assert (ttft.n, ttft.min, ttft.max, ttft.sum) == (2, 3 * MS, 5 * MS, 8 * MS)
    assert report.measured["steady", "chat", "itl"].histogram.n == 2
    assert report.measured["steady", "chat", "connect"].histogram.sum == 4 * MS
    finished = report.finished["steady", "chat"]
    assert (finished.total, finished.good, finished.kinds) == (3, 2, {"timeout": 1})
    assert (report.index, report.cpu, report.load["steady"].planned) == (4, 0.5, 3)


def test_a_flush_begins_the_next_interval_with_nothing() -> None:
    recorder = Recorder(Limits())
    recorder.request("steady", "chat", {"ttft": MS})
    recorder.load("steady").sent += 1
    recorder.journey(journey(MS))
    recorder.flush(0)
    after = recorder.flush(1)
    assert (after.measured, after.finished, after.load, after.journeys) == ({}, {}, {}, [])


@pytest.mark.parametrize(("op", "over"), [("<", 2), ("<=", 1)])
def test_a_value_equal_to_the_limit_breaks_less_than_and_meets_at_most(op: str, over: int) -> None:
    budget = parse_budget(f"chat.ttft p99 {op} 800ms")
    recorder = Recorder(limits_of([budget]))
    for value in (800 * MS - 1, 800 * MS, 800 * MS + 1):
        recorder.request("steady", "chat", {"ttft": value})
    report = recorder.flush(0)
    assert report.measured["steady", "chat", "ttft"].over == {budget.threshold: over}


def test_a_root_step_is_also_counted_against_the_limits_of_run_and_a_child_is_not() -> None:
    recorder = Recorder(Limits(thresholds={("run", "ttft"): (10,), ("chat", "ttft"): (20,)}))
    for step in ("chat", "chat/retry", "other"):
        recorder.request("steady", step, {"ttft": 15})
    over = {step: m.over for (_, step, _), m in recorder.flush(0).measured.items()}
    assert over == {"chat": {10: 1, 20: 0}, "chat/retry": {}, "other": {10: 1}}


def test_a_request_is_good_when_it_succeeded_and_met_every_limit_it_has_a_value_for() -> None:
    recorder = Recorder(Limits(good=lambda stage, step: {"ttft": 10, "tpot": 5}))
    recorder.request("steady", "chat", {"ttft": 10, "tpot": 5})
    recorder.request("steady", "chat", {"ttft": 10})
    recorder.request("steady", "chat", {"ttft": 11, "tpot": 1})
    recorder.request("steady", "chat", {"ttft": 1, "tpot": 6})
    recorder.request("steady", "chat", {}, failure="reset")
    finished = recorder.flush(0).finished["steady", "chat"]
    assert (finished.total, finished.good) == (5, 2)


def test_good_is_asked_per_stage_and_step() -> None:
    recorder = Recorder(Limits(good=lambda stage, step: {"ttft": {"hard": 1, "easy": 9}[stage]}))
    for where in ("hard", "easy"):
        recorder.request(where, "chat", {"ttft": 5})
    good = {where: f.good for (where, _), f in recorder.flush(0).finished.items()}
    assert good == {"hard": 0, "easy": 1}


def test_a_failed_request_is_counted_by_kind_and_adds_to_no_success_metric() -> None:
    recorder = Recorder(Limits())
    recorder.request("steady", "chat", {"e2el": 20 * MS, "e2el_all": 20 * MS})
    for kind in ("timeout", "status 500", "timeout"):
        recorder.request("steady", "chat", {"e2el_all": 60 * S, "send_lag": 5}, failure=kind)
    report = recorder.flush(0)
    n = {metric: m.histogram.n for (_, _, metric), m in report.measured.items()}
    assert n == {"e2el": 1, "e2el_all": 4, "send_lag": 3}
    assert report.finished["steady", "chat"].kinds == {"timeout": 2, "status 500": 1}
    assert report.finished["steady", "chat"].good == 1


def test_kept_journeys_are_few_and_hold_the_slowest_some_failed_and_some_random() -> None:
    recorder = Recorder(Limits(), seed=3)
    for i in range(500):
        recorder.journey(journey((i + 1) * MS, ok=i % 10 != 0))
    kept = recorder.flush(0).journeys
    by_kind = {
        kind: [j for j in kept if j["kept"] == kind] for kind in ("slow", "random", "failed")
    }
    assert {kind: len(group) for kind, group in by_kind.items()} == {
        "slow": 20,
        "random": 6,
        "failed": 3,
    }
    assert 500 * MS in [j["duration_ns"] for j in kept], "the slowest is always among them"
    assert len({j["duration_ns"] for j in kept}) == 29, "and none is there twice"
    assert all(not j["ok"] for j in by_kind["failed"])


def test_each_root_step_keeps_journeys_of_its_own() -> None:
    recorder = Recorder(Limits())
    for _ in range(300):
        recorder.journey(journey(MS))
    recorder.journey(journey(5 * MS, root="rare"))
    kept = recorder.flush(0).journeys
    assert [j["kept"] for j in kept if j["root"] == "rare"] == ["random"]
    assert len(kept) == 27


def test_of_a_long_run_only_the_slowest_two_percent_are_kept_as_slow() -> None:
    recorder = Recorder(Limits(), seed=3)
    durations = np.random.default_rng(5).permutation(20_000) * MS
    for i, duration_ns in enumerate(durations):
        recorder.journey(journey(int(duration_ns)))
        if i % 200 == 199:
            recorder.flush(i // 200)
    slow = {19_990 * MS, 19_000 * MS}
    for duration_ns in (*slow, 18_000 * MS, 100 * MS):
        for _ in range(4):
            recorder.journey(journey(duration_ns))
    kept = [j["duration_ns"] for j in recorder.flush(100).journeys if j["kept"] == "slow"]
    assert kept
    assert {*kept} <= {19_990 * MS}


# --- several workers -------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["chat", "chat/a", "rag"]),
            st.sampled_from([0, S // 2, S // 2 + 1, S, S + 1, 2 * S]),
            st.sampled_from([None, None, "timeout", "reset"]),
        ),
        max_size=60,
    )
)
def test_merged_reports_of_several_workers_equal_one_recorder_that_was_fed_all(
    requests: list[tuple[int, str, int, str | None]],
) -> None:
    limits = Limits(
        thresholds={("chat", "ttft"): (S,), ("run", "ttft"): (S // 2,)},
        good=lambda stage, step: {"ttft": S},
    )
    workers, alone = [Recorder(limits) for _ in range(3)], Recorder(limits)
    for worker, step, value, failure in requests:
        for recorder in (workers[worker], alone):
            values = {"send_lag": value} if failure else {"ttft": value}
            recorder.request("steady", step, values, failure=failure)
            load = recorder.load("steady")
            load.planned += 1
            load.failed += failure is not None
    merged = merge_reports(worker.flush(0) for worker in workers)
    assert figures(merged) == figures(alone.flush(0))


def test_merged_reports_add_their_exact_counts_over_a_limit() -> None:
    limits = Limits(thresholds={("chat", "ttft"): (10, 20)})
    reports = []
    for values in ([5, 15, 25], [11, 21, 22, 23], [1]):
        recorder = Recorder(limits)
        for value in values:
            recorder.request("steady", "chat", {"ttft": value})
        reports.append(recorder.flush(0))
    assert merge_reports(reports).measured["steady", "chat", "ttft"].over == {10: 6, 20: 4}


def test_merged_load_is_that_of_the_busiest_cpu_and_of_all_users_together() -> None:
    one = Report(3, cpu=0.2, journeys=[journey(1)])
    other = Report(3, cpu=0.7, journeys=[journey(2)])
    merged = merge_reports([one, other, Report(3, cpu=0.4), Report(3)])
    assert (merged.index, merged.cpu, len(merged.journeys)) == (3, 0.7, 2)
    assert merge_reports([Report(3), Report(3)]).cpu is None


def test_merging_leaves_the_reports_of_the_workers_as_they_were() -> None:
    recorders = [Recorder(Limits()) for _ in range(2)]
    for recorder in recorders:
        recorder.request("steady", "chat", {"ttft": MS}, failure=None)
        recorder.load("steady").sent += 1
    reports = [recorder.flush(0) for recorder in recorders]
    before = [figures(report) for report in reports]
    merge_reports(reports)
    assert [figures(report) for report in reports] == before


# --- the folder ------------------------------------------------------------------------------------


def test_run_json_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks while it is written, readers see the old file, and nothing is left beside it."""
    folder = RunFolder.create(tmp_path / "run", run_json())
    before = (tmp_path / "run" / "run.json").read_text()

    def broken(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", broken)
        patched.setattr(Path, "replace", broken)
        with pytest.raises(RecordingError, match="cannot be written"):
            folder.update(status="complete")
    assert (tmp_path / "run" / "run.json").read_text() == before
    assert [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")] == []
    folder.update(status="complete")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"


def test_an_atomic_write_keeps_the_old_inode_readable_and_is_readable_by_others(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        write_atomically(path, "new")
        assert reader.read() == "old", "a reader that was there sees the old text, whole"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with pytest.raises(RecordingError, match=r"already holds a run.*--out"):
        RunFolder.create(path, run_json())
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_what_is_left_of_another_run_is_refused_too(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    (path / "run.json").unlink()
    with pytest.raises(RecordingError, match="already holds a run"):
        RunFolder.create(path, run_json())


def test_an_empty_folder_that_exists_is_used(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, run_json())
    assert {p.name for p in tmp_path.iterdir()} == {
        "run.json",
        "latency.hlog",
        "intervals.jsonl",
        "requests.jsonl",
    }


@pytest.mark.parametrize(
    "path", ["/dev/null/run", "/proc/run", "x" * 300], ids=["below a file", "no disk", "long name"]
)
def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(
    tmp_path: Path, path: str
) -> None:
    with pytest.raises(RecordingError, match=r"cannot be written.*--out"):
        RunFolder.create(tmp_path / path, run_json())


def report_of(index: int, values: list[int], *, metric: str = "ttft") -> Report:
    recorder = Recorder(Limits())
    for value in values:
        recorder.request("steady", "chat", {metric: value})
        recorder.load("steady").sent += 1
    return recorder.flush(index)


def total(recording: Recording, metric: str = "ttft") -> int:
    series = recording.series("steady", "chat", metric)
    return 0 if series is None else series.total.n


# --- what a crash leaves ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["latency.hlog", "intervals.jsonl", "requests.jsonl"])
def test_half_a_last_line_is_ignored(tmp_path: Path, name: str) -> None:
    recorder = Recorder(Limits())
    recorder.journey(journey(MS))
    path = write(
        tmp_path / "run", report_of(0, [MS]), report_of(1, [2 * MS, 3 * MS]), recorder.flush(2)
    )
    with (path / name).open("rb+") as file:
        file.truncate((path / name).stat().st_size - 3)
    recording = load_recording(path)
    whole = 1 if name == "latency.hlog" else 3
    assert total(recording) == whole
    assert len(recording.journeys) == (0 if name == "requests.jsonl" else 1)
    assert recording.losses.histograms == (1 if name == "latency.hlog" else 0)


def test_a_last_interval_that_reached_only_one_file_is_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "run", report_of(0, [MS]), report_of(1, [MS] * 4))
    for name, missing, samples in (("intervals.jsonl", 0, 1), ("latency.hlog", 1, 1)):
        copy = Path(shutil.copytree(path, tmp_path / name))
        lines = (copy / name).read_text().splitlines(keepends=True)
        (copy / name).write_text("".join(lines[:-1]))
        recording = load_recording(copy)
        assert (recording.losses.histograms, total(recording)) == (missing, samples)


def test_a_histogram_that_is_missing_leaves_the_others_with_their_own_intervals(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "run", *(report_of(i, [MS * (i + 1)]) for i in (0, 1, 2, 1)))
    lines = (path / "latency.hlog").read_text().splitlines(keepends=True)
    first = next(at for at, line in enumerate(lines) if line.startswith("Tag="))
    (path / "latency.hlog").write_text("".join(lines[:first] + lines[first + 1 :]))
    recording = load_recording(path)
    series = recording.series("steady", "chat", "ttft")
    assert series is not None
    assert recording.losses.histograms == 1
    assert series.index.tolist() == [1, 2]
    assert [(h.n, h.max) for h in series.histograms()] == [(2, 2 * MS), (1, 3 * MS)]


def test_a_run_that_never_wrote_an_interval_loads_without_samples(tmp_path: Path) -> None:
    recording = load_recording(RunFolder.create(tmp_path / "run", run_json()).path)
    assert recording.steps("steady") == ()
    assert recording.series("steady", "chat", "ttft") is None
    assert len(recording.timeline.t_s) == 0
    assert recording.requests("steady", "run").n == 0
    assert recording.journeys == ()


def test_a_folder_that_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="not a run folder"):
        load_recording(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_schema_version_is_refused(tmp_path: Path, version: object) -> None:
    path = write(tmp_path / "run")
    run = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**run, "schema_version": version}))
    with pytest.raises(RecordingError, match="schema_version"):
        load_recording(path)


# --- a full disk -----------------------------------------------------------------------------------


def whole_lines_only(path: Path) -> None:
    for name in ("latency.hlog", "intervals.jsonl", "requests.jsonl"):
        data = (path / name).read_bytes()
        assert not data or data.endswith(b"\n"), f"{name} ends in half a line"
    for line in (path / "intervals.jsonl").read_text().splitlines():
        json.loads(line)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["whole", "half", "ENOSPC", "EIO", "EINTR"]), max_size=40))
def test_whatever_the_disk_refuses_is_written_later_in_order_and_never_by_halves(
    answers: list[str],
) -> None:
    real, plan = os.write, iter(answers)

    def write_(fd: int, data: bytes) -> int:
        answer = next(plan, "whole")
        if answer == "half":
            return real(fd, data[: len(data) // 2]) if len(data) > 1 else real(fd, data)
        if answer != "whole":
            raise OSError(getattr(errno, answer), answer)
        return real(fd, data)

    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patched:
        folder = RunFolder.create(Path(place) / "run", run_json())
        patched.setattr(os, "write", write_)
        folder.begin(0.0)
        for i in range(8):
            folder.append(report_of(i, [MS * (i + 1)]))
            whole_lines_only(folder.path)
        plan = iter(())
        folder.append(report_of(8, [MS * 9]))
        assert folder.unsaved == folder.close() == 0
        recording = load_recording(folder.path)
        series = recording.series("steady", "chat", "ttft")
        assert series is not None
        assert series.n.tolist() == [1] * 9
        assert [h.min for h in series.histograms()] == [MS * (i + 1) for i in range(9)]
        lines = (folder.path / "latency.hlog").read_text().splitlines()
        assert lines[1] == "#[Histogram log format version 1.3]"


def test_a_file_that_may_not_grow_keeps_whole_lines_and_catches_up(tmp_path: Path) -> None:
    """The kernel itself writes a part and refuses the rest (RLIMIT_FSIZE)."""
    folder = RunFolder.create(tmp_path / "run", run_json())
    folder.begin(0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (folder.path / "latency.hlog").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 500, hard))
    try:
        for i in range(20):
            folder.append(report_of(i, [MS, 2 * MS]))
            whole_lines_only(folder.path)
        assert 0 < folder.unsaved <= 20
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder.close()
    assert total(load_recording(folder.path)) == 40


def fill_up(path: Path) -> None:
    """Write to a file until its disk takes not one byte more."""
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("no small disk can be mounted here (needs root and mount)")
    try:
        folder = RunFolder.create(disk / "run", run_json())
        folder.begin(0.0)
        ballast = disk / "ballast"
        for i in range(30):
            if i == 10:
                fill_up(ballast)
            if i == 20:
                assert 0 < folder.unsaved <= 10
                with pytest.raises(RecordingError, match="cannot be written"):
                    folder.update(note="x" * 100_000)
                assert "note" not in folder.run
                ballast.unlink()
            folder.append(report_of(i, [MS] * 20))
            whole_lines_only(folder.path)
        assert folder.unsaved == folder.close() == 0
        recording = load_recording(folder.path)
        assert (total(recording), recording.losses.histograms) == (600, 0)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_intervals_that_could_never_be_saved_are_counted_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path / "run", run_json())
    folder.begin(0.0)

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        folder.append(report_of(0, [MS]))
        folder.append(report_of(1, [MS]))
        assert folder.close() == 2
    whole_lines_only(folder.path)


# --- reading back ----------------------------------------------------------------------------------


def test_a_recording_gives_back_every_exact_figure(tmp_path: Path) -> None:
    recorder = Recorder(Limits(thresholds={("chat", "ttft"): (2 * MS,)}))
    rng = np.random.default_rng(5)
    reports, values = [], []
    for i in range(5):
        values.append(rng.integers(0, 5 * MS, 50).tolist())
        for value in values[-1]:
            recorder.request("steady", "chat", {"ttft": value})
        recorder.load("steady").in_flight = i
        reports.append(recorder.flush(i, cpu=i / 10))
    recording = load_recording(write(tmp_path / "run", *reports))
    series = recording.series("steady", "chat", "ttft")
    assert series is not None
    assert series.n.tolist() == [50] * 5
    assert series.sum.tolist() == [sum(v) for v in values]
    over = series.over(2 * MS)
    assert over is not None
    assert over.tolist() == [sum(x > 2 * MS for x in v) for v in values]
    assert series.over(3 * MS) is None, "a limit that was not declared has no exact count"
    assert [(h.min, h.max) for h in series.histograms()] == [(min(v), max(v)) for v in values]
    assert series.total.sum == sum(map(sum, values))
    mask = np.array([True, False, False, False, True])
    assert series.histogram(mask).sum == sum(values[0]) + sum(values[4])
    assert recording.timeline.cpu.tolist() == [0, 0.1, 0.2, 0.3, 0.4]
    assert recording.load_totals("steady").max_in_flight == 4
    assert recording.requests("steady", "chat").n == 250


def test_run_sums_the_root_steps_and_no_child(tmp_path: Path) -> None:
    recorder = Recorder(Limits(thresholds={("run", "e2el"): (150,)}))
    for step, value in (("answer", 100), ("answer/generate", 90), ("summary", 200)):
        recorder.request("steady", step, {"e2el": value * MS})
    recorder.request("steady", "summary", {}, failure="timeout")
    recorder.request("steady", "answer/generate", {}, failure="reset")
    recording = load_recording(write(tmp_path / "run", recorder.flush(0)))
    everything = recording.series("steady", "run", "e2el")
    assert everything is not None
    assert (everything.total.n, everything.total.sum) == (2, 300 * MS)
    over = everything.over(150)
    assert over is not None
    assert over.tolist() == [2]
    requests = recording.requests("steady", "run")
    assert (requests.n, requests.n_failed, requests.kinds) == (3, 1, {"timeout": 1})


def test_a_late_report_of_an_older_interval_is_added_to_it(tmp_path: Path) -> None:
    limits = Limits(thresholds={("chat", "ttft"): (2 * MS,)})

    def report(index: int, *values: int) -> Report:
        recorder = Recorder(limits)
        for value in values:
            recorder.request("steady", "chat", {"ttft": value})
            recorder.load("steady").sent += 1
        recorder.request("steady", "chat", {}, failure="timeout")
        return recorder.flush(index, cpu=values[0] / S)

    path = write(tmp_path / "run", report(0, MS, 3 * MS), report(1, MS), report(0, 5 * MS))
    recording = load_recording(path)
    series = recording.series("steady", "chat", "ttft")
    assert series is not None
    assert series.n.tolist() == [3, 1]
    assert series.sum.tolist() == [9 * MS, MS]
    over = series.over(2 * MS)
    assert over is not None
    assert over.tolist() == [2, 0]
    assert (series.histograms()[0].max, series.total.n) == (5 * MS, 4)
    requests = recording.requests("steady", "chat")
    assert (requests.total.tolist(), requests.failed.tolist()) == ([5, 2], [2, 1])
    assert recording.load_totals("steady").sent == 4
    assert recording.timeline.cpu.tolist() == [0.005, 0.001]


def test_a_late_report_after_one_without_samples_of_its_metric_is_read(tmp_path: Path) -> None:
    """A reply of one token has no gaps: its `itl` is empty, and no line may stand for that."""
    recorder = Recorder(Limits())
    recorder.request("steady", "chat", {"ttft": MS}, series={"itl": []})
    early = recorder.flush(0)
    recorder.request("steady", "chat", {"ttft": MS}, series={"itl": [2 * MS]})
    recording = load_recording(write(tmp_path / "run", early, recorder.flush(0)))
    assert total(recording, "itl") == 1
    assert total(recording) == 2


def test_steps_stand_in_order_of_appearance_with_parents_before_children(tmp_path: Path) -> None:
    recorder = Recorder(Limits())
    for step in (
        "rag/generate",
        "rag/retrieve",
        "rag",
        "chat",
        "plan/tool/call",
        "plan/tool",
        "plan",
    ):
        recorder.request("steady", step, {"request": MS})
    steps = load_recording(write(tmp_path / "run", recorder.flush(0))).steps("steady")
    assert steps == (
        "rag",
        "rag/generate",
        "rag/retrieve",
        "chat",
        "plan",
        "plan/tool",
        "plan/tool/call",
    )


def test_kinds_of_failure_are_told_by_frequency_and_first_appearance(tmp_path: Path) -> None:
    recorder, reports = Recorder(Limits()), []
    for i, kinds in enumerate([["reset"], ["timeout", "timeout"], ["timeout"]]):
        for kind in kinds:
            recorder.request("steady", "chat", {}, failure=kind)
        reports.append(recorder.flush(i))
    requests = load_recording(write(tmp_path / "run", *reports)).requests("steady", "chat")
    assert list(requests.kinds.items()) == [("timeout", 3), ("reset", 1)]
    assert requests.first_seen == {"reset": 0, "timeout": 1}


def test_intervals_shorter_than_a_second_find_their_histograms(tmp_path: Path) -> None:
    reports = [report_of(i, [MS * (i + 1)]) for i in range(50)]
    recording = load_recording(write(tmp_path / "run", *reports, interval_s=0.1))
    series = recording.series("steady", "chat", "ttft")
    assert series is not None
    assert recording.losses.histograms == 0
    assert [h.max for h in series.histograms()] == [MS * (i + 1) for i in range(50)]
    assert series.t_s[-1] == pytest.approx(4.9)


def test_journeys_come_back_as_they_were_kept(tmp_path: Path) -> None:
    recorder = Recorder(Limits())
    recorder.journey(journey(7 * MS, ok=False))
    (kept,) = load_recording(write(tmp_path / "run", recorder.flush(0))).journeys
    assert (kept.stage, kept.root, kept.t_s, kept.duration_ns) == ("steady", "chat", 1.5, 7 * MS)
    assert (kept.ok, kept.kept, kept.steps[0].end_ns) == (False, "random", 7 * MS)


def test_a_secret_is_masked_wherever_a_kept_journey_holds_it(tmp_path: Path) -> None:
    recorder = Recorder(Limits())
    told = journey(MS)
    told["steps"][0]["detail"] = {"headers": ["Bearer s3cret"], "body": "s3cret and s3cret"}
    recorder.journey(told)
    folder = RunFolder.create(tmp_path / "run", run_json(), secrets=["s3cret"])
    folder.begin(0.0)
    folder.append(recorder.flush(0))
    folder.close()
    assert all(b"s3cret" not in path.read_bytes() for path in folder.path.iterdir())
    (kept,) = load_recording(folder.path).journeys
    assert kept.steps[0].detail == {"headers": ["Bearer ***"], "body": "*** and ***"}


# --- damaged files ---------------------------------------------------------------------------------


@functools.cache
def sound_run() -> dict[str, bytes]:
    """The files of a small run with everything in it."""
    budgets = [parse_budget(text) for text in FUZZ_BUDGETS]
    recorder, reports = Recorder(limits_of(budgets)), []
    for i in range(4):
        for j in range(5):
            values = {"ttft": (j + 1) * 10 * MS, "send_lag": MS, "output_tokens": 20}
            recorder.request("steady", "chat", values, series={"itl": [MS, 2 * MS]})
            load = recorder.load("steady")
            load.planned += 1
            load.sent += 1
        recorder.request("steady", "chat", {"e2el_all": S}, failure="timeout")
        recorder.journey(journey(MS))
        reports.append(recorder.flush(i, cpu=0.25))
    with tempfile.TemporaryDirectory() as place:
        path = write(Path(place) / "run", *reports, lost_reports=0)
        return {p.name: p.read_bytes() for p in path.iterdir()}


FUZZ_BUDGETS = (
    "chat.ttft p50 < 30ms",
    "run.ttft p99 < 1s",
    "chat.ttft mean < 1s",
    "chat.itl max < 1s",
    "chat.output_tokens p50 > 5",
    "chat.error_rate < 50%",
    "run.goodput > 1%",
    "run.rate > 1/s",
)


def read_everything(path: Path) -> None:
    """Use a recording as gate and report do; only RecordingError may come out of it."""
    try:
        recording = load_recording(path)
        for window in recording.stages:
            for step in (*recording.steps(window.name), "run"):
                recording.requests(window.name, step)
                for metric in recording.metrics(window.name, step):
                    series = recording.series(window.name, step, metric)
                    assert series is not None
                    assert series.total.quantile(0.99) is not None
        assert len(recording.timeline.t_s) < 1_000_000
        assert isinstance(recording.journeys, tuple)
        judge(recording, [parse_budget(text) for text in FUZZ_BUDGETS])
    except RecordingError:
        pass


def with_file(name: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        for other, content in sound_run().items():
            (Path(place) / other).write_bytes(data if other == name else content)
        read_everything(Path(place))


FILES = ["intervals.jsonl", "run.json", "latency.hlog", "requests.jsonl"]
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(st.sampled_from(FILES), st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(name: str, data: st.DataObject) -> None:
    content = bytearray(sound_run()[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        some = data.draw(
            st.sampled_from(b'0123456789-.eE",:[]{}ntT \r\n\xff\x00') | st.integers(0, 255)
        )
        kind = data.draw(st.sampled_from(["change", "insert", "remove", "cut"]))
        if kind == "change":
            content[at] = some
        elif kind == "insert":
            content.insert(at, some)
        elif kind == "remove" and len(content) > 1:
            del content[at : at + data.draw(st.integers(1, 30))]
            content = content or bytearray(b"\n")
        else:
            content = content[: at + 1]
    with_file(name, bytes(content))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return [path]
    return [path, *(leaf for key, inner in items for leaf in leaves(inner, (*path, key)))]


NUMBERS = [-1, 0, 0.5, 10**12, 2**63, 10**400, 1e308, float("nan"), float("inf")]
STRANGE = st.sampled_from([*NUMBERS, None, True, "", "x", "\ud800", [], {}, [[]], {"a": 1}])


@FUZZ
@given(st.sampled_from(["intervals.jsonl", "run.json", "requests.jsonl"]), st.data())
def test_a_file_with_a_foreign_value_in_any_place_is_read_or_refused(
    name: str, data: st.DataObject
) -> None:
    text = sound_run()[name].decode()
    documents = [json.loads(text)] if name == "run.json" else [*map(json.loads, text.splitlines())]
    number = data.draw(st.integers(0, len(documents) - 1))
    path = data.draw(st.sampled_from(leaves(documents[number])))
    if path:
        place = functools.reduce(lambda value, key: value[key], path[:-1], documents[number])
        place[path[-1]] = data.draw(STRANGE)
    else:
        documents[number] = data.draw(STRANGE)
    with_file(name, "".join(json.dumps(d) + "\n" for d in documents).encode())


def test_the_sound_run_of_the_two_tests_above_is_read(tmp_path: Path) -> None:
    for name, content in sound_run().items():
        (tmp_path / name).write_bytes(content)
    assert total(load_recording(tmp_path)) == 20
    read_everything(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("run.json", b"[" * 100_000),
        ("run.json", b"null"),
        ("run.json", b"[]"),
        ("run.json", b"\xff\xfe"),
        ("intervals.jsonl", b"[" * 100_000 + b"\n"),
        ("intervals.jsonl", b"\xff\n"),
        ("intervals.jsonl", b"3\n"),
        ("latency.hlog", b"Tag=a,inf,1,1,x\n"),
        ("latency.hlog", b"Tag=a,b\n"),
        ("latency.hlog", b"Tag=\xff,0,1,1,x\n"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    for other, content in sound_run().items():
        (tmp_path / other).write_bytes(data if other == name else content)
    place = "damaged" if data == b"3\n" else re.escape(str(tmp_path / name))
    with pytest.raises(RecordingError, match=place):
        load_recording(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["i"], -1),
        (["i"], 1.5),
        (["i"], 10**9),  # a timeline of decades
        (["cpu"], 1e308),
        (["load", "steady", "sent"], -1),
        (["metrics", 0, 3], 0),  # a row of no samples
        (["metrics", 0, 4], 10**15),  # a minimum above the maximum
        (["metrics", 0, 8, 0, 1], 6),  # more over the limit than there are samples
        (["steps", 0, 3], 7),  # more good requests than requests
        (["steps", 0, 4, "timeout"], 5),  # more good and failed ones than requests
    ],
    ids=str,
)
def test_figures_that_no_run_can_have_are_refused(
    tmp_path: Path, place: list[str | int], value: float
) -> None:
    for name, content in sound_run().items():
        (tmp_path / name).write_bytes(content)
    first, *rest = (tmp_path / "intervals.jsonl").read_text().splitlines(keepends=True)
    line = json.loads(first)
    holder = functools.reduce(lambda inner, key: inner[key], place[:-1], line)
    assert holder[place[-1]] != value
    holder[place[-1]] = value
    (tmp_path / "intervals.jsonl").write_text(json.dumps(line) + "\n" + "".join(rest))
    with pytest.raises(RecordingError, match="damaged"):
        load_recording(tmp_path)


# --- size ------------------------------------------------------------------------------------------


def test_an_hour_of_twenty_metrics_at_a_hundred_a_second_stays_under_100_mb(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    recorder = Recorder(Limits(thresholds={("chat", f"m{m}"): (200 * MS,) for m in range(20)}))
    folder = RunFolder.create(tmp_path / "run", run_json())
    folder.begin(0.0)
    intervals = 120
    for i in range(intervals):
        for m in range(20):
            for value in rng.lognormal(np.log(150e6), 0.6, 100).astype(int).tolist():
                recorder.add("steady", "chat", f"m{m}", value)
        for _ in range(100):
            recorder.request("steady", "chat", {})
            recorder.journey(journey(150 * MS))
        folder.append(recorder.flush(i, cpu=0.3))
    folder.close()
    size = sum(p.stat().st_size for p in folder.path.iterdir())
    assert size * 3600 / intervals < 100_000_000


def test_a_recorders_memory_stays_flat_over_many_flushes() -> None:
    recorder = Recorder(Limits(good=lambda stage, step: {"ttft": MS}))

    def interval(i: int) -> None:
        for value in range(50):
            recorder.request("steady", "chat", {"ttft": value}, series={"itl": [1, 2, 3]})
            recorder.journey(journey(value))
        recorder.load("steady").sent += 50
        recorder.flush(i)

    for i in range(20):
        interval(i)
    tracemalloc.start()
    interval(0)
    before = tracemalloc.get_traced_memory()[0]
    for i in range(300):
        interval(i)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 50_000, "300 intervals kept would be several megabytes"
