"""A saved run that lost records, or has some twice, is never judged as if it were whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import stage
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.budget import parse_budget
from harness.errors import RecordingError
from harness.health import assess
from harness.recorder import Limits, Recorder, Recording, RunFolder, load_recording
from harness.verdict import Outcome, judge

MS = 1_000_000
INTERVALS, HISTOGRAMS = "intervals.jsonl", "latency.hlog"
STAGES = [stage("steady", 0, 10), stage("spike", 10, 20)]
BUDGET = "chat.ttft max < 400ms"
Change = Callable[[list[str]], list[str]]


def second_of(recorder: Recorder, where: str) -> None:
    """One second at 50/s, of which every request met the budget."""
    for _ in range(50):
        recorder.request(where, "chat", {"ttft": 100 * MS, "send_lag": MS})
    load = recorder.load(where)
    load.planned, load.sent, load.finished = 50, 50, 50


def save(
    path: Path,
    *,
    seconds: Sequence[int] = range(21),
    stages: Sequence[dict[str, Any]] = STAGES,
    status: str = "complete",
    **run: Any,
) -> Path:
    """A run of these seconds; the one after the last stage is its drain."""
    folder = RunFolder.create(path, {"interval_s": 1.0, "stages": [*stages], **run})
    folder.begin(1_700_000_000.0)
    recorder = Recorder(Limits())
    for i in seconds:
        for one in stages:
            if one["start_s"] <= i < one["end_s"]:
                second_of(recorder, one["name"])
        folder.append(recorder.flush(i, cpu=0.2))
    folder.close()
    folder.update(status=status)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("whole") / "run")


def damaged(run: Path, into: Path, **changes: Change) -> Path:
    """A copy of a run with some of its files' lines changed."""
    copy = Path(shutil.copytree(run, into / "copy"))
    for name, change in changes.items():
        path = copy / {"intervals": INTERVALS, "histograms": HISTOGRAMS}[name]
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    return copy


def without_totals(run: Path) -> Path:
    """The run as it was saved before run.json said how many records there are."""
    path = run / "run.json"
    described = json.loads(path.read_text())
    del described["saved"]
    path.write_text(json.dumps(described))
    return run


def lost(run: Path | Recording) -> str:
    """What the check says is lost."""
    recording = load_recording(run) if isinstance(run, Path) else run
    (check,) = (c for c in assess(recording).checks if c.name == "Lost records")
    assert check.ok == (check.measured == "none")
    return check.measured


def outcome(run: Path) -> Outcome:
    return judge(load_recording(run), [parse_budget(BUDGET)]).outcome


def test_a_whole_run_says_how_much_it_saved_and_misses_nothing(whole: Path) -> None:
    saved = json.loads((whole / "run.json").read_text())["saved"]
    assert saved == {"intervals": 21, "planned": {"steady": 500, "spike": 500}}
    assert lost(whole) == "none"
    assert outcome(whole) is Outcome.PASS


@pytest.mark.parametrize(
    ("changes", "says", "says_without_totals"),
    [
        (
            {"intervals": lambda lines: lines[:10]},
            "11 of 21 intervals, 500 of 1,000 arrivals, 20 histograms without an interval",
            "9 of 19 intervals, 20 histograms without an interval",
        ),
        (
            {"intervals": lambda lines: [*lines[:10], lines[10][:-9]]},
            "11 of 21 intervals, 500 of 1,000 arrivals, 20 histograms without an interval",
            "9 of 19 intervals, 20 histograms without an interval",
        ),
        (
            {"intervals": lambda lines: lines[:8] + lines[9:]},
            "1 of 21 intervals, 50 of 1,000 arrivals, 2 histograms without an interval",
            "1 of 21 intervals, 2 histograms without an interval",
        ),
        ({"intervals": lambda lines: lines[:-1]}, "1 of 21 intervals", "none"),
        (
            {"intervals": lambda lines: lines[:13], "histograms": lambda lines: lines[:30]},
            "8 of 21 intervals, 350 of 1,000 arrivals",
            "6 of 19 intervals",
        ),
        (
            {"intervals": lambda lines: lines * 2, "histograms": lambda lines: lines + lines[4:]},
            "1,000 arrivals too many, 21 intervals too many",
            "21 intervals too many",
        ),
        (
            {"intervals": lambda lines: [*lines[:6], *lines[4:5], *lines[7:]]},
            "1 of 21 intervals, 1 interval too many, 2 histograms, 2 histograms without an interval",
            "1 of 21 intervals, 1 interval too many, 2 histograms, 2 histograms without an interval",
        ),
        ({"histograms": lambda lines: lines[:-3]}, "3 histograms", "3 histograms"),
        (
            {"histograms": lambda lines: [*lines, lines[-1]]},
            "1 histogram without an interval",
            "1 histogram without an interval",
        ),
        (
            {"histograms": lambda lines: [*lines, lines[-1].replace("spike", "other")]},
            "1 histogram without an interval",
            "1 histogram without an interval",
        ),
    ],
    ids=[
        "the second half", "half a line", "one of the middle", "the drain", "the end of both files",
        "both files twice", "one instead of another", "histograms", "a histogram twice",
        "a histogram of nothing",
    ],
)  # fmt: skip
def test_what_a_damaged_run_lost_is_said_and_nothing_passes(
    whole: Path,
    tmp_path: Path,
    changes: dict[str, Change],
    says: str,
    says_without_totals: str,
) -> None:
    run = damaged(whole, tmp_path, **changes)
    assert lost(run) == says
    assert outcome(run) is Outcome.INVALID
    assert lost(without_totals(run)) == says_without_totals


