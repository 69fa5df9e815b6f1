"""What run.json says of a run before it starts, and the times that a plan fixes."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import psutil

from harness import __version__
from harness.budget import WINDOW_STEP_NS
from harness.plan import Plan
from harness.recorder import StageWindow, repetition_name

EMBEDDED = "embedded"
_MIN_WINDOWS = 40  # intervals that the shortest recorded stage should have
_MIN_PARTS = 6  # intervals that a budget's window should have: enough to see dependence within it
_PACKAGES = ("locust", "gevent", "httpx", "hdrhistogram", "numpy", "scipy")


def repetition(plan: Plan, number: int) -> Plan:
    """Return the plan as its repetition `number` (from 1 on) is played.

    The first is the plan itself. Each other has stages of its own name and a seed of its own, which
    follows from the plan's.
    """
    if number == 1:
        return plan
    (seed,) = np.random.SeedSequence(plan.seed, spawn_key=(number,)).generate_state(1, np.uint64)
    return replace(
        plan,
        seed=int(seed >> np.uint64(1)),
        load=tuple(replace(s, name=repetition_name(s.name, number)) for s in plan.load),
        budgets=tuple(
            replace(b, stage=repetition_name(b.stage, number)) if b.stage else b
            for b in plan.budgets
        ),
    )


def stage_windows(plan: Plan, *, begin_s: float = 0.0, repeat: int = 1) -> tuple[StageWindow, ...]:
    """Return the plan's stages with their times, one after the other from `begin_s` on."""
    windows = []
    start_ns = round(begin_s * 1e9)
    for stage in plan.load:
        end_ns = start_ns + stage.duration_ns
        windows.append(
            StageWindow(
                name=stage.name,
                start_s=start_ns / 1e9,
                end_s=end_ns / 1e9,
                record=stage.record,
                load=stage.load,
                planned_rate_per_s=stage.arrivals.rate_per_s if stage.arrivals else None,
                max_in_flight=stage.max_in_flight,
                repeat=repeat,
                ramp_s=stage.spread_ns / 1e9 if stage.concurrency else 0.0,
            )
        )
        start_ns = end_ns
    return tuple(windows)


def interval_for(plan: Plan) -> int:
    """Return the recording interval in ns: 1 s, or shorter so that each recorded stage has 40.

    The windows of every budget are made of whole intervals, of 6 or more where 100 ms allow it.
    """
    shortest = min(stage.duration_ns for stage in plan.load if stage.record)
    lengths = [budget.over_ns for budget in plan.budgets if budget.over_ns]
    wanted = min([1_000_000_000, shortest // _MIN_WINDOWS, *(n // _MIN_PARTS for n in lengths)])
    longest = max(WINDOW_STEP_NS, wanted // WINDOW_STEP_NS * WINDOW_STEP_NS)
    steps = range(longest, 0, -WINDOW_STEP_NS)
    return next(step for step in steps if not any(length % step for length in lengths))


@contextmanager
def target_url(plan: Plan) -> Iterator[str]:
    """Yield the target's URL; the embedded endpoint runs meanwhile if it is the target."""
    if plan.target.url != EMBEDDED:
        yield plan.target.url
        return
    from harness.endpoint import Settings, running

    with running(Settings.of(plan.embedded)) as url:
        yield url


def describe(
    plan: Plan, url: str, stages: Sequence[StageWindow], interval_ns: int
) -> dict[str, Any]:
    """Return what run.json says of a run before it starts."""
    now = time.time()
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    return {
        "harness": __version__,
        "name": plan.name,
        "id": time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)),
        "started_at": started,
        "target": {
            "url": EMBEDDED if plan.target.url == EMBEDDED else _without_credentials(url),
            "api": plan.target.api,
            "model": plan.target.model,
        },
        "stages": [asdict(stage) for stage in stages],
        "budgets": [
            {"text": b.text, "confidence": b.confidence, "abort": b.abort} for b in plan.budgets
        ],
        "prices": plan.prices.written() if plan.prices else None,
        "multiple_testing": plan.multiple_testing,
        "abort_on": list(plan.abort_on),
        "repeat": plan.repeat,
        "interval_s": interval_ns / 1e9,
        "seed": plan.seed,
        "workers": plan.workers,
        "drain_s": plan.drain_ns / 1e9,
        "timeout_s": plan.target.timeout_ns / 1e9,
        "plan": plan.redacted_source,
        "scenario": _file(plan.scenario),
        "inputs": None if plan.inputs is None else _file(plan.inputs),
        "commit": _commit(plan.scenario.parent),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in _PACKAGES},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
        },
    }


def default_folder(name: str) -> Path:
    """Return where a run lands without --out: `reports/NAME-YYYYMMDD-HHMMSS`, in UTC.

    The plan's name is cut and cleaned to be one part of a path.
    """
    word = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "run"
    return Path("reports") / f"{word}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _file(path: Path) -> dict[str, str]:
    """Say which file it was, by its content."""
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _commit(folder: Path) -> str | None:
    """Return the short commit of the scenario's repository, or None when it has none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
