"""A load ends early only where the rest of it could change nothing, or where it was asked to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import CALM, PREDICT, Asked, finished, invoked, predictions, run_json, serving
from conftest import limits_of, stage

from harness import stats
from harness.budget import parse_budget
from harness.errors import RecordingError
from harness.plan import Plan, load_plan
from harness.recorder import Recorder, Recording
from harness.stats.abort import arrivals_at_most, doomed, doomed_quantile, doomed_share
from harness.swarm.abort import Aborted, Watch
from harness.swarm.manifest import repetition, stage_windows
from harness.verdict import BudgetVerdict, Outcome, judge

MS, S = 1_000_000, 1_000_000_000
SaveRun = Callable[..., Recording]

# --- the rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "k", "n_most", "is_doomed"),
    [
        (1_000, 16, 1_000, True),  # the reference table: 16 of 1,000 FAIL p99 at 0.95
        (1_000, 15, 1_000, False),
        (200, 16, 1_000, True),  # the other 800 may all be good: it fails at once
        (200, 16, 1_100, False),
        (1_000, 16, 500, True),  # more came than was thought possible
        (0, 0, 0, False),
    ],
)
def test_a_budget_is_doomed_when_even_the_best_rest_would_break_it(
    n: int, k: int, n_most: int, is_doomed: bool
) -> None:
    assert doomed(n, k, n_most, 0.01, 0.95) is is_doomed


def test_dependence_makes_it_wait_for_more() -> None:
    assert doomed(500, 30, 1_000, 0.01, 0.95)
    assert not doomed(500, 30, 1_000, 0.01, 0.95, vif=10)


def test_where_nothing_is_allowed_the_first_is_enough() -> None:
    assert doomed(5, 1, 1_000, 0.0, 0.95)
    one = np.array([0, 1, 0])
    assert doomed_share(np.full(3, 5), one, 1_000, 0.0, 0.95, length_s=1)
    assert not doomed_share(np.full(3, 5), 0 * one, 1_000, 0.0, 0.95, length_s=1)


def windows_with(over_each_s: int, seconds: int, n_each_s: int = 20) -> tuple[stats.Windows, Any]:
    """Samples of 1 s; of each second so many take 3 s, which is over the limit of 2 s."""
    each = np.where(np.arange(n_each_s) < over_each_s, 3.0, 1.0)
    values, at = np.tile(each, seconds), np.repeat(np.arange(seconds), n_each_s)
    spread = values * np.random.default_rng(1).uniform(0.9, 1.1, len(values))
    windows = stats.Windows.of(at + 0.5, spread * S, 1.0, seconds)
    return windows, np.full(seconds, over_each_s)


@pytest.mark.parametrize(
    ("over_each_s", "seconds", "is_doomed"), [(10, 90, True), (10, 60, False), (1, 300, False)]
)
def test_a_quantile_is_doomed_by_what_its_samples_say_of_each_other(
    over_each_s: int, seconds: int, is_doomed: bool
) -> None:
    """Planned are 600 s: 12,000 samples, of which 5 % may be over."""
    windows, over = windows_with(over_each_s, seconds)
    assert doomed_quantile(windows, over, 12_000, 0.95, 0.95) is is_doomed


def test_more_arrivals_than_bounded_do_not_come() -> None:
    rng = np.random.default_rng(1)
    assert (rng.poisson(20 * 60, 10_000) < arrivals_at_most(0, 20, 60)).all()
    assert arrivals_at_most(1_203, 20, 0) == 1_203


# --- the watch -------------------------------------------------------------------------------------

PLAN = """
target: {{ url: "http://127.0.0.1:9", api: json }}
scenario: scenario.py
load:
  - {{ name: warmup, {load}, for: 10s, record: false }}
  - {{ name: steady, {load}, for: 100s }}
