"""The command end to end, as a process: what it prints, what it leaves, what code it ends with."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import signal
import socket
import ssl
import struct
import subprocess
import termios
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from commands import (
    CALM,
    LOCUSTFILES,
    PREDICT,
    Asked,
    calm,
    environment,
    finished,
    invoked,
    predictions,
    run_json,
    serving,
    started,
    total,
)

from harness import __version__
from harness.endpoint import Settings, running
from harness.plan import load_plan
from harness.swarm.manifest import default_folder

LOAD = "{ name: steady, arrivals: constant 20/s, for: 1s }"
EASY = "[predict.e2el max < 30s, predict.service max < 30s]"
IMPOSSIBLE = "[predict.e2el max < 1us, predict.rate > 0.1/s]"
TOO_FEW = "[predict.e2el p99 < 30s]"
FILES = {"report.html", "report.md", "verdict.json", "junit.xml"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans and a scenario, with finished runs beside them as tests ask for them."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "scenario.py").write_text(PREDICT)
    for name, budgets in {"easy": EASY, "impossible": IMPOSSIBLE, "too-few": TOO_FEW}.items():
        (folder / f"{name}.yaml").write_text(
            "target: { url: embedded, api: json }\nscenario: scenario.py\n"
            f"load: {LOAD}\nbudgets: {budgets}\nembedded: {{ predict_ms: 5 }}\n"
        )
    return folder


@pytest.fixture(name="calm")
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    calm(monkeypatch)


@pytest.fixture(scope="module")
def passed(folder: Path) -> subprocess.CompletedProcess[str]:
    """`harness run PLAN --json -`, kept in passed/."""
    return finished("run", "easy.yaml", "--out", "passed", "--json", "-", cwd=folder, command=CALM)


@pytest.fixture(scope="module")
def failed(folder: Path) -> subprocess.CompletedProcess[str]:
    """The same without a plan file, with a budget that cannot be met, kept in failed/."""
    return finished(
        "run", "scenario.py", "--target", "embedded", "--api", "json", "--model", "größe-1",
        "--rate", "20/s", "--for", "1s", "--header", "X-Team: search", "--seed", 5, "-v",
        "--budget", "predict.e2el max < 1us", "--budget", "predict.rate > 0.1/s",
        "--out", "failed", cwd=folder, command=CALM, GITHUB_ACTIONS="true",
    )  # fmt: skip


def test_the_installed_command_is_this_version(folder: Path) -> None:
    assert __version__ in finished("--version", cwd=folder).stdout


def test_a_met_plan_ends_with_0_and_stdout_is_one_json_document(
    folder: Path, passed: subprocess.CompletedProcess[str]
) -> None:
    assert passed.returncode == 0, passed.stderr
    verdict = json.loads(passed.stdout)
    assert (verdict["outcome"], verdict["exit_code"]) == ("PASS", 0)
    assert verdict == json.loads((folder / "passed" / "verdict.json").read_text())
    assert "PASS  2 of 2 budgets pass" in passed.stderr
    assert {file.name for file in (folder / "passed").iterdir()} >= FILES


def test_a_run_sends_what_its_plan_says_and_records_all_of_it(
    folder: Path, passed: subprocess.CompletedProcess[str]
) -> None:
    counts = [total(folder / "passed", count) for count in ("planned", "sent", "finished")]
    assert counts == [20, 20, 20]
    assert run_json(folder / "passed")["status"] == "complete"


def test_a_missed_budget_ends_with_3_and_says_by_how_much(
    failed: subprocess.CompletedProcess[str],
) -> None:
    assert failed.returncode == 3, failed.stderr
    assert "FAIL  1 of 2 budgets broken" in failed.stdout
    assert re.search(r"predict\.e2el max was .* its 1µs limit", failed.stdout)
    assert re.search(r"^FAIL predict\.e2el max < 1us: observed .* n=", failed.stdout, re.MULTILINE)
    assert "::error title=" in failed.stdout
    assert "0:01/0:01" in failed.stderr


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("chat", "chat"),
        ("../über/x y", "über-x-y"),
        ("", "run"),
        ("..", "run"),
        ("a" * 300, "a" * 60),
    ],
)
def test_a_run_lands_in_one_folder_under_reports_whatever_the_plans_name(
    name: str, word: str
) -> None:
    assert re.fullmatch(f"reports/{word}-[0-9]{{8}}-[0-9]{{6}}", str(default_folder(name)))


def test_a_run_without_a_plan_file_keeps_what_the_options_said(
    folder: Path, failed: subprocess.CompletedProcess[str]
) -> None:
    run = run_json(folder / "failed")
    assert (run["seed"], run["target"]["api"], run["target"]["model"]) == (5, "json", "größe-1")
    assert run["stages"][0]["load"] == "poisson 20/s"
    assert [budget["text"] for budget in run["budgets"]] == [
        "predict.e2el max < 1us", "predict.rate > 0.1/s"
    ]  # fmt: skip
    assert "X-Team: '***'" in run["plan"]


@pytest.mark.usefixtures("calm")
def test_too_few_samples_end_with_4_and_quiet_prints_the_summary_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = invoked(
        "run", "scenario.py", "--api", "json", "--concurrency", 1, "--for", "300ms", "-q",
        "--budget", "predict.e2el p99 < 30s", "--budget", "predict.rate > 0.01/s",
    )  # fmt: skip
    assert done.exit_code == 4, done.stdout
    assert "a run shows dependence only beyond 20 times" in " ".join(done.stdout.split())
    assert not done.stderr
    (made,) = (folder / "reports").iterdir()
    assert re.fullmatch(r"scenario-\d{8}-\d{6}", made.name)


# --- a server that lets nobody in but for the preflight, and says back the key -------------------

KEY = "sk-live-0123456789abcdef"
TELLING = """
import logging
from harness import ModelUser, RequestFailed, task

