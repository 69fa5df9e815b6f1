"""Sleeping until an absolute time, by timerfd and without."""

from __future__ import annotations

import os
import random
import sys
import time
from types import SimpleNamespace

import gevent
import pytest
from load import MS, S

from harness.transport import alarm as alarm_module
from harness.transport import poller as poller_module
from harness.transport.alarm import Alarm
from harness.transport.poller import Poller

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.parametrize("way", ["timerfd", "no timerfd"]),
]


@pytest.fixture(autouse=True)
def _way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "no timerfd":
        monkeypatch.setattr(poller_module, "_epoll", lambda: None)
        monkeypatch.setattr(alarm_module, "sys", SimpleNamespace(platform="another"))
    elif sys.platform != "linux":
        pytest.skip("timerfd is Linux's")


def made(way: str) -> Alarm:
    alarm = Alarm(Poller())
    assert (alarm._fd >= 0) == (way == "timerfd")
    return alarm


def in_ns(ns: int) -> int:
    return time.monotonic_ns() + ns


def test_it_never_wakes_before_its_time(way: str) -> None:
    rng, alarm = random.Random(5), made(way)
    for _ in range(100):
        due_ns = in_ns(rng.randrange(3 * MS))
        alarm.sleep_until(due_ns)
        assert time.monotonic_ns() >= due_ns


def test_it_never_wakes_before_its_time_when_the_hub_is_late(way: str) -> None:
    alarm = made(way)
    for _ in range(20):
        spin_until(in_ns(5 * MS))  # the loop's own idea of now is older than this
        due_ns = in_ns(2 * MS)
        alarm.sleep_until(due_ns)
        assert time.monotonic_ns() >= due_ns


def test_a_time_that_is_past_ends_the_sleep_at_once_but_others_have_their_turn(way: str) -> None:
    alarm, turns = made(way), []
    other = gevent.spawn(turns.append, 1)
    for due_ns in (in_ns(-S), in_ns(0), 0, -S):
        with gevent.Timeout(20):
            alarm.sleep_until(due_ns)
    assert turns == [1]
    other.join()


def test_cancel_wakes_early(way: str) -> None:
    alarm = made(way)
    due_ns = in_ns(60 * S)
    sleeping = gevent.spawn(alarm.sleep_until, due_ns)
    gevent.sleep(0)
    assert not sleeping.ready()
    alarm.cancel()
    sleeping.join(20)
    assert sleeping.successful()
    assert time.monotonic_ns() < due_ns


def test_what_is_to_be_done_then_is_done_in_the_hub_before_the_sleeper_goes_on(way: str) -> None:
    alarm, calls = made(way), []

    def note() -> None:
        calls.append((gevent.getcurrent() is gevent.get_hub(), time.monotonic_ns() >= due_ns))

    for _ in range(5):
        due_ns = in_ns(2 * MS)
        alarm.sleep_until(due_ns, note)
        assert calls == [(True, True)]
        calls.clear()
    alarm.sleep_until(in_ns(MS))
    assert calls == []  # the sleep after it has nothing to do


