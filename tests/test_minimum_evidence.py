"""A quantile that the samples cannot show is not printed, whatever they say about its budget."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import runs
from harness.budget import parse_budget
from harness.plan import plan_from_options
from harness.recorder import Limits, Recorder, Recording
from harness.stats import supported
from harness.swarm.manifest import stage_windows
from harness.swarm.progress import Progress
from harness.verdict import BudgetVerdict, Outcome, judge

MS = 1_000_000
SLOWEST_MS = 777  # shows up where a quantile of too few samples is but the largest
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("q", "fewest"),
    [(0.5, 2), (0.95, 20), (0.99, 100), (0.999, 1000), (0.9999, 10_000), (0.1, 10), (0.01, 100)],
)
def test_a_quantile_takes_as_many_samples_as_one_beyond_it_is_rare(q: float, fewest: int) -> None:
    assert supported(fewest, q)
    assert not supported(fewest - 1, q)


@pytest.fixture
def few(save_run: Callable[..., Recording]) -> Callable[..., Recording]:
    """A run of 60 requests of about 100 ms, one of them the slowest."""

    def make(*budgets: str, **run: Any) -> Recording:
        def fill(recorder: Recorder, i: int) -> None:
            for j in range(3):
                load = recorder.load("steady")
                load.planned, load.sent, load.finished = 3, 3, 3
                value = SLOWEST_MS if (i, j) == (7, 1) else 100 + 10 * j
                recorder.request("steady", "chat", {"ttft": value * MS, "e2el": value * MS})

        return save_run(fill, budgets=budgets, intervals=20, **run)

    return make


def verdict_of(recording: Recording, budget: str) -> BudgetVerdict:
    (verdict,) = judge(recording, [parse_budget(budget)]).budgets
    return verdict


def test_a_verdict_shows_no_value_that_its_samples_cannot(few: Callable[..., Recording]) -> None:
    shown = verdict_of(few(), "chat.ttft p95 < 3s")
    assert shown.observed is not None
    assert shown.n == 60
    hidden = verdict_of(few(), "chat.ttft p99 < 3s")
    assert (hidden.observed, hidden.used, hidden.n) == (None, None, 60)
    for text in (hidden.sentence, hidden.evidence):
        assert str(SLOWEST_MS) not in text
    assert "n=60" in hidden.evidence


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome.FAIL, "chat.ttft p99 breaks its 3 s limit in steady: 9 of 60 samples"),
        (Outcome.PASS, "chat.ttft p99 keeps its 3 s limit in steady: 9 of 60 samples"),
        (Outcome.INCONCLUSIVE, "chat.ttft p99 cannot be told in steady: why."),
        (Outcome.INVALID, "chat.ttft p99 was not measured in steady: why."),
    ],
)
def test_a_budget_that_is_decided_without_a_value_still_has_its_sentence(
    outcome: Outcome, words: str
) -> None:
    verdict = BudgetVerdict(
        budget=parse_budget("chat.ttft p99 < 3s"),
        stage="steady",
        outcome=outcome,
        n=60,
        over=9,
        allowed=0,
        reason=None if outcome in (Outcome.PASS, Outcome.FAIL) else "why",
    )
    assert verdict.sentence.replace("\u202f", " ").startswith(words)
    assert "9 beyond the limit" in verdict.evidence


@pytest.mark.parametrize("limit", ["3s", "50ms"], ids=["undecided", "fails"])
def test_no_report_prints_a_quantile_of_too_few_samples(
    few: Callable[..., Recording], limit: str
) -> None:
    texts = (f"chat.ttft p99 < {limit}", f"chat.e2el p99.9 < {limit}")
    recording = few(*texts)
    judged = judge(recording, [parse_budget(text) for text in texts])
    outcome = Outcome.FAIL if limit == "50ms" else Outcome.INCONCLUSIVE
    assert {verdict.outcome for verdict in judged.budgets} == {outcome}
    files = runs.write_reports(recording.folder, recording, judged)
    written = {file.name: file.read_text(encoding="utf-8") for file in files}
    for step in json.loads(written["verdict.json"])["steps"]:
        for metric in step["metrics"].values():
            assert {"p50", "p95"} <= set(metric)
            assert not {"p99", "p99.9"} & set(metric)
    largest = rf'"max": {SLOWEST_MS}|<td>–</td><td class="optional">{SLOWEST_MS}'
    for name, text in written.items():
        assert str(SLOWEST_MS) not in re.sub(largest, "", text), name


def test_the_live_view_waits_until_a_quantile_can_be_shown() -> None:
    plan = plan_from_options(
        scenario=ROOT / "locustfiles" / "chat.py",
        rate="20/s",
        duration="40s",
        budgets=["chat.ttft p95 < 1s"],
    )
    recorder, progress = Recorder(Limits()), Progress(plan, stage_windows(plan), 1.0)
    shown = []
    for i in range(2):
        for _ in range(10):
            recorder.request("load", "chat", {"ttft": 20 * MS})
        (row,) = progress.update(recorder.flush(i))["budgets"]
        shown.append((row["now"] is not None, row["ok"], row["n"]))
    assert shown == [(False, None, 10), (True, True, 20)]
