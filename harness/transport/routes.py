"""Which way a request goes: straight or through which proxy, and whether HTTP/2 is offered."""

from __future__ import annotations

from typing import NamedTuple

import httpx

from harness.plan import Target
from harness.proxies import environment_proxy
from harness.transport.messages import Origin
from harness.transport.tunnels import Proxy


class Route(NamedTuple):
    """The way to one origin."""

    proxy: Proxy | None
    http2: bool

    def why(self, spoken: set[str]) -> str:
        """`HTTP/2 through the proxy http://proxy:3128`; what was spoken where it was not HTTP/2."""
        version = "HTTP/2" if self.http2 else ""
        if self.http2 and spoken and "HTTP/2" not in spoken:
            version = f"HTTP/2 offered, {' and '.join(sorted(spoken))} spoken,"
        through = "" if self.proxy is None else f"through the proxy {self.proxy.shown}"
        return f"{version} {through}".strip(" ,")


STRAIGHT = Route(None, http2=False)


class Routes:
    """The ways to all origins, each looked up once."""

    def __init__(
        self, *, proxy: str | None = None, trust_env: bool = False, http2: bool = False
    ) -> None:
        self._proxy, self._trust_env, self._http2 = proxy, trust_env, http2
        self._known: dict[Origin, Route] = {}
        self._proxies: dict[str, Proxy] = {}

    @classmethod
    def of(cls, target: Target) -> Routes:
        """Return the routes that a target's settings ask for."""
        return cls(proxy=target.proxy, trust_env=target.trust_env, http2=target.http2)

    def find(self, origin: Origin) -> Route:
        """Return the way to an origin.

        Raises UserError for a proxy of the environment that cannot be used.
        """
        route = self._known.get(origin)
        if route is None:
            route = self._known[origin] = self._find(origin)
        return route

    def _find(self, origin: Origin) -> Route:
        scheme, host, port = origin
        if scheme not in ("http", "https"):
            return STRAIGHT
        url = self._proxy
        if url is None and self._trust_env:
            host = f"[{host}]" if ":" in host else host
            url = environment_proxy(httpx.URL(f"{scheme}://{host}:{port}"))
        proxy = None if url is None else self._proxies.setdefault(url, Proxy(url))
        return Route(proxy, self._http2 and scheme == "https")
