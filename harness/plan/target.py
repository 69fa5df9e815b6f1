"""What a target's settings must be together: HTTP/2 with https, a certificate with its own key."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from harness.errors import PlanError
from harness.masking import mask_query
from harness.plan.document import Places
from harness.plan.written import TargetEntry
from harness.urls import socket_path

_NEEDS_HTTPS = "HTTP/2 needs an https URL, since TLS negotiates it; found"


def check_target(target: TargetEntry, places: Places) -> None:
    """Raise PlanError at the first setting that does not go with the others."""
    if target.http2 and (problem := http2_problem(target.url)):
        raise PlanError(places.place(("target", "http2")), problem)
    if target.proxy is not None and socket_path(target.url) is not None:
        problem = "found a proxy for a unix socket, which none can reach; remove it"
        raise PlanError(places.place(("target", "proxy")), problem)
    if target.key is not None and target.cert is None:
        problem = "found a key without a certificate; add cert: FILE"
        raise PlanError(places.place(("target", "key")), problem)
    if target.cert is not None:
        _check_certificate(target.cert, target.key, places)


def http2_problem(url: str) -> str | None:
    """Say why HTTP/2 cannot be spoken with a target of this URL; None when it can."""
    return None if url.startswith("https://") else f"{_NEEDS_HTTPS} {mask_query(url)}"


class _EncryptedError(Exception):
    """The key asks for a password."""


def _check_certificate(cert: Path, key: Path | None, places: Places) -> None:
    """Load both as a connection would."""
    at_cert = places.place(("target", "cert"))
    at_key = at_cert if key is None else places.place(("target", "key"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(cert, key, password=_refuse)
    except _EncryptedError:
        problem = f"found an encrypted key in {key or cert}; decrypt it: openssl pkey -in … -out …"
        raise PlanError(at_key, problem) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"the key in {key or cert} is not that of the certificate {cert}"
            raise PlanError(at_key, f"{problem}; name the key it was made with") from None
        if not _holds_certificate(cert):
            problem = f"found no certificate in {cert}; allowed is a PEM file"
            raise PlanError(at_cert, problem) from None
        problem = f"found no private key in {key or cert}; allowed is a PEM file"
        more = "; name its file with key: FILE" if key is None else ""
        raise PlanError(at_key, problem + more) from None
    except OSError as error:
        raise PlanError(at_cert, f"{cert} cannot be read: {error.strerror}") from None


def _refuse() -> NoReturn:
    """Stand where OpenSSL would ask the terminal."""
    raise _EncryptedError


def _holds_certificate(file: Path) -> bool:
    with suppress(ssl.SSLError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        return True
    return False
