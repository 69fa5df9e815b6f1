"""The two arms of one interleaved run, compared by pairs of blocks.

Where there are too few pairs, or too few samples beyond a quantile, the arms are compared like any
two runs: wider, and as true. Shares are always, since a share's exact bounds need no blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.recorder import Recording, StageWindow
from harness.stats.paired import excesses, paired_mean_change, variance_left
from harness.stats.regression import FEWEST_BLOCKS, Change, paired_quantile_change
from harness.stats.windows import FloatArray, IntArray, Windows
from harness.verdict.samples import Repetitions, Sums

_SLACK_S = 1e-6


def interleaved(base: Recording, candidate: Recording) -> bool:
    """Whether the two are the arms of one interleaved run."""
    one, other = (run.run.get("interleaved") or {} for run in (base, candidate))
    return "run" in one and one["run"] == other.get("run") and one["arm"] != other["arm"]


def paired_change(
    sides: tuple[Repetitions, Repetitions],
    step: str,
    metric: str,
    quantile: float | None,
    confidence: float,
) -> Change | None:
    """Change of a quantile, a mean or a rate; None where pairs of blocks do not give its interval.

    `pairs` and `variance_left` of what is returned say how much there was to pair, and what for.
    """
    if metric in ("error_rate", "goodput") or not all(len(side.stages) == 1 for side in sides):
        return None
    pairs = min(len(_whole_blocks(side)) - 1 for side in sides)
    if pairs < FEWEST_BLOCKS:
        return None
    if quantile is None:
        return _mean_change(sides, step, metric, confidence, pairs)
    found = [side.windows(step, metric) for side in sides]
    if not all(len(one) == 1 for one in found):
        return None
    base, candidate = (
        _first_blocks(windows, _block_of(side, len(windows.n)), pairs)
        for side, (windows,) in zip(sides, found, strict=True)
    )
    change = paired_quantile_change(base, candidate, quantile, confidence)
    if change is None or change.lacking:
        return None
    left = variance_left(excesses(base, quantile), excesses(candidate, quantile))
    return replace(change, pairs=pairs, variance_left=left)


def _mean_change(
    sides: tuple[Repetitions, Repetitions], step: str, metric: str, confidence: float, pairs: int
) -> Change | None:
    runs: list[Sequence[Sums]] = [
        side.done(step) if metric == "rate" else side.sums(step, metric) for side in sides
    ]
    if not all(len(one) == 1 for one in runs):
        return None
    base, candidate = (
        _first_sums(run, _block_of(side, len(run.sums)), pairs)
        for side, (run,) in zip(sides, runs, strict=True)
    )
    change = paired_mean_change(base, candidate, confidence)
    if change is None:
        return None
    left = variance_left(_residues(*base), _residues(*candidate))
    return replace(change, pairs=pairs, variance_left=left)


def _whole_blocks(side: Repetitions) -> list[float]:
    """Return the edges, seconds, of the blocks that were played to their end."""
    (stage,) = side.stages
    edges = side.recording.run["interleaved"]["edges_s"].get(stage.name, [])
    return [edge for edge in edges if edge <= stage.end_s + _SLACK_S] or [stage.start_s]


def _block_of(side: Repetitions, windows: int) -> IntArray:
    """Return to which block each of a stage's windows belongs."""
    (stage,) = side.stages
    edges = side.recording.run["interleaved"]["edges_s"][stage.name]
    middle = _starts_s(stage, side.recording.interval_s, windows) + side.recording.interval_s / 2
    blocks: IntArray = np.clip(np.searchsorted(edges, middle) - 1, 0, len(edges) - 2)
    return blocks


def _starts_s(stage: StageWindow, interval_s: float, windows: int) -> FloatArray:
    first = int(stage.start_s / interval_s + 1e-9)
    return (first + np.arange(windows, dtype=np.float64)) * interval_s


def _first_blocks(windows: Windows, block: IntArray, pairs: int) -> Windows:
    blocks = windows.grouped(block, windows.length_s)
    kept = blocks.window < pairs
    return Windows(
        length_s=windows.duration_s / max(1, len(blocks.n)),
        n=blocks.n[:pairs],
        window=blocks.window[kept],
        value=blocks.value[kept],
        count=blocks.count[kept],
    )


def _first_sums(run: Sums, block: IntArray, pairs: int) -> tuple[FloatArray, FloatArray]:
    sums, counts = np.zeros((2, max(pairs, int(block[-1]) + 1)))
    np.add.at(sums, block, run.sums)
    np.add.at(counts, block, run.counts)
    return sums[:pairs], counts[:pairs]


def _residues(sums: FloatArray, counts: FloatArray) -> FloatArray:
    residues: FloatArray = sums - sums.sum() / counts.sum() * counts
    return residues
