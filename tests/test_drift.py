"""What was not steady is found, dated and said; what only looks so is left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from conftest import stage

from harness import stats
from harness.budget import parse_budget
from harness.recorder import Recorder, Recording
from harness.report.export import verdict_json
from harness.report.facts import findings
from harness.report.markdown import render_markdown
from harness.report.page import render_page
from harness.report.terminal import render_terminal
from harness.steadiness import Drift, find_drifts
from harness.verdict import Outcome, Verdict, judge

MS, NS = 1_000_000, 1e9
SaveRun = Callable[..., Recording]
Samples = tuple[np.ndarray, np.ndarray]  # when each request was due, and its latency, seconds


def steady(
    n: int = 2_000,
    duration_s: float = 100,
    median_s: float = 0.1,
    sigma: float = 0.4,
    seed: int = 1,
) -> Samples:
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, duration_s, n)), rng.lognormal(np.log(median_s), sigma, n)


def queue(
    load: Callable[[np.ndarray], np.ndarray], rate: float = 40, duration_s: float = 100
) -> Samples:
    """One server, first come first served; `load` by the moment of arrival."""
    rng = np.random.default_rng(7)
    due = np.sort(rng.uniform(0, duration_s, int(rate * duration_s)))
    service = load(due) / rate * rng.lognormal(-0.125, 0.5, len(due))
    free, latency = 0.0, np.empty(len(due))
    for i, (at, work) in enumerate(zip(due, service, strict=True)):
        free = max(free, at) + work
        latency[i] = free - at
    return due, latency


def seen(samples: Samples, duration_s: float = 100) -> stats.Windows:
    due, latency = samples
    windows = stats.Windows.of(due + latency, latency * NS, 1.0, duration_s)
    return stats.steady_part(windows, windows, duration_s)[0]


def overload(samples: Samples, duration_s: int = 100) -> stats.Overload | None:
    due, latency = (values[samples[0] < duration_s] for values in samples)
    ends = due + latency
    inside = ends < duration_s
    at = ends[inside].astype(int)
    arrived, ended = (np.bincount(x, minlength=duration_s) for x in (due.astype(int), at))
    sums = np.bincount(at, weights=latency[inside] * NS, minlength=duration_s).astype(np.int64)
    return stats.find_overload(arrived, ended, ended, sums, 1.0)


# --- warm-up and trend -----------------------------------------------------------------------------


def test_a_slow_start_is_a_warm_up_of_its_length_and_size() -> None:
    due, latency = steady()
    found = stats.find_drift(seen((due, np.where(due < 12, 2.5, 1) * latency)))
    assert isinstance(found, stats.WarmUp)
    assert found.length_s == pytest.approx(12, abs=1.5)
    assert found.ratio == pytest.approx(2.5, rel=0.1)
    assert found.p < 0.01


def test_a_start_may_also_be_faster_than_the_rest() -> None:
    due, latency = steady()
    found = stats.find_drift(seen((due, np.where(due < 10, 0.5, 1) * latency)))
    assert isinstance(found, stats.WarmUp)
    assert found.ratio == pytest.approx(0.5, rel=0.1)


def test_latency_that_grows_all_along_is_a_trend_and_no_warm_up() -> None:
    due, latency = steady(seed=2)
    windows = seen((due, 2 ** (due / 100) * latency))
    assert stats.find_warm_up(windows, confidence=0.975) is not None  # faster than the rest
    found = stats.find_drift(windows)
    assert isinstance(found, stats.Trend)
    assert found.ratio == pytest.approx(2, rel=0.1)


def test_what_grows_by_less_than_a_tenth_is_not_said() -> None:
    due, latency = steady(n=20_000, sigma=0.1)
    assert stats.find_trend(seen((due, 1.05 ** (due / 100) * latency))) is None
    assert stats.find_warm_up(seen((due, np.where(due < 12, 1.05, 1) * latency))) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_steady_run_has_neither(seed: int) -> None:
    assert stats.find_drift(seen(steady(seed=seed))) is None


def test_requests_that_take_long_do_not_make_the_start_look_fast() -> None:
    """In the first seconds only the fast ones of them can have ended."""
    due, latency = steady(n=20_000, median_s=8, sigma=0.4)
    assert stats.find_drift(seen((due, latency))) is None


@pytest.mark.parametrize(("n", "duration_s"), [(0, 10), (0, 100), (1, 10), (30, 10), (3, 100)])
def test_a_run_that_is_too_short_to_tell_says_nothing(n: int, duration_s: int) -> None:
    samples = steady(n=n, duration_s=duration_s)
    assert stats.find_drift(seen(samples, duration_s=duration_s)) is None
    assert overload(samples, duration_s=duration_s) is None


# --- overload --------------------------------------------------------------------------------------


def test_a_server_that_becomes_too_slow_is_overloaded_from_then_on() -> None:
    found = overload(queue(lambda due: np.where(due < 41, 0.6, 1.3)))
    assert found is not None
    assert found.start_s == pytest.approx(41, abs=4)
    assert found.arrived_per_s == pytest.approx(40, rel=0.1)
    assert found.ended_per_s == pytest.approx(40 / 1.3, rel=0.1)
    assert found.growth_per_s == pytest.approx(0.3 / 1.3 * NS, rel=0.25)


def test_a_server_that_is_overloaded_from_the_start_is_so_since_the_start() -> None:
    found = overload(queue(lambda due: np.full(len(due), 3.0)))
    assert found is not None
    assert found.start_s == 0


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
def test_a_queue_that_is_only_long_is_no_overload(load: float) -> None:
    assert overload(queue(lambda due: np.full(len(due), load))) is None


def test_requests_that_take_half_of_the_run_fill_a_steady_target_up() -> None:
    samples = steady(n=5_000, median_s=20, sigma=0.5)
    for duration_s in range(20, 101, 4):
        assert overload(samples, duration_s) is None, duration_s


def test_a_backlog_that_is_worked_off_is_no_overload() -> None:
    assert overload(queue(lambda due: np.where((due > 20) & (due < 40), 1.6, 0.6))) is None


def test_a_target_of_which_nothing_comes_back_any_more_is_overloaded() -> None:
    due, latency = steady()
    found = overload((due, np.where(due > 60, 1_000.0, latency)))
    assert found is not None
    assert found.start_s == pytest.approx(60, abs=2)
    assert found.growth_per_s is None or found.ended_per_s < 1


# --- of a run --------------------------------------------------------------------------------------


def of(samples: Samples, *, metric: str = "ttft") -> Callable[[Recorder, int], None]:
    """A second of a run at a time, as workers record it."""
    due, latency = samples
    ends = due + latency

    def fill(recorder: Recorder, second: int) -> None:
        load = recorder.load("steady")
        load.planned += int(np.sum(due.astype(int) == second))
        load.sent = load.planned
        for value in latency[ends.astype(int) == second]:
            load.finished += 1
            values = {metric: round(value * NS), "e2el": round(value * NS), "send_lag": 0}
            recorder.request("steady", "chat", values)

    return fill


HELD = "chat.ttft max < 90s"


def recorded(save_run: SaveRun, samples: Samples, **more: Any) -> Recording:
    intervals = int((samples[0] + samples[1]).max()) + 1
    stages = [stage(end_s=100.0, **more)]
    return save_run(of(samples), budgets=[HELD], stages=stages, intervals=intervals)


def told(recording: Recording, texts: Sequence[str] = (HELD,)) -> tuple[Verdict, dict[str, str]]:
    """The verdict, and the texts of every report without their line breaks."""
    verdict = judge(recording, [parse_budget(text) for text in texts])
    found = findings(recording, verdict)
    reports = {
        "terminal": render_terminal(
            verdict, found, recording.run, ["report.html"], color=False, unicode=True
        ),
        "markdown": render_markdown(recording, verdict, found),
        "page": render_page(recording, verdict, found).replace("<wbr>", ""),
        "json": str(verdict_json(recording, verdict, found)["drifts"]),
    }
    return verdict, {name: " ".join(text.split()) for name, text in reports.items()}


def only(recording: Recording) -> Drift:
    (drift,) = find_drifts(recording)
    return drift


def test_a_warm_up_is_said_in_every_report_and_takes_no_pass_back(save_run: SaveRun) -> None:
    due, latency = steady()
    recording = recorded(save_run, (due, np.where(due < 12, 2.5, 1) * latency))
    verdict, reports = told(recording)
    assert only(recording).kind == "warm-up"
    assert only(recording).t_s == pytest.approx(12, abs=1.5)
    assert verdict.outcome is Outcome.PASS
    for name, text in reports.items():
        assert "an undeclared warm-up; add a stage of that length with record: false" in text, name


def test_an_overload_is_said_and_nothing_passes_in_that_stage(save_run: SaveRun) -> None:
    recording = recorded(save_run, queue(lambda due: np.where(due < 41, 0.6, 1.3)))
    assert only(recording).kind == "overload"
    verdict, reports = told(recording)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert (verdict.budgets[0].reason or "").startswith("overload in steady since 0:")
    for name, text in reports.items():
        assert "requests/s complete" in text, name
        assert "latency grows" in text, name


def test_latency_that_stays_the_same_in_an_overload_does_not_grow(save_run: SaveRun) -> None:
    """Of 40 arrivals a second 20 are answered, each 50 ns later a second, and the rest never."""
    due = np.arange(4_000) / 40 + 0.001
    answered = np.arange(4_000) % 2 == 0
    samples = due, np.where(answered, 0.1 + 5e-8 * due, 1_000.0)
    recording = save_run(of(samples), budgets=[HELD], stages=[stage(end_s=100.0)], intervals=100)
    assert only(recording).sentence.startswith("overload in steady since 0:00: 20 of 40 requests/s")


def test_a_budget_that_an_overload_breaks_stays_broken(save_run: SaveRun) -> None:
    recording = recorded(save_run, queue(lambda due: np.where(due < 41, 0.6, 1.3)))
    for text in ("chat.ttft max < 1s", "chat.ttft p50 < 1ms"):
        verdict, _ = told(recording, [text])
        assert verdict.outcome is Outcome.FAIL, text


def test_a_closed_load_waits_for_its_target_and_cannot_overload_it(save_run: SaveRun) -> None:
    samples = queue(lambda due: np.full(len(due), 1.3))
    recording = recorded(save_run, samples, load="20 users", planned_rate_per_s=None)
    assert all(drift.kind != "overload" for drift in find_drifts(recording))


def test_a_stage_that_is_not_recorded_may_do_as_it_likes(save_run: SaveRun) -> None:
    recording = recorded(save_run, queue(lambda due: np.full(len(due), 1.3)), record=False)
    assert find_drifts(recording) == ()


def test_a_steady_run_is_steady(save_run: SaveRun) -> None:
    assert find_drifts(recorded(save_run, steady())) == ()


def test_what_the_ramp_makes_of_the_first_seconds_is_no_warm_up(save_run: SaveRun) -> None:
    due, latency = steady()
    samples = due, np.where(due < 12, 0.4, 1) * latency  # few users, short waits
    users = {"load": "20 users", "planned_rate_per_s": None}
    assert only(recorded(save_run, samples, **users)).kind == "warm-up"
    assert find_drifts(recorded(save_run, samples, **users, ramp_s=12.0)) == ()
