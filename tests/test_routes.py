"""Through proxies and over HTTP/2: the same records, stamps of the same clock, and the run says so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import h2.config
import h2.connection
import h2.events
import httpx
import load
import pytest
from test_tls_stamps import tls
from test_transport import Counting, stamps_of

from harness.errors import UserError
from harness.limits import raise_descriptor_limit
from harness.plan import Target
from harness.proxies import environment_proxy
from harness.transport import Transport, open_transport
from harness.transport.clock import KERNEL, USER

pytestmark = pytest.mark.swarm
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the variables that name proxies; all others of them are not set."""
    for name in NAMES:
        for spelling in (name, name.lower()):
            monkeypatch.delenv(spelling, raising=False)

    def change(**given: str) -> None:
        os.environ.update(given)  # in the test's own process

    return change


class Proxy:
    """Forwards requests, and opens tunnels for CONNECT; names under .test are this machine."""

    def __init__(self, *, wants: bytes = b"") -> None:
        self.asked: list[bytes] = []
        self.heads: list[bytes] = []
        self._wants = wants

    def __call__(self, connection: Any) -> None:
        while request := load.request_of(connection):
            self.heads.append(request.partition(b"\r\n\r\n")[0])
            method, place, rest = request.split(b" ", 2)
            self.asked.append(method + b" " + place)
            if self._wants not in request:
                connection.sendall(load.answer(status="407 Proxy Authentication Required"))
            elif method == b"CONNECT":
                self._tunnel(connection, place)
                return
            else:
                host, path = httpx.URL(place.decode()).netloc, httpx.URL(place.decode()).raw_path
                upstream = self._connect(host)
                upstream.sendall(method + b" " + path + b" " + rest)
                while data := upstream.recv(65536):
                    connection.sendall(data)
                return

    def _tunnel(self, connection: Any, place: bytes) -> None:
        upstream = self._connect(place)
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._join(connection, upstream)

    def _join(self, connection: Any, upstream: Any) -> None:
        back = gevent.spawn(self._pump, upstream, connection)
        self._pump(connection, upstream)
        back.kill()

    def _pump(self, source: Any, sink: Any) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        sink.close()

    def _connect(self, place: bytes) -> Any:
        host, _, port = place.decode().rpartition(":")
        address = "127.0.0.1" if host.endswith(".test") else host
        return gevent.socket.create_connection((address, int(port)))


class Socks(Proxy):
    """Opens tunnels as a SOCKS5 proxy does (RFC 1928), for one user and password (RFC 1929)."""

    def __call__(self, connection: Any) -> None:
        method = b"\x02" if self._wants else b"\x00"
        assert connection.recv(3) == b"\x05\x01" + method
        connection.sendall(b"\x05" + method)
        if self._wants:
            user, password = self._wants.split(b":")
            known = b"\x01%c%b%c%b" % (len(user), user, len(password), password)
            if connection.recv(100) != known:
                connection.sendall(b"\x01\x01")
                return
            connection.sendall(b"\x01\x00")
        asked = connection.recv(300)
        assert asked[:4] == b"\x05\x01\x00\x03"  # connect, to a name
        host, port = asked[5 : 5 + asked[4]], int.from_bytes(asked[-2:])
        self.asked.append(b"%b:%d" % (host, port))
        upstream = self._connect(self.asked[-1])
        connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
        self._join(connection, upstream)


def speaks_http2(connection: Any) -> None:
    """Answer each stream with its number and method, in two pieces, over one connection."""
    config = h2.config.H2Configuration(client_side=False)
    state = h2.connection.H2Connection(config=config)
    state.initiate_connection()
    connection.sendall(state.data_to_send())
    while data := connection.recv(65536):
        for event in state.receive_data(data):
            if isinstance(event, h2.events.StreamEnded):
                head = [(":status", "200"), ("content-type", "application/json")]
                state.send_headers(event.stream_id, head)
                state.send_data(event.stream_id, b'{"stream": ')
                state.send_data(event.stream_id, b"%d}" % event.stream_id, end_stream=True)
        connection.sendall(state.data_to_send())


def once(connection: Any) -> None:
    """Answer one request and close, which ends a proxy's forwarding."""
    load.request_of(connection)
    connection.sendall(load.answer(more=b"connection: close\r\n"))


