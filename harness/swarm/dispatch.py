"""Planned arrivals become work for users: an absolute schedule, never a think time.

Each stage's schedule is fixed before it starts. An arrival that is due goes to an idle user; when
`max_in_flight` are busy it waits, and its wait is part of its response time. After the last stage
nothing new is planned, what runs is given the drain time, and what is left is counted as cut off.

The users of a closed stage start spread over its ramp; those of a closed stage right before it go
on instead, as many as are still wanted. A round is planned for the moment in which its user has it
in hand and can send: what it took to make and wake users is no part of a response time.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import gevent
import numpy as np
from gevent.hub import Waiter
from locust.exception import StopUser

from harness.arrivals import schedule, starts
from harness.plan import Stage
from harness.recorder import RUN, Recorder
from harness.swarm.backoff import Backoff
from harness.transport.alarm import Alarm

_SPARE_USERS = 8  # idle users kept ready, so that an arrival never waits for one to be made
_PAUSE_S = 0.1  # before users that ended by themselves are replaced: their on_start may fail again
DEFAULT_MAX_IN_FLIGHT = 1000


@dataclass(slots=True)
class Arrival:
    """One planned start. `ready_ns` is when a user was free for it: planned, or later.

    `number` tells it from all others of its process and seeds what is drawn for it. A round of a
    closed stage (`closed`) is planned for the time at which its user takes it, so it never waits;
    `failures` rounds of that user failed in a row before it.
    """

    stage: str
    planned_ns: int
    ready_ns: int
    closed: bool = False
    failures: int = 0
    number: int = field(default_factory=partial(next, count()))


class _Line:
    """Arrivals for the users of one class: of those that are idle, who waits longest is next."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._arrivals: deque[Arrival | None] = deque()
        self._idle: deque[Waiter] = deque()

    def put(self, arrival: Arrival | None) -> None:
        """Hand over: from the hub at once, from a greenlet in the hub's next turn."""
        self._arrivals.append(arrival)
        if gevent.getcurrent() is self._hub:
            self._serve()
        else:
            self._hub.loop.run_callback(self._serve)

    def get(self) -> Arrival | None:
        """Block until there is something for the calling greenlet."""
        if self._arrivals:
            return self._arrivals.popleft()
        waiter = Waiter(self._hub)
        self._idle.append(waiter)
        try:
            arrival: Arrival | None = waiter.get()
        except BaseException:
            self._idle.remove(waiter)
            raise
        return arrival

    def clear(self) -> list[Arrival]:
        """Take back what no user has taken."""
        left = [arrival for arrival in self._arrivals if arrival is not None]
        self._arrivals.clear()
        return left

    def _serve(self) -> None:
        while self._arrivals and self._idle:
            self._idle.popleft().switch(self._arrivals.popleft())


