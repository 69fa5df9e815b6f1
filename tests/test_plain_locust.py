"""`locust -f SCENARIO` records, judges and ends like the harness's own command."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import (
    BIN,
    LOCUSTFILES,
    PREDICT,
    Asked,
    eventually,
    finished,
    invoked,
    predictions,
    run_json,
    serving,
    started,
    total,
)

from harness.endpoint import Settings, running
from harness.recorder import load_recording

LOCUST = [str(BIN / "locust"), "--headless", "--harness-out", "run", "-f"]
KEY = "sk-live-0123456789abcdef"
PLAN = """
target: { url: "${TARGET}", api: json, headers: { Authorization: "Bearer ${API_KEY}" } }
scenario: scenario.py
load: { name: steady, arrivals: constant 20/s, for: 500ms }
budgets: [predict.e2el max < 30s, predict.rate > 0.1/s]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scenario.py").write_text(PREDICT)
    (tmp_path / "other.yaml").write_text(PLAN)
    return tmp_path


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running(Settings.of({"ttft_ms": 100, "gap_ms": 2})) as url:
        yield url


def verdict_code(folder: Path) -> int:
    """The exit code that the recorded run's verdict asks for."""
    code: int = json.loads((folder / "run" / "verdict.json").read_text())["exit_code"]
    return code


@pytest.fixture(scope="module")
def closed(
    tmp_path_factory: pytest.TempPathFactory, endpoint: str
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The ready chat scenario as Locust's own two users run it for a second."""
    folder = tmp_path_factory.mktemp("closed")
    given = (LOCUSTFILES / "chat.py", "-u", 2, "-t", "1s", "--host", endpoint)
    return folder, finished(*given, cwd=folder, command=LOCUST)


def test_locusts_own_users_are_recorded_and_finish_what_they_began(
    closed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = closed
    counts = [total(folder / "run", count) for count in ("planned", "sent", "finished")]
    assert counts[0] == counts[1] == counts[2] > 2, done.stderr
    assert total(folder / "run", "cut_off") == total(folder / "run", "failed") == 0
    run = run_json(folder / "run")
    assert (run["status"], run["stages"][0]["load"]) == ("complete", "2 users")


def test_locust_ends_with_the_exit_code_of_the_budgets_beside_the_scenario(
    closed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = closed
    assert len(run_json(folder / "run")["budgets"]) > 3
    assert done.returncode == verdict_code(folder) == 4 or "not valid" in done.stdout
    assert "budgets" in done.stdout


def test_a_plan_drives_locust_as_it_drives_the_harness_and_keys_are_masked(folder: Path) -> None:
    telling = 'reply = self.predict({"instances": [[1.0]]})\n        print(reply.value)'
    (folder / "scenario.py").write_text(
        PREDICT.replace('self.predict({"instances": [[1.0]]})', telling)
    )

    def respond(asked: Asked, _number: int) -> None:
        asked.reply(200, {"predictions": [1], "key": asked.headers["authorization"]})

    given = ("scenario.py", "--plan", "other.yaml")
    with serving(respond) as url:
        done = finished(*given, cwd=folder, command=LOCUST, TARGET=url, API_KEY=KEY)
    recording = load_recording(folder / "run")
    totals = recording.load_totals("steady")
    assert (totals.planned, totals.sent, totals.finished, totals.failed) == (10, 10, 10, 0)
    assert recording.requests("steady", "predict").n == 10
    assert done.returncode == verdict_code(folder)
    assert done.returncode == 0 or "not valid" in done.stdout
    assert "'key': '***'" in done.stdout
    assert KEY not in done.stdout + done.stderr


def test_ctrl_c_in_a_driven_run_saves_it_and_ends_with_130(folder: Path) -> None:
    plan = PLAN.replace("for: 500ms", "for: 20s")
    (folder / "other.yaml").write_text(plan)
    given = ("scenario.py", "--plan", "other.yaml")
    with (
        serving(predictions) as url,
        started(*given, cwd=folder, command=LOCUST, TARGET=url, API_KEY=KEY) as process,
    ):
        eventually(lambda: total(folder / "run", "finished") > 6, "a finished request")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "The run was interrupted" in out
    run = run_json(folder / "run")
    assert run["status"] == "interrupted"
    assert 0 < run["stages"][0]["end_s"] < 20
    assert load_recording(folder / "run").losses.intervals == 0


def test_a_run_without_plan_or_budgets_needs_a_host_and_has_no_verdict(folder: Path) -> None:
    done = finished("scenario.py", "-u", 1, "-t", "1s", cwd=folder, command=LOCUST)
    assert done.returncode == 2
    assert "harness: name the target with --host, or put a plan at" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--plan", "missing.yaml"], "missing.yaml: cannot be read"),
        (["--plan", "other.yaml", "--host", "nowhere"], '--host: found "nowhere"'),
    ],
)
def test_what_cannot_be_recorded_ends_locust_with_2_and_one_message(
    folder: Path, given: list[str], says: str
) -> None:
    env = {"TARGET": "http://127.0.0.1:1", "API_KEY": KEY}
    done = finished("scenario.py", *given, cwd=folder, command=LOCUST, **env)
    assert done.returncode == 2
    assert f"\nharness: {says}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_recorded_by_locust_is_judged_again_like_any_other(
    closed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = closed
    assert invoked("gate", folder / "run").exit_code == done.returncode
