"""One HTTP/2 connection, both ends in memory: however the bytes are cut, and whatever the server does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.http1 import ProtocolViolation, Truncated
from harness.http2 import Session, StreamReply, StreamUnprocessed

POST = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")]
OK = [(":status", "200"), ("content-type", "text/event-stream")]
MAX_BODY_BYTES = 1 << 20


class Pair:
    """A session and a server, connected; `t_ns` counts the reads."""

    def __init__(self, **settings: int) -> None:
        self.session = Session(max_body_bytes=MAX_BODY_BYTES)
        config = h2.config.H2Configuration(client_side=False)
        self.server = h2.connection.H2Connection(config=config)
        codes = {h2.settings.SettingCodes[name]: value for name, value in settings.items()}
        self.server.local_settings = h2.settings.Settings(client=False, initial_values=codes)
        self.server.initiate_connection()
        self.t_ns = 0
        self.bodies: dict[int, bytes] = {}
        self.resets: dict[int, int] = {}
        self.events: list[Any] = []
        self.turn()

    def ask(self, body: bytes = b"") -> StreamReply:
        reply = self.session.request("POST", POST, body)
        self.turn()
        return reply

    def turn(self) -> None:
        """Carry bytes until neither side has more to say."""
        while True:
            there, here = self.session.to_send(), self.server.data_to_send()
            if not there and not here:
                return
            if there:
                self.hear(there)
            if here:
                self.feed(here)

    def hear(self, data: bytes) -> None:
        for event in self.server.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived):
                known = self.bodies.setdefault(event.stream_id, b"")
                self.bodies[event.stream_id] = known + event.data
                self.server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.resets[event.stream_id] = event.error_code

    def feed(self, data: bytes) -> list[StreamReply]:
        self.t_ns += 1
        touched = {reply.stream_id: reply for reply in self.session.receive(data, self.t_ns)}
        while self.session.behind:
            touched |= {reply.stream_id: reply for reply in self.session.go_on()}
        return list(touched.values())

    def seen(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_of_the_streams_in_one_read_only_the_last_has_the_reads_stamp():
    pair = Pair()
    one, other = pair.ask(), pair.ask()
    for reply in (one, other):
        pair.server.send_headers(reply.stream_id, OK)
    pair.feed(pair.server.data_to_send())
    before_ns = pair.t_ns
    pair.server.send_data(one.stream_id, b"a")
    pair.server.send_data(other.stream_id, b"b")
    pair.feed(pair.server.data_to_send())
    assert one.take() == [(b"a", pair.t_ns)]
    assert other.take() == [(b"b", pair.t_ns)]
    assert (one.loose, other.loose) == ({pair.t_ns: before_ns}, {})
    pair.server.send_data(one.stream_id, b"c")
    pair.feed(pair.server.data_to_send())
    assert (len(one.take()), len(one.loose)) == (1, 1)


@pytest.mark.parametrize("more", [b"\0", b"\0\0\4\0\0\0\0\0\1da"])
def test_the_beginning_of_another_frame_makes_a_stamp_loose_too(more):
    pair = Pair()
    reply = pair.ask()
    pair.server.send_headers(reply.stream_id, OK)
    pair.feed(pair.server.data_to_send())
    pair.server.send_data(reply.stream_id, b"a")
    pair.feed(pair.server.data_to_send() + more)
    assert reply.loose == {pair.t_ns: pair.t_ns - 1}


def frame(kind: int, payload: bytes, *, stream: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def goaway(last: int, code: int = 0, why: bytes = b"") -> bytes:
    return frame(7, struct.pack(">II", last, code) + why)


def test_a_streams_bytes_carry_the_stamp_of_their_read_and_those_of_one_read_are_one_piece() -> (
    None
):
    pair = Pair()
    first, second = pair.ask(), pair.ask()
    pair.server.send_headers(1, OK)
    pair.server.send_headers(3, OK)
    pair.feed(pair.server.data_to_send())
    for number in (1, 3, 1):
        pair.server.send_data(number, b"%d-" % number)
    at_ns = pair.t_ns + 1
    assert pair.feed(pair.server.data_to_send()) == [first, second]
    assert first.take() == [(b"1-1-", at_ns)]
    assert second.take() == [(b"3-", at_ns)]
    pair.server.send_data(1, b"end", end_stream=True)
    pair.turn()
    assert first.take() == [(b"end", at_ns + 1)]
    assert first.complete
    assert first.end_t_ns == at_ns + 1
    assert first.head is not None
    assert (first.head.status, first.head.t_ns) == (200, first.first_t_ns)
    assert not second.over
    assert pair.session.streams == 1


def conversation(body: bytes) -> tuple[Pair, list[StreamReply], bytes]:
    """Two streams whose replies the server has put on the wire, with a 1xx, padding and trailers."""
    pair = Pair()
    replies = [pair.ask(), pair.ask()]
    server = pair.server
    server.send_headers(1, [(":status", "103"), ("link", "x")])
    server.send_headers(3, OK)
    for at in range(0, len(body), 100):
        server.send_data(3, body[at : at + 100], pad_length=7)
        server.ping(b"12345678")
    server.send_headers(1, [*OK, ("content-length", str(len(body)))])
    server.send_data(1, body)
    server.send_headers(3, [("x-trailer", "late")], end_stream=True)
    server.end_stream(1)
    return pair, replies, server.data_to_send()


@given(st.integers(0, 2000), st.lists(st.integers(1, 400), max_size=60))
def test_however_the_bytes_are_cut_the_replies_are_the_same(size: int, cuts: list[int]) -> None:
    body = bytes(range(256)) * 8
    pair, replies, wire = conversation(body[:size])
    for cut in cuts or [1] * len(wire):
        pair.feed(wire[:cut])
        wire = wire[cut:]
    pair.feed(wire)
    for reply in replies:
        assert reply.error is None
        assert reply.complete
        assert b"".join(data for data, _ in reply.take()) == body[:size]
        assert reply.head is not None
        assert reply.head.status == 200
    pair.turn()
    assert len(pair.seen(h2.events.PingAckReceived)) == -(-size // 100)
    assert pair.session.streams == 0


def test_a_body_goes_on_as_the_servers_windows_open() -> None:
    pair = Pair(INITIAL_WINDOW_SIZE=10)
    body = bytes(range(250)) * 40
    replies = [pair.ask(body), pair.ask(body)]
    assert not any(reply.unsent for reply in replies)
    assert pair.bodies == {1: body, 3: body}
    assert len(pair.seen(h2.events.StreamEnded)) == 2


def test_a_window_of_nothing_holds_the_body_and_not_the_other_streams() -> None:
    pair = Pair(INITIAL_WINDOW_SIZE=0)
    held, other = pair.ask(b"x" * 10), pair.ask()
    assert len(held.unsent) == 10
    pair.server.send_headers(3, OK, end_stream=True)
    pair.turn()
    assert other.complete
    pair.server.increment_flow_control_window(4, 1)  # what the server takes in is its own affair
    pair.feed(frame(8, struct.pack(">I", 4), stream=1))
    assert bytes(held.unsent) == b"x" * 6


def test_the_server_may_send_as_much_as_a_body_may_have_without_waiting() -> None:
    pair = Pair()
    reply = pair.ask()
    pair.server.send_headers(1, OK)
    part = bytes(16384)
    for _ in range(MAX_BODY_BYTES // len(part)):
        pair.server.send_data(1, part)
    pair.server.end_stream(1)
    pair.turn()
    assert reply.complete
    assert sum(len(data) for data, _ in reply.take()) == MAX_BODY_BYTES


def test_the_connections_window_is_opened_again_also_by_what_is_dropped() -> None:
    pair = Pair()
    pair.session.cancel(pair.ask())
    pair.turn()
    part = frame(0, bytes(16384), stream=1)
    for _ in range((1 << 30) // 16384 - 1):
        pair.feed(part)
    assert not pair.session.to_send()
    pair.feed(part)
    assert pair.session.to_send() == frame(8, struct.pack(">I", 1 << 30))


@pytest.mark.parametrize(
    ("wire", "says"),
    {
        "nothing is open": (frame(0, b"x", stream=7), "stream 7"),
        "on the connection": (frame(0, b"x", stream=0), "stream 0"),
        "padding alone": (frame(0, b"\x05123", stream=1, flags=8), "nothing but padding"),
        "no padding": (frame(0, b"", stream=1, flags=8), "nothing but padding"),
        "too long": (frame(0, bytes(16385), stream=1), "frame of 16,385 bytes"),
        "short goaway": (frame(7, b"\0\0\0\0"), "too short"),
        "push": (frame(5, b"\0\0\0\x02\x88", stream=1, flags=4), "HTTP/2: "),
        "a bad header block": (frame(1, b"\xff\xff\xff\xff", stream=1, flags=4), "HTTP/2: "),
        "no frame": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "frame of"),
    }.values(),
)
def test_what_breaks_the_connection_is_told(wire: bytes, says: str) -> None:
    pair = Pair()
    reply = pair.ask()
    pair.feed(wire)
    assert says in str(pair.session.broken)
    assert pair.session.eof(ProtocolViolation("so")) == [reply]
    assert str(reply.error) == "so"
    assert pair.session.room == 0


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        (frame(0, b"1234", stream=1, flags=1), "4 of 3 bytes"),
        (frame(0, b"12", stream=1, flags=1), "2 of 3 bytes"),
        (frame(3, struct.pack(">I", 2), stream=1), "reset the stream: INTERNAL_ERROR"),
        (frame(3, struct.pack(">I", 77), stream=1), "reset the stream: error 0x4d"),
        (frame(0, b"12", stream=5), "before the head"),
    ],
)
def test_what_breaks_one_stream_leaves_the_others(wire: bytes, says: str) -> None:
    pair = Pair()
    first, other, silent = pair.ask(), pair.ask(), pair.ask()
    pair.server.send_headers(1, [*OK, ("content-length", "3")])
    pair.turn()
    pair.feed(wire)
    broken = silent if "before" in says else first
    assert says in str(broken.error)
    assert not broken.complete
    pair.server.send_headers(3, OK)
    pair.server.send_data(3, b"on", end_stream=True)
    pair.turn()
    assert other.complete
    assert other.take() == [(b"on", other.end_t_ns)]


def test_a_body_above_the_limit_is_refused_and_what_follows_it_is_dropped() -> None:
    pair = Pair()
    reply = pair.ask()
    pair.server.send_headers(1, OK)
    reply.max_body_bytes = 1000
    pair.server.send_data(1, bytes(1001))
    pair.server.send_data(1, bytes(1001))
    pair.feed(pair.server.data_to_send())
    assert "above the 1,000 bytes" in str(reply.error)
    pair.turn()
    assert pair.resets == {1: h2.errors.ErrorCodes.PROTOCOL_ERROR}


def test_goaway_ends_what_was_not_processed_and_the_rest_goes_on() -> None:
    pair = Pair()
    kept, lost = pair.ask(), pair.ask()
    assert pair.feed(goaway(1, 0, b"bye")) == [lost]
    assert isinstance(lost.error, StreamUnprocessed)
    assert "NO_ERROR, 'bye'" in str(lost.error)
    assert pair.session.room == 0
    pair.server.send_headers(1, OK)
    pair.server.ping(b"12345678")
    pair.server.send_data(1, b"still here", end_stream=True)
    pair.turn()
    assert kept.complete
    assert len(pair.seen(h2.events.PingAckReceived)) == 1


def test_a_refused_stream_was_not_processed() -> None:
    pair = Pair()
    reply = pair.ask()
    pair.server.reset_stream(1, h2.errors.ErrorCodes.REFUSED_STREAM)
    pair.turn()
    assert isinstance(reply.error, StreamUnprocessed)


def test_a_close_breaks_off_what_runs_and_says_why() -> None:
    pair = Pair()
    begun, silent = pair.ask(), pair.ask()
    pair.server.send_headers(1, OK)
    pair.turn()
    pair.feed(goaway(3, 11))
    assert pair.session.eof() == [begun, silent]
    assert isinstance(begun.error, Truncated)
    assert "closed inside it; the server went away: ENHANCE_YOUR_CALM" in str(begun.error)
    assert "before the first byte" in str(silent.error)


def test_the_reply_to_a_request_that_is_not_wanted_whole_ends_both() -> None:
    pair = Pair(INITIAL_WINDOW_SIZE=0)
    answers: list[Callable[[], object]] = [
        lambda: pair.server.send_headers(1, OK, end_stream=True),
        lambda: (pair.server.send_headers(3, OK), pair.server.end_stream(3)),
    ]
    for answer in answers:
        reply = pair.ask(b"long")
        answer()
        pair.turn()
        assert reply.complete
    assert pair.resets == {1: h2.errors.ErrorCodes.NO_ERROR, 3: h2.errors.ErrorCodes.NO_ERROR}


def test_the_servers_limit_on_streams_is_known_when_its_settings_are() -> None:
    session = Session(max_body_bytes=1)
    assert not session.settled
    pair = Pair(MAX_CONCURRENT_STREAMS=2)
    assert pair.session.settled
    assert pair.session.room == pair.session.most_streams == 2
    replies = [pair.ask(), pair.ask()]
    assert pair.session.room == 0
    pair.session.cancel(replies[0])
    assert pair.session.room == 1
    pair.server.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    pair.turn()
    assert pair.session.room == 0


def test_a_thousand_streams_leave_nothing_behind() -> None:
    pair = Pair()
    for _ in range(1000):
        reply = pair.ask()
        pair.server.send_headers(reply.stream_id, OK)
        pair.server.send_data(reply.stream_id, b"x", end_stream=True)
        pair.turn()
        assert reply.complete
    assert pair.session.streams == 0
    assert len(pair.session._h2.streams) <= 1


def test_much_at_once_is_taken_in_by_parts_in_order_and_nothing_is_lost() -> None:
    pair = Pair()
    replies = [pair.ask() for _ in range(50)]
    for reply in replies:
        pair.server.send_headers(reply.stream_id, OK)
        for _ in range(3):
            pair.server.send_data(reply.stream_id, b"x")
        pair.server.end_stream(reply.stream_id)
    wire = pair.server.data_to_send()
    sizes = [len(list(pair.session.receive(wire[:-1], 1)))]
    sizes.append(len(list(pair.session.receive(wire[-1:], 2))))
    while pair.session.behind:
        sizes.append(len(list(pair.session.go_on())))
    assert max(sizes) < 10
    assert [reply.take() for reply in replies] == [[(b"xxx", 1)]] * 50
    assert [reply.end_t_ns for reply in replies] == [1] * 49 + [2]


def test_what_came_whole_before_a_violation_is_told_with_it() -> None:
    pair = Pair()
    whole, broken = pair.ask(), pair.ask()
    pair.server.send_headers(1, OK, end_stream=True)
    touched = pair.feed(pair.server.data_to_send() + frame(0, b"x", stream=9))
    assert touched == [whole]
    assert whole.complete
    assert pair.session.broken is not None
    assert pair.session.eof(pair.session.broken) == [broken]


FRAMES = st.builds(
    frame,
    st.sampled_from([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 77]),
    st.one_of(st.binary(max_size=20), st.sampled_from([b"\x88", bytes(4), bytes(8), b"\0\0\0\5"])),
    stream=st.sampled_from([0, 1, 1, 3, 5, 2, (1 << 31) + 1]),
    flags=st.one_of(st.sampled_from([0, 1, 4, 5]), st.integers(0, 255)),
)


@given(st.lists(FRAMES, max_size=12), st.binary(max_size=10))
def test_whatever_a_server_says_nothing_is_raised_and_every_reply_comes_to_an_end(
    frames: list[bytes], rest: bytes
) -> None:
    pair = Pair()
    replies = [pair.ask(), pair.ask(b"body")]
    for wire in [*frames, rest]:
        pair.feed(wire)
        pair.session.to_send()
    pair.session.eof(pair.session.broken)
    assert all(reply.over for reply in replies)
    assert not any(reply.complete and reply.error for reply in replies)
    assert pair.session.room == 0
