"""The only place with randomness: what one reply will do, drawn before it starts.

A draw is a function of (seed, route, body, how many times this same body came before). Neither
the clock nor the order in which different requests arrive changes it, so two runs that send the
same bodies get the same latencies and faults even when concurrency shuffles them.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from dataclasses import dataclass, fields

from harness.endpoint.settings import Settings

_UNITS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m)")
FAULTS = "none status=CODE delay=TIME stall=TIME truncate malformed reset interrupted no-done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong in one reply; all absent is a clean reply."""

    status: int | None = None
    """Answered with this HTTP status, without waiting for a slot."""
    delay_ns: int = 0
    """Added before the first token, or before the status."""
    stall_ns: int = 0
    """Pause half-way, the connection open."""
    truncate: bool = False
    """Connection closed half-way: no finish_reason, no [DONE], no end of the HTTP body."""
    malformed: bool = False
    """One event in the middle (or the whole JSON reply) is not JSON."""
    reset: bool = False
    """TCP reset half-way."""
    interrupted: bool = False
    """[DONE] with no content and no finish_reason, then closed, as one server was seen to do."""
    no_done: bool = False
    """A finished stream without [DONE], as some servers send."""

    def names(self) -> list[str]:
        """List the faults that are on, as /truth does."""
        on = [each.name for each in fields(self) if getattr(self, each.name)]
        return [name.removesuffix("_ns").replace("_", "-") for name in on]


def parse_faults(text: str) -> Faults:
    """Read an `x-fault` header: comma-separated, `delay=500ms, truncate`.

    Raises `ValueError` naming the part that is unknown and what is allowed.
    """
    found: dict[str, int | bool] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        duration = _DURATION.fullmatch(value)
        if name == "status" and re.fullmatch(r"[45]\d\d", value):
            found["status"] = int(value)
        elif name in ("delay", "stall") and duration:
            found[f"{name}_ns"] = round(float(duration[1]) * _UNITS[duration[2]])
        elif not value and name in ("truncate", "malformed", "reset", "interrupted", "no-done"):
            found[name.replace("-", "_")] = True
        elif part.strip() != "none":
            raise ValueError(
                f"x-fault: {part.strip()!r} is not known; allowed are {FAULTS}, joined by commas "
                "(CODE 400 to 599; TIME as 250us, 500ms, 2s or 1m)"
            )
    return Faults(**found)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One reply's times and faults; `gap_ns` draws the next gap each time it is called."""

    first_ns: int
    """Start of service to the first token (to the whole reply where there are no tokens)."""
    tokens: int
    faults: Faults
    gap_median_ns: float
    gap_sigma: float
    rng: random.Random

    def gap_ns(self) -> int:
        """Nanoseconds to the next token."""
        return round(self.gap_median_ns * math.exp(self.gap_sigma * self.rng.gauss(0.0, 1.0)))


def draw(settings: Settings, kind: str, body: bytes, earlier: int, forced: Faults | None) -> Script:
    """Draw one reply. `kind` is chat, completions, embeddings or predict.

    `earlier` counts the same body before this one; `forced` replaces the drawn faults.
    The draws come in a fixed order, so that changing a fault rate changes no latency.
    """
    key = f"{settings.seed}/{kind}/{earlier}/".encode() + body
    rng = random.Random(hashlib.blake2b(key, digest_size=16).digest())
    drawn = _drawn_faults(settings, [rng.random() for _ in range(5)])
    length = settings.tokens * math.exp(settings.tokens_sigma * rng.gauss(0.0, 1.0))
    median_ms, sigma = {
        "embeddings": (settings.embed_ms, settings.embed_sigma),
        "predict": (settings.predict_ms, settings.predict_sigma),
    }.get(kind, (settings.ttft_ms, settings.ttft_sigma))
    faults = drawn if forced is None else forced
    first_ns = round(median_ms * 1e6 * math.exp(sigma * rng.gauss(0.0, 1.0)))
    return Script(
        first_ns=first_ns + faults.delay_ns,
        tokens=max(1, round(length)),
        faults=faults,
        gap_median_ns=settings.gap_ms * 1e6,
        gap_sigma=settings.gap_sigma,
        rng=rng,
    )


def _drawn_faults(settings: Settings, luck: list[float]) -> Faults:
    return Faults(
        status=settings.error_status if luck[0] < settings.error_rate else None,
        truncate=luck[1] < settings.truncate_rate,
        malformed=luck[2] < settings.malformed_rate,
        reset=luck[3] < settings.reset_rate,
        stall_ns=round(settings.stall_ms * 1e6) if luck[4] < settings.stall_rate else 0,
    )
