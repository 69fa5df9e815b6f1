"""A tunnel through a SOCKS5 proxy (RFC 1928 and 1929), which looks up the target's name itself.

`socksio` words the messages; here they are read as many bytes at a time as they have.
"""

from __future__ import annotations

import httpx
from socksio import exceptions
from socksio.socks5 import (
    SOCKS5AuthMethod,
    SOCKS5AuthMethodsRequest,
    SOCKS5AuthReply,
    SOCKS5Command,
    SOCKS5CommandRequest,
    SOCKS5Reply,
    SOCKS5ReplyCode,
    SOCKS5UsernamePasswordReply,
    SOCKS5UsernamePasswordRequest,
)

from harness.transport.messages import Origin
from harness.transport.sockets import StampedSocket

_NAME, _IPV6 = 3, 4  # kinds of addresses


def open_tunnel(socket: StampedSocket, origin: Origin, user: str, password: str) -> None:
    """Have the proxy connect to the origin. Raises httpx.ProxyError when it declines."""
    try:
        _authenticate(socket, user, password)
        _connect(socket, origin)
    except exceptions.ProtocolError as error:
        raise httpx.ProxyError(str(error)) from error


def _authenticate(socket: StampedSocket, user: str, password: str) -> None:
    known = bool(user or password)
    method = SOCKS5AuthMethod.USERNAME_PASSWORD if known else SOCKS5AuthMethod.NO_AUTH_REQUIRED
    socket.write_blocking(SOCKS5AuthMethodsRequest([method]).dumps())
    if SOCKS5AuthReply.loads(_read(socket, 2)).method != method:
        wanted = "a user and password" if known else "to be used without a user and password"
        raise httpx.ProxyError(f"it does not accept {wanted}")
    if known:
        request = SOCKS5UsernamePasswordRequest(user.encode(), password.encode())
        socket.write_blocking(request.dumps())
        if not SOCKS5UsernamePasswordReply.loads(_read(socket, 2)).success:
            raise httpx.ProxyError("it does not accept this user and password")


def _connect(socket: StampedSocket, origin: Origin) -> None:
    _, host, port = origin
    request = SOCKS5CommandRequest.from_address(SOCKS5Command.CONNECT, (host, port))
    socket.write_blocking(request.dumps())
    answer = _read(socket, 5)
    if answer[3] == _NAME:
        answer += _read(socket, answer[4] + 2)
    else:
        answer += _read(socket, 17 if answer[3] == _IPV6 else 5)
    code = SOCKS5Reply.loads(answer).reply_code
    if code != SOCKS5ReplyCode.SUCCEEDED:
        raise httpx.ProxyError(f"it could not connect: {code.name.replace('_', ' ').lower()}")


def _read(socket: StampedSocket, size: int) -> bytes:
    return socket.read_exactly(size, "by the proxy before it had answered")
