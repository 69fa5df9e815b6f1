"""Before a run: what a plan gives each budget, what it needs, and that more of it is enough."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from commands import PREDICT, invoked
from conftest import stage

from harness.plan import Plan, load_plan
from harness.recorder import Recorder, Recording
from harness.sizing import TYPICAL_VIF, as_json, needs, out_of_reach, render, undecidable
from harness.stats import mean_evidence, samples_to_pass
from harness.stats.sizing import (
    exceedance_under,
    mean_size,
    quantile_size,
    regression_size,
    share_size,
    span_size,
)

MS = 1_000_000
LOAD = "{ name: steady, arrivals: poisson 50/s, for: 60s }"


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Plan]:
    """Write a plan with these budgets and load it; its file is plan.yaml."""

    def make(*budgets: str, load: str = LOAD, **more: Any) -> Plan:
        (tmp_path / "scenario.py").write_text(PREDICT)
        fields = "".join(f"{name}: {value}\n" for name, value in more.items())
        listed = "".join(f"  - {budget}\n" for budget in budgets)
        (tmp_path / "plan.yaml").write_text(
            "target: { url: embedded, api: json }\nscenario: scenario.py\n"
            f"load: [{load}]\nbudgets:\n{listed}{fields}"
        )
        return load_plan(tmp_path / "plan.yaml", environ={})

    return make


def test_a_plan_gives_its_rate_times_its_duration_times_its_repetitions(
    plan_of: Callable[..., Plan],
) -> None:
    for repeat in (1, 5):
        (need,) = needs(plan_of("predict.e2el p99 < 1s", repeat=repeat))
        assert (need.given, need.given_s) == (3000 * repeat, 60.0 * repeat)


def test_few_repetitions_need_more_since_they_tell_little_of_how_they_differ(
    plan_of: Callable[..., Plan],
) -> None:
    samples = {}
    for repeat in (1, 2, 5, 20):
        (need,) = needs(plan_of("predict.e2el p99.9 < 1s", repeat=repeat))
        assert need.size
        samples[repeat] = need.size.samples
    assert samples[2] > 5 * samples[5]
    assert samples[5] == samples[20] == samples[1]


@pytest.mark.parametrize(
    ("budget", "size"),
    [
        ("predict.e2el p99 < 1s", quantile_size(0.99, 0.95, rate_per_s=50, vif=3)),
        (
            "{ budget: predict.e2el p99 < 1s, confidence: 0.99 }",
            quantile_size(0.99, 0.99, rate_per_s=50, vif=3),
        ),
        ("predict.output_tokens p10 > 20", share_size(0.1, 0.95, rate_per_s=50, vif=3)),
        ("predict.error_rate < 1%", share_size(0.01, 0.95, rate_per_s=50, vif=3)),
        ("predict.goodput > 90%", share_size(1 - 0.9, 0.95, rate_per_s=50, vif=3)),
        ("predict.e2el mean < 1s", mean_size(0.95, rate_per_s=50, vif=3)),
        ("predict.output_tokens mean > 5", mean_size(0.95, upper=False, rate_per_s=50, vif=3)),
        ("predict.rate > 5/s", mean_size(0.95, upper=False, rate_per_s=50, vif=3)),
        (
            "predict.e2el p99 regression < 5%",
            regression_size(0.99, 0.95, ratio=1, margin=0.05, rate_per_s=50, vif=3),
        ),
    ],
)
def test_each_kind_of_budget_is_sized_by_its_formula(
    plan_of: Callable[..., Plan], budget: str, size: object
) -> None:
    (need,) = needs(plan_of(budget), vif=3)
    assert need.size == size


def test_what_one_number_decides_needs_no_samples(plan_of: Callable[..., Plan]) -> None:
    budgets = (
        "predict.e2el max < 1s",
        "predict.error_rate <= 0%",
        "predict.goodput >= 100% over 10s",
    )
    assert len(needs(plan_of(*budgets))) == len(budgets)
    shortest = plan_of("predict.rate > 5/s", load=LOAD.replace("60s", "1900ms"))
    for need in (*needs(plan_of(*budgets)), *needs(shortest)):
        assert (need.size, need.enough) == (None, True)
        assert "a fact about the run" in need.note
    (long_enough,) = needs(plan_of("predict.rate > 5/s", load=LOAD.replace("60s", "2s")))
    assert long_enough.size is not None


@pytest.mark.parametrize(
    ("budget", "load", "reached"),
    [
        ("predict.rate > 51/s", LOAD, False),
        ("predict.rate > 50/s", LOAD, False),
        ("predict.rate >= 50/s", LOAD, True),
        ("predict.rate > 49/s", LOAD, True),
        ("predict.rate > 51/s", LOAD.replace("60s", "1s"), False),
        ("predict.rate > 51/s", "{ concurrency: 2, for: 9s }", True),  # for all that is known
    ],
)
def test_a_rate_that_the_plan_does_not_have_is_told_before_the_run(
    plan_of: Callable[..., Plan], budget: str, load: str, *, reached: bool
) -> None:
    plan = plan_of(budget, load=load)
    (need,) = needs(plan)
    assert need.out_of_reach is not reached
    said = (
        "steady plans 50/s, so that it cannot be reached unless a task runs predict several times"
    )
    assert out_of_reach(plan) == ([] if reached else [f"{budget}: {said}"])
    if not reached:
        assert not need.enough
        assert not as_json([need], power=0.9)["enough"]


def test_a_stage_as_long_as_it_takes_is_long_enough(plan_of: Callable[..., Plan]) -> None:
    (short,) = needs(plan_of("predict.e2el p99 < 1s"))
    assert not short.enough
    assert short.needed_s is not None
    assert short.short_by_s == pytest.approx(short.needed_s - 60)
    lasting = LOAD.replace("60s", f"{int(short.needed_s) + 1}s")
    (enough,) = needs(plan_of("predict.e2el p99 < 1s", load=lasting))
    assert (enough.enough, enough.short_by_s) == (True, None)
    assert enough.size == short.size


def test_a_budget_is_sized_in_every_stage_that_judges_it(plan_of: Callable[..., Plan]) -> None:
    load = (
        "{ name: warmup, arrivals: constant 5/s, for: 5s, record: false }, "
        f"{LOAD}, {{ name: spike, arrivals: poisson 90/s, for: 10s }}"
    )
    plan = plan_of("predict.e2el p99 < 1s", "predict.e2el p50 < 1s in spike", load=load)
    assert [(need.budget.statistic, need.stage, need.given) for need in needs(plan)] == [
        ("p99", "steady", 3000), ("p99", "spike", 900), ("p50", "spike", 900)
    ]  # fmt: skip


def test_with_windows_each_of_them_needs_its_samples(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of("{ budget: predict.e2el p90 < 1s, over: 20s }", repeat=20)
    whole, window = needs(plan)
    assert (whole.given, whole.given_s, whole.window) == (60_000, 1200.0, False)
    assert whole.size == quantile_size(0.9, 0.95, rate_per_s=50, vif=TYPICAL_VIF)
    assert (window.given, window.given_s, window.window) == (1000, 20.0, True)
    assert window.size == span_size(0.1, 60, true=exceedance_under(0.9), vif=TYPICAL_VIF)


def test_windows_of_the_size_asked_for_hold_by_chance_as_often_as_promised() -> None:
    random, allowed, true, spans = np.random.default_rng(1), 0.05, 0.02, 20
    n = span_size(allowed, spans, true=true, power=0.9).samples
    broke = random.binomial(n, true, (4000, spans)) > allowed * n
    assert 0.9 <= 1 - broke.any(axis=1).mean() < 0.98


def test_a_rate_of_the_size_asked_for_is_shown_as_often_as_promised() -> None:
    random, limit, rate_per_s = np.random.default_rng(1), 1.0, 1.2
    seconds = mean_size(0.95, upper=False, rate_per_s=rate_per_s).seconds
    assert seconds is not None
    done = random.poisson(rate_per_s, (400, math.ceil(seconds))).astype(float)
    every = [mean_evidence(run, np.ones(len(run)), 0.95) for run in done]
    shown = [found.low > limit and found.resolved for found in every if found]
    assert sum(shown) / len(every) >= 0.88
    shorter = [mean_evidence(run[: len(run) // 3], np.ones(len(run) // 3), 0.95) for run in done]
    assert sum(found.low > limit for found in shorter if found) / len(every) < 0.7


def test_what_only_a_run_can_tell_is_not_enough(plan_of: Callable[..., Plan]) -> None:
    load = "{ name: users, concurrency: 8, for: 60s }"
    (need,) = needs(plan_of("predict.e2el p50 < 1s", load=load))
    assert (need.given, need.needed_s, need.short_by_s, need.enough) == (None, None, None, False)
    assert "--pilot RUN" in need.note


def test_gaps_between_tokens_are_at_least_one_a_reply(plan_of: Callable[..., Plan]) -> None:
    (itl, ttft) = needs(plan_of("predict.itl p50 < 1s", "predict.ttft p50 < 1s"))
    assert (itl.at_least, ttft.at_least) == (True, False)
    assert itl.given == ttft.given


@pytest.fixture
def pilot(save_run: Callable[..., Recording]) -> Callable[..., Recording]:
    """A run of 60 s at 10/s whose replies have four gaps; `spells` makes every other 10 s slow."""

    def make(*, spells: bool = False, **more: Any) -> Recording:
        random = np.random.default_rng(1)

        def fill(recorder: Recorder, i: int) -> None:
            slow = 3 if spells and i // 10 % 2 else 1
            for value in random.lognormal(3, 0.5, 10) * slow:
                recorder.load("steady").planned += 1
                recorder.request("steady", "predict", {"e2el": int(value * MS)})
                for _ in range(4):
                    recorder.add("steady", "predict", "itl", int(value * MS))

        window = stage("steady", 0, 60, **more)
        return save_run(fill, stages=[window], intervals=60)

    return make


def test_a_pilot_tells_how_many_samples_an_arrival_makes(
    plan_of: Callable[..., Plan], pilot: Callable[..., Recording]
) -> None:
    plan = plan_of("predict.itl p50 < 1s", "predict.e2el p50 < 1s", "predict.error_rate < 9%")
    found = needs(plan, pilot=pilot())
    assert [need.given for need in found] == [4 * 3000, 3000, 3000]
    assert found[2].dependence.vif == 1, "no request failed"
    assert not any(need.at_least for need in found)


def test_a_pilot_of_the_same_users_tells_how_fast_they_are(
    plan_of: Callable[..., Plan], pilot: Callable[..., Recording]
) -> None:
    closed = {"load": "8 users", "planned_rate_per_s": None}
    for users, given in ((8, 600), (9, None)):
        load = f"{{ name: steady, concurrency: {users}, for: 60s }}"
        plan = plan_of("predict.e2el p50 < 1s", load=load)
        (need,) = needs(plan, pilot=pilot(**closed))
        assert need.given == given
    assert need.note == "the pilot ran with 8 users: only one of this load can tell"


def test_a_pilot_whose_samples_come_in_spells_asks_for_more(
    plan_of: Callable[..., Plan], pilot: Callable[..., Recording]
) -> None:
    plan = plan_of("predict.e2el p90 < 1s", "predict.e2el mean < 1s")
    calm, spells = needs(plan, pilot=pilot()), needs(plan, pilot=pilot(spells=True))
    for one, other in zip(calm, spells, strict=True):
        assert other.dependence.vif > 2 * one.dependence.vif
        assert other.dependence.e < one.dependence.e
        assert one.size
        assert other.size
        assert other.size.samples > one.size.samples
    (told, _) = needs(plan, pilot=pilot(spells=True), vif=1.5)
    assert told.dependence.vif == 1.5


def test_a_pilot_whose_failures_come_in_storms_asks_for_more(
    plan_of: Callable[..., Plan], save_run: Callable[..., Recording]
) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        recorder.load("steady").planned += 10
        for j in range(10):
            failure = "timeout" if i % 15 == 0 and j < 5 else None
            recorder.request("steady", "predict", {}, failure=failure)

    pilot = save_run(fill, stages=[stage("steady", 0, 60)], intervals=60)
    plan = plan_of("predict.error_rate < 9%", "predict.goodput > 91%")
    for need in needs(plan, pilot=pilot):
        assert need.given == 3000
        assert need.dependence.vif > 2


def test_a_pilot_whose_requests_end_in_bursts_asks_for_more_of_a_rate(
    plan_of: Callable[..., Plan], save_run: Callable[..., Recording]
) -> None:
    def pilot(*bursts: int) -> Recording:
        def fill(recorder: Recorder, i: int) -> None:
            recorder.load("steady").planned += 10
            for _ in range(bursts[i // 5 % len(bursts)]):
                recorder.request("steady", "predict", {"e2el": MS})

        return save_run(fill, stages=[stage("steady", 0, 60)], intervals=60)

    plan = plan_of("predict.rate > 5/s")
    (calm,), (bursts,) = (needs(plan, pilot=pilot(*each)) for each in ((10,), (0, 20)))
    assert calm.given == bursts.given == 3000
    assert calm.dependence.vif == 1
    assert bursts.dependence.vif > 5


def test_a_pilot_without_the_step_cannot_tell(
    plan_of: Callable[..., Plan], pilot: Callable[..., Recording]
) -> None:
    other, tokens = needs(
        plan_of("other.e2el p50 < 1s", "predict.input_tokens p50 > 1"), pilot=pilot()
    )
    assert (other.given, other.enough) == (None, False)
    assert other.note == "the pilot ran no step other: it is not of this plan"
    assert tokens.note == "the pilot's predict gave no input_tokens"


@pytest.mark.parametrize(
    ("budget", "seconds", "enough"),
    [
        ("predict.e2el p99 < 1s", 5, False),
        ("predict.e2el p99 < 1s", 6, True),
        ("predict.error_rate < 1%", 5, False),
        ("{ budget: predict.e2el p99 < 1s, confidence: 0.99 }", 6, False),
        ("predict.e2el p99 < 1s over 1s", 60, False),
        ("predict.e2el p99 < 1s over 2s", 60, True),
        ("predict.e2el mean < 1s", 5, True),
        ("predict.itl p99 < 1s", 5, True),
        ("predict.e2el p99 regression < 5%", 5, True),
    ],
)
def test_a_budget_that_no_good_sample_could_decide_is_told_before_the_run(
    plan_of: Callable[..., Plan], budget: str, seconds: int, enough: bool
) -> None:
    said = undecidable(plan_of(budget, load=LOAD.replace("60s", f"{seconds}s")))
    assert bool(said) is not enough
    for text in said:
        least = samples_to_pass(0.99, 0.99 if "0.99" in budget else 0.95)
        assert f"at least {100 if 'over 1s' in budget else least} samples" in text


# --- the command ---------------------------------------------------------------------------------


def sized(tmp_path: Path, *more: object) -> Result:
    return invoked("plan-size", tmp_path / "plan.yaml", *more)


def test_the_exit_code_says_whether_all_budgets_get_enough(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan_of("predict.e2el p50 < 1s", "predict.e2el p99.9 < 1s")
    short = sized(tmp_path)
    assert short.exit_code == 4
    rows = [line for line in short.stdout.splitlines() if "predict." in line]
    assert [row[0] for row in rows] == ["✗", "✗"]
    plan_of("predict.e2el p50 < 1s", load=LOAD.replace("60s", "10m"))
    assert sized(tmp_path).exit_code == 0


def test_more_power_or_dependence_asks_for_more(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan_of("predict.e2el p99.9 < 1s")

    def needed(*more: object) -> int:
        done = sized(tmp_path, "--json", "-", *more)
        (budget,) = json.loads(done.stdout)["budgets"]
        return int(budget["needs"])

    assert needed("--power", 0.8) < needed() < needed("--power", 0.99)
    assert needed("--vif", 1) < needed("--vif", TYPICAL_VIF) == needed() < needed("--vif", 4)


def test_json_says_the_same_as_the_table(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    found = needs(plan_of("predict.e2el p99 < 1s", "predict.rate > 5/s"))
    done = sized(tmp_path, "--json", "-")
    assert json.loads(done.stdout) == json.loads(json.dumps(as_json(found, power=0.9)))
    assert done.stderr.strip() == render(found, power=0.9, measured=False).strip()


def test_the_table_fits_a_terminal_whatever_the_names(plan_of: Callable[..., Plan]) -> None:
    stage_name, step = "a-very-long-name-of-a-stage", "answer/" * 9 + "generate"
    load = LOAD.replace("steady", stage_name).replace("60s", "3h")
    found = needs(plan_of(f"{step}.e2el p99.99 < 1s", f"{step}.rate > 1/s", load=load))
    for unicode in (True, False):
        text = render(found, power=0.95, measured=False, unicode=unicode)
        assert max(map(len, text.splitlines())) <= 80
        assert unicode or text.isascii()


def test_a_pilot_that_is_no_run_is_refused(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan_of("predict.e2el p99 < 1s")
    done = sized(tmp_path, "--pilot", tmp_path)
    assert done.exit_code == 2
    assert "is not a run folder" in done.stderr


def test_check_warns_of_a_budget_that_cannot_be_decided(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    load = LOAD.replace("60s", "59s")
    plan_of("predict.e2el p99.9 < 1s", "predict.e2el p50 < 1s", load=load)
    done = invoked("check", tmp_path / "plan.yaml")
    assert done.exit_code == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("harness: warning: predict.e2el p99.9 < 1s cannot pass")
