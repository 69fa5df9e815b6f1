"""Reported stamps against true ones: the only place that says how wrong a stamp is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError

_NUMBERS = 3  # before the stamps of a reply: its number, time zero, how many

IntArray = npt.NDArray[np.int64]


def read_stamps(file: Path) -> dict[int, IntArray]:
    """Return the stamps of each reply, ns since time zero, with time zero itself in front."""
    data = np.fromfile(file, dtype=np.int64) if file.exists() else np.zeros(0, np.int64)
    found = {}
    at = 0
    while at < len(data):
        number, t0_ns, count = (int(one) for one in data[at : at + _NUMBERS])
        at += _NUMBERS
        if t0_ns:  # the preflight has none
            found[number] = np.concatenate([[t0_ns], data[at : at + count]])
        at += count
    return found


@dataclass(frozen=True, slots=True)
class Compared:
    """One entry a token event: when it was really written, ns since time zero; how wrong the
    stamp is; how late the server wrote."""

    written_ns: IntArray
    error_ns: IntArray
    late_ns: IntArray


def compared(
    stamps: dict[int, IntArray], truth: dict[str, dict[str, Any]], *, gap_ns: int
) -> Compared:
    """Bring reported stamps and true ones together; each token was due `gap_ns` after the last.

    Raises HarnessError when they do not fit.
    """
    parts = []
    for number, (t0_ns, *reported) in stamps.items():
        one = truth.get(str(number), {})
        written = np.asarray(one.get("token_ns", ()), dtype=np.int64)
        if len(written) != len(reported):
            raise HarnessError(
                f"selftest: reply {number} has {len(reported)} stamped tokens; the server wrote "
                f"{len(written)}"
            )
        due = one["started_ns"] + gap_ns * np.arange(1, len(written) + 1)
        parts.append((written - t0_ns, np.asarray(reported) - written, written - due))
    if not parts:
        raise HarnessError("selftest: no reply came whole; is the machine busy?")
    return Compared(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def truth_of(url: str) -> dict[str, dict[str, Any]]:
    """Return what a server wrote down of each reply, by the reply's id."""
    with httpx.Client(trust_env=False, timeout=20) as http:
        replies: list[dict[str, Any]] = (
            http.get(f"{url}/truth").raise_for_status().json()["replies"]
        )
    return {one["id"]: one for one in replies}
