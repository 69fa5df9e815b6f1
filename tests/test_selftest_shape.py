"""A plan's own shape in the selftest: the server in step, what is compared, what is said and kept."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from commands import invoked
from test_selftest import plan_of, result

from harness import selftest
from harness.apis import StreamReader, api
from harness.endpoint import certificate
from harness.endpoint.instep import TICK_NS, running_in_step
from harness.errors import HarnessError
from harness.selftest import measurement
from harness.selftest.result import Errors, InStep, Shape, machine
from harness.selftest.shape import MOST_STREAMS, compared_in_step, measure_shape, shape_of
from harness.selftest.stamps import read_stamps
from harness.selftest.text import describe_in_step

MS = 1_000_000
TOKENS = "{ max_tokens: 10 }"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def shape(**given: Any) -> Shape:
    usual = {"stage": "load", "streams": 8, "workers": 1, "tls": False, "http2": False}
    return Shape(**{**usual, "proxy": False, **given})


def in_step(of: Shape, **given: Any) -> InStep:
    usual = {
        "streams": of.streams, "tls": of.tls, "http2": of.http2, "tokens": 100, "replies": 300, "failed": 0, "merged": 0.0,
        "ttft": Errors(p50_ns=5_000, p99_ns=30_000, max_ns=2 * MS),
        "itl": Errors(p50_ns=1_000, p99_ns=40_000, max_ns=3 * MS),
        "e2el": Errors(p50_ns=4_000, p99_ns=50_000, max_ns=4 * MS),
        "stall_ns": 1_200_000, "server_late_ns": MS, "clock": "monotonic",
    }  # fmt: skip
    return InStep(shape=of, **{**usual, **given})


# The server


def test_streams_are_written_in_the_same_ticks_end_together_and_are_known(tmp_path: Path) -> None:
    def one(index: int) -> list[bytes]:
        with (
            httpx.Client(trust_env=False, timeout=30) as http,
            http.stream("POST", f"{url}/v1/chat/completions", content=b"x" * index) as response,
        ):
            return b"".join(response.iter_raw()).split(b"\n\n")[:-1]

    with (
        running_in_step(tmp_path / "truth", tokens=10) as url,
        ThreadPoolExecutor(6) as pool,
    ):
        streams = list(pool.map(one, range(6)))
    written = read_stamps(tmp_path / "truth")
    assert set(written) == set(range(1, 7))
    ends = {end_ns // TICK_NS for end_ns, *_ in written.values()}
    assert len(ends) <= 2  # one that came too late for the first wave has the second one's end
    for events in streams:
        assert len(set(events)) == len(events)
        reader = StreamReader(api("openai-chat"))
        reader.feed(b"\n\n".join(events) + b"\n\n", 1)
        reply = reader.finish(2)
        assert reply.failure is None
        assert len(reply.token_events) == len(written[int(reply.model or 0)]) - 1 > 0


def test_without_openssl_there_is_no_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate.shutil, "which", lambda _: None)
    assert certificate.throwaway(tmp_path) is None


def test_a_throwaway_certificate_vouches_for_the_loopback_address(
    require: Callable[[str], str], tmp_path: Path
) -> None:
    require("openssl")
    made = certificate.throwaway(tmp_path)
    assert made is not None
    with running_in_step(tmp_path / "truth", tokens=10, tls=made) as url:
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=made[0])
        with httpx.Client(trust_env=False, timeout=30, verify=context) as http:
            assert http.post(f"{url}/v1/chat/completions", content=b"{}").status_code == 200


# The measurement


@pytest.mark.parametrize(("tls", "http2"), [(False, False), (True, False), (True, True)])
def test_a_real_worker_is_measured_in_step(
    require: Callable[[str], str], tmp_path: Path, tls: bool, http2: bool
) -> None:
    if tls:
        require("openssl")
    load = "{ concurrency: 8, for: 60s }"
    plan = plan_of(tmp_path, load, params=TOKENS)
    found = measure_shape(plan, shape(tls=tls, http2=http2), waves=3)
    assert (found.streams, found.tls, found.http2, found.tokens) == (8, tls, http2, 10)
    assert ("HTTP/2" in found.clock) is http2
    assert (found.replies >= 8, found.failed) == (True, 0)
    assert found.clock.startswith("monotonic")
    for errors in (found.ttft, found.itl, found.e2el):
        assert 0 <= errors.p50_ns <= errors.p99_ns <= errors.max_ns
    assert found.e2el.p50_ns > 0


def test_the_first_wave_does_not_count_and_the_others_are_compared_stamp_by_stamp() -> None:
    second = 40 * TICK_NS
    written = {
        1: np.array([20 * TICK_NS, TICK_NS]),
        2: np.array([second, second - 90, second - 50, second - 20]),
    }
    stamps = {
        1: np.array([20 * TICK_NS + 900, TICK_NS + 900]),
        2: np.array([second + 7, second - 85, second - 49, second - 12]),
    }
    found = compared_in_step(stamps, written)
    assert found["ttft"].tolist() == [5]
    assert found["itl"].tolist() == [1 - 5, 8 - 1]
    assert found["e2el"].tolist() == [7]
    with pytest.raises(HarnessError, match="reply 2 has 2 stamped tokens; the server wrote 3"):
        compared_in_step({**stamps, 2: stamps[2][:-1]}, written)
    with pytest.raises(HarnessError, match="no reply"):
        compared_in_step({1: stamps[1]}, written)


def test_a_shape_that_cannot_be_played_takes_nothing_from_what_the_machine_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> InStep:
        raise HarnessError("it is busy")

    said: list[str] = []
    monkeypatch.setattr(measurement, "measure_shape", broken)
    bounds = selftest.Bounds(step_s=0.5, steps=1, streams=2, requests_per_s=10)
    plan = plan_of(tmp_path, "{ concurrency: 8, for: 1s }")
    found = selftest.measure(bounds=bounds, plan=plan, say=said.append)
    assert found.in_step == ()
    assert said[-1] == "the plan's own shape was not measured: it is busy"


# The shape of a plan


@pytest.mark.parametrize(
    ("load", "streams"),
    [
        ("{ concurrency: 40, for: 1s }", 40),
        ("[{ name: a, concurrency: 4, for: 1s }, { name: b, concurrency: 9, for: 1s }]", 9),
        ("{ arrivals: constant 20/s, for: 1s }", 5),  # of replies that last 0.25 s
        ("{ arrivals: poisson 20/s, for: 1s, max_in_flight: 3 }", 3),
    ],
)
def test_a_plan_has_as_many_streams_as_it_has_users_or_requests_in_flight(
    tmp_path: Path, load: str, streams: int
) -> None:
    found = shape_of(plan_of(tmp_path, load, params=TOKENS))
    assert found is not None
    assert found.streams == streams


def test_of_a_task_with_two_streams_both_are_in_flight_and_without_any_there_is_no_shape(
    tmp_path: Path,
) -> None:
    load = "{ arrivals: constant 20/s, for: 1s }"
    twice = shape_of(plan_of(tmp_path, load, params=TOKENS, body="self.chat('a'); self.chat('b')"))
    assert twice is not None
    assert twice.streams == 10
    assert shape_of(plan_of(tmp_path, load, api="json")) is None


def test_the_transport_of_the_shape_is_that_of_the_plan(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "{ concurrency: 4, for: 1s }", workers=2)
    found = shape_of(replace(plan, target=replace(plan.target, url="https://x", http2=True)))
    assert found == shape(streams=4, workers=2, tls=True, http2=True)


# What is said and kept


def test_the_sentence_has_the_error_of_each_metric() -> None:
    assert describe_in_step(in_step(shape())) == (
        "with 8 streams in step, by 1 worker, as in stage load, expect errors at p99 of "
        "ttft 30 µs (at most 2 ms), itl 40 µs (at most 3 ms), e2el 50 µs (at most 4 ms); "
        "the event loop stood still for 1.2 ms at most, 0 % of the tokens shared a later one's stamp"
    )


@pytest.mark.parametrize(
    ("of", "given", "words"),
    [
        (shape(tls=True), {"tls": False}, "TLS is not in these figures: a certificate needs"),
        (shape(tls=True, http2=True), {"tls": False, "http2": False}, "HTTP/2 and TLS are not in "),
        (shape(), {"failed": 3}, "3 replies failed and are not in these figures"),
        (shape(proxy=True), {}, "the proxy is not in these figures"),
        (shape(streams=9000), {"streams": MOST_STREAMS}, "1,000 of 9,000 streams were tested"),
        (shape(), {"server_late_ns": 15 * MS}, "the test server took 15 ms to write a tick"),
    ],
)
def test_what_could_not_be_tested_is_said(of: Shape, given: dict[str, Any], words: str) -> None:
    assert words in describe_in_step(in_step(of, **given))


def test_shapes_of_other_plans_are_kept_and_one_that_is_measured_again_is_replaced() -> None:
    first, second = in_step(shape(streams=8)), in_step(shape(streams=9))
    found = replace(result(), machine=machine())
    for shapes in ((first,), (second,), ()):
        selftest.save(replace(found, in_step=shapes))
    kept = selftest.saved()
    assert kept is not None
    assert set(kept.in_step) == {first, second}
    again = replace(first, stall_ns=1)
    selftest.save(replace(found, in_step=(again,)))
    kept = selftest.saved()
    assert kept is not None
    assert kept.of_shape(replace(first.shape, stage="another")) == again
    assert len(kept.in_step) == 2


def test_the_command_says_what_to_expect_and_a_run_of_such_a_plan_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, "{ concurrency: 8, for: 1s }")
    of = shape_of(plan)
    assert of is not None
    found = replace(result(), machine=machine(), in_step=(in_step(of),))
    monkeypatch.setattr(selftest, "measure", lambda **_: found)
    done = invoked("selftest", "--plan", tmp_path / "plan.yaml", "--json", "-")
    assert "With 8 streams in step, by 1 worker, as in stage load, expect errors at" in done.stderr
    assert json.loads(done.stdout)["in_step"][0]["ttft"]["p99_ns"] == 30_000
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").touch()  # the run ends before its load
    given = ("run", tmp_path / "plan.yaml", "--out", tmp_path / "out")
    said = "harness: with 8 streams in step, by 1 worker, as in stage load, expect errors"
    assert said in invoked(*given).stderr
    plan_of(tmp_path, "{ concurrency: 9, for: 1s }")
    assert "in step" not in invoked(*given).stderr
