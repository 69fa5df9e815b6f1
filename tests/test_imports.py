"""Locust and gevent, which patch the whole process, stay out of every process but the workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from commands import PREDICT, environment

from harness.recorder import Recording

RUN = """
import sys
from click.testing import CliRunner
from harness.cli import main

for command in sys.argv[1:]:
    result = CliRunner().invoke(main, command.split())
    heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"gevent", "locust"})
    print("ran", result.exit_code, *heavy)
"""
PLAN = """
target: { url: "http://127.0.0.1:1", api: json }
scenario: scenario.py
load: { concurrency: 1, for: 1s }
budgets: [predict.e2el p50 < 30s]
"""
COMMANDS = {
    "run plan.yaml --out new": 6,
    "check plan.yaml": 6,
    "gate RUN --plan plan.yaml": 5,
    "report RUN": 0,
    "schema": 0,
    "endpoint --set slots=0": 2,
    "init http://127.0.0.1:1 --into new": 6,
    "selftest --plan none.yaml": 2,
}


def test_no_command_itself_ever_imports_locust_or_gevent(
    tmp_path: Path, save_run: Callable[..., Recording]
) -> None:
    saved = save_run(lambda recorder, _: recorder.request("steady", "predict", {"e2el": 10**6}))
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "scenario.py").write_text(PREDICT)
    commands = [command.replace("RUN", str(saved.folder)) for command in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *commands],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    told = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert told == [f"ran {code}" for code in COMMANDS.values()], done.stderr


def test_the_package_gives_the_scenario_api_only_when_it_is_asked_for(tmp_path: Path) -> None:
    asked = "import sys, harness; a = 'gevent' in sys.modules; harness.ModelUser; print(a)"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"
