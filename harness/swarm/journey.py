"""A task's execution as a journey through named steps, and the place in it where code runs.

A journey begins at its planned arrival; so does the first step at its root. Every later step begins
when the scenario enters it. A step that raises, or whose request fails, is counted as failed by the
kind of failure and leaves no latency among the successes.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ContextDecorator
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import gevent
import httpx
import numpy as np
from locust.exception import (
    InterruptTaskSet,
    RescheduleTask,
    RescheduleTaskImmediately,
    StopUser,
)

from harness import apis
from harness.budget import RUN, SEGMENT
from harness.errors import RequestFailed, UserError
from harness.inputs import Inputs
from harness.limits import kind_of, limit_met
from harness.masking import mask_query
from harness.swarm.short import Shapes
from harness.transport import RequestHead, Stamps, Transport
from harness.wire import Ends

if TYPE_CHECKING:
    from harness.cost import PriceTable
    from harness.plan import Target
    from harness.recorder import Load, Recorder
    from harness.swarm.dispatch import Arrival

CONTROL_FLOW = (StopUser, InterruptTaskSet, RescheduleTask, RescheduleTaskImmediately)
"""What Locust raises to steer a user; no failure."""

_NOT_THE_SCENARIOS = (RequestFailed, httpx.HTTPError, gevent.Timeout, gevent.GreenletExit)
"""What fails a journey and is no mistake in the code of its task."""
_NOTHING = Decimal(0)


class ArrivalSource(Protocol):
    """Where users get their work from."""

    def take(self, user_class: str) -> Arrival:
        """Block until an arrival is due for a user of this class."""

    def done(self, user_class: str, arrival: Arrival, *, failed: bool, think_s: float = 0) -> None:
        """Take note of a finished arrival."""

    def cut_off(self, user_class: str, arrival: Arrival) -> None:
        """Take note of an arrival that the end of the run cut off."""


@dataclass(slots=True, kw_only=True)
class Run:
    """What the users of one process share; `environment.harness` holds it."""

    target: Target
    url: str
    recorder: Recorder
    transport: Transport
    inputs: Inputs | None
    rules: apis.ReplyRules = field(default_factory=apis.ReplyRules)
    seed: tuple[int, int]
    """The plan's seed and the worker's number: each arrival draws from a generator of its own."""
    rng: np.random.Generator
    """For what is drawn outside of tasks."""
    prices: PriceTable | None = None
    """None where nothing is reckoned: then no step has a cost."""
    dispatcher: ArrivalSource | None = None
    t0_ns: int = 0
    first_failure: str | None = None
    first_exception: str | None = None
    """The first exception of the scenario's own that ended a journey, and where it was raised."""
    retries: int = 0
    heads: dict[str, RequestHead] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=Shapes)
    reasoned: set[str] = field(default_factory=set)
    """The dialects in which the target has given a finish reason."""
    fed: set[str] = field(default_factory=set)
    """The dialects in which inputs are sent as they are."""
    logged: set[tuple[str, str]] = field(default_factory=set)
    """Kinds of errors in the scenario, by task, whose traceback is in the log."""
    asked: httpx.URL | None = None
    """Where the last model call went."""
    on_step: Callable[[Step, Journey], None] | None = None
    """Told of every finished step; plain Locust's statistics listen here."""


@dataclass(slots=True, eq=False)
class Step:
    """One execution of a named step. `fail` marks it as failed without raising."""

    name: str
    start_ns: int
    parent: Step | None = None
    end_ns: int | None = None
    limit_ns: int = 0
    """How long it lasted at least if its failure is a timeout."""
    failure: str | None = None
    url: httpx.URL | None = None
    """Where its last request went."""
    values: dict[str, int] = field(default_factory=dict)
    gaps: Sequence[int] = ()
    ends: Mapping[str, Ends] = field(default_factory=dict)
    """What a value of a time can be at the least and at the most, where its stamp is no point."""
    gap_ends: Sequence[Ends] | None = None
    reply: apis.Reply | None = None
    """That of its model call, if it had one and it did not fail."""
    cost: Decimal | None = _NOTHING
    """n$ so far, of its own call and of the steps inside it; None once one of them is unknown."""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """The URL of its last request as it may be shown; empty where it made none."""
        return "" if self.url is None else mask_query(str(self.url))

    def fail(self, kind: str, detail: str = "") -> None:
        """Count this execution as failed, by its kind (`invalid reply`, …)."""
        if self.failure is None:
            self.failure = kind
            if detail:
                self.detail["error"] = apis.excerpt(detail)


