"""The way through a proxy: a connection to it that then leads on to the target.

An HTTP proxy forwards plain requests, which name the whole URL, and opens tunnels (CONNECT, RFC
9110, section 9.3.6) for the rest; a SOCKS5 proxy opens tunnels alone.
"""

from __future__ import annotations

import ssl
from base64 import b64encode
from urllib.parse import unquote, urlsplit

import httpx

from harness.http1.head import ProtocolViolation, parse_head
from harness.proxies import without_secrets
from harness.transport.messages import ForwardedMessage, Message, Origin
from harness.transport.sockets import StampedSocket

_MAX_HEAD_BYTES = 64 << 10
_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
CLOSED = "by the proxy before it had answered"


class Proxy:
    """A proxy by its URL; `shown` is that without user and password."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.shown = without_secrets(url)
        self.scheme = parts.scheme
        self.host = parts.hostname or ""
        self.port = parts.port or _PORTS[parts.scheme]
        self._user = unquote(parts.username or "")
        self._password = unquote(parts.password or "")

    @property
    def has_tls(self) -> bool:
        """Whether TLS is spoken with the proxy itself."""
        return self.scheme == "https"

    def forwards(self, origin: Origin) -> bool:
        """Tell whether requests there are forwarded, rather than sent through a tunnel."""
        return origin[0] == "http" and self.scheme in ("http", "https")

    def forwarded(self, message: Message, origin: Origin) -> Message:
        """Return the request as it is sent to the proxy."""
        place = _authority(origin).removesuffix(b":80")
        return ForwardedMessage(message, b"http://" + place, self._authorization())

    def open(
        self, socket: StampedSocket, origin: Origin, proxy_context: ssl.SSLContext | None
    ) -> None:
        """Connect to the proxy, and through it if it does not forward.

        Raises httpx.ProxyError when it declines, and what a socket raises.
        """
        socket.connect(self.host, self.port)
        socket.acknowledge_at_once()
        if proxy_context is not None:
            socket.start_tls(proxy_context, self.host)
        if self.forwards(origin):
            return
        try:
            if self.scheme in ("http", "https"):
                self._ask_for_tunnel(socket, origin)
            else:
                from harness.transport.socks import open_tunnel  # socksio may be missing

                open_tunnel(socket, origin, self._user, self._password)
        except BaseException:
            socket.close()
            raise

    def _authorization(self) -> bytes:
        if not self._user and not self._password:
            return b""
        known = b64encode(f"{self._user}:{self._password}".encode())
        return b"Proxy-Authorization: Basic %b\r\n" % known

    def _ask_for_tunnel(self, socket: StampedSocket, origin: Origin) -> None:
        place = _authority(origin)
        head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (place, place, self._authorization())
        socket.write_blocking(head)
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0:
            if len(answer) > _MAX_HEAD_BYTES:
                raise httpx.ProxyError("it answers CONNECT with a head that has no end")
            answer += socket.read_blocking(CLOSED)
        try:
            said = parse_head(answer[: end + 4])
        except ProtocolViolation as error:
            raise httpx.ProxyError(str(error)) from error
        if not 200 <= said.status < 300:
            raise httpx.ProxyError(f"{said.status} {said.reason.decode('latin-1')}".strip())
        if answer[end + 4 :]:
            raise httpx.ProxyError("bytes come through the tunnel before anything was sent")


def _authority(origin: Origin) -> bytes:
    _, host, port = origin
    if ":" in host:
        return f"[{host}]:{port}".encode()
    try:
        return host.encode("idna") + b":%d" % port
    except UnicodeError:  # no name of a host: the proxy will say so
        return f"{host}:{port}".encode()
