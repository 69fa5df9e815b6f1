"""What the bench makes of its measurements; the measuring itself needs quiet cores (`make bench`)."""

from __future__ import annotations

from pathlib import Path

import clients
import decoding
import goals
import hour
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
        by_kernel=True,
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


def test_replies_of_a_run_are_paired_by_the_model_that_they_name() -> None:
    kept = truth.Truth(
        a=written("a", received_ns=100, at=(101, 150, 170, 300)),
        b=written("b", received_ns=90, at=(101, 170, 180, 200)),
    )
    rows = [["b", 83, 113, 90, 125, [12]], ["a", 52, 208, 60, 220, [19]]]
    errors = measurements._by_model(rows, kept)
    assert errors["ttft"].tolist() == [3, 2]
    assert errors["e2e"].tolist() == [3, 8]
    assert errors["planned_ttft"].tolist() == [10, 10]
    assert errors["gap"].tolist() == [2, 1]


@pytest.mark.parametrize("shape", decoding._RECORDED)
def test_a_recorded_reply_is_made_longer_and_stays_whole(shape: str) -> None:
    given = decoding.replies(shape, "")
    assert len(given) == decoding.REPLIES
    assert {len(reads) > decoding.TOKENS + 2 for reads in given} == {True}
    assert given[0] != given[1]
    assert decoding.cost_us(given[:1]) > 0


def test_a_reply_that_is_not_whole_has_no_cost() -> None:
    reads = decoding.replies("llamacpp", "")[0]
    with pytest.raises(RuntimeError, match="99 tokens were read"):
        decoding.cost_us([reads[:50] + reads[51:]])


def test_http2_is_held_against_http1_through_the_same_nginx() -> None:
    some = bench()
    some.repeats = 1
    for client, ttft, gap in ((measurements.HTTP1, 0.5, 0.3), (measurements.HTTP2, 0.58, 3.0)):
        values = {"ttft_p99": ttft, "e2e_p99": ttft, "gap_p99.9": gap}
        some.found["http2", client] = [values]
    ttft, e2e, gaps = run.goals_table(some, ["http2"]).splitlines()[2:]
    assert "HTTP/2 minus HTTP/1.1, ms | ≤ 0.100 | 0.0800 | ok |" in ttft
    assert e2e.endswith("| ok |")
    assert gaps.endswith("| 3.00 | **missed** |")


def test_without_nginx_its_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements.shutil, "which", lambda _: None)
    some = bench()
    some.repeats = 1
    some.run("http2")
    text = run.page(some, ["http2"], "")
    assert text.count("did not install: nginx is not there; apt-get install nginx") == 4
    assert "| not measured |" in text
    assert not some.broken


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


@pytest.mark.parametrize(
    ("percents", "said"),
    [
        ((100.0, 100.0), "by the kernel's stamp"),
        ((0.0, 0.0), "by the server's clock after its own wake-up"),
        ((100.0, 40.0), "of 40.0 % or more; the rest by the server's clock"),
    ],
)
def test_the_notes_say_by_which_clock_a_request_was_received(
    percents: tuple[float, ...], said: str
) -> None:
    some = bench()
    some.repeats = 1
    for client, percent in zip("ab", percents, strict=True):
        some.found["replies", client] = [{"by_kernel_percent": percent}]
    assert said in run.received(some)
    assert f"was there, {run.received(some)}," in run.page(some, ["replies"], "")


@pytest.mark.parametrize(("behind_us", "is_said"), [(200_000.0, True), (150.0, False)])
def test_httpx_is_only_said_to_be_behind_when_it_is(behind_us: float, is_said: bool) -> None:
    some = bench()
    some.repeats = 1
    cpu = {measurements.HARNESS: 13.0, measurements.HTTPX: 15.0}
    for client, cpu_us in cpu.items():
        some.found["tokens-80k", client] = [{"cpu_us": cpu_us, "p50": behind_us}]
    text = run.goals_table(some, ["tokens-80k"])
    assert "**missed**" in text
    assert ("does not keep up" in text) is is_said


def test_what_is_said_of_short_requests_is_computed_from_their_cpu() -> None:
    some = bench()
    some.repeats = 1
    found = {
        measurements.BY_CLIENT: {"per_s": 10_000.0, "cpu_us": 50.0},
        measurements.FAST: {"per_s": 10_000.0, "cpu_us": 100.0},
        measurements.HTTPX_ALONE: {"per_s": 9_000.0, "cpu_us": 90.0},
    }
    some.found |= {("short", client): [values] for client, values in found.items()}
    text = run.goals_table(some, ["short"])
    assert "2.00 times as much; the first process ran 50.0 % of the time, the other 100 %" in text


def test_an_hour_is_saved_so_that_every_budget_can_be_judged(tmp_path: Path) -> None:
    runs = [tmp_path / "base", tmp_path / "candidate"]
    for seed, folder in enumerate(runs):
        hour.save(folder, seed=seed, seconds=40)
    given = {"runs": [str(folder) for folder in runs], "limit": "5%"}
    assert len(hour.budgets()) == 50
    for client in (clients.hour_judged, clients.hour_compared):
        found = client(given)
        assert 0 < found["read_s"] < found["cpu_s"]


def test_every_goal_names_a_measurement() -> None:
    assert {goal.needs for goal in goals.goals()} <= measurements.MEASUREMENTS.keys()
