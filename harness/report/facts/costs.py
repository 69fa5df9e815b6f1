"""What model calls cost, by step: for one request, and for a month of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import stats
from harness.budget import RUN
from harness.cost import Cost
from harness.recorder import Recording
from harness.verdict.samples import Repetitions, joined

CONFIDENCE = 0.95
_TOKENS = ("input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One step: the mean of its `n` executions, and of their tokens where it made a call itself.

    `month` is what its share of the declared volume costs in this run's mix of steps.
    """

    step: str
    n: int
    request: Cost
    month: Cost | None
    input_tokens: float | None
    output_tokens: float | None

    @property
    def thousand(self) -> Cost:
        """What 1,000 of its executions cost."""
        return self.request.of(1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """The steps of one stage, all its repetitions together.

    `whole` is the row of whole requests, the only root's or all roots'; None where it is unknown.
    """

    stage: str
    rows: tuple[CostRow, ...]
    whole: CostRow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All of a run; `prices` as a plan writes them, each end of an interval at `confidence`."""

    prices: Mapping[str, Any]
    monthly_requests: int | None
    confidence: float
    tables: tuple[CostTable, ...]


def costs(recording: Recording) -> Costs | None:
    """Return what the steps that make model calls cost; None where nothing was priced."""
    prices = recording.run.get("prices")
    if not isinstance(prices, Mapping):
        return None
    volume = prices.get("monthly_requests")
    groups = dict.fromkeys(stage.group for stage in recording.stages if stage.record)
    found = (_table(Repetitions(recording, group), volume) for group in groups)
    tables = tuple(table for table in found if table.rows)
    return Costs(prices=prices, monthly_requests=volume, confidence=CONFIDENCE, tables=tables)


def _table(stage: Repetitions, volume: int | None) -> CostTable:
    """Return a row for each step with model calls, and for several roots if all costs are known."""
    steps = list(
        dict.fromkeys(step for s in stage.stages for step in stage.recording.steps(s.name))
    )
    roots = [step for step in steps if "/" not in step]
    whole = roots[0] if len(roots) == 1 else RUN
    succeeded = sum(_successes(stage, step) for step in roots)
    if whole == RUN and stage.count(RUN, "cost") == succeeded:
        steps.append(RUN)
    rows = tuple(_rows(stage, steps, volume))
    own = next((row for row in rows if row.step == whole), None)
    return CostTable(stage=stage.group, rows=rows, whole=own)


def _rows(stage: Repetitions, steps: Sequence[str], volume: int | None) -> Iterator[CostRow]:
    for step in steps:
        cost = _mean(stage, step)
        tokens = [_mean_tokens(stage, step, name) for name in _TOKENS]
        if cost is not None and (cost.mean or tokens != [None, None]):
            yield CostRow(
                step=step,
                n=stage.count(step, "cost"),
                request=cost,
                month=cost.of(volume * _per_request(stage, step)) if volume else None,
                input_tokens=tokens[0],
                output_tokens=tokens[1],
            )


def _per_request(stage: Repetitions, step: str) -> float:
    """Return how often the step succeeded for each request that did, of all roots together."""
    every = _successes(stage, RUN)
    return _successes(stage, step) / every if every else 0.0


def _successes(stage: Repetitions, step: str) -> int:
    return sum(requests.n - requests.n_failed for _, requests in stage.requests(step))


def _mean(stage: Repetitions, step: str) -> Cost | None:
    found = stage.sums(step, "cost")
    if not found:
        return None
    whole, runs = joined(found)
    evidence = stats.mean_evidence(
        whole.sums, whole.counts, CONFIDENCE, length_s=whole.length_s, runs=runs
    )
    if evidence is None:
        return Cost(mean=float(whole.sums.sum() / whole.counts.sum()))
    return Cost(mean=evidence.mean, low=max(0.0, evidence.low), high=evidence.high)


def _mean_tokens(stage: Repetitions, step: str, metric: str) -> float | None:
    found = stage.sums(step, metric)
    if not found:
        return None
    whole, _ = joined(found)
    return float(whole.sums.sum() / whole.counts.sum())
