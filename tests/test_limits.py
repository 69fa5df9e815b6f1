"""What the client itself ran out of is counted apart, voids the stage, and names the setting."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import httpx
import load
import pytest
from load import S

from harness import limits
from harness.budget import parse_budget
from harness.errors import ExitCode, GeneratorError
from harness.health import Check, assess
from harness.limits import kind_of, limit_met, name_in, raise_descriptor_limit, setting
from harness.plan import Plan
from harness.recorder import Recorder, Recording
from harness.swarm import frames
from harness.swarm.collect import Workers, check_probes
from harness.swarm.journey import failure_kind
from harness.swarm.preconditions import misfits
from harness.transport import Transport, sockets
from harness.verdict import Outcome, judge

MS = 1_000_000
SaveRun = Callable[..., Recording]
CHAT = """
class Someone(ModelUser):
    @task
    def ask(self):
        self.predict({"instances": [1]})
"""


def raised_from(*causes: BaseException) -> httpx.ConnectError:
    """An error of the transport, raised from the first, which was raised from the next, …"""
    error: BaseException = httpx.ConnectError("cannot connect")
    first = error
    for cause in causes:
        error.__cause__ = cause
        error = cause
    assert isinstance(first, httpx.ConnectError)
    return first


# --- which errors are the client's own -------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EADDRNOTAVAIL, "net.ipv4.ip_local_port_range"),
        (errno.EADDRINUSE, "net.ipv4.tcp_tw_reuse"),
        (errno.ENOBUFS, "net.ipv4.tcp_mem"),
        (errno.ENOMEM, "memory"),
        (errno.ENOSPC, "fs.epoll.max_user_watches"),
    ],
)
def test_a_limit_of_the_client_is_a_kind_of_its_own_that_names_the_setting(
    code: int, named: str
) -> None:
    error = raised_from(OSError("as httpcore words it"), OSError(code, os.strerror(code)))
    kind = failure_kind(error)
    assert kind == f"generator limit {errno.errorcode[code]}"
    assert named in setting(name_in(kind) or "")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (raised_from(ConnectionRefusedError(errno.ECONNREFUSED, "refused")), "connect"),
        (raised_from(OSError(errno.EHOSTUNREACH, "no route")), "connect"),
        (raised_from(socket.gaierror(socket.EAI_NONAME, "unknown")), "connect"),
        (raised_from(socket.gaierror(socket.EAI_MEMORY, "memory")), kind_of("ENOMEM")),
        (
            raised_from(OSError("no errno"), RuntimeError("can't start new thread")),
            kind_of("EAGAIN"),
        ),
        (raised_from(RuntimeError("another")), "connect"),
        (raised_from(MemoryError()), kind_of("ENOMEM")),
        (raised_from(BlockingIOError(errno.EAGAIN, "a full backlog")), "connect"),
        (OSError(errno.EMFILE, "a file of the scenario's"), "exception OSError"),
    ],
)
def test_nothing_else_is(error: BaseException, kind: str) -> None:
    assert failure_kind(error) == kind


def test_what_the_scenario_was_handling_meanwhile_does_not_count() -> None:
    refused = raised_from(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    refused.__context__ = OSError(errno.EMFILE, "a file of the scenario's")
    assert refused.__cause__ is not None
    refused.__cause__.__context__ = refused.__context__
    assert failure_kind(refused) == "connect"


@pytest.mark.swarm
def test_a_name_that_cannot_be_looked_up_for_want_of_descriptors_is_the_clients_limit() -> None:
    error = raised_from(socket.gaierror(socket.EAI_AGAIN, "temporary failure"))
    assert limit_met(error) is None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    assert limit_met(error) == "EMFILE"


@pytest.mark.swarm
def test_a_limit_that_the_first_address_met_is_not_hidden_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        port = taken.getsockname()[1]
        real, made = sockets._Socket, list[int]()

        def one_fails(*kind: int) -> Any:
            made.append(1)
            if len(made) == 1:
                raise OSError(errno.EMFILE, "too many open files")
            return real(*kind)

        address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))
        monkeypatch.setattr(sockets, "_Socket", one_fails)
        monkeypatch.setattr(sockets, "_addresses", lambda _host, _port: [address] * 2)
        with pytest.raises(httpx.ConnectError) as error:
            httpx.Client(transport=Transport()).get(f"http://127.0.0.1:{port}")
    assert len(made) == 2
    assert failure_kind(error.value) == kind_of("EMFILE")


@pytest.mark.swarm
def test_a_thread_that_cannot_be_started_for_a_name_is_the_clients_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(gevent.socket, "getaddrinfo", no_thread)
    with pytest.raises(httpx.ConnectError) as error:
        httpx.Client(transport=Transport()).get("http://somewhere.test")
    assert failure_kind(error.value) == kind_of("EAGAIN")


# --- in a load -------------------------------------------------------------------------------------


@pytest.mark.swarm
def test_descriptors_that_run_out_are_counted_apart_from_the_targets_failures(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:  # it never accepts
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        stage = "{ name: steady, concurrency: 30, ramp: 0s, for: 200ms }"
        target = {"api": "json", "timeout": "300ms"}
        plan = load.write_plan(tmp_path, CHAT, url=url, load=stage, target=target)
        gevent.get_hub().threadpool.apply(int)  # libev needs a pipe for it, and aborts without
        top = os.open(os.devnull, os.O_RDONLY)
        os.close(top)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 20, hard))
        kinds = load.run_here(plan).kinds()
    assert set(kinds) == {kind_of("EMFILE"), "timeout"}
    assert 5 < kinds["timeout"] < 20


@pytest.mark.swarm
def test_users_of_a_target_that_refuses_do_not_spin(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        stage = "{ name: steady, concurrency: 5, ramp: 0s, for: 500ms }"
        loaded = load.run_here(load.write_plan(tmp_path, CHAT, url=url, load=stage))
    assert set(loaded.kinds()) == {"connect"}
    assert 20 < loaded.load().failed < 60  # of thousands that there is time for
    assert loaded.load().backed_off > 15


@pytest.mark.swarm
def test_the_soft_limit_is_raised_to_the_hard_one_and_not_beyond() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, min(hard, 5000)))
    assert raise_descriptor_limit() == min(hard, 5000)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 5000),) * 2
    assert raise_descriptor_limit() == min(hard, 5000)


# --- what it makes of a run ------------------------------------------------------------------------


def met(limit: str, n: int, *, of: int = 50) -> Callable[[Recorder, int], None]:
    """Intervals in which so many of the requests met a limit of the client."""

    def fill(recorder: Recorder, _: int) -> None:
        for number in range(of):
            inside = {"send_lag": MS}
            if number < n:
                recorder.request("steady", "answer/chat", inside, failure=kind_of(limit))
                recorder.request("steady", "answer", inside, failure=kind_of(limit))
            else:
                recorder.request("steady", "answer", {"e2el": 100 * MS, **inside})
        counters = recorder.load("steady")
        counters.planned = counters.sent = counters.finished = of
        counters.failed = n

    return fill


def own_limits(recording: Recording) -> Check:
    (found,) = (c for c in assess(recording).checks if c.name == "The client's own limits")
    return found


@pytest.mark.parametrize("limit", ["answer.error_rate < 90%", "answer.error_rate < 1%"])
def test_a_stage_that_met_one_is_invalid_whether_it_would_pass_or_fail(
    save_run: SaveRun, limit: str
) -> None:
    recording = save_run(met("EMFILE", 20), budgets=[limit])
    verdict = judge(recording, [parse_budget(limit)])
    assert verdict.outcome is Outcome.INVALID
    assert "ulimit -n" in (verdict.budgets[0].reason or "")


def test_a_step_inside_another_is_counted_once_and_a_run_without_any_is_fit(
    save_run: SaveRun,
) -> None:
    broken = own_limits(save_run(met("EADDRNOTAVAIL", 3)))
    assert (broken.ok, broken.measured) == (False, "EADDRNOTAVAIL 60 times")
    assert "ip_local_port_range" in broken.remedy
    fit = own_limits(save_run(met("EMFILE", 0)))
    assert (fit.ok, fit.measured) == (True, "none")


# --- before the load -------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    stage = "{ name: steady, concurrency: 100, for: 10s }"
    return load.write_plan(tmp_path, CHAT, url="http://127.0.0.1:9", load=stage)


def test_what_does_not_fit_is_said_with_the_setting(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = tmp_path / "ports"
    ports.write_text("50000\t50049\n")
    monkeypatch.setattr(limits, "_PORT_RANGE", ports)
    monkeypatch.setattr("harness.swarm.preconditions.raise_descriptor_limit", lambda: 119)
    descriptors, narrow = misfits(plan)
    assert "steady: 100 requests at a time: a worker needs about 120" in descriptors
    assert "ulimit -n" in descriptors
    assert "50 local ports" in narrow
    assert "net.ipv4.ip_local_port_range" in narrow
    assert len(misfits(replace(plan, workers=2))) == 1  # 50 connections each do fit
    embedded = replace(plan, workers=2, target=replace(plan.target, url="embedded"))
    assert "the embedded endpoint needs about 120" in misfits(embedded)[0]
    ports.write_text("32768\t60999\n")
    monkeypatch.setattr("harness.swarm.preconditions.raise_descriptor_limit", lambda: 120)
    assert misfits(plan) == []


def test_a_limit_met_in_the_preflight_is_this_machines_not_the_targets() -> None:
    kind = kind_of("EMFILE")
    probe = frames.Probe(
        task="ask", steps=(("predict", kind, {"error": "too many"}),), failure=kind
    )
    with pytest.raises(
        GeneratorError, match=r"this machine .* predict \(EMFILE: too many\): .*ulimit -n"
    ):
        check_probes([probe], "http://127.0.0.1:9")
    assert GeneratorError.exit_code is ExitCode.INVALID


def test_a_worker_that_cannot_be_started_says_what_to_raise(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(GeneratorError, match=r"worker 0 of 1 cannot be started .*ulimit -u"):
        Workers(plan, "http://127.0.0.1:9", S, None, preflight=False)
