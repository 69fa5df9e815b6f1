"""What the client measured beside what llama.cpp says of the same replies.

The server's `prompt_ms` runs from the start of a slot's work on a prompt until the first token is
there, `predicted_ms` from then to the last token. So a client can see no first token before
`prompt_ms` is over; without a queue it sees it just after, and the rest of the stream then takes
`predicted_ms`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from harness.recorder import Recording

_MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One streamed reply, by the client's clock and by the server's; times in ms."""

    ttft: float
    prompt: float
    generation: float
    """End of the step - first token; holds the send lag too, which is far below 1 % of it."""
    predicted: float
    tokens: tuple[int, int]
    server_tokens: tuple[int, int]
    """(input, output), like `tokens`."""


def pairs_of(recording: Recording) -> list[Pair]:
    """Return the kept replies of the recorded stages that have a first token and timings."""
    recorded = {stage.name for stage in recording.stages if stage.record}
    return [
        _pair(span.end_ns - span.start_ns, span.detail)
        for journey in recording.journeys
        if journey.stage in recorded
        for span in journey.steps
        if span.failure is None and span.detail.get("service_ttft_ns") is not None
    ]


def _pair(took_ns: int, detail: dict[str, object]) -> Pair:
    said, ttft_ns = detail["server_timings"], detail["service_ttft_ns"]
    assert isinstance(said, dict)
    assert isinstance(ttft_ns, int)
    tokens = detail["input_tokens"], detail["output_tokens"]
    return Pair(
        ttft=ttft_ns / _MS,
        prompt=said["prompt_ms"],
        generation=(took_ns - ttft_ns) / _MS,
        predicted=said["predicted_ms"],
        tokens=tokens,  # type: ignore[arg-type]
        server_tokens=(said["cache_n"] + said["prompt_n"], said["predicted_n"]),
    )


def first_token_gap(pairs: Iterable[Pair]) -> float:
    """Median of measured TTFT - prompt_ms, as a share of the median measured TTFT."""
    known = list(pairs)
    if not known:
        return math.inf
    return median(pair.ttft - pair.prompt for pair in known) / median(pair.ttft for pair in known)


def generation_gap(pairs: Iterable[Pair]) -> float:
    """Median distance between measured generation and predicted_ms, as a share of the latter's."""
    known = list(pairs)
    if not known:
        return math.inf
    distance = median(abs(pair.generation - pair.predicted) for pair in known)
    return distance / median(pair.predicted for pair in known)


def table(rows: dict[str, list[Pair]]) -> str:
    """Draw the medians of each plan: measured, said by the server, and the two gaps."""
    head = (
        f"{'median, ms':<12} {'replies':>7} {'TTFT':>8} {'prompt_ms':>9} {'gap':>6} "
        f"{'last-first':>10} {'predicted_ms':>12} {'gap':>6} {'tokens':>7} {'predicted_n':>11}"
    )
    return "\n".join([head, *(_row(name, pairs) for name, pairs in rows.items() if pairs)])


def _row(name: str, pairs: list[Pair]) -> str:
    ttft, prompt = median(p.ttft for p in pairs), median(p.prompt for p in pairs)
    measured, said = median(p.generation for p in pairs), median(p.predicted for p in pairs)
    ours, theirs = sum(p.tokens[1] for p in pairs), sum(p.server_tokens[1] for p in pairs)
    return (
        f"{name:<12} {len(pairs):>7,} {ttft:>8.1f} {prompt:>9.1f} {first_token_gap(pairs):>6.1%} "
        f"{measured:>10.1f} {said:>12.1f} {generation_gap(pairs):>6.1%} {ours:>7,} {theirs:>11,}"
    )