def test_what_is_to_be_done_then_may_fail_and_the_sleeper_hears_of_it(way: str) -> None:
    alarm = made(way)
    with pytest.raises(ZeroDivisionError):
        alarm.sleep_until(in_ns(MS), lambda: 1 // 0)
    due_ns = in_ns(MS)
    alarm.sleep_until(due_ns)
    assert time.monotonic_ns() >= due_ns


def test_no_rest_of_the_poller_goes_beyond_the_next_alarm(way: str) -> None:
    alarm = made(way)
    for sleep_ns in (MS, 5 * MS):
        due_ns = in_ns(sleep_ns)
        alarm.sleep_until(due_ns)
        assert alarm._poller.rest_until_ns <= due_ns or way == "no timerfd"


def test_cancel_leaves_undone_what_was_to_be_done_then(way: str) -> None:
    alarm, calls = made(way), []
    sleeping = gevent.spawn(alarm.sleep_until, in_ns(20 * MS), lambda: calls.append(1))
    gevent.sleep(0)
    alarm.cancel()
    sleeping.join(20)
    alarm.sleep_until(in_ns(30 * MS))
    assert calls == []


def test_the_lead_comes_to_be_what_nine_of_ten_wake_ups_take(way: str) -> None:
    alarm, rng = made(way), random.Random(3)

    def delay_ns() -> int:
        if rng.random() < 0.05:
            return 4 * MS  # preempted: no lead helps
        return round(rng.gauss(30_000, 5_000))

    for _ in range(3000):
        alarm._learn(delay_ns())
    delays = [delay for delay in (delay_ns() for _ in range(3000)) if delay < MS]
    in_time = sum(delay <= alarm._lead_ns for delay in delays) / len(delays)
    assert 0.8 < in_time < 0.97


def test_each_wake_up_by_timerfd_moves_the_lead(way: str) -> None:
    alarm = made(way)
    before_ns = alarm._lead_ns
    with gevent.Timeout(20):
        while alarm._lead_ns == before_ns and way == "timerfd":
            alarm.sleep_until(in_ns(MS))


def test_of_a_short_sleep_a_tenth_at_most_is_spun(way: str) -> None:
    alarm = made(way)
    if way == "no timerfd":
        return  # gevent's timers are not set early
    alarm._lead_ns = 90_000
    for sleep_ns, most_ns in ((200_000, 20_000), (10 * MS, 90_000)):
        due_ns = in_ns(sleep_ns)
        alarm.sleep_until(due_ns)
        assert 0 <= due_ns - alarm._armed_ns <= most_ns


def test_cancel_with_nobody_asleep_leaves_the_next_sleep_whole(way: str) -> None:
    alarm = made(way)
    alarm.cancel()
    due_ns = in_ns(5 * MS)
    alarm.sleep_until(due_ns)
    assert time.monotonic_ns() >= due_ns


def test_a_kill_in_the_sleep_leaves_it_usable_and_its_time_wakes_nobody(way: str) -> None:
    alarm = made(way)
    for _ in range(10):
        killed = gevent.spawn(alarm.sleep_until, in_ns(2 * MS))
        gevent.sleep(0)
        killed.kill()
        due_ns = in_ns(8 * MS)
        alarm.sleep_until(due_ns)
        assert time.monotonic_ns() >= due_ns


def test_a_kill_after_its_time_has_come_leaves_it_usable(way: str) -> None:
    alarm = made(way)
    killed = gevent.spawn(alarm.sleep_until, in_ns(MS))
    gevent.sleep(0)
    spin_until(in_ns(3 * MS))
    killed.kill()
    due_ns = in_ns(5 * MS)
    alarm.sleep_until(due_ns)
    assert time.monotonic_ns() >= due_ns


def test_one_sleep_follows_another(way: str) -> None:
    alarm, woke = made(way), []
    for _ in range(5):
        due_ns = in_ns(MS)
        alarm.sleep_until(due_ns)
        woke.append(time.monotonic_ns() >= due_ns)
    assert woke == [True] * 5


def test_close_wakes_who_sleeps_and_may_be_called_again(way: str) -> None:
    alarm = made(way)
    sleeping = gevent.spawn(alarm.sleep_until, in_ns(60 * S))
    gevent.sleep(0)
    alarm.close()
    alarm.close()
    sleeping.join(20)
    assert sleeping.successful()
    alarm.sleep_until(in_ns(MS))


def test_close_gives_the_descriptor_back(way: str) -> None:
    poller, opened = Poller(), []
    for _ in range(10):
        alarm = Alarm(poller)
        alarm.sleep_until(in_ns(MS))
        alarm.close()
        opened.append(sum(_is_open(fd) for fd in range(200)))
    assert opened[1] == opened[-1]
    assert poller.watched == 0


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def spin_until(t_ns: int) -> None:
    while time.monotonic_ns() < t_ns:
        pass
