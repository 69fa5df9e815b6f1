"""Reads a reply that was not streamed."""

from __future__ import annotations

from collections.abc import Mapping

from harness.apis.contents import WrongShape
from harness.apis.dialects import Api
from harness.apis.failures import body_message, content_type, status_failure
from harness.apis.reply import Reply
from harness.apis.stream import parse_json, without_content
from harness.apis.tally import Tally
from harness.errors import RequestFailed


def read_json(
    api: Api,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    end_ns: int | None = None,
    choices: int = 1,
    empty_ok: bool = False,
) -> Reply:
    """Read a reply that was not streamed; nothing is raised, `failure` says what was wrong."""
    if not 200 <= status < 300:
        location = headers.get("location", "") if 300 <= status < 400 else ""
        return Reply(failure=status_failure(status, body, location), end_ns=end_ns)
    tally = Tally(api, choices=choices)
    failure = None
    value = None
    try:
        value = parse_json(body)
    except (ValueError, RecursionError):
        kind = content_type(headers) or "no content-type"
        failure = RequestFailed("invalid reply", _not_json(body, kind))
    if failure is None:
        try:
            api.check(value)
            if isinstance(value, dict):
                tally.add(value)
            failure = tally.failed_finish("invalid reply")
        except WrongShape as error:
            failure = RequestFailed("invalid reply", f"{error}: {body_message(body)}")
    reply = tally.reply(streamed=False, value=value, end_ns=end_ns, failure=failure)
    return reply if empty_ok or api.output is None else without_content(reply)


def _not_json(body: bytes, kind: str) -> str:
    return f"not JSON ({kind}): {body_message(body)!r}" if body.strip() else f"no body ({kind})"
