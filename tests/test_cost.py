"""A cost is its tokens and calls by the plan's prices, to the last n$, and unknown is not free."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import gevent
import load
import numpy as np
import pytest
from conftest import stage
from hypothesis import given
from hypothesis import strategies as st
from load import do, make_run, metrics
from readme_parts import README

from harness import starter
from harness.budget import parse_budget
from harness.compare import compare
from harness.cost import Cost, Prices, PriceTable
from harness.errors import RequestFailed
from harness.plan import load_plan
from harness.recorder import Histogram, Recorder, Recording
from harness.recorder.histogram import MONEY_UNIT, unit_of
from harness.report import words
from harness.report.comparison import as_json, render_text
from harness.report.export import verdict_json
from harness.report.facts import Findings, findings
from harness.report.markdown import render_markdown
from harness.report.page import render_page
from harness.report.terminal import render_terminal
from harness.report.words.costs import UNKNOWN
from harness.swarm.user import step
from harness.units import parse_money, parse_token_price
from harness.verdict import BudgetVerdict, Outcome, Verdict, judge
from harness.verdict.regression import Pair

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
DOLLAR = 1_000_000_000  # n$
SaveRun = Callable[..., Recording]


def prices(**texts: str) -> Prices:
    parsers = {"request": parse_money}
    return Prices(**{k: parsers.get(k, parse_token_price)(v) for k, v in texts.items()})


MINI = prices(input="$0.15/1M", cached_input="$0.075/1M", output="$0.60/1M", request="$0.0001")


# --- price lists --------------------------------------------------------------------------------


def test_a_call_costs_its_tokens_and_itself() -> None:
    found = MINI.cost(input_tokens=1200, cached_tokens=1000, output_tokens=300)
    assert found == 200 * 150 + 1000 * 75 + 300 * 600 + 100_000
    assert MINI.cost(input_tokens=1200, cached_tokens=None, output_tokens=0) == 280_000


def test_cached_tokens_cost_what_others_do_unless_they_have_a_price() -> None:
    plain = prices(input="$0.15/1M")
    assert plain.cost(input_tokens=10, cached_tokens=10, output_tokens=None) == 1500
    assert prices(cached_input="$1/1M").cost(
        input_tokens=10, cached_tokens=4, output_tokens=None
    ) == 4_000  # fmt: skip
    assert MINI.cost(input_tokens=4, cached_tokens=9, output_tokens=0) == 4 * 75 + 100_000


def test_tokens_with_a_price_that_nobody_reported_make_a_cost_unknown() -> None:
    assert MINI.cost(input_tokens=None, cached_tokens=None, output_tokens=3) is None
    assert MINI.cost(input_tokens=3, cached_tokens=None, output_tokens=None) is None
    by_call = prices(request="$0.002")
    assert by_call.cost(input_tokens=None, cached_tokens=None, output_tokens=None) == 2_000_000


@given(
    st.decimals(0, 1000, places=9, allow_nan=False),
    st.sampled_from([("1k", 1000), ("1M", 1_000_000)]),
    st.integers(0, 10**7),
)
def test_no_fraction_of_a_nano_dollar_is_lost_in_a_price(
    dollars: Decimal, per: tuple[str, int], tokens: int
) -> None:
    cost = prices(input=f"${dollars:f}/{per[0]}").cost(
        input_tokens=tokens, cached_tokens=None, output_tokens=None
    )
    assert cost is not None
    assert Fraction(cost) == Fraction(dollars) * DOLLAR / per[1] * tokens


def test_prices_are_saved_as_a_plan_writes_them() -> None:
    table = PriceTable(
        default=MINI, steps={"answer/embed": prices(input="$0.00002/1k")}, monthly_requests=3
    )
    assert table.written() == {
        "input": "$0.15/1M",
        "cached_input": "$0.075/1M",
        "output": "$0.60/1M",
        "request": "$0.0001",
        "steps": {"answer/embed": {"input": "$0.02/1M"}},
        "monthly_requests": 3,
    }
    assert prices(**table.written()["steps"]["answer/embed"]) == table.of("answer/embed")
    assert table.of("answer") is MINI


def test_the_readmes_prices_and_those_of_a_new_plan_are_usable(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    (readme,) = re.findall(r"```yaml\n(prices:.*?)```", text, re.DOTALL)
    (new,) = re.findall(r"# (prices: .*)\n", starter._PLAN.format_map(defaultdict(str)))
    (tmp_path / "s.py").touch()
    for prices_ in (readme, new):
        (tmp_path / "plan.yaml").write_text(
            "target: { url: embedded }\nscenario: s.py\nload: { concurrency: 1, for: 1s }\n"
            f"budgets: [run.cost mean < $1]\n{prices_}\n",
            encoding="utf-8",
        )
        plan = load_plan(tmp_path / "plan.yaml")
        assert plan.prices is not None
        assert plan.prices.monthly_requests


def test_a_cost_scales_with_its_bounds() -> None:
    assert Cost(mean=2.0, low=1.0, high=None).of(1000) == Cost(mean=2000, low=1000, high=None)


def test_an_embedding_and_an_agents_run_both_keep_three_digits() -> None:
    assert unit_of("cost") == MONEY_UNIT
    for cost in (500 * 20, 1_840_000, 35 * DOLLAR):  # 500 embedded tokens, a chat, an agent
        many = Histogram.of([cost - cost // 100, cost, cost, cost + 10 * cost], MONEY_UNIT)
        assert many.quantile(0.5) == pytest.approx(cost, rel=1e-3)
    beyond = Histogram.of([40 * DOLLAR], MONEY_UNIT)
    assert (beyond.clamped, beyond.max) == (1, 40 * DOLLAR)


# --- executions ---------------------------------------------------------------------------------


def reply(input_tokens: int, output_tokens: int | None = 7, cached: int | None = None) -> bytes:
    usage: dict[str, Any] = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    choice = {"index": 0, "message": {"content": "so"}, "finish_reason": "stop"}
    return load.answer(json.dumps({"choices": [choice], "usage": usage}).encode())


def replies(*data: bytes) -> Callable[[Any], None]:
    """Answer one request of all connections after the other."""
    left = iter(data)

    def handle(connection: Any) -> None:
        while load.request_of(connection):
            connection.sendall(next(left))

    return handle


def costs(seen: load.Seen) -> dict[str, list[int]]:
    """The costs recorded by step, each as often as it was."""
    found: dict[str, list[int]] = {}
    for step_ in seen.steps:
        if "cost" in step_.values:
            found.setdefault(step_.name, []).append(step_.values["cost"])
    recorded = {name for _, name, metric in seen.report().measured if metric == "cost"}
    assert recorded == set(found)
    return found


def run(task: Callable[[Any], Any], *data: bytes, table: PriceTable | None) -> load.Seen:
    with load.serving(replies(*data)) as url:
        seen = make_run(url, prices=table)
        do(task, seen)
    return seen


TABLE = PriceTable(default=prices(input="$1/1M", output="$2/1M"))
JSON = {"stream": False}


@pytest.mark.swarm
def test_a_step_costs_what_the_calls_inside_it_do() -> None:
    def task(user: Any) -> None:
        with step("answer"):
            user.embed("what", step="embed")
            with step("think"):
                user.chat("why", **JSON)
            user.chat("how", **JSON)

    embedding = json.dumps(
        {"data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 9}}
    )
    table = PriceTable(
        default=TABLE.default, steps={"answer/embed": prices(input="$0.02/1M", output="$9/1M")}
    )
    seen = run(task, load.answer(embedding.encode()), reply(10), reply(100, cached=50), table=table)
    first, second = 10 * 1000 + 7 * 2000, 100 * 1000 + 7 * 2000
    assert costs(seen) == {
        "answer/embed": [180],
        "answer/think/chat": [first],
        "answer/think": [first],
        "answer/chat": [second],
        "answer": [180 + first + second],
    }


@pytest.mark.swarm
def test_an_execution_is_rounded_once() -> None:
    def task(user: Any) -> None:
        with step("answer"):
            for _ in range(3):
                user.chat("why", **JSON)

    table = PriceTable(default=prices(input="$0.0005/1M"))  # half a n$ a token
    assert costs(run(task, *[reply(1)] * 3, table=table))["answer"] == [2]  # of 1.5


@pytest.mark.swarm
def test_tokens_from_the_cache_have_their_own_price() -> None:
    table = PriceTable(default=prices(input="$1/1M", cached_input="$0.1/1M"))
    seen = run(lambda user: user.chat("why", **JSON), reply(100, cached=60), table=table)
    assert costs(seen) == {"chat": [40 * 1000 + 60 * 100]}


@pytest.mark.swarm
def test_a_failed_call_costs_what_it_reported_and_only_in_the_steps_around_it() -> None:
    def task(user: Any) -> None:
        with step("answer"):
            for _ in range(3):
                try:
                    user.chat("why", **JSON)
                    break
                except RequestFailed:
                    continue

    gone = load.answer(b"oops", status="500 Oh")
    gave_up = json.loads(reply(10).partition(b"\r\n\r\n")[2])
    gave_up["choices"][0]["finish_reason"] = "error"
    seen = run(task, gone, load.answer(json.dumps(gave_up).encode()), reply(20), table=TABLE)
    assert costs(seen) == {"answer/chat": [34_000], "answer": [24_000 + 34_000]}


@pytest.mark.swarm
def test_an_unknown_cost_makes_the_steps_around_it_unknown_and_no_other() -> None:
    def task(user: Any) -> None:
        with step("answer"):
            user.chat("why", **JSON)
            user.chat("how", step="blind", **JSON)
        user.chat("when", **JSON)

    blind = load.answer(reply(1).partition(b"\r\n\r\n")[2].replace(b"usage", b"used"))
    seen = run(task, reply(10), blind, reply(10), table=TABLE)
    assert costs(seen) == {"answer/chat": [24_000], "chat": [24_000]}


@pytest.mark.swarm
def test_what_runs_on_inside_a_step_that_ended_leaves_its_cost_unknown() -> None:
    def task(user: Any) -> None:
        with step("answer"):
            late = gevent.spawn(user.chat, "why", **JSON)
            gevent.sleep(0)
        late.join()

    assert costs(run(task, reply(10), table=TABLE)) == {"answer/chat": [24_000]}


@pytest.mark.swarm
def test_a_count_that_no_reply_can_have_is_none() -> None:
    seen = run(lambda user: user.chat("why", **JSON), reply(10**30), table=TABLE)
    assert costs(seen) == {}
    assert "input_tokens" not in seen.steps[0].values


@pytest.mark.swarm
def test_without_a_call_a_step_costs_nothing_and_without_prices_there_is_no_cost() -> None:
    def idle(_user: Any) -> None:
        with step("wait"):
            pass

    assert costs(run(idle, table=TABLE)) == {"wait": [0]}
    seen = run(lambda user: user.chat("why", **JSON), reply(10), table=None)
    assert "cost" not in metrics(seen.report(), "chat") | set(seen.steps[0].values)


@pytest.mark.swarm
def test_a_plans_prices_reach_its_workers(tmp_path: Path) -> None:
    def always(connection: Any) -> None:
        while load.request_of(connection):
            connection.sendall(reply(10))

    scenario = """
        class User(ModelUser):
            @task
            def ask(self):
                self.chat("why", stream=False)
    """
    with load.serving(always) as url:
        plan = load.write_plan(
            tmp_path,
            scenario,
            url=url,
            load="{ arrivals: constant 20/s, for: 500ms }",
            prices="{ input: $1/1M, output: $2/1M }",
        )
        loaded = load.run_here(plan)
    costs = loaded.histogram("chat", "cost", "load")
    assert (costs.n, costs.min, costs.max) == (10, 24_000, 24_000)


# --- verdicts -----------------------------------------------------------------------------------


def spent(costs: np.ndarray[Any, Any], intervals: int) -> Callable[[Recorder, int], None]:
    """Requests with these costs, spread over the intervals."""

    def fill(recorder: Recorder, i: int) -> None:
        mine = costs[i::intervals]
        for cost in mine:
            recorder.request("steady", "chat", {"cost": int(cost), "send_lag": 1000})
        counters = recorder.load("steady")
        counters.planned = counters.sent = counters.finished = len(mine)

    return fill


def judged(save_run: SaveRun, costs: np.ndarray[Any, Any], text: str) -> BudgetVerdict:
    run = save_run(
        spent(costs, 60), budgets=[text], intervals=60, stages=[stage(end_s=60)], prices={}
    )
    (found,) = judge(run, [parse_budget(text)]).budgets
    return found


@pytest.mark.parametrize(
    ("limit", "outcome"), [("$0.0022", PASS), ("$0.002", INCONCLUSIVE), ("$0.0018", FAIL)]
)
def test_a_mean_cost_is_judged_by_bounds_that_hold_the_truth(
    save_run: SaveRun, limit: str, outcome: Outcome
) -> None:
    costs = np.random.default_rng(3).gamma(2, 0.001, 3000) * DOLLAR  # a mean of $0.002
    found = judged(save_run, costs, f"chat.cost mean < {limit}")
    assert found.outcome is outcome
    assert found.low is not None
    assert found.high is not None
    assert found.observed == pytest.approx(float(np.trunc(costs).mean()))
    assert 0.0018 * DOLLAR < found.low < 0.002 * DOLLAR < found.high < 0.0022 * DOLLAR
    assert "$0.00" in found.evidence


def test_quantile_and_largest_costs_are_judged_exactly(save_run: SaveRun) -> None:
    costs = np.full(3000, 50_000_000)
    costs[7] = DOLLAR
    assert judged(save_run, costs, "run.cost p99 <= $0.05").outcome is PASS
    assert judged(save_run, costs, "run.cost p99 < $0.05").outcome is FAIL
    largest = judged(save_run, costs, "chat.cost max < $1")
    assert (largest.outcome, largest.observed) == (FAIL, DOLLAR)
    assert "$1" in largest.sentence


def test_a_run_without_costs_says_why(save_run: SaveRun) -> None:
    found = judged(save_run, np.full(0, 1), "chat.cost mean < $1")
    assert found.outcome is Outcome.NO_DATA

    def fill(recorder: Recorder, _: int) -> None:
        recorder.request("steady", "chat", {"e2el": 1000, "send_lag": 1000})

    for more, why in (({}, "without prices"), ({"prices": {"input": "$1/1M"}}, "usage")):
        run = save_run(fill, **more)
        (found,) = judge(run, [parse_budget("chat.cost mean < $1")]).budgets
        assert found.outcome is Outcome.NO_DATA
        assert why in str(found.reason)


# --- the report ---------------------------------------------------------------------------------

PRICED = {"input": "$1/1M", "steps": {"answer/embed": {"input": "$0.02/1M"}}}


def agents(recorder: Recorder, i: int) -> None:
    """Requests of two roots: an answer of two calls and an embedding, and a search for free."""
    for n in range(10):
        cost, embedding = 1_000_000 + 100_000 * ((i + n) % 3), 20_000
        tokens = {"input_tokens": 50, "output_tokens": 20}
        for _ in range(2):
            recorder.request("steady", "answer/chat", {"cost": cost, **tokens})
        recorder.request("steady", "answer/embed", {"cost": embedding, "input_tokens": 1000})
        recorder.request("steady", "answer/think", {"cost": 0})
        recorder.request("steady", "answer", {"cost": 2 * cost + embedding, "send_lag": 1000})
        recorder.request("steady", "search", {"cost": 0, "send_lag": 1000})
        recorder.request("steady", "search", {}, failure="status 500")


def reported(run: Recording) -> tuple[Findings, Verdict]:
    verdict = judge(run, [parse_budget("answer.cost mean < $1")])
    return findings(run, verdict), verdict


def test_the_report_says_what_each_step_costs_and_what_a_month_of_them_does(
    save_run: SaveRun,
) -> None:
    run = save_run(agents, prices={**PRICED, "monthly_requests": 1_000_000}, intervals=60)
    costs = reported(run)[0].costs
    assert costs is not None
    (table,) = costs.tables
    rows = {row.step: row for row in table.rows}
    assert list(rows) == ["answer", "answer/chat", "answer/embed", "run"]
    for row in rows.values():
        assert row.month is not None
        assert row.request.low is not None
        assert row.request.high is not None
        assert row.request.low <= row.request.mean <= row.request.high
    assert rows["answer"].request.mean == 2_220_000
    assert rows["run"].request.mean == 1_110_000  # half of the requests were searches
    months = {step: row.month.mean for step, row in rows.items() if row.month}
    assert months["run"] == months["answer"] == 1_110_000 * 1_000_000
    assert months["answer/chat"] + months["answer/embed"] == months["answer"]
    assert (rows["answer/embed"].input_tokens, rows["answer/embed"].output_tokens) == (1000, None)


def test_each_stage_has_costs_of_its_own_and_short_ones_no_bounds(save_run: SaveRun) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        where, cost = ("steady", 1_000_000) if i < 40 else ("spike", 3_000_000)
        recorder.request(where, "chat", {"cost": cost + i, "send_lag": 1000})

    stages = [stage(end_s=40), stage("spike", 40, 50)]
    run = save_run(fill, prices={"input": "$1/1M"}, intervals=50, stages=stages)
    found, verdict = reported(run)
    assert found.costs is not None
    steady, spike = found.costs.tables
    assert (steady.rows[0].request.low is None, spike.rows[0].request.low) == (False, None)
    page = render_page(run, verdict, found)
    assert "A request costs $0.00100 in steady" in page
    assert "<summary>Costs, spike stage</summary>" in page
    assert "<td>–</td>" in page[page.index("Costs, spike stage") :]
    assert "per month" not in page
    assert "A request costs $0.00300 in spike" in render_markdown(run, verdict, found).replace(
        "&#36;", "$"
    )


def test_every_form_of_the_report_says_the_same(save_run: SaveRun) -> None:
    run = save_run(agents, prices={**PRICED, "monthly_requests": 3_000_000}, intervals=60)
    found, verdict = reported(run)
    heading = "A request costs $0.00111; the 3,000,000 of a month cost $3,330"
    page, markdown = render_page(run, verdict, found), render_markdown(run, verdict, found)
    assert heading in page
    assert heading in markdown.replace("&#36;", "$")
    assert "Prices: input $1/1M; answer/embed input $0.02/1M." in page.replace("<wbr>", "")
    assert "$0.0011</td>" in page  # the mean of answer/chat
    assert "– $" not in page  # the unit is said once
    for width in (40, 80):
        text = render_terminal(verdict, found, run.run, [], color=False, unicode=True, width=width)
        assert heading in " ".join(text.split())
        assert max(map(len, text.splitlines())) <= width
    whole = verdict_json(run, verdict, found)
    (answer, chat, *_) = whole["costs"]["steps"]
    assert (answer["step"], answer["request"]["mean"]) == ("answer", pytest.approx(0.00222))
    assert chat["thousand"]["mean"] == pytest.approx(1.1)
    assert chat["month"]["low"] <= chat["month"]["mean"] == pytest.approx(3300)
    assert whole["budgets"][0]["unit"] == "nano_usd"
    (metrics_,) = [s["metrics"] for s in whole["steps"] if s["step"] == "answer/embed"]
    assert metrics_["cost"] == {
        "unit": "usd", "n": 600, "mean": 0.00002, "max": 0.00002,
        "p50": 0.00002, "p95": 0.00002, "p99": 0.00002,
    }  # fmt: skip


def test_without_prices_the_report_says_nothing_of_costs_and_without_usage_why(
    save_run: SaveRun,
) -> None:
    def fill(recorder: Recorder, _: int) -> None:
        recorder.request("steady", "chat", {"e2el": 1000, "send_lag": 1000})

    for prices_, said in ((None, False), (PRICED, True)):
        run = save_run(fill, prices=prices_)
        found, verdict = reported(run)
        texts = [render_page(run, verdict, found), render_markdown(run, verdict, found)]
        options = {"color": False, "unicode": True}
        texts.append(render_terminal(verdict, found, run.run, [], **options))
        assert [UNKNOWN in text for text in texts] == [said] * 3
        assert (verdict_json(run, verdict, found)["costs"] is None) is not said


def test_what_a_request_costs_is_unknown_unless_every_root_tells(save_run: SaveRun) -> None:
    known = {"cost": 1_000_000, "send_lag": 1000}

    def heading(*executions: tuple[str, dict[str, int]]) -> tuple[str, list[str]]:
        def fill(recorder: Recorder, _: int) -> None:
            for step_, values in executions:
                recorder.request("steady", step_, values)

        found = reported(save_run(fill, prices={**PRICED, "monthly_requests": 100}))[0].costs
        assert found is not None
        return words.costs(found).heading, [row.step for row in found.tables[0].rows]

    unknown = {"send_lag": 1000}
    assert heading(("a", known), ("b", known)) == (
        "A request costs $0.001; the 100 of a month cost $0.1", ["a", "b", "run"],
    )  # fmt: skip
    assert heading(("a", known), ("b", unknown)) == (UNKNOWN, ["a"])
    assert heading(("a", known), ("b", known), ("b", unknown)) == (UNKNOWN, ["a", "b"])
    assert heading(("a/chat", known), ("a", unknown)) == (UNKNOWN, ["a/chat"])


def test_two_runs_are_compared_by_their_mean_cost_too(save_run: SaveRun) -> None:
    costs = np.random.default_rng(5).gamma(4, 0.001, (2, 3000)) * DOLLAR
    base, now = (
        save_run(spent(c, 60), intervals=60, stages=[stage(end_s=60)])
        for c in (costs[0], costs[1] * 1.2)
    )
    budget = parse_budget("chat.cost mean regression < 5%")
    found = compare(Pair(base, now), [budget])
    (row,) = [row for row in found.rows if (row.step, row.metric) == ("chat", "cost")]
    assert row.verdict is not None
    assert row.verdict.outcome is FAIL
    assert row.change.change == pytest.approx(0.2, abs=0.04)
    assert ("chat", "cost") in [(row.step, row.metric) for row in compare(Pair(base, now)).rows]
    assert "$0.004" in render_text(found, color=False, unicode=True)
    assert as_json(found)["rows"][0]["unit"] == "nano_usd"
