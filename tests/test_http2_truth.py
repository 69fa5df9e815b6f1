"""HTTP/2 and proxies against the exact server behind programs that were not written here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fronts
import gevent
import httpx
import numpy as np
import pytest

from harness.plan import Target
from harness.transport import Fetched, RequestHead, open_transport
from harness.transport.clock import KERNEL, USER

sys.path.insert(0, str(Path(__file__).with_name("bench")))
import truth

pytestmark = pytest.mark.swarm
GAP_MS, TTFT_MS, TOKENS = 20, 60, 12
MS = 1_000_000


@pytest.fixture(scope="module")
def program(require: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("cc")
    return truth.build(tmp_path_factory.mktemp("truth"))


@dataclass
class Way:
    """How the exact server is reached, and where it writes down what it did."""

    target: Target
    through: str
    dump: Path


@contextmanager
def exact_server(program: Path, dump: Path, **options: Any) -> Iterator[str]:
    # its own core is not to be had: it must not spin on one that a client needs
    with truth.running(
        program=program,
        dump=dump,
        no_spin=True,
        ttft_us=TTFT_MS * 1000,
        gap_us=GAP_MS * 1000,
        tokens=TOKENS,
        **options,
    ) as url:
        yield url


def ask(way: Way, streams: int, rounds: int) -> dict[str, Fetched]:
    """Make requests in step, as users of a closed load do; one after the other each."""
    transport = open_transport(way.target, way.target.url)
    replies: dict[str, Fetched] = {}

    def user(number: int) -> None:
        for turn in range(rounds):
            name = f"u{number}-{turn}"
            request = httpx.Request(
                "POST",
                f"{way.target.url}/v1/chat/completions",
                headers={"x-request-id": name, "content-type": "application/json"},
                content=b"{}",
            )
            replies[name] = transport.fetch(RequestHead.of(request), b"{}")

    users = [gevent.spawn(user, number) for number in range(streams)]
    gevent.joinall(users, timeout=60, raise_error=True)
    assert transport.clock in {f"{base}: {way.through}" for base in (KERNEL, USER)}
    transport.close()
    assert transport.poller.watched == 0
    return replies


def token_stamps(reply: Fetched) -> list[int]:
    """When each of the events with text came in, by the read in which it ended."""
    stamps, held = [], b""
    for data, t_ns in reply.pieces:
        held += data
        *whole, held = held.split(b"\n\n")
        stamps += [t_ns for event in whole if b'"content":" w' in event]
    return stamps


def check_against_the_truth(way: Way, replies: dict[str, Fetched]) -> None:
    """Compare with the server's own record, once it has ended."""
    known = truth.read_truth(way.dump)
    gaps, true_gaps, late_ms, ttft_ms = [], [], [], []
    for name, reply in replies.items():
        assert reply.error is None
        assert reply.status == 200
        true = known[name]
        stamps = token_stamps(reply)
        sent_ns = true.before_ns[true.tokens]
        assert len(stamps) == len(sent_ns) == TOKENS
        assert reply.stamps.sent_ns <= true.received_ns
        late = (np.array(stamps) - sent_ns) / MS
        assert (late >= 0).all()  # nothing comes before it was sent
        late_ms += list(late)
        gaps += list(np.diff(stamps) / MS)
        true_gaps += list(np.diff(sent_ns) / MS)
        ttft_ms.append((stamps[0] - reply.stamps.sent_ns) / MS)
    for quantile in (0.25, 0.5, 0.75):
        error = np.quantile(gaps, quantile) - np.quantile(true_gaps, quantile)
        assert abs(error) < 0.2 * GAP_MS, (quantile, error)
    assert (
        np.mean(np.array(gaps) < 0.1 * GAP_MS) < 0.1
    )  # few came merged, on however busy a machine
    assert abs(np.median(ttft_ms) / TTFT_MS - 1) < 0.5
    assert np.median(late_ms) < 0.1 * GAP_MS


@pytest.mark.parametrize("streams", [1, 4, 64])
@pytest.mark.parametrize("front", ["nginx", "caddy"])
def test_over_http2_the_times_are_the_servers_own(
    front: str,
    streams: int,
    program: Path,
    authority: dict[str, Path],
    tmp_path: Path,
    require: Callable[[str], str],
) -> None:
    require(fronts.program(front))
    cert, dump = authority["cert"], tmp_path / "dump"
    with exact_server(program, dump) as upstream:
        front_of = getattr(fronts, front)(tmp_path, upstream, cert, cert.with_suffix(".key"))
        with front_of as url:
            target = Target(url=url, verify=authority["ca"], http2=True)
            way = Way(target, "HTTP/2", dump)
            replies = ask(way, streams, 2 if streams > 4 else 4)
    assert {reply.head.http_version for reply in replies.values() if reply.head} == {b"HTTP/2"}
    check_against_the_truth(way, replies)


def test_a_server_that_limits_streams_and_ends_connections_loses_no_request(
    program: Path, authority: dict[str, Path], tmp_path: Path, require: Callable[[str], str]
) -> None:
    require(fronts.program("nginx"))
    cert, dump = authority["cert"], tmp_path / "dump"
    with exact_server(program, dump) as upstream:
        front = fronts.nginx(
            tmp_path, upstream, cert, cert.with_suffix(".key"), streams=3, requests=5
        )
        with front as url:
            way = Way(Target(url=url, verify=authority["ca"], http2=True), "HTTP/2", dump)
            replies = ask(way, 16, 6)
    check_against_the_truth(way, replies)


@pytest.mark.parametrize("streams", [1, 4, 64])
@pytest.mark.parametrize("proxy", ["tinyproxy", "microsocks"])
@pytest.mark.parametrize("way", ["plain", "tls", "http2"])
def test_through_a_proxy_the_times_are_the_servers_own(
    way: str,
    proxy: str,
    streams: int,
    program: Path,
    authority: dict[str, Path],
    tmp_path: Path,
    require: Callable[[str], str],
) -> None:
    require(fronts.program(proxy))
    dump, files = tmp_path / "dump", (authority["cert"], authority["cert"].with_suffix(".key"))
    with ExitStack() as running:
        url = running.enter_context(
            exact_server(program, dump, tls=files if way == "tls" else None)
        )
        if way == "http2":
            require(fronts.program("nginx"))
            url = running.enter_context(fronts.nginx(tmp_path, url, *files))
        through = running.enter_context(
            fronts.tinyproxy(tmp_path, url) if proxy == "tinyproxy" else fronts.microsocks()
        )
        target = Target(url=url, verify=authority["ca"], proxy=through, http2=way == "http2")
        said = f"{'HTTP/2 ' if way == 'http2' else ''}through the proxy {through}"
        replies = ask(Way(target, said, dump), streams, 2)
    check_against_the_truth(Way(target, said, dump), replies)
