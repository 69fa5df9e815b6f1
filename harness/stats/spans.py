"""A quantile that must hold in every span of time (`over: 10s`), not only over the whole run.

A slow spell is what such a budget is there to find, so that chance is only what varies within a
span. Many spans are many chances to fail: Holm's procedure keeps the error of all together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import dct
from scipy.special import betainc

from harness.stats.dependence import Undecided, student_factor
from harness.stats.levels import holm
from harness.stats.quantiles import QuantileEvidence, quantile_evidence
from harness.stats.windows import IntArray, Windows

_FEWEST_PARTS = 6  # windows within a span, to see how samples depend on each other there
_CLUSTERED = 4.0  # the VIF where the windows are too coarse to see it


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEvidence:
    """How a quantile kept its limit in `spans` spans of equal length.

    Each goes up to one of the windows in `ends`, without it. `broke` are the spans (from 0) with
    more samples beyond the limit than allowed, `surely` those for which that is no chance, all of
    them together at the confidence asked for; `thin` have fewer samples than the quantile needs,
    `needed`, and judge nothing. `worst` is the span with the largest share beyond the limit,
    `worst_share`. `whole` is the evidence of all spans together.
    """

    ends: tuple[int, ...]
    needed: int
    broke: tuple[int, ...]
    surely: tuple[int, ...]
    thin: tuple[int, ...]
    worst: int | None
    worst_share: float | None
    vif: float
    whole: QuantileEvidence
    p_fail: float
    passes: bool
    fails: bool
    undecided: Undecided | None

    @property
    def spans(self) -> int:
        """Return the number of spans."""
        return len(self.ends)

    def windows_of(self, span: int) -> tuple[int, int]:
        """Return the first window of a span, and the one after its last."""
        return self.ends[span - 1] if span else 0, self.ends[span]


def window_evidence(
    windows: Windows,
    over: IntArray,
    q: float,
    confidence: float,
    *,
    span_s: float,
    upper: bool = True,
    in_system_s: float | None = None,
    runs: tuple[int, ...] | None = None,
) -> WindowEvidence:
    """Judge "the q-quantile is below a limit in every `span_s` seconds".

    It passes when no span broke the limit, none is too thin to tell, and the whole run passes; it
    fails when some span broke it beyond chance. `over` and the other arguments are those of
    `quantile_evidence`. No span reaches from one of the `runs` into the next; windows left over
    at the end of a run belong to its last span. Raises ValueError without samples.
    """
    whole = quantile_evidence(
        windows, over, q, confidence, upper=upper, in_system_s=in_system_s, runs=runs
    )
    parts = max(1, round(span_s / windows.length_s))
    starts, ends = _bounds(runs or (len(windows),), parts)
    spans = len(ends)
    n, k = (np.add.reduceat(counts, starts).astype(np.float64) for counts in (windows.n, over))
    needed = math.ceil(1 / whole.allowed - 1e-9)
    judged = n >= needed
    broke = judged & (k > whole.allowed * n + 1e-9)
    full = starts[ends - starts >= parts, None] + np.arange(parts)
    vif = _vif_within(windows, over, q, confidence, full)
    size, beyond = n / vif, k / vif
    p = np.where(
        judged & (k > 0), betainc(np.maximum(beyond, 1e-9), size - beyond + 1, whole.allowed), 1.0
    )
    surely = np.array(holm(p.tolist(), confidence)) & broke
    passes, fails = bool(judged.all() and not broke.any() and whole.passes), bool(surely.any())
    shares = np.where(judged, k / np.maximum(n, 1), -1.0)
    worst = int(shares.argmax()) if judged.any() else None
    return WindowEvidence(
        ends=tuple(ends.tolist()),
        needed=needed,
        broke=_places(broke),
        surely=_places(surely),
        thin=_places(~judged),
        worst=worst,
        worst_share=None if worst is None else float(shares[worst]),
        vif=vif,
        whole=whole,
        p_fail=min(1.0, spans * float(p.min())),
        passes=passes,
        fails=fails,
        undecided=None
        if passes or fails
        else _undecided(whole, bool(judged.all()), bool(broke.any())),
    )


def _bounds(runs: tuple[int, ...], parts: int) -> tuple[IntArray, IntArray]:
    """Return the window at which each span of `parts` windows starts, and that after its last."""
    starts, first = [], 0
    for size in runs:
        starts += [first + parts * span for span in range(max(size // parts, 1))]
        first += size
    return np.array(starts, dtype=np.int64), np.array([*starts[1:], first], dtype=np.int64)


def _undecided(whole: QuantileEvidence, all_judged: bool, any_broke: bool) -> Undecided:
    if any_broke:
        return Undecided.CLOSE
    return whole.undecided or Undecided.SAMPLES if all_judged else Undecided.SAMPLES


def _places(which: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(place) for place in np.flatnonzero(which))


def _vif_within(
    windows: Windows, over: IntArray, q: float, confidence: float, full: IntArray
) -> float:
    """Return the inflation of counts within spans, pooled over all that are `full`, by window."""
    spans, parts = full.shape
    if parts < _FEWEST_PARTS or not spans:
        return _CLUSTERED
    low = parts // 3
    factor = student_factor(min(low * spans, 200), confidence)
    edge = windows.threshold(min(0.5, q, 1 - q), upper=q >= 0.5)
    series = [over] if edge is None else [over, windows.over(edge)]
    found = [_pooled(windows.n[full], counts[full], low) for counts in series]
    return max(1.0, factor * max(found))


def _pooled(n: IntArray, counts: IntArray, low: int) -> float:
    """Return the same of the `low` longest waves within a span; spans by window."""
    sizes, k = n.astype(np.float64), counts.astype(np.float64)
    share = k.sum(axis=1) / np.maximum(sizes.sum(axis=1), 1)
    power = dct(k - share[:, None] * sizes, norm="ortho", axis=1)[:, 1 : low + 1] ** 2
    variance = float((k.sum(axis=1) * (1 - share)).sum())
    return n.shape[1] * float(power.mean(axis=1).sum()) / variance if variance > 0 else 0.0