class User(ModelUser):
    @task
    def ask(self):
        try:
            self.predict({"instances": [[1.0]]})
        except RequestFailed as error:
            logging.error("logged: %s", error)
            logging.exception("with a traceback")
            print("printed:", error)
            raise ValueError(f"wrapped: {error}") from error
"""


def refusing_from(first: int) -> Callable[[Asked, int], None]:
    def respond(asked: Asked, number: int) -> None:
        if number < first:
            predictions(asked, number)
        else:
            asked.reply(401, {"error": {"message": f"wrong key: {asked.headers['authorization']}"}})

    return respond


@pytest.fixture(scope="module")
def locked_out(folder: Path) -> subprocess.CompletedProcess[str]:
    """A run of which every request fails, kept in locked/."""
    (folder / "telling.py").write_text(TELLING)
    (folder / "key.yaml").write_text(
        "target: { url: '${TARGET}', api: json, headers: { Authorization: 'Bearer ${API_KEY}' } }\n"
        f"scenario: telling.py\nload: {LOAD}\nbudgets: {EASY.replace('99', '100')}\n"
    )
    with serving(refusing_from(2)) as url:
        given = ("run", "key.yaml", "--out", "locked", "-v")
        return finished(*given, cwd=folder, command=CALM, TARGET=url, API_KEY=KEY)


def test_a_run_that_measures_nothing_ends_with_5(
    locked_out: subprocess.CompletedProcess[str],
) -> None:
    assert locked_out.returncode == 5, locked_out.stdout + locked_out.stderr
    assert "NO DATA" in locked_out.stdout
    assert "status 401" in locked_out.stdout


def test_a_key_that_the_server_says_back_is_in_no_output_and_no_file(
    folder: Path, locked_out: subprocess.CompletedProcess[str]
) -> None:
    files = [file for file in (folder / "locked").rglob("*") if file.is_file()]
    assert "printed: " in (folder / "locked" / "locust.log").read_text()
    assert "wrong key: ***" in (folder / "locked" / "requests.jsonl").read_text()
    assert KEY not in locked_out.stdout + locked_out.stderr
    assert [file.name for file in files if KEY.encode() in file.read_bytes()] == []


def test_a_key_that_the_server_says_back_to_check_is_not_shown(
    folder: Path, locked_out: subprocess.CompletedProcess[str]
) -> None:
    with serving(refusing_from(1)) as url:
        done = finished("check", "key.yaml", cwd=folder, TARGET=url, API_KEY=KEY)
    assert done.returncode == 6
    assert "wrong key: ***" in done.stderr
    assert KEY not in done.stdout + done.stderr


# --- saved runs ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("passed", "failed", "calm")
def test_gate_judges_a_saved_run_as_it_was_judged(folder: Path) -> None:
    for name, code in (("passed", 0), ("failed", 3)):
        done = invoked("gate", folder / name, "--json", "-")
        assert (done.exit_code, json.loads(done.stdout)["exit_code"]) == (code, code)


@pytest.mark.usefixtures("passed", "calm")
@pytest.mark.parametrize(("plan", "code"), [("easy", 0), ("impossible", 3), ("too-few", 4)])
def test_gate_judges_a_saved_run_by_another_plans_budgets(
    folder: Path, plan: str, code: int
) -> None:
    done = invoked("gate", folder / "passed", "--plan", folder / f"{plan}.yaml")
    assert done.exit_code == code, done.stdout


def as_written(folder: Path) -> dict[Path, int]:
    """The folder's files; one that is written again, were it the same, has another number."""
    return {file: file.stat().st_ino for file in folder.rglob("*")}


