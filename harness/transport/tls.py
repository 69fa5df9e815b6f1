"""TLS from the client's side: whom we trust, who we say we are, and why a server refused us."""

from __future__ import annotations

import ssl
from pathlib import Path

from harness.errors import UserError

_ABOUT_US = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")


def client_context(
    verify: bool | Path, cert: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return a context that verifies by the system's trust, by a file or folder, or not at all.

    `cert` is shown to servers that ask for one. Raises UserError for files that are of no use.
    """
    context = _trusting(verify)
    if cert is not None:
        try:
            context.load_cert_chain(cert, key)
        except OSError as error:  # ssl.SSLError is one
            raise UserError(f"cert: {cert} is no usable client certificate ({error})") from error
    return context


def refusal(error: BaseException) -> str | None:
    """Say that the server refused who we are, or that we did not say it; None when it did not.

    It tells so by an alert (RFC 8446, section 6.2), with TLS 1.3 only after our handshake is done.
    The alert may be the cause of `error`.
    """
    while not isinstance(error, ssl.SSLError):
        cause = error.__cause__ or error.__context__
        if cause is None:
            return None
        error = cause
    reason = error.reason or ""
    if "ALERT" not in reason or not any(word in reason for word in _ABOUT_US):
        return None
    return f"{error}; does the server want a client certificate? check the target's cert and key"


def _trusting(verify: bool | Path) -> ssl.SSLContext:
    if isinstance(verify, Path):
        folder = verify.is_dir()
        try:
            return ssl.create_default_context(
                cafile=None if folder else str(verify), capath=str(verify) if folder else None
            )
        except OSError as error:
            raise UserError(f"verify: {verify} holds no usable certificates ({error})") from error
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
