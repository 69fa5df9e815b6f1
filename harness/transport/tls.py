"""TLS from the client's side: whom we trust, who we say we are, and why a handshake failed."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UserError

_ABOUT_US = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")
_READ_BYTES = 65536
_UNTRUSTED = "the target's verify: may name its CA's file (verify: ca.pem), or be false"
_REMEDIES = {  # by OpenSSL's codes, x509_vfy.h
    9: "correct the clock, or set the target's verify: false",
    10: "renew it, or set the target's verify: false",
    62: "name the target as its certificate does, or set its verify: false",
    64: "name the target as its certificate does, or set its verify: false",
}


class TlsLayer:
    """A client's end of TLS, in memory: turns bytes of the wire into plain ones and back."""

    __slots__ = ("_incoming", "_outgoing", "_tls")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def shake_hands(self, data: bytes = b"") -> tuple[bool, bytes]:
        """Go on with the handshake; tells whether it is done, and what is to be sent.

        When it fails, what is to be sent waits in `wrap`.
        """
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False, self._outgoing.read()
        return True, self._outgoing.read()

    @property
    def protocol(self) -> str | None:
        """What was agreed on by ALPN."""
        return self._tls.selected_alpn_protocol()

    def wrap(self, data: bytes) -> bytes:
        """Return what is to be sent: plain bytes, after what TLS has to say by itself."""
        if data:
            self._tls.write(data)
        return self._outgoing.read()

    def unwrap(self, data: bytes, end: Exception | None) -> tuple[bytes, Exception | None]:
        """Return what can be decrypted now, and what ended the stream, if it has ended.

        `end` tells whether the bytes end here; EOFError is a proper end.
        """
        if data:
            self._incoming.write(data)
        if end is not None:
            self._incoming.write_eof()
        plain: list[bytes] = []
        try:
            while part := self._tls.read(_READ_BYTES):
                plain.append(part)
            end = EOFError()
        except ssl.SSLWantReadError:
            end = None
        except ssl.SSLZeroReturnError:
            end = EOFError()
        except ssl.SSLError as found:
            end = found
        return b"".join(plain), end


def client_context(
    verify: bool | Path,
    cert: Path | None = None,
    key: Path | None = None,
    *,
    offers: Sequence[str] = (),
) -> ssl.SSLContext:
    """Return a context that verifies by the system's trust, by a file or folder, or not at all.

    `cert` is shown to servers that ask for one; `offers` are protocols for ALPN. Raises UserError
    for files that are of no use.
    """
    context = _trusting(verify)
    if offers:
        context.set_alpn_protocols(offers)
    if cert is not None:
        try:
            context.load_cert_chain(cert, key)
        except OSError as error:  # ssl.SSLError is one
            raise UserError(f"cert: {cert} is no usable client certificate ({error})") from error
    return context


def refusal(error: BaseException) -> str | None:
    """Say that we refused the server's certificate, or the server ours; None when neither did.

    The server tells so by an alert (RFC 8446, section 6.2), with TLS 1.3 only after our handshake
    is done. The alert may be the cause of `error`.
    """
    while not isinstance(error, ssl.SSLError):
        cause = error.__cause__ or error.__context__
        if cause is None:
            return None
        error = cause
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = _REMEDIES.get(error.verify_code, _UNTRUSTED)
        return f"certificate verify failed: {error.verify_message.rstrip('.')}; {remedy}"
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
