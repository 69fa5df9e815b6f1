"""A plan file runs as it reads, or says where it does not, what is allowed and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cost import Prices, PriceTable
from harness.errors import PlanError
from harness.plan import (
    Arrivals,
    Plan,
    check_steps,
    json_schema,
    load_plan,
    plan_from_options,
    secrets,
)
from harness.runs import budgets_of
from harness.swarm.manifest import describe, stage_windows

PLAN = """\
target:
  url: ${TARGET:-embedded}
  api: openai-chat
  headers: { Authorization: "Bearer ${API_KEY:-}", Origin: search }
scenario: chat.py
inputs: { file: prompts.jsonl }
load:
  - { name: warmup, arrivals: constant 5/s, for: 10s, record: false }
  - { name: steady, arrivals: poisson 20/s, for: 60s, max_in_flight: 200 }
  - { name: closed, concurrency: 10, for: 30s }
budgets:
  - chat.ttft p99 < 800ms
  - { budget: "chat.e2el p99.9 < 10s", confidence: 0.99, stage: steady }
seed: ${SEED:-42}
"""
FULL = (
    PLAN
    + """\
repeat: ${REPEAT:-5}
abort_on: [overload, errors]
multiple_testing: holm
"""
)
MINIMAL = """\
target: { url: embedded }
scenario: chat.py
load: { arrivals: poisson 5/s, for: 5s }
budgets: [chat.ttft p99 < 800ms]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("chat.py", "prompts.jsonl", "ca.pem"):
        (tmp_path / name).touch()
    return tmp_path


def load(folder: Path, text: str | bytes, **environ: str) -> Plan:
    path = folder / "plan.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_plan(path, environ=environ)


def error_of(folder: Path, text: str | bytes, **environ: str) -> PlanError:
    with pytest.raises(PlanError) as caught:
        load(folder, text, **environ)
    return caught.value


def place_in(error: PlanError) -> str:
    return error.place.rpartition("plan.yaml")[2].removeprefix(":")


def test_a_plan_reads_as_it_is_written(folder: Path) -> None:
    plan = load(folder, PLAN, API_KEY="sk-1234")
    assert (plan.name, plan.path) == ("plan", folder / "plan.yaml")
    assert (plan.scenario, plan.inputs) == (folder / "chat.py", folder / "prompts.jsonl")
    assert (plan.seed, plan.workers, plan.drain_ns) == (42, 1, 30_000_000_000)
    assert plan.target.url == "embedded"
    assert plan.target.headers == {"Authorization": "Bearer sk-1234", "Origin": "search"}
    warmup, steady, closed = plan.load
    assert (warmup.record, warmup.max_in_flight, warmup.duration_ns) == (False, 1000, 10**10)
    assert steady.arrivals == Arrivals(kind="poisson", rate_per_s=20)
    assert (steady.max_in_flight, steady.load) == (200, "poisson 20/s")
    assert (closed.concurrency, closed.max_in_flight, closed.load) == (10, None, "10 users")
    assert [budget.text for budget in plan.budgets] == [
        "chat.ttft p99 < 800ms",
        "chat.e2el p99.9 < 10s in steady",
    ]
    assert [budget.confidence for budget in plan.budgets] == [0.95, 0.99]


def test_how_often_it_is_played_and_how_it_is_judged_stand_in_the_plan(folder: Path) -> None:
    text = changed(
        "chat.ttft p99 < 800ms", "{ budget: chat.ttft p99 < 1s, over: 10s, abort: true }"
    )
    plan = load(folder, text + FULL.removeprefix(PLAN))
    assert (plan.repeat, plan.abort_on, plan.multiple_testing) == (
        5,
        ("overload", "errors"),
        "holm",
    )
    assert plan.budgets[0].text == "chat.ttft p99 < 1s over 10s"
    assert (plan.budgets[0].over_ns, plan.budgets[0].abort) == (10**10, True)
    assert not plan.budgets[1].abort
    plan = load(folder, PLAN)
    assert (plan.repeat, plan.abort_on, plan.multiple_testing) == (1, (), "none")


