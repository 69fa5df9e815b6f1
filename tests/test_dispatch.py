"""Arrivals come by their schedule whatever the target does, and each one is accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import SimpleNamespace
from typing import Any

import gevent
import load
import pytest
from load import MS, S
from locust.exception import StopUser

from harness.arrivals import schedule, starts
from harness.plan import Arrivals, Stage
from harness.recorder import Limits, Load, Recorder
from harness.swarm import dispatch
from harness.swarm.backoff import Backoff
from harness.swarm.dispatch import Arrival, Dispatcher
from harness.transport.alarm import Alarm
from harness.transport.poller import Poller

pytestmark = pytest.mark.swarm


def constant(name: str, rate: float, duration_ns: int, **more: Any) -> Stage:
    arrivals = Arrivals(kind="constant", rate_per_s=rate)
    return Stage(name=name, arrivals=arrivals, duration_ns=duration_ns, **more)


def closed(name: str, users: int, duration_ns: int, *, ramp_ns: int | None = None) -> Stage:
    return Stage(name=name, concurrency=users, duration_ns=duration_ns, ramp_ns=ramp_ns)


@dataclass
class World:
    """A dispatcher and its users, each of which serves an arrival as `serve` says."""

    stages: Sequence[Stage]
    serve: Callable[[Arrival], object] = lambda _arrival: None
    weights: dict[str, float] = field(default_factory=lambda: {"A": 1.0})
    on_start: Callable[[], object] = lambda: None
    think_s: float = 0
    fails: Callable[[Arrival], bool] = lambda _arrival: False
    seed: int = 1
    worker: int = 0
    workers: int = 1
    arrivals: list[tuple[str, Arrival]] = field(default_factory=list)
    most: dict[str, int] = field(default_factory=dict)
    users: gevent.pool.Group = field(default_factory=gevent.pool.Group)
    made: int = 0

    def __post_init__(self) -> None:
        self.recorder = Recorder(Limits())
        self.dispatcher = Dispatcher(
            self.stages,
            self.recorder,
            weights=self.weights,
            alarm=Alarm(Poller()),
            spawn=self._spawn,
            seed=self.seed,
            worker=self.worker,
            workers=self.workers,
        )

    def _spawn(self, user_class: str, count: int) -> list[Any]:
        self.made += count
        return [
            SimpleNamespace(greenlet=self.users.spawn(self._live, user_class)) for _ in range(count)
        ]

    def _live(self, user_class: str) -> None:
        self.on_start()
        while True:
            try:
                arrival = self.dispatcher.take(user_class)
            except StopUser:
                return
            self.arrivals.append((user_class, arrival))
            stage = self.dispatcher.stage
            self.most[stage] = max(self.most.get(stage, 0), self.dispatcher.in_flight)
            try:
                self.serve(arrival)
            except gevent.GreenletExit:
                self.dispatcher.cut_off(user_class, arrival)
                raise
            failed = self.fails(arrival)
            self.dispatcher.done(user_class, arrival, failed=failed, think_s=self.think_s)

    def run(self, *, drain_ns: int = 10 * S) -> World:
        self.t0_ns = time.monotonic_ns() + 20 * MS
        self.dispatcher.run(self.t0_ns, drain_ns=drain_ns)
        self.dispatcher.end()
        self.users.kill()
        report = self.recorder.flush(0)
        load.check_nothing_vanished([report])
        self.loads: dict[str, Load] = report.load
        return self

    def planned(self, stage: str) -> list[int]:
        return [a.planned_ns - self.t0_ns for _, a in self.arrivals if a.stage == stage]


def pause(seconds: float) -> Callable[[Arrival], None]:
    return lambda _arrival: gevent.sleep(seconds)


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_arrivals_are_planned_by_the_schedule_and_all_are_sent(kind: Any) -> None:
    arrivals = Arrivals(kind=kind, rate_per_s=400)
    stages = [Stage(name=name, arrivals=arrivals, duration_ns=S // 4) for name in ("one", "two")]
    world = World(stages, seed=5).run()
    for number, stage in enumerate(stages):
        start = number * S // 4
        offsets = schedule(kind, 400, S // 4, seed=5, stage=number)
        expected = [start + offset for offset in offsets]
        assert sorted(world.planned(stage.name)) == expected
        assert world.loads[stage.name].planned == len(expected)


def test_a_stalled_target_does_not_slow_the_plan() -> None:
    stalled_until = time.monotonic_ns() + S

    def serve(_arrival: Arrival) -> None:
        gevent.sleep(max(0, stalled_until - time.monotonic_ns()) / 1e9)

    world = World([constant("steady", 200, S // 2)], serve).run()
    assert world.planned("steady") == list(schedule("constant", 200, S // 2, seed=1))
    assert world.most["steady"] == 100  # all were sent before the first came back
    assert world.loads["steady"].waited == 0


def test_a_stopped_process_plans_what_it_slept_through() -> None:
    def serve(arrival: Arrival) -> None:
        if arrival.planned_ns == world.t0_ns:
            deadline = time.monotonic_ns() + S // 5
            while time.monotonic_ns() < deadline:
                pass

    world = World([constant("steady", 100, S // 2)], serve)
    world.run()
    assert sorted(world.planned("steady")) == list(schedule("constant", 100, S // 2, seed=1))


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_the_workers_plans_together_are_the_whole(kind: Any) -> None:
    stage = Stage(name="s", arrivals=Arrivals(kind=kind, rate_per_s=300), duration_ns=S // 4)
    worlds = [World([stage], worker=n, workers=2).run() for n in (0, 1)]
    parts = [world.planned("s") for world in worlds]
    for worker, part in enumerate(parts):
        offsets = schedule(kind, 300, S // 4, seed=1, worker=worker, workers=2)
        assert sorted(part) == list(offsets)
    if kind == "constant":
        assert sorted(parts[0] + parts[1]) == list(schedule(kind, 300, S // 4, seed=1))
    assert parts[0] != parts[1]


def test_one_place_serves_arrivals_in_turn_and_their_waits_add_up() -> None:
    world = World([constant("steady", 100, S // 10, max_in_flight=1)], pause(0.03)).run()
    arrivals = [arrival for _, arrival in world.arrivals]
    waits = [arrival.ready_ns - arrival.planned_ns for arrival in arrivals]
    assert world.most["steady"] == 1
    assert world.loads["steady"].waited == 9
    assert waits[0] == 0
    assert waits == sorted(waits)
    assert waits[-1] > 9 * 30 * MS - 100 * MS  # nine services less the time they were planned over
    assert world.loads["steady"].waiting > 1


def test_a_closed_stage_never_has_more_than_its_users_in_flight_and_thinks_between() -> None:
    rounds: list[int] = []

    def serve(arrival: Arrival) -> None:
        gevent.sleep(0.005)
        rounds.append(arrival.planned_ns)

    busy = World([closed("steady", 3, S // 4)], serve).run()
    assert busy.most["steady"] == 3
    assert busy.loads["steady"].waited == 0
    without = len(rounds)
    rounds.clear()
    World([closed("steady", 3, S // 4)], serve, think_s=0.05).run()
    assert 3 <= len(rounds) < without / 2
    gaps = sorted(b - a for a, b in zip(sorted(rounds), sorted(rounds)[3:], strict=False))
    assert gaps[0] >= 50 * MS * 0.9  # each user's next round: its pause apart


def test_a_closed_stage_starts_its_users_as_those_of_the_stage_before_finish() -> None:
    world = World([closed("warm", 4, S // 10), closed("steady", 4, S // 10)], pause(0.07)).run()
    assert world.most == {"warm": 4, "steady": 4}
    steady = [arrival for _, arrival in world.arrivals if arrival.stage == "steady"]
    assert all(arrival.planned_ns == arrival.ready_ns for arrival in steady)
    assert world.loads["steady"].waited == 0


def test_a_backlog_does_not_burst_into_the_closed_stage_that_follows() -> None:
    stages = [constant("open", 200, S // 10, max_in_flight=2), closed("closed", 3, S // 5)]
    world = World(stages, pause(0.01)).run()
    assert world.loads["open"].waited > 10
    assert world.most["closed"] <= 3
    assert world.loads["closed"].planned > 0


def test_a_wider_stage_takes_up_the_backlog_at_once() -> None:
    freed = gevent.event.Event()
    stages = [
        constant("narrow", 100, S // 10, max_in_flight=1),
        constant("wide", 1, S // 10, max_in_flight=50),
    ]

    def serve(_arrival: Arrival) -> None:
        if len(world.arrivals) == 11:
            freed.set()
        assert freed.wait(timeout=5)

    world = World(stages, serve)
    world.run()
    assert world.loads["narrow"].finished == 10
    assert world.most["wide"] >= 10


def test_an_arrival_belongs_to_the_stage_that_planned_it() -> None:
    world = World(
        [constant("warm", 50, S // 10), constant("steady", 50, S // 10)], pause(0.2)
    ).run()
    assert (world.loads["warm"].planned, world.loads["steady"].planned) == (5, 5)
    assert (world.loads["warm"].finished, world.loads["steady"].finished) == (5, 5)


def test_what_runs_is_drained_then_cut_off_and_what_waits_is_dropped() -> None:
    stage = constant("steady", 100, S // 10, max_in_flight=3)
    world = World([stage], pause(60)).run(drain_ns=50 * MS)
    totals = world.loads["steady"]
    assert (totals.planned, totals.sent, totals.cut_off, totals.dropped) == (10, 3, 3, 7)
    patient = World([stage], pause(0.1)).run()
    assert patient.loads["steady"].finished == 10


def test_stopping_plans_nothing_more_and_drains() -> None:
    def serve(_arrival: Arrival) -> None:
        if len(world.arrivals) == 5:
            world.dispatcher.stop()
        gevent.sleep(0.05)

    for stage in (constant("steady", 100, 60 * S), closed("steady", 2, 60 * S)):
        world = World([stage, constant("never", 100, 60 * S)], serve)
        world.run()
        totals = world.loads["steady"]
        assert 5 <= totals.planned == totals.finished < 10
        assert "never" not in world.loads


def test_users_that_die_are_replaced_and_their_arrivals_still_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "_PAUSE_S", 0.01)
    starts = iter(range(10**9))

    def the_first_fail() -> None:
        if next(starts) < 50:
            raise gevent.GreenletExit

    stage = constant("steady", 200, S // 4, max_in_flight=1)
    world = World([stage], on_start=the_first_fail).run()
    assert world.loads["steady"].finished == 50


def test_arrivals_for_users_that_all_die_are_dropped_not_lost() -> None:
    def fail() -> None:
        raise gevent.GreenletExit

    world = World([constant("steady", 100, S // 4)], on_start=fail).run(drain_ns=50 * MS)
    totals = world.loads["steady"]
    assert (totals.planned, totals.sent, totals.dropped) == (25, 0, 25)
    assert world.made < 100  # they are not replaced again and again without a pause


def test_user_classes_share_the_arrivals_by_their_weights_the_same_way_each_time() -> None:
    def drawn(seed: int) -> list[str]:
        weights = {"A": 3.0, "B": 1.0}
        world = World([constant("steady", 1000, S // 5)], weights=weights, seed=seed).run()
        return [name for name, _ in sorted(world.arrivals, key=lambda pair: pair[1].planned_ns)]

    one = drawn(1)
    assert one == drawn(1)
    assert one != drawn(2)
    assert 0.6 < one.count("A") / len(one) < 0.9


def test_each_arrival_has_a_number_of_its_own_by_its_place_in_the_plan() -> None:
    def numbers() -> list[int]:
        world = World([constant("steady", 500, S // 10, max_in_flight=7)], pause(0.01)).run()
        return [a.number for _, a in sorted(world.arrivals, key=lambda pair: pair[1].planned_ns)]

    assert numbers() == numbers() == list(range(50))


def test_enough_users_are_made_and_not_many_more() -> None:
    world = World([constant("steady", 400, S // 4)], pause(0.25)).run()
    assert 90 <= world.most["steady"] <= world.made < 250


def test_from_the_hub_an_arrival_is_handed_over_at_once_from_a_greenlet_later() -> None:
    line, events = dispatch._Line(), list[Any]()
    taking = [gevent.spawn(lambda: events.append(line.get())) for _ in range(2)]
    gevent.sleep(0)

    def hand(arrival: Arrival) -> None:
        line.put(arrival)
        events.append("handed")

    one, two = (Arrival("s", number, number) for number in (1, 2))
    gevent.get_hub().loop.run_callback(hand, one)
    gevent.sleep(0)
    assert events == [one, "handed"]
    hand(two)
    gevent.joinall(taking, timeout=5)
    assert events == [one, "handed", "handed", two]


def test_who_waits_longest_is_next_and_who_was_killed_takes_nothing() -> None:
    line, events = dispatch._Line(), list[Any]()
    killed, first, second = (
        gevent.spawn(lambda name=name: events.append((name, line.get())))
        for name in ("killed", "first", "second")
    )
    gevent.sleep(0)
    killed.kill()
    arrivals = [Arrival("s", number, number) for number in range(3)]
    for arrival in arrivals:
        line.put(arrival)
    gevent.joinall([first, second], timeout=5)
    assert events == [("first", arrivals[0]), ("second", arrivals[1])]
    assert line.clear() == arrivals[2:]
    assert line.clear() == []


def test_users_whose_making_blocks_hold_up_no_arrival() -> None:
    class Slow(World):
        def _spawn(self, user_class: str, count: int) -> list[Any]:
            gevent.sleep(0.005)
            return super()._spawn(user_class, count)

    world = Slow([constant("steady", 400, S // 4)], pause(0.1)).run()
    assert world.loads["steady"].finished == 100


def test_a_task_that_never_waits_leaves_the_others_their_turn() -> None:
    turns: list[int] = []

    def count_turns() -> None:
        while True:
            turns.append(1)
            gevent.sleep(0.001)

    counting = gevent.spawn(count_turns)
    world = World([closed("steady", 2, S // 10)]).run()
    counting.kill()
    assert world.loads["steady"].finished > 10
    assert len(turns) > 5


# --- how the users of a closed stage start ---------------------------------------------------------


def first_rounds(world: World, stage: str, users: int) -> list[int]:
    return sorted(world.planned(stage))[:users]


def forever(_arrival: Arrival) -> None:
    gevent.sleep(1)


def test_users_start_evenly_over_the_ramp() -> None:
    world = World([closed("steady", 10, S // 2, ramp_ns=S // 5)], forever).run()
    for number, planned_ns in enumerate(first_rounds(world, "steady", 10)):
        assert planned_ns >= number * S // 50  # none before its time: how late, the machine says
    assert len(world.arrivals) == 10


def test_a_ramp_that_is_not_declared_is_a_tenth_of_the_stage_and_a_second_at_most() -> None:
    assert closed("steady", 10, S).spread_ns == S // 10
    assert closed("steady", 10, 60 * S).spread_ns == S
    assert closed("steady", 10, 60 * S, ramp_ns=0).spread_ns == 0
    assert closed("steady", 10, 60 * S, ramp_ns=7 * S).spread_ns == 7 * S


@pytest.mark.parametrize(("users", "workers"), [(10, 2), (7, 3), (2, 4), (1, 1)])
def test_the_workers_ramps_together_are_the_declared_one(users: int, workers: int) -> None:
    parts = [[*starts(users, S, worker=n, workers=workers)] for n in range(workers)]
    assert sorted(chain(*parts)) == [number * S // users for number in range(users)]
    started = 0
    for n in range(workers):
        stage = closed("steady", users, S // 10)
        started += len(World([stage], forever, worker=n, workers=workers).run().arrivals)
    assert started == users


def test_all_users_are_there_before_the_stage_that_needs_them() -> None:
    made: list[int] = []
    stages = [closed("few", 2, S // 10), closed("many", 40, S // 5, ramp_ns=0)]

    def serve(_arrival: Arrival) -> None:
        made.append(world.made)
        gevent.sleep(0.01)

    world = World(stages, serve)
    world.run()
    assert set(made) == {40 + dispatch._SPARE_USERS}
    assert world.most["many"] == 40


def test_what_a_slow_start_of_the_users_takes_is_in_no_response_time() -> None:
    """Each user keeps the core for 5 ms before it sends, as a burst of sends does."""
    late: list[int] = []

    def serve(arrival: Arrival) -> None:
        late.append(time.monotonic_ns() - arrival.planned_ns)
        deadline = time.monotonic_ns() + 5 * MS
        while time.monotonic_ns() < deadline:
            pass
        gevent.sleep(1)

    World([closed("steady", 20, S, ramp_ns=0)], serve).run()
    assert len(late) == 20
    assert sorted(late)[15] < 5 * MS  # were they planned together, the last would be 95 ms late


def test_users_go_on_from_one_closed_stage_to_the_next_and_think_on_in_between() -> None:
    stages = [closed("warm", 4, S // 5, ramp_ns=0), closed("steady", 6, S // 2, ramp_ns=S // 5)]
    world = World(stages, think_s=0.4).run()
    fresh, due_ns = 2, 4 * S // 10  # what the first four are due at, since all began at zero
    rounds = sorted(world.planned("steady"))
    assert sum(t < due_ns for t in rounds) == fresh
    assert len(rounds) >= fresh + 4
    assert world.most["steady"] <= 6


def test_a_user_that_hangs_over_several_stages_starts_nothing_where_none_is_wanted() -> None:
    def serve(arrival: Arrival) -> None:
        gevent.sleep(0.25 if arrival.stage == "first" else 0.01)

    tenth = S // 10
    stages = [closed("first", 2, tenth, ramp_ns=0), closed("second", 2, tenth)]
    stages += [constant("open", 50, 2 * tenth), closed("last", 2, tenth)]
    world = World(stages, serve).run()
    assert "second" not in world.loads  # both places were held all along
    assert world.loads["open"].planned == 10
    assert world.most["last"] == 2


def test_users_that_wait_for_a_place_at_the_edge_go_on_and_are_not_doubled() -> None:
    """The open stage holds all three places until the last stage, where each user has one round."""
    stages = [
        constant("open", 60, S // 20, max_in_flight=3),
        closed("narrow", 3, S // 20, ramp_ns=0),
        closed("wide", 6, S // 5, ramp_ns=0),
    ]

    def serve(arrival: Arrival) -> None:
        gevent.sleep(0.12 if arrival.stage == "open" else 0.01)

    world = World(stages, serve, think_s=0.5).run()
    assert world.loads["narrow"].planned == 0
    assert world.loads["wide"].planned == 6


def test_a_smaller_closed_stage_lets_the_surplus_users_go() -> None:
    stages = [closed("wide", 6, S // 5, ramp_ns=0), closed("narrow", 2, S // 5)]
    world = World(stages, pause(0.02)).run()
    assert (world.most["wide"], world.most["narrow"]) == (6, 2)


# --- users whose rounds fail -----------------------------------------------------------------------


def test_users_that_fail_at_once_pause_longer_each_time_and_are_counted() -> None:
    world = World([closed("steady", 2, S)], fails=lambda _arrival: True).run()
    load = world.loads["steady"]
    assert 8 <= load.failed <= 24  # 10 ms doubling, of which half may be left out, twice
    assert load.backed_off == load.failed == load.finished
    mine = sorted(a.planned_ns for _, a in world.arrivals if a.failures >= 4)
    assert len(mine) >= 2


def test_a_success_resets_the_pause() -> None:
    failed = World([closed("one", 1, S // 2)], fails=lambda a: a.number % 4 != 0).run()
    assert max(arrival.failures for _, arrival in failed.arrivals) == 3
    assert failed.loads["one"].finished > 20  # three pauses of 10, 20 and 40 ms at the most


def test_a_round_that_failed_slowly_needs_no_further_pause() -> None:
    world = World([closed("one", 1, S // 4)], pause(0.03), fails=lambda a: a.failures == 0)
    world.run()
    assert world.loads["one"].failed > 2
    assert world.loads["one"].backed_off == 0


def test_open_arrivals_come_by_their_schedule_though_all_fail() -> None:
    world = World([constant("steady", 200, S // 4)], fails=lambda _arrival: True).run()
    assert (world.loads["steady"].finished, world.loads["steady"].backed_off) == (50, 0)


def test_pauses_grow_to_a_second_and_differ_from_user_to_user() -> None:
    backoff = Backoff("seed")
    for failures, whole_s in [(1, 0.01), (2, 0.02), (5, 0.16), (7, 0.64), (8, 1.0), (10_000, 1.0)]:
        pauses = [backoff.pause_s(failures, 0.0) for _ in range(50)]
        assert whole_s / 2 <= min(pauses) < max(pauses) <= whole_s
    assert backoff.pause_s(0, 0.0) == 0
    assert backoff.pause_s(3, 0.04) == 0