budgets: [{budgets}]
{more}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    def make(
        *budgets: str, load: str = "arrivals: constant 20/s", abort: bool = True, more: str = ""
    ) -> Plan:
        entries = (f"{{ budget: {text}, abort: {str(abort).lower()} }}" for text in budgets)
        (tmp_path / "scenario.py").write_text(PREDICT)
        text = PLAN.format(budgets=", ".join(entries), load=load, more=more)
        (tmp_path / "plan.yaml").write_text(text)
        return load_plan(tmp_path / "plan.yaml")

    return make


Fill = Callable[[Recorder, int, str], object]


def requests(
    recorder: Recorder, where: str, *, n: int = 20, slow: int = 0, failed: int = 0, due: int = 20
) -> None:
    """A second in which `due` requests became due and `n` ended, so many of them slow or failed."""
    load = recorder.load(where)
    load.planned, load.sent, load.finished, load.failed = due, due, n, failed
    load.in_flight = due
    for i in range(n - failed):
        e2el = (300 if i < slow else 100) * MS + i * MS // 10
        recorder.request(where, "predict", {"e2el": e2el})
    for _ in range(failed):
        recorder.request(where, "predict", {}, failure="status 500")


def watched(plan: Plan, fill: Fill, *, seconds: int = 110, number: int = 1) -> Aborted | None:
    """What the watch says of a load, a second at a time; None when it runs to its end."""
    watch, played = Watch(plan, 1.0), repetition(plan, number)
    stages = stage_windows(played)
    watch.begin(stages)
    recorder = Recorder(limits_of(plan.budgets))
    for second in range(seconds):
        name = next((w.name for w in stages if w.start_s <= second < w.end_s), stages[-1].name)
        fill(recorder, second, name)
        found = watch.add(recorder.flush(second))
        if found:
            return found
    return None


def test_a_budget_that_cannot_be_met_any_more_ends_the_load(plan: Callable[..., Plan]) -> None:
    found = watched(plan("predict.e2el p95 < 200ms"), lambda r, _, w: requests(r, w, slow=10))
    assert found is not None
    assert (found.budget, found.stage) == ("predict.e2el p95 < 200ms", "steady")
    assert found.over is not None
    assert found.allowed is not None
    assert found.planned == pytest.approx(2_000, rel=0.15)
    assert found.allowed == pytest.approx(0.05 * found.planned, abs=1)
    assert found.over > found.allowed
    assert 20 < found.t_s < 70
    assert f"{found.over} beyond the limit, {found.allowed} allowed" in found.why


@pytest.mark.parametrize(
    ("what", "budget", "fill"),
    [
        ("what is within the limit", "predict.e2el p95 < 200ms", {"slow": 0}),
        ("what only just breaks it", "predict.e2el p95 < 200ms", {"slow": 1}),
        ("a share of errors that is allowed", "predict.error_rate < 20%", {"failed": 3}),
        ("a limit of another step", "other.e2el p95 < 1ms", {"slow": 10}),
    ],
)
def test_nothing_else_ends_it(
    plan: Callable[..., Plan], what: str, budget: str, fill: dict[str, int]
) -> None:
    assert watched(plan(budget), lambda r, _, w: requests(r, w, **fill)) is None, what


def test_a_budget_without_abort_ends_nothing(plan: Callable[..., Plan]) -> None:
    patient = plan("predict.e2el p95 < 200ms", abort=False)
    assert watched(patient, lambda r, _, w: requests(r, w, slow=20)) is None


def test_the_warm_up_is_not_judged(plan: Callable[..., Plan]) -> None:
    def fill(recorder: Recorder, _: int, where: str) -> None:
        requests(recorder, where, slow=20 if where == "warmup" else 0)

    assert watched(plan("predict.e2el max < 200ms", "predict.e2el p95 < 200ms"), fill) is None


@pytest.mark.parametrize(
    ("budget", "fill"),
    [
        ("predict.error_rate < 1%", {"failed": 10}),
        ("run.goodput > 95%", {"failed": 10}),
        ("run.e2el p50 < 200ms", {"slow": 20}),
        ("predict.e2el p99.9 < 200ms", {"slow": 4}),
    ],
)
def test_shares_and_the_whole_run_are_watched_too(
    plan: Callable[..., Plan], budget: str, fill: dict[str, int]
) -> None:
    found = watched(plan(budget), lambda r, _, w: requests(r, w, **fill))
    assert found is not None
    assert found.budget == budget