@dataclass(slots=True, eq=False)
class Journey:
    """One execution of a task, from its planned start on."""

    run: Run
    task: str
    stage: str
    planned_ns: int
    ready_ns: int
    number: int
    """Tells it from all others of its process, and with the run's seed says what it draws."""
    steps: list[Step] = field(default_factory=list)
    running: list[Step] = field(default_factory=list)
    calls: int = 0
    rooted: bool = False
    noted: BaseException | None = None
    """The last exception that failed a step."""
    _rng: Random | None = None

    @property
    def rng(self) -> Random:
        """What is drawn for it; made when it is asked for, since that takes long."""
        if self._rng is None:
            self._rng = Random(f"{self.run.seed} {self.number}")
        return self._rng

    def begin(self, name: str, parent: Step | None) -> Step:
        """Return a step that starts now; the first at the root starts at the planned arrival."""
        path = f"{parent.name}/{name}" if parent else name
        first = parent is None and not self.rooted
        self.rooted |= first
        step = Step(path, self.planned_ns if first else time.monotonic_ns(), parent)
        self.running.append(step)
        return step

    def fail(self, step: Step, error: BaseException) -> None:
        """Count a step as failed by an exception."""
        self.noted = error
        detail = error.detail if isinstance(error, RequestFailed) else str(error)
        step.fail(failure_kind(error), detail)

    def finish(self, step: Step) -> None:
        """Record a finished step; one that the end of the run has cut off already stays so."""
        if step not in self.running:
            return
        self.running.remove(step)
        self.steps.append(step)
        if step.end_ns is None:
            step.end_ns = time.monotonic_ns()
        elapsed_ns = step.end_ns - step.start_ns
        run = self.run
        if run.prices is not None:
            self._charge(step)
        if step.failure is None:
            step.values.setdefault("e2el", elapsed_ns)
            step.values["e2el_all"] = step.values["e2el"]
        else:
            least_ns = step.limit_ns if step.failure == "timeout" else 0
            step.values = {"e2el_all": max(elapsed_ns, least_ns)}
            step.ends, step.gap_ends = {}, None
            if step.url is not None:
                step.detail["url"] = step.asked
            if run.first_failure is None:
                said = f"{step.failure} {step.detail.get('error', '')}".strip()
                run.first_failure = f"{said}, asked {step.asked}" if step.url else said
        if step.reply is not None:
            count_reply(run.recorder.load(self.stage), step.reply)
        run.recorder.request(
            self.stage,
            step.name,
            step.values,
            ends=step.ends,
            series={"itl": step.gaps} if step.gaps and step.failure is None else None,
            series_ends={"itl": step.gap_ends} if step.gap_ends else {},
            failure=step.failure,
        )
        if run.on_step:
            run.on_step(step, self)

    def _charge(self, step: Step) -> None:
        """Add up what a finished step cost; what still runs inside it leaves that unknown."""
        if any(other.parent is step for other in self.running):
            step.cost = None
        if step.cost is not None:
            step.values["cost"] = round(step.cost)
        parent = step.parent
        if parent is not None and parent.cost is not None:
            parent.cost = None if step.cost is None else parent.cost + step.cost

    def call(self, step: str) -> int:
        """Return when the request that is about to be made was due, in ns."""
        self.calls += 1
        if self.calls > 1:
            return time.monotonic_ns()
        if self.ready_ns > self.planned_ns:
            waited_ns = self.ready_ns - self.planned_ns
            self.run.recorder.add(self.stage, step.partition("/")[0], "slot_wait", waited_ns)
        return max(self.planned_ns, self.ready_ns)

    def sent(self, step: str, stamps: Stamps, due_ns: int) -> None:
        """Record how late a request left, apart from waiting for a user and from connecting."""
        root = step.partition("/")[0]
        add = self.run.recorder.add
        if stamps.connect_ns:
            add(self.stage, root, "connect", stamps.connect_ns)
        add(self.stage, root, "send_lag", max(0, stamps.sent_ns - stamps.connect_ns - due_ns))
        self.run.retries += stamps.retries

    def end_with(self, error: BaseException) -> None:
        """Record the exception that ended the task: as a failed step of its name if no step has it.

        After a root step that succeeded the failure stands for that one, so that `run` counts the
        journey as failed, and once.
        What runs on in other greenlets when the end of the run cuts the task off is cut off too.
        """
        if isinstance(error, gevent.GreenletExit):
            for step in [*self.running]:
                self.fail(step, error)
                self.finish(step)
        causes = _causes(error)
        if not any(isinstance(cause, _NOT_THE_SCENARIOS) for cause in causes):
            self._count_exception(error)
        kinds = {step.failure for step in self.steps}
        if any(cause is self.noted or failure_kind(cause) in kinds for cause in causes):
            return
        roots = [step for step in self.steps if "/" not in step.name]
        this = self.begin(self.task, None)
        self.fail(this, error)
        self.finish(this)
        if roots and roots[-1].failure is None:
            success = roots[-1]
            self.run.recorder.replace(self.stage, this.name, success.name, success.values)

    def _count_exception(self, error: BaseException) -> None:
        """Count the journey as ended by the scenario's own code."""
        load = self.run.recorder.load(self.stage)
        load.raised += 1
        load.unsent += not self.calls
        if self.run.first_exception is None:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            said = ": ".join(filter(None, (type(error).__name__, str(error))))
            self.run.first_exception = (
                f"{apis.excerpt(said)} ({Path(frame.filename).name}:{frame.lineno})"
            )

    def close(self) -> bool:
        """Offer the journey to the recorder; returns whether every step succeeded."""
        end_ns = time.monotonic_ns()
        self.noted = None
        roots = [step.name for step in self.steps if "/" not in step.name]
        ok = all(step.failure is None for step in self.steps)
        self.run.recorder.journey(
            {
                "stage": self.stage,
                "root": roots[0] if len(roots) == 1 else self.task,
                "t_s": (self.planned_ns - self.run.t0_ns) / 1e9,
                "duration_ns": end_ns - self.planned_ns,
                "ok": ok,
                "steps": [
                    {
                        "step": step.name,
                        "start_ns": step.start_ns - self.planned_ns,
                        "end_ns": (step.end_ns or end_ns) - self.planned_ns,
                        "failure": step.failure,
                        "detail": step.detail,
                    }
                    for step in self.steps
                ],
            }
        )
        return ok


