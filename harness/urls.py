"""What a target's URL may be, and the one form of it in which every client means the same.

Blanks and line breaks around a URL are no part of it. The zone of an IPv6 address stands as the
resolver wants it (`%eth0`, where RFC 6874 writes `%25eth0`). A unix socket's path takes the host's
place, percent-encoded, with capitals as escapes too, since clients put hosts in lower case.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, quote, unquote, urlsplit

from harness.masking import mask_query

UNIX_SCHEME = "http+unix"
ALLOWED = (
    "a URL must look like http://host:port, https://host/path or "
    "http+unix://%2Frun%2Fserver.sock/path"
)
_SCHEMES = ("http", "https")
_SOCKET_PATH_BYTES = 107  # sun_path, less the zero at its end
_PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789-._~"
_ALMOST = re.compile(r"(?P<scheme>https?)?:?/*(?P<rest>[^/:\s][^\s]*)", re.IGNORECASE)
_BARE_IPV6 = re.compile(r"(?:https?:)?/*[0-9a-f]*(?::[0-9a-f]*){2,}(?:/.*)?", re.IGNORECASE)
_SOCKET = re.compile(r"(?:(?:http\+)?unix:/{0,2})?(?P<path>/[^/].*?)(?::(?P<rest>/.*)|/*)$")


def canonical_url(text: str, *, allowed: str = ALLOWED) -> str:
    """Return a target's URL in its one form. Raises ValueError: what was found, what is allowed."""
    url = text.strip()
    found = f'found "{"".join(filter(str.isprintable, mask_query(url)))}"'
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(
            f"found a URL that cannot be read ({error}); {allowed}{_meant(url)}"
        ) from None
    if "@" in parts.netloc:
        problem = "found a user or password in the URL; use the header Authorization and a ${VAR}"
        raise ValueError(problem)
    if "://" not in url or parts.scheme not in (*_SCHEMES, UNIX_SCHEME):
        raise ValueError(f"{found}; {allowed}{_meant(url)}")
    if not url.isprintable() or any(map(str.isspace, url)):
        raise ValueError(f"{found}, with a blank or control character in it; {allowed}")
    if parts.scheme == UNIX_SCHEME:
        return parts._replace(netloc=_socket(parts, found)).geturl()
    if not host or port == 0 or not _is_name(host):
        raise ValueError(f"{found}, which has no usable host; {allowed}{_meant(url)}")
    return parts._replace(netloc=_with_zone(parts.netloc)).geturl()


def socket_path(url: str) -> str | None:
    """Return the path of the unix socket that a URL names; None for one with a host."""
    parts = urlsplit(url)
    return unquote(parts.netloc) if parts.scheme == UNIX_SCHEME else None


def decoded_host(scheme: str, host: str) -> str:
    """Return what a URL's host stands for: a path, or an address with its zone; else itself."""
    return unquote(host) if scheme == UNIX_SCHEME or "%25" in host else host


def _socket(parts: SplitResult, found: str) -> str:
    path = unquote(parts.netloc)
    if not path.startswith("/") or "\0" in path:
        meant = _meant(parts.geturl())
        raise ValueError(f"{found}, without a socket's path as its host; {ALLOWED}{meant}")
    if len(path.encode()) > _SOCKET_PATH_BYTES:
        problem = f"a socket's path may have {_SOCKET_PATH_BYTES} bytes; link it from a shorter one"
        raise ValueError(f"{found}; {problem}")
    return "".join(c if c in _PLAIN else _escaped(c) for c in path)


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02x}" for byte in character.encode())


def _is_name(host: str) -> bool:
    """Tell whether a resolver would take a host: no empty label, none too long."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _with_zone(netloc: str) -> str:
    address, bracket, port = netloc.partition("]")
    return address.replace("%25", "%", 1) + bracket + port if bracket else netloc


def _meant(url: str) -> str:
    """Say what was probably meant; empty where that is not to be seen."""
    if _BARE_IPV6.fullmatch(url):
        return "; an IPv6 address stands in brackets, like http://[::1]:8000"
    if socket := _SOCKET.match(url):
        meant = f"{UNIX_SCHEME}://{quote(socket['path'], safe='')}{socket['rest'] or ''}"
    elif "://" not in url and (almost := _ALMOST.fullmatch(url)):
        meant = f"{(almost['scheme'] or 'http').lower()}://{almost['rest']}"
    else:
        return ""
    return f'; did you mean "{mask_query(meant)}"?'
