"""The live view's picture adds up what the reports bring, for recorded stages alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plan import plan_from_options
from harness.recorder import Limits, Recorder
from harness.swarm.manifest import stage_windows
from harness.swarm.progress import Progress

MS = 1_000_000
ROOT = Path(__file__).parents[1]
SHARES = [
    ("chat.error_rate < 30%", "25 %", True),
    ("chat.error_rate <= 25%", "25 %", True),
    ("chat.error_rate < 25%", "25 %", False),
    ("chat.goodput > 40%", "50 %", True),
    ("run.goodput >= 60%", "50 %", False),
    ("chat.ttft p50 < 50ms", "20.0 ms", True),
    ("chat.ttft max < 50ms", "60 ms", False),
    ("chat.output_tokens mean < 9", "4", True),
    ("other.ttft p50 < 50ms", None, None),
]


@pytest.mark.parametrize(("budget", "now", "ok"), SHARES)
def test_each_budget_shows_its_value_so_far_and_whether_it_holds(
    budget: str, now: str | None, ok: bool | None
) -> None:
    plan = plan_from_options(
        scenario=ROOT / "locustfiles" / "chat.py", rate="20/s", duration="40s", budgets=[budget]
    )
    recorder = Recorder(Limits(good=lambda _stage, _step: {"ttft": 50 * MS}))
    progress = Progress(plan, stage_windows(plan), 1.0)
    for stage in ("load", "warmup"):  # the second is no stage of the plan, so not recorded
        for ttft_ms in (10, 20, 60):
            recorder.request(stage, "chat", {"ttft": ttft_ms * MS, "output_tokens": 4})
        recorder.request(stage, "chat", {}, failure="timeout")
    (row,) = progress.update(recorder.flush(0))["budgets"]
    assert (row["now"] and row["now"].replace("\u202f", " ")) == now
    assert row["ok"] is ok
    samples = 3 if "ttft" in budget or "tokens" in budget else 4  # the failed one left none
    assert row["n"] == (0 if now is None else samples)
