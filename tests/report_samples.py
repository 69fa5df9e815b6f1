"""Synthetic runs whose truth is known, for the tests of the renderers.

`SAMPLES` maps a name to a function that returns `(recording, verdict)`: the same two values that
a renderer gets after a real run. Every sample is drawn from a fixed seed.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from harness.budget import Budget, goodput_limits, parse_budget
from harness.recorder import (
    Limits,
    Recorder,
    Recording,
    RunFolder,
    StageWindow,
    StepSpan,
    load_recording,
)
from harness.verdict import Verdict, judge

MS = 1_000_000
S = 1_000_000_000


# --- the builder ---------------------------------------------------------------------------------


_SPAN = ("step", "start_ns", "end_ns", "failure", "detail")


class Build:
    """Collects requests and journeys of a pretended run, then records them as a worker would."""

    def __init__(
        self,
        stages: Sequence[StageWindow],
        *,
        name: str = "checkout-assistant",
        budgets: Sequence[Budget] = (),
        sent_share: Mapping[str, float] | None = None,
    ) -> None:
        self.stages = tuple(stages)
        self.name = name
        self.budgets = tuple(budgets)
        self.sent_share = dict(sent_share or {})
        self.ended: dict[int, list[Callable[[Recorder], object]]] = defaultdict(list)
        self.held: dict[int, int] = defaultdict(int)

    def at(self, t_s: float, what: Callable[[Recorder], object]) -> None:
        """Let `what` be recorded in the interval that holds `t_s`."""
        self.ended[int(t_s)].append(what)

    def step(
        self, stage: str, step: str, end_s: float, failure: str | None = None, **metrics: int
    ) -> None:
        """One execution of a step that ended at `end_s`, with its metrics in ns or tokens."""
        self.at(end_s, lambda r: r.request(stage, step, metrics, failure=failure))

    def journey(
        self,
        stage: str,
        root: str,
        t_s: float,
        duration_ns: int,
        steps: Sequence[StepSpan],
        failure: str | None = None,
        **metrics: int,
    ) -> None:
        """A whole task: its arrival, its steps and its end."""
        end_s = t_s + duration_ns / S
        row = {
            "stage": stage,
            "root": root,
            "t_s": t_s,
            "duration_ns": duration_ns,
            "ok": failure is None,
            "steps": [{name: getattr(step, name) for name in _SPAN} for step in steps],
        }
        self.at(t_s, lambda r: _count(r.load(stage), "planned", "sent"))
        self.at(end_s, lambda r: r.journey(row))
        ended = ("finished", "failed") if failure else ("finished",)
        self.at(end_s, lambda r: _count(r.load(stage), *ended))
        for second in range(int(t_s), int(end_s) + 1):
            self.held[second] += 1
        if failure is None:
            metrics = {"e2el": duration_ns, "send_lag": 1_400_000, **metrics}
        self.step(stage, root, end_s, failure, **({} if failure else metrics))

    def recording(self) -> Recording:
        """Write a run folder and read it back."""
        folder = RunFolder.create(Path(tempfile.mkdtemp(dir=_folders())) / "run-418", self.run())
        folder.begin(1_795_183_320.0)
        recorder = Recorder(limits_of(self.budgets), seed=1)
        for index in range(max([*self.ended, int(self.stages[-1].end_s) - 1]) + 1):
            for what in self.ended.get(index, ()):
                what(recorder)
            stage = next((s for s in self.stages if s.start_s <= index < s.end_s), None)
            if stage:
                load = recorder.load(stage.name)
                lost = round(load.sent * (1 / self.sent_share.get(stage.name, 1.0) - 1))
                load.planned += lost
                load.dropped += lost
                load.in_flight = self.held[index]
            folder.append(recorder.flush(index, cpu=0.61))
        folder.close()
        folder.update(status="complete")
        return load_recording(folder.path)

    def run(self) -> dict[str, Any]:
        return {
            "harness": "0.1.0",
            "name": self.name,
            "id": "20261120-140200",
            "target": {"url": "https://chat-prod-eu/v1", "api": "openai-chat", "model": "tiny"},
            "stages": [asdict(stage) for stage in self.stages],
            "budgets": [{"text": b.text, "confidence": b.confidence} for b in self.budgets],
            "interval_s": 1.0,
            "seed": 7,
            "scenario": {"file": "chat.py", "sha256": "5e1f" * 16},
            "commit": "3f9c2ab",
            "clock": "monotonic, 1 host",
        }


@cache
def _folders() -> str:
    """One folder for all pretended runs of this process, removed when it ends."""
    path = tempfile.mkdtemp(prefix="report-samples-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _count(load: Any, *names: str) -> None:
    for name in names:
        setattr(load, name, getattr(load, name) + 1)


def limits_of(budgets: Sequence[Budget]) -> Limits:
    """What the recorder must count exactly for these budgets."""
    tops: dict[tuple[str, str], set[int]] = defaultdict(set)
    for budget in budgets:
        if budget.kind in ("time", "tokens"):
            tops[budget.step, budget.metric].add(budget.threshold)
    return Limits(
        thresholds={where: tuple(sorted(values)) for where, values in tops.items()},
        good=lambda stage, step: goodput_limits(budgets, step, stage=stage),
    )


# --- the samples ---------------------------------------------------------------------------------

STAGES = (
    StageWindow("warmup", 0, 60, False, "poisson 10/s", 10.0),
    StageWindow("steady", 60, 360, True, "poisson 20/s", 20.0),
    StageWindow("spike", 360, 560, True, "poisson 60/s", 60.0),
)
BUDGETS = (
    ("chat.ttft p99 < 800ms", None),
    ("answer.e2el p99 < 5s", None),
    ("answer/rerank.e2el p99.9 < 420ms", "spike"),
    ("answer/retrieve.e2el p95 < 150ms", "steady"),
    ("chat.tpot p95 < 45ms", "steady"),
    ("run.error_rate < 3%", "spike"),
    ("answer.goodput >= 95%", "steady"),
)
WORSE_FROM_S = 368.0  # the truth: from here on chat and answer/generate are slower


def _lognormal(rng: np.random.Generator, median_ms: float, sigma: float) -> int:
    return int(median_ms * MS * np.exp(sigma * rng.standard_normal()))


def _chat(build: Build, rng: np.random.Generator, stage: str, t: float, worse: float) -> None:
    ttft = _lognormal(rng, 270 * (1.25 * worse if worse > 1 else 1), 0.33)
    tokens = int(rng.integers(20, 160))
    tpot = _lognormal(rng, 30, 0.09)
    end = ttft + tpot * tokens
    failure = _failure(rng, worse)
    span = StepSpan("chat", 0, end, failure, {"ttft_ns": ttft})
    build.journey(
        stage, "chat", t, end, [span], failure, ttft=ttft, tpot=tpot, output_tokens=tokens
    )


def _failure(rng: np.random.Generator, worse: float) -> str | None:
    if rng.random() >= (0.018 if worse > 1 else 0.0015):
        return None
    return str(rng.choice(["status 429", "truncated stream", "timeout"], p=[0.7, 0.15, 0.15]))


def _answer(
    build: Build,
    rng: np.random.Generator,
    stage: str,
    t: float,
    worse: float,
    steps: Sequence[tuple[str, float, float]],
) -> None:
    at, spans = 2 * MS, []
    for step, median_ms, sigma in steps:
        slow = worse if step.endswith("generate") else 1.0
        length = _lognormal(rng, median_ms * slow, sigma)
        spans.append(StepSpan(step, at, at + length, None, {}))
        at += length
        build.step(stage, step, t + at / S, e2el=length)
        at += 4 * MS
    build.journey(stage, "answer", t, at, spans, _failure(rng, worse))


def from_second(start_s: float, factor: float) -> Callable[[float], float]:
    """A step function: `factor` from `start_s` on, 1 before."""
    return lambda t_s: factor if t_s >= start_s else 1.0


STEPS = (("answer/retrieve", 86, 0.2), ("answer/rerank", 130, 0.25), ("answer/generate", 1840, 0.3))


def build(
    *,
    worse: Callable[[float], float] = lambda t_s: 1.0,
    stages: Sequence[StageWindow] = STAGES,
    seed: int = 1,
    steps: Sequence[tuple[str, float, float]] = STEPS,
    name: str = "checkout-assistant",
    chosen: Sequence[Budget] = (),
    sent_share: Mapping[str, float] | None = None,
) -> Recording:
    """A run of chats (60 %) and answers whose latency is `worse(t_s)` times as long."""
    rng = np.random.default_rng(seed)
    b = Build(stages, name=name, budgets=chosen, sent_share=sent_share)
    for stage in stages:
        rate = (stage.planned_rate_per_s or 20.0) * b.sent_share.get(stage.name, 1.0)
        n = rng.poisson(rate * (stage.end_s - stage.start_s))
        for t in np.sort(rng.uniform(stage.start_s, stage.end_s, n)):
            factor = worse(float(t))
            if rng.random() < 0.6:
                _chat(b, rng, stage.name, float(t), factor)
            else:
                _answer(b, rng, stage.name, float(t), factor, steps)
    return b.recording()


def budgets(texts: Iterable[tuple[str, str | None]] = BUDGETS) -> tuple[Budget, ...]:
    return tuple(parse_budget(text, stage=stage) for text, stage in texts)


@cache
def failing() -> tuple[Recording, Verdict]:
    """FAIL: chat.ttft and answer.e2el break from 6:08 on, 8 s into the spike."""
    recording = build(worse=from_second(WORSE_FROM_S, 1.7), chosen=budgets())
    return recording, judge(recording, budgets())


@cache
def _calm() -> Recording:
    """A run in which nothing gets worse; judged by some budgets it passes, by others not."""
    return build(chosen=budgets())


@cache
def passing() -> tuple[Recording, Verdict]:
    """PASS: every budget holds, the closest uses most of its limit."""
    return _calm(), judge(_calm(), budgets([b for b in BUDGETS if "p99.9" not in b[0]]))


@cache
def invalid() -> tuple[Recording, Verdict]:
    """INVALID: in the spike the generator sent 71 % of its plan."""
    chosen = budgets([b for b in BUDGETS if "p99.9" not in b[0]])
    recording = build(chosen=chosen, sent_share={"spike": 0.71})
    return recording, judge(recording, chosen)


@cache
def inconclusive() -> tuple[Recording, Verdict]:
    """INCONCLUSIVE: p99.9 of too few samples has no upper end."""
    return _calm(), judge(_calm(), budgets(BUDGETS[2:]))


@cache
def no_data() -> tuple[Recording, Verdict]:
    """NO DATA: 600 requests, each refused."""
    chosen = budgets([("chat.ttft p99 < 800ms", None)])
    b = Build([StageWindow("steady", 0, 30, True, "constant 20/s", 20.0)], budgets=chosen)
    for i in range(600):
        b.journey("steady", "chat", i / 20, MS, [StepSpan("chat", 0, MS, "connect", {})], "connect")
    recording = b.recording()
    return recording, judge(recording, chosen)


@cache
def many_steps() -> tuple[Recording, Verdict]:
    """200 steps with long names and 40 budgets; one step breaks."""
    names = [
        f"answer/tool_call_customer_order_policy_check_v2/step_{i:03}_retrieve"
        if i % 3
        else f"answer/plan/step_{i:03}"
        for i in range(199)
    ]
    steps = [(n, 10.0 + i % 7, 0.4) for i, n in enumerate(names)] + [("answer/generate", 800, 0.3)]
    stages = (StageWindow("spike", 0, 60, True, "poisson 50/s", 50.0),)
    texts = [(f"{n}.e2el p95 < 40ms", "spike") for n in names[:38]]
    texts += [("answer/generate.e2el p95 < 1500ms", "spike"), ("chat.ttft p99 < 800ms", "spike")]
    chosen = budgets(texts)
    recording = build(
        worse=from_second(4, 2.5),
        steps=steps,
        stages=stages,
        chosen=chosen,
        name="customer-support-agent-with-tools-and-policy-guardrails-eu-west",
    )
    return recording, judge(recording, chosen)


@cache
def tiny() -> tuple[Recording, Verdict]:
    """12 s with about 40 requests: most charts have too little data."""
    chosen = budgets([("chat.ttft p95 < 800ms", None)])
    stages = [StageWindow("steady", 0, 12, True, "constant 3/s", 3.4)]
    recording = build(stages=stages, seed=3, chosen=chosen)
    return recording, judge(recording, chosen)


@cache
def sweep() -> tuple[Recording, Verdict]:
    """Five load levels of 150 s; chat.ttft breaks its limit from the fourth on."""
    chosen = budgets(
        [
            ("chat.ttft p95 < 800ms", None),
            ("run.rate > 1/s", None),
            ("chat.tpot mean < 1s", None),
            ("chat.e2el max < 5s", None),
            ("chat.output_tokens p50 >= 20", None),
        ]
    )
    stages = [
        StageWindow(f"level-{i + 1}", 150 * i, 150 * i + 150, True, f"constant {r}/s", r)
        for i, r in enumerate((10.0, 20.0, 30.0, 40.0, 50.0))
    ]
    recording = build(
        stages=stages,
        chosen=chosen,
        seed=4,
        worse=lambda t_s: (1.0, 1.05, 1.2, 1.9, 3.0)[int(t_s // 150)],
    )
    return recording, judge(recording, chosen)


@cache
def users() -> tuple[Recording, Verdict]:
    """A closed model: 40 users, no planned rate, no budgets."""
    stages = [StageWindow("steady", 0, 90, True, "40 users", None)]
    recording = build(stages=stages, seed=5)
    return recording, judge(recording, ())


@cache
def steady() -> tuple[Recording, Verdict]:
    """Every request takes the same 3 ms, far from its limit, and the load ends early."""
    chosen = budgets([("chat.ttft p99 < 800ms", None)])
    b = Build([StageWindow("steady", 0, 30, True, "constant 20/s", 20.0)], budgets=chosen)
    for i in range(500):
        span = StepSpan("chat", 0, 5 * MS, None, {})
        b.journey("steady", "chat", i / 20, 5 * MS, [span], None, ttft=3 * MS)
    recording = b.recording()
    return recording, judge(recording, chosen)


@cache
def repeated() -> tuple[Recording, Verdict]:
    """Four repetitions of one load; the target differs between them by more than within."""
    chosen = budgets([("chat.ttft p50 < 300ms", None), ("chat.error_rate < 3%", None)])
    stages = [
        StageWindow(name, 40 * i, 40 * i + 40, True, "poisson 30/s", 30.0, repeat=i + 1)
        for i, name in enumerate(("steady", "steady~2", "steady~3", "steady~4"))
    ]
    factors = (1.0, 1.0, 0.95, 1.35)
    recording = build(
        stages=stages, chosen=chosen, seed=8, worse=lambda t_s: factors[min(3, int(t_s // 40))]
    )
    return recording, judge(recording, chosen)


@cache
def overloaded() -> tuple[Recording, Verdict]:
    """From 1:00 on 30 requests a second arrive at a target that completes 25."""
    chosen = budgets([("chat.e2el p95 < 1s", None)])
    stages = [
        StageWindow("steady", 0, 60, True, "poisson 10/s", 10.0),
        StageWindow("spike", 60, 120, True, "poisson 30/s", 30.0),
    ]
    rng = np.random.default_rng(3)
    b, free_s = Build(stages, budgets=chosen), 0.0
    for stage in stages:
        n = rng.poisson((stage.planned_rate_per_s or 0) * 60)
        for t_s in np.sort(rng.uniform(stage.start_s, stage.end_s, n)).tolist():
            free_s = max(free_s, t_s) + 0.04 * float(rng.uniform(0.8, 1.2))
            length = int((free_s - t_s) * S)
            span = StepSpan("chat", 0, length, None, {})
            b.journey(stage.name, "chat", t_s, length, [span], ttft=length // 2)
    recording = b.recording()
    return recording, judge(recording, chosen)


HOSTILE = "<script>alert(1)</script>$x$"


@cache
def hostile() -> tuple[Recording, Verdict]:
    """Names that would break a page or a chart if they were not escaped."""
    steps = (
        ("answer/<script>alert(1)</script>", 90, 0.2),
        ("answer/$x$ & $y$", 300, 0.3),
        ("answer/検索\n\x1b[31m🔥", 20, 0.2),
    )
    stages = [StageWindow("<b>$s$</b>", 0, 40, True, "poisson 75/s", 75.0)]
    chosen = budgets([("answer.e2el p95 < 5s", None)])
    recording = build(stages=stages, steps=steps, name=HOSTILE, chosen=chosen)
    return recording, judge(recording, chosen)


SAMPLES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "pass": passing,
    "fail": failing,
    "invalid": invalid,
    "inconclusive": inconclusive,
    "no-data": no_data,
    "many-steps": many_steps,
    "tiny": tiny,
    "hostile": hostile,
    "sweep": sweep,
    "users": users,
    "steady": steady,
    "repeated": repeated,
    "overloaded": overloaded,
}
