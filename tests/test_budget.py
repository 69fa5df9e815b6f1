"""A budget reads as a sentence; what it cannot mean is refused at its column."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.budget import Budget, goodput_limits, parse_budget
from harness.errors import BudgetSyntaxError
from harness.metrics import METRICS


def test_a_budget_is_read_into_its_parts() -> None:
    assert parse_budget("answer/generate.ttft p99<800 ms in steady", confidence=0.99) == Budget(
        text="answer/generate.ttft p99 < 800ms in steady",
        step="answer/generate",
        metric="ttft",
        statistic="p99",
        quantile=0.99,
        op="<",
        limit=800_000_000,
        limit_text="800ms",
        stage="steady",
        confidence=0.99,
    )


@pytest.mark.parametrize(
    ("text", "statistic", "quantile", "limit"),
    [
        ("chat.e2el p99.99 <= 10s", "p99.99", 0.9999, 10_000_000_000),
        ("chat.e2el p50.0 < 2m", "p50", 0.5, 120_000_000_000),
        ("chat.e2el mean < 1.5s", "mean", None, 1_500_000_000),
        ("chat.e2el max < 1h", "max", None, 3_600_000_000_000),
        ("chat.error_rate < 0.1%", "", None, 0.001),
        ("chat.error_rate <= 0%", "", None, 0),
        ("chat.goodput >= 95%", "", None, 0.95),
        ("run.rate > 900/m", "", None, 15),
        ("chat.output_tokens mean > 20", "mean", None, 20),
        ("chat.input_tokens p99 < 4000tokens", "p99", 0.99, 4000),
        ("chat.cost mean < $0.002", "mean", None, 2_000_000),
        ("run.cost p99 <= $0.05", "p99", 0.99, 50_000_000),
        ("chat.cost max < $1", "max", None, 1_000_000_000),
    ],
)
def test_every_kind_of_metric_has_its_statistic_and_unit(
    text: str, statistic: str, quantile: float | None, limit: float
) -> None:
    budget = parse_budget(text)
    assert (budget.statistic, budget.quantile, budget.limit) == (statistic, quantile, limit)
    assert budget.upper == ("<" in text)


@pytest.mark.parametrize(
    ("text", "statistic", "limit"),
    [
        ("chat.e2el p99 regression < 5%", "p99", 0.05),
        ("chat.e2el mean regression <= 2.5%", "mean", 0.025),
        ("chat.output_tokens p50 regression < 10%", "p50", 0.1),
        ("run.cost mean regression < 5%", "mean", 0.05),
        ("chat.error_rate regression < 0.1%", "", 0.001),
        ("run.goodput regression < 1% in steady", "", 0.01),
    ],
)
def test_a_regression_is_limited_by_a_share(text: str, statistic: str, limit: float) -> None:
    budget = parse_budget(text)
    assert (budget.text, budget.statistic, budget.limit) == (text, statistic, limit)
    assert (budget.regression, budget.kind, budget.time_unit) == (True, "share", None)
    assert not budget.counted
    assert budget.subject.endswith("regression")


def test_a_window_is_said_in_the_sentence_or_beside_it() -> None:
    budget = parse_budget("chat.e2el p99<2s over 2500 ms in steady")
    assert budget.over_ns == 2_500_000_000
    assert budget.text == "chat.e2el p99 < 2s over 2.5s in steady"
    assert budget.subject == "chat.e2el p99 in each 2.5s"
    assert parse_budget("chat.e2el p99 < 2s in steady", over_ns=2_500_000_000) == budget
    with pytest.raises(BudgetSyntaxError, match='its "over" says "3s"'):
        parse_budget(budget.text, over_ns=3_000_000_000)


def test_windows_mean_something_where_samples_are_counted() -> None:
    for text in ("chat.itl p50 < 1s", "chat.error_rate < 1%", "run.goodput > 90%"):
        assert parse_budget(f"{text} over 10s").over_ns == 10_000_000_000


TIMES = sorted(name for name, metric in METRICS.items() if metric.kind == "time")
SEGMENTS = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)
GAPS = st.sampled_from(["", " ", "  ", "\t"])


@given(
    st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join),
    st.sampled_from(TIMES),
    st.sampled_from(["p50", "p99", "p99.9", "p99.99", "p1", "mean", "max"]),
    st.sampled_from(["<", "<="]),
    st.decimals("0.001", "999", places=3),
    st.sampled_from(["us", "ms", "s", "m"]),
    st.none() | SEGMENTS,
    st.none() | st.integers(10, 99_999).map(lambda tenths: tenths * 100_000_000),
    GAPS,
)
def test_a_normalised_budget_reads_back_as_itself(
    step: str,
    metric: str,
    statistic: str,
    op: str,
    number: object,
    unit: str,
    stage: str | None,
    over_ns: int | None,
    gap: str,
) -> None:
    over_ns = over_ns if statistic.startswith("p") else None
    where = f" over {over_ns / 1e9:.15g}s" if over_ns else ""
    where += f" in {stage}" if stage else ""
    budget = parse_budget(f"{gap}{step}.{metric} {statistic}{gap}{op}{gap}{number}{unit}{where}")
    assert budget.text == f"{step}.{metric} {statistic} {op} {number}{unit}{where}"
    assert parse_budget(budget.text) == budget
    assert budget.over_ns == over_ns


def column_of(text: str) -> int:
    try:
        parse_budget(text)
    except BudgetSyntaxError as error:
        return error.column
    return 1


@given(st.text(alphabet="ab./ p9<>=%ms0in(", max_size=24))
def test_any_text_is_a_budget_or_an_error_with_a_column_inside_it(text: str) -> None:
    assert 1 <= column_of(text) <= len(text) + 1


ALL_METRICS = ", ".join(METRICS)


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("", 1, "STEP.METRIC"),
        ("ttft p99 < 800ms", 1, "run.ttft"),
        ("latency p99 < 800ms", 1, "run.e2el"),
        ("chat.tttf p99 < 800ms", 6, 'did you mean "ttft"?'),
        ("chat.nonsense p99 < 800ms", 6, ALL_METRICS),
        ("chat.latency p99 < 800ms", 6, 'did you mean "e2el"?'),
        ("chat.e2e p99 < 800ms", 6, 'did you mean "e2el"?'),
        ("chat.throughput > 5/s", 6, 'did you mean "rate"?'),
        ("a.b.ttft p99 < 800ms", 2, 'found the step "a.b"'),
        ("a//b.ttft p99 < 800ms", 2, "joined with /"),
        (".ttft p99 < 800ms", 1, 'found the step ""'),
        ("chat.ttft < 800ms", 11, "needs a statistic"),
        ("chat.ttft p(99) < 800ms", 11, 'did you mean "p99"?'),
        ("chat.ttft 99th < 800ms", 11, 'did you mean "p99"?'),
        ("chat.ttft P95 < 800ms", 11, 'did you mean "p95"?'),
        ("chat.ttft avg < 800ms", 11, 'did you mean "mean"?'),
        ("chat.ttft p0 < 800ms", 11, "allowed is a quantile from p1 to below p100"),
        ("chat.ttft p0.95 < 800ms", 11, 'from p1 to below p100; did you mean "p95"?'),
        ("chat.ttft p0.999 < 800ms", 11, 'did you mean "p99.9"?'),
        ("chat.ttft 0.99 < 800ms", 11, 'did you mean "p99"?'),
        ("chat.ttft p99.99999999 < 800ms", 11, 'did you mean "p99.999999"?'),
        ("chat.ttft p100 < 800ms", 11, 'did you mean "max"?'),
        ("chat.ttft p101 < 800ms", 11, 'found "p101"; allowed is a quantile from p1'),
        ("chat.error_rate p99 < 1%", 17, "takes no statistic"),
        ("chat.ttft p99", 14, "the budget ends"),
        ("chat.ttft p99 800ms", 15, "<, <=, >, >="),
        ("chat.ttft p99 == 800ms", 15, 'did you mean "<="?'),
        ("chat.ttft p99 ≤ 800ms", 15, 'did you mean "<="?'),
        ("chat.ttft p99 != 800ms", 15, "allowed are <, <=, >, >="),
        ("chat.ttft p99 > 800ms", 15, 'did you mean "<"?'),
        ("chat.error_rate >= 1%", 17, 'did you mean "<="?'),
        ("chat.goodput < 95%", 14, 'did you mean ">"?'),
        ("chat.rate <= 5/s", 11, 'did you mean ">="?'),
        ("chat.ttft p99 <", 16, "800ms"),
        ("chat.ttft p99<800", 15, "write 800ms or 800s"),
        ("chat.ttft p99 < 5%", 17, "is not a duration"),
        ("chat.error_rate < 5ms", 19, "is not a share"),
        ("chat.error_rate < 0.01", 19, "write 1% if it is a share of 1, else 0.01%"),
        ("chat.goodput > 1", 16, "write 100% if it is a share of 1, else 1%"),
        ("chat.error_rate < 5", 19, "'5' has no unit: write 5%"),
        ("chat.output_tokens p99 < 5s", 26, "number of tokens"),
        ("chat.cost mean < 0.002", 18, "write $0.002"),
        ("chat.cost mean < €1", 18, "US dollars, like $0.002"),
        ("chat.cost mean < $1/1M", 18, "an amount is $"),
        ("chat.cost mean <= 5%", 19, "is limited by an amount of US dollars"),
        ("chat.cost mean > $1", 16, 'did you mean "<"?'),
        ("chat.cost mean < $0", 18, 'did you mean "<= $0"?'),
        ("chat.cost < $1", 11, "needs a statistic"),
        ("chat.price mean < $1", 6, 'did you mean "cost"?'),
        ("chat.spend mean < $1", 6, 'did you mean "cost"?'),
        ("chat.dollars mean < $1", 6, 'did you mean "cost"?'),
        ("chat.ttft p99 < $1", 17, "is not a number with a unit"),
        ("chat.ttft p99 < 0ms", 17, "nothing takes no time"),
        ("chat.error_rate < 0%", 19, 'did you mean "<= 0%"?'),
        ("chat.error_rate <= 100%", 20, "never be broken"),
        ("chat.goodput > 100%", 16, 'did you mean ">= 100%"?'),
        ("chat.goodput >= 0%", 17, "never be broken"),
        ("chat.ttft p99 < 5s please", 20, "in STAGE"),
        ("chat.ttft p99 < 5s in", 22, "a stage's name"),
        ("chat.ttft p99 < 5s in a b", 25, "nothing may follow"),
        ("chat.ttft p99 increase < 5%", 15, 'did you mean "regression"?'),
        ("chat.ttft p99 regresion < 5%", 15, 'did you mean "regression"?'),
        ("chat.ttft regression < 5%", 11, "allowed are p50"),
        ("chat.ttft max regression < 5%", 15, "the maximum, a fact about one run"),
        ("chat.rate regression < 5%", 11, "the rate, a fact about one run"),
        ("chat.ttft p99 regression > 5%", 26, 'did you mean "<"?'),
        ("chat.goodput regression >= 5%", 25, 'did you mean "<="?'),
        ("chat.ttft p99 regression < 5ms", 28, "a regression is limited by a share"),
        ("chat.ttft p99 regression < 5", 28, "write 5%"),
        ("chat.ttft p99 regression < 0%", 28, "allow a margin"),
        ("chat.ttft p99 regression", 25, "the budget ends"),
        ("chat.ttft p99 < 5s over", 24, "like over 10s"),
        ("chat.ttft p99 < 5s over 10", 25, "write 10ms or 10s"),
        ("chat.ttft p99 < 5s over 500ms", 25, "1s or more"),
        ("chat.ttft p99 < 5s over 1.25s", 25, "in steps of 100ms"),
        ("chat.ttft p99 < 5s in steady over 10s", 30, "nothing may follow"),
        ("chat.ttft max < 5s over 10s", 11, "no such count"),
        ("chat.ttft mean < 5s over 10s", 11, "no such count"),
        ("chat.rate > 5/s over 10s", 6, "no such count"),
        ("chat.ttft p99 regression < 5% over 10s", 11, "ttft p99 regression has no such count"),
    ],
)
def test_a_mistake_is_refused_at_its_column_with_what_is_allowed(
    text: str, column: int, words: str
) -> None:
    with pytest.raises(BudgetSyntaxError) as caught:
        parse_budget(text)
    assert caught.value.column == column
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("chat.ttft p99 < 5s", True),
        ("chat.ttft p99 < 5s over 10s", True),
        ("chat.ttft max < 5s", True),
        ("chat.error_rate < 1%", True),
        ("chat.output_tokens p50 > 5", True),
        ("chat.ttft mean < 5s", False),
        ("chat.rate > 5/s", False),
        ("chat.ttft p99 regression < 5%", False),
    ],
)
def test_only_a_budget_that_can_be_lost_before_the_end_may_end_the_load(
    text: str, allowed: bool
) -> None:
    if allowed:
        assert parse_budget(text, abort=True).abort
        return
    with pytest.raises(BudgetSyntaxError, match="not known before the end"):
        parse_budget(text, abort=True)


def test_a_stage_said_twice_must_be_the_same() -> None:
    assert parse_budget("chat.ttft p99 < 5s in peak", stage="peak").stage == "peak"
    assert parse_budget("chat.ttft p99 < 5s", stage="peak").text == "chat.ttft p99 < 5s in peak"
    with pytest.raises(BudgetSyntaxError, match='"peak"'):
        parse_budget("chat.ttft p99 < 5s in steady", stage="peak")


@pytest.mark.parametrize(
    ("limit", "unit"), [("800ms", "ms"), ("9µs", "us"), ("2m", "s"), ("1.5s", "s")]
)
def test_observed_times_are_shown_in_the_limits_unit(limit: str, unit: str) -> None:
    assert parse_budget(f"chat.ttft p99 < {limit}").time_unit == unit


def test_a_share_has_no_time_unit() -> None:
    assert parse_budget("chat.error_rate < 1%").time_unit is None


def test_a_good_request_meets_the_strictest_limit_of_each_metric() -> None:
    budgets = [
        parse_budget(text)
        for text in (
            "chat.ttft p95 < 300ms",
            "chat.ttft p99 < 800ms in steady",
            "chat.e2el max < 4s",
            "run.e2el p99 < 3s",
            "chat.e2el mean < 1s",
            "chat.itl p99 < 60ms",
            "chat.error_rate < 1%",
            "chat.e2el p99 regression < 1%",
            "answer/generate.ttft p99 < 100ms",
            "answer/generate.ttft p50 < 50ms in peak",
        )
    ]
    assert goodput_limits(budgets, "chat") == {"ttft": 299_999_999, "e2el": 2_999_999_999}
    assert goodput_limits(budgets, "answer/generate") == {"ttft": 49_999_999}
    assert goodput_limits(budgets, "answer/generate", stage="steady") == {"ttft": 99_999_999}


def test_every_metric_defines_itself() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.definition.endswith(".")
