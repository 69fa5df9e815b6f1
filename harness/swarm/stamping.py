"""The users that `harness selftest` runs: ordinary ones that also write down when each token came.

Per reply goes to the file, as 64-bit integers: its number (the `x-request-id` that it was asked
for with, or the model that its events name), time zero of the load (or when the reply ended), how
many tokens, and the stamp of each. `selftest.stamps` reads it.
"""

from __future__ import annotations

import atexit
import os
from array import array
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from locust import task

from harness.swarm.user import ModelUser, Run

_BUFFER_BYTES = 1 << 20


def stream_user(urls: Sequence[str], file: str) -> type[ModelUser]:
    """Return a user that streams chat replies from the servers and keeps the stamps in `file`."""
    numbers = count(1)
    kept = _kept(file)

    def stream(user: ModelUser) -> None:
        number = next(numbers)
        user.client.headers["x-request-id"] = str(number)
        reply = user.chat(f"stream {number}")
        stamps = [t_ns for t_ns, *_ in reply.token_events]
        kept.write(array("q", (number, user.run_state.t0_ns, len(stamps), *stamps)))

    return _user(urls, stream)


def in_step_user(file: str) -> type[ModelUser]:
    """Return a user that streams as a plan's do; each worker's stamps are in a file of its own."""
    kept = _kept(f"{file}.{os.getpid()}")

    def stream(user: ModelUser) -> None:
        reply = user.chat("in step")
        if user.run_state.t0_ns:  # the preflight's is not counted
            stamps = [t_ns for t_ns, *_ in reply.token_events]
            number, end_ns = int(reply.model or 0), reply.end_ns or 0
            kept.write(array("q", (number, end_ns, len(stamps), *stamps)))

    return _user((), stream)


def _kept(file: str) -> BinaryIO:
    """Open a file for as long as the load lasts."""
    kept = Path(file).open("wb", buffering=_BUFFER_BYTES)  # noqa: SIM115
    atexit.register(kept.close)
    return kept


def request_user(urls: Sequence[str]) -> type[ModelUser]:
    """Return a user that makes short requests to the servers."""

    def ask(user: ModelUser) -> None:
        user.predict({"instances": [[1.0]]})

    return _user(urls, ask)


def _user(urls: Sequence[str], what: Any) -> type[ModelUser]:
    turns = count()

    class SelftestUser(ModelUser):
        """One of several servers serves this user: one alone may be slower than a worker."""

        @cached_property
        def run_state(self) -> Run:
            """What this user shares with the others, but for its server."""
            run: Run = self.environment.harness
            return run if len(urls) <= 1 else replace(run, url=urls[next(turns) % len(urls)])

        @task
        def once(self) -> None:
            what(self)

    return SelftestUser