def streams(connection: Any) -> None:
    """A chat stream of three tokens, 5 ms apart."""
    load.request_of(connection)
    connection.sendall(load.STREAM_HEAD)
    for number in range(3):
        gevent.sleep(0.005)
        connection.sendall(load.event(finish="stop" if number == 2 else None))
    connection.sendall(load.DONE + load.END)


def with_clock(text: str) -> set[str]:
    """What a run may say of its clock; the latter where the kernel has no stamps."""
    return {f"{KERNEL}: {text}", f"{USER}: {text}"}


def seen_through(target: Target, **more: Any) -> load.Seen:
    return load.make_run(
        target.url, target={}, transport=open_transport(target, target.url), **more
    )


@contextmanager
def proxied(proxy: Proxy, handle: Callable[[Any], object], **options: Any) -> Iterator[Any]:
    with load.serving(proxy) as through, load.serving(handle, **options) as url:
        yield through, url


# Which way


def test_without_a_proxy_and_http2_it_is_the_transport_that_the_kernel_stamps(
    environment: Callable[..., None],
) -> None:
    for trust_env, named in ((True, {}), (False, {"HTTP_PROXY": "http://127.0.0.1:9"})):
        environment(**named)
        target = Target(url="http://a.test", trust_env=trust_env)
        assert type(open_transport(target, target.url)) is Transport


@pytest.mark.parametrize(
    "variables",
    [
        {"HTTP_PROXY": "http://p:1"},
        {"http_proxy": "p:1"},
        {"HTTPS_PROXY": "http://p:1"},
        {"ALL_PROXY": "http://p:1", "HTTP_PROXY": "http://q:1"},
        {"ALL_PROXY": "http://p:1", "NO_PROXY": "a.test"},
        {"ALL_PROXY": "http://p:1", "NO_PROXY": ".a.test, B.test"},
        {"ALL_PROXY": "http://p:1", "NO_PROXY": "a.test:8080,10.1.2.3"},
        {"ALL_PROXY": "http://p:1", "NO_PROXY": "https://a.test,http://b.test:8080"},
        {"ALL_PROXY": "http://p:1", "NO_PROXY": "fd00::1,all://sub.a.test"},
        {"ALL_PROXY": "http://p:1", "NO_PROXY": "x.test,*"},
        {"NO_PROXY": "a.test"},
    ],
    ids=str,
)
def test_the_environments_proxy_is_the_one_that_httpx_would_use(
    environment: Callable[..., None], variables: dict[str, str]
) -> None:
    environment(**variables)
    hosts = ("a.test", "sub.a.test", "xa.test", "b.test", "10.1.2.3", "[fd00::1]")
    with httpx.Client() as http:
        for host in hosts:
            for end in ("", ":8080", ":443"):
                for scheme in ("http", "https"):
                    url = httpx.URL(f"{scheme}://{host}{end}/x")
                    pool = getattr(http._transport_for_url(url), "_pool", None)
                    used = getattr(pool, "_proxy_url", None)
                    found = environment_proxy(url)
                    assert (found and httpx.URL(found).host.encode()) == (used and used.host), url


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "api.localhost"])
def test_a_loopback_address_is_never_sent_to_the_environments_proxy(
    environment: Callable[..., None], host: str
) -> None:
    environment(ALL_PROXY="http://p:1")
    assert environment_proxy(httpx.URL(f"http://{host}:8000")) is None
    assert environment_proxy(httpx.URL("http://a.test")) == "http://p:1"


@pytest.mark.parametrize(
    ("proxy", "problem"),
    [
        ("socks4://me:hidden@p:1", 'the scheme "socks4"'),
        ("me:hidden@http://p:1", 'the scheme ""'),
        ("http://me:hidden@p:x", "a URL that cannot be read"),
        ("http://me:hidden@", "a URL without a usable host"),
    ],
)
def test_a_proxy_of_the_environment_that_is_of_no_use_is_refused_before_the_load(
    environment: Callable[..., None], proxy: str, problem: str
) -> None:
    environment(ALL_PROXY=proxy, NO_PROXY="http://b.test:x")
    with pytest.raises(
        UserError, match=rf"proxy for a\.test: found {problem}; allowed is"
    ) as error:
        open_transport(Target(url="http://a.test"), "http://a.test")
    assert "hidden" not in str(error.value)


# Through a proxy


