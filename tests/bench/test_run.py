"""What the bench makes of its measurements; the measuring itself needs quiet cores (`make bench`)."""

from __future__ import annotations

import clients
import goals
import measurements
import numpy as np
import pytest
import run
import truth

CORES = measurements.Cores(client=0, server=1)


def written(id: str, *, received_ns: int, at: tuple[int, ...]) -> truth.Reply:
    times = np.array(at, dtype=np.int64)
    return truth.Reply(
        id=id,
        streamed=True,
        ended="complete",
        writes=len(at),
        received_ns=received_ns,
        first_ns=10,
        gap_ns=10,
        before_ns=times,
        after_ns=times + 1,
        late=np.zeros(len(at), dtype=bool),
    )


def bench(**values: float) -> run.Bench:
    found = {("record", measurements.HARNESS): [{name: value} for name, value in values.items()]}
    return run.Bench(CORES, repeats=len(values), found=found)


def test_replies_are_paired_by_the_order_in_which_they_ended() -> None:
    kept = truth.Truth(
        a=written("a", received_ns=100, at=(101, 150, 300)),
        b=written("b", received_ns=90, at=(101, 170, 200)),
    )
    rows = [[305, 52, 208, 60, 220], [202, 83, 113, 90, 125]]  # of a, of b: end, times
    errors = measurements._by_end(rows, kept)
    assert errors["ttft"].tolist() == [3, 2]
    assert errors["e2e"].tolist() == [3, 8]
    assert errors["planned_e2e"].tolist() == [15, 20]


@pytest.mark.parametrize("row", [[299, 50, 200, 50, 200], [305, 50, 150, 50, 150]])
def test_a_reply_that_ended_before_it_was_written_or_left_after_it_came_is_no_pair(
    row: list[int],
) -> None:
    kept = truth.Truth(a=written("a", received_ns=100, at=(101, 150, 300)))
    with pytest.raises(RuntimeError, match="cannot be paired"):
        measurements._by_end([row], kept)


def test_only_events_with_content_are_tokens() -> None:
    events = [
        (1, b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'),
        (2, b'data: {"choices":[{"delta":{"content":" w0"}}]}\n\n'),
        (3, b'data: {"choices":[{"delta":{}}]}'),
        (4, b'data: {"choices":[],"usage":{}}'),
        (5, b"data: [DONE]\n\n"),
    ]
    assert clients.token_stamps(events) == [2]


def test_a_goal_is_held_to_the_median_and_shown_with_its_range() -> None:
    some = bench(ns=90.0)
    some.found["record", measurements.HARNESS] = [{"ns": 90.0}, {"ns": 300.0}, {"ns": 95.0}]
    some.repeats = 3
    line = next(x for x in run.goals_table(some, ["record"]).splitlines() if "ns a sample" in x)
    assert line == "| recording, ns a sample | ≤ 100 | 95.0 (90.0–300) | ok |"


def test_a_goal_is_not_measured_when_a_repeat_is_missing() -> None:
    some = bench(ns=90.0)
    some.repeats = 3
    assert "| not measured |" in run.goals_table(some, ["record"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (0.0314, "0.0314"), (99.6, "99.6"), (2, "2.00")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert goals.number(value) == text


def test_every_goal_names_a_measurement() -> None:
    assert {goal.needs for goal in goals.goals()} <= measurements.MEASUREMENTS.keys()
