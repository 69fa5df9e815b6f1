"""nginx before the exact server: it ends TLS, speaks HTTP/2 to who asks for it, and buffers nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

_START_S = 20
_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    upstream exact {{ server {upstream}; keepalive 512; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://exact;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


def program() -> str | None:
    """Return where nginx is; Debian puts it where only root looks."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def before(url: str, *, core: int, folder: Path, tls: tuple[str, str]) -> Iterator[str]:
    """Run nginx before a server, on one core; yields its own URL. RuntimeError when it does not start."""
    nginx, log = program(), folder / "nginx.log"
    if nginx is None:
        raise FileNotFoundError("nginx is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "nginx.conf"
    cert, key = tls
    upstream = urlsplit(url).netloc
    config.write_text(
        _CONFIG.format(folder=folder, upstream=upstream, port=port, cert=cert, key=key),
        encoding="utf-8",
    )
    with subprocess.Popen(
        [nginx, "-p", str(folder), "-e", str(log), "-c", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(os.sched_setaffinity, 0, {core}),  # noqa: PLW1509 - no threads here
    ) as child:
        try:
            _wait_for(port, child, log)
            yield f"https://127.0.0.1:{port}"
        finally:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=10)
            child.kill()


def _wait_for(port: int, child: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if child.poll() is not None or time.monotonic() > until_s:
            said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            raise RuntimeError(f"nginx did not start: {said.strip()[-500:]}")
        time.sleep(0.02)