def count_reply(load: Load, reply: apis.Reply) -> None:
    """Count what a reply's stream was like."""
    stamps = reply.token_events
    load.token_events += len(stamps)
    load.merged += reply.merged
    load.empty += reply.is_empty and reply.value is None
    load.unfinished += reply.unfinished
    load.replies += 1
    load.streams += len(stamps) > 1
    load.lumped += reply.is_lumped


class Place(NamedTuple):
    """Where in a scenario the code is that runs now."""

    journey: Journey | None = None
    step: Step | None = None


PLACE: ContextVar[Place] = ContextVar("place")
_NOWHERE = Place()


def place() -> Place:
    """Return the place of this greenlet; gevent hands no context on, so look at who spawned it."""
    place = PLACE.get(None)
    greenlet = gevent.getcurrent()
    while place is None:
        greenlet = getattr(greenlet, "spawning_greenlet", lambda: None)()
        if greenlet is None:
            return _NOWHERE
        context: Context | None = greenlet.gr_context
        if context is not None and PLACE in context:
            place = context[PLACE]
            PLACE.set(place)
    return place


class step(ContextDecorator):  # noqa: N801 - it is used like a function
    """Name what happens inside as a step; steps nest: `answer/generate`.

    An exception inside counts the step as failed and goes on. Outside a task nothing is recorded.
    Raises UserError for a name that no budget could have.
    """

    __slots__ = ("_journey", "_name", "_step", "_token")

    def __init__(self, name: str) -> None:
        _check_name(name)
        self._name = name

    def __enter__(self) -> Step:
        """Begin the step where this greenlet is."""
        self._journey, outer = place()
        if self._journey is None:
            return Step(self._name, time.monotonic_ns())
        self._step = self._journey.begin(self._name, outer)
        self._token = PLACE.set(Place(self._journey, self._step))
        return self._step

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        """Record it."""
        if self._journey is None:
            return
        if error is not None and not isinstance(error, CONTROL_FLOW):
            self._journey.fail(self._step, error)
        PLACE.reset(self._token)
        self._journey.finish(self._step)

    def _recreate_cm(self) -> step:
        return step(self._name)


@lru_cache(maxsize=1024)
def _check_name(name: str) -> None:
    if not re.fullmatch(SEGMENT, name) or name == RUN:
        raise UserError(
            f"step {name!r}: a name must be of letters, digits, '_' and '-', and not {RUN!r}; "
            "steps inside each other make the '/'"
        )


def _causes(error: BaseException) -> list[BaseException]:
    """Return an exception and what led to it, latest first; each once, if they lead in a circle."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None:
        if any(cause is known for known in found):
            break
        found.append(cause)
    return found


def failure_kind(error: BaseException) -> str:  # noqa: PLR0911 - one for each kind
    """Return the kind that `error_rate` counts an exception by."""
    match error:
        case RequestFailed():
            return error.kind
        case gevent.GreenletExit():
            return "cut off"
        case httpx.TransportError() if (limit := limit_met(error)) is not None:
            return kind_of(limit)
        case httpx.ConnectTimeout() | httpx.ConnectError() | httpx.ProxyError():
            return "connect"
        case httpx.TimeoutException() | gevent.Timeout():
            return "timeout"
        case httpx.HTTPStatusError():
            return f"status {error.response.status_code}"
        case httpx.NetworkError() | httpx.RemoteProtocolError():
            return "reset"
        case _:
            return f"exception {type(error).__name__}"
