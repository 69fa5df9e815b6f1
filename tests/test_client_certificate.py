"""A target that asks who we are is shown the plan's certificate, and told apart when it refuses."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
import load
import pytest
from test_routes import Proxy, proxied, seen_through
from test_tls_stamps import VERSIONS, tls
from test_transport import Counting

from harness.errors import UserError
from harness.plan import Target
from harness.transport import Transport
from harness.transport.clock import KERNEL, USER

pytestmark = pytest.mark.swarm


def asking(authority: dict[str, Path], version: ssl.TLSVersion) -> dict[str, ssl.SSLContext]:
    """A server that accepts those alone for whom our authority speaks."""
    served = tls(authority)
    served["ssl_context"].verify_mode = ssl.CERT_REQUIRED
    served["ssl_context"].load_verify_locations(authority["ca"])
    served["ssl_context"].minimum_version = served["ssl_context"].maximum_version = version
    return served


def ask(user: Any) -> None:
    user.predict({"x": 1})


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
def test_the_certificate_is_shown_and_stamps_stay_the_kernels(
    authority: dict[str, Path], version: ssl.TLSVersion
) -> None:
    names: list[Any] = []
    server = Counting()

    def serve(connection: Any) -> None:
        connection.do_handshake()
        names.append(connection.getpeercert()["subject"][0][0][1])
        server(connection)

    cert = authority["cert"]
    with load.serving(serve, **asking(authority, version)) as url:
        target = Target(url=url, verify=authority["ca"], cert=cert, key=cert.with_suffix(".key"))
        seen = seen_through(target)
        assert load.do(ask, seen)
        assert load.do(ask, seen)
        transport = seen.run.transport
        assert type(transport) is Transport
        assert transport.clock in (KERNEL, USER)  # the latter where the kernel has no stamps
    assert names == ["cert"]
    assert server.requests == 2


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
@pytest.mark.parametrize("name", [None, "expired", "ca"])
def test_a_server_that_refuses_us_fails_the_connection_and_the_error_names_the_cause(
    authority: dict[str, Path], version: ssl.TLSVersion, name: str | None
) -> None:
    cert = authority[name] if name else None
    key = cert.with_suffix(".key") if cert else None
    served = asking(authority, version)
    if name == "ca":  # it trusts somebody else
        served = tls(authority)
        served["ssl_context"].verify_mode = ssl.CERT_REQUIRED
        served["ssl_context"].load_verify_locations(authority["other"])
        served["ssl_context"].maximum_version = version
    with load.serving(Counting(), **served) as url:
        target = Target(url=url, verify=authority["ca"], cert=cert, key=key)
        seen = seen_through(target)
        assert not load.do(ask, seen)
        assert seen.run.transport.poller.watched == 0
    (step,) = seen.steps
    assert step.failure == "connect"
    assert (
        "does the server want a client certificate? check the target's cert and key"
        in (step.detail["error"])
    )


def test_the_certificate_is_shown_through_a_proxys_tunnel_too(authority: dict[str, Path]) -> None:
    cert = authority["cert"]
    served = asking(authority, ssl.TLSVersion.TLSv1_3)
    with proxied(Proxy(), Counting(), **served) as (through, url):
        target = Target(
            url=url, verify=authority["ca"], cert=cert, key=cert.with_suffix(".key"), proxy=through
        )
        assert load.do(ask, seen_through(target))
        refused = seen_through(Target(url=url, verify=authority["ca"], proxy=through))
        assert not load.do(ask, refused)
    assert refused.steps[0].failure == "connect"


def test_files_that_are_of_no_use_are_named(tmp_path: Path) -> None:
    (tmp_path / "prose.pem").write_text("no certificate")
    for name in ("prose.pem", "absent.pem"):
        with pytest.raises(UserError, match=f"cert: .*{name} is no usable client certificate"):
            Transport(cert=tmp_path / name)


def test_a_refusal_is_an_exception_of_httpxs(authority: dict[str, Path]) -> None:
    served = asking(authority, ssl.TLSVersion.TLSv1_3)
    with (
        load.serving(Counting(), **served) as url,
        httpx.Client(transport=Transport(verify=authority["ca"]), base_url=url) as http,
        pytest.raises(httpx.ConnectError, match="client certificate"),
    ):
        http.get("/")
