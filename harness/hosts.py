"""Hosts that are no names: the path of a unix socket, an IPv6 address with its zone.

A unix socket stands in a URL as its path, percent-encoded, in the host's place:
`http+unix://%2Frun%2Fmodel.sock/v1`; a zone as RFC 6874 has it: `http://[fe80::1%25eth0]:8000`.
Libraries write hosts in lower case, so that capital letters in a path must be percent-encoded.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

UNIX = "http+unix"

_UNIX_HOST = re.compile(rf"(?<=^{re.escape(UNIX)}://)[^/?#]*", re.IGNORECASE)
_KEPT = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._~")


def unix_url(path: str, base: str = "") -> str:
    """Return the URL of a unix socket; `base` is what the paths of requests begin with."""
    return f"{UNIX}://{_encoded(path)}{base}"


def with_kept_case(url: str) -> str:
    """Return the URL of a unix socket with its capital letters encoded; others as they are."""
    return _UNIX_HOST.sub(lambda found: _encoded(unquote(found[0])), url)


def decoded_host(scheme: str, host: str) -> str:
    """Return what a URL's host stands for: a path, or an address with its zone; else itself."""
    return unquote(host) if scheme == UNIX or "%25" in host else host


def _encoded(text: str) -> str:
    return "".join(c if c in _KEPT else "".join(f"%{b:02x}" for b in c.encode()) for c in text)