@pytest.mark.usefixtures("passed", "calm")
def test_gate_leaves_the_run_as_it_is_and_writes_reports_only_where_it_is_told(
    folder: Path, tmp_path: Path
) -> None:
    run, strict, out = folder / "passed", folder / "impossible.yaml", tmp_path / "new" / "out"
    before = as_written(run)
    assert invoked("gate", run).exit_code == 0
    assert invoked("gate", run, "--plan", strict, "--out", out).exit_code == 3
    refused = invoked("gate", run, "--plan", strict, "--out", run)
    assert (refused.exit_code, "the run's own folder" in refused.stderr) == (2, True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").touch()
    refused = invoked("gate", run, "--out", other)
    assert (refused.exit_code, "the folder of another run" in refused.stderr) == (2, True)
    assert [file.name for file in other.iterdir()] == ["run.json"]
    assert as_written(run) == before
    said = "Judged by the budgets of impossible.yaml, not by those"
    assert {file.name for file in out.iterdir()} >= FILES
    assert all(said in (out / name).read_text() for name in ("report.html", "report.md"))
    assert json.loads((out / "verdict.json").read_text())["judged_by"] == "impossible.yaml"
    assert 'name="judged_by" value="impossible.yaml"' in (out / "junit.xml").read_text()


@pytest.mark.usefixtures("failed", "passed")
def test_of_a_folder_with_several_runs_each_is_named(folder: Path) -> None:
    done = invoked("gate", folder)
    assert done.exit_code == 2
    assert "is not a run folder: it holds no run.json; it holds the runs " in done.stderr
    assert all(str(folder / name) in done.stderr for name in ("failed", "passed"))


@pytest.mark.usefixtures("failed", "calm")
def test_reports_that_cannot_be_written_cost_no_verdict_but_fail_the_command_that_writes_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    gated = invoked("gate", folder / "failed", "--out", tmp_path / "file")
    assert gated.exit_code == 3
    assert "FAIL  1 of 2 budgets broken" in gated.stdout
    assert f"the reports were not written to {tmp_path / 'file'} (" in gated.stderr

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("harness.runs.write_atomically", full)
    reported = invoked("report", folder / "failed")
    assert (reported.exit_code, reported.stdout) == (2, "")
    assert "(No space left on device); harness gate RUN --out FOLDER" in reported.stderr


@pytest.mark.usefixtures("passed")
def test_report_writes_the_reports_again_and_names_them(folder: Path) -> None:
    for name in FILES:
        (folder / "passed" / name).unlink()
    done = invoked("report", folder / "passed")
    assert done.exit_code == 0
    assert {Path(line).name for line in done.stdout.splitlines()} == FILES
    assert all((folder / "passed" / name).stat().st_size for name in FILES)


# --- where it prints to --------------------------------------------------------------------------


def nobody() -> int:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.usefixtures("failed")
@pytest.mark.parametrize(
    ("opened", "more", "code", "says"),
    [
        (nobody, (), 3, ""),
        (full_disk, (), 3, "harness: warning: stdout cannot be written (No space left on device)"),
        (full_disk, ("--json", "-"), 2, "--json -: stdout was not written to its end (No space"),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_verdicts_code_outlives_its_reader_but_a_document_must_be_taken(
    folder: Path, opened: Callable[[], int], more: Sequence[str], code: int, says: str,
    unbuffered: str,
) -> None:  # fmt: skip
    writer = opened()
    done = subprocess.run(
        [*CALM, "gate", "failed", *more], cwd=folder, stdout=writer, stderr=subprocess.PIPE,
        env=environment(PYTHONUNBUFFERED=unbuffered), text=True, timeout=100, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("stdout") == bool(says)  # told once, or not at all


def test_the_help_shows_its_exit_codes_as_written() -> None:
    shown = invoked("--help").stdout
    assert "\n  6 target unreachable, 130 interrupted" in shown
    assert "\\b" not in shown
    assert "\b" not in shown


@pytest.mark.usefixtures("failed")
def test_an_output_without_unicode_gets_the_same_verdict_in_ascii(folder: Path) -> None:
    done = finished("gate", "failed", "-v", cwd=folder, command=CALM, PYTHONIOENCODING="ascii")
    assert done.returncode == 3, done.stderr
    assert done.stdout.isascii()
    assert re.search(r"observed [\d,.]+(us|ms|s), n=", done.stdout)
    assert not done.stderr


def on_a_terminal(columns: int, *arguments: str, cwd: Path, **env: str) -> tuple[str, int]:
    """Run the command on a terminal of its own; what it drew, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = environment(TERM="xterm-256color", PYTHONUTF8="1", **env)
    with subprocess.Popen(
        [*CALM, *arguments], cwd=cwd, env=variables, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        drawn = b""
        try:
            while part := os.read(ours, 65536):
                drawn += part
        except OSError:  # how Linux says that nobody writes any more
            pass
        os.close(ours)
        return drawn.decode().replace("\r\n", "\n"), process.wait()


@pytest.mark.usefixtures("failed")
def test_a_terminal_gets_colour_within_its_width_unless_no_color_is_set(folder: Path) -> None:
    text, code = on_a_terminal(60, "gate", "failed", cwd=folder)
    assert code == 3
    assert "\x1b[1;31m" in text
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= 60
    plain, _ = on_a_terminal(60, "gate", "failed", cwd=folder, NO_COLOR="1")
    assert "\x1b" not in plain


@pytest.mark.usefixtures("failed")
def test_what_is_piped_has_no_colour(
    failed: subprocess.CompletedProcess[str], passed: subprocess.CompletedProcess[str]
) -> None:
    assert "\x1b" not in failed.stdout + failed.stderr + passed.stdout + passed.stderr


# --- before a load -------------------------------------------------------------------------------


def test_check_says_what_would_be_done_and_leaves_nothing(folder: Path) -> None:
    before = set(folder.iterdir())
    done = finished("check", LOCUSTFILES / "rag.yaml", cwd=folder, TARGET="embedded")
    assert done.returncode == 0, done.stderr
    for said in ("step answer/generate: status 200, streams, usage sent: ",
                 "stage steady: poisson 10/s for 60s", "stage warmup: constant 5/s for 5s, not judged",
                 "budget answer/generate.ttft p95 < 400ms"):  # fmt: skip
        assert said in done.stdout
    assert set(folder.iterdir()) == before


def test_the_schema_is_json_schema_and_knows_every_key_of_the_ready_plans(folder: Path) -> None:
    schema = json.loads(finished("schema", cwd=folder, PYTHONIOENCODING="ascii").stdout)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["additionalProperties"] is False
    entries = {"target": "TargetEntry", "load": "StageEntry"}
    for file in sorted(LOCUSTFILES.glob("*.yaml")):
        plan = yaml.safe_load(file.read_text())
        assert schema["properties"].keys() >= plan.keys() >= set(schema["required"])
        for key, entry in entries.items():
            for value in [plan[key]] if isinstance(plan[key], dict) else plan[key]:
                assert schema["$defs"][entry]["properties"].keys() >= value.keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_endpoint_prints_its_url_serves_and_ends_with_0(folder: Path, number: int) -> None:
    with started("endpoint", "--port", 0, "--set", "model=größe", cwd=folder) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("serving on ").strip()
        assert httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["id"] == "größe"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


# --- init ----------------------------------------------------------------------------------------


def embeddings_only(asked: Asked, _number: int) -> None:
    if not asked.path.endswith("/embeddings"):
        asked.reply(404, {"error": "there is nothing here"})
        return
    data = [{"object": "embedding", "index": 0, "embedding": [0.1]}]
    asked.reply(200, {"object": "list", "data": data, "usage": {"prompt_tokens": 3}})


def predict_only(asked: Asked, number: int) -> None:
    if asked.path.partition("?")[0].endswith("/predict"):
        predictions(asked, number)
    else:
        asked.reply(404, {"error": "there is nothing here"})


@pytest.mark.usefixtures("calm")
def test_init_writes_a_plan_and_a_scenario_that_run_at_once(folder: Path) -> None:
    with running(Settings(ttft_ms=5)) as url:
        done = finished("init", url, "--into", "new", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "answers as openai-chat, model reference" in done.stdout
        assert invoked("check", folder / "new" / "plan.yaml").exit_code == 0
        plan = folder / "new" / "plan.yaml"
        text = plan.read_text()
        assert text.count("\n# ") >= 3
        plan.write_text(re.sub(r"for: \d+s", "for: 1s", text))
        ran = invoked("run", plan, "--out", folder / "new" / "run")
    assert ran.exit_code == 4, ran.stdout + ran.stderr  # a second has too few samples for a p95


@pytest.mark.parametrize(
    ("respond", "api", "step", "files"),
    [
        (embeddings_only, "openai-embeddings", "embedding", 3),
        (predict_only, "json", "predict", 2),
    ],
)
def test_init_finds_out_what_an_endpoint_that_does_not_chat_can_do(
    tmp_path: Path, respond: Any, api: str, step: str, files: int
) -> None:
    with serving(respond) as url:
        done = invoked("init", url, "--into", tmp_path)
        assert done.exit_code == 0, done.stderr
        assert f"answers as {api}, model not named" in done.stdout
        assert len(list(tmp_path.iterdir())) == files
        checked = invoked("check", tmp_path / "plan.yaml")
    assert checked.exit_code == 0, checked.stderr
    assert f"step {step}: status 200" in checked.stdout


def test_init_keeps_a_key_out_of_the_plan_and_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--into", tmp_path, "--header", "Authorization: Bearer sk-never-written")
    with serving(predict_only) as url:
        assert invoked("init", url, *given).exit_code == 0
        again = invoked("init", url, *given)
    assert again.exit_code == 2
    assert "plan.yaml is there already" in again.stderr
    assert all("sk-never" not in file.read_text() for file in tmp_path.iterdir())
    monkeypatch.setenv("AUTHORIZATION", "Bearer sk-set")
    plan = load_plan(tmp_path / "plan.yaml")
    assert plan.target.headers == {"Authorization": "Bearer sk-set"}


def echo_all(asked: Asked, _number: int) -> None:
    asked.reply(403, {"error": f"no {asked.headers['Authorization']} {asked.path}"})


def test_init_shows_no_key_that_the_server_echoes_nor_one_of_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--into", tmp_path, "--header", "Authorization: Bearer sk-never-1")
    with serving(echo_all) as url:
        done = invoked("init", f"{url}?key=never-2", *given)
    assert done.exit_code == 6
    assert f"{url}?key=*** answers none" in done.stderr
    assert "status 403: no *** /v1/chat/completions?key=***" in done.stderr
    with serving(predict_only) as url:
        address = f"{url}/predict?key=never-2"
        done = invoked("init", address, *given)
    assert (done.exit_code, "never" in done.stdout) == (0, False)
    assert all("never" not in file.read_text() for file in tmp_path.iterdir())
    for name, value in (("TARGET", address), ("AUTHORIZATION", "Bearer sk-set")):
        monkeypatch.setenv(name, value)
    assert load_plan(tmp_path / "plan.yaml").target.url == address


def test_init_asks_through_the_proxy_of_the_environment_as_a_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    asked: list[str] = []

    def respond(question: Asked, number: int) -> None:
        asked.append(question.path)
        predict_only(question, number)

    with serving(respond) as proxy:
        monkeypatch.setenv("http_proxy", proxy.replace("//", "//me:hidden@"))
        done = invoked("init", "http://model.test", "--into", tmp_path / "by-proxy")
    assert done.exit_code == 0, done.stderr
    assert asked[-1] == "http://model.test/v1/predict"
    done = invoked("init", "http://model.test", "--into", tmp_path / "down")
    assert done.exit_code == 6
    assert f"http://model.test does not answer through the proxy {proxy}: " in done.stderr
    with serving(predict_only) as url:
        assert invoked("init", url, "--into", tmp_path / "straight").exit_code == 0


@pytest.mark.parametrize(
    ("proxy", "code", "says"),
    [
        ("socks4://127.0.0.1:1", 2, 'proxy for model.test: found the scheme "socks4"; allowed is'),
        ("socks5://127.0.0.1:1", 6, "through the proxy socks5://127.0.0.1:1: "),
    ],
)
def test_init_tells_what_is_wrong_with_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str, code: int, says: str
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("all_proxy", proxy)
    done = invoked("init", "http://model.test", "--into", tmp_path)
    assert (done.exit_code, done.stderr.count("\n")) == (code, 1)
    assert says in done.stderr


def test_init_says_what_helps_where_a_certificate_is_not_trusted(
    tmp_path: Path, authority: dict[str, Path]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority["cert"], authority["cert"].with_suffix(".key"))
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def shake_hands() -> None:
            with contextlib.suppress(OSError):
                context.wrap_socket(listener.accept()[0], server_side=True)

        pool.submit(shake_hands)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        done = invoked("init", url, "--into", tmp_path / "new")
    assert done.exit_code == 6
    assert "certificate verify failed" in done.stderr
    assert "verify: ca.pem" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["http://127.0.0.1:1"], 6, "does not answer"),
        (["localhost:8000"], 2, "must look like http://host:port"),
        (["http://ex_ample..com:99"], 2, "must look like http://host:port"),
        (["http://x\x01.test"], 2, "must look like http://host:port"),
        (["http://127.0.0.1:1", "--header", "no colon"], 2, "--header"),
        (["http://127.0.0.1:1", "--header", "X-Größe: 1"], 2, "--header"),
    ],
)
def test_init_refuses_what_it_cannot_ask(
    tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    done = invoked("init", *arguments, "--into", tmp_path)
    assert done.exit_code == code
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