def test_a_model_call_through_the_environments_proxy_is_recorded_with_its_times(
    environment: Callable[..., None],
) -> None:
    proxy = Proxy()
    with proxied(proxy, streams) as (through, url):
        environment(HTTP_PROXY=through)
        place = url.replace("127.0.0.1", "model.test")
        seen = seen_through(Target(url=place))
        assert load.do(lambda user: user.chat("hi"), seen)
        report = seen.report()
    assert proxy.asked == [b"POST " + place.encode() + b"/v1/chat/completions"]
    assert load.metrics(report, "chat") >= {"ttft", "itl", "e2el", "send_lag", "connect"}
    ttft, e2el = (report.measured[load.STAGE, "chat", m].histogram.max for m in ("ttft", "e2el"))
    assert 5 * load.MS < ttft < e2el - 5 * load.MS
    assert seen.run.transport.clock in with_clock(f"through the proxy {through}")


def test_https_goes_through_a_tunnel_and_the_tunnel_counts_as_connecting(
    authority: dict[str, Path],
) -> None:
    class Slow(Proxy):
        def _connect(self, place: bytes) -> Any:
            gevent.sleep(0.1)
            return super()._connect(place)

    proxy, server = Slow(), Counting()
    with proxied(proxy, server, **tls(authority)) as (through, url):
        target = Target(url=url, verify=authority["ca"], proxy=through)
        with httpx.Client(transport=open_transport(target, url), base_url=url) as http:
            first, second = stamps_of(http.get("/")), stamps_of(http.get("/"))
    assert proxy.asked == [b"CONNECT " + url.removeprefix("https://").encode()]
    assert (server.connections, server.requests) == (1, 2)
    assert first.connect_ns > 0.09 * load.S
    assert second.connect_ns == 0
    for stamps in (first, second):
        assert stamps.sent_ns <= stamps.first_byte_ns <= stamps.read_ns <= time.monotonic_ns()


def test_the_clients_own_requests_and_calls_with_hooks_go_the_same_way() -> None:
    proxy = Proxy()

    def task(user: Any) -> None:
        user.client.get("/models")
        user.client.event_hooks = {"request": [lambda _: None]}
        user.predict({"instances": [1]})

    with proxied(proxy, once) as (through, url):
        seen = seen_through(Target(url=url, proxy=through))
        assert load.do(task, seen)
    assert [place.rpartition(b"/")[2] for place in proxy.asked] == [b"models", b"predict"]
    assert load.metrics(seen.report(), "predict") >= {"e2el", "send_lag", "connect"}


def test_a_stream_is_stamped_piece_by_piece_as_it_is_read() -> None:
    with proxied(Proxy(), streams) as (through, url):
        target = Target(url=url, proxy=through)
        with (
            httpx.Client(transport=open_transport(target, url), base_url=url) as http,
            http.stream("GET", "/") as response,
        ):
            stamps = stamps_of(response)
            reads = [stamps.read_ns for _ in response.iter_raw()]
    assert stamps.first_byte_ns <= reads[0]
    assert reads == sorted(reads)
    assert reads[-1] - reads[0] > 9 * load.MS
    assert stamps.read_ns >= reads[-1]


def test_a_user_and_password_are_sent_to_the_proxy_alone() -> None:
    proxy = Proxy(wants=b"Proxy-Authorization: Basic bWU6c2VjcmV0")
    heads: list[bytes] = []

    def note(connection: Any) -> None:
        heads.append(load.request_of(connection))
        connection.sendall(load.answer(more=b"connection: close\r\n"))

    with proxied(proxy, note) as (through, url):
        known = through.replace("//", "//me:secret@")
        seen = seen_through(Target(url=url, proxy=known))
        assert load.do(lambda user: user.predict({"x": 1}), seen)
        clock = seen.run.transport.clock
    assert len(heads) == 1
    assert "secret" not in clock
    assert "me" not in clock.rpartition(" ")[2]


@pytest.mark.parametrize("tunnel", [False, True])
def test_a_proxy_may_be_spoken_to_by_tls(authority: dict[str, Path], tunnel: bool) -> None:
    proxy = Proxy(wants=b"Proxy-Authorization: Basic bWU6c2VjcmV0")
    served = tls(authority) if tunnel else {}
    with load.serving(proxy, **tls(authority)) as through, load.serving(once, **served) as url:
        known = through.replace("//", "//me:secret@")
        seen = seen_through(Target(url=url, verify=authority["ca"], proxy=known))
        assert load.do(lambda user: user.predict({"x": 1}), seen)
        assert seen.run.transport.clock in with_clock(f"through the proxy {through}")
    (asked,) = proxy.asked
    assert asked.startswith(b"CONNECT 127.0.0.1:" if tunnel else b"POST http://127.0.0.1:")