LINES = st.lists(st.sampled_from([0, 1, 1, 1, 2]), min_size=21, max_size=21)


@settings(max_examples=60)
@given(times=LINES)
def test_whatever_lines_of_the_intervals_are_missing_or_twice_is_seen(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, times: list[int]
) -> None:
    def repeated(lines: list[str]) -> list[str]:
        return [line for line, n in zip(lines, times, strict=True) for _ in range(n)]

    run = damaged(whole, tmp_path_factory.mktemp("some"), intervals=repeated)
    assert (lost(run) == "none") == (set(times) == {1})


def test_a_stage_that_the_recording_left_early_does_not_pass(tmp_path: Path) -> None:
    """All that was written is there, but it ends 12 s before the stage does."""
    run = save(tmp_path / "run", seconds=range(8))
    assert lost(run) == "10 of 18 intervals"
    assert outcome(run) is Outcome.INVALID


def test_the_last_interval_of_a_stage_may_be_missing(tmp_path: Path) -> None:
    """The load ends with the stage, in the middle of an interval or just before its end."""
    assert lost(save(tmp_path / "run", seconds=range(19))) == "none"
    assert lost(save(tmp_path / "less", seconds=range(18))) == "1 of 19 intervals"


@pytest.mark.parametrize("status", ["running", "crashed"])
def test_a_run_that_did_not_close_is_not_held_against_its_plan(tmp_path: Path, status: str) -> None:
    run = save(tmp_path / "run", seconds=range(8), status=status)
    assert lost(run) == "none"
    assert outcome(run) is Outcome.INVALID


def test_the_pauses_between_repetitions_are_no_loss(tmp_path: Path) -> None:
    stages = [stage("steady", 0, 10), stage("steady~2", 13, 23, repeat=2)]
    run = save(tmp_path / "run", seconds=[*range(11), *range(13, 24)], stages=stages)
    assert lost(run) == "none"
    cut = damaged(run, tmp_path, intervals=lambda lines: lines[:12] + lines[13:])
    assert lost(without_totals(cut)) == ("1 of 22 intervals, 2 histograms without an interval")


def test_an_interleaved_run_has_several_lines_of_an_interval(tmp_path: Path) -> None:
    """What ends while the other target is on duty has a line of its own."""
    run = save(tmp_path / "run", seconds=[*range(10), 9, 9, *range(10, 21)], interleaved={})
    assert lost(run) == "none"
    assert lost(damaged(run, tmp_path, intervals=lambda lines: [*lines, lines[-1]])) == (
        "1 interval too many"
    )
    shutil.rmtree(tmp_path / "copy")
    fewer = damaged(run, tmp_path, intervals=lambda lines: lines[:10] + lines[11:])
    assert lost(fewer).startswith("1 of 23 intervals, 50 of 1,100 arrivals")


def test_a_line_of_another_run_is_seen(whole: Path, tmp_path: Path) -> None:
    foreign = json.dumps({"i": 21, "cpu": None, "load": {}, "metrics": [], "steps": []}) + "\n"
    run = damaged(whole, tmp_path, intervals=lambda lines: [*lines, foreign])
    assert lost(run) == "1 interval too many"


@pytest.mark.parametrize(
    "saved", [3, [], {}, {"intervals": -1, "planned": {}}, {"intervals": 3, "planned": {"a": "b"}}],
    ids=str,
)  # fmt: skip
def test_totals_that_are_none_make_no_run_of_ours(whole: Path, tmp_path: Path, saved: Any) -> None:
    run = damaged(whole, tmp_path)
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**described, "saved": saved}))
    with pytest.raises(RecordingError, match="damaged"):
        load_recording(run)


def test_intervals_that_the_disk_never_took_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path / "run", {"interval_s": 1.0, "stages": STAGES})
    folder.begin(0.0)
    recorder = Recorder(Limits())
    for i in range(20):
        second_of(recorder, STAGES[i // 10]["name"])
        if i == 19:
            monkeypatch.setattr("os.write", lambda fd, data: 0)
        folder.append(recorder.flush(i))
    folder.close()
    monkeypatch.undo()
    folder.update(status="complete")
    assert lost(folder.path) == "1 of 20 intervals, 50 of 1,000 arrivals"
