"""May two runs be compared? What differs between them, and which of it was meant to.

Comparing is for what the target, the model or their parameters change. Whatever else shapes a
latency (load, inputs, scenario, machine, clock) must be the same. That the client was another
version is said, since its own share of a latency may have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import yaml

from harness.health import Check, Health
from harness.recorder import Recording, StageWindow
from harness.units import format_count, format_duration

_GIB = 1 << 30
_CLIENT = ("python", "locust", "gevent", "httpx")  # what sends and stamps
_OTHER_CLIENT = (
    "it may send, stamp and count tokens otherwise: to trust a small change, measure the baseline "
    "again with this one"
)


class Weight(Enum):
    """What a difference means for a comparison."""

    MEANT = "meant to differ"
    NOTED = "may differ"
    FORBIDS = "must not differ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlike:
    """One thing in which two runs differ; `stage` is None where it concerns the whole of both."""

    what: str
    base: str
    candidate: str
    weight: Weight
    remedy: str = ""
    stage: str | None = None

    def __str__(self) -> str:
        where = f" in {self.stage}" if self.stage else ""
        text = f"{self.what}{where}: {self.base} in the baseline, {self.candidate} now"
        return f"{text}; {self.remedy}" if self.remedy else text


def unlike(base: Recording, candidate: Recording) -> tuple[Unlike, ...]:
    """Return all in which two runs differ, what forbids a comparison first."""
    parts = _of_runs, _of_clients, _of_plans, _of_stages
    found = [one for part in parts for one in part(base, candidate)]
    return tuple(sorted(found, key=lambda one: -list(Weight).index(one.weight)))


def unfit(health: Health, stages: Iterable[StageWindow]) -> str:
    """Say why a run's measurement of these stages is not fit to compare; empty when it is."""
    broken = next((check for stage in stages for check in health.broken(stage.name)), None)
    return unfit_because(broken) if broken else ""


def unfit_because(broken: Check) -> str:
    """Say what a check found and what it should have, within a sentence."""
    return f"{broken.name[0].lower()}{broken.name[1:]} {broken.measured}, must be {broken.must}"


def _of_runs(base: Recording, candidate: Recording) -> Iterator[Unlike]:
    meant, noted, forbids = Weight.MEANT, Weight.NOTED, Weight.FORBIDS
    repeat = "measure the baseline again, on this machine"
    rows: list[tuple[str, tuple[str, ...], Weight, str]] = [
        ("target", ("target", "url"), meant, ""),
        ("model", ("target", "model"), meant, ""),
        ("commit", ("commit",), meant, ""),
        ("API", ("target", "api"), forbids, "tokens and failures are told otherwise by another"),
        ("scenario (SHA-256)", ("scenario", "sha256"), forbids, "play the same one against both"),
        ("inputs (SHA-256)", ("inputs", "sha256"), forbids, "send the same to both"),
        ("timeout", ("timeout_s",), forbids, "use the same"),
        ("clock", ("clock",), forbids, repeat),
        ("prices", ("prices",), meant, ""),
        ("seed", ("seed",), noted, ""),
        ("workers", ("workers",), noted, ""),
    ]
    for what, path, weight, remedy in rows:
        one, other = (_at(run.run, path) for run in (base, candidate))
        if one != other and not (path[0] == "inputs" and None in (one, other)):
            yield Unlike(
                what=what, base=_said(one), candidate=_said(other), weight=weight, remedy=remedy
            )
    machines = _machine(base), _machine(candidate)
    if machines[0] != machines[1]:
        yield Unlike(
            what="machine",
            base=machines[0],
            candidate=machines[1],
            weight=forbids,
            remedy=repeat,
        )


def _of_clients(base: Recording, candidate: Recording) -> Iterator[Unlike]:
    """Name what the two clients were made of, where they were not made of the same.

    Both runs are of one schema, so that every figure means the same; whether their clients send,
    stamp and count alike is not known.
    """
    ones, others = (
        {"harness": _at(run.run, ("harness",))}
        | {name: _at(run.run, ("versions", name)) for name in _CLIENT}
        for run in (base, candidate)
    )
    apart = [name for name in ones if ones[name] != others[name]]
    if apart:
        one, other = (", ".join(f"{n} {_said(of[n])}" for n in apart) for of in (ones, others))
        yield Unlike(
            what="client", base=one, candidate=other, weight=Weight.NOTED, remedy=_OTHER_CLIENT
        )


