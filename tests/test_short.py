"""The short way of `self.client` against stock httpx: the same on the wire and in the scenario."""

from __future__ import annotations

import copy
import gzip
import logging
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import load
import pytest
from load import do, kinds, make_run

from harness.swarm import short
from harness.transport import STAMPS

pytestmark = pytest.mark.swarm

JSON = b"content-type: application/json\r\n"
ANSWERS = {
    b"/json": load.answer(b'{"a": "\xc3\xa9"}', more=JSON),
    b"/latin": load.answer("é".encode("latin-1"), more=b"content-type: text/plain; charset=latin-1\r\n"),
    b"/twice": load.answer(b"x", more=b"x-a: 1\r\nX-A: 2\r\nlink: </b>; rel=next\r\n"),
    b"/nothing": load.answer(b""),
    b"/head": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
    b"/chunks": load.STREAM_HEAD + load.chunk(b"one\n") + load.chunk(b"two") + load.END,
    b"/gzip": load.answer(gzip.compress(b"small", mtime=0), more=b"content-encoding: gzip\r\n"),
    b"/no": load.answer(b"no", status="404 Not Here"),
    b"/broken": load.answer(b'{"error": 1}', status="503 Busy", more=JSON),
    b"/login": load.answer(more=b"set-cookie: who=me; Path=/\r\n"),
    b"/old": load.answer(b"go", status="307 Moved", more=b"location: /json\r\n"),
    b"/see": load.answer(status="303 See", more=b"location: /json\r\n"),
}  # fmt: skip
Call = Callable[[Any], httpx.Response]


class Site:
    """Answers by path, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def __call__(self, connection: Any) -> None:
        while request := load.request_of(connection):
            self.asked.append(request)
            if len(self.asked) == 3 and request.startswith(b"GET /later "):
                connection.sendall(ANSWERS[b"/login"])
                continue
            connection.sendall(
                ANSWERS.get(request.split(b" ", 2)[1].partition(b"?")[0], load.answer())
            )


def outcome(call: Callable[[], object]) -> object:
    """What a call returns, or the type and text of what it raises."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - whatever it is, httpx must raise the same
        return type(error), str(error)


def view(response: httpx.Response) -> dict[str, object]:
    """All that httpx documents of a response, and of its request."""
    request = response.request
    attributes = (
        "status_code reason_phrase http_version url content text encoding charset_encoding "
        "is_informational is_success is_redirect is_client_error is_server_error is_error "
        "has_redirect_location is_closed is_stream_consumed num_bytes_downloaded links "
        "default_encoding"
    )
    found: dict[str, object] = {name: getattr(response, name) for name in attributes.split()}
    following = response.next_request
    return found | {
        "repr": repr(response),
        "headers": response.headers.raw,
        "cookies": dict(response.cookies),
        "history": [view(earlier) for earlier in response.history],
        "next": following and (following.method, following.url, following.headers.raw),
        "elapsed": (type(response.elapsed), response.elapsed > timedelta(0)),
        "extensions": response.extensions.keys() - {STAMPS, "network_stream"},
        "json": outcome(response.json),
        "raised": outcome(lambda: response.raise_for_status() is response),
        "bytes": list(response.iter_bytes(2)),
        "lines": list(response.iter_lines()),
        "raw": outcome(lambda: list(response.iter_raw())),
        "read": response.read() is response.content,
        "closed": response.close(),
        "unknown": outcome(lambda: response.no_such),  # type: ignore[attr-defined]
        "request": (repr(request), request.method, request.url),
        "request content": outcome(lambda: request.content),
        "request headers": request.headers.raw,
        "request extensions": request.extensions,
        "request stream": outcome(lambda: b"".join(request.stream)),  # type: ignore[arg-type]
    }


