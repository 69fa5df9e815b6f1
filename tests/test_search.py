"""The highest load at which all budgets hold: what is probed next, how, and what is said of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from commands import PREDICT, calm, invoked
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ExitCode, TargetError, UserError
from harness.health import Check, Health
from harness.plan import Plan, load_plan
from harness.search import Searcher, Template, export, longest_ns_of, range_of, running
from harness.search import result as results
from harness.search.decision import (
    Purpose,
    Range,
    Shown,
    Step,
    Trial,
    conclude,
    most_probes,
    next_step,
)
from harness.search.result import Probe, Search, classify, headline, story
from harness.search.text import render_terminal
from harness.steadiness import Drift
from harness.verdict import BudgetVerdict, Outcome, Verdict

S = 1_000_000_000
HOLDS, BREAKS, OPEN, UNFIT = Shown.HOLDS, Shown.BREAKS, Shown.OPEN, Shown.UNFIT
RATES = Range(low=1, high=500)
Target = Callable[[float], Shown]


# --- what is probed next --------------------------------------------------------------------------


def searched(within: Range, target: Target, *, most: int = 300) -> list[Trial]:
    """Let the decision have its way with a target, until it asks for nothing more."""
    trials: list[Trial] = []
    while step := next_step(within, trials):
        trials.append(Trial(load=step.load, shown=target(step.load), extendable=True))
        assert within.low <= step.load <= within.high
        assert len(trials) < most, "the search does not end"
    return trials


def knee_at(knee: float, *, generator: float = math.inf) -> Target:
    """A target that holds up to `knee`, asked by a generator that is fit up to `generator`."""

    def shown(load: float) -> Shown:
        if load > generator:
            return UNFIT
        return HOLDS if load <= knee else BREAKS

    return shown


def loads(trials: Sequence[Trial]) -> list[float]:
    return [trial.load for trial in trials]


@given(knee=st.floats(1, 499), precision=st.floats(0.01, 1))
@settings(deadline=None)
def test_a_knee_is_found_to_the_precision_and_both_ends_are_seen_twice(
    knee: float, precision: float
) -> None:
    within = Range(low=1, high=500, precision=precision)
    trials = searched(within, knee_at(knee))
    found = conclude(trials)
    assert found.holds is not None
    assert found.ends is not None
    assert found.holds <= knee < found.ends
    assert (
        found.ends <= found.holds * (1 + precision)
        or within.between(found.holds, found.ends) is None
    )
    assert found.ends <= found.holds * (1.01 + precision)
    assert loads(trials).count(found.holds) == loads(trials).count(found.ends) == 2
    assert len(trials) <= most_probes(within)
    assert (found.end, found.twice, found.contradicted) == (BREAKS, True, ())


@given(knee=st.integers(1, 199), precision=st.floats(0.01, 0.5))
@settings(deadline=None)
def test_users_are_whole_and_the_last_of_them_is_found(knee: int, precision: float) -> None:
    found = conclude(
        searched(Range(low=1, high=200, precision=precision, whole=True), knee_at(knee))
    )
    assert found.holds == int(found.holds or 0) <= knee < (found.ends or 0) == int(found.ends or 0)
    assert found.ends <= max(found.holds + 1, found.holds * (1 + precision))


def test_the_load_doubles_until_it_does_not_hold_and_then_halves_the_gap() -> None:
    trials = searched(RATES, knee_at(6))
    assert loads(trials) == [1, 2, 4, 8, 5.66, 6.73, 6.17, 5.66, 6.17]
    assert [next_step(RATES, trials[:i]).purpose for i in (0, 1, 4, 7)] == [
        Purpose.FIRST, Purpose.UP, Purpose.BETWEEN, Purpose.AGAIN,
    ]  # fmt: skip


def test_what_holds_at_the_highest_load_has_no_end_and_what_never_holds_no_begin() -> None:
    most, none = searched(RATES, knee_at(900)), searched(RATES, knee_at(0.5))
    assert conclude(most).holds == 500
    assert conclude(most).ends is None
    assert loads(most)[-2:] == [500, 500]
    assert (conclude(none).holds, conclude(none).ends, loads(none)) == (None, 1, [1, 1])


@given(
    knee=st.floats(2, 400),
    outcomes=st.lists(st.sampled_from(list(Shown)), max_size=60),
    whole=st.booleans(),
)
@settings(deadline=None)
def test_whatever_comes_out_the_search_ends_and_its_answer_held_twice_below_all_that_did_not(
    knee: float, outcomes: list[Shown], whole: bool
) -> None:
    lies = iter(outcomes)
    target = knee_at(knee)
    trials = searched(Range(low=1, high=500, whole=whole), lambda load: next(lies, target(load)))
    found = conclude(trials)
    if found.holds is None:
        assert found.end is not None
        return
    assert found.twice
    assert [t.shown for t in trials if t.load == found.holds].count(HOLDS) >= 2
    assert found.ends is None or found.holds < found.ends


def noisy(knee: float, seed: int, *, wrong: float = 0.05, unfit: float = 0.0) -> Target:
    """Near the knee it is a matter of chance; elsewhere one probe in twenty is wrong."""
    rng = np.random.default_rng(seed)

    def shown(load: float) -> Shown:
        if rng.random() < unfit:
            return UNFIT
        sure = 1 / (1 + (load / knee) ** 40)
        return HOLDS if rng.random() < wrong + (1 - 2 * wrong) * sure else BREAKS

    return shown


def test_one_wrong_probe_in_twenty_seldom_moves_the_answer() -> None:
    answers = [conclude(searched(RATES, noisy(60, seed))).holds or 0 for seed in range(1_000)]
    assert np.mean(np.array(answers) > 60 * 1.1) <= 0.05
    assert np.mean(np.array(answers) > 60 * 1.5) <= 0.01
    assert np.mean(np.array(answers) < 60 / 1.25) <= 0.12
    assert np.median(answers) == pytest.approx(57, rel=0.06)


def test_a_generator_that_is_unfit_now_and_then_does_not_move_it_either() -> None:
    answers = [
        conclude(searched(RATES, noisy(60, seed, wrong=0, unfit=0.05))).holds or 0
        for seed in range(500)
    ]
    assert np.mean(np.array(answers) > 66) <= 0.05
    assert np.mean(np.array(answers) < 48) <= 0.05


@given(knee=st.floats(1, 499), generator=st.floats(1, 499))
@settings(deadline=None)
def test_the_generators_limit_is_never_the_targets(knee: float, generator: float) -> None:
    trials = searched(RATES, knee_at(knee, generator=generator))
    found = conclude(trials)
    assert found.holds is not None
    assert found.holds <= min(knee, generator)
    if found.end is UNFIT:
        assert found.ends is not None
        assert found.ends > generator
    else:
        assert (found.end, (found.ends or 0) > knee) == (BREAKS, True)
    if generator < knee / 1.3:
        assert found.end is UNFIT


def test_an_unfit_probe_is_retried_once_and_an_undecided_one_repeated_at_length_once() -> None:
    unfit = Trial(load=1, shown=UNFIT)
    assert next_step(RATES, [unfit]) == Step(load=1, purpose=Purpose.RETRY)
    assert next_step(RATES, [unfit, unfit]) is None
    assert conclude([unfit, unfit]).end is UNFIT
    short = Trial(load=1, shown=OPEN, extendable=True)
    assert next_step(RATES, [short]) == Step(load=1, purpose=Purpose.LONGER)
    for last in (short, replace(short, extendable=False)):
        assert next_step(RATES, [short, last]) is None
        assert conclude([short, last]).end is OPEN
    assert next_step(RATES, [replace(short, extendable=False)]) is None
    assert next_step(RATES, [short, unfit]) == Step(load=1, purpose=Purpose.RETRY)
    assert next_step(RATES, [short, unfit, short]) is None
    held = Trial(load=1, shown=HOLDS)
    held_twice = next_step(Range(low=1, high=1), [unfit, held, unfit])
    assert held_twice == Step(load=1, purpose=Purpose.RETRY)
    assert next_step(RATES, [short, held]) == Step(load=2, purpose=Purpose.UP)


def of(*shown: tuple[float, Shown]) -> list[Trial]:
    return [Trial(load=load, shown=one) for load, one in shown]


def test_a_load_that_breaks_when_seen_again_counts_as_not_holding_and_lower_ones_are_looked_at() -> (
    None
):
    within = Range(low=1, high=8, precision=1)
    trials = of((1, HOLDS), (2, HOLDS), (4, HOLDS), (8, BREAKS), (4, BREAKS))
    assert next_step(within, trials) == Step(load=2, purpose=Purpose.AGAIN)
    assert conclude(trials).contradicted == (4,)
    trials += of((2, HOLDS))
    assert next_step(within, trials) is None  # that 4 broke was seen, after it had held
    assert (conclude(trials).holds, conclude(trials).ends) == (2, 4)


def test_a_break_that_is_not_seen_again_is_decided_by_a_third_probe() -> None:
    within = Range(low=1, high=16, precision=1)
    trials = of((1, HOLDS), (2, BREAKS), (1, HOLDS), (2, HOLDS))
    assert next_step(within, trials) == Step(load=2, purpose=Purpose.AGAIN)
    worse, better = [*trials, *of((2, BREAKS))], [*trials, *of((2, HOLDS))]
    assert next_step(within, worse) is None
    assert (conclude(worse).holds, conclude(worse).ends) == (1, 2)
    assert next_step(within, better) == Step(load=4, purpose=Purpose.UP)
    assert conclude(better).contradicted == (2,)


def test_a_target_that_is_worse_in_the_middle_gets_the_answer_below_it() -> None:
    def shown(load: float) -> Shown:
        return BREAKS if 3.5 < load < 4.5 or load > 50 else HOLDS

    found = conclude(searched(RATES, shown))
    assert 3 < (found.holds or 0) <= 3.5 < (found.ends or 0) < 4.5


# --- the plan of a probe --------------------------------------------------------------------------

LOAD = """
  - { name: warmup, arrivals: constant 5/s, for: 1s, record: false }
  - { name: steady, arrivals: poisson 20/s, for: 2s, max_in_flight: 50 }
  - { name: cool, arrivals: constant 1/s, for: 1s, record: false }"""
BUDGETS = ["predict.e2el p50 < 150ms", "predict.error_rate < 40%"]


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Plan]:
    """Write a plan and load it; its file is plan.yaml."""

    def make(*budgets: str, load: str = LOAD, **more: Any) -> Plan:
        (tmp_path / "scenario.py").write_text(PREDICT)
        more.setdefault("name", "tiny")
        fields = "".join(f"{name}: {value}\n" for name, value in more.items())
        listed = "".join(f"\n  - {budget}" for budget in budgets or BUDGETS)
        (tmp_path / "plan.yaml").write_text(
            f"target: {{ url: embedded, api: json }}\nscenario: scenario.py\n"
            f"load: {load}\nbudgets: {listed}\n{fields}"
        )
        return load_plan(tmp_path / "plan.yaml", environ={})

    return make


def template_of(plan: Plan, over: Any = "rate", **more: Any) -> Template:
    given: dict[str, Any] = {"stage": None, "longest_ns": 300 * S, **more}
    return Template.of(plan, over, **given)


def test_a_probe_has_the_stage_and_the_warm_up_before_it_at_its_load(
    plan_of: Callable[..., Plan],
) -> None:
    template = template_of(plan_of())
    probe = template.at(40, 7 * S)
    assert [(s.name, s.load, s.duration_ns // S, s.record) for s in probe.load] == [
        ("warmup", "constant 40/s", 1, False),
        ("steady", "poisson 40/s", 7, True),
    ]
    assert probe.load[1].max_in_flight == 50
    assert all(budget.abort for budget in probe.budgets)
    means = template_of(plan_of("predict.e2el mean < 1s")).plan.budgets
    assert [budget.abort for budget in means] == [False]  # no part of a run tells its mean
    users = template_of(plan_of(), "concurrency").at(3, S)
    assert [(s.load, s.max_in_flight) for s in users.load] == [("3 users", None)] * 2
    closed = plan_of(load="[{ name: steady, concurrency: 4, for: 1s }]")
    assert [s.load for s in template_of(closed).at(3, S).load] == ["poisson 3/s"]


def test_every_further_probe_of_a_load_has_a_seed_of_its_own(plan_of: Callable[..., Plan]) -> None:
    template = template_of(plan_of(seed=7))
    seeds = [template.at(5, S, trial=trial).seed for trial in (1, 2, 3, 2)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert seeds[1] == seeds[3]


def test_a_probe_lasts_as_long_as_its_budgets_need_within_the_plans_own_and_the_longest(
    plan_of: Callable[..., Plan],
) -> None:
    template = template_of(plan_of("predict.e2el p99 < 1s"), longest_ns=200 * S)
    assert template.duration_ns(1) == 200 * S
    assert 100 * S <= template.duration_ns(1_000) < 200 * S
    assert template_of(plan_of(), longest_ns=S).duration_ns(1) == 2 * S
    users = template_of(plan_of("predict.e2el p99 < 1s"), "concurrency")
    assert users.duration_ns(8) == 2 * S
    assert users.duration_ns(8, rate_per_s=30.0) > 100 * S
    several = template_of(plan_of("predict.e2el p99 < 1s", repeat=4))
    once = template_of(plan_of("predict.e2el p99 < 1s"))
    assert several.duration_ns(200) == pytest.approx(once.duration_ns(200) / 4, rel=0.01)


def test_what_a_probe_can_never_pass_is_refused_and_what_it_may_not_decide_is_said(
    plan_of: Callable[..., Plan],
) -> None:
    plan = plan_of("predict.e2el p99 < 1s")
    with pytest.raises(UserError, match=r"at 1/s.*at least 299 samples.*--from.*--longest"):
        template_of(plan, longest_ns=60 * S).check(1)
    template = template_of(plan, longest_ns=60 * S)
    template.check(10)
    (warning,) = template.warnings(10)
    assert re.match(r"predict\.e2el p99 < 1s at 10/s needs about \d+:\d\d .*--longest", warning)
    assert template_of(plan, longest_ns=3_600 * S).warnings(10) == []


def test_budgets_that_say_nothing_about_the_load_are_left_out_and_named(
    plan_of: Callable[..., Plan],
) -> None:
    mixed = [*BUDGETS, "predict.e2el p99 regression < 5%", "predict.rate > 5/s"]
    template = template_of(plan_of(*mixed))
    assert [budget.text for budget in template.plan.budgets] == BUDGETS
    assert [text.partition(":")[0] for text in template.left_out] == mixed[2:]
    with pytest.raises(UserError, match="a search needs a budget"):
        template_of(plan_of("predict.rate > 5/s"))


def test_of_several_recorded_stages_one_must_be_named(plan_of: Callable[..., Plan]) -> None:
    load = "[{ name: a, arrivals: constant 1/s, for: 1s }, { name: b, concurrency: 1, for: 1s }]"
    plan = plan_of("predict.e2el p50 < 1s in b", load=load)
    with pytest.raises(UserError, match="2 recorded stages: a, b; choose one: --stage"):
        template_of(plan)
    with pytest.raises(UserError, match='found "c"; the recorded stages are a, b'):
        template_of(plan, stage="c")
    with pytest.raises(UserError, match='in the stage "a"'):
        template_of(plan, stage="a")
    assert [s.name for s in template_of(plan, stage="b").at(5, S).load] == ["b"]


@pytest.mark.parametrize(
    ("over", "low", "high", "precision", "said"),
    [
        ("rate", "5", "10/s", "10%", "--from: '5' does not say per what"),
        ("rate", "0/s", "10/s", "10%", "--from: found 0/s; allowed is a rate above zero"),
        ("rate", "10/s", "10/s", "10%", "--from: found 10/s; allowed is less than --to"),
        ("rate", "1/s", "10/s", "0.5%", "--precision: found 0.5%; allowed is 1% to 100%"),
        ("rate", "1/s", "10/s", "10", "--precision: '10' has no unit"),
        ("concurrency", "0", "10", "10%", "--from: found '0'; allowed is a number of users"),
        ("concurrency", "1", "10/s", "10%", "--to: found '10/s'; allowed is a number of users"),
        ("concurrency", "1", "9" * 40, "10%", "--to: found '999"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused_with_its_option(
    over: Any, low: str, high: str, precision: str, said: str
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        range_of(over, low, high, precision)


def test_a_range_is_read_in_its_units() -> None:
    assert range_of("rate", "60/m", "500/s", "5%") == Range(low=1, high=500, precision=0.05)
    assert range_of("concurrency", "1", "200", "10%") == Range(low=1, high=200, whole=True)
    assert longest_ns_of("5m") == 300 * S
    with pytest.raises(UserError, match="--longest: "):
        longest_ns_of("5")


# --- what a run shows -----------------------------------------------------------------------------


def check_of(name: str, *, target_caused: bool = False) -> Check:
    return Check(
        name=name, stage="steady", measured="12", must="0", ok=False, why="", remedy="use another",
        target_caused=target_caused,
    )  # fmt: skip


def run_with(outcome: Outcome, *checks: Check, **run: Any) -> Any:
    health = Health(
        checks=checks, planned=1, sent=1, dropped=0, cut_off=0, waited=0, send_lag_p99_ns=None,
        send_lag_limit_ns=1, cpu_p95=None, clock="",
    )  # fmt: skip
    verdict = Verdict(outcome=outcome, budgets=(), health=health, sentence="So it is.", detail="")
    return SimpleNamespace(recording=SimpleNamespace(run=run), verdict=verdict)


LATE, BUSY = check_of("Send lag, p99"), check_of("Planned rate reached", target_caused=True)


@pytest.mark.parametrize(
    ("result", "overloaded", "shown", "why"),
    [
        (run_with(Outcome.PASS), False, HOLDS, ""),
        (run_with(Outcome.FAIL), False, BREAKS, "So it is"),
        (run_with(Outcome.INCONCLUSIVE), False, OPEN, "So it is"),
        (run_with(Outcome.INCONCLUSIVE), True, BREAKS, "Overload in steady"),
        (run_with(Outcome.INVALID, LATE), False, UNFIT, "Send lag, p99 12, must be 0; use another"),
        (run_with(Outcome.INVALID, LATE), True, UNFIT, "Send lag"),
        (run_with(Outcome.INVALID, BUSY, LATE), False, UNFIT, "Send lag"),
        (run_with(Outcome.INVALID, BUSY), False, BREAKS, "Every user was busy with the target"),
        (run_with(Outcome.NO_DATA), False, BREAKS, "So it is"),
        (run_with(Outcome.INCONCLUSIVE, aborted={"why": "stopped"}), False, BREAKS, "stopped"),
    ],
)
def test_only_a_pass_holds_and_the_generators_fault_is_not_the_targets(
    monkeypatch: pytest.MonkeyPatch, result: Any, overloaded: bool, shown: Shown, why: str
) -> None:
    overload = Drift(
        kind="overload", stage="steady", subject="run", t_s=3.0, sentence="overload in steady"
    )
    monkeypatch.setattr(results, "find_drifts", lambda _: (overload,) if overloaded else ())
    found = classify(result, "steady")
    assert found[0] is shown
    assert why in found[1]


# --- a whole search, of runs that are made up -----------------------------------------------------


class Runs:
    """Stands for `run_plan`: a p50 of 50 ms up to the knee, 1 s beyond it."""

    def __init__(self, knee: float, *, unfit_from: float = math.inf) -> None:
        self.plans: list[Plan] = []
        self.knee, self.unfit_from = knee, unfit_from
        self.end_with: dict[int, BaseException] = {}
        self.interrupted_at = 0

    def run_plan(self, plan: Plan, folder: Path, _show: Any) -> tuple[Plan, Path]:
        self.plans.append(plan)
        if len(self.plans) in self.end_with:
            raise self.end_with[len(self.plans)]
        folder.mkdir(parents=True)
        return plan, folder

    def probe_of(self, result: tuple[Plan, Path], **known: Any) -> Probe:
        plan, folder = result
        del known["stage"]
        load = known["load"]
        good = load <= self.knee
        shown = UNFIT if load >= self.unfit_from else HOLDS if good else BREAKS
        outcome = {HOLDS: Outcome.PASS, BREAKS: Outcome.FAIL, UNFIT: Outcome.INVALID}[shown]
        observed = 50e6 if good else 1e9
        return Probe(
            **known,
            shown=None if len(self.plans) == self.interrupted_at else shown,
            why="So it is.",
            outcome=outcome,
            folder=folder,
            seed=plan.seed,
            offered_per_s=load,
            completed_per_s=min(load, self.knee),
            good_per_s=load if good else 0.0,
            budgets=tuple(
                BudgetVerdict(
                    budget=budget, stage="steady", outcome=outcome, observed=observed, n=500,
                    low=observed * 0.9, high=None, over=0, allowed=9,
                    used=observed / budget.limit if budget.kind == "time" else 0.2,
                )
                for budget in plan.budgets
            ),
            percentiles={("predict", "e2el"): (observed / 2, observed, None)},
        )  # fmt: skip


@contextmanager
def _unseen() -> Iterator[Callable[[Any], None]]:
    yield lambda _: None


@pytest.fixture
def search(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Search]:
    """Search with made-up runs."""

    def found(runs: Runs, over: Any = "rate", high: float = 100, **more: Any) -> Search:
        monkeypatch.setattr(running, "run_plan", runs.run_plan)
        monkeypatch.setattr(running, "probe_of", runs.probe_of)
        monkeypatch.setattr(running, "PAUSES_S", (0.0,) * len(running.PAUSES_S))
        within = Range(low=1, high=high, whole=over == "concurrency")
        template = template_of(plan_of(*more.pop("budgets", BUDGETS), **more), over)
        return Searcher(template, within, tmp_path / "out", live=_unseen, say=lambda _: None).run()

    return found


def shown_in(search: Search, **how: Any) -> str:
    given: dict[str, Any] = {"color": False, "unicode": True, **how}
    return render_terminal(search, ["out/search.html"], **given)


def test_every_probe_is_a_run_in_a_folder_of_its_own_with_its_load_and_seed(
    search: Callable[..., Search],
) -> None:
    runs = Runs(6)
    found = search(runs)
    assert [probe.folder.name for probe in found.probes][:5] == [
        "01-1-per-s", "02-2-per-s", "03-4-per-s", "04-8-per-s", "05-5.66-per-s",
    ]  # fmt: skip
    assert [plan.load[-1].load for plan in runs.plans][:2] == ["poisson 1/s", "poisson 2/s"]
    again = [
        plan
        for probe, plan in zip(found.probes, runs.plans, strict=True)
        if probe.purpose == "re-check"
    ]
    assert len(again) == 2
    assert all(plan.seed != runs.plans[0].seed for plan in again)
    assert found.exit_code is ExitCode.PASS


def test_the_result_says_the_load_what_broke_first_and_by_how_much(
    search: Callable[..., Search],
) -> None:
    found = search(Runs(6))
    assert headline(found) == "Both budgets hold up to 5.66/s, and not at 6.17/s."
    text = shown_in(found)
    assert "At 6.17/s predict.e2el p50 was 1,000ms, 6.67× its 150ms limit." in " ".join(
        text.split()
    )
    assert text.splitlines()[-1].endswith("exit code 0")
    data = export.as_json(found)
    assert (data["load"], data["not_at"], data["limit"], data["outcome"]) == (
        5.66,
        6.17,
        "target",
        "found",
    )
    assert data["first_broken"]["budget"] == BUDGETS[0]
    assert data["first_broken"]["used"] == pytest.approx(6.67, abs=0.01)
    assert len(data["probes"]) == len(found.probes)


@pytest.mark.parametrize(
    ("runs", "code", "said"),
    [
        (Runs(0.5), 3, "Not even 1/s holds"),
        (Runs(900), 0, "Both budgets hold at 100/s, the most that was asked for"),
        (Runs(60, unfit_from=30), 5, "the generator, not the target, was the limit at"),
        (Runs(60, unfit_from=1), 5, "The generator, not the target, was the limit at 1/s"),
    ],
)
def test_each_end_has_its_sentence_and_exit_code(
    search: Callable[..., Search], runs: Runs, code: int, said: str
) -> None:
    found = search(runs)
    assert said in headline(found)
    assert found.exit_code == code
    assert json.loads(json.dumps(export.as_json(found), allow_nan=False))["exit_code"] == code
    if runs.unfit_from == 30:
        assert (found.conclusion.holds or 0) < 30


def test_an_undecided_probe_is_repeated_four_times_as_long_up_to_the_longest(
    search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(6)
    known = runs.probe_of

    def undecided(result: Any, **given: Any) -> Probe:
        return replace(known(result, **given), shown=OPEN)

    monkeypatch.setattr(runs, "probe_of", undecided)
    found = search(runs, "concurrency", high=8)
    assert [probe.lasted_s for probe in found.probes] == [2, 8]
    assert (found.exit_code, "cannot be decided" in headline(found)) == (4, True)


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [
        (KeyboardInterrupt(), 130, "Interrupted."),
        (TargetError("the target is gone"), 6, "Probe 4: the target is gone"),
    ],
)
def test_what_ends_a_search_early_keeps_what_was_found(
    search: Callable[..., Search], error: BaseException, code: int, why: str
) -> None:
    runs = Runs(60)
    runs.end_with = dict.fromkeys(range(4, 99), error)
    found = search(runs)
    assert (len(found.probes), found.exit_code) == (3, code)
    assert headline(found) == "The search did not end: 4/s held so far."
    assert story(found)[:2] == [why, "4/s was seen once, not again with another seed."]
    assert export.as_json(found)["outcome"] == "stopped"
    assert [file.name for file in export.write_results(found)] == [
        "search.html", "search.md", "search.json", "knee.svg",
    ]  # fmt: skip


def test_a_target_that_does_not_answer_for_a_while_ends_no_search(
    search: Callable[..., Search],
) -> None:
    runs = Runs(60)
    runs.end_with = dict.fromkeys((3, 4, 7), TargetError("status 429"))
    found = search(runs)
    assert (found.exit_code, len(found.probes)) == (0, len(runs.plans) - 3)
    assert [plan.load[-1].load for plan in runs.plans[2:5]] == ["poisson 4/s"] * 3


def test_an_interrupted_probe_is_kept_but_counts_for_nothing(search: Callable[..., Search]) -> None:
    runs = Runs(60)
    runs.interrupted_at = 2
    found = search(runs)
    assert [probe.shown for probe in found.probes] == [HOLDS, None]
    assert found.exit_code is ExitCode.INTERRUPTED
    assert "interrupted" in shown_in(found)


def test_a_folder_that_holds_something_is_refused(
    search: Callable[..., Search], tmp_path: Path
) -> None:
    search(Runs(60))
    runs = Runs(60)
    with pytest.raises(UserError, match="out is not empty; choose another --out"):
        search(runs)
    assert runs.plans == []
    assert (tmp_path / "out" / "01-1-per-s").exists()


def test_an_error_before_anything_was_recorded_is_raised_and_leaves_nothing(
    search: Callable[..., Search], tmp_path: Path
) -> None:
    runs = Runs(60)
    runs.end_with[1] = TargetError("nobody there")
    with pytest.raises(TargetError, match="nobody there"):
        search(runs)
    assert len(runs.plans) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [80, 40, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_the_summary_keeps_its_width_and_has_no_colour_unless_asked(
    search: Callable[..., Search], width: int, unicode: bool
) -> None:
    found = search(Runs(6), name="a-plan-with-a-name-" + "x" * 200)
    text = shown_in(found, width=width, unicode=unicode)
    assert max(map(len, text.splitlines())) <= min(width, 80)
    assert "\x1b" not in text
    assert unicode or text.isascii()
    assert "\x1b[1;36m" in shown_in(found, color=True)


def test_the_page_needs_nothing_else_and_shows_every_probe_and_both_drawings(
    search: Callable[..., Search],
) -> None:
    found = search(Runs(6), name="'<script>alert(1)</script>'")
    page, markdown, _, chart = (path.read_text("utf-8") for path in export.write_results(found))
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="https?://', page)
    for probe in found.probes:
        assert f'href="{probe.folder.name}/report.html"' in page
    assert page.count('role="img"') == 2
    assert "holds at 5.66/s" in page
    assert "5.66/s" in markdown
    assert "<script" not in markdown
    root = ET.fromstring(chart)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "p50 limit 150" in chart


def test_users_are_searched_too(search: Callable[..., Search]) -> None:
    found = search(Runs(12), "concurrency", high=64)
    assert (found.conclusion.holds, found.conclusion.ends) == (12, 13)
    assert "13 users" in shown_in(found)
    assert found.probes[0].folder.name == "01-1-user"


# --- the command ----------------------------------------------------------------------------------


def test_a_knee_of_the_embedded_endpoint_is_found(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One slot of 24 ms serves 42 requests a second; beyond it the queue grows."""
    calm(monkeypatch)
    slowest = "predict.e2el max < 400ms"
    plan_of(
        slowest,
        load="[{ name: steady, arrivals: constant 5/s, for: 1250ms }]",
        embedded="{ slots: 1, predict_ms: 24, predict_sigma: 0.05 }",
        drain="3s",
    )
    done = invoked(
        "search", tmp_path / "plan.yaml", "--over", "rate", "--from", "32/s", "--to", "128/s",
        "--precision", "100%", "--longest", "1s", "--out", tmp_path / "out", "--json", "-", "-q",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert data == json.loads((tmp_path / "out" / "search.json").read_text("utf-8"))
    assert (data["load"], data["not_at"], data["load_twice"]) == (32, 64, True)
    assert data["first_broken"]["budget"] == slowest
    assert data["first_broken"]["used"] > 1
    assert [probe["load"] for probe in data["probes"]] == [32, 64, 32, 64]
    for probe in data["probes"]:
        assert (tmp_path / "out" / probe["folder"] / "report.html").exists()
    held = data["probes"][0]
    assert held["completed_per_s"] == pytest.approx(held["offered_per_s"], rel=0.1)
    assert "FOUND" in done.stderr


def test_the_command_refuses_what_cannot_be_searched_before_any_load(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan_of()
    given = (
        "search",
        tmp_path / "plan.yaml",
        "--over",
        "rate",
        "--to",
        "9/s",
        "--out",
        tmp_path / "o",
    )
    done = invoked(*given, "--from", "9/s")
    assert (done.exit_code, "--from: found 9/s" in done.stderr) == (2, True)
    assert not (tmp_path / "o").exists()
