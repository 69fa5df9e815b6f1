"""The streams of one connection, and what they may do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from struct import Struct

import h2.events as h2_events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from harness.http1 import Piece, ProtocolViolation, Truncated
from harness.http2.reply import StreamReply, StreamUnprocessed

_STREAM_WINDOW_BYTES = 1 << 30
_WINDOW_BYTES = (1 << 31) - 1  # of the connection; the most that there may be
_FIRST_WINDOW_BYTES = 65535
_MAX_FRAME_BYTES = 16384  # as we do not ask for more
_MAX_STREAM_ID = (1 << 31) - 1
_GOAWAY_SHOWN_BYTES = 200
_MOST_STEPS = 8  # heads and ends taken in at a time; with a head each, some 150 µs of CPU

_FRAME = Struct(">HBBBL")  # length (two high bytes, low byte), type, flags, stream
_FRAME_BYTES = _FRAME.size
_RESET = Struct(">HBBBLL")
_WINDOW_UPDATE = _RESET
_LAST_AND_CODE = Struct(">LL")
_DATA, _RST_STREAM, _GOAWAY, _UPDATE = 0, 3, 7, 8
_END_STREAM, _PADDED = 1, 8


class Session:
    """What goes over one connection; `to_send` is to be sent after every call.

    `receive`, `go_on` and `eof` return the replies that have something new. A stream's failure
    stands in its reply, one that is the connection's in `broken`; `eof` then fails all replies.
    """

    def __init__(self, *, max_body_bytes: int) -> None:
        config = H2Configuration(
            client_side=True,
            header_encoding=None,
            normalize_outbound_headers=False,
            validate_outbound_headers=False,
        )
        self._h2 = H2Connection(config)
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
            },
        )
        self._max_body_bytes = max_body_bytes
        self._replies: dict[int, StreamReply] = {}
        self._highest_id = 0
        self._reads: deque[Piece] = deque()  # those that are not taken in yet
        self._read_ns = self._before_ns = 0  # the stamps of the read that is taken in, and before
        self._last: StreamReply | None = None  # that of which the last frame of a read was
        self._held = b""  # a frame of which the end has not come
        self._steps = 0
        self._used_bytes = 0  # of the connection's window
        self._updates: list[bytes] = []
        self.settled = False
        """True when the other side has sent its settings."""
        self.leaving = ""
        """Why no more streams may be begun; empty while they may."""
        self.broken: ProtocolViolation | None = None
        """What the other side must not do and did; nothing is taken in after it."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW_BYTES - _FIRST_WINDOW_BYTES)

    @property
    def streams(self) -> int:
        """How many replies are not over."""
        return len(self._replies)

    @property
    def room(self) -> int:
        """How many more streams the other side takes now."""
        if self.leaving or self._highest_id >= _MAX_STREAM_ID - 2:
            return 0
        return self.most_streams - len(self._replies)

    @property
    def most_streams(self) -> int:
        """How many streams the other side allows at a time."""
        return self._h2.remote_settings.max_concurrent_streams

    def request(
        self, method: str, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> StreamReply:
        """Begin a stream; as much of the body goes as the other side's windows allow."""
        stream_id = self._highest_id = self._h2.get_next_available_stream_id()
        reply = StreamReply(stream_id, method, body, max_body_bytes=self._max_body_bytes)
        self._h2.send_headers(stream_id, headers, end_stream=not body)
        self._replies[stream_id] = reply
        if body:
            self._send_body(reply)
        return reply

    def cancel(self, reply: StreamReply, code: ErrorCodes = ErrorCodes.CANCEL) -> None:
        """Give a stream up; what still comes on it is dropped."""
        if self._replies.pop(reply.stream_id, None) is not None:
            self._h2.reset_stream(reply.stream_id, code)

    def to_send(self) -> bytes:
        """Return what is to be sent now."""
        data = self._h2.data_to_send()
        if self._updates:
            data += b"".join(self._updates)
            self._updates.clear()
        return data

    def receive(self, data: bytes, t_ns: int) -> Iterable[StreamReply]:
        """Take in what one read brought; if it is much, `go_on` does the rest."""
        self._reads.append((data, t_ns))
        return self.go_on()

    @property
    def behind(self) -> bool:
        """True while there is something to `go_on` with."""
        return bool(self._reads) and self.broken is None

    def go_on(self) -> Iterable[StreamReply]:
        """Take in more of what was read, about a millisecond's worth."""
        self._steps = 0
        touched: dict[int, StreamReply] = {}
        while self.behind and self._steps < _MOST_STEPS:
            data, t_ns = self._reads.popleft()
            if t_ns != self._read_ns:
                self._before_ns, self._read_ns = self._read_ns, t_ns
            of_read: dict[int, StreamReply] = {}
            try:
                self._take_in(self._held + data if self._held else data, t_ns, of_read)
            except ProtocolViolation as error:
                self.broken = error
            except ProtocolError as error:
                self.broken = ProtocolViolation(f"HTTP/2: {error}")
            for reply in of_read.values():
                reply.settle(t_ns, t_ns if reply is self._last else self._before_ns)
            touched |= of_read
        return touched.values()

    def _take_in(self, data: bytes, t_ns: int, touched: dict[int, StreamReply]) -> None:
        """Take in the frames that are whole, until there were too many of those that cost much."""
        at, end = 0, len(data)
        self._held = b""
        while end - at >= _FRAME_BYTES:
            if self._steps >= _MOST_STEPS:
                self._reads.appendleft((data[at:], t_ns))
                self._last = None
                return
            high, low, kind, flags, stream_id = _FRAME.unpack_from(data, at)
            length = high << 8 | low
            if length > _MAX_FRAME_BYTES:
                raise ProtocolViolation(f"a frame of {length:,} bytes")
            start, stop = at + _FRAME_BYTES, at + _FRAME_BYTES + length
            if stop > end:
                break
            self._last = None
            if kind == _DATA:
                self._data(stream_id & _MAX_STREAM_ID, flags, data[start:stop], t_ns, touched)
            elif kind == _GOAWAY:
                self._goaway(data[start:stop], touched)
            else:
                self._steps += 1
                self._other(data[at:stop], t_ns, touched)
            at = stop
        self._held = data[at:]
        if self._held:
            self._last = None

    def eof(self, error: Exception | None = None) -> list[StreamReply]:
        """The connection is over; returns the replies that are broken off by that."""
        why = f"; {self.leaving}" if self.leaving else ""
        self.leaving = self.leaving or "the connection was closed"
        broken = list(self._replies.values())
        self._replies.clear()
        for reply in broken:
            where = "before the first byte of a reply" if reply.first_t_ns is None else "inside it"
            reply.error = error or Truncated(f"closed {where}{why}")
        return broken

    # Frames

    def _data(
        self,
        stream_id: int,
        flags: int,
        payload: bytes,
        t_ns: int,
        touched: dict[int, StreamReply],
    ) -> None:
        self._used_bytes += len(payload)
        if self._used_bytes > _WINDOW_BYTES // 2:
            self._updates.append(_WINDOW_UPDATE.pack(0, 4, _UPDATE, 0, 0, self._used_bytes))
            self._used_bytes = 0
        reply = self._replies.get(stream_id)
        if reply is None:
            if not stream_id or stream_id > self._highest_id:
                raise ProtocolViolation(f"DATA on the stream {stream_id}, which is not open")
            return  # given up, and still on its way
        touched[stream_id] = self._last = reply
        flow_bytes = len(payload)
        if flags & _PADDED:
            payload = _without_padding(payload)
        try:
            reply.add(payload, flow_bytes)
            if flags & _END_STREAM:
                self._ended(reply, t_ns)
        except ProtocolViolation as error:
            self._fail(reply, error)

    def _ended(self, reply: StreamReply, t_ns: int) -> None:
        """The stream ended in DATA, of which `h2` does not know."""
        reply.end(t_ns)
        self._steps += 1
        if reply.unsent:  # nobody wants the rest of the request
            self.cancel(reply, ErrorCodes.NO_ERROR)
            return
        del self._replies[reply.stream_id]
        self._h2.receive_data(_RESET.pack(0, 4, _RST_STREAM, 0, reply.stream_id, 0))

    def _goaway(self, payload: bytes, touched: dict[int, StreamReply]) -> None:
        if len(payload) < _LAST_AND_CODE.size:
            raise ProtocolViolation("a GOAWAY frame that is too short")
        last, code = _LAST_AND_CODE.unpack_from(payload)
        why = payload[_LAST_AND_CODE.size :][:_GOAWAY_SHOWN_BYTES].decode("ascii", "replace")
        self.leaving = f"the server went away: {_name(code)}" + (f", {why!r}" if why else "")
        for stream_id in [known for known in self._replies if known > last & _MAX_STREAM_ID]:
            touched[stream_id] = reply = self._replies.pop(stream_id)
            reply.error = StreamUnprocessed(f"{self.leaving}; the request was not processed")

    def _other(self, frame: bytes, t_ns: int, touched: dict[int, StreamReply]) -> None:
        for event in self._h2.receive_data(frame):
            match event:
                case h2_events.ResponseReceived() | h2_events.InformationalResponseReceived():
                    self._headers(event, t_ns, touched)
                case h2_events.StreamEnded(stream_id=stream_id):
                    self._ended_by_headers(stream_id, t_ns, touched)
                case h2_events.StreamReset(stream_id=stream_id, error_code=code):
                    self._was_reset(stream_id, int(code or 0), t_ns, touched)
                case h2_events.RemoteSettingsChanged():
                    self.settled = True
                    self._send_bodies(touched)
                case h2_events.WindowUpdated():
                    self._send_bodies(touched)

    def _headers(
        self,
        event: h2_events.ResponseReceived | h2_events.InformationalResponseReceived,
        t_ns: int,
        touched: dict[int, StreamReply],
    ) -> None:
        reply = self._replies.get(event.stream_id or 0)
        if reply is None:
            return
        touched[reply.stream_id] = reply
        if reply.first_t_ns is None:
            reply.first_t_ns = t_ns
        if isinstance(event, h2_events.ResponseReceived):
            reply.begin([(bytes(n), bytes(v)) for n, v in event.headers or ()], t_ns)

    def _ended_by_headers(self, stream_id: int, t_ns: int, touched: dict[int, StreamReply]) -> None:
        reply = self._replies.get(stream_id)
        if reply is None:
            return
        touched[stream_id] = reply
        try:
            reply.end(t_ns)
        except ProtocolViolation as error:
            reply.error = error
        if reply.unsent:
            self.cancel(reply, ErrorCodes.NO_ERROR)
        else:
            del self._replies[stream_id]

    def _was_reset(
        self, stream_id: int, code: int, t_ns: int, touched: dict[int, StreamReply]
    ) -> None:
        reply = self._replies.pop(stream_id, None)
        if reply is None:
            return
        touched[stream_id] = reply
        reply.first_t_ns = reply.first_t_ns or t_ns
        if code == ErrorCodes.REFUSED_STREAM:
            reply.error = StreamUnprocessed("the server refused the stream")
        else:
            reply.error = ProtocolViolation(f"the server reset the stream: {_name(code)}")

    def _fail(self, reply: StreamReply, error: ProtocolViolation) -> None:
        reply.error = error
        self.cancel(reply, ErrorCodes.PROTOCOL_ERROR)

    # Bodies of requests

    def _send_bodies(self, touched: dict[int, StreamReply]) -> None:
        for reply in self._replies.values():
            if reply.unsent:
                touched[reply.stream_id] = reply
                self._send_body(reply)

    def _send_body(self, reply: StreamReply) -> None:
        """Send as much as the windows allow; the last part ends the stream."""
        while left := len(reply.unsent):
            room = self._h2.local_flow_control_window(reply.stream_id)
            size = min(room, self._h2.max_outbound_frame_size, left)
            if size <= 0:
                return
            part, reply.unsent = reply.unsent[:size], reply.unsent[size:]
            self._h2.send_data(reply.stream_id, bytes(part), end_stream=size == left)


def _without_padding(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ProtocolViolation("a DATA frame of nothing but padding")
    return payload[1 : len(payload) - payload[0]]


def _name(code: int) -> str:
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error {code:#x}"
