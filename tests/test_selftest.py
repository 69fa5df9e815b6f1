"""`harness selftest`: what it measures is real, its arithmetic is right, its result is kept."""

from __future__ import annotations

import json
import math
import signal
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from commands import PREDICT, alive, descendants, eventually, invoked, started

from harness import health, selftest
from harness.errors import HarnessError
from harness.plan import Plan, load_plan
from harness.recorder import Limits, Recorder, Report
from harness.selftest import measurement, ramp
from harness.selftest.fitting import ASSUMED_TOKENS, ASSUMED_TOKENS_PER_S, demands
from harness.selftest.result import (
    Ceiling,
    Level,
    Selftest,
    StampError,
    ceiling_of,
    machine,
    saved_path,
)
from harness.selftest.stamps import compared, read_stamps
from harness.selftest.text import describe_fit

MS = 1_000_000


def level(per_s: float = 100, *broke: str, late: bool = False) -> Level:
    return Level(
        per_s=per_s,
        error_p99_ns=None,
        send_lag_p99_ns=MS,
        cpu=0.2,
        server_late=late,
        broke=broke,
    )


def ceiling(per_s: float, *, at_least: bool = False) -> Ceiling:
    ended_by = "the test server" if at_least else "send lag"
    levels = (level(per_s), level(2 * per_s, "send lag"))
    return Ceiling(per_s=per_s, at_least=at_least, ended_by=ended_by, levels=levels)


