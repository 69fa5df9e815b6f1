"""The kernel's stamps on the monotonic clock, under a wall clock that drifts and jumps."""

from __future__ import annotations

import random
import socket
import struct
import sys
import time
from dataclasses import dataclass

import pytest

from harness.transport import clock as clock_module
from harness.transport.clock import ANCILLARY_BYTES, SO_TIMESTAMPNS, KernelClock, ask_for_stamps

MS, S = 1_000_000, 1_000_000_000
Ancillary = list[tuple[int, int, bytes]]


@dataclass
class World:
    """Two clocks that move when told to; counts how often the wall clock was looked at."""

    now_ns: int = 5_000 * S
    offset_ns: int = 1_790_000_000 * S
    looks: int = 0

    def monotonic_ns(self) -> int:
        return self.now_ns

    def time_ns(self) -> int:
        self.looks += 1
        return self.now_ns + self.offset_ns

    def stamp(self, t_ns: int) -> Ancillary:
        """What recvmsg returns with bytes that came at `t_ns`."""
        return ancillary(t_ns + self.offset_ns)


def ancillary(real_ns: int) -> Ancillary:
    return [(socket.SOL_SOCKET, SO_TIMESTAMPNS, struct.pack("@ll", *divmod(real_ns, S)))]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(clock_module, "time", made)
    return made


def test_a_stamp_is_moved_to_the_monotonic_clock_to_the_nanosecond(world: World) -> None:
    clock = KernelClock()
    for ago_ns in (0, 1, 999, MS, 3 * S + 7):
        came_ns = world.now_ns - ago_ns
        assert clock.stamp(world.stamp(came_ns), world.now_ns, 0) == came_ns
    assert (clock.stamped, clock.unstamped, clock.steps) == (5, 0, 0)


@pytest.mark.parametrize(
    "given",
    [
        [],
        [(socket.SOL_SOCKET, SO_TIMESTAMPNS + 1, bytes(16))],
        [(socket.IPPROTO_TCP, SO_TIMESTAMPNS, bytes(16))],
        [(socket.SOL_SOCKET, SO_TIMESTAMPNS, bytes(7))],
    ],
    ids=["nothing", "another kind", "another level", "cut short"],
)
def test_without_a_stamp_now_stands_for_it_and_is_counted(world: World, given: Ancillary) -> None:
    clock = KernelClock()
    assert clock.stamp(given, world.now_ns, 0) == world.now_ns
    assert (clock.stamped, clock.unstamped) == (0, 1)


def test_a_stamp_is_found_among_other_messages(world: World) -> None:
    given = [(socket.IPPROTO_TCP, 1, b"x"), *world.stamp(world.now_ns - MS)]
    assert KernelClock().stamp(given, world.now_ns, 0) == world.now_ns - MS


@pytest.mark.parametrize("step_ns", [2 * MS, -2 * MS, 3600 * S, -3600 * S])
def test_a_step_that_makes_a_stamp_impossible_is_counted_once_and_corrected(
    world: World, step_ns: int
) -> None:
    clock = KernelClock()
    sent_ns = world.now_ns
    world.offset_ns += step_ns
    for _ in range(3):
        world.now_ns += MS
        came_ns = world.now_ns - MS // 2
        assert clock.stamp(world.stamp(came_ns), world.now_ns, sent_ns) == came_ns
    assert clock.steps == 1


def test_a_stamp_from_before_a_step_is_never_in_the_future_nor_before_the_send(
    world: World,
) -> None:
    for step_ns in (2 * MS, -2 * MS, 3600 * S, -3600 * S):
        clock = KernelClock()
        sent_ns = world.now_ns
        before_the_step = world.stamp(world.now_ns + MS)
        world.now_ns += 3 * MS
        world.offset_ns += step_ns
        assert sent_ns <= clock.stamp(before_the_step, world.now_ns, sent_ns) <= world.now_ns


def test_no_stamp_whatever_leaves_the_time_between_send_and_now(world: World) -> None:
    rng = random.Random(3)
    clock = KernelClock()
    for _ in range(2000):
        world.now_ns += rng.randrange(S)
        world.offset_ns += rng.choice([0, 0, 0, rng.randrange(-2 * S, 2 * S)])
        sent_ns = world.now_ns - rng.randrange(S)
        given = ancillary(max(0, world.now_ns + world.offset_ns + rng.randrange(-4 * S, 4 * S)))
        assert sent_ns <= clock.stamp(given, world.now_ns, sent_ns) <= world.now_ns
    assert clock.steps > 100


