"""The live view's picture adds up what the reports bring, for recorded stages alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from harness.plan import plan_from_options
from harness.recorder import Limits, Recorder
from harness.swarm.live import LiveView
from harness.swarm.manifest import repetition, stage_windows
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


def test_a_view_says_which_repetition_runs_and_names_a_budget_with_its_windows() -> None:
    plan = plan_from_options(
        scenario=ROOT / "locustfiles" / "chat.py",
        rate="20/s",
        duration="40s",
        budgets=["chat.ttft p50 < 1s over 10s in load", "chat.ttft p50 regression < 5%"],
        repeat=5,
    )
    progress, recorder = Progress(plan, stage_windows(plan), 1.0), Recorder(Limits())
    progress.begin(2, stage_windows(repetition(plan, 2), begin_s=50, repeat=2))
    for ttft_ms in (10, 20, 60):
        recorder.request("load~2", "chat", {"ttft": ttft_ms * MS})
    state = progress.update(recorder.flush(59))
    assert (state["t_s"], state["total_s"], state["stage"]) == (10, 40, "load")
    assert [row["now"] is not None for row in state["budgets"]] == [True, False]
    plain, screen = io.StringIO(), io.StringIO()
    with LiveView(Console(file=plain), plain=True, quiet=False) as view:
        view.update(state)
    assert plain.getvalue().startswith("0:10/0:40 run 2 of 5, load:")
    with LiveView(Console(file=screen, force_terminal=True), plain=False, quiet=False) as view:
        view.update(state)
    for words in ("run 2 of 5, load", "chat.ttft p50 over 10s in load", "<1s"):
        assert words in screen.getvalue()
