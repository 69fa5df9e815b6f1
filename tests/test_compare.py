"""Two saved runs compared: what is said, when no verdict is given, and the code it ends with."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import invoked
from report_samples import HOSTILE, MS, Build, budgets

from harness import health
from harness.budget import parse_budget
from harness.compare import Comparison, limited, regressions
from harness.compare import compare as compare_pair
from harness.errors import ExitCode, UserError
from harness.recorder import Recording, StageWindow, StepSpan, load_recording
from harness.report import comparison as report
from harness.report.facts import WhyNot, findings
from harness.report.facts.budgets import limit_use
from harness.report.page import render_page
from harness.units import NARROW_SPACE
from harness.verdict import Outcome, judge
from harness.verdict.likeness import Weight
from harness.verdict.regression import Pair, judge_regression

STEADY = StageWindow("steady", 0, 120, True, "poisson 30/s", 30.0)
MACHINE = {"system": "Linux x86_64", "cores": 8, "memory_bytes": 16 << 30}


@cache
def run(
    seed: int,
    ratio: float = 1.0,
    failing: float = 0.0,
    missed: float = 0.0,
    stages: tuple[StageWindow, ...] = (STEADY,),
    steps: tuple[str, ...] = ("chat",),
    run_sigma: float = 0.0,
) -> Recording:
    """A run whose latencies are `ratio` times the usual; shares of it fail, or miss 5 s."""
    rng = np.random.default_rng(seed)
    build = Build(stages, budgets=budgets([("chat.e2el p99 < 5s", None)]))
    for stage in stages:
        by = ratio * float(np.exp(run_sigma * rng.standard_normal()))
        length = stage.end_s - stage.start_s
        for t in rng.uniform(stage.start_s, stage.end_s, rng.poisson(30 * length)).tolist():
            for step in steps:
                ttft = int(by * 200 * MS * np.exp(0.3 * rng.standard_normal()))
                end = ttft + int(by * 300 * MS * np.exp(0.2 * rng.standard_normal()))
                end = 6_000 * MS if rng.random() < missed else end
                failure = "status 503" if rng.random() < failing else None
                span = StepSpan(step, 0, end, failure, {})
                build.journey(stage.name, step, t, end, [span], failure, ttft=ttft)
    return build.recording()


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Recording]:
    """Return a copy of a run whose run.json says something else."""

    def edit(recording: Recording, name: str = "other", **changes: Any) -> Recording:
        folder = tmp_path / name
        shutil.copytree(recording.folder, folder)
        written = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        for key, value in changes.items():
            merged = {**written[key], **value} if isinstance(written.get(key), dict) else value
            written[key] = merged
        (folder / "run.json").write_text(json.dumps(written), encoding="utf-8")
        return load_recording(folder)

    return edit


def compare(base: Recording, candidate: Recording, limits: Any = ()) -> Comparison:
    return compare_pair(Pair(base, candidate), limits)


def p99(limit: str, metric: str = "e2el") -> Any:
    return parse_budget(f"chat.{metric} p99 regression < {limit}")


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "limit", "outcome", "code"),
    [
        (1.0, "20%", Outcome.PASS, ExitCode.PASS),
        (1.3, "10%", Outcome.FAIL, ExitCode.FAIL),
        (1.0, "0.1%", Outcome.INCONCLUSIVE, ExitCode.INCONCLUSIVE),
    ],
)
def test_a_declared_limit_makes_a_verdict(
    ratio: float, limit: str, outcome: Outcome, code: ExitCode
) -> None:
    found = compare(run(1), run(2, ratio), [p99(limit)])
    assert (found.outcome, found.exit_code) == (outcome, code)


def test_a_limit_passes_nothing_where_no_step_has_enough_samples() -> None:
    short = (StageWindow("steady", 0, 2, True, "poisson 30/s", 30.0),)
    pair = Pair(run(1, stages=short), run(2, stages=short))
    (budget,) = limited(pair, "5%")
    assert budget.text == "run.e2el p99 regression < 5%"
    assert compare_pair(pair, [budget]).exit_code not in (ExitCode.PASS, ExitCode.FAIL)


def test_without_a_limit_a_change_is_shown_and_not_judged() -> None:
    found = compare(run(1), run(2, 1.3))
    assert (found.outcome, found.exit_code) == (None, ExitCode.PASS)
    rows = {(row.step, row.metric, row.statistic): row for row in found.rows}
    assert {name for _, _, name in rows} == {"p50", "p95", "p99"}
    row = rows["chat", "e2el", "p95"]
    low, high = row.change.low, row.change.high
    assert low is not None
    assert high is not None
    assert 0.2 < low < row.change.change < high < 0.4
    assert found.sentence.startswith("6 of 6 statistics changed by more than chance")


def test_equal_runs_did_not_change() -> None:
    found = compare(run(1), run(1))
    assert not found.forbids
    assert not any(row.changed for row in found.rows)
    assert found.sentence == "No statistic changed by more than chance."


def test_a_limit_for_all_limits_the_p99_of_every_step_and_metric() -> None:
    two = run(1, steps=("chat", "answer"))
    texts = [budget.text for budget in limited(Pair(two, two), "5%")]
    assert texts == [
        f"{step}.{metric} p99 regression < 5% in steady"
        for step in ("chat", "answer")
        for metric in ("ttft", "e2el")
    ]
    assert all(parse_budget(text).text == text for text in texts)


def test_limits_are_read_like_budgets_and_must_be_regressions() -> None:
    for limit in ("5", "5ms", "0%", "-5%", ""):
        with pytest.raises(UserError, match=f'^--limit: found "{limit}"; allowed is a share like'):
            regressions(Pair(run(1), run(1)), limit, ())
    with pytest.raises(UserError, match=r'found the step "chatt"; .* mean "chat"'):
        regressions(Pair(run(1), run(1)), None, ["chatt.e2el p95 regression < 5%"])
    with pytest.raises(UserError, match=r"chat\.e2el p99 < 5s.*chat\.e2el p99 regression < 5%"):
        regressions(Pair(run(1), run(1)), None, ["chat.e2el p99 < 5s"])


def test_a_lost_goodput_and_more_errors_are_differences_in_points() -> None:
    worse = run(4, failing=0.04, missed=0.1)
    texts = ["chat.goodput regression < 5%", "chat.error_rate regression < 1%"]
    found = compare(run(1), worse, [parse_budget(text) for text in texts])
    rows = {row.metric: row for row in found.rows if row.verdict}
    change, low, high = rows["goodput"].shown_change
    assert rows["goodput"].values == pytest.approx((1.0, 0.865), abs=0.03)
    assert low is not None
    assert high is not None
    assert low < change < high < -0.05
    assert rows["error_rate"].change.change == pytest.approx(0.04, abs=0.015)
    assert [row.verdict and row.verdict.outcome for row in rows.values()] == [Outcome.FAIL] * 2


def test_a_mean_is_compared_as_a_ratio() -> None:
    found = compare(run(1), run(2, 1.3), [parse_budget("chat.e2el mean regression < 10%")])
    assert found.outcome is Outcome.FAIL
    (row,) = (row for row in found.rows if row.statistic == "mean")
    assert row.change.change == pytest.approx(0.3, abs=0.03)


def test_the_rate_of_a_closed_load_is_compared() -> None:
    closed = (replace(STEADY, load="10 users", planned_rate_per_s=None),)
    found = compare(run(1, stages=closed), run(2, stages=closed))
    (row,) = (row for row in found.rows if row.metric == "rate")
    assert row.values == pytest.approx((30, 30), rel=0.05)
    assert row.change.low is not None
    assert not any(row.metric == "rate" for row in compare(run(1), run(2)).rows)


@pytest.mark.parametrize("failing", [0.005, 0.05])
def test_a_tail_of_more_failures_does_not_pass(failing: float) -> None:
    found = compare(run(1), run(5, failing=failing), [p99("20%")])
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "add one for chat" in (found.verdict.budgets[0].reason or "")  # type: ignore[union-attr]
    few = compare(run(1, failing=0.002), run(5, failing=0.002), [p99("20%")])
    assert few.outcome is Outcome.PASS
    both = [p99("20%"), parse_budget("run.error_rate regression < 10%")]
    found = compare(run(1), run(5, failing=failing), both)
    assert "add one for chat" not in (found.verdict.budgets[0].reason or "")  # type: ignore[union-attr]


def test_repeated_runs_are_compared_run_by_run() -> None:
    stages = tuple(
        replace(STEADY, name=name, start_s=60.0 * i, end_s=60.0 * (i + 1), repeat=i + 1)
        for i, name in enumerate(("steady", "steady~2", "steady~3"))
    )
    slower = run(6, 1.5, stages=stages, run_sigma=0.02)
    found = compare(run(7, stages=stages, run_sigma=0.02), slower, [p99("10%")])
    assert {row.stage for row in found.rows} == {"steady"}
    assert found.verdict is not None
    (verdict,) = found.verdict.budgets
    assert verdict.outcome is Outcome.FAIL
    assert {row.change.runs for row in found.rows} == {(3, 3)}
    surer = replace(p99("10%"), confidence=0.99)
    (verdict,) = judge(slower, [surer], baseline=run(7, stages=stages, run_sigma=0.02)).budgets
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "0.05 at best, 0.01 is asked: repeat both more often" in (verdict.reason or "")


# --- what may be compared -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("machine", {"machine": {**MACHINE, "cores": 4}}),
        ("clock", {"clock": "kernel"}),
        ("scenario (SHA-256)", {"scenario": {"sha256": "00" * 32}}),
        ("timeout", {"timeout_s": 5.0}),
        ("API", {"target": {"api": "json"}}),
        ("inputs", {"plan": "inputs: other.jsonl\n"}),
        ("load in steady", {"stages": [{**asdict(STEADY), "load": "poisson 60/s"}]}),
    ],
)
def test_runs_that_differ_in_what_shapes_a_latency_get_no_verdict(
    edited: Callable[..., Recording], what: str, changes: dict[str, Any]
) -> None:
    base = edited(run(1), "base", machine=MACHINE, plan="inputs: some.jsonl\n", timeout_s=60.0)
    candidate = edited(
        run(2, 2.0),
        **({"machine": MACHINE, "plan": "inputs: some.jsonl\n", "timeout_s": 60.0} | changes),
    )
    found = compare(base, candidate, [p99("5%")])
    assert (found.outcome, found.exit_code) == (Outcome.INVALID, ExitCode.INVALID)
    assert [reason.partition(":")[0] for reason in found.forbids] == [what]
    assert compare(base, candidate).exit_code == ExitCode.INVALID
    assert isinstance(findings(candidate, judge(candidate, ()), base).difference, WhyNot)


def test_runs_may_differ_in_what_is_compared(edited: Callable[..., Recording]) -> None:
    plan = "target: {{ params: {{ temperature: {} }} }}\nembedded: {{ slots: {} }}\n"
    base = edited(run(1), "base", plan=plan.format(0, 4))
    candidate = edited(
        run(2),
        target={"url": "https://new/v1", "model": "large"},
        commit="abc1234",
        seed=8,
        workers=2,
        plan=plan.format(1, 8),
    )
    found = compare(base, candidate, [p99("20%")])
    assert found.outcome is Outcome.PASS
    meant = {one.what for one in found.unlike if one.weight is Weight.MEANT}
    assert meant == {"target", "model", "commit", "parameters", "embedded endpoint"}
    assert {one.what for one in found.unlike if one.weight is Weight.NOTED} == {"seed", "workers"}


def test_runs_of_another_version_are_compared_and_the_other_client_is_said(
    edited: Callable[..., Recording],
) -> None:
    base = edited(run(1), "base", versions={"httpx": "0.28.1", "python": "3.11.7"})
    candidate = edited(run(2), harness="0.2.0", versions={"httpx": "0.29.0", "python": "3.11.7"})
    found = compare(base, candidate, [p99("20%")])
    assert found.outcome is Outcome.PASS
    (noted,) = (one for one in found.unlike if one.weight is Weight.NOTED)
    assert (noted.what, noted.candidate) == ("client", "harness 0.2.0, httpx 0.29.0")
    said = " ".join(report.render_text(found, color=False, unicode=False).split())
    assert "client harness" in said
    assert "it may send, stamp and count tokens otherwise" in said


def test_inputs_of_another_name_and_the_same_content_are_the_same(
    edited: Callable[..., Recording],
) -> None:
    same = {"file": "x", "sha256": "ab" * 32}
    base = edited(run(1), "base", plan="inputs: a.jsonl\n", inputs=same)
    found = compare(base, edited(run(2), plan="inputs: { file: b.jsonl }\n", inputs=same))
    assert not found.forbids
    other = edited(run(2), "third", plan="inputs: a.jsonl\n", inputs={"sha256": "cd" * 32})
    assert [reason.partition(":")[0] for reason in compare(base, other).forbids] == [
        "inputs (SHA-256)"
    ]


def test_a_stage_of_one_run_alone_is_named_and_not_compared() -> None:
    spike = StageWindow("spike", 120, 160, True, "poisson 30/s", 30.0)
    found = compare(run(1), run(2, stages=(STEADY, spike)))
    assert {row.stage for row in found.rows} == {"steady"}
    (one,) = (one for one in found.unlike if one.what == "recorded")
    assert (one.stage, one.base, one.candidate, one.weight) == ("spike", "no", "yes", Weight.NOTED)
    (verdict,) = judge(
        run(2, stages=(STEADY, spike)), [replace(p99("5%"), stage="spike")], baseline=run(1)
    ).budgets
    assert verdict.outcome is Outcome.NO_DATA
    assert "the baseline has no stage spike" in (verdict.reason or "")


def test_a_longer_candidate_may_be_compared() -> None:
    found = compare(run(1), run(2, stages=(replace(STEADY, end_s=160.0),)))
    assert not found.forbids
    assert [str(one).replace(NARROW_SPACE, " ") for one in found.unlike] == [
        "duration in steady: 120 s in the baseline, 160 s now"
    ]


def test_a_measurement_that_was_not_fit_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CPU_LIMIT", 0.5)  # the samples say 61 %
    found = compare(run(1), run(2), [p99("50%")])
    assert found.outcome is Outcome.INVALID
    whose = [reason.partition("'")[0] for reason in found.forbids]
    assert whose == ["the baseline", "the candidate"]
    assert compare(run(1), run(2)).exit_code == ExitCode.INVALID


# --- budgets of a run against its baseline --------------------------------------------------------


def test_a_regression_budget_without_a_baseline_has_no_data() -> None:
    (verdict,) = judge(run(1), [p99("5%")]).budgets
    assert verdict.outcome is Outcome.NO_DATA
    assert "declare a baseline" in (verdict.reason or "")
    assert "--baseline" in (verdict.reason or "")


def test_a_regression_budget_says_from_what_to_what() -> None:
    (verdict,) = judge(run(2, 1.3), [p99("10%")], baseline=run(1)).budgets
    assert verdict.outcome is Outcome.FAIL
    assert verdict.used == pytest.approx((verdict.observed or 0) / 0.1)
    assert (verdict.reason or "").startswith("from ")
    assert "regression was" in verdict.sentence


def test_a_metric_that_one_run_lacks_is_no_data() -> None:
    pair = Pair(run(1), run(1))
    verdict = judge_regression(pair, parse_budget("chat.tpot p50 regression < 5%"), "steady")
    assert verdict.outcome is Outcome.NO_DATA
    assert "gave no chat.tpot" in (verdict.reason or "")


# --- the report's difference chart ----------------------------------------------------------------


def test_the_page_draws_the_difference_from_a_baseline() -> None:
    recording, budget = run(2, 1.3), p99("10%", "ttft")
    verdict = judge(recording, [budget], baseline=run(1))
    found = findings(recording, verdict, run(1))
    page = render_page(recording, verdict, found)
    assert "chat.ttft is slower as a whole" in page
    assert "The difference is left out" not in page


def test_an_improvement_uses_nothing_of_its_limit() -> None:
    (verdict,) = judge(run(2, 0.8), [p99("10%")], baseline=run(1)).budgets
    assert (verdict.outcome, verdict.used) == (Outcome.PASS, 0)
    use = limit_use(verdict)
    assert use is not None
    assert use.low == 0


def test_without_a_baseline_the_page_says_how_to_get_one() -> None:
    recording = run(1)
    verdict = judge(recording, ())
    page = render_page(recording, verdict, findings(recording, verdict))
    assert "No baseline" in page
    assert "--baseline" in page


def test_a_difference_of_too_few_samples_is_left_out() -> None:
    short = run(8, stages=(replace(STEADY, end_s=3.0),))
    found = findings(short, judge(short, ()), run(1)).difference
    assert isinstance(found, WhyNot)
    assert "needs at least 100" in found.reason.lower()


# --- how it is shown ------------------------------------------------------------------------------


@pytest.fixture
def hostile(edited: Callable[..., Recording]) -> Any:
    candidate = edited(
        run(2, 1.3),
        id=HOSTILE,
        target={"url": f"https://{HOSTILE}/v1", "model": "検索\n\x1b[31m🔥"},
    )
    return compare(run(1), candidate, [p99("10%")])


@pytest.mark.parametrize("unicode", [True, False])
def test_no_line_is_wider_than_eighty_columns_or_moves_the_cursor(
    hostile: Any, unicode: bool
) -> None:
    text = report.render_text(hostile, color=False, unicode=unicode)
    assert unicode or text.isascii()
    for line in text.splitlines():
        assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) <= 80
        assert not any(unicodedata.category(c) == "Cc" for c in line)
    assert "exit code 3" in text.splitlines()[-1]


def test_markdown_shows_names_as_they_are(hostile: Any) -> None:
    text = report.render_markdown(hostile)
    assert "<script>" not in text
    assert "\x1b" not in text
    assert text.startswith("## ❌ FAIL")
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {9}


def test_every_key_of_the_json_is_documented(hostile: Any) -> None:
    written = json.dumps(report.as_json(hostile), allow_nan=False)
    whole = json.loads(written)
    said = report.__doc__ or ""
    keys = {*whole, *whole["base"], *whole["rows"][0], *whole["unlike"][0]}
    assert not [key for key in keys if key not in said]
    judged = [row for row in whole["rows"] if row["outcome"]]
    assert [(row["statistic"], row["outcome"], row["limit"]) for row in judged] == [
        ("p99", "FAIL", 0.1)
    ]


def test_hundreds_of_rows_are_cut_to_what_changed() -> None:
    found = compare(run(1), run(2, 1.3), [p99("10%")])
    many = replace(
        found, rows=tuple(replace(row, step=f"s{i}") for i in range(40) for row in found.rows)
    )
    text = report.render_text(many, color=False, unicode=True)
    assert len(text.splitlines()) < 80
    assert "more statistics" in text


def test_the_command_prints_writes_and_ends_with_the_verdicts_code(tmp_path: Path) -> None:
    slow = ("compare", run(1).folder, run(2, 1.3).folder)
    comment = tmp_path / "comment.md"
    done = invoked(*slow, "--limit", "10%", "--markdown", comment)
    assert done.exit_code == ExitCode.FAIL
    assert "chat.e2el p99" in done.stdout
    assert comment.read_text(encoding="utf-8").startswith("## ❌ FAIL")
    done = invoked(*slow, "--budget", "chat.ttft p50 regression < 50%", "--json", "-")
    assert done.exit_code == ExitCode.PASS
    assert json.loads(done.stdout)["outcome"] == "PASS"
    assert invoked(*slow).exit_code == ExitCode.PASS
    assert invoked(*slow, "--limit", "0%").exit_code == ExitCode.USAGE
    assert invoked("compare", tmp_path, tmp_path).exit_code == ExitCode.USAGE


def test_the_command_refuses_an_output_that_it_could_not_write_before_it_works(
    tmp_path: Path,
) -> None:
    same = ("compare", run(1).folder, run(1).folder)
    for given, says in {
        ("--json", "-", "--markdown", "-"): "--json - and --markdown - both want stdout",
        ("--markdown", tmp_path / "none" / "x.md"): "--markdown: found ",
        ("--markdown", tmp_path): "it is a folder",
    }.items():
        done = invoked(*same, *given)
        assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
        assert says in done.stderr


def test_the_runs_names_are_said_whole_however_long_they_are(
    edited: Callable[..., Recording],
) -> None:
    long = edited(run(2), id="20261123-122447-chat-with-a-name-of-its-own")
    lines = report.render_text(compare(run(1), long), color=False, unicode=True).splitlines()
    assert f"run {long.run['id']} against {run(1).run['id']}" in " ".join(lines[1:3])
    assert max(map(len, lines)) <= 80


def test_a_candidates_own_regression_budgets_are_judged(
    edited: Callable[..., Recording],
) -> None:
    declared = [{"text": "chat.e2el p99 regression < 10%", "confidence": 0.95}]
    candidate = edited(run(2, 1.3), budgets=declared)
    assert invoked("compare", run(1).folder, candidate.folder).exit_code == ExitCode.FAIL
    gated = invoked("gate", candidate.folder, "--baseline", run(1).folder)
    assert gated.exit_code == ExitCode.FAIL, gated.stdout
    assert invoked("gate", candidate.folder).exit_code == ExitCode.INVALID
