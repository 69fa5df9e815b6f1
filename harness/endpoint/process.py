"""The endpoint as a process: `serve` runs it here, `running` as a child that ends with its parent.

The only importer of uvicorn, and only inside `serve`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from harness.endpoint.settings import Settings
from harness.errors import HarnessError, UserError

_BACKLOG = 2048


def serve(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; replies still running then are cut.

    Port 0 takes a free one. `ready` is called with the base URL as soon as connections are
    accepted. Raises `UserError` when the address cannot be used.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from harness.endpoint.app import Endpoint

    class Protocol(H11Protocol):
        """Hands each connection's transport to the application, which resets through it."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.app_state = {**self.app_state, "transport": transport}

    listener = _listen(host, port)
    allow_many_files()
    config = uvicorn.Config(
        Endpoint(settings),
        http=Protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=0,
    )
    if ready is not None:
        ready(_url(listener))
    with listener, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[str]:
    """Run the endpoint as a child process on a free loopback port; yields its base URL.

    The child is ended on leaving, and by itself should this process die. A Ctrl-C in the
    terminal does not reach it, so that replies still running can be waited for.
    Raises `HarnessError` when it does not start.
    """
    words = ("--settings", json.dumps(asdict(settings)))
    with child("harness.endpoint", words) as url:
        yield url


@contextlib.contextmanager
def child(module: str, words: Sequence[str]) -> Iterator[str]:
    """Run a server's module as a child process; yields the URL that it prints.

    As `running` says of its own.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--exit-with-parent", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )
    with process:
        try:
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                raise HarnessError(f"the embedded endpoint ended with code {process.wait()}")
            yield json.loads(line)["url"]
        finally:
            _end(process)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line of `python -m harness.endpoint`; ends the process."""
    parser = argparse.ArgumentParser(prog="python -m harness.endpoint", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--settings", default="{}", help="the same as one JSON object")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when stdin closes")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if given.exit_with_parent:
        exit_with_parent()
    try:
        named = dict(_split(text) for text in given.setting)
        settings = Settings.of({**_object(given.settings), **named})
        serve(settings, given.host, given.port, ready=announce)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.exit(0)


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--setting {text!r}: must be NAME=VALUE")
    return name.strip(), value.strip()


def _object(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError):
        raise UserError(f"--settings {text!r}: must be a JSON object") from None


def announce(url: str) -> None:
    """Tell the parent where this server is."""
    sys.stdout.write(json.dumps({"url": url}) + "\n")
    sys.stdout.flush()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UserError(f"embedded endpoint: cannot listen on {host}:{port}: {error}") from None
    # Accepted sockets inherit it. asyncio sets it only where the socket names its protocol, which
    # this one does not; without it Nagle's algorithm holds the second write of a reply for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def allow_many_files() -> None:
    """Each connection is a file; the usual soft limit of 1,024 is too few under load."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def exit_with_parent() -> None:
    """End this process when its stdin is closed, which a parent's end does."""
    threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()


def _exit_at_end_of_stdin() -> None:
    # os.read, since a thread inside sys.stdin's lock would break the interpreter's own ending.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(0)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