CALLS: dict[str, Call] = {
    "get": lambda c: c.get("/json"),
    "query": lambda c: c.get("/json?q=a b&r=%20#part"),
    "absolute": lambda c: c.get(f"{c.base_url}/json"),
    "headers": lambda c: c.get("/json", headers={"X-One": "1", "accept": "text/plain"}),
    "bytes": lambda c: c.post("/json", content=b'{"x": 1}', headers={"content-type": "a/b"}),
    "text": lambda c: c.put("/json", content="é"),
    "empty bytes": lambda c: c.post("/json", content=b""),
    "post nothing": lambda c: c.post("/nothing"),
    "json": lambda c: c.post("/json", json={"a": ["é", 1.5, None]}),
    "patch json": lambda c: c.patch("/json", json=[]),
    "request": lambda c: c.request("get", "/twice"),
    "own method": lambda c: c.request("PROPFIND", "/nothing", content=b"x"),
    "head": lambda c: c.head("/head"),
    "delete": lambda c: c.delete("/no"),
    "options": lambda c: c.options("/latin"),
    "chunks": lambda c: c.get("/chunks"),
    "gzip": lambda c: c.get("/gzip"),
    "500": lambda c: c.get("/broken"),
    "redirect not followed": lambda c: c.get("/old"),
    "redirect followed": lambda c: c.post("/old", content=b"x", follow_redirects=True),
    "form": lambda c: c.post("/json", data={"a": "b"}),
    "params": lambda c: c.get("/json", params={"q": "1"}),
    "auth": lambda c: c.get("/json", auth=("me", "pw")),
    "timeout": lambda c: c.get("/json", timeout=3),
    "iterator": lambda c: c.post("/json", content=iter([b"a", b"b"])),
    "own length": lambda c: c.post("/json", content=b"ab", headers={"Content-Length": "2"}),
    "bytes in headers": lambda c: c.get("/json", headers={b"x-one": b"1"}),
    "headers in pairs": lambda c: c.get("/json", headers=[("x-one", "1"), ("x-one", "2")]),
}  # fmt: skip


def by_stock(site: Site, url: str, work: Callable[[Any], Any], **options: Any) -> Any:
    with httpx.Client(base_url=url, timeout=10, trust_env=False, **options) as client:
        return work(client), take(site)


def by_ours(site: Site, url: str, work: Callable[[Any], Any]) -> Any:
    found: list[Any] = []
    assert do(lambda user: found.append(work(user.client)), make_run(url)) in (True, False)
    return found[0], take(site)


def take(site: Site) -> list[bytes]:
    asked, site.asked = site.asked, []
    return asked


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_the_same_on_the_wire_and_in_what_it_returns(name: str) -> None:
    def work(client: Any) -> list[dict[str, object]]:
        return [view(CALLS[name](client)) for _ in range(3)]

    site = Site()
    with load.serving(site) as url:
        assert by_ours(site, url, work) == by_stock(site, url, work)


def test_the_second_of_like_calls_goes_the_short_way_and_the_unusual_do_not() -> None:
    def ways(client: Any) -> dict[str, bool]:
        found = {}
        for name, call in CALLS.items():
            call(client)
            found[name] = isinstance(call(client), short.Response)
        return found

    site = Site()
    with load.serving(site) as url:
        (found, _) = by_ours(site, url, ways)
    long = {name for name, shortly in found.items() if not shortly}
    assert long == {
        "gzip", "redirect not followed", "redirect followed", "form", "params", "auth", "timeout",
        "iterator", "own length", "headers in pairs",
    }  # fmt: skip


