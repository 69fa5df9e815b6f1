"""`harness run` as its users start it, against the exact server: command, parent, workers and report.

All of it shares the client's core. Of each reply the scenario notes what was recorded, and the model's
name, which is the server's id of the reply.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import usage

_TIMEOUT_S = 150
_JUDGED = {0, 3, 4, 5}  # exit codes of a run that was judged, whatever the verdict

_SCENARIO = """
import atexit, json, time
from pathlib import Path

from harness import ModelUser, task

rows, steps, began_ns = [], [], 0


def note(step, journey):
    steps.append(step)


@atexit.register
def keep():
    ended_ns = time.monotonic_ns()
    kept = [
        (model, of["service_ttft"], of["service"], of["ttft"], of["e2el"], list(gaps))
        for model, of, gaps in rows
    ]
    told = {"began_ns": began_ns, "ended_ns": ended_ns, "rows": kept}
    Path(FILE).write_text(json.dumps(told))


class Chatter(ModelUser):
    @task
    def ask(self):
        global began_ns
        run = self.run_state
        if run.t0_ns:
            began_ns, run.on_step = run.t0_ns, note
        reply = self.chat("Say something.")
        if steps:
            step = steps.pop()
            rows.append((reply.model, step.values, step.gaps))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What one run recorded and used. Times are CLOCK_MONOTONIC."""

    rows: list[list[Any]]
    """Of each reply: its id, service_ttft, service, ttft, e2el, and the list of its gaps, ns."""
    began_ns: int
    """The load's time zero."""
    ended_ns: int
    """The worker ended: its last report is out, the verdict and the report are still to come."""
    used: usage.Usage
    stall_ns: int
    token_events: int
    merged: int


def run(folder: Path, *, core: int, target: dict[str, Any], users: int, seconds: float) -> Ran:
    """Run a closed loop of chats to its report. RuntimeError when it was not judged."""
    rows, out, plan = (folder / name for name in ("rows.json", "run", "plan.yaml"))
    scenario = folder / "scenario.py"
    scenario.write_text(_SCENARIO.replace("FILE", repr(str(rows))), encoding="utf-8")
    stage = {"name": "steady", "concurrency": users, "for": f"{seconds}s", "ramp": "0s"}
    budgets = ["chat.ttft p99 < 1s", "chat.itl p99 < 100ms", "chat.e2el p99 < 10s"]
    entries = {
        "target": {"model": "truth", **target},
        "scenario": scenario.name,
        "load": [stage],
        "budgets": [*budgets, "chat.error_rate < 1%"],
    }
    plan.write_text(json.dumps(entries), encoding="utf-8")  # JSON is YAML
    used = usage.run(
        [sys.executable, "-m", "harness", "run", str(plan), "--out", str(out)],
        core=core,
        folder=folder,
        env=dict(os.environ),
        timeout_s=_TIMEOUT_S,
        allowed=_JUDGED,
    )
    told = json.loads(rows.read_bytes())
    lines = (out / "intervals.jsonl").read_text(encoding="utf-8").splitlines()
    intervals = [json.loads(line) for line in lines]
    loads = [load for one in intervals for load in one["load"].values()]
    failed = sum(load["failed"] + load["dropped"] + load["cut_off"] for load in loads)
    if failed:
        raise RuntimeError(f"{failed} requests failed")
    return Ran(
        rows=told["rows"],
        began_ns=told["began_ns"],
        ended_ns=told["ended_ns"],
        used=used,
        stall_ns=max(one["stall_ns"] for one in intervals),
        token_events=sum(load["token_events"] for load in loads),
        merged=sum(load["merged"] for load in loads),
    )
