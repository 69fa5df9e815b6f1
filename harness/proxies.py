"""Which proxy the environment names for a URL, and which proxies can be used at all.

A proxy of the environment is found by httpx's rules, with two exceptions: loopback addresses and
unix sockets are never sent to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from harness.errors import UserError
from harness.urls import UNIX_SCHEME

if TYPE_CHECKING:  # a plan is checked without it
    import httpx

_SOCKS = ("socks5", "socks5h")
_SCHEMES = ("http", "https", *_SOCKS)
_ALLOWED = "allowed is a URL like http://proxy:3128, of the scheme http, https, socks5 or socks5h"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def proxy_problem(proxy: str) -> str | None:
    """Say what was found that is of no use as a proxy, and what is; None for a proxy's URL.

    A user and password may stand in it, so they are never repeated.
    """
    try:
        parts = urlsplit(proxy)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return f"a URL that cannot be read; {_ALLOWED}"
    if parts.scheme not in _SCHEMES or "://" not in proxy:
        scheme = proxy.partition("://")[0] if "://" in proxy else ""
        shown = scheme if scheme.isalnum() else ""  # me:password@http is none
        return f'the scheme "{shown}"; {_ALLOWED}'
    if not host or not proxy.isprintable() or " " in proxy:
        return f"a URL without a usable host; {_ALLOWED}"
    if parts.scheme in _SOCKS and find_spec("socksio") is None:
        return (
            f'the scheme "{parts.scheme}", but SOCKS needs the package socksio, which is not '
            "installed; install it: pip install socksio"
        )
    return None


def environment_proxy(url: httpx.URL) -> str | None:
    """Return the proxy that the environment names for a URL; None for straight on.

    Raises UserError for one that cannot be used.
    """
    known = getproxies()
    proxy = known.get(url.scheme) or known.get("all")
    exceptions = known.get("no", "").split(",")
    if not proxy or url.scheme == UNIX_SCHEME or _is_loopback(url.host):
        return None
    if any(_excepts(entry.strip(), url) for entry in exceptions):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if problem := proxy_problem(proxy):
        raise UserError(
            f"the environment's proxy for {url.host}: found {problem}; or set another, or name "
            "the host in NO_PROXY"
        )
    return proxy


def without_secrets(proxy: str) -> str:
    """Return a proxy's URL as it may be shown: scheme, host and port."""
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class SocksTrace:
    """A `trace` of one request to httpx: sees to what httpcore leaves undone with a SOCKS proxy.

    When the negotiation fails the connection is closed, and the error is an httpx.ProxyError.
    """

    __slots__ = ("_stream",)

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        """Hear of an event of httpcore's."""
        if event == "socks.setup_socks5_connection.started":
            self._stream = info["stream"]
        elif event == "socks.setup_socks5_connection.failed":
            self._stream.close()
            error = info["exception"]
            if isinstance(error, Exception):
                import httpx

                raise httpx.ProxyError(str(error) or "not a SOCKS5 proxy") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return False


def _excepts(entry: str, url: httpx.URL) -> bool:
    """Tell whether an entry of NO_PROXY names a URL.

    `example.com` names its subdomains too, `.example.com` only those; a port, and with `://` the
    scheme and the very host, must be the URL's own, where a default port is none.
    """
    if entry in ("", "*"):
        return entry == "*"
    if "://" in entry:
        return _is(entry, url)
    host, colon, port = entry.rpartition(":")
    if not colon or ":" in host:  # no port, or an IPv6 address
        host, port = entry.strip("[]"), ""
    if port and port != str(url.port):
        return False
    host = host.lower()
    return url.host.endswith(host if host.startswith(".") else f".{host}") or url.host == host


def _is(entry: str, url: httpx.URL) -> bool:
    try:
        named = urlsplit(entry)
        port = _port(named)
    except ValueError:
        return False
    same = named.scheme in ("all", url.scheme) and named.hostname == url.host
    return same and port in (None, url.port)


def _port(parts: SplitResult) -> int | None:
    """Return the port of a URL; None for its scheme's own. Raises ValueError for no number."""
    return None if parts.port == _DEFAULT_PORTS.get(parts.scheme) else parts.port