CHANGES: dict[str, Callable[[Any], object]] = {
    "headers": lambda c: c.headers.update({"x-mine": "1"}),
    "headers set anew": lambda c: setattr(c, "headers", {"user-agent": "me"}),
    "cookies": lambda c: c.cookies.set("a", "b"),
    "auth": lambda c: setattr(c, "auth", ("me", "pw")),
    "params": lambda c: setattr(c, "params", {"q": "1"}),
    "base_url": lambda c: setattr(c, "base_url", f"{c.base_url}/below"),
    "timeout": lambda c: setattr(c, "timeout", 3),
    "follow_redirects": lambda c: setattr(c, "follow_redirects", True),
    "hooks": lambda c: setattr(
        c, "event_hooks", {"request": [lambda r: r.headers.update({"x-hook": "1"})]}
    ),
    "login": lambda c: c.get("/login"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", ["/json", "/see"])
def test_what_the_scenario_changes_counts_from_the_next_call_on(change: str, path: str) -> None:
    def work(client: Any) -> list[dict[str, object]]:
        before = [view(client.get(path)) for _ in range(2)]
        CHANGES[change](client)
        CHANGES[change](client)  # a login the short way must be one too
        return before + [view(client.get(path)) for _ in range(2)]

    site = Site()
    with load.serving(site) as url:
        assert by_ours(site, url, work) == by_stock(site, url, work)


def test_a_cookie_that_comes_the_short_way_is_sent_from_then_on() -> None:
    def work(client: Any) -> list[dict[str, object]]:
        return [view(client.get("/later")) for _ in range(4)]

    site = Site()
    with load.serving(site) as url:
        ours, stock = by_ours(site, url, work), by_stock(site, url, work)
    assert ours == stock
    assert [b"who=me" in request for request in ours[1]] == [False, False, False, True]


@pytest.mark.parametrize("clone", [lambda r: pickle.loads(pickle.dumps(r)), copy.copy])
def test_a_response_can_be_pickled_and_copied(clone: Callable[[Any], httpx.Response]) -> None:
    def parts(response: httpx.Response) -> tuple[object, ...]:
        twin = clone(response)
        request = twin.request
        return (
            twin.headers.raw, twin.text, twin.elapsed > timedelta(0), twin.is_closed,
            twin.extensions.keys() - {STAMPS, "network_stream"}, repr(request), request.content,
        )  # fmt: skip

    def work(client: Any) -> list[tuple[object, ...]]:
        return [parts(client.post("/json", json={})) for _ in range(2)]

    site = Site()
    with load.serving(site) as url:
        assert by_ours(site, url, work) == by_stock(site, url, work)


def test_what_no_json_can_say_is_httpxs_error_and_no_request() -> None:
    site = Site()
    with load.serving(site) as url:
        seen = make_run(url)

        def work(user: Any) -> None:
            for value in ({"a": 1}, {"a": 1}, {"a": float("nan")}):
                user.client.post("/json", json=value)

        do(work, seen)
    assert len(site.asked) == 2
    assert kinds(seen.report(), "POST_json") == {}


def test_errors_are_httpxs_with_the_request_and_are_recorded() -> None:
    def serve(connection: Any) -> None:
        load.request_of(connection)
        connection.sendall(load.answer())
        load.request_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")

    caught: list[httpx.RequestError] = []

    def work(user: Any) -> None:
        user.client.post("/a", content=b"1")
        with pytest.raises(httpx.RemoteProtocolError) as found:
            user.client.post("/a", content=b"22")
        caught.append(found.value)

    with load.serving(serve) as url:
        seen = make_run(url)
        assert do(work, seen) is False
    request = caught[0].request
    assert (request.method, request.url.path, request.content) == ("POST", "/a", b"22")
    assert kinds(seen.report(), "POST_a") == {"reset": 1}


def test_a_closed_client_and_its_log_are_httpxs(caplog: pytest.LogCaptureFixture) -> None:
    def work(client: Any) -> list[object]:
        client.get("/json")
        with caplog.at_level(logging.INFO, logger="httpx"):
            client.get("/json")
        client.close()
        return [outcome(lambda: client.get("/json")), len(caplog.records)]

    site = Site()
    with load.serving(site) as url:
        (ours, _) = by_ours(site, url, work)
    assert ours == [
        (RuntimeError, "Cannot send a request, as the client has been closed."),
        1,
    ]


def test_shapes_are_kept_up_to_a_bound() -> None:
    shapes = short.Shapes()
    for number in range(short._MOST_SHAPES + 3):
        shapes.keep(number, None)
    assert sum(number in shapes for number in range(short._MOST_SHAPES + 3)) == 3