@pytest.mark.parametrize("budget", ["run.error_rate < 40%", "run.goodput > 60%"])
def test_a_failure_that_stands_for_a_success_takes_it_away_from_the_whole_run(
    plan: Callable[..., Plan], budget: str
) -> None:
    """Of 20 journeys a second 10 fail after their request: a half, though of 30 steps a third."""

    def fill(recorder: Recorder, _second: int, where: str) -> None:
        requests(recorder, where)
        for _ in range(10):
            recorder.request(where, "task", {}, failure="exception KeyError")
            recorder.replace(where, "task", "predict", {"e2el": 100 * MS})

    found = watched(plan(budget), fill)
    assert found is not None
    assert found.budget == budget


@pytest.mark.parametrize(
    ("budget", "fill"),
    [
        ("predict.e2el p90 < 200ms over 10s", {"slow": 20}),
        ("predict.error_rate < 20% over 10s", {"failed": 20}),
    ],
)
def test_one_window_that_breaks_a_budget_of_every_window_ends_it(
    plan: Callable[..., Plan], budget: str, fill: dict[str, int]
) -> None:
    """The fourth of ten seconds in the stage is bad throughout; it is over at 50 s."""

    def bad_spell(recorder: Recorder, second: int, where: str) -> None:
        requests(recorder, where, **(fill if 40 <= second < 50 else {}))

    found = watched(plan(budget), bad_spell)
    assert found is not None
    assert found.t_s == 50
    assert "a window broke the limit beyond chance" in found.why
    assert watched(plan(budget), lambda r, _, w: requests(r, w)) is None


@pytest.mark.parametrize("text", ["error_rate <= 0% over 10s", "goodput >= 100% over 10s"])
@pytest.mark.parametrize("load", ["arrivals: constant 20/s", "concurrency: 20"])
def test_in_windows_too_the_first_failure_ends_what_allows_none(
    plan: Callable[..., Plan], text: str, load: str
) -> None:
    found = watched(plan(f"predict.{text}", load=load), lambda r, _, w: requests(r, w, failed=20))
    assert found is not None
    assert (found.t_s, found.over, found.allowed) == (11, 20, 0)
    assert found.why == "stopped at 0:11: 20 beyond the limit, none is allowed"


def test_one_sample_over_a_maximum_ends_it_at_once(plan: Callable[..., Plan]) -> None:
    def fill(recorder: Recorder, second: int, where: str) -> None:
        requests(recorder, where, slow=int(second == 30))

    found = watched(plan("predict.e2el max < 200ms"), fill)
    assert found is not None
    assert found.t_s == 31


def test_closed_users_may_still_bring_many_more_samples(plan: Callable[..., Plan]) -> None:
    """20 users whose fastest reply took 100 ms might still make 200 requests a second."""
    closed = plan("predict.e2el p95 < 200ms", load="concurrency: 20")
    found = watched(closed, lambda r, _, w: requests(r, w, slow=10))
    assert found is not None
    open_one = watched(plan("predict.e2el p95 < 200ms"), lambda r, _, w: requests(r, w, slow=10))
    assert open_one is not None
    assert found.t_s > open_one.t_s + 10


def test_of_several_repetitions_a_maximum_is_known_early_and_a_quantile_is_not(
    plan: Callable[..., Plan],
) -> None:
    texts = ("predict.e2el p95 < 200ms", "predict.e2el max < 200ms")
    several = plan(*texts, more="repeat: 3")
    found = watched(several, lambda r, _, w: requests(r, w, slow=20), number=2)
    assert found is not None
    assert (found.budget, found.stage) == (texts[1], "steady")
    quantile = dataclasses.replace(several, budgets=several.budgets[:1])
    assert watched(quantile, lambda r, _, w: requests(r, w, slow=20), number=2) is None


