"""What stands between a client and the exact server: nginx, Caddy, proxies; programs of Debian's.

Each is run as a child on a free loopback port, from a folder of its own, and ended on leaving:

    with truth.running() as upstream, fronts.nginx(folder, upstream, cert, key) as url: ...
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn; {user}
events {{ worker_connections 4096; }}
http {{
  access_log off; proxy_buffering off; proxy_request_buffering off; keepalive_requests {requests};
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  http2_max_concurrent_streams {streams};
  upstream truth {{ server {upstream}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} {tls} backlog=4096;
    {certificate}
    location / {{
      proxy_pass http://truth; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_read_timeout 60s; client_max_body_size 0;
    }}
  }}
}}
"""

_CADDY = """
{{ admin off
  auto_https off
  log {{
    level ERROR
  }}
}}
https://127.0.0.1:{port} {{
  tls {cert} {key}
  reverse_proxy {upstream} {{
    flush_interval -1
  }}
}}
"""

_TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 60
MaxClients 1000
LogLevel Error
ConnectPort {allowed}
DisableViaHeader Yes
"""


def program(name: str) -> str:
    """Return where a program is; Debian puts nginx where only root looks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    return shutil.which(name, path=path) or name


@contextlib.contextmanager
def nginx(
    folder: Path,
    upstream: str,
    cert: Path | None = None,
    key: Path | None = None,
    *,
    http2: bool = True,
    streams: int = 128,
    requests: int = 1_000_000,
) -> Iterator[str]:
    """Put nginx before a server; with TLS where a certificate is given, HTTP/2 then, unless not.

    `streams` is its SETTINGS_MAX_CONCURRENT_STREAMS, after `requests` a connection is ended.
    """
    port = _free_port()
    text = _NGINX.format(
        user="user root;" if os.geteuid() == 0 else "",
        upstream=upstream.removeprefix("http://"),
        port=port,
        tls=("ssl http2" if http2 else "ssl") if cert else "",
        certificate=f"ssl_certificate {cert}; ssl_certificate_key {key};" if cert else "",
        streams=streams,
        requests=requests,
    )
    (folder / "nginx.conf").write_text(text)
    command = [
        program("nginx"),
        "-e",
        "stderr",
        "-p",
        str(folder),
        "-c",
        str(folder / "nginx.conf"),
    ]
    with _running(command, port):
        yield f"{'https' if cert else 'http'}://127.0.0.1:{port}"


@contextlib.contextmanager
def caddy(folder: Path, upstream: str, cert: Path, key: Path) -> Iterator[str]:
    """Put Caddy before a server; it speaks HTTP/2 with whoever offers it."""
    port = _free_port()
    text = _CADDY.format(port=port, cert=cert, key=key, upstream=upstream.removeprefix("http://"))
    (folder / "Caddyfile").write_text(text)
    command = ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with _running(command, port, environment=home):
        yield f"https://127.0.0.1:{port}"


@contextlib.contextmanager
def tinyproxy(folder: Path, allowed: str) -> Iterator[str]:
    """Run an HTTP proxy that opens tunnels to the port of one URL."""
    port = _free_port()
    text = _TINYPROXY.format(port=port, allowed=allowed.rpartition(":")[2])
    (folder / "tinyproxy.conf").write_text(text)
    with _running(["tinyproxy", "-d", "-c", str(folder / "tinyproxy.conf")], port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def microsocks() -> Iterator[str]:
    """Run a SOCKS5 proxy."""
    port = _free_port()
    with _running(["microsocks", "-i", "127.0.0.1", "-p", str(port)], port):
        yield f"socks5://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(
    command: Sequence[str], port: int, *, environment: dict[str, str] | None = None
) -> Iterator[None]:
    env = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, env=env, start_new_session=True) as child:
        try:
            _wait_for(child, port)
            yield
        finally:
            child.terminate()
            try:
                child.wait(timeout=10)
            finally:
                child.kill()


def _wait_for(child: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            if child.poll() is not None:
                raise RuntimeError(f"{child.args} ended with code {child.returncode}") from None
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
