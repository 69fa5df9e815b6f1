"""Replies read out of real servers' bytes and of hand-written ones; requests as they are worded."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness import apis
from harness.apis import (
    StreamReader,
    api,
    chunks,
    read_json,
    status_failure,
    url_for,
)
from harness.errors import RequestFailed, UserError

WIRE = Path(__file__).parent / "data" / "wire"
CHAT = api("openai-chat")
COMPLETIONS = api("openai-completions")
EMBEDDINGS = api("openai-embeddings")
JSON = api("json")

# name: token events, output tokens, counted, input tokens, [DONE], text, server's own timings
WHOLE_FILES = {
    "sse-vllm-raw.bin": (6, 6, False, 33, True, "Hello! I'sure I", False),
    "sse-llamacpp-raw.bin": (6, 6, False, 33, True, "Hello! I'm here to", True),
    "sse-llamacpp-queued-ping.bin": (3, 3, True, None, True, "Hello! How", True),
    "sse-llama-cpp-python-raw.bin": (6, 6, True, None, True, "Hello! I'm here to", False),
    "sse-transformers-serve-raw.bin": (6, 6, False, 33, False, "Hello! I'sure I", False),
}


def body_of(name):
    """The body of a recorded reply; curl kept the head in some and had undone the chunks in all."""
    raw = (WIRE / name).read_bytes()
    return raw.partition(b"\r\n\r\n")[2] if raw.startswith(b"HTTP/") else raw


def one_event_a_read(body):
    return [part + b"\n\n" for part in body.split(b"\n\n")]


def read(reads, *, of=CHAT, end_ns=10**6, cause=None, **limits):
    """Feed reads stamped 0, 1, 2 ... and finish."""
    reader = StreamReader(of, since_ns=-1, **limits)
    for t, data in enumerate(reads):
        reader.feed(data, t)
    return reader.finish(end_ns, cause=cause)


def exact(*tokens):
    """Token events whose stamps are their own."""
    return tuple((t_ns, visible, t_ns) for t_ns, visible in tokens)


def sse(*values):
    """One read an event."""
    return [
        b"data: " + (v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n\n"
        for v in values
    ]


def chunk(delta, finish=None, index=0, **more):
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


ROLE = chunk({"role": "assistant", "content": ""})
HELLO = chunk({"content": "Hello"})
STOP = chunk({}, "stop")
DONE = b"[DONE]"


@pytest.mark.parametrize("name", WHOLE_FILES)
@pytest.mark.parametrize("cut", ["whole", "bytes", "events", "trailing"])
def test_a_real_servers_reply_reads_the_same_however_it_is_cut(name, cut):
    body = body_of(name)
    reads = {
        "whole": [body],
        "bytes": [body[i : i + 1] for i in range(len(body))],
        "events": one_event_a_read(body),
        "trailing": [body, b"\n\n: bye\n\n", b"200 ttfb=4.98 total=5.04\n"],
    }[cut]
    reply = read(reads)
    events, tokens, counted, asked, done, text, has_timings = WHOLE_FILES[name]
    assert reply.failure is None
    assert reply.finish_reason == "length"
    assert reply.text == text
    assert (len(reply.token_events), reply.output_tokens) == (events, tokens)
    assert (reply.tokens_counted, reply.input_tokens) == (counted, asked)
    assert (reply.done_seen, reply.server_timings is not None) == (done, has_timings)
    assert not reply.incomplete_event


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_the_first_token_is_the_second_event_as_every_server_begins_with_a_role(name):
    reply = read(one_event_a_read(body_of(name)))
    count = len(reply.token_events)
    assert reply.token_events == exact(*((t, True) for t in range(1, count + 1)))
    times = reply.timings(start_ns=0, sent_ns=0)
    assert (times.ttft, times.ttfo, times.itl) == (1, 1, (1,) * (count - 1))
    assert reply.merged == 0


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_reply_that_came_in_one_read_counts_every_token_event_as_merged(name):
    reply = read([body_of(name)])
    assert reply.merged == len(reply.token_events)


def test_an_interrupted_stream_is_truncated_though_it_is_a_200_with_done():
    body = body_of("sse-llama-cpp-python-interrupted.bin")
    for reads in ([body], one_event_a_read(body), [body[i : i + 1] for i in range(len(body))]):
        reply = read(reads)
        assert reply.failure.kind == "truncated stream"
        assert "[DONE] without finish_reason after 0 token events" in reply.failure.detail
        assert (reply.done_seen, reply.token_events) == (True, ())


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_real_reply_cut_before_its_finish_reason_is_truncated(name):
    body = body_of(name)
    finish = body.index(b'"length"')
    reply = read([body[:finish]])
    assert reply.failure.kind == "truncated stream"
    assert "the last event was cut" in reply.failure.detail
    assert reply.incomplete_event
    # vLLM's finish reason rides on the last token, which is cut with it
    assert len(reply.token_events) == WHOLE_FILES[name][0] - ("vllm" in name)


@given(places=st.lists(st.integers(0, 1300), max_size=12).map(sorted))
@example(places=[])
def test_any_split_of_a_real_reply_reads_the_same_but_for_its_stamps(places):
    body = body_of("sse-vllm-raw.bin")
    edges = [0, *places, len(body)]
    got = read([body[a:b] for a, b in pairwise(edges)])
    whole = read([body])
    assert got.failure is None
    assert [v for _, v, _ in got.token_events] == [v for _, v, _ in whole.token_events]
    assert (got.text, got.output_tokens) == (whole.text, whole.output_tokens)


def test_reasoning_is_a_token_but_not_visible_and_sets_ttft_and_ttfo_apart():
    reply = read(
        sse(
            ROLE,
            chunk({"reasoning_content": "Let me"}),
            chunk({"reasoning": " see", "content": None}),
            HELLO,
            STOP,
            DONE,
        )
    )
    assert reply.token_events == exact((1, False), (2, False), (3, True))
    assert (reply.text, reply.reasoning_chars) == ("Hello", 10)
    times = reply.timings(start_ns=0, sent_ns=0)
    assert (times.ttft, times.ttfo) == (1, 3)


def test_tool_call_deltas_are_tokens_their_names_are_kept_and_empty_shells_are_not():
    def call(index=0, **function):
        return chunk({"tool_calls": [{"index": index, "function": function}]})

    reply = read(
        sse(
            chunk({"role": "assistant", "content": None, "tool_calls": []}),
            call(name="lookup", arguments=""),
            call(arguments='{"q":'),
            call(arguments=""),
            call(index=1, name="escalate", arguments="{}"),
            chunk({}, "tool_calls"),
        )
    )
    assert reply.failure is None
    assert reply.token_events == exact((1, False), (2, False), (4, False))
    assert reply.tool_calls == ("lookup", "escalate")
    assert reply.text == ""


def test_a_tool_call_of_a_kind_without_function_is_a_token_too():
    custom = chunk({"tool_calls": [{"index": 0, "function": None, "custom": {"input": "x"}}]})
    assert read(sse(custom, STOP)).token_events == exact((0, False))


def test_a_refusal_is_visible_text():
    reply = read(sse(chunk({"refusal": "I cannot"}), STOP))
    assert (reply.text, reply.token_events) == ("I cannot", exact((0, True)))


@pytest.mark.parametrize(
    "delta",
    [{}, {"role": "assistant"}, {"content": None}, {"content": ""}, {"reasoning": ""}, None],
)
def test_a_delta_without_content_is_not_a_token(delta):
    reply = read(sse(chunk(delta), HELLO, STOP))
    assert reply.token_events == exact((1, True))


def test_a_finish_reason_that_rides_on_the_last_token_loses_neither():
    reply = read(sse(HELLO, chunk({"content": "!"}, "stop")))
    assert (reply.text, reply.finish_reason, len(reply.token_events)) == ("Hello!", "stop", 2)
    assert reply.failure is None


def test_usage_is_read_from_a_chunk_without_choices_and_the_last_one_counts():
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    last = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
    reply = read(sse({**HELLO, "usage": usage}, {**STOP, "usage": None}, last, DONE))
    assert (reply.input_tokens, reply.output_tokens, reply.tokens_counted) == (5, 7, False)


def test_without_usage_token_events_are_counted_and_the_reply_says_so():
    reply = read(sse(HELLO, HELLO, STOP, DONE))
    assert (reply.output_tokens, reply.tokens_counted, reply.input_tokens) == (2, True, None)
    assert reply.timings(start_ns=0, sent_ns=0).tpot == 1


def test_a_count_that_is_no_number_is_as_good_as_none():
    usage = {"prompt_tokens": "many", "completion_tokens": -1}
    reply = read(sse(HELLO, {**STOP, "usage": usage}))
    assert (reply.input_tokens, reply.output_tokens, reply.tokens_counted) == (None, 1, True)


def test_a_stream_needs_no_done_when_it_has_its_finish_reason():
    reply = read(sse(HELLO, STOP))
    assert (reply.failure, reply.done_seen) == (None, False)


def test_a_whole_reply_whose_done_lacks_its_blank_line_is_whole_and_says_what_it_lacks():
    reply = read([*sse(HELLO, STOP), b"data: [DONE]"])
    assert (reply.failure, reply.done_seen, reply.incomplete_event) == (None, False, True)


@pytest.mark.parametrize("events", [[], [ROLE], [ROLE, DONE], [HELLO, HELLO], [DONE]])
def test_a_stream_without_finish_reason_is_truncated(events):
    assert read(sse(*events)).failure.kind == "truncated stream"


def test_a_finish_reason_in_an_event_that_never_ended_does_not_count():
    reply = read([*sse(HELLO), sse(STOP)[0].rstrip()])
    assert reply.failure.kind == "truncated stream"


def test_a_reply_that_finished_without_a_token_failed_unless_that_is_allowed():
    reply = read(sse(ROLE, STOP, DONE))
    assert reply.failure.kind == "empty reply"
    assert "finish 'stop' and not one token" in reply.failure.detail
    assert "allow_empty" in reply.failure.detail
    assert (reply.text, reply.output_tokens) == ("", 0)
    reader = StreamReader(CHAT)
    for data in sse(ROLE, STOP, DONE):
        reader.feed(data, 0)
    allowed = reader.finish(1, empty_ok=True)
    assert (allowed.failure, allowed.is_empty) == (None, True)
    assert allowed.timings(start_ns=0, sent_ns=0).ttft is None


def test_what_follows_done_is_not_read():
    assert read(sse(HELLO, STOP, DONE, b"{nonsense")).failure is None


def test_with_several_choices_any_of_them_brings_tokens_and_each_must_finish():
    one, two = chunk({"content": "a"}), chunk({"content": "b"}, index=1)
    reply = read(sse(one, two, STOP, chunk({}, "length", index=1)), choices=2)
    assert reply.failure is None
    assert (reply.text, reply.finish_reason, len(reply.token_events)) == ("a", "stop", 2)
    assert read(sse(one, two, STOP), choices=2).failure.kind == "truncated stream"


def test_where_one_choice_was_asked_for_its_index_does_not_matter():
    reply = read(sse(HELLO, chunk({"content": "!"}, index=1), chunk({}, "stop", index=2)))
    assert (reply.failure, reply.text, reply.finish_reason) == (None, "Hello!", "stop")
    assert read(sse(chunk({"content": "a"}, index=7), STOP)).text == "a"


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": None}, 1),
        ({"n": "3"}, 1),
        ({"prompt": "a"}, 1),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
    ],
)
def test_a_request_says_how_many_choices_it_asks_for(body, choices):
    assert COMPLETIONS.choices(body) == choices


def test_choices_in_one_event_are_one_token_event():
    both = {
        "choices": chunk({"content": "a"})["choices"] + chunk({"content": "b"}, index=1)["choices"]
    }
    assert len(read(sse(both, STOP)).token_events) == 1


def test_the_completions_dialect_reads_text():
    def text(piece, finish=None):
        return {"choices": [{"index": 0, "text": piece, "finish_reason": finish}]}

    reply = read(sse(text(""), text("one"), text(" two", "stop"), DONE), of=COMPLETIONS)
    assert (reply.text, reply.token_events) == ("one two", exact((1, True), (2, True)))
    assert reply.failure is None


@pytest.mark.parametrize(
    "event",
    [
        b"{oops",
        b"[1]",
        b"null",
        b'"text"',
        b'{"choices": {"delta": {}}}',
        b'{"choices": [7]}',
        b'{"choices": [{"delta": "Hello"}]}',
        b'{"choices": [{"delta": {"content": ["Hello"]}}]}',
        b'{"choices": [{"delta": {"tool_calls": ["Hello"]}}]}',
        b"[" * 100_000,
        b'{"choices": [{"index": ' + b"9" * 5000 + b"}]}",
    ],
)
def test_an_event_that_is_not_what_the_api_has_is_malformed_and_keeps_what_came_before(event):
    reply = read(sse(HELLO, event, STOP, DONE))
    assert reply.failure.kind == "malformed event"
    assert len(reply.failure.detail) < 320
    assert (reply.text, reply.finish_reason) == ("Hello", None)


def test_the_malformed_event_is_shown():
    assert "{oops" in read(sse(b"{oops")).failure.detail


def test_an_event_over_the_limit_fails_its_reply_only():
    reply = read([*sse(HELLO), b"data: " + b"x" * (2 << 20)])
    assert reply.failure.kind == "malformed event"
    assert reply.text == "Hello"


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error": {"message": "KV cache is full", "code": 500}}\n\n',
        b'data: {"error": "KV cache is full"}\n\n',
        b'data: {"object": "error", "message": "KV cache is full"}\n\n',
        b"event: error\ndata: KV cache is full\n\n",
        b'event: error\ndata: {"detail": "KV cache is full"}\n\n',
        b'data: {"choices": [], "error": {"message": "KV cache is full"}}\n\n',
    ],
)
def test_an_error_event_inside_a_stream_fails_the_reply_with_its_message(event):
    reply = read([*sse(HELLO), event, *sse(STOP, DONE)])
    assert (reply.failure.kind, reply.failure.detail) == ("error event", "KV cache is full")


def test_a_null_error_beside_content_is_no_error():
    assert read(sse({**HELLO, "error": None}, STOP)).failure is None


@pytest.mark.parametrize(
    "reason",
    [
        *("error", "abort", "aborted", "insufficient_system_resource", "cancelled", "Timeout"),
        *("internal_error", "network_error", "engine_overloaded"),
        *({"type": "abort", "message": "no memory"}, {"error": "no memory"}, {}, {"type": None}),
    ],
)
def test_a_finish_reason_that_says_the_server_gave_up_is_a_failure(reason):
    reply = read(sse(HELLO, chunk({}, reason), DONE))
    assert reply.failure.kind == ("error event" if reason else "truncated stream") or reason == {}


@pytest.mark.parametrize(
    "reason",
    [
        *("stop", "length", "tool_calls", "function_call", "content_filter", "eos_token"),
        *("end_turn", "max_tokens", "stop_sequence", {"type": "stop", "matched": 2}),
    ],
)
def test_a_finish_reason_that_ends_a_reply_in_its_own_way_is_no_failure(reason):
    assert read(sse(HELLO, chunk({}, reason), DONE)).failure is None


def test_what_ended_the_stream_is_the_failure_when_the_caller_knows():
    reset = RequestFailed("reset", "by peer")
    assert read(sse(HELLO), cause=reset).failure is reset
    assert read(sse(HELLO, b"{"), cause=reset).failure.kind == "malformed event"


def test_a_body_over_the_limit_stops_the_reading_and_fails_the_reply():
    reader = StreamReader(CHAT, max_reply_bytes=100)
    reader.feed(b"x" * 100, 0)
    assert not reader.over
    reader.feed(b"x", 1)
    assert reader.over
    assert reader.finish(2).failure.kind == "reply too large"


def test_text_is_kept_to_the_limit_and_says_when_it_was_cut():
    events = sse(HELLO, HELLO, HELLO, STOP)
    exact, cut = read(events, max_text_chars=15), read(events, max_text_chars=7)
    assert read(events, max_text_chars=10).text_cut
    assert (exact.text, exact.text_cut) == ("Hello" * 3, False)
    assert (cut.text, cut.text_cut, cut.output_tokens) == ("HelloHe", True, 3)


def test_an_emoji_in_two_halves_is_joined_and_a_lone_half_can_still_be_written():
    halves = sse(
        rb'{"choices":[{"delta":{"content":"\ud83d"}}]}',
        rb'{"choices":[{"delta":{"content":"\ude00"}}]}',
    )
    assert read([*halves, *sse(STOP)]).text == "\U0001f600"
    assert read([halves[0], *sse(STOP)]).text.encode() == "\ufffd".encode()


def test_half_a_character_is_shown_as_such_and_loses_nothing_else():
    halves = [
        b'{"choices":[{"delta":{"content":"\xf0\x9f"}}]}',
        b'{"choices":[{"delta":{"content":"b"}}]}',
    ]
    reply = read(sse(HELLO, *halves, STOP))
    assert (reply.failure, reply.text, len(reply.token_events)) == (None, "Hello\ufffdb", 3)
    whole = read_json(CHAT, 200, {}, b'{"choices": [{"message": {"content": "a\xe2\x82"}}]}')
    assert (whole.failure, whole.text) == (None, "a\ufffd")


def test_a_dialect_without_streams_has_no_stream_reader():
    with pytest.raises(ValueError, match="json"):
        StreamReader(JSON)


# Whole replies


def as_json(value, of=CHAT, status=200, **more):
    return read_json(
        of, status, {"content-type": "application/json"}, json.dumps(value).encode(), **more
    )


def test_a_chat_reply_that_was_not_streamed_has_text_and_tokens_and_no_token_times():
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}
    value = {
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 9},
    }
    reply = as_json(value, end_ns=50)
    assert (reply.failure, reply.text, reply.model, reply.value) == (None, "Hi", "tiny", value)
    assert (reply.input_tokens, reply.output_tokens, reply.reasoning_chars) == (3, 9, 2)
    times = reply.timings(start_ns=0, sent_ns=10)
    assert (times.e2el, times.service, times.ttft, times.tpot) == (50, 40, None, None)


def test_a_reply_read_without_its_end_has_no_times():
    with pytest.raises(ValueError, match="end_ns"):
        as_json({"choices": [{"message": {}}]}).timings(start_ns=0, sent_ns=0)


def test_a_json_reply_without_usage_has_no_token_count():
    reply = as_json({"choices": [{"message": {"content": "Hi"}}]})
    assert (reply.output_tokens, reply.tokens_counted) == (None, False)


@pytest.mark.parametrize("vector", [[0.5, 1.0], "AAAAPwAAgD8="])
def test_embeddings_are_numbers_or_base64(vector):
    reply = as_json({"data": [{"embedding": vector}], "usage": {"prompt_tokens": 4}}, EMBEDDINGS)
    assert (reply.failure, reply.input_tokens, reply.output_tokens) == (None, 4, None)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"data": []},
        {"data": {}},
        {"data": [{}]},
        {"data": [{"embedding": []}]},
        {"data": [1]},
        [],
    ],
)
def test_embeddings_without_a_vector_are_an_invalid_reply(value):
    assert as_json(value, EMBEDDINGS).failure.kind == "invalid reply"


@pytest.mark.parametrize(
    "value", [{}, {"choices": []}, {"choices": [3]}, [], None, {"error": "no"}]
)
def test_a_chat_reply_without_choices_is_an_invalid_reply(value):
    assert as_json(value).failure.kind == "invalid reply"


@pytest.mark.parametrize("value", [{"outputs": [1]}, [1, 2], 3, None, {"choices": 5}])
def test_plain_json_may_be_anything_that_parses(value):
    reply = as_json(value, JSON)
    assert (reply.failure, reply.value) == (None, value)


@pytest.mark.parametrize("body", [b"", b"<html>", b"data: {}\n\n", b"\xff\xff", b"[" * 100_000])
def test_a_body_that_does_not_parse_is_an_invalid_reply_that_names_its_type(body):
    reply = read_json(JSON, 200, {"content-type": "text/html"}, body)
    assert reply.failure.kind == "invalid reply"
    assert "text/html" in reply.failure.detail


def test_a_status_other_than_2xx_is_a_failure_before_the_body_is_looked_at():
    assert as_json({"data": [{"embedding": [1]}]}, EMBEDDINGS, 503).failure.kind == "status 503"
    assert as_json({}, JSON, 302).failure.kind == "status 302"
    assert as_json({}, JSON, 201).failure is None


def test_a_redirect_tells_where_to_but_not_the_keys_on_the_way():
    failure = status_failure(307, b"", "https://new.test/v1?api-version=1&key=sk-1#top")
    assert failure.detail == "redirected to https://new.test/v1?api-version=1&key=***#top"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"error": {"message": "slow down", "type": "rate"}}', "slow down"),
        (b'{"error": "slow down"}', "slow down"),
        (b'{"message": "slow down"}', "slow down"),
        (b'{"detail": "slow down"}', "slow down"),
        (b'{"detail": [{"msg": "x"}]}', '{"detail": [{"msg": "x"}]}'),
        (b"upstream\r\n  timed out", "upstream timed out"),
        (b'{"error": "red \\u001b[31mtext\\u0000\\u202e"}', "red [31mtext"),
        (b"\x1b]0;title\x07x", "]0;titlex"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", ""),
    ],
)
def test_a_status_failure_carries_the_servers_message_and_no_control_characters(body, detail):
    failure = status_failure(429, body)
    assert (failure.kind, failure.detail) == ("status 429", detail)


@pytest.mark.parametrize(
    "body", [b"x" * 10**6, b'{"error": "' + b"x" * 5000 + b'"}', "é".encode() * 999]
)
def test_a_long_message_is_cut_to_200_characters(body):
    detail = status_failure(500, body).detail
    assert len(detail) == 200
    assert detail.endswith("…")


# Requests


def test_a_prompt_becomes_one_user_message_and_the_reply_is_asked_to_stream_with_usage():
    assert CHAT.body({"prompt": "Hi"}, "tiny", {"max_tokens": 8}) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 8,
    }


def test_messages_go_as_they_are_and_without_a_model_none_is_named():
    messages = [{"role": "system", "content": "Be brief"}]
    body = CHAT.body({"messages": messages}, None, {})
    assert body["messages"] is messages
    assert "model" not in body


def test_the_inputs_own_fields_go_over_the_defaults_and_params_over_both():
    body = CHAT.body(
        {"prompt": "Hi", "max_tokens": 1, "top_p": 1}, "a", {"max_tokens": 2, "model": "b"}
    )
    assert (body["max_tokens"], body["top_p"], body["model"]) == (2, 1, "b")


def test_params_can_ask_for_a_reply_without_a_stream():
    body = CHAT.body({"prompt": "Hi"}, None, {"stream": False})
    assert body["stream"] is False
    assert "stream_options" not in body
    assert not CHAT.wants_stream(body)
    assert CHAT.wants_stream(CHAT.body({"prompt": "Hi"}, None, {}))


def test_null_stream_options_are_left_out_for_servers_that_refuse_them():
    body = COMPLETIONS.body({"prompt": "Hi"}, None, {"stream_options": None})
    assert body == {"prompt": "Hi", "stream": True}


def test_embeddings_and_json_send_no_stream_fields():
    assert EMBEDDINGS.body({"prompt": "Hi"}, "e", {}) == {"model": "e", "input": "Hi"}
    assert EMBEDDINGS.body({"input": ["a", "b"]}, None, {}) == {"input": ["a", "b"]}
    assert JSON.body({"features": [1, 2]}, None, {"id": 3}) == {"features": [1, 2], "id": 3}
    assert not JSON.wants_stream({"stream": True})


def test_the_callers_input_is_left_as_it_was():
    data, params = {"prompt": "Hi"}, {"max_tokens": 1}
    for one in map(api, apis.API_NAMES):
        one.body(data, "m", params)
    assert (data, params) == ({"prompt": "Hi"}, {"max_tokens": 1})


@pytest.mark.parametrize("one", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_an_input_without_what_the_api_needs_is_the_users_error(one):
    with pytest.raises(UserError, match=r"needs .*; found 'text'"):
        one.body({"text": "Hi"}, None, {})


@pytest.mark.parametrize(
    ("base", "override", "url"),
    [
        ("http://h:1", None, "http://h:1/v1/chat/completions"),
        ("http://h:1/", None, "http://h:1/v1/chat/completions"),
        ("http://h:1/v1", None, "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/", None, "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/chat", None, "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/chat/completions", None, "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/chat/completions/", None, "http://h:1/v1/chat/completions"),
        ("https://h/openai/v1", None, "https://h/openai/v1/chat/completions"),
        ("https://h/openai", None, "https://h/openai/v1/chat/completions"),
        ("https://h/v12", None, "https://h/v12/chat/completions"),
        ("https://h/api/paas/v4/", None, "https://h/api/paas/v4/chat/completions"),
        (" https://h/api/v3\n", None, "https://h/api/v3/chat/completions"),
        ("https://h/v1beta/openai", None, "https://h/v1beta/openai/chat/completions"),
        (
            "https://h/v1/projects/x/openapi",
            None,
            "https://h/v1/projects/x/openapi/chat/completions",
        ),
        (
            "https://h/openai/deployments/d/chat/completions?api-version=1",
            None,
            "https://h/openai/deployments/d/chat/completions?api-version=1",
        ),
        (
            "https://h/openai/deployments/d?api-version=1",
            None,
            "https://h/openai/deployments/d/chat/completions?api-version=1",
        ),
        ("https://h/chat/completions", None, "https://h/chat/completions"),
        ("https://h/v1/embeddings", None, "https://h/v1/chat/completions"),
        ("https://h/endpoints/e/invocations", None, "https://h/endpoints/e/invocations"),
        (
            "http://h/api/v1/namespaces/n/services/s/proxy",
            None,
            "http://h/api/v1/namespaces/n/services/s/proxy/v1/chat/completions",
        ),
        ("http://[fe80::1%25eth0]:8000", None, "http://[fe80::1%eth0]:8000/v1/chat/completions"),
        (
            "http+unix://%2Ftmp%2FS.sock/v1",
            None,
            "http+unix://%2ftmp%2f%53.sock/v1/chat/completions",
        ),
        ("https://h/v1?api-version=2", None, "https://h/v1/chat/completions?api-version=2"),
        ("http://[::1]:8000", None, "http://[::1]:8000/v1/chat/completions"),
        ("http://h", "/score", "http://h/score"),
        ("http://h", "score", "http://h/score"),
        ("http://h/score", "/score", "http://h/score"),
        ("http://h/v1", "/v1/x", "http://h/v1/x"),
        ("http://h", "/score/?a=1", "http://h/score/?a=1"),
        ("http://h/score", "", "http://h/score"),
        ("http://h/score", "/", "http://h/score"),
        ("http://h/?k=1", "/score?a=1", "http://h/score?k=1&a=1"),
    ],
)
def test_a_base_url_and_a_path_join_without_saying_anything_twice(base, override, url):
    assert url_for(base, CHAT, override) == url


@pytest.mark.parametrize(
    "base",
    [
        "",
        "h:8000",
        "localhost",
        "ftp://h",
        "http://",
        "http://h:x",
        "http://[",
        "/run/s.sock",
        "http://::1:8000",
        "http+unix:///run/s.sock",
        "http://h /v1",
    ],
)
def test_a_base_that_is_no_http_url_is_the_users_error(base):
    with pytest.raises(UserError, match="must look like http"):
        url_for(base, CHAT)


def test_a_path_that_names_a_host_is_the_users_error():
    with pytest.raises(UserError, match="host belongs in the url"):
        url_for("http://h", CHAT, "http://other/v1")


def test_each_api_has_its_path():
    paths = [api(name).path for name in apis.API_NAMES]
    assert paths == ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/predict"]


def test_an_unknown_api_is_the_users_error_with_the_nearest_name_and_all_that_are_allowed():
    with pytest.raises(
        UserError, match=r"'openai-chta'; did you mean 'openai-chat'; allowed: openai"
    ):
        api("openai-chta")
    with pytest.raises(UserError) as error:
        api("zzz")
    assert "did you mean" not in str(error.value)


# --- plain events: understood by a typed decode, and as whole events are -----------------------

_TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " a", "null", "index", "content", '"', "\\", "\u2028", "😀", "\ud83d", "0", "x"]
    ),
)


def _chunk(text: str, index: int, created: int, reason: str | None, *, ascii_only: bool) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": reason}
    value = {"id": "x", "created": created, "model": "x", "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace")


def _reply_to(stream: list[bytes], **changed: Any) -> apis.Reply:
    reader = StreamReader(replace(api("openai-chat"), **changed))
    for t_ns, data in enumerate(stream):
        reader.feed(data, t_ns)
    return reader.finish(len(stream))


@given(
    chunks=st.lists(
        st.tuples(
            _TEXTS,
            st.sampled_from([0, 0, 0, 0, 1]),
            st.sampled_from([7, 7, 7, 8]),
            st.sampled_from([None, None, None, "stop", "error"]),
            st.booleans(),
        ),
        max_size=25,
    ),
    done=st.booleans(),
)
def test_a_reply_is_the_same_whether_its_events_are_typed_or_parsed(
    chunks: list[tuple[str, int, int, str | None, bool]], done: bool
) -> None:
    stream = [_chunk(t, i, c, r, ascii_only=a) for t, i, c, r, a in chunks]
    stream += [b"data: [DONE]\n\n"] * done
    typed = _reply_to(stream)
    parsed = _reply_to(stream, plain=lambda _data: None)
    for name in apis.Reply.__slots__:
        if name != "failure":
            assert getattr(typed, name) == getattr(parsed, name), name
    assert repr(typed.failure) == repr(parsed.failure)


@pytest.mark.parametrize("more", [{}, {"usage": None}, {"error": None}, {"x_groq": {"id": "1"}}])
@pytest.mark.parametrize(
    ("delta", "finish"),
    [
        ({"content": "a"}, None),
        ({"content": "a", "role": "assistant", "refusal": None}, ""),
        ({"content": "", "reasoning": "hm"}, None),
        ({"reasoning_content": "hm", "content": None}, None),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, None),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{", "name": ""}}]}, None),
    ],
)
def test_an_ordinary_token_event_is_plain(delta, finish, more):
    data = json.dumps(chunk(delta, finish, **more)).encode()
    assert chunks.plain_chat(data) is not None
    assert len(read([b"data: %b\n\n" % data, *sse(STOP)]).token_events) == 1


@pytest.mark.parametrize(
    "value",
    [
        ROLE,
        STOP,
        chunk({"content": "a"}, "stop"),
        chunk({"content": "a"}, usage="no report", error={"message": "x"}),
        {"choices": [*HELLO["choices"], *HELLO["choices"]]},
        chunk({"content": [{"type": "text", "text": "a"}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}),
        chunk({"content": "a", "function_call": {"name": "f"}}),
        {"choices": []},
        [],
    ],
)
def test_what_says_more_than_a_token_is_not_plain(value):
    assert chunks.plain_chat(json.dumps(value).encode()) is None


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"reasoning": "hm"}, lambda reply: reply.reasoning_chars == 3 * len("hm")),
        (
            {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
            lambda r: r.tool_calls == ("f",),
        ),
    ],
)
def test_what_an_event_brings_beside_its_text_is_not_lost_where_it_repeats(more, kept):
    reply = read(sse(*(chunk({"content": text, **more}) for text in "abc"), STOP))
    assert (reply.text, len(reply.token_events)) == ("abc", 3)
    assert kept(reply)