def test_a_proxy_whose_certificate_fails_is_named(authority: dict[str, Path]) -> None:
    with load.serving(Proxy(), **tls(authority)) as through:
        seen = seen_through(Target(url="http://a.test", proxy=through))
        assert not load.do(lambda user: user.predict({"x": 1}), seen)
    (step,) = seen.steps
    assert step.failure == "connect"
    assert step.detail["error"].startswith(
        f"through the proxy {through}: certificate verify failed"
    )
    assert "verify: ca.pem" in step.detail["error"]


@pytest.mark.parametrize("tunnel", [False, True])
def test_a_proxy_that_refuses_or_is_down_is_named_in_the_failure(
    authority: dict[str, Path], tunnel: bool
) -> None:
    def task(user: Any) -> None:
        user.predict({"x": 1})

    with load.serving(Proxy(wants=b"never")) as through:
        target = Target(url=f"{'https' if tunnel else 'http'}://a.test:1", proxy=through)
        seen = seen_through(target)
        assert not load.do(task, seen)
    (step,) = seen.steps
    if tunnel:
        assert step.failure == "connect"
        assert step.detail["error"].startswith(f"through the proxy {through}: 407")
    else:
        assert step.failure == "status 407"
    seen = seen_through(target)  # nobody listens there now
    assert not load.do(task, seen)
    (step,) = seen.steps
    assert step.failure == "connect"
    assert step.detail["error"].startswith(f"through the proxy {through}: ")


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("known", [b"", b"me:hidden"])
def test_calls_go_through_a_socks_proxy_that_looks_up_the_name(
    environment: Callable[..., None], scheme: str, known: bytes
) -> None:
    proxy = Socks(wants=known)
    with proxied(proxy, streams) as (through, url):
        place = url.replace("127.0.0.1", "model.test")
        at = known.decode() + "@" if known else ""
        environment(ALL_PROXY=through.replace("http://", f"{scheme}://{at}"))
        seen = seen_through(Target(url=place))
        assert load.do(lambda user: user.chat("hi"), seen)
        clock = seen.run.transport.clock
    assert proxy.asked == [place.removeprefix("http://").encode()]
    assert load.metrics(seen.report(), "chat") >= {"ttft", "itl", "e2el", "send_lag", "connect"}
    assert clock in with_clock(f"through the proxy {scheme}" + through.removeprefix("http"))


def test_https_goes_through_a_socks_proxy_too_and_its_negotiation_counts_as_connecting(
    authority: dict[str, Path],
) -> None:
    class Slow(Socks):
        def _connect(self, place: bytes) -> Any:
            gevent.sleep(0.1)
            return super()._connect(place)

    served = tls(authority)
    with load.serving(Slow()) as through, load.serving(Counting(), **served) as url:
        named = url.replace("127.0.0.1", "localhost")
        target = Target(url=named, verify=authority["ca"], proxy=through.replace("http", "socks5"))
        with httpx.Client(transport=open_transport(target, named), base_url=named) as http:
            first, second = stamps_of(http.get("/")), stamps_of(http.get("/"))
    assert first.connect_ns > 0.09 * load.S
    assert second.connect_ns == 0


def refuses(connection: Any) -> None:
    Socks(wants=b"another:one")(connection)


def says_nonsense(connection: Any) -> None:
    connection.recv(3)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("handle", "says"),
    [(refuses, "it does not accept this user and password"), (says_nonsense, "Malformed reply")],
)
def test_a_socks_proxy_that_does_not_connect_is_named_in_the_failure(
    handle: Callable[[Any], None], says: str
) -> None:
    with load.serving(handle) as through:
        known = through.replace("http://", "socks5://me:hidden@")
        seen = seen_through(Target(url="http://a.test:1", proxy=known))
        assert not load.do(lambda user: user.predict({"x": 1}), seen)
    (step,) = seen.steps
    assert step.failure == "connect"
    named = through.replace("http", "socks5")
    assert step.detail["error"] == f"through the proxy {named}: {says}"


