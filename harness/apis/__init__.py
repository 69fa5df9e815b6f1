"""Endpoint dialects: how a request is worded, and what in a reply is a token. Nothing here sends.

What is a token event: one that brings non-empty content (visible), reasoning or a tool call. A
role, a null or an empty delta is none, and neither is a chunk that only carries usage. A streamed
reply is whole when every choice it began has a finish reason; `[DONE]` is neither needed (some
servers never send it) nor enough (a stream that was interrupted can still send it). A whole reply
without any token is not a failure: its ttft is absent.

`dialects` names the APIs, whose requests `bodies` and `address` word and whose replies `contents`
understands. `reading` reads a reply, `stream` or `whole`; `tally` adds up what it brought and
`reply` is what is kept of it. `chunks` spares nearly every event of a stream most of its parsing,
`failures` quotes what servers say.
"""

from harness.apis.address import models_url, url_for
from harness.apis.dialects import API_NAMES, Api, api, problem_of
from harness.apis.failures import excerpt, status_failure
from harness.apis.reading import ReplyReader, ReplyRules
from harness.apis.reply import Reply
from harness.apis.stream import StreamReader
from harness.apis.whole import read_json

__all__ = [
    "API_NAMES",
    "Api",
    "Reply",
    "ReplyReader",
    "ReplyRules",
    "StreamReader",
    "api",
    "excerpt",
    "models_url",
    "problem_of",
    "read_json",
    "status_failure",
    "url_for",
]
