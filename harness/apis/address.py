"""Where a request goes: the target's URL and the dialect's path, joined."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from harness.apis.dialects import Api
from harness.errors import UserError
from harness.masking import mask_query


def url_for(base_url: str, api: Api, path_override: str | None = None) -> str:
    """Join the path to the base URL; what the base already ends with is not said twice.

    `http://h:1`, `http://h:1/v1` and `http://h:1/v1/chat/completions` give the same URL. A query in
    either part is kept. Raises UserError for a base that is not an http or https URL.
    """
    try:
        base = urlsplit(base_url.strip())
        usable = base.scheme in ("http", "https") and base.hostname and base.port != 0
    except ValueError:
        usable = None
    if not usable:
        shown = mask_query(base_url)
        raise UserError(f"url {shown!r} must look like http://host:port or https://host/path")
    added = urlsplit(api.path if path_override is None else path_override)
    if added.scheme or added.netloc:
        raise UserError(f"path {path_override!r} must be a path; the host belongs in the url")
    have = [part for part in base.path.split("/") if part]
    want = [part for part in added.path.split("/") if part]
    said = max(n for n in range(len(want) + 1) if have[max(len(have) - n, 0) :] == want[:n])
    path = "/" + "/".join(have + want[said:])
    if want and added.path.endswith("/"):
        path += "/"
    query = "&".join(filter(None, (base.query, added.query)))
    return urlunsplit((base.scheme, base.netloc, path, query, ""))