class Dispatcher:
    """Hands the arrivals of one worker to its users, per user class."""

    def __init__(
        self,
        stages: Sequence[Stage],
        recorder: Recorder,
        *,
        weights: dict[str, float],
        alarm: Alarm,
        spawn: Callable[[str, int], Sequence[Any]],
        seed: int,
        worker: int,
        workers: int,
    ) -> None:
        self._stages = stages
        self._recorder = recorder
        self._classes = list(weights)
        total = sum(weights.values())
        self._shares = [weight / total for weight in weights.values()]
        self._rng = np.random.default_rng([seed, worker, 1])
        self._spawn = spawn
        self._seed, self._worker, self._workers = seed, worker, workers
        self._lines = {name: _Line() for name in weights}
        self._busy = dict.fromkeys(weights, 0)
        self._made = dict.fromkeys(weights, 0)
        self._replacing: set[str] = set()
        self._numbers = count()
        self._backoff = Backoff((seed, worker))
        self._starters = [self._drawn(stage) for stage in stages]
        self._going = 0  # users of closed stages that go on from round to round
        self._heirs = 0  # of those of an earlier stage, how many this one still takes over
        self._waiting: deque[tuple[str, Arrival]] = deque()
        self._closed_until_ns: dict[str, int] = {}
        self._limit = DEFAULT_MAX_IN_FLIGHT
        self._begun_ns = 0
        self._alarm = alarm
        self._stopped = False
        self._over = False
        self.in_flight = 0
        self.stage = stages[0].name

    @property
    def waiting(self) -> int:
        """Arrivals that are due and have no free user."""
        return len(self._waiting)

    # The users' side

    def take(self, user_class: str) -> Arrival:
        """Block until an arrival is due for a user of this class; StopUser after the load."""
        arrival = self._lines[user_class].get()
        if arrival is None:
            raise StopUser
        if arrival.closed:
            arrival.planned_ns = arrival.ready_ns = time.monotonic_ns()
        self._recorder.load(arrival.stage).sent += 1
        return arrival

    def done(self, user_class: str, arrival: Arrival, *, failed: bool, think_s: float = 0) -> None:
        """Take note of a finished arrival; the next one that waits may start."""
        load = self._recorder.load(arrival.stage)
        load.finished += 1
        load.failed += failed
        self._free(user_class)
        if arrival.closed:
            failures = arrival.failures + 1 if failed else 0
            if failed:
                lasted_s = (time.monotonic_ns() - arrival.planned_ns) / 1e9
                pause_s = self._backoff.pause_s(failures, lasted_s)
                load.backed_off += pause_s > think_s
                think_s = max(pause_s, think_s)
            self._go_on(user_class, arrival.stage, failures, think_s)
        self._admit_waiting()

    # The schedule's side

    def run(self, t0_ns: int, *, drain_ns: int) -> None:
        """Walk through the stages from `t0_ns` on, then drain. Returns when all is over."""
        start_ns = t0_ns
        self._make_users()
        for number, stage in enumerate(self._stages):
            if self._stopped:
                break
            end_ns = start_ns + stage.duration_ns
            self._sleep_until(start_ns)
            starters = self._starters[number]
            going_on = self._begin_stage(stage, end_ns, users=len(starters))
            if stage.arrivals is None:
                self._run_closed(stage, starters[going_on:], start_ns, first=not going_on)
            else:
                self._run_open(self._planned(stage, number, start_ns), stage.name)
            self._sleep_until(end_ns)
            start_ns = end_ns
        self._drain(time.monotonic_ns() + drain_ns)

    def stop(self) -> None:
        """Plan no further arrivals; `run` goes on to drain."""
        self._stopped = True
        self._alarm.cancel()

    def end(self) -> int:
        """Send every idle user home and count what was never sent; returns how many run on."""
        self._over = True
        for _, arrival in self._waiting:
            if not arrival.closed:
                self._recorder.load(arrival.stage).dropped += 1
        self._waiting.clear()
        for name, line in self._lines.items():
            for arrival in line.clear():  # handed over, and no user was left to take it
                self._recorder.load(arrival.stage).dropped += 1
                self._free(name)
            for _ in range(self._made[name]):
                line.put(None)
        return self.in_flight

    def cut_off(self, user_class: str, arrival: Arrival) -> None:
        """Count an arrival that the end of the run cut off."""
        self._free(user_class)
        self._going -= arrival.closed
        self._recorder.load(arrival.stage).cut_off += 1

    def observe(self) -> None:
        """Note how many are in flight and waiting in the interval that begins."""
        load = self._recorder.load(self.stage)
        load.in_flight = max(load.in_flight, self.in_flight)
        load.waiting = max(load.waiting, self.waiting)

    def _begin_stage(self, stage: Stage, end_ns: int, *, users: int) -> int:
        """Make a stage the one that is played; returns how many users go on, at most `users`."""
        self.stage = stage.name
        self._limit = self._limit_of(stage)
        self._heirs = going_on = min(self._going, users)
        if stage.arrivals is None:
            self._closed_until_ns[stage.name] = end_ns
        self._admit_waiting()
        return going_on

    def _planned(self, stage: Stage, number: int, start_ns: int) -> Iterator[int]:
        assert stage.arrivals is not None
        offsets = schedule(
            stage.arrivals.kind,
            stage.arrivals.rate_per_s,
            stage.duration_ns,
            seed=self._seed,
            stage=number,
            worker=self._worker,
            workers=self._workers,
        )
        return (start_ns + offset for offset in offsets)

    def _run_open(self, planned: Iterator[int], stage: str) -> None:
        before_ns = planned_before_ns = None
        for planned_ns in planned:
            user_class = self._pick()
            arrival = Arrival(stage, planned_ns, planned_ns, number=next(self._numbers))
            self._alarm.sleep_until(planned_ns, partial(self._begin, user_class, arrival))
            if self._stopped:
                return
            begun_ns = self._begun_ns
            if before_ns is not None and planned_before_ns is not None:
                self._recorder.add(stage, RUN, "arrival_gap", begun_ns - before_ns)
                self._recorder.add(stage, RUN, "planned_gap", planned_ns - planned_before_ns)
            before_ns, planned_before_ns = begun_ns, planned_ns
            self._keep_spare_users(user_class)

    def _begin(self, user_class: str, arrival: Arrival) -> None:
        """Start an arrival whose time has come; called in the hub, where nothing may block."""
        if self._stopped:
            return
        self._begun_ns = time.monotonic_ns()
        self._recorder.load(arrival.stage).planned += 1
        self._admit(user_class, arrival)

    def _run_closed(
        self, stage: Stage, fresh: Sequence[str], start_ns: int, *, first: bool
    ) -> None:
        """Start users by the ramp; `first` where none goes on, so that workers share a grid."""
        whole = (stage.concurrency or 0) if first else self._workers * len(fresh)
        offsets = starts(whole, stage.spread_ns, worker=self._worker, workers=self._workers)
        for user_class, offset_ns in zip(fresh, offsets, strict=True):
            then = partial(self._start_user, user_class, stage.name)
            self._alarm.sleep_until(start_ns + offset_ns, then)
            if self._stopped:
                return

    def _start_user(self, user_class: str, stage: str) -> None:
        self._going += 1
        self._again(user_class, stage, 0)

    def _go_on(self, user_class: str, stage: str, failures: int, pause_s: float) -> None:
        """Let a user of a closed stage start its next round, after a pause if it has one."""
        if pause_s > 0:
            gevent.spawn_later(pause_s, self._again, user_class, stage, failures)
        else:
            gevent.get_hub().loop.run_callback(self._again, user_class, stage, failures)

    def _again(self, user_class: str, stage: str, failures: int) -> None:
        """Start the next round of a closed stage's user."""
        round_ = Arrival(stage, 0, 0, True, failures, next(self._numbers))
        self._admit(user_class, round_)

    def _admit(self, user_class: str, arrival: Arrival) -> None:
        if self.in_flight < self._limit and not self._waiting:
            self._hand(user_class, arrival)
        else:
            if not arrival.closed:
                self._recorder.load(arrival.stage).waited += 1
            self._waiting.append((user_class, arrival))
            self.observe()

    def _admit_waiting(self) -> None:
        while self._waiting and self.in_flight < self._limit:
            user_class, arrival = self._waiting.popleft()
            arrival.ready_ns = time.monotonic_ns()
            self._hand(user_class, arrival)
            self._keep_spare_users(user_class)

    def _hand(self, user_class: str, arrival: Arrival) -> None:
        if arrival.closed and not self._begin_round(arrival):
            return
        self.in_flight += 1
        self._busy[user_class] += 1
        self.observe()
        self._lines[user_class].put(arrival)

    def _begin_round(self, arrival: Arrival) -> bool:
        """Count a round as planned, if its user goes on: in its stage or in one that takes over."""
        now_ns = time.monotonic_ns()
        if self._heirs and now_ns >= self._closed_until_ns[arrival.stage]:
            self._heirs -= 1
            arrival.stage = self.stage
        if self._stopped or now_ns >= self._closed_until_ns[arrival.stage]:
            self._going -= 1
            return False
        self._recorder.load(arrival.stage).planned += 1
        return True

    def _free(self, user_class: str) -> None:
        self.in_flight -= 1
        self._busy[user_class] -= 1

    def _make_users(self) -> None:
        """Make the users that are needed at once, before the first stage begins."""
        needed = Counter[str]()
        for starters in self._starters:
            needed |= Counter(starters)
        for user_class in self._classes:
            self._make(user_class, needed[user_class] + _SPARE_USERS)

    def _keep_spare_users(self, user_class: str) -> None:
        """Make users in batches while few are idle; in the end there are as many as are needed."""
        made = self._made[user_class]
        if made - self._busy[user_class] < _SPARE_USERS and user_class not in self._replacing:
            self._make(user_class, max(_SPARE_USERS, made // 2))

    def _make(self, user_class: str, users: int) -> None:
        self._made[user_class] += users
        for user in self._spawn(user_class, users):
            user.greenlet.link(lambda _ended: self._note_end(user_class))

    def _note_end(self, user_class: str) -> None:
        """Replace a user that ended before the load did."""
        self._made[user_class] -= 1
        if not self._over and user_class not in self._replacing:
            self._replacing.add(user_class)
            gevent.spawn_later(_PAUSE_S, self._replace, user_class)

    def _replace(self, user_class: str) -> None:
        self._replacing.discard(user_class)
        if not self._over:
            self._keep_spare_users(user_class)

    def _drawn(self, stage: Stage) -> list[str]:
        """Draw the classes of this worker's users of a closed stage; an open one has none."""
        return [self._pick() for _ in range(self._part_of(stage.concurrency or 0))]

    def _pick(self) -> str:
        if len(self._classes) == 1:
            return self._classes[0]
        return self._classes[int(self._rng.choice(len(self._classes), p=self._shares))]

    def _limit_of(self, stage: Stage) -> int:
        """How many arrivals may be in flight here."""
        limit = stage.concurrency or stage.max_in_flight or DEFAULT_MAX_IN_FLIGHT
        return max(1, self._part_of(limit))

    def _part_of(self, users: int) -> int:
        """This worker's part of a number of users."""
        return users // self._workers + (self._worker < users % self._workers)

    def _sleep_until(self, due_ns: int) -> None:
        while not self._stopped and time.monotonic_ns() < due_ns:
            self._alarm.sleep_until(due_ns)

    def _drain(self, deadline_ns: int) -> None:
        while (self.in_flight or self._waiting) and time.monotonic_ns() < deadline_ns:
            gevent.sleep(0.01)
