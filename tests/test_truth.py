"""What is measured against what the embedded endpoint knows to be true, over real loopback."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import gevent
import httpx
import pytest
from load import MS, STAGE, S, do, make_run, make_user, run_here, write_plan

from harness.arrivals import schedule
from harness.endpoint import Settings, running
from harness.swarm.user import ModelUser, Step
from harness.transport import Transport

pytestmark = pytest.mark.swarm


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Slow enough that what the client adds is small beside it."""
    with running(Settings(ttft_ms=60, ttft_sigma=0.2, gap_ms=15, predict_ms=60, tokens=8)) as url:
        yield url


def ask(url: str, count: int, call: Any, *, at_once: int = 4) -> list[tuple[Step, Any]]:
    """Make requests, a few at a time; returns the step of each and the truth about it."""
    transport, steps = Transport(), {}

    def serve(first: int) -> None:
        seen = make_run(url, transport=transport)
        user = make_user(type("Someone", (ModelUser,), {}), seen)
        for number in range(first, count, at_once):
            user.client.headers["x-request-id"] = name = f"{call.__name__}-{number}"
            assert do(call, seen, user=user)
            steps[name] = seen.steps.pop()

    gevent.joinall([gevent.spawn(serve, number) for number in range(at_once)], raise_error=True)
    with httpx.Client(base_url=url, trust_env=False) as http:
        return [
            (one, http.get("/truth", params={"id": name}).json()) for name, one in steps.items()
        ]


def chat(user: Any) -> None:
    user.chat(user.client.headers["x-request-id"])


def predict(user: Any) -> None:
    user.predict({"instances": [user.client.headers["x-request-id"]]})


def test_no_stamp_is_before_the_truth_and_the_median_is_close_to_it(endpoint: str) -> None:
    late: dict[str, list[float]] = {"ttft": [], "itl": [], "e2el": []}
    for one, truth in ask(endpoint, 24, chat):
        first_ns = one.start_ns + one.values["ttft"]
        stamps = list(accumulate(one.gaps, initial=first_ns))
        assert len(stamps) == len(truth["token_ns"]) == 8
        assert all(here >= there for here, there in zip(stamps, truth["token_ns"], strict=True))
        assert one.start_ns + one.values["e2el"] >= truth["done_ns"]
        sent_ns = first_ns - one.values["service_ttft"]
        assert one.start_ns <= sent_ns <= truth["received_ns"]
        true_ttft = truth["token_ns"][0] - truth["received_ns"]
        true_gaps = [after - before for before, after in pairwise(truth["token_ns"])]
        gaps = zip(one.gaps, true_gaps, strict=True)
        late["ttft"].append(one.values["service_ttft"] / true_ttft - 1)
        late["itl"] += [abs(gap / true - 1) for gap, true in gaps]
        late["e2el"].append(one.values["service"] / (truth["done_ns"] - truth["received_ns"]) - 1)
    medians = {name: statistics.median(shares) for name, shares in late.items()}
    assert max(medians.values()) < 0.2, medians


def test_a_whole_reply_is_timed_as_close(endpoint: str) -> None:
    late = []
    for one, truth in ask(endpoint, 16, predict):
        assert one.start_ns + one.values["e2el"] >= truth["body_ns"]
        true_ns = truth["body_ns"] - truth["received_ns"]
        late.append(one.values["service"] / true_ns - 1)
    assert statistics.median(late) < 0.2


ASK = """
    class Someone(ModelUser):
        @task
        def ask(self):
            self.predict({"instances": [1]})
"""


def test_waiting_for_a_user_is_part_of_the_response_and_not_of_the_send_lag(
    tmp_path: Path, endpoint: str
) -> None:
    steady = "[{ name: steady, arrivals: constant 50/s, for: 200ms, max_in_flight: 1 }]"
    loaded = run_here(write_plan(tmp_path, ASK, url=endpoint, load=steady))
    assert loaded.load().planned == loaded.load().finished == 10
    assert loaded.load().waited == 9
    response, service = (loaded.histogram("predict", name) for name in ("e2el", "service"))
    waits, lags = (loaded.histogram("predict", name) for name in ("slot_wait", "send_lag"))
    assert waits.n == 9
    assert response.max is not None
    assert service.mean is not None
    assert waits.min is not None
    assert lags.quantile(0.5) is not None
    # one after the other: the last was planned 180 ms in, and ends after ten services
    assert response.max > 10 * service.quantile(0.1) - 180 * MS
    assert lags.quantile(0.5) < service.quantile(0.5) / 10
    assert response.sum - service.sum >= waits.sum


