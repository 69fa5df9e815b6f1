"""The decoder against real servers' bytes and a plain reading of the spec; timings by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import RequestFailed
from harness.wire import Event, SSEDecoder, timings

WIRE = Path(__file__).parent / "data" / "wire"
BOM = b"\xef\xbb\xbf"
EVENTS_IN_FILE = {  # with [DONE], where it is sent
    "sse-llama-cpp-python-interrupted.bin": 2,
    "sse-llama-cpp-python-raw.bin": 9,
    "sse-llamacpp-queued-ping.bin": 6,
    "sse-llamacpp-raw.bin": 10,
    "sse-transformers-serve-raw.bin": 8,
    "sse-vllm-raw.bin": 9,
}


def body_of(name):
    """The body of a recorded reply; curl kept the head in some and had undone the chunks in all."""
    raw = (WIRE / name).read_bytes()
    return raw.partition(b"\r\n\r\n")[2] if raw.startswith(b"HTTP/") else raw


def decode(reads, **limits):
    """Feed reads stamped 0, 1, 2 ... after a request sent at -1; the events, then the decoder."""
    decoder = SSEDecoder(since_ns=-1, **limits)
    return [e for t, data in enumerate(reads) for e in decoder.feed(data, t)], decoder


def byte_by_byte(body):
    return [body[i : i + 1] for i in range(len(body))]


def cut_at(body, places):
    edges = [0, *sorted(places), len(body)]
    return [body[a:b] for a, b in pairwise(edges)]


def by_the_spec(body):
    """(data, name, offset of the last data byte, offset after the blank line), read slowly."""
    found, data, name, last = [], [], None, 0
    at = 3 if body.startswith(BOM) else 0
    while True:
        end = at
        while end < len(body) and body[end : end + 1] not in (b"\r", b"\n"):
            end += 1
        if end == len(body):
            return found
        line, after = body[at:end], end + (2 if body[end : end + 2] == b"\r\n" else 1)
        if not line:
            if data:
                found.append((b"\n".join(data), name, last, after))
            data, name = [], None
        else:
            key, value = line.split(b":", 1) if b":" in line else (line, b"")
            value = value[1:] if value.startswith(b" ") else value
            if key == b"data":
                data.append(value)
                last = end - 1
            elif key == b"event":
                name = value.decode("utf-8", "replace") or None
        at = after


def expected(reads):
    """The events of these reads, stamps and what they came after, from the slow reading."""
    body = b"".join(reads)
    ends, total = [], 0
    for data in reads:
        total += len(data)
        ends.append(total)
    events = []
    for data, name, last, after in by_the_spec(body):
        read = next(i for i, end in enumerate(ends) if last < end)
        followed = body[after : ends[read]].strip(b"\r\n")
        before = max((i for i in range(read) if reads[i]), default=-1)
        events.append(Event(data, read, before if followed else read, name))
    return events


pieces = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"data: x", b"data:y", b"data:  z", b"data"),
        *(b"data:", b"data: a\n\n", b'data: {"k": "v"}\n\n', b"data: [DONE]\n\n", b": ping\n\n"),
        *(
            b"event: error\n",
            b"event:\n",
            b"id: 7\n",
            b"retry: 1\n",
            b"database: no\n",
            b" data: no",
        ),
        *(BOM, b"\xe2\x80\xa8", b"\xff", b"\x0b", b"\x85", b":", b" ", b"data: \xe2\x80\xa8\n\n"),
    ]
)
bodies = st.lists(pieces, max_size=14).map(b"".join)


@settings(max_examples=600, deadline=None)
@given(body=bodies, places=st.lists(st.integers(0, 120), max_size=8))
def test_any_split_of_any_body_gives_what_the_spec_gives(body, places):
    reads = cut_at(body, [p for p in places if p <= len(body)])
    assert decode(reads)[0] == expected(reads)


# Whole lines and events as reads, so that the fast path and the general one take turns.
events_and_lines = st.sampled_from(
    [
        *(b"data: a\n\n", b"data: b\n\n", b"data: c", b"data: d\n", b"data:e\n\n", b"\n", b"\r"),
        *(b"event: e\n", b": ping\n\n", BOM),
    ]
)


@settings(max_examples=1000, deadline=None)
@given(reads=st.lists(st.lists(events_and_lines, min_size=1, max_size=4).map(b"".join), max_size=5))
def test_reads_that_end_with_their_lines_and_events_give_what_the_spec_gives(reads):
    assert decode(reads)[0] == expected(reads)


@pytest.mark.parametrize("name", EVENTS_IN_FILE)
def test_a_real_servers_bytes_give_the_same_events_however_they_are_cut(name):
    body = body_of(name)
    for reads in ([body], byte_by_byte(body), cut_at(body, range(0, len(body), 7))):
        events, decoder = decode(reads)
        assert events == expected(reads)
        assert len(events) == EVENTS_IN_FILE[name]
        assert decoder.pending is None


@pytest.mark.parametrize("eol", [b"\n", b"\r", b"\r\n"])
def test_each_of_the_three_line_ends_ends_lines(eol):
    body = eol.join([b"event: e", b"data: a", b"data: b", b"", b"data: c", b"", b""])
    for reads in ([body], byte_by_byte(body)):
        events, _ = decode(reads)
        assert [(e.data, e.event) for e in events] == [(b"a\nb", "e"), (b"c", None)]


def test_a_crlf_cut_between_its_bytes_ends_one_line_not_two():
    events, _ = decode([b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n"])
    assert [e.data for e in events] == [b"a\nb"]


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_what_only_str_splitlines_takes_for_a_line_end_stays_in_the_data(odd):
    line = f"data: a{odd}b".encode()
    assert [e.data for e in decode([line + b"\n\n"])[0]] == [f"a{odd}b".encode()]
    assert [e.data for e in decode([line + b"\r\n\r\n"])[0]] == [f"a{odd}b".encode()]


def test_a_bom_is_dropped_at_the_very_start_and_nowhere_else():
    body = BOM + b"data: a\n\n" + BOM + b"data: b\n\n"
    for reads in ([body], byte_by_byte(body)):
        assert [e.data for e in decode(reads)[0]] == [b"a"]
    assert decode([BOM + b"data: cut"])[1].pending == b"cut"


def test_comments_and_events_without_data_come_to_nothing():
    events, decoder = decode([b": ping\n\n:\n\nevent: error\n\nid: 4\n\ndata: a\n\n"])
    assert events == [Event(b"a", 0, 0)]
    assert decoder.pending is None


def test_an_event_is_stamped_with_the_read_of_its_last_data_byte_not_of_its_blank_line():
    events, _ = decode([b"data: to", b"ken", b"\n", b"\n", b"data: next\n", b"\n"])
    assert [(e.t_ns, e.exact) for e in events] == [(1, True), (4, True)]


def test_of_events_that_came_in_one_read_only_the_last_is_exact():
    events, _ = decode([b"data: a\n\n", b"data: b\n\ndata: c\n\ndata: d\n\n"])
    assert [e.exact for e in events] == [True, False, False, True]
    assert [(e.after_ns, e.t_ns) for e in events] == [(0, 0), (0, 1), (0, 1), (1, 1)]


def test_an_event_followed_by_the_beginning_of_another_is_not_exact():
    events, _ = decode([b"data: a\n\ndat", b"a: b\n\n: ping"])
    assert [(e.after_ns, e.t_ns) for e in events] == [(-1, 0), (0, 1)]


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"])
def test_an_event_without_its_blank_line_is_pending_and_never_an_event(tail):
    for reads in ([b"data: a\n\n" + tail], byte_by_byte(b"data: a\n\n" + tail)):
        events, decoder = decode(reads)
        assert [e.data for e in events] == [b"a"]
        assert decoder.pending == b"[DONE]"


@pytest.mark.parametrize("cut", [byte_by_byte, lambda body: [body]])
def test_an_event_at_the_limit_passes_and_one_byte_more_is_malformed(cut):
    for event in (b"data: 0123456789\n\n", b"data: 012\ndata: 3456\n\n", b"data:\t0123456789\n\n"):
        size = len(event) - event.count(b"\n")
        body = b"data: first\n\n" + event
        assert len(decode(cut(event), max_event_bytes=size)[0]) == 1
        assert len(decode(cut(body), max_event_bytes=size)[0]) == 2
        for too_long in (event, body):
            with pytest.raises(RequestFailed, match="malformed event: longer than"):
                decode(cut(too_long), max_event_bytes=size - 1)


def test_a_line_that_never_ends_is_refused_before_it_is_all_held():
    reads = iter([b": endless"] * 10_000)
    with pytest.raises(RequestFailed, match="1,000 bytes"):
        decode(reads, max_event_bytes=1000)
    assert len(list(reads)) > 9_800


def test_the_limit_is_for_one_event_and_starts_anew_with_the_next():
    body = b"data: 0123456789\r\n\r\n" * 50
    assert len(decode([body], max_event_bytes=16)[0]) == 50


@pytest.mark.parametrize("data", [b"data: b\n\n", b"data:b\n\n", b"data: b\r\n\r\n"])
def test_an_event_in_a_loose_read_came_after_the_read_before_it(data):
    loose = {1: 0, 2: 1}
    decoder = SSEDecoder(since_ns=-1, loose=loose)
    assert decoder.feed(b"data: a\n\n", 0)[0].exact
    assert [(e.after_ns, e.t_ns) for e in decoder.feed(data, 1)] == [(0, 1)]
    assert [(e.after_ns, e.t_ns) for e in decoder.feed(data * 2, 2)] == [(1, 2), (1, 2)]
    assert decoder.feed(data, 3)[0].exact


def test_an_event_whose_blank_line_came_later_is_as_loose_as_the_read_of_its_data():
    decoder = SSEDecoder(since_ns=-1, loose={5: 2})
    assert decoder.feed(b"data: a\n", 5) == []
    assert [(e.after_ns, e.t_ns) for e in decoder.feed(b"\n", 6)] == [(2, 5)]


MS = 1_000_000


def exact(*tokens):
    """Token events whose stamps are their own."""
    return [(t_ns, visible, t_ns) for t_ns, visible in tokens]


def test_timings_follow_their_definitions():
    got = timings(
        start_ns=0,
        sent_ns=10 * MS,
        tokens=exact((100 * MS, False), (140 * MS, True), (200 * MS, True)),
        end_ns=250 * MS,
        streamed_tokens=6,
    )
    assert (got.ttft, got.ttfo, got.service_ttft) == (100 * MS, 140 * MS, 90 * MS)
    assert got.itl == (40 * MS, 60 * MS)
    assert got.tpot == 20 * MS
    assert (got.e2el, got.service) == (250 * MS, 240 * MS)
    assert (got.ends, got.itl_ends) == ({}, None)


def test_events_that_share_a_stamp_have_times_with_two_ends():
    tokens = [(50, False, 10), (50, True, 10), (50, True, 50), (90, True, 90)]
    got = timings(start_ns=0, sent_ns=5, tokens=tokens, end_ns=100, streamed_tokens=5)
    assert (got.ttft, got.ttfo, got.itl, got.tpot) == (50, 50, (0, 0, 40), 10)
    assert got.ends == {
        "ttft": (10, 50),
        "service_ttft": (5, 45),
        "ttfo": (10, 50),
        "tpot": (10, 20),
    }
    assert got.itl_ends == ((0, 40), (0, 40), (40, 40))


reads_of_tokens = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4)),
    min_size=1,
    max_size=8,
)


@given(reads=reads_of_tokens, count=st.integers(2, 40))
def test_the_ends_hold_wherever_in_its_read_each_event_came(reads, count):
    tokens, true, before = [], [], 10
    for length, places in reads:
        t_ns = before + length
        for place in sorted(places)[:-1]:
            tokens.append((t_ns, True, before))
            true.append(before + place * length)
        tokens.append((t_ns, True, t_ns))  # the read is stamped by its last segment
        true.append(t_ns)
        before = t_ns
    got = timings(start_ns=0, sent_ns=10, tokens=tokens, end_ns=before, streamed_tokens=count)

    def holds(value, ends, point):
        least, most = (point, point) if ends is None else ends
        return least - 0.5 <= value <= most + 0.5

    assert holds(true[0], got.ends.get("ttft"), got.ttft)
    gap_ends = got.itl_ends or [(gap, gap) for gap in got.itl]
    assert all(
        holds(after - one, ends, None)
        for (one, after), ends in zip(pairwise(true), gap_ends, strict=True)
    )
    if got.tpot is not None:
        assert holds((true[-1] - true[0]) / (count - 1), got.ends.get("tpot"), got.tpot)


def test_of_tokens_that_were_counted_and_not_sent_there_is_no_tpot():
    tokens = exact((0, True), (40, True), (100, True))
    got = timings(start_ns=0, sent_ns=0, tokens=tokens, end_ns=100, streamed_tokens=None)
    assert (got.tpot, got.itl) == (None, (40, 60))


@pytest.mark.parametrize(
    ("tokens", "streamed_tokens"),
    [
        ([(5, True)], 1),
        ([(5, True)], None),
        ([(5, True)], 9),  # nine tokens in one event: there is no span to divide
        ([(5, True), (7, True)], 1),
        ([(5, True), (7, True)], 0),
        ([], 3),
    ],
)
def test_tpot_is_absent_below_two_tokens_or_two_events(tokens, streamed_tokens):
    got = timings(
        start_ns=0, sent_ns=0, tokens=exact(*tokens), end_ns=9, streamed_tokens=streamed_tokens
    )
    assert got.tpot is None
    assert len(got.itl) == max(len(tokens) - 1, 0)


def test_a_reply_without_tokens_has_no_token_times():
    got = timings(start_ns=1, sent_ns=2, tokens=[], end_ns=9, streamed_tokens=0)
    assert (got.ttft, got.ttfo, got.service_ttft, got.itl) == (None, None, None, ())
    assert (got.e2el, got.service) == (8, 7)


def test_a_reply_of_reasoning_alone_has_a_first_token_and_no_first_output():
    got = timings(start_ns=0, sent_ns=0, tokens=exact((5, False)), end_ns=9, streamed_tokens=1)
    assert (got.ttft, got.ttfo) == (5, None)


@given(stamps=st.lists(st.integers(0, 10**12), max_size=30).map(sorted))
def test_gaps_are_one_fewer_than_token_events_and_add_up_to_their_span(stamps):
    tokens = exact(*((t, True) for t in stamps))
    got = timings(start_ns=0, sent_ns=0, tokens=tokens, end_ns=10**12, streamed_tokens=len(stamps))
    assert len(got.itl) == max(len(stamps) - 1, 0)
    assert sum(got.itl) == (stamps[-1] - stamps[0] if stamps else 0)
