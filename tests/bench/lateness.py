"""How late the exact server itself is: `python tests/bench/lateness.py`, a line for each load.

The server has the last core, a client that reads and forgets the first. Lateness is the
stamp right before a send less its due time; a send lasts from that stamp to the one after it.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import socket
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import truth

_TTFT_US = 1_000_000
_QUANTILES = (0.5, 0.99, 0.999, 1)


def main() -> None:
    """Measure each load asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", default="200x20,1600x20", help="streams x gap in ms, by comma")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--spin-us", type=int, default=60)
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for load in given.loads.split(","):
        streams, gap_ms = map(int, load.split("x"))
        tokens = int(given.seconds * 1000 / gap_ms)
        with tempfile.TemporaryDirectory() as folder:
            dump = Path(folder, "truth.bin")
            spin = {"spin_us": given.spin_us}
            with truth.running(cpu=cores[-1], dump=dump, gap_us=gap_ms * 1000, **spin) as url:
                read, cpu_s = drain(url, streams, gap_ms * 1000, tokens)
            sys.stdout.write(line_of(truth.read_truth(dump), load, read, cpu_s) + "\n")


def drain(url: str, streams: int, gap_us: int, tokens: int) -> tuple[int, float]:
    """Read all streams to their ends, spread evenly over a gap; returns reads and CPU seconds."""
    at = urlsplit(url)
    epoll, buffer = select.epoll(), bytearray(1 << 16)
    sockets = [socket.create_connection((at.hostname, at.port)) for _ in range(streams)]
    begun_ns, cpu_s, reads = time.monotonic_ns(), time.process_time(), 0
    for index, each in enumerate(sockets):
        epoll.register(each, select.EPOLLIN)
        already_us = (time.monotonic_ns() - begun_ns) // 1000
        ttft_us = _TTFT_US + index * gap_us // streams - already_us % gap_us
        each.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: 2\r\n"
            b"x-request-id: s%d\r\nx-ttft-us: %d\r\nx-tokens: %d\r\n\r\n{}"
            % (index, ttft_us, tokens)
        )
    by_number = {each.fileno(): each for each in sockets}
    while by_number:
        for number, _ in epoll.poll():
            reads += 1
            if by_number[number].recv_into(buffer) == 0:
                by_number.pop(number).close()
    return reads, time.process_time() - cpu_s


def line_of(kept: truth.Truth, load: str, reads: int, cpu_s: float) -> str:
    """Say how late the token events were, in microseconds."""
    parts = [(one.before_ns - one.due_ns, one.after_ns - one.before_ns) for one in kept.values()]
    tokens = next(iter(kept.values())).tokens
    late_us = np.concatenate([late[tokens] for late, _ in parts]) / 1000
    send_us = np.concatenate([send[tokens] for _, send in parts]) / 1000
    first = min(int(one.before_ns[1]) for one in kept.values())
    last = max(int(one.before_ns[-1]) for one in kept.values())
    held_up = sum(int(one.late.sum()) for one in kept.values())
    return (
        f"{load:>8} {len(late_us) / (last - first) * 1e9:8,.0f} events/s"
        f"  late us p50/p99/p99.9/max {_quantiles(late_us)}  send us {_quantiles(send_us)}"
        f"  held up {held_up}  client {cpu_s:.1f} CPU s, {reads:,} reads"
    )


def _quantiles(values: np.ndarray) -> str:
    return "/".join(f"{value:.1f}" for value in np.quantile(values, _QUANTILES))


if __name__ == "__main__":
    main()
