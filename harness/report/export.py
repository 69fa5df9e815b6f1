"""The verdict as JSON, for programs. Absence is null, and no number is NaN or infinite.

    schema_version     1
    outcome            "PASS" | "FAIL" | "INCONCLUSIVE" | "INVALID" | "NO DATA"
    exit_code          what the command ends with
    sentence, detail   the headline, for people
    judged_by          the plan whose budgets were judged, null where they are the run's own
    tallies            {outcome: how many budgets}
    run                folder (its name), and as in run.json: id, name, target (url, api, model),
                       commit, seed, workers, harness (its version), scenario (file, sha256),
                       status, started_at, ended_at, started_unix_s, interval_s, drain_s,
                       timeout_s, clock, machine (system, cores, memory_bytes)
    budgets            worst first; each has
      text step metric statistic quantile op limit limit_text confidence regression abort
                       as declared; over_ns is the length of the windows that must hold, or null
      declared_stage   the stage it is limited to, or null
      unit             of limit, observed, low and high: "ns", "tokens", "share" (0 to 1), "per_s",
                       "nano_usd"
      stage            where it was judged
      outcome observed low high n over allowed
                       low and high end the interval; `over` samples of n were beyond the limit and
                       `allowed` might have been
      effective_n vif  n samples say as much as effective_n independent ones, n / vif; null and 1
                       where dependence was not measured
      fact             true where what was seen is held against the limit without bounds: max,
                       error_rate <= 0%, goodput >= 100%, and rate in a short stage
      outage           that the target stopped for good, where it broke the budget; or null
      used             share of the limit used (1.44: 44 % over); null also where it has no bound
      reason sentence evidence
    health             valid, planned, sent, dropped, cut_off, waited, raised (journeys that an
                       exception of the scenario ended), first_exception, send_lag_p99_ns,
                       send_lag_limit_ns, cpu_p95 (share of one core), clock, remarks (what to know
                       of the streams, as sentences), and checks: each
                       name, stage (null: the whole run), measured, must, ok, why, remedy,
                       target_caused, scenario_caused, from_load (a busy generator: what failed
                       whatever it did still breaks an error_rate or a goodput)
    since              since when the limit is missed: t_s, stage, offset_s, and the flagged of all
                       windows; or null
    drifts             what was not steady: kind ("overload", "trend", "warm-up"), stage, subject,
                       t_s (an overload's begin, a warm-up's end), ratio, arrived_per_s,
                       ended_per_s, growth_ns_per_s, sentence
    aborted            why the load was ended early: t_s, why, budget, stage, over, allowed,
                       planned; or null
    slow_step          which step makes slow journeys slow: step, share, root, stage; or null
    stages             name, start_s, end_s, record, load, planned_rate_per_s, max_in_flight,
                       repeat (which repetition of the load), ramp_s (how long the users of a
                       closed load took to start), and totals: planned, sent, finished,
                       failed, dropped, cut_off, waited, max_in_flight, max_waiting, token_events,
                       merged (token events whose stamp is the end of an interval: more came in
                       the same read), replies (of a model, without an error), streams (of
                       them, those of two token events or more), lumped (streams that came in
                       one read), empty (no token), unfinished (no finish_reason),
                       raised, backed_off (failed rounds that a pause followed)
    steps              one per recorded stage and step: stage, step, n, failed, good (met every
                       latency budget), failures {kind: count}, and metrics {name: {unit ("ms",
                       "tokens" or "usd"), n, mean, p50, p95, p99, p99.9, max}}
    costs              prices (as the plan has them), confidence (of each end), and steps: one per
                       recorded stage and step with model calls: stage, step, n, input_tokens and
                       output_tokens (means), and in US dollars request, thousand and month, each
                       mean, low, high; month is null without monthly_requests. Null without prices

A percentile is left out where a sample of that size has none: p50 below 2 samples, p95 below 20,
p99 below 100, p99.9 below 1,000.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from numbers import Integral
from typing import Any

from harness.cost import Cost
from harness.metrics import METRICS, Kind
from harness.recorder import Histogram, Recording
from harness.report.facts import Costs, Findings
from harness.stats import supported
from harness.units import NANO
from harness.verdict import BudgetVerdict, Verdict

SCHEMA_VERSION = 1  # 1: first

UNITS: dict[Kind, str] = {
    "time": "ns",
    "tokens": "tokens",
    "share": "share",
    "rate": "per_s",
    "money": "nano_usd",
}
_COARSE: dict[Kind, tuple[str, int]] = {"tokens": ("tokens", 1), "money": ("usd", NANO)}
_RUN_KEYS = (
    "id",
    "name",
    "target",
    "commit",
    "seed",
    "workers",
    "harness",
    "scenario",
    "status",
    "started_at",
    "ended_at",
    "started_unix_s",
    "interval_s",
    "drain_s",
    "timeout_s",
    "clock",
    "machine",
)
_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
_NS_PER_MS = 1_000_000


def verdict_json(recording: Recording, verdict: Verdict, findings: Findings) -> dict[str, Any]:
    """Return what `json.dumps(..., allow_nan=False)` takes; see the module for its keys."""
    whole = {
        "schema_version": SCHEMA_VERSION,
        "outcome": str(verdict.outcome),
        "exit_code": int(verdict.exit_code),
        "sentence": verdict.sentence,
        "detail": verdict.detail,
        "judged_by": verdict.judged_by,
        "tallies": {str(outcome): n for outcome, n in verdict.tallies().items()},
        "run": _run(recording),
        "budgets": [_budget(row) for row in verdict.budgets],
        "health": {**asdict(verdict.health), "valid": verdict.health.valid},
        "since": asdict(findings.since) if findings.since else None,
        "drifts": [asdict(drift) for drift in findings.drifts],
        "aborted": recording.run.get("aborted"),
        "slow_step": asdict(findings.slow_step) if findings.slow_step else None,
        "stages": [
            {**asdict(stage), "totals": asdict(recording.load_totals(stage.name))}
            for stage in recording.stages
        ],
        "steps": list(_steps(recording)),
        "costs": _costs(findings.costs) if findings.costs else None,
    }
    found: dict[str, Any] = plain(whole)
    return found


def _run(recording: Recording) -> dict[str, Any]:
    known = {key: recording.run[key] for key in _RUN_KEYS if key in recording.run}
    return {**known, "folder": recording.folder.name}


def _budget(row: BudgetVerdict) -> dict[str, Any]:
    own = asdict(row.budget)
    judged = asdict(row)
    del judged["budget"]
    return {
        **own,
        "declared_stage": own["stage"],
        "unit": UNITS[row.budget.kind],
        **judged,
        "sentence": row.sentence,
        "evidence": row.evidence,
    }


def _steps(recording: Recording) -> Iterator[dict[str, Any]]:
    for stage in recording.stages:
        for step in recording.steps(stage.name) if stage.record else ():
            requests = recording.requests(stage.name, step)
            yield {
                "stage": stage.name,
                "step": step,
                "n": requests.n,
                "failed": requests.n_failed,
                "good": requests.n_good,
                "failures": requests.kinds,
                "metrics": {
                    metric: _metric(metric, series.total)
                    for metric in recording.metrics(stage.name, step)
                    if (series := recording.series(stage.name, step, metric)) is not None
                },
            }


def _metric(metric: str, histogram: Histogram) -> dict[str, Any]:
    kind = METRICS[metric].kind if metric in METRICS else "time"
    unit, size = _COARSE.get(kind, ("ms", _NS_PER_MS))

    def scaled(value: float | None) -> float | None:
        return value if size == 1 or value is None else value / size

    return {
        "unit": unit,
        "n": histogram.n,
        "mean": scaled(histogram.mean),
        **{
            name: scaled(histogram.quantile(q))
            for name, q in _PERCENTILES.items()
            if supported(histogram.n, q)
        },
        "max": scaled(histogram.max),
    }


def _costs(costs: Costs) -> dict[str, Any]:
    return {
        "prices": costs.prices,
        "confidence": costs.confidence,
        "steps": [
            {
                "stage": table.stage,
                "step": row.step,
                "n": row.n,
                "input_tokens": row.input_tokens,
                "output_tokens": row.output_tokens,
                "request": _dollars(row.request),
                "thousand": _dollars(row.thousand),
                "month": _dollars(row.month) if row.month else None,
            }
            for table in costs.tables
            for row in table.rows
        ],
    }


def _dollars(cost: Cost) -> dict[str, float | None]:
    return asdict(cost.of(1 / NANO))


def plain(value: Any) -> Any:
    """Make a value JSON's own: plain containers and numbers, null for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, Integral) else str(value)