def test_a_saved_run_keeps_all_of_its_budgets(folder: Path) -> None:
    text = changed(
        "chat.ttft p99 < 800ms", "{ budget: chat.ttft p99 < 1s, over: 10s, abort: true }"
    )
    plan = load(folder, text.replace("budgets:", "budgets:\n  - chat.e2el p99 regression < 5%"))
    described = describe(plan, "http://x", stage_windows(plan), 1)
    assert budgets_of(SimpleNamespace(run=json.loads(json.dumps(described)))) == plan.budgets


def test_the_least_plan_needs_four_keys(folder: Path) -> None:
    plan = load(folder, MINIMAL)
    assert (plan.load[0].name, plan.inputs, plan.seed) == ("load", None, 1)


def test_stages_without_names_are_numbered(folder: Path) -> None:
    load_list = "load: [{ concurrency: 1, for: 5s }, { name: b, concurrency: 2, for: 5s }]"
    plan = load(folder, MINIMAL.replace("load: { arrivals: poisson 5/s, for: 5s }", load_list))
    assert [stage.name for stage in plan.load] == ["load-1", "b"]
    assert plan.load[0].load == "1 user"


def test_a_file_of_certificates_is_found_beside_the_plan(folder: Path) -> None:
    plan = load(folder, MINIMAL.replace("url: embedded", "url: https://x, verify: ca.pem"))
    assert plan.target.verify == folder / "ca.pem"


def test_variables_outside_the_schema_are_typed_as_if_written_out(folder: Path) -> None:
    text = MINIMAL.replace(
        "{ url: embedded }",
        '\n  url: embedded\n  params:\n    n: ${N:-16}\n    s: "${N:-16}"\n    d: 2024-01-01',
    )
    assert load(folder, text).target.params == {"n": 16, "s": "16", "d": "2024-01-01"}


def test_variables_may_stand_for_numbers_and_for_true_or_false(folder: Path) -> None:
    text = changed("seed: ${SEED:-42}", "seed: ${SEED}\nworkers: ${N}\nrepeat: '${N}'")
    text = text.replace("confidence: 0.99", 'confidence: "${C}", abort: "${ABORT}"')
    plan = load(folder, text, SEED="7", N="3", C="0.9", ABORT="True")
    budget = plan.budgets[-1]
    assert (plan.seed, plan.workers, plan.repeat) == (7, 3, 3)
    assert (budget.confidence, budget.abort) == (0.9, True)


@pytest.mark.parametrize(
    "value", ["a: b", "[1, 2]", "{x: 1}", "- x", "!!int 3", "*alias", "x\ny: 1", '"', "#"]
)
def test_a_variable_never_becomes_structure(folder: Path, value: str) -> None:
    text = MINIMAL.replace("{ url: embedded }", "\n  url: embedded\n  model: ${M}\n  params: {}")
    assert load(folder, text, M=value).target.model == value


def test_a_doubled_dollar_and_an_empty_variable_are_plain(folder: Path) -> None:
    text = MINIMAL.replace("{ url: embedded }", "\n  url: embedded\n  model: $${M} ${E:-e} $5")
    assert load(folder, text, E="").target.model == "${M} e $5"


def changed(old: str, new: str, text: str = PLAN) -> str:
    assert old in text
    return text.replace(old, new, 1)