def test_a_stall_shows_in_every_arrival_planned_meanwhile(tmp_path: Path) -> None:
    """No coordinated omission: one place in the server, held for a second by one request."""
    scenario = """
        asked = []

        class Someone(ModelUser):
            @task
            def ask(self):
                asked.append(1)
                fault = "stall=1s" if len(asked) == 11 else "none"
                self.client.headers["x-fault"] = fault
                self.predict({"instances": [1]})
    """
    stage = "[{ name: steady, arrivals: constant 50/s, for: 1s }]"
    with running(Settings(slots=1, predict_ms=1)) as url:
        loaded = run_here(write_plan(tmp_path, scenario, url=url, load=stage))
    took = {one.start_ns - loaded.t0_ns: one.values["e2el"] for _, one in loaded.steps}
    assert sorted(took) == list(schedule("constant", 50, S, seed=1))
    assert loaded.load().finished == 50
    assert loaded.load().waited == 0
    meanwhile = {planned: e2el for planned, e2el in took.items() if planned > 200 * MS}
    assert len(meanwhile) == 39
    assert all(planned + e2el >= S + 200 * MS for planned, e2el in meanwhile.items())
    p99 = loaded.histogram("predict", "e2el").quantile(0.99)
    assert p99 is not None
    assert p99 > 0.95 * S


def test_warm_up_and_the_recorded_stage_never_mix(tmp_path: Path, endpoint: str) -> None:
    stages = """[{ name: warm, arrivals: constant 50/s, for: 100ms, record: false },
                 { name: steady, arrivals: constant 50/s, for: 100ms }]"""
    scenario = """
        class Someone(ModelUser):
            @task
            def ask(self):
                self.predict({"instances": [1]})
                self.predict({"instances": [2]}, step="later")
    """
    loaded = run_here(write_plan(tmp_path, scenario, url=endpoint, load=stages))
    for name, start in (("warm", 0), ("steady", 100 * MS)):
        planned = {
            s.start_ns - loaded.t0_ns for st, s in loaded.steps if (st, s.name) == (name, "predict")
        }
        assert planned == {start + n * 20 * MS for n in range(5)}
        assert loaded.histogram("later", "e2el", name).n == 5


def test_users_in_a_closed_load_wait_their_time_between_journeys(
    tmp_path: Path, endpoint: str
) -> None:
    scenario = ASK + "        wait_time = lambda self: 0.2\n"
    loaded = run_here(
        write_plan(
            tmp_path, scenario, url=endpoint, load="[{ name: steady, concurrency: 2, for: 600ms }]"
        )
    )
    starts = sorted(one.start_ns for _, one in loaded.steps)
    assert len(starts) >= 4
    assert all(b - a >= 0.19 * S for a, b in zip(starts, starts[2:], strict=False))
    assert max(report.load[STAGE].in_flight for report in loaded.reports if report.load) <= 2


def test_requests_running_at_the_end_are_drained_and_the_rest_is_cut_off(
    tmp_path: Path, endpoint: str
) -> None:
    scenario = """
        class Someone(ModelUser):
            @task
            def ask(self):
                with step("outer"):
                    self.client.headers["x-fault"] = "delay=30s"
                    self.chat("why")
    """
    stage = "[{ name: steady, arrivals: constant 50/s, for: 200ms, max_in_flight: 4 }]"
    plan = write_plan(tmp_path, scenario, url=endpoint, load=stage, drain="300ms")
    loaded = run_here(plan)
    totals = loaded.load()
    assert (totals.planned, totals.sent, totals.dropped, totals.cut_off) == (10, 4, 6, 4)
    assert loaded.kinds() == {"cut off": 8}  # the step and the one around it
    assert loaded.samples("e2el") == loaded.samples("ttft") == 0
    bounds = loaded.histogram("outer", "e2el_all")
    assert bounds.n == 4
    assert bounds.min is not None
    assert bounds.min >= 300 * MS  # from planned arrivals in the 200 ms before the drain
    assert len(loaded.steps) == 8


def test_nothing_vanishes_when_the_load_is_stopped_early(tmp_path: Path, endpoint: str) -> None:
    stages = "[{ name: steady, arrivals: poisson 100/s, for: 60s, max_in_flight: 5 }]"
    plan = write_plan(tmp_path, ASK, url=endpoint, load=stages, drain="100ms")
    loaded = run_here(plan, stop_when=lambda worker: worker._dispatcher.waiting > 20)
    totals = loaded.load()
    assert loaded.done.interrupted
    assert totals.dropped > 0
    assert totals.planned == totals.finished + totals.cut_off + totals.dropped