def test_many_requests_at_a_time_through_a_proxy_are_not_queued() -> None:
    together = 150
    raise_descriptor_limit()  # four a request, as all of them are in this process
    waiting: list[Any] = []
    everybody = gevent.event.Event()

    def all_at_once(connection: Any) -> None:
        load.request_of(connection)
        waiting.append(connection)
        if len(waiting) == together:
            everybody.set()
        everybody.wait()
        connection.sendall(load.answer(more=b"connection: close\r\n"))

    with proxied(Proxy(), all_at_once) as (through, url):
        seen = seen_through(Target(url=url, proxy=through))
        users = [
            gevent.spawn(load.do, lambda user: user.predict({"x": 1}), seen)
            for _ in range(together)
        ]
        assert len(gevent.joinall(users, timeout=30)) == together
        failures = {step.failure for step in seen.steps if step.failure}
        assert (failures, {repr(user.exception) for user in users}) == (set(), {"None"})
        assert all(user.value for user in users)


def test_what_goes_straight_is_stamped_by_our_own_clock(
    environment: Callable[..., None],
) -> None:
    environment(HTTP_PROXY="http://127.0.0.1:9")
    with load.serving(Counting()) as url:
        seen = seen_through(Target(url=url))
        transport = seen.run.transport
        assert load.do(lambda user: user.predict({"x": 1}), seen)
        assert transport.clock in (KERNEL, USER)


# HTTP/2


def test_calls_over_http2_share_a_connection_and_are_recorded(
    authority: dict[str, Path],
) -> None:
    served = tls(authority)
    served["ssl_context"].set_alpn_protocols(["h2"])
    accepted: list[Any] = []

    def serve(connection: Any) -> None:
        accepted.append(connection)
        speaks_http2(connection)

    with load.serving(serve, **served) as url:
        target = Target(url=url, verify=authority["ca"], http2=True)
        seen = seen_through(target)

        def task(user: Any) -> None:
            values = [user.predict({"x": 1}).value, user.client.get("/a").json()]
            assert [value["stream"] for value in values] == [1, 3]

        assert load.do(task, seen)
        assert seen.run.transport.clock in with_clock("HTTP/2")
    assert len(accepted) == 1
    assert load.metrics(seen.report(), "predict") >= {"e2el", "service", "send_lag", "connect"}


def test_the_users_of_a_whole_load_share_a_connection_over_http2(
    authority: dict[str, Path], tmp_path: Path
) -> None:
    served = tls(authority)
    served["ssl_context"].set_alpn_protocols(["h2"])
    accepted: list[Any] = []

    def serve(connection: Any) -> None:
        accepted.append(connection)
        speaks_http2(connection)

    with load.serving(serve, **served) as url:
        plan = load.write_plan(
            tmp_path,
            "class U(ModelUser):\n    @task\n    def ask(self):\n        self.predict({})\n",
            url=url,
            load="{ name: steady, arrivals: constant 200/s, for: 1s }",
            target={"api": "json", "http2": True, "verify": str(authority["ca"])},
        )
        loaded = load.run_here(plan)
    assert loaded.load().finished == 200
    assert not loaded.kinds()
    assert loaded.samples("send_lag") == 200
    assert loaded.done.clock in with_clock("HTTP/2")
    assert len(accepted) == 1


def test_a_target_that_declines_http2_is_told_apart(authority: dict[str, Path]) -> None:
    with load.serving(Counting(), **tls(authority)) as url:
        seen = seen_through(Target(url=url, verify=authority["ca"], http2=True))
        assert load.do(lambda user: user.predict({"x": 1}), seen)
        assert seen.run.transport.clock in with_clock("HTTP/2 offered, HTTP/1.1 spoken")


@pytest.mark.parametrize("http2", [True, False])
def test_http2_is_offered_where_the_plan_says_so_alone(
    authority: dict[str, Path], http2: bool
) -> None:
    served = tls(authority)
    served["ssl_context"].set_alpn_protocols(["h2", "http/1.1"])
    agreed: list[str | None] = []

    def serve(connection: Any) -> None:
        agreed.append(connection.selected_alpn_protocol())
        speaks_http2(connection) if http2 else once(connection)

    with load.serving(serve, **served) as url:
        seen = seen_through(Target(url=url, verify=authority["ca"], http2=http2))
        assert load.do(lambda user: user.predict({"x": 1}), seen)
    assert agreed == ["h2" if http2 else None]
