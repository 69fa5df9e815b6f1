"""The real command as a process, plans for it, and small servers that misbehave on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from harness import health
from harness.cli import main

ROOT = Path(__file__).resolve().parents[1]
LOCUSTFILES = ROOT / "locustfiles"
BIN = Path(sys.executable).parent
HARNESS = [str(BIN / "harness")]
# The same command on a machine that is never too busy to measure: what `health` makes of a busy
# one has tests of its own, here it would only make the outcome depend on the neighbours.
_CALM = """
from harness import health
from harness.cli import main
health.send_lag_limit = lambda budgets: 10**12
health.CPU_LIMIT, health.RATE_REACHED_MIN = 9, 0
main(prog_name="harness")
"""
CALM = [sys.executable, "-c", _CALM]
PREDICT = """
from harness import ModelUser, task

class User(ModelUser):
    @task
    def ask(self):
        self.predict({"instances": [[1.0]]})
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would change the output, and with `changes`."""
    ours = ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "TARGET", "API_KEY", "COLUMNS")
    return {k: v for k, v in os.environ.items() if k not in ours} | changes


def invoked(*arguments: object) -> Result:
    """Run the command in this process, which is quicker; a traceback of it is an exception here."""
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def calm(patch: pytest.MonkeyPatch) -> None:
    """Make of this process what CALM is."""
    patch.setattr(health, "send_lag_limit", lambda _budgets: 10**12)
    patch.setattr(health, "CPU_LIMIT", 9)
    patch.setattr(health, "RATE_REACHED_MIN", 0)


def finished(
    *arguments: object, cwd: Path, command: list[str] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*(command or HARNESS), *map(str, arguments)],
        cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@contextmanager
def started(
    *arguments: object, cwd: Path, command: list[str] | None = None, **env: str
) -> Iterator[subprocess.Popen[str]]:
    """Run the command while the `with` block does something to it; killed if that fails."""
    with subprocess.Popen(
        [*(command or HARNESS), *map(str, arguments)],
        cwd=cwd, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def eventually(true: Callable[[], Any], what: str) -> Any:
    """Wait until something is true and return it; fails after a time that no machine needs."""
    deadline = time.monotonic() + 60
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)
    return found


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def intervals(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of intervals.jsonl so far."""
    file = folder / "intervals.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def total(folder: Path, count: str) -> int:
    """One of the load's counts over all stages and intervals so far."""
    return sum(load[count] for row in intervals(folder) for load in row["load"].values())


def run_json(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return data


class Asked(BaseHTTPRequestHandler):
    """One request, with what a reply needs close at hand."""

    protocol_version = "HTTP/1.1"
    respond: Callable[[Asked, int], None]
    number = 0

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        type(self).number += 1
        self.respond(self, type(self).number)

    do_GET = do_POST  # noqa: N815 - the server's own name

    def reply(self, status: int, body: Any, kind: str = "application/json") -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        pass  # a client that was killed


@contextmanager
def serving(respond: Callable[[Asked, int], None]) -> Iterator[str]:
    """Answer each request, numbered from 1, with `respond`; yields the URL."""
    handler = type("Handler", (Asked,), {"respond": staticmethod(respond)})
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def predictions(asked: Asked, _number: int) -> None:
    asked.reply(200, {"predictions": [1]})