ERRORS = [
    # the target
    (changed("url: ${TARGET:-embedded}", "uri: x"), "2:3", 'no "url"'),
    (changed("url: ${TARGET:-embedded}", "url: localhost:8000"), "2:8", "http://localhost:8000"),
    (changed("url: ${TARGET:-embedded}", "url: ftp://x"), "2:8", "embedded and a URL"),
    (changed("url: ${TARGET:-embedded}", "url: embeded"), "2:8", 'did you mean "embedded"?'),
    (changed("url: ${TARGET:-embedded}", "url: http://"), "2:8", "no usable host"),
    (changed("url: ${TARGET:-embedded}", "url: http://u:p@x"), "2:8", "Authorization"),
    (changed("url: ${TARGET:-embedded}", "url: http://x:99999"), "2:8", "cannot be read"),
    (changed("url: ${TARGET:-embedded}", "url: ${TARGET}"), "2:8", "${TARGET:-default}"),
    (changed("url: ${TARGET:-embedded}", "url: http://${HOST}:1"), "2:15", "${HOST}"),
    (changed("url: ${TARGET:-embedded}", 'url: "http://${HOST}:1"'), "2:16", "${HOST}"),
    (changed("url: ${TARGET:-embedded}", "url: ${1A}"), "2:8", "$${"),
    (changed("openai-chat", "openai"), "3:8", 'did you mean "openai-chat"?'),
    (changed("api: openai-chat", "path: v1"), "3:9", "begins with /"),
    (changed("api: openai-chat", "timeout: 60"), "3:12", "write 60s"),
    (changed("api: openai-chat", "verify: no.pem"), "3:11", "no.pem"),
    (changed("api: openai-chat", "params: [1]"), "3:11", "keys with values"),
    (changed("Origin: search", "Origin: 3"), "4:60", "put it in quotes"),
    (changed("Origin: search", 'Origin: "a\\nb"'), "4:60", "line break"),
    (changed("Origin:", "Orig n:"), "4:52", "a header's name"),
    (changed('"Bearer ${API_KEY:-}"', "Bearer ${API_KEY:-}"), "4:37", "with quotes"),
    # files
    (changed("scenario: chat.py", "scenario: chatt.py"), "5:11", "relative to the plan's folder"),
    (changed("{ file: prompts.jsonl }", "none.jsonl"), "6:9", "no file"),
    (changed("{ file: prompts.jsonl }", "{ file: none.jsonl }"), "6:17", "no file"),
    (changed("{ file: prompts.jsonl }", "{ path: none.jsonl }"), "6:9", 'no "file"'),
    # load
    (changed("constant 5/s", "constant 5"), "8:31", "write 5/s"),
    (changed("constant 5/s", "5/s"), "8:31", 'did you mean "poisson 5/s"?'),
    (changed("constant 5/s", "possion 5/s"), "8:31", 'did you mean "poisson"?'),
    (changed("constant 5/s", "constant 0/s"), "8:31", "above zero"),
    (changed("for: 10s", "for: 10"), "8:50", "write 10s"),
    (changed("for: 10s", "for: 10/s"), "8:50", "not a duration"),
    (changed("for: 10s", "for: 0s"), "8:50", "above zero"),
    (changed("for: 10s", "duration: 10s"), "8:5", 'no "for"'),
    (changed("record: false", "record: nope"), "8:63", "true or false"),
    (changed("name: warmup", "name: warm up"), "8:13", "letters, digits, _ and -"),
    (changed("name: warmup", "name: no"), "8:13", "put it in quotes"),
    (changed("concurrency: 10, ", ""), "10:5", "neither arrivals nor concurrency"),
    (changed("concurrency: 10", "concurrency: 1, arrivals: poisson 2/s"), "10:5", "both"),
    (changed("concurrency: 10", "concurrency: 1, max_in_flight: 2"), "10:5", "the limit itself"),
    (changed("concurrency: 10", "concurrency: 0"), "10:34", "at least 1"),
    (changed("concurrency: 10", "concurrency: 10, ramp: 5"), "10:44", "write 5s or 5ms"),
    (changed("concurrency: 10", "concurrency: 10, ramp: soon"), "10:44", "a number with a unit"),
    (changed("concurrency: 10", "concurrency: 10, ramp: -5s"), "10:44", "a number with a unit"),
    (changed("concurrency: 10", "concurrency: 10, ramp: 30s"), "10:44", "less than the stage"),
    (changed("concurrency: 10", "concurrency: 10, ramp_up: 5s"), "10:38", 'did you mean "ramp"?'),
    (changed("max_in_flight: 200", "ramp: 5s"), "9:61", "found ramp beside arrivals"),
    (changed("name: closed", "name: steady"), "10:13", "again"),
    (MINIMAL.replace("5s }", "5s, record: false }"), "3:7", "no stage that is recorded"),
    (MINIMAL.replace("for: 5s", "for: 5"), "3:37", "write 5s"),
    (MINIMAL.replace("{ arrivals: poisson 5/s, for: 5s }", "[]"), "3:7", "at least one entry"),
    # budgets
    (changed("p99 < 800ms", "p99 < 800"), "12:21", "write 800ms"),
    (changed('"chat.e2el p99.9 < 10s"', '"chat.e2el p99.9 > 10s"'), "13:32", 'mean "<"?'),
    (changed('"chat.e2el p99.9 < 10s"', "chat.e2e p99.9 < 10s"), "13:20", 'mean "e2el"?'),
    (changed("chat.ttft p99 < 800ms", "${B:-chat.ttft p99 < 800}"), "12:5", "write 800ms"),
    (changed("confidence: 0.99", "confidence: 0.4"), "13:52", "at least 0.5"),
    (changed("confidence: 0.99", "confidence: 1"), "13:52", "at most 0.9999"),
    (changed("confidence: 0.99", "confidence: 95"), "13:52", "0.9999; did you mean 0.95?"),
    (changed("confidence: 0.99", "confidence: 99.9%"), "13:52", "number; did you mean 0.999?"),
    (changed("confidence: 0.99", 'abort: "yes"'), "13:48", 'found "yes"; allowed is true or false'),
    (changed("confidence:", "confidnce:"), "13:40", 'did you mean "confidence"?'),
    (changed("stage: steady", "stage: stedy"), "13:5", 'did you mean "steady"?'),
    (changed("stage: steady", "stage: warmup"), "13:5", "not recorded"),
    (changed("p99 < 800ms", "p99 < 800ms in closd"), "12:5", 'did you mean "closed"?'),
    (PLAN.replace("  - { budget:", "  - chat.ttft p99<800 ms\n  - { budget:"), "13:5", "again"),
    (MINIMAL.replace("[chat.ttft p99 < 800ms]", "[]"), "4:10", "at least one entry"),
    (MINIMAL.replace("[chat.ttft p99 < 800ms]", "chat.ttft p99 < 1s"), "4:10", "a list"),
    (
        changed("chat.ttft p99 < 800ms", "{ budget: chat.ttft mean < 1s, over: 9s }"),
        "12:25",
        "count",
    ),
    (changed("chat.ttft p99 < 800ms", "{ budget: chat.ttft p99 < 1s, over: 9 }"), "12:41", "9s"),
    (
        changed("chat.ttft p99 < 800ms", "{ budget: chat.ttft p99 < 1s, over: 9ms }"),
        "12:41",
        "1s or",
    ),
    (
        changed("chat.ttft p99 < 800ms", "{ budget: chat.ttft p99 < 1s, over: 31s }"),
        "12:41",
        '"closed"',
    ),
    (changed("chat.ttft p99 < 800ms", "chat.ttft p99 < 1s over 61s in steady"), "12:5", '"steady"'),
    (
        changed("chat.ttft p99 < 800ms", "{ budget: chat.ttft mean < 1s, abort: true }"),
        "12:25",
        "end",
    ),
    (
        changed("chat.ttft p99 < 800ms", "{ budget: chat.ttft p99 < 1s, abort: 3 }"),
        "12:42",
        "true or",
    ),
    (
        changed("chat.ttft p99 < 800ms", "{ budget: chat.ttft p99 < 1s, window: 9s }"),
        "12:35",
        '"over"',
    ),
    # how often, and how it is judged
    (changed("${REPEAT:-5}", "0", FULL), "15:9", "at least 1"),
    (changed("${REPEAT:-5}", "21", FULL), "15:9", "at most 20"),
    (changed("repeat:", "runs:", FULL), "15:1", 'did you mean "repeat"?'),
    (changed("[overload, errors]", "[overloads]", FULL), "16:12", 'did you mean "overload"?'),
    (changed("[overload, errors]", "errors", FULL), "16:11", "a list"),
    (changed("holm", "bonferroni", FULL), "17:19", "none, holm"),
    (changed("multiple_testing:", "correction:", FULL), "17:1", 'did you mean "multiple_testing"?'),
    # what it costs
    (changed("chat.ttft p99 < 800ms", "chat.cost mean < $1"), "12:5", "no prices; add to its file"),
    (MINIMAL + "prices: {}\n", "5:9", "found no price"),
    (MINIMAL + "prices: { input: 0.15/1M }\n", "5:18", "write $0.15/1M"),
    (MINIMAL + "prices: { input: $0.15 }\n", "5:18", "write $0.15/1M"),
    (MINIMAL + "prices: { input: 0.15 }\n", "5:18", "US dollars, like $0.15/1M"),
    (MINIMAL + "prices: { input: [1] }\n", "5:18", "a price, like $0.15/1M"),
    (MINIMAL + "prices: { request: $1/1M }\n", "5:20", "an amount is $"),
    (MINIMAL + "prices: { inputs: $1/1M }\n", "5:11", 'did you mean "input"?'),
    (MINIMAL + "pricing: { input: $1/1M }\n", "5:1", 'did you mean "prices"?'),
    (MINIMAL + "prices: $1/1M\n", "5:9", "input, cached_input, output, request, steps"),
    (MINIMAL + "prices: { request: $1, monthly_requests: 0 }\n", "5:42", "at least 1"),
    (MINIMAL + "prices: { request: $1, monthly_requests: 3M }\n", "5:42", "a whole number"),
    (MINIMAL + "prices: { steps: { a: { input: $1/1M } } }\n", "5:9", "found no price"),
    (MINIMAL + "prices: { request: $1, steps: { a: {} } }\n", "5:36", "found no price"),
    (MINIMAL + "prices: { request: $1, steps: { a b: {} } }\n", "5:33", "a step's name"),
    (MINIMAL + "prices: { request: $1, steps: { a: { b: $1 } } }\n", "5:38", "output, request"),
    # the rest
    (changed("${SEED:-42}", "abc"), "14:7", "a whole number"),
    (changed("${SEED:-42}", "${SEED:-abc}"), "14:7", "a whole number"),
    (changed("${SEED:-42}", "1.5"), "14:7", "a whole number"),
    (changed("${SEED:-42}", "-1"), "14:7", "at least 0"),
    (changed("seed:", "sed:"), "14:1", 'did you mean "seed"?'),
    (changed("budgets:", "thresholds:"), "1:1", 'no "budgets"'),
    (PLAN + "thresholds: []\n", "15:1", 'did you mean "budgets"?'),
    (PLAN + "seed: 3\n", "15:1", "on line 14"),
    ("", "1:1", "found nothing"),
    ("# only this\n", "1:1", "found nothing"),
    ("- a\n", "1:1", "found a list"),
    ("hello\n", "1:1", "target, scenario"),
    # what is not plain YAML
    (changed("  api:", "\tapi:"), "3:1", "not tabs"),
    ("a: b: c", "1:5", "mapping values are not allowed"),
    ("a: 1\n---\nb: 2\n", "2:1", "single document"),
    ("a: \x07", "1:4", "U+0007"),
    (b"a: 1\nb: \xff", "2:4", "UTF-8"),
    ("a: !!python/object:os.system 1", "1:4", "found the tag"),
    ("a: !!set {x}", "1:4", "found the tag"),
    ("a: .inf", "1:4", "finite"),
    ("a: " + "1" * 5000, "1:4", "finite"),
    ("? [a]\n: 1", "1:3", "as a key"),
    ("a: &x {b: 1}\nc: {<<: *x}", "2:5", '"<<" as a key'),
    ("a: *x", "1:4", "undefined alias"),
    ("&x [*x]", "1:1", "more than 32 deep"),
    ("[" * 40 + "]" * 40, "1:34", "more than 32 deep"),
    ("[" * 3000, "1:1", "more than 32 deep"),
    (
        "a: &a [" + "1," * 30 + "]\nb: &b [" + "*a," * 30 + "]\nc: [" + "*b," * 30 + "]",
        "1:16",
        "more than 10,000 values",
    ),
]