@pytest.mark.parametrize(
    ("text", "is_known"),
    [("error_rate <= 0%", True), ("goodput >= 100%", True), ("error_rate < 1%", False)],
)
def test_of_several_repetitions_a_failure_where_none_is_allowed_is_known_early(
    plan: Callable[..., Plan], text: str, is_known: bool
) -> None:
    several = plan(f"predict.{text}", more="repeat: 3")
    found = watched(several, lambda r, _, w: requests(r, w, failed=20), number=2)
    assert (found is not None) is is_known


def test_by_holms_procedure_a_budget_must_fail_against_all(plan: Callable[..., Plan]) -> None:
    texts = ["predict.e2el p95 < 200ms", *(f"predict.e2el p95 < {n}s" for n in range(1, 40))]
    alone, together = (
        watched(plan(*texts, more=more), lambda r, _, w: requests(r, w, slow=10))
        for more in ("", "multiple_testing: holm")
    )
    assert alone is not None
    assert together is not None
    assert together.t_s > alone.t_s


def test_an_overload_that_lasts_ends_the_load_if_asked(plan: Callable[..., Plan]) -> None:
    def fill(recorder: Recorder, second: int, where: str) -> None:
        load = recorder.load(where)
        load.planned, load.finished = 20, 20 if second < 40 else 14
        late = max(0, second - 40)
        for _ in range(load.finished):
            recorder.request(where, "predict", {"e2el": (100 + 300 * late) * MS})

    assert watched(plan("predict.e2el p95 < 60s"), fill) is None
    found = watched(plan("predict.e2el p95 < 60s", more="abort_on: [overload]"), fill)
    assert found is not None
    assert "overload since 0:40, 14 of 20 requests/s complete" in found.why
    assert found.budget is None
    assert 45 < found.t_s < 90


@pytest.mark.parametrize(("failed", "at_s"), [(20, 1), (10, 1), (9, None)])
def test_a_storm_of_errors_ends_the_load_if_asked(
    plan: Callable[..., Plan], failed: int, at_s: float | None
) -> None:
    asked = plan("predict.e2el p95 < 60s", more="abort_on: [errors]")
    found = watched(asked, lambda r, _, w: requests(r, w, failed=failed))
    assert (found and found.t_s) == at_s
    unasked = plan("predict.e2el p95 < 60s")
    assert watched(unasked, lambda r, _, w: requests(r, w, failed=failed)) is None


def test_a_few_errors_are_no_storm(plan: Callable[..., Plan]) -> None:
    asked = plan("predict.e2el p95 < 60s", more="abort_on: [errors]")
    assert watched(asked, lambda r, _, w: requests(r, w, n=1, failed=1, due=1), seconds=19) is None


# --- the verdict of a run that was ended early -----------------------------------------------------

LIMIT, OTHER = "predict.e2el p95 < 200ms", "predict.e2el max < 60s"


def ended_early(save_run: SaveRun, **aborted: Any) -> Recording:
    told = {"t_s": 40.0, "why": "stopped at 0:40: …", "budget": None, "stage": "steady"}
    told |= {"over": None, "allowed": None, "planned": None} | aborted
    return save_run(
        lambda r, _: requests(r, "steady", slow=2),
        budgets=[LIMIT, OTHER],
        stages=[stage(end_s=40.0, load="constant 20/s", planned_rate_per_s=20.0)],
        intervals=40,
        status="aborted",
        aborted=told,
    )


def judged(recording: Recording, *texts: str) -> dict[str, BudgetVerdict]:
    found = judge(recording, [parse_budget(text) for text in texts]).budgets
    return {verdict.budget.text: verdict for verdict in found}


