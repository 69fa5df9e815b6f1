"""Two targets in one run: how blocks take turns, what becomes of them, and what a verdict says."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from commands import (
    PREDICT,
    calm,
    descendants,
    eventually,
    intervals,
    invoked,
    predictions,
    run_json,
    serving,
    started,
)
from load import MS, S, write_plan
from rich.cells import cell_len

from harness import runs
from harness.ab import ARMS, Block, Turns, arm_plan, interleave, limited, plans, play, turns
from harness.ab.blocks import OwnClock
from harness.arrivals import schedule
from harness.budget import parse_budget
from harness.errors import ExitCode, UserError
from harness.health import assess
from harness.plan import Plan, load_plan
from harness.recorder import Limits, Recorder, Recording, Report, load_recording
from harness.stats.paired import paired_mean_change
from harness.stats.regression import Change
from harness.verdict import Outcome
from harness.verdict.regression import Pair, judge_regression

ASK = """
class User(ModelUser):
    @task
    def ask(self):
        self.predict({"instances": [[1.0]]})
"""
LOAD = (
    "[{ name: warmup, arrivals: constant 20/s, for: 350ms, record: false },"
    " { name: steady, arrivals: poisson 50/s, for: 4s },"
    " { name: closed, concurrency: 3, for: 2s }]"
)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return write_plan(tmp_path, ASK, url="http://127.0.0.1:9", load=LOAD, seed=5)


def blocks_of(plan: Plan, **given: int) -> tuple[Block, ...]:
    return interleave(
        plan, **{"block_ns": 200 * MS, "pause_ns": 70 * MS, "interval_ns": 100 * MS, **given}
    )


# --- the schedule ---------------------------------------------------------------------------------


def test_each_target_gets_the_whole_load_on_a_clock_of_its_own(plan: Plan) -> None:
    blocks = blocks_of(plan)
    assert [block.number for block in blocks] == list(range(1 + 20 + 10))
    assert blocks[0].start_ns == 0
    assert all(one.end_ns == other.start_ns for one, other in pairwise(blocks))
    assert blocks[-1].end_ns == sum(stage.duration_ns for stage in plan.load)
    inner = [b.end_ns for b, after in pairwise(blocks) if b.stage is after.stage]
    assert all(edge % (100 * MS) == 0 for edge in inner)


def test_one_target_at_a_time_is_on_duty_with_a_pause_between(plan: Plan) -> None:
    turns_taken = sorted((b.at_ns[arm], b.length_ns, arm) for b in blocks_of(plan) for arm in ARMS)
    for (at, length, _), (following, _, _) in pairwise(turns_taken):
        assert 70 * MS <= following - at - length < 170 * MS  # and up to the recording's grid


def test_both_targets_are_on_duty_at_the_same_phase_of_the_recording_interval(plan: Plan) -> None:
    assert all(
        (b.at_ns[arm] - b.start_ns) % (100 * MS) == 0 for b in blocks_of(plan) for arm in ARMS
    )


def test_which_target_is_first_is_drawn_from_the_seed_and_each_is_as_often(plan: Plan) -> None:
    def order(seed: int) -> str:
        return "".join(block.first for block in blocks_of(replace(plan, seed=seed)))

    orders = [order(seed) for seed in range(5)]
    assert orders[3] == order(3)
    assert len(set(orders)) == 5
    assert all(abs(one.count("a") - one.count("b")) <= 1 for one in orders)


def test_both_targets_get_the_same_arrivals(plan: Plan) -> None:
    blocks = blocks_of(plan)
    a, b = (arm_plan(plan, blocks, arm).load for arm in ARMS)
    assert a[1::2] == b[1::2]
    assert [stage.name for stage in a] == [stage.name for stage in b]
    assert {stage.concurrency for stage in a[0::2]} == {0}


def test_a_workers_stages_are_on_duty_when_the_schedule_says(plan: Plan) -> None:
    blocks = blocks_of(plan)
    for arm in ARMS:
        load = arm_plan(plan, blocks, arm).load
        ends = np.cumsum([stage.duration_ns for stage in load])
        assert ends[0::2].tolist() == [block.at_ns[arm] for block in blocks]


def test_a_budget_of_a_stage_counts_in_each_of_its_blocks(plan: Plan) -> None:
    budget = parse_budget("ask.e2el p99 < 1s in closed")
    told = arm_plan(replace(plan, budgets=(budget,)), blocks_of(plan), "b").budgets
    assert [one.stage for one in told] == [f"closed#{number}" for number in range(21, 31)]


def test_blocks_that_cannot_be_paired_or_recorded_are_refused(plan: Plan) -> None:
    with pytest.raises(UserError, match=r"--block: found 1s; stage closed .* at most 0\.25s"):
        blocks_of(plan, block_ns=S)
    with pytest.raises(UserError, match=r"--block: found 0\.05s; .* 0\.1s: allowed is that"):
        blocks_of(plan, block_ns=50 * MS)
    assert len(blocks_of(plan, block_ns=250 * MS)) == 1 + 16 + 8


def test_without_block_the_shortest_recorded_stage_has_20_of_them(plan: Plan) -> None:
    assert turns(plan, None, "1s") == Turns(block_ns=100 * MS, pause_ns=S)
    long = replace(plan, load=tuple(replace(s, duration_ns=600 * S) for s in plan.load))
    assert turns(long, None, "0s").block_ns == 5 * S


@pytest.mark.parametrize(("block", "pause"), [("soon", "1s"), ("0s", "1s"), ("1s", "-1s")])
def test_a_time_that_is_none_is_refused(plan: Plan, block: str, pause: str) -> None:
    with pytest.raises(UserError, match=r"--(block|pause): found '.*'; allowed is a time"):
        turns(plan, block, pause)


def test_budgets_of_the_command_line_take_the_place_of_the_plans_regressions(plan: Plan) -> None:
    texts = ["ask.e2el p99 < 1s", "ask.e2el p50 regression < 9%"]
    own = replace(plan, budgets=tuple(parse_budget(text) for text in texts))

    def budgets(limit: str | None, *declared: str) -> list[str]:
        return [budget.text for budget in limited(own, limit, declared).budgets]

    other = "ask.ttft p95 regression < 5%"
    assert budgets(None) == texts
    assert budgets("5%") == texts[:1]
    assert budgets(None, other) == [texts[0], other]
    with pytest.raises(UserError, match='--limit: found "fast"'):
        budgets("fast")
    with pytest.raises(UserError, match="a limit on one run"):
        budgets(None, texts[0])


def test_only_an_embedded_endpoint_can_be_set(plan: Plan) -> None:
    with pytest.raises(UserError, match=r"--b-set: http://x .* --b embedded"):
        plans(plan, "embedded", "http://x", ["slots=1"])
    with pytest.raises(UserError, match="no setting 'slot'"):
        plans(plan, "embedded", "embedded", ["slot=1"])
    assert plans(plan, "http://x", "embedded", ["slots=1"])["b"].embedded == {"slots": "1"}


# --- one target's own clock -----------------------------------------------------------------------


def reported(index: int, *stages: str) -> Report:
    recorder = Recorder(Limits())
    for stage in stages:
        recorder.request(stage, "ask", {"e2el": 5 * MS})
        recorder.load(stage).finished += 1
        recorder.load(stage).in_flight = 7
        t_s = index / 10
        recorder.journey({"stage": stage, "root": "ask", "t_s": t_s, "ok": True, "duration_ns": 1})
    return recorder.flush(index, cpu=0.5)


@pytest.mark.parametrize("arm", ARMS)
def test_a_block_is_recorded_where_the_last_one_ended(plan: Plan, arm: Any) -> None:
    blocks = blocks_of(plan)
    clock = OwnClock(blocks, arm, 100 * MS)
    block = blocks[7]
    begin = block.at_ns[arm] // (100 * MS)
    (own,) = clock.reports(reported(begin + 1, block.name))
    assert own.index == block.start_ns // (100 * MS) + 1
    assert list(own.measured) == [("steady", "ask", "e2el")]
    assert own.load["steady"].finished == 1
    assert own.finished["steady", "ask"].total == 1
    (journey,) = own.journeys
    assert journey["stage"] == "steady"
    assert block.start_ns <= journey["t_s"] * S <= block.end_ns
    assert clock.late == 0


def test_what_ends_late_belongs_to_its_own_block(plan: Plan) -> None:
    blocks = blocks_of(plan)
    clock = OwnClock(blocks, "a", 100 * MS)
    block, after = blocks[7], blocks[10]
    inside = after.at_ns["a"] // (100 * MS) + 1
    late, usual = clock.reports(reported(inside, block.name, after.name))
    assert late.index == block.end_ns // (100 * MS) - 1
    assert late.load["steady"].in_flight == 0
    assert usual.index == after.start_ns // (100 * MS) + 1
    assert (clock.finished, clock.late) == (2, 1)


def test_an_idle_target_has_no_intervals(plan: Plan) -> None:
    blocks = blocks_of(plan)
    clock = OwnClock(blocks, "a", 100 * MS)
    on_duty = blocks[7].at_ns["a"] // (100 * MS)
    off_duty = blocks[7].at_ns["b"] // (100 * MS)
    assert len(list(clock.reports(reported(on_duty)))) == 1
    assert not list(clock.reports(reported(off_duty)))


def test_a_clock_stands_still_between_its_blocks(plan: Plan) -> None:
    blocks = blocks_of(plan)
    clock = OwnClock(blocks, "b", 100 * MS)
    times = [clock.own_ns(t * MS) for t in range(0, 30_000, 10)]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (0, blocks[-1].end_ns)
    block = blocks[4]
    assert clock.own_ns(block.at_ns["b"] + 50 * MS) == block.start_ns + 50 * MS
    assert clock.own_ns(block.at_ns["b"] + block.length_ns + MS) == block.end_ns


# --- pairs of blocks ------------------------------------------------------------------------------

STEADY = {
    "name": "steady", "start_s": 0, "end_s": 40, "record": True, "load": "50 users",
    "planned_rate_per_s": None,
}  # fmt: skip


@pytest.fixture
def arms(save_run: Callable[..., Recording]) -> Callable[..., Pair]:
    """Both arms of a run in 20 pairs of 2 s blocks that shared a noise; `b` is slower by `ratio`."""

    def make(ratio: float = 1.0, *, interleaved: bool = True, whole_s: float = 40) -> Pair:
        noise = np.exp(0.3 * np.random.default_rng(1).normal(size=20))

        def save(arm: str, by: float) -> Recording:
            rng = np.random.default_rng(ord(arm))

            def fill(recorder: Recorder, i: int) -> None:
                middle = by * float(noise[i // 2]) * 100 * MS
                for value in (middle * np.exp(0.2 * rng.normal(size=60))).tolist():
                    recorder.request("steady", "ask", {"e2el": int(value)})

            edges = [2.0 * k for k in range(21)]
            told = {"arm": arm, "run": "one", "edges_s": {"steady": edges}}
            more = {"interleaved": told} if interleaved else {}
            stages = [{**STEADY, "end_s": whole_s}]
            return save_run(fill, stages=stages, intervals=40, **more)

        return Pair(save("a", 1.0), save("b", ratio))

    return make


def width(change: Change | None) -> float:
    assert change is not None
    assert change.low is not None
    assert change.high is not None
    return change.high - change.low


@pytest.mark.parametrize("quantile", [0.5, 0.95, None])
def test_noise_that_both_targets_share_cancels(
    arms: Callable[..., Pair], quantile: float | None
) -> None:
    of = ("steady", "ask", "e2el", quantile, 0.95)
    paired = arms(1.1).change(*of)
    assert paired is not None
    assert (paired.low or 0) > 0
    assert paired.pairs == 20
    assert paired.variance_left is not None
    assert paired.variance_left < 0.2
    apart = arms(1.1, interleaved=False).change(*of)
    assert apart is not None
    assert apart.pairs is None
    assert apart.change == pytest.approx(paired.change, rel=0.02)
    assert apart.high is None or width(paired) < width(apart) / 3


def test_a_block_that_was_cut_short_is_not_compared(arms: Callable[..., Pair]) -> None:
    change = arms(whole_s=29).change("steady", "ask", "e2el", 0.5, 0.95)
    assert change is not None
    assert change.pairs == 14


def test_too_few_pairs_are_compared_as_two_runs(arms: Callable[..., Pair]) -> None:
    change = arms(whole_s=13).change("steady", "ask", "e2el", 0.5, 0.95)
    assert change is not None
    assert change.pairs is None


def test_two_arms_of_different_runs_are_no_pair(arms: Callable[..., Pair]) -> None:
    one, other = arms(), arms()
    other.base.run["interleaved"]["run"] = "another"
    change = Pair(other.base, one.candidate).change("steady", "ask", "e2el", 0.5, 0.95)
    assert change is not None
    assert change.pairs is None


def test_a_regression_of_a_pair_is_judged_by_its_blocks(arms: Callable[..., Pair]) -> None:
    budget = parse_budget("ask.e2el p50 regression < 5%")
    assert judge_regression(arms(1.15), budget, "steady").outcome is Outcome.FAIL
    assert judge_regression(arms(1.0), budget, "steady").outcome is Outcome.PASS


def test_a_paired_mean_is_the_students_t_of_log_ratios_where_blocks_are_of_one_size() -> None:
    # Ten pairs whose logs differ by little: the linearised interval is that of the t test of them.
    rng = np.random.default_rng(4)
    ones = 100 + rng.normal(size=10)
    others = 1.1 * ones + rng.normal(size=10)
    n = np.full(10, 7.0)
    found = paired_mean_change((7 * ones, n), (7 * others, n), 0.95)
    assert found is not None
    assert found.change == pytest.approx(others.mean() / ones.mean() - 1)
    d = np.log(others) - np.log(ones)
    half = 1.8331 * d.std(ddof=1) / np.sqrt(10)  # t at 0.95 with 9 degrees of freedom, by table
    assert np.log1p(found.high or 0) - np.log1p(found.change) == pytest.approx(half, rel=0.02)


# --- whole runs -----------------------------------------------------------------------------------


def written(folder: Path, load: str, *budgets: str) -> Path:
    (folder / "scenario.py").write_text(PREDICT, encoding="utf-8")
    lines = "".join(f"\n  - {budget}" for budget in budgets)
    file = folder / "plan.yaml"
    file.write_text(
        "target: { url: embedded, api: json }\nembedded: { predict_ms: 5, predict_sigma: 0.1 }\n"
        f"scenario: scenario.py\nload: {load}\nbudgets:{lines}\nseed: 7\n",
        encoding="utf-8",
    )
    return file


OPEN = (
    "[{ name: warmup, arrivals: constant 20/s, for: 200ms, record: false },"
    " { name: steady, arrivals: poisson 160/s, for: 1s }]"
)


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The command against an endpoint and one that is three times as slow."""
    folder = tmp_path_factory.mktemp("slower")
    file = written(folder, OPEN, "predict.e2el p50 regression < 20%")
    with pytest.MonkeyPatch.context() as patch:
        calm(patch)
        done = invoked(
            "ab", file, "--a", "embedded", "--b", "embedded", "--b-set", "predict_ms=15",
            "--block", "100ms", "--pause", "50ms", "--out", folder / "out", "--json", "-", "-q",
        )  # fmt: skip
    return done, folder / "out"


