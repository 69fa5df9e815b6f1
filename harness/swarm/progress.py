"""What the live view shows, computed by the parent from the reports as they come in."""

from __future__ import annotations

import operator
from collections import defaultdict, deque
from typing import Any

from harness.budget import RUN, Budget
from harness.metrics import format_value
from harness.plan import Plan
from harness.recorder import Histogram, Load, Report, StageWindow
from harness.stats import supported
from harness.units import format_share

_RATE_WINDOW_S = 5.0
_OPS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class Progress:
    """Keeps running totals of a load; `update` returns the view's next picture."""

    def __init__(self, plan: Plan, stages: tuple[StageWindow, ...], interval_s: float) -> None:
        self._plan, self._interval_s = plan, interval_s
        self._recorded: set[str] = set()
        self._merged: dict[tuple[str, str], Histogram] = {}
        self._finished: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        self._recent: deque[tuple[int, int]] = deque(
            maxlen=max(1, round(_RATE_WINDOW_S / interval_s))
        )
        self._errors = self._done = 0
        self._wanted = {(b.step, b.metric) for b in plan.budgets if b.statistic}
        self.begin(1, stages)

    def begin(self, number: int, stages: tuple[StageWindow, ...]) -> None:
        """Go on with a repetition of the load, whose clock starts anew."""
        self._repetition, self._stages = number, stages
        self._recorded |= {stage.name for stage in stages if stage.record}
        self._recent.clear()

    def update(self, report: Report) -> dict[str, Any]:
        """Add one interval; returns the state of the run at its end."""
        self._add(report)
        now_s = (report.index + 1) * self._interval_s
        stage = next((s for s in self._stages if now_s < s.end_s), self._stages[-1])
        begin_s, end_s = self._stages[0].start_s, self._stages[-1].end_s
        loads = list(report.load.values())
        last = Load(
            in_flight=max((load.in_flight for load in loads), default=0),
            waiting=max((load.waiting for load in loads), default=0),
        )
        window_s = len(self._recent) * self._interval_s
        return {
            "type": "progress",
            "repetition": self._repetition,
            "repetitions": self._plan.repeat,
            "t_s": now_s - begin_s,
            "total_s": end_s - begin_s,
            "stage": stage.group,
            "stage_left_s": max(0.0, stage.end_s - now_s),
            "record": stage.record,
            "draining": now_s > end_s,
            "planned_rate": sum(planned for planned, _ in self._recent) / window_s,
            "sent_rate": sum(sent for _, sent in self._recent) / window_s,
            "in_flight": last.in_flight,
            "waiting": last.waiting,
            "errors": self._errors,
            "finished": self._done,
            "budgets": [self._row(budget) for budget in self._plan.budgets],
        }

    def _add(self, report: Report) -> None:
        loads = report.load.values()
        self._recent.append((sum(x.planned for x in loads), sum(x.sent for x in loads)))
        self._errors += sum(x.failed for x in loads)
        self._done += sum(x.finished for x in loads)
        for (stage, step, metric), measured in report.measured.items():
            if stage in self._recorded:
                for name in {step, *([] if "/" in step else [RUN])}:
                    if (name, metric) in self._wanted:
                        known = self._merged.get((name, metric))
                        parts = [measured.histogram, *([known] if known else [])]
                        self._merged[name, metric] = Histogram.merged(parts)
        for (stage, step), outcome in report.finished.items():
            if stage in self._recorded:
                for name in {step, *([] if "/" in step else [RUN])}:
                    self._finished[name][0] += outcome.total
                    self._finished[name][1] += sum(outcome.kinds.values())
                    self._finished[name][2] += outcome.good

    def _row(self, budget: Budget) -> dict[str, Any]:
        """One budget so far; all recorded stages together, which the verdict keeps apart."""
        total, failed, good = self._finished[budget.step]
        now: str | None = None
        ok: bool | None = None
        n = total
        if budget.metric in ("error_rate", "goodput") and total and not budget.regression:
            share = (good if budget.metric == "goodput" else failed) / total
            now, ok = format_share(share), _OPS[budget.op](share, budget.limit)
        histogram = self._merged.get((budget.step, budget.metric))
        if histogram is not None and not budget.regression:
            n = histogram.n
            value = _statistic(budget, histogram)
            if value is not None:
                ok = (value <= budget.threshold) == budget.upper
                now = format_value(value, budget.kind, budget.time_unit)
        return {"text": budget.text, "now": now, "limit": budget.limit_text, "ok": ok, "n": n}


def _statistic(budget: Budget, histogram: Histogram) -> float | None:
    if budget.quantile is not None:
        shown = supported(histogram.n, budget.quantile)
        return histogram.quantile(budget.quantile) if shown else None
    return histogram.mean if budget.statistic == "mean" else histogram.max