@pytest.mark.parametrize(("text", "place", "words"), ERRORS)
def test_a_mistake_is_placed_and_explained(
    folder: Path, text: str | bytes, place: str, words: str
) -> None:
    error = error_of(folder, text)
    assert (place_in(error), words in str(error)) == (place, True), str(error)


def test_all_mistakes_are_told_at_once_the_first_one_first(folder: Path) -> None:
    text = changed("openai-chat", "openai").replace("seed: ${SEED:-42}\n", "\n")
    first, second, third = str(error_of(folder, "sed: 1\n" + text + "seed: x")).splitlines()
    assert "plan.yaml:1:1: " in first
    assert "plan.yaml:4:8: " in second
    assert "plan.yaml:16:7: " in third


def test_a_plan_that_is_missing_a_folder_or_too_large_is_named(folder: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.yaml: cannot be read: no such file"):
        load_plan(folder / "none.yaml")
    with pytest.raises(PlanError, match="is a directory"):
        load_plan(folder)
    assert "1,048,576 bytes" in str(error_of(folder, "#" * (1 << 20) + "x"))


@given(st.text(alphabet="abc:-[]{}&*!\"'$ \n\t#|>%@,?0", max_size=40))
def test_any_text_is_plain_values_or_an_error_with_a_place(text: str) -> None:
    from harness.plan.document import Document

    try:
        Document(Path("plan.yaml"), text, {})
    except PlanError as error:
        place = error.place
    else:
        place = "plan.yaml:"
    assert place.startswith("plan.yaml:")


def test_a_budget_of_an_unknown_step_is_refused_at_its_place(folder: Path) -> None:
    plan = load(folder, PLAN)
    check_steps(plan, ["chat", "answer/generate"])
    with pytest.raises(PlanError, match=r'plan\.yaml:12:5: found the step "chat".*"chats"'):
        check_steps(plan, ["chats"])


PRICES = """\
prices:
  input: $0.15/1M
  cached_input: ${CACHED:-$0.075/1M}
  output: $0.0006/1k
  request: $0.0001
  steps: { answer/embed: { input: $0.02/1M } }
  monthly_requests: 3000000
"""


def test_prices_are_read_exactly_and_saved_with_the_run(folder: Path) -> None:
    plan = load(folder, PLAN + PRICES)
    assert plan.prices == PriceTable(
        default=Prices(
            input=Decimal(150),
            cached_input=Decimal(75),
            output=Decimal(600),
            request=Decimal(100_000),
        ),
        steps={"answer/embed": Prices(input=Decimal(20))},
        monthly_requests=3_000_000,
    )
    run = describe(plan, "http://x", stage_windows(plan), 10**9)
    assert json.loads(json.dumps(run["prices"])) == plan.prices.written()
    assert describe(load(folder, PLAN), "http://x", (), 10**9)["prices"] is None


def test_prices_of_an_unknown_step_are_refused_at_their_place(folder: Path) -> None:
    plan = load(folder, MINIMAL + PRICES)
    check_steps(plan, ["chat", "answer/embed"])
    with pytest.raises(PlanError, match=r'10:12: found prices of the step .*"answer/embedding"'):
        check_steps(plan, ["chat", "answer/embedding"])


def test_run_is_a_step_of_every_scenario(folder: Path) -> None:
    check_steps(load(folder, MINIMAL.replace("chat.ttft", "run.ttft")), ["chat"])


SECRET = "sk-very-secret-1234"


def test_secrets_of_the_environment_stay_out_of_repr_and_source(folder: Path) -> None:
    plan = load(folder, PLAN, API_KEY=SECRET)
    assert plan.redacted_source == PLAN
    assert SECRET not in repr(plan) + str(plan.target)
    assert secrets(plan) == (f"Bearer {SECRET}", SECRET)


@pytest.mark.parametrize(
    "header",
    [
        f"Authorization: Bearer {SECRET}",
        f'authorization: "Bearer {SECRET}"',
        f"x-api-key: '{SECRET}'",
        f"api-key: {SECRET}",
        f"Cookie: session={SECRET}",
        f"X-Auth-Token: {SECRET}",
        f"client-secret: ${{KEY:-{SECRET}}}",
        f"api-key: >-\n      {SECRET}",
    ],
)
def test_a_secret_written_out_is_masked_wherever_it_stands(folder: Path, header: str) -> None:
    text = changed(
        'headers: { Authorization: "Bearer ${API_KEY:-}", Origin: search }',
        f"headers:\n    {header}\n    Origin: search  # not {SECRET}",
    )
    plan = load(folder, text)
    assert SECRET not in plan.redacted_source + repr(plan)
    assert "Origin: search" in plan.redacted_source
    assert any(SECRET in secret for secret in secrets(plan))
    assert plan.source == text


def test_a_byte_order_mark_shifts_nothing(folder: Path) -> None:
    plan = load(folder, "\ufeff" + changed('"Bearer ${API_KEY:-}"', SECRET))
    assert plan.redacted_source == changed('"Bearer ${API_KEY:-}"', '"***"')


def test_a_secret_variable_is_known_wherever_it_is_used(folder: Path) -> None:
    plan = load(folder, changed("${TARGET:-embedded}", "http://x/?key=${API_KEY}"), API_KEY=SECRET)
    assert SECRET in secrets(plan)


def test_no_error_repeats_a_header(folder: Path) -> None:
    for header in ("x-api-key: 123456789", "x-api-key: [123456789]", '"x: 123456789": a'):
        text = changed("Origin: search", header)
        assert "123456789" not in str(error_of(folder, text))
    text = MINIMAL.replace("url: embedded", f"url: embedded, headers: {SECRET}")
    assert SECRET not in str(error_of(folder, text))


def test_a_short_secret_is_known_too_and_garbles_no_text(folder: Path) -> None:
    plan = load(folder, changed('"Bearer ${API_KEY:-}"', "chat"), API_KEY="")
    assert "scenario: ***.py" in plan.redacted_source
    plan = load(folder, changed('"Bearer ${API_KEY:-}"', "cha"))
    assert 'Authorization: "***"' in plan.redacted_source
    assert "scenario: chat.py" in plan.redacted_source
    assert secrets(plan) == ("cha",)
    assert secrets(load(folder, PLAN, API_KEY="abc"))[-1] == "abc"


def options(folder: Path, **given: object) -> Plan:
    base = {"scenario": folder / "chat.py", "budgets": ("chat.ttft p99 < 800ms",)}
    return plan_from_options(**{**base, **given})  # type: ignore[arg-type]


def test_options_say_the_same_as_a_file(folder: Path) -> None:
    plan = options(folder, url="http://x", rate="20/s", duration="5s", seed=3, model="tiny")
    text = changed("{ url: embedded }", "{ url: http://x, model: tiny }", MINIMAL)
    from_file = load(folder, changed("poisson 5/s", "poisson 20/s", text) + "seed: 3\n")
    for name in ("target", "scenario", "inputs", "load", "budgets", "seed", "workers", "drain_ns"):
        assert getattr(plan, name) == getattr(from_file, name)
    assert (plan.name, plan.path) == ("chat", None)


def test_a_ramp_is_read_and_a_default_one_depends_on_the_stage(folder: Path) -> None:
    stages = [
        "{ concurrency: 10, ramp: 2500ms, for: 30s }",
        "{ concurrency: 10, ramp: 0s, for: 30s }",
        "{ concurrency: 10, for: 30s }",
        "{ concurrency: 10, for: 4s }",
        "{ arrivals: poisson 5/s, for: 30s }",
    ]
    text = MINIMAL.replace("{ arrivals: poisson 5/s, for: 5s }", f"[{', '.join(stages)}]")
    plan = load(folder, text)
    assert [stage.ramp_ns for stage in plan.load] == [2_500_000_000, 0, None, None, None]
    assert [stage.spread_ns / 1e9 for stage in plan.load[:4]] == [2.5, 0, 1, 0.4]
    assert [window.ramp_s for window in stage_windows(plan)] == [2.5, 0, 1, 0.4, 0]


def test_the_source_of_options_is_a_plan_without_secrets(folder: Path) -> None:
    header = f"Authorization: Bearer {SECRET}"
    plan = options(folder, concurrency=3, headers=(header, "X-Team: a:b"))
    assert plan.target.headers == {"Authorization": f"Bearer {SECRET}", "X-Team": "a:b"}
    assert SECRET not in plan.source + plan.redacted_source + repr(plan)
    assert load(folder, plan.source).load == plan.load


@pytest.mark.parametrize(
    ("given", "place", "words"),
    [
        ({"rate": "20"}, "--rate", "write 20/s"),
        ({}, "--rate", "neither"),
        ({"rate": "2/s", "concurrency": 3}, "--rate", "both"),
        ({"rate": "2/s", "arrivals": "constant 2/s"}, "--rate", "--arrivals"),
        ({"arrivals": "constantly 2/s"}, "--arrivals", '"constant"'),
        ({"concurrency": 0}, "--concurrency", "at least 1"),
        ({"concurrency": 3, "ramp": "5"}, "--ramp", "write 5ms or 5s"),
        ({"concurrency": 3, "ramp": "5m"}, "--ramp", "less than the stage"),
        ({"rate": "2/s", "ramp": "5s"}, "--ramp", "beside arrivals"),
        ({"rate": "2/s", "duration": "5"}, "--for", "write 5ms or 5s"),
        ({"rate": "2/s", "url": "localhost"}, "--target", "http://localhost"),
        ({"rate": "2/s", "api": "opnai-chat"}, "--api", '"openai-chat"'),
        ({"rate": "2/s", "headers": ("abc",)}, "--header", "Name: value"),
        ({"rate": "2/s", "budgets": ("chat.ttft p99<800",)}, "--budget", "write 800ms"),
        ({"rate": "2/s", "budgets": ()}, "--budget", "at least one"),
        ({"rate": "2/s", "budgets": ("run.cost mean < $1",)}, "--budget", "has no prices"),
        ({"rate": "2/s", "seed": -1}, "--seed", "at least 0"),
        ({"rate": "2/s", "workers": 0}, "--workers", "at least 1"),
        ({"rate": "2/s", "repeat": 99}, "--repeat", "at most 20"),
        ({"rate": "2/s", "inputs": "no.jsonl"}, "--inputs", "the working folder"),
        ({"rate": "2/s", "scenario": "no.py"}, "scenario", "the working folder"),
    ],
)
def test_a_mistaken_option_is_named(
    folder: Path, given: dict[str, object], place: str, words: str
) -> None:
    with pytest.raises(PlanError) as caught:
        options(folder, **given)
    assert caught.value.place == place
    assert words in caught.value.problem


def test_the_schema_describes_every_key_as_it_is_written() -> None:
    schema = json_schema()
    entries = schema["$defs"]
    keys = {
        name: set(entry["properties"]) for name, entry in entries.items() if "properties" in entry
    }
    assert set(schema["required"]) == {"target", "scenario", "load", "budgets"}
    assert keys["StageEntry"] >= {"for", "arrivals", "concurrency", "record", "max_in_flight"}
    assert "timeout" in keys["TargetEntry"]
    for entry in [schema, *entries.values()]:
        for name, value in entry.get("properties", {}).items():
            described = "description" in value or "$ref" in json.dumps(value)
            assert described, name
    assert all(entry.get("additionalProperties", False) is False for entry in entries.values())


def test_the_schemas_patterns_take_what_the_plan_takes() -> None:
    import re

    stage = json_schema()["$defs"]["StageEntry"]["properties"]
    (arrivals,) = [kind for kind in stage["arrivals"]["anyOf"] if kind.get("type") == "string"]
    for text in ("poisson 20/s", "constant 0.5/m", "${ARRIVALS}"):
        assert re.search(arrivals["pattern"], text)
    assert not re.search(arrivals["pattern"], "poisson 20")
    for text in ("300ms", "1.5s", "2m", "${FOR:-10s}"):
        assert re.search(stage["for"]["pattern"], text)
    assert not re.search(stage["for"]["pattern"], "300")
    prices = json_schema()["$defs"]["PricesEntry"]["properties"]
    for key, good, bad in (("input", "$0.15/1M", "$0.15"), ("request", "$0.1", "0.1")):
        (price,) = [kind for kind in prices[key]["anyOf"] if kind.get("type") == "string"]
        assert re.search(price["pattern"], good)
        assert re.search(price["pattern"], "${PRICE}")
        assert not re.search(price["pattern"], bad)


def test_reading_a_plan_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, harness.plan; "
        "print([m for m in ('numpy', 'httpx', 'gevent', 'locust', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