def test_a_slower_candidate_fails_and_the_text_says_by_how_much(
    slower: tuple[Result, Path],
) -> None:
    done, _ = slower
    assert done.exit_code == ExitCode.FAIL, done.stderr
    assert "✗ FAIL  1 of 1 limit broken" in done.stderr
    assert "10 in steady; about 100ms against each target" in done.stderr
    assert "✓ a by itself, without budgets: PASS" in done.stderr
    assert "✗ b by all its budgets: FAIL" in done.stderr
    assert "embedded predict_ms=15" in " ".join(done.stderr.split())
    assert "exit code 3" in done.stderr
    assert all(cell_len(line) <= 80 for line in done.stderr.splitlines())
    assert "\x1b" not in done.stderr


def test_programs_and_pull_requests_get_the_same(slower: tuple[Result, Path]) -> None:
    done, out = slower
    told = json.loads(done.stdout)
    assert told == json.loads((out / "ab.json").read_text(encoding="utf-8"))
    assert (told["outcome"], told["exit_code"]) == ("FAIL", 3)
    assert told["interleaved"]["pairs"] == {"steady": 10}
    assert [told["interleaved"]["arms"][arm]["outcome"] for arm in ARMS] == ["PASS", "FAIL"]
    (judged,) = (row for row in told["rows"] if row["limit"])
    assert judged["pairs"] == 10
    assert 1 < judged["low"] < judged["change"] < judged["high"]
    comment = (out / "ab.md").read_text(encoding="utf-8")
    assert comment.startswith("## ❌ FAIL")
    assert "- ✅ a by itself, without budgets: PASS." in comment


