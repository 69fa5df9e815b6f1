"""CPU and memory of a command with all its descendants, sampled while it runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil

_EVERY_S = 0.1
_FAMILY_EVERY = 10  # samples: looking for new descendants takes about 2 ms of some core
_MEMORY_EVERY = 50  # samples: reading PSS holds up what is read


@dataclass(slots=True)
class Usage:
    """What a command used; times are CLOCK_MONOTONIC."""

    cpu: list[tuple[int, float]] = field(default_factory=list)
    """(ns, CPU seconds since its start), those of ended descendants included."""
    pss: list[tuple[int, float]] = field(default_factory=list)
    """(ns, MB)."""

    def cpu_s(self, from_ns: int, to_ns: int) -> float:
        """CPU seconds spent between two times, between samples in proportion."""
        t_ns, cpu_s = zip(*self.cpu, strict=True)
        began, ended = np.interp((from_ns, to_ns), t_ns, cpu_s)
        return float(ended - began)

    def pss_mb(self, until_ns: int) -> float:
        """Memory at the last sample before a time. Raises LookupError when there is none."""
        before = [mb for t_ns, mb in self.pss if t_ns <= until_ns]
        if not before:
            raise LookupError("the command ended before its memory was read")
        return before[-1]

    @property
    def total_cpu_s(self) -> float:
        return self.cpu[-1][1]


def run(
    command: list[str],
    *,
    core: int,
    folder: Path,
    env: dict[str, str],
    timeout_s: float,
    allowed: Collection[int] = (0,),
) -> Usage:
    """Run a command on one core to its end. RuntimeError when it fails or does not end in time.

    It has failed when its exit code is not one of those that are `allowed`. Whatever it has started is ended with it.
    """
    log = folder / "log.txt"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(os.sched_setaffinity, 0, {core}),  # noqa: PLW1509 - no threads here
        ) as child,
    ):
        try:
            usage = _watch(child, time.monotonic() + timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode not in allowed:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
        raise RuntimeError(f"{command[0]} ended with code {child.returncode}: " + "\n".join(said))
    return usage


def _watch(child: subprocess.Popen[bytes], deadline: float) -> Usage:
    usage, root, turn = Usage(), psutil.Process(child.pid), 0
    family = [root]
    while child.poll() is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{child.args[0]} did not end in time")
        if turn % _FAMILY_EVERY == 0:
            family = _family(root)
        usage.cpu.append((time.monotonic_ns(), _cpu_s(family)))
        if turn % _MEMORY_EVERY == 0:
            usage.pss.append((time.monotonic_ns(), _pss_mb(family)))
        turn += 1
        time.sleep(_EVERY_S)
    return usage


def _family(root: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [root, *root.children(recursive=True)]
    return []


def _cpu_s(family: Iterable[psutil.Process]) -> float:
    total = 0.0
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += sum(times[:4])  # user, system, and both of the children that ended
    return total


def _pss_mb(family: Iterable[psutil.Process]) -> float:
    total = 0
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_full_info().pss
    return total / 1e6