def test_the_budget_that_ended_the_load_fails_and_no_other_passes(save_run: SaveRun) -> None:
    recording = ended_early(save_run, budget=LIMIT, over=80, allowed=60, planned=1_200)
    found = judged(recording, LIMIT, OTHER)
    assert found[LIMIT].outcome is Outcome.FAIL
    assert (found[LIMIT].over, found[LIMIT].allowed) == (80, 60)
    assert found[LIMIT].reason == "stopped at 0:40: …"
    assert found[OTHER].outcome is Outcome.INCONCLUSIVE
    assert "the load was stopped at 0:40" in (found[OTHER].reason or "")


def test_after_a_storm_or_an_overload_nothing_passes(save_run: SaveRun) -> None:
    found = judged(ended_early(save_run), OTHER)
    assert found[OTHER].outcome is Outcome.INCONCLUSIVE


def test_what_had_failed_by_then_stays_failed(save_run: SaveRun) -> None:
    found = judged(ended_early(save_run), "predict.e2el max < 200ms")
    assert found["predict.e2el max < 200ms"].outcome is Outcome.FAIL


@pytest.mark.parametrize(
    "foreign", [{"over": -1}, {"why": None}, {"t_s": "x"}, {"budget": ["x"]}, {"stage": 5}]
)
def test_a_reason_that_is_none_is_refused_when_a_run_is_read(
    save_run: SaveRun, foreign: dict[str, Any]
) -> None:
    with pytest.raises(RecordingError, match="is damaged"):
        ended_early(save_run, **foreign)


def test_what_only_the_early_end_cut_off_breaks_no_error_rate(save_run: SaveRun) -> None:
    def fill(recorder: Recorder, _: int) -> None:
        requests(recorder, "steady")
        for _ in range(2):
            recorder.request("steady", "predict", {}, failure="cut off by the end of the run")
        recorder.load("steady").cut_off = 2

    told = {"t_s": 40.0, "why": "stopped", "budget": None, "stage": "steady"}
    told |= {"over": None, "allowed": None, "planned": None}
    stages = [stage(end_s=40.0, load="constant 20/s", planned_rate_per_s=20.0)]
    more: dict[str, Any] = {"stages": stages, "intervals": 40}
    text = "predict.error_rate < 1%"
    whole = save_run(fill, **more)
    early = save_run(fill, **more, status="aborted", aborted=told)
    assert judged(whole, text)[text].outcome is Outcome.FAIL
    assert judged(early, text)[text].outcome is not Outcome.FAIL


# --- the whole command ------------------------------------------------------------------------------

RUN = """
target: { url: "${TARGET:-embedded}", api: json }
scenario: scenario.py
load: { name: steady, arrivals: constant 40/s, for: 10m }
budgets: [{ budget: predict.e2el max < 1us, abort: true }, predict.e2el p50 < 30s]
abort_on: [errors]
"""


def test_a_run_that_is_ended_early_is_saved_says_why_and_has_its_verdicts_exit_code(
    tmp_path: Path,
) -> None:
    (tmp_path / "plan.yaml").write_text(RUN)
    (tmp_path / "scenario.py").write_text(PREDICT)
    done = finished("run", "plan.yaml", "--out", "run", cwd=tmp_path, command=CALM)
    assert done.returncode == 3, done.stderr
    assert "The load was stopped at 0:0" in done.stdout
    assert "stopping" in done.stderr
    run = run_json(tmp_path / "run")
    assert run["status"] == "aborted"
    assert run["aborted"]["budget"] == "predict.e2el max < 1us"
    assert run["stages"][0]["end_s"] < 60


def test_a_storm_of_errors_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(asked: Asked, number: int) -> None:
        if number > 5:
            asked.send_error(500)
        else:
            predictions(asked, number)

    text = RUN.replace("{ budget: predict.e2el max < 1us, abort: true }, ", "")
    (tmp_path / "plan.yaml").write_text(text)
    (tmp_path / "scenario.py").write_text(PREDICT)
    with serving(respond) as url:
        monkeypatch.setenv("TARGET", url)
        done = invoked("run", tmp_path / "plan.yaml", "--out", tmp_path / "run")
    assert "requests failed" in run_json(tmp_path / "run")["aborted"]["why"]
    assert done.exit_code != 0