def test_each_target_has_a_run_of_its_own_with_a_report(slower: tuple[Result, Path]) -> None:
    _, out = slower
    planned = len(list(schedule("constant", 20, 200 * MS, seed=7)))
    for arm in ARMS:
        assert (out / arm / "report.html").exists()
        recording = load_recording(out / arm)
        assert [(s.name, s.start_s, s.end_s) for s in recording.stages] == [
            ("warmup", 0, 0.2), ("steady", 0.2, 1.2),
        ]  # fmt: skip
        assert recording.load_totals("warmup").finished == planned
        assert max(row["i"] for row in intervals(out / arm)) == 11
        assert recording.run["status"] == "complete"
    a, b = (load_recording(out / arm) for arm in ARMS)
    assert a.load_totals("steady").finished == b.load_totals("steady").finished > 100
    assert run_json(out / "a")["interleaved"]["run"] == run_json(out / "b")["interleaved"]["run"]


def test_gaps_that_end_with_their_block_are_held_against_the_planned_ones(
    slower: tuple[Result, Path],
) -> None:
    health = assess(load_recording(slower[1] / "a"))
    (check,) = (check for check in health.checks if check.name == "Arrivals as planned")
    assert "Kolmogorov-Smirnov" in check.measured


def test_the_saved_runs_compare_by_their_blocks_again(slower: tuple[Result, Path]) -> None:
    _, out = slower
    again = invoked("compare", out / "a", out / "b", "--json", "-")
    (judged,) = (row for row in json.loads(again.stdout)["rows"] if row["limit"])
    assert judged["pairs"] == 10


