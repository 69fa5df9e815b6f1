"""What samples that depend on each other say about a true share, against the one that is allowed.

The bounds are Clopper and Pearson's on an effective sample (`shares`, `dependence`). The share is
kept when the upper bound is within the allowed one, and broken when the lower bound is beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.stats.dependence import Undecided, is_resolved
from harness.stats.shares import share_bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """`k` of `n` samples are bad, beyond a limit or failed, and `allowed` is the share that may be.

    `lower` and `upper` bound the true share, each at `confidence`; `vif_fail` and `vif_pass` are
    the variance inflations behind them. Of `windows`, so many as `effective_windows` count as
    independent. `too_short` is a run that cannot show how long its slow spells last: it never
    passes. One that is not `resolved` has larger inflations, so only what is far from its limit is
    decided.
    """

    n: int
    k: int
    allowed: float
    confidence: float
    windows: int
    effective_windows: float
    too_short: bool
    vif_pass: float
    vif_fail: float
    lower: float
    upper: float

    @property
    def effective_n(self) -> float:
        """Return how many independent samples would say as much."""
        return self.n / self.vif_pass

    @property
    def resolved(self) -> bool:
        """Return whether there are windows enough to measure how strongly they depend."""
        return is_resolved(self.windows, self.effective_windows)

    @property
    def passes(self) -> bool:
        """Return whether the true share is shown to be within the allowed one."""
        return not self.too_short and self.upper <= self.allowed

    @property
    def fails(self) -> bool:
        """Return whether the true share is shown to be beyond the allowed one."""
        return self.lower > self.allowed

    @property
    def undecided(self) -> Undecided | None:
        """Return why it neither passes nor fails; None when it does."""
        if self.passes or self.fails:
            return None
        if self.too_short:
            return Undecided.SHORT
        enough = self.effective_n if self.resolved else self.n
        if share_bounds(enough, 0, self.confidence)[1] > self.allowed:
            return Undecided.SAMPLES
        return Undecided.CLOSE if self.resolved else Undecided.DEPENDENCE
