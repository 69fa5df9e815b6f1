"""What servers put where: the same reply in the shapes that people have met, by kind."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise

import pytest

from harness.apis import ReplyReader, ReplyRules, StreamReader, api, read_json
from harness.errors import RequestFailed

CHAT = api("openai-chat")
DONE = b"data: [DONE]\n\n"


def sse(*values):
    """One read an event."""
    return [b"data: " + json.dumps(v).encode() + b"\n\n" for v in values]


def chunk(delta, finish=None, **more):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


HELLO = chunk({"content": "Hello"})
STOP = chunk({}, "stop")


def read(reads, **options):
    """Feed reads stamped 0, 1, 2 ... after a request sent at -1."""
    reader = StreamReader(CHAT, since_ns=-1, **options)
    for t_ns, data in enumerate(reads):
        reader.feed(data, t_ns)
    return reader.finish(10**6)


def whole(value, **options):
    """Read a reply that was not streamed."""
    return read_whole(json.dumps(value).encode(), streamed=False, **options)


def read_whole(body, *, streamed=True, headers=(), status=200, rules=None, cuts=()):
    """Read a body in the pieces that `cuts` make of it, as a client does."""
    reader = ReplyReader(CHAT, streamed=streamed, rules=rules)
    edges = [0, *cuts, len(body)]
    pieces = [(body[a:b], i) for i, (a, b) in enumerate(pairwise(edges))]
    headers = dict(headers)
    if reader.follows(status):
        reader.follow(headers, pieces[:-1], -1)
        pieces = pieces[-1:]
    return reader.finish(status, headers, pieces, since_ns=-1, end_ns=10**6)


# Reasoning, and other things that are tokens


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"thinking": "hm"},
        {"thoughts": "hm"},
        {"reasoning_text": "hm"},
        {"reasoning": {"text": "hm"}},
        {"reasoning_details": [{"type": "reasoning.text", "text": "hm", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": ""}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
        {"content": [{"type": "reasoning", "text": "hm"}]},
        {"content": "", "reasoning": "hm", "reasoning_content": None},
    ],
)
def test_reasoning_under_any_name_is_a_token_that_is_not_visible(delta):
    reply = read(sse(chunk({"role": "assistant"}), chunk(delta), HELLO, STOP))
    assert reply.token_events == ((1, False, 1), (2, True, 2))
    assert (reply.reasoning_chars, reply.text) == (2, "Hello")


@pytest.mark.parametrize(
    "delta",
    [
        {"thinking": ""},
        {"reasoning": None},
        {"reasoning_details": []},
        {"thought_signature": "abc"},
        {"reasoning_tokens": 3},
        {"content": []},
        {"content": [{"type": "text", "text": ""}]},
        {"audio": {"id": "a", "data": ""}},
        {"function_call": None},
    ],
)
def test_what_only_looks_like_a_token_is_none(delta):
    assert len(read(sse(chunk(delta), HELLO, STOP)).token_events) == 1


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": {"type": "text", "text": "a"}}, "a"),
        ({"content": [{"type": "output_text", "text": "a"}]}, "a"),
        ({"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, ""),
        ({"audio": {"data": "UklG", "transcript": "a"}}, "a"),
        ({"images": [{"type": "image_url"}]}, ""),
    ],
)
def test_content_in_parts_is_visible_output(delta, text):
    reply = read(sse(chunk(delta), STOP))
    assert (reply.token_events, reply.text) == (((0, True, 0),), text)


def test_a_function_call_of_the_old_kind_is_a_tool_call():
    calls = [{"name": "lookup", "arguments": ""}, {"arguments": "{}"}]
    reply = read(sse(*(chunk({"function_call": one}) for one in calls), STOP))
    assert (reply.tool_calls, len(reply.token_events)) == (("lookup",), 2)


# Usage


@pytest.mark.parametrize(
    "last",
    [
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}},
        {"choices": [], "usage": {"input_tokens": 5, "output_tokens": 7}},
        {"choices": [], "usage": {"prompt_tokens": 5.0, "completion_tokens": 7.0}},
        {"choices": [], "usage": {"prompt_tokens": 5, "total_tokens": 12}},
        {"choices": [], "usage": {"prompt_tokens": "5", "completion_tokens": "7"}},
        {"choices": [], "metadata": {"usage": {"prompt_tokens": 5, "completion_tokens": 7}}},
        {"choices": [], "x_groq": {"usage": {"prompt_tokens": 5, "completion_tokens": 7}}},
        chunk({}, "stop", x_groq={"usage": {"prompt_tokens": 5, "completion_tokens": 7}}),
        {"choices": [], "usage_metadata": {"promptTokenCount": 5, "candidatesTokenCount": 7}},
        {
            "choices": [
                {"index": 0, "delta": {}, "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
            ]
        },
    ],
)
def test_usage_is_found_where_servers_put_it(last):
    reply = read(sse(HELLO, HELLO, STOP, last))
    assert (reply.input_tokens, reply.output_tokens, reply.tokens_counted) == (5, 7, False)


def test_usage_that_rides_on_every_token_is_read_once_and_the_last_counts():
    events = [
        chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": n})
        for n in (1, 2, 3)
    ]
    reply = read(sse(*events, STOP))
    assert (reply.input_tokens, reply.output_tokens) == (5, 3)


@pytest.mark.parametrize("zeros", [{"prompt_tokens": 0, "completion_tokens": 0}, {}])
def test_usage_of_zeros_beside_tokens_is_missing_and_not_free(zeros):
    reply = read(sse(HELLO, HELLO, {**STOP, "usage": zeros}))
    assert (reply.input_tokens, reply.output_tokens, reply.tokens_counted) == (None, 2, True)
    message = {"choices": [{"message": {"content": "Hi"}}], "usage": zeros}
    assert (whole(message).input_tokens, whole(message).output_tokens) == (None, None)


@pytest.mark.parametrize(
    ("usage", "streamed"),
    [
        ({"completion_tokens": 110, "completion_tokens_details": {"reasoning_tokens": 100}}, 10),
        ({"output_tokens": 110, "output_tokens_details": {"reasoning_tokens": 100}}, 10),
        ({"completion_tokens": 110, "reasoning_tokens": 100}, 10),
        (
            {
                "completion_tokens": 20,
                "completion_tokens_details": {"rejected_prediction_tokens": 15},
            },
            5,
        ),
        (  # this server counts them beside its completion tokens
            {
                "prompt_tokens": 9,
                "completion_tokens": 10,
                "total_tokens": 119,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            10,
        ),
        ({"completion_tokens": 12}, 12),
    ],
)
def test_tokens_that_were_counted_and_not_streamed_are_in_no_tpot(usage, streamed):
    reply = read(sse(HELLO, HELLO, HELLO, {**STOP, "usage": usage}))
    assert reply.streamed_tokens == streamed
    assert reply.timings(start_ns=0, sent_ns=0).tpot == round(2 / (streamed - 1))


def test_reasoning_that_was_streamed_counts_and_a_summary_of_it_gives_no_tpot():
    usage = {"completion_tokens": 110, "completion_tokens_details": {"reasoning_tokens": 100}}
    end = {**STOP, "usage": usage}
    streamed = read(sse(chunk({"reasoning": "x" * 400}), HELLO, end))
    assert streamed.streamed_tokens == 110
    summary = read(sse(chunk({"reasoning": "thinking"}), HELLO, end))
    assert summary.streamed_tokens is None
    assert summary.timings(start_ns=0, sent_ns=0).tpot is None


# How a stream ends


@pytest.mark.parametrize("none", [None, "", "null"])
def test_a_server_without_finish_reasons_gives_a_whole_reply_that_says_so(none):
    tokens = [chunk({"content": "a"}, none), chunk({"content": "b"}, none)]
    done = read([*sse(*tokens), DONE])
    assert (done.failure, done.unfinished, done.finish_reason) == (None, True, None)
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    counted = read(sse(*tokens, usage))
    assert (counted.failure, counted.unfinished) == (None, True)
    assert not read(sse(*tokens, STOP)).unfinished


@pytest.mark.parametrize(
    "reads",
    [
        sse(HELLO),
        [*sse(chunk({"role": "assistant"})), DONE],
        sse({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
        sse(HELLO, {"choices": [], "usage": {"completion_tokens": 2}}, HELLO),
    ],
)
def test_without_any_mark_of_its_end_a_stream_is_truncated(reads):
    assert read(reads).failure.kind == "truncated stream"


def test_a_reply_ends_with_its_done_and_what_follows_does_not_matter():
    reads = [*sse(HELLO, STOP), DONE, b"data: {broken\n\n"]
    reply = read(reads)
    assert (reply.failure, reply.end_ns) == (None, 2)
    assert read(sse(HELLO, STOP)).end_ns == 10**6


@pytest.mark.parametrize("end", [[STOP], []])
def test_a_reply_that_was_done_is_whole_whatever_breaks_off_what_follows(end):
    reader = StreamReader(CHAT, since_ns=-1)
    for t_ns, data in enumerate([*sse(HELLO, *end), DONE]):
        reader.feed(data, t_ns)
    reply = reader.finish(10, cause=RequestFailed("truncated stream", "the body had no end"))
    assert (reply.failure, reply.unfinished) == (None, not end)


@pytest.mark.parametrize("done", [b"data:[DONE]\n\n", b"data: [done]\n\n", b'data: "[DONE]"\n\n'])
def test_a_done_may_be_written_otherwise(done):
    assert read([*sse(HELLO, STOP), done]).done_seen


@pytest.mark.parametrize("beat", [b"data:\n\n", b"data: \n\n", b": ping\n\n", b"event: ping\n\n"])
def test_a_heartbeat_of_any_form_is_no_event(beat):
    reply = read([beat, *sse(HELLO), beat, *sse(STOP), beat, DONE])
    assert (reply.failure, len(reply.token_events)) == (None, 1)


@pytest.mark.parametrize("beat", [b"data: ping\n\n", b"event: ping\ndata: 12:30\n\n"])
def test_a_heartbeat_that_is_no_json_is_no_malformed_event(beat):
    assert read([*sse(HELLO), beat, *sse(STOP)]).failure is None
    assert read([*sse(HELLO), b"data: pong\n\n"]).failure.kind == "malformed event"


@pytest.mark.parametrize(
    "error",
    [
        {"code": 500, "message": "broken"},
        {"success": False, "errors": [{"message": "broken"}]},
        {"detail": "broken"},
        {"base_resp": {"status_code": 1002, "status_msg": "broken"}},
        {"type": "error", "message": "broken"},
        {"error": "broken"},
    ],
)
def test_an_error_in_place_of_an_end_is_a_failure_whatever_mark_follows(error):
    for end in ([], [DONE], sse({"choices": [], "usage": {"completion_tokens": 1}})):
        failure = read([*sse(HELLO, error), *end]).failure
        assert (failure.kind, failure.detail) == ("error event", "broken")


def test_a_message_beside_a_reply_that_ends_is_no_error():
    status = {"type": "status", "message": "loading"}
    assert read(sse(status, HELLO, STOP)).failure is None


def test_a_ping_event_with_data_is_no_token():
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    assert len(read([ping, *sse(HELLO, STOP)]).token_events) == 1


# What is taken for a stream

BODY = b"".join([*sse(HELLO, STOP), DONE])


@pytest.mark.parametrize(
    "declared",
    [
        "text/event-stream",
        "Text/Event-Stream; charset=utf-8",
        "text/event-stream, text/event-stream",
        "text/plain; charset=utf-8",
        "application/json",
        "application/octet-stream",
        "application/x-ndjson",
        "",
    ],
)
@pytest.mark.parametrize("status", [200, 201, 206])
def test_a_body_that_is_an_event_stream_is_one_whatever_it_declares(declared, status):
    headers = {"content-type": declared} if declared else {}
    for cuts in ((), (3,), range(1, len(BODY))):
        reply = read_whole(BODY, headers=headers, status=status, cuts=cuts)
        assert (reply.failure, reply.text) == (None, "Hello")


@pytest.mark.parametrize(
    "start", [b": hello\n\n", b"\n", b"\xef\xbb\xbf", b"id: 1\n", b"retry: 1\n"]
)
def test_a_stream_may_begin_with_any_field(start):
    assert read_whole(start + BODY, headers={"content-type": "text/plain"}).failure is None


@pytest.mark.parametrize("declared", ["application/json", "text/event-stream", ""])
def test_json_where_a_stream_was_asked_for_is_said_with_its_message(declared):
    body = b'{"error": {"message": "no model is loaded"}}'
    failure = read_whole(body, headers={"content-type": declared}).failure
    assert failure.kind == "not a stream"
    assert "no model is loaded" in failure.detail


def test_a_stream_without_a_body_is_truncated():
    reply = read_whole(b"", headers={"content-type": "text/event-stream"})
    assert reply.failure.kind == "truncated stream"


# Limits


def test_the_longest_event_is_a_setting():
    long = sse(chunk({"content": "x" * 3000}))[0]
    assert read([long, *sse(STOP)], max_event_bytes=4000).failure is None
    failure = read([long, *sse(STOP)], max_event_bytes=2000).failure
    assert failure.kind == "malformed event"
    assert "max_event in the plan" in failure.detail


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("streamed", [True, False])
def test_the_longest_reply_is_a_setting_before_and_after_decompression(coding, streamed):
    body = BODY if streamed else b'{"choices": [{"message": {"content": "%b"}}]}' % (b"x" * 200)
    sent = gzip.compress(body) if coding == "gzip" else body
    headers = {"content-encoding": coding, "content-type": "text/event-stream"}
    for limit, kind in ((len(body), None), (len(body) - 1, "reply too large")):
        rules = ReplyRules(max_reply_bytes=limit)
        reply = read_whole(sent, streamed=streamed, headers=headers, rules=rules)
        assert (reply.failure and reply.failure.kind) == kind
        if kind is not None:
            assert "max_reply in the plan" in reply.failure.detail


def test_an_empty_message_is_a_failure_too_unless_allowed():
    empty = {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}
    assert whole(empty).failure.kind == "empty reply"
    assert whole(empty, rules=ReplyRules(empty_ok=True)).failure is None
    call = {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    assert whole({"choices": [{"message": call}]}).failure is None


# Answers of another API, and errors where a reply should be

COMPLETIONS = api("openai-completions")


def test_a_reply_in_the_shape_of_the_other_api_is_read():
    text = {"choices": [{"index": 0, "text": "Hi", "finish_reason": None}]}
    assert read(sse(text, text, STOP)).text == "HiHi"
    reader = StreamReader(COMPLETIONS, since_ns=-1)
    for t_ns, data in enumerate(sse(HELLO, HELLO, STOP)):
        reader.feed(data, t_ns)
    reply = reader.finish(10)
    assert (reply.failure, reply.text, len(reply.token_events)) == (None, "HelloHello", 2)


def test_an_error_beside_a_whole_reply_is_a_failure():
    message = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}
    assert whole({**message, "error": None}).failure is None
    failure = whole({**message, "error": {"message": "broken"}}).failure
    assert (failure.kind, failure.detail) == ("invalid reply", "an error: broken")


@pytest.mark.parametrize("vector", [[None, None], [0.5, None]])
def test_an_embedding_of_nulls_is_no_embedding(vector):
    body = json.dumps({"data": [{"embedding": vector}]}).encode()
    reply = read_json(api("openai-embeddings"), 200, {}, body)
    assert "null" in reply.failure.detail


def test_an_error_page_is_said_by_its_title():
    page = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
    assert read_whole(page, status=502).failure.detail == "502 Bad Gateway"
    assert read_whole(b"", streamed=False).failure.detail == "no body (no content-type)"