CLOSED = "[{ name: closed, concurrency: 3, for: 1s }]"


def test_two_equal_targets_do_not_fail_and_the_users_off_duty_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "write_reports", lambda *_, **__: (Path("report.html"),))
    file = written(tmp_path, CLOSED, "predict.e2el p50 regression < 100%", "predict.rate > 1/s")
    plan = load_plan(file)
    seen: list[dict[str, Any]] = []
    both = plans(plan, "embedded", "embedded", [])
    found = play(both, tmp_path / "out", turns(plan, "100ms", "0s"), seen.append)
    assert found.comparison.outcome in (Outcome.PASS, Outcome.INVALID)  # as the machine is
    assert all(v.outcome is not Outcome.FAIL for v in found.comparison.verdict.budgets)  # type: ignore[union-attr]
    assert {row.metric for row in found.comparison.rows} >= {"e2el", "rate"}
    assert all(row.change.pairs == 10 for row in found.comparison.rows if row.metric == "rate")
    for arm in ARMS:
        totals = load_recording(tmp_path / "out" / arm).load_totals("closed")
        assert totals.max_in_flight == 3
        assert totals.planned == totals.finished > 100
    assert {state["stage"] for state in seen} == {"closed"}
    assert seen[-1]["finished"] == sum(
        load_recording(tmp_path / "out" / arm).load_totals("closed").finished for arm in ARMS
    )