def _of_plans(base: Recording, candidate: Recording) -> Iterator[Unlike]:
    one, other = _plan(base), _plan(candidate)
    for what, key, weight in (
        ("parameters", "params", Weight.MEANT),
        ("path", "path", Weight.MEANT),
        ("headers", "headers", Weight.MEANT),
    ):
        values = tuple(_at(plan, ("target", key)) for plan in (one, other))
        if values[0] != values[1]:
            yield _of_values(what, values, weight)
    embedded = one.get("embedded"), other.get("embedded")
    if embedded[0] != embedded[1]:
        yield _of_values("embedded endpoint", embedded, Weight.MEANT)
    inputs = _inputs(one), _inputs(other)
    if inputs[0] != inputs[1] and not _same_inputs(base, candidate):
        yield _of_values("inputs", inputs, Weight.FORBIDS)


def _of_values(what: str, values: tuple[Any, Any], weight: Weight) -> Unlike:
    return Unlike(what=what, base=_said(values[0]), candidate=_said(values[1]), weight=weight)


def _of_stages(base: Recording, candidate: Recording) -> Iterator[Unlike]:
    ones, others = _recorded(base), _recorded(candidate)
    for name in {**ones, **others}:
        one, other = ones.get(name), others.get(name)
        if one is None or other is None:
            yield Unlike(
                what="recorded",
                base="yes" if one else "no",
                candidate="yes" if other else "no",
                weight=Weight.NOTED,
                stage=name,
            )
            continue
        loads = _load(one), _load(other)
        if loads[0] != loads[1]:
            yield Unlike(
                what="load",
                base=loads[0],
                candidate=loads[1],
                weight=Weight.FORBIDS,
                stage=name,
                remedy="latency depends on it: put the same load on both",
            )
        lengths = one.end_s - one.start_s, other.end_s - other.start_s
        if lengths[0] != lengths[1]:
            yield Unlike(
                what="duration",
                base=format_duration(lengths[0] * 1e9),
                candidate=format_duration(lengths[1] * 1e9),
                weight=Weight.NOTED,
                stage=name,
            )


def _recorded(run: Recording) -> dict[str, StageWindow]:
    """Return the first repetition of each recorded stage by its declared name."""
    return {stage.group: stage for stage in run.stages if stage.record and stage.repeat == 1}


def _load(stage: StageWindow) -> str:
    most = stage.max_in_flight
    return stage.load if most is None else f"{stage.load}, {format_count(most)} in flight at most"


def _machine(run: Recording) -> str:
    machine = run.run.get("machine")
    if not isinstance(machine, Mapping):
        return "unknown"
    memory = machine.get("memory_bytes")
    size = f", {memory / _GIB:.0f} GiB" if isinstance(memory, int) else ""
    return f"{machine.get('system')}, {machine.get('cores')} cores{size}"


def _plan(run: Recording) -> dict[str, Any]:
    """Return the plan as written; empty where run.json holds none that can be read."""
    try:
        plan = yaml.safe_load(str(run.run.get("plan") or ""))
    except yaml.YAMLError:
        return {}
    return plan if isinstance(plan, dict) else {}


def _inputs(plan: Mapping[str, Any]) -> object:
    inputs = plan.get("inputs")
    return inputs.get("file") if isinstance(inputs, Mapping) else inputs


def _same_inputs(base: Recording, candidate: Recording) -> bool:
    """Whether the inputs' contents are known to be the same, wherever their files stand."""
    one, other = (_at(run.run, ("inputs", "sha256")) for run in (base, candidate))
    return one is not None and one == other


def _at(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return what stands at a path of keys, None where nothing does."""
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _said(value: Any) -> str:
    return "none" if value is None else str(value)
