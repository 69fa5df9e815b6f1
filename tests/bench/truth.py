"""The exact server: built from `truth.c` when that is newer, run as a child, its record read.

It shares no code with the client that it measures. `python tests/bench/truth.py` builds it and
prints where it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCE = Path(__file__).with_name("truth.c")
BUILD_DIR = Path(__file__).resolve().parents[2] / "build" / "bench"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra")
_TLS_FLAGS = ("-DWITH_TLS", "-lssl", "-lcrypto")

_MAGIC = b"SSETRUE2"
_FILE = struct.Struct("<8sQQ")
_REPLY = struct.Struct("<HBBBIIqqq")
_ENDED = (None, "complete", "client left")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """When one reply was really written. Times are CLOCK_MONOTONIC, as `time.monotonic_ns`.

    Writes of a stream: the head with the role event, each token event, the tail (finish reason,
    usage, [DONE]). A reply that is not streamed is one write. Only writes that the socket took
    whole are here, so a reply whose client left has fewer than `writes`.
    """

    id: str
    streamed: bool
    ended: str | None
    """complete, or client left; None while it runs."""
    writes: int
    """How many there were to be; tokens + 2 for a stream."""
    received_ns: int
    """The last byte of the request was there: due times count from here."""
    by_kernel: bool
    """Whether `received_ns` is the kernel's stamp; else the server's clock, after its own wake-up."""
    first_ns: int
    """From then to the first token, or to the reply that is not streamed."""
    gap_ns: int
    before_ns: NDArray[np.int64]
    """Right before each send; of a late write, before its first part."""
    after_ns: NDArray[np.int64]
    """Right after each send; of a late write, after its last part."""
    late: NDArray[np.bool_]
    """True where a full socket held the write up."""

    @property
    def due_ns(self) -> NDArray[np.int64]:
        """When each write was due."""
        if not self.streamed:
            return np.full(len(self.before_ns), self.received_ns + self.first_ns)
        steps = np.arange(len(self.before_ns), dtype=np.int64)
        due = self.received_ns + self.first_ns + (steps - 1) * self.gap_ns
        due[:1] = self.received_ns
        return due

    @property
    def tokens(self) -> slice:
        """Where the token events are in the arrays."""
        return slice(1, self.writes - 1) if self.streamed else slice(0, 0)


class Truth(dict[str, Reply]):
    """Replies by id; of an id that came twice, the later one."""

    unrecorded = 0
    """Replies left out as the cap on events was reached."""


def read_truth(path: Path) -> Truth:
    """Read a dump. Raises ValueError when it is none, or is cut."""
    data = path.read_bytes()
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{path} is not a dump of the truth server")
    try:
        _, count, unrecorded = _FILE.unpack_from(data)
        truth, at = Truth(), _FILE.size
        truth.unrecorded = unrecorded
        for _ in range(count):
            reply, at = _read_reply(data, at)
            truth[reply.id] = reply
    except (struct.error, ValueError) as error:
        raise ValueError(f"{path} is cut: {error}") from None
    return truth


def _read_reply(data: bytes, at: int) -> tuple[Reply, int]:
    id_bytes, streamed, ended, by_kernel, writes, n, received, first, gap = _REPLY.unpack_from(
        data, at
    )
    at += _REPLY.size
    stamps = at + id_bytes
    end = stamps + 17 * n
    reply = Reply(
        id=data[at:stamps].decode("ascii"),
        streamed=bool(streamed),
        ended=_ENDED[ended],
        writes=writes,
        received_ns=received,
        by_kernel=bool(by_kernel),
        first_ns=first,
        gap_ns=gap,
        before_ns=np.frombuffer(data, "<i8", n, stamps),
        after_ns=np.frombuffer(data, "<i8", n, stamps + 8 * n),
        late=np.frombuffer(data, np.bool_, n, stamps + 16 * n),
    )
    return reply, end


def build(out_dir: Path = BUILD_DIR) -> Path:
    """Compile the server unless it is newer than its source; with TLS where OpenSSL's headers are.

    Raises FileNotFoundError without a C compiler, CalledProcessError when it does not compile.
    """
    program = out_dir / "truth"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise FileNotFoundError("the truth server needs a C compiler: cc, or the one named by CC")
    out_dir.mkdir(parents=True, exist_ok=True)
    part = out_dir / f"truth.{os.getpid()}"
    tls = _TLS_FLAGS if has_openssl(compiler) else ()
    subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(part), *tls], check=True)
    return part.replace(program)


def has_openssl(compiler: str) -> bool:
    """Tell whether this compiler finds OpenSSL's headers, so that TLS is built in."""
    probe = [compiler, "-E", "-include", "openssl/ssl.h", "-x", "c", "/dev/null"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def running(
    *, cpu: int | None = None, program: Path | None = None, **options: object
) -> Iterator[str]:
    """Run the server as a child on a free loopback port; yields its base URL, ends it on leaving.

    `options` are those of its command line: `spin_us=60` is `--spin-us 60`, `no_spin=True` is
    `--no-spin`, `tls=(cert, key)` is `--tls CERT KEY`; None and False are left out. A file given
    as `dump` is whole once this has been left. Raises RuntimeError when the server does not start,
    or ends badly.
    """
    command = [str(program or build()), "--exit-with-parent", *_words({"cpu": cpu, **options})]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as child:
        try:
            line = child.stdout.readline() if child.stdout else b""
            if not line:
                raise RuntimeError(f"the truth server ended with code {child.wait()}")
            yield json.loads(line)["url"]
        finally:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=60)
            child.kill()
    if child.returncode != 0:
        raise RuntimeError(f"the truth server ended with code {child.returncode}")


def _words(options: dict[str, object]) -> Iterator[str]:
    for name, value in options.items():
        if value is None or value is False:
            continue
        yield "--" + name.replace("_", "-")
        if value is not True:
            yield from map(str, value if isinstance(value, tuple) else (value,))


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