def test_ctrl_c_saves_what_both_did_and_compares_it(tmp_path: Path) -> None:
    written(tmp_path, OPEN.replace("for: 1s", "for: 10s"), "run.error_rate < 99%")
    command = ("ab", "plan.yaml", "--a", "embedded", "--b", "embedded", "--out", "out")
    with started(*command, "--pause", "0s", "--block", "500ms", cwd=tmp_path) as process:
        eventually(lambda: len(intervals(tmp_path / "out" / "b")) > 3, "a block of b")
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == ExitCode.INTERRUPTED
    assert "exit code 130" in said
    for arm in ARMS:
        written_down = run_json(tmp_path / "out" / arm)
        assert written_down["status"] == "interrupted"
        assert 0.2 <= written_down["stages"][-1]["end_s"] < 10


def test_a_target_that_does_not_answer_ends_it_before_the_load(tmp_path: Path) -> None:
    file = written(tmp_path, OPEN, "run.error_rate < 99%")
    with serving(predictions) as url:
        result = invoked(
            "ab", file, "--a", url, "--b", "http://127.0.0.1:9", "--out", tmp_path / "out", "-q"
        )
    assert result.exit_code == ExitCode.TARGET
    assert "http://127.0.0.1:9 did not pass the preflight" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_budget_of_an_unknown_step_ends_it_before_the_load(tmp_path: Path) -> None:
    file = written(tmp_path, OPEN, "run.error_rate < 99%")
    limit = ("--budget", "predikt.e2el p99 regression < 5%")
    both = ("--a", "embedded", "--b", "embedded")
    result = invoked("ab", file, *both, *limit, "--out", tmp_path / "out", "-q")
    assert result.exit_code == ExitCode.USAGE
    assert '--budget: found the step "predikt"' in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_worker_that_dies_ends_both_and_passes_nothing(tmp_path: Path) -> None:
    written(tmp_path, OPEN.replace("for: 1s", "for: 10s"), "predict.e2el p50 regression < 90%")
    command = ("ab", "plan.yaml", "--a", "embedded", "--b", "embedded", "--out", "out", "-q")
    with started(*command, "--pause", "0s", cwd=tmp_path) as process:
        eventually(lambda: len(intervals(tmp_path / "out" / "b")) > 3, "a block of b")
        workers = [p for p in descendants(process) if "harness.swarm.worker" in p.cmdline()]
        assert len(workers) == 2
        workers[0].kill()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INVALID
    assert "not comparable" in said
    assert {run_json(tmp_path / "out" / arm)["status"] for arm in ARMS} == {
        "crashed",
        "interrupted",
    }
