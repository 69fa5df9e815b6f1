"""One epoll for all sockets, or a watcher for each: who is called, and who no longer."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import gevent
import pytest

from harness.transport import Transport
from harness.transport import poller as poller_module
from harness.transport.poller import READ, WRITE, Poller

pytestmark = [pytest.mark.swarm, pytest.mark.parametrize("way", ["epoll", "watchers"])]


@pytest.fixture(autouse=True)
def _way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "watchers":
        monkeypatch.setattr(poller_module, "_epoll", lambda: None)
    elif poller_module._epoll() is None:
        pytest.skip("no epoll here")


@contextmanager
def ready(number: int) -> Iterator[list[int]]:
    """So many descriptors that can be read, all the time."""
    with ExitStack() as stack:
        fds = []
        for _ in range(number):
            read_end, write_end = os.pipe()
            stack.callback(os.close, read_end)
            os.write(write_end, b"x")
            os.close(write_end)
            fds.append(read_end)
        yield fds


def turns(number: int = 5) -> None:
    for _ in range(number):
        gevent.sleep(0.001)


def test_it_is_the_way_that_was_asked_for(way: str) -> None:
    assert (Poller()._epoll is None) == (way == "watchers")


def test_a_handler_is_called_for_what_it_watches_and_no_longer_when_removed(way: str) -> None:
    poller, calls = Poller(), []
    here, there = socket.socketpair()
    with here, there:
        poller.add(here.fileno(), lambda: calls.append(here.recv(10)))
        turns()
        assert calls == []
        there.send(b"a")
        turns()
        assert calls == [b"a"]
        poller.change(here.fileno(), lambda: calls.append(b"writable"), mask=WRITE)
        turns(1)
        assert calls[-1] == b"writable"
        poller.change(here.fileno(), lambda: calls.append(here.recv(10)), mask=READ)
        calls.clear()
        there.send(b"b")
        turns()
        assert calls == [b"b"]
        poller.remove(here.fileno())
        poller.remove(here.fileno())
        there.send(b"c")
        turns()
        assert calls == [b"b"]
    assert poller.watched == 0


def test_of_those_that_are_ready_together_one_may_remove_all_others(way: str) -> None:
    poller, calls = Poller(), []
    with ready(20) as fds:

        def only_me(fd: int) -> None:
            calls.append(fd)
            for other in fds:
                poller.remove(other)

        for fd in fds:
            poller.add(fd, lambda fd=fd: only_me(fd))
        turns()
    assert len(calls) == 1
    assert poller.watched == 0


def test_who_gets_the_number_of_one_that_was_removed_is_not_taken_for_it(way: str) -> None:
    poller, calls = Poller(), []
    silent, other_end = os.pipe()
    with ready(2) as fds:

        def replace_the_other(me: int, other: int) -> None:
            poller.remove(me)
            poller.remove(other)
            os.dup2(silent, other)
            poller.add(other, lambda: calls.append("called"))

        poller.add(fds[0], lambda: replace_the_other(fds[0], fds[1]))
        poller.add(fds[1], lambda: replace_the_other(fds[1], fds[0]))
        turns()
        assert calls == []
        os.write(other_end, b"x")
        turns(1)
        assert calls
        for fd in fds:
            poller.remove(fd)
    os.close(silent)
    os.close(other_end)


def test_more_are_served_than_one_turn_takes(way: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = poller_module._BATCH + 100
    if hard < number + 100:
        pytest.skip("too few descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number + 100), hard))
    poller, calls = Poller(), []

    def once(fd: int) -> None:
        calls.append(fd)
        poller.remove(fd)

    with ready(number) as fds:
        for fd in fds:
            poller.add(fd, lambda fd=fd: once(fd))
        turns(10)
        assert sorted(calls) == sorted(fds)


def test_all_are_served_though_each_stays_ready(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller_module, "_BATCH", 7)
    poller, calls = Poller(), set()
    with ready(30) as fds:
        for fd in fds:
            poller.add(fd, lambda fd=fd: calls.add(fd))
        turns(20)
        assert calls == set(fds)
        for fd in fds:
            poller.remove(fd)


def test_a_handler_that_raises_is_dropped_and_the_others_go_on(way: str) -> None:
    poller, calls = Poller(), []
    with ready(3) as fds:

        def fail() -> None:
            calls.append("failed")
            raise LookupError("a defect")

        for fd, handler in zip(
            fds, (lambda: calls.append(0), fail, lambda: calls.append(2)), strict=True
        ):
            poller.add(fd, handler)
        turns()
        assert calls.count("failed") == 1
        assert poller.watched == 2
        calls.clear()
        turns()
        assert {0, 2} == set(calls)


def test_an_interrupt_in_a_handler_reaches_the_main_greenlet_and_the_others_go_on(way: str) -> None:
    poller, calls = Poller(), []
    first, second = socket.socketpair()
    with first, second, ready(1) as fds:

        def interrupt() -> None:
            first.recv(1)
            raise KeyboardInterrupt

        poller.add(first.fileno(), interrupt)
        poller.add(fds[0], lambda: calls.append(1))
        second.send(b"x")
        with pytest.raises(KeyboardInterrupt):
            turns(100)
        calls.clear()
        turns()
        assert calls


def test_it_rests_between_turns_where_it_may_no_longer_than_it_may_and_wakes_nobody_late(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poller, rests = Poller(), list[float]()
    monkeypatch.setattr(poller_module, "_sleep", rests.append)

    def rested() -> bool:
        rests.clear()
        turns()
        assert all(0 < rest_s <= poller_module._REST_NS / 1e9 for rest_s in rests)
        return bool(rests)

    with ready(1) as fds:
        poller.add(fds[0], lambda: None)
        assert not rested()
        poller.may_rest = lambda: True
        assert rested() == (way == "epoll")
        poller.rest_until_ns = time.monotonic_ns() + poller_module._REST_NS // 2
        assert not rested()
        poller.rest_until_ns = poller_module._NEVER_NS
        poller.change(fds[0], lambda: poller.soon(int))
        assert not rested()
        poller.remove(fds[0])


def test_it_does_not_rest_after_what_comes_rarely(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poller, rests, calls = Poller(), list[float](), list[bytes]()
    monkeypatch.setattr(poller_module, "_sleep", rests.append)
    poller.may_rest = lambda: True
    here, there = socket.socketpair()
    with here, there:
        poller.add(here.fileno(), lambda: calls.append(here.recv(10)))
        for number in range(1, 6):
            there.send(b"x")
            while len(calls) < number:
                turns(1)
        poller.remove(here.fileno())
    assert rests == []


@pytest.mark.usefixtures("way")
def test_a_transport_rests_where_the_kernel_stamps_alone() -> None:
    assert Transport(kernel_stamps=True).poller.may_rest()
    assert not Transport(kernel_stamps=False).poller.may_rest()
