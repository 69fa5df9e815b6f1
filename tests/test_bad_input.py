"""What cannot run is refused before the load: one message, its exit code, nothing left behind."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from commands import LOCUSTFILES, PREDICT, Asked, finished, invoked, predictions, serving

PLAN = """\
target: { url: embedded, api: json }
scenario: scenario.py
load:
  - { name: steady, arrivals: constant 5/s, for: 1s }
budgets:
  - predict.e2el p50 < 30s
"""
DEAD = "http://127.0.0.1:1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scenario.py").write_text(PREDICT)
    (tmp_path / "plan.yaml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert not result.stdout
    assert result.stderr.startswith("harness: ")
    return result.stderr.removeprefix("harness: ")


MISTAKES = [
    ("budgets:", "budget:", "5:1", ['found the key "budget"', "allowed are", '"budgets"']),
    ("for: 1s", "for: 1 sec", "4:50", ["'1 sec' is not a duration", "like 300ms"]),
    ("for: 1s", "for: 0s", "4:50", ['found "0s"', "above zero"]),
    ("for: 1s", "for: 5", "4:50", ['found "5"', "write 5s"]),
    ("5/s,", "0/s,", "4:31", ["the rate must be above zero"]),
    ("constant 5/s", "possion 5/s", "4:31", ['"possion 5/s"', 'did you mean "poisson"']),
    (
        "predict.e2el",
        "predict.latency",
        "6:13",
        ['"latency"', "known are ttft", 'did you mean "e2el"'],
    ),
    ("p50", "p101", "6:18", ['"p101"', "from p1 to below p100"]),
    ("p50 ", "", "6:18", ["p99"]),
    ("30s", "30", "6:24", ["has no unit", "30s"]),
    ("scenario.py", "scenarios.py", "2:11", ['found "scenarios.py"', "there is no file"]),
    ("scenario: scenario.py\n", "", "1:1", ['found no "scenario"']),
    ("budgets:\n  - predict.e2el p50 < 30s", "budgets: []", "5:10", ["an empty list"]),
    ("api: json", "api: jsn", "1:31", ['"jsn"', 'did you mean "json"']),
    ("url: embedded", 'url: "${NOWHERE_SET}"', "1:17", ["${NOWHERE_SET}", "not set"]),
    ("name: steady", "name: 'a, b'", "4:14", ['"a, b"', "letters, digits"]),
    ("name: steady", "name: größe", "4:13", ['"größe"']),
    ("arrivals: constant 5/s", "concurrency: 0", "4:34", ["at least 1"]),
    ("arrivals: constant 5/s", "concurrency: true", "4:34", ["found true", "a whole number"]),
    ("arrivals: constant 5/s", "concurrency: 10000000", "4:34", ["at most 100000"]),
    ("for: 1s", "for: 1s, max_in_flight: 10000000", "4:69", ["at most 100000"]),
    ("5/s,", "1000000000/s,", "4:31", ["up to 1,000,000/s", "a second a worker"]),
    ("for: 1s", 'for: 1s, record: "yes"', "4:63", ['found "yes"', "true or false"]),
    ("target:", "repeat: yes\ntarget:", "1:9", ["found true", "a whole number"]),
    ("target:", "workers: 2.0\ntarget:", "1:10", ['found "2.0"', "a whole number"]),
]


@pytest.mark.parametrize(("right", "wrong", "where", "says"), MISTAKES)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_mistake_in_a_plan_is_refused_with_its_place_and_what_is_allowed(
    folder: Path, command: str, right: str, wrong: str, where: str, says: list[str]
) -> None:
    text = PLAN.replace(right, wrong)
    assert text != PLAN
    (folder / "plan.yaml").write_text(text, encoding="utf-8")
    message = refusal(invoked(command, "plan.yaml"), 2)
    assert f"plan.yaml:{where}: " in message
    for words in says:
        assert words in message
    assert "  " not in message


def test_the_same_budget_or_stage_twice_is_refused(folder: Path) -> None:
    (folder / "plan.yaml").write_text(PLAN + "  - predict.e2el p50 < 30s\n")
    assert "plan.yaml:7:5: found the budget" in refusal(invoked("run", "plan.yaml"), 2)
    line = "  - { name: steady, arrivals: constant 5/s, for: 1s }\n"
    (folder / "plan.yaml").write_text(PLAN.replace(line, line * 2))
    assert 'plan.yaml:5:13: found the stage "steady" again' in refusal(
        invoked("run", "plan.yaml"), 2
    )


def test_what_is_no_plan_file_is_refused(folder: Path) -> None:
    assert "is a directory" in refusal(invoked("run", folder), 2)
    assert "no such file" in refusal(invoked("check", "missing.yaml"), 2)
    (folder / "big.yaml").write_text("x: " + "0" * 2_000_000)
    assert "larger than" in refusal(invoked("run", "big.yaml"), 2)
    (folder / "binary.yaml").write_bytes(b"\x00\xff\xfe")
    assert "binary.yaml:1:" in refusal(invoked("run", "binary.yaml"), 2)


def test_a_mistake_really_ends_the_process_with_one_message_and_code_2(folder: Path) -> None:
    (folder / "plan.yaml").write_text(PLAN.replace("p50", "p101"))
    done = finished("run", "plan.yaml", cwd=folder)
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("harness: plan.yaml:6:18: ")
    assert done.stderr.count("\n") == 1


OPTIONS = [
    (["--rate", "0/s"], "--rate: "),
    (["--rate", "5"], "--rate: "),
    (["--rate", "5/s", "--arrivals", "constant 5/s"], "--rate: "),
    (["--rate", "5/s", "--concurrency", "1"], "--rate: found both"),
    (["--rate", "5/s", "--for", "0s"], "--for: "),
    (["--concurrency", "0"], "--concurrency: "),
    (["--concurrency", "many"], "--concurrency: "),
    (["--concurrency", "1", "--workers", "0"], "--workers: "),
    (["--concurrency", "1", "--seed", "-1"], "--seed: "),
    (["--concurrency", "1", "--header", "no colon"], "--header: "),
    (["--concurrency", "1", "--target", "localhost:1"], "--target: "),
    (["--concurrency", "1", "--api", "open-ai"], "--api: "),
    (["--concurrency", "1", "--inputs", "none.jsonl"], "--inputs: "),
    (["--concurrency", "1", "--budget", "predict.e2el p50 < 3"], "--budget: "),
    (["--concurrency", "1", "--budget", "predict.e2el p50 < 30s"], "--budget: found the budget"),
]


@pytest.mark.parametrize(("options", "says"), OPTIONS)
def test_a_wrong_option_beside_a_scenario_is_refused_by_its_name(
    folder: Path, options: list[str], says: str
) -> None:
    given = ["run", "scenario.py", "--budget", "predict.e2el p50 < 30s", *options]
    assert refusal(invoked(*given), 2).startswith(says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rate", "5/s", "--for", "1s", "--arrivals", "x"], "--rate, --arrivals, --for beside"),
        (
            ["--inputs", "x", "--budget", "x", "--header", "x"],
            "--budget, --inputs, --header beside",
        ),
        (["--workers", "0"], "--workers: found '0'; allowed is a whole number, 1 to"),
        (["--workers", "99999"], "--workers: found '99999'"),
        (["--seed", "9" * 30], "--seed: found"),
        (["--seed", "one"], "--seed: found 'one'"),
        (["--target", "localhost:8000"], '--target: found "localhost:8000"'),
    ],
)
def test_an_option_that_a_plan_file_does_not_go_with_is_refused(
    folder: Path, options: list[str], says: str
) -> None:
    assert refusal(invoked("run", "plan.yaml", *options), 2).startswith(says)


@pytest.mark.parametrize("command", ["gate", "report"])
def test_a_folder_that_holds_no_run_is_refused(folder: Path, command: str) -> None:
    assert "is not a run folder" in refusal(invoked(command, folder), 2)
    assert "is not a run folder" in refusal(invoked(command, folder / "missing"), 2)
    (folder / "run.json").write_text("{")
    assert "cannot be read" in refusal(invoked(command, folder), 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "0", "--set", "slotz=4"],
        ["--port", "0", "--set", "slots"],
        ["--port", "0", "--set", "slots=many"],
    ],
)
def test_an_endpoint_that_cannot_be_set_up_is_refused(arguments: list[str]) -> None:
    assert "embedded endpoint: " in refusal(invoked("endpoint", *arguments), 2)


# --- scenarios -----------------------------------------------------------------------------------

SCENARIOS = [
    ("def broken(:\n", r"scenario\.py:1:12: SyntaxError: invalid syntax"),
    ("x = 1\nimport no_such_module\n", r"scenario\.py:2: ModuleNotFoundError: .*no_such_module"),
    ("raise ValueError('at import')\n", r"scenario\.py:1: ValueError: at import"),
    ("import sys\nsys.exit(3)\n", r"scenario\.py:2: SystemExit: 3"),
    ("from locust import User, task\nclass Other(User):\n    @task\n    def t(self): ...\n",
     r"no subclass of harness\.ModelUser .*Other"),
    (PREDICT.replace('self.predict({"instances": [[1.0]]})', "self.next_input()"), r"inputs: FILE"),
    (PREDICT.replace('self.predict({"instances": [[1.0]]})', "1 / 0"), r"division by zero"),
    (PREDICT.replace('self.predict({"instances": [[1.0]]})', "pass"),
     r'^plan\.yaml:6:5: found the step "predict"'),
    (PREDICT + "\n    def on_start(self):\n        raise KeyError('on start')\n", r"on start"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), SCENARIOS)
def test_a_scenario_that_cannot_run_is_refused(folder: Path, text: str, says: str) -> None:
    (folder / "scenario.py").write_text(text)
    with serving(predictions) as url:
        message = refusal(invoked("run", "plan.yaml", "--target", url, "--out", "run"), 2)
    assert re.search(says, message)
    assert "locust.log" not in message  # it is gone with the folder
    assert not (folder / "run").exists()


def test_a_scenario_in_another_encoding_can_be_checked(folder: Path) -> None:
    text = f'# -*- coding: latin-1 -*-\n"""Größe."""\n{PREDICT}'
    (folder / "scenario.py").write_bytes(text.encode("latin-1"))
    with serving(predictions) as url:
        assert invoked("check", "plan.yaml", "--target", url).exit_code == 0


def test_a_step_in_the_preflight_that_a_budget_misspells_is_suggested(folder: Path) -> None:
    (folder / "plan.yaml").write_text(PLAN.replace("predict.", "perdict."))
    with serving(predictions) as url:
        message = refusal(invoked("check", "plan.yaml", "--target", url), 2)
    assert message.startswith('plan.yaml:6:5: found the step "perdict"; the scenario has predict')
    assert 'did you mean "predict"' in message


def test_inputs_of_another_dialect_than_a_task_sends_them_in_are_refused_before_the_load(
    folder: Path,
) -> None:
    rows = [{"input": "a", "weight": 1e6}, {"messages": [{"role": "user", "content": "b"}]}]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "scenario.py").write_text(PREDICT.replace(
        'self.predict({"instances": [[1.0]]})', "self.embed(self.next_input(), step='predict')"
    ))  # fmt: skip
    (folder / "plan.yaml").write_text(PLAN + "inputs: rows.jsonl\n")
    with serving(lambda asked, _: asked.reply(200, {"data": [{"embedding": [1.0]}]})) as url:
        message = refusal(invoked("run", "plan.yaml", "--target", url, "--out", "run"), 2)
    assert "rows.jsonl:2: an input for openai-embeddings needs 'input' or 'prompt'" in message
    assert "found 'messages'; name other inputs" in message
    assert not (folder / "run").exists()


# --- targets -------------------------------------------------------------------------------------


def moved(asked: Asked, _number: int) -> None:
    asked.send_response(307)
    asked.send_header("location", "https://new.test/v1")
    asked.send_header("content-length", "0")
    asked.end_headers()


@pytest.fixture(scope="module")
def targets() -> Iterator[SimpleNamespace]:
    """Targets that misbehave, by how."""
    with ExitStack() as stack:
        yield SimpleNamespace(
            down=DEAD,
            missing=stack.enter_context(serving(lambda asked, _: asked.reply(404, {}))),
            locked=stack.enter_context(
                serving(lambda asked, _: asked.reply(401, {"error": "who?"}))
            ),
            limited=stack.enter_context(serving(lambda asked, _: asked.reply(429, {}))),
            broken=stack.enter_context(serving(lambda asked, _: asked.reply(503, {}))),
            moved=stack.enter_context(serving(moved)),
            page=stack.enter_context(
                serving(lambda asked, _: asked.reply(200, "<p>", "text/html"))
            ),
            closing=stack.enter_context(
                serving(lambda asked, _: asked.connection.shutdown(socket.SHUT_RDWR))
            ),
            hanging=stack.enter_context(serving(lambda asked, _: asked.rfile.read())),
        )


TARGETS = [
    ("down", "connect", "check that the target is up"),
    ("missing", "status 404", "check path"),
    ("locked", "status 401", "API key"),
    ("limited", "status 429", "limits how often"),
    ("broken", "status 503", "has failed: look at its log"),
    ("moved", "status 307: redirected to https://new.test/v1", "let the target's url"),
    ("page", "not a stream", "must stream"),
    ("closing", "reset", "closed the connection"),
    ("hanging", "timeout", "raise the target's timeout"),
]


@pytest.mark.parametrize(("how", "failure", "advice"), TARGETS)
def test_a_target_that_fails_the_preflight_is_named_with_advice_and_no_folder_is_left(
    folder: Path, targets: SimpleNamespace, how: str, failure: str, advice: str
) -> None:
    timeout = "300ms" if how == "hanging" else "60s"
    (folder / "chat.yaml").write_text(
        f"target: {{ url: {getattr(targets, how)}, timeout: {timeout} }}\n"
        f"scenario: {LOCUSTFILES / 'chat.py'}\ninputs: {LOCUSTFILES / 'prompts.jsonl'}\n"
        "load: { concurrency: 1, for: 1s }\nbudgets: [chat.ttft p50 < 30s]\n"
    )
    message = refusal(invoked("run", "chat.yaml", "--out", "run"), 6)
    assert (
        f"{getattr(targets, how)} did not pass the preflight: step chat failed with {failure}"
        in message
    )
    assert advice in message
    assert message.count("\n") == 1
    assert not (folder / "run").exists()


def test_a_failure_that_names_its_setting_gets_no_other_advice(folder: Path) -> None:
    event = b'data: {"choices": [{"delta": {"content": "' + b"x" * 2000 + b'"}}]}\n\n'
    with serving(lambda asked, _: asked.reply(200, event.decode(), "text/event-stream")) as url:
        (folder / "chat.yaml").write_text(
            f"target: {{ url: {url}, max_event: 1KiB }}\n"
            f"scenario: {LOCUSTFILES / 'chat.py'}\ninputs: {LOCUSTFILES / 'prompts.jsonl'}\n"
            "load: { concurrency: 1, for: 1s }\nbudgets: [chat.ttft p50 < 30s]\n"
        )
        message = refusal(invoked("run", "chat.yaml", "--out", "run"), 6)
    assert "max_event in the plan's target allows more" in message
    assert "check the target" not in message


def test_check_says_of_a_dead_target_one_sentence(folder: Path) -> None:
    done = finished("check", "plan.yaml", "--target", DEAD, cwd=folder)
    assert done.returncode == 6
    assert not done.stdout
    assert re.fullmatch(r"harness: .*did not pass the preflight.*\n", done.stderr)


def test_a_failed_preflight_leaves_what_the_folder_held_before(folder: Path) -> None:
    refusal(invoked("run", "plan.yaml", "--target", DEAD, "--out", "."), 6)
    left = {file.name for file in folder.iterdir()} - {"__pycache__"}  # of the scenario
    assert left == {"plan.yaml", "scenario.py"}


def test_an_output_folder_that_cannot_be_used_is_refused_before_the_target_is_asked(
    folder: Path,
) -> None:
    given = ("run", "plan.yaml", "--target", DEAD, "--out")
    assert "/dev/null/x cannot be written" in refusal(invoked(*given, "/dev/null/x"), 2)
    (folder / "old").mkdir()
    (folder / "old" / "run.json").write_text("{}")
    assert "old already holds a run" in refusal(invoked(*given, "old"), 2)
    assert (folder / "old" / "run.json").read_text() == "{}"
