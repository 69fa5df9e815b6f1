"""README.md and docs/ are held to the code: generated parts are current, every snippet runs."""

import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from commands import invoked
from readme_parts import PARTS, README, part

from harness.budget import parse_budget
from harness.endpoint import Settings, running
from harness.errors import ExitCode
from harness.plan import load_plan

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")
JUDGED = {ExitCode.PASS, ExitCode.FAIL, ExitCode.INCONCLUSIVE, ExitCode.INVALID}
OUR_URL = "http://127.0.0.1:8000"


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line[2:] for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def endpoint():
    with running(Settings.of({"ttft_ms": 10, "gap_ms": 1})) as url:
        yield url


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The present folder, from which the README's relative paths work."""
    (tmp_path / "locustfiles").symlink_to(ROOT / "locustfiles")
    example = tmp_path / "reports" / "example"
    example.mkdir(parents=True)
    for file in (ROOT / "reports" / "example").iterdir():
        (example / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, url: str) -> SimpleNamespace:
    """Run a command of the README against this URL: `harness` here, `locust` as a process."""
    program, *words = [word.replace(OUR_URL, url) for word in shlex.split(command)]
    if program == "harness":
        done = invoked(*words)
        return SimpleNamespace(code=done.exit_code, stdout=done.stdout, stderr=done.stderr)
    assert program == "locust"
    done = subprocess.run(
        [sys.executable, "-m", "locust", *words],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    return SimpleNamespace(code=done.returncode, stdout=done.stdout, stderr=done.stderr)


@pytest.mark.parametrize("name", PARTS)
def test_the_generated_parts_of_the_readme_are_current(name):
    assert part(TEXT, name)[2] == PARTS[name](), "run `make docs`"


def test_the_readmes_plan_is_usable_and_its_budgets_parse(folder):
    plans = [text for text in blocks("yaml") if "scenario:" in text]
    assert plans
    for text in plans:
        (folder / "plan.yaml").write_text(text, encoding="utf-8")
        assert load_plan(folder / "plan.yaml", environ={}).budgets
    for text in blocks("yaml"):
        data = yaml.safe_load(text)
        if set(data) == {"budgets"}:
            assert [parse_budget(budget) for budget in data["budgets"]]


def test_the_readmes_example_budgets_follow_the_grammar():
    grammar = next(text for text in blocks("text") if "::=" in text)
    examples = grammar.partition("\n\n")[2].splitlines()
    sentences = [s for line in examples for s in re.split(r" {2,}", line) if s]
    assert len(sentences) == 10
    for sentence in sentences:
        assert parse_budget(sentence).text == sentence


def test_the_readmes_error_message_is_what_is_said(folder):
    said = next(text for text in blocks("text") if "tfft" in text).strip()
    begin, end = said.split("…; ")
    text = next(text for text in blocks("yaml") if "scenario:" in text)
    (folder / "plan.yaml").write_text(text.replace("chat.ttft p95", "chat.tfft p95"), "utf-8")
    found = run("harness run plan.yaml", OUR_URL)
    assert found.code == ExitCode.USAGE
    place = r"plan\.yaml:\d+:\d+: "
    assert re.search(place, begin)
    assert re.sub(place, "", begin) in found.stderr
    assert end in found.stderr


def test_the_readmes_scenario_answers_the_preflight(folder, endpoint):
    (folder / "rag.py").write_text(blocks("python")[0], encoding="utf-8")
    (folder / "plan.yaml").write_text(
        f"target: {{ url: '{endpoint}' }}\nscenario: rag.py\n"
        "inputs: locustfiles/prompts.jsonl\n"
        "load: { arrivals: constant 1/s, for: 1s }\n"
        "budgets: [answer/generate.ttft p95 < 1s, answer/retrieve.e2el p95 < 1s]\n",
        encoding="utf-8",
    )
    done = run("harness check plan.yaml", endpoint)
    assert done.code == 0, done.stderr
    assert "answer/generate" in done.stdout


def test_the_readmes_commands_run_in_order(folder, endpoint):
    ran = []
    for shown in commands():
        if shown.split()[0] in ("make", "pip"):
            continue
        command = shown.replace("--for 30s", "--for 1s").replace("-t 10s", "-t 1s")
        done = run(command, endpoint)
        allowed = JUDGED if re.search(r" run |gate|plan-size|^locust", command) else {ExitCode.PASS}
        assert done.code in allowed, f"{command}\n{done.stderr}"
        ran.append(command)
        plan = folder / "loadtest" / "plan.yaml"
        if "init" in command:
            short = re.sub(r"for: \d+s", "for: 1s", plan.read_text(encoding="utf-8"))
            plan.write_text(short, encoding="utf-8")
    assert len(ran) >= 8


def test_the_ci_workflow_gates_by_exit_code_and_shows_the_report():
    workflow = next(yaml.safe_load(text) for text in blocks("yaml") if "runs-on" in text)
    steps = workflow["jobs"]["latency"]["steps"]
    assert sum(len(step) for step in steps) <= 10
    (gate,) = [step["run"] for step in steps if "harness run" in step.get("run", "")]
    plan = load_plan(ROOT / shlex.split(gate)[2], environ={})
    assert plan.budgets


def test_the_demos_output_in_the_readme_judges_the_demos_budgets():
    shown = next(text for text in blocks("console") if "$ make demo" in text)
    plan = load_plan(ROOT / "locustfiles" / "chat.yaml", environ={})
    for budget in plan.budgets:
        assert budget.subject in shown
        assert budget.limit_text in shown
    assert "exit code 0" in shown


def test_the_architecture_page_follows_a_line_that_the_demos_plan_has():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    plan = (ROOT / "locustfiles" / "chat.yaml").read_text(encoding="utf-8")
    for line in blocks("yaml", page)[0].splitlines():
        assert line in plan


def test_the_architecture_page_names_every_module():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {p.stem for p in (ROOT / "harness").iterdir() if not p.name.startswith(("_", "py."))}
    assert {name for name in modules if f"| `{name}` |" not in page} == set()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "locustfiles").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_ready_plan_is_usable(path):
    plan = load_plan(path, environ={})
    assert plan.scenario == path.with_suffix(".py")