def test_the_offset_is_sampled_again_after_a_second_and_not_before(world: World) -> None:
    clock = KernelClock()
    world.looks = 0
    for _ in range(10):
        world.now_ns += S // 10
        clock.stamp(world.stamp(world.now_ns), world.now_ns, 0)
    assert world.looks == 0
    world.now_ns += 1
    clock.stamp(world.stamp(world.now_ns), world.now_ns, 0)
    assert world.looks > 0
    world.looks = 0
    world.now_ns += S // 2
    clock.stamp(world.stamp(world.now_ns), world.now_ns, 0)
    assert world.looks == 0


def test_a_drift_is_followed_and_is_no_step(world: World) -> None:
    clock = KernelClock()
    for _ in range(20):
        world.now_ns += S + 1
        world.offset_ns -= MS // 2
        came_ns = world.now_ns - 10 * MS
        assert clock.stamp(world.stamp(came_ns), world.now_ns, 0) == came_ns
    assert clock.steps == 0


def test_a_step_back_that_could_be_true_is_counted_and_corrected_within_a_second(
    world: World,
) -> None:
    clock = KernelClock()
    world.offset_ns -= 50 * MS
    for _ in range(11):
        world.now_ns += S // 10 + 1
        t_ns = clock.stamp(world.stamp(world.now_ns), world.now_ns, 0)
    assert t_ns == world.now_ns
    assert clock.steps == 1


def test_the_offset_is_taken_from_the_try_that_was_interrupted_least(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = iter([9 * MS, 8 * MS, 0, 7 * MS, 6 * MS])

    def interrupted() -> int:
        real_ns = world.now_ns + world.offset_ns
        world.now_ns += next(late)
        return real_ns

    monkeypatch.setattr(world, "time_ns", interrupted)
    clock = KernelClock()
    assert clock.stamp(world.stamp(world.now_ns), world.now_ns, 0) == world.now_ns


def test_where_the_kernel_knows_no_stamps_asking_says_so() -> None:
    class Refuses(socket.socket):
        def setsockopt(self, *_: object) -> None:
            raise OSError(92, "Protocol not available")

    with Refuses() as sock:
        assert not ask_for_stamps(sock)


def test_a_clock_can_be_made_where_the_kernel_knows_no_stamps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clock_module, "ask_for_stamps", lambda _: False)
    assert clock_module._keep_stamping.__wrapped__() is None
    monkeypatch.setattr(clock_module, "_keep_stamping", clock_module._keep_stamping.__wrapped__)
    clock = KernelClock()
    assert clock.stamp([], 7, 0) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="SO_TIMESTAMPNS is Linux's")
def test_a_real_stamp_is_between_the_send_and_the_read_however_late_that_is() -> None:
    clock = KernelClock()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
        with here, there:
            assert ask_for_stamps(here)
            for _ in range(5):
                before_ns = time.monotonic_ns()
                there.sendall(b"x")
                sent_ns = time.monotonic_ns()
                here.recv(1, socket.MSG_PEEK)  # it is here
                read_ns = time.monotonic_ns() + 20 * MS
                while time.monotonic_ns() < read_ns:
                    pass
                _, given, _, _ = here.recvmsg(10, ANCILLARY_BYTES)
                t_ns = clock.stamp(given, time.monotonic_ns(), before_ns)
                assert before_ns <= t_ns < read_ns - 10 * MS
                assert sent_ns < read_ns
    assert clock.stamped == 5


@pytest.mark.skipif(sys.platform != "linux", reason="SO_TIMESTAMPNS is Linux's")
def test_fresh_connections_miss_no_stamp_though_none_is_open_between_them() -> None:
    clock = KernelClock()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        while not clock.stamped:  # the kernel begins a moment after it was asked
            clock.stamp(ask(listener), time.monotonic_ns(), 0)
        clock.unstamped = 0
        for _ in range(300):
            clock.stamp(ask(listener), time.monotonic_ns(), 0)
    assert clock.unstamped == 0


def ask(listener: socket.socket) -> Ancillary:
    """What comes with the first bytes on a new connection."""
    with socket.socket() as here:
        assert ask_for_stamps(here)
        here.connect(listener.getsockname())
        there, _ = listener.accept()
        with there:
            there.sendall(b"x")
            return here.recvmsg(10, ANCILLARY_BYTES)[1]
