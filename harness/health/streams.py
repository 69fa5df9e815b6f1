"""What the streams of a run were like, in sentences: what buffered them, and what they lacked.

A stamp that stands for several events is an interval. Where most are, something between the model
and us holds the stream back, and gaps between tokens are its gaps.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.recorder import LoadTotals, Recording
from harness.units import format_count, format_share

NOTABLE_SHARE = 0.05
BUFFERED = "something between you and the model buffers the stream"
REMEDY = (
    "have it pass events on at once (nginx: proxy_buffering off; HAProxy: option http-no-delay; "
    "Apache: flushpackets=on; Caddy: flush_interval -1; no compression of text/event-stream)"
)


def summed(recording: Recording, stages: Iterable[str]) -> LoadTotals:
    """Return what became of the arrivals of several stages."""
    totals = [recording.load_totals(stage) for stage in stages]
    names = (
        "finished",
        "failed",
        "token_events",
        "merged",
        "replies",
        "streams",
        "lumped",
        "empty",
    )
    return LoadTotals(
        **{name: sum(getattr(one, name) for one in totals) for name in (*names, "unfinished")}
    )


def how_buffered(totals: LoadTotals) -> str | None:
    """Say what held the streams back; None where next to no stamp stands for several events."""
    share = totals.merged / totals.token_events if totals.token_events else 0.0
    if totals.lumped and totals.lumped >= totals.streams / 2:
        return f"{_part(totals.lumped, totals.streams)} in one read: {BUFFERED}"
    if share < NOTABLE_SHARE:
        return None
    came = f"{format_share(share)} of the token events came in reads that held several"
    if share >= 0.5 and totals.streams:  # else each reply was one token, and its end came with it
        return f"{came}: {BUFFERED}"
    return f"{came}, so when each came is not known"


def in_one_read(tokens: int) -> str:
    """Say that the token events of one reply, tried before a load, came in one read."""
    return f"all {format_count(tokens)} token events came in one read: {BUFFERED}: {REMEDY}"


def remarks(recording: Recording) -> tuple[str, ...]:
    """Say what a reader must know of the recorded streams; empty for ordinary ones."""
    totals = summed(recording, (stage.name for stage in recording.stages if stage.record))
    buffered = how_buffered(totals)
    found = [f"{buffered}: {REMEDY}" if buffered and BUFFERED in buffered else buffered]
    if totals.empty:
        part = f"{format_count(totals.empty)} of {format_count(totals.replies)}"
        found.append(f"{part} replies had no token")
    if totals.unfinished:
        part = _part(totals.unfinished, max(totals.streams, totals.unfinished))
        found.append(f"{part} without a finish_reason, whole by the stream's other marks")
    return tuple(sentence for sentence in found if sentence)


def _part(n: int, whole: int) -> str:
    if n == whole:
        return "every reply came"
    return f"{format_count(n)} of {format_count(whole)} replies came"