def result(
    *, events: float = 10_000, requests: float = 1000, at_least: bool = False, cores: int = 4
) -> Selftest:
    return Selftest(
        machine={**machine(), "cores": cores},
        measured_at="2026-01-01T00:00:00Z",
        took_s=40.0,
        clock="monotonic",
        send_lag_limit_ns=10 * MS,
        stamp_error=StampError(
            events=5000, streams=50, p50_ns=12_000, p99_ns=90_000, p999_ns=400_000
        ),
        token_events=ceiling(events, at_least=at_least),
        requests=ceiling(requests, at_least=at_least),
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plan_of(
    folder: Path,
    load: str,
    *,
    api: str = "openai-chat",
    params: str = "{}",
    workers: int = 1,
    body: str = "",
    budget: str = "run.error_rate < 1%",
) -> Plan:
    """A plan whose task makes one call to the API, or does what `body` says."""
    body = body or ("self.predict({})" if api == "json" else "self.chat('hi')")
    (folder / "scenario.py").write_text(PREDICT.replace(PREDICT.split("\n")[-2].strip(), body))
    (folder / "plan.yaml").write_text(
        f"target: {{ url: 'http://127.0.0.1:1', api: {api}, params: {params} }}\n"
        f"scenario: scenario.py\nworkers: {workers}\nload: {load}\n"
        f"budgets: [{budget}]\n"
    )
    return load_plan(folder / "plan.yaml")


# The measurement itself, small


@pytest.fixture(scope="module")
def measured() -> tuple[Selftest, list[str]]:
    """A real selftest of two short steps, on a machine that is never too busy to measure."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(health, "SEND_LAG_LIMIT_NS", 10**12)
        patch.setattr(health, "CPU_LIMIT", 9)
        patch.setattr(measurement, "_ERROR_LIMIT_NS", 10**12)
        patch.setattr(measurement, "cores", lambda: 3)  # two servers, one worker
        bounds = selftest.Bounds(step_s=0.5, steps=2, streams=10, requests_per_s=40)
        return selftest.measure(bounds=bounds, say=said.append), said


def test_the_stamps_of_a_real_worker_follow_the_truth(
    measured: tuple[Selftest, list[str]],
) -> None:
    error = measured[0].stamp_error
    assert error.streams == 10
    assert error.events > 100
    assert 0 < error.p50_ns <= error.p99_ns <= error.p999_ns
    assert measured[0].clock.startswith("monotonic")


def test_every_step_is_carried_and_the_end_of_the_steps_is_only_a_lower_bound(
    measured: tuple[Selftest, list[str]],
) -> None:
    for found in (measured[0].token_events, measured[0].requests):
        assert len(found.levels) == 2
        assert all(each.per_s > 0 for each in found.levels)
        assert not any(each.broke for each in found.levels)
        assert all(each.send_lag_p99_ns and each.cpu is not None for each in found.levels)
        assert found.per_s == max(each.per_s for each in found.levels)
        assert found.at_least
    assert all(each.error_p99_ns for each in measured[0].token_events.levels)


def test_it_says_what_it_does_and_leaves_no_process(
    measured: tuple[Selftest, list[str]],
) -> None:
    assert [text.split()[0] for text in measured[1]] == ["measuring", "measuring"]
    assert psutil.Process().children() == []


def test_at_the_deadline_everything_is_ended_by_force() -> None:
    bounds = selftest.Bounds(step_s=20, steps=2, deadline_s=0.2)
    with pytest.raises(HarnessError):
        selftest.measure(bounds=bounds)
    assert psutil.Process().children() == []


def test_the_load_ends_where_no_higher_step_should_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ramp.Ramp, "_judge", lambda *_: False)
    bounds = selftest.Bounds(step_s=0.5, steps=20, streams=4, requests_per_s=20)
    found = selftest.measure(bounds=bounds)
    assert 1 <= len(found.token_events.levels) < 20
    assert 1 <= len(found.requests.levels) < 20


# Its parts


def test_stamps_are_compared_token_by_token_and_the_preflight_is_left_out(tmp_path: Path) -> None:
    replies = [(1, 0, 1, 5), (2, 1000, 3, 1110, 1220, 1330), (3, 1000, 1, 1500)]
    file = tmp_path / "stamps"
    file.write_bytes(b"".join(array("q", reply).tobytes() for reply in replies))
    truth = {
        "2": {"started_ns": 1000, "token_ns": [1105, 1210, 1315]},
        "3": {"started_ns": 1300, "token_ns": [1400]},
    }
    found = compared(read_stamps(file), truth, gap_ns=100)
    assert found.error_ns.tolist() == [5, 10, 15, 100]
    assert found.written_ns.tolist() == [105, 210, 315, 400]
    assert found.late_ns.tolist() == [5, 10, 15, 0]


def test_a_reply_with_other_tokens_than_were_written_is_no_measurement() -> None:
    stamps = {7: np.array([1000, 1100, 1200])}
    with pytest.raises(HarnessError, match="reply 7 has 2 stamped tokens; the server wrote 1"):
        compared(stamps, {"7": {"started_ns": 1, "token_ns": [1]}}, gap_ns=1)
    with pytest.raises(HarnessError, match="no reply"):
        compared({}, {}, gap_ns=1)


@pytest.mark.parametrize(
    ("levels", "per_s", "at_least", "ended_by"),
    [
        ([level(100), level(150), level(220)], 220, True, "the end of the steps"),
        ([level(100), level(150, "send lag"), level(220, "its CPU")], 100, False,
         "send lag and its CPU"),
        ([level(100), level(150, "send lag"), level(220)], 220, True, "the end of the steps"),
        ([level(100), level(150, "its CPU"), level(220, "its CPU"), level(330)], 100, False,
         "its CPU"),
        ([level(100), level(150, late=True)], 150, True, "the test server"),
        ([level(100), level(150, "send lag", late=True)], 100, True, "the test server"),
        ([level(100), level(150, late=True), level(220), level(200, "its CPU")], 220, False,
         "its CPU"),
        ([level(100, "send lag"), level(150, "send lag")], 0, False, "send lag"),
    ],
)  # fmt: skip
def test_the_ceiling_is_the_most_that_was_carried_before_two_steps_broke(
    levels: list[Level], per_s: float, at_least: bool, ended_by: str
) -> None:
    found = ceiling_of(levels)
    assert (found.per_s, found.at_least, found.ended_by) == (per_s, at_least, ended_by)
    assert found.levels == tuple(levels)


def reports(lags_ns: list[int], *, service_ns: int = 10 * MS) -> Iterator[Report]:
    """A report for each interval of steps with these send lags, in order."""
    recorder = Recorder(Limits())
    for number, lag_ns in enumerate(lags_ns):
        for part in range(ramp._INTERVALS):
            for _ in range(20):
                recorder.add(f"step{number}", "predict", "send_lag", lag_ns)
                recorder.request(f"step{number}", "predict", {"service": service_ns})
            yield recorder.flush(number * ramp._INTERVALS + part, cpu=0.1)


@pytest.mark.parametrize(
    ("lags_ms", "stops_in"),
    [([1, 1, 1, 1, 1], None), ([1, 50, 1, 50, 1], None), ([1, 1, 50, 50, 1], 4)],
)
def test_the_load_rises_until_two_steps_in_a_row_were_bad(
    tmp_path: Path, lags_ms: list[int], stops_in: int | None
) -> None:
    steps = ramp.Steps(
        api="json", scenario=tmp_path, rates=[10.0] * 5, step_s=2, settle_s=0.5,
        usual_ns=10 * MS, lag_limit_ns=10 * MS, quiet_steps=1, max_in_flight=9,
    )  # fmt: skip
    rising = ramp.Ramp(steps, steps.plan(), 2 / ramp._INTERVALS)
    told = [rising.note(report) for report in reports([ms * MS for ms in lags_ms])]
    stopped = [number // ramp._INTERVALS for number, go_on in enumerate(told) if not go_on]
    assert stopped[:1] == ([] if stops_in is None else [stops_in])


# Does a plan fit


@pytest.mark.parametrize(
    ("load", "params", "workers", "found", "needed", "fits"),
    [
        # 20/s of 100 tokens: 2 % of the requests, 20 % of the events
        ("constant 20/s", "{ max_tokens: 100 }", 1, {}, 1, True),
        ("constant 90/s", "{ max_tokens: 100 }", 1, {}, 1, True),
        ("constant 95/s", "{ max_tokens: 100 }", 1, {}, 2, False),
        ("constant 95/s", "{ max_tokens: 100 }", 2, {}, 2, True),
        ("constant 95/s", "{ max_completion_tokens: 100, max_tokens: 1 }", 1, {}, 2, False),
        ("constant 95/s", "{ max_tokens: 100 }", 8, {"cores": 1}, 2, False),
        ("poisson 500/s", "{ stream: false }", 1, {}, 1, True),
        ("poisson 1000/s", "{ stream: false }", 1, {}, 1, True),
        ("poisson 1001/s", "{ stream: false }", 1, {}, 2, False),
        ("poisson 1/s", "{ stream: false }", 1, {"requests": 0}, None, False),
        ("poisson 1/s", "{}", 1, {"events": 0}, None, False),
    ],
)
def test_requests_and_token_events_share_the_workers(
    tmp_path: Path,
    load: str,
    params: str,
    workers: int,
    found: dict[str, Any],
    needed: int | None,
    fits: bool,
) -> None:
    load = f"{{ name: one, arrivals: {load}, for: 1s }}"
    plan = plan_of(tmp_path, load, params=params, workers=workers)
    fitting = selftest.fit(plan, result(**found))
    assert (fitting.needed, fitting.fits) == (needed, fits)


def test_the_most_demanding_stage_decides_and_the_text_says_what_was_assumed(
    tmp_path: Path,
) -> None:
    load = (
        "[{ name: low, arrivals: constant 1/s, for: 1s }, "
        "{ name: peak, arrivals: poisson 200/s, for: 1s }]"
    )
    fitting = selftest.fit(plan_of(tmp_path, load), result(at_least=True))
    assert fitting.demand is not None
    assert fitting.demand.stage == "peak"
    assert math.isclose(fitting.share, 200 / 1000 + 200 * ASSUMED_TOKENS / 10_000)
    text = describe_fit(fitting, result(at_least=True))
    assert text.startswith(
        "fits unless what is assumed holds: it would need at most 6 workers, it has 1 and this "
        "machine 4 cores; "
    )
    assert f"{ASSUMED_TOKENS} tokens a reply, assumed" in text
    assert "1 request a task, as its source has them" in text
    assert "at least 10,000/s token events" in text


@pytest.mark.parametrize(
    ("load", "params", "needed", "least", "fits"),
    [
        ("arrivals: constant 200/s", "{}", 6, 1, True),
        ("arrivals: constant 950/s", "{}", 26, 2, False),  # a token of each reply is one too many
        ("arrivals: constant 950/s", "{ max_tokens: 1 }", 2, 2, False),
        ("concurrency: 1000", "{}", 6, 1, True),  # 50 tokens/s of each are assumed
        ("concurrency: 1000", "{ max_tokens: 100 }", 6, 1, True),
    ],
)
def test_what_is_assumed_alone_makes_no_plan_unfit(
    tmp_path: Path, load: str, params: str, needed: int, least: int, fits: bool
) -> None:
    plan = plan_of(tmp_path, f"{{ {load}, for: 1s }}", params=params)
    fitting = selftest.fit(plan, result())
    assert (fitting.needed, fitting.least, fitting.fits) == (needed, least, fits)
    words = "fits unless what is assumed holds" if fits else "needs 2 workers, it has 1"
    assert describe_fit(fitting, result()).startswith(words)


def test_the_stage_that_does_not_fit_whatever_was_assumed_is_told_of(tmp_path: Path) -> None:
    load = "[{ concurrency: 9000, for: 1s }, { name: sure, arrivals: constant 2000/s, for: 1s }]"
    fitting = selftest.fit(plan_of(tmp_path, load), result())
    assert fitting.demand is not None
    assert (fitting.demand.stage, fitting.fits) == ("sure", False)


def test_users_count_as_streams_and_where_only_the_target_decides_nothing_is_judged(
    tmp_path: Path,
) -> None:
    load = "{ name: users, concurrency: 10, for: 1s }"
    (users,) = demands(plan_of(tmp_path, load, params="{ max_tokens: 25 }"))
    assert users.events_per_s == 10 * ASSUMED_TOKENS_PER_S
    assert users.requests_per_s == users.events_per_s / 25
    plan = plan_of(tmp_path, load, api="json")
    fitting = selftest.fit(plan, result())
    assert fitting.demand is None
    assert fitting.not_judged == ("users",)
    assert describe_fit(fitting, result()).startswith("is not judged: in users the target decides")


@pytest.mark.parametrize(
    ("body", "requests", "events", "words"),
    [
        ("self.embed('a'); self.chat('b')", 20, 250, "2 requests a task, as its source has them"),
        ("self.client.get('/x'); self.client.post('/y')", 20, 0, "no token streams; 2 requests"),
        ("self.chat('a'); self.complete('b'); self.predict({})", 30, 500, "25 tokens a reply"),
        ("other(self)", 10, 250, "1 request a task, assumed"),
    ],
)
def test_a_task_asks_for_the_requests_that_stand_in_its_source(
    tmp_path: Path, body: str, requests: float, events: float, words: str
) -> None:
    load = "{ name: all, arrivals: constant 10/s, for: 1s }"
    plan = plan_of(tmp_path, load, params="{ max_tokens: 25 }", body=body)
    (found,) = demands(plan)
    assert (found.requests_per_s, found.events_per_s) == (requests, events)
    assert words in found.basis


def rising(*lags_ms: float) -> Ceiling:
    """Levels of 100/s, 200/s, … with these send lags, measured by a limit of 10 ms."""
    levels = [
        replace(
            level(100 * number, *(["send lag"] if ms >= 10 else [])), send_lag_p99_ns=round(ms * MS)
        )
        for number, ms in enumerate(lags_ms, 1)
    ]
    return ceiling_of(levels)


@pytest.mark.parametrize(
    ("budget", "per_s", "at_least"),
    [
        ("run.error_rate < 1%", 300, False),  # a limit of 10 ms
        ("ask.e2el p95 < 40ms", 100, False),  # 2 ms
        ("ask.e2el p95 < 2s", 500, True),  # 100 ms, beyond what was measured
        ("ask.e2el p95 < 1s", 400, False),  # 50 ms
    ],
)
def test_a_plan_is_held_against_what_is_carried_within_its_own_send_lag_limit(
    tmp_path: Path, budget: str, per_s: float, at_least: bool
) -> None:
    found = replace(result(), requests=rising(1, 5, 9, 30, 60))
    plan = plan_of(
        tmp_path, f"{{ arrivals: constant {per_s:g}/s, for: 1s }}", api="json", budget=budget
    )
    fitting = selftest.fit(plan, found)
    assert (fitting.share, fitting.at_most) == (1, at_least)


# The saved result


def test_a_saved_result_is_read_back_as_it_was(cache: Path) -> None:
    found = replace(result(), machine=machine())
    assert selftest.save(found) == cache / "latency-harness" / "selftest.json"
    assert selftest.saved() == found


def test_without_xdg_the_result_is_in_the_users_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert saved_path() == Path.home() / ".cache" / "latency-harness" / "selftest.json"


@pytest.mark.parametrize("fact", ["cores", "python", "harness"])
def test_a_result_of_another_machine_or_version_counts_for_nothing(fact: str) -> None:
    selftest.save(replace(result(), machine={**machine(), fact: "another"}))
    assert selftest.saved() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', "null", "{", "1"])
def test_a_broken_saved_result_counts_for_nothing(text: str) -> None:
    selftest.save(result())
    saved_path().write_text(text)
    assert selftest.saved() is None


# The commands


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Selftest:
    """What `harness selftest` finds, at once."""
    found = replace(result(), machine=machine())
    monkeypatch.setattr(selftest, "measure", lambda **_: found)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return found


def test_the_command_shows_the_errors_the_steps_and_what_a_worker_carries(found: Selftest) -> None:
    done = invoked("selftest")
    assert done.exit_code == 0
    assert "p50 12 µs   p99 90 µs   p99.9 400 µs" in done.stdout
    assert "clock: monotonic" in done.stdout
    assert (
        "One worker of this machine carries 10,000/s token events or 1,000/s requests,\n"
        "its send lag p99 below 10 ms.\n"
    ) in done.stdout
    assert "ended by send lag" in done.stdout
    assert selftest.saved() == found


def test_a_plan_that_does_not_fit_ends_with_5_and_one_that_fits_with_0(
    tmp_path: Path, found: Selftest
) -> None:
    plan_of(tmp_path, "{ arrivals: constant 2000/s, for: 1s }", api="json")
    done = invoked("selftest", "--plan", tmp_path / "plan.yaml")
    assert done.exit_code == 5
    assert "The plan needs 2 workers, it has 1;" in done.stdout
    plan_of(tmp_path, "{ arrivals: constant 200/s, for: 1s }", api="json")
    done = invoked("selftest", "--plan", tmp_path / "plan.yaml")
    assert done.exit_code == 0
    assert "The plan fits: it takes 20 % of what 1 worker" in done.stdout
    plan_of(tmp_path, "{ arrivals: constant 200/s, for: 1s }")
    done = invoked("selftest", "--plan", tmp_path / "plan.yaml")
    assert done.exit_code == 0
    assert "The plan fits unless what is assumed holds: it would need 6 workers" in done.stdout


def test_a_mistake_in_the_plan_ends_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "measure", lambda **_: pytest.fail("measured"))
    assert invoked("selftest", "--plan", tmp_path / "none.yaml").exit_code == 2


def test_the_json_holds_everything_and_has_stdout_to_itself(
    tmp_path: Path, found: Selftest
) -> None:
    plan_of(tmp_path, "{ name: all, arrivals: constant 2000/s, for: 1s }", api="json")
    done = invoked("selftest", "--plan", tmp_path / "plan.yaml", "--json", "-")
    data = json.loads(done.stdout)
    assert set(data) == {
        "schema_version", "machine", "measured_at", "took_s", "clock", "send_lag_limit_ns",
        "stamp_error", "token_events", "requests", "in_step", "fit",
    }  # fmt: skip
    assert data["stamp_error"]["p99_ns"] == 90_000
    assert data["requests"]["levels"][1]["broke"] == ["send lag"]
    assert data["requests"]["per_s"] == 1000
    assert not data["requests"]["at_least"]
    assert data["fit"]["needed"] == 2
    assert data["fit"]["fits"] is False
    assert data["fit"]["demand"]["stage"] == "all"
    assert "One worker" in done.stderr
    assert json.loads(invoked("selftest", "--json", "-").stdout)["fit"] is None


def test_a_result_that_cannot_be_kept_is_still_shown(found: Selftest, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    done = invoked("selftest")
    assert done.exit_code == 0
    assert "the result is not kept" in done.stderr
    assert "One worker" in done.stdout


def test_a_run_warns_when_its_plan_asks_for_more_than_the_saved_result(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").touch()  # the run ends before its load
    given = ("run", tmp_path / "plan.yaml", "--out", tmp_path / "out")
    plan_of(tmp_path, "{ name: all, arrivals: constant 2000/s, for: 1s }", api="json")
    assert "warning" not in invoked(*given).stderr  # nothing was ever measured
    selftest.save(replace(result(), machine=machine()))
    done = invoked(*given)
    assert done.exit_code == 2
    assert "harness: warning: the plan needs 2 workers, it has 1" in done.stderr
    assert "(found by harness selftest)" in done.stderr
    for api in ("json", "openai-chat"):  # of replies by tokens, 256 are assumed
        plan_of(tmp_path, "{ arrivals: constant 200/s, for: 1s }", api=api)
        assert "warning" not in invoked(*given).stderr


def test_a_scenario_that_is_no_python_is_left_to_the_preflight_to_refuse(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "{ arrivals: constant 1/s, for: 1s }", api="json")
    plan.scenario.write_text("def broken(:\n")
    (demand,) = demands(plan)
    assert "1 request a task, assumed" in demand.basis


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_130_and_no_process_is_left(tmp_path: Path, number: int) -> None:
    with started("selftest", cwd=tmp_path) as process:
        eventually(lambda: len(descendants(process)) >= 2, "an endpoint and a worker")
        children = descendants(process)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted" in err
    eventually(lambda: not alive(children), "the end of endpoint and worker")
